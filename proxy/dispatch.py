"""Dispatch authorized requests: check the protocol version, call the method's handler, turn errors into responses."""

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from proxy import reasons, tasks
from proxy.access.decision import DENIALS, NOTHING, AccessRow, ServersNeeded, Wanted
from proxy.access.features import (
    PROMPT,
    RESOURCE,
    TEMPLATE,
    TOOL,
    Named,
    OutOfScope,
    Refusal,
    UnknownFeature,
    is_nameable,
    lookup_key,
    resolve,
)
from proxy.forward import CACHE_HINTS, Forwarder
from proxy.handshake import Handshake
from proxy.lists import BadListCursor, Lists
from proxy.message_router import LEVELS
from proxy.request import McpRequest
from proxy.response import MODERN_STATUS, Response, Stream
from proxy.server_requests import ROOTS_CHANGED
from wire import jsonrpc, mcp, trace_context, versions
from wire.errors import AnswersNotTaken, Busy, SessionEnded, TokenBusy, UpstreamError
from wire.fair_queue import ByteBudget, QueueFull
from wire.jsonrpc import Message, Object

type Handler = Callable[[McpRequest, AccessRow, Message, Stream | None], Awaitable[Response]]


class Method(NamedTuple):
    """A method: the eras that have it, the capability that announces it, and the data its handler needs."""

    session: bool = True
    modern: bool = True
    capability: str = ""  # Under which `initialize` and `server/discover` announce it.
    introduces: bool = False  # Whether its result merges the introductions of all servers.
    lists: str = ""  # The kind of features it lists.
    forwards: bool = False  # Whether it names a feature and is forwarded to its server.


# Every client method that is served; docs/reference/protocol.md shows this table.
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "initialize": Method(modern=False, introduces=True),
        "ping": Method(modern=False),
        "server/discover": Method(introduces=True),
        "tools/list": Method(capability="tools", lists=TOOL),
        "tools/call": Method(capability="tools", forwards=True),
        "prompts/list": Method(capability="prompts", lists=PROMPT),
        "prompts/get": Method(capability="prompts", forwards=True),
        "resources/list": Method(capability="resources", lists=RESOURCE),
        "resources/templates/list": Method(capability="resources", lists=TEMPLATE),
        "resources/read": Method(capability="resources", forwards=True),
        "resources/subscribe": Method(modern=False, capability="resources", forwards=True),
        "resources/unsubscribe": Method(modern=False, capability="resources", forwards=True),
        "completion/complete": Method(capability="completions", forwards=True),
        "logging/setLevel": Method(modern=False, capability="logging"),
        "tasks/get": Method(capability="tasks", forwards=True),
        "tasks/result": Method(modern=False, capability="tasks", forwards=True),
        "tasks/update": Method(session=False, capability="tasks", forwards=True),
        "tasks/cancel": Method(capability="tasks", forwards=True),
        "subscriptions/listen": Method(session=False),
    }
)

INTRODUCTION = Wanted(ServersNeeded.INTRODUCED)

# Page where users add the identity a call lacks: the row of their connection and this server.
IDENTITY_ROW = reasons.IDENTITIES + "?connection={connection}#carried-{connection}-{assignment}"
IDENTITY_REASONS = frozenset(
    {
        "credential_refused",
        "identity_disabled",
        "identity_missing",
        "identity_off",
        "identity_scope",
        "identity_sign_in",
        "identity_unconfirmed",
    }
)


def wanted(message: Message | None, feature: Named | None) -> Wanted:
    """Return the servers and features to query for this message, which names `feature`."""
    if message is not None and message.method == ROOTS_CHANGED:
        return INTRODUCTION
    if message is None or message.id is None or (method := METHODS.get(message.method)) is None:
        return NOTHING
    if method.lists:
        return Wanted(ServersNeeded.ALL, method.lists)
    if not method.forwards:
        return INTRODUCTION if method.introduces else NOTHING
    # No feature has a name the database cannot store; stripping those characters could match another feature.
    if feature is None or not is_nameable(feature):
        return NOTHING
    return Wanted(ServersNeeded.OF_FEATURE, feature.kind, lookup_key(feature))


def error_response(request: McpRequest, code: int, text: str, data: Object | None = None) -> Response:
    """Return a JSON-RPC error of the gateway, with the HTTP status of the client's era."""
    message = request.message
    body = jsonrpc.error(message.id if message else None, code, text, data)
    status = MODERN_STATUS.get(code, 200) if request.modern else 200
    return Response(status, body, "bad_request" if status != 200 else "rpc_error", code=code)


ROUTING_HEADERS = frozenset({b"mcp-protocol-version", b"mcp-method", b"mcp-name"})


class InvalidRequest(Exception):
    """The request contradicts itself or uses an unknown protocol version."""

    def __init__(self, code: int, message: str, data: Object | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


def is_modern(version: str, message: Message) -> bool:
    """Return whether the rules of 2026-07-28 apply: for its version, unknown versions, and bodies with its envelope.

    `initialize` negotiates the version, so only an envelope makes it a request of this era, which has no such method.
    """
    if message.method == "initialize":
        return versions.MODERN_KEY in message.meta
    return (version != "" and version not in versions.SESSION_VERSIONS) or versions.MODERN_KEY in message.meta


def unsupported(version: str) -> InvalidRequest:
    """Return the refusal of an unknown protocol version."""
    data: Object = {"supported": list(versions.SUPPORTED), "requested": version}
    return InvalidRequest(jsonrpc.UNSUPPORTED_VERSION, "Unsupported protocol version", data)


def check_modern(message: Message, pairs: Iterable[tuple[bytes, bytes]]) -> None:
    """Check headers against the body. Raises InvalidRequest for the first check that fails."""
    given: dict[bytes, str] = {}
    for name, value in pairs:
        if name in ROUTING_HEADERS:
            if name in given:
                raise InvalidRequest(jsonrpc.HEADER_MISMATCH, f"The header {name.decode()} is there twice")
            given[name] = value.decode("latin-1").strip()
    version = _envelope(message)
    _compare("MCP-Protocol-Version", given.get(b"mcp-protocol-version"), version)
    _compare("Mcp-Method", given.get(b"mcp-method"), message.method)
    spelled = given.get(b"mcp-name")
    if message.method in versions.NAMED_BY and (spelled is not None or message.method not in tasks.METHODS):
        named = message.params.get(versions.NAMED_BY[message.method])
        _compare("Mcp-Name", None if spelled is None else mcp.decoded_value(spelled), named)
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


def _refusal(request: McpRequest, message: Message, method: Method) -> Response | None:
    """Return the refusal of a request that must not reach a server. Raises TooManyHops or UnknownTask."""
    if not (method.lists or method.forwards):
        return None
    if trace_context.HOPS_KEY in request.headers:
        trace_context.check_hops(request.headers)
    return _form_refusal(request, message) if method.forwards else None


class Dispatcher:
    """Calls the handlers of methods. A token may have `max_calls` calls in progress.

    `handlers` are those of METHODS that live in other modules; a method without a handler is not found.
    """

    def __init__(
        self,
        handshake: Handshake,
        lists: Lists,
        forwarder: Forwarder,
        public_url: str,
        max_calls: int,
        budget: ByteBudget,
        handlers: Mapping[str, Handler] = MappingProxyType({}),
    ) -> None:
        self._handshake = handshake
        self._public_url = public_url
        self._max_calls = max_calls
        self.budget = budget
        self._calls_in_progress: dict[str, int] = {}  # By token; a token without calls has no entry.
        self._lists = lists
        self._forwarder = forwarder
        self._handlers: dict[str, Handler] = {
            "initialize": self._initialize,
            "ping": self._ping,
            "server/discover": self._discover,
            **dict.fromkeys((name for name, method in METHODS.items() if method.lists), self._list),
            **dict.fromkeys(("tools/call", "prompts/get", "resources/read", "completion/complete"), forwarder.forward),
            **dict.fromkeys(tasks.METHODS, forwarder.forward),
            **dict.fromkeys(("resources/subscribe", "resources/unsubscribe"), self._subscribe),
            "logging/setLevel": self._set_level,
            **handlers,
        }
        handshake.methods = self._handlers.keys()
        # By whether the request is of 2026-07-28.
        self._served: dict[bool, dict[str, tuple[Method, Handler]]] = {
            modern: {
                name: (method, self._handlers[name])
                for name, method in METHODS.items()
                if name in self._handlers and (method.modern if modern else method.session)
            }
            for modern in (False, True)
        }

    def serves(self, name: str, *, modern: bool) -> bool:
        """Return whether this method is served to clients of this era."""
        return name in self._served[modern]

    async def answer(self, request: McpRequest, grant: AccessRow, message: Message, stream: Stream | None) -> Response:
        """Return the response to one request. This is the only place where UpstreamError becomes a JSON-RPC error."""
        served = self._served[request.modern].get(message.method)
        if served is None:
            text = f"Method not found: {message.method[:100]}"
            return error_response(request, jsonrpc.METHOD_NOT_FOUND, text)._replace(outcome="not_offered")
        try:
            self._begin(grant.token_id)
            try:
                method, handler = served
                if (refusal := _refusal(request, message, method)) is not None:
                    return refusal
                if self.budget.total and (method.forwards or method.lists):
                    await self._wait_for_room(grant.user_id)
                return await handler(request, grant, message, stream)
            finally:
                self._end(grant.token_id)
        except OutOfScope:
            denied = DENIALS["out_of_scope"]
            return Response(denied.status, denied.published, "denied", denied.reason, jsonrpc.FORBIDDEN)
        except UpstreamError as error:
            return self._upstream_error_response(request, error)

    async def end_session(self, grant: AccessRow) -> Response:
        """End the session that the request names. Raises DatabaseUnavailable."""
        return await self._handshake.end(grant)

    async def _wait_for_room(self, person: str) -> None:
        """Wait until this person's share of the answer budget has room. Raises AnswersNotTaken."""
        try:
            await self.budget.admit(person)
        except (QueueFull, TimeoutError):
            raise AnswersNotTaken(seconds=1) from None

    def _begin(self, token: str) -> None:
        """Count one more call of this token. Raises TokenBusy."""
        count = self._calls_in_progress.get(token, 0)
        if count >= self._max_calls:
            raise TokenBusy(str(count), seconds=1)
        self._calls_in_progress[token] = count + 1

    def _end(self, token: str) -> None:
        calls_in_progress = self._calls_in_progress
        if calls_in_progress[token] > 1:
            calls_in_progress[token] -= 1
        else:
            del calls_in_progress[token]

    async def _subscribe(
        self, request: McpRequest, grant: AccessRow, message: Message, stream: Stream | None
    ) -> Response:
        response = await self._forwarder.forward(request, grant, message, stream)
        if response.outcome == "ok" and not await self._handshake.note_subscription(grant, message):
            text = "Invalid params: this session is subscribed to too many resources"
            return error_response(request, jsonrpc.INVALID_PARAMS, text)
        return response

    async def _ping(self, request: McpRequest, grant: AccessRow, message: Message, stream: Stream | None) -> Response:
        return _result_response(request, message, {})

    async def _initialize(
        self, request: McpRequest, grant: AccessRow, message: Message, stream: Stream | None
    ) -> Response:
        grant = await self._lists.introduced(request, grant)
        return await self._handshake.initialize(request, grant, message)

    async def _discover(
        self, request: McpRequest, grant: AccessRow, message: Message, stream: Stream | None
    ) -> Response:
        grant = await self._lists.introduced(request, grant)
        return _result_response(request, message, self._handshake.discover(grant), cacheable=True)

    async def _set_level(
        self, request: McpRequest, grant: AccessRow, message: Message, stream: Stream | None
    ) -> Response:
        if message.params.get("level") not in LEVELS:
            text = f"Invalid params: a level is one of {', '.join(LEVELS)}"
            return error_response(request, jsonrpc.INVALID_PARAMS, text)
        return await self._handshake.set_level(request, grant, message)

    async def _list(self, request: McpRequest, grant: AccessRow, message: Message, stream: Stream | None) -> Response:
        assignments = grant.assignments
        if len(assignments) == 1:
            request.set_server(assignments[0])
        began = time.perf_counter()
        try:
            kind, cursor = METHODS[message.method].lists, message.params.get("cursor")
            listing = await self._lists.answer(request, grant, kind, cursor)
        except BadListCursor:
            return error_response(request, jsonrpc.INVALID_PARAMS, "Invalid cursor")
        finally:
            request.row.upstream_ms = (time.perf_counter() - began) * 1000
        more: Object = {"resultType": "complete", **CACHE_HINTS, "ttlMs": listing.ttl_ms} if request.modern else {}
        return Response(200, listing.response(message.id, more))

    def refused(self, request: McpRequest, error: UpstreamError) -> Response:
        """Return the response to a request that is refused with this error."""
        return self._upstream_error_response(request, error)

    def refusal_now(self, request: McpRequest, grant: AccessRow) -> UpstreamError | None:
        """Return why a running call may not continue under its current grant, or None if it may."""
        if request.feature is None:
            return None
        try:
            resolve(grant, request.feature)
        except (Refusal, UnknownFeature) as refusal:
            return refusal
        except OutOfScope as outside:
            return Refusal("server_disabled", outside.assigned)
        return None

    def _upstream_error_response(self, request: McpRequest, error: UpstreamError) -> Response:
        data, code, page = error.data, error.code, self._identity_row(request, error)
        if isinstance(error, UnknownFeature) and error.kind == RESOURCE and not request.modern:
            code = jsonrpc.RESOURCE_NOT_FOUND
        if page:
            data = {**(data or {}), "url": self._public_url + page}
        text = reasons.message(error.reason, self._public_url, str(error), page)
        response = error_response(request, code, text, data)
        if isinstance(error, SessionEnded):
            response = response._replace(status=404, outcome=error.outcome)
        reason = error.reason if error.reason != error.outcome else ""
        retry = ((b"retry-after", b"%d" % error.seconds),) if isinstance(error, Busy) else ()
        return response._replace(outcome=error.outcome, deny_reason=reason, headers=retry)

    def _identity_row(self, request: McpRequest, error: UpstreamError) -> str:
        """Return the page where the user can fix the identity; empty if the identity is not theirs."""
        assigned = error.assigned if isinstance(error, Refusal) else request.assigned
        if error.reason not in IDENTITY_REASONS or assigned is None or assigned.scheme != "per_user":
            return ""
        return IDENTITY_ROW.format(connection=request.row.grant.connection_id, assignment=assigned.id)


def _form_refusal(request: McpRequest, message: Message) -> Response | None:
    """Return the refusal of malformed params of a request that names a feature. Raises UnknownTask."""
    params = message.params
    if message.method in tasks.METHODS:
        if request.mcp_task is None:
            raise tasks.UnknownTask
        return None
    feature = request.feature
    if feature is None or not feature.name or not isinstance(params.get("arguments", {}), dict | None):
        text = "Invalid params: a name and an object of arguments"
        if message.method not in {"tools/call", "prompts/get"}:
            text = "Invalid params: a uri" if feature is None or feature.kind == RESOURCE else "Invalid params: a ref"
        return error_response(request, jsonrpc.INVALID_PARAMS, text)
    if request.query is not None and request.query.wanted is NOTHING:  # The database cannot hold the name.
        what = "uri" if feature.kind == RESOURCE else "name"
        text = f"Invalid params: a {what} holds no NUL and no half of a surrogate pair"
        return error_response(request, jsonrpc.INVALID_PARAMS, text)
    return None


def _result_response(request: McpRequest, message: Message, result: Object, *, cacheable: bool = False) -> Response:
    if request.modern or message.method == "server/discover":
        result |= {"resultType": "complete", **(CACHE_HINTS if cacheable else {})}
    return Response(200, jsonrpc.result(message.id, result))
