"""Serve an ASGI app on a loopback port, in a thread, and record its requests."""

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

type Scope = MutableMapping[str, Any]
type Message = MutableMapping[str, Any]
type Receive = Callable[[], Awaitable[Message]]
type Send = Callable[[Message], Awaitable[None]]
type App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as it arrived at the upstream."""

    verb: str
    headers: dict[str, str]
    body: Any

    @property
    def method(self) -> str:
        return str(self.body.get("method", "")) if isinstance(self.body, dict) else ""


@dataclass
class Upstream:
    """A running server: its address and the requests it got."""

    port: int
    seen: list[Seen] = field(default_factory=list)
    clients_gone: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released once for each caller that leaves before its answer is complete."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    def asked(self, method: str) -> list[Seen]:
        return [request for request in self.seen if request.method == method]


class Server(uvicorn.Server):
    """A uvicorn server that stops at once when `stop` is called; polling a flag, as uvicorn does, makes tests slow."""

    def __init__(self, config: uvicorn.Config, patience: float) -> None:
        super().__init__(config)
        self._patience = patience
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told = asyncio.Event()

    def stop(self) -> None:
        """Stop the server; called from another thread."""
        self.should_exit = True
        if self._loop:
            self._loop.call_soon_threadsafe(self._told.set)

    async def main_loop(self) -> None:
        self._loop = asyncio.get_running_loop()
        if not await self.on_tick(0):
            await self._told.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        for _ in range(round(self._patience / 0.002)):
            if not self.server_state.connections and not self.server_state.tasks:
                break
            await asyncio.sleep(0.002)
        for task in self.server_state.tasks:
            task.cancel()
        await self.lifespan.shutdown()
        for connection in list(self.server_state.connections):
            connection.transport.abort()  # uvloop does not close its loop while a connection is open.
        await asyncio.sleep(0)


@contextmanager
def running(app: App, *, port: int = 0, patience: float = 0.02) -> Iterator[Upstream]:
    """Serve `app` on a loopback port until the block ends; pass the `port` of a stopped server to restart it.

    Answers in progress at the end, such as open streams, have `patience` seconds before they are closed.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    upstream = Upstream(listener.getsockname()[1])
    server = Server(uvicorn.Config(recorded(app, upstream), ws="none", log_config=None), patience)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    # Connections made before uvicorn accepts wait in the backlog, so clients need not poll.
    listener.listen(128)
    thread.start()
    try:
        yield upstream
    finally:
        server.stop()
        thread.join(timeout=60)
        listener.close()
        assert not thread.is_alive(), "an upstream server did not stop"


def recorded(app: App, upstream: Upstream) -> App:
    async def recorder(scope: Scope, receive: Receive, send: Send) -> None:
        body = await read(receive)
        upstream.seen.append(Seen(scope["method"], headers_of(scope), parsed(body)))
        replay = [{"type": "http.request", "body": body, "more_body": False}]
        ended = False

        async def receive_again() -> Message:
            if replay:
                return replay.pop()
            message = await receive()
            if message["type"] == "http.disconnect" and not ended:
                upstream.clients_gone.release()
            return message

        async def send_on(message: Message) -> None:
            nonlocal ended
            ended = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        await app(scope, receive_again, send_on)

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        await (recorder if scope["type"] == "http" else app)(scope, receive, send)

    return door


async def read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(body)


def parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")


def headers_of(scope: Scope) -> dict[str, str]:
    return {name.decode().lower(): value.decode() for name, value in scope["headers"]}


async def live(receive: Receive, send: Send) -> None:
    for phase in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{phase}.complete"})


async def answer(
    send: Send,
    status: int,
    body: bytes,
    *,
    headers: list[tuple[bytes, bytes]] | None = None,
) -> None:
    names = {name for name, _ in headers or []}
    kind = [] if b"content-type" in names else [(b"content-type", b"application/json")]
    start = [*kind, (b"content-length", str(len(body)).encode()), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})
