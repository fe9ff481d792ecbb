"""tools/call: resolve the tool, forward the call to its server, return the answer unchanged."""

import time
from collections.abc import Awaitable, Callable

from proxy.access.decision import Grant
from proxy.catalog import (
    MAX_NAME,
    OutOfScope,
    Refusal,
    ResolvedTool,
    UnknownTool,
    authorize_tool,
    resolve_tool,
    target,
)
from proxy.request import McpRequest
from proxy.response import Response, Stream
from proxy.server_requests import Asking, InputRefused, ServerRequests
from proxy.store.usage import UsageTracker
from proxy.suspended_calls import BadState, CallLost, Ended, SuspendedCalls
from proxy.tools_list import ToolLister
from wire import jsonrpc, stateless, trace_context, versions
from wire.cipher import Cipher
from wire.client import McpClient
from wire.errors import Busy, UpstreamError
from wire.jsonrpc import Message, Object
from wire.rpc_messages import MODERN, SESSION, Answer, OnRequest, RpcResponse, Target, next_request_id

# Members of a client's `_meta` that are for the gateway; all others go on to the server.
GATEWAY_META = frozenset(
    {
        "progressToken",
        versions.MODERN_KEY,
        versions.CAPABILITIES_KEY,
        versions.CLIENT_INFO_KEY,
        "io.modelcontextprotocol/logLevel",
    }
)

# Sends the request to its server, with these members added to its params, and by this schema of the tool.
type Ask = Callable[..., Awaitable[RpcResponse]]

NOTHING_MORE: Object = {}

# These say nothing of the server: nothing was sent, or the client did not do its part.
NOT_OF_THE_SERVER = (Busy, InputRefused, BadState, CallLost, Ended)

# Members of a 2026-07-28 result that the session era does not define.
MODERN_MEMBERS = ("resultType", "ttlMs", "cacheScope")


class ToolCaller:
    """Forwards calls to servers."""

    def __init__(
        self,
        client: McpClient,
        lister: ToolLister,
        cipher: Cipher,
        usage: UsageTracker,
        requests: ServerRequests,
        suspended: SuspendedCalls,
    ) -> None:
        self._client = client
        self._requests = requests
        self._suspended = suspended
        self._lister = lister
        self._cipher = cipher
        self._usage = usage

    async def call(self, request: McpRequest, grant: Grant, message: Message, stream: Stream | None) -> Response:
        """The server's answer to this call, addressed to the client.

        Progress goes to `stream` when there is one. Raises OutOfScope or UpstreamError.
        """
        resolved = await self._resolve(request, grant, message.params["name"])
        request.set_server(resolved.assigned)
        began = time.perf_counter()
        try:
            answer = await self._forward(request, resolved, grant, message, stream)
        except NOT_OF_THE_SERVER:
            raise
        except UpstreamError as error:
            self._usage.server_contacted(
                resolved.assigned, error.detail, credential_refused=error.reason == "credential_refused"
            )
            raise
        finally:
            request.row.upstream_ms = (time.perf_counter() - began) * 1000
        self._usage.server_contacted(resolved.assigned)
        return _response(answer, message, modern=request.modern)

    async def _resolve(self, request: McpRequest, grant: Grant, name: str) -> ResolvedTool:
        try:
            resolved = resolve_tool(grant.assignments, name)
        except (OutOfScope, Refusal) as refused:
            request.set_server(refused.assigned)
            raise
        if isinstance(resolved, ResolvedTool):
            if resolved.schema is not None and not stateless.has_sound_annotations(resolved.schema):
                raise UnknownTool(name[:MAX_NAME])  # Nor is it listed.
            return resolved
        request.set_server(resolved)
        tool = await self._lister.find(resolved, grant, name, trace_context.of(request.headers))
        return authorize_tool(resolved, tool["name"], None)._replace(schema=tool.get("inputSchema"))

    async def _forward(
        self, request: McpRequest, resolved: ResolvedTool, grant: Grant, message: Message, stream: Stream | None
    ) -> RpcResponse:
        person = grant.user_id
        upstream = target(resolved.assigned, grant, self._cipher, trace_context.of(request.headers))
        client_token = message.meta.get("progressToken") if stream is not None else None
        progress_token = next_request_id() if client_token is not None else None
        params = _params(message, resolved.tool, progress_token)

        async def on_notification(notification: Object) -> None:
            own = notification.get("params")
            if stream is not None and notification.get("method") == "notifications/elicitation/complete":
                await stream.notify(notification)
            if stream is None or progress_token is None or notification.get("method") != "notifications/progress":
                return
            if isinstance(own, dict) and own.get("progressToken") == progress_token:
                await stream.notify({**notification, "params": {**own, "progressToken": client_token}})

        async def ask(
            on_request: OnRequest, more: Object = NOTHING_MORE, schema: object = resolved.schema
        ) -> RpcResponse:
            return await self._client.ask(
                upstream,
                message.method,
                {**params, **more} if more else params,
                on_notification,
                person=person,
                schema=schema,
                on_request=on_request,
            )

        return await self._converse(Asking(request, grant, upstream, stream), resolved, message, ask)

    async def _converse(self, asking: Asking, resolved: ResolvedTool, message: Message, ask: Ask) -> RpcResponse:
        """The answer to the call, with whatever server and client ask each other before."""

        async def on_request(asked: Object, answer: Answer) -> None:
            await self._requests.carry(asking, asked, answer)

        modern = asking.request.modern
        if modern and self._may_be_suspended(asking.target, message):
            return await self._ask_suspendably(asking, message, ask)
        answer = await ask(on_request)
        if answer.error_code == jsonrpc.HEADER_MISMATCH:
            # The schema has changed since it was listed, and with it the headers that repeat arguments.
            schema = await self._schema(resolved, asking.grant, asking.target.trace)
            answer = await ask(on_request, schema=schema)
        if not modern and answer.era == MODERN and not _is_complete(answer):
            answer = await self._requests.give_input(asking, answer, lambda more: ask(on_request, more))
        return answer

    def _may_be_suspended(self, upstream: Target, message: Message) -> bool:
        """Whether the call may end in `input_required` of our own, or is the retry of one that did."""
        if self._client.era(upstream) == MODERN:
            return False
        return bool(upstream.capabilities) or "requestState" in message.params

    async def _ask_suspendably(self, asking: Asking, message: Message, ask: Ask) -> RpcResponse:
        if "requestState" in message.params and (
            # Of a server whose era is not known yet, the state may be its own.
            self._client.era(asking.target) == SESSION or self._suspended.is_ours(message, asking.grant.connection_id)
        ):
            return await self._suspended.resume(asking, message)
        return await self._suspended.call(asking, message, ask)

    async def _schema(self, resolved: ResolvedTool, grant: Grant, traced: trace_context.Trace) -> object:
        server_tools = await self._lister.tools_of(resolved.assigned, grant, traced)
        return next((tool.get("inputSchema") for tool in server_tools.tools if tool["name"] == resolved.tool), None)


def _params(message: Message, tool: str, progress_token: int | None) -> Object:
    """The params for the server: its own tool name, and of `_meta` what is meant for it."""
    params = {**message.params, "name": tool}
    if "_meta" not in params:
        return params
    meta = {key: value for key, value in message.meta.items() if key not in GATEWAY_META}
    if progress_token is not None:
        meta["progressToken"] = progress_token
    params["_meta"] = meta
    if not meta:
        del params["_meta"]
    return params


def _response(answer: RpcResponse, message: Message, *, modern: bool) -> Response:
    if answer.error is not None:
        body = jsonrpc.readdressed(answer.text, answer.document, message.id)
        return Response(200, body, "rpc_error", code=answer.error_code)
    result: Object = answer.document["result"]
    outcome = "tool_error" if result.get("isError") is True else "ok"
    if modern != (answer.era == MODERN) and (modern or any(key in result for key in MODERN_MEMBERS)):
        result = {**result, "resultType": "complete"} if modern else _without_modern(result)
        return Response(200, jsonrpc.result(message.id, result), outcome)
    return Response(200, jsonrpc.readdressed(answer.text, answer.document, message.id), outcome)


def _is_complete(answer: RpcResponse) -> bool:
    return answer.error is not None or answer.document["result"].get("resultType", "complete") == "complete"


def _without_modern(result: Object) -> Object:
    return {key: value for key, value in result.items() if key not in MODERN_MEMBERS}
