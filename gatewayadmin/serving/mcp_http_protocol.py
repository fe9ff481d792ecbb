"""A faster HTTP protocol for MCP calls (GATEWAY_FAST_HTTP).

uvicorn checks each response header with regular expressions and writes head and body separately, which takes as long as
the access check of a call. A POST to `/mcp/<slug>` skips both, and if it repeats the headers of the previous request on
the connection, it skips the parser too. All other requests, and unusual spellings of that URL, use uvicorn's protocol.
"""

import asyncio
from typing import Any, cast

from uvicorn._types import HTTPScope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from gatewayadmin.serving.head_limits import AnswerTransport, HeadLimits
from wire.http1 import SAME_HEAD, HeaderCache, header_cache
from wire.jsonrpc import LARGE


class McpHttpProtocol(HeadLimits):
    """Serves calls in fewer steps than uvicorn."""

    __slots__ = ("_answer_transport", "_between_requests", "_header_cache", "_idle_since")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_cache: HeaderCache[tuple[Any, int]] | None = None
        self._between_requests = True  # Nothing of the next request has reached the parser.
        self._idle_since: float | None = None
        self._answer_transport: AnswerTransport | None = None  # One for all calls, once a call was let through.

    def data_received(self, data: bytes) -> None:
        if self._discard_input or self._serve_with_cached_headers(data):
            return
        was_between, previous_cycle = self._between_requests, self.cycle
        super().data_received(data)
        if was_between and self.cycle is not previous_cycle and not self.expect_100_continue:
            self._header_cache = self._cache_headers(data)

    def _serve_with_cached_headers(self, data: bytes) -> bool:
        """Serve the request in `data` when its head is that of the last one; the parser does not see it then."""
        if self._header_cache is None or not self._between_requests or self.is_answering:
            return False
        body = self._header_cache.body(data)
        if body is None:
            return False
        self._idle_since = None
        scope, length_index = self._header_cache.read
        self.headers = [*scope["headers"]]
        self.headers[length_index] = b"content-length", b"%d" % len(body)
        self.scope = cast(HTTPScope, {**scope, "headers": self.headers, "state": self.app_state.copy()})
        self.expect_100_continue = False
        self.cycle = McpCycle(
            scope=self.scope,
            transport=self._transport_for_answer(),  # type: ignore[arg-type]
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

    def _transport_for_answer(self) -> AnswerTransport:
        if self._answer_transport is not None:
            return self._answer_transport
        transport = AnswerTransport(self, notes_success=True)
        if self.is_authenticated:
            self._answer_transport = transport
        return transport

    # One timer watches an idle connection, and looks now and then; uvicorn starts and stops one for each request.

    def on_response_complete(self) -> None:
        self.note_answered()
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._check_idleness_in(self.timeout_keep_alive)

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        if self._idle_since is None or self.transport.is_closing():
            return  # The end of the request that is under way starts the next look.
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._check_idleness_in(left)
        else:
            self.close_in_time()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = None

    def _check_idleness_in(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _cache_headers(self, data: bytes) -> HeaderCache[tuple[Any, int]] | None:
        """The head of a whole call, with its scope and the index of its Content-Length, when more may follow."""
        cycle = self.cycle
        if not isinstance(cycle, McpCycle) or not cycle.keep_alive or cycle.more_body:
            return None
        length_index = next((n for n, (name, _) in enumerate(self.headers) if name == b"content-length"), None)
        if length_index is None:
            return None
        # The application may note there what it concludes from such a head.
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
            self.cycle.__class__ = McpCycle  # Its task has not begun yet.


class McpCycle(RequestResponseCycle):
    """One call and its answer: an answer is complete and says its length, or it is a stream."""

    _head = b""

    async def send(self, message: Any) -> None:
        """Head and the first of the body leave together, in one way through the kernel."""
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
        """Write a body without copying it, which takes long enough for others to notice."""
        before = b"%x\r\n" % len(body) if self.chunked_encoding else b""
        if first := self._head + before:
            self.transport.write(first)
        self.transport.write(body)
        if self.chunked_encoding:
            self.transport.write(b"\r\n" if more else b"\r\n0\r\n\r\n")

    def _start_answer(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The head of the answer, which also settles how it ends."""
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

    def _finish(self) -> None:
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
