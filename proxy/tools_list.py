"""tools/list over all servers behind a gateway: asked live and at once, merged in a fixed order."""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from proxy.access.grant import AssignedServer
from proxy.access.upstream_credential import target
from proxy.catalog import (
    Ambiguous,
    UnknownTool,
    identity_refusal,
    is_listed,
    is_usable,
    server_of,
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

MOST_PAGES = 100
MOST_BYTES = 10 << 20
MOST_TOOLS = 5_000

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


class ServerTools(NamedTuple):
    """The tools of one server as it sent them; `annotated` when some repeat arguments in headers."""

    tools: list[Object]
    annotated: bool


class NoneAnswered(UpstreamError):
    """All servers that should have been asked are out of reach."""

    sentence = "No server of this gateway answered: {server}."


class ToolLister:
    """Asks servers for their tools."""

    def __init__(self, upstreams: Upstreams, cipher: Cipher, marks: UsageTracker, seconds: float) -> None:
        self._upstreams = upstreams
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

    async def find(
        self, assignments: Sequence[AssignedServer], connection_id: str, exposed: str, trace: Trace = NONE
    ) -> tuple[AssignedServer, Object]:
        """The server and tool that a name no row explains means, of `candidates`. Raises UnknownTool or a Fault."""
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
        """All tools of one server, under its own names. Raises a Fault."""
        try:
            offer = await self._pages(assigned, connection_id, trace)
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
    ) -> list[ServerTools | UpstreamError]:
        if len(assignments) == 1:
            return [await self._try(assignments[0], connection_id, trace)]
        return await asyncio.gather(*(self._try(assigned, connection_id, trace) for assigned in assignments))

    async def _try(self, assigned: AssignedServer, connection_id: str, trace: Trace) -> ServerTools | UpstreamError:
        try:
            return await self.tools_of(assigned, connection_id, trace)
        except UpstreamError as fault:
            return fault

    async def _pages(self, assigned: AssignedServer, connection_id: str, trace: Trace) -> ServerTools:
        called = target(assigned, connection_id, self._cipher, trace)
        clock = asyncio.get_running_loop().time
        ends = clock() + self._seconds
        offer, size = ServerTools([], annotated=False), 0
        params: Object = {}
        for _ in range(MOST_PAGES):
            left = max(ends - clock(), 0.001)
            answer = await self._upstreams.ask(called, "tools/list", params, _ignore, seconds=left)
            if answer.error_code == jsonrpc.METHOD_NOT_FOUND:
                break
            page = answer.document.get("result", {})
            if not isinstance(page.get("tools"), list):
                raise BadAnswer(assigned.server_name, f"tools/list: error {answer.error_code} {_words(answer)}")
            size += len(answer.text)
            if size > MOST_BYTES or len(offer.tools) > MOST_TOOLS:
                raise TooLarge(assigned.server_name, "its list of tools")
            annotated = param_headers.ANNOTATION.encode() in answer.text
            offer = ServerTools(offer.tools + _usable(page["tools"], annotated=annotated), offer.annotated or annotated)
            cursor = page.get("nextCursor")
            if not isinstance(cursor, str) or not cursor or cursor == params.get("cursor"):
                break
            params = {"cursor": cursor}
        return offer


def _words(answer: RpcResponse) -> str:
    """What the server says of its error, for administrators."""
    words = (answer.error or {}).get("message")
    return words[:200] if isinstance(words, str) else ""


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


def _raise_if_none(answers: Sequence[ServerTools | UpstreamError]) -> None:
    """Never an empty list because of trouble."""
    faults = [answer for answer in answers if isinstance(answer, UpstreamError)]
    if faults and len(faults) == len(answers):
        if len(faults) == 1:
            raise faults[0]
        raise NoneAnswered(", ".join(f'"{fault.server}"' for fault in faults))


def _usable(page: list[Any], *, annotated: bool) -> list[Object]:
    """The tools of a page that can be called through us, without what we do for the client."""
    tools = [tool for tool in page if isinstance(tool, dict) and is_tool_name(tool.get("name"))]
    tools = [tool for tool in tools if is_shallow(tool)]
    if annotated:
        tools = [tool for tool in tools if param_headers.is_sound(tool.get("inputSchema"))]
    return [tool for tool in tools if not runs_only_as_task(tool)]


def _exposed(tool: Object, name: str, *, annotated: bool) -> Object:
    """The tool as the client sees it: everything the server said, less what the gateway does or lacks itself."""
    shown = {**tool, "name": name}
    if annotated and "inputSchema" in shown:
        shown["inputSchema"] = param_headers.without_annotations(shown["inputSchema"])
    if task_support(tool) is not None:
        shown["execution"] = {key: value for key, value in tool["execution"].items() if key != "taskSupport"}
    return shown


async def _ignore(_: Object) -> None:
    """Nothing that precedes a list matters."""
