"""The MCP endpoint: authenticate, decide, dispatch, record, answer."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable
from contextlib import suppress

from proxy import metrics, modern_request, response
from proxy.access.decision import DENIALS, Denied, decide
from proxy.access.grant import Grant
from proxy.access.query import Access, TokenDigests
from proxy.config import Config
from proxy.dispatch import Dispatcher, refused, wanted
from proxy.request import UNAUTHENTICATED_BODY, ClientLeft, McpRequest, Receive, Send
from proxy.request_headers import HeaderReader, Scope
from proxy.response import Response, Stream
from proxy.store.call_writer import CallWriter, NotRecorded
from proxy.store.payloads import Recorder
from proxy.store.pg_connection import Unobtainable
from proxy.store.rate_limits import Limits
from proxy.store.usage import UsageTracker
from wire import jsonrpc, versions
from wire.cipher import Cipher
from wire.errors import NotRecordable
from wire.jsonrpc import Message

logger = logging.getLogger(__name__)

CLIENT_LEFT = 499

NOT_CHECKED = "The gateway could not check access."
NOT_EXECUTED = "The gateway cannot record calls at the moment; nothing was executed."
NOT_RECORDED = "The gateway could not record this call; the server may have executed it."


class Endpoint:
    """The ASGI app under /mcp/."""

    def __init__(
        self,
        config: Config,
        access: Access,
        limits: Limits,
        writer: CallWriter,
        marks: UsageTracker,
        methods: Dispatcher,
    ) -> None:
        self._config = config
        self._access = access
        self._limits = limits
        self._writer = writer
        self._marks = marks
        self._methods = methods
        self._recorder = Recorder(Cipher(config.encryption_keys))
        self._heads = HeaderReader(config, access)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = self._heads.read(scope)
        request = McpRequest(head, scope, receive, send)
        if not head.slug:
            await response.send(request, Response(404))
        elif not head.is_ours:
            await response.send(request, Response(400, b"", "bad_request"))
        else:
            with suppress(ClientLeft):
                await self._serve(request)

    async def _serve(self, request: McpRequest) -> None:
        head = request.head
        refusal = None
        if head.origin_may_call:
            request.origin = head.origin
        else:
            refusal = self._denied(request, DENIALS["origin"])
        if refusal is None and head.verb == "OPTIONS":
            await response.send(request, Response(204, headers=response.preflight(request)))
            return
        if head.key is None:  # Its head says all there is to say: nothing of the body is read.
            await response.send(request, refusal or self._stranger(request))
            return
        try:
            facts, refusal = await self._judged(request, head.key, refusal)
        except Unobtainable:
            metrics.UNAVAILABLE.labels("access").inc()
            await response.send(request, _unavailable(request, NOT_CHECKED))
            return
        if facts is None:
            await response.send(request, refusal or self._stranger(request))
            return
        await self._known(request, facts, refusal)

    async def _judged(
        self, request: McpRequest, key: TokenDigests, refusal: Response | None
    ) -> tuple[Grant | None, Response | None]:
        """What the database knows of the token, and why the request is refused, if it is."""
        if refusal is None and not await request.read(min(UNAUTHENTICATED_BODY, self._config.body_limit)):
            facts, refusal = await self._judged_unread(request, key)
            if facts is None or refusal is not None:
                return facts, refusal
        if request.head.verb == "POST":
            request.parse()
        facts = await self._facts(request, key)
        if facts is not None and not self._writer.refuses:
            request.note(facts)
            if refusal is None and (denied := decide(facts, request.head.client_ip)) is not None:
                refusal = self._denied(request, denied)
            if refusal is None and facts.limited:
                refusal = await self._limited(facts)
        return facts, refusal

    async def _judged_unread(self, request: McpRequest, key: TokenDigests) -> tuple[Grant | None, Response | None]:
        """A body this long is for those who may call at all, by its head alone; they are asked for anew with it."""
        facts = await self._facts(request, key)
        if facts is None:
            return None, None
        request.note(facts)
        if (denied := decide(facts, request.head.client_ip)) is not None:
            return facts, self._denied(request, denied)
        return facts, None if await request.read(self._config.body_limit) else _too_large()

    async def _facts(self, request: McpRequest, key: TokenDigests) -> Grant | None:
        began = time.perf_counter()
        facts = await self._access.facts(key, request.head.slug, *wanted(request.message))
        request.row.authorise_ms = (request.row.authorise_ms or 0) + (time.perf_counter() - began) * 1000
        return facts

    def _stranger(self, request: McpRequest) -> Response:
        """No call, since it is nobody's: counted instead."""
        metrics.STRANGERS.inc()
        if request.head.presents_bearer:
            self._marks.stranger(request.head.client_ip)
        return self._denied(request, DENIALS["unknown"])

    def _denied(self, request: McpRequest, denied: Denied) -> Response:
        if denied.status != 401:
            return Response(denied.status, denied.body, "denied", denied.reason, jsonrpc.FORBIDDEN)
        head = request.head
        challenge = response.challenge(self._config.public_url, head.slug, presented=head.presents_bearer)
        return Response(401, denied.body, "unauthorized", denied.reason, jsonrpc.UNAUTHORIZED, (challenge,))

    async def _limited(self, facts: Grant) -> Response | None:
        """Too many calls (row 11 of the decision order), with the time to wait; the next one may be let through."""
        seconds = await self._limits.wait(facts)
        if not seconds:
            return None
        wait = (b"retry-after", b"%d" % max(1, math.ceil(seconds)))
        denied = DENIALS["rate_limited"]
        return Response(denied.status, denied.body, denied.reason, denied.reason, jsonrpc.FORBIDDEN, (wait,))

    def faults(self) -> dict[str, str]:
        """What keeps this process from serving, by the name of the lane; empty when nothing does."""
        lanes = {"access": self._access.fault, "limits": self._limits.fault, "record": self._writer.fault}
        return {name: fault for name, fault in {**lanes, "usage": self._marks.fault}.items() if fault}

    # A call: whatever becomes of it, one row is committed before the answer leaves

    async def _known(self, request: McpRequest, facts: Grant, refusal: Response | None) -> None:
        stream = None
        if self._writer.refuses:
            await _send_not_executed(request)
            return
        if refusal is None:
            request.admitted = True
            self._marks.used(facts, request.row.client_ip, request.arrived)
            refusal = _protocol_refusal(request)
            if refusal is None and request.head.accepted.stream:
                stream = Stream(request, self._config.ping_seconds)
        try:
            answer = refusal or await self._answered(request, facts, stream)
            await self._finish(request, answer, stream)
        except NotRecordable:
            await _send_not_executed(request, stream)
        finally:
            if stream is not None and stream.opened:
                metrics.open_now["streams"] -= 1

    async def _answered(self, request: McpRequest, facts: Grant, stream: Stream | None) -> Response:
        message = request.message
        if message is None or not message.is_request:
            return Response(202)
        work = self._methods.answer(request, facts, message, stream)
        pinging = stream.keep_alive() if stream is not None else None
        try:
            return await (_until_left(request, work) if request.modern else work)
        except asyncio.CancelledError:
            # The server is being stopped, and whoever waits will not hear of it; the log shall.
            await self._finish(request, Response(CLIENT_LEFT, b"", "cancelled"), None)
            raise
        except NotRecordable:
            raise
        except Exception:
            logger.exception("a call failed inside the gateway", extra={"request_id": request.uid})
            return refused(request, jsonrpc.INTERNAL_ERROR, "The gateway failed")._replace(status=500)
        finally:
            if stream is not None and pinging is not None:
                pinging.cancel()
                stream.hush()

    async def _finish(self, request: McpRequest, answer: Response, stream: Stream | None) -> None:
        row = request.row
        row.outcome, row.deny_reason, row.rpc_error_code = answer.outcome, answer.deny_reason, answer.code
        row.http_status = answer.status
        row.response_bytes = len(answer.body)
        took = time.perf_counter() - request.began
        row.duration_ms = took * 1000
        if request.admitted and request.facts is not None and request.facts.recorded is not None:
            await self._recorder.note(request, answer, request.facts.recorded)
        try:
            await self._writer.commit(row)
        except NotRecorded:
            metrics.UNAVAILABLE.labels("record").inc()
            answer = _unavailable(request, NOT_RECORDED)
        recorded = time.perf_counter() - request.began - took
        metrics.count(row, (answer.outcome, answer.deny_reason), took, recorded)
        if answer.status == CLIENT_LEFT:
            return
        if stream is not None and (stream.opened or (answer.status == 200 and not request.head.accepted.json)):
            await stream.end(answer.body)
        else:
            await response.send(request, answer)


def _protocol_refusal(request: McpRequest) -> Response | None:
    """Row 12: what is wrong with the request as HTTP and as JSON-RPC; settles the era."""
    head = request.head
    if head.verb != "POST":
        return Response(405, b"", "bad_request", headers=(response.ALLOW_POST,))
    if not head.is_json:
        return _bad(415, "The Content-Type must be application/json")
    if not any(head.accepted):
        return _bad(406, "The Accept header must allow application/json or text/event-stream")
    if request.malformed is not None:
        return _bad(400, request.malformed.message, request.malformed.code)
    return _ladder_refusal(request, request.message) if request.message is not None else None


def _ladder_refusal(request: McpRequest, message: Message) -> Response | None:
    version = request.head.protocol_version
    request.modern = modern_request.is_modern(version, message)
    if not request.modern:
        request.note_client(message.params.get("clientInfo"))
        return None
    request.note_client(message.meta.get(versions.CLIENT_INFO_KEY))
    try:
        if message.is_request:
            modern_request.check(message, request.pairs)
        elif version not in versions.SUPPORTED:
            raise modern_request.unsupported(version)
        elif not message.method:
            raise modern_request.InvalidRequest(
                jsonrpc.INVALID_REQUEST, "Responses are not part of this protocol version"
            )
    except modern_request.InvalidRequest as refusal:
        return refused(request, refusal.code, refusal.message, refusal.data)
    return None


def _bad(status: int, text: str, code: int = jsonrpc.INVALID_REQUEST) -> Response:
    return Response(status, jsonrpc.error(None, code, text), "bad_request", code=code)


def _too_large() -> Response:
    return _bad(413, "The request is larger than this gateway accepts")


async def _send_not_executed(request: McpRequest, stream: Stream | None = None) -> None:
    """Refuse a call whose row could not be written; there is no row of the refusal either."""
    metrics.UNAVAILABLE.labels("not_executed").inc()
    answer = _unavailable(request, NOT_EXECUTED, {"reason": "log_unavailable"})
    if stream is not None and stream.opened:
        await stream.end(answer.body)
    else:
        await response.send(request, answer)


def _unavailable(request: McpRequest, text: str, data: jsonrpc.Object | None = None) -> Response:
    body = jsonrpc.error(request.message.id if request.message else None, jsonrpc.INTERNAL_ERROR, text, data)
    return Response(503, body, "unavailable", "", jsonrpc.INTERNAL_ERROR, (response.RETRY,))


async def _until_left(request: McpRequest, work: Awaitable[Response]) -> Response:
    """The result of `work`, or its end when the client closes: in 2026-07-28 that cancels the request."""
    task = asyncio.current_task()
    left = False

    async def watch() -> None:
        nonlocal left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left = True
        if task is not None:
            task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if not left or task is None:
            raise
        task.uncancel()
        return Response(CLIENT_LEFT, b"", "cancelled")
    finally:
        watcher.cancel()
