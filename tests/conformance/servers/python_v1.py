"""A server on the low-level API of Python SDK 1, with the features of catalogue.json. Speaks only the session era.

Runs in its own virtual environment (`requirements-v1.lock`), because SDK 2 uses other names. Renew the lock with `echo
'mcp<2' | .venv/bin/uv pip compile --universal --python-version 3.12 --generate-hashes --no-header -`.
"""
# mypy: ignore-errors

import contextlib
import sys

import uvicorn
from mcp import types
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.streamable_http import EventMessage
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.exceptions import McpError
from mcp.shared.message import ServerMessageMetadata
from starlette.applications import Starlette
from starlette.routing import Route

from tests.conformance.servers import catalogue
from tests.conformance.servers.events import Events

RETRY_MILLISECONDS = 100
RESOURCE_NOT_FOUND = -32002
CAPABILITY_MISSING = -32021
REQUESTS = {
    "sampling/createMessage": (types.CreateMessageRequest, types.CreateMessageResult),
    "elicitation/create": (types.ElicitRequest, types.ElicitResult),
    "roots/list": (types.ListRootsRequest, types.ListRootsResult),
}

# Messages for a call are sent on the standing stream, as by servers that name no related request.
IS_UNRELATED = "unrelated" in sys.argv[2:]

subscribers = {}


def related_to(request_id):
    return None if IS_UNRELATED else request_id


class Announcing(Server):
    """A low-level server that declares that its lists may change and its resources can be subscribed to."""

    def create_initialization_options(self, *args, **options):
        changes = NotificationOptions(prompts_changed=True, resources_changed=True, tools_changed=True)
        made = super().create_initialization_options(changes, **options)
        made.capabilities.resources.subscribe = True
        return made


server = Announcing("conformance-python-v1", version="1.0")


class Call:
    """The running request, from the SDK's request context."""

    def __init__(self) -> None:
        self.context = server.request_context
        self.session = self.context.session

    @property
    def declared(self):
        return set(plain(self.session.client_params.capabilities))

    async def log(self, line) -> None:
        await self.session.send_log_message("info", line, related_request_id=related_to(self.context.request_id))

    async def report(self, progress, total) -> None:
        token = self.context.meta.progressToken if self.context.meta else None
        if token is not None:
            related = related_to(str(self.context.request_id))
            await self.session.send_progress_notification(token, progress, total, related_request_id=related)

    async def close_stream(self) -> None:
        if self.context.close_sse_stream:
            await self.context.close_sse_stream()

    async def announce(self, what) -> None:
        """Notify this session of a changed list, or all subscribed sessions of a changed resource."""
        if what == "tools":
            await self.session.send_tool_list_changed()
        elif what == "prompts":
            await self.session.send_prompt_list_changed()
        else:
            for session in subscribers.get(what, ()):
                await session.send_resource_updated(what)

    async def ask(self, request):
        kind, result = REQUESTS[request["method"]]
        related = ServerMessageMetadata(related_request_id=related_to(self.context.request_id))
        sent = types.ServerRequest(kind.model_validate(request))
        try:
            return plain(await self.session.send_request(sent, result, metadata=related))
        except McpError as error:
            raise catalogue.Refused(str(error)) from error


def plain(model):
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


async def answer(entries, params):
    call, arguments = Call(), params.arguments or {}
    try:
        entry = catalogue.entry_of(entries, params.name)
        await catalogue.act(entry, call)
        if "asks" in entry:
            return await catalogue.ask_on_stream(entry, arguments, call)
        return catalogue.answer(entry, arguments)
    except catalogue.Unknown as error:
        raise failure(types.INVALID_PARAMS, str(error)) from error
    except catalogue.CapabilityMissing as error:
        raise failure(CAPABILITY_MISSING, str(error), error.required) from error


def failure(code, message, data=None):
    return McpError(types.ErrorData(code=code, message=message, data=data))


async def call_tool(params):
    return await answer(catalogue.TOOLS, params)


async def get_prompt(params):
    return await answer(catalogue.PROMPTS, params)


async def read(params):
    try:
        return catalogue.read(str(params.uri))
    except catalogue.Unknown as error:
        raise failure(RESOURCE_NOT_FOUND, str(error), {"uri": str(params.uri)}) from error


async def list_tools(params):
    return {"tools": catalogue.definitions(catalogue.TOOLS)}


async def list_prompts(params):
    return {"prompts": catalogue.definitions(catalogue.PROMPTS)}


async def list_resources(params):
    return {"resources": catalogue.definitions(catalogue.RESOURCES)}


async def list_templates(params):
    return {"resourceTemplates": [catalogue.TEMPLATE["definition"]]}


async def complete(params):
    return {"completion": {"values": [], "total": 0, "hasMore": False}}


async def set_level(params):
    return {}


async def subscribe(params):
    subscribers.setdefault(str(params.uri), []).append(Call().session)
    return {}


async def unsubscribe(params):
    with contextlib.suppress(KeyError, ValueError):
        subscribers[str(params.uri)].remove(Call().session)
    return {}


HANDLERS = {
    types.ListToolsRequest: (types.ListToolsResult, list_tools),
    types.CallToolRequest: (types.CallToolResult, call_tool),
    types.ListPromptsRequest: (types.ListPromptsResult, list_prompts),
    types.GetPromptRequest: (types.GetPromptResult, get_prompt),
    types.ListResourcesRequest: (types.ListResourcesResult, list_resources),
    types.ListResourceTemplatesRequest: (types.ListResourceTemplatesResult, list_templates),
    types.ReadResourceRequest: (types.ReadResourceResult, read),
    types.SubscribeRequest: (types.EmptyResult, subscribe),
    types.UnsubscribeRequest: (types.EmptyResult, unsubscribe),
    types.SetLevelRequest: (types.EmptyResult, set_level),
    types.CompleteRequest: (types.CompleteResult, complete),
}


def typed(handler, result):
    async def handle(request):
        return types.ServerResult(result.model_validate(await handler(request.params)))

    return handle


for request_type, (result_type, function) in HANDLERS.items():
    server.request_handlers[request_type] = typed(function, result_type)


class Endpoint:
    """The SDK's session manager as an ASGI app."""

    def __init__(self, manager) -> None:
        self.manager = manager

    async def __call__(self, scope, receive, send) -> None:
        await self.manager.handle_request(scope, receive, send)


if __name__ == "__main__":
    sessions = StreamableHTTPSessionManager(
        server,
        event_store=None if IS_UNRELATED else Events(EventMessage),
        retry_interval=RETRY_MILLISECONDS,
        security_settings=TransportSecuritySettings(
            enable_dns_rebinding_protection=True,
            allowed_hosts=["127.0.0.1:*", "localhost:*"],
            allowed_origins=["http://127.0.0.1:*", "http://localhost:*"],
        ),
    )
    app = Starlette(routes=[Route("/mcp", endpoint=Endpoint(sessions))], lifespan=lambda app: sessions.run())
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", timeout_graceful_shutdown=1)
