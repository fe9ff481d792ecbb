"""A server that counts calls per session and records session events, to test how the gateway handles them.

Raw ASGI, so that no SDK is between the gateway's bytes and the record. Serve it with
`tests.asgi_server.running(Counter())`; the test reads `counter.seen` from its own thread. To run it alone, in the
session era: `python -m tests.conformance.counter PORT`.

`count` answers `{"count": 3, "session": "..."}`: the number of calls so far in this session or, without sessions
(2026-07-28), of all calls so far.

`wait` answers after `seconds` (default 30), and reports progress twice a second if requested. It ends without an
answer if the client cancels the call (`notifications/cancelled`) or disconnects.
"""

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import uvicorn

from tests.asgi_server import Receive, Scope, Send, answer, headers_of, live, parsed, read
from tests.eventually import PATIENCE

type Json = dict[str, Any]

SESSION_ERA = ("2025-03-26", "2025-06-18", "2025-11-25")
MODERN = "2026-07-28"
PROGRESS_SECONDS = 0.5
TOOLS = [
    {"name": "count", "description": "Count the calls of this session.", "inputSchema": {"type": "object"}},
    {
        "name": "wait",
        "description": "Wait until the time is over or the call is cancelled.",
        "inputSchema": {"type": "object", "properties": {"seconds": {"type": "number"}}},
    },
]


def is_for_lists(params: Json) -> bool:
    """Return True if the gateway opened this session to read lists, for which it declares all client capabilities."""
    return "io.modelcontextprotocol/ui" in params.get("capabilities", {}).get("extensions", {})


@dataclass(frozen=True, slots=True)
class Event:
    """A recorded event. Tests can wait for it."""

    what: str
    """`initialize`, `initialized`, `get`, `delete`, `call`, `cancelled` (by notification), `left` (by disconnect)."""
    session: str | None
    detail: Any = None
    """The params of `initialize`, the tool's name of `call`, the request id of `cancelled` and `left`."""


@dataclass
class Counter:
    """An MCP server of the session era, of 2026-07-28, or of both."""

    eras: tuple[str, ...] = (*SESSION_ERA, MODERN)
    seen: list[Event] = field(default_factory=list)
    counts: dict[str | None, int] = field(default_factory=dict)
    """The number of calls of `count` so far, by session id; deleted sessions are removed."""
    lists: set[str] = field(default_factory=set)
    """Ids of the sessions that the gateway opened to list features; `seen` leaves these sessions out."""
    _waiting: dict[tuple[str | None, Any], asyncio.Event] = field(default_factory=dict)

    def events(self, what: str) -> list[Event]:
        return [event for event in self.seen if event.what == what]

    def wait_for(self, what: str, times: int = 1, seconds: float = PATIENCE) -> list[Event]:
        """Wait until there are `times` events of the kind `what`, and return them; called from a test's thread."""
        deadline = time.monotonic() + seconds
        while len(found := self.events(what)) < times:
            assert time.monotonic() < deadline, f"saw {len(found)} of {times} {what} in {seconds} s: {self.seen}"
            time.sleep(0.01)
        return found

    def forget_sessions(self) -> None:
        """Forget all session ids, as a restart does."""
        self.counts.clear()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send)
            return
        headers = headers_of(scope)
        session = headers.get("mcp-session-id")
        is_modern = headers.get("mcp-protocol-version") == MODERN
        message = parsed(await read(receive))
        if is_modern and MODERN not in self.eras:
            await refuse(send, 400, -32600, "Bad Request: Unsupported protocol version")
        elif not is_modern and session is not None and session not in self.counts:
            await refuse(send, 404, -32001, "Session not found")
        elif scope["method"] == "POST" and isinstance(message, dict):
            await self._post(message, None if is_modern else session, is_modern, receive, send)
        elif scope["method"] == "DELETE" and session is not None:
            if session not in self.lists:
                self.seen.append(Event("delete", session))
            del self.counts[session]
            await answer(send, 200, b"")
        elif scope["method"] == "GET" and session is not None:
            self.seen.append(Event("get", session))
            await begin_stream(send)
            await gone(receive)
        else:
            await refuse(send, 405, -32000, "Method not allowed", message)

    async def _post(self, message: Json, session: str | None, is_modern: bool, receive: Receive, send: Send) -> None:
        method, params = message.get("method"), message.get("params") or {}
        if method == "initialize":
            await self._initialize(message, params, send)
        elif not is_modern and session is None:
            await refuse(send, 400, -32600, "Bad Request: Missing session ID", message)
        elif method == "tools/call":
            await self._call(message, params, session, receive, send)
        elif method in ("server/discover", "tools/list", "ping"):
            await respond(send, message, self._listed(method) | fresh(session))
        elif "id" in message:
            await refuse(send, 404 if is_modern else 200, -32601, "Method not found", message)
        else:
            self._notified(str(method), params, session)
            await answer(send, 202, b"")

    async def _initialize(self, message: Json, params: Json, send: Send) -> None:
        if not set(self.eras) & set(SESSION_ERA):
            await refuse(send, 404, -32601, "Method not found", message)
            return
        session = uuid4().hex
        self.counts[session] = 0
        if is_for_lists(params):
            self.lists.add(session)
        else:
            self.seen.append(Event("initialize", session, params))
        asked = params.get("protocolVersion")
        result: Json = {
            "protocolVersion": asked if asked in SESSION_ERA else SESSION_ERA[-1],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "counter", "version": "1.0"},
        }
        await respond(send, message, result, [(b"mcp-session-id", session.encode())])

    def _listed(self, method: str) -> Json:
        if method == "server/discover":
            return {"supportedVersions": list(self.eras), "capabilities": {"tools": {}}}
        return {"tools": TOOLS} if method == "tools/list" else {}

    def _notified(self, method: str, params: Json, session: str | None) -> None:
        if session in self.lists:
            return
        if method == "notifications/initialized":
            self.seen.append(Event("initialized", session))
        if method == "notifications/cancelled":
            self.seen.append(Event("cancelled", session, params.get("requestId")))
            if waiting := self._waiting.get((session, params.get("requestId"))):
                waiting.set()

    async def _call(self, message: Json, params: Json, session: str | None, receive: Receive, send: Send) -> None:
        name = params.get("name")
        self.seen.append(Event("call", session, name))
        if name == "count":
            self.counts[session] = self.counts.get(session, 0) + 1
            counted = {"count": self.counts[session], "session": session}
            await respond(send, message, result_of(counted, session))
        elif name == "wait":
            await self._wait(message, params, session, receive, send)
        else:
            await refuse(send, 200, -32602, f"Unknown tool: {name}", message)

    async def _wait(self, message: Json, params: Json, session: str | None, receive: Receive, send: Send) -> None:
        key, cancelled = (session, message["id"]), asyncio.Event()
        self._waiting[key] = cancelled
        await begin_stream(send)
        left, told = asyncio.create_task(gone(receive)), asyncio.create_task(cancelled.wait())
        over = asyncio.create_task(self._report(message, params, send))
        done, _ = await asyncio.wait({left, told, over}, return_when=asyncio.FIRST_COMPLETED)
        for task in (left, told, over):
            task.cancel()
        await asyncio.gather(left, told, over, return_exceptions=True)
        del self._waiting[key]
        if left in done:
            self.seen.append(Event("left", session, message["id"]))
        elif told in done:
            await send({"type": "http.response.body", "body": b""})
        else:
            result = {"jsonrpc": "2.0", "id": message["id"], "result": result_of({"waited": True}, session)}
            await send({"type": "http.response.body", "body": event(result)})

    async def _report(self, message: Json, params: Json, send: Send) -> None:
        seconds = float((params.get("arguments") or {}).get("seconds", 30))
        token = (params.get("_meta") or {}).get("progressToken")
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            if token is not None:
                told = {"progressToken": token, "progress": round(passed, 3), "total": seconds}
                note = {"jsonrpc": "2.0", "method": "notifications/progress", "params": told}
                await send({"type": "http.response.body", "body": event(note), "more_body": True})
            await asyncio.sleep(min(PROGRESS_SECONDS, seconds - passed))


def result_of(structured: Json, session: str | None) -> Json:
    content = [{"type": "text", "text": json.dumps(structured)}]
    modern: Json = {} if session else {"resultType": "complete"}
    return {"content": content, "structuredContent": structured, **modern}


def fresh(session: str | None) -> Json:
    """Return the members that MCP 2026-07-28 adds to results other than those of calls; empty if there is a session."""
    return {} if session else {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}


def event(message: Json) -> bytes:
    return b"event: message\ndata: " + json.dumps(message).encode() + b"\n\n"


async def begin_stream(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": b": connected\n\n", "more_body": True})


async def gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def respond(send: Send, message: Json, result: Json, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    body = {"jsonrpc": "2.0", "id": message.get("id"), "result": result}
    await answer(send, 200, json.dumps(body).encode(), headers=headers)


async def refuse(send: Send, status: int, code: int, text: str, message: Any = None) -> None:
    request_id = message.get("id") if isinstance(message, dict) else None
    error = {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": text}}
    await answer(send, status, json.dumps(error).encode())


if __name__ == "__main__":
    uvicorn.run(Counter(eras=SESSION_ERA), port=int(sys.argv[1]), log_level="warning", ws="none")
