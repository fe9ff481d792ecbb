"""uvicorn's HTTP protocol with a shorter way for MCP calls.

What uvicorn does for any request of any application takes a call longer than its decision: a timer for
each answer, patterns over each header, two writes. A POST to `/mcp/<slug>` needs none of it, and the
next one over the same connection, when it has the same head, not even a parser. All others, and unusual
spellings of that URL, go uvicorn's own way.
"""

import asyncio
import re
from typing import Any, cast

from uvicorn._types import HTTPScope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from proxy.access.query import SLUG
from proxy.request import PREFIX
from wire.repeated_header import SAME_HEAD, HeaderCache, header_cache

_is_call = re.compile(f"{PREFIX}{SLUG}/?".encode()).fullmatch


LINGER_SECONDS = 2


class McpHttpProtocol(HttpToolsProtocol):
    """Serves calls in fewer steps, and looks after idle connections with one timer for many requests."""

    is_authenticated = False  # Whether a call over this connection was let through.

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle_since: float | None = None
        self._known: HeaderCache[tuple[Any, int]] | None = None
        self._is_between = True  # Nothing of the next request has reached the parser.
        self._is_deaf = False  # Nothing more is heard; the connection is closed after the answer.

    def data_received(self, data: bytes) -> None:
        if self._is_deaf or self._is_served_again(data):
            return
        was_between, last = self._is_between, self.cycle
        super().data_received(data)
        if was_between and self.cycle is not last and not self.expect_100_continue:
            self._known = self._to_know_again(data)

    def _is_served_again(self, data: bytes) -> bool:
        """Serve the request in `data` when its head is that of the last one; the parser does not see it then."""
        if self._known is None or not self._is_between or self.is_answering():
            return False
        body = self._known.body(data)
        if body is None:
            return False
        self._unset_keepalive_if_required()
        scope, place = self._known.read
        self.headers = [*scope["headers"]]
        self.headers[place] = b"content-length", b"%d" % len(body)
        self.scope = cast(HTTPScope, {**scope, "headers": self.headers, "state": self.app_state.copy()})
        self.expect_100_continue = False
        self.cycle = cycle = McpCycle(self, keep_alive=True)
        cycle.have(body)
        self.on_message_complete()
        self._start_asgi_task(cycle, self.app)
        return True

    def _to_know_again(self, data: bytes) -> HeaderCache[tuple[Any, int]] | None:
        """The head of a whole call, with its scope and where that says the length, when more may follow."""
        cycle = self.cycle
        if not isinstance(cycle, McpCycle) or not cycle.keep_alive or cycle.more_body:
            return None
        place = next((n for n, (name, _) in enumerate(self.headers) if name == b"content-length"), None)
        if place is None:
            return None
        # The application may note there what it concludes from such a head.
        scope = {**self.scope, "headers": [*self.headers], "extensions": {SAME_HEAD: {}}}
        return header_cache(data, bytes(cycle.body), (scope, place))

    def on_message_begin(self) -> None:
        self._is_between = False
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._is_between = True
        super().on_message_complete()

    def on_headers_complete(self) -> None:
        parser = self.parser
        if parser.get_method() != b"POST" or not _is_call(self.url):
            super().on_headers_complete()
            self.cycle.transport = _Ending(self)  # type: ignore[assignment]  # Its task has not begun yet.
        else:
            self._begin_call()
        if parser.should_upgrade():
            # The parser takes what follows such a head for something else than its body. We speak nothing else, and
            # it must not become another request either.
            self.cycle.keep_alive = False
            self._is_deaf = True

    def _begin_call(self) -> None:
        parser = self.parser
        scope, version = self.scope, parser.get_http_version()
        scope["method"], scope["http_version"] = "POST", version
        scope["path"], scope["raw_path"], scope["query_string"] = self.url.decode(), self.url, b""
        must_wait = self.is_answering()
        self.cycle = McpCycle(self, keep_alive=version != "1.0" and parser.should_keep_alive())
        if must_wait:  # Sent before the last one was answered: they are answered one after the other.
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))
        else:
            self._start_asgi_task(self.cycle, self.app)

    def note_authenticated(self) -> None:
        """A call over this connection was let through."""
        self.is_authenticated = True

    def end(self) -> None:
        """Close after an answer. A client that is still sending gets to read it first (RFC 9112 section 9.6).

        To close at once would make its system drop what it has received as soon as it sends on.
        """
        if not self.cycle.more_body or self.transport.is_closing():
            self.transport.close()
            return
        self._is_deaf = True
        self.cycle.body = bytearray()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def is_answering(self) -> bool:
        """Whether a request waits for its answer."""
        return not getattr(self.cycle, "response_complete", True)  # There is no cycle before the first request.

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_in(self.timeout_keep_alive)

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        if self._idle_since is None or self.transport.is_closing():
            return  # The end of the request that is under way starts the next look.
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._look_in(left)
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = None

    def _look_in(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)


class _Ending:
    """The transport as uvicorn's own cycle sees it: closing it ends the connection as it should be ended."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(self, protocol: McpHttpProtocol) -> None:
        self.write = protocol.transport.write
        self.is_closing = protocol.transport.is_closing
        self.close = protocol.end


class McpCycle(RequestResponseCycle):
    """One call and its answer: an answer is complete and says its length, or it is a stream."""

    def __init__(self, protocol: McpHttpProtocol, *, keep_alive: bool) -> None:
        super().__init__(
            protocol.scope,
            protocol.transport,
            protocol.flow,
            protocol.logger,
            protocol.access_logger,
            protocol.access_log,
            protocol.server_state.default_headers,
            asyncio.Event(),
            protocol.expect_100_continue,
            keep_alive,
            protocol.on_response_complete,
        )
        self._protocol = protocol
        self._head = b""
        self._whole: bytes | None = None

    def have(self, body: bytes) -> None:
        """All of the body is here before the application asks for it."""
        self._whole, self.more_body = body, False

    async def receive(self) -> Any:
        if self._whole is None or self.disconnected:
            return await super().receive()
        body, self._whole = self._whole, None
        self.message_event.clear()  # What comes next is the end of the connection.
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Any) -> None:
        """Head and the first of the body leave together, in one way through the kernel."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if not self.response_started:
            self._head = self._begin(message["status"], message["headers"])
            self.response_started = True
            self.waiting_for_100_continue = False
            return
        body, more = message["body"], message.get("more_body", False)
        if self.chunked_encoding:
            body = (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + (b"" if more else b"0\r\n\r\n")
        self.transport.write(self._head + body)
        self._head = b""
        if not more:
            self._end()

    def _begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The head of the answer, which also settles how it ends."""
        if status < 300 and not self._protocol.is_authenticated:
            self._protocol.note_authenticated()
        if self.more_body:  # Answered before all of it was here: the rest is not wanted.
            self.keep_alive = False
        lines = [*self.default_headers, *headers]
        names = dict(headers)
        if b"connection" in names:  # Nothing else is ever said of it than that it is closed.
            self.keep_alive = False
        elif not self.keep_alive:
            lines.append((b"connection", b"close"))
        self.chunked_encoding = b"content-length" not in names
        if self.chunked_encoding:
            lines.append((b"transfer-encoding", b"chunked"))
        head = b"".join([b"%s: %s\r\n" % line for line in lines])
        if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines):
            raise RuntimeError("A header of an answer holds a line break.")
        return b"%s%s\r\n" % (STATUS_LINE[status], head)

    def _end(self) -> None:
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self._protocol.end()
        self.on_response()
