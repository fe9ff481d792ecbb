"""The grant of a request as the database returns it, and the decision about token, connection, host and gateway.

Rows 1 to 11 of docs/reference/decision-order.md; rows 13 to 15, about the called feature, are in features.py.
"""

from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

import orjson

from proxy import reasons
from wire import jsonrpc
from wire.rpc_messages import MODERN, SESSION, era_for


class AssignedServer(NamedTuple):
    """A server behind the gateway, and the identity this connection uses there.

    `features` depends on ServersNeeded. ALL: [exposed name, JSON text, own name if it has dots] of the features this
    connection can see, in the server's order. OF_FEATURE: [name, exposed name, enabled, schema with x-mcp-header,
    state, approved, offered, kind] of the matching features, for a resource with all templates; `approved` and
    `offered` only where a changed definition is held back.
    """

    id: str
    alias: str
    enabled: bool
    scheme: str
    policy: str
    in_scope: bool
    server_id: str
    server_name: str
    url: str
    server_enabled: bool
    auth_type: str
    header_name: str
    timeout_s: int
    max_concurrent: int
    eras: str  # SESSION, MODERN or BOTH; empty while not known.
    identity_id: str | None
    identity_label: str | None
    identity_enabled: bool | None
    ciphertext: str | None
    features: Sequence[Sequence[Any]] | None
    # Whether a shared identity may be used at this gateway; whether its server has moved since it was confirmed.
    identity_allowed: bool = True
    identity_unconfirmed: bool = False
    # Key of the session at this server, and the existing session: [row, sealed id, version, log level].
    upstream_key: str = ""
    upstream_session: Sequence[str] | None = None
    # Capabilities in sessions, instructions, capabilities in 2026-07-28; None for each the server never sent.
    # Only with ServersNeeded.INTRODUCED.
    introduction: Sequence[Any] | None = None
    # Whether the client's session has a log level that can be sent to this server.
    logs: bool = False
    total_s: int = 600
    # With ServersNeeded.ALL: seconds since the server was last asked for such features, whether it ever answered, the
    # reason of the last failure, and its list's TTL in milliseconds; None if it was never asked. Then whether its lists
    # differ by session.
    listing: tuple[float, bool, str, int] | None = None
    lists_live: bool = False
    # Whether the identity was disabled by its owner.
    identity_off_by_owner: bool = False
    # For an identity from a sign-in at an issuer: whether a person has to sign in again, and the seconds until the
    # token expires, if it is due for renewal.
    sign_in: tuple[bool, float | None] | None = None
    # Whether the server may have a private address. True for servers added before this was recorded.
    private: bool = True

    def capabilities(self, *, modern: bool) -> dict[str, Any] | None:
        """Return the server's capabilities in the era used for such clients, or None if it never sent any."""
        in_sessions, _, in_modern = self.introduction or (None, None, None)
        era = era_for(self.eras, MODERN if modern else SESSION) or (MODERN if modern else SESSION)
        own, other = (in_modern, in_sessions) if era == MODERN else (in_sessions, in_modern)
        return own if own is not None else other


class SessionGrant(NamedTuple):
    """The session a request names; `capabilities` are the client's, `declared` those of them that servers are sent.

    It `is_lost` if a server lost its own session: the client has to open a new one.
    """

    id: str
    version: str
    capabilities: dict[str, Any]
    declared: str
    log_level: str
    client_name: str
    client_version: str
    is_lost: bool = False


class AccessRow(NamedTuple):
    """The row that `query.sql` returns for the token of one request; the fields are its columns, in order."""

    token_id: str
    token_name: str
    token_prefix: str
    by_oauth: bool
    token_revoked: bool
    token_stale: bool
    token_expired: bool
    allowed_ips: str | None
    connection_id: str
    connection_revoked: bool
    connection_enabled: bool
    gateway_id: str
    gateway_name: str
    gateway_description: str
    gateway_matches: bool
    gateway_enabled: bool
    host_id: str
    host_name: str
    host_enabled: bool
    host_pending: bool
    user_id: str
    user_email: str
    user_active: bool
    reaches: bool
    # The servers that were asked for (see ServersNeeded), ordered by alias.
    assignments: Sequence[AssignedServer]
    token_limit: int | None = None
    gateway_limit: int | None = None
    workspace_limit: int | None = None
    # How many bytes of each body are recorded; None: none.
    recorded: int | None = None
    # The session the request names, if it exists and belongs to this connection.
    session: SessionGrant | None = None
    # Whether the gateway has more than one server, so that a URI alone does not identify its server.
    several_servers: bool = False

    @property
    def owner_id(self) -> str:
        """The id that owns sessions at servers: the client's session, or the connection if there is none."""
        return self.session.id if self.session is not None else self.connection_id

    @property
    def limited(self) -> bool:
        """True if a rate limit applies to this token, its gateway or the workspace."""
        return self.token_limit is not None or self.gateway_limit is not None or self.workspace_limit is not None


class Denied(NamedTuple):
    """A refusal of the whole request. `published` is the body where its exact bytes are documented."""

    reason: str
    status: int
    published: bytes = b""

    def body(self, public_url: str) -> bytes:
        """Return the body of the response."""
        return self.published or self.error(public_url, None)

    def error(self, public_url: str, request_id: jsonrpc.Id | None) -> bytes:
        """Return a JSON-RPC error with the message and the reason."""
        code = jsonrpc.UNAUTHORIZED if self.status == 401 else jsonrpc.FORBIDDEN
        return jsonrpc.error(request_id, code, reasons.message(self.reason, public_url), {"reason": self.reason})


UNAUTHORIZED = jsonrpc.error(None, jsonrpc.UNAUTHORIZED, "Unauthorized")
FORBIDDEN = jsonrpc.error(None, jsonrpc.FORBIDDEN, "Forbidden")
IP_NOT_ALLOWED = jsonrpc.error(None, jsonrpc.FORBIDDEN, "IP Not Allowed")

DENIALS: dict[str, Denied] = {
    denied.reason: denied
    for denied in (
        Denied("unknown", 401, UNAUTHORIZED),
        Denied("revoked", 401, UNAUTHORIZED),
        Denied("stale_generation", 401, UNAUTHORIZED),
        Denied("connection_revoked", 401, UNAUTHORIZED),
        Denied("expired", 401, UNAUTHORIZED),
        Denied("user_inactive", 401, UNAUTHORIZED),
        Denied("wrong_gateway", 403, FORBIDDEN),
        Denied("out_of_scope", 403, FORBIDDEN),
        Denied("ip", 403, IP_NOT_ALLOWED),
        Denied("origin", 403),
        Denied("host_disabled", 403),
        Denied("host_pending", 403),
        Denied("gateway_disabled", 403),
        Denied("connection_disabled", 403),
        Denied("gateway_not_reachable", 403),
        Denied("rate_limited", 429),
    )
}

# An app with an OAuth token of another gateway must be led to authorize for this one.
WRONG_AUDIENCE = Denied("wrong_gateway", 401, UNAUTHORIZED)


def decide(grant: AccessRow, client_ip: str) -> Denied | None:
    """Return why the token may not be used here (rows 4 to 10 of the decision order), or None if it may."""
    if grant.token_revoked:
        reason = "revoked"
    elif grant.token_stale:
        reason = "stale_generation"
    elif grant.connection_revoked:
        reason = "connection_revoked"
    elif grant.token_expired:
        reason = "expired"
    elif not grant.user_active:
        reason = "user_inactive"
    elif not grant.gateway_matches:
        return WRONG_AUDIENCE if grant.by_oauth else DENIALS["wrong_gateway"]
    elif grant.allowed_ips is not None and not _is_allowed(client_ip, grant.allowed_ips):
        reason = "ip"
    else:
        return _disabled_layer(grant)
    return DENIALS[reason]


def _disabled_layer(grant: AccessRow) -> Denied | None:
    if not grant.host_enabled:
        reason = "host_disabled"
    elif grant.host_pending:
        reason = "host_pending"
    elif not grant.gateway_enabled:
        reason = "gateway_disabled"
    elif not grant.connection_enabled:
        reason = "connection_disabled"
    elif not grant.reaches:
        reason = "gateway_not_reachable"
    else:
        return None
    return DENIALS[reason]


def _is_allowed(client_ip: str, allowed_ips: str) -> bool:
    try:
        address = ip_address(client_ip)
        ranges = orjson.loads(allowed_ips)
        return ranges is None or any(address in ip_network(text) for text in ranges)
    except (ValueError, TypeError):
        return False
