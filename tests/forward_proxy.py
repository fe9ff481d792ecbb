"""An outbound proxy for tests: it speaks CONNECT, and a TLS endpoint stands in for the internet."""

import asyncio
import ssl
import sys
import threading
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

SECRET = "pass-of-secrecy"
USER_AND_SECRET = f"gateway:{SECRET}"

type Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class ForwardProxy:
    """A CONNECT proxy that connects to a local port: the one that `ways` has for the requested address, or else `to`.

    If `says` is set, the proxy answers with these bytes instead of connecting. `asked` has the requested addresses as
    spelled by the client, `heads` the complete request headers.
    """

    to: int
    credentials: str = ""
    says: bytes | None = None
    hangs: bool = False
    ways: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        self.heads.append(head)
        self.asked.append(target)
        expected = f"Proxy-Authorization: Basic {b64encode(self.credentials.encode()).decode()}\r\n".encode()
        if self.hangs:
            await reader.read()
        elif self.says is not None:
            writer.write(self.says)
            await writer.drain()
        elif method != "CONNECT":
            writer.write(b"HTTP/1.1 405 No\r\n\r\n")
        elif self.credentials and expected not in head:
            writer.write(b"HTTP/1.1 407 Who are you\r\nProxy-Authenticate: Basic\r\nContent-Length: 4\r\n\r\nwho?")
        else:
            there, back = await asyncio.open_connection("127.0.0.1", self.ways.get(target, self.to))
            writer.write(b"HTTP/1.1 200 Connection established\r\nVia: 1.1 test\r\n\r\n")
            await _join(reader, writer, there, back)


async def _join(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, there: asyncio.StreamReader, back: asyncio.StreamWriter
) -> None:
    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await source.read(1 << 16):
                sink.write(piece)
                await sink.drain()
        with suppress(OSError, RuntimeError):
            sink.close()

    try:
        await asyncio.gather(copy(reader, back), copy(there, writer))
    finally:
        back.transport.abort()


async def close_listener(server: asyncio.Server) -> None:
    """Stop accepting connections. asyncio would leak a connection that it accepts while its server closes."""
    for listener in server.sockets:
        asyncio.get_running_loop().remove_reader(listener.fileno())
    for _ in range(3):  # Connections accepted until now reach their handlers.
        await asyncio.sleep(0)
    server.close()


@contextmanager
def listening(handle: Handle, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Yield the port at which `handle` gets connections, until the block ends."""
    started: list[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = []
    ready = threading.Event()

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await handle(reader, writer)
                writer.close()
                await writer.wait_closed()
        finally:
            writer.transport.abort()  # The closing handshake of TLS may outlast the loop.

    async def run() -> None:
        over = asyncio.Event()
        server = await asyncio.start_server(guarded, "127.0.0.1", 0, ssl=tls)
        started.append((asyncio.get_running_loop(), over, server.sockets[0].getsockname()[1]))
        ready.set()
        await over.wait()
        await close_listener(server)
        mine = asyncio.current_task()
        for _ in range(4):  # While tasks end, TLS handshakes may succeed and start new ones.
            await asyncio.sleep(0)  # Cancelling a task that has not started would leak its connection.
            rest = [task for task in asyncio.all_tasks() if task is not mine]
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            if sys.version_info >= (3, 13):
                server.abort_clients()  # Connections in the middle of a TLS handshake have no task yet.
        await asyncio.sleep(0)

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert ready.wait(30)
    loop, over, port = started[0]
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(30)


@contextmanager
def internet(port: int, tls: ssl.SSLContext) -> Iterator[int]:
    """Yield the port of a TLS endpoint in front of the HTTP server at `port`."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _join(reader, writer, *await asyncio.open_connection("127.0.0.1", port))

    with listening(pass_on, tls) as at:
        yield at


@contextmanager
def forward_proxy(to: int, tls: ssl.SSLContext | None = None, **options: object) -> Iterator[ForwardProxy]:
    """Yield a proxy on a loopback port, over TLS if `tls` is given."""
    proxy = ForwardProxy(to, **options)  # type: ignore[arg-type]
    with listening(proxy.serve, tls) as proxy.port:
        yield proxy
