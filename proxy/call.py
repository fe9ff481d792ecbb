"""The path of a call, from an HTTP request at /mcp/<gateway> to its answer. The code follows the order of the steps.

`Endpoint.__call__` checks access. `_serve_known` routes the message, records the call and answers. `_forward` sends the
request to its server.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from proxy import message_router, metrics, open_files, reasons, response, tasks
from proxy.access.decision import (
    DENIALS,
    NOTHING,
    Access,
    AccessQuery,
    AccessRow,
    AssignedServer,
    Denied,
    ServersNeeded,
    TokenDigests,
    Wanted,
    access_query,
    decide,
)
from proxy.access.features import (
    IdentityUnreadable,
    Named,
    OutOfScope,
    Refusal,
    Resolved,
    UnknownFeature,
    check_held,
    exposed_feature,
    is_nameable,
    lookup_key,
    may_be_own_name,
    resolve,
    resolve_call,
    target_of,
)
from proxy.access.rule_checker import RuleRefused, ruled_call
from proxy.access.rules import HOLD, NO_RULES, REFUSE, RuleDecision, decide_by_rules
from proxy.config import Config
from proxy.handshake import Handshake
from proxy.hold_answers import NotApproved
from proxy.holds import MORE, NOT_CONTINUED, HeldCall, Holds
from proxy.lists import BadListCursor, Lists
from proxy.message_router import LEVELS, SessionCall
from proxy.refresh import IdentityUnavailable, Refresher
from proxy.request import (
    UNAUTHENTICATED_BODY,
    ClientLeft,
    HeaderReader,
    McpRequest,
    Receive,
    Scope,
    Send,
    check_modern,
    is_modern,
    unsupported,
)
from proxy.response import MODERN_STATUS, Response, Stream, bad_request, error_response
from proxy.server_requests import (
    ROOTS_CHANGED,
    BadState,
    CallLost,
    Ended,
    InputRefused,
    InteractiveCall,
    ServerRequests,
    SuspendedCalls,
    can_be_asked,
)
from proxy.store.call_log import CallWriter, NotRecorded, PayloadRecorder, new_uid
from proxy.store.pg import DatabaseUnavailable
from proxy.store.rate_limits import Limits
from proxy.store.usage import UsageTracker
from proxy.streams import UPDATED, Resumption, StandingStream, StopReason, Streams, honoured, params_of
from proxy.upstream_streams import LIST_OF, ServerStreams
from wire import jsonrpc, rewriting, trace_context, versions
from wire.background import spawn
from wire.cipher import Cipher
from wire.client import McpClient
from wire.definitions import exposed_name
from wire.errors import (
    AccessRefused,
    AddressBlocked,
    AnswersNotTaken,
    BadAnswer,
    BadUrl,
    Busy,
    CredentialRenewed,
    EraLeft,
    Loop,
    NameNotFound,
    NoMemory,
    NotConnected,
    NotRecordable,
    SessionEnded,
    TokenBusy,
    UpstreamError,
    failure_text,
)
from wire.fair_queue import ByteBudget, QueueFull
from wire.jsonrpc import MalformedMessage, Message, Object
from wire.mcp import (
    METHODS,
    MODERN,
    RESOURCE,
    SESSION,
    TOOL,
    Answer,
    OnRequest,
    RpcResponse,
    Target,
    era_for,
    next_request_id,
)
from wire.rewriting import NO_MEMBERS, Changes
from wire.sessions import declared
from wire.trace_context import Trace

if TYPE_CHECKING:
    from proxy.tracing import Tracer

logger = logging.getLogger(__name__)

CLIENT_LEFT = 499
# Outcomes for which the row in the log includes the error text.
FAILED = frozenset({"tool_error", "rpc_error", "upstream_error", "timeout", "bad_request"})

NO_SESSION = "The gateway could not read its sessions; nothing was executed."
ACCESS_NOT_CHECKED = "The gateway could not check access."
ANSWER_NOT_TAKEN = "The gateway could not process this answer; send it again."
NO_SESSION_ID = "The header Mcp-Session-Id must name the session to end"
NOT_EXECUTED = "The gateway cannot record calls at the moment; nothing was executed."
NOT_RECORDED = "The gateway could not record this call; the server may have executed it."
TOO_MANY_FILES = "The gateway has reached its limit of open streams; try again later."
NOT_FINISHED = "The gateway could not read its sessions during this call; the server may have executed it."

# Errors not recorded as server failures: the request was never sent, or the client or the gateway caused the error.
NOT_OF_THE_SERVER = (
    Busy,
    InputRefused,
    BadState,
    CallLost,
    Ended,
    NoMemory,
    Refusal,
    IdentityUnavailable,
    IdentityUnreadable,
    tasks.UnknownTask,
)

# Errors after which the server has not executed the request, unless `may_have_run` is set: the request was not sent, or
# the server has lost its session.
NEVER_RUN = (
    *(Busy, NotRecordable, DatabaseUnavailable, BadUrl, EraLeft, SessionEnded),
    *(NotConnected, NameNotFound, AddressBlocked, Loop),
)

# Servers of MCP 2026-07-28 do not have these methods. Instead, the worker that has the client's stream sends
# `subscriptions/listen` to such a server.
SUBSCRIBING = frozenset({"resources/subscribe", "resources/unsubscribe"})
SUBSCRIBED: Object = {"jsonrpc": "2.0", "id": 0, "result": {}}

CACHE_HINTS: Object = {"ttlMs": 0, "cacheScope": "private"}

type Handler = Callable[[McpRequest, AccessRow, Message, Stream | None], Awaitable[Response]]


class TokenPlaces:
    """Limits how many calls or standing streams each token may have open in this process.

    The process has one instance for calls, and another instance for standing streams.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: dict[str, int] = {}

    def take(self, token: str) -> None:
        """Count one more call or stream of this token. Raises TokenBusy at the limit."""
        taken = self._taken.get(token, 0)
        if taken >= self._most:
            raise TokenBusy(str(self._most), seconds=1)
        self._taken[token] = taken + 1

    def leave(self, token: str) -> None:
        """Subtract one call or stream of this token."""
        self._taken[token] -= 1
        if not self._taken[token]:
            del self._taken[token]


class Parts(NamedTuple):
    """The components of this process that serve calls; proxy/app.py makes them."""

    access: Access
    limits: Limits
    writer: CallWriter
    recorder: PayloadRecorder
    usage: UsageTracker
    client: McpClient
    budget: ByteBudget
    lists: Lists
    handshake: Handshake
    refresher: Refresher
    requests: ServerRequests
    suspended: SuspendedCalls
    holds: Holds
    streams: Streams
    server_streams: ServerStreams
    resumption: Resumption
    tracer: Tracer | None  # None: calls are not traced.


class Endpoint:
    """The ASGI app under /mcp/."""

    def __init__(self, config: Config, parts: Parts) -> None:
        self._config = config
        self._parts = parts
        self._public_url = config.public_url
        self._cipher = Cipher(config.encryption_keys)
        self._header_reader = HeaderReader(config, parts.access)
        self._calls = TokenPlaces(config.token_calls)
        self._standing = TokenPlaces(config.token_calls)
        self._handlers: dict[str, Handler] = {
            "initialize": self._initialize,
            "ping": self._ping,
            "server/discover": self._discover,
            "logging/setLevel": self._set_level,
            **{name: self._list for name, method in METHODS.items() if method.lists},
            **{name: self._forward for name, method in METHODS.items() if method.named_by},
            **dict.fromkeys(SUBSCRIBING, self._subscribe),
        }

    def faults(self) -> dict[str, str]:
        """Return the faults that keep this process from serving, by component; empty if there are none."""
        parts = self._parts
        faults = {"access": parts.access.fault, "limits": parts.limits.fault, "record": parts.writer.fault}
        return {name: fault for name, fault in {**faults, "usage": parts.usage.fault}.items() if fault}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request."""
        request = McpRequest(self._header_reader.read(scope), scope, receive, send)
        answer = self._answer_to_headers(request)
        if answer is not None:  # The body is not read at all.
            await response.send(request, answer)
            return
        try:
            grant, refusal = await self._authorize(request)
        except ClientLeft:
            return
        except DatabaseUnavailable:
            metrics.UNAVAILABLE.labels("access").inc()
            await response.send(request, _unavailable(request, ACCESS_NOT_CHECKED))
            return
        if grant is None:
            await response.send(request, refusal or self._unknown_token(request))
            return
        try:
            await self._serve_known(request, grant, refusal)
        finally:
            if request.span is not None:
                request.span.end()

    def _answer_to_headers(self, request: McpRequest) -> Response | None:
        """Return the response if the path and the headers are enough to decide the request.

        Returns None if the token has to be looked up.
        """
        headers = request.parsed_headers
        if not headers.slug:
            return Response(404, response.NO_GATEWAY_URL)
        if not headers.host_is_known:
            in_words = (response.CONTENT_TYPE_TEXT,)
            return Response(400, response.WRONG_HOST.encode(), "bad_request", headers=in_words)
        if headers.origin_is_allowed:
            request.origin = headers.origin
            if headers.http_method == "OPTIONS":
                return Response(204, headers=response.preflight_headers(request))
        if headers.token_digests is not None:
            return None
        return self._unknown_token(request) if headers.origin_is_allowed else self._denied(request, DENIALS["origin"])

    # Authorize: checks 1 to 11 of docs/reference/decision-order.md

    async def _authorize(self, request: McpRequest) -> tuple[AccessRow | None, Response | None]:
        """Return a pair: the grant (None for an unknown token), and the refusal (None if the request is allowed)."""
        refusal = None if request.parsed_headers.origin_is_allowed else self._denied(request, DENIALS["origin"])
        if refusal is None and not await request.read(min(UNAUTHENTICATED_BODY, self._config.body_limit)):
            # A large body is read only if the token is allowed. Access is decided again below, with the message.
            grant, refusal = await self._decide(request, None)
            if grant is None or refusal is not None:
                return grant, refusal
            if not await request.read(self._config.body_limit):
                return grant, bad_request(413, "The request is larger than this gateway accepts")
        if request.parsed_headers.http_method == "POST":
            request.parse()
            if request.message is not None and request.message.method in tasks.TASK_METHODS:
                request.set_task(tasks.open_task(self._cipher, request.message))
        grant, refusal = await self._decide(request, refusal)
        if grant is not None and refusal is None and grant.limited:
            refusal = await self._rate_limited(grant)
        return grant, refusal

    async def _decide(self, request: McpRequest, refusal: Response | None) -> tuple[AccessRow | None, Response | None]:
        """Look up the token and check access. Return a pair: the grant or None, and the refusal or None.

        An earlier `refusal` is returned unchanged. Raises DatabaseUnavailable.
        """
        assert request.parsed_headers.token_digests is not None
        request.asked_at = began = time.perf_counter()
        grant = await self._parts.access.put(_query(request, request.parsed_headers.token_digests))
        request.row.authorise_ms = (request.row.authorise_ms or 0) + (time.perf_counter() - began) * 1000
        if grant is None:
            return None, refusal
        request.set_grant(grant)
        if refusal is None and (denied := decide(grant, request.parsed_headers.client_ip)) is not None:
            refusal = self._denied(request, denied)
        return grant, refusal

    def _unknown_token(self, request: McpRequest) -> Response:
        """Return the refusal of an unknown token. It is counted, but has no row in the log."""
        metrics.UNKNOWN_TOKENS.inc()
        if request.parsed_headers.presents_bearer:
            self._parts.usage.unknown_token(request.parsed_headers.client_ip)
        return self._denied(request, DENIALS["unknown"])

    def _denied(self, request: McpRequest, denied: Denied) -> Response:
        body = denied.body(self._public_url)
        if denied.status != 401:
            return Response(denied.status, body, "denied", denied.reason, jsonrpc.FORBIDDEN)
        headers = request.parsed_headers
        challenge = response.challenge(
            self._public_url,
            headers.slug,
            presented=headers.presents_bearer,
            credential=request.header(b"authorization"),
        )
        # A GET that accepts HTML is from a person's browser: MCP clients never accept HTML.
        is_person = headers.http_method == "GET" and not headers.presents_bearer
        if is_person and "text/html" in request.header(b"accept"):
            return response.for_browser(self._public_url, challenge)
        return Response(401, body, "unauthorized", denied.reason, jsonrpc.UNAUTHORIZED, (challenge,))

    async def _rate_limited(self, grant: AccessRow) -> Response | None:
        """Return the refusal of a call above its rate limit (row 11 of the decision order); None if it is allowed."""
        if (found := await self._parts.limits.wait(grant)) is None:
            return None
        limited, seconds = found
        wait = (b"retry-after", b"%d" % max(1, math.ceil(seconds)))
        denied = DENIALS["rate_limited"]
        sentence = f"There were more calls than the {limited.kind}'s limit allows: {limited.limit} a minute."
        body = denied.error(self._public_url, None, sentence, limit=limited.kind)
        return Response(denied.status, body, denied.reason, denied.reason, jsonrpc.FORBIDDEN, (wait,))

    # Serve: every request of a known token is a call; its row in the log is committed before its response is sent

    async def _serve_known(self, request: McpRequest, grant: AccessRow, refusal: Response | None) -> None:
        if not self._parts.writer.may_begin():
            await _send_not_executed(request)
            return
        self._note_trace(request, grant, refusal)
        stream = None
        if refusal is None:
            request.admitted = True
            self._parts.usage.token_used(grant, request.row.client_ip, request.arrived)
            refusal = _protocol_refusal(request, self._public_url)
            if refusal is None and _is_standing(request):
                refusal = await self._stand(request, grant)
                if refusal is None:
                    return
            if refusal is None and request.parsed_headers.accepted.stream:
                stream = Stream(request, self._config.ping_seconds, self._parts.resumption.events)
        try:
            answer = refusal or await self._serve(request, grant, stream)
            await self._finish(request, answer, stream)
        except NotRecordable:
            await _send_not_executed(request, stream)
        finally:
            request.held = None
            if stream is not None and stream.opened:
                stream.forget()
                metrics.open_counts["streams"] -= 1

    def _note_trace(self, request: McpRequest, grant: AccessRow, refusal: Response | None) -> None:
        """Note the call's trace id, and start its span if calls are traced."""
        told = request.callers_trace()
        if trace_context.PARENT in told:
            request.row.trace_id = told[trace_context.PARENT][3:35]
        if self._parts.tracer is not None:
            request.span = self._parts.tracer.begin(request, grant, told, refusal)

    async def _serve(self, request: McpRequest, grant: AccessRow, stream: Stream | None) -> Response:
        """Return the response to a message. The client or a loss of access can cancel the call while it is served."""
        message = request.message
        if message is None or not message.is_request:
            return await self._take(request, grant)
        answering = self._route(request, grant, message, stream)
        pings = None
        if stream is not None:
            pings = asyncio.get_running_loop().call_later(self._config.ping_seconds, stream.start_pings)
        request.task = asyncio.current_task()
        self._parts.streams.calls[request.uid] = request
        try:
            answer = await (_cancel_when_client_leaves(request, answering) if request.modern else answering)
            return answer if request.ending is None else self._ended(request, request.ending, stream)
        except asyncio.CancelledError:
            if request.ending is not None and request.task is not None:
                request.task.uncancel()
                return self._ended(request, request.ending, stream)
            # The process is being stopped: the client gets no response, but the row is still written.
            await self._finish(request, Response(CLIENT_LEFT, b"", "cancelled"), None)
            raise
        except NotRecordable:
            raise
        except Exception as error:  # noqa: BLE001 - the call gets an answer and a row in any case
            return _failed(request, error, self._public_url)
        finally:
            del self._parts.streams.calls[request.uid]
            if pings is not None and stream is not None:
                pings.cancel()
                stream.stop_pings()

    def _ended(self, request: McpRequest, ending: StopReason, stream: Stream | None) -> Response:
        """Return the response to a call that was stopped while it ran: it lost its access, or it was cancelled."""
        request_id = request.message.id if request.message is not None else None
        if ending.refusal is not None:
            return self._upstream_error(request, ending.refusal)
        if ending.denied is None:
            body = b"" if stream is not None else jsonrpc.error(request_id, jsonrpc.CANCELLED, "Request cancelled")
            return Response(200, body, "cancelled", code=None if stream is not None else jsonrpc.CANCELLED)
        answer = self._denied(request, ending.denied)
        if stream is None or not (stream.opened or not request.parsed_headers.accepted.json):
            return answer
        return answer._replace(status=200, body=ending.denied.error(self._public_url, request_id))

    async def _take(self, request: McpRequest, grant: AccessRow) -> Response:
        """Handle a notification, a DELETE, or a client's answer to a server's request: these get no JSON-RPC result."""
        message = request.message
        if request.parsed_headers.http_method == "DELETE":
            try:
                return await self._parts.handshake.end(grant)
            except DatabaseUnavailable:
                metrics.UNAVAILABLE.labels("sessions").inc()
                return _unavailable(request, NO_SESSION)
        if message is None or request.modern:
            return Response(202)
        match message.method:
            case "notifications/cancelled":
                await self._parts.streams.cancel(grant.owner_id, message.params.get("requestId"))
            case "notifications/roots/list_changed":
                self._parts.requests.roots_changed(grant)
            case "":
                try:
                    await self._parts.requests.take_answer(request, grant)
                except DatabaseUnavailable:
                    metrics.UNAVAILABLE.labels("sessions").inc()
                    return _unavailable(request, ANSWER_NOT_TAKEN)
        return Response(202)

    # Route by method

    async def _route(self, request: McpRequest, grant: AccessRow, message: Message, stream: Stream | None) -> Response:
        """Return the response to one request. An UpstreamError of the handler becomes a JSON-RPC error."""
        method, handler = METHODS.get(message.method), self._handlers.get(message.method)
        if method is None or handler is None or not (method.modern if request.modern else method.session):
            text = f"Method not found: {message.method[:100]}"
            return error_response(request, jsonrpc.METHOD_NOT_FOUND, text)._replace(outcome="not_offered")
        try:
            self._calls.take(grant.token_id)
            try:
                if method.lists or method.named_by:
                    if trace_context.HOPS_KEY in request.headers:
                        trace_context.check_hops(request.headers)
                    if method.named_by and (refusal := _form_refusal(request, message)) is not None:
                        return refusal
                    if self._parts.budget.total:
                        await self._wait_for_room(grant.user_id)
                return await handler(request, grant, message, stream)
            finally:
                self._calls.leave(grant.token_id)
        except (OutOfScope, NotApproved, UpstreamError) as error:
            return self._refused(request, error)

    def _refused(self, request: McpRequest, error: OutOfScope | NotApproved | UpstreamError) -> Response:
        if isinstance(error, UpstreamError):
            return self._upstream_error(request, error)
        if isinstance(error, NotApproved):
            return error.response(request, COMPLETE if request.modern else {})
        denied = DENIALS["out_of_scope"]
        return Response(denied.status, denied.published, "denied", denied.reason, jsonrpc.FORBIDDEN)

    async def _wait_for_room(self, person: str) -> None:
        """Wait until this person's large answers take less memory than one person may use. Raises AnswersNotTaken."""
        try:
            await self._parts.budget.admit(person)
        except (QueueFull, TimeoutError):
            raise AnswersNotTaken(seconds=1) from None

    def _upstream_error(self, request: McpRequest, error: UpstreamError) -> Response:
        data, code, page = error.data, error.code, _identity_row(request, error)
        if isinstance(error, UnknownFeature) and error.kind == RESOURCE and not request.modern:
            code = jsonrpc.RESOURCE_NOT_FOUND
        if page:
            data = {**(data or {}), "url": self._public_url + page}
        text = reasons.message(error.reason, self._public_url, str(error), page)
        answer = error_response(request, code, text, data)
        if isinstance(error, SessionEnded):
            answer = answer._replace(status=404, outcome=error.outcome)
        reason = error.reason if error.reason != error.outcome else ""
        retry = ((b"retry-after", b"%d" % error.seconds),) if isinstance(error, Busy) else ()
        return answer._replace(outcome=error.outcome, deny_reason=reason, headers=retry)

    async def _ping(self, request: McpRequest, grant: AccessRow, message: Message, stream: Stream | None) -> Response:
        return Response(200, jsonrpc.result(message.id, {}))

    async def _initialize(
        self, request: McpRequest, grant: AccessRow, message: Message, stream: Stream | None
    ) -> Response:
        grant = await self._parts.lists.introduced(request, grant)
        return await self._parts.handshake.initialize(request, grant, message)

    async def _discover(
        self, request: McpRequest, grant: AccessRow, message: Message, stream: Stream | None
    ) -> Response:
        grant = await self._parts.lists.introduced(request, grant)
        result = self._parts.handshake.discover(grant) | COMPLETE | CACHE_HINTS
        return Response(200, jsonrpc.result(message.id, result))

    async def _set_level(
        self, request: McpRequest, grant: AccessRow, message: Message, stream: Stream | None
    ) -> Response:
        if message.params.get("level") not in LEVELS:
            text = f"Invalid params: level must be one of {', '.join(LEVELS)}"
            return error_response(request, jsonrpc.INVALID_PARAMS, text)
        return await self._parts.handshake.set_level(request, grant, message)

    async def _list(self, request: McpRequest, grant: AccessRow, message: Message, stream: Stream | None) -> Response:
        if len(grant.assignments) == 1:
            request.set_server(grant.assignments[0])
        began = time.perf_counter()
        try:
            kind, cursor = METHODS[message.method].lists, message.params.get("cursor")
            listing = await self._parts.lists.answer(request, grant, kind, cursor)
        except BadListCursor:
            return error_response(request, jsonrpc.INVALID_PARAMS, "Invalid cursor")
        finally:
            request.row.upstream_ms = (time.perf_counter() - began) * 1000
        more: Object = {**COMPLETE, **CACHE_HINTS, "ttlMs": listing.ttl_ms} if request.modern else {}
        return Response(200, listing.response(message.id, more))

    async def _subscribe(
        self, request: McpRequest, grant: AccessRow, message: Message, stream: Stream | None
    ) -> Response:
        answer = await self._forward(request, grant, message, stream)
        if answer.outcome == "ok" and not await self._parts.handshake.note_subscription(grant, message):
            text = "Invalid params: this session is subscribed to too many resources"
            return error_response(request, jsonrpc.INVALID_PARAMS, text)
        return answer

    # Forward: resolve the feature and its server, send the request there, rewrite the answer

    async def _forward(
        self, request: McpRequest, grant: AccessRow, message: Message, stream: Stream | None
    ) -> Response:
        """Send this request to its server and return the answer, rewritten for the client.

        Notifications go to `stream`, if there is one. Raises OutOfScope, UpstreamError or NotApproved.
        """
        is_whole = message.params.keys().isdisjoint(MORE)
        message = message if is_whole else self._parts.holds.unwrapped(request, message)
        grant, resolved, message = await self._allowed(request, grant, message, stream)
        assigned, usage = resolved.assigned, self._parts.usage
        ask_server = self._ask_server if request.span is None else self._ask_server_traced
        began = time.perf_counter()
        try:
            answer = await ask_server(request, grant, resolved, message, stream)
        except (UpstreamError, NotRecordable, DatabaseUnavailable) as error:
            if request.uses_approval and not request.may_have_run:
                await self._parts.holds.give_back(request)
            if isinstance(error, AccessRefused):
                raise await self._after(error, request, resolved, grant) from None
            if isinstance(error, UpstreamError) and not isinstance(error, NOT_OF_THE_SERVER):
                usage.server_contacted(assigned, failure_text(error, assigned.url))
            raise
        finally:
            request.row.upstream_ms = (time.perf_counter() - began) * 1000
        usage.server_contacted(assigned)
        request.held = answer.held
        if answer.error is not None:
            return _error_answer(request, resolved, message, answer)
        result = answer.document["result"]
        if message.method == "tools/call" and ("task" in message.params or result.get("resultType") == "task"):
            request.mcp_task = tasks.created(self._cipher, assigned, request, message, answer)
        return await _result_answer(request, resolved, message, answer)

    async def _allowed(
        self, request: McpRequest, grant: AccessRow, message: Message, stream: Stream | None
    ) -> tuple[AccessRow, Resolved, Message]:
        """Return the grant that allows this request, the request's server and feature, and the message for the server.

        Makes checks 13 to 16 of the decision order. Rules and approvers see the arguments that the server gets. If a
        rule holds the call, the call waits here for approval, but not longer than its request may stay open. Raises
        OutOfScope, UpstreamError, NotApproved or DatabaseUnavailable.
        """
        held: HeldCall | None = None
        while True:
            grant, resolved, own = await self._resolved(request, grant, message)
            if message.method != "tools/call":
                return grant, resolved, own
            decision = _check_rules(request, grant, resolved, own)
            rule = decision.rule if decision.effect == HOLD else None
            if rule is None and request.continues is not None:
                raise BadState(NOT_CONTINUED)
            if rule is None or (request.modern and self._parts.suspended.has_given(own)):
                # A retry with our `requestState` sends no call: it collects the answer of a call that was already sent.
                return grant, resolved, own
            held = held or await self._parts.holds.begin(request, own, stream)
            if await self._parts.holds.may_run(held, rule):
                return grant, resolved, own
            grant = await self._current_grant(request)  # The hold has changed: make the checks again.

    async def _current_grant(self, request: McpRequest) -> AccessRow:
        """Return the current grant of a call that waited. Raises CancelledError if access was lost meanwhile."""
        grant = await self._parts.streams.recheck(request)
        if grant is None:
            raise asyncio.CancelledError
        return grant

    async def _resolved(
        self, request: McpRequest, grant: AccessRow, message: Message
    ) -> tuple[AccessRow, Resolved, Message]:
        """Return the current grant, the request's server and feature, and the message with the server's own URIs.

        Refreshes the server's credential if needed. Makes checks 13 to 15 of the decision order. Raises OutOfScope or
        UpstreamError.
        """
        feature, task = request.feature, request.mcp_task
        assert feature is not None  # Checked by `_form_refusal`.
        resolved = _resolve(request, grant, feature)
        if not isinstance(resolved, Resolved):
            grant, resolved = await self._find(request, grant, resolved, feature)
        request.set_server(resolved.assigned)
        # Rules, holds and the log know a tool only by its exposed name, whatever spelling the client used.
        if feature.kind != RESOURCE and feature.name != (name := exposed_name(resolved.assigned.alias, resolved.name)):
            request.rename(Named(feature.kind, name), grant)
        if task is not None and task.assignment_id != resolved.assigned.id:
            raise tasks.UnknownTask
        if resolved.alias and rewriting.may_hold_exposed(request.body):
            message = await _with_own_uris(request, resolved, message)
        if resolved.row is not None and task is None:
            check_held(resolved, message.params.get("arguments"))
        if resolved.assigned.sign_in is not None:
            grant, resolved = await self._refreshed(request, grant, resolved)
        return grant, resolved, message

    async def _find(
        self, request: McpRequest, grant: AccessRow, assigned: AssignedServer | None, feature: Named
    ) -> tuple[AccessRow, Resolved]:
        """Find `feature`, whose name has no stored row. Return the grant to use from now on, and the found feature.

        If a server (`assigned`) is given, its list is requested first. Raises OutOfScope or UpstreamError.
        """
        if assigned is not None:
            try:
                return await self._look_again(request, grant, assigned, feature)
            except UnknownFeature:
                if not may_be_own_name(grant, feature):
                    raise  # The client cannot have left out the alias.
        # A tool or prompt called without its server's alias is decided and logged with the alias.
        grant = await self._parts.lists.with_own_name(request, grant, feature)
        exposed = exposed_feature(grant, feature)
        request.rename(exposed, grant)
        resolved = _resolve(request, grant, exposed)
        if not isinstance(resolved, Resolved):
            raise UnknownFeature(feature.kind, feature.name)
        return grant, resolved

    async def _look_again(
        self, request: McpRequest, grant: AccessRow, assigned: AssignedServer, feature: Named
    ) -> tuple[AccessRow, Resolved]:
        """Request the server's list of tools, prompts or resources. Return the re-read grant and the resolved feature.

        Raises OutOfScope or UpstreamError.
        """
        request.set_server(assigned)
        wanted = Wanted(ServersNeeded.OF_FEATURE, feature.kind, feature.name)
        grant, listed = await self._parts.lists.look_again(request, grant, assigned, wanted)
        found = resolve(grant, feature)
        if not isinstance(found, Resolved):
            raise UnknownFeature(feature.kind, feature.name)
        # A row stored before the server's eras were known has no schema.
        schemas = (each.value.get("inputSchema") for each in listed if each.value["name"] == found.name)
        return grant, found._replace(schema=found.schema or next(schemas, None))

    async def _refreshed(self, request: McpRequest, grant: AccessRow, resolved: Resolved) -> tuple[AccessRow, Resolved]:
        """Return the grant and the resolved feature, with a credential that has not expired.

        An expired credential is refreshed first, and then access is checked again. Raises Refusal or
        IdentityUnavailable. Raises CancelledError if access was lost; `request.ending` then has the reason.
        """
        fresh = await self._parts.refresher.fresh(resolved.assigned)
        if fresh is resolved.assigned:
            return grant, resolved
        # Refreshing may have taken seconds.
        return await self._recheck(request, fresh), resolved._replace(assigned=fresh)

    async def _recheck(self, request: McpRequest, fresh: AssignedServer) -> AccessRow:
        """Return the current grant of a call that waited for a renewed token.

        Raises IdentityUnavailable or CancelledError, as `_refreshed` does.
        """
        try:
            grant = await self._parts.streams.recheck(request)
        except DatabaseUnavailable as error:
            raise IdentityUnavailable(fresh.server_name, str(error)) from None
        if grant is None:
            raise asyncio.CancelledError
        if all(each.identity_id != fresh.identity_id for each in grant.assignments if each.id == fresh.id):
            raise IdentityUnavailable(fresh.server_name, "the connection now uses another credential")
        _note_renewed(request, fresh)
        return grant

    async def _after(
        self, refusal: AccessRefused, request: McpRequest, resolved: Resolved, grant: AccessRow
    ) -> UpstreamError:
        """Return the error of a call whose credential the server refused. The call is not sent again.

        If the server answered 401 to an OAuth token, the token is renewed and tested, so that later calls can use it.
        If the server also answers 401 to the renewed token, return a Refusal.

        Raises Refusal if a person must sign in to get a new token. Raises CancelledError if access was lost meanwhile.
        """
        assigned, refresher = resolved.assigned, self._parts.refresher
        try:
            renewed = await refresher.after(refusal, assigned)
        except IdentityUnavailable:
            renewed = None
        if renewed is None:
            failure = failure_text(refusal, assigned.url)
            self._parts.usage.server_contacted(assigned, failure, credential_refused=True)
            return refusal
        try:
            await self._recheck(request, renewed)  # If access was lost, the token is not tested.
        except IdentityUnavailable:
            return refusal  # It is unknown whether the server accepts the renewed token.
        try:
            await self._parts.client.probe(target_of(renewed, grant, self._cipher, request.trace))
        except AccessRefused as again:
            if again.status == 401:
                return await refresher.give_up(renewed)
        except UpstreamError:
            return refusal  # The next call will show whether the server accepts the new token.
        return CredentialRenewed(assigned.server_name, refusal.status, refusal.challenge)

    async def _ask_server_traced(
        self, request: McpRequest, grant: AccessRow, resolved: Resolved, message: Message, stream: Stream | None
    ) -> RpcResponse:
        """Run `_ask_server` in a new span, whose id is sent to the server."""
        assert request.span is not None
        hop = request.span.hop(resolved.assigned, message.method, request.feature, resolved.name)
        request.span.trace = hop.trace
        try:
            answer = await self._ask_server(request, grant, resolved, message, stream)
        except BaseException as error:
            hop.end(error=error)
            raise
        hop.end(answer=answer)
        return answer

    async def _ask_server(
        self, request: McpRequest, grant: AccessRow, resolved: Resolved, message: Message, stream: Stream | None
    ) -> RpcResponse:
        """Return the server's answer, after forwarding the server's requests to the client. Raises an UpstreamError."""
        target = await self._target(request, grant, resolved, message, stream)
        if message.method in SUBSCRIBING and target.era == MODERN:
            return RpcResponse(SUBSCRIBED, jsonrpc.dumps(SUBSCRIBED), SESSION, None)
        if request.continues is not None and target.era == SESSION:
            raise BadState("its server has changed")
        sent = _Sent(self._parts, request, grant, resolved, message, stream, target)
        if request.modern and "requestState" in message.params:
            # A suspended call is resumed, even if its server has meanwhile changed to MCP 2026-07-28.
            if target.era == SESSION or self._parts.suspended.has_given(message):
                request.may_have_run = True
                return await self._parts.suspended.resume(sent.asking, message)
        elif request.modern and target.era == SESSION and can_be_asked(target.capabilities):
            return await self._parts.suspended.call(sent.asking, message, sent.ask)
        answer = await sent.ask(sent.on_request)
        if answer.error_code == jsonrpc.HEADER_MISMATCH and message.method == "tools/call":
            # The tool's schema has changed since it was listed, and with it the headers that repeat arguments.
            self._parts.lists.refresh(resolved.assigned, grant, TOOL)
        wants_input = answer.era == MODERN and answer.document.get("result", {}).get("resultType") == "input_required"
        return await self._with_input(sent, answer) if wants_input else answer

    async def _with_input(self, sent: _Sent, answer: RpcResponse) -> RpcResponse:
        """Return the answer for the client to a call for which the server needs input.

        `answer` is the server's request for the input. A client of MCP 2026-07-28 gets it as its answer. Any other
        client is asked for the input during the call, and then gets the server's final answer. Raises an UpstreamError.
        """
        if sent.request.modern:
            return self._parts.holds.wrapped(sent.request, answer)
        try:
            return await self._parts.requests.give_input(sent.asking, answer, partial(sent.ask, sent.on_request))
        except (NotRecordable, Busy) as error:  # The input was not sent, but the call itself was.
            raise CallLost(sent.target.server_name, str(error)) from error

    async def _target(
        self, request: McpRequest, grant: AccessRow, resolved: Resolved, message: Message, stream: Stream | None
    ) -> Target:
        """Return the server to call, with the era of MCP to use. Raises an UpstreamError.

        The client's era is used if the server supports it.
        """
        level = "" if stream is None else message_router.told_level(request, resolved, grant, message)
        target = target_of(
            resolved.assigned,
            grant,
            self._cipher,
            request.trace,
            level,
            modern=request.modern,
            extensions=request.extensions,
        )
        if not target.era:
            eras = await self._parts.lists.eras.find(target)
            target = target._replace(era=era_for(eras, MODERN if request.modern else SESSION))
        if request.mcp_task is None and "extensions" not in target.capabilities:
            return target
        return tasks.for_era(target, request.mcp_task, modern=request.modern)

    # Record and answer

    async def _finish(self, request: McpRequest, answer: Response, stream: Stream | None) -> None:
        """Commit the row of the call, then send its answer."""
        row = request.row
        row.outcome, row.deny_reason, row.rpc_error_code = answer.outcome, answer.deny_reason, answer.code
        row.http_status = answer.status
        row.response_bytes = len(answer.body)
        seconds = time.perf_counter() - request.began
        row.duration_ms = seconds * 1000
        await self._record_payloads(request, answer)
        try:
            await self._parts.writer.commit(row)
        except NotRecorded:
            metrics.UNAVAILABLE.labels("record").inc()
            answer = _unavailable(request, NOT_RECORDED, retry=False)
            if request.message is not None and request.message.is_request and not request.may_have_run:
                answer = _unavailable(request, NOT_EXECUTED, {"reason": "log_unavailable"})
        recorded = time.perf_counter() - request.began - seconds
        if request.span is not None:
            request.span.recorded(seconds, recorded, answer.outcome)
        metrics.count(row, (answer.outcome, answer.deny_reason), seconds, recorded)
        if answer.status != CLIENT_LEFT:
            await self._send(request, answer, stream)
            self._note_patience(request, stream)

    def _note_patience(self, request: McpRequest, stream: Stream | None) -> None:
        """Note how long this client waited for its answer. Do nothing if no rule of the gateway holds calls."""
        rules = request.grant.rules if request.grant is not None else None
        if rules is None or request.client_left or (stream is not None and stream.client_left):
            return
        if any(rule.effect == HOLD for rule in rules.rules) and request.row.outcome != "cancelled":
            self._parts.holds.note_answered(request, time.perf_counter() - request.began)

    async def _record_payloads(self, request: McpRequest, answer: Response) -> None:
        if answer.outcome in FAILED:
            await self._parts.recorder.record_error(request, answer.body)
        if request.admitted and request.grant is not None and request.grant.recorded is not None:
            await self._parts.recorder.record(request, answer, request.grant.recorded)

    async def _send(self, request: McpRequest, answer: Response, stream: Stream | None) -> None:
        """Send the answer as JSON or on the call's stream.

        The stream is used if it is open already, or if the status is 200 and the client refuses JSON.
        """
        # A large answer counts against the memory limit for answers until the client has read it.
        if len(answer.body) > response.PIECE:
            if request.held is not None:
                request.held.resize(len(answer.body))
            elif request.grant is not None:
                request.held = self._parts.budget.take(request.grant.user_id, len(answer.body))
        if stream is not None and (
            stream.opened or (answer.status == 200 and not request.parsed_headers.accepted.json)
        ):
            await stream.finish(answer.body, answer.headers)
            return
        if stream is not None:
            stream.close()
        await response.send(request, answer)

    # Standing streams (long-lived event streams): one row in the log when they begin, another when they end

    async def _stand(self, request: McpRequest, grant: AccessRow) -> Response | None:
        """Serve a standing stream until it ends. Return the error response to send; None if a response was sent."""
        if not request.parsed_headers.accepted.stream:
            return bad_request(406, "The Accept header must allow text/event-stream")
        try:
            self._standing.take(grant.token_id)
        except TokenBusy as error:
            return self._upstream_error(request, error)
        try:
            if not request.may_stream:
                open_files.count_refused("stream")
                full = _unavailable(request, TOO_MANY_FILES, {"reason": "open_files"})
                return full._replace(deny_reason="open_files", headers=(open_files.RETRY_AFTER, response.CLOSE))
            try:
                standing = await self._standing_stream(request, grant)
            except DatabaseUnavailable:
                metrics.UNAVAILABLE.labels("access").inc()
                await response.send(request, _unavailable(request, ACCESS_NOT_CHECKED))
                return None
            except Exception as error:  # noqa: BLE001 - as for a call, the request gets an answer and a row
                return _failed(request, error, self._public_url)
            else:
                try:
                    await self._serve_standing(request, standing)
                finally:
                    if standing.history is not None:
                        standing.history.end()
        finally:
            self._standing.leave(grant.token_id)
        return None

    async def _standing_stream(self, request: McpRequest, grant: AccessRow) -> StandingStream:
        if request.message is None:
            return await self._parts.resumption.standing(request, grant)
        lists, uris = honoured(request.message.params.get("notifications"))
        if uris:
            uris = await self._parts.server_streams.honoured(request, uris)
        return StandingStream(request, grant, subscription=request.message.id, lists=lists, uris=uris)

    async def _serve_standing(self, request: McpRequest, standing: StandingStream) -> None:
        row = request.row
        row.duration_ms = (time.perf_counter() - request.began) * 1000
        try:
            await self._parts.writer.commit(row)
        except NotRecorded:
            await _send_not_executed(request)
            return
        metrics.count(row, (row.outcome, row.deny_reason), row.duration_ms / 1000, 0.0)
        if request.span is not None:  # The span covers only the start: the stream may be open for hours.
            request.span.recorded(row.duration_ms / 1000, 0.0, row.outcome)
            request.span.end()
        ending = None
        try:
            ending = await self._parts.streams.serve(standing, self._config.ping_seconds)
        finally:
            await self._record_end(request, ending, standing.sent)

    async def _record_end(self, request: McpRequest, ending: StopReason | None, sent: int) -> None:
        """Write a row for the end of a standing stream.

        The row's correlation id is the id of the row that was written at the beginning of the stream.
        """
        now = time.time()
        denied = ending.denied if ending is not None else None
        row = replace(request.row, uid=new_uid(now), created_at=now, correlation_id=request.uid, response_bytes=sent)
        row.duration_ms = (time.perf_counter() - request.began) * 1000
        row.authorise_ms = None
        if denied is not None:
            row.outcome, row.deny_reason = "unauthorized" if denied.status == 401 else "denied", denied.reason
            row.rpc_error_code = jsonrpc.UNAUTHORIZED if denied.status == 401 else jsonrpc.FORBIDDEN
        with suppress(NotRecorded):  # The writer has logged the failure, and nobody waits for an answer.
            await self._parts.writer.commit(row)


# The servers and features that the access query returns for a message


def _query(request: McpRequest, token_digests: TokenDigests) -> AccessQuery:
    """Return the access query of this request, and store it in `request.query`.

    Sets `request.modern` if the message is of MCP 2026-07-28.
    """
    headers, message = request.parsed_headers, request.message
    session, told = headers.session_digest, None
    if message is not None and is_modern(headers.protocol_version, message):
        request.modern = True
        session, told = None, message.meta.get(versions.CAPABILITIES_KEY)
    # Extensions are left out: they may differ between requests, and each combination would get its own session key.
    offered = declared(told, with_extensions=False) if told and headers.accepted.stream else ""
    request.query = access_query(token_digests, headers.slug, wanted(message, request.feature), session, offered)
    return request.query


INTRODUCTION = Wanted(ServersNeeded.INTRODUCED)
INSTRUCTIONS = Wanted(ServersNeeded.INTRODUCED, "instructions")


def wanted(message: Message | None, feature: Named | None) -> Wanted:
    """Return the servers and features to query for this message.

    `feature` is the feature that the message names, or None if the message names no feature.
    """
    if message is not None and message.method == ROOTS_CHANGED:
        return INTRODUCTION
    if message is None or message.id is None or (method := METHODS.get(message.method)) is None:
        return NOTHING
    if method.lists:
        return Wanted(ServersNeeded.ALL, method.lists)
    if not method.named_by:
        return INSTRUCTIONS if method.introduces else NOTHING
    # A name that the database cannot store belongs to no feature. It is not looked up: without the characters that
    # cannot be stored, the name might match a feature.
    if feature is None or not is_nameable(feature):
        return NOTHING
    return Wanted(ServersNeeded.OF_FEATURE, feature.kind, lookup_key(feature))


# Check the protocol: row 12 of the decision order


def _protocol_refusal(request: McpRequest, public_url: str) -> Response | None:
    """Return the refusal of an invalid HTTP, JSON-RPC or MCP request; None for a valid request."""
    headers = request.parsed_headers
    if headers.http_method != "POST":
        return _verb_refusal(request, public_url)
    if not headers.is_json:
        return bad_request(415, "The Content-Type must be application/json")
    if not any(headers.accepted):
        return bad_request(406, "The Accept header must allow application/json or text/event-stream")
    if request.malformed is not None:
        return bad_request(400, request.malformed.message, request.malformed.code)
    return None if request.message is None else _version_refusal(request, request.message, public_url)


def _verb_refusal(request: McpRequest, public_url: str) -> Response | None:
    """Check a request that is not a POST, such as GET or DELETE. Return its refusal, or None if it is valid."""
    headers = request.parsed_headers
    if headers.http_method == "DELETE" and headers.protocol_version != versions.MODERN:
        if headers.session_digest is None:
            return bad_request(400, NO_SESSION_ID)
    elif not _is_standing(request):
        return Response(405, b"", "not_offered", headers=(response.ALLOW,))
    return _session_refusal(request, public_url)


def _session_refusal(request: McpRequest, public_url: str) -> Response | None:
    """Return 404 if the session is unknown, ended or lost, or belongs to another connection. Otherwise return None."""
    session = request.grant.session if request.grant is not None else None
    if (session is not None and not session.is_lost) or request.parsed_headers.session_digest is None:
        return None
    text = reasons.message("session_lost", public_url, SessionEnded.sentence)
    refusal = bad_request(404, text, jsonrpc.UNKNOWN_SESSION)
    return refusal if session is None else refusal._replace(deny_reason="session_lost")


def _version_refusal(request: McpRequest, message: Message, public_url: str) -> Response | None:
    if not request.modern:
        request.set_client(message.params.get("clientInfo"))
        return None if message.method == "initialize" else _session_refusal(request, public_url)
    request.set_client(message.meta.get(versions.CLIENT_INFO_KEY))
    try:
        if message.is_request:
            check_modern(message, request.header_pairs)
        elif request.version not in versions.SUPPORTED:
            raise unsupported(request.version)
        elif not message.method:
            raise MalformedMessage(jsonrpc.INVALID_REQUEST, "Responses are not part of this protocol version")
    except MalformedMessage as refusal:
        return error_response(request, refusal.code, refusal.message, refusal.data)
    return None


def _is_standing(request: McpRequest) -> bool:
    """Return whether this request opens a standing stream: a GET in a session, or `subscriptions/listen`."""
    message = request.message
    if message is None:
        version = request.parsed_headers.protocol_version
        return (
            request.parsed_headers.http_method == "GET"
            and (not version or version in versions.SESSION_VERSIONS)
            and request.parsed_headers.session_digest is not None
        )
    return request.modern and message.method == "subscriptions/listen" and message.is_request


def _form_refusal(request: McpRequest, message: Message) -> Response | None:
    """Return the refusal of a request with malformed params, or None if the params are well-formed.

    The method of `message` must be one that names a feature or a task. Raises UnknownTask.
    """
    params = message.params
    if message.method in tasks.TASK_METHODS:
        if request.mcp_task is None:
            raise tasks.UnknownTask
        return None
    feature = request.feature
    if feature is None or not feature.name or not isinstance(params.get("arguments", {}), dict | None):
        text = "Invalid params: a name and an object of arguments are required"
        if message.method not in {"tools/call", "prompts/get"}:
            text = f"Invalid params: a {METHODS[message.method].named_by} is required"
        return error_response(request, jsonrpc.INVALID_PARAMS, text)
    if request.query is not None and request.query.wanted is NOTHING:  # The database cannot store the name.
        what = "uri" if feature.kind == RESOURCE else "name"
        text = f"Invalid params: a {what} must not contain NUL or a lone surrogate"
        return error_response(request, jsonrpc.INVALID_PARAMS, text)
    return None


def _resolve(request: McpRequest, grant: AccessRow, feature: Named) -> Resolved | AssignedServer | None:
    """Return the result of `resolve_call`.

    An unknown name may be a server's own name for a tool or prompt, without the server's alias. For such a name, return
    None. Raises OutOfScope, Refusal or UnknownFeature.
    """
    try:
        return resolve_call(grant, feature)
    except UnknownFeature:
        if may_be_own_name(grant, feature):
            return None
        raise
    except (OutOfScope, Refusal) as refused:
        request.set_server(refused.assigned)
        raise


def _check_rules(request: McpRequest, grant: AccessRow, resolved: Resolved, message: Message) -> RuleDecision:
    """Apply the gateway's rules to this tool call, and put their labels into the call's row. Raises RuleRefused."""
    rules, row, tool = grant.rules, request.row, request.row.feature_name
    if rules is None:
        return NO_RULES
    called = resolved.assigned, resolved.claims, tool, message.params.get("arguments")
    call = ruled_call(grant, rules, *called, client=(row.client_name, row.client_ip), at=row.created_at)
    decision = decide_by_rules(rules.rules, call)
    row.labels, row.rule_id = decision.label_text, decision.rule.id if decision.rule else ""
    if decision.effect == REFUSE:
        raise RuleRefused(decision, resolved, tool)
    return decision


def _note_renewed(request: McpRequest, assigned: AssignedServer) -> None:
    """Replace the server in `request.grant` by `assigned`, which has a renewed credential.

    Recorded payloads are redacted by the credentials in `request.grant`, so the new secret must be there.
    """
    if request.grant is not None:
        others = [each for each in request.grant.assignments if each.id != assigned.id]
        request.grant = request.grant._replace(assignments=(*others, assigned))


def _identity_row(request: McpRequest, error: UpstreamError) -> str:
    """Return the path of the page where people add or renew their own credential for the server of this call.

    Return an empty text if a new credential would not remove the error, or if the server has no personal credentials.
    """
    assigned = error.assigned if isinstance(error, Refusal) else request.assigned
    if error.reason not in reasons.AT_IDENTITY_ROW or assigned is None or assigned.scheme != "per_user":
        return ""
    return reasons.IDENTITY_ROW.format(connection=request.row.grant.connection_id, assignment=assigned.id)


# Answers of the gateway itself


def _failed(request: McpRequest, error: Exception, public_url: str) -> Response:
    """Return the response to a call that failed inside the gateway."""
    if isinstance(error, DatabaseUnavailable):
        metrics.UNAVAILABLE.labels("sessions").inc()
        return _unavailable(
            request, NOT_FINISHED if request.may_have_run else NO_SESSION, retry=not request.may_have_run
        )
    logger.error("a call failed inside the gateway", exc_info=error, extra={"request_id": request.uid})
    reason = "internal_error"
    answer = error_response(request, jsonrpc.INTERNAL_ERROR, reasons.message(reason, public_url), {"reason": reason})
    return answer._replace(status=500, outcome="rpc_error", deny_reason=reason)


async def _send_not_executed(request: McpRequest, stream: Stream | None = None) -> None:
    """Refuse a call that cannot be logged. If `stream` is open, send the error on `stream`. Otherwise send a 503."""
    metrics.UNAVAILABLE.labels("not_executed").inc()
    answer = _unavailable(request, NOT_EXECUTED, {"reason": "log_unavailable"})
    if stream is not None and stream.opened:
        await stream.finish(answer.body)
    else:
        await response.send(request, answer)


def _unavailable(request: McpRequest, text: str, data: Object | None = None, *, retry: bool = True) -> Response:
    """Return a 503. `retry` adds Retry-After; it must be False for a call that may have been executed."""
    body = jsonrpc.error(request.message.id if request.message else None, jsonrpc.INTERNAL_ERROR, text, data)
    headers = (response.RETRY_AFTER,) if retry else ()
    return Response(503, body, "unavailable", "", jsonrpc.INTERNAL_ERROR, headers)


async def _cancel_when_client_leaves(request: McpRequest, answering: Awaitable[Response]) -> Response:
    """Await `answering`, and cancel it when the client disconnects, as MCP 2026-07-28 requires."""
    task = asyncio.current_task()
    left = False

    async def watch() -> None:
        nonlocal left
        await request.disconnected()
        left = request.client_left = True
        if task is not None:
            task.cancel()

    watcher = spawn("client of a call", watch())
    try:
        return await answering
    except asyncio.CancelledError:
        if not left or task is None:
            raise
        task.uncancel()
        return Response(CLIENT_LEFT, b"", "cancelled")
    finally:
        watcher.cancel()


# The request to the server

# Members of a client's `_meta` that are meant for the gateway; all other members are forwarded to the server.
GATEWAY_META = frozenset(
    {
        "progressToken",
        versions.MODERN_KEY,
        versions.CAPABILITIES_KEY,
        versions.LOG_LEVEL_KEY,
    }
)

# The members of params in which a client may send URIs that it got from the server.
ARGUMENTS = ("arguments", "argument", "context")
INLINE_BYTES = 1 << 16

NOTHING_MORE: Object = {}


@dataclass(slots=True, eq=False)
class _Sent:
    """A request to a server: the params as sent, and the handling of the server's messages during the request."""

    parts: Parts
    request: McpRequest
    grant: AccessRow
    resolved: Resolved
    message: Message
    stream: Stream | None
    target: Target
    params: Object = field(init=False)
    progress_token: int | None = None

    def __post_init__(self) -> None:
        if self.stream is not None and "progressToken" in self.message.meta:
            self.progress_token = next_request_id()
        request, in_modern_era = self.request, self.target.era == MODERN
        self.params = _params(
            request, self.message, self.resolved.name, self.progress_token, in_modern_era=in_modern_era
        )
        if "task" in self.params and request.modern != in_modern_era:
            del self.params["task"]  # Params have a `task` only in the session era, and tasks are not translated.
        if request.span is not None:
            self.params = _with_trace(self.params, self.target.trace, in_modern_era=in_modern_era)

    @property
    def asking(self) -> InteractiveCall:
        """The call, in the form that ServerRequests takes."""
        target = self.target
        return InteractiveCall(self.request, self.grant, target.capabilities, target.server_name, self.stream)

    async def ask(self, on_request: OnRequest, more: Object = NOTHING_MORE) -> RpcResponse:
        """Send the request, with the additional params `more`, and return the answer. Raises an UpstreamError."""
        request, grant, target, beside = self.request, self.grant, self.target, None
        if grant.session is not None or (request.modern and can_be_asked(target.capabilities)):
            has_stream = self.stream is not None
            calls = self.parts.server_streams.calls
            beside = SessionCall(calls, grant, self.resolved.assigned, target, self.progress_token, has_stream)
        try:
            answer = await self.parts.client.ask(
                target,
                self.message.method,
                {**self.params, **more} if more else self.params,
                self.on_notification,
                person=grant.user_id,
                schema=self.resolved.schema,
                on_request=on_request,
                beside=beside,
            )
        except NEVER_RUN:
            raise
        except BaseException:
            request.may_have_run = True
            raise
        request.may_have_run = True
        return answer

    async def on_request(self, asked: Object, answer: Answer) -> None:
        """Forward a request of the server to the client."""
        await self.parts.requests.carry(self.asking, asked, answer)

    async def on_notification(self, notification: Object) -> None:
        """Forward a notification of the server to this client.

        If the notification says that a list has changed, all clients of the gateway are notified instead.
        """
        if (changed := LIST_OF.get(str(notification.get("method")))) is not None:
            self.parts.server_streams.list_changed(self.resolved.assigned, self.grant, changed)
        elif self.stream is not None and await self._may_pass_on(notification):
            await message_router.relay(
                self.request,
                self.resolved,
                self.grant,
                self.message,
                self.stream,
                self.progress_token,
                notification,
            )

    async def _may_pass_on(self, notification: Object) -> bool:
        """Return whether the client may get this notification.

        A client of the session era may get an update of a resource only if it may subscribe to the resource. If this
        is unknown (the database is unavailable), return False. All other notifications are allowed.
        """
        uri = params_of(notification).get("uri")
        if self.request.modern or notification.get("method") != UPDATED or not isinstance(uri, str):
            return True
        exposed = rewriting.exposed_uri(self.resolved.alias, uri)
        with suppress(DatabaseUnavailable):
            return exposed in await self.parts.server_streams.honoured(self.request, [exposed])
        return False


async def _with_own_uris(request: McpRequest, resolved: Resolved, message: Message) -> Message:
    """Return the message with the server's own URIs in its arguments, in place of the URIs that clients see."""
    alias, body = resolved.alias, request.body
    given = {name: message.params[name] for name in ARGUMENTS if name in message.params}
    own = (
        rewriting.own_uri(given, alias)
        if len(body) <= INLINE_BYTES
        else await asyncio.to_thread(rewriting.own_uri, given, alias)
    )
    return replace(message, params=message.params | own)


def _params(
    request: McpRequest, message: Message, name: str, progress_token: int | None, *, in_modern_era: bool
) -> Object:
    """Return the params for the server. `name` is the server's own name of the feature.

    The members in GATEWAY_META are left out of `_meta`.
    """
    match METHODS[message.method].named_by:
        case "ref":
            ref = message.params["ref"]
            named: object = {**ref, "name" if ref.get("type") == "ref/prompt" else "uri": name}
            params = {**message.params, "ref": named}
        case "taskId":
            assert request.mcp_task is not None
            params = {**message.params, "taskId": request.mcp_task.own_id}
        case member:
            params = {**message.params, member: name}
    if "_meta" not in params:
        return params
    own = rewriting.meta_for_server(message.meta, request.task_ids)
    meta = {key: value for key, value in own.items() if key not in GATEWAY_META}
    if not in_modern_era:  # A server with sessions got the client's info in `initialize`.
        meta.pop(versions.CLIENT_INFO_KEY, None)
    if progress_token is not None:
        meta["progressToken"] = progress_token
    params["_meta"] = meta
    if not meta:
        del params["_meta"]
    return params


def _with_trace(params: Object, trace: Trace, *, in_modern_era: bool) -> Object:
    """Return the params with this trace context, which replaces an existing one.

    In the session era, params without a trace context are returned unchanged.
    """
    meta: Object = params.get("_meta", {})
    if not in_modern_era and trace_context.PARENT not in meta:
        return params
    own = {name: value for name, value in meta.items() if name not in trace_context.FIELDS}
    return {**params, "_meta": own | {name: trace[name] for name in trace_context.FIELDS if name in trace}}


# The answer of the server, for the client

# Members of a result in MCP 2026-07-28 that the session era does not define.
MODERN_MEMBERS = frozenset({"resultType", "ttlMs", "cacheScope"})
COMPLETE: Object = {"resultType": "complete"}

# Older clients know no content of the type `resource_link`.
LINKLESS = ("2024-11-05", "2025-03-26")

# The result when the server has no completions (MCP 2025-11-25, Completion).
NO_COMPLETION: Object = {"completion": {"values": []}}

# A server's error with one of these codes is sent to clients of MCP 2026-07-28 with the HTTP status in MODERN_STATUS.
# Other errors are sent with 200, because they may be about the request as the gateway sent it.
CLIENTS_FAULTS = frozenset({jsonrpc.METHOD_NOT_FOUND, jsonrpc.INVALID_PARAMS, jsonrpc.MISSING_CAPABILITY})

# The code for a missing resource: under True for receivers that speak 2026-07-28, under False for others.
NOT_FOUND = {True: jsonrpc.INVALID_PARAMS, False: jsonrpc.RESOURCE_NOT_FOUND}


async def _result_answer(request: McpRequest, resolved: Resolved, message: Message, answer: RpcResponse) -> Response:
    """Return the response with a server's result, rewritten for the client.

    Raises BadAnswer if the server asks for input and the client does not speak MCP 2026-07-28.
    """
    result: Object = answer.document["result"]
    if not request.modern and result.get("resultType", "complete") != "complete":
        raise BadAnswer(resolved.assigned.server_name, "it needs input, which this client does not support")
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
    """Return how to adapt a result to the client's era: the names of members to drop, and the members to add."""
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


def _error_answer(request: McpRequest, resolved: Resolved, message: Message, answer: RpcResponse) -> Response:
    """Return a server's error, with the code and status of the client's era.

    Two errors can become results. If the server does not know `completion/complete`, the result is an empty completion.
    If the server requires a URL elicitation, a client of MCP 2026-07-28 can get the result `input_required`.
    """
    error, code = answer.error or {}, answer.error_code
    if message.method == "completion/complete" and code == jsonrpc.METHOD_NOT_FOUND:
        return Response(200, jsonrpc.result(message.id, NO_COMPLETION | (COMPLETE if request.modern else {})))
    if message.method == "resources/read":
        error = _resource_error(request, resolved, error)
        code = NOT_FOUND[request.modern] if code == NOT_FOUND[not request.modern] else code
    if request.modern and code == jsonrpc.URL_ELICITATION_REQUIRED:
        return _input_required(message, error)
    status = MODERN_STATUS.get(code, 200) if request.modern and code in CLIENTS_FAULTS else 200
    if error is answer.error:
        body = jsonrpc.readdressed(answer.text, answer.document, message.id)
    else:
        body = jsonrpc.dumps({**answer.document, "error": error, "id": message.id})
    return Response(status, body, "rpc_error", code=code)


def _resource_error(request: McpRequest, resolved: Resolved, error: Object) -> Object:
    """Return a server's error for resources/read, as the client must see it.

    The exposed URI replaces the server's URI. A "not found" error gets the code of the client's era.
    """
    if error.get("code") == NOT_FOUND[not request.modern]:
        error = {**error, "code": NOT_FOUND[request.modern]}
    data = error.get("data")
    if resolved.alias and isinstance(data, dict) and isinstance(data.get("uri"), str):
        error = {**error, "data": {**data, "uri": rewriting.exposed_uri(resolved.alias, data["uri"])}}
    return error


def _input_required(message: Message, error: Object) -> Response:
    """Translate error -32042 (URL elicitation required) to `input_required` of MCP 2026-07-28.

    Return the error "missing capability" if the client does not open URLs, or if the error names no elicitation.
    """
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
