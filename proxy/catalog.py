"""Which server and tool a name means, whether they may be used, and as whom: rows 13 to 15 of the decision order.

`tools/list` and `tools/call` use the same functions, so that no tool is listed that cannot be called, and none called
that is not listed.
"""

from collections.abc import Sequence
from typing import NamedTuple

from proxy.access.decision import AssignedServer, Grant
from wire import credential, jsonrpc
from wire.cipher import Cipher, Unreadable
from wire.errors import UpstreamError
from wire.rpc_messages import NOTHING, Session, Target
from wire.sessions import capabilities_of, opened
from wire.tool_names import SEPARATOR
from wire.trace_context import NONE, Trace

MAX_NAME = 200


class Refusal(UpstreamError):
    """A switch, a policy or the identity forbids this server or tool; a JSON-RPC error with HTTP 200."""

    code = jsonrpc.FORBIDDEN
    outcome = "denied"

    def __init__(self, reason: str, assigned: AssignedServer, tool: str = "") -> None:
        self.reason = reason
        self.sentence = SENTENCES[reason].replace("{tool}", tool.replace("{", "{{").replace("}", "}}"))
        self.assigned = assigned
        super().__init__(assigned.server_name)


SENTENCES = {
    "server_disabled": 'Server "{server}" is disabled by an administrator.',
    "tool_disabled": 'Tool "{tool}" of server "{server}" is disabled by an administrator.',
    "identity_missing": 'No identity for server "{server}" is connected. Add one to this connection.',
    "identity_disabled": 'The identity for server "{server}" is disabled by an administrator.',
    "identity_withdrawn": 'The identity for server "{server}" may no longer be used at this gateway.',
    "identity_unconfirmed": 'The address of server "{server}" was changed. Its identity waits to be confirmed.',
}


class UnknownTool(UpstreamError):
    """No server behind the gateway has a tool of this name."""

    code = jsonrpc.INVALID_PARAMS
    outcome = "rpc_error"
    reason = "unknown_tool"
    sentence = "Unknown tool: {server}"

    @property
    def data(self) -> None:
        return None


class AliasMissing(UpstreamError):
    """Several servers have no alias, so the name may be a tool of any of them."""

    code = jsonrpc.FORBIDDEN
    outcome = "denied"
    reason = "alias_missing"
    sentence = (
        'Several servers of this gateway have no alias, so nobody can tell whose tool "{server}" is. '
        "An administrator must give them one."
    )

    @property
    def data(self) -> jsonrpc.Object:
        return {"reason": self.reason}


class IdentityUnreadable(UpstreamError):
    """No configured key opens it: the operator lost a key."""

    reason = "identity_unreadable"
    sentence = 'The identity stored for server "{server}" can no longer be read.'


class OutOfScope(Exception):
    """The token does not reach this server; answered with 403 and "Forbidden"."""

    def __init__(self, assigned: AssignedServer) -> None:
        super().__init__()
        self.assigned = assigned


class ResolvedTool(NamedTuple):
    """The server a call goes to, the tool's own name there, and its schema when headers must repeat arguments."""

    assigned: AssignedServer
    tool: str
    schema: object = None


class ToolRow(NamedTuple):
    """What the database knows of a tool that fits the name of a call."""

    name: str
    exposed_name: str
    enabled: bool
    schema: object


def server_refusal(assigned: AssignedServer) -> str:
    """Why nothing of this server may be used at this gateway; empty when it may."""
    return "" if assigned.enabled and assigned.server_enabled else "server_disabled"


def identity_refusal(assigned: AssignedServer) -> str:
    """Why this connection has no identity to use at the server; empty when it has, or needs none."""
    if assigned.scheme == "none" or assigned.auth_type == "none":
        return ""
    if assigned.identity_id is None or assigned.ciphertext is None or assigned.auth_type not in HEADER_AUTH_TYPES:
        return "identity_missing"
    if not assigned.identity_allowed:
        return "identity_withdrawn"
    if not assigned.identity_enabled:
        return "identity_disabled"
    return "identity_unconfirmed" if assigned.identity_unconfirmed else ""


HEADER_AUTH_TYPES = frozenset({"bearer", "header"})


def policy_allows(policy: str, enabled: bool | None) -> bool:
    """Whether a tool may be used; `enabled` is its switch, None for one that has no row yet."""
    match policy:
        case "allow_all":
            return enabled is not False
        case "selected":
            return enabled is True
    return False


def is_listed(assigned: AssignedServer, tool: str) -> bool:
    """Whether a listed tool may be used. Needs a grant with ServersNeeded.ALL."""
    has_row = assigned.tools is not None and tool in assigned.tools
    row_enables = assigned.policy == "selected"
    return policy_allows(assigned.policy, row_enables if has_row else None)


def is_usable(assigned: AssignedServer) -> bool:
    """Whether any tool of this server may be used here; the identity is another question."""
    return assigned.in_scope and not server_refusal(assigned) and policy_allows(assigned.policy, enabled=True)


def without_alias(assignments: Sequence[AssignedServer]) -> list[AssignedServer]:
    """The servers whose tools keep their own names. With more than one, nobody can tell whose a name is."""
    return [assigned for assigned in assignments if not assigned.alias]


def server_of(assignments: Sequence[AssignedServer], exposed: str) -> AssignedServer | None:
    """The server a tool's name belongs to; None when it is nobody's. Lists and calls both ask here, and nobody else.

    An alias names its server, and any other name belongs to the one server without an alias. What servers list, or
    listed once, has no part in it: else one of them could take over the names of another. Raises AliasMissing.
    """
    for assigned in assignments:
        if assigned.alias and exposed.startswith(assigned.alias + SEPARATOR):
            return assigned
    others = without_alias(assignments)
    if len(others) > 1:
        raise AliasMissing(exposed[:MAX_NAME])
    return others[0] if others else None


def resolve_tool(assignments: Sequence[AssignedServer], exposed: str) -> ResolvedTool | AssignedServer:
    """The server and tool this name means; the server alone when only a fresh list of its tools can tell.

    A tool that is not listed has no row that could switch it off, so it cannot be called.

    Raises OutOfScope, Refusal, AliasMissing or UnknownTool.
    """
    assigned = server_of(assignments, exposed)
    if assigned is None:
        raise UnknownTool(exposed[:MAX_NAME])
    row = _tool_row(assigned, exposed)
    if row is not None:
        return authorize_tool(assigned, row.name, row)
    if _can_be_listed(assigned):
        return assigned
    if not assigned.alias:
        raise UnknownTool(exposed[:MAX_NAME])
    return authorize_tool(assigned, exposed.removeprefix(assigned.alias + SEPARATOR), None)


def authorize_tool(assigned: AssignedServer, tool: str, row: ToolRow | None) -> ResolvedTool:
    """`tool` of this server, when this connection may call it. Raises OutOfScope, Refusal or UnknownTool."""
    if not assigned.in_scope:
        raise OutOfScope(assigned)
    if reason := server_refusal(assigned):
        raise Refusal(reason, assigned)
    if not policy_allows(assigned.policy, row.enabled if row else None):
        if row is None:
            raise UnknownTool(tool[:MAX_NAME])
        raise Refusal("tool_disabled", assigned, tool)
    if reason := identity_refusal(assigned):
        raise Refusal(reason, assigned)
    return ResolvedTool(assigned, tool, row.schema if row else None)


def _can_be_listed(assigned: AssignedServer) -> bool:
    # A tool without a row can be called under `allow_all` only.
    return is_usable(assigned) and not identity_refusal(assigned) and policy_allows(assigned.policy, None)


def _tool_row(assigned: AssignedServer, exposed: str) -> ToolRow | None:
    rows = [ToolRow._make(each) for each in assigned.tools or () if not isinstance(each, str)]
    return next((row for row in rows if row.exposed_name == exposed), rows[0] if rows else None)


def target(assigned: AssignedServer, grant: Grant, cipher: Cipher, trace: Trace = NONE) -> Target:
    """Where, as whom and in which session to call this server, for the request of this trace.

    Raises IdentityUnreadable.

    Whether the identity may be used was decided by `authorize_tool`; here it is decrypted.
    """
    return Target(
        server_id=assigned.server_id,
        server_name=assigned.server_name,
        url=assigned.url,
        era=assigned.era,
        timeout_s=assigned.timeout_s,
        max_concurrent=assigned.max_concurrent,
        connection_id=grant.connection_id,
        credential=credential_of(assigned, cipher),
        generation=assigned.ciphertext or "",
        trace=trace,
        identity_id=assigned.identity_id or "",
        capabilities=capabilities_of(told) if (told := assigned.upstream_key.rpartition(" ")[2]) else NOTHING,
        owner_id=grant.owner_id,
        session_key=assigned.upstream_key,
        session=_session(assigned, cipher),
    )


def _session(assigned: AssignedServer, cipher: Cipher) -> Session | None:
    if assigned.upstream_session is None:
        return None
    try:
        return opened(assigned.upstream_session, cipher)
    except Unreadable:
        return None


def credential_of(assigned: AssignedServer, cipher: Cipher) -> tuple[str, str] | None:
    if assigned.ciphertext is None or assigned.auth_type == "none" or assigned.scheme == "none":
        return None
    try:
        secret = cipher.open(assigned.ciphertext.encode())
        return credential.header_of(assigned.auth_type, assigned.header_name, secret)
    except Unreadable:
        raise IdentityUnreadable(assigned.server_name) from None
    except credential.Unsendable as error:
        raise IdentityUnreadable(assigned.server_name, str(error)) from None
