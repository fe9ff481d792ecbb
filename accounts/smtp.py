"""Mail through the outbound proxy: SMTP in a tunnel, over TLS from the start or after STARTTLS.

Without a proxy, or without TLS, mail is sent directly, as Django does.
"""

from __future__ import annotations

import io
import math
import smtplib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_network
from typing import Any

import httpcore
from django.conf import settings
from django.core.mail.backends import smtp

from wire.deadline import Deadline
from wire.guard import Guard, open_for_tls, tls

# Networks of an installation's own mail server: allowed, since the operator named it, and reached without the proxy.
INSIDE = tuple(
    map(
        ip_network,
        (
            "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16",
            "::1/128", "fc00::/7", "fe80::/10",
        ),
    )
)  # fmt: skip


class EmailBackend(smtp.EmailBackend):
    """Sends mail to the server in GATEWAY_EMAIL_URL; with TLS, through the outbound proxy if there is one."""

    @property
    def connection_class(self) -> type[smtplib.SMTP]:
        """Return the SMTP class, tunnelled if there is an outbound proxy and TLS is used."""
        if settings.OUTBOUND_PROXY is None or not (self.use_ssl or self.use_tls):
            return super().connection_class
        return _TunnelledSmtp

    @property
    def ssl_context(self) -> ssl.SSLContext:
        """Return the TLS context that verifies the mail server."""
        return tls()

    def open(self) -> bool | None:
        """Open a connection if there is none, and return whether a new one was made; closes it if the setup fails."""
        try:
            return super().open()
        except OSError:
            with suppress(OSError):
                self.close()
            raise


class _TunnelledSmtp(smtplib.SMTP):
    """SMTP through the outbound proxy; with a `context`, over TLS from the start."""

    def __init__(self, host: str, port: int, *, context: ssl.SSLContext | None = None, **options: Any) -> None:
        self._from_the_start = context
        super().__init__(host, port, **options)

    def _get_socket(self, host: str, port: int, timeout: float) -> _Line:
        guard = Guard((*INSIDE, *settings.PRIVATE_UPSTREAMS), proxy=settings.OUTBOUND_PROXY)
        deadline = Deadline()
        deadline.set(timeout)
        with _as_sockets_say_it():
            line = _Line(open_for_tls(guard, host, port, deadline), timeout)
            if self._from_the_start is not None:
                line = line.secured(self._from_the_start, host)
        deadline.set(math.inf)  # From here, each wait has its own timeout.
        return line

    def starttls(self, *, context: ssl.SSLContext) -> tuple[int, bytes]:  # type: ignore[override]
        """Switch to TLS, possibly inside the TLS connection to the proxy."""
        return super().starttls(context=_Tls(context))  # type: ignore[arg-type]


class _Tls:
    """The part of an SSL context that smtplib uses."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    def wrap_socket(self, line: _Line, *, server_hostname: str) -> _Line:
        return line.secured(self._context, server_hostname)


class _Line:
    """The part of a socket that smtplib uses, over a stream of the guard."""

    def __init__(self, stream: httpcore.NetworkStream, seconds: float) -> None:
        self._stream = stream
        self._seconds = seconds

    def sendall(self, data: bytes) -> None:
        with _as_sockets_say_it():
            self._stream.write(bytes(data), self._seconds)

    def recv(self, most: int) -> bytes:
        with _as_sockets_say_it():
            return self._stream.read(most, self._seconds)

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(_Incoming(self))

    def secured(self, context: ssl.SSLContext, host: str) -> _Line:
        """Return this connection over TLS. Raises OSError, after closing it."""
        try:
            with _as_sockets_say_it():
                return _Line(self._stream.start_tls(context, host, self._seconds), self._seconds)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._stream.close()


class _Incoming(io.RawIOBase):
    def __init__(self, line: _Line) -> None:
        self._line = line

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._line.recv(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


@contextmanager
def _as_sockets_say_it() -> Iterator[None]:
    """Raise a socket's errors instead of httpcore's: the underlying OSError (system or TLS)."""
    try:
        yield
    except httpcore.TimeoutException:
        raise TimeoutError("timed out") from None
    except httpcore.NetworkError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        raise (cause or OSError(str(error) or "the connection broke")) from None
