"""An MCP server of the session era without an SDK, so that tests can check every byte the gateway sends."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from tests.asgi_server import App, Receive, Scope, Seen, Send, Upstream, headers_of, live, read
from tests.asgi_server import running as on_the_wire

type Object = dict[str, Any]

URI = "note://today"
FORM: Object = {
    "method": "elicitation/create",
    "params": {"message": "Who?", "requestedSchema": {"type": "object", "properties": {}}},
}

INTRODUCTION: Object = {
    "protocolVersion": "2025-06-18",
    "capabilities": {"tools": {"listChanged": True}, "resources": {"subscribe": True}},
    "serverInfo": {"name": "contract", "version": "1"},
}
TOOLS = ("echo", "whoami", "fail", "slow", "ask", "ask_twice")
EMPTY = ("ping", "resources/subscribe", "resources/unsubscribe")


def tool(name: str, description: str = "", **properties: Any) -> Object:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"name": name, "description": description, "inputSchema": schema}


@dataclass
class Request:
    """A received message, with methods to answer it."""

    message: Object
    headers: dict[str, str]
    receive: Receive
    send: Send

    async def result(self, result: Object, **headers: str) -> None:
        await self.respond(200, {"jsonrpc": "2.0", "id": self.message.get("id"), "result": result}, **headers)

    async def text(self, text: str, *, is_error: bool = False) -> None:
        await self.result({"content": [{"type": "text", "text": text}], "isError": is_error})

    async def respond(self, status: int, body: Object | None = None, **headers: str) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        pairs = [(b"content-type", b"application/json")]
        pairs += [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": pairs})
        await self.send({"type": "http.response.body", "body": content})

    async def unknown_method(self) -> None:
        modern = self.headers.get("mcp-protocol-version", "").startswith("2026")
        error = {"code": -32601, "message": "Method not found"}
        await self.respond(400 if modern else 200, {"jsonrpc": "2.0", "id": self.message["id"], "error": error})

    async def open_stream(self) -> None:
        kind = (b"content-type", b"text/event-stream")
        await self.send({"type": "http.response.start", "status": 200, "headers": [kind]})

    async def event(self, message: Object, *, last: bool = False) -> None:
        data = f"data: {json.dumps({'jsonrpc': '2.0', **message})}\n\n".encode()
        await self.send({"type": "http.response.body", "body": data, "more_body": not last})


@dataclass
class Server:
    """A server with tools, which records its requests.

    `echo` returns its text, `whoami` returns the received credential, and `fail` returns an error that quotes the
    credential. `slow` answers when `release` is called. `ask` and `ask_twice` ask the client for input first.
    """

    tools: list[Object] = field(default_factory=lambda: [tool(name) for name in TOOLS])
    uri: str = URI
    upstream: Upstream = field(default_factory=lambda: Upstream(0))
    started: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    cancelled: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _loop: asyncio.AbstractEventLoop | None = None
    _released: asyncio.Event = field(default_factory=asyncio.Event)
    _answers: dict[tuple[str, object], asyncio.Future[Object]] = field(default_factory=dict)
    _listeners: list[asyncio.Queue[Object]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.upstream.url

    def calls(self, name: str | None = None) -> list[Seen]:
        """Return the received tool calls."""
        return [one for one in self.upstream.asked("tools/call") if name in (None, one.body["params"]["name"])]

    def release(self) -> None:
        """Let every slow call finish."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._released.set)

    def notify(self, method: str, **params: Any) -> None:
        """Send this notification on every open standing stream."""
        assert self._loop is not None
        message = {"method": method, "params": params}
        for queue in list(self._listeners):
            self._loop.call_soon_threadsafe(queue.put_nowait, message)

    @property
    def listeners(self) -> int:
        return len(self._listeners)

    def app(self) -> App:
        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            self._loop = asyncio.get_running_loop()
            if scope["type"] == "lifespan":
                await live(receive, send)
                return
            body = await read(receive)
            request = Request(json.loads(body) if body else {}, headers_of(scope), receive, send)
            if scope["method"] == "GET":
                await self._listen(request)
            elif scope["method"] == "DELETE":
                await request.respond(200)
            else:
                await self._message(request)

        return serve

    async def _message(self, request: Request) -> None:
        method = request.message.get("method", "")
        results = {
            **{name: {} for name in EMPTY},
            "tools/list": {"tools": self.tools},
            "resources/list": {"resources": [{"uri": self.uri, "name": "today"}]},
        }
        if method in results:
            await request.result(results[method])
        elif method == "initialize":
            await request.result(INTRODUCTION, mcp_session_id=uuid4().hex)
        elif method == "tools/call":
            await self._call(request)
        elif "id" in request.message and method:
            await request.unknown_method()
        else:
            await self._one_way(request)

    async def _one_way(self, request: Request) -> None:
        """Handle a notification, or a client's response to a server request, and answer 202."""
        key = (request.headers.get("mcp-session-id", ""), request.message.get("id"))
        if waiting := self._answers.pop(key, None):
            waiting.set_result(request.message)
        elif request.message.get("method") == "notifications/cancelled":
            self.cancelled.release()
        await request.respond(202)

    async def _call(self, request: Request) -> None:
        arguments = request.message["params"].get("arguments", {})
        match request.message["params"]["name"]:
            case "whoami":
                await request.text(request.headers.get("authorization", "nobody"))
            case "fail":
                credential = request.headers.get("authorization", "nobody")
                await request.text(f"the backend refused {credential}", is_error=True)
            case "slow":
                await self._slow(request)
            case "ask":
                await self._ask(request, 1)
            case "ask_twice":
                await self._ask(request, 2)
            case _:
                await request.text(str(arguments.get("text", "")))

    async def _slow(self, request: Request) -> None:
        self.started.release()
        await self._released.wait()
        await request.text("done")

    async def _ask(self, request: Request, times: int) -> None:
        await request.open_stream()
        given = []
        for _ in range(times):
            number = uuid4().hex
            answered = self._answers[request.headers["mcp-session-id"], number] = asyncio.Future()
            await request.event({"id": number, **FORM})
            given.append((await answered).get("result", {}).get("content"))
        result = {"content": [{"type": "text", "text": json.dumps(given)}]}
        await request.event({"id": request.message["id"], "result": result}, last=True)

    async def _listen(self, request: Request) -> None:
        queue: asyncio.Queue[Object] = asyncio.Queue()
        self._listeners.append(queue)
        await request.open_stream()
        gone = asyncio.ensure_future(_gone(request.receive))
        try:
            while not gone.done():
                said = asyncio.ensure_future(queue.get())
                await asyncio.wait({said, gone}, return_when=asyncio.FIRST_COMPLETED)
                if said.done():
                    await request.event(said.result())
                else:
                    said.cancel()
        finally:
            self._listeners.remove(queue)
            gone.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Serve `server` until the block ends."""
    with on_the_wire(server.app()) as upstream:
        server.upstream = upstream
        yield server
        if server._loop is not None:
            server.release()
