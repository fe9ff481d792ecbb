"""One HTTP/1.1 connection to a server, parsed by llhttp; as much of a client as a proxied call needs.

No cookies, redirects, proxies or credentials of its own exist here, so none can be mixed up or leak.
"""

import asyncio
import select
import socket
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Literal, cast

import httptools

from wire.bodies import Body, BodyBroken, BodyTooLarge
from wire.fair_queue import FairQueue, Full
from wire.repeated_header import HeaderCache, header_cache

HEAD_LIMIT = 1 << 16
AHEAD_LIMIT = 1 << 18
SLICE = 1 << 14
SMALL_SLICE = 1 << 11  # Where most of what arrives is framing, each byte takes longer.
MANY_CHUNKS = 100  # In one slice.
SLICE_SECONDS = 0.000_3
QUICK_TURNS = 8  # So many slices of an answer follow each other closely; from then on it shares what time is left over.
LONG_SLICE_SECONDS = REST_SECONDS = 0.001
# The rest after work in one piece, as a multiple of its time: a call beside it takes several turns of the loop.
REST_SHARE = 4
IDLE_SECONDS = 15.0

# Of all answers that go on beyond `LARGE` bytes so many are kept in memory at once; the others stay where they are, in
# the socket. One server has two of the places at most. Whoever holds one and brings less than `LARGE_RATE` bytes a
# second for a whole `LARGE_WINDOW` loses it as soon as others wait.
LARGE = 1 << 20
LARGE_AT_ONCE = 3
LARGE_WINDOW = 5.0
LARGE_RATE = 64 * 1024

# An event stream may carry as much again before its answer as the answer itself may.
STREAM_SHARE = 2

# How many bytes may arrive for each of a body's limit: chunks of a few bytes cost more than what they carry.
WIRE_SHARE = 2


class ConnectionBroken(Exception):
    """The connection ended before the answer did, or what came over it is not HTTP."""


class Oversized(Exception):
    """The answer is larger than a limit; the message says which."""


class Stalled(Exception):
    """The rest of a large answer came too slowly while other large answers waited to be read."""


def more_than(limit: int) -> str:
    """A limit of bytes in words."""
    return f"more than {limit / (1 << 20):g} MiB"


class Turns:
    """Turns of whoever has much to read: one slice of one answer at a time, whoever's it is.

    However many answers pour in, a call beside them waits for one slice and not for one of each. An answer that has had
    its quick turns gets the others with a rest before each, so that all such answers together leave most of the time
    to those that are small.
    """

    def __init__(self) -> None:
        self._quick: deque[asyncio.Future[None]] = deque()
        self._slow: deque[asyncio.Future[None]] = deque()
        self._whole = asyncio.Lock()
        self.large = FairQueue(LARGE_AT_ONCE)

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """For work that cannot be cut into slices: one piece at a time, and after each the loop rests from them."""
        await self._whole.acquire()
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            yield
        finally:
            loop.call_later(REST_SHARE * (loop.time() - began), self._whole.release)

    async def wait(self, taken: int) -> None:
        """Let everybody else go first; `taken` is how many turns this answer has had."""
        loop = asyncio.get_running_loop()
        waiting = self._quick if taken < QUICK_TURNS else self._slow
        turn = loop.create_future()
        waiting.append(turn)
        if len(waiting) == 1:
            self._schedule(loop, waiting)
        await turn

    def _schedule(self, loop: asyncio.AbstractEventLoop, waiting: deque[asyncio.Future[None]]) -> None:
        if waiting is self._quick:
            loop.call_soon(self._next, loop, waiting)
        else:
            loop.call_later(REST_SECONDS, self._next, loop, waiting)

    def _next(self, loop: asyncio.AbstractEventLoop, waiting: deque[asyncio.Future[None]]) -> None:
        while waiting:
            turn = waiting.popleft()
            if not turn.done():  # Else whoever waited has left.
                turn.set_result(None)
                break
        if waiting:
            self._schedule(loop, waiting)


class HttpConnection(asyncio.Protocol):
    """A connection that carries one exchange at a time.

    What arrives is parsed by whoever waits for it, in slices between which all other calls go on. An event stream is
    handed over piece by piece, any other answer when it is complete. `server` is whose share a large answer counts to.
    """

    def __init__(self, sock: socket.socket, limit: int, turns: Turns, server: str = "") -> None:
        # Whether the other side has closed, or sent what nobody asked for, as far as the system knows.
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._limit = limit
        self._turns = turns
        self._server = server
        self._own_name = f"{server} {id(self)}"
        self._place_clock: asyncio.TimerHandle | None = None  # Runs while this answer holds a place of large ones.
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._known: HeaderCache[dict[bytes, bytes]] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._lost: Exception | Literal[False] | None = False
        self._arrived: deque[bytes] = deque()
        self._arrived_size = self._parsed = 0
        self._raw: list[bytes] = []
        self._parts: list[bytes] = []
        self._body: Body | None = None
        self._wire_size = self._wire_limit = self._head_size = self._framing_size = self._trailer_size = 0
        self._slice_ends = 0.0
        self._slice_size = SLICE
        self._turns_taken = 0
        self._idle_since = 0.0
        self._keep = True
        self._paused = False
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.streams = False
        self.complete = True

    # The caller's side

    async def exchange(self, request: bytes) -> None:
        """Send a request; returns when the answer is complete, or its head when it streams.

        Raises ConnectionBroken, Oversized or Stalled.
        """
        if self._transport is None:
            raise ConnectionBroken("closed")
        self._parser = self._body = self._failure = None
        self._parts, self._raw = [], []
        self._wire_size = self._head_size = self._framing_size = self._trailer_size = 0
        self._slice_size, self._turns_taken = SLICE, 0
        self.headers, self.status = {}, 0
        self.streams = self.complete = False
        self._transport.write(request)
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
                    await self.take_place()
            self._known = self._to_know_again(first)

    def body(self) -> bytes:
        """The body of a complete answer."""
        if len(self._parts) != 1:
            self._parts = [b"".join(self._parts)]
        return self._parts[0]

    async def take_place(self) -> None:
        """Wait for one of the few places of large answers, before more of this one is kept; the server waits too.

        It is held until `give_place_back`, which the end of the exchange calls as well. Raises Oversized when too many
        wait.
        """
        if self._place_clock is not None:
            return
        places = self._turns.large
        try:
            if not places.enter_now(self._server, self._own_name):
                await places.enter(self._server, self._own_name)
        except Full:
            raise self._fail(Oversized("more large answers than may wait")) from None
        self._watch_pace()

    def give_place_back(self) -> None:
        """Nothing large of this answer is kept any more."""
        if self._place_clock is not None:
            self._place_clock.cancel()
            self._place_clock = None
            self._turns.large.leave(self._server, self._own_name)

    def _watch_pace(self) -> None:
        loop = asyncio.get_running_loop()
        self._place_clock = loop.call_later(LARGE_WINDOW, self._judge_pace, self._wire_size)

    def _judge_pace(self, size_before: int) -> None:
        is_slow = self._wire_size - size_before < LARGE_RATE * LARGE_WINDOW
        # Without a waiter it is we who work on what has arrived, or our client who takes its time.
        if is_slow and self._waiter is not None and self._turns.large.waiting:
            self._fail(Stalled("a large answer came too slowly while others waited"))
        self._watch_pace()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, unpacked. Raises ConnectionBroken, Oversized or Stalled."""
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
        """For work on this answer that cannot be cut into slices."""
        return self._turns.alone()

    async def give_way(self) -> None:
        """Let other calls go on when this answer has been worked on for a while."""
        if time.perf_counter() > self._slice_ends:
            await self._turns.wait(self._turns_taken)
            self._turns_taken += 1
            length = SLICE_SECONDS if self._turns_taken < QUICK_TURNS else LONG_SLICE_SECONDS
            self._slice_ends = time.perf_counter() + length

    def may_be_kept(self) -> bool:
        """Whether the connection can carry another exchange."""
        return (
            self.complete and self._keep and not self._arrived and self._failure is None and self._transport is not None
        )

    def mark_idle(self) -> None:
        """Count as idle from now on."""
        self._idle_since = time.monotonic()
        self._parts = []
        self.give_place_back()

    def is_usable(self) -> bool:
        """Whether the server has kept its end open while the connection was idle."""
        if self._transport is None or self._transport.is_closing():
            return False
        return time.monotonic() - self._idle_since < IDLE_SECONDS and not self._poll.poll(0)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def discard(self) -> None:
        """Close, and let go of what was read: parser and failure lead back here, and would keep it for a while."""
        self.close()
        self._parser = self._body = self._known = self._failure = None
        self._parts, self._raw = [], []
        self._arrived.clear()
        self.give_place_back()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        self._slice_ends = time.perf_counter() + SLICE_SECONDS

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
        # uvloop's transports have the methods without the class.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.complete:
            # Nothing was asked: whatever this is, it must not be taken for the next answer.
            self.close()
        elif (
            self._known is None
            or self._parser is not None
            or self._arrived
            or (body := self._known.body(data)) is None
            or len(body) > self._limit
        ):
            self._arrived.append(data)
            self._arrived_size += len(data)
            if self._arrived_size >= AHEAD_LIMIT and self._transport is not None and not self._paused:
                # The server waits while the client reads slower than it writes.
                self._transport.pause_reading()
                self._paused = True
            self._wake()
        else:
            self.status, self._parts = 200, [body]
            self.headers = {**self._known.read, b"content-length": b"%d" % len(body)}
            self.complete = True
            self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._lost = error
        self._wake()

    # What has arrived, parsed slice by slice

    async def _advance(self) -> None:
        """Parse a slice of what has arrived; waits when nothing has. Raises what ended the answer."""
        if self._arrived:
            self._parse()
            await self.give_way()
        elif self._lost is False:
            await self._wait()
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
                self._fail(ConnectionBroken("an answer too many"))

    def _slice(self) -> bytes | memoryview:
        """The next of what has arrived: never more than may still be head, while it is read."""
        room = self._slice_size if self.status else min(SLICE, HEAD_LIMIT - self._head_size)
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
        """Refuse a head, interim answers, chunk extensions or trailers without end, and a body of mostly framing."""
        if self.status == 0:
            if self._head_size >= HEAD_LIMIT:
                self._fail(Oversized("headers without end"))
            return
        self._wire_size += size
        self._slice_size = SLICE if len(self._raw) <= MANY_CHUNKS else SMALL_SLICE
        self._framing_size = 0 if self._raw else self._framing_size + size
        if self._framing_size > 2 * HEAD_LIMIT or self._wire_size > self._wire_limit:
            self._fail(Oversized(more_than(self._limit)))

    def _to_know_again(self, data: bytes) -> HeaderCache[dict[bytes, bytes]] | None:
        """The head of an answer that came in one piece and that more may follow."""
        if self.status != 200 or not self.may_be_kept() or (self._body is not None and self._body.is_packed):
            return None
        return header_cache(data, self.body(), self.headers)

    def _end_or_fail(self, error: Exception | None) -> None:
        framed = b"content-length" in self.headers or b"transfer-encoding" in self.headers
        if error is None and self.status and not framed:
            # A body without a length ends where the connection does (RFC 9112 section 6.3).
            self._keep = False
            self.complete = True
        else:
            self._fail(ConnectionBroken("the connection was closed"))

    # The parser's side

    def on_message_begin(self) -> None:
        if self.complete:
            raise ConnectionBroken("an answer too many")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.status:
            # A trailer; the head itself is counted as it arrives.
            self._trailer_size += len(name) + len(value)
            if self._trailer_size > HEAD_LIMIT:
                raise Oversized("headers without end")
            return
        self.headers[name.lower()] = value

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
            self._body = Body(limit, self.headers.get(b"content-encoding", b""))
        except BodyBroken as error:
            raise ConnectionBroken(str(error)) from None

    def on_body(self, data: bytes) -> None:
        self._raw.append(data)

    def on_message_complete(self) -> None:
        if self.status == 0:
            # An interim answer (1xx); the final one follows.
            self.headers = {}
            return
        self.complete = True
