"""Which server and tool a name means, whether they may be used, and as whom: rows 13 to 15 of the decision order.

`tools/list` and `tools/call` use the same functions, so that no tool is listed that cannot be called, and none called
that is not listed.
"""

from collections.abc import Sequence
from typing import NamedTuple

from proxy.access.decision import AssignedServer
from wire import credential, jsonrpc
from wire.cipher import Cipher, Unreadable
from wire.errors import UpstreamError
from wire.rpc_messages import Target
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
    "definition_held": 'Tool "{tool}" of server "{server}" was changed, and an administrator has not accepted it yet.',
    "definition_quarantined": 'Tool "{tool}" of server "{server}" is quarantined by an administrator.',
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
    """The server a call goes to, the tool's own name there, and its schema when headers must repeat arguments.

    Where a changed definition is held back, `row` holds both; `check_held` says whether the call may go on.
    """

    assigned: AssignedServer
    tool: str
    schema: object = None
    row: "ToolRow | None" = None


class ToolRow(NamedTuple):
    """What the database knows of a tool that fits the name of a call."""

    name: str
    exposed_name: str
    enabled: bool
    schema: object
    state: str = "approved"
    # Where a changed definition is held back: what is shown, and what the server says now.
    approved: str | None = None
    offered: str | None = None


# States in which a tool is not listed, and why its calls are refused.
HIDDEN_STATES = {"new": "definition_held", "quarantined": "definition_quarantined"}


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
    if row is not None and row.state in HIDDEN_STATES:
        raise Refusal(HIDDEN_STATES[row.state], assigned, tool)
    if reason := identity_refusal(assigned):
        raise Refusal(reason, assigned)
    if row is None:
        return ResolvedTool(assigned, tool)
    return ResolvedTool(assigned, tool, row.schema, row if row.offered is not None else None)


def check_held(resolved: ResolvedTool, arguments: object) -> None:
    """Raise Refusal when the server has changed this tool, nobody accepted that, and it no longer takes `arguments`."""
    row = resolved.row
    if row is not None and row.approved is not None and row.offered is not None:
        from wire import held_schemas  # noqa: PLC0415 - takes 60 ms, and is seldom needed

        if not held_schemas.still_accepts(row.approved, row.offered, arguments):
            raise Refusal("definition_held", resolved.assigned, resolved.tool)


def _can_be_listed(assigned: AssignedServer) -> bool:
    # A tool without a row can be called under `allow_all` only.
    return is_usable(assigned) and not identity_refusal(assigned) and policy_allows(assigned.policy, None)


def _tool_row(assigned: AssignedServer, exposed: str) -> ToolRow | None:
    rows = [ToolRow(*each) for each in assigned.features or ()]
    return next((row for row in rows if row.exposed_name == exposed), rows[0] if rows else None)


def target(assigned: AssignedServer, connection_id: str, cipher: Cipher, trace: Trace = NONE) -> Target:
    """Where and as whom to call this server, for the request of this trace. Raises IdentityUnreadable.

    Whether the identity may be used was decided by `authorize_tool`; here it is decrypted.
    """
    return Target(
        server_id=assigned.server_id,
        server_name=assigned.server_name,
        url=assigned.url,
        era=assigned.era,
        timeout_s=assigned.timeout_s,
        max_concurrent=assigned.max_concurrent,
        connection_id=connection_id,
        credential=_credential(assigned, cipher),
        generation=assigned.ciphertext or "",
        trace=trace,
    )


def _credential(assigned: AssignedServer, cipher: Cipher) -> tuple[str, str] | None:
    if assigned.ciphertext is None or assigned.auth_type == "none" or assigned.scheme == "none":
        return None
    try:
        secret = cipher.open(assigned.ciphertext.encode())
        return credential.header_of(assigned.auth_type, assigned.header_name, secret)
    except Unreadable:
        raise IdentityUnreadable(assigned.server_name) from None
    except credential.Unsendable as error:
        raise IdentityUnreadable(assigned.server_name, str(error)) from None
