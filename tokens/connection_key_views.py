"""The key button of a connection: a new key for an app, a new secret for an agent."""

from __future__ import annotations

from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from capabilities import Capability, CapabilityRequired, own_resource
from connections.models import Connection
from connections.rows import visible
from connections.views import back_url, changed
from tokens.models import Token, TokenAlreadyRevoked, TokenKind
from tokens.views import OFF, asked, regenerated
from tokens.visibility import with_scope
from ui.pages import AppRequest, confirm, show

REGENERATE_TEXT = "Regenerate the API key for this connection? The old key will be deactivated immediately."
RENEWED = "API key regenerated. The client picks up a new access token on its own, within 1 hour at most."


@never_cache
@require_http_methods(["GET", "POST"])
@own_resource(
    "one's own agents; apps need MCP_CONNECTIONS_REVOKE, one's own too", others=Capability.MCP_CONNECTIONS_REVOKE
)
def regenerate(request: AppRequest, pk: UUID) -> HttpResponse:
    connection = get_object_or_404(visible(request.user, Capability.MCP_CONNECTIONS_REVOKE), pk=pk)
    return _token(request, connection) if connection.host.is_agent else _key(request, connection)


def _key(request: AppRequest, connection: Connection) -> HttpResponse:
    """Regenerate an app's key, which is never shown; needs the capability also for one's own connection."""
    if not request.user.has_perm(Capability.MCP_CONNECTIONS_REVOKE):
        raise CapabilityRequired(Capability.MCP_CONNECTIONS_REVOKE)
    if not connection.is_live:
        return changed(request, connection, TokenAlreadyRevoked.__doc__ or "")
    if not connection.is_on:
        raise PermissionDenied(OFF)
    if request.method == "GET":
        return confirm(
            request,
            title="Regenerate API key",
            text=REGENERATE_TEXT,
            more="The client picks up a new access token on its own. If a refresh token leaked, revoke the connection "
            "instead.",
            icon="key",
            kind="primary",
            target=f"#connection-{connection.pk}",
            back=back_url(request, connection),
        )
    try:
        Token.objects.renew_key(connection, by=request.user)
    except TokenAlreadyRevoked as error:
        return changed(request, connection, str(error))
    return changed(request, connection, RENEWED, stays=True)


def _token(request: AppRequest, connection: Connection) -> HttpResponse:
    """Regenerate the only active token, or choose one first. For another person's token, ask for a new one."""
    is_own = connection.user_id == request.user.pk
    if not is_own and not request.user.has_perm(Capability.MCP_CONNECTIONS_REVOKE):
        raise CapabilityRequired(Capability.MCP_CONNECTIONS_REVOKE)
    active = list(with_scope(Token.objects.active()).filter(connection=connection, kind=TokenKind.ACCESS))
    if len(active) == 1:
        return regenerated(request, active[0]) if is_own else asked(request, active[0])
    if not active:
        return changed(request, connection, "This connection has no active token.")
    context = {"connection": connection, "tokens": active, "own": is_own, "back": back_url(request, connection)}
    return show(request, "tokens/choose.html", context)
