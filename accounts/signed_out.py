"""Who is not signed in is sent to sign-in, and back to the page they were on."""

from __future__ import annotations

from collections.abc import Callable

from django.contrib import messages
from django.contrib.auth.middleware import LoginRequiredMiddleware
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponseBase, HttpResponseRedirect

from ui.pages import stood_on

NOT_DONE = "You are not signed in. What you sent was not done."


class SignInFirst(LoginRequiredMiddleware):
    """Django's, but a form of somebody who was signed out meanwhile leads back to its page: many addresses take nothing
    but forms, and would be an error to open."""

    def handle_no_permission(
        self, request: HttpRequest, view_func: Callable[..., HttpResponseBase]
    ) -> HttpResponseRedirect:
        if request.method in ("GET", "HEAD"):
            return super().handle_no_permission(request, view_func)
        messages.warning(request, NOT_DONE)
        return redirect_to_login(
            stood_on(request), self.get_login_url(view_func), self.get_redirect_field_name(view_func)
        )
