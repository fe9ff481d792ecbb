"""The OAuth metadata documents; all URLs are built from the public URL (RFC 8414, RFC 9728)."""

from __future__ import annotations

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_safe

from gateways.models import Gateway
from oauth.validator import SCOPES

AUTH_METHODS = ["none", "client_secret_post", "client_secret_basic"]


def _public(document: dict[str, object]) -> HttpResponse:
    """Return a document that any web page may read."""
    return JsonResponse(document, headers={"Access-Control-Allow-Origin": "*", "Cache-Control": "max-age=60"})


@login_not_required
@require_safe
def authorization_server(request: HttpRequest) -> HttpResponse:
    """Serve authorization server metadata; the issuer is the public URL without a path."""
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
    """Serve protected resource metadata of one gateway; 404 if it does not exist."""
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
