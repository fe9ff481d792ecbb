"""The MCP endpoint: authenticate, decide, dispatch, record, answer."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from proxy import metrics, open_files, reasons, response, tasks
from proxy.access.decision import DENIALS, Access, AccessQuery, AccessRow, Denied, TokenDigests, access_query, decide
from proxy.config import Config
from proxy.dispatch import (
    Dispatcher,
    InvalidRequest,
    check_modern,
    error_response,
    is_modern,
    unsupported,
    wanted,
)
from proxy.request import UNAUTHENTICATED_BODY, ClientLeft, HeaderReader, McpRequest, Receive, Scope, Send
from proxy.response import Response, Stream
from proxy.server_requests import ServerRequests
from proxy.store.call_log import CallWriter, NotRecorded, new_uid
from proxy.store.pg import DatabaseUnavailable
from proxy.store.rate_limits import Limits
from proxy.store.usage import UsageTracker
from proxy.streams import Resumption, StandingStream, StopReason, honoured
from wire import jsonrpc, trace_context, versions
from wire.background import spawn
from wire.cipher import Cipher
from wire.errors import NotRecordable, SessionEnded, TokenBusy
from wire.fair_queue import HeldBytes, SharedTimer
from wire.jsonrpc import Message
from wire.sessions import declared

if TYPE_CHECKING:
    from proxy.tracing import Tracer

logger = logging.getLogger(__name__)

CLIENT_LEFT = 499
# Outcomes whose rows include the error text.
FAILED = frozenset({"tool_error", "rpc_error", "upstream_error", "timeout", "bad_request"})

NO_SESSION = "The gateway could not reach its sessions; nothing was executed."
ACCESS_NOT_CHECKED = "The gateway could not check access."
ANSWER_NOT_TAKEN = "The gateway could not take this answer; send it again."
NO_SESSION_ID = "The header Mcp-Session-Id must name the session to end"
NOT_EXECUTED = "The gateway cannot record calls at the moment; nothing was executed."
NOT_RECORDED = "The gateway could not record this call; the server may have executed it."
TOO_MANY_FILES = "The gateway has as many open streams as it may have; try again later."
NOT_FINISHED = "The gateway lost touch with its sessions during this call; the server may have executed it."


class Endpoint:
    """The ASGI app under /mcp/."""

    def __init__(
        self,
        config: Config,
        access: Access,
        limits: Limits,
        writer: CallWriter,
        usage: UsageTracker,
        dispatcher: Dispatcher,
        resumption: Resumption,
        requests: ServerRequests,
    ) -> None:
        self._config = config
        self._tracer: Tracer | None = None
        self._access = access
        self._limits = limits
        self._writer = writer
        self._usage = usage
        self._dispatcher = dispatcher
        self._budget = dispatcher.budget
        self._streams = resumption.server_streams.streams
        self._requests = requests
        self._server_streams = resumption.server_streams
        self._events = resumption.events
        self._resumption = resumption
        self._cipher = Cipher(config.encryption_keys)
        self._recorder = requests.recorder
        self._header_reader = HeaderReader(config, access)
        self._timer = SharedTimer()

    def traced_by(self, tracer: Tracer | None) -> Self:
        """Enable tracing with this tracer; None disables it."""
        self._tracer = tracer
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = McpRequest(self._header_reader.read(scope), scope, receive, send)
        answer = self._answer_to_headers(request)
        if answer is not None:  # Nothing of the body is read.
            await response.send(request, answer)
            return
        refusal = None if request.parsed_headers.origin_is_allowed else self._denied(request, DENIALS["origin"])
        try:
            grant, refusal = await self._authorize(request, refusal)
        except ClientLeft:
            return
        except DatabaseUnavailable:
            metrics.UNAVAILABLE.labels("access").inc()
            await response.send(request, _unavailable(request, ACCESS_NOT_CHECKED))
            return
        if grant is None:
            await response.send(request, refusal or self._unknown_token(request))
        else:
            try:
                await self._serve_known(request, grant, refusal)
            finally:
                if request.span is not None:
                    request.span.end()

    def _answer_to_headers(self, request: McpRequest) -> Response | None:
        """Return the response if path and headers are enough to decide; None if the token has to be looked up."""
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

    async def _authorize(
        self, request: McpRequest, refusal: Response | None
    ) -> tuple[AccessRow | None, Response | None]:
        """Return the grant of a well-formed token, None if unknown, and the refusal of the request, if any."""
        token_digests = request.parsed_headers.token_digests
        assert token_digests is not None
        if refusal is None and not await request.read(min(UNAUTHENTICATED_BODY, self._config.body_limit)):
            grant, refusal = await self._authorize_large_body(request, token_digests)
            if grant is None or refusal is not None:
                return grant, refusal
        if request.parsed_headers.http_method == "POST":
            request.parse()
            if request.message is not None and request.message.method in tasks.METHODS:
                request.set_task(tasks.open_task(self._cipher, request.message))
        request.asked_at = began = time.perf_counter()
        grant = await self._access.put(_query(request, token_digests))
        request.row.authorise_ms = (request.row.authorise_ms or 0) + (time.perf_counter() - began) * 1000
        if grant is not None:
            request.set_grant(grant)
            if refusal is None and (denied := decide(grant, request.parsed_headers.client_ip)) is not None:
                refusal = self._denied(request, denied)
            if refusal is None and grant.limited:
                refusal = await self._rate_limited(grant)
        return grant, refusal

    async def _authorize_large_body(
        self, request: McpRequest, token_digests: TokenDigests
    ) -> tuple[AccessRow | None, Response | None]:
        """Read a large body only for a token that may call; the caller decides again once the body is parsed."""
        request.asked_at = began = time.perf_counter()
        grant = await self._access.put(_query(request, token_digests))
        request.row.authorise_ms = (time.perf_counter() - began) * 1000
        if grant is None:
            return None, None
        request.set_grant(grant)
        if (denied := decide(grant, request.parsed_headers.client_ip)) is not None:
            return grant, self._denied(request, denied)
        return grant, None if await request.read(self._config.body_limit) else _too_large()

    def _unknown_token(self, request: McpRequest) -> Response:
        """Return the refusal of an unknown token. It is counted, but has no row in the log."""
        metrics.UNKNOWN_TOKENS.inc()
        if request.parsed_headers.presents_bearer:
            self._usage.unknown_token(request.parsed_headers.client_ip)
        return self._denied(request, DENIALS["unknown"])

    def _denied(self, request: McpRequest, denied: Denied) -> Response:
        if denied.status != 401:
            body = denied.body(self._config.public_url)
            return Response(denied.status, body, "denied", denied.reason, jsonrpc.FORBIDDEN)
        request_headers = request.parsed_headers
        challenge = response.challenge(
            self._config.public_url,
            request_headers.slug,
            presented=request_headers.presents_bearer,
            credential=request.header(b"authorization"),
        )
        if _is_browser(request):
            return response.for_browser(self._config.public_url, challenge)
        body = denied.body(self._config.public_url)
        return Response(401, body, "unauthorized", denied.reason, jsonrpc.UNAUTHORIZED, (challenge,))

    async def _rate_limited(self, grant: AccessRow) -> Response | None:
        """Return the refusal of a call above its rate limit (row 11 of the decision order), or None."""
        seconds = await self._limits.wait(grant)
        if not seconds:
            return None
        wait = (b"retry-after", b"%d" % max(1, math.ceil(seconds)))
        denied = DENIALS["rate_limited"]
        body = denied.body(self._config.public_url)
        return Response(denied.status, body, denied.reason, denied.reason, jsonrpc.FORBIDDEN, (wait,))

    def faults(self) -> dict[str, str]:
        """Return the faults that keep this process from serving, by component; empty if there are none."""
        parts = {"access": self._access.fault, "limits": self._limits.fault, "record": self._writer.fault}
        return {name: fault for name, fault in {**parts, "usage": self._usage.fault}.items() if fault}

    # Every request of a known token is a call: its row is committed before its response is sent

    async def _serve_known(self, request: McpRequest, grant: AccessRow, refusal: Response | None) -> None:
        if not self._writer.may_begin():
            await _send_not_executed(request)
            return
        self._note_trace(request, grant, refusal)
        stream = None
        if refusal is None:
            request.admitted = True
            self._usage.token_used(grant, request.row.client_ip, request.arrived)
            refusal = _protocol_refusal(request, self._config.public_url)
            if refusal is None and _is_standing(request):
                refusal = self._standing_refusal(request, grant)
                if refusal is None:
                    with self._streams.place(grant.token_id):  # No await since the streams were counted.
                        await self._stand(request, grant)
                    return
            if refusal is None and request.parsed_headers.accepted.stream:
                stream = Stream(request, self._config.ping_seconds, self._events)
        try:
            answer = refusal or await self._dispatch(request, grant, stream)
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
        if self._tracer is not None:
            request.span = self._tracer.begin(request, grant, told, refusal)

    async def _dispatch(self, request: McpRequest, grant: AccessRow, stream: Stream | None) -> Response:
        message = request.message
        if message is None or not message.is_request:
            return await self._take(request, grant)
        answering = self._dispatcher.answer(request, grant, message, stream)
        if stream is not None:
            self._timer.set(stream, asyncio.get_running_loop().time() + self._config.ping_seconds)
        request.task = asyncio.current_task()
        self._streams.calls[request.uid] = request
        try:
            answer = await (_cancel_when_client_leaves(request, answering) if request.modern else answering)
            return answer if request.ending is None else self._ended(request, request.ending, stream)
        except asyncio.CancelledError:
            if request.ending is not None and request.task is not None:
                request.task.uncancel()
                return self._ended(request, request.ending, stream)
            # The process is being stopped: the client gets no response, the log gets the row.
            await self._finish(request, Response(CLIENT_LEFT, b"", "cancelled"), None)
            raise
        except NotRecordable:
            raise
        except Exception as error:  # noqa: BLE001 - the call gets an answer and a row in any case
            return _failed(request, error, self._config.public_url)
        finally:
            del self._streams.calls[request.uid]
            if stream is not None:
                self._timer.drop(stream)
                stream.stop_pings()

    async def _take(self, request: McpRequest, grant: AccessRow) -> Response:
        """Handle messages without a JSON-RPC response: client responses, notifications, and DELETE."""
        message = request.message
        if request.parsed_headers.http_method == "DELETE":
            return await self._end_session(request, grant)
        if message is None or request.modern:
            return Response(202)
        match message.method:
            case "notifications/cancelled":
                await self._streams.cancel(grant.owner_id, message.params.get("requestId"))
            case "notifications/roots/list_changed":
                self._requests.roots_changed(grant)
            case "":
                try:
                    await self._requests.take_answer(request, grant)
                except DatabaseUnavailable:
                    metrics.UNAVAILABLE.labels("sessions").inc()
                    return _unavailable(request, ANSWER_NOT_TAKEN)
        return Response(202)

    async def _end_session(self, request: McpRequest, grant: AccessRow) -> Response:
        try:
            return await self._dispatcher.end_session(grant)
        except DatabaseUnavailable:
            metrics.UNAVAILABLE.labels("sessions").inc()
            return _unavailable(request, NO_SESSION)

    def _ended(self, request: McpRequest, ending: StopReason, stream: Stream | None) -> Response:
        """Return the response to a running call that was cut off, or cancelled by its client."""
        request_id = request.message.id if request.message is not None else None
        if ending.refusal is not None:
            return self._dispatcher.refused(request, ending.refusal)
        if ending.denied is None:
            body = b"" if stream is not None else jsonrpc.error(request_id, jsonrpc.CANCELLED, "Request cancelled")
            return Response(200, body, "cancelled", code=None if stream is not None else jsonrpc.CANCELLED)
        answer = self._denied(request, ending.denied)
        if stream is None or not (stream.opened or not request.parsed_headers.accepted.json):
            return answer
        return answer._replace(status=200, body=ending.denied.error(self._config.public_url, request_id))

    # Standing streams: a row when they begin, another when they end

    def _standing_refusal(self, request: McpRequest, grant: AccessRow) -> Response | None:
        if not request.parsed_headers.accepted.stream:
            return _bad_request(406, "The Accept header must allow text/event-stream")
        if self._streams.of_token(grant.token_id) >= self._config.token_calls:
            error = TokenBusy(str(self._config.token_calls), seconds=1)
            return self._dispatcher.refused(request, error)
        if not request.may_stream:
            open_files.count_refused("stream")
            full = _unavailable(request, TOO_MANY_FILES, {"reason": "open_files"})
            return full._replace(deny_reason="open_files", headers=(open_files.RETRY_AFTER, response.CLOSE))
        return None

    async def _stand(self, request: McpRequest, grant: AccessRow) -> None:
        try:
            standing = await self._standing_stream(request, grant)
        except DatabaseUnavailable:
            metrics.UNAVAILABLE.labels("access").inc()
            await response.send(request, _unavailable(request, ACCESS_NOT_CHECKED))
            return
        try:
            await self._serve_standing(request, standing)
        finally:
            if standing.history is not None:
                standing.history.end()

    async def _serve_standing(self, request: McpRequest, standing: StandingStream) -> None:
        row = request.row
        row.duration_ms = (time.perf_counter() - request.began) * 1000
        try:
            await self._writer.commit(row)
        except NotRecorded:
            metrics.UNAVAILABLE.labels("record").inc()
            await response.send(request, _unavailable(request, NOT_RECORDED))
            return
        metrics.count(row, (row.outcome, row.deny_reason), row.duration_ms / 1000, 0.0)
        if request.span is not None:  # The span covers only the start: the stream may be open for hours.
            request.span.recorded(row.duration_ms / 1000, 0.0, row.outcome)
            request.span.end()
        ending = None
        try:
            ending = await self._streams.serve(standing, self._config.ping_seconds)
        finally:
            await self._record_end(request, ending, standing.sent)

    async def _standing_stream(self, request: McpRequest, grant: AccessRow) -> StandingStream:
        if request.message is None:
            return await self._resumption.standing(request, grant)
        lists, uris = honoured(request.message.params.get("notifications"))
        if uris:
            uris = await self._server_streams.honoured(request, uris)
        return StandingStream(request, grant, subscription=request.message.id, lists=lists, uris=uris)

    async def _record_end(self, request: McpRequest, ending: StopReason | None, sent: int) -> None:
        """Write the row of the end of a standing stream; its correlation id is the id of the first row."""
        now = time.time()
        denied = ending.denied if ending is not None else None
        row = replace(request.row, uid=new_uid(now), created_at=now, correlation_id=request.uid, response_bytes=sent)
        row.duration_ms = (time.perf_counter() - request.began) * 1000
        row.authorise_ms = None
        if denied is not None:
            row.outcome, row.deny_reason = "unauthorized" if denied.status == 401 else "denied", denied.reason
            row.rpc_error_code = jsonrpc.UNAUTHORIZED if denied.status == 401 else jsonrpc.FORBIDDEN
        with suppress(NotRecorded):  # It has been logged, and nobody waits for an answer.
            await self._writer.commit(row)

    async def _finish(self, request: McpRequest, answer: Response, stream: Stream | None) -> None:
        row = request.row
        row.outcome, row.deny_reason, row.rpc_error_code = answer.outcome, answer.deny_reason, answer.code
        row.http_status = answer.status
        row.response_bytes = len(answer.body)
        seconds = time.perf_counter() - request.began
        row.duration_ms = seconds * 1000
        await self._record_payloads(request, answer)
        try:
            await self._writer.commit(row)
        except NotRecorded:
            metrics.UNAVAILABLE.labels("record").inc()
            answer = _unavailable(request, NOT_RECORDED, retry=False)
            if request.message is not None and request.message.is_request and not request.may_have_run:
                answer = _unavailable(request, NOT_EXECUTED, {"reason": "log_unavailable"})
        recorded = time.perf_counter() - request.began - seconds
        if request.span is not None:
            request.span.recorded(seconds, recorded, answer.outcome)
        metrics.count(row, (answer.outcome, answer.deny_reason), seconds, recorded)
        if answer.status == CLIENT_LEFT:
            return
        if len(answer.body) > response.PIECE:
            self._hold(request, len(answer.body))
        if stream is not None and (
            stream.opened or (answer.status == 200 and not request.parsed_headers.accepted.json)
        ):
            await stream.finish(answer.body, answer.headers)
            return
        if stream is not None:
            stream.close()
        await response.send(request, answer)

    async def _record_payloads(self, request: McpRequest, answer: Response) -> None:
        if answer.outcome in FAILED:
            await self._recorder.record_error(request, answer.body)
        if request.admitted and request.grant is not None and request.grant.recorded is not None:
            await self._recorder.record(request, answer, request.grant.recorded)

    def _hold(self, request: McpRequest, size: int) -> None:
        """Count the answer against the budget until the client has read it."""
        if request.held is not None:
            request.held.resize(size)
        elif request.grant is not None:
            request.held = HeldBytes(self._budget, request.grant.user_id, size)


def _query(request: McpRequest, token_digests: TokenDigests) -> AccessQuery:
    """Return the access query of this request; sets `request.query` and, depending on the message, `request.modern`."""
    headers, message = request.parsed_headers, request.message
    session, told = headers.session_digest, None
    if message is not None and is_modern(headers.protocol_version, message):
        request.modern = True
        session, told = None, message.meta.get(versions.CAPABILITIES_KEY)
    # Extensions are sent with each request. In the key of a shared session, each set would open another session.
    offered = declared(told, with_extensions=False) if told and headers.accepted.stream else ""
    request.query = access_query(token_digests, headers.slug, wanted(message, request.feature), session, offered)
    return request.query


def _is_browser(request: McpRequest) -> bool:
    """Return whether a person has opened the URL in a browser: MCP clients never accept HTML."""
    asked = request.parsed_headers.http_method == "GET" and not request.parsed_headers.presents_bearer
    return asked and "text/html" in request.header(b"accept")


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


def _protocol_refusal(request: McpRequest, public_url: str) -> Response | None:
    """Return the refusal of an invalid HTTP, JSON-RPC or MCP request (row 12 of the decision order), or None."""
    request_headers = request.parsed_headers
    if request_headers.http_method != "POST":
        return _verb_refusal(request, public_url)
    if not request_headers.is_json:
        return _bad_request(415, "The Content-Type must be application/json")
    if not any(request_headers.accepted):
        return _bad_request(406, "The Accept header must allow application/json or text/event-stream")
    if request.malformed is not None:
        return _bad_request(400, request.malformed.message, request.malformed.code)
    return None if request.message is None else _version_refusal(request, request.message, public_url)


def _verb_refusal(request: McpRequest, public_url: str) -> Response | None:
    """Return the refusal of an invalid request that is not a POST, or None."""
    request_headers = request.parsed_headers
    if request_headers.http_method == "DELETE" and request_headers.protocol_version != versions.MODERN:
        if request_headers.session_digest is None:
            return _bad_request(400, NO_SESSION_ID)
    elif not _is_standing(request):
        return Response(405, b"", "not_offered", headers=(response.ALLOW,))
    return _session_refusal(request, public_url)


def _session_refusal(request: McpRequest, public_url: str) -> Response | None:
    """Return 404 when the session is unknown, ended, lost, or another connection's; None otherwise."""
    session = request.grant.session if request.grant is not None else None
    if (session is not None and not session.is_lost) or request.parsed_headers.session_digest is None:
        return None
    text = reasons.message("session_lost", public_url, SessionEnded.sentence)
    refusal = _bad_request(404, text, jsonrpc.UNKNOWN_SESSION)
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
            raise InvalidRequest(jsonrpc.INVALID_REQUEST, "Responses are not part of this protocol version")
    except InvalidRequest as refusal:
        return error_response(request, refusal.code, refusal.message, refusal.data)
    return None


def _bad_request(status: int, text: str, code: int = jsonrpc.INVALID_REQUEST) -> Response:
    return Response(status, jsonrpc.error(None, code, text), "bad_request", code=code)


def _too_large() -> Response:
    return _bad_request(413, "The request is larger than this gateway accepts")


def _failed(request: McpRequest, error: Exception, public_url: str) -> Response:
    """Return the response to a call that failed inside the gateway."""
    if isinstance(error, DatabaseUnavailable):
        metrics.UNAVAILABLE.labels("sessions").inc()
        return _unavailable(
            request, NOT_FINISHED if request.may_have_run else NO_SESSION, retry=not request.may_have_run
        )
    logger.error("a call failed inside the gateway", exc_info=error, extra={"request_id": request.uid})
    reason = "internal_error"
    text = reasons.message(reason, public_url)
    answer = error_response(request, jsonrpc.INTERNAL_ERROR, text, {"reason": reason})
    return answer._replace(status=500, outcome="rpc_error", deny_reason=reason)


async def _send_not_executed(request: McpRequest, stream: Stream | None = None) -> None:
    """Refuse a call whose row could not be written; the refusal has no row either."""
    metrics.UNAVAILABLE.labels("not_executed").inc()
    answer = _unavailable(request, NOT_EXECUTED, {"reason": "log_unavailable"})
    if stream is not None and stream.opened:
        await stream.finish(answer.body)
    else:
        await response.send(request, answer)


def _unavailable(request: McpRequest, text: str, data: jsonrpc.Object | None = None, *, retry: bool = True) -> Response:
    """Return a 503. `retry` adds Retry-After; a call that may have been executed must not have it."""
    body = jsonrpc.error(request.message.id if request.message else None, jsonrpc.INTERNAL_ERROR, text, data)
    headers = (response.RETRY_AFTER,) if retry else ()
    return Response(503, body, "unavailable", "", jsonrpc.INTERNAL_ERROR, headers)


async def _cancel_when_client_leaves(request: McpRequest, answering: Awaitable[Response]) -> Response:
    """Await `answering`, and cancel it when the client closes the connection, as 2026-07-28 requires."""
    task = asyncio.current_task()
    left = False

    async def watch() -> None:
        nonlocal left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left = True
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
