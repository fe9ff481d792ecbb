"""Every URL prefix, and who answers it."""

from importlib.util import find_spec

from django.urls import URLPattern, URLResolver, include, path

from gatewayadmin.overview import overview

_ROOMS = (
    "accounts",
    "hosts",
    "gateways",
    "servers",
    "connections",
    "tokens",
    "oauth",
    "auditlog",
)

urlpatterns: list[URLPattern | URLResolver] = [
    path("", overview, name="overview"),
    path("accounts/", include("allauth.urls")),
]
urlpatterns += [path("", include(f"{room}.urls")) for room in _ROOMS if find_spec(f"{room}.urls")]

handler403 = "ui.errors.permission_denied"
handler404 = "ui.errors.not_found"
