"""tools/list: asks all servers behind a gateway concurrently and merges their tools in a fixed order."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from proxy.access.decision import AssignedServer, Grant
from proxy.catalog import (
    MAX_NAME,
    AliasMissing,
    UnknownTool,
    identity_refusal,
    is_listed,
    is_usable,
    server_of,
    target,
    without_alias,
)
from proxy.store.usage import UsageTracker
from wire import stateless
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
        listing: Object = {"tools": self.tools}
        if self.unavailable:
            unavailable_servers = [
                {"server": a.server_name, "alias": a.alias, "reason": reason} for a, reason in self.unavailable
            ]
            listing["_meta"] = {UNAVAILABLE: unavailable_servers}
        return listing


class NoServerAnswered(UpstreamError):
    """All servers that should have been asked are out of reach."""

    sentence = "No server of this gateway answered: {server}."


class ToolLister:
    """Asks servers for their tools."""

    def __init__(self, client: McpClient, cipher: Cipher, usage: UsageTracker, seconds: float) -> None:
        self._client = client
        self._cipher = cipher
        self._usage = usage
        self._seconds = seconds

    async def merge(self, assignments: Sequence[AssignedServer], grant: Grant, trace: Trace = NONE) -> Listing:
        """What this connection may use of these servers; raises NoServerAnswered, or the one server's error."""
        ready, unavailable = _split_by_readiness(assignments)
        answers = await self._ask_all(ready, grant, trace)
        tools: dict[str, Object] = {}
        for assigned, answer in zip(ready, answers, strict=True):
            if isinstance(answer, UpstreamError):
                unavailable.append(Unavailable(assigned, answer.reason))
                continue
            for tool in answer.tools:
                name = exposed_name(assigned.alias, tool["name"])
                if name not in tools and is_listed(assigned, tool["name"]) and server_of(assignments, name) is assigned:
                    tools[name] = _exposed_tool(tool, name, annotated=answer.annotated)
        _raise_if_none(answers)
        return Listing(list(tools.values()), unavailable)

    async def find(self, assigned: AssignedServer, grant: Grant, exposed: str, trace: Trace = NONE) -> Object:
        """The tool of this server that is called by a name without a row. Raises UnknownTool or an UpstreamError."""
        for tool in (await self.tools_of(assigned, grant, trace)).tools:
            if exposed_name(assigned.alias, tool["name"]) == exposed:
                return tool
        raise UnknownTool(exposed[:MAX_NAME])

    async def tools_of(self, assigned: AssignedServer, grant: Grant, trace: Trace = NONE) -> ToolList:
        """The usable tools of one server, under its own names. Raises an UpstreamError."""
        try:
            upstream = target(assigned, grant, self._cipher, trace)
            server_tools = await self._client.list_tools(upstream, seconds=self._seconds)
        except Busy:  # It was not asked.
            raise
        except UpstreamError as error:
            self._usage.server_contacted(
                assigned, error.detail, credential_refused=error.reason == "credential_refused"
            )
            raise
        self._usage.server_contacted(assigned)
        self._usage.tools_listed(assigned, server_tools.tools)
        return server_tools

    async def _ask_all(
        self, assignments: Sequence[AssignedServer], grant: Grant, trace: Trace
    ) -> list[ToolList | UpstreamError]:
        if len(assignments) == 1:
            return [await self._try(assignments[0], grant, trace)]
        return await asyncio.gather(*(self._try(assigned, grant, trace) for assigned in assignments))

    async def _try(self, assigned: AssignedServer, grant: Grant, trace: Trace) -> ToolList | UpstreamError:
        try:
            return await self.tools_of(assigned, grant, trace)
        except UpstreamError as error:
            return error


def _split_by_readiness(assignments: Sequence[AssignedServer]) -> tuple[list[AssignedServer], list[Unavailable]]:
    """The servers to ask, and those that are not asked because an identity or an alias is missing."""
    ready, unavailable = [], []
    ambiguous = len(without_alias(assignments)) > 1
    for assigned in assignments:
        if not is_usable(assigned):
            continue
        if ambiguous and not assigned.alias:
            unavailable.append(Unavailable(assigned, AliasMissing.reason))
            continue
        if reason := identity_refusal(assigned):
            unavailable.append(Unavailable(assigned, reason))
        else:
            ready.append(assigned)
    return ready, unavailable


def _raise_if_none(answers: Sequence[ToolList | UpstreamError]) -> None:
    """A list is never empty because servers failed."""
    faults = [answer for answer in answers if isinstance(answer, UpstreamError)]
    if faults and len(faults) == len(answers):
        if len(faults) == 1:
            raise faults[0]
        raise NoServerAnswered(", ".join(f'"{fault.server}"' for fault in faults))


def _exposed_tool(tool: Object, name: str, *, annotated: bool) -> Object:
    """The tool as the client sees it: everything the server said, less what the gateway does or lacks itself."""
    exposed = {**tool, "name": name}
    if annotated and "inputSchema" in exposed:
        exposed["inputSchema"] = stateless.without_annotations(exposed["inputSchema"])
    if task_support(tool) is not None:
        exposed["execution"] = {key: value for key, value in tool["execution"].items() if key != "taskSupport"}
    return exposed
