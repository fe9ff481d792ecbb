"""tools/call: resolve the tool, forward the call to its server, return the answer unchanged."""

import time

from proxy.access.decision import Grant
from proxy.access.query import ServersNeeded, Wanted
from proxy.catalog import (
    MAX_NAME,
    OutOfScope,
    Refusal,
    ResolvedTool,
    UnknownTool,
    check_held,
    resolve_tool,
    target,
)
from proxy.lists import Lists
from proxy.request import McpRequest
from proxy.response import Response, Stream
from proxy.store.usage import UsageTracker
from wire import jsonrpc, stateless, trace_context, versions
from wire.cipher import Cipher
from wire.client import McpClient
from wire.definitions import TOOL
from wire.errors import BadAnswer, Busy, UpstreamError
from wire.jsonrpc import Message, Object
from wire.rpc_messages import MODERN, RpcResponse, next_request_id

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

# Members of a 2026-07-28 result that the session era does not define.
MODERN_MEMBERS = ("resultType", "ttlMs", "cacheScope")


class ToolCaller:
    """Forwards calls to servers."""

    def __init__(self, client: McpClient, lists: Lists, cipher: Cipher, usage: UsageTracker) -> None:
        self._client = client
        self._lists = lists
        self._cipher = cipher
        self._usage = usage

    async def call(self, request: McpRequest, grant: Grant, message: Message, stream: Stream | None) -> Response:
        """The server's answer to this call, addressed to the client.

        Progress goes to `stream` when there is one. Raises OutOfScope or UpstreamError.
        """
        resolved = await self._resolve(request, grant, message.params["name"])
        request.set_server(resolved.assigned)
        check_held(resolved, message.params.get("arguments"))
        began = time.perf_counter()
        try:
            answer = await self._forward(request, resolved, grant, message, stream)
        except Busy:  # Nothing was sent, so it says nothing of the server.
            raise
        except UpstreamError as error:
            self._usage.server_contacted(
                resolved.assigned, error.detail, credential_refused=error.reason == "credential_refused"
            )
            raise
        finally:
            request.row.upstream_ms = (time.perf_counter() - began) * 1000
        self._usage.server_contacted(resolved.assigned)
        if not request.modern and not _is_complete(answer):
            raise BadAnswer(resolved.assigned.server_name, "it wants input, which this client cannot give")
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
        # No row of it: a fresh list makes one, if the server has such a tool.
        request.set_server(resolved)
        again, listed = await self._lists.look_again(
            request, grant, resolved, Wanted(ServersNeeded.OF_FEATURE, TOOL, name)
        )
        found = resolve_tool(again, name)
        if not isinstance(found, ResolvedTool):
            raise UnknownTool(name[:MAX_NAME])
        # In which era the server speaks may not be stored yet, and with it that headers repeat arguments.
        schemas = (each.value.get("inputSchema") for each in listed if each.value["name"] == found.tool)
        return found._replace(schema=found.schema or next(schemas, None))

    async def _forward(
        self, request: McpRequest, resolved: ResolvedTool, grant: Grant, message: Message, stream: Stream | None
    ) -> RpcResponse:
        connection_id, person = grant.connection_id, grant.user_id
        upstream = target(resolved.assigned, connection_id, self._cipher, trace_context.of(request.headers))
        client_token = message.meta.get("progressToken") if stream is not None else None
        progress_token = next_request_id() if client_token is not None else None
        params = _params(message, resolved.tool, progress_token)

        async def on_notification(notification: Object) -> None:
            own = notification.get("params")
            if stream is None or progress_token is None or notification.get("method") != "notifications/progress":
                return
            if isinstance(own, dict) and own.get("progressToken") == progress_token:
                await stream.notify({**notification, "params": {**own, "progressToken": client_token}})

        answer = await self._client.ask(
            upstream, "tools/call", params, on_notification, person=person, schema=resolved.schema
        )
        if answer.error_code == jsonrpc.HEADER_MISMATCH:
            # The schema has changed since it was listed, and with it the headers that repeat arguments.
            schema = await self._lists.schema_of(resolved.assigned, connection_id, resolved.tool, upstream.trace)
            answer = await self._client.ask(
                upstream, "tools/call", params, on_notification, person=person, schema=schema
            )
        return answer


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
