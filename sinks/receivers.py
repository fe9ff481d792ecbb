"""How lines get to a sink: one small interface, and what implements it, by kind.

A receiver takes lines of JSON and returns when the other side has acknowledged all of them; else it raises Undelivered,
and they are sent again. To add a kind: a class with `deliver` here, and its name in `sinks.models.Kind`.
"""

from __future__ import annotations

import base64
import fcntl
import gzip
import hashlib
import hmac
import math
import os
import socket
import ssl
import struct
import sys
import termios
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self
from urllib.parse import urlsplit
from uuid import uuid4

import httpcore
import httpx
import orjson
from django.conf import settings
from django.utils import timezone

from servers.upstream_guard import upstream_guard
from ui.rest import stamp
from wire.cipher import Unreadable
from wire.deadline import Deadline
from wire.guard import AddressRefused, Guard, GuardedTransport, UrlRefused, open_stream

if TYPE_CHECKING:
    from sinks.models import Sink

SECONDS = 10.0  # How long one delivery may take in all.
LEAST_SECRET = 16
GOODBYE_S = 2.0  # How long the receiver of syslog may take to close after us.
MOST_WAIT = 3600.0  # Of what a receiver asks for with Retry-After, in seconds.
MOST_READ = 64 * 1024  # Bytes of an answer that are read; what it says does not matter.
ADDRESSED = {"webhook", "syslog"}  # The kinds that are somewhere else.
KEYED = {"webhook"}  # The kinds that sign.
PREFIX = "whsec_"  # What a secret in base64 begins with (Standard Webhooks).
# RFC 5424 section 6.2.1: the facility of audit logs, and how severe a line is by how the call ended.
AUDIT = 13 * 8
ERROR, WARNING, NOTICE, INFORMATIONAL = 3, 4, 5, 6


class Line(NamedTuple):
    """One row as JSON, without a line's end; `log` is "call", "event", "checkpoint" or "test"."""

    log: str
    at: datetime
    severity: int
    text: bytes


class Undelivered(Exception):
    """The lines were not acknowledged; the message goes on after "it". `wait` is what the receiver asks for."""

    def __init__(self, sentence: str, *, wait: float | None = None, too_large: bool = False) -> None:
        super().__init__(sentence)
        self.wait = wait
        self.too_large = too_large


class Receiver(Protocol):
    """The other side, while some lines are sent to it."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def deliver(self, lines: Sequence[Line]) -> None:
        """Return when all lines are acknowledged. Raises Undelivered."""


def receiver_for(sink: Sink) -> Receiver:
    """The receiver of this sink. Raises Undelivered when its secret cannot be read."""
    return _KINDS[sink.kind](sink)


def trial() -> Line:
    """A line that says it is a test."""
    now = timezone.now()
    said = {"log": "test", "id": str(uuid4()), "created_at": stamp(now), "message": f"A test of {settings.PUBLIC_URL}."}
    return Line("test", now, INFORMATIONAL, orjson.dumps(said))


def checked_address(kind: str, address: str) -> bool:
    """Whether this address leads inside the allowed private networks. Raises ValueError, in words, if it may not be
    called, or is none of this kind."""
    if kind == "webhook":
        return _checked_url(address, address)
    parts = urlsplit(address)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in ("tls", "tcp") or not parts.hostname or not port or parts.path.strip("/") or parts.query:
        raise ValueError("A syslog address looks like tls://logs.example.com:6514. UDP loses lines and is not offered.")
    place = f"[{parts.hostname}]:{port}" if ":" in parts.hostname else f"{parts.hostname}:{port}"
    if parts.username is not None:
        raise ValueError("Leave credentials out of the address.")
    return _checked_url(f"{'https' if parts.scheme == 'tls' else 'http'}://{place}", address)


def _checked_url(url: str, address: str) -> bool:
    guard = upstream_guard()
    try:
        return guard.check_now(url)
    except UrlRefused as refusal:
        if address.startswith("tcp:"):
            raise ValueError(f"{refusal} Use tls:// outside of it.".replace("http://", "tcp://")) from None
        raise


def _guard(sink: Sink) -> Guard:
    """What a socket to it may lead to: inside only if it did when it was set up (DNS rebinding)."""
    return upstream_guard() if sink.private else upstream_guard().outside()


class Webhook:
    """JSON lines in one compressed POST, signed as Standard Webhooks has it: HMAC-SHA256 of id, time and body."""

    def __init__(self, sink: Sink) -> None:
        self._url = sink.address
        self._key = signing_key(_secret(sink))
        self._deadline = Deadline()
        transport = GuardedTransport(_guard(sink), self._deadline)
        self._client = httpx.Client(transport=transport, trust_env=False, timeout=SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def deliver(self, lines: Sequence[Line]) -> None:
        body = gzip.compress(b"".join(line.text + b"\n" for line in lines), compresslevel=5, mtime=0)
        self._deadline.set(SECONDS)
        try:
            with self._client.stream("POST", self._url, content=body, headers=self._headers(body)) as answered:
                _judge(answered)
                _drain(answered)
        except (AddressRefused, httpx.InvalidURL):
            raise Undelivered("leads to an address that may not be called.") from None
        except (httpx.TimeoutException, httpcore.TimeoutException):
            raise Undelivered(f"did not answer within {SECONDS:.0f} seconds.") from None
        except (httpx.RemoteProtocolError, httpcore.RemoteProtocolError):
            raise Undelivered("answers in a way that is not HTTP.") from None
        except (httpx.HTTPError, httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
            raise Undelivered(_unreachable(error)) from None

    def _headers(self, body: bytes) -> dict[str, str]:
        named, now = f"msg_{hashlib.sha256(body).hexdigest()[:32]}", str(int(time.time()))
        return {
            "Content-Type": "application/x-ndjson",
            "Content-Encoding": "gzip",
            "User-Agent": "gateway-admin",
            "webhook-id": named,
            "webhook-timestamp": now,
            "webhook-signature": f"v1,{signature(self._key, named, now, body)}",
        }


def signing_key(secret: str) -> bytes:
    """The bytes that are signed with: those of a `whsec_` secret in base64, else the characters as they are."""
    if secret.startswith(PREFIX):
        with suppress(ValueError):
            return base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    return secret.encode()


def signature(key: bytes, named: str, moment: str, body: bytes) -> str:
    """The signature of a body as it is on the wire, in base64."""
    signed = f"{named}.{moment}.".encode() + body
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def _judge(answered: httpx.Response) -> None:
    """Return for an answer that acknowledges. Raises Undelivered."""
    status = answered.status_code
    if 200 <= status < 300:
        return
    if 300 <= status < 400:
        raise Undelivered(f"answered {status}, which leads elsewhere; no redirect is followed.")
    raise Undelivered(f"answered {status}.", wait=_wait(answered), too_large=status == 413)


def _wait(answered: httpx.Response) -> float | None:
    """What `Retry-After` asks for, in seconds (RFC 9110 section 10.2.3), an hour at most."""
    said = answered.headers.get("Retry-After", "").strip()
    if said.isascii() and said.isdecimal():
        return min(float(said[:9]), MOST_WAIT)
    with suppress(ValueError, OverflowError):
        moment = parsedate_to_datetime(said)
        at = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return min(max((at - timezone.now()).total_seconds(), 0.0), MOST_WAIT)
    return None


def _drain(answered: httpx.Response) -> None:
    """Read a little of the body, so that the connection can be used again."""
    read = 0
    for piece in answered.iter_raw():
        read += len(piece)
        if read > MOST_READ:
            return


def _unreachable(error: Exception) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"has a certificate that is not trusted: {cause.verify_message}."
        cause = cause.__cause__ or cause.__context__
    return "cannot be reached."


class Syslog:
    """A message of RFC 5424 for each line, with octet counting (RFC 6587 section 3.4.1), over TLS (RFC 5425) or TCP.

    Syslog knows no acknowledgement. What counts is that of TCP: the machine of the receiver has taken every byte.
    """

    def __init__(self, sink: Sink) -> None:
        parts = urlsplit(sink.address)
        self._host, self._port, self._encrypted = str(parts.hostname), int(parts.port or 6514), parts.scheme == "tls"
        self._guard = _guard(sink)
        self._name = urlsplit(settings.PUBLIC_URL).hostname or "-"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def deliver(self, lines: Sequence[Line]) -> None:
        deadline = Deadline()
        deadline.set(SECONDS)
        messages = b"".join(map(self.message, lines))
        try:
            stream = open_stream(self._guard, self._host, self._port, deadline, encrypted=self._encrypted)
            try:
                stream.write(messages, SECONDS)
                _await_receipt(stream.get_extra_info("socket"), deadline)
            finally:
                stream.close()
        except AddressRefused:
            raise Undelivered("leads to an address that may not be called.") from None
        except httpcore.TimeoutException:
            raise Undelivered(f"did not take the lines within {SECONDS:.0f} seconds.") from None
        except (httpcore.NetworkError, OSError) as error:
            raise Undelivered(_unreachable(error)) from None

    def message(self, line: Line) -> bytes:
        """A line as a frame: its length, PRI, version, time, host, program, process, kind and no structured data."""
        head = f"<{AUDIT + line.severity}>1 {stamp(line.at)} {self._name} gateway-admin - {line.log} - "
        message = head.encode() + line.text
        return b"%d %b" % (len(message), message)


def _await_receipt(sock: socket.socket, deadline: Deadline) -> None:
    """Return when the other machine has acknowledged every byte and, in a moment, closed the connection after us.

    To close it with something unread would take back what the receiver has not read. Raises Undelivered when it was
    closed before, and httpcore.ReadTimeout.
    """
    while struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0]:
        deadline.left(None)
        time.sleep(0.005)
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or _is_closed(sock):
        raise Undelivered("closed the connection before it had taken all lines.")
    sock.settimeout(min(GOODBYE_S, deadline.left(None)))
    try:
        plain = sock.unwrap() if isinstance(sock, ssl.SSLSocket) else sock
    except (TimeoutError, ssl.SSLError):
        return  # It says no goodbye in TLS, as many do not, and has every byte.
    try:
        plain.shutdown(socket.SHUT_WR)
        while plain.recv(MOST_READ):
            pass
    except TimeoutError:
        return  # It keeps the connection, and has every byte.
    finally:
        plain.close()


def _is_closed(sock: socket.socket) -> bool:
    with socket.socket(fileno=os.dup(sock.fileno())) as plain:  # A TLS socket does not let anybody look below it.
        try:
            return plain.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True


class Stdout:
    """Lines on the standard output of the process that sends them."""

    def __init__(self, sink: Sink) -> None:
        self._fd = sys.__stdout__.fileno() if sys.__stdout__ else 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def deliver(self, lines: Sequence[Line]) -> None:
        left = memoryview(b"".join(line.text + b"\n" for line in lines))
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError as error:
            raise Undelivered(f"takes no lines: {error.strerror}.") from None


def _secret(sink: Sink) -> str:
    try:
        return sink.secret()
    except Unreadable:
        raise Undelivered("has a secret that no configured encryption key opens.") from None


def backoff(failures: int, chance: float) -> float:
    """How long to wait after so many failures in a row, in seconds: twice as long each time, five minutes at most.

    `chance` from 0 to 1 spreads it over the upper half, so that many do not come back at once.
    """
    return min(300.0, math.ldexp(2.0, min(failures - 1, 10))) * (0.5 + chance / 2)


_KINDS: dict[str, Callable[[Sink], Receiver]] = {"webhook": Webhook, "syslog": Syslog, "stdout": Stdout}
