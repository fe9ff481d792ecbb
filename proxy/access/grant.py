"""What the database says of the token of one request, and of the servers behind its gateway."""

from collections.abc import Sequence
from typing import NamedTuple


class AssignedServer(NamedTuple):
    """A server behind the gateway, and the identity this connection uses there.

    `tools` depends on what was asked. ALL: names under `selected` that may be used, else that may
    not. ADDRESSED: [name, exposed name, enabled, schema with x-mcp-header] of the tools that fit.
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
    era: str
    identity_id: str | None
    identity_label: str | None
    identity_enabled: bool | None
    ciphertext: str | None
    tools: Sequence[Sequence[object]] | Sequence[str] | None
    # Whether a shared identity is for this gateway; and whether its server moved since somebody agreed to it.
    identity_allowed: bool = True
    identity_unconfirmed: bool = False


class Grant(NamedTuple):
    """What the statement says about the token of one request, in its columns' order."""

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
    # The servers behind the gateway that were asked for, in the order of their aliases.
    assignments: Sequence[AssignedServer]
    token_limit: int | None = None
    gateway_limit: int | None = None
    workspace_limit: int | None = None
    # How many bytes of what a call carries are recorded; None: nothing is.
    recorded: int | None = None

    @property
    def limited(self) -> bool:
        """Whether the calls of this token are counted, and may be too many."""
        return self.token_limit is not None or self.gateway_limit is not None or self.workspace_limit is not None
