"""The HTTP protocols of `serve`: uvicorn's protocol with limits, and a faster protocol for MCP calls.

GATEWAY_FAST_HTTP selects the faster protocol. This protocol is faster for POST requests to `/mcp/<slug>`. It writes
their answers itself, because uvicorn takes as long to write an answer as a whole access check takes. If a request has
the same headers as the previous request on its connection, the headers are not parsed again.
"""

import asyncio
import fcntl
import logging
import re
import sys
import termios
from asyncio import TimerHandle, Transport
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar, cast
from urllib.parse import urlsplit

from uvicorn._types import HTTPScope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from proxy import open_files
from proxy.access.decision import SLUG
from proxy.request import PREFIX, SAME_HEAD
from wire.http import HeaderCache, header_cache
from wire.jsonrpc import LARGE

logger = logging.getLogger(__name__)

MOST = 64 * 1024
LINGER_SECONDS = 2
UNTAKEN_LOOKS = 6  # Checks per `untaken_seconds`.
LEAST_TAKEN = 16 * 1024
TOO_LARGE = "The request's headers are too large."
TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\n%s: %s\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    % open_files.RETRY_AFTER
)

_is_call = re.compile(f"{PREFIX}{SLUG}/?".encode()).fullmatch


def _file_number(transport: Transport) -> int:
    sock = transport.get_extra_info("socket")
    return -1 if sock is None else int(sock.fileno())


class Clock:
    """A timer that calls a function once, unless the timer is stopped or started again before."""

    __slots__ = ("_handle", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handle: TimerHandle | None = None

    @property
    def is_running(self) -> bool:
        return self._handle is not None

    def start(self, seconds: float, call: Callable[[], None]) -> None:
        def ring() -> None:
            self._handle = None
            call()

        self.stop()
        self._handle = self._loop.call_later(seconds, ring)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class LimitedHttpProtocol(HttpToolsProtocol):
    """Closes connections that are slow or have large headers, and limits connections without an accepted call."""

    # Slots, because these attributes and uvicorn's are too many for a compact instance dictionary.
    __slots__ = (
        "_body_bytes",
        "_body_clock",
        "_body_ends",
        "_discard_input",
        "_head_clock",
        "_in_head",
        "_may_stream",
        "_taken_at",
        "_untaken",
        "_untaken_clock",
        "_withheld",
    )

    seconds: float = 10  # For the headers. They have at most MOST bytes, counting data that the parser still buffers.
    body_seconds: float = 60
    body_window: float = 5  # In each window of a body, `body_rate` bytes per second must arrive.
    body_rate: float = 1024
    untaken_seconds: float = 30  # In this time, the client must read LEAST_TAKEN bytes, or all that is pending.
    # Connections without an accepted call, per worker; as many as the system queues
    # (gatewayadmin.serving.server.BACKLOG).
    most_unauthenticated: int = 2048
    unauthenticated: ClassVar[dict["LimitedHttpProtocol", None]] = {}  # Ordered by last answer, oldest first.

    is_authenticated = False  # True once a call over this connection was accepted.

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._discard_input = False  # Ignore further input; the connection is closed after the answer.
        self._withheld = 0
        self._in_head = True
        self._may_stream = True
        self._head_clock = Clock(self.loop)
        self._body_clock = Clock(self.loop)
        self._body_ends = 0.0
        self._body_bytes = 0
        self._untaken_clock = Clock(self.loop)
        self._untaken = 0
        self._taken_at = 0.0

    @property
    def is_answering(self) -> bool:
        """True if a request is being answered."""
        return not getattr(self.cycle, "response_complete", True)  # There is no cycle before the first request.

    @property
    def awaits_head(self) -> bool:
        """True before the first request, or if part of the headers of a request was received."""
        is_first = getattr(self, "cycle", None) is None
        return is_first or (self._in_head and self._withheld > 0)

    def note_authenticated(self) -> None:
        """Mark the connection as authenticated, because a call was accepted."""
        self.is_authenticated = True
        self.unauthenticated.pop(self, None)

    def close_after_answer(self) -> None:
        """Close the connection after an answer.

        If the client is still sending its request, wait LINGER_SECONDS before closing (RFC 9112, 9.6).
        """
        if not self.cycle.more_body or self.transport.is_closing():
            self.close_in_time()
            return
        # If we closed at once, the client's system would discard the answer when the client writes next.
        self._discard_input = True
        self.cycle.body = bytearray()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        number, limit = _file_number(transport), open_files.open_files_limit()
        self._may_stream = number < limit * open_files.FOR_STREAMS
        if number >= limit * open_files.FOR_CONNECTIONS:
            open_files.count_refused("connection")
            # Do not wait for a request: silent connections would use up the remaining file descriptors.
            transport.write(TOO_MANY)
            transport.close()
            return
        self._head_clock.start(self.seconds, self._give_up)
        self.unauthenticated[self] = None
        if len(self.unauthenticated) > self.most_unauthenticated:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        for clock in (self._head_clock, self._body_clock, self._untaken_clock):
            clock.stop()
        self.unauthenticated.pop(self, None)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        if self in self.unauthenticated:  # Move to the end: answered last.
            self.unauthenticated[self] = self.unauthenticated.pop(self)
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        self.close_in_time()

    def _make_room(self) -> None:
        # Close the oldest connection that is not waiting for our answer.
        for protocol in self.unauthenticated:
            if not protocol.is_answering or protocol.cycle.more_body:
                protocol.unauthenticated.pop(protocol)
                protocol.transport.abort()
                return

    def data_received(self, data: bytes) -> None:
        if self._discard_input:
            return
        self._withheld += len(data)
        super().data_received(data)
        if self._withheld > MOST:
            if not self.transport.is_closing():
                self._refuse()
        elif not self._in_head:
            if not self._body_clock.is_running:
                self._body_ends = self.loop.time() + self.body_seconds
                self._next_window()
        elif self._withheld and not self._head_clock.is_running:
            self._head_clock.start(self.seconds, self._give_up)

    def on_headers_complete(self) -> None:
        if self._withheld > MOST and _size(self.url, self.headers) > MOST:
            raise ValueError(TOO_LARGE)  # The parser raises its own error; uvicorn then calls send_400_response.
        self._withheld = 0
        self._in_head = False
        self._head_clock.stop()
        # In the absolute form, the host of the URL replaces the Host header (RFC 9112 section 3.2.2).
        if self.url[:1] not in (b"/", b"*"):
            others = [pair for pair in self.headers if pair[0] != b"host"]
            if len(self.headers) - len(others) < 2:  # Several Host headers are refused later.
                self.headers[:] = [*others, (b"host", urlsplit(self.url).netloc.rpartition(b"@")[2])]
        method, is_mcp = self.parser.get_method(), _is_call(self.url) is not None
        self._start_request(is_call=is_mcp and method == b"POST")
        if is_mcp and method == b"GET":  # An accepted stream authenticates its connection, as a call does.
            self.cycle.transport = AnswerTransport(self, notes_success=True)  # type: ignore[assignment]
        if self.parser.should_upgrade():
            # After a request to upgrade, the parser does not read the following bytes as a body. We support no
            # upgrades, and must not read these bytes as another request either.
            self.cycle.keep_alive = False
            self._discard_input = True

    def _start_request(self, *, is_call: bool) -> None:
        """Hand the request to the application. `is_call` is True for a POST to `/mcp/<slug>` or `/mcp/<slug>/`."""
        if not self._may_stream:
            self.scope["extensions"] = {open_files.NO_STREAM: {}}
        super().on_headers_complete()
        if not is_call and _announced(self.headers) > MOST:
            # The application resumes reading when it reads the body. Before this, it checks the sender.
            self.flow.pause_reading()
        # The transport can still be replaced: the task of the cycle has not begun yet.
        self.cycle.transport = AnswerTransport(self, notes_success=is_call)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        self._withheld = 0
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._withheld = 0
        self._in_head = True
        self._head_clock.stop()
        self._body_clock.stop()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if self._withheld > MOST:
            self._refuse()
        else:
            super().send_400_response(msg)

    def _refuse(self) -> None:
        if not self.is_answering:  # Otherwise this answer would be written into another one.
            self.transport.write(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-type: text/plain\r\n"
                b"content-length: %d\r\n\r\n%s" % (len(TOO_LARGE), TOO_LARGE.encode())
            )
        self.transport.close()

    def _next_window(self) -> None:
        self._body_bytes = 0
        self._body_clock.start(self.body_window, self._judge_body)

    def _judge_body(self) -> None:
        if self._discard_input:  # The connection is being closed already.
            return
        # The delay is ours if the application does not read the body, or still answers an earlier request.
        if self.flow.read_paused or self.pipeline:
            self._body_ends += self.body_window
            self._next_window()
        elif self.loop.time() < self._body_ends and self._body_bytes >= self.body_window * self.body_rate:
            self._next_window()
        else:
            if not self.cycle.response_started and not self.transport.is_closing():
                self.transport.write(TOO_SLOW)
            self.transport.close()

    def close_in_time(self) -> None:
        """Close the connection after the client has read the answer, or earlier if the client reads too slowly."""
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self._watch_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._untaken_clock.stop()

    def _watch_reader(self) -> None:
        if not self._untaken_clock.is_running:
            self._untaken, self._taken_at = self._bytes_untaken(), self.loop.time()
            self._untaken_clock.start(self.untaken_seconds / UNTAKEN_LOOKS, self._judge_reader)

    def _judge_reader(self) -> None:
        now, untaken = self.loop.time(), self._bytes_untaken()
        if self._untaken - untaken >= min(LEAST_TAKEN, self._untaken):
            self._untaken, self._taken_at = untaken, now
        if now - self._taken_at < self.untaken_seconds:
            self._untaken_clock.start(self.untaken_seconds / UNTAKEN_LOOKS, self._judge_reader)
            return
        logger.warning(
            "a client took less than %d KiB of an answer in %g s: its connection was closed",
            LEAST_TAKEN >> 10,
            self.untaken_seconds,
            extra={"client": self.client[0] if self.client else "", "bytes": untaken},
        )
        self.transport.abort()

    def _bytes_untaken(self) -> int:
        """Return the number of bytes the client has not received: in our buffer and, on Linux, in the socket."""
        size = self.transport.get_write_buffer_size()
        sock = self.transport.get_extra_info("socket")
        if sock is None or not sys.platform.startswith("linux"):
            return size
        with suppress(OSError):
            size += int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        return size

    def _give_up(self) -> None:
        if self.is_answering:  # The next request waits for this answer to end.
            self._head_clock.start(self.seconds, self._give_up)
        else:
            self.transport.close()


class AnswerTransport:
    """Transport for uvicorn's request cycle: closes with `close_after_answer`, and may note a successful answer."""

    __slots__ = ("_protocol", "close", "is_closing", "write")

    def __init__(self, protocol: LimitedHttpProtocol, *, notes_success: bool) -> None:
        self._protocol = protocol
        self.is_closing = protocol.transport.is_closing
        self.close = protocol.close_after_answer
        self.write = self._write_head if notes_success and not protocol.is_authenticated else protocol.transport.write

    def _write_head(self, data: bytes) -> None:
        if not data.startswith(b"HTTP/1.1 1"):  # 100 Continue is not the answer yet.
            self.write = self._protocol.transport.write
        if data.startswith(b"HTTP/1.1 2"):
            self._protocol.note_authenticated()
        self._protocol.transport.write(data)


def _announced(headers: list[tuple[bytes, bytes]]) -> int:
    """Return the length of the body according to Content-Length, which the parser has checked.

    Return 0 if there is no body. The length of a chunked body is unknown; return a number above MOST for it.
    """
    for name, value in headers:
        if name == b"content-length":
            return int(value)
        if name == b"transfer-encoding":
            return MOST + 1
    return 0


def _size(url: bytes, headers: list[tuple[bytes, bytes]]) -> int:
    return len(url) + sum(len(name) + len(value) + len(b": \r\n") for name, value in headers)


class McpHttpProtocol(LimitedHttpProtocol):
    """The faster protocol: calls are answered by McpCycle, and repeated headers are not parsed again."""

    __slots__ = ("_between_requests", "_header_cache")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_cache: HeaderCache[tuple[Any, int]] | None = None
        self._between_requests = True  # Nothing of the next request has reached the parser.

    def data_received(self, data: bytes) -> None:
        if self._discard_input or self._serve_with_cached_headers(data):
            return
        was_between, previous_cycle = self._between_requests, self.cycle
        super().data_received(data)
        if was_between and self.cycle is not previous_cycle and not self.expect_100_continue:
            self._header_cache = self._cache_headers(data)

    def _serve_with_cached_headers(self, data: bytes) -> bool:
        """Serve the request in `data` without the parser if its headers are cached. Return whether it was served."""
        if self._header_cache is None or not self._between_requests or self.is_answering:
            return False
        body = self._header_cache.body(data)
        if body is None:
            return False
        self._unset_keepalive_if_required()
        scope, length_index = self._header_cache.read
        self.headers = [*scope["headers"]]
        self.headers[length_index] = b"content-length", b"%d" % len(body)
        self.scope = cast(HTTPScope, {**scope, "headers": self.headers, "state": self.app_state.copy()})
        self.expect_100_continue = False
        self.cycle = McpCycle(
            scope=self.scope,
            transport=AnswerTransport(self, notes_success=True),  # type: ignore[arg-type]
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=True,
            on_response=self.on_response_complete,
        )
        self.cycle.body += body
        self.on_message_complete()
        self._start_asgi_task(self.cycle, self.app)
        return True

    def _cache_headers(self, data: bytes) -> HeaderCache[tuple[Any, int]] | None:
        """Return a cache of the parsed headers for later calls with the same headers; None if not reusable."""
        cycle = self.cycle
        if not isinstance(cycle, McpCycle) or not cycle.keep_alive or cycle.more_body:
            return None
        length_index = next((n for n, (name, _) in enumerate(self.headers) if name == b"content-length"), None)
        if length_index is None:
            return None
        # The application may cache in SAME_HEAD what it derives from these headers.
        scope = {
            **self.scope,
            "headers": [*self.headers],
            "extensions": {**self.scope.get("extensions", {}), SAME_HEAD: {}},
        }
        return header_cache(data, bytes(cycle.body), (scope, length_index))

    def on_message_begin(self) -> None:
        self._between_requests = False
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._between_requests = True
        super().on_message_complete()

    def _start_request(self, *, is_call: bool) -> None:
        super()._start_request(is_call=is_call)
        if is_call:
            # The class can still be replaced: the task of the cycle has not begun yet.
            self.cycle.__class__ = McpCycle


class McpCycle(RequestResponseCycle):
    """A call and its answer. The answer is sent whole, with a Content-Length, or as a stream."""

    _head = b""

    async def send(self, message: Any) -> None:
        """Send a message. The head is written with the first part of the body, in one system call if this is small."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if not self.response_started:
            self._head = self._start_answer(message["status"], message["headers"])
            self.response_started = True
            self.waiting_for_100_continue = False
            return
        body, more = message["body"], message.get("more_body", False)
        if len(body) > LARGE:
            self._write_large(body, more)
        else:
            if self.chunked_encoding:
                body = (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + (b"" if more else b"0\r\n\r\n")
            self.transport.write(self._head + body)
        self._head = b""
        if not more:
            self._finish()

    def _write_large(self, body: bytes, more: bool) -> None:
        """Write a large body without copying it, because a copy would delay other calls."""
        before = b"%x\r\n" % len(body) if self.chunked_encoding else b""
        if first := self._head + before:
            self.transport.write(first)
        self.transport.write(body)
        if self.chunked_encoding:
            self.transport.write(b"\r\n" if more else b"\r\n0\r\n\r\n")

    def _start_answer(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Return the head of the answer.

        Sets `chunked_encoding`. Sets `keep_alive` to False if the connection must close after the answer.
        """
        if self.more_body:  # Answered before the whole request arrived: the rest is not read.
            self.keep_alive = False
        lines = [*self.default_headers, *headers]
        names = dict(headers)
        if b"connection" in names:  # The application only ever sends "close".
            self.keep_alive = False
        elif not self.keep_alive:
            lines.append((b"connection", b"close"))
        self.chunked_encoding = b"content-length" not in names
        if self.chunked_encoding:
            lines.append((b"transfer-encoding", b"chunked"))
        head = b"".join([b"%s: %s\r\n" % line for line in lines])
        if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines):
            raise RuntimeError("A header of an answer contains a line break.")
        return b"%s%s\r\n" % (STATUS_LINE[status], head)

    def _finish(self) -> None:
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
