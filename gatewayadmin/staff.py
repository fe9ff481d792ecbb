"""The Django admin's site: it uses the product's sign-in, with its limits and second factor."""

from typing import Any

from allauth.account.views import logout
from django.contrib.admin import AdminSite
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect


class StaffSite(AdminSite):
    """The Django admin site. Not the default site, where other packages register models with secrets."""

    site_header = "Gateway Admin"
    site_title = "Gateway Admin"
    index_title = "Everything there is"

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Redirects to the product's sign-in; a signed-in user without the staff flag is refused."""
        if self.has_permission(request):
            return redirect("admin:index")
        if request.user.is_authenticated:
            raise PermissionDenied("Only staff may open the Django admin.")
        return redirect_to_login(request.GET.get("next") or "/admin/")

    def logout(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        """Sign out as everybody does."""
        return logout(request)


site = StaffSite(name="admin")
