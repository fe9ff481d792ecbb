"""How staff come into the Django admin: through the one sign-in, with its limits and second factor (trap E10)."""

from typing import Any

from django.contrib import admin
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect


def sign_in(request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
    """Strangers go to our sign-in. Whoever is signed in is let on, or told no: a password alone opens nothing."""
    if admin.site.has_permission(request):
        return redirect("admin:index")
    if request.user.is_authenticated:
        raise PermissionDenied("Only staff may open the Django admin.")
    return redirect_to_login(request.GET.get("next") or "/admin/")
