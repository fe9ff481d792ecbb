"""The authorization endpoint: validates a request, then starts the authorize flow (RFC 6749 section 4.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.views import redirect_to_login
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET
from oauth2_provider.exceptions import FatalClientError, OAuthToolkitError
from oauth2_provider.models import Application
from oauth2_provider.oauth2_backends import get_oauthlib_core

from connections.models import Connection
from oauth import flow as flows
from oauth.client_documents import UnreadableDocument, learn, needs_sign_in
from oauth.client_metadata import APP_SCHEMES, UnknownResource, gateway_of
from oauth.models import AuthorizeRequest
from oauth.registration import is_approved
from oauth.validator import SCOPES, has_readable_query
from ui.pages import AppRequest

KEPT = ("client_id", "redirect_uri", "response_type", "state", "code_challenge", "code_challenge_method")


# A code challenge is at least as long as an S256 challenge (43), and at most as long as RFC 7636 allows (128).
CHALLENGE = re.compile(r"[A-Za-z0-9._~-]{43,128}")


class SentBack(HttpResponseRedirect):
    """A redirect to an app. Besides http and https it may use the schemes of APP_SCHEMES, such as `cursor:`."""

    allowed_schemes: ClassVar[list[str]] = ["https", "http", *sorted(APP_SCHEMES)]  # type: ignore[misc]


@login_not_required
@never_cache
@require_GET
def authorize(request: AppRequest) -> HttpResponse:
    """Validate an authorization request, have the person sign in if needed, and start the flow."""
    if not has_readable_query(request):
        return _bad_request(request, "The app's request has an invalid character.")
    # Nothing is sent to a redirect URI before it is known to belong to the client.
    try:
        if needs_sign_in(request, request.GET.get("client_id", "")):
            return redirect_to_login(request.get_full_path())
        if request.user.is_authenticated:
            learn(request, request.GET.get("client_id", ""))
        _, credentials = get_oauthlib_core().validate_authorization_request(request)
    except UnreadableDocument as reason:
        return _bad_request(request, str(reason))
    except OAuthToolkitError as error:
        return _refused(request, error)
    return _begin(request, {name: credentials.get(name) for name in KEPT})


def _begin(request: AppRequest, parameters: dict[str, str | None]) -> HttpResponse:
    """Redirect to the flow's first page, or answer with an error. The redirect URI was already verified."""
    if parameters["code_challenge_method"] != "S256" or not CHALLENGE.fullmatch(parameters["code_challenge"] or ""):
        described = "PKCE with S256 and a valid code_challenge are needed."
        return _answer(request, parameters, {"error": "invalid_request", "error_description": described})
    try:
        gateway = gateway_of(request.GET.getlist("resource"))
    except UnknownResource as unknown:
        return _answer(request, parameters, {"error": "invalid_target", "error_description": str(unknown)})
    if "none" in request.GET.get("prompt", "").split():  # Consent is always required.
        described = "A person must consent, so prompt=none is not supported."
        return _answer(request, parameters, {"error": "interaction_required", "error_description": described})
    if not request.user.is_authenticated:
        return redirect_to_login(request.get_full_path())
    application = Application.objects.get(client_id=parameters["client_id"])
    return redirect("oauth:gateway", flows.begin_app(request, application, gateway, parameters).pk)


def _refused(request: AppRequest, error: OAuthToolkitError) -> HttpResponse:
    """Return the response to a request that the OAuth library refuses.

    If the client_id or redirect URI is wrong, the response is a page (400) without a link to the app. For any other
    error, it is the response of `_answer`.
    """
    oauth_error = error.oauthlib_error
    redirect_uri = getattr(oauth_error, "redirect_uri", None)
    if redirect_uri and not isinstance(error, FatalClientError):
        return _answer(request, {"redirect_uri": redirect_uri, "state": oauth_error.state}, dict(oauth_error.twotuples))
    return invalid(request, error)


def invalid(request: AppRequest, error: OAuthToolkitError) -> HttpResponse:
    """Return a page (400) that says why the OAuth library refuses the request. The page has no link to the app."""
    return _bad_request(request, error.oauthlib_error.description or "The app's request is invalid.")


def _answer(request: AppRequest, parameters: Mapping[str, Any], error: Mapping[str, str]) -> HttpResponse:
    """Send the error to the app by a redirect if the app is approved; otherwise show the error on a page (400)."""
    application = Application.objects.filter(client_id=request.GET.get("client_id", "")).first()
    # If other apps got a redirect too, anybody could register an app, and send people an invalid link that redirects
    # them to the app's URL (open redirector, RFC 9700 section 4.11.2).
    if application and is_approved(application):
        return send_back(parameters, error)
    reason = f"The app's request is invalid. {error.get('error_description') or error['error']}"
    return _bad_request(request, reason, redirect_uri=str(parameters["redirect_uri"]))


def _bad_request(request: AppRequest, reason: str, *, redirect_uri: str = "") -> HttpResponse:
    return render(request, "oauth/bad_request.html", {"reason": reason, "redirect_uri": redirect_uri}, status=400)


def send_back(parameters: Mapping[str, Any], answer: Mapping[str, str]) -> HttpResponse:
    """Redirect to the app, with our issuer (RFC 9207), the app's `state`, and `answer` as parameters."""
    return SentBack(answer_url(parameters, answer))


def answer_url(parameters: Mapping[str, Any], answer: Mapping[str, str]) -> str:
    parts = urlsplit(parameters["redirect_uri"])
    query = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name != "iss"]
    query += [(name, value) for name, value in answer.items() if name != "state"]
    if parameters.get("state"):
        query.append(("state", parameters["state"]))
    query.append(("iss", settings.PUBLIC_URL))
    return str(urlunsplit(parts._replace(query=urlencode(query), fragment="")))


def grant(request: AppRequest, flow: AuthorizeRequest, connection: Connection) -> str:
    """Create a code bound to `connection`, and return the redirect URL. The caller must open a transaction."""
    assert flow.application
    credentials = {
        **{name: value for name, value in flow.parameters.items() if name in KEPT},
        "resource": [connection.gateway.url],
        "connection": connection,
    }
    uri, _, _, _ = get_oauthlib_core().create_authorization_response(
        request=request, scopes=list(SCOPES), credentials=credentials, allow=True
    )
    return str(uri)
