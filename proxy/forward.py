"""tools/call, prompts/get, resources/read, completion/complete: find the owner, forward, hand back its answer.

They differ in how the owner is found (`proxy.access.features`), in the member of the params that names the feature,
and in what of the answer is rewritten. An answer of which nothing has to be rewritten passes byte for byte.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from proxy.access.decision import AssignedServer, Grant
from proxy.access.features import (
    Named,
    OutOfScope,
    Refusal,
    Resolved,
    UnknownFeature,
    check_held,
    credential_of,
    resolve,
    resolve_call,
    target,
)
from proxy.access.query import ServersNeeded, Wanted
from proxy.lists import Lists
from proxy.refresh import IdentityUnavailable, Refresher
from proxy.request import McpRequest
from proxy.response import MODERN_STATUS, Response, Stream
from proxy.server_requests import Asking, InputRefused, ServerRequests
from proxy.session_calls import SessionCall, SessionCalls
from proxy.store.database import DatabaseUnavailable
from proxy.store.usage import UsageTracker
from proxy.suspended_calls import BadState, CallLost, Ended, SuspendedCalls
from wire import jsonrpc, trace_context, uris, versions
from wire.causes import in_words
from wire.cipher import Cipher
from wire.client import McpClient
from wire.errors import AccessRefused, BadAnswer, Busy, UpstreamError
from wire.jsonrpc import Message, Object
from wire.rpc_messages import (
    MODERN,
    SESSION,
    Answer,
    OnNotification,
    OnRequest,
    RpcResponse,
    Target,
    ignore,
    next_request_id,
)
from wire.trace_context import Trace

# Members of a client's `_meta` that are for the gateway; all others go on to the server.
GATEWAY_META = frozenset(
    {
        "progressToken",
        versions.MODERN_KEY,
        versions.CAPABILITIES_KEY,
        versions.CLIENT_INFO_KEY,
        versions.LOG_LEVEL_KEY,
    }
)

# Sends the request to its server, with these members added to its params, and by this schema of the tool.
type Ask = Callable[..., Awaitable[RpcResponse]]

NOTHING_MORE: Object = {}

# These say nothing of the server: nothing was sent, or the client did not do its part.
NOT_OF_THE_SERVER = (Busy, InputRefused, BadState, CallLost, Ended, Refusal, IdentityUnavailable)

UNAUTHORIZED = 401

SUBSCRIBING = frozenset({"resources/subscribe", "resources/unsubscribe"})
SUBSCRIBED: Object = {"jsonrpc": "2.0", "id": 0, "result": {}}

# Members of a 2026-07-28 result that the session era does not define.
MODERN_MEMBERS = frozenset({"resultType", "ttlMs", "cacheScope"})
NO_MEMBERS: frozenset[str] = frozenset()
CACHE_HINTS: Object = {"ttlMs": 0, "cacheScope": "private"}

# Older clients know no content of the type `resource_link`.
LINKLESS = ("2024-11-05", "2025-03-26")

# What a completion is when its server has none (MCP 2025-11-25, Completion).
NO_COMPLETION: Object = {"completion": {"values": []}}

# Errors of a server that have the status of the client's era; the others are about what the gateway sent.
CLIENTS_FAULTS = frozenset({jsonrpc.METHOD_NOT_FOUND, jsonrpc.INVALID_PARAMS, jsonrpc.MISSING_CAPABILITY})


async def _as_it_was(request: McpRequest) -> Grant | None:
    return request.grant


@dataclass
class Identity:
    """As whom a call goes on, which may change while it is under way."""

    assigned: AssignedServer
    target: Target


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
        self.recheck: Callable[[McpRequest], Awaitable[Grant | None]] = _as_it_was  # Set by who composes the process.
        self._session_calls = session_calls

    async def forward(self, request: McpRequest, grant: Grant, message: Message, stream: Stream | None) -> Response:
        """The server's answer to this request, addressed to the client.

        Its notifications go to `stream` when there is one. Raises OutOfScope or UpstreamError.
        """
        feature = request.feature
        assert feature is not None  # The dispatcher has looked.
        resolved = _resolve(request, grant, feature)
        if not isinstance(resolved, Resolved):
            resolved = await self._look_again(request, grant, resolved, feature)
        request.set_server(resolved.assigned)
        if resolved.row is not None:
            check_held(resolved, message.params.get("arguments"))
        if resolved.assigned.sign_in is not None:
            resolved = await self._refreshed(request, resolved)
        forward = self._forward if request.span is None else self._forward_traced
        began = time.perf_counter()
        try:
            answer = await forward(request, resolved, grant, message, stream)
        except NOT_OF_THE_SERVER:
            raise
        except UpstreamError as error:
            self._usage.server_contacted(
                resolved.assigned,
                in_words(error, resolved.assigned.url),
                credential_refused=error.reason == "credential_refused",
            )
            raise
        finally:
            request.row.upstream_ms = (time.perf_counter() - began) * 1000
        self._usage.server_contacted(resolved.assigned)
        if answer.error is not None:
            return _error_response(request, resolved, message, answer)
        if not request.modern and answer.document["result"].get("resultType", "complete") != "complete":
            raise BadAnswer(resolved.assigned.server_name, "it wants input, which this client cannot give")
        return _result_response(request, resolved, message, answer)

    async def _ask_renewing(
        self, request: McpRequest, resolved: Resolved, identity: Identity, send: Callable[[], Awaitable[RpcResponse]]
    ) -> RpcResponse:
        """The server's answer; after it refused the token, that to another one, once. Raises an UpstreamError."""
        try:
            return await send()
        except AccessRefused as refusal:  # It was not carried out.
            renewed = await self._refresher.after(refusal, identity.assigned)
            if renewed is None:
                raise
        await self._must_still_be_allowed(request, renewed)
        self._with(request, resolved, renewed)
        credential = credential_of(renewed, self._cipher)
        identity.assigned = renewed
        identity.target = identity.target._replace(credential=credential, generation=renewed.ciphertext or "")
        try:
            return await send()
        except AccessRefused as refusal:
            if refusal.status != UNAUTHORIZED:
                raise
            raise await self._refresher.give_up(renewed) from None

    async def _refreshed(self, request: McpRequest, resolved: Resolved) -> Resolved:
        """The same with a token that has not ended; a call that waits for it has to be allowed still, then."""
        fresh = await self._refresher.fresh(resolved.assigned)
        if fresh is not resolved.assigned:
            await self._must_still_be_allowed(request, fresh)
        return self._with(request, resolved, fresh)

    async def _must_still_be_allowed(self, request: McpRequest, assigned: AssignedServer) -> None:
        """Look at the switches again, for a call that has waited until the token of this identity was renewed.

        It is cancelled as what is under way when access is cut; its `ending` says why. Raises IdentityUnavailable when
        nobody can tell, or another identity took its place.
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
        """The same feature with this identity, which the request knows from now on as one of its secrets."""
        if assigned is resolved.assigned or request.grant is None:
            return resolved
        others = [each for each in request.grant.assignments if each.id != assigned.id]
        request.grant = request.grant._replace(assignments=(*others, assigned))
        return resolved._replace(assigned=assigned)

    async def _look_again(
        self, request: McpRequest, grant: Grant, assigned: AssignedServer, feature: Named
    ) -> Resolved:
        """What is meant by a name without a row: a fresh list makes one, if the server has such a feature."""
        request.set_server(assigned)
        wanted = Wanted(ServersNeeded.OF_FEATURE, feature.kind, feature.name)
        grant, listed = await self._lists.look_again(request, grant, assigned, wanted)
        found = resolve(grant, feature)
        if not isinstance(found, Resolved):
            raise UnknownFeature(feature.kind, feature.name)
        # In which era the server speaks may not be stored yet, and with it that headers repeat arguments.
        schemas = (each.value.get("inputSchema") for each in listed if each.value["name"] == found.name)
        return found._replace(schema=found.schema or next(schemas, None))

    async def _forward_traced(
        self, request: McpRequest, resolved: Resolved, grant: Grant, message: Message, stream: Stream | None
    ) -> RpcResponse:
        """The same within a span of its own, whose id the server gets."""
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
        self, request: McpRequest, resolved: Resolved, grant: Grant, message: Message, stream: Stream | None
    ) -> RpcResponse:
        """The server's answer, with whatever server and client ask each other before."""
        level = "" if stream is None else _told_level(request, resolved, grant, message)
        upstream = target(resolved.assigned, grant, self._cipher, request.trace, level)
        if message.method in SUBSCRIBING and await self._client.find_era(upstream) == MODERN:
            # It has no such method: whoever holds the client's stream listens to it.
            return RpcResponse(SUBSCRIBED, jsonrpc.dumps(SUBSCRIBED), SESSION, None)
        ask = self._sender(request, resolved, grant, message, stream, upstream)
        if request.modern and self._may_be_suspended(upstream, message):
            return await self._ask_suspendably(Asking(request, grant, upstream, stream), message, ask)

        async def on_request(asked: Object, answer: Answer) -> None:
            await self._requests.carry(Asking(request, grant, upstream, stream), asked, answer)

        answer = await ask(on_request)
        if answer.error is not None and answer.error_code == jsonrpc.HEADER_MISMATCH and message.method == "tools/call":
            # The schema has changed since it was listed, and with it the headers that repeat arguments.
            schema = await self._lists.schema_of(resolved.assigned, grant, resolved.name, upstream.trace)
            answer = await ask(on_request, schema=schema)
        if not request.modern and _wants_input(answer):
            asking = Asking(request, grant, upstream, stream)
            return await self._requests.give_input(asking, answer, lambda more: ask(on_request, more))
        return answer

    def _sender(
        self,
        request: McpRequest,
        resolved: Resolved,
        grant: Grant,
        message: Message,
        stream: Stream | None,
        upstream: Target,
    ) -> Ask:
        progress_token = next_request_id() if stream is not None and "progressToken" in message.meta else None
        params = _params(message, resolved.name, progress_token)
        if request.span is not None:
            params = _with_trace(params, upstream.trace, is_modern=self._client.era(upstream) == MODERN)
        on_notification: OnNotification = ignore
        if stream is not None:
            on_notification = partial(_relay, request, resolved, grant, message, stream, progress_token)
        # Where a person signed in at an issuer, the token may be renewed while the call is under way.
        identity = None if resolved.assigned.sign_in is None else Identity(resolved.assigned, upstream)

        is_in_session = grant.session is not None or (request.modern and bool(upstream.capabilities))

        def send(
            on_request: OnRequest, more: Object = NOTHING_MORE, schema: object = resolved.schema
        ) -> Awaitable[RpcResponse]:
            used = upstream if identity is None else identity.target
            beside = None
            if is_in_session:
                has_stream = stream is not None
                beside = SessionCall(self._session_calls, grant, resolved.assigned, used, progress_token, has_stream)
            return self._client.ask(
                used,
                message.method,
                {**params, **more} if more else params,
                on_notification,
                person=grant.user_id,
                schema=schema,
                on_request=on_request,
                beside=beside,
            )

        if identity is None:
            return send

        def send_renewing(
            on_request: OnRequest, more: Object = NOTHING_MORE, schema: object = resolved.schema
        ) -> Awaitable[RpcResponse]:
            return self._ask_renewing(request, resolved, identity, lambda: send(on_request, more, schema))

        return send_renewing

    def _may_be_suspended(self, upstream: Target, message: Message) -> bool:
        """Whether the request may end in `input_required` of our own, or is the retry of one that did."""
        if self._client.era(upstream) == MODERN:
            return False
        return bool(upstream.capabilities) or "requestState" in message.params

    async def _ask_suspendably(self, asking: Asking, message: Message, ask: Ask) -> RpcResponse:
        # The state is the server's own business where it speaks 2026-07-28 itself.
        if "requestState" in message.params and await self._client.find_era(asking.target) == SESSION:
            return await self._suspended.resume(asking, message)
        return await self._suspended.call(asking, message, ask)


def _resolve(request: McpRequest, grant: Grant, feature: Named) -> Resolved | AssignedServer:
    try:
        return resolve_call(grant, feature)
    except (OutOfScope, Refusal) as refused:
        request.set_server(refused.assigned)
        raise


def _wants_input(answer: RpcResponse) -> bool:
    return answer.era == MODERN and answer.document.get("result", {}).get("resultType") == "input_required"


# Notifications of a server that belong to the request on whose stream they come, and need no translation.
PASSED_ON = frozenset({"notifications/resources/updated", "notifications/elicitation/complete"})

LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
ALL_LEVELS = frozenset(LEVELS)
NO_LEVELS: frozenset[str] = frozenset()
FROM_LEVEL = {level: frozenset(LEVELS[number:]) for number, level in enumerate(LEVELS)}


async def _relay(
    request: McpRequest,
    resolved: Resolved,
    grant: Grant,
    message: Message,
    stream: Stream,
    progress_token: int | None,
    notification: Object,
) -> None:
    """Pass on a notification of a call, in the client's terms, unless it is not for the client."""
    own, method = notification.get("params"), notification.get("method")
    if not isinstance(own, dict) or not isinstance(method, str):
        return
    if method == "notifications/progress":
        if progress_token is None or own.get("progressToken") != progress_token:
            return
        own = {**own, "progressToken": message.meta.get("progressToken")}
    elif method == "notifications/message":
        if str(own.get("level")) not in _levels(request, grant, message):
            return
        own = {**own, "logger": under_alias(resolved.assigned.alias, own.get("logger"))}
    elif method not in PASSED_ON or request.modern:
        return
    else:
        own = uris.exposed(own, resolved.alias)
    await stream.notify({**notification, "params": own})


def _level(request: McpRequest, grant: Grant, message: Message) -> str:
    """From which level on this client wants log messages; empty when it did not say so."""
    if not request.modern:
        return grant.session.log_level if grant.session is not None else ""
    level = message.meta.get(versions.LOG_LEVEL_KEY)
    return level if isinstance(level, str) and level in FROM_LEVEL else ""


def _told_level(request: McpRequest, resolved: Resolved, grant: Grant, message: Message) -> str:
    """The level the server is to be told; empty when it cannot log, or need not know."""
    return _level(request, grant, message) if request.modern or resolved.assigned.logs else ""


def _levels(request: McpRequest, grant: Grant, message: Message) -> frozenset[str]:
    """The levels of log messages this client is sent: in 2026-07-28 none unless the request names one."""
    level = _level(request, grant, message)
    return NO_LEVELS if request.modern and not level else told_levels(level)


def told_levels(level: str) -> frozenset[str]:
    """The levels from this one on; all without one."""
    return FROM_LEVEL[level] if level else ALL_LEVELS


def under_alias(alias: str, logger: object) -> str:
    """Who logs, under the name of its server."""
    own = logger if isinstance(logger, str) else ""
    return f"{alias}/{own}" if alias and own else alias or own


def _params(message: Message, name: str, progress_token: int | None) -> Object:
    """The params for the server: its own name of the feature, and of `_meta` what is meant for it."""
    match message.method:
        case "completion/complete":
            ref = message.params["ref"]
            params = {**message.params, "ref": {**ref, "name" if ref.get("type") == "ref/prompt" else "uri": name}}
        case "tools/call" | "prompts/get":
            params = {**message.params, "name": name}
        case _:
            params = {**message.params, "uri": name}
    if "_meta" not in params:
        return params
    meta = {key: value for key, value in message.meta.items() if key not in GATEWAY_META}
    if progress_token is not None:
        meta["progressToken"] = progress_token
    params["_meta"] = meta
    if not meta:
        del params["_meta"]
    return params


def _with_trace(params: Object, trace: Trace, *, is_modern: bool) -> Object:
    """The params with the trace of the hop, where the client said one, and at servers of MCP 2026-07-28."""
    meta: Object = params.get("_meta", {})
    if not is_modern and trace_context.PARENT not in meta:
        return params
    own = {name: value for name, value in meta.items() if name not in trace_context.FIELDS}
    return {**params, "_meta": own | {name: trace[name] for name in trace_context.FIELDS if name in trace}}


def _error_response(request: McpRequest, resolved: Resolved, message: Message, answer: RpcResponse) -> Response:
    """A server's error, in the codes of the client's era and with its status."""
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

# What says that a resource is not there, by the era of whoever hears it.
NOT_FOUND = {True: jsonrpc.INVALID_PARAMS, False: jsonrpc.RESOURCE_NOT_FOUND}


def _resource_error(request: McpRequest, resolved: Resolved, error: Object) -> Object:
    """The error of resources/read as the client's era spells it, with the URI the client knows."""
    if error.get("code") == NOT_FOUND[not request.modern]:
        error = {**error, "code": NOT_FOUND[request.modern]}
    data = error.get("data")
    if resolved.alias and isinstance(data, dict) and isinstance(data.get("uri"), str):
        error = {**error, "data": {**data, "uri": uris.exposed_uri(resolved.alias, data["uri"])}}
    return error


def _input_required(message: Message, error: Object) -> Response:
    """The session era's -32042 as a 2026-07-28 client is told to visit a page; it asks again after that."""
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


def _result_response(request: McpRequest, resolved: Resolved, message: Message, answer: RpcResponse) -> Response:
    result: Object = answer.document["result"]
    outcome = "tool_error" if result.get("isError") is True else "ok"
    shown = uris.exposed(result, resolved.alias) if resolved.alias else result
    if not request.modern and request.version in LINKLESS:
        shown = _without_links(shown)
    drop, add = _members_of_era(request, message, result, answer.era)
    if shown is result:
        if not drop and not add:
            return Response(200, jsonrpc.readdressed(answer.text, answer.document, message.id), outcome)
        return Response(200, jsonrpc.with_members(answer.text, answer.document, message.id, drop, add), outcome)
    shown = {key: value for key, value in shown.items() if key not in drop} | add
    return Response(200, jsonrpc.dumps({**answer.document, "id": message.id, "result": shown}), outcome)


def _members_of_era(request: McpRequest, message: Message, result: Object, era: str) -> tuple[frozenset[str], Object]:
    """The members of a result that the client's era does not know, and those that it asks for."""
    if not request.modern:
        return MODERN_MEMBERS & result.keys() if era == MODERN else NO_MEMBERS, {}
    add = {} if era == MODERN and "resultType" in result else COMPLETE
    if message.method == "resources/read" and result.get("resultType", "complete") == "complete":
        # Who may read it is decided for each connection and anew each time, so no cache may be shared.
        hints = {key: value for key, value in CACHE_HINTS.items() if key not in result}
        if result.get("cacheScope") != "private":
            hints |= {"cacheScope": "private"}
        add = add | hints
    return frozenset(add) & result.keys(), add


def _without_links(result: Object) -> Object:
    """The result with each link to a resource as a text that names it."""
    content = result.get("content")
    if not isinstance(content, list):
        return result
    shown = [
        _as_text(item) if isinstance(item, dict) and item.get("type") == "resource_link" else item for item in content
    ]
    return result if all(a is b for a, b in zip(shown, content, strict=True)) else {**result, "content": shown}


def _as_text(link: Object) -> Object:
    words = [str(link[key]) for key in ("title", "name", "description") if isinstance(link.get(key), str)]
    text = f"{words[0]}: {link.get('uri', '')}" if words else str(link.get("uri", ""))
    kept: Object = {key: link[key] for key in ("annotations", "_meta") if key in link}
    return {"type": "text", "text": text, **kept}
