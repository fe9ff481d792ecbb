"""Which server and tool a name means, and whether they may be used.

Lists and calls ask the same functions, so nobody sees a tool that cannot be called, nor calls one
that is not shown.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from proxy.access.grant import AssignedServer
from wire import jsonrpc
from wire.errors import UpstreamError
from wire.tool_names import SEPARATOR

MOST_TOLD = 200


class Refusal(UpstreamError):
    """A rule of the gateway's forbids this server or tool; told in HTTP 200."""

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


class Ambiguous(UpstreamError):
    """Several servers have no alias, so the name may mean a tool of any of them."""

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


class OutOfScope(Exception):
    """The token does not reach this server; answered with 403 and "Forbidden"."""

    def __init__(self, assigned: AssignedServer) -> None:
        super().__init__()
        self.assigned = assigned


class Found(NamedTuple):
    """The server a call goes to, the tool's own name there, and its schema when headers must repeat arguments."""

    assigned: AssignedServer
    tool: str
    schema: object = None


class Row(NamedTuple):
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
    if assigned.identity_id is None or assigned.ciphertext is None or assigned.auth_type not in SENDABLE:
        return "identity_missing"
    if not assigned.identity_allowed:
        return "identity_withdrawn"
    if not assigned.identity_enabled:
        return "identity_disabled"
    return "identity_unconfirmed" if assigned.identity_unconfirmed else ""


SENDABLE = frozenset({"bearer", "header"})


def allows(policy: str, enabled: bool | None) -> bool:
    """Whether a tool may be used; `enabled` is its switch, None for one that has no row yet."""
    match policy:
        case "allow_all":
            return enabled is not False
        case "selected":
            return enabled is True
    return False


def is_listed(assigned: AssignedServer, tool: str) -> bool:
    """Whether a listed tool may be used. Needs the facts of a list."""
    named = assigned.tools is not None and tool in assigned.tools
    exception = assigned.policy == "selected"
    return allows(assigned.policy, exception if named else None)


def is_usable(assigned: AssignedServer) -> bool:
    """Whether any tool of this server may be used here; the identity is another question."""
    return assigned.in_scope and not server_refusal(assigned) and allows(assigned.policy, enabled=True)


def without_alias(assignments: Sequence[AssignedServer]) -> list[AssignedServer]:
    """The servers whose tools keep their own names. With more than one, nobody can tell whose a name is."""
    return [assigned for assigned in assignments if not assigned.alias]


def server_of(assignments: Sequence[AssignedServer], exposed: str) -> AssignedServer | None:
    """The server a tool's name belongs to; None when it is nobody's. Lists and calls both ask here, and nobody else.

    An alias names its server, and any other name belongs to the one server without an alias. What servers list, or
    listed once, has no part in it: else one of them could take over the names of another. Raises Ambiguous.
    """
    for assigned in assignments:
        if assigned.alias and exposed.startswith(assigned.alias + SEPARATOR):
            return assigned
    others = without_alias(assignments)
    if len(others) > 1:
        raise Ambiguous(exposed[:MOST_TOLD])
    return others[0] if others else None


def resolve_tool(assignments: Sequence[AssignedServer], exposed: str) -> Found | None:
    """The server and tool this name means; None when only a fresh list of `candidates` can tell.

    Raises OutOfScope, Refusal, Ambiguous or UnknownTool.
    """
    assigned = server_of(assignments, exposed)
    if assigned is None:
        raise UnknownTool(exposed[:MOST_TOLD])
    row = _row(assigned, exposed)
    if row is not None:
        return authorize_tool(assigned, row.name, row)
    if (not assigned.alias or looks_shortened(exposed)) and _may_list(assigned):
        return None
    if not assigned.alias:
        raise UnknownTool(exposed[:MOST_TOLD])
    return authorize_tool(assigned, exposed.removeprefix(assigned.alias + SEPARATOR), None)


def authorize_tool(assigned: AssignedServer, tool: str, row: Row | None) -> Found:
    """`tool` of this server, when this connection may call it. Raises OutOfScope, Refusal or UnknownTool."""
    if not assigned.in_scope:
        raise OutOfScope(assigned)
    if reason := server_refusal(assigned):
        raise Refusal(reason, assigned)
    if not allows(assigned.policy, row.enabled if row else None):
        if row is None:
            raise UnknownTool(tool[:MOST_TOLD])
        raise Refusal("tool_disabled", assigned, tool)
    if reason := identity_refusal(assigned):
        raise Refusal(reason, assigned)
    return Found(assigned, tool, row.schema if row else None)


def candidates(assignments: Sequence[AssignedServer], exposed: str) -> list[AssignedServer]:
    """The server whose fresh list may hold a name that no row explains, if there is one. Raises Ambiguous."""
    assigned = server_of(assignments, exposed)
    return [assigned] if assigned is not None and _may_list(assigned) else []


def _may_list(assigned: AssignedServer) -> bool:
    # A tool without a row can be called under `allow_all` only.
    return is_usable(assigned) and not identity_refusal(assigned) and allows(assigned.policy, None)


def _row(assigned: AssignedServer, exposed: str) -> Row | None:
    rows = [Row._make(each) for each in assigned.tools or () if not isinstance(each, str)]
    return next((row for row in rows if row.exposed_name == exposed), rows[0] if rows else None)


looks_shortened = re.compile(r"_[0-9a-f]{6}\Z").search
