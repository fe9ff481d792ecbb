"""Requests of servers to clients during a call: elicitation, sampling, roots.

In the session era such a request is sent on the stream of the call, under an id of the gateway, and the client posts
its answer to any worker. A server of 2026-07-28 asks in the result of the call instead: a client of the session era is
still asked on its stream, and the call is sent again with its answers. For the opposite case see suspended_calls.py.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple, Protocol
from uuid import UUID, uuid4

from proxy.access.decision import AccessRow
from proxy.access.features import IdentityUnreadable, identity_refusal, server_refusal, target_of
from proxy.request import McpRequest
from proxy.store.bus import Owner, PendingRequests
from proxy.store.call_log import CallRow, CallWriter, NotRecorded, PayloadRecorder, new_uid
from proxy.store.pg import DatabaseUnavailable
from wire import jsonrpc, rewriting
from wire.background import Background, every
from wire.cipher import Cipher
from wire.client import McpClient
from wire.errors import BadAnswer, UpstreamError
from wire.jsonrpc import Object
from wire.mcp import Answer, RpcResponse, Target
from wire.sessions import BRIDGED

logger = logging.getLogger(__name__)

CAPABILITIES = {"elicitation/create": "elicitation", "sampling/createMessage": "sampling", "roots/list": "roots"}

ROOTS_CHANGED = "notifications/roots/list_changed"

MOST_ROUNDS = 10  # Times a server of 2026-07-28 may ask in one call; the SDKs have the same limit.
MOST_ASKED = 8  # Requests of one round.
STATE_ONLY_SECONDS = 0.1  # Pause before a call is sent again when the server asked nothing.
PURGE_SECONDS = 60.0
BACKGROUND_SECONDS = 5.0

NOT_SUPPORTED: Object = {"error": {"code": jsonrpc.METHOD_NOT_FOUND, "message": "Not supported by this client"}}


class ClientStream(Protocol):
    """Protocol for an event stream to a client: that of a call, or a standing one."""

    @property
    def is_over(self) -> bool:
        """True if nothing can be sent on it any more."""

    async def notify(self, message: Object) -> None:
        """Send a message."""


class StreamOver(Exception):
    """The client's stream ended before it could be asked on it."""


class InteractiveCall(NamedTuple):
    """A call during which the server may ask the client: its target, and the client's stream, if any."""

    request: McpRequest
    grant: AccessRow
    target: Target
    stream: ClientStream | None


class InputRefused(UpstreamError):
    """The client did not give the input the server asked for; not the server's fault."""

    outcome = "rpc_error"
    reason = "input_refused"
    sentence = 'Server "{server}" needs input that the client did not give.'


def can_be_asked(capabilities: Mapping[str, Any]) -> bool:
    """Return whether a client of these capabilities can be asked anything during a call."""
    return any(name in capabilities for name in BRIDGED)


def can_answer(capabilities: Mapping[str, Any], asked: Object) -> bool:
    """Return whether a client with these capabilities supports this request."""
    method, params = asked.get("method"), asked.get("params", {})
    known = capabilities.get(CAPABILITIES.get(method, "")) if isinstance(method, str) else None
    if not isinstance(known, dict) or not isinstance(params, dict):
        return False
    if method == "elicitation/create":
        # An empty capability means forms (MCP 2025-11-25, Elicitation, Capabilities).
        return params.get("mode", "form") in (known or {"form"})
    return method != "sampling/createMessage" or "tools" not in params or "tools" in known


class ServerRequests:
    """Forwards requests of servers to clients and returns the answers; each has a row in the log, linked to its call.

    A client has `seconds` to answer.
    """

    def __init__(
        self,
        client: McpClient,
        pending: PendingRequests,
        writer: CallWriter,
        recorder: PayloadRecorder,
        cipher: Cipher,
        seconds: float,
    ) -> None:
        self._client = client
        self._cipher = cipher
        self._pending = pending
        self._writer = writer
        self.recorder = recorder
        self.seconds = seconds
        self._background = Background(UpstreamError, DatabaseUnavailable, TimeoutError)

    def start(self) -> None:
        self._background.forever("requests nobody answered", self._pending.purge, every(PURGE_SECONDS))

    async def stop(self) -> None:
        """Stop background tasks, after giving them a second."""
        await self._background.stop(patience=1)

    # From a session server to a session client

    async def carry(self, asking: InteractiveCall, asked: Object, answer: Answer) -> None:
        """Forward the request to the client, and its answer to the server.

        If cancelled because the call is over, the server gets an error.
        """
        session, stream = asking.grant.session, asking.stream
        if session is None or stream is None or not can_answer(asking.target.capabilities, asked):
            self.in_background(answer(NOT_SUPPORTED))
            return
        try:
            answered = await self.ask_client(asking, asked)
        except asyncio.CancelledError:
            self.in_background(answer(CALL_OVER))
            raise
        await answer(answered)

    async def ask_client(self, asking: InteractiveCall, asked: Object) -> Object:
        """Return the client's answer, `{"result": ...}` or `{"error": ...}`; an error too if none came in time."""
        stream, session = asking.stream, asking.grant.session
        assert stream is not None
        assert session is not None
        uid = str(uuid4())

        async def send() -> None:
            if stream.is_over:
                raise StreamOver
            await stream.notify({**_for_client(asking, asked), "jsonrpc": "2.0", "id": uid})

        answered = await self.wait(asking, asked, uid, Owner(asking.grant.connection_id, session.id), send)
        if answered is TIMED_OUT:
            params = {"requestId": uid, "reason": "No answer in time"}
            await stream.notify({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})
        return answered

    async def wait(
        self, asking: InteractiveCall, asked: Object, uid: str, owner: Owner, send: Callable[[], Awaitable[None]]
    ) -> Object:
        """Send the request by `send` and wait for `owner` to answer; return the answer once its row is written."""
        row = _row(asking, asked)
        began = time.perf_counter()
        answered: Object | None = None
        try:
            await self._pending.add(uid, owner, asked, self.seconds)
            await send()
            async with asyncio.timeout(self.seconds):
                answered = _checked(asking, await self._pending.wait(uid))
        except TimeoutError:
            answered = TIMED_OUT
        except StreamOver:
            answered = CALL_OVER
        except DatabaseUnavailable:
            answered = _error("The gateway could not ask the client")
        finally:
            # Not answered: the call was cancelled, so this must not wait.
            row.duration_ms = (time.perf_counter() - began) * 1000
            if answered is None:
                row.outcome = "cancelled"
                self.in_background(self._end(asking, asked, uid, row, None))
        return await self._end(asking, asked, uid, row, answered)

    async def _end(
        self, asking: InteractiveCall, asked: Object, uid: str, row: CallRow, answered: Object | None
    ) -> Object:
        """Drop the request, write its row, and return the answer, or an error if the row cannot be written."""
        if answered is TIMED_OUT:
            row.outcome = "timeout"
        elif answered is not None and "error" in answered:
            row.outcome = "rpc_error"
            code = answered["error"].get("code")
            row.rpc_error_code = code if type(code) is int and abs(code) < 1 << 31 else None
        bodies = jsonrpc.dumps(asked), jsonrpc.dumps(answered) if answered is not None else b""
        row.request_bytes, row.response_bytes = map(len, bodies)
        if asking.grant.recorded is not None:
            await self.recorder.keep(asking.request, row, bodies, asking.grant.recorded)
        try:
            await self._pending.drop(uid)
        except DatabaseUnavailable:
            logger.warning("a request of a server stays until it expires", extra={"request_id": row.uid})
        try:
            await self._writer.commit(row)
        except NotRecorded:
            return _error("The gateway could not record the answer")
        return answered or {}

    async def take_answer(self, request: McpRequest, grant: AccessRow) -> None:
        """Store a response that a client posted for the worker that waits for it; drop it if none does.

        Raises DatabaseUnavailable.
        """
        message = request.message
        uid = as_uuid(message.id) if message is not None else None
        if uid is not None and grant.session is not None:
            await self._pending.answer(uid, Owner(grant.connection_id, grant.session.id), request.body)

    def roots_changed(self, grant: AccessRow) -> None:
        """Notify the servers of this session that the client's roots have changed."""
        for assigned in grant.assignments:
            if assigned.upstream_session is None or not assigned.in_scope or server_refusal(assigned):
                continue
            if identity_refusal(assigned):
                continue
            with suppress(IdentityUnreadable):
                upstream = target_of(assigned, grant, self._cipher)
                if upstream.session is not None and "roots" in upstream.capabilities:
                    self.in_background(self._client.post(upstream, {"jsonrpc": "2.0", "method": ROOTS_CHANGED}))

    # From a server of 2026-07-28 to a session client

    async def give_input(
        self, asking: InteractiveCall, answer: RpcResponse, again: Callable[[Object], Awaitable[RpcResponse]]
    ) -> RpcResponse:
        """Ask the client for the input the server wants, and send the call again until it returns a final answer.

        `again` gets the members to add to the params. Raises an UpstreamError.
        """
        server = asking.target.server_name
        for _ in range(MOST_ROUNDS):
            result = answer.document.get("result", {})
            if answer.error is not None or result.get("resultType", "complete") != "input_required":
                return answer
            wanted: Object = {}
            if requests := result.get("inputRequests"):
                wanted["inputResponses"] = await self._ask_all(asking, requests)
            else:
                await asyncio.sleep(STATE_ONLY_SECONDS)
            if "requestState" in result:
                wanted["requestState"] = result["requestState"]
            answer = await again(wanted)
        raise BadAnswer(server, f"it wanted input more than {MOST_ROUNDS} times")

    async def _ask_all(self, asking: InteractiveCall, requests: Any) -> Object:
        server = asking.target.server_name
        if not isinstance(requests, dict) or len(requests) > MOST_ASKED:
            raise BadAnswer(server, "what it wants as input cannot be read")
        for asked in requests.values():
            if asking.stream is None or asking.grant.session is None or not isinstance(asked, dict):
                raise BadAnswer(server, "it wants input, which this client cannot give")
            if not can_answer(asking.target.capabilities, asked):
                raise BadAnswer(server, f"it wants {str(asked.get('method'))[:60]}, which this client cannot give")
        replies = await asyncio.gather(*(self.ask_client(asking, asked) for asked in requests.values()))
        for answered in replies:
            if "error" in answered:
                raise InputRefused(server, str(answered["error"].get("message"))[:200])
        return {key: answered["result"] for key, answered in zip(requests, replies, strict=True)}

    # Beside the calls

    def in_background(self, work: Awaitable[object]) -> None:
        """Run this in a background task for at most BACKGROUND_SECONDS; failures are logged."""

        async def run() -> None:
            async with asyncio.timeout(BACKGROUND_SECONDS):
                await work

        self._background.spawn("work beside a call", run())


def _error(message: str) -> Object:
    return {"error": {"code": jsonrpc.INTERNAL_ERROR, "message": message}}


CALL_OVER = _error("The call is over")
TIMED_OUT = _error("The client did not answer in time")


def _for_client(asking: InteractiveCall, asked: Object) -> Object:
    params = asked.get("params")
    if not isinstance(params, dict):
        return asked
    return {**asked, "params": rewriting.for_client(params, asking.request.task_ids)}


def _checked(asking: InteractiveCall, answer: Object) -> Object:
    """Return the result or the error of a client's answer, for the server."""
    if isinstance(answer.get("error"), dict):
        return {"error": answer["error"]}
    if isinstance(answer.get("result"), dict):
        return {"result": rewriting.for_server(answer["result"], asking.request.task_ids)}
    return _error("The client's answer is no result")


def as_uuid(text: object) -> str | None:
    """Return the canonical text of a UUID, or None for anything else."""
    try:
        return str(UUID(text)) if isinstance(text, str) and len(text) == 36 else None
    except ValueError:
        return None


def _row(asking: InteractiveCall, asked: Object) -> CallRow:
    """Return the log row of a server's request, with the people and objects of its call."""
    at = time.time()
    call = asking.request.row
    return replace(
        call,
        uid=new_uid(at),
        created_at=at,
        correlation_id=call.uid,
        method=asked["method"],
        feature_type="",
        feature_name="",
        outcome="ok",
        deny_reason="",
        http_status=200,
        rpc_error_code=None,
        authorise_ms=None,
        upstream_ms=None,
    )
