"""The bundled Quickstart server: a few harmless tools, so that a new workspace has something to call.

A stateless MCP server of both eras in this process. The gateway calls it over the network like any other server. It
accepts only requests with a secret generated at each start, which only our own proxy has.
"""

import asyncio
import hmac
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from wire import guard, jsonrpc, sse, versions
from wire.jsonrpc import Message, Object

PATH = guard.PATH
INFO = {"name": "Quickstart", "version": "1.0"}
GUIDE = "quickstart://guide"
GUIDE_TEXT = """This server is part of Gateway Admin. Its tools only answer: echo, add,
current_time, slow (with progress) and fail. Call one, then look at the Logs page.
"""
STEPS = 5


class ToolFailed(Exception):
    """The tool ran and failed; the message is for the model."""


class NotFound(Exception):
    """The request names an unknown tool, prompt or resource."""


def app(secret: str) -> ASGIApp:
    """Return the server as an ASGI app. Requests without `secret` get 404."""

    async def quickstart(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        presented = request.headers.get(guard.SECRET_HEADER, "")
        if not secret or not hmac.compare_digest(presented.encode(), secret.encode()):
            response = Response(status_code=404)
        elif request.method != "POST":
            response = Response(status_code=405, headers={"Allow": "POST"})
        else:
            response = await _respond(await request.body())
        await response(scope, receive, send)

    return quickstart


async def _respond(body: bytes) -> Response:
    try:
        message = jsonrpc.parse_message(body)
    except jsonrpc.MalformedMessage as fault:
        return Response(jsonrpc.error(None, fault.code, fault.message), 400, media_type="application/json")
    if not message.is_request:
        return Response(status_code=202)
    if (message.method, message.params.get("name")) == ("tools/call", "slow") and "progressToken" in message.meta:
        headers = {"Cache-Control": "no-cache, no-transform"}
        return StreamingResponse(_events(message), media_type="text/event-stream", headers=headers)
    return Response(await _answer(message), media_type="application/json")


async def _events(message: Message) -> AsyncIterator[bytes]:
    """Yield progress notifications of the tool `slow`, then its result."""
    arguments = message.params.get("arguments")
    with suppress(ToolFailed):  # `_answer` below raises it again.
        async for step in _steps(arguments if isinstance(arguments, dict) else {}):
            params = {"progressToken": message.meta["progressToken"], "progress": step, "total": STEPS}
            yield sse.event(jsonrpc.dumps({"jsonrpc": "2.0", "method": "notifications/progress", "params": params}))
        message.params["arguments"] = {"seconds": 0}
    yield sse.event(await _answer(message))


async def _answer(message: Message) -> bytes:
    """Return the JSON-RPC response."""
    try:
        if message.method in FIXED:
            value = {**FIXED[message.method]}
        elif message.method in HANDLERS:
            value = await HANDLERS[message.method](message.params)
        else:
            return jsonrpc.error(message.id, jsonrpc.METHOD_NOT_FOUND, f"Method not found: {message.method}")
    except NotFound as missing:
        return jsonrpc.error(message.id, jsonrpc.INVALID_PARAMS, str(missing))
    if versions.MODERN_KEY in message.meta:
        value |= {"resultType": "complete", "_meta": {versions.SERVER_INFO_KEY: INFO}}
        if message.method in CACHEABLE:
            value |= {"ttlMs": 0, "cacheScope": "private"}
    return jsonrpc.result(message.id, value)


async def _initialize(params: Object) -> Object:
    about = {"capabilities": CAPABILITIES, "serverInfo": INFO, "instructions": GUIDE_TEXT}
    return {"protocolVersion": versions.negotiated(params.get("protocolVersion")), **about}


async def _read_resource(params: Object) -> Object:
    if params.get("uri") != GUIDE:
        raise NotFound(f"Unknown resource: {params.get('uri')}")
    return {"contents": [{"uri": GUIDE, "mimeType": "text/plain", "text": GUIDE_TEXT}]}


async def _get_prompt(params: Object) -> Object:
    if params.get("name") != "greeting":
        raise NotFound(f"Unknown prompt: {params.get('name')}")
    arguments = params.get("arguments")
    name = arguments.get("name", "you") if isinstance(arguments, dict) else "you"
    content = {"type": "text", "text": f"Write one friendly sentence to greet {name}."}
    return {"messages": [{"role": "user", "content": content}]}


async def _call_tool(params: Object) -> Object:
    tool, arguments = CALLS.get(str(params.get("name"))), params.get("arguments", {})
    if tool is None:
        raise NotFound(f"Unknown tool: {params.get('name')}")
    if not isinstance(arguments, dict):
        raise NotFound("The arguments must be an object.")
    try:
        return {"content": [{"type": "text", "text": await tool(arguments)}], "isError": False}
    except ToolFailed as failure:
        return {"content": [{"type": "text", "text": str(failure)}], "isError": True}


async def _echo(arguments: Object) -> str:
    return _text(arguments, "text")


async def _add(arguments: Object) -> str:
    return f"{_number(arguments, 'a') + _number(arguments, 'b'):g}"


async def _current_time(arguments: Object) -> str:
    name = arguments.get("timezone", "UTC")
    try:
        zone = ZoneInfo(name) if name != "UTC" else UTC
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise ToolFailed(f"There is no time zone {name!r}.") from None
    return datetime.now(zone).isoformat(timespec="seconds")


async def _slow(arguments: Object) -> str:
    async for _ in _steps(arguments):
        pass
    return "Done."


async def _fail(arguments: Object) -> str:
    raise ToolFailed(str(arguments.get("reason", "This tool always fails.")))


async def _steps(arguments: Object) -> AsyncIterator[int]:
    seconds = min(max(_number({"seconds": 3, **arguments}, "seconds"), 0), 20)
    for step in range(1, STEPS + 1):
        await asyncio.sleep(seconds / STEPS)
        yield step


def _text(arguments: Object, name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str):
        raise ToolFailed(f"The argument {name!r} must be a text.")
    return value


def _number(arguments: Object, name: str) -> float:
    value = arguments.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ToolFailed(f"The argument {name!r} must be a number.")
    return value


def _tool(name: str, title: str, description: str, required: tuple[str, ...] = (), **properties: Object) -> Object:
    schema = {"type": "object", "properties": properties, "required": list(required)}
    annotations = {"readOnlyHint": True, "openWorldHint": False}
    return {"name": name, "title": title, "description": description, "inputSchema": schema, "annotations": annotations}


TOOLS = [
    _tool("echo", "Echo", "Give back the text.", ("text",), text={"type": "string"}),
    _tool("add", "Add", "Add two numbers.", ("a", "b"), a={"type": "number"}, b={"type": "number"}),
    _tool(
        "current_time",
        "Current time",
        "Say what time it is.",
        timezone={"type": "string", "description": "Such as Europe/Vienna", "default": "UTC"},
    ),
    _tool(
        "slow",
        "Slow",
        "Take some seconds and report progress.",
        seconds={"type": "number", "minimum": 0, "maximum": 20, "default": 3},
    ),
    _tool("fail", "Fail", "Always end in a tool error.", reason={"type": "string"}),
]
CALLS = {"echo": _echo, "add": _add, "current_time": _current_time, "slow": _slow, "fail": _fail}
CAPABILITIES: Object = {"tools": {}, "resources": {}, "prompts": {}}
_NAME = {"name": "name", "description": "The name to greet", "required": True}
# Results that do not depend on the request, by method.
FIXED: dict[str, Object] = {
    "ping": {},
    "server/discover": {
        "supportedVersions": list(versions.SUPPORTED),
        "capabilities": CAPABILITIES,
        "instructions": GUIDE_TEXT,
    },
    "tools/list": {"tools": TOOLS},
    "resources/list": {"resources": [{"uri": GUIDE, "name": "guide", "title": "Guide", "mimeType": "text/plain"}]},
    "prompts/list": {
        "prompts": [{"name": "greeting", "description": "Ask for a friendly greeting", "arguments": [_NAME]}]
    },
}
HANDLERS = {
    "initialize": _initialize,
    "tools/call": _call_tool,
    "resources/read": _read_resource,
    "prompts/get": _get_prompt,
}
CACHEABLE = {*FIXED, "resources/read"} - {"ping"}
