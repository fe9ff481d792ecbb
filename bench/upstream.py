"""Minimal MCP servers, each at its own path of one raw ASGI app.

The server at `/mcp` has no sessions and speaks both protocol eras (2025-11-25 and 2026-07-28). The server at
`/sessions` has a session for each client. The server at `/many` lists fifty tools.

The tool `large` answers with `count` resource links, highly compressed. The tool `trickle` announces the size of a
large answer and sends a part of it. Then it sends a few bytes per second.
"""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from functools import cache
from typing import Any
from uuid import uuid4

import orjson

type Event = MutableMapping[str, Any]
type Receive = Callable[[], Awaitable[Event]]
type Send = Callable[[Event], Awaitable[None]]
type Json = dict[str, Any]

OFFERED: Json = {"tools": {"listChanged": True}, "resources": {"subscribe": True}}
TOOLS = [{"name": name, "inputSchema": {"type": "object"}} for name in ("echo", "steps", "ask", "large", "trickle")]
MANY = [
    {
        "name": f"tool_{number}",
        "description": "Does what its name says, as often as it is asked to. " * 4,
        "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    }
    for number in range(50)
]
RESULTS: Json = {
    "initialize": {
        "protocolVersion": "2025-11-25",
        "capabilities": OFFERED,
        "serverInfo": {"name": "bench", "version": "1"},
    },
    "server/discover": {"supportedVersions": ["2026-07-28", "2025-11-25"], "capabilities": OFFERED},
    "resources/list": {"resources": [{"uri": "bench://one", "name": "one"}]},
    "resources/subscribe": {},
    "ping": {},
}
SESSIONS: set[str] = set()
FORM: Json = {"mode": "form", "message": "Who?", "requestedSchema": {"type": "object", "properties": {}}}
MODERN = "2026-07-28"
ASKED_SECONDS = 60
STREAM = [(b"content-type", b"text/event-stream")]
_waiting: dict[str, asyncio.Event] = {}


async def app(scope: Event, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    session = next((value.decode() for name, value in scope["headers"] if name == b"mcp-session-id"), "")
    if scope["path"] == "/count":
        await answer(send, 200, orjson.dumps(len(SESSIONS)))
    elif scope["path"] == "/sessions" and session and session not in SESSIONS:
        await answer(send, 404, b"")
    elif scope["method"] == "DELETE":
        SESSIONS.discard(session)
        await answer(send, 200, b"")
    elif scope["method"] == "GET" and session:
        await stand(receive, send)
    elif scope["method"] == "POST":
        await post(scope["path"], session, orjson.loads(await read(receive)), receive, send)
    else:
        await answer(send, 405, b"")


async def read(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        event = await receive()
        body += event.get("body", b"")
        more = event.get("more_body", False)
    return body


async def post(path: str, session: str, message: Json, receive: Receive, send: Send) -> None:
    method = message.get("method")
    if "id" not in message or method is None:
        if asked := _waiting.get(str(message.get("id"))):
            asked.set()
        await answer(send, 202, b"")
    elif method == "tools/call":
        await call(message, receive, send)
    elif method == "subscriptions/listen":
        await stand(receive, send)
    elif method == "initialize" and path == "/sessions":
        SESSIONS.add(opened := uuid4().hex)
        await respond(send, message, RESULTS[method], [(b"mcp-session-id", opened.encode())])
    else:
        await respond(send, message, result(path, method))


def result(path: str, method: str) -> object:
    """Return the result of `method`; None if the server at `path` does not have the method."""
    if method == "tools/list":
        return {"tools": MANY if path == "/many" else TOOLS}
    return None if (path, method) == ("/sessions", "server/discover") else RESULTS.get(method)


async def call(message: Json, receive: Receive, send: Send) -> None:
    params = message["params"]
    text = {"content": [{"type": "text", "text": params["arguments"].get("text", "done")}]}
    if params["name"] == "echo":
        await respond(send, message, text)
        return
    if params["name"] == "large":
        head, rest = b'{"jsonrpc":"2.0","id":%d,"result":{"content":[' % message["id"], links(**params["arguments"])
        await answer(send, 200, packed(head) + rest, [(b"content-encoding", b"deflate")])
        return
    if params["name"] == "trickle":
        await trickle(receive, send, **params["arguments"])
        return
    if params["name"] == "ask" and MODERN in params.get("_meta", {}).values() and "inputResponses" not in params:
        wanted = {"form": {"method": "elicitation/create", "params": FORM}}
        await respond(send, message, {"resultType": "input_required", "inputRequests": wanted, "requestState": "asked"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": STREAM})
    if params["name"] == "ask" and "inputResponses" not in params:
        await ask(receive, send)
    elif (token := params.get("_meta", {}).get("progressToken")) is not None:
        for step in range(params["arguments"].get("steps", 1)):
            told = {"progressToken": token, "progress": step}
            await say(send, {"method": "notifications/progress", "params": told})
            await asyncio.sleep(params["arguments"].get("pause", 0))
    await say(send, {"id": message["id"], "result": text}, last=True)


@cache
def links(count: int, size: int) -> bytes:
    """Return the compressed rest of an answer: `count` links, which have about `size` bytes before compression."""
    link = b'{"type":"resource_link","uri":"bench://pages/one?x=%%20","name":"%b"}'
    padding = b"x" * max(0, size // count - len(link))
    return packed(b",".join([link % padding] * count) + b"]}}", zlib.Z_FINISH)


async def trickle(receive: Receive, send: Send, size: int, at_once: int, seconds: float) -> None:
    """Announce `size` bytes, and send `at_once` of them. Then send ten bytes per second.

    Stop after `seconds`, or earlier if the client disconnects.
    """
    leaves = asyncio.create_task(left(receive))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % size)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b" " * at_once, "more_body": True})
    for _ in range(int(10 * seconds)):
        await asyncio.wait([leaves], timeout=0.1)
        if leaves.done():
            break
        with suppress(OSError):
            await send({"type": "http.response.body", "body": b" ", "more_body": True})
    leaves.cancel()


def packed(text: bytes, end: int = zlib.Z_FULL_FLUSH) -> bytes:
    """Return `text` compressed, as a part of a deflate stream that does not depend on the parts before it."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(text) + packer.flush(end)


async def ask(receive: Receive, send: Send) -> None:
    """Send an elicitation request, and wait at most ASKED_SECONDS until the client answers or disconnects."""
    uid, waiting = uuid4().hex, asyncio.Event()
    _waiting[uid] = waiting
    await say(send, {"id": uid, "method": "elicitation/create", "params": FORM})
    ends = [asyncio.create_task(waiting.wait()), asyncio.create_task(left(receive))]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED, timeout=ASKED_SECONDS)
    for end in ends:
        end.cancel()
    await asyncio.gather(*ends, return_exceptions=True)
    del _waiting[uid]


async def stand(receive: Receive, send: Send) -> None:
    """Keep a silent stream open until the client disconnects."""
    await send({"type": "http.response.start", "status": 200, "headers": STREAM})
    await send({"type": "http.response.body", "body": b": \n\n", "more_body": True})
    await left(receive)


async def left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def say(send: Send, message: Json, *, last: bool = False) -> None:
    body = b"data: " + orjson.dumps({"jsonrpc": "2.0", **message}) + b"\n\n"
    with suppress(OSError):
        await send({"type": "http.response.body", "body": body, "more_body": not last})


async def respond(
    send: Send, message: Json, result: object | None, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    told = {"error": {"code": -32601, "message": "Method not found"}} if result is None else {"result": result}
    body = orjson.dumps({"jsonrpc": "2.0", "id": message["id"], **told})
    await answer(send, 404 if result is None else 200, body, headers)


async def answer(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    plain = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": [*plain, *(headers or [])]})
    await send({"type": "http.response.body", "body": body})
