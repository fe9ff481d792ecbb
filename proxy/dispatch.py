"""What each MCP method answers, once the request may be served at all."""

import time

from proxy import modern_request
from proxy.access.decision import DENIALS
from proxy.access.grant import Grant
from proxy.access.query import ADDRESSED, ALL, NOTHING
from proxy.catalog import OutOfScope
from proxy.request import McpRequest
from proxy.response import Response, Stream
from proxy.tools_call import ToolCaller
from proxy.tools_list import ToolLister
from wire import hops, jsonrpc, product, trace_context, versions
from wire.errors import Busy, TokenBusy, UpstreamError
from wire.jsonrpc import Message, Object
from wire.tool_names import is_storable

CAPABILITIES: Object = {"tools": {}}
PRIVATE: Object = {"ttlMs": 0, "cacheScope": "private"}

SESSION_METHODS = frozenset({"initialize", "ping", "server/discover", "tools/list", "tools/call"})
MODERN_METHODS = frozenset({"server/discover", "tools/list", "tools/call"})

# What the statement has to say about the servers for a method; a call wants its own, all others nothing.
WANTED = {"tools/list": ALL}

# Where users bring the identity a call lacks; the only page the proxy knows.
IDENTITIES = "/settings/identities"
LACKING = frozenset({"identity_missing", "identity_unconfirmed"})


def wanted(message: Message | None) -> tuple[int, str]:
    """What of the servers this message needs, and the tool it names."""
    if message is None or message.id is None:
        return NOTHING, ""
    if message.method != "tools/call":
        return WANTED.get(message.method, NOTHING), ""
    name = message.params.get("name")
    # A name the database cannot hold is no tool's; asked for without what it cannot hold, it would be another's.
    return (ADDRESSED, name) if isinstance(name, str) and is_storable(name) else (NOTHING, "")


def refused(request: McpRequest, code: int, text: str, data: Object | None = None) -> Response:
    """A JSON-RPC error of our own, with the HTTP status of the client's era."""
    message = request.message
    body = jsonrpc.error(message.id if message else None, code, text, data)
    status = modern_request.STATUS.get(code, 200) if request.modern else 200
    return Response(status, body, "bad_request" if status != 200 else "rpc_error", code=code)


class Dispatcher:
    """The methods that are served; every other is not found. A token has `most_calls` of them under way at most."""

    def __init__(self, lister: ToolLister, caller: ToolCaller, public_url: str, most_calls: int) -> None:
        self._identities = public_url + IDENTITIES
        self._most_calls = most_calls
        self._under_way: dict[str, int] = {}  # By token; none is in here without a call.
        self._lister = lister
        self._caller = caller

    async def answer(self, request: McpRequest, facts: Grant, message: Message, stream: Stream | None) -> Response:
        """The answer to one request; faults become errors here and nowhere else."""
        if message.method not in (MODERN_METHODS if request.modern else SESSION_METHODS):
            return refused(request, jsonrpc.METHOD_NOT_FOUND, f"Method not found: {message.method[:100]}")
        try:
            return await self._counted(request, facts, message, stream)
        except OutOfScope:
            denied = DENIALS["out_of_scope"]
            return Response(denied.status, denied.body, "denied", denied.reason, jsonrpc.FORBIDDEN)
        except UpstreamError as fault:
            return self._told(request, fault)

    async def _counted(self, request: McpRequest, facts: Grant, message: Message, stream: Stream | None) -> Response:
        under_way, token = self._under_way, facts.token_id
        count = under_way.get(token, 0)
        if count >= self._most_calls:
            raise TokenBusy(str(count), seconds=1)
        under_way[token] = count + 1
        try:
            return await self._answer(request, facts, message, stream)
        finally:
            if under_way[token] > 1:
                under_way[token] -= 1
            else:
                del under_way[token]

    async def _answer(self, request: McpRequest, facts: Grant, message: Message, stream: Stream | None) -> Response:
        if message.method in {"tools/list", "tools/call"}:
            hops.check(request.headers)
        match message.method:
            case "tools/call":
                return await self._call(request, facts, message, stream)
            case "tools/list":
                return await self._list(request, facts, message)
            case "initialize":
                return _initialize(request, facts, message)
            case "server/discover":
                return _found(request, message, _discovered(facts), cacheable=True)
        return _found(request, message, {})

    async def _call(self, request: McpRequest, facts: Grant, message: Message, stream: Stream | None) -> Response:
        name, arguments = message.params.get("name"), message.params.get("arguments", {})
        if not isinstance(name, str) or not name or not isinstance(arguments, dict | None):
            return refused(request, jsonrpc.INVALID_PARAMS, "Invalid params: a name and an object of arguments")
        if not is_storable(name):
            text = "Invalid params: a name holds no NUL and no half of a surrogate pair"
            return refused(request, jsonrpc.INVALID_PARAMS, text)
        if "task" in message.params:
            return refused(request, jsonrpc.METHOD_NOT_FOUND, "Tasks are not supported")
        return await self._caller.call(request, facts, message, stream)

    async def _list(self, request: McpRequest, facts: Grant, message: Message) -> Response:
        if message.params.get("cursor") is not None:
            # Everything is on the first page, so no cursor is ours.
            return refused(request, jsonrpc.INVALID_PARAMS, "Invalid cursor")
        assignments = facts.assignments
        if len(assignments) == 1:
            request.note_server(assignments[0])
        began = time.perf_counter()
        try:
            listing = await self._lister.merged(assignments, facts.connection_id, trace_context.of(request.headers))
        finally:
            request.row.upstream_ms = (time.perf_counter() - began) * 1000
        return _found(request, message, listing.result(), cacheable=True)

    def _told(self, request: McpRequest, fault: UpstreamError) -> Response:
        text, data = str(fault), fault.data
        if fault.reason in LACKING:
            text, data = f"{text} {self._identities}", {**(data or {}), "url": self._identities}
        response = refused(request, fault.code, text, data)
        reason = fault.reason if fault.outcome in {"denied", "rate_limited"} else ""
        retry = ((b"retry-after", b"%d" % fault.seconds),) if isinstance(fault, Busy) else ()
        return response._replace(outcome=fault.outcome, deny_reason=reason, headers=retry)


def _initialize(request: McpRequest, facts: Grant, message: Message) -> Response:
    version = versions.negotiated(message.params.get("protocolVersion"))
    request.row.protocol_version = version
    result: Object = {"protocolVersion": version, "capabilities": CAPABILITIES, "serverInfo": _server(facts)}
    if facts.gateway_description:
        result["instructions"] = facts.gateway_description
    return _found(request, message, result)


def _discovered(facts: Grant) -> Object:
    result: Object = {"supportedVersions": list(versions.SUPPORTED), "capabilities": CAPABILITIES}
    result["_meta"] = {versions.SERVER_INFO_KEY: _server(facts)}
    if facts.gateway_description:
        result["instructions"] = facts.gateway_description
    return result


def _server(facts: Grant) -> Object:
    return {**product.INFO, "title": facts.gateway_name}


def _found(request: McpRequest, message: Message, result: Object, *, cacheable: bool = False) -> Response:
    if request.modern or message.method == "server/discover":
        result |= {"resultType": "complete", **(PRIVATE if cacheable else {})}
    return Response(200, jsonrpc.result(message.id, result))
