"""HTTP to upstream servers: aiohttp behind the guard, with everything off that would share or follow.

Traps: a shared cookie jar would mix users; redirects, proxies from the environment and a common
connection limit are aiohttp's defaults; a custom resolver is not asked about literal addresses.
"""

import socket
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import aiohttp
from aiohttp.client import _RequestContextManager
from yarl import URL

from proxy.faults import AddressBlocked, TooLarge, Unreachable
from servers import builtin
from servers.guard import AddressRefused, AddrInfo, Guard

CONNECT_SECONDS = 5.0
READ_BYTES = 1 << 16


class Reply:
    """An answer whose head has arrived."""

    __slots__ = ("_body", "_response", "_server", "limit")

    def __init__(self, response: aiohttp.ClientResponse, server: str, limit: int) -> None:
        self._response = response
        self._server = server
        self._body: bytes | None = None
        self.limit = limit

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def kind(self) -> str:
        """The media type, in lower case and without parameters."""
        return self._response.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    def header(self, name: str) -> str:
        return self._response.headers.get(name, "")

    async def read(self) -> bytes:
        """The whole body. Raises TooLarge or Unreachable."""
        if self._body is None:
            chunks: list[bytes] = []
            size = 0
            async for chunk in self.chunks():
                size += len(chunk)
                if size > self.limit:
                    raise TooLarge(self._server)
                chunks.append(chunk)
            self._body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        return self._body

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises Unreachable."""
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(self._server, str(error)) from error


class Sending:
    """The exchange as a context: gives the Reply, and lets the connection go at the end."""

    __slots__ = ("_context", "_limit", "_server")

    def __init__(self, context: _RequestContextManager, server: str, limit: int) -> None:
        self._context = context
        self._server = server
        self._limit = limit

    async def __aenter__(self) -> Reply:
        try:
            response = await self._context.__aenter__()
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, AddressRefused):
                raise AddressBlocked(self._server, str(error.os_error)) from error
            raise Unreachable(self._server, error.os_error.strerror or str(error.os_error)) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unreachable(self._server, str(error)) from error
        return Reply(response, self._server, self._limit)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._context.__aexit__(kind, error, trace)


class Transport:
    """Connections to upstream servers, kept open between calls."""

    def __init__(self, guard: Guard, *, limit: int, listener: str, secret: str) -> None:
        self._guard = guard
        self._limit = limit
        self._listener = listener
        self._secret = secret
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    async def __aenter__(self) -> Self:
        own = urlsplit(self._listener)
        self._sessions = {
            "https": _session(self._guard.socket_factory(encrypted=True)),
            "http": _session(self._guard.socket_factory(encrypted=False)),
            "builtin": _session(_only(own.hostname or "", own.port or 80)),
        }
        return self

    async def __aexit__(self, *_: object) -> None:
        for session in self._sessions.values():
            await session.close()

    def send(self, verb: str, server: str, url: str, headers: Mapping[str, str], body: bytes = b"") -> Sending:
        """Send one request to `url`; enter the result to get the Reply. `server` is for the messages."""
        scheme = url.partition(":")[0]
        if scheme == "builtin":
            headers = {**headers, builtin.SECRET_HEADER: self._secret}
            url = self._listener + builtin.PATH
        target = URL(url, encoded=True)
        context = self._sessions[scheme].request(verb, target, data=body, headers=headers, allow_redirects=False)
        return Sending(context, server, self._limit)


def _session(factory: "aiohttp.connector.SocketFactoryType") -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0, socket_factory=factory)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        trust_env=False,
        read_bufsize=READ_BYTES,
        skip_auto_headers=("User-Agent",),
    )


def _only(host: str, port: int) -> "aiohttp.connector.SocketFactoryType":
    """A factory whose sockets go to this process's own listener and nowhere else."""
    admitted = {info[4][:2] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)} if host else set()

    def open_socket(info: AddrInfo) -> socket.socket:
        family, kind, protocol, _, sockaddr = info
        if sockaddr[:2] not in admitted:
            raise AddressRefused(AddressRefused.__doc__)
        return socket.socket(family, kind, protocol)

    return open_socket
