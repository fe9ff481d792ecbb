"""The bundled Quickstart server: a few harmless tools, so that a new workspace has something to call."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp

from gatewayadmin.serving import builtin
from gatewayadmin.serving.builtin import NotFound, ToolFailed, text_result
from wire import guard, jsonrpc, sse
from wire.jsonrpc import Message, Object

PATH = f"{guard.FOLDER}quickstart"
INFO = {"name": "Quickstart", "version": "1.0"}
GUIDE = "quickstart://guide"
GUIDE_TEXT = """This server is part of Gateway Admin. Its tools are harmless: echo, add,
current_time, slow (with progress) and fail. Call one, then look at Logs, or at
Settings, My calls.
"""
STEPS = 5


def app(secret: str) -> ASGIApp:
    """Return the server as an ASGI app. Requests without `secret` get 404."""
    return builtin.app(secret, _respond)


async def _respond(message: Message, _: Request) -> Response:
    if (message.method, message.params.get("name")) == ("tools/call", "slow") and "progressToken" in message.meta:
        headers = {"Cache-Control": "no-cache, no-transform"}
        return StreamingResponse(_events(message), media_type="text/event-stream", headers=headers)
    return Response(await _answer(message), media_type="application/json")


async def _events(message: Message) -> AsyncIterator[bytes]:
    """Yield progress notifications of the tool `slow`, then its result."""
    arguments = message.params.get("arguments")
    with suppress(ToolFailed):  # `_answer` below runs the tool again, and returns the failure as the result.
        async for step in _steps(arguments if isinstance(arguments, dict) else {}):
            params = {"progressToken": message.meta["progressToken"], "progress": step, "total": STEPS}
            yield sse.event(jsonrpc.dumps({"jsonrpc": "2.0", "method": "notifications/progress", "params": params}))
        message.params["arguments"] = {"seconds": 0}
    yield sse.event(await _answer(message))


async def _answer(message: Message) -> bytes:
    return await builtin.answer(message, INFO, FIXED, HANDLERS)


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
        return text_result(await tool(arguments))
    except ToolFailed as failure:
        return text_result(str(failure), is_error=True)


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
    **builtin.introduction(CAPABILITIES, GUIDE_TEXT),
    "tools/list": {"tools": TOOLS},
    "resources/list": {"resources": [{"uri": GUIDE, "name": "guide", "title": "Guide", "mimeType": "text/plain"}]},
    "prompts/list": {
        "prompts": [{"name": "greeting", "description": "Ask for a friendly greeting", "arguments": [_NAME]}]
    },
}
HANDLERS = {
    "tools/call": _call_tool,
    "resources/read": _read_resource,
    "prompts/get": _get_prompt,
}
