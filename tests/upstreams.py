"""Real upstream MCP servers: the SDK's own, and broken ones.

Each function returns an ASGI app; `running(app)` serves it and yields an `Upstream`, which records every request, so
that tests can check what the gateway sent.
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
    """Return a server that needs no credential and has tools of all kinds, a resource and a prompt."""
    server = MCPServer("docs", version="1.0", log_level="WARNING", instructions="Search the handbook.")
    for tool in (echo, add, search, slow, fail, big):
        server.add_tool(tool)
    server.resource("docs://handbook")(handbook)
    server.prompt()(summarise)
    return server.streamable_http_app(json_response=json_response, stateless_http=stateless)


def github() -> App:
    """Return a server with a bearer token per user; `whoami` returns the received token."""
    server = MCPServer("github", version="1.0", log_level="WARNING")
    for tool in (whoami, create_issue):
        server.add_tool(tool)
    return guarded(server.streamable_http_app(), "authorization", "Bearer ")


def whoami_server() -> App:
    """Return a server whose tool `whoami` returns the credential, without checking it."""
    server = MCPServer("github", version="1.0", log_level="WARNING")
    server.add_tool(whoami)
    return server.streamable_http_app()


def crm() -> App:
    """Return a server that takes a shared credential in a header of its own; `which_key` returns the credential."""
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
    """Return `app`, but answer requests without a credential in `header` with 401, a challenge and a cookie."""

    async def judge(scope: Scope, send: Send) -> bool:
        value = headers_of(scope).get(header, "")
        if value.startswith(scheme) and value != scheme:
            return True
        extra = [(b"www-authenticate", b'Bearer realm="upstream"'), (b"set-cookie", b"session=upstream; Path=/")]
        await answer(send, 401, b'{"error":"unauthorized"}', headers=extra)
        return False

    return judged(app, judge)


def session_era(app: App) -> App:
    """Return a server of the session era. It answers 2026-07-28 requests with the error that older SDKs send."""

    async def judge(scope: Scope, send: Send) -> bool:
        version = headers_of(scope).get("mcp-protocol-version", "")
        if version in ("", *SESSION_ERA):
            return True
        await refuse(send, -32600, f"Bad Request: Unsupported protocol version: {version}")
        return False

    return judged(app, judge)


def modern_era(app: App) -> App:
    """Return a 2026-07-28 server that refuses `initialize` and requests without the MCP-Protocol-Version header."""

    async def judge(scope: Scope, send: Send) -> bool:
        version = headers_of(scope).get("mcp-protocol-version", "")
        if version == MODERN:
            return True
        data = {"supported": [MODERN], "requested": version or SESSION_ERA[-1]}
        await refuse(send, -32022, "Unsupported protocol version", data=data)
        return False

    return judged(app, judge)


def under_any_name(app: App) -> App:
    """Return the app with any Host accepted; the SDK's servers accept loopback names only."""

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope.get("headers", ()) if name != b"host"]
        await app({**scope, "headers": [*headers, (b"host", b"127.0.0.1:80")]}, receive, send)

    return door


def judged(app: App, judge: Callable[[Scope, Send], Awaitable[bool]]) -> App:
    """Return `app` behind `judge`, which may answer a request in place of `app`."""

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or await judge(scope, send):
            await app(scope, receive, send)

    return door


async def refuse(send: Send, code: int, message: str, **extra: object) -> None:
    error = {"code": code, "message": message, **extra}
    await answer(send, 400, json.dumps({"jsonrpc": "2.0", "id": None, "error": error}).encode())


# Servers that do not behave


def silent() -> App:
    """Return a server that never answers; each request ends when its caller disconnects."""

    async def wait(receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    return bare(wait)


def garbage(body: bytes = b"<html>Bad gateway</html>", *, status: int = 200, kind: str = "text/html") -> App:
    """Return a server that answers every request with the same bytes."""

    async def repeat(receive: Receive, send: Send) -> None:
        await answer(send, status, body, headers=[(b"content-type", kind.encode())])

    return bare(repeat)


def refusing(message: str) -> App:
    """Return a server that answers every request with a JSON-RPC error."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send)
            return
        asked = json.loads(await read(receive))
        error = {"jsonrpc": "2.0", "id": asked["id"], "error": {"code": -32603, "message": message}}
        await answer(send, 200, json.dumps(error).encode(), headers=[(b"content-type", b"application/json")])

    return app


def redirecting(target: str) -> App:
    """Return a server that redirects every request, which a gateway must not follow."""

    async def send_away(receive: Receive, send: Send) -> None:
        await answer(send, 307, b"", headers=[(b"location", target.encode())])

    return bare(send_away)


def cut_off() -> App:
    """Return a server that ends its event stream before the answer."""

    async def begin_only(receive: Receive, send: Send) -> None:
        start = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": start})
        progress = b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progress":1}}'
        await send({"type": "http.response.body", "body": b"data: " + progress + b"\n\n"})

    return bare(begin_only)


def http_sse() -> App:
    """Return a server of the HTTP+SSE transport (2024-11-05). GET opens a stream; its first event has the POST URL."""

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
    """Return an app that handles every request with `handle`."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send)
        else:
            await read(receive)
            await handle(receive, send)

    return app
