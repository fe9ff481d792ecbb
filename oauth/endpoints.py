"""The OAuth endpoints and their URLs.

The URLs have no trailing slashes. Their names are those of Django OAuth Toolkit, which looks up the URLs by name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import BadRequest, SuspiciousOperation
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.http.multipartparser import MultiPartParserError
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe
from oauth2_provider.views import RevokeTokenView, TokenView

from gateways.models import Gateway
from oauth import authorize
from oauth.client_metadata import AUTH_METHODS
from oauth.cors import cors
from oauth.limits import each_client
from oauth.registration import Manage, Register
from oauth.validator import SCOPES, has_readable_query

# The OAuth metadata documents; all URLs are built from the public URL (RFC 8414, RFC 9728).


def _public(document: dict[str, object]) -> HttpResponse:
    """Return a JSON document that any web page may read (CORS)."""
    return JsonResponse(document, headers={"Access-Control-Allow-Origin": "*", "Cache-Control": "max-age=60"})


@login_not_required
@require_safe
def authorization_server(request: HttpRequest) -> HttpResponse:
    """Serve authorization server metadata; the issuer is the public URL, which has no path."""
    issuer = settings.PUBLIC_URL
    return _public(
        {
            "issuer": issuer,
            "authorization_endpoint": f"{issuer}/oauth/authorize",
            "token_endpoint": f"{issuer}/oauth/token",
            "registration_endpoint": f"{issuer}/oauth/register",
            "revocation_endpoint": f"{issuer}/oauth/revoke",
            "scopes_supported": SCOPES,
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "grant_types_supported": ["authorization_code", "refresh_token"],
            "token_endpoint_auth_methods_supported": AUTH_METHODS,
            "revocation_endpoint_auth_methods_supported": AUTH_METHODS,
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
            "client_id_metadata_document_supported": settings.CLIENT_DOCUMENTS,
            "service_documentation": f"{issuer}/",
        }
    )


@login_not_required
@require_safe
def protected_resource(request: HttpRequest, slug: str) -> HttpResponse:
    """Serve protected resource metadata of one gateway; 404 if the gateway does not exist."""
    gateway = Gateway.objects.live().filter(slug=slug).first()
    if gateway is None:
        raise Http404
    return _public(
        {
            "resource": gateway.url,
            "authorization_servers": [settings.PUBLIC_URL],
            "scopes_supported": SCOPES,
            "bearer_methods_supported": ["header"],
            "resource_name": gateway.name,
        }
    )


app_name = "oauth2_provider"


def always_json(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Set Content-Type and Cache-Control (RFC 6749 section 5), which some errors of Django OAuth Toolkit lack."""

    @wraps(view)
    def answered(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        response = view(request, *args, **kwargs)
        if response.content:
            response["Content-Type"] = "application/json"
        response["Cache-Control"] = "no-store"
        return response

    return answered


def readable(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Refuse parameters with a NUL, which the database cannot store, and a query with an invalid % escape."""

    @wraps(view)
    def answered(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        values = [value for _, values in request.POST.lists() for value in values]
        if any("\x00" in value for value in values) or not has_readable_query(request):
            return _invalid("A parameter has an invalid character.")
        return view(request, *args, **kwargs)

    return answered


def a_form(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Refuse a body that is not a form. This decorator must enclose all decorators that read the body."""

    @wraps(view)
    def answered(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            _ = request.POST
        except (BadRequest, SuspiciousOperation, MultiPartParserError):
            return _invalid("The body is not a valid form.")
        return view(request, *args, **kwargs)

    return answered


def _invalid(sentence: str) -> HttpResponse:
    body = {"error": "invalid_request", "error_description": sentence}
    return JsonResponse(body, status=400, headers={"Cache-Control": "no-store"})


class TokenEndpoint(TokenView):  # type: ignore[misc]
    """POST /oauth/token, without device authorization (RFC 8628), which is not supported."""

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        response: HttpResponse = self.authorization_flow_token_response(request, *args, **kwargs)
        return response


register = csrf_exempt(login_not_required(Register.as_view()))
token = csrf_exempt(login_not_required(cors(a_form(each_client(always_json(readable(TokenEndpoint.as_view())))))))
revoke = csrf_exempt(login_not_required(cors(a_form(always_json(readable(RevokeTokenView.as_view()))))))

urlpatterns = [
    path(".well-known/oauth-authorization-server", cors(authorization_server), name="server-metadata"),
    path(
        ".well-known/oauth-protected-resource/mcp/<slug:slug>",
        cors(protected_resource),
        name="resource-metadata",
    ),
    path("oauth/authorize", authorize.authorize, name="authorize"),
    path("oauth/token", token, name="token"),
    path("oauth/register", register, name="dcr-register"),
    path("oauth/register/<str:client_id>", Manage.as_view(), name="dcr-register-management"),
    path("oauth/revoke", revoke, name="revoke-token"),
    # Clients of MCP 2025-03-26 do not know resource metadata and use paths at the root.
    path("authorize", authorize.authorize),
    path("token", token),
    path("register", register),
]
