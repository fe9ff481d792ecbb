"""uvicorn's HTTP protocol with limits on size and speed of requests and on the number of connections."""

import fcntl
import logging
import re
import sys
import termios
from asyncio import TimerHandle, Transport
from contextlib import suppress
from typing import Any, ClassVar
from urllib.parse import urlsplit

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from proxy import open_files
from proxy.access.decision import SLUG
from proxy.request import PREFIX

logger = logging.getLogger(__name__)

MOST = 64 * 1024
LINGER_SECONDS = 2
UNTAKEN_LOOKS = 6  # Checks per `untaken_seconds`.
LEAST_TAKEN = 16 * 1024
TOO_LARGE = "The request's head is too large."
TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\n%s: %s\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    % open_files.RETRY_AFTER
)

_is_call = re.compile(f"{PREFIX}{SLUG}/?".encode()).fullmatch


def _file_number(transport: Transport) -> int:
    sock = transport.get_extra_info("socket")
    return -1 if sock is None else int(sock.fileno())


class HeadLimits(HttpToolsProtocol):
    """Closes connections with slow requests or large headers, and limits unauthenticated connections.

    Limits: headers of `MOST` bytes within `seconds`, including data the parser still buffers; a body within
    `body_seconds`, and at least `body_rate` bytes per second in each `body_window`; a client must read LEAST_TAKEN
    bytes, or all that is pending, within `untaken_seconds`. Each worker keeps `most_unauthenticated` connections
    without an accepted call; beyond that the oldest one that is not waiting for us is closed.
    """

    # Beside uvicorn's own attributes these would be more than an object keeps well.
    __slots__ = (
        "_body_bytes",
        "_body_clock",
        "_body_ends",
        "_discard_input",
        "_in_head",
        "_may_stream",
        "_taken_at",
        "_too_slow",
        "_untaken",
        "_untaken_clock",
        "_withheld",
    )

    seconds: float = 10
    body_seconds: float = 60
    body_window: float = 5
    body_rate: float = 1024
    untaken_seconds: float = 30
    most_unauthenticated: int = 2048  # As many as the system hands over at once (gatewayadmin.serving.server.BACKLOG).
    unauthenticated: ClassVar[dict["HeadLimits", None]] = {}  # The longest unanswered first.

    is_authenticated = False  # Whether a call over this connection was let through.

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._discard_input = False  # Ignore further input; the connection is closed after the answer.
        self._withheld = 0
        self._in_head = True
        self._may_stream = True
        self._too_slow: TimerHandle | None = None
        self._body_clock: TimerHandle | None = None
        self._body_ends = 0.0
        self._body_bytes = 0
        self._untaken_clock: TimerHandle | None = None
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
        """Mark the connection as authenticated: a call was accepted."""
        self.is_authenticated = True
        self.unauthenticated.pop(self, None)

    def close_after_answer(self) -> None:
        """Close after an answer, after a client that is still sending could read it (RFC 9112 section 9.6).

        If we closed at once, the client's system would discard the answer on its next write.
        """
        if not self.cycle.more_body or self.transport.is_closing():
            self.close_in_time()
            return
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
            transport.write(TOO_MANY)  # At once: silent connections would use up the remaining file numbers.
            transport.close()
            return
        self._start_clock()
        self.unauthenticated[self] = None
        if len(self.unauthenticated) > self.most_unauthenticated:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        self._stop_body_clock()
        self._stop_untaken_clock()
        self.unauthenticated.pop(self, None)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self.note_answered()
        super().on_response_complete()

    def note_answered(self) -> None:
        """Move this unauthenticated connection to the end of the list: it was answered last."""
        if self in self.unauthenticated:
            self.unauthenticated[self] = self.unauthenticated.pop(self)

    def _make_room(self) -> None:
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
            if self._body_clock is None:
                self._start_body_clock()
        elif self._withheld and self._too_slow is None:
            self._start_clock()

    def on_headers_complete(self) -> None:
        if self._withheld > MOST and _size(self.url, self.headers) > MOST:
            raise ValueError(TOO_LARGE)  # The parser converts it to its own error, which calls send_400_response.
        self._withheld = 0
        self._in_head = False
        self._stop_clock()
        if self.url[:1] not in (b"/", b"*"):  # The absolute form, whose host counts (RFC 9112 section 3.2.2).
            others = [pair for pair in self.headers if pair[0] != b"host"]
            if len(self.headers) - len(others) < 2:  # Several Host headers are refused later.
                self.headers[:] = [*others, (b"host", urlsplit(self.url).netloc.rpartition(b"@")[2])]
        method, is_mcp = self.parser.get_method(), _is_call(self.url) is not None
        self._start_request(is_call=is_mcp and method == b"POST")
        if is_mcp and method == b"GET":  # A stream that is let through keeps its connection, as a call does.
            self.cycle.transport = AnswerTransport(self, notes_success=True)  # type: ignore[assignment]
        if self.parser.should_upgrade():
            # The parser does not read what follows as a body. We support no upgrades, and it must not be read as
            # another request either.
            self.cycle.keep_alive = False
            self._discard_input = True

    def _start_request(self, *, is_call: bool) -> None:
        """Hand the request to the application; a call is a POST to `/mcp/<slug>`, spelled as everybody spells it."""
        if not self._may_stream:
            self.scope["extensions"] = {open_files.NO_STREAM: {}}
        super().on_headers_complete()
        if not is_call and _announced(self.headers) > MOST:
            self.flow.pause_reading()  # Until the application asks for the body: first it judges whose it is.
        # The task of the cycle has not begun yet.
        self.cycle.transport = AnswerTransport(self, notes_success=is_call)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        self._withheld = 0
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._withheld = 0
        self._in_head = True
        self._stop_clock()
        if self._body_clock is not None:
            self._stop_body_clock()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if self._withheld > MOST:
            self._refuse()
        else:
            super().send_400_response(msg)

    def _refuse(self) -> None:
        if not self.is_answering:  # Otherwise it would be written into another answer.
            self.transport.write(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-type: text/plain\r\n"
                b"content-length: %d\r\n\r\n%s" % (len(TOO_LARGE), TOO_LARGE.encode())
            )
        self.transport.close()

    def _start_clock(self) -> None:
        self._too_slow = self.loop.call_later(self.seconds, self._give_up)

    def _stop_clock(self) -> None:
        if self._too_slow is not None:
            self._too_slow.cancel()
            self._too_slow = None

    def _start_body_clock(self) -> None:
        self._body_ends = self.loop.time() + self.body_seconds
        self._next_window()

    def _next_window(self) -> None:
        self._body_bytes = 0
        self._body_clock = self.loop.call_later(self.body_window, self._judge_body)

    def _stop_body_clock(self) -> None:
        if self._body_clock is not None:
            self._body_clock.cancel()
            self._body_clock = None

    def _judge_body(self) -> None:
        if self._discard_input:  # It is being closed already.
            self._body_clock = None
        elif self.flow.read_paused or self.pipeline:  # We cause the wait: the application does not read, or answers.
            self._body_ends += self.body_window
            self._next_window()
        elif self.loop.time() < self._body_ends and self._body_bytes >= self.body_window * self.body_rate:
            self._next_window()
        else:
            self._body_clock = None
            if not self.cycle.response_started and not self.transport.is_closing():
                self.transport.write(TOO_SLOW)
            self.transport.close()

    def close_in_time(self) -> None:
        """Close when the client has read the answer, or reads it too slowly."""
        self.transport.close()
        if self.transport.get_write_buffer_size() and self._untaken_clock is None:
            self._start_untaken_clock()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._untaken_clock is None:
            self._start_untaken_clock()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_untaken_clock()

    def _start_untaken_clock(self) -> None:
        self._untaken, self._taken_at = self._bytes_untaken(), self.loop.time()
        self._untaken_clock = self.loop.call_later(self.untaken_seconds / UNTAKEN_LOOKS, self._judge_reader)

    def _stop_untaken_clock(self) -> None:
        if self._untaken_clock is not None:
            self._untaken_clock.cancel()
            self._untaken_clock = None

    def _judge_reader(self) -> None:
        now, untaken = self.loop.time(), self._bytes_untaken()
        if self._untaken - untaken >= min(LEAST_TAKEN, self._untaken):
            self._untaken, self._taken_at = untaken, now
        if now - self._taken_at < self.untaken_seconds:
            self._untaken_clock = self.loop.call_later(self.untaken_seconds / UNTAKEN_LOOKS, self._judge_reader)
            return
        self._untaken_clock = None
        logger.warning(
            "a client took less than %d KiB of an answer in %g s: its connection is cut off",
            LEAST_TAKEN >> 10,
            self.untaken_seconds,
            extra={"client": self.client[0] if self.client else "", "bytes": untaken},
        )
        self.transport.abort()

    def _bytes_untaken(self) -> int:
        """Return the bytes the client has not received: in our buffer and, on Linux, in the socket."""
        size = self.transport.get_write_buffer_size()
        sock = self.transport.get_extra_info("socket")
        if sock is None or not sys.platform.startswith("linux"):
            return size
        with suppress(OSError):
            size += int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        return size

    def _give_up(self) -> None:
        if self.is_answering:  # The next request waits for this answer to end.
            self._start_clock()
        else:
            self.transport.close()


class AnswerTransport:
    """Transport for uvicorn's request cycle: closes properly, and notes that a call was accepted."""

    __slots__ = ("_protocol", "close", "is_closing", "write")

    def __init__(self, protocol: HeadLimits, *, notes_success: bool) -> None:
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
    """Return the Content-Length, checked by the parser; more than MOST for a chunked body."""
    for name, value in headers:
        if name == b"content-length":
            return int(value)
        if name == b"transfer-encoding":
            return MOST + 1
    return 0


def _size(url: bytes, headers: list[tuple[bytes, bytes]]) -> int:
    return len(url) + sum(len(name) + len(value) + len(b": \r\n") for name, value in headers)
