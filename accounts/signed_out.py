"""Who is not signed in is sent to sign-in, and back to the page they were on."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlencode

from django.contrib.auth.middleware import LoginRequiredMiddleware
from django.http import HttpRequest, HttpResponseBase, HttpResponseRedirect
from django.shortcuts import resolve_url

from ui.pages import referring_page

NOT_DONE = "not_done"  # In the address of sign-in: what was sent was not done.


class SignInFirst(LoginRequiredMiddleware):
    """Django's, but a form of somebody who was signed out meanwhile leads back to its page: many addresses take nothing
    but forms, and would be an error to open."""

    def handle_no_permission(
        self, request: HttpRequest, view_func: Callable[..., HttpResponseBase]
    ) -> HttpResponseRedirect:
        if request.method != "POST":
            return super().handle_no_permission(request, view_func)
        told = {self.get_redirect_field_name(view_func): referring_page(request), NOT_DONE: 1}
        return HttpResponseRedirect(f"{resolve_url(self.get_login_url(view_func))}?{urlencode(told, safe='/')}")
