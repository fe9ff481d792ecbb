"""HTTP/1.1 to upstream servers: guarded connections, kept open between calls.

The client is our own and small. A general one costs four times the processor time of a call, and
brings along what a gateway must switch off: a cookie jar that mixes users, redirects, proxies from
the environment, a connection limit that one hanging server uses up.
"""

import asyncio
import errno
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urlsplit

from wire import builtin, product, tunnel
from wire.background import Background, every
from wire.byte_budget import ByteBudget, HeldBytes
from wire.errors import (
    AddressBlocked,
    AddressInside,
    BadAnswer,
    BadUrl,
    CertificateRefused,
    ConnectTimedOut,
    Loop,
    NameNotFound,
    NoRoute,
    NotConnected,
    NotTls,
    NoWayOut,
    TlsFailed,
    TooLarge,
    TooSlow,
    Unreachable,
    UpstreamError,
)
from wire.forward_proxy import OutboundProxy, ProxyFailed
from wire.guard import AddressRefused, Guard, LeadsBack, LeadsInside, tls
from wire.http1 import IDLE_SECONDS, ConnectionBroken, HttpConnection, Oversized, Stalled, more_than
from wire.jsonrpc import LARGE
from wire.reader_process import ReaderProcess
from wire.resolver import Resolver
from wire.turns import SharedTimer, Turns

CONNECT_SECONDS = 5.0
PROXY_SECONDS = 4.0  # Of these, so that a proxy that says nothing is told from a server that says nothing.
MOST_IDLE = 64
MOST_URLS = 10_000

# What stands as it is in a path or a query (RFC 3986), so that an encoded URL is not encoded again.
SAFE = "/?:@!$&'()*+,;=-._~%"

# The scheme of the one URL that leads to this process itself.
OWN = "builtin"


class Origin(NamedTuple):
    """Scheme, host and port; a connection serves all requests to the same origin.

    One that was opened for a server that may be at a private address serves no other server.
    """

    scheme: str
    host: str
    port: int
    private: bool = True


class ParsedUrl(NamedTuple):
    """A URL taken apart: its origin, and how a request to it begins after the verb."""

    origin: Origin
    head: str


class HttpResponse:
    """An answer whose head has arrived; leave it as a context, and the connection serves the next exchange."""

    __slots__ = ("_connection", "_origin", "_server", "_transport", "limit", "status", "streams")

    def __init__(self, transport: "Transport", origin: Origin, connection: HttpConnection, server: str) -> None:
        self._transport = transport
        self._origin = origin
        self._connection = connection
        self._server = server
        self.limit = transport.limit
        self.status = connection.status
        self.streams = connection.streams  # Whether it is handed over as it arrives.

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._transport.release(self._origin, self._connection)

    @property
    def media_type(self) -> str:
        """The media type, in lower case and without parameters."""
        return self.header("content-type").partition(";")[0].strip().lower()

    def header(self, name: str) -> str:
        """A header of the answer, by its name in lower case."""
        return self._connection.headers.get(name.encode(), b"").decode("latin-1")

    async def read(self) -> bytes:
        """The whole body. Raises TooLarge, TooSlow or Unreachable."""
        if not self.streams:
            return await self._connection.body()
        size, parts = 0, []
        async for chunk in self.chunks():
            size += len(chunk)
            if size > self.limit:
                raise TooLarge(self._server, more_than(self.limit))
            parts.append(chunk)
            await self.note_kept(size)
        return b"".join(parts)

    def held(self, size: int) -> HeldBytes | None:
        """What this answer, of `size` bytes, takes of the budget; None for one that is not large."""
        if (held := self._connection.held) is not None:
            held.resize(size)
        return held

    async def give_way(self) -> None:
        """Let other calls go on when this answer has been worked on for a while."""
        await self._connection.give_way()

    async def note_kept(self, size: int) -> None:
        """Told how much of a stream is kept in memory: more than LARGE waits for one of the few places of large ones.

        Raises TooLarge when too many wait.
        """
        if size <= LARGE:
            self._connection.give_place_back()
            return
        try:
            await self._connection.take_place()
        except Oversized as error:
            raise TooLarge(self._server, str(error)) from error

    @property
    def reader(self) -> ReaderProcess:
        """The process that reads large answers."""
        return self._transport.reader

    def alone(self) -> AbstractAsyncContextManager[None]:
        """For reading a large message in one piece, while no other large one is read."""
        return self._connection.alone()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body of an event stream as it arrives. Raises TooLarge, TooSlow or Unreachable."""
        try:
            async for chunk in self._connection.chunks():
                yield chunk
        except ConnectionBroken as error:
            raise Unreachable(self._server, str(error)) from error
        except Oversized as error:
            raise TooLarge(self._server, str(error)) from error
        except Stalled as error:
            raise TooSlow(self._server, str(error)) from error


# What callers are told of a failure: the first of these it is.
FAILURES: tuple[tuple[type[Exception], type[UpstreamError]], ...] = (
    (LeadsBack, Loop),
    (LeadsInside, AddressInside),
    (ProxyFailed, NoWayOut),
    (AddressRefused, AddressBlocked),
    (Oversized, TooLarge),
    (Stalled, TooSlow),
    (ConnectionBroken, Unreachable),
    (TimeoutError, ConnectTimedOut),
    (socket.gaierror, NameNotFound),
    (ssl.SSLCertVerificationError, CertificateRefused),
    (ssl.SSLError, TlsFailed),
    (OSError, NotConnected),
)

# What OpenSSL says when the other side answers in plain text.
NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"})
NO_ROUTE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL})


def _upstream_error(error: Exception) -> type[UpstreamError]:
    kind = next(kind for failure, kind in FAILURES if isinstance(error, failure))
    if kind is TlsFailed and getattr(error, "reason", "") in NO_TLS:
        return NotTls
    return NoRoute if kind is NotConnected and getattr(error, "errno", None) in NO_ROUTE else kind


class Transport:
    """Connections to upstream servers, and to this process's own Quickstart server."""

    def __init__(
        self, guard: Guard, *, limit: int, listener: str = "", secret: str = "", budget: ByteBudget | None = None
    ) -> None:
        self._budget = budget
        self._guards = {True: guard, False: guard.outside()}  # By whether a private address may be called.
        self._guard = guard
        self._listener = listener
        self._secret = secret
        self._idle: dict[Origin, deque[HttpConnection]] = {}
        self._parsed_urls: dict[bool, dict[str, ParsedUrl]] = {True: {}, False: {}}
        self._tls = tls()
        self._resolver = Resolver()
        self._turns = Turns()
        self._background = Background()
        self.reader = ReaderProcess()
        self.limit = limit

    async def __aenter__(self) -> Self:
        self._background.forever("idle upstream connections", self._close_idle, every(IDLE_SECONDS / 3))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._background.stop()
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()
        self._resolver.close()
        self.reader.close()

    @property
    def timer(self) -> SharedTimer:
        """The timer of the limits under which requests are sent."""
        return self._turns.timer

    @property
    def idle(self) -> int:
        """How many connections are kept for the next call."""
        return sum(map(len, self._idle.values()))

    async def send(
        self,
        verb: str,
        server: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes = b"",
        *,
        private: bool = True,
        written: Callable[[], object] = bool,
        person: str = "",
    ) -> HttpResponse:
        """Send one request to `url`; enter the response to use it. `server` is for the messages.

        Without `private` only public addresses are called, whatever ranges are allowed. `written` is called when the
        request is on its way. A large answer takes of the share of `person`.

        Raises Unreachable, AddressBlocked, TooLarge or TooSlow, and BadAnswer for a header that cannot be sent.
        """
        parsed = self._parsed_urls[private].get(url) or self._parse_url(server, url, private)
        lines = "".join(map("%s: %s\r\n".__mod__, headers.items()))
        head = f"{verb} {parsed.head}{lines}Content-Length: {len(body)}\r\n\r\n"
        # A value with a line break in it would begin another header, or another request.
        count = parsed.head.count("\n") + len(headers) + 2
        if not (head.isascii() and head.count("\r") == head.count("\n") == count and "\0" not in head):
            raise BadAnswer(server, "a header that cannot be sent")
        try:
            connection = self._idle_connection(parsed.origin) or await self._connect_in_time(parsed.origin)
            try:
                await connection.exchange(head.encode() + body, written, person)
            except BaseException:  # Whatever ended it, the server learns of it here.
                connection.discard()
                raise
        except tuple(failure for failure, _ in FAILURES) as error:
            raise _upstream_error(error)(server, getattr(error, "verify_message", "") or str(error)) from error
        return HttpResponse(self, parsed.origin, connection, server)

    def _idle_connection(self, origin: Origin) -> HttpConnection | None:
        """A connection that was kept, to use alone; None when there is none."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if connection.is_usable():
                return connection
            connection.close()
        return None

    async def _connect_in_time(self, origin: Origin) -> HttpConnection:
        """A new connection. Raises AddressRefused or OSError."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await self._connect(origin)
        except TimeoutError:
            raise TimeoutError(f"no connection within {CONNECT_SECONDS:g} seconds") from None

    def release(self, origin: Origin, connection: HttpConnection) -> None:
        """Keep the connection for the next exchange when it can carry one."""
        idle = self._idle.setdefault(origin, deque())
        if connection.may_be_kept() and len(idle) < MOST_IDLE:
            connection.mark_idle()
            idle.append(connection)
        else:
            connection.discard()

    async def _close_idle(self) -> None:
        """Close what has been idle for IDLE_SECONDS or was closed by the server; the oldest come first."""
        for origin, idle in [*self._idle.items()]:
            while idle and not idle[0].is_usable():
                idle.popleft().close()
            if not idle:
                del self._idle[origin]

    async def _connect(self, origin: Origin) -> HttpConnection:
        guard = self._guards[origin.private]
        if origin.scheme == "https" and (proxy := guard.way_by_name(origin.host)):
            return await self._open_through(proxy, origin, origin.host, PROXY_SECONDS)
        found = await self._resolver.find(origin.host, origin.port)
        failure: OSError = socket.gaierror("the name has no address")
        for family, kind, protocol, _, sockaddr in found:
            try:
                address, proxy = str(sockaddr[0]), None
                if origin.scheme != OWN:
                    guard.check(address, origin.port, encrypted=origin.scheme == "https")
                    proxy = guard.way(origin.host, address)
                async with asyncio.timeout(CONNECT_SECONDS / len(found)):
                    if proxy is not None:
                        return await self._open_through(proxy, origin, address, PROXY_SECONDS / len(found))
                    return await self._open(origin, socket.socket(family, kind, protocol), sockaddr)
            except OSError as error:
                failure = error
        raise failure

    async def _open_through(self, proxy: OutboundProxy, origin: Origin, target: str, seconds: float) -> HttpConnection:
        """A connection through the proxy, which leads to servers over TLS only. Raises OSError."""
        sock, transport = await tunnel.opened(proxy, self._resolver, target, origin.port, seconds)
        connection = self._connection(origin, sock)
        await tunnel.secured(transport, connection, self._tls, origin.host)
        return connection

    def _connection(self, origin: Origin, sock: socket.socket) -> HttpConnection:
        return HttpConnection(sock, self.limit, self._turns, f"{origin.host}:{origin.port}", self._budget)

    async def _open(self, origin: Origin, sock: socket.socket, sockaddr: tuple[Any, ...]) -> HttpConnection:
        loop = asyncio.get_running_loop()
        tls = self._tls if origin.scheme == "https" else None
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, sockaddr)
            _, connection = await loop.create_connection(
                lambda: self._connection(origin, sock),
                sock=sock,
                ssl=tls,
                server_hostname=origin.host if tls else None,
            )
        except BaseException:
            sock.close()
            raise
        return connection

    def _parse_url(self, server: str, url: str, private: bool) -> ParsedUrl:
        own = url.startswith(f"{OWN}:")
        parts = urlsplit(self._listener + builtin.PATH if own else url)
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            port = 0
        if parts.scheme not in {"http", "https"} or not parts.hostname or not port:
            raise BadUrl(server, "the URL leads nowhere")
        if not own and self._guard.own.has(url):
            raise Loop(server, "the URL is one of this gateway's own")
        path = quote(parts.path or "/", safe=SAFE) + (f"?{quote(parts.query, safe=SAFE)}" if parts.query else "")
        secret = f"{builtin.SECRET_HEADER}: {self._secret}\r\n" if own else ""
        host = parts.netloc.rpartition("@")[2]
        head = f"{path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {product.NAME}\r\n{secret}"
        known = self._parsed_urls[private]
        if len(known) >= MOST_URLS:
            known.clear()
        parsed = ParsedUrl(Origin(OWN if own else parts.scheme, parts.hostname, port, private), head)
        known[url] = parsed
        return parsed
