"""Real MCP servers to stand behind the gateway: the SDK's own, and some that do not behave.

Each maker returns an ASGI app; `running(app)` puts it on the wire and yields an `Upstream`, which
remembers every request it got: what the gateway sent is asserted there, not guessed.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError

from tests.asgi_server import App, Receive, Scope, Send, Upstream, answer, headers_of, live, read, running

__all__ = ["App", "Upstream", "running"]

MODERN = "2026-07-28"
SESSION_ERA = ("2025-03-26", "2025-06-18", "2025-11-25")


# Servers that behave


def docs(*, json_response: bool = False, stateless: bool = False) -> App:
    """No credential. Tools of every temper, a resource and a prompt."""
    server = MCPServer("docs", version="1.0", log_level="WARNING", instructions="Search the handbook.")
    for tool in (echo, add, search, slow, fail, big):
        server.add_tool(tool)
    server.resource("docs://handbook")(handbook)
    server.prompt()(summarise)
    return server.streamable_http_app(json_response=json_response, stateless_http=stateless)


def github() -> App:
    """A bearer for each user; `whoami` says which one it saw."""
    server = MCPServer("github", version="1.0", log_level="WARNING")
    for tool in (whoami, create_issue):
        server.add_tool(tool)
    return guarded(server.streamable_http_app(), "authorization", "Bearer ")


def whoami_server() -> App:
    """`whoami`, whoever asks: who may ask is somebody else's business."""
    server = MCPServer("github", version="1.0", log_level="WARNING")
    server.add_tool(whoami)
    return server.streamable_http_app()


def crm() -> App:
    """One shared credential, in a header of its own; `which_key` says what came in it."""
    server = MCPServer("crm", version="1.0", log_level="WARNING")
    for tool in (which_key, find_customer):
        server.add_tool(tool)
    return guarded(server.streamable_http_app(), "x-api-key", "")


def echo(text: str) -> str:
    """Give back what you got."""
    return text


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def search(query: str, limit: int = 3) -> list[str]:
    """Find pages of the handbook."""
    return [f"{query} {number}" for number in range(limit)]


async def slow(seconds: float, ctx: Context[Any, Any]) -> str:
    """Take your time and say how far you are."""
    for step in range(4):
        await ctx.report_progress(step, 4)
        await anyio.sleep(seconds / 4)
    return "done"


def fail(reason: str = "out of paper") -> str:
    """Always end in a tool error."""
    raise ToolError(reason)


def big(kilobytes: int) -> str:
    """Answer at length."""
    return "x" * 1024 * kilobytes


def handbook() -> str:
    """The handbook."""
    return "Be kind."


def summarise(topic: str) -> str:
    """Ask for a summary."""
    return f"Summarise what the handbook says about {topic}."


def whoami(ctx: Context[Any, Any]) -> str:
    """Say which credential came with this call."""
    return header_of(ctx, "authorization")


def create_issue(title: str) -> dict[str, str]:
    """Open an issue."""
    return {"title": title, "state": "open"}


def which_key(ctx: Context[Any, Any]) -> str:
    """Say which key came with this call."""
    return header_of(ctx, "x-api-key")


def find_customer(name: str) -> dict[str, str]:
    """Look a customer up."""
    return {"name": name, "status": "active"}


def header_of(ctx: Context[Any, Any], name: str) -> str:
    request = ctx.request_context.request
    assert request is not None
    return str(request.headers.get(name, ""))


# Servers that refuse some of their callers


def guarded(app: App, header: str, scheme: str) -> App:
    """Answer 401 unless the header is there, with the cookie and the challenge hosted servers send."""

    async def judge(scope: Scope, send: Send) -> bool:
        value = headers_of(scope).get(header, "")
        if value.startswith(scheme) and value != scheme:
            return True
        extra = [(b"www-authenticate", b'Bearer realm="upstream"'), (b"set-cookie", b"session=upstream; Path=/")]
        await answer(send, 401, b'{"error":"unauthorized"}', headers=extra)
        return False

    return judged(app, judge)


def session_era(app: App) -> App:
    """Knows `initialize` and sessions only; a 2026-07-28 request gets what older SDKs answer."""

    async def judge(scope: Scope, send: Send) -> bool:
        version = headers_of(scope).get("mcp-protocol-version", "")
        if version in ("", *SESSION_ERA):
            return True
        await refuse(send, -32600, f"Bad Request: Unsupported protocol version: {version}")
        return False

    return judged(app, judge)


def modern_era(app: App) -> App:
    """Speaks 2026-07-28 only and refuses `initialize` and everything without its header."""

    async def judge(scope: Scope, send: Send) -> bool:
        version = headers_of(scope).get("mcp-protocol-version", "")
        if version == MODERN:
            return True
        data = {"supported": [MODERN], "requested": version or SESSION_ERA[-1]}
        await refuse(send, -32022, "Unsupported protocol version", data=data)
        return False

    return judged(app, judge)


def under_any_name(app: App) -> App:
    """Answers whatever host it is called; the SDK's servers are meant for loopback names."""

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope.get("headers", ()) if name != b"host"]
        await app({**scope, "headers": [*headers, (b"host", b"127.0.0.1:80")]}, receive, send)

    return door


def judged(app: App, judge: Callable[[Scope, Send], Awaitable[bool]]) -> App:
    """`app` behind a judge, who answers what he does not let through."""

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or await judge(scope, send):
            await app(scope, receive, send)

    return door


async def refuse(send: Send, code: int, message: str, **extra: object) -> None:
    error = {"code": code, "message": message, **extra}
    await answer(send, 400, json.dumps({"jsonrpc": "2.0", "id": None, "error": error}).encode())


# Servers that do not behave


def silent() -> App:
    """Takes every request and never answers, until its caller leaves."""

    async def wait(receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    return bare(wait)


def garbage(body: bytes = b"<html>Bad gateway</html>", *, status: int = 200, kind: str = "text/html") -> App:
    """Answers everything with the same bytes, whatever they are."""

    async def repeat(receive: Receive, send: Send) -> None:
        await answer(send, status, body, headers=[(b"content-type", kind.encode())])

    return bare(repeat)


def redirecting(target: str) -> App:
    """Sends every caller somewhere else; a gateway must not follow."""

    async def send_away(receive: Receive, send: Send) -> None:
        await answer(send, 307, b"", headers=[(b"location", target.encode())])

    return bare(send_away)


def cut_off() -> App:
    """Starts an event stream and ends it before the answer."""

    async def begin_only(receive: Receive, send: Send) -> None:
        start = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": start})
        progress = b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progress":1}}'
        await send({"type": "http.response.body", "body": b"data: " + progress + b"\n\n"})

    return bare(begin_only)


def http_sse() -> App:
    """Only HTTP+SSE of 2024-11-05: GET opens a stream whose first event names where to POST."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send)
            return
        kind, status = (b"text/event-stream", 200) if scope["method"] == "GET" else (b"text/plain", 405)
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        first = b"event: endpoint\ndata: /messages?session=1\n\n" if status == 200 else b"Method Not Allowed"
        await send({"type": "http.response.body", "body": first, "more_body": status == 200})
        while status == 200 and (await receive())["type"] != "http.disconnect":
            pass

    return app


def bare(handle: Callable[[Receive, Send], Awaitable[None]]) -> App:
    """An app that treats every request alike."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send)
        else:
            await read(receive)
            await handle(receive, send)

    return app
