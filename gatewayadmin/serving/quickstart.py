"""The bundled Quickstart server: a few harmless tools, so that a new workspace has something to call.

A stateless MCP server of both eras in this process. The gateway calls it over the network like any other server. It
accepts only requests with a secret made at this start: only our own proxy can call it.
"""

import asyncio
import hmac
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.conf import settings
from django.core.management import call_command
from django.db import transaction
from django.db.models import Q

from accounts.models import Role, User, WorkspaceSettings, make_first_owner
from auditlog.models import Call
from gatewayadmin.config import locks
from gatewayadmin.config.locks import Lock
from gateways.models import Assignment, Feature, Gateway
from servers.models import BUILT_IN_URL, Server
from wire import guard, jsonrpc, sse, versions
from wire.jsonrpc import Message, Object

# Set-up at each start: tables, roles, first owner, Quickstart. Idempotent and safe to run concurrently.

QUICKSTART = "quickstart"


@dataclass(frozen=True, slots=True)
class Welcome:
    """The account to sign in with; `secret` is the password if it was generated now, to be shown once."""

    email: str
    secret: str | None


def prepare(*, migrate: bool = True) -> Welcome:
    """Update the database. If several processes start at once, one does it and the others wait.

    Without `migrate`, the tables must already be those of this version. New indexes of the log are created later, while
    serving.
    """
    with locks.advisory_lock(Lock.FIRST_START):
        if migrate:
            # Others that start wait for this; indexes of the log may take an hour.
            call_command("migrate", verbosity=0, interactive=False, log_indexes=False)
        else:
            make_partitions()
        Role.objects.make_built_in()
        welcome = _welcome()
        if settings.QUICKSTART:
            _make_quickstart()
        _remember_public_url()
    return welcome


def make_partitions() -> list[str]:
    """Create the log's partitions for the coming days, and return their names."""
    return Call.partitions.make_ahead(
        kept_days=(WorkspaceSettings.objects.first() or WorkspaceSettings()).log_retention_days
    )


def _welcome() -> Welcome:
    password, settings.ADMIN_PASSWORD = settings.ADMIN_PASSWORD, ""  # Removed, since forked workers do not need it.
    secret = None if password else secrets.token_urlsafe(15)
    owner = make_first_owner(settings.ADMIN_EMAIL, password or secret or "")
    if owner is not None:
        return Welcome(owner.email, secret)
    return Welcome(User.objects.earliest("date_joined").email, None)


def _make_quickstart() -> None:
    """Create the bundled server and its gateway, unless that name is or was in use."""
    named = Q(slug=QUICKSTART) | Q(name__iexact=QUICKSTART)
    if Server.objects.filter(named | Q(url=BUILT_IN_URL)).exists() or Gateway.objects.filter(named).exists():
        return
    with transaction.atomic():
        server = Server.objects.add(name="Quickstart", slug=QUICKSTART, url=BUILT_IN_URL, by=None)
        about = "Harmless tools to try things out with. Needs nothing but this installation."
        gateway = Gateway.objects.add(name="Quickstart", slug=QUICKSTART, description=about, by=None)
        assignment = Assignment.objects.assign(gateway=gateway, server=server, alias="", by=None)
        Feature.objects.learn(assignment, TOOLS)  # So that the first snippet names a tool that works.


def _remember_public_url() -> None:
    """Store the public URL for commands that run without our environment."""
    WorkspaceSettings.load()
    WorkspaceSettings.objects.update(public_base_url=settings.PUBLIC_URL)


PATH = guard.PATH
SECRET_HEADER = guard.SECRET_HEADER.lower().encode()
NAME = "Quickstart"
VERSION = "1.0"
BODY_LIMIT = 64 << 20  # As large as the gateway can be set to pass on.
GUIDE = "quickstart://guide"

GUIDE_TEXT = """This server is part of Gateway Admin. Its tools do nothing but answer: echo, add,
current_time, slow (with progress) and fail. Call one, then look at the Logs page.
"""

type Scope = MutableMapping[str, Any]
type Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
type Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
type App = Callable[[Scope, Receive, Send], Awaitable[None]]


class ToolFailed(Exception):
    """The tool ran and failed; the message is for the model."""


class NoSuchThing(Exception):
    """The request names an unknown tool, prompt, resource or method."""


def app(secret: str) -> App:
    """The server as an ASGI app; it answers 404 to everybody who does not know `secret`."""
    expected = secret.encode()

    async def quickstart(scope: Scope, receive: Receive, send: Send) -> None:
        presented = dict(scope["headers"]).get(SECRET_HEADER, b"")
        if not secret or not hmac.compare_digest(presented, expected):
            await _answer(send, 404, b"")
        elif scope["method"] != "POST":
            await _answer(send, 405, b"", (b"allow", b"POST"))
        else:
            await _post(await _body(receive), send)

    return quickstart


async def _post(body: bytes, send: Send) -> None:
    try:
        message = jsonrpc.parse_message(body)
    except jsonrpc.MalformedMessage as fault:
        await _answer(send, 400, jsonrpc.error(None, fault.code, fault.message))
        return
    if not message.is_request:
        await _answer(send, 202, b"")
    elif _wants_progress(message):
        await _stream(message, send)
    else:
        await _answer(send, 200, await _reply(message))


async def _reply(message: Message) -> bytes:
    handler = METHODS.get(message.method)
    if handler is None:
        return jsonrpc.error(message.id, jsonrpc.METHOD_NOT_FOUND, f"Method not found: {message.method}")
    try:
        value = await handler(message.params)
    except NoSuchThing as missing:
        return jsonrpc.error(message.id, jsonrpc.INVALID_PARAMS, str(missing))
    if versions.MODERN_KEY in message.meta:
        value |= {"resultType": "complete", "_meta": {versions.SERVER_INFO_KEY: INFO}}
        value |= PRIVATE if message.method in CACHEABLE else {}
    return jsonrpc.result(message.id, value)


INFO = {"name": NAME, "version": VERSION}
CAPABILITIES: Object = {"tools": {}, "resources": {}, "prompts": {}}
PRIVATE = {"ttlMs": 0, "cacheScope": "private"}
CACHEABLE = frozenset({"server/discover", "tools/list", "resources/list", "resources/read", "prompts/list"})


async def _initialize(params: Object) -> Object:
    version = versions.negotiated(params.get("protocolVersion"))
    return {"protocolVersion": version, "capabilities": CAPABILITIES, "serverInfo": INFO, "instructions": GUIDE_TEXT}


async def _discover(_: Object) -> Object:
    return {"supportedVersions": list(versions.SUPPORTED), "capabilities": CAPABILITIES, "instructions": GUIDE_TEXT}


async def _ping(_: Object) -> Object:
    return {}


async def _list_tools(_: Object) -> Object:
    return {"tools": TOOLS}


async def _list_resources(_: Object) -> Object:
    return {"resources": [{"uri": GUIDE, "name": "guide", "title": "Guide", "mimeType": "text/plain"}]}


async def _read_resource(params: Object) -> Object:
    if params.get("uri") != GUIDE:
        raise NoSuchThing(f"Unknown resource: {params.get('uri')}")
    return {"contents": [{"uri": GUIDE, "mimeType": "text/plain", "text": GUIDE_TEXT}]}


async def _list_prompts(_: Object) -> Object:
    argument = {"name": "name", "description": "Whom to greet", "required": True}
    return {"prompts": [{"name": "greeting", "description": "Ask for a friendly greeting", "arguments": [argument]}]}


async def _get_prompt(params: Object) -> Object:
    if params.get("name") != "greeting":
        raise NoSuchThing(f"Unknown prompt: {params.get('name')}")
    arguments = params.get("arguments")
    name = arguments.get("name", "you") if isinstance(arguments, dict) else "you"
    content = {"type": "text", "text": f"Write one friendly sentence to greet {name}."}
    return {"messages": [{"role": "user", "content": content}]}


async def _call_tool(params: Object) -> Object:
    tool = CALLS.get(str(params.get("name")))
    arguments = params.get("arguments", {})
    if tool is None:
        raise NoSuchThing(f"Unknown tool: {params.get('name')}")
    if not isinstance(arguments, dict):
        raise NoSuchThing("The arguments must be an object.")
    try:
        text = await tool(arguments)
    except ToolFailed as failure:
        return {"content": [{"type": "text", "text": str(failure)}], "isError": True}
    return {"content": [{"type": "text", "text": text}], "isError": False}


METHODS = {
    "initialize": _initialize,
    "server/discover": _discover,
    "ping": _ping,
    "tools/list": _list_tools,
    "tools/call": _call_tool,
    "resources/list": _list_resources,
    "resources/read": _read_resource,
    "prompts/list": _list_prompts,
    "prompts/get": _get_prompt,
}


# The tools


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


STEPS = 5
CALLS = {"echo": _echo, "add": _add, "current_time": _current_time, "slow": _slow, "fail": _fail}


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


# The wire


def _wants_progress(message: Message) -> bool:
    return message.method == "tools/call" and message.params.get("name") == "slow" and "progressToken" in message.meta


async def _stream(message: Message, send: Send) -> None:
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache, no-transform")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    arguments = message.params.get("arguments")
    async for step in _steps(arguments if isinstance(arguments, dict) else {}):
        params = {"progressToken": message.meta["progressToken"], "progress": step, "total": STEPS}
        note = jsonrpc.dumps({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})
        await send({"type": "http.response.body", "body": sse.event(note), "more_body": True})
    message.params["arguments"] = {"seconds": 0}
    await send({"type": "http.response.body", "body": sse.event(await _reply(message))})


async def _body(receive: Receive) -> bytes:
    body, more = b"", True
    while more and len(body) <= BODY_LIMIT:
        event = await receive()
        body += event.get("body", b"")
        more = event.get("more_body", False)
    return body


async def _answer(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    content_type = [(b"content-type", b"application/json")] if body else []
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*content_type, length, *headers]})
    await send({"type": "http.response.body", "body": body})
