"""What both wires share: whom to call, the ids we mint, and how an answer is read."""

import itertools
import random
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from wire import jsonrpc, sse
from wire.bodies import has_more_values
from wire.errors import AccessRefused, BadAnswer, Flooded, TooLarge, Unreachable
from wire.jsonrpc import Object
from wire.pool import HttpResponse
from wire.trace_context import NONE, Trace

ACCEPT = "application/json, text/event-stream"

SESSION, MODERN = "session", "modern"

# Reading JSON cannot be interrupted: so many values take a tenth of a second, and a message of `LARGE` bytes has fewer.
MOST_VALUES = 500_000
LARGE = 1 << 20

# Ids are ours alone: a client's id never reaches a server. They start somewhere
# and have ten digits, so that one is hardly ever found elsewhere in an answer.
_ids = itertools.count(random.randrange(1_000_000_000, 2_000_000_000))  # noqa: S311 - an id, no secret

type OnNotification = Callable[[Object], Awaitable[None]]


class Target(NamedTuple):
    """A server, the connection and credential it is called with, and the trace of the request it is called for."""

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

    def headers(self) -> dict[str, str]:
        """What every request to this server carries; of the client's own headers only its trace context."""
        own = {"Content-Type": "application/json", "Accept": ACCEPT, "Accept-Encoding": "gzip, deflate"}
        own |= self.trace
        if self.credential is not None:
            own[self.credential[0]] = self.credential[1]
        return own


class RpcResponse(NamedTuple):
    """A server's answer: the message, the text it came in, the wire it came over, and its error when it is one."""

    document: Object
    text: bytes
    era: str
    error: Object | None

    @property
    def error_code(self) -> int | None:
        """The code of an error answer, 0 when it names none; None for a result."""
        if self.error is None:
            return None
        code = self.error.get("code")
        return code if type(code) is int and abs(code) < 1 << 31 else 0


class WrongEra(Exception):
    """The server does not speak this wire; the request was not processed."""


def next_request_id() -> int:
    """An id for a request of ours."""
    return next(_ids)


async def answer_of(reply: HttpResponse, target: Target, minted: int, era: str, hear: OnNotification) -> RpcResponse:
    """The answer to request `minted`; everything else on its stream goes to `hear`.

    Raises BadAnswer, AccessRefused, TooLarge or Unreachable.
    """
    if reply.status in (401, 403):
        raise AccessRefused(target.server_name, f"HTTP {reply.status}")
    if reply.status == 200 and reply.kind == "text/event-stream":
        return await _from_stream(reply, target, minted, era, hear)
    text = await reply.read()
    if len(text) > LARGE:
        await reply.give_way()
    document = _document(text, target, f"HTTP {reply.status}")
    if not _answers(document, minted) and not _is_refusal(document, reply.status):
        raise BadAnswer(target.server_name, f"HTTP {reply.status} without an answer")
    return _answer(document, text, era)


async def _from_stream(reply: HttpResponse, target: Target, minted: int, era: str, hear: OnNotification) -> RpcResponse:
    reader = sse.Reader(reply.limit)
    try:
        async for chunk in reply.chunks():
            for event in reader.feed(chunk):
                if event.name != "message" or not event.data:
                    continue
                document = _document(event.data, target, "event stream")
                if _answers(document, minted):
                    return _answer(document, event.data, era)
                if "method" in document:
                    await hear(document)
                await reply.give_way()
    except sse.EventTooLarge:
        raise TooLarge(target.server_name) from None
    except sse.TooManyEvents as error:
        raise Flooded(target.server_name, str(error)) from None
    raise Unreachable(target.server_name, "the stream ended before the answer")


def _answer(document: Object, text: bytes, era: str) -> RpcResponse:
    error = document.get("error")
    return RpcResponse(document, text, era, error if isinstance(error, dict) else None)


def _document(text: bytes, target: Target, where: str) -> Object:
    if len(text) > LARGE and has_more_values(text, MOST_VALUES):
        raise TooLarge(target.server_name, f"more than {MOST_VALUES:,} JSON values")
    try:
        document = jsonrpc.loads(text)
    except ValueError:
        raise BadAnswer(target.server_name, f"{where}: not JSON") from None
    if not isinstance(document, dict) or document.get("jsonrpc") != "2.0":
        raise BadAnswer(target.server_name, f"{where}: not JSON-RPC")
    return document


def _answers(document: Object, minted: int) -> bool:
    known = document.get("id")
    has_one = isinstance(document.get("result"), dict) or isinstance(document.get("error"), dict)
    return type(known) is int and known == minted and has_one


def _is_refusal(document: Object, status: int) -> bool:
    """An error that names no id, as servers answer what they refuse before reading it."""
    return status >= 400 and document.get("id") is None and isinstance(document.get("error"), dict)
