"""HTTP/1.1 to upstream servers: guarded connections, kept open between calls.

This is a small client of our own. A general one takes four times the processor time per call and has features that a
gateway must disable: a cookie jar shared by users, redirects, proxies from the environment, and a connection limit that
one hanging server can exhaust.
"""

from __future__ import annotations

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

from wire import versions
from wire.background import Background, every
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
from wire.forward_proxy import END, LARGEST_HEAD, OutboundProxy, ProxyFailed
from wire.guard import PATH, SECRET_HEADER, AddressRefused, Guard, LeadsBack, LeadsInside, tls
from wire.hosts import Resolver
from wire.http1 import IDLE_SECONDS, ConnectionBroken, HttpConnection, Oversized, Stalled, more_than
from wire.jsonrpc import LARGE
from wire.reader_process import ReaderProcess
from wire.turns import ByteBudget, HeldBytes, SharedTimer, Turns

CONNECT_SECONDS = 5.0
PROXY_SECONDS = 4.0  # Less than CONNECT_SECONDS, to distinguish a silent proxy from a silent server.
MOST_IDLE = 64
MOST_URLS = 10_000

# Characters not to quote in a path or query (RFC 3986), including % so that URLs are not encoded twice.
SAFE = "/?:@!$&'()*+,;=-._~%"

# The scheme of the Quickstart server in this process.
OWN = "builtin"


class Origin(NamedTuple):
    """Key of the connection pool. Requests to the same origin share connections.

    Connections for servers that may have a private address are separate.
    """

    scheme: str
    host: str
    port: int
    private: bool = True


class ParsedUrl(NamedTuple):
    """A parsed URL: its origin, and the request head after the verb."""

    origin: Origin
    head: str


class HttpResponse:
    """An answer whose headers were received. Leaving the context releases the connection."""

    __slots__ = ("_connection", "_origin", "_server", "_transport", "limit", "status", "streams")

    def __init__(self, transport: Transport, origin: Origin, connection: HttpConnection, server: str) -> None:
        self._transport = transport
        self._origin = origin
        self._connection = connection
        self._server = server
        self.limit = transport.limit
        self.status = connection.status
        self.streams = connection.streams  # Whether it is an event stream.

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
        """Return a header by its lower-case name; empty if missing."""
        return self._connection.headers.get(name.encode(), b"").decode("latin-1")

    async def read(self) -> bytes:
        """Return the whole body. Raises TooLarge, TooSlow or Unreachable."""
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
        """Set the memory share of this answer to `size` bytes and return it; None if the answer is not large."""
        if (held := self._connection.held) is not None:
            held.resize(size)
        return held

    async def give_way(self) -> None:
        """Yield to other calls if this answer has used up its time slice."""
        await self._connection.give_way()

    async def note_kept(self, size: int) -> None:
        """Report how many bytes of a stream are in memory. Above LARGE, wait for a slot for large answers.

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
        """Return a context for parsing a large message, in which no other large one is parsed."""
        return self._connection.alone()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body of an event stream as it arrives. Raises TooLarge, TooSlow or Unreachable."""
        try:
            async for chunk in self._connection.chunks():
                yield chunk
        except ConnectionBroken as error:
            raise Unreachable(self._server, str(error)) from error
        except Oversized as error:
            raise TooLarge(self._server, str(error)) from error
        except Stalled as error:
            raise TooSlow(self._server, str(error)) from error


# Maps exceptions to upstream errors; the first match counts.
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

# Reasons OpenSSL gives when the server answers in plain text.
NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"})
NO_ROUTE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL})


def _upstream_error(error: Exception) -> type[UpstreamError]:
    kind = next(kind for failure, kind in FAILURES if isinstance(error, failure))
    if kind is TlsFailed and getattr(error, "reason", "") in NO_TLS:
        return NotTls
    return NoRoute if kind is NotConnected and getattr(error, "errno", None) in NO_ROUTE else kind


class Transport:
    """Connections to upstream servers, including the Quickstart server in this process."""

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
        """The shared timer for time limits of requests."""
        return self._turns.timer

    @property
    def idle(self) -> int:
        """Number of idle connections in the pool."""
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
        """Send one request to `url`. Enter the response as a context to use it. `server` is for error messages.

        Without `private` only public addresses are called, even if private ranges are allowed. `written` is called
        when the request was written. A large answer counts against the budget of `person`.

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
            except BaseException:  # Closing the connection also tells the server to stop.
                connection.discard()
                raise
        except tuple(failure for failure, _ in FAILURES) as error:
            raise _upstream_error(error)(server, getattr(error, "verify_message", "") or str(error)) from error
        return HttpResponse(self, parsed.origin, connection, server)

    def _idle_connection(self, origin: Origin) -> HttpConnection | None:
        """Take a usable idle connection from the pool; None if there is none."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if connection.is_usable():
                return connection
            connection.close()
        return None

    async def _connect_in_time(self, origin: Origin) -> HttpConnection:
        """Open a connection within CONNECT_SECONDS. Raises AddressRefused or OSError."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await self._connect(origin)
        except TimeoutError:
            raise TimeoutError(f"no connection within {CONNECT_SECONDS:g} seconds") from None

    def release(self, origin: Origin, connection: HttpConnection) -> None:
        """Return the connection to the pool if it can be reused, otherwise close it."""
        idle = self._idle.setdefault(origin, deque())
        if connection.may_be_kept() and len(idle) < MOST_IDLE:
            connection.mark_idle()
            idle.append(connection)
        else:
            connection.discard()

    async def _close_idle(self) -> None:
        """Close connections that were idle for IDLE_SECONDS or closed by the server, oldest first."""
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
        """Open a TLS connection through the proxy. Raises OSError."""
        sock, transport = await open_tunnel(proxy, self._resolver, target, origin.port, seconds)
        connection = self._connection(origin, sock)
        await secured(transport, connection, self._tls, origin.host)
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
        parts = urlsplit(self._listener + PATH if own else url)
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            port = 0
        if parts.scheme not in {"http", "https"} or not parts.hostname or not port:
            raise BadUrl(server, "the URL leads nowhere")
        if not own and self._guard.own.has(url):
            raise Loop(server, "the URL is one of this gateway's own")
        path = quote(parts.path or "/", safe=SAFE) + (f"?{quote(parts.query, safe=SAFE)}" if parts.query else "")
        secret = f"{SECRET_HEADER}: {self._secret}\r\n" if own else ""
        host = parts.netloc.rpartition("@")[2]
        head = f"{path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {versions.NAME}\r\n{secret}"
        known = self._parsed_urls[private]
        if len(known) >= MOST_URLS:
            known.clear()
        parsed = ParsedUrl(Origin(OWN if own else parts.scheme, parts.hostname, port, private), head)
        known[url] = parsed
        return parsed


# Connections through the outbound proxy for MCP calls: a CONNECT tunnel, and TLS inside it.


class _Answer(asyncio.Protocol):
    """Collects the proxy's answer to CONNECT, up to the end of its headers or of the connection."""

    def __init__(self) -> None:
        self.head: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._data = b""

    def data_received(self, data: bytes) -> None:
        self._data += data
        if END in self._data or len(self._data) > LARGEST_HEAD:
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if not self.head.done():
            self.head.set_result(self._data)


async def open_tunnel(
    proxy: OutboundProxy, resolver: Resolver, target: str, port: int, seconds: float
) -> tuple[socket.socket, asyncio.Transport]:
    """Open a tunnel to an address or a name the proxy resolves, within `seconds`. Raises ProxyFailed."""
    with proxy.told():
        async with asyncio.timeout(seconds):
            sock, transport, answer = await _connected(proxy, resolver)
            try:
                transport.write(proxy.request(target, port))
                proxy.judge(await answer.head, target)
            except BaseException:
                transport.abort()
                raise
    return sock, transport


async def _connected(proxy: OutboundProxy, resolver: Resolver) -> tuple[socket.socket, asyncio.Transport, _Answer]:
    loop = asyncio.get_running_loop()
    failure: OSError = socket.gaierror("the name has no address")
    for family, kind, protocol, _, sockaddr in await resolver.find(proxy.host, proxy.port):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, sockaddr)
            context = tls() if proxy.encrypted else None
            name = proxy.host if context else None
            transport, answer = await loop.create_connection(_Answer, sock=sock, ssl=context, server_hostname=name)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock, transport, answer
    raise failure


async def secured(transport: asyncio.Transport, protocol: asyncio.Protocol, context: ssl.SSLContext, host: str) -> None:
    """Start TLS to the server inside the tunnel and connect it to `protocol`. Raises OSError."""
    try:
        loop = asyncio.get_running_loop()
        inner = await loop.start_tls(transport, protocol, context, server_hostname=host)
        if inner is None:
            raise ConnectionResetError("closed before TLS was agreed on")
    except BaseException:
        transport.abort()
        raise
    protocol.connection_made(inner)
