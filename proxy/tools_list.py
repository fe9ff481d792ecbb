"""tools/list over all servers behind a gateway: asked live and at once, merged in a fixed order."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from proxy.access.grant import AssignedServer
from proxy.access.upstream_credential import target
from proxy.catalog import (
    MOST_TOLD,
    Ambiguous,
    UnknownTool,
    identity_refusal,
    is_listed,
    is_usable,
    server_of,
    without_alias,
)
from proxy.store.usage import UsageTracker
from wire import param_headers
from wire.cipher import Cipher
from wire.client import McpClient, ToolList
from wire.errors import Busy, UpstreamError
from wire.jsonrpc import Object
from wire.tool_names import exposed_name, task_support
from wire.trace_context import NONE, Trace

# Under this key a list names the servers it could not ask, and why.
UNAVAILABLE = "gateway-admin/unavailable"


class Unavailable(NamedTuple):
    """A server whose tools are missing from a list."""

    assigned: AssignedServer
    reason: str


class Listing(NamedTuple):
    """The tools that may be used, under the names of the gateway."""

    tools: list[Object]
    unavailable: list[Unavailable]

    def result(self) -> Object:
        found: Object = {"tools": self.tools}
        if self.unavailable:
            told = [{"server": a.server_name, "alias": a.alias, "reason": reason} for a, reason in self.unavailable]
            found["_meta"] = {UNAVAILABLE: told}
        return found


class NoneAnswered(UpstreamError):
    """All servers that should have been asked are out of reach."""

    sentence = "No server of this gateway answered: {server}."


class ToolLister:
    """Asks servers for their tools."""

    def __init__(self, client: McpClient, cipher: Cipher, marks: UsageTracker, seconds: float) -> None:
        self._client = client
        self._cipher = cipher
        self._marks = marks
        self._seconds = seconds

    async def merged(self, assignments: Sequence[AssignedServer], connection_id: str, trace: Trace = NONE) -> Listing:
        """What this connection may use of these servers; raises NoneAnswered, or the sole server's Fault."""
        asked, unavailable = _sorted_out(assignments)
        answers = await self._ask_all(asked, connection_id, trace)
        tools: dict[str, Object] = {}
        for assigned, answer in zip(asked, answers, strict=True):
            if isinstance(answer, UpstreamError):
                unavailable.append(Unavailable(assigned, answer.reason))
                continue
            for tool in answer.tools:
                name = exposed_name(assigned.alias, tool["name"])
                if name not in tools and is_listed(assigned, tool["name"]) and server_of(assignments, name) is assigned:
                    tools[name] = _exposed(tool, name, annotated=answer.annotated)
        _raise_if_none(answers)
        return Listing(list(tools.values()), unavailable)

    async def find(self, assigned: AssignedServer, connection_id: str, exposed: str, trace: Trace = NONE) -> Object:
        """The tool of this server that is called by a name without a row. Raises UnknownTool or an UpstreamError."""
        for tool in (await self.tools_of(assigned, connection_id, trace)).tools:
            if exposed_name(assigned.alias, tool["name"]) == exposed:
                return tool
        raise UnknownTool(exposed[:MOST_TOLD])

    async def tools_of(self, assigned: AssignedServer, connection_id: str, trace: Trace = NONE) -> ToolList:
        """The usable tools of one server, under its own names. Raises an UpstreamError."""
        try:
            called = target(assigned, connection_id, self._cipher, trace)
            offer = await self._client.list_tools(called, seconds=self._seconds)
        except Busy:  # It was not asked.
            raise
        except UpstreamError as fault:
            self._marks.contacted(assigned, fault.detail, credential_refused=fault.reason == "credential_refused")
            raise
        self._marks.contacted(assigned)
        self._marks.tools(assigned, offer.tools)
        return offer

    async def _ask_all(
        self, assignments: Sequence[AssignedServer], connection_id: str, trace: Trace
    ) -> list[ToolList | UpstreamError]:
        if len(assignments) == 1:
            return [await self._try(assignments[0], connection_id, trace)]
        return await asyncio.gather(*(self._try(assigned, connection_id, trace) for assigned in assignments))

    async def _try(self, assigned: AssignedServer, connection_id: str, trace: Trace) -> ToolList | UpstreamError:
        try:
            return await self.tools_of(assigned, connection_id, trace)
        except UpstreamError as fault:
            return fault


def _sorted_out(assignments: Sequence[AssignedServer]) -> tuple[list[AssignedServer], list[Unavailable]]:
    """Whom to ask, and whom only the lack of a usable identity, or of an alias, keeps from being asked."""
    asked, unavailable = [], []
    ambiguous = len(without_alias(assignments)) > 1
    for assigned in assignments:
        if not is_usable(assigned):
            continue
        if ambiguous and not assigned.alias:
            unavailable.append(Unavailable(assigned, Ambiguous.reason))
            continue
        if reason := identity_refusal(assigned):
            unavailable.append(Unavailable(assigned, reason))
        else:
            asked.append(assigned)
    return asked, unavailable


def _raise_if_none(answers: Sequence[ToolList | UpstreamError]) -> None:
    """Never an empty list because of trouble."""
    faults = [answer for answer in answers if isinstance(answer, UpstreamError)]
    if faults and len(faults) == len(answers):
        if len(faults) == 1:
            raise faults[0]
        raise NoneAnswered(", ".join(f'"{fault.server}"' for fault in faults))


def _exposed(tool: Object, name: str, *, annotated: bool) -> Object:
    """The tool as the client sees it: everything the server said, less what the gateway does or lacks itself."""
    shown = {**tool, "name": name}
    if annotated and "inputSchema" in shown:
        shown["inputSchema"] = param_headers.without_annotations(shown["inputSchema"])
    if task_support(tool) is not None:
        shown["execution"] = {key: value for key, value in tool["execution"].items() if key != "taskSupport"}
    return shown
