"""HTTP/1.1 client for upstream servers. It checks addresses, keeps connections open, and parses with llhttp.

A general HTTP client takes four times the processor time per call, and has features that a gateway must disable: shared
cookies, redirects, proxies from the environment, and a connection limit that one hanging server can exhaust.
"""

from __future__ import annotations

import asyncio
import errno
import re
import select
import socket
import ssl
import time
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, cast
from urllib.parse import quote, urlsplit

import httptools

from wire import versions
from wire.background import Background, every
from wire.errors import (
    CONNECT_SECONDS,
    AddressBlocked,
    AddressInside,
    AnswerTooSlow,
    BadAnswer,
    BadUrl,
    CertificateRefused,
    ConnectTimedOut,
    Loop,
    NameNotFound,
    NoMemory,
    NoRoute,
    NotConnected,
    NotTls,
    NoWayOut,
    SecretRefused,
    TlsFailed,
    TooLarge,
    Unreachable,
    UpstreamError,
)
from wire.fair_queue import LEAST_PACE, ByteBudget, HeldBytes, QueueFull, Slices, without_idle_limits
from wire.forward_proxy import END, LARGEST_HEAD, OutboundProxy, ProxyFailed
from wire.guard import BUILT_IN, FOLDER, SECRET_HEADER, AddressRefused, Guard, LeadsBack, LeadsInside, tls
from wire.hosts import Resolver
from wire.jsonrpc import LARGE
from wire.reader_process import ReaderProcess
from wire.runner import Runner

HEAD_LIMIT = 1 << 16
AHEAD_LIMIT = 1 << 18
SLICE = 1 << 14
SLICE_SECONDS = 0.001
# Shorter than the five seconds after which uvicorn and Node.js close idle connections. A call that is sent while the
# server closes the connection fails, because it cannot be sent again.
IDLE_SECONDS = 4.0

# An event stream may be twice as large as an answer: the notifications before the answer may be as large as the answer.
STREAM_SHARE = 2

# How many bytes may arrive per byte of the body's limit. This bounds the framing overhead of tiny chunks.
WIRE_SHARE = 2


class ConnectionBroken(Exception):
    """The connection ended before the answer was complete, or the answer is not HTTP."""


class Oversized(Exception):
    """The answer is larger than a limit; the message names the limit."""


class WithoutRoom(Exception):
    """A large answer got no room in the memory budget: it waited too long, or too many answers were waiting."""


class Slow(Exception):
    """A large answer arrived too slowly, while another answer was waiting for the memory that the slow one used."""


def more_than(limit: int) -> str:
    """Return the error text for a limit in bytes."""
    return f"more than {limit / (1 << 20):g} MiB"


# Bounded decompression of a body: pass bytes to `feed` as they arrive, and use the pieces it yields.

PIECE = 64 * 1024

# How many compressed bytes may arrive per byte of the limit: compression makes some data slightly larger.
_PACKED_SHARE = 2

_PACKED = frozenset({b"gzip", b"x-gzip", b"deflate"})


class BodyTooLarge(Exception):
    """The body is larger than its limit."""


class BodyBroken(Exception):
    """The body has an unexpected encoding, or cannot be decompressed."""


class BodyReader:
    """Reads one body of at most `limit` decompressed bytes (inclusive).

    `encoding` is the Content-Encoding header. Raises BodyBroken for an encoding other than gzip, deflate and identity.
    """

    __slots__ = ("_arrived", "_kind", "_limit", "_unpacker", "is_packed", "size")

    def __init__(self, limit: int, encoding: bytes = b"") -> None:
        kind = encoding.strip().lower()
        self.is_packed = kind in _PACKED
        if not self.is_packed and kind not in {b"", b"identity"}:
            raise BodyBroken("an encoding that was not requested")
        self._kind = kind
        self._unpacker: zlib._Decompress | None = None
        self._limit = limit
        self._arrived = 0
        self.size = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the decoded data; if it was compressed, yield it in pieces of at most PIECE bytes.

        Never decompresses more than one piece beyond the limit. Raises BodyTooLarge or BodyBroken.
        """
        if not data:
            return
        self._arrived += len(data)
        if self._arrived > _PACKED_SHARE * self._limit + PIECE:
            raise BodyTooLarge
        for piece in self._unpacked(data) if self.is_packed else (data,):
            self.size += len(piece)
            if self.size > self._limit:
                raise BodyTooLarge
            yield piece

    def _unpacked(self, data: bytes) -> Iterator[bytes]:
        unpacker = self._unpacker
        if unpacker is None:
            # Many servers leave out the zlib wrapping of RFC 9110 section 8.4.1.2.
            bare = self._kind == b"deflate" and data[0] & 0x0F != zlib.DEFLATED
            unpacker = zlib.decompressobj(wbits=-zlib.MAX_WBITS if bare else zlib.MAX_WBITS | 32)
            self._unpacker = unpacker
        # After a full piece the decompressor may have more output, even if it has consumed all data.
        # PIECE is never 0, which zlib would take as unlimited.
        full = True
        while full and not unpacker.eof:
            try:
                piece = unpacker.decompress(data, PIECE)
            except zlib.error:
                raise BodyBroken("a broken encoding") from None
            data = unpacker.unconsumed_tail
            full = len(piece) == PIECE
            if piece:
                yield piece


# Header cache: on a kept-alive connection, a header block identical to the last one except for the digits of its
# Content-Length is not parsed again. Parsing takes as long as deciding about a call.

# A header name follows the line break directly; folded lines begin with a blank and do not match.
_lengths = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})(?=\r\n)", re.IGNORECASE).finditer
_HEAD_END = b"\r\n\r\n"
_LONGEST_KEPT_HEAD = 8 * 1024  # Longer header blocks are not cached: idle connections keep them in memory.
_MOST_DIGITS = 9


class HeaderCache[Read]:
    """A parsed header block, reused for messages that differ only in Content-Length and body.

    Stores the bytes before the digits of Content-Length, the bytes after these digits, and the result of parsing. The
    result is in the attribute `read`.
    """

    __slots__ = ("_after", "_before", "read")

    def __init__(self, before: bytes, after: bytes, read: Read) -> None:
        self._before = before
        self._after = after
        self.read = read

    def body(self, data: bytes) -> bytes | None:
        """Return the body if `data` is one complete message with this header block, otherwise None."""
        if not data.startswith(self._before):
            return None
        start = len(self._before)
        end = data.find(self._after, start, start + _MOST_DIGITS + len(self._after))
        if end < 0:
            return None
        body = data[end + len(self._after) :]
        return body if data[start:end] == b"%d" % len(body) else None


def header_cache[Read](data: bytes, body: bytes, read: Read) -> HeaderCache[Read] | None:
    """Return a cache for the header block of `data`; None if it cannot be cached.

    `data` can be cached only if it is one complete message with this body, a short header block and exactly one
    Content-Length.
    """
    end = data.find(_HEAD_END, 0, _LONGEST_KEPT_HEAD) + len(_HEAD_END)
    lengths = list(_lengths(data, 0, end))
    if len(lengths) != 1 or len(data) != end + len(body) or lengths[0][1] != b"%d" % len(body):
        return None
    start, after = lengths[0].span(1)
    return HeaderCache(data[:start], data[after:end], read)


class HttpConnection(asyncio.Protocol):
    """A connection that carries one exchange at a time.

    An event stream is passed on piece by piece, any other answer when it is complete. If an answer or event stream is
    large, the rest of it is read when `budget` has room for it.
    """

    # Slots save memory: with more than thirty attributes, objects do not share the keys of their dicts.
    __slots__ = (
        "_arrived",
        "_arrived_size",
        "_body",
        "_budget",
        "_failure",
        "_framing_size",
        "_head_size",
        "_header_cache",
        "_idle_since",
        "_keep",
        "_limit",
        "_lost",
        "_parsed",
        "_parser",
        "_parts",
        "_paused",
        "_person",
        "_poll",
        "_raw",
        "_server",
        "_slice_ends",
        "_slices",
        "_trailer_size",
        "_transport",
        "_waited",
        "_waiter",
        "_window_size",
        "_wire_limit",
        "_wire_size",
        "complete",
        "headers",
        "held",
        "status",
        "streams",
    )

    def __init__(
        self, sock: socket.socket, limit: int, slices: Slices, budget: ByteBudget | None = None, server: str = ""
    ) -> None:
        # Polled to detect that the server has closed the idle connection or sent unexpected data.
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._limit = limit
        self._slices = slices
        self._budget = budget
        self._server = server
        self._person = ""
        self.held: HeldBytes | None = None  # Share of the memory budget, for large answers.
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._header_cache: HeaderCache[dict[bytes, bytes]] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._lost: Exception | Literal[False] | None = False
        self._arrived: deque[bytes] = deque()
        self._arrived_size = self._parsed = 0
        self._raw: list[bytes] = []
        self._parts: list[bytes] = []
        self._body: BodyReader | None = None
        self._wire_size = self._wire_limit = self._head_size = self._framing_size = self._trailer_size = 0
        self._slice_ends = 0.0
        # For a large answer: seconds waited since its pace was last checked, and its size at that check.
        self._waited, self._window_size = 0.0, 0
        self._idle_since = 0.0
        self._keep = True
        self._paused = False
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.streams = False
        self.complete = True

    # The caller's side

    async def exchange(self, request: bytes, written: Callable[[], object] = bool, person: str = "") -> None:
        """Send a request and wait for the complete answer, or for the headers of an event stream.

        Calls `written` when the request was written. A large answer counts against the budget of `person`. Raises
        ConnectionBroken, Oversized, WithoutRoom or Slow.
        """
        if self._transport is None:
            raise ConnectionBroken("closed")
        self._parser = self._body = self._failure = None
        self._person = person
        self._parts, self._raw = [], []
        self._wire_size = self._head_size = self._framing_size = self._trailer_size = 0
        self.headers, self.status = {}, 0
        self.streams = self.complete = False
        self._transport.write(request)
        written()
        await self._wait()
        if self.complete:
            return
        first = self._arrived[0] if self._arrived else b""
        while self._body is None:
            await self._advance()
        if not self.streams:
            async for piece in self.chunks():
                self._parts.append(piece)
                if self._body.size > LARGE:
                    await self.reserve()
            self._header_cache = self._cache_headers(first)

    async def body(self) -> bytes:
        """Return the body of a complete answer."""
        if len(self._parts) != 1:
            is_large = self._body is not None and self._body.size > LARGE
            # Join a large body in a thread, so that copying does not block the event loop.
            self._parts = [await asyncio.to_thread(b"".join, self._parts) if is_large else b"".join(self._parts)]
        return self._parts[0]

    async def reserve(self) -> None:
        """Wait until the budget has room for this large answer. Nothing is read meanwhile.

        Raises WithoutRoom when too many answers wait, or this wait takes too long.
        """
        if self.held is not None or self._budget is None:
            return
        try:
            with without_idle_limits():
                self.held = await self._budget.hold(self._person, self._expected, self._server)
        except (QueueFull, TimeoutError):
            raise self._fail(WithoutRoom("more large answers than there is memory for")) from None
        self._waited, self._window_size = 0.0, self._wire_size

    @property
    def _expected(self) -> int:
        """Upper bound of the body's size in bytes."""
        announced = self.headers.get(b"content-length", b"")
        is_plain = announced.isdigit() and self._body is not None and not self._body.is_packed
        return min(int(announced), self._limit) if is_plain else self._limit

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the decoded body as it arrives. Raises ConnectionBroken, Oversized or Slow."""
        body = self._body
        assert body is not None
        while True:
            raw, self._raw = self._raw, []
            try:
                for piece in body.feed(raw[0] if len(raw) == 1 else b"".join(raw)):
                    yield piece
                    await self.give_way()
            except BodyTooLarge:
                raise self._fail(Oversized(more_than(self._limit))) from None
            except BodyBroken as error:
                raise self._fail(ConnectionBroken(str(error))) from None
            if self.complete:
                return
            await self._advance()

    def alone(self) -> AbstractAsyncContextManager[None]:
        """Return a context for parsing this answer as a whole. Only one such context is active at a time."""
        return self._slices.alone()

    async def give_way(self) -> None:
        """Let other calls run if this answer has used up its time slice."""
        if time.perf_counter() > self._slice_ends:
            await self._slices.wait()
            self._slice_ends = time.perf_counter() + SLICE_SECONDS

    def may_be_kept(self) -> bool:
        """Return whether the connection can be reused for another exchange."""
        return (
            self.complete and self._keep and not self._arrived and self._failure is None and self._transport is not None
        )

    def mark_idle(self) -> None:
        """Mark the connection as idle, and release the last answer and its memory reservation."""
        self._idle_since = time.monotonic()
        self._parts = []
        self.held = None

    def is_usable(self) -> bool:
        """Return whether the idle connection is open at both ends, and was last used less than IDLE_SECONDS ago."""
        if self._transport is None or self._transport.is_closing():
            return False
        return time.monotonic() - self._idle_since < IDLE_SECONDS and not self._poll.poll(0)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def discard(self) -> None:
        """Close the connection and drop all data.

        The parser and the stored error are dropped, too. Both refer to this object, and would delay its garbage
        collection.
        """
        self.close()
        self._parser = self._body = self._failure = self.held = None
        self._parts, self._raw = [], []
        self._arrived.clear()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        self._slice_ends = time.perf_counter() + SLICE_SECONDS

    async def _wait_for_large(self, budget: ByteBudget) -> None:
        """Wait for more of a large answer.

        Raises Slow if this answer arrives slowly while another answer needs the memory reserved for this answer.
        """
        began = time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(budget.pace_seconds - self._waited):
                await self._wait()
        self._waited += time.monotonic() - began  # Only the time in which the gateway waits for the server counts.
        if self._waited < budget.pace_seconds:
            return
        arrived = self._wire_size + self._arrived_size
        is_slow = arrived - self._window_size < LEAST_PACE * self._waited
        if is_slow and self.held is not None and budget.is_short_of(self.held):
            raise self._fail(Slow("a large answer arrived too slowly"))
        self._waited, self._window_size = 0.0, arrived

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, failure: Exception) -> Exception:
        self._failure = self._failure or failure
        self.close()
        self._wake()
        return self._failure

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods of asyncio.Transport, but are no instances of it.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.complete:
            # Unsolicited data must not be read as the answer to the next request.
            self.close()
            return
        if self._parser is None and not self._arrived and self._take_with_cached_headers(data):
            return
        self._arrived.append(data)
        self._arrived_size += len(data)
        if self._arrived_size >= AHEAD_LIMIT and self._transport is not None and not self._paused:
            # Stop reading for now: the server sends faster than the data is parsed.
            self._transport.pause_reading()
            self._paused = True
        self._wake()

    def _take_with_cached_headers(self, data: bytes) -> bool:
        """If `data` is a whole answer with the cached header block, take it without parsing and return True."""
        if self._header_cache is None or len(data) > SLICE or (body := self._header_cache.body(data)) is None:
            return False
        if len(body) > self._limit:
            return False
        self.status, self._parts = 200, [body]
        self.headers = {**self._header_cache.read, b"content-length": b"%d" % len(body)}
        self.complete = True
        self._wake()
        return True

    def _cache_headers(self, data: bytes) -> HeaderCache[dict[bytes, bytes]] | None:
        """Return a header cache made from this answer, for later ones of the connection; None if it is not suitable."""
        # Suitable: status 200, small, not compressed, received in one piece, and the connection stays open.
        if self.status != 200 or len(data) > SLICE or not self.may_be_kept():
            return None
        assert self._body is not None
        return None if self._body.is_packed else header_cache(data, b"".join(self._parts), self.headers)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._lost = error
        self._wake()

    # Parsing received data, slice by slice, in the task that waits for the answer. Other calls run between the slices.

    async def _advance(self) -> None:
        """Parse a slice of the received data, or wait for more data. Raises the error of the answer, if any."""
        if self._arrived:
            self._parse()
            await self.give_way()
        elif self._lost is False:
            if self._budget is None or self.held is None:
                await self._wait()
            else:
                await self._wait_for_large(self._budget)
        else:
            self._end_or_fail(self._lost)
        if self._failure is not None:
            raise self._failure

    def _parse(self) -> None:
        data = self._slice()
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._fail(cause if isinstance(cause, ConnectionBroken | Oversized) else ConnectionBroken("not HTTP"))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(ConnectionBroken("not HTTP"))
        else:
            self._bound(len(data))
            if self.complete and self._arrived:
                self._fail(ConnectionBroken("an unexpected answer"))

    def _slice(self) -> bytes | memoryview:
        """Return the next slice of the received data. While headers are incomplete, slices stay within HEAD_LIMIT."""
        room = SLICE if self.status else min(SLICE, HEAD_LIMIT - self._head_size)
        first, start = self._arrived[0], self._parsed
        if start == 0 and len(first) <= room:
            data: bytes | memoryview = first
        else:
            data = memoryview(first)[start : start + room]
        self._parsed += len(data)
        self._arrived_size -= len(data)
        if self.status == 0:
            self._head_size += len(data)
        if self._parsed == len(first):
            self._arrived.popleft()
            self._parsed = 0
        if self._paused and self._arrived_size < AHEAD_LIMIT and self._transport is not None:
            self._transport.resume_reading()
            self._paused = False
        return data

    def _bound(self, size: int) -> None:
        """Count `size` received bytes, and fail if headers, framing or the whole answer are too large."""
        if self.status == 0:
            if self._head_size >= HEAD_LIMIT:
                self._fail(Oversized("headers without end"))
            return
        self._wire_size += size
        # Framing: interim answers, chunk extensions and trailers. Content resets the count.
        self._framing_size = 0 if self._raw else self._framing_size + size
        if self._framing_size > 2 * HEAD_LIMIT or self._wire_size > self._wire_limit:
            self._fail(Oversized(more_than(self._limit)))

    def _end_or_fail(self, error: Exception | None) -> None:
        framed = b"content-length" in self.headers or b"transfer-encoding" in self.headers
        if error is None and self.status and not framed:
            # A body without a length ends when the connection is closed (RFC 9112 section 6.3).
            self._keep = False
            self.complete = True
        else:
            self._fail(ConnectionBroken("the connection was closed"))

    # The parser's side

    def on_message_begin(self) -> None:
        if self.complete:
            raise ConnectionBroken("an unexpected answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.status:
            # This is a trailer. The size of the header block is counted elsewhere, as it arrives.
            self._trailer_size += len(name) + len(value)
            if self._trailer_size > HEAD_LIMIT:
                raise Oversized("headers without end")
            return
        lower = name.lower()
        if lower in self.headers and lower == b"www-authenticate":
            value = self.headers[lower] + b", " + value  # Each header may be a separate challenge.
        self.headers[lower] = value

    def on_headers_complete(self) -> None:
        parser = self._parser
        if parser is None or parser.get_status_code() < 200:
            return
        self.status = parser.get_status_code()
        self._keep = parser.should_keep_alive()
        kind = self.headers.get(b"content-type", b"")
        self.streams = self.status == 200 and kind[:17].lower() == b"text/event-stream"
        limit = STREAM_SHARE * self._limit if self.streams else self._limit
        self._wire_limit = WIRE_SHARE * limit + 2 * HEAD_LIMIT
        try:
            self._body = BodyReader(limit, self.headers.get(b"content-encoding", b""))
        except BodyBroken as error:
            raise ConnectionBroken(str(error)) from None

    def on_body(self, data: bytes) -> None:
        self._raw.append(data)

    def on_message_complete(self) -> None:
        if self.status == 0:
            # This was an interim answer (1xx); the final answer follows.
            self.headers = {}
            return
        self.complete = True


# The pool of connections, and the answers read from the connections.

PROXY_SECONDS = 4.0  # Less than CONNECT_SECONDS, to distinguish a silent proxy from a silent server.
MOST_IDLE = 64
MOST_URLS = 10_000

# Characters not to quote in a path or query (RFC 3986), including % so that URLs are not encoded twice.
SAFE = "/?:@!$&'()*+,;=-._~%"


class Origin(NamedTuple):
    """Key of the connection pool. Requests to the same origin share connections."""

    scheme: str
    host: str
    port: int
    private: bool = True  # Whether the server may have a private address.
    # Whether it is a built-in server or the runner: its address is called directly and without a check.
    trusted: bool = False


class ParsedUrl(NamedTuple):
    """A parsed URL: its origin, and the first lines of each request to the URL, without the verb."""

    origin: Origin
    head: str  # The request head that follows the verb: path, version, Host.
    # Set if the URL is that of one of the runner's programs. Requests to it carry the runner's secret and the person's
    # e-mail address.
    runner: Runner | None = None


class HttpResponse:
    """An answer whose headers were received. Use it in a `with` block; its end releases the connection."""

    __slots__ = ("_connection", "_origin", "_server", "_transport", "limit", "status", "streams")

    def __init__(self, transport: Transport, origin: Origin, connection: HttpConnection, server: str) -> None:
        self._transport = transport
        self._origin = origin
        self._connection = connection
        self._server = server
        self.limit = transport.limit
        self.status = connection.status
        self.streams = connection.streams  # Whether it is an event stream.

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._transport.release(self._origin, self._connection)

    @property
    def media_type(self) -> str:
        """The media type, in lower case and without parameters."""
        return self.header("content-type").partition(";")[0].strip().lower()

    def header(self, name: str) -> str:
        """Return a header by its lower-case name; empty if missing."""
        return self._connection.headers.get(name.encode(), b"").decode("latin-1")

    async def read(self) -> bytes:
        """Return the whole body. Reading an event stream can raise TooLarge, AnswerTooSlow, NoMemory or Unreachable."""
        if not self.streams:
            return await self._connection.body()
        size, parts = 0, []
        async for chunk in self.chunks():
            size += len(chunk)
            if size > self.limit:
                raise TooLarge(self._server, more_than(self.limit))
            parts.append(chunk)
            await self.note_kept(size)
        return b"".join(parts)

    def held(self, size: int) -> HeldBytes | None:
        """Resize this answer's memory reservation to `size`, the number of bytes read, and return the reservation.

        Return None for a small answer, which has no reservation.
        """
        if (held := self._connection.held) is not None:
            held.resize(size)
        return held

    async def give_way(self) -> None:
        """Let other calls run if this answer has used up its time slice."""
        await self._connection.give_way()

    async def note_kept(self, size: int) -> None:
        """Report that `size` bytes of a stream are in memory.

        If `size` is at most LARGE, release the answer's reservation. Otherwise, wait until the budget has room for the
        answer. Raises NoMemory if too many answers wait, or the wait takes too long.
        """
        if size <= LARGE:
            self._connection.held = None
            return
        try:
            await self._connection.reserve()
        except WithoutRoom as error:
            raise NoMemory(self._server, str(error)) from error

    @property
    def reader(self) -> ReaderProcess:
        """The process that reads large answers."""
        return self._transport.reader

    def alone(self) -> AbstractAsyncContextManager[None]:
        """Return a context for parsing a large message. No other large message is parsed meanwhile."""
        return self._connection.alone()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body of an event stream as it arrives. Raises TooLarge, AnswerTooSlow or Unreachable."""
        try:
            async for chunk in self._connection.chunks():
                yield chunk
        except (ConnectionBroken, Oversized, Slow) as error:
            raise _upstream_error(error)(self._server, str(error)) from error


# The upstream error for each class of exceptions; the first matching class counts.
FAILURES: tuple[tuple[type[Exception], type[UpstreamError]], ...] = (
    (LeadsBack, Loop),
    (LeadsInside, AddressInside),
    (ProxyFailed, NoWayOut),
    (AddressRefused, AddressBlocked),
    (Oversized, TooLarge),
    (WithoutRoom, NoMemory),
    (Slow, AnswerTooSlow),
    (ConnectionBroken, Unreachable),
    (TimeoutError, ConnectTimedOut),
    (socket.gaierror, NameNotFound),
    (ssl.SSLCertVerificationError, CertificateRefused),
    (ssl.SSLError, TlsFailed),
    (OSError, NotConnected),
)

# Reasons OpenSSL gives when the server answers in plain text.
NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"})
NO_ROUTE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL})


def _upstream_error(error: Exception) -> type[UpstreamError]:
    kind = next(kind for failure, kind in FAILURES if isinstance(error, failure))
    if kind is TlsFailed and getattr(error, "reason", "") in NO_TLS:
        return NotTls
    return NoRoute if kind is NotConnected and getattr(error, "errno", None) in NO_ROUTE else kind


class Transport:
    """Connections to upstream servers, including the built-in servers of this process."""

    def __init__(
        self, guard: Guard, *, limit: int, listener: str = "", secret: str = "", budget: ByteBudget | None = None
    ) -> None:
        self._budget = budget
        self._guards = {True: guard, False: guard.outside()}  # Key: whether a private address may be called.
        self._guard = guard
        self._listener = listener
        self._secret = secret
        self._idle: dict[Origin, deque[HttpConnection]] = {}
        self._parsed_urls: dict[bool, dict[str, ParsedUrl]] = {True: {}, False: {}}
        self._tls = tls()
        self._resolver = Resolver()
        self._slices = Slices()
        self._background = Background()
        self.reader = ReaderProcess()
        self.limit = limit

    async def __aenter__(self) -> Self:
        self._background.forever("idle upstream connections", self._close_idle, every(IDLE_SECONDS / 3))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._background.stop()
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()
        self._resolver.close()
        self.reader.close()

    @property
    def idle(self) -> int:
        """Number of idle connections in the pool."""
        return sum(map(len, self._idle.values()))

    async def send(  # noqa: PLR0913 - of one request
        self,
        verb: str,
        server: str,  # For error messages.
        url: str,
        headers: Mapping[str, str],
        body: bytes = b"",
        *,
        private: bool = True,  # If False, only public addresses are called, even if private ranges are allowed.
        written: Callable[[], object] = bool,  # Called when the request was written.
        person: str = "",  # A large answer counts against the budget of this person.
        user: str = "",  # An e-mail address. Only programs of the runner get it.
    ) -> HttpResponse:
        """Send one request to `url`, and return the response. Callers must use the response in a `with` block.

        Raises an UpstreamError, which is BadAnswer if a header cannot be sent.
        """
        parsed = self._parsed_urls[private].get(url) or self._parse_url(server, url, private)
        if parsed.runner is not None:
            headers = {**headers, **parsed.runner.headers(user)}
        lines = "".join(map("%s: %s\r\n".__mod__, headers.items()))
        head = f"{verb} {parsed.head}{lines}Content-Length: {len(body)}\r\n\r\n"
        # A header value with a line break would begin another header, or another request.
        count = parsed.head.count("\n") + len(headers) + 2
        if not (head.isascii() and head.count("\r") == head.count("\n") == count and "\0" not in head):
            raise BadAnswer(server, "a header that cannot be sent")
        try:
            connection = self._idle_connection(parsed.origin) or await self._connect_in_time(parsed.origin)
            try:
                await connection.exchange(head.encode() + body, written, person)
            except BaseException:  # Closing the connection also tells the server to stop.
                connection.discard()
                raise
        except tuple(failure for failure, _ in FAILURES) as error:
            raise _upstream_error(error)(server, getattr(error, "verify_message", "") or str(error)) from error
        response = HttpResponse(self, parsed.origin, connection, server)
        if parsed.runner is not None and response.status == 401:
            connection.discard()
            raise SecretRefused(server, "HTTP 401 of the runner")
        return response

    def _idle_connection(self, origin: Origin) -> HttpConnection | None:
        """Take a usable idle connection from the pool; return None if there is none."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if connection.is_usable():
                return connection
            connection.close()
        return None

    async def _connect_in_time(self, origin: Origin) -> HttpConnection:
        """Open a connection within CONNECT_SECONDS. Raises AddressRefused or OSError."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await self._connect(origin)
        except TimeoutError:
            raise TimeoutError(f"no connection within {CONNECT_SECONDS:g} seconds") from None

    def release(self, origin: Origin, connection: HttpConnection) -> None:
        """Return the connection to the pool if it can be reused, otherwise close it."""
        idle = self._idle.setdefault(origin, deque())
        if connection.may_be_kept() and len(idle) < MOST_IDLE:
            connection.mark_idle()
            idle.append(connection)
        else:
            connection.discard()

    async def _close_idle(self) -> None:
        """Close idle connections that can no longer be used.

        For each origin, start at the oldest connection, and stop at the first that can still be used.
        """
        for origin, idle in [*self._idle.items()]:
            while idle and not idle[0].is_usable():
                idle.popleft().close()
            if not idle:
                del self._idle[origin]

    async def _connect(self, origin: Origin) -> HttpConnection:
        guard = self._guards[origin.private]
        if origin.scheme == "https" and not origin.trusted and (proxy := guard.way_by_name(origin.host)):
            return await self._open_through(proxy, origin, origin.host, PROXY_SECONDS)
        found = await self._resolver.find(origin.host, origin.port)
        failure: OSError = socket.gaierror("the name has no address")
        for family, kind, protocol, _, sockaddr in found:
            try:
                address, proxy = str(sockaddr[0]), None
                if not origin.trusted:
                    guard.check(address, origin.port, encrypted=origin.scheme == "https")
                    proxy = guard.way(origin.host, address)
                async with asyncio.timeout(CONNECT_SECONDS / len(found)):
                    if proxy is not None:
                        return await self._open_through(proxy, origin, address, PROXY_SECONDS / len(found))
                    return await self._open(origin, socket.socket(family, kind, protocol), sockaddr)
            except OSError as error:
                failure = error
        raise failure

    async def _open_through(self, proxy: OutboundProxy, origin: Origin, target: str, seconds: float) -> HttpConnection:
        """Open a TLS connection through the proxy. Raises OSError."""
        sock, transport = await open_tunnel(proxy, self._resolver, target, origin.port, seconds)
        connection = self._connection(sock, origin)
        await secured(transport, connection, self._tls, origin.host)
        return connection

    def _connection(self, sock: socket.socket, origin: Origin) -> HttpConnection:
        return HttpConnection(sock, self.limit, self._slices, self._budget, f"{origin.host}:{origin.port}")

    async def _open(self, origin: Origin, sock: socket.socket, sockaddr: tuple[Any, ...]) -> HttpConnection:
        loop = asyncio.get_running_loop()
        tls = self._tls if origin.scheme == "https" else None
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, sockaddr)
            _, connection = await loop.create_connection(
                lambda: self._connection(sock, origin),
                sock=sock,
                ssl=tls,
                server_hostname=origin.host if tls else None,
            )
        except BaseException:
            sock.close()
            raise
        return connection

    def _parse_url(self, server: str, url: str, private: bool) -> ParsedUrl:
        own = url.startswith(BUILT_IN)
        parts = urlsplit(self._listener + FOLDER + url.removeprefix(BUILT_IN) if own else url)
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            port = 0
        if parts.scheme not in {"http", "https"} or not parts.hostname or not port:
            raise BadUrl(server, "the URL has no valid scheme, host or port")
        if not own and self._guard.own.has(url):
            raise Loop(server, "the URL is one of this gateway's own")
        path = quote(parts.path or "/", safe=SAFE) + (f"?{quote(parts.query, safe=SAFE)}" if parts.query else "")
        runner = self._guard.runner if self._guard.program_at(url) else None
        secret = f"{SECRET_HEADER}: {self._secret}\r\n" if own else ""
        host = parts.netloc.rpartition("@")[2]
        head = f"{path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {versions.NAME}\r\n{secret}"
        known = self._parsed_urls[private]
        if len(known) >= MOST_URLS:
            known.clear()
        origin = Origin(parts.scheme, parts.hostname, port, private, trusted=own or runner is not None)
        parsed = ParsedUrl(origin, head, runner)
        known[url] = parsed
        return parsed


# Connections through the outbound proxy for MCP calls: a CONNECT tunnel, and TLS inside it.


class _Answer(asyncio.Protocol):
    """Collects the proxy's answer to CONNECT, up to the end of the headers or of the connection."""

    def __init__(self) -> None:
        self.head: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._data = b""

    def data_received(self, data: bytes) -> None:
        self._data += data
        if END in self._data or len(self._data) > LARGEST_HEAD:
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if not self.head.done():
            self.head.set_result(self._data)


async def open_tunnel(
    proxy: OutboundProxy, resolver: Resolver, target: str, port: int, seconds: float
) -> tuple[socket.socket, asyncio.Transport]:
    """Open a tunnel to an address, or to a name that the proxy resolves, within `seconds`. Raises ProxyFailed."""
    with proxy.told():
        async with asyncio.timeout(seconds):
            sock, transport, answer = await _connected(proxy, resolver)
            try:
                transport.write(proxy.request(target, port))
                proxy.judge(await answer.head, target)
            except BaseException:
                transport.abort()
                raise
    return sock, transport


async def _connected(proxy: OutboundProxy, resolver: Resolver) -> tuple[socket.socket, asyncio.Transport, _Answer]:
    loop = asyncio.get_running_loop()
    failure: OSError = socket.gaierror("the name has no address")
    for family, kind, protocol, _, sockaddr in await resolver.find(proxy.host, proxy.port):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, sockaddr)
            context = tls() if proxy.encrypted else None
            name = proxy.host if context else None
            transport, answer = await loop.create_connection(_Answer, sock=sock, ssl=context, server_hostname=name)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock, transport, answer
    raise failure


async def secured(transport: asyncio.Transport, protocol: asyncio.Protocol, context: ssl.SSLContext, host: str) -> None:
    """Start TLS to the server inside the tunnel, and connect the TLS transport to `protocol`. Raises OSError."""
    try:
        loop = asyncio.get_running_loop()
        inner = await loop.start_tls(transport, protocol, context, server_hostname=host)
        if inner is None:
            raise ConnectionResetError("closed before TLS was set up")
    except BaseException:
        transport.abort()
        raise
    protocol.connection_made(inner)
