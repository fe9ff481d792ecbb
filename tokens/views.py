"""What can be done to one API access token."""

from __future__ import annotations

from uuid import UUID

from django.db import transaction
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from capabilities import Capability, CapabilityRequired, signed_in
from connections.rows import visible
from connections.views import changed
from tokens.models import AlreadyRevoked, Kind, Token
from ui.pages import AppRequest, confirm

REVOKE_TEXT = "Revoke this API access token? Requests using it will fail with 401 immediately. This cannot be undone."


@require_http_methods(["GET", "POST"])
@signed_in("own tokens; others' need API_TOKENS_MANAGE or MCP_CONNECTIONS_REVOKE")
def revoke(request: AppRequest, pk: UUID) -> HttpResponse:
    token = _find(request, pk)
    connection = token.connection
    others = Token.objects.active().filter(connection=connection).exclude(pk=pk).exists()
    if request.method == "GET":
        return confirm(
            request,
            title="Revoke token",
            text=REVOKE_TEXT,
            more=f"{token.name} {token.prefix}, {connection.host.name} on {connection.gateway.name}.",
            icon="revoke",
            target=f"#connection-{connection.pk}",
            back=reverse("connections:for_host", args=[connection.host_id]),
            choice=None if others else ("connection", "Also revoke the connection; this is its last active token"),
        )
    with transaction.atomic():
        if "connection" in request.POST and not others and connection.is_live:
            connection.revoke(by=request.user)
        else:
            _revoke(token, request)
    return changed(request, connection, "Token revoked")


def _revoke(token: Token, request: AppRequest) -> None:
    try:
        token.revoke(by=request.user)
    except AlreadyRevoked:
        return  # It has ended, which is what was asked for.


def _find(request: AppRequest, pk: UUID) -> Token:
    """The token, if its connection may be seen; ending another person's needs a capability."""
    tokens = Token.objects.filter(kind=Kind.ACCESS, connection__in=visible(request.user).order_by())
    token = get_object_or_404(tokens.select_related("connection__host", "connection__gateway"), pk=pk)
    may = (Capability.API_TOKENS_MANAGE, Capability.MCP_CONNECTIONS_REVOKE)
    if token.connection.user_id != request.user.pk and not any(map(request.user.has_perm, may)):
        raise CapabilityRequired(*may)
    return token
