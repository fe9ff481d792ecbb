"""The catalogue on the Python SDK 2, low-level server: session era and 2026-07-28 at one address."""

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import mcp_types as types
import uvicorn
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.streamable_http import EventMessage
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp.shared.subscriptions import PromptsListChanged, ResourceUpdated, ToolsListChanged
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel

from tests.conformance.servers import catalogue
from tests.conformance.servers.catalogue import Json
from tests.conformance.servers.events import Events

RETRY_MILLISECONDS = 100
REQUESTS: dict[str, tuple[type[BaseModel], type[BaseModel]]] = {
    "sampling/createMessage": (types.CreateMessageRequest, types.CreateMessageResult),
    "elicitation/create": (types.ElicitRequest, types.ElicitResult),
    "roots/list": (types.ListRootsRequest, types.ListRootsResult),
}

bus = InMemorySubscriptionBus()
subscribers: dict[str, list[Any]] = {}


class Announcing(Server[Any]):
    """Says in the session era too that its lists may change."""

    def create_initialization_options(self, *args: Any, **options: Any) -> Any:
        changes = NotificationOptions(prompts_changed=True, resources_changed=True, tools_changed=True)
        return super().create_initialization_options(changes, **options)


class Call:
    """A request as the SDK hands it to a handler."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.session = context.session

    @property
    def is_modern(self) -> bool:
        return self.context.protocol_version in MODERN_PROTOCOL_VERSIONS

    @property
    def declared(self) -> set[str]:
        capabilities = self.session.client_capabilities
        return set(plain(capabilities)) if capabilities else set()

    async def log(self, line: str) -> None:
        await self.session.send_log_message("info", line, related_request_id=self.context.request_id)

    async def report(self, progress: float, total: float) -> None:
        await self.session.report_progress(progress, total)

    async def close_stream(self) -> None:
        if self.context.close_sse_stream:
            await self.context.close_sse_stream()

    async def announce(self, what: str) -> None:
        """On every `subscriptions/listen`, and on the standalone stream of this session or of its subscribers."""
        if what == "tools":
            await bus.publish(ToolsListChanged())
            await self.session.send_tool_list_changed()
        elif what == "prompts":
            await bus.publish(PromptsListChanged())
            await self.session.send_prompt_list_changed()
        else:
            await bus.publish(ResourceUpdated(uri=what))
            for session in subscribers.get(what, ()):
                await session.send_resource_updated(what)

    async def ask(self, request: Json) -> Json:
        kind, result = REQUESTS[request["method"]]
        related = ServerMessageMetadata(related_request_id=self.context.request_id)
        try:
            return plain(await self.session.send_request(kind.model_validate(request), result, metadata=related))
        except MCPError as error:
            raise catalogue.Refused(str(error)) from error


def plain(model: Any) -> Json:
    dumped: Json = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    return dumped


async def call_tool(context: Any, params: Any) -> Json:
    return await answer(catalogue.TOOLS, context, params)


async def get_prompt(context: Any, params: Any) -> Json:
    return await answer(catalogue.PROMPTS, context, params)


async def answer(entries: dict[str, Json], context: Any, params: Any) -> Json:
    call, arguments = Call(context), params.arguments or {}
    try:
        entry = catalogue.entry_of(entries, params.name)
        await catalogue.act(entry, call)
        if "asks" not in entry:
            return catalogue.answer(entry, arguments)
        if not call.is_modern:
            return await catalogue.ask_on_stream(entry, arguments, call)
        responses = {key: plain(response) for key, response in (params.input_responses or {}).items()}
        return catalogue.ask_by_result(entry, arguments, call.declared, responses, params.request_state)
    except catalogue.Unknown as error:
        raise MCPError(types.INVALID_PARAMS, str(error)) from error
    except catalogue.CapabilityMissing as error:
        raise MCPError(types.MISSING_REQUIRED_CLIENT_CAPABILITY, str(error), error.required) from error


async def read(context: Any, params: Any) -> Json:
    try:
        return catalogue.read(params.uri)
    except catalogue.Unknown as error:
        raise MCPError(types.INVALID_PARAMS, str(error), {"uri": params.uri}) from error


async def list_tools(context: Any, params: Any) -> Json:
    return {"tools": catalogue.definitions(catalogue.TOOLS)}


async def list_prompts(context: Any, params: Any) -> Json:
    return {"prompts": catalogue.definitions(catalogue.PROMPTS)}


async def list_resources(context: Any, params: Any) -> Json:
    return {"resources": catalogue.definitions(catalogue.RESOURCES)}


async def list_templates(context: Any, params: Any) -> Json:
    return {"resourceTemplates": [catalogue.TEMPLATE["definition"]]}


async def complete(context: Any, params: Any) -> Json:
    return {"completion": {"values": [], "total": 0, "hasMore": False}}


async def set_level(context: Any, params: Any) -> Json:
    return {}


async def subscribe(context: Any, params: Any) -> Json:
    subscribers.setdefault(params.uri, []).append(context.session)
    return {}


async def unsubscribe(context: Any, params: Any) -> Json:
    left = [one for one in subscribers.get(params.uri, ()) if one._connection is not context.session._connection]
    subscribers[params.uri] = left
    return {}


def server() -> Server[Any]:
    made = Announcing("conformance-python-v2", version="1.0")
    # A request's state leaves sealed, and comes back only as it left.
    made.middleware.append(RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience=made.name))
    listen = ListenHandler(bus)
    made.add_request_handler("subscriptions/listen", types.SubscriptionsListenRequestParams, listen)
    handlers: dict[str, tuple[type[Any], type[Any], Any]] = {
        "tools/list": (types.PaginatedRequestParams, types.ListToolsResult, list_tools),
        "tools/call": (types.CallToolRequestParams, types.CallToolResult, call_tool),
        "prompts/list": (types.PaginatedRequestParams, types.ListPromptsResult, list_prompts),
        "prompts/get": (types.GetPromptRequestParams, types.GetPromptResult, get_prompt),
        "resources/list": (types.PaginatedRequestParams, types.ListResourcesResult, list_resources),
        "resources/templates/list": (types.PaginatedRequestParams, types.ListResourceTemplatesResult, list_templates),
        "resources/read": (types.ReadResourceRequestParams, types.ReadResourceResult, read),
        "resources/subscribe": (types.SubscribeRequestParams, types.EmptyResult, subscribe),
        "resources/unsubscribe": (types.UnsubscribeRequestParams, types.EmptyResult, unsubscribe),
        "logging/setLevel": (types.SetLevelRequestParams, types.EmptyResult, set_level),
        "completion/complete": (types.CompleteRequestParams, types.CompleteResult, complete),
    }
    for method, (params, result, handler) in handlers.items():
        made.add_request_handler(method, params, typed(handler, result))
    return made


def typed(handler: Callable[[Any, Any], Awaitable[Json]], result: type[BaseModel]) -> Any:
    """`handler` with its result as the SDK's model, to which the SDK adds what the era wants."""

    async def handle(context: Any, params: Any) -> BaseModel:
        answered = await handler(context, params)
        kind = types.InputRequiredResult if answered.get("resultType") == "input_required" else result
        return kind.model_validate(answered)

    return handle


if __name__ == "__main__":
    events: Any = Events(EventMessage)
    app = server().streamable_http_app(event_store=events, retry_interval=RETRY_MILLISECONDS)
    # h11 takes the white space around a header's value off, httptools leaves what stands behind it.
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", http="h11", timeout_graceful_shutdown=1)
