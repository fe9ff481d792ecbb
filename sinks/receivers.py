"""Receivers of log lines: one interface, and an implementation for each kind.

A receiver gets lines of JSON and returns when all are acknowledged. Otherwise it raises Undelivered, and they are sent
again. To add a kind, add a class with `deliver` here, and its name to `sinks.models.SinkKind`.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import math
import os
import socket
import ssl
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import httpcore
import httpx
import orjson
from django.conf import settings
from django.utils import timezone

from servers.upstream_guard import upstream_guard
from sinks import otlp
from sinks.objects import LEAST_SECRET, S3, NotKept, signature, signing_key, weakness
from ui.rest import stamp
from wire import versions
from wire.background import Deadline
from wire.cipher import Undecryptable
from wire.forward_proxy import ProxyFailed
from wire.guard import AddressRefused, Guard, GuardedTransport, UrlRefused, open_stream

if TYPE_CHECKING:
    from sinks.models import Sink

SECONDS = 10.0  # Timeout of a delivery.
NO_PARQUET = (
    "Parquet takes the extra “archive”: pip install 'gateway-admin[archive]', or in a checkout "
    ".venv/bin/uv pip install -r requirements-archive.lock."
)
# By kind, the required package, and the message if it is not installed.
EXTRAS = {
    "s3_parquet": ("pyarrow", NO_PARQUET),
}
GOODBYE_S = 2.0  # Time for a syslog receiver to close the connection after us.
HUNG_UP = "closed the connection before it had taken all lines."
MOST_WAIT = 3600.0  # Maximum of Retry-After, in seconds.
MOST_READ = 64 * 1024  # Bytes of a response that are read; its content does not matter.
OBJECTS = ("s3", "s3_parquet")  # Kinds that store objects.
ADDRESSED = {"webhook", "syslog", "otlp", *OBJECTS}  # Kinds with an address.
SHOWN = {"otlp"}  # Kinds that send their secret to the receiver; it is optional.
KEYED = {"webhook", *OBJECTS, *SHOWN}  # Kinds with a secret.
MOST_LINES = dict.fromkeys(OBJECTS, 10_000)  # Of one delivery, where it is not what it is for others.
FOR_NOW = {401, 403, 408, 429}  # Refusals that do not depend on the content.
# RFC 5424 section 6.2.1: the facility of audit logs, and severities by the outcome of a call.
AUDIT = 13 * 8
ERROR, WARNING, NOTICE, INFORMATIONAL = 3, 4, 5, 6


class LogLine(NamedTuple):
    """One row as JSON, without line end; `log` is "call", "event", "checkpoint", "notice" or "test".

    `uid` identifies a row that is sent twice, `row` is its number in the log.
    """

    log: str
    at: datetime
    severity: int
    text: bytes
    uid: str = ""
    row: int = 0


class Undelivered(Exception):
    """The lines were not acknowledged; the message continues "it". `wait` is the requested delay in seconds.

    `for_good` if a retry of the same lines would fail too.
    """

    def __init__(
        self, sentence: str, *, wait: float | None = None, too_large: bool = False, for_good: bool = False
    ) -> None:
        super().__init__(sentence)
        self.wait = wait
        self.too_large = too_large
        self.for_good = for_good


class Receiver(Protocol):
    """A receiver, opened for some deliveries."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def deliver(self, lines: Sequence[LogLine]) -> None:
        """Return when all lines are acknowledged. Raises Undelivered."""


def receiver_for(sink: Sink) -> Receiver:
    """Return the receiver of this sink. Raises Undelivered if its secret cannot be read."""
    return _KINDS[sink.kind](sink)


def missing_extra(kind: str) -> str:
    """Return how to install the package this kind needs; empty if it is installed."""
    package, sentence = EXTRAS.get(kind, ("", ""))
    return sentence if package and find_spec(package) is None else ""


def trial() -> LogLine:
    """Return a test line."""
    return _line_of_ours("test", INFORMATIONAL, {"message": f"A test of {settings.PUBLIC_URL}."})


def notice(sink: Sink, action: str, actor: str, message: str) -> LogLine:
    """Return a line that announces a change to the sink it is sent to."""
    told = {"sink": sink.name, "action": action, "actor": actor, "gateway": settings.PUBLIC_URL, "message": message}
    return _line_of_ours("notice", WARNING, told)


def _line_of_ours(log: str, severity: int, told: dict[str, str]) -> LogLine:
    now, uid = timezone.now(), str(uuid4())
    said = {"log": log, "id": uid, "created_at": stamp(now)} | told
    return LogLine(log, now, severity, orjson.dumps(said), uid)


def send_notice(receiver: Receiver, line: LogLine, seconds: float) -> None:
    """Best-effort delivery of a final line; gives up after `seconds`."""

    def send() -> None:
        with suppress(Exception), receiver:
            receiver.deliver([line])

    thread = threading.Thread(target=send, name="notice to a sink", daemon=True)
    thread.start()
    thread.join(seconds)


def checked_address(kind: str, address: str) -> bool:
    """Return whether this address is private. Raises ValueError, with a message, if it is not allowed or not valid."""
    if kind in OBJECTS:
        return _checked_bucket(kind, address)
    if kind in ("webhook", "otlp"):
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


def checked_secret(kind: str, secret: str) -> None:
    """Raise ValueError, with a message, if a sink of this kind cannot have this secret."""
    if kind in OBJECTS:
        name, _, key = secret.partition(":")
        if not (name.strip() and key.strip()):
            raise ValueError("S3 needs an access key: its id, a colon, its secret.")
    elif kind == "otlp":
        otlp.headers_of(secret)
    elif reason := weakness(secret):
        raise ValueError(
            f"A webhook needs a secret of at least {LEAST_SECRET} random bytes to sign with, and {reason}. "
            "Make one with “openssl rand -base64 32”."
        )


def _checked_bucket(kind: str, address: str) -> bool:
    if missing := missing_extra(kind):
        raise ValueError(missing)
    is_private = _checked_url(address, address)
    parts = urlsplit(address)
    if parts.fragment or set(parse_qs(parts.query, keep_blank_values=True)) - {"region"}:
        raise ValueError("The address of a bucket looks like https://s3.eu-central-1.amazonaws.com/bucket/prefix.")
    return is_private


def _checked_url(url: str, address: str) -> bool:
    guard = upstream_guard()
    try:
        return guard.check_now(url)
    except UrlRefused as refusal:
        if address.startswith("tcp:"):
            raise ValueError(f"{refusal} Use tls:// outside of it.".replace("http://", "tcp://")) from None
        raise


def shown_origin(address: str) -> str:
    """Return scheme, host and port, which may be shown anywhere. Path and query may contain a token."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return ""
    place = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{place}{f':{port}' if port else ''}" if host else ""


def _guard(sink: Sink) -> Guard:
    """Return the guard for its sockets: private addresses only if it had one when set up (DNS rebinding)."""
    return upstream_guard() if sink.private else upstream_guard().outside()


class _Posts:
    """Posts to one URL, and describes failures in words."""

    def __init__(self, sink: Sink, url: str) -> None:
        self._url = url
        self._deadline = Deadline()
        transport = GuardedTransport(_guard(sink), self._deadline)
        self._client = httpx.Client(transport=transport, trust_env=False, timeout=SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def post(self, body: bytes, headers: Mapping[str, str]) -> tuple[str, bytes]:
        """Return media type and body of an acknowledgement. Raises Undelivered."""
        told = {"Content-Encoding": "gzip", "User-Agent": versions.NAME, "Accept-Encoding": "identity", **headers}
        self._deadline.set(SECONDS)
        with _in_words(self._url), self._client.stream("POST", self._url, content=body, headers=told) as answered:
            _judge(answered)
            media_type = answered.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            return media_type, _beginning(answered)


class Webhook(_Posts):
    """JSON lines in one compressed POST, signed by Standard Webhooks: HMAC-SHA256 of id, time and body."""

    def __init__(self, sink: Sink) -> None:
        super().__init__(sink, sink.address)
        self._key = signing_key(_secret(sink))

    def deliver(self, lines: Sequence[LogLine]) -> None:
        body = compressed(lines)
        self.post(body, self._headers(body))

    def _headers(self, body: bytes) -> dict[str, str]:
        named, now = f"msg_{hashlib.sha256(body).hexdigest()[:32]}", str(int(time.time()))
        return {
            "Content-Type": "application/x-ndjson",
            "webhook-id": named,
            "webhook-timestamp": now,
            "webhook-signature": f"v1,{signature(self._key, named, now, body)}",
        }


class Collector(_Posts):
    """OpenTelemetry log records in one compressed POST (OTLP over HTTP, Protocol Buffers)."""

    def __init__(self, sink: Sink) -> None:
        super().__init__(sink, otlp.url_of(sink.address))
        try:
            self._headers = otlp.headers_of(_secret(sink))
        except ValueError:
            raise Undelivered("has headers that cannot be sent.") from None

    def deliver(self, lines: Sequence[LogLine]) -> None:
        body = gzip.compress(otlp.of_lines(lines, settings.OTEL_RESOURCE), compresslevel=5, mtime=0)
        number = otlp.rejected(*self.post(body, {**self._headers, "Content-Type": "application/x-protobuf"}))
        if number:  # The response does not tell which.
            raise Undelivered(f"rejected {number} of {len(lines)} log records.", for_good=True)


def compressed(lines: Sequence[LogLine]) -> bytes:
    """Return the compressed lines, deterministically."""
    return gzip.compress(b"".join(line.text + b"\n" for line in lines), compresslevel=5, mtime=0)


@contextmanager
def _in_words(address: str) -> Iterator[None]:
    """Raise Undelivered for any failure to reach an HTTP receiver."""
    try:
        yield
    except (AddressRefused, httpx.InvalidURL):
        raise Undelivered("leads to an address that may not be called.") from None
    except ProxyFailed as failure:
        raise Undelivered(f"cannot be reached: {failure}.") from None
    except (httpx.TimeoutException, httpcore.TimeoutException):
        raise Undelivered(f"did not answer within {SECONDS:.0f} seconds.") from None
    except (httpx.RemoteProtocolError, httpcore.RemoteProtocolError):
        raise Undelivered("answers in a way that is not HTTP.") from None
    except (httpx.HTTPError, httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
        raise Undelivered(_unreachable(error, address)) from None


class Bucket:
    """Objects in S3, one for each delivery, as JSON lines or Parquet.

    The name consists of the log, the day, the numbers of the first and last row, and a digest of the lines. So a
    repeated delivery creates the same object, and different content never has the same name.
    """

    def __init__(self, sink: Sink) -> None:
        self._address = sink.address
        self._objects = S3(sink.address, _secret(sink), _guard(sink), SECONDS)
        self._suffix, self._encoded = ("jsonl.gz", compressed) if sink.kind == "s3" else ("parquet", _as_parquet)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._objects.__exit__(None, None, None)

    def deliver(self, lines: Sequence[LogLine]) -> None:
        first, last = lines[0], lines[-1]
        digest = hashlib.sha256(b"\n".join(line.text for line in lines)).hexdigest()[:16]
        name = f"{first.log}/{first.at.astimezone(UTC):%Y/%m/%d}/{first.row:019}-{last.row:019}-{digest}.{self._suffix}"
        with _in_words(self._address):
            try:
                self._objects.put(name, self._encoded(lines))
            except NotKept as refusal:
                raise Undelivered(str(refusal), wait=_seconds(refusal.retry_after)) from None


def _as_parquet(lines: Sequence[LogLine]) -> bytes:
    try:
        parquet = import_module("sinks.parquet")
    except ImportError:
        raise Undelivered(f"cannot be written: {NO_PARQUET}") from None
    made: bytes = parquet.of_lines([line.text for line in lines])
    return made


def _judge(answered: httpx.Response) -> None:
    """Return if the response is an acknowledgement. Raises Undelivered."""
    status = answered.status_code
    if 200 <= status < 300:
        return
    if 300 <= status < 400:
        raise Undelivered(f"answered {status}, which leads elsewhere; no redirect is followed.")
    for_good = 400 <= status < 500 and status not in FOR_NOW
    raise Undelivered(
        f"answered {status}.",
        wait=_seconds(answered.headers.get("Retry-After", "")),
        too_large=status == 413,
        for_good=for_good,
    )


def _seconds(retry_after: str) -> float | None:
    """Return the seconds of `Retry-After` (RFC 9110 section 10.2.3), an hour at most, or None."""
    said = retry_after.strip()
    if said.isascii() and said.isdecimal():
        return min(float(said[:9]), MOST_WAIT)
    with suppress(ValueError, OverflowError):
        moment = parsedate_to_datetime(said)
        at = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return min(max((at - timezone.now()).total_seconds(), 0.0), MOST_WAIT)
    return None


def _beginning(answered: httpx.Response) -> bytes:
    """Read a short body, so that the connection can be reused; empty if it is longer."""
    parts: list[bytes] = []
    for piece in answered.iter_raw():
        parts.append(piece)
        if sum(map(len, parts)) > MOST_READ:
            return b""
    return b"".join(parts)


def _unreachable(error: Exception, address: str) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"has a certificate that is not trusted: {cause.verify_message}."
        if isinstance(cause, ConnectionRefusedError):
            return f"refused the connection: nothing listens at {_host_and_port(address)}."
        cause = cause.__cause__ or cause.__context__
    return "cannot be reached."


def _host_and_port(address: str) -> str:
    """Return host and port of a sink's address, without anything that may be secret."""
    parts = urlsplit(address)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{host}:{parts.port or (80 if parts.scheme == 'http' else 443)}"


class Syslog:
    """A message of RFC 5424 for each line, with octet counting (RFC 6587 section 3.4.1), over TLS (RFC 5425) or TCP.

    Syslog has no acknowledgement. TCP's is used: the receiver's machine has got every byte.
    """

    def __init__(self, sink: Sink) -> None:
        self._address, parts = sink.address, urlsplit(sink.address)
        self._host, self._port, self._encrypted = str(parts.hostname), int(parts.port or 6514), parts.scheme == "tls"
        self._guard = _guard(sink)
        self._name = urlsplit(settings.PUBLIC_URL).hostname or "-"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def deliver(self, lines: Sequence[LogLine]) -> None:
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
        except ProxyFailed as failure:
            raise Undelivered(f"cannot be reached: {failure}.") from None
        except httpcore.TimeoutException:
            raise Undelivered(f"did not take the lines within {SECONDS:.0f} seconds.") from None
        except (httpcore.NetworkError, OSError) as error:
            raise Undelivered(_unreachable(error, self._address)) from None

    def message(self, line: LogLine) -> bytes:
        """Return a line as a frame: length, PRI, version, time, host, program, process, kind, no structured data."""
        head = f"<{AUDIT + line.severity}>1 {stamp(line.at)} {self._name} gateway-admin - {line.log} - "
        message = head.encode() + line.text
        return b"%d %b" % (len(message), message)


def _await_receipt(sock: socket.socket, deadline: Deadline) -> None:
    """Wait until the receiver's machine has acknowledged every byte, and briefly for it to close the connection.

    Closing with unread data would reset the connection and discard what the receiver has not read. Raises Undelivered
    if it closed earlier, and httpcore.ReadTimeout.
    """
    while struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0]:
        _must_be_open(sock)  # A reset connection never sends the rest.
        deadline.left(None)
        time.sleep(0.005)
    _must_be_open(sock)
    sock.settimeout(min(GOODBYE_S, deadline.left(None)))
    try:
        plain = sock.unwrap() if isinstance(sock, ssl.SSLSocket) else sock
    except (TimeoutError, ssl.SSLError):
        return  # No TLS close_notify, as with many receivers, but it has every byte.
    try:
        plain.shutdown(socket.SHUT_WR)
        while plain.recv(MOST_READ):
            pass
    except TimeoutError:
        return  # It does not close the connection, but has every byte.
    except ConnectionResetError:
        raise Undelivered(HUNG_UP) from None
    finally:
        plain.close()


def _must_be_open(sock: socket.socket) -> None:
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or _is_closed(sock):
        raise Undelivered(HUNG_UP)


def _is_closed(sock: socket.socket) -> bool:
    with socket.socket(fileno=os.dup(sock.fileno())) as plain:  # TLS sockets do not support MSG_PEEK.
        try:
            return plain.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True


class Stdout:
    """Lines on the standard output of the sending process."""

    def __init__(self, sink: Sink) -> None:
        self._fd = sys.__stdout__.fileno() if sys.__stdout__ else 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def deliver(self, lines: Sequence[LogLine]) -> None:
        left = memoryview(b"".join(line.text + b"\n" for line in lines))
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError as error:
            raise Undelivered(f"takes no lines: {error.strerror}.") from None


def _secret(sink: Sink) -> str:
    try:
        return sink.secret()
    except Undecryptable:
        raise Undelivered("has a secret that no configured encryption key opens.") from None


def backoff(failures: int, chance: float) -> float:
    """Return the delay in seconds after so many consecutive failures: doubled each time, five minutes at most.

    `chance` from 0 to 1 spreads it over the upper half, so that sinks do not retry at the same time.
    """
    return min(300.0, math.ldexp(2.0, min(failures - 1, 10))) * (0.5 + chance / 2)


_KINDS: dict[str, Callable[[Sink], Receiver]] = {
    "webhook": Webhook,
    "syslog": Syslog,
    "stdout": Stdout,
    "otlp": Collector,
}
_KINDS |= dict.fromkeys(OBJECTS, Bucket)
