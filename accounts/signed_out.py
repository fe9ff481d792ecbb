"""Redirect people who are not signed in to sign-in, and back to their page afterwards."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlencode

from django.contrib.auth.middleware import LoginRequiredMiddleware
from django.http import HttpRequest, HttpResponseBase, HttpResponseRedirect
from django.shortcuts import resolve_url

from ui.pages import referring_page

NOT_DONE = "not_done"  # In the sign-in URL: the submitted form was not processed.


class SignInFirst(LoginRequiredMiddleware):
    """Django's, except that a form of a person signed out in the meantime leads back to its page.

    Many URLs accept only POST, so that opening them would fail.
    """

    def handle_no_permission(
        self, request: HttpRequest, view_func: Callable[..., HttpResponseBase]
    ) -> HttpResponseRedirect:
        if request.method != "POST":
            return super().handle_no_permission(request, view_func)
        told = {self.get_redirect_field_name(view_func): referring_page(request), NOT_DONE: 1}
        return HttpResponseRedirect(f"{resolve_url(self.get_login_url(view_func))}?{urlencode(told, safe='/')}")
