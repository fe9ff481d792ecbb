"""Deliver log lines to receivers. Each kind of receiver, such as a webhook or syslog, is a class.

The class has the texts of the form, checks what people enter, and delivers the lines. To add a kind of receiver, add a
class here and to KINDS.
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
import string
import struct
import sys
import termios
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import orjson
from django.conf import settings
from django.utils import timezone

from servers.upstream_guard import upstream_guard
from sinks import otlp
from sinks.objects import S3, NotKept
from ui.rest import stamp
from wire.background import Deadline
from wire.cipher import Undecryptable
from wire.guard import Guard, UrlRefused, open_stream
from wire.outbound import HttpAnswer, NoAnswer, OutboundClient, raising_no_answer

if TYPE_CHECKING:
    from sinks.models import Sink

SECONDS = 10.0  # Timeout of a delivery, except to standard output.
GOODBYE_S = 2.0  # Time for a syslog receiver to close the connection after us.
HUNG_UP = "closed the connection before it had received all lines."
MOST_WAIT = 3600.0  # Maximum of Retry-After, in seconds.
MOST_READ = 64 * 1024  # Maximum number of bytes read of a response. Only Collector uses the content.
FOR_NOW = {401, 403, 408, 429}  # Statuses that refuse a delivery for reasons other than its content.
# RFC 5424 section 6.2.1: the facility of audit logs, and severities by the outcome of a call.
AUDIT = 13 * 8
ERROR, WARNING, NOTICE, INFORMATIONAL = 3, 4, 5, 6


class LogLine(NamedTuple):
    """One row as JSON, without line end."""

    log: str  # "call", "event", "checkpoint", "notice" or "test".
    at: datetime
    severity: int
    text: bytes
    uid: str = ""  # Stays the same when a row is sent again.
    row: int = 0  # Number of the row in the log.


class Undelivered(Exception):
    """Lines were not delivered, because the receiver did not acknowledge them.

    The message is a sentence without its subject (the sink), for example "answered 500.".
    """

    def __init__(
        self, sentence: str, *, wait: float | None = None, too_large: bool = False, for_good: bool = False
    ) -> None:
        super().__init__(sentence)
        self.wait = wait  # The requested delay in seconds.
        self.too_large = too_large  # True if a delivery of fewer lines might succeed.
        self.for_good = for_good  # True if a retry would fail too.


class Receiver:
    """Delivers lines to one sink until `close`. The class attributes describe the kind of sink for forms and checks."""

    name: ClassVar[str]
    label: ClassVar[str]
    example: ClassVar[str] = ""  # An example of an address; empty if this kind has no address.
    address_help: ClassVar[str] = ""
    key_label: ClassVar[str] = ""  # Empty if this kind has no secret.
    key_help: ClassVar[str] = ""
    shows_secret: ClassVar[bool] = False  # True if the secret is optional and sent to the receiver.
    every: ClassVar[timedelta] = timedelta(seconds=2)  # Minimum interval between two checks of a sink.
    most_lines: ClassVar[int] = 0  # Maximum number of lines per delivery; 0 means `reading.MOST_ROWS`.
    package: ClassVar[str] = ""  # The optional package that this kind needs.

    def __init__(self, sink: Sink) -> None:
        """Prepare the delivery to `sink`. Raises Undelivered if the secret of the sink cannot be read."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the receiver."""

    def deliver(self, lines: Sequence[LogLine]) -> None:
        """Send the lines, and return when all are acknowledged. Raises Undelivered."""
        raise NotImplementedError

    @classmethod
    def missing(cls) -> str:
        """Return how to install the package this kind needs; empty if it is installed."""
        return NO_PARQUET if cls.package and find_spec(cls.package) is None else ""

    @classmethod
    def checked_address(cls, address: str) -> bool:
        """Return whether this address is private.

        Raises ValueError, with a message, if the address is invalid or not allowed.
        """
        return upstream_guard().check_now(address)

    @classmethod
    def check_secret(cls, secret: str) -> None:
        """Raise ValueError, with a message, if a sink of this kind cannot have this secret."""


def trial() -> LogLine:
    """Return a test line."""
    return _line_of_ours("test", INFORMATIONAL, {"message": f"A test of {settings.PUBLIC_URL}."})


def notice(sink: Sink, action: str, actor: str, message: str) -> LogLine:
    """Return a line that tells the receiver of `sink` about a change of the sink."""
    told = {"sink": sink.name, "action": action, "actor": actor, "gateway": settings.PUBLIC_URL, "message": message}
    return _line_of_ours("notice", WARNING, told)


def _line_of_ours(log: str, severity: int, told: dict[str, str]) -> LogLine:
    now, uid = timezone.now(), str(uuid4())
    said = {"log": log, "id": uid, "created_at": stamp(now)} | told
    return LogLine(log, now, severity, orjson.dumps(said), uid)


def send_notice(receiver: Receiver, line: LogLine, seconds: float) -> None:
    """Try once to deliver a notice, and wait at most `seconds` for it. Errors are ignored."""

    def send() -> None:
        with suppress(Exception), receiver:
            receiver.deliver([line])

    thread = threading.Thread(target=send, name="notice to a sink", daemon=True)
    thread.start()
    thread.join(seconds)


def shown_origin(address: str) -> str:
    """Return scheme, host and port of `address`. Path and query are left out, because they may contain a token."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return ""
    place = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{place}{f':{port}' if port else ''}" if host else ""


def _guard(sink: Sink) -> Guard:
    """Return the guard that decides to which addresses the sink may connect.

    The guard allows private addresses only if the receiver had a private address when the sink was set up.
    """
    return upstream_guard() if sink.private else upstream_guard().outside()


# Signatures and secrets of webhooks (Standard Webhooks).

LEAST_SECRET = 24  # Random bytes, as Standard Webhooks requires.
ALPHABETS = (
    string.digits,
    string.digits + "abcdef",
    string.digits + "ABCDEF",
    string.ascii_lowercase,
    string.ascii_letters,
    string.ascii_letters + string.digits,
    string.ascii_letters + string.digits + "+/=_-",
)
LEAST_DIFFERENT = 10  # Minimum number of different characters in a random secret.
PREFIX = "whsec_"  # Prefix of base64 secrets (Standard Webhooks).


def signing_key(secret: str) -> bytes:
    """Return the key: the decoded bytes of a `whsec_` secret, or the characters of any other secret."""
    if secret.startswith(PREFIX):
        with suppress(ValueError):
            return base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    return secret.encode()


def weakness(secret: str) -> str:
    """Return why a secret is too weak, as part of a sentence. Return "" if the secret is strong enough.

    A secret is too weak if it is too short for LEAST_SECRET random bytes, or if it is too regular to be random.
    """
    key = signing_key(secret)
    if secret.startswith(PREFIX) and key != secret.encode():
        least, different, is_repeated = LEAST_SECRET, len(set(key)), False
        too_short = f"this one has {len(key)} after “{PREFIX}”" if len(key) < least else ""
    else:
        size = next((len(one) for one in ALPHABETS if set(secret) <= set(one)), 95)
        least, different = math.ceil(8 * LEAST_SECRET / math.log2(size)), len(set(secret))
        is_repeated = secret in (secret + secret)[1:-1]
        too_short = f"a secret of these characters needs a length of {least}" if len(secret) < least else ""
    is_regular = different < LEAST_DIFFERENT or is_repeated
    return "this one repeats itself" if is_regular and not too_short else too_short


def signature(key: bytes, named: str, moment: str, body: bytes) -> str:
    """Return the base64 HMAC-SHA256 of the message id `named`, the time `moment` and the compressed `body`."""
    signed = f"{named}.{moment}.".encode() + body
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


class _Posts(Receiver):
    """Base class of receivers that send compressed POSTs to one URL."""

    def __init__(self, sink: Sink, url: str) -> None:
        self._url = url
        self._client = OutboundClient(_guard(sink), MOST_READ, SECONDS)

    def close(self) -> None:
        self._client.close()

    def post(self, body: bytes, headers: Mapping[str, str]) -> HttpAnswer:
        """Send a POST, and return the acknowledgement. Raises Undelivered."""
        with _in_words():
            # The status shows whether the lines were acknowledged, so a body that cannot be read is no error.
            told = {"Content-Encoding": "gzip", **headers}
            answer = self._client.ask("POST", self._url, told, body, needs_body=False)
        _judge(answer)
        return answer


@contextmanager
def _in_words() -> Iterator[None]:
    """Convert NoAnswer errors in this block to Undelivered, with a message for people."""
    try:
        with raising_no_answer():
            yield
    except NoAnswer as error:
        wait = _seconds(error.retry_after) if isinstance(error, NotKept) else None
        raise Undelivered(f"{error}.", wait=wait) from None


class Webhook(_Posts):
    """Sends each delivery as JSON lines in one compressed POST.

    The POST is signed as Standard Webhooks requires, with an HMAC-SHA256 of its id, time and body.
    """

    name = "webhook"
    label = "Webhook"
    example = "https://logs.example.com/intake"
    address_help = (
        "The complete https:// URL. For a receiver in a network of GATEWAY_PRIVATE_UPSTREAMS, the URL may begin with "
        "http://."
    )
    key_label = "Secret"
    key_help = (
        f"At least {LEAST_SECRET} random bytes, for example from “openssl rand”. Every delivery is signed with it."
    )

    @classmethod
    def check_secret(cls, secret: str) -> None:
        if reason := weakness(secret):
            raise ValueError(
                f"A webhook needs a secret of at least {LEAST_SECRET} random bytes, but {reason}. "
                "Make one with “openssl rand -base64 32”."
            )

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
    """Sends each delivery as OpenTelemetry log records in one compressed POST (OTLP/HTTP with Protocol Buffers)."""

    name = "otlp"
    label = "OpenTelemetry"
    example = "https://collector.example.com:4318"
    address_help = (
        "The https:// URL of an OTLP/HTTP receiver; without a path, /v1/logs is added. For a receiver in a network of "
        "GATEWAY_PRIVATE_UPSTREAMS, the URL may begin with http://."
    )
    key_label = "Headers"
    key_help = (
        "Optional: name=value pairs, separated by commas. The values are percent-encoded, such as "
        "Authorization=Bearer%20abc."
    )
    shows_secret = True

    @classmethod
    def check_secret(cls, secret: str) -> None:
        otlp.headers_of(secret)

    def __init__(self, sink: Sink) -> None:
        super().__init__(sink, otlp.url_of(sink.address))
        try:
            self._headers = otlp.headers_of(_secret(sink))
        except ValueError:
            raise Undelivered("has headers that cannot be sent.") from None

    def deliver(self, lines: Sequence[LogLine]) -> None:
        body = gzip.compress(otlp.of_lines(lines, settings.OTEL_RESOURCE), compresslevel=5, mtime=0)
        answer = self.post(body, {**self._headers, "Content-Type": "application/x-protobuf"})
        if number := otlp.rejected(answer.media_type, answer.body):  # The response does not name the records.
            raise Undelivered(f"rejected {number} of {len(lines)} log records.", for_good=True)


def compressed(lines: Sequence[LogLine]) -> bytes:
    """Compress the lines with gzip; equal lines give equal bytes."""
    return gzip.compress(b"".join(line.text + b"\n" for line in lines), compresslevel=5, mtime=0)


class Bucket(Receiver):
    """Stores each delivery as one object in an S3 bucket, as compressed JSON lines."""

    name = "s3"
    label = "S3, JSON lines"
    example = "https://s3.eu-central-1.amazonaws.com/logs/gateway"
    address_help = (
        "https://, the host, the bucket and a prefix, such as https://s3.eu-central-1.amazonaws.com/logs/gateway. "
        "Add “?region=” if the host does not contain the region."
    )
    key_label = "Access key"
    key_help = "An access key that may put objects: its id, a colon, and its secret."
    every = timedelta(minutes=1)  # So that objects are few and not too small.
    most_lines = 10_000
    suffix = "jsonl.gz"

    @classmethod
    def checked_address(cls, address: str) -> bool:
        if missing := cls.missing():
            raise ValueError(missing)
        is_private = super().checked_address(address)
        parts = urlsplit(address)
        if parts.fragment or set(parse_qs(parts.query, keep_blank_values=True)) - {"region"}:
            raise ValueError("The address of a bucket looks like https://s3.eu-central-1.amazonaws.com/bucket/prefix.")
        return is_private

    @classmethod
    def check_secret(cls, secret: str) -> None:
        name, _, key = secret.partition(":")
        if not (name.strip() and key.strip()):
            raise ValueError("S3 needs an access key: its id, a colon, its secret.")

    def __init__(self, sink: Sink) -> None:
        self._objects = S3(sink.address, _secret(sink), _guard(sink), SECONDS)

    def close(self) -> None:
        self._objects.close()

    def deliver(self, lines: Sequence[LogLine]) -> None:
        first, last = lines[0], lines[-1]
        digest = hashlib.sha256(b"\n".join(line.text for line in lines)).hexdigest()[:16]
        # A repeated delivery creates the same object, and different content never has the same name.
        name = f"{first.log}/{first.at.astimezone(UTC):%Y/%m/%d}/{first.row:019}-{last.row:019}-{digest}.{self.suffix}"
        data = self.encoded(lines)
        with _in_words():
            self._objects.put(name, data)

    def encoded(self, lines: Sequence[LogLine]) -> bytes:
        return compressed(lines)


class ParquetBucket(Bucket):
    """Stores each delivery as one Parquet file in an S3 bucket."""

    name = "s3_parquet"
    label = "S3, Parquet"
    package = "pyarrow"
    suffix = "parquet"

    def encoded(self, lines: Sequence[LogLine]) -> bytes:
        try:
            parquet = import_module("sinks.parquet")
        except ImportError:
            raise Undelivered(f"cannot be written: {NO_PARQUET}") from None
        return bytes(parquet.of_lines([line.text for line in lines]))


NEEDS_EXTRA = (
    "needs the extra “archive”: pip install 'gateway-admin[archive]', or in a clone `make install EXTRAS=archive`."
)
NO_PARQUET = f"Parquet {NEEDS_EXTRA}"


def _judge(answer: HttpAnswer) -> None:
    """Raise Undelivered unless the response is an acknowledgement."""
    status = answer.status
    if 200 <= status < 300:
        return
    if 300 <= status < 400:
        raise Undelivered(f"answered {status}, a redirect; redirects are not followed.")
    for_good = 400 <= status < 500 and status not in FOR_NOW
    wait = _seconds(answer.headers.get("Retry-After", ""))
    raise Undelivered(f"answered {status}.", wait=wait, too_large=status == 413, for_good=for_good)


def _seconds(retry_after: str) -> float | None:
    """Return the seconds of `Retry-After` (RFC 9110 section 10.2.3), an hour at most; None if missing or invalid."""
    said = retry_after.strip()
    if said.isascii() and said.isdecimal():
        return min(float(said[:9]), MOST_WAIT)
    with suppress(ValueError, OverflowError):
        moment = parsedate_to_datetime(said)
        at = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return min(max((at - timezone.now()).total_seconds(), 0.0), MOST_WAIT)
    return None


class Syslog(Receiver):
    """Sends each line as a syslog message (RFC 5424) over TLS (RFC 5425) or TCP.

    Messages are framed by octet counting (RFC 6587 section 3.4.1).
    """

    name = "syslog"
    label = "Syslog"
    example = "tls://logs.example.com:6514"
    address_help = (
        "tls://, the host and the port. In a network of GATEWAY_PRIVATE_UPSTREAMS it may be tcp://. UDP loses lines "
        "and is not offered."
    )

    @classmethod
    def checked_address(cls, address: str) -> bool:
        parts = urlsplit(address)
        try:
            port = parts.port
        except ValueError:
            port = None
        if parts.scheme not in ("tls", "tcp") or not parts.hostname or not port or parts.path.strip("/") or parts.query:
            raise ValueError(
                "A syslog address looks like tls://logs.example.com:6514. UDP loses lines and is not offered."
            )
        if parts.username is not None:
            raise ValueError("Leave credentials out of the address.")
        try:
            return super().checked_address(f"{'https' if parts.scheme == 'tls' else 'http'}://{parts.netloc}")
        except UrlRefused as refusal:
            if parts.scheme == "tls":
                raise
            advice = "Use tls:// if the receiver is not in a network of GATEWAY_PRIVATE_UPSTREAMS."
            words = f"{refusal} {advice}".replace("https://", "tls://").replace("http://", "tcp://")
            raise ValueError(words) from None

    def __init__(self, sink: Sink) -> None:
        parts = urlsplit(sink.address)
        self._host, self._port, self._encrypted = str(parts.hostname), int(parts.port or 6514), parts.scheme == "tls"
        self._guard = _guard(sink)
        self._name = urlsplit(settings.PUBLIC_URL).hostname or "-"

    def deliver(self, lines: Sequence[LogLine]) -> None:
        deadline = Deadline()
        deadline.set(SECONDS)
        messages = b"".join(map(self.message, lines))
        with _in_words():
            stream = open_stream(self._guard, self._host, self._port, deadline, encrypted=self._encrypted)
            try:
                stream.write(messages, SECONDS)
                # Syslog has no acknowledgements. Those of TCP prove that the receiver's machine has every byte.
                _await_receipt(stream.get_extra_info("socket"), deadline)
            finally:
                stream.close()

    def message(self, line: LogLine) -> bytes:
        """Return a line as an RFC 5424 message, preceded by the length of the message.

        The field MSGID of the message contains the name of the log, such as `call`.
        """
        head = f"<{AUDIT + line.severity}>1 {stamp(line.at)} {self._name} gateway-admin - {line.log} - "
        message = head.encode() + line.text
        return b"%d %b" % (len(message), message)


def _await_receipt(sock: socket.socket, deadline: Deadline) -> None:
    """Wait until the receiver's machine has acknowledged every byte.

    Then wait briefly for the receiver to close the connection. Raises Undelivered if the receiver closes the connection
    before every byte has arrived. Raises httpcore.ReadTimeout if the deadline passes before every byte has arrived.
    """
    while struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0]:
        _must_be_open(sock)  # The unsent bytes of a reset connection are lost.
        deadline.left(None)
        time.sleep(0.005)
    _must_be_open(sock)
    # If we closed the connection while data from the receiver is unread, the connection would be reset. The receiver
    # would then lose the lines that it has not read yet.
    sock.settimeout(min(GOODBYE_S, deadline.left(None)))
    try:
        plain = sock.unwrap() if isinstance(sock, ssl.SSLSocket) else sock
    except (TimeoutError, ssl.SSLError):
        return  # No TLS close_notify, as with many receivers, but the receiver has every byte.
    try:
        plain.shutdown(socket.SHUT_WR)
        while plain.recv(MOST_READ):
            pass
    except TimeoutError:
        return  # The receiver does not close the connection, but has every byte.
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


class Stdout(Receiver):
    """Writes the lines to the standard output of the process that delivers them."""

    name = "stdout"
    label = "Standard output"

    def __init__(self, sink: Sink) -> None:
        self._fd = sys.__stdout__.fileno() if sys.__stdout__ else 1

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
        raise Undelivered("has a secret that no configured encryption key decrypts.") from None


def backoff(failures: int, chance: float) -> float:
    """Return the seconds to wait before the next retry.

    The time doubles with each further failure, up to five minutes. It is then shortened by up to half: by half if
    `chance` is 0, and not at all if `chance` is 1.
    """
    # `chance` is random, so that sinks do not retry at the same time.
    return min(300.0, math.ldexp(2.0, min(failures - 1, 10))) * (0.5 + chance / 2)


KINDS: dict[str, type[Receiver]] = {
    kind.name: kind for kind in (Webhook, Syslog, Stdout, Bucket, ParquetBucket, Collector)
}
