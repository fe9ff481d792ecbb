"""From an authorized request to its response: the checks of its protocol version, its MCP method, its errors."""

import time
from collections.abc import Iterable

from proxy.access.decision import DENIALS, Grant
from proxy.access.query import NOTHING, ServersNeeded, Wanted
from proxy.catalog import OutOfScope
from proxy.lists import Lists
from proxy.request import McpRequest
from proxy.response import Response, Stream
from proxy.tools_call import ToolCaller
from wire import jsonrpc, product, stateless, trace_context, versions
from wire.definitions import CATALOGUES
from wire.errors import Busy, TokenBusy, UpstreamError
from wire.jsonrpc import Message, Object, is_storable

CAPABILITIES: Object = {"tools": {}}
CACHE_HINTS: Object = {"ttlMs": 0, "cacheScope": "private"}

# Lists, and of which kind of features each is.
LISTED = {catalogue.method: kind for kind, catalogue in CATALOGUES.items()}

SESSION_METHODS = frozenset({"initialize", "ping", "server/discover", "tools/call", *LISTED})
MODERN_METHODS = frozenset({"server/discover", "tools/call", *LISTED})

# The servers the statement must return for a method; a call needs its own, all other methods none.
WANTED = {method: Wanted(ServersNeeded.ALL, kind) for method, kind in LISTED.items()}

# Where users bring the identity a call lacks; the only page the proxy knows.
IDENTITIES_PATH = "/settings/identities"
IDENTITY_REASONS = frozenset({"identity_missing", "identity_unconfirmed"})


def wanted(message: Message | None) -> Wanted:
    """Which servers this message needs to know of, and the feature it names."""
    if message is None or message.id is None:
        return NOTHING
    if message.method != "tools/call":
        return WANTED.get(message.method, NOTHING)
    name = message.params.get("name")
    # A name the database cannot hold is no tool's; asked for without what it cannot hold, it would be another's.
    return Wanted(ServersNeeded.OF_FEATURE, "tool", name) if isinstance(name, str) and is_storable(name) else NOTHING


def error_response(request: McpRequest, code: int, text: str, data: Object | None = None) -> Response:
    """A JSON-RPC error of our own, with the HTTP status of the client's era."""
    message = request.message
    body = jsonrpc.error(message.id if message else None, code, text, data)
    status = MODERN_STATUS.get(code, 200) if request.modern else 200
    return Response(status, body, "bad_request" if status != 200 else "rpc_error", code=code)


ROUTING_HEADERS = frozenset({b"mcp-protocol-version", b"mcp-method", b"mcp-name"})

# The HTTP status of a JSON-RPC error in this era; any other code goes out in 200.
MODERN_STATUS = {
    jsonrpc.PARSE_ERROR: 400,
    jsonrpc.INVALID_REQUEST: 400,
    jsonrpc.METHOD_NOT_FOUND: 404,
    jsonrpc.INVALID_PARAMS: 400,
    jsonrpc.HEADER_MISMATCH: 400,
    jsonrpc.MISSING_CAPABILITY: 400,
    jsonrpc.UNSUPPORTED_VERSION: 400,
}


class InvalidRequest(Exception):
    """The request contradicts itself or speaks a version nobody here knows."""

    def __init__(self, code: int, message: str, data: Object | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


def is_modern(version: str, message: Message) -> bool:
    """Whether the rules of 2026-07-28 apply: to its version, to unknown versions, and to bodies with its envelope."""
    if message.method == "initialize":
        return False
    return (version != "" and version not in versions.SESSION_VERSIONS) or versions.MODERN_KEY in message.meta


def unsupported(version: str) -> InvalidRequest:
    """The refusal of a version nobody here knows."""
    data: Object = {"supported": list(versions.SUPPORTED), "requested": version}
    return InvalidRequest(jsonrpc.UNSUPPORTED_VERSION, "Unsupported protocol version", data)


def check_modern(message: Message, pairs: Iterable[tuple[bytes, bytes]]) -> None:
    """Raises InvalidRequest for the first check that fails."""
    given: dict[bytes, str] = {}
    for name, value in pairs:
        if name in ROUTING_HEADERS:
            if name in given:
                raise InvalidRequest(jsonrpc.HEADER_MISMATCH, f"The header {name.decode()} is there twice")
            given[name] = value.decode("latin-1").strip()
    version = _envelope(message)
    _compare("MCP-Protocol-Version", given.get(b"mcp-protocol-version"), version)
    _compare("Mcp-Method", given.get(b"mcp-method"), message.method)
    if message.method in versions.NAMED_BY:
        named = message.params.get(versions.NAMED_BY[message.method])
        spelled = given.get(b"mcp-name")
        _compare("Mcp-Name", None if spelled is None else stateless.decoded_value(spelled), named)
    if version != versions.MODERN:
        raise unsupported(version)


def _envelope(message: Message) -> str:
    version = message.meta.get(versions.MODERN_KEY)
    capabilities = message.meta.get(versions.CAPABILITIES_KEY)
    if not isinstance(version, str):
        raise InvalidRequest(jsonrpc.INVALID_PARAMS, f"_meta must carry {versions.MODERN_KEY}")
    if not isinstance(capabilities, dict):
        raise InvalidRequest(jsonrpc.INVALID_PARAMS, f"_meta must carry {versions.CAPABILITIES_KEY}")
    return version


def _compare(name: str, header: str | None, body: object) -> None:
    if header is None:
        raise InvalidRequest(jsonrpc.HEADER_MISMATCH, f"The header {name} is missing")
    if header != body:
        raise InvalidRequest(jsonrpc.HEADER_MISMATCH, f"The header {name} differs from the body")


class Dispatcher:
    """The methods that are served; every other is not found. A token has `max_calls` in progress at most."""

    def __init__(self, lists: Lists, caller: ToolCaller, public_url: str, max_calls: int) -> None:
        self._identities_url = public_url + IDENTITIES_PATH
        self._max_calls = max_calls
        self._calls_in_progress: dict[str, int] = {}  # By token; none is in here without a call.
        self._lists = lists
        self._caller = caller

    async def answer(self, request: McpRequest, grant: Grant, message: Message, stream: Stream | None) -> Response:
        """The response to one request; UpstreamError becomes a JSON-RPC error here and nowhere else."""
        if message.method not in (MODERN_METHODS if request.modern else SESSION_METHODS):
            return error_response(request, jsonrpc.METHOD_NOT_FOUND, f"Method not found: {message.method[:100]}")
        try:
            return await self._answer_within_limit(request, grant, message, stream)
        except OutOfScope:
            denied = DENIALS["out_of_scope"]
            return Response(denied.status, denied.body, "denied", denied.reason, jsonrpc.FORBIDDEN)
        except UpstreamError as error:
            return self._upstream_error_response(request, error)

    async def _answer_within_limit(
        self, request: McpRequest, grant: Grant, message: Message, stream: Stream | None
    ) -> Response:
        calls_in_progress, token = self._calls_in_progress, grant.token_id
        count = calls_in_progress.get(token, 0)
        if count >= self._max_calls:
            raise TokenBusy(str(count), seconds=1)
        calls_in_progress[token] = count + 1
        try:
            return await self._answer(request, grant, message, stream)
        finally:
            if calls_in_progress[token] > 1:
                calls_in_progress[token] -= 1
            else:
                del calls_in_progress[token]

    async def _answer(self, request: McpRequest, grant: Grant, message: Message, stream: Stream | None) -> Response:
        if message.method == "tools/call" or message.method in LISTED:
            trace_context.check_hops(request.headers)
        match message.method:
            case "tools/call":
                return await self._call(request, grant, message, stream)
            case method if method in LISTED:
                return await self._list(request, grant, message)
            case "initialize":
                return _initialize(request, grant, message)
            case "server/discover":
                return _result_response(request, message, _discovery_result(grant), cacheable=True)
        return _result_response(request, message, {})

    async def _call(self, request: McpRequest, grant: Grant, message: Message, stream: Stream | None) -> Response:
        name, arguments = message.params.get("name"), message.params.get("arguments", {})
        if not isinstance(name, str) or not name or not isinstance(arguments, dict | None):
            return error_response(request, jsonrpc.INVALID_PARAMS, "Invalid params: a name and an object of arguments")
        if not is_storable(name):
            text = "Invalid params: a name holds no NUL and no half of a surrogate pair"
            return error_response(request, jsonrpc.INVALID_PARAMS, text)
        if "task" in message.params:
            return error_response(request, jsonrpc.METHOD_NOT_FOUND, "Tasks are not supported")
        return await self._caller.call(request, grant, message, stream)

    async def _list(self, request: McpRequest, grant: Grant, message: Message) -> Response:
        if message.params.get("cursor") is not None:
            # Everything is on the first page, so no cursor is ours.
            return error_response(request, jsonrpc.INVALID_PARAMS, "Invalid cursor")
        assignments = grant.assignments
        if len(assignments) == 1:
            request.set_server(assignments[0])
        began = time.perf_counter()
        try:
            listing = await self._lists.answer(request, grant, LISTED[message.method])
        finally:
            request.row.upstream_ms = (time.perf_counter() - began) * 1000
        more: Object = {"resultType": "complete", **CACHE_HINTS} if request.modern else {}
        return Response(200, listing.response(message.id, more))

    def _upstream_error_response(self, request: McpRequest, error: UpstreamError) -> Response:
        text, data = str(error), error.data
        if error.reason in IDENTITY_REASONS:
            text, data = f"{text} {self._identities_url}", {**(data or {}), "url": self._identities_url}
        response = error_response(request, error.code, text, data)
        reason = error.reason if error.outcome in {"denied", "rate_limited"} else ""
        retry = ((b"retry-after", b"%d" % error.seconds),) if isinstance(error, Busy) else ()
        return response._replace(outcome=error.outcome, deny_reason=reason, headers=retry)


def _initialize(request: McpRequest, grant: Grant, message: Message) -> Response:
    version = versions.negotiated(message.params.get("protocolVersion"))
    request.row.protocol_version = version
    result: Object = {"protocolVersion": version, "capabilities": CAPABILITIES, "serverInfo": _server_info(grant)}
    if grant.gateway_description:
        result["instructions"] = grant.gateway_description
    return _result_response(request, message, result)


def _discovery_result(grant: Grant) -> Object:
    result: Object = {"supportedVersions": list(versions.SUPPORTED), "capabilities": CAPABILITIES}
    result["_meta"] = {versions.SERVER_INFO_KEY: _server_info(grant)}
    if grant.gateway_description:
        result["instructions"] = grant.gateway_description
    return result


def _server_info(grant: Grant) -> Object:
    return {**product.INFO, "title": grant.gateway_name}


def _result_response(request: McpRequest, message: Message, result: Object, *, cacheable: bool = False) -> Response:
    if request.modern or message.method == "server/discover":
        result |= {"resultType": "complete", **(CACHE_HINTS if cacheable else {})}
    return Response(200, jsonrpc.result(message.id, result))
