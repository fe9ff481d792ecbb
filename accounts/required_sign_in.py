"""The sign-in that a role or the workspace requires: a second factor, or sign-in by the organisation.

Until people sign in as required, pages redirect to the view `required`, and REST requests with a session get 403.
Tokens, connections and API keys work without the required sign-in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib.auth.middleware import LoginRequiredMiddleware
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect
from django.urls import reverse
from django.views.decorators.http import require_GET
from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from accounts.rules import RequiredSignIn, required_of
from accounts.second_factor import has_second_factor, is_offered
from capabilities import own_resource
from sso.enforcement import is_signed_in_there
from sso.models import Provider
from ui.pages import AppRequest, own_path, show

ONWARD = "after_required_sign_in"  # Session key: the page to open once the second factor is set up.

PAGE = "accounts:required"
# For each required sign-in, the pages that people can open although they lack this sign-in. Besides these, they can
# open the pages that need no sign-in.
SETS_UP = {
    RequiredSignIn.SECOND_FACTOR: {
        PAGE,
        "mfa_index",
        "mfa_activate_totp",
        "mfa_add_webauthn",
        "account_reauthenticate",
        "mfa_reauthenticate",
        "mfa_reauthenticate_webauthn",
        "sso:confirm",
    },
    # Linking stays closed: whoever knows a colleague's password could link an account of their own.
    RequiredSignIn.ORGANISATION: {PAGE},
}
DETAILS = {
    RequiredSignIn.SECOND_FACTOR: "Set up a second factor first: Settings, Second factor.",
    RequiredSignIn.ORGANISATION: "Sign in at your organisation first.",
}


def missing_sign_in(request: Any) -> RequiredSignIn | None:
    """Return the sign-in that the role or the workspace requires and this session lacks, or None."""
    person = request.user
    required = required_of(person)
    if RequiredSignIn.SECOND_FACTOR in required and not has_second_factor(person):
        return RequiredSignIn.SECOND_FACTOR
    if RequiredSignIn.ORGANISATION in required and not person.break_glass:
        provider = Provider.offered()  # None while sign-in by the organisation is disabled.
        if provider and not is_signed_in_there(request, provider):
            return RequiredSignIn.ORGANISATION
    return None


class RequiredSignInFirst(LoginRequiredMiddleware):
    """Redirects to the view `required` if the person lacks the required sign-in, except on the pages in SETS_UP."""

    def process_view(
        self, request: HttpRequest, view_func: Callable[..., Any], view_args: Any, view_kwargs: Any
    ) -> HttpResponseRedirect | None:
        if not request.user.is_authenticated or not getattr(view_func, "login_required", True):
            return None
        name = request.resolver_match.view_name if request.resolver_match else ""
        if name.startswith("api:"):
            return None  # The REST API refuses such requests itself (RequiredSignInForSessions).
        missing = missing_sign_in(request)
        if missing is None or name in SETS_UP[missing]:
            return None
        if request.method == "GET" and "HX-Request" not in request.headers:
            request.session[ONWARD] = request.get_full_path()
        return redirect(PAGE)


class RequiredSignInForSessions(BasePermission):
    """Refuses REST requests with a session if the person lacks the required sign-in. API keys are not affected."""

    def has_permission(self, request: Request, view: Any) -> bool:
        if request.auth is None and request.user.is_authenticated and (missing := missing_sign_in(request)):
            raise PermissionDenied(DETAILS[missing], code=f"{missing}_required")
        return True


def onward(request: Any) -> str:
    """Return the URL of the page that the person wanted to open, and remove this URL from the session.

    If the session has no such URL, return the URL of the second factor's page.
    """
    return own_path(request.session.pop(ONWARD, ""), reverse("mfa_index"))


@require_GET
@own_resource("says what one's own sign-in lacks")
def required(request: AppRequest) -> HttpResponse:
    """Show which required sign-in is missing, with a link to set it up.

    If no required sign-in is missing, redirect to the page that the person wanted to open.
    """
    missing = missing_sign_in(request)
    if missing is None:
        return redirect(own_path(request.session.pop(ONWARD, ""), reverse("overview")))
    role = request.user.role
    context = {
        "by_organisation": missing == RequiredSignIn.ORGANISATION,
        "role": role if role and role.required_sign_in == missing else None,
        "provider": Provider.offered(),
        "takes_keys": is_offered(),
        "onward": own_path(request.session.get(ONWARD, ""), reverse("overview")),
    }
    return show(request, "accounts/required.html", context)
