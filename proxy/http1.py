"""One HTTP/1.1 connection to a server, parsed by llhttp; as much of a client as a proxied call needs.

No cookies, redirects, proxies or credentials of its own exist here, so none can be mixed up or leak.
"""

import asyncio
import select
import socket
import time
import zlib
from collections.abc import AsyncIterator, Callable
from typing import cast

import httptools

from proxy.known_head import KnownHead, known_head

HEAD_LIMIT = 1 << 16
AHEAD_LIMIT = 1 << 20
IDLE_SECONDS = 15.0


class Broken(Exception):
    """The connection ended before the answer did, or what came over it is not HTTP."""


class Oversized(Exception):
    """The answer is larger than the limit."""


class Channel(asyncio.Protocol):
    """A connection that carries one exchange at a time.

    An event stream is handed over chunk by chunk, any other answer when it is complete.
    """

    def __init__(self, sock: socket.socket, limit: int) -> None:
        # Whether the other side has closed, or sent what nobody asked for, as far as the system knows.
        self._news = select.poll()
        self._news.register(sock, select.POLLIN)
        self._limit = limit
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._known: KnownHead[dict[bytes, bytes]] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._inflate: _Inflate | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._head_size = self._trailer_size = 0
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

        Raises Broken or Oversized.
        """
        if self._transport is None:
            raise Broken("closed")
        self._parser = None
        self._chunks, self._size, self._head_size, self._trailer_size = [], 0, 0, 0
        self._inflate = self._failure = None
        self.headers, self.status = {}, 0
        self.streams = self.complete = False
        self._transport.write(request)
        await self._wait()

    def body(self) -> bytes:
        """The body of a complete answer."""
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body of a streaming answer as it arrives. Raises Broken or Oversized."""
        while True:
            arrived, self._chunks, self._size = self._chunks, [], 0
            if self._paused and self._transport is not None:
                self._transport.resume_reading()
                self._paused = False
            for chunk in arrived:
                yield chunk
            if not self._chunks:
                if self.complete:
                    return
                await self._wait()

    def may_be_kept(self) -> bool:
        """Whether the connection can carry another exchange."""
        return (
            self.complete and self._keep and not self._paused and self._failure is None and self._transport is not None
        )

    def rest(self) -> None:
        """Count as idle from now on."""
        self._idle_since = time.monotonic()

    def is_usable(self) -> bool:
        """Whether the server has kept its end open while the connection was idle."""
        if self._transport is None or self._transport.is_closing():
            return False
        return time.monotonic() - self._idle_since < IDLE_SECONDS and not self._news.poll(0)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    async def _wait(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._failure is not None:
            raise self._failure

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, failure: Exception) -> None:
        self._failure = self._failure or failure
        self.close()
        self._wake()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods without the class.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.complete:
            # Nothing was asked: whatever this is, it must not be taken for the next answer.
            self.close()
        elif self._parser is not None:
            self._parse(self._parser, data)
        elif self._known is None or (body := self._known.body(data)) is None or len(body) > self._limit:
            self._parser = httptools.HttpResponseParser(self)
            self._parse(self._parser, data)
            self._known = self._to_know_again(data)
        else:
            self.status, self._chunks = 200, [body]
            self.headers = {**self._known.read, b"content-length": b"%d" % len(body)}
            self.on_message_complete()

    def _parse(self, parser: httptools.HttpResponseParser, data: bytes) -> None:
        rest: bytes | memoryview = data
        if self.status == 0 and len(data) > HEAD_LIMIT - self._head_size:
            # Only what may still be head is parsed as such: whatever follows in the same read is body.
            room = HEAD_LIMIT - self._head_size
            view = memoryview(data)
            if self._feed_head(parser, view[:room]) and self.status == 0:
                self._fail(Oversized("the head"))
            if self._failure is not None:
                return
            rest = view[room:]
        self._feed_head(parser, rest)

    def _feed_head(self, parser: httptools.HttpResponseParser, data: bytes | memoryview) -> bool:
        if self.status == 0:
            self._head_size += len(data)
        try:
            parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._fail(cause if isinstance(cause, Broken | Oversized) else Broken("not HTTP"))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(Broken("not HTTP"))
        return self._failure is None

    def _to_know_again(self, data: bytes) -> KnownHead[dict[bytes, bytes]] | None:
        """The head of an answer that came in one piece and that more may follow."""
        if self.status != 200 or not self.may_be_kept() or self.streams or self._inflate is not None:
            return None
        return known_head(data, self.body(), self.headers)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if not self.complete:
            self._end_or_fail(error)

    def _end_or_fail(self, error: Exception | None) -> None:
        framed = b"content-length" in self.headers or b"transfer-encoding" in self.headers
        if error is None and self.status and not framed:
            # A body without a length ends where the connection does (RFC 9112 section 6.3).
            self._keep = False
            self.on_message_complete()
        else:
            self._fail(Broken("the connection was closed"))

    # The parser's side

    def on_message_begin(self) -> None:
        if self.complete:
            raise Broken("an answer too many")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.status:
            # A trailer; the head itself is counted as it arrives.
            self._trailer_size += len(name) + len(value)
            if self._trailer_size > HEAD_LIMIT:
                raise Oversized("the trailer")
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        parser = self._parser
        if parser is None or parser.get_status_code() < 200:
            return
        self.status = parser.get_status_code()
        self._keep = parser.should_keep_alive()
        self._inflate = _inflater(self.headers.get(b"content-encoding", b""))
        kind = self.headers.get(b"content-type", b"")
        self.streams = self.status == 200 and kind[:17].lower() == b"text/event-stream"
        if self.streams:
            self._wake()

    def on_body(self, data: bytes) -> None:
        if self._inflate is not None:
            data = self._inflate(data, self._limit - self._size + 1)
        self._size += len(data)
        if self.streams:
            self._ahead()
        elif self._size > self._limit:
            raise Oversized("the body")
        if data:
            self._chunks.append(data)
            if self.streams:
                self._wake()

    def on_message_complete(self) -> None:
        if self.status == 0:
            # An interim answer (1xx); the final one follows.
            self.headers = {}
            return
        self.complete = True
        self._wake()

    def _ahead(self) -> None:
        """Let the server wait when the client reads slower than it writes."""
        if self._size > AHEAD_LIMIT and self._transport is not None and not self._paused:
            self._transport.pause_reading()
            self._paused = True


type _Inflate = Callable[[bytes, int], bytes]


def _inflater(encoding: bytes) -> _Inflate | None:
    """Unpacks a body chunk by chunk; None for one that is not packed."""
    kind = encoding.strip().lower()
    if kind in {b"", b"identity"}:
        return None
    if kind not in {b"gzip", b"x-gzip", b"deflate"}:
        raise Broken("an encoding that was not asked for")
    unpacker: zlib._Decompress | None = None

    def inflate(data: bytes, room: int) -> bytes:
        nonlocal unpacker
        if unpacker is None:
            # Many servers leave out the zlib wrapping of RFC 9110 section 8.4.1.2.
            bare = kind == b"deflate" and data[0] & 0x0F != zlib.DEFLATED
            unpacker = zlib.decompressobj(wbits=-zlib.MAX_WBITS if bare else zlib.MAX_WBITS | 32)
        try:
            unpacked = unpacker.decompress(data, room)
        except zlib.error:
            raise Broken("a broken encoding") from None
        if unpacker.unconsumed_tail:
            raise Oversized("the body")
        return unpacked

    return inflate
