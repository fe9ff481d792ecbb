"""The doctor's page, for users who manage gateways. The check runs as the current user."""

from __future__ import annotations

from urllib.parse import urlsplit

from django.conf import settings
from django.http import HttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from capabilities import Capability, requires
from gatewayadmin.doctor.http_probe import passed
from gatewayadmin.doctor.oauth_check import OAuthCheck
from gateways.models import Gateway
from ui.pages import AppRequest, show


@never_cache
@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def doctor(request: AppRequest) -> HttpResponse:
    """Choose a gateway, run the check and show the report."""
    gateways = list(Gateway.objects.visible_to(request.user))
    slug = request.POST.get("gateway") or request.GET.get("gateway")
    gateway = next((candidate for candidate in gateways if candidate.slug == slug), next(iter(gateways), None))
    ran = request.method == "POST" and gateway is not None
    steps = OAuthCheck(settings.PUBLIC_URL, gateway, request.user).run() if ran and gateway else []
    context = {
        "gateways": gateways,
        "gateway": gateway,
        "public_url": settings.PUBLIC_URL,
        "came_by": _other_host(request),
        "steps": steps,
        "passed": passed(steps),
    }
    return show(request, "doctor.html#report", context)


def _other_host(request: AppRequest) -> str:
    """Return this request's host if it differs from the public URL's host, otherwise an empty string."""
    host = request.headers.get("X-Forwarded-Host") or request.get_host()
    return "" if host.lower() == urlsplit(settings.PUBLIC_URL).netloc.lower() else host
