"""The HTTP protocol with bounds on what a client may send before we know what it wants."""

from asyncio import TimerHandle, Transport
from typing import Any

from gatewayadmin.swift_http import SwiftHttp

MOST = 64 * 1024
TOO_LARGE = "The request's head is too large."


class BoundedHead(SwiftHttp):
    """Closes a connection whose request head is larger than `MOST` or takes longer than `seconds`.

    The parser gathers a URL, a header or a trailer until it ends, so what it has not handed over yet counts too.
    """

    seconds: float = 10

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._withheld = 0
        self._in_head = True
        self._too_slow: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._withheld += len(data)
        super().data_received(data)
        if self._withheld > MOST:
            if not self.transport.is_closing():
                self._refuse()
        elif self._withheld and self._in_head and self._too_slow is None:
            self._start_clock()

    def on_headers_complete(self) -> None:
        if self._withheld > MOST and _size(self.url, self.headers) > MOST:
            raise ValueError(TOO_LARGE)  # The parser makes it an error of its own, which ends at send_400_response.
        self._withheld = 0
        self._in_head = False
        self._stop_clock()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._withheld = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._withheld = 0
        self._in_head = True
        self._stop_clock()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if self._withheld > MOST:
            self._refuse()
        else:
            super().send_400_response(msg)

    def _refuse(self) -> None:
        if not self.is_answering():  # Else our words would land in the middle of another answer.
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

    def _give_up(self) -> None:
        if self.is_answering():  # The next request waits for this answer to end.
            self._start_clock()
        else:
            self.transport.close()


def _size(url: bytes, headers: list[tuple[bytes, bytes]]) -> int:
    return len(url) + sum(len(name) + len(value) + len(b": \r\n") for name, value in headers)
