"""Receivers: a webhook over HTTP that checks every signature, and a syslog receiver over TCP or TLS."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sinks.receivers import signature, signing_key

SECRET = sha256(b"a secret of the receiver's own").hexdigest()
OTHER_SECRET = sha256(b"another").hexdigest()

OURS = {"notice", "test"}  # Kinds of lines that are not rows of the log.

type Json = dict[str, Any]
type Answer = Callable[["Request"], None]


class Request:
    """One delivery, and its answer."""

    def __init__(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        self.handler, self.body, self.headers = handler, body, dict(handler.headers.items())

    @property
    def rows(self) -> list[Json]:
        return [json.loads(line) for line in gzip.decompress(self.body).splitlines()]

    def is_signed(self) -> bool:
        """True if the signature matches the received body."""
        found = {name.lower(): value for name, value in self.headers.items()}
        made = signature(signing_key(SECRET), found["webhook-id"], found["webhook-timestamp"], self.body)
        return found["webhook-signature"] == f"v1,{made}"

    def say(self, status: int, **headers: str) -> None:
        self.handler.send_response(status)
        for name, value in headers.items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.send_header("Content-Length", "0")
        self.handler.end_headers()

    def send(self, raw: bytes) -> None:
        """Write raw bytes in place of a response, and disconnect."""
        self.handler.wfile.write(raw)
        self.handler.close_connection = True


def unreadable(status: int, **headers: str) -> Answer:
    """Return an answer with a body that cannot be decompressed."""

    def answer(request: Request) -> None:
        head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        raw = f"HTTP/1.1 {status} Said\r\nContent-Encoding: br\r\nContent-Length: 1\r\n{head}\r\n?"
        request.send(raw.encode())

    return answer


class Webhook:
    """A webhook that records all deliveries, even those that it refuses.

    `script` has the next answers. When it is empty, a delivery is acknowledged unless `refuses` returns a status.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.acknowledged: Counter[str] = Counter()
        """The number of times that each row came, by its id."""
        self.rows: list[Json] = []
        self.script: list[Answer] = []
        self.refuses: Callable[[list[Json]], int | None] = lambda rows: None
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/log"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def of(self, log: str) -> list[Json]:
        return [row for row in self.rows if row["log"] == log]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with suppress(OSError):
                    outer._take(Request(self, body))

            def do_PUT(self) -> None:
                self.do_POST()

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def _take(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)
            answer = self.script.pop(0) if self.script else None
            if answer is None and (status := self.refuses(request.rows)):
                answer = partial(Request.say, status=status)
            if answer is None:
                self.rows += request.rows
                self.acknowledged.update(row["id"] for row in request.rows if row["log"] not in OURS)
        if answer is None:
            request.say(204)
        else:
            answer(request)


@contextmanager
def webhook() -> Iterator[Webhook]:
    received = Webhook()
    try:
        yield received
    finally:
        received.close()


class Syslog:
    """A syslog receiver for messages framed by octet counts. Its sockets buffer about `room` unread bytes."""

    def __init__(self, tls: ssl.SSLContext | None = None, room: int = 1 << 20) -> None:
        self.messages: list[bytes] = []
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                taken, _ = self._listener.accept()
                with suppress(OSError), self._tls.wrap_socket(taken, server_side=True) if self._tls else taken as one:
                    self._read(one)

    def _read(self, taken: socket.socket) -> None:
        data = b""
        while piece := taken.recv(1 << 16):
            data += piece
        while data:
            length, _, rest = data.partition(b" ")
            if not length.isdigit():  # From a client of an earlier receiver at this port, such as a webhook.
                return
            self.messages.append(rest[: int(length)])
            data = rest[int(length) :]
        if isinstance(taken, ssl.SSLSocket):
            taken.unwrap().close()
