"""Real MCP servers to stand behind the gateway: the SDK's own, on loopback ports, in threads.

Each maker returns an ASGI app; `running(app)` puts it on the wire and yields an `Upstream`, which
remembers every request it got: what the gateway sent is asserted there, not guessed.
"""

import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import uvicorn
from mcp.server import MCPServer
from mcp.server.mcpserver import Context

type Scope = MutableMapping[str, Any]
type Message = MutableMapping[str, Any]
type Receive = Callable[[], Awaitable[Message]]
type Send = Callable[[Message], Awaitable[None]]
type App = Callable[[Scope, Receive, Send], Awaitable[None]]

MODERN = "2026-07-28"
SESSION_ERA = ("2025-03-26", "2025-06-18", "2025-11-25")


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
    """A server on the wire: where it is and what it has been asked."""

    port: int
    seen: list[Seen] = field(default_factory=list)
    clients_gone: threading.Semaphore = field(
        default_factory=lambda: threading.Semaphore(0)
    )
    """Released once for each caller that leaves before its answer is complete."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    def asked(self, method: str) -> list[Seen]:
        return [request for request in self.seen if request.method == method]


@contextmanager
def running(app: App, *, port: int = 0) -> Iterator[Upstream]:
    """Serve `app` on a loopback port until the block ends; `port` brings a stopped one back."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    upstream = Upstream(listener.getsockname()[1])
    config = uvicorn.Config(
        recorded(app, upstream), ws="none", log_config=None, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, daemon=True
    )
    # Connections made before uvicorn accepts wait in the backlog: nobody needs to poll.
    listener.listen(128)
    thread.start()
    try:
        yield upstream
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()
        assert not thread.is_alive(), "an upstream server did not stop"


def recorded(app: App, upstream: Upstream) -> App:
    async def recorder(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        body = await read(receive)
        headers = {
            name.decode().lower(): value.decode() for name, value in scope["headers"]
        }
        upstream.seen.append(Seen(scope["method"], headers, parsed(body)))
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
            ended = message["type"] == "http.response.body" and not message.get(
                "more_body"
            )
            await send(message)

        await app(scope, receive_again, send_on)

    return recorder


async def read(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


def parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")


# Servers that behave


def docs(*, json_response: bool = False, stateless: bool = False) -> App:
    """No credential. Tools of every temper, a resource and a prompt."""
    server = MCPServer(
        "docs", version="1.0", log_level="WARNING", instructions="Search the handbook."
    )

    @server.tool()
    def echo(text: str) -> str:
        """Give back what you got."""
        return text

    @server.tool()
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    @server.tool(title="Search the handbook")
    def search(query: str, limit: int = 3) -> list[str]:
        """Find pages of the handbook."""
        return [f"{query} {number}" for number in range(limit)]

    @server.tool()
    async def slow(seconds: float, ctx: Context[Any, Any]) -> str:
        """Take your time and say how far you are."""
        for step in range(4):
            await ctx.report_progress(step, 4)
            await anyio.sleep(seconds / 4)
        return "done"

    @server.tool()
    def fail(reason: str = "out of paper") -> str:
        """Always end in a tool error."""
        raise ValueError(reason)

    @server.tool()
    def big(kilobytes: int) -> str:
        """Answer at length."""
        return "x" * 1024 * kilobytes

    @server.resource("docs://handbook")
    def handbook() -> str:
        """The handbook."""
        return "Be kind."

    @server.prompt()
    def summarise(topic: str) -> str:
        """Ask for a summary."""
        return f"Summarise what the handbook says about {topic}."

    return server.streamable_http_app(
        json_response=json_response, stateless_http=stateless
    )


def github() -> App:
    """A bearer for each user; `whoami` says which one it saw."""
    server = MCPServer("github", version="1.0", log_level="WARNING")

    @server.tool()
    def whoami(ctx: Context[Any, Any]) -> str:
        """Say which credential came with this call."""
        return header_of(ctx, "authorization")

    @server.tool()
    def create_issue(title: str) -> dict[str, str]:
        """Open an issue."""
        return {"title": title, "state": "open"}

    return guarded(server.streamable_http_app(), "authorization", "Bearer ")


def crm() -> App:
    """One shared credential, in a header of its own."""
    server = MCPServer("crm", version="1.0", log_level="WARNING")

    @server.tool()
    def which_key(ctx: Context[Any, Any]) -> str:
        """Say which key came with this call."""
        return header_of(ctx, "x-api-key")

    @server.tool()
    def find_customer(name: str) -> dict[str, str]:
        """Look a customer up."""
        return {"name": name, "status": "active"}

    return guarded(server.streamable_http_app(), "x-api-key", "")


def header_of(ctx: Context[Any, Any], name: str) -> str:
    request = ctx.request_context.request
    assert request is not None
    return str(request.headers.get(name, ""))


def guarded(app: App, header: str, scheme: str) -> App:
    """Answer 401 unless the header is there, the way hosted servers do."""

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = {
                name.decode().lower(): value.decode()
                for name, value in scope["headers"]
            }
            value = headers.get(header, "")
            if not value.startswith(scheme) or value == scheme:
                challenge = [(b"www-authenticate", b'Bearer realm="upstream"'), cookie]
                return await answer(
                    send, 401, b'{"error":"unauthorized"}', headers=challenge
                )
        await app(scope, receive, send)

    cookie = (b"set-cookie", b"session=upstream; Path=/")
    return guard


# Servers of one era


def session_era(app: App) -> App:
    """Knows `initialize` and sessions only; a 2026-07-28 request gets what older SDKs answer."""

    async def only_sessions(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and version_of(scope) not in ("", *SESSION_ERA):
            message = f"Bad Request: Unsupported protocol version: {version_of(scope)}"
            return await refuse(send, -32600, message, None)
        await app(scope, receive, send)

    return only_sessions


def modern_era(app: App) -> App:
    """Speaks 2026-07-28 only and refuses `initialize` and everything without its header."""

    async def only_modern(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and version_of(scope) != MODERN:
            data = {
                "supported": [MODERN],
                "requested": version_of(scope) or SESSION_ERA[-1],
            }
            return await refuse(send, -32022, "Unsupported protocol version", data)
        await app(scope, receive, send)

    return only_modern


def version_of(scope: Scope) -> str:
    names = dict(scope["headers"])
    return str(names.get(b"mcp-protocol-version", b"").decode())


async def refuse(send: Send, code: int, message: str, data: object) -> None:
    error = {"code": code, "message": message} | ({"data": data} if data else {})
    body = json.dumps({"jsonrpc": "2.0", "id": None, "error": error}).encode()
    await answer(send, 400, body)


# Servers that do not behave


def silent() -> App:
    """Takes every request and never answers, until its caller leaves."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await live(receive, send)
        while (await receive())["type"] != "http.disconnect":
            pass

    return app


def garbage(
    body: bytes = b"<html>Bad gateway</html>",
    *,
    status: int = 200,
    kind: str = "text/html",
) -> App:
    """Answers everything with the same bytes, whatever they are."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await live(receive, send)
        await read(receive)
        await answer(send, status, body, headers=[(b"content-type", kind.encode())])

    return app


def redirecting(target: str) -> App:
    """Sends every caller somewhere else; a gateway must not follow."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await live(receive, send)
        await read(receive)
        await answer(send, 307, b"", headers=[(b"location", target.encode())])

    return app


def cut_off() -> App:
    """Starts an event stream and drops it before the answer."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await live(receive, send)
        await read(receive)
        start = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": start})
        progress = b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progress":1}}'
        await send(
            {"type": "http.response.body", "body": b"data: " + progress + b"\n\n"}
        )

    return app


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
