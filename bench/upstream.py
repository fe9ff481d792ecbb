"""The smallest MCP server that can be written as a raw ASGI app: one tool, no state, both wires."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

type Event = MutableMapping[str, Any]
type Receive = Callable[[], Awaitable[Event]]
type Send = Callable[[Event], Awaitable[None]]


RESULTS = {
    "initialize": {
        "protocolVersion": "2025-11-25",
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "bench", "version": "1"},
    },
    "server/discover": {"supportedVersions": ["2026-07-28", "2025-11-25"], "capabilities": {"tools": {}}},
    "tools/list": {"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]},
}


async def app(scope: Event, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        event = await receive()
        body += event.get("body", b"")
        more = event.get("more_body", False)
    message = orjson.loads(body)
    if "id" not in message:
        await answer(send, 202, b"")
        return
    if message["method"] == "tools/call":
        result: object = {"content": [{"type": "text", "text": message["params"]["arguments"]["text"]}]}
    else:
        result = RESULTS[message["method"]]
    await answer(send, 200, orjson.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}))


async def answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
