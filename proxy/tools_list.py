"""tools/list: asks all servers behind a gateway concurrently and merges their tools in a fixed order."""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from proxy.access.decision import AssignedServer
from proxy.catalog import (
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
from wire import jsonrpc, param_headers
from wire.cipher import Cipher
from wire.client import Upstreams
from wire.errors import BadAnswer, Busy, TooLarge, UpstreamError
from wire.jsonrpc import Object
from wire.rpc_messages import RpcResponse
from wire.tool_names import exposed_name, is_shallow, is_tool_name, runs_only_as_task, task_support
from wire.trace_context import NONE, Trace

MAX_PAGES = 100
MAX_BYTES = 10 << 20
MAX_TOOLS = 5_000

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


class ServerTools(NamedTuple):
    """The tools of one server as it sent them; `annotated` when some repeat arguments in headers."""

    tools: list[Object]
    annotated: bool


class NoServerAnswered(UpstreamError):
    """All servers that should have been asked are out of reach."""

    sentence = "No server of this gateway answered: {server}."


class ToolLister:
    """Asks servers for their tools."""

    def __init__(self, upstreams: Upstreams, cipher: Cipher, usage: UsageTracker, seconds: float) -> None:
        self._upstreams = upstreams
        self._cipher = cipher
        self._usage = usage
        self._seconds = seconds

    async def merge(self, assignments: Sequence[AssignedServer], connection_id: str, trace: Trace = NONE) -> Listing:
        """What this connection may use of these servers; raises NoServerAnswered, or the one server's error."""
        ready, unavailable = _split_by_readiness(assignments)
        answers = await self._ask_all(ready, connection_id, trace)
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

    async def find(
        self, assignments: Sequence[AssignedServer], connection_id: str, exposed: str, trace: Trace = NONE
    ) -> tuple[AssignedServer, Object]:
        """The server and tool of a name without a row, among `candidates`. Raises UnknownTool or UpstreamError."""
        answers = await self._ask_all(assignments, connection_id, trace)
        for assigned, answer in zip(assignments, answers, strict=True):
            if isinstance(answer, UpstreamError):
                continue
            for tool in answer.tools:
                if exposed_name(assigned.alias, tool["name"]) == exposed:
                    return assigned, tool
        _raise_if_none(answers)
        raise UnknownTool(exposed[:200])

    async def tools_of(self, assigned: AssignedServer, connection_id: str, trace: Trace = NONE) -> ServerTools:
        """All tools of one server, under its own names. Raises UpstreamError."""
        try:
            server_tools = await self._pages(assigned, connection_id, trace)
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
        self, assignments: Sequence[AssignedServer], connection_id: str, trace: Trace
    ) -> list[ServerTools | UpstreamError]:
        if len(assignments) == 1:
            return [await self._try(assignments[0], connection_id, trace)]
        return await asyncio.gather(*(self._try(assigned, connection_id, trace) for assigned in assignments))

    async def _try(self, assigned: AssignedServer, connection_id: str, trace: Trace) -> ServerTools | UpstreamError:
        try:
            return await self.tools_of(assigned, connection_id, trace)
        except UpstreamError as error:
            return error

    async def _pages(self, assigned: AssignedServer, connection_id: str, trace: Trace) -> ServerTools:
        upstream = target(assigned, connection_id, self._cipher, trace)
        clock = asyncio.get_running_loop().time
        ends = clock() + self._seconds
        server_tools, size = ServerTools([], annotated=False), 0
        params: Object = {}
        for _ in range(MAX_PAGES):
            left = max(ends - clock(), 0.001)
            answer = await self._upstreams.ask(upstream, "tools/list", params, _ignore, seconds=left)
            if answer.error_code == jsonrpc.METHOD_NOT_FOUND:
                break
            page = answer.document.get("result", {})
            if not isinstance(page.get("tools"), list):
                raise BadAnswer(assigned.server_name, f"tools/list: error {answer.error_code} {_error_message(answer)}")
            size += len(answer.text)
            if size > MAX_BYTES or len(server_tools.tools) > MAX_TOOLS:
                raise TooLarge(assigned.server_name, "its list of tools")
            annotated = param_headers.ANNOTATION.encode() in answer.text
            server_tools = ServerTools(
                server_tools.tools + _callable_tools(page["tools"], annotated=annotated),
                server_tools.annotated or annotated,
            )
            cursor = page.get("nextCursor")
            if not isinstance(cursor, str) or not cursor or cursor == params.get("cursor"):
                break
            params = {"cursor": cursor}
        return server_tools


def _error_message(answer: RpcResponse) -> str:
    """What the server says of its error, for administrators."""
    words = (answer.error or {}).get("message")
    return words[:200] if isinstance(words, str) else ""


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


def _raise_if_none(answers: Sequence[ServerTools | UpstreamError]) -> None:
    """A list is never empty because servers failed."""
    faults = [answer for answer in answers if isinstance(answer, UpstreamError)]
    if faults and len(faults) == len(answers):
        if len(faults) == 1:
            raise faults[0]
        raise NoServerAnswered(", ".join(f'"{fault.server}"' for fault in faults))


def _callable_tools(page: list[Any], *, annotated: bool) -> list[Object]:
    """The tools of a page that can be called through us, without what we do for the client."""
    tools = [tool for tool in page if isinstance(tool, dict) and is_tool_name(tool.get("name"))]
    tools = [tool for tool in tools if is_shallow(tool)]
    if annotated:
        tools = [tool for tool in tools if param_headers.is_sound(tool.get("inputSchema"))]
    return [tool for tool in tools if not runs_only_as_task(tool)]


def _exposed_tool(tool: Object, name: str, *, annotated: bool) -> Object:
    """The tool as the client sees it: everything the server said, less what the gateway does or lacks itself."""
    exposed = {**tool, "name": name}
    if annotated and "inputSchema" in exposed:
        exposed["inputSchema"] = param_headers.without_annotations(exposed["inputSchema"])
    if task_support(tool) is not None:
        exposed["execution"] = {key: value for key, value in tool["execution"].items() if key != "taskSupport"}
    return exposed


async def _ignore(_: Object) -> None:
    """Nothing that precedes a list matters."""
