"""Forward tools/call, prompts/get, resources/read, completion/complete and tasks/* to their server.

They differ in how the server is found (`proxy.access.features`), in the member of the params that names the feature,
and in what is rewritten in the answer. An answer without anything to rewrite is passed on byte for byte.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from proxy import message_router, tasks
from proxy.access.decision import AccessRow, AssignedServer, ServersNeeded, Wanted
from proxy.access.features import (
    PROMPT,
    TOOL,
    Named,
    OutOfScope,
    Refusal,
    Resolved,
    UnknownFeature,
    check_held,
    exposed_feature,
    may_be_own_name,
    resolve,
    resolve_call,
    target_of,
)
from proxy.lists import Lists
from proxy.message_router import SessionCall, SessionCalls
from proxy.refresh import IdentityUnavailable, Refresher
from proxy.request import McpRequest
from proxy.response import MODERN_STATUS, Response, Stream
from proxy.server_requests import (
    BadState,
    CallLost,
    Ended,
    InputRefused,
    InteractiveCall,
    ServerRequests,
    SuspendedCalls,
    can_be_asked,
)
from proxy.store.pg import DatabaseUnavailable
from proxy.store.usage import UsageTracker
from proxy.upstream_streams import LIST_OF
from wire import jsonrpc, rewriting, trace_context, versions
from wire.cipher import Cipher
from wire.client import McpClient
from wire.definitions import exposed_name
from wire.errors import AccessRefused, BadAnswer, Busy, CredentialRenewed, NotRecordable, UpstreamError, failure_text
from wire.jsonrpc import Message, Object
from wire.mcp import (
    MODERN,
    SESSION,
    Answer,
    OnNotification,
    OnRequest,
    RpcResponse,
    Target,
    era_for,
    ignore,
    next_request_id,
)
from wire.rewriting import NO_MEMBERS, Changes
from wire.trace_context import Trace

# Members of a client's `_meta` that are for the gateway; all others are forwarded to the server.
GATEWAY_META = frozenset(
    {
        "progressToken",
        versions.MODERN_KEY,
        versions.CAPABILITIES_KEY,
        versions.LOG_LEVEL_KEY,
    }
)

UNAUTHORIZED = 401

# Sends the request to its server, with these members added to its params.
type Ask = Callable[..., Awaitable[RpcResponse]]

NOTHING_MORE: Object = {}

# Not recorded as server failures: the request was never sent, or the client caused the error.
NOT_OF_THE_SERVER = (Busy, InputRefused, BadState, CallLost, Ended, Refusal, IdentityUnavailable, tasks.UnknownTask)

SUBSCRIBING = frozenset({"resources/subscribe", "resources/unsubscribe"})
SUBSCRIBED: Object = {"jsonrpc": "2.0", "id": 0, "result": {}}

# Members of a 2026-07-28 result that the session era does not define.
MODERN_MEMBERS = frozenset({"resultType", "ttlMs", "cacheScope"})
CACHE_HINTS: Object = {"ttlMs": 0, "cacheScope": "private"}

# Older clients know no content of the type `resource_link`.
LINKLESS = ("2024-11-05", "2025-03-26")

# The result when the server has no completions (MCP 2025-11-25, Completion).
NO_COMPLETION: Object = {"completion": {"values": []}}

# Server errors that get the HTTP status of the client's era; others are about the gateway's own request.
CLIENTS_FAULTS = frozenset({jsonrpc.METHOD_NOT_FOUND, jsonrpc.INVALID_PARAMS, jsonrpc.MISSING_CAPABILITY})


def _ignore_change(_: AssignedServer, __: AccessRow, ___: str) -> None:
    pass


async def _as_it_was(request: McpRequest) -> AccessRow | None:
    return request.grant


class Forwarder:
    """Forwards requests to the servers they are for."""

    def __init__(
        self,
        client: McpClient,
        lists: Lists,
        cipher: Cipher,
        usage: UsageTracker,
        requests: ServerRequests,
        suspended: SuspendedCalls,
        refresher: Refresher,
        session_calls: SessionCalls,
    ) -> None:
        self._client = client
        self._requests = requests
        self._suspended = suspended
        self._lists = lists
        self._cipher = cipher
        self._usage = usage
        self._refresher = refresher
        self.recheck: Callable[[McpRequest], Awaitable[AccessRow | None]] = (
            _as_it_was  # Set by who composes the process.
        )
        self._session_calls = session_calls
        self.list_changed: Callable[[AssignedServer, AccessRow, str], None] = _ignore_change  # Likewise.

    async def forward(self, request: McpRequest, grant: AccessRow, message: Message, stream: Stream | None) -> Response:
        """Send this request to its server and return the answer, rewritten for the client.

        Notifications go to `stream`, if there is one. Raises OutOfScope or UpstreamError.
        """
        grant, resolved = await self._resolved(request, grant, message)
        if resolved.alias and rewriting.may_hold_exposed(request.body):
            message = await _with_own_uris(request, resolved, message)
        forward = self._forward if request.span is None else self._forward_traced
        began = time.perf_counter()
        try:
            answer = await forward(request, resolved, grant, message, stream)
        except NOT_OF_THE_SERVER:
            raise
        except AccessRefused as refusal:
            raise await self._after(refusal, request, resolved, grant) from None
        except UpstreamError as error:
            self._usage.server_contacted(resolved.assigned, failure_text(error, resolved.assigned.url))
            raise
        finally:
            request.row.upstream_ms = (time.perf_counter() - began) * 1000
        self._usage.server_contacted(resolved.assigned)
        request.held = answer.held
        if answer.error is not None:
            return _error_response(request, resolved, message, answer)
        result = answer.document["result"]
        if message.method == "tools/call" and ("task" in message.params or result.get("resultType") == "task"):
            request.mcp_task = tasks.created(self._cipher, resolved.assigned, request, message, answer)
        return await _result_response(request, resolved, message, answer)

    async def _resolved(self, request: McpRequest, grant: AccessRow, message: Message) -> tuple[AccessRow, Resolved]:
        """Find the server and feature of this request, with a fresh credential, and return them with their grant.

        Raises OutOfScope or UpstreamError.
        """
        feature, task = request.feature, request.mcp_task
        assert feature is not None  # The dispatcher has looked.
        resolved = _resolve(request, grant, feature)
        if not isinstance(resolved, Resolved):
            grant, resolved = await self._find(request, grant, resolved, feature)
        request.set_server(resolved.assigned)
        if "." in feature.name and feature.kind in (TOOL, PROMPT):  # The log has one name for a tool.
            request.rename(Named(feature.kind, exposed_name(resolved.assigned.alias, resolved.name)), grant)
        if task is not None and task.assignment_id != resolved.assigned.id:
            raise tasks.UnknownTask
        if resolved.row is not None and task is None:
            check_held(resolved, message.params.get("arguments"))
        if resolved.assigned.sign_in is not None:
            resolved = await self._refreshed(request, resolved)
        return grant, resolved

    async def _after(
        self, refusal: AccessRefused, request: McpRequest, resolved: Resolved, grant: AccessRow
    ) -> UpstreamError:
        """Return the error of a call whose credential the server refused.

        An OAuth token is renewed and probed for later calls; the call itself is not sent again. Raises Refusal when a
        person has to sign in again.
        """
        assigned = resolved.assigned
        try:
            renewed = await self._refresher.after(refusal, assigned)
        except IdentityUnavailable:
            renewed = None
        if renewed is None:
            self._usage.server_contacted(assigned, failure_text(refusal, assigned.url), credential_refused=True)
            return refusal
        self._with(request, resolved, renewed)
        try:
            await self._client.probe(target_of(renewed, grant, self._cipher, request.trace))
        except AccessRefused as again:
            if again.status == UNAUTHORIZED:
                return await self._refresher.give_up(renewed)
        except UpstreamError:
            return refusal  # The next call will show whether the server accepts the new token.
        return CredentialRenewed(assigned.server_name, refusal.status, refusal.challenge)

    async def _refreshed(self, request: McpRequest, resolved: Resolved) -> Resolved:
        """Refresh the token if it has expired, then re-check access, because refreshing may take seconds."""
        fresh = await self._refresher.fresh(resolved.assigned)
        if fresh is not resolved.assigned:
            await self._must_still_be_allowed(request, fresh)
        return self._with(request, resolved, fresh)

    async def _must_still_be_allowed(self, request: McpRequest, assigned: AssignedServer) -> None:
        """Re-check access for a call that waited for the token of this identity to be renewed.

        Raises CancelledError if access was lost (the request's `ending` has the reason), and IdentityUnavailable if
        access cannot be checked or the connection now uses another identity.
        """
        try:
            grant = await self.recheck(request)
        except DatabaseUnavailable as error:
            raise IdentityUnavailable(assigned.server_name, str(error)) from None
        if grant is None:
            raise asyncio.CancelledError
        if all(each.identity_id != assigned.identity_id for each in grant.assignments if each.id == assigned.id):
            raise IdentityUnavailable(assigned.server_name, "the connection carries another identity now")

    def _with(self, request: McpRequest, resolved: Resolved, assigned: AssignedServer) -> Resolved:
        """Return the feature with this renewed identity, whose secret is also redacted from the payloads."""
        if assigned is resolved.assigned or request.grant is None:
            return resolved
        others = [each for each in request.grant.assignments if each.id != assigned.id]
        request.grant = request.grant._replace(assignments=(*others, assigned))
        return resolved._replace(assigned=assigned)

    async def _find(
        self, request: McpRequest, grant: AccessRow, assigned: AssignedServer | None, feature: Named
    ) -> tuple[AccessRow, Resolved]:
        """Find a feature without a row: in a fresh list of its server, or by its server's own name for it.

        Raises OutOfScope or UpstreamError.
        """
        if assigned is not None:
            try:
                return grant, await self._look_again(request, grant, assigned, feature)
            except UnknownFeature:
                if not may_be_own_name(grant, feature):
                    raise
        return await self._by_own_name(request, grant, feature)

    async def _look_again(
        self, request: McpRequest, grant: AccessRow, assigned: AssignedServer, feature: Named
    ) -> Resolved:
        """Find a name without a row: a fresh list stores one if the server has the feature."""
        request.set_server(assigned)
        wanted = Wanted(ServersNeeded.OF_FEATURE, feature.kind, feature.name)
        grant, listed = await self._lists.look_again(request, grant, assigned, wanted)
        found = resolve(grant, feature)
        if not isinstance(found, Resolved):
            raise UnknownFeature(feature.kind, feature.name)
        # A row stored before the server's eras were known has no schema.
        schemas = (each.value.get("inputSchema") for each in listed if each.value["name"] == found.name)
        return found._replace(schema=found.schema or next(schemas, None))

    async def _by_own_name(self, request: McpRequest, grant: AccessRow, feature: Named) -> tuple[AccessRow, Resolved]:
        """Find a tool or prompt called without its server's alias, and decide as if it had the alias.

        The log then has the server and the exposed name. Raises OutOfScope, Refusal or UnknownFeature.
        """
        grant = await self._lists.with_own_name(request, grant, feature)
        exposed = exposed_feature(grant, feature)
        request.rename(exposed, grant)
        resolved = _resolve(request, grant, exposed)
        if not isinstance(resolved, Resolved):
            raise UnknownFeature(feature.kind, feature.name)
        return grant, resolved

    async def _forward_traced(
        self, request: McpRequest, resolved: Resolved, grant: AccessRow, message: Message, stream: Stream | None
    ) -> RpcResponse:
        """Forward within a new span, whose id is sent to the server."""
        assert request.span is not None
        hop = request.span.hop(resolved.assigned, message.method, request.feature, resolved.name)
        request.span.trace = hop.trace
        try:
            answer = await self._forward(request, resolved, grant, message, stream)
        except BaseException as error:
            hop.end(error=error)
            raise
        hop.end(answer=answer)
        return answer

    async def _forward(
        self, request: McpRequest, resolved: Resolved, grant: AccessRow, message: Message, stream: Stream | None
    ) -> RpcResponse:
        """Return the server's answer, after forwarding any requests of the server to the client."""
        upstream = await self._target(request, resolved, grant, message, stream)
        if message.method in SUBSCRIBING and upstream.era == MODERN:
            # 2026-07-28 has no such method: the worker with the client's stream subscribes by `subscriptions/listen`.
            return RpcResponse(SUBSCRIBED, jsonrpc.dumps(SUBSCRIBED), SESSION, None)
        ask = self._sender(request, resolved, grant, message, stream, upstream)
        asking = InteractiveCall(request, grant, upstream, stream)
        if request.modern and "requestState" in message.params:
            # A call that waits here is resumed, even if its server speaks 2026-07-28 by now.
            if upstream.era == SESSION or self._suspended.has_given(message):
                request.may_have_run = True
                return await self._suspended.resume(asking, message)
        elif request.modern and upstream.era == SESSION and can_be_asked(upstream.capabilities):
            return await self._suspended.call(asking, message, ask)

        async def on_request(asked: Object, answer: Answer) -> None:
            await self._requests.carry(asking, asked, answer)

        answer = await ask(on_request)
        if answer.error_code == jsonrpc.HEADER_MISMATCH and message.method == "tools/call":
            # The tool's schema has changed since it was listed, and with it the headers that repeat arguments.
            self._lists.refresh(resolved.assigned, grant, TOOL)
        if not request.modern and _wants_input(answer):
            return await self._give_input(asking, answer, lambda more: ask(on_request, more))
        return answer

    async def _give_input(self, asking: InteractiveCall, answer: RpcResponse, again: Ask) -> RpcResponse:
        """Give a server of 2026-07-28 the input it wants from a session client. Raises an UpstreamError."""
        try:
            return await self._requests.give_input(asking, answer, again)
        except (NotRecordable, Busy) as error:  # This round was not sent, but the first one was.
            raise CallLost(asking.target.server_name, str(error)) from error

    async def _target(
        self, request: McpRequest, resolved: Resolved, grant: AccessRow, message: Message, stream: Stream | None
    ) -> Target:
        """Return the request's target, in the client's era if the server supports it. Raises an UpstreamError."""
        level = "" if stream is None else message_router.told_level(request, resolved, grant, message)
        upstream = target_of(
            resolved.assigned,
            grant,
            self._cipher,
            request.trace,
            level,
            modern=request.modern,
            extensions=request.extensions,
        )
        if not upstream.era:
            eras = await self._lists.eras.find(upstream)
            upstream = upstream._replace(era=era_for(eras, MODERN if request.modern else SESSION))
        if request.mcp_task is None and "extensions" not in upstream.capabilities:
            return upstream
        return tasks.for_era(upstream, request.mcp_task, modern=request.modern)

    def _sender(
        self,
        request: McpRequest,
        resolved: Resolved,
        grant: AccessRow,
        message: Message,
        stream: Stream | None,
        upstream: Target,
    ) -> Ask:
        progress_token = next_request_id() if stream is not None and "progressToken" in message.meta else None
        is_modern = upstream.era == MODERN
        params = _params(request, message, resolved.name, progress_token, is_modern=is_modern)
        if "task" in params and request.modern != is_modern:
            del params["task"]  # The server's era has no such member.
        if request.span is not None:
            params = _with_trace(params, upstream.trace, is_modern=is_modern)
        relay: OnNotification = ignore
        if stream is not None:
            relay = partial(message_router.relay, request, resolved, grant, message, stream, progress_token)
        on_notification = partial(self._hear, resolved.assigned, grant, relay)
        is_in_session = grant.session is not None or (request.modern and can_be_asked(upstream.capabilities))

        async def send(on_request: OnRequest, more: Object = NOTHING_MORE) -> RpcResponse:
            beside = None
            if is_in_session:
                has_stream = stream is not None
                beside = SessionCall(
                    self._session_calls, grant, resolved.assigned, upstream, progress_token, has_stream
                )
            try:
                answer = await self._client.ask(
                    upstream,
                    message.method,
                    {**params, **more} if more else params,
                    on_notification,
                    person=grant.user_id,
                    schema=resolved.schema,
                    on_request=on_request,
                    beside=beside,
                )
            except (DatabaseUnavailable, NotRecordable, Busy):
                raise  # Before it was sent: sessions are looked up and opened first.
            except BaseException:
                request.may_have_run = True
                raise
            request.may_have_run = True
            return answer

        return send

    async def _hear(
        self, assigned: AssignedServer, grant: AccessRow, relay: OnNotification, notification: Object
    ) -> None:
        """Handle a notification of a call: list changes go to all clients, others to this one."""
        if (changed := LIST_OF.get(str(notification.get("method")))) is not None:
            self.list_changed(assigned, grant, changed)
        else:
            await relay(notification)


def _resolve(request: McpRequest, grant: AccessRow, feature: Named) -> Resolved | AssignedServer | None:
    """Resolve like `resolve_call`, but return None for a name that may be a server's own."""
    try:
        return resolve_call(grant, feature)
    except UnknownFeature:
        if may_be_own_name(grant, feature):
            return None
        raise
    except (OutOfScope, Refusal) as refused:
        request.set_server(refused.assigned)
        raise


# The members of params in which clients send URIs back.
ARGUMENTS = ("arguments", "argument", "context")
INLINE_BYTES = 1 << 16


async def _with_own_uris(request: McpRequest, resolved: Resolved, message: Message) -> Message:
    """Replace this server's exposed URIs in the arguments by the server's own."""
    alias, body = resolved.alias, request.body
    given = {name: message.params[name] for name in ARGUMENTS if name in message.params}
    own = (
        rewriting.own_uri(given, alias)
        if len(body) <= INLINE_BYTES
        else await asyncio.to_thread(rewriting.own_uri, given, alias)
    )
    return replace(message, params=message.params | own)


def _wants_input(answer: RpcResponse) -> bool:
    return answer.era == MODERN and answer.document.get("result", {}).get("resultType") == "input_required"


def _params(request: McpRequest, message: Message, name: str, progress_token: int | None, *, is_modern: bool) -> Object:
    """Return the params for the server, with its own name of the feature and without the gateway's `_meta` members."""
    match message.method:
        case "completion/complete":
            ref = message.params["ref"]
            params = {**message.params, "ref": {**ref, "name" if ref.get("type") == "ref/prompt" else "uri": name}}
        case "tools/call" | "prompts/get":
            params = {**message.params, "name": name}
        case _ if request.mcp_task is not None:
            params = {**message.params, "taskId": request.mcp_task.own_id}
        case _:
            params = {**message.params, "uri": name}
    if "_meta" not in params:
        return params
    own = rewriting.meta_for_server(message.meta, request.task_ids)
    meta = {key: value for key, value in own.items() if key not in GATEWAY_META}
    if not is_modern:  # A session got the client's info when it was opened.
        meta.pop(versions.CLIENT_INFO_KEY, None)
    if progress_token is not None:
        meta["progressToken"] = progress_token
    params["_meta"] = meta
    if not meta:
        del params["_meta"]
    return params


def _with_trace(params: Object, trace: Trace, *, is_modern: bool) -> Object:
    """Add the hop's trace to the params, if the client sent one or the server speaks MCP 2026-07-28."""
    meta: Object = params.get("_meta", {})
    if not is_modern and trace_context.PARENT not in meta:
        return params
    own = {name: value for name, value in meta.items() if name not in trace_context.FIELDS}
    return {**params, "_meta": own | {name: trace[name] for name in trace_context.FIELDS if name in trace}}


def _error_response(request: McpRequest, resolved: Resolved, message: Message, answer: RpcResponse) -> Response:
    """Return a server's error, with the code and HTTP status of the client's era."""
    error, code = answer.error or {}, answer.error_code
    if message.method == "completion/complete" and code == jsonrpc.METHOD_NOT_FOUND:
        return Response(200, jsonrpc.result(message.id, NO_COMPLETION | (COMPLETE if request.modern else {})))
    if message.method == "resources/read":
        error = _resource_error(request, resolved, error)
    if request.modern and code == jsonrpc.URL_ELICITATION_REQUIRED:
        return _input_required(message, error)
    code = error.get("code") if error is not answer.error else code
    status = MODERN_STATUS.get(code, 200) if request.modern and code in CLIENTS_FAULTS else 200
    if error is answer.error:
        return Response(status, jsonrpc.readdressed(answer.text, answer.document, message.id), "rpc_error", code=code)
    return Response(
        status, jsonrpc.dumps({**answer.document, "error": error, "id": message.id}), "rpc_error", code=code
    )


COMPLETE: Object = {"resultType": "complete"}

# The code for a missing resource, by whether the receiver speaks 2026-07-28.
NOT_FOUND = {True: jsonrpc.INVALID_PARAMS, False: jsonrpc.RESOURCE_NOT_FOUND}


def _resource_error(request: McpRequest, resolved: Resolved, error: Object) -> Object:
    """Return the error of resources/read with the code of the client's era and the client's URI."""
    if error.get("code") == NOT_FOUND[not request.modern]:
        error = {**error, "code": NOT_FOUND[request.modern]}
    data = error.get("data")
    if resolved.alias and isinstance(data, dict) and isinstance(data.get("uri"), str):
        error = {**error, "data": {**data, "uri": rewriting.exposed_uri(resolved.alias, data["uri"])}}
    return error


def _input_required(message: Message, error: Object) -> Response:
    """Translate the session era's -32042 (URL elicitation required) to `input_required` of 2026-07-28."""
    data = error.get("data")
    elicitations = data.get("elicitations") if isinstance(data, dict) else None
    asked = [each for each in elicitations if isinstance(each, dict)] if isinstance(elicitations, list) else []
    capabilities = message.meta.get(versions.CAPABILITIES_KEY, {})
    elicitation = capabilities.get("elicitation")
    if not asked or not isinstance(elicitation, dict) or not isinstance(elicitation.get("url"), dict):
        code, text = jsonrpc.MISSING_CAPABILITY, str(error.get("message") or "URL elicitation is required")
        needed: Object = {"requiredCapabilities": {"elicitation": {"url": {}}}}
        return Response(400, jsonrpc.error(message.id, code, text, needed), "rpc_error", code=code)
    requests = {
        f"url-{number}": {"method": "elicitation/create", "params": {"mode": "url", **each}}
        for number, each in enumerate(asked, 1)
    }
    return Response(200, jsonrpc.result(message.id, {"resultType": "input_required", "inputRequests": requests}))


async def _result_response(request: McpRequest, resolved: Resolved, message: Message, answer: RpcResponse) -> Response:
    result: Object = answer.document["result"]
    if not request.modern and result.get("resultType", "complete") != "complete":
        raise BadAnswer(resolved.assigned.server_name, "it wants input, which this client cannot give")
    drop, add = _members_of_era(request, message, result, answer.era)
    read = message.params["uri"] if resolved.alias and message.method == "resources/read" else ""
    without_links = not request.modern and request.version in LINKLESS
    if resolved.alias or without_links or drop or add or request.task_ids or answer.reader or "_meta" in result:
        # By position: keyword arguments would double the cost of this function.
        changes = Changes(
            resolved.alias, resolved.name, read, without_links, drop, add, message.method, request.task_ids
        )
        person = request.grant.user_id if request.grant is not None else ""
        body = await answer.changed(resolved.assigned.server_name, message.id, changes, person)
    else:
        body = jsonrpc.readdressed(answer.text, answer.document, message.id)
    return Response(200, body, "tool_error" if result.get("isError") is True else "ok")


def _members_of_era(request: McpRequest, message: Message, result: Object, era: str) -> tuple[frozenset[str], Object]:
    """Return the members of a result to drop for the client's era, and those to add."""
    if not request.modern:
        return MODERN_MEMBERS & result.keys() if era == MODERN else NO_MEMBERS, {}
    add = {} if era == MODERN and "resultType" in result else COMPLETE
    if message.method == "resources/read" and result.get("resultType", "complete") == "complete":
        # Access is decided per connection and per request, so no cache may be shared.
        hints = {key: value for key, value in CACHE_HINTS.items() if key not in result}
        if result.get("cacheScope") != "private":
            hints |= {"cacheScope": "private"}
        add = add | hints
    return frozenset(add) & result.keys(), add
