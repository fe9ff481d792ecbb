"""Servers controlled byte by byte, for responses that no SDK sends."""

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from tests.asgi_server import App, Receive, Scope, Send, headers_of, live, read
from tests.conformance.counter import is_for_lists

type Object = dict[str, Any]

MODERN = "2026-07-28"
FOR_LISTS = "lists-"  # Prefix of the ids of sessions that the gateway opens for lists; tests do not count them.
NO_SESSION = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32001,"message":"Session not found"}}'


@dataclass
class Request:
    """A received request, and the functions to answer it."""

    message: Object
    headers: dict[str, str]
    receive: Receive
    send: Send

    async def answer(self, body: bytes | Object, *, status: int = 200, **headers: str) -> None:
        """Send the bytes `body`, or the object `body` as the result of a JSON-RPC response."""
        if isinstance(body, dict):
            body = json.dumps({"jsonrpc": "2.0", "id": self.message.get("id"), "result": body}).encode()
        await self.respond(status, body, {"content-type": "application/json", **headers})

    async def fail(self, code: int, message: str, *, status: int = 200, data: object = None) -> None:
        error = {"code": code, "message": message} | ({"data": data} if data is not None else {})
        await self.answer(
            json.dumps({"jsonrpc": "2.0", "id": self.message.get("id"), "error": error}).encode(), status=status
        )

    async def respond(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": pairs})
        await self.send({"type": "http.response.body", "body": body})

    async def open_stream(self) -> None:
        pairs = [(b"content-type", b"text/event-stream")]
        await self.send({"type": "http.response.start", "status": 200, "headers": pairs})

    async def event(self, message: Object, *, last: bool = False) -> None:
        data = b"data: " + json.dumps(message).encode() + b"\n\n"
        await self.send({"type": "http.response.body", "body": data, "more_body": not last})


type Handler = Callable[[Request], Awaitable[None]]


@dataclass
class Script:
    """An MCP server whose tools and answers a test provides.

    `pages` are the pages of its tool list. `call` answers tool calls, and `methods` answer requests of other methods.
    """

    pages: Sequence[Sequence[Object]] = ()
    call: Handler | None = None
    modern: bool = False
    sessions: bool = False
    version: str = "2025-06-18"
    opened: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    methods: dict[str, Handler] = field(default_factory=dict)

    def app(self) -> App:
        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await live(receive, send)
                return
            body = await read(receive)
            request = Request(json.loads(body) if body else {}, headers_of(scope), receive, send)
            await self.serve(request, scope["method"])

        return serve

    async def serve(self, request: Request, verb: str) -> None:
        session = request.headers.get("mcp-session-id", "")
        if verb == "DELETE":
            if not session.startswith(FOR_LISTS):
                self.ended.append(session)
            await request.answer(b"")
        elif verb != "POST":
            await request.answer(b"", status=405)
        elif self.modern != (request.headers.get("mcp-protocol-version") == MODERN):
            await request.fail(-32022 if self.modern else -32600, "Unsupported protocol version", status=400)
        elif self.sessions and request.message["method"] != "initialize" and not self.knows(session):
            await request.answer(NO_SESSION, status=404)
        else:
            await self.method(request)

    def knows(self, session: str) -> bool:
        return session in self.opened or session.startswith(FOR_LISTS)

    async def method(self, request: Request) -> None:
        match request.message["method"]:
            case method if method in self.methods:
                await self.methods[method](request)
            case "initialize":
                await self.initialize(request)
            case "server/discover":
                await request.answer({"supportedVersions": [MODERN], "capabilities": self.capabilities})
            case "tools/list":
                await self.list(request)
            case "tools/call" if self.call is not None:
                await self.call(request)
            case method if method.startswith("notifications/"):
                await request.answer(b"", status=202)
            case method:
                await request.fail(-32601, f"Method not found: {method}")

    @property
    def capabilities(self) -> Object:
        """Return the declared capabilities. The gateway sends log levels only to a server that declares `logging`."""
        return {"tools": {}, **({"logging": {}} if "logging/setLevel" in self.methods else {})}

    async def initialize(self, request: Request) -> None:
        info = {"name": "scripted"}
        result = {"protocolVersion": self.version, "capabilities": self.capabilities, "serverInfo": info}
        if not self.sessions:
            await request.answer(result)
            return
        if is_for_lists(request.message["params"]):
            await request.answer(result, mcp_session_id=f"{FOR_LISTS}{uuid4()}")
            return
        self.opened.append(f"session-{len(self.opened)}")
        await request.answer(result, mcp_session_id=self.opened[-1])

    async def list(self, request: Request) -> None:
        page = int(request.message.get("params", {}).get("cursor", 0))
        more = {"nextCursor": str(page + 1)} if page + 1 < len(self.pages) else {}
        await request.answer({"tools": list(self.pages[page]) if self.pages else [], **more})


def tool(name: str, **more: Any) -> Object:
    return {"name": name, "inputSchema": {"type": "object"}, **more}


def offering(*names: str) -> App:
    """Return a server that offers these tools, each of which answers with its own name."""

    async def call(request: Request) -> None:
        await request.answer({"content": [{"type": "text", "text": request.message["params"]["name"]}]})

    return Script([[tool(name) for name in names]], call).app()


def calling(call: Handler, *, modern: bool = False, name: str = "it", **schema: Any) -> App:
    """Return a server with one tool. The function `call` answers the tool's calls."""
    return Script([[tool(name, **schema)]], call, modern=modern).app()


def serving(method: str, handler: Handler, *, modern: bool = False) -> App:
    """Return a server without tools that answers this method."""
    return Script(modern=modern, methods={method: handler}).app()


def returning(result: Object | bytes) -> Handler:
    """Return a handler that sends `result`. If it is bytes, `ID` in it is replaced by the request's id."""

    async def answer(request: Request) -> None:
        if isinstance(result, bytes):
            await request.answer(result.replace(b"ID", str(request.message["id"]).encode()))
        else:
            await request.answer(result)

    return answer


def failing(code: Any, message: str = "no", data: object = None, status: int = 200) -> Handler:
    """Return a handler that sends this error."""

    async def fail(request: Request) -> None:
        await request.fail(code, message, data=data, status=status)

    return fail
