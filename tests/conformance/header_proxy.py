"""A loopback proxy that adds a bearer token, for programs that cannot send one.

The proxy does not parse messages, but copies bytes. Host, Origin and repeated headers keep their spelling and white
space, and each byte of an answer is passed on when it arrives. The proxy adds the header Authorization to the first
request of a TCP connection. It also sends `Connection: close`, so that there is no second request.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

from tests.forward_proxy import close_listener

HEAD_LIMIT = 64 * 1024
HEAD_END = b"\r\n\r\n"


class HeaderProxy:
    """A proxy that opens its port when created, so that a gateway can start with the proxy's origin in its settings."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def serving(self, port: int, token: str) -> Iterator[str]:
        """Forward each request to `port` on this machine, with `token`. Yield the proxy's origin."""
        loop = asyncio.new_event_loop()
        started = threading.Event()
        stop = asyncio.Event()

        async def serve() -> None:
            relay = Relay(port, token)
            async with await asyncio.start_server(relay.connected, sock=self._listener, limit=HEAD_LIMIT) as server:
                started.set()
                await stop.wait()
                await close_listener(server)
                relay.close()

        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
        thread.start()
        try:
            assert started.wait(60), "the header proxy did not start"
            yield self.origin
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(timeout=10)
            assert not thread.is_alive(), "the header proxy did not stop"
            loop.close()


class Relay:
    """Opens a connection to the target for each client's connection, and copies bytes in both directions."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._added = [f"Authorization: Bearer {token}".encode(), b"Connection: close"]
        self._open: set[asyncio.Task[None]] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            # If a client leaves in the middle of its headers, or the target is gone, there is nothing to forward.
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._join(reader, writer)
        finally:
            self._open.discard(task)
            writer.close()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = self.with_token(await reader.readuntil(HEAD_END))
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            far_writer.write(head)
            # When either side closes, close the other side too: the target must notice that the client has left.
            both = [asyncio.create_task(copy(reader, far_writer)), asyncio.create_task(copy(far_reader, writer))]
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for side in both:
                    side.cancel()
                await asyncio.gather(*both, return_exceptions=True)
        finally:
            far_writer.close()

    def with_token(self, head: bytes) -> bytes:
        start, *lines = head.removesuffix(HEAD_END).split(b"\r\n")
        kept = [line for line in lines if line.split(b":")[0].strip().lower() not in (b"connection", b"keep-alive")]
        return b"\r\n".join([start, *kept, *self._added]) + HEAD_END

    def close(self) -> None:
        for task in self._open:
            task.cancel()


async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while chunk := await source.read(64 * 1024):
        target.write(chunk)
        await target.drain()
