"""JSON-RPC over HTTP as both eras of MCP use it: the target of a request, its id, and its answer."""

import base64
import binascii
import itertools
import os
import random
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from wire import jsonrpc, rewriting, sse, versions
from wire.errors import AccessRefused, BadAnswer, Flooded, Redirected, TooLarge, UnknownVersion, Unreachable
from wire.fair_queue import HeldBytes
from wire.guard import BUILT_IN, PERSON_HEADER
from wire.http import HttpResponse, Transport, more_than
from wire.jsonrpc import LARGE, MOST_VALUES, Id, Object, has_more_values, is_large, is_shallow, storable
from wire.oauth_client import fits_a_header, is_header_name
from wire.reader_process import ReaderProcess, UnreadableAnswer
from wire.rewriting import Changes
from wire.trace_context import NONE, Trace

ACCEPT = "application/json, text/event-stream"

# The two eras of MCP, and the value for a server that speaks both.
SESSION, MODERN, BOTH = "session", "modern", "both"


def era_for(eras: str, own: str) -> str:
    """Return the era for calls to a server: the client's era `own` if `eras` is BOTH, otherwise `eras`."""
    return own if eras == BOTH else eras


# The kinds of features of servers.
TOOL, PROMPT, RESOURCE, TEMPLATE = "tool", "prompt", "resource", "template"


class Method(NamedTuple):
    """A method that clients can request."""

    session: bool = True  # Whether the session era of MCP has the method.
    modern: bool = True  # Whether MCP 2026-07-28 has the method.
    capability: str = ""  # The capability in `initialize` and `server/discover` that announces the method.
    introduces: bool = False  # Whether the result combines what all servers say about themselves.
    lists: str = ""  # The kind of features that the method lists.
    kind: str = ""  # The kind of the feature that the params name, if it is always the same kind.
    # The member of the params that names a feature or a task; empty if none does. Requests that name one are forwarded
    # to the server that has it.
    named_by: str = ""


# Every method of client requests that the gateway serves; docs/reference/protocol.md shows this table.
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "initialize": Method(modern=False, introduces=True),
        "ping": Method(modern=False),
        "server/discover": Method(introduces=True),
        "tools/list": Method(capability="tools", lists=TOOL),
        "tools/call": Method(capability="tools", kind=TOOL, named_by="name"),
        "prompts/list": Method(capability="prompts", lists=PROMPT),
        "prompts/get": Method(capability="prompts", kind=PROMPT, named_by="name"),
        "resources/list": Method(capability="resources", lists=RESOURCE),
        "resources/templates/list": Method(capability="resources", lists=TEMPLATE),
        "resources/read": Method(capability="resources", kind=RESOURCE, named_by="uri"),
        "resources/subscribe": Method(modern=False, capability="resources", kind=RESOURCE, named_by="uri"),
        "resources/unsubscribe": Method(modern=False, capability="resources", kind=RESOURCE, named_by="uri"),
        "completion/complete": Method(capability="completions", named_by="ref"),
        "logging/setLevel": Method(modern=False, capability="logging"),
        "tasks/get": Method(capability="tasks", named_by="taskId"),
        "tasks/result": Method(modern=False, capability="tasks", named_by="taskId"),
        "tasks/update": Method(session=False, capability="tasks", named_by="taskId"),
        "tasks/cancel": Method(capability="tasks", named_by="taskId"),
        "subscriptions/listen": Method(session=False),
    }
)
# By method: the member of the params that a request in MCP 2026-07-28 repeats in its Mcp-Name header.
NAMED_BY = {
    name: method.named_by for name, method in METHODS.items() if method.modern and method.named_by not in {"", "ref"}
}

# Bounds of the pause before a broken stream is reopened, even if the server asks for another pause.
LEAST_PAUSE, MOST_PAUSE = 0.05, 30.0

LONGEST_NAME = 80  # Stored characters of a server's name.
MOST_INSTRUCTIONS = 4_000  # Stored characters of a server's instructions.
MOST_EXTENSIONS = 4_096  # Bytes of the extensions that a client or a server declares.

# Server capabilities, and the boolean members of each.
OFFERED = {
    "tools": ("listChanged",),
    "prompts": ("listChanged",),
    "resources": ("subscribe", "listChanged"),
    "completions": (),
    "logging": (),
}

type OnNotification = Callable[[Object], Awaitable[None]]

# Posts `{"result": ...}` or `{"error": ...}` to the server, as the answer to its request.
type Answer = Callable[[Object], Awaitable[None]]
type OnRequest = Callable[[Object, Answer], Awaitable[None]]

NOTHING: Mapping[str, object] = MappingProxyType({})


class SessionHandle(NamedTuple):
    """A session at a server."""

    id: str  # Empty if the server is stateless.
    version: str
    row: str = ""  # The session's key in the store.
    log_level: str = ""  # Set by `logging/setLevel`; empty when none was set.


def offered(capabilities: object) -> Object:
    """Return the part of the declared MCP `capabilities` that the gateway serves, including `extensions`.

    In each capability, only known members with the value `true` are kept, such as `listChanged`.
    """
    declared = capabilities if isinstance(capabilities, dict) else {}
    known: Object = {
        name: {member: True for member in members if declared[name].get(member) is True}
        for name, members in OFFERED.items()
        if isinstance(declared.get(name), dict)
    }
    return known | extensions_in(declared)


def extensions_in(capabilities: object) -> Object:
    """Return `{"extensions": ...}` from the MCP capabilities of a client or server.

    Empty if there are no extensions, or if they are too large or nested too deeply.
    """
    found = capabilities.get("extensions") if isinstance(capabilities, dict) else None
    if not isinstance(found, dict):
        return {}
    kept = {name: settings for name, settings in found.items() if isinstance(settings, dict)}
    if not kept or not is_shallow(kept) or len(jsonrpc.dumps(kept)) > MOST_EXTENSIONS:
        return {}
    return {"extensions": storable(kept)}


def tasks_in(capabilities: Object) -> Object:
    """Return the part of the `tasks` capability that the gateway serves in the session era.

    The gateway serves tool calls as tasks, and requests to cancel tasks. Return {} if `tasks` has no tool calls.
    """
    declared = capabilities.get("tasks")
    requests = declared.get("requests") if isinstance(declared, dict) else None
    tools = requests.get("tools") if isinstance(requests, dict) else None
    if not isinstance(declared, dict) or not isinstance(tools, dict) or not isinstance(tools.get("call"), dict):
        return {}
    cancel: Object = {"cancel": {}} if isinstance(declared.get("cancel"), dict) else {}
    return {"tasks": {**cancel, "requests": {"tools": {"call": {}}}}}


class ServerDescription(NamedTuple):
    """A server's self-description: protocol version, capabilities, instructions and name."""

    version: str
    capabilities: Object
    instructions: str
    name: str = ""

    @property
    def era(self) -> str:
        """MODERN for MCP 2026-07-28, SESSION for the versions with sessions."""
        return MODERN if self.version == versions.MODERN else SESSION

    @classmethod
    def of(cls, result: Object, version: str) -> Self:
        """Parse the result of `initialize` or `server/discover`. Malformed members are ignored."""
        instructions, declared = result.get("instructions"), result.get("capabilities")
        in_sessions = tasks_in(declared) if version != versions.MODERN and isinstance(declared, dict) else {}
        return cls(
            version,
            offered(declared) | in_sessions,
            instructions[:MOST_INSTRUCTIONS] if isinstance(instructions, str) else "",
            _name_in(result),
        )


def _name_in(result: Object) -> str:
    """Return the server's title or name. In MCP 2026-07-28 both are in `_meta`."""
    meta = result.get("_meta")
    info = result.get("serverInfo") or (meta.get(versions.SERVER_INFO_KEY) if isinstance(meta, dict) else None)
    said = [info.get("title"), info.get("name")] if isinstance(info, dict) else []
    return next((name[:LONGEST_NAME] for name in said if isinstance(name, str) and name.strip()), "")


class Target(NamedTuple):
    """A server, the connection and credential for calling the server, and the trace of the client's request."""

    server_id: str
    server_name: str
    url: str
    era: str  # The era in which to call the server.
    timeout_s: float
    max_concurrent: int
    connection_id: str
    credential: tuple[str, str] | None
    generation: str
    trace: Trace = NONE
    identity_id: str = ""
    capabilities: Mapping[str, object] = NOTHING  # Capabilities of the client, which are sent to the server.
    # Sessions are stored by this id (empty for that of the connection) and by `session_key`.
    owner_id: str = ""
    session_key: str = ""
    session: SessionHandle | None = None  # The session that existed when the request arrived.
    # Minimum level of log messages; empty when the client set none.
    log_level: str = ""
    # Limit for the whole call; `timeout_s` limits how long the server may be silent.
    total_s: float = 600
    # Whether private addresses are allowed for this server, within the allowed ranges.
    private: bool = True
    client_info: Object = versions.INFO
    has_own_session: bool = False  # If True, the client's own session ends when the server loses `session`.
    person_id: str = ""  # The person for whom the server is called, and against whose budget large answers count.
    user: str = ""  # The person's e-mail address, which only programs of the runner get.

    def headers(self) -> dict[str, str]:
        """Return the headers of every request to this server. Only those in `trace` come from the client's request."""
        own = {"Content-Type": "application/json", "Accept": ACCEPT, "Accept-Encoding": "gzip, deflate"}
        own |= self.trace
        if self.credential is not None:
            own[self.credential[0]] = self.credential[1]
        elif self.url.startswith(BUILT_IN):  # A built-in server needs no credential.
            own[PERSON_HEADER] = self.person_id
        return own


class RpcResponse(NamedTuple):
    """A server's answer, parsed and as text."""

    document: Object  # Only an outline if the result is large.
    text: bytes
    era: str
    error: Object | None  # The JSON-RPC error.
    status: int = 200  # The HTTP status.
    reader: ReaderProcess | None = None  # For a large result, the process that can parse `text`.
    held: HeldBytes | None = None  # For a large result, the reserved memory.

    async def changed(self, server: str, request_id: Id | None, changes: Changes, person: str) -> bytes:
        """Return the text of this result with these changes and the id `request_id`. Raises TooLarge."""
        if self.reader is None:
            return rewriting.changed(self.text, self.document, request_id, changes)
        try:
            return await self.reader.changed(self.text, self.document["id"], request_id, changes, person)
        except UnreadableAnswer as error:
            raise TooLarge(server, str(error)) from None

    @property
    def whole(self) -> Object:
        """The complete message. A large message is parsed on each access."""
        return self.document if self.reader is None else jsonrpc.loads(self.text)

    @property
    def error_code(self) -> int | None:
        """The code of an error answer, 0 if the error has no valid code; None for a result."""
        if self.error is None:
            return None
        code = self.error.get("code")
        return code if type(code) is int and abs(code) < 1 << 31 else 0


def versions_in(error: Object | None) -> list[str]:
    """Return the versions listed in an unsupported-version error; empty for any other error."""
    data = error.get("data") if error is not None and error.get("code") == jsonrpc.UNSUPPORTED_VERSION else None
    supported = data.get("supported") if isinstance(data, dict) else None
    return [version for version in supported if isinstance(version, str)] if isinstance(supported, list) else []


@dataclass(slots=True)
class StreamPlace:
    """Position in a server's event stream: the id of its last event, if any, and the requested retry delay."""

    last_event_id: str = ""
    retry_ms: int | None = None

    def note(self, reader: sse.EventParser) -> None:
        """Store the last event id and the retry delay that `reader` has read, if any."""
        if reader.event_id and fits_a_header(reader.event_id):
            self.last_event_id = reader.event_id
        if reader.retry_ms is not None:
            self.retry_ms = reader.retry_ms

    def pause(self, seconds: float) -> float:
        """Return the seconds to wait before reopening the stream; `seconds` if the server set no delay."""
        said = seconds if self.retry_ms is None else self.retry_ms / 1000
        return min(max(said, LEAST_PAUSE), MOST_PAUSE)


class StreamBroke(Unreachable):
    """A stream ended before the answer came. It can be resumed, because one of its events had an id."""

    def __init__(self, server: str, detail: str, place: StreamPlace) -> None:
        super().__init__(server, detail)
        self.place = place


def next_request_id() -> int:
    """Return a new id for a request to a server. Ids of clients' requests are never sent to servers."""
    return next(_ids(os.getpid()))


@cache
def _ids(process: int) -> Iterator[int]:
    """Yield request ids for the process with the pid `process`. The first id is random."""
    # Forked workers share sessions, so each worker needs ids of its own. Ids have ten digits, so that the digits of an
    # id hardly ever occur elsewhere in an answer. Ids stay below 2**31, because some servers read ids as 32 bits.
    return itertools.count(random.randrange(1_000_000_000, 2_000_000_000))  # noqa: S311 - an id, no secret


async def read_response(
    response: HttpResponse, target: Target, request_id: int, era: str, on_notification: OnNotification
) -> RpcResponse:
    """Read the answer to request `request_id`; pass other messages of the stream to `on_notification`.

    Raises BadAnswer, AccessRefused, TooLarge, AnswerTooSlow or Unreachable.
    """
    status = response.status
    if status != 200:
        _check_status(response, target)
    elif response.streams and response.media_type == "text/event-stream":
        return await _read_stream(response, target, request_id, era, on_notification)
    text = await response.read()
    document, reader = (
        await _read_large(response, text, target, status) if is_large(text) else (_parse(text, target, status), None)
    )
    if not is_answer(document, request_id) and not _is_refusal(document, status):
        raise BadAnswer(target.server_name, f"HTTP {status} without an answer", status=status)
    return _rpc_response(document, text, era, reader, response, status)


def _check_status(response: HttpResponse, target: Target) -> None:
    """Raise an error for 401, 403 and redirects. These are errors regardless of the body."""
    status = response.status
    if status in (401, 403):
        raise AccessRefused(target.server_name, status, response.header("www-authenticate"))
    if 300 <= status < 400 and (location := response.header("location")):
        raise Redirected(target.server_name, status, location)


async def _read_stream(
    response: HttpResponse, target: Target, request_id: int, era: str, on_notification: OnNotification
) -> RpcResponse:
    reader, detail = sse.EventParser(response.limit), "the stream ended before the answer"
    try:
        if (answer := await _read_until_answer(response, reader, target, request_id, on_notification)) is not None:
            document, text, outlined_by = answer
            return _rpc_response(document, text, era, outlined_by, response)
    except sse.EventTooLarge:
        raise TooLarge(target.server_name, more_than(response.limit)) from None
    except sse.TooManyEvents as error:
        raise Flooded(target.server_name, str(error)) from None
    except Unreachable as error:
        detail = error.detail
    place = StreamPlace()
    place.note(reader)
    if place.last_event_id:
        raise StreamBroke(target.server_name, detail, place)
    raise Unreachable(target.server_name, detail)


async def _read_until_answer(
    response: HttpResponse, reader: sse.EventParser, target: Target, request_id: int, on_notification: OnNotification
) -> tuple[Object, bytes, ReaderProcess | None] | None:
    async for chunk in response.chunks():
        for event in reader.feed(chunk):
            if event.name != "message" or not event.data:
                continue
            text = event.data
            document, outlined_by = (
                await _read_large(response, text, target, 200) if is_large(text) else (_parse(text, target, 200), None)
            )
            if is_answer(document, request_id):
                return document, text, outlined_by
            if "method" in document:
                await on_notification(document)
            await response.give_way()
        await response.note_kept(reader.size)
    return None


async def read_messages(response: HttpResponse, target: Target, on_message: OnNotification, place: StreamPlace) -> None:
    """Pass each message of a server's standing stream to `on_message`. When the stream ends, update `place`.

    Raises an UpstreamError.
    """
    reader = sse.EventParser(response.limit)
    try:
        async for chunk in response.chunks():
            for event in reader.feed(chunk):
                if event.name == "message" and event.data:
                    text = event.data
                    small = len(text) <= LARGE
                    document = _parse(text, target, 200) if small else await _parse_alone(response, text, target, 200)
                    if isinstance(document.get("method"), str):
                        await on_message(document)
                    await response.give_way()
            await response.note_kept(reader.size)
    except sse.EventTooLarge:
        raise TooLarge(target.server_name, more_than(response.limit)) from None
    except sse.TooManyEvents as error:
        raise Flooded(target.server_name, str(error)) from None
    finally:
        place.note(reader)


async def ignore(_: Object) -> None:
    """Ignore a notification."""


async def refuse_server_request(message: Object, answer: Answer) -> None:
    """Answer a server's request as a client without MCP capabilities: pings succeed, other requests fail."""
    if message.get("method") == "ping":
        await answer({"result": {}})
    else:
        await answer({"error": {"code": jsonrpc.METHOD_NOT_FOUND, "message": "Not supported by this client"}})


def _rpc_response(
    document: Object, text: bytes, era: str, reader: ReaderProcess | None, response: HttpResponse, status: int = 200
) -> RpcResponse:
    error = document.get("error")
    held = response.held(len(text))
    return RpcResponse(document, text, era, error if isinstance(error, dict) else None, status, reader, held)


async def _read_large(
    response: HttpResponse, text: bytes, target: Target, status: int
) -> tuple[Object, ReaderProcess | None]:
    """Return the outline of a large result, and the process that can parse the whole result.

    For other messages, return the whole message and None.
    """
    try:
        outlined = await response.reader.outline(text, target.person_id)
    except UnreadableAnswer as error:
        raise TooLarge(target.server_name, str(error)) from None
    except ValueError:
        raise BadAnswer(target.server_name, f"HTTP {status}: not JSON", status=status) from None
    if outlined is None:
        return await _parse_alone(response, text, target, status), None
    return _checked(outlined, target, status), response.reader


async def _parse_alone(response: HttpResponse, text: bytes, target: Target, status: int) -> Object:
    """Return the parsed large message. Only one large message is parsed at a time.

    Raises BadAnswer, or TooLarge if the message has too many values.
    """
    # Count the values first: a message with too many values is refused without parsing.
    async with response.alone():
        if has_more_values(text, MOST_VALUES):
            raise TooLarge(target.server_name, f"more than {MOST_VALUES:,} JSON values")
    async with response.alone():
        return _parse(text, target, status)


def _parse(text: bytes, target: Target, status: int) -> Object:
    try:
        document = jsonrpc.loads(text)
    except ValueError:
        raise BadAnswer(target.server_name, f"HTTP {status}: not JSON", status=status) from None
    return _checked(document, target, status)


def _checked(document: Any, target: Target, status: int) -> Object:
    if not isinstance(document, dict) or document.get("jsonrpc") != "2.0":
        raise BadAnswer(target.server_name, f"HTTP {status}: not JSON-RPC", status=status)
    return document


def is_answer(document: Object, request_id: int) -> bool:
    """Return whether this message is the result or the error of the request with this id."""
    answered = document.get("id")
    has_outcome = isinstance(document.get("result"), dict) or isinstance(document.get("error"), dict)
    return type(answered) is int and answered == request_id and has_outcome


def _is_refusal(document: Object, status: int) -> bool:
    """Return whether this is an error without id, which servers send when they refuse a request before reading it."""
    return status >= 400 and document.get("id") is None and isinstance(document.get("error"), dict)


# Client for MCP 2026-07-28: stateless requests that repeat parts of their body in headers.
#
# See MCP 2026-07-28, Streamable HTTP, Custom Headers.

ENVELOPE: Object = {
    versions.MODERN_KEY: versions.MODERN,
    versions.CLIENT_INFO_KEY: versions.INFO,
    versions.CAPABILITIES_KEY: {},
}

# Error codes of this era. Any other code in a 4xx answer suggests a server of another era.
OWN_CODES = frozenset(
    {jsonrpc.METHOD_NOT_FOUND, jsonrpc.INVALID_PARAMS, jsonrpc.HEADER_MISMATCH, jsonrpc.MISSING_CAPABILITY}
)

ANNOTATION = "x-mcp-header"
PARAM_PREFIX = "Mcp-Param-"

_SAFE = re.compile(r"[\x20-\x7E]*").fullmatch
_SENTINEL = re.compile(r"=\?base64\?(.*)\?=").fullmatch
_TYPES = frozenset({"string", "integer", "boolean"})


async def send_request(
    transport: Transport,
    target: Target,
    method: str,
    params: Object,
    on_notification: OnNotification,
    *,
    schema: object = None,
) -> RpcResponse:
    """Send one request, without a retry, and return its answer.

    `schema` is the input schema of the called tool. It determines the Mcp-Param headers. Raises an UpstreamError.
    """
    meta = {
        versions.CLIENT_INFO_KEY: target.client_info,
        **params.get("_meta", {}),
        versions.MODERN_KEY: versions.MODERN,
        # Declare only what the gateway can forward, because servers may use all declared capabilities.
        versions.CAPABILITIES_KEY: dict(target.capabilities),
    }
    if target.log_level:
        meta[versions.LOG_LEVEL_KEY] = target.log_level
    headers = target.headers() | _routing(method, params)
    if schema is not None:
        headers |= param_headers(schema, params.get("arguments"))
    request_id = next_request_id()
    sent = {**params, "_meta": meta}
    body = jsonrpc.dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": sent})
    with await transport.send(
        "POST",
        target.server_name,
        target.url,
        headers,
        body,
        private=target.private,
        person=target.person_id,
        user=target.user,
    ) as response:
        return await read_response(response, target, request_id, MODERN, on_notification)


def _routing(method: str, params: Object) -> dict[str, str]:
    routing = {"MCP-Protocol-Version": versions.MODERN, "Mcp-Method": method}
    if method in NAMED_BY:
        routing["Mcp-Name"] = encoded_value(str(params.get(NAMED_BY[method], "")))
    return routing


async def discover_server(transport: Transport, target: Target) -> ServerDescription | BadAnswer:
    """Return the server's ServerDescription, or a BadAnswer if it does not answer as MCP 2026-07-28 requires.

    Raises UnknownVersion if the server names only versions we do not know. Raises another UpstreamError, such as
    Unreachable or AccessRefused, if the request fails.
    """
    try:
        answer = await send_request(transport, target, "server/discover", {}, ignore)
        if versions.MODERN in versions_in(answer.error):  # A server being upgraded may refuse a version it lists.
            answer = await send_request(transport, target, "server/discover", {}, ignore)
    except BadAnswer as error:
        return error
    _check_versions(target, answer.error)
    if answer.error is not None:
        detail = f"HTTP {answer.status}, JSON-RPC {answer.error_code}"
        return BadAnswer(target.server_name, detail, status=answer.status, error=answer.error)
    result = answer.whole["result"]
    supported = result.get("supportedVersions")
    if not isinstance(supported, list) or versions.MODERN not in supported:
        return BadAnswer(target.server_name, "it does not list this version")
    return ServerDescription.of(result, versions.MODERN)


def _check_versions(target: Target, error: Object | None) -> None:
    """Raise UnknownVersion for an error that lists only versions we do not know."""
    named = versions_in(error)
    if named and not set(named) & set(versions.CALLED):
        raise UnknownVersion(target.server_name, f"speaks only MCP {', '.join(named)[:200]}")


# Headers that repeat parts of the body; also used by the proxy to read clients' headers


def encoded_value(value: str) -> str:
    """Return `value` for a header: unchanged if that is safe, otherwise in base64."""
    if _SAFE(value) and value == value.strip() and not _SENTINEL(value):
        return value
    return f"=?base64?{base64.b64encode(value.encode(errors='replace')).decode()}?="


def decoded_value(value: str) -> str | None:
    """Decode a value made by `encoded_value`; return None if its base64 is invalid."""
    wrapped = _SENTINEL(value)
    if wrapped is None:
        return value
    try:
        content = base64.b64decode(wrapped[1], validate=True)
        text = content.decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    # Only canonical base64 is accepted, because parsers read other forms differently.
    return text if base64.b64encode(content).decode() == wrapped[1] else None


def param_headers(schema: Any, arguments: Any) -> dict[str, str]:
    """Return the Mcp-Param headers for these arguments and the schema of the tool."""
    headers = {}
    for path, annotated in _annotated(schema):
        value = _at(arguments, path)
        name = annotated[ANNOTATION]
        if isinstance(value, bool):
            headers[PARAM_PREFIX + name] = "true" if value else "false"
        elif isinstance(value, int | str):
            headers[PARAM_PREFIX + name] = encoded_value(str(value))
    return headers


def has_sound_annotations(schema: Any) -> bool:
    """Return whether all `x-mcp-header` annotations in the schema are valid. Tools with invalid ones are hidden."""
    names = [annotated for _, annotated in _annotated(schema)]
    spelled = [each[ANNOTATION] for each in names]
    if len(names) != _count(schema) or not all(isinstance(name, str) and is_header_name(name) for name in spelled):
        return False
    if len({name.lower() for name in spelled}) != len(spelled):
        return False
    return all(isinstance(each.get("type"), str) and each["type"] in _TYPES for each in names)


def without_annotations(value: Any) -> Any:
    """Return the schema without header annotations. Clients need none, because the gateway computes the headers."""
    if isinstance(value, dict):
        return {key: without_annotations(inner) for key, inner in value.items() if key != ANNOTATION}
    return [without_annotations(inner) for inner in value] if isinstance(value, list) else value


def _annotated(schema: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], jsonrpc.Object]]:
    """Yield the path and the schema of each property that has a header annotation."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(properties, dict):
        return
    for name, inner in properties.items():
        if isinstance(inner, dict):
            if ANNOTATION in inner:
                yield (*path, name), inner
            yield from _annotated(inner, (*path, name))


def _count(value: Any) -> int:
    if isinstance(value, dict):
        return (ANNOTATION in value) + sum(_count(inner) for inner in value.values())
    return sum(_count(inner) for inner in value) if isinstance(value, list) else 0


def _at(arguments: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        arguments = arguments.get(key) if isinstance(arguments, Mapping) else None
    return arguments
