"""JSON-RPC over HTTP as both eras of MCP use it: the target of a request, its id, and its answer."""

import itertools
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from wire import answers, jsonrpc, product, sse, versions
from wire.answers import Changes
from wire.byte_budget import HeldBytes
from wire.credential import fits_a_header
from wire.errors import AccessRefused, BadAnswer, Flooded, Redirected, TooLarge, Unreachable
from wire.http1 import more_than
from wire.jsonrpc import LARGE, MOST_VALUES, Id, Object, has_more_values, storable
from wire.pool import HttpResponse
from wire.reader_process import ReaderProcess, Unreadable, is_large
from wire.tool_names import is_shallow
from wire.trace_context import NONE, Trace

ACCEPT = "application/json, text/event-stream"

# The two wires, and a server that speaks both of them.
SESSION, MODERN, BOTH = "session", "modern", "both"


def era_for(eras: str, own: str) -> str:
    """Return the era in which to call a server that speaks `eras`: the client's `own` era where the server has it.

    Empty while nobody knows what the server speaks.
    """
    return own if eras == BOTH else eras


# Seconds between two readings of a stream that broke, whatever its server says.
LEAST_PAUSE, MOST_PAUSE = 0.05, 30.0

LONGEST_NAME = 80  # Characters of a server's name that are kept, as it calls itself,
MOST_INSTRUCTIONS = 4_000  # and of its instructions.
MOST_EXTENSIONS = 4_096  # Bytes of the extensions that a client or a server declares.

# What servers offer, and the members of each that say how.
OFFERED = {
    "tools": ("listChanged",),
    "prompts": ("listChanged",),
    "resources": ("subscribe", "listChanged"),
    "completions": (),
    "logging": (),
}

# Ids are ours alone: a client's id never reaches a server. They start somewhere
# and have ten digits, so that one is hardly ever found elsewhere in an answer.
_ids = itertools.count(random.randrange(1_000_000_000, 2_000_000_000))  # noqa: S311 - an id, no secret

type OnNotification = Callable[[Object], Awaitable[None]]

# Posts `{"result": ...}` or `{"error": ...}` back to the server whose request is answered.
type Answer = Callable[[Object], Awaitable[None]]
type OnRequest = Callable[[Object, Answer], Awaitable[None]]

NOTHING: Mapping[str, object] = MappingProxyType({})


class Session(NamedTuple):
    """What `initialize` agreed on; `id` is empty with a server that keeps no state, `row` names it in the store.

    `log_level` is what the server was told by `logging/setLevel`; empty when it was not.
    """

    id: str
    version: str
    row: str = ""
    log_level: str = ""


def offered(capabilities: object) -> Object:
    """Return the server capabilities that the gateway serves, with the members that are true, and all extensions."""
    declared = capabilities if isinstance(capabilities, dict) else {}
    known: Object = {
        name: {member: True for member in members if declared[name].get(member) is True}
        for name, members in OFFERED.items()
        if isinstance(declared.get(name), dict)
    }
    return known | extensions_in(declared)


def extensions_in(capabilities: object) -> Object:
    """Return `{"extensions": ...}` as a client or server declares them; empty for none, too large or too deep ones.

    An extension is data here: its settings pass to the other side as they are (MCP 2025-11-25 and 2026-07-28).
    """
    found = capabilities.get("extensions") if isinstance(capabilities, dict) else None
    if not isinstance(found, dict):
        return {}
    kept = {name: settings for name, settings in found.items() if isinstance(settings, dict)}
    if not kept or not is_shallow(kept) or len(jsonrpc.dumps(kept)) > MOST_EXTENSIONS:
        return {}
    return {"extensions": storable(kept)}


def tasks_in(capabilities: Object) -> Object:
    """Return the `tasks` capability of a session server that runs calls as tasks, with the members that are carried.

    2026-07-28 has an extension instead.
    """
    declared = capabilities.get("tasks")
    requests = declared.get("requests") if isinstance(declared, dict) else None
    tools = requests.get("tools") if isinstance(requests, dict) else None
    if not isinstance(declared, dict) or not isinstance(tools, dict) or not isinstance(tools.get("call"), dict):
        return {}
    cancel: Object = {"cancel": {}} if isinstance(declared.get("cancel"), dict) else {}
    return {"tasks": {**cancel, "requests": {"tools": {"call": {}}}}}


class ServerInfo(NamedTuple):
    """What a server says of itself: the version it speaks, what it offers, and how it is meant to be used."""

    version: str
    capabilities: Object
    instructions: str
    name: str = ""

    @property
    def era(self) -> str:
        """The wire it was said over."""
        return MODERN if self.version == versions.MODERN else SESSION

    @classmethod
    def of(cls, result: Object, version: str) -> Self:
        """What stands in the result of `initialize` or `server/discover`; what is malformed is left out."""
        instructions, declared = result.get("instructions"), result.get("capabilities")
        in_sessions = tasks_in(declared) if version != versions.MODERN and isinstance(declared, dict) else {}
        return cls(
            version,
            offered(declared) | in_sessions,
            instructions[:MOST_INSTRUCTIONS] if isinstance(instructions, str) else "",
            _name_in(result),
        )


def _name_in(result: Object) -> str:
    """What a server calls itself; the modern era says it beside the result."""
    meta = result.get("_meta")
    info = result.get("serverInfo") or (meta.get(versions.SERVER_INFO_KEY) if isinstance(meta, dict) else None)
    said = [info.get("title"), info.get("name")] if isinstance(info, dict) else []
    return next((name[:LONGEST_NAME] for name in said if isinstance(name, str) and name.strip()), "")


class Target(NamedTuple):
    """A server, the connection and credential it is called with, and the trace of the request it is called for.

    `era` is the wire to call it in. `capabilities` and `client_info` are those of the client that the server is told.
    Sessions with a server are kept for `owner_id`, which without one is the connection, under `session_key`; `session`
    is the one that was there when the request came. Where the client `has_own_session`, that ends with the server's.
    """

    server_id: str
    server_name: str
    url: str
    era: str
    timeout_s: float
    max_concurrent: int
    connection_id: str
    credential: tuple[str, str] | None
    generation: str
    trace: Trace = NONE
    identity_id: str = ""
    capabilities: Mapping[str, object] = NOTHING
    owner_id: str = ""
    session_key: str = ""
    session: Session | None = None
    # From which level on log messages are wanted; empty when nobody said so.
    log_level: str = ""
    # `timeout_s` is how long it may be silent during a call, this how long a call may take in all.
    total_s: float = 600
    # Whether it may be at a private address, where such are allowed.
    private: bool = True
    client_info: Object = product.INFO
    has_own_session: bool = False
    person_id: str = ""  # Whose client calls: to their share large answers count.

    def headers(self) -> dict[str, str]:
        """What every request to this server carries; of the client's own headers only its trace context."""
        own = {"Content-Type": "application/json", "Accept": ACCEPT, "Accept-Encoding": "gzip, deflate"}
        own |= self.trace
        if self.credential is not None:
            own[self.credential[0]] = self.credential[1]
        return own


class RpcResponse(NamedTuple):
    """A server's answer: the message, the text it came in, the wire it came over, and its error when it is one.

    `status` is that of the HTTP response. Of a large result `document` is the outline alone, and
    `reader` the process that reads `text`, and `held` what it takes of the budget.
    """

    document: Object
    text: bytes
    era: str
    error: Object | None
    status: int = 200
    reader: ReaderProcess | None = None
    held: HeldBytes | None = None

    async def changed(self, server: str, request_id: Id | None, changes: Changes, person: str) -> bytes:
        """The text of this result with these changes, addressed to `request_id` of `person`. Raises TooLarge."""
        if self.reader is None:
            return answers.changed(self.text, self.document, request_id, changes)
        try:
            return await self.reader.changed(self.text, self.document["id"], request_id, changes, person)
        except Unreadable as error:
            raise TooLarge(server, str(error)) from None

    @property
    def whole(self) -> Object:
        """The whole message, which for a large one is read now."""
        return self.document if self.reader is None else jsonrpc.loads(self.text)

    @property
    def error_code(self) -> int | None:
        """The code of an error answer, 0 when it names none; None for a result."""
        if self.error is None:
            return None
        code = self.error.get("code")
        return code if type(code) is int and abs(code) < 1 << 31 else 0


def versions_in(error: Object | None) -> list[str]:
    """The versions that an error about an unsupported one lists; empty for any other error."""
    data = error.get("data") if error is not None and error.get("code") == jsonrpc.UNSUPPORTED_VERSION else None
    supported = data.get("supported") if isinstance(data, dict) else None
    return [version for version in supported if isinstance(version, str)] if isinstance(supported, list) else []


@dataclass(slots=True)
class StreamPlace:
    """How far a server's stream was read: the id of its last event, if it gave one, and what it says to wait."""

    last_event_id: str = ""
    retry_ms: int | None = None

    def note(self, reader: sse.Reader) -> None:
        """This stream was read until here."""
        if reader.event_id and fits_a_header(reader.event_id):
            self.last_event_id = reader.event_id
        if reader.retry_ms is not None:
            self.retry_ms = reader.retry_ms

    def pause(self, seconds: float) -> float:
        """What to wait before the stream is opened again: as the server says, else so many seconds."""
        said = seconds if self.retry_ms is None else self.retry_ms / 1000
        return min(max(said, LEAST_PAUSE), MOST_PAUSE)


class StreamBroke(Unreachable):
    """A stream ended before the answer that it was to carry, after an event with an id: it can be gone on with."""

    def __init__(self, server: str, detail: str, place: StreamPlace) -> None:
        super().__init__(server, detail)
        self.place = place


def next_request_id() -> int:
    """An id for a request of ours."""
    return next(_ids)


async def read_response(
    response: HttpResponse, target: Target, request_id: int, era: str, on_notification: OnNotification
) -> RpcResponse:
    """The answer to request `request_id`; every other message of its stream goes to `on_notification`.

    Raises BadAnswer, AccessRefused, TooLarge or Unreachable.
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
    """Raises what a status alone says."""
    status = response.status
    if status in (401, 403):
        raise AccessRefused(target.server_name, status, response.header("www-authenticate"))
    if 300 <= status < 400 and (location := response.header("location")):
        raise Redirected(target.server_name, status, location)


async def _read_stream(
    response: HttpResponse, target: Target, request_id: int, era: str, on_notification: OnNotification
) -> RpcResponse:
    reader, detail = sse.Reader(response.limit), "the stream ended before the answer"
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
    response: HttpResponse, reader: sse.Reader, target: Target, request_id: int, on_notification: OnNotification
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
    """Give each message of a server's standing stream to `on_message` until it ends; `place` then says how far it went.

    Raises an UpstreamError.
    """
    reader = sse.Reader(response.limit)
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
    """For requests whose notifications say nothing of interest."""


async def refuse(message: Object, answer: Answer) -> None:
    """Answer a server's request as who announced no capability: a ping with nothing, any other with an error."""
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
    """Return the outline of a large result and the process that made it; of any other message the whole and None."""
    try:
        outlined = await response.reader.outline(text, target.person_id)
    except Unreadable as error:
        raise TooLarge(target.server_name, str(error)) from None
    except ValueError:
        raise BadAnswer(target.server_name, f"HTTP {status}: not JSON", status=status) from None
    if outlined is None:
        return await _parse_alone(response, text, target, status), None
    return _checked(outlined, target, status), response.reader


async def _parse_alone(response: HttpResponse, text: bytes, target: Target, status: int) -> Object:
    """A large message, one at a time; to count its values and to read them are two pieces of work."""
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
    """An error that names no id, as servers answer what they refuse before reading it."""
    return status >= 400 and document.get("id") is None and isinstance(document.get("error"), dict)
