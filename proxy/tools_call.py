"""tools/call: find the tool, carry the call to its server, and bring the answer back unchanged."""

import time

from proxy.access.grant import Grant
from proxy.access.upstream_credential import target
from proxy.catalog import MOST_TOLD, Found, OutOfScope, Refusal, UnknownTool, authorize_tool, candidates, resolve_tool
from proxy.request import McpRequest
from proxy.response import Response, Stream
from proxy.store.usage import UsageTracker
from proxy.tools_list import ToolLister
from wire import jsonrpc, param_headers, trace_context, versions
from wire.cipher import Cipher
from wire.client import McpClient
from wire.errors import BadAnswer, Busy, UpstreamError
from wire.jsonrpc import Message, Object
from wire.rpc_messages import MODERN, RpcResponse, next_request_id

# Members of a client's `_meta` that are between it and us; all others go on to the server.
OURS = frozenset(
    {
        "progressToken",
        versions.MODERN_KEY,
        versions.CAPABILITIES_KEY,
        versions.CLIENT_INFO_KEY,
        "io.modelcontextprotocol/logLevel",
    }
)

# What a 2026-07-28 result says that older clients never heard of.
MODERN_MEMBERS = ("resultType", "ttlMs", "cacheScope")


class ToolCaller:
    """Carries calls."""

    def __init__(self, client: McpClient, lister: ToolLister, cipher: Cipher, marks: UsageTracker) -> None:
        self._client = client
        self._lister = lister
        self._cipher = cipher
        self._marks = marks

    async def call(self, request: McpRequest, facts: Grant, message: Message, stream: Stream | None) -> Response:
        """The server's answer to this call, addressed to the client.

        Progress goes to `stream` when there is one. Raises OutOfScope or an UpstreamError.
        """
        found = await self._find(request, facts, message.params["name"])
        request.note_server(found.assigned)
        began = time.perf_counter()
        try:
            answer = await self._carry(request, found, facts, message, stream)
        except Busy:  # Nothing was sent, so it says nothing of the server.
            raise
        except UpstreamError as fault:
            self._marks.contacted(found.assigned, fault.detail, credential_refused=fault.reason == "credential_refused")
            raise
        finally:
            request.row.upstream_ms = (time.perf_counter() - began) * 1000
        self._marks.contacted(found.assigned)
        if not request.modern and not _is_complete(answer):
            raise BadAnswer(found.assigned.server_name, "it wants input, which this client cannot give")
        return _response(answer, message, modern=request.modern)

    async def _find(self, request: McpRequest, facts: Grant, name: str) -> Found:
        assignments = facts.assignments
        try:
            found = resolve_tool(assignments, name)
        except (OutOfScope, Refusal) as refused:
            request.note_server(refused.assigned)
            raise
        if found is not None:
            if found.schema is not None and not param_headers.is_sound(found.schema):
                raise UnknownTool(name[:MOST_TOLD])  # Nor is it listed.
            return found
        (assigned,) = candidates(assignments, name)
        request.note_server(assigned)
        tool = await self._lister.find(assigned, facts.connection_id, name, trace_context.of(request.headers))
        return authorize_tool(assigned, tool["name"], None)._replace(schema=tool.get("inputSchema"))

    async def _carry(
        self, request: McpRequest, found: Found, facts: Grant, message: Message, stream: Stream | None
    ) -> RpcResponse:
        connection_id, person = facts.connection_id, facts.user_id
        called = target(found.assigned, connection_id, self._cipher, trace_context.of(request.headers))
        token = message.meta.get("progressToken") if stream is not None else None
        minted = next_request_id() if token is not None else None
        params = _params(message, found.tool, minted)

        async def hear(note: Object) -> None:
            own = note.get("params")
            if stream is None or minted is None or note.get("method") != "notifications/progress":
                return
            if isinstance(own, dict) and own.get("progressToken") == minted:
                await stream.note({**note, "params": {**own, "progressToken": token}})

        answer = await self._client.ask(called, "tools/call", params, hear, person=person, schema=found.schema)
        if answer.error_code == jsonrpc.HEADER_MISMATCH:
            # The schema has changed since it was listed, and with it the headers that repeat arguments.
            schema = await self._schema(found, connection_id, called.trace)
            answer = await self._client.ask(called, "tools/call", params, hear, person=person, schema=schema)
        return answer

    async def _schema(self, found: Found, connection_id: str, traced: trace_context.Trace) -> object:
        offer = await self._lister.tools_of(found.assigned, connection_id, traced)
        return next((tool.get("inputSchema") for tool in offer.tools if tool["name"] == found.tool), None)


def _params(message: Message, tool: str, progress_token: int | None) -> Object:
    """The params for the server: its own tool name, and of `_meta` what is meant for it."""
    params = {**message.params, "name": tool}
    if "_meta" not in params:
        return params
    meta = {key: value for key, value in message.meta.items() if key not in OURS}
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
