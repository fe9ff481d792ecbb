"""Connections through the outbound proxy for MCP calls: a CONNECT tunnel, and TLS inside it."""

from __future__ import annotations

import asyncio
import socket
import ssl

from wire.forward_proxy import END, LARGEST_HEAD, OutboundProxy
from wire.guard import tls
from wire.resolver import Resolver


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
