"""Requests of servers to clients during a call: elicitation, sampling, roots.

A client of the session era gets the server's request on the call's stream, and posts the answer to any worker. A
client of MCP 2026-07-28 gets the server's request as the result of the call. This client then sends the call again,
with the answer. If the server is of the session era, SuspendedCalls keeps the first call running in the meantime.
"""

import asyncio
import copy
import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from time import time as now
from typing import Any, NamedTuple, NoReturn, Protocol
from uuid import UUID, uuid4

from proxy.access.decision import AccessRow
from proxy.access.features import IdentityUnreadable, identity_refusal, server_refusal, target_of
from proxy.request import McpRequest
from proxy.store.bus import Bell, Owner, PendingRequests, Statements
from proxy.store.call_log import CallRow, CallWriter, NotRecorded, PayloadRecorder, new_uid
from proxy.store.pg import DatabaseUnavailable
from proxy.streams import Streams
from wire import jsonrpc, rewriting
from wire.background import Background, awaited, every, spawn
from wire.cipher import Cipher, Undecryptable
from wire.client import McpClient
from wire.errors import BadAnswer, UpstreamError
from wire.jsonrpc import Message, Object
from wire.mcp import MODERN, SESSION, Answer, OnRequest, RpcResponse
from wire.sessions import BRIDGED

logger = logging.getLogger(__name__)

CAPABILITIES = {"elicitation/create": "elicitation", "sampling/createMessage": "sampling", "roots/list": "roots"}

ROOTS_CHANGED = "notifications/roots/list_changed"

MOST_ROUNDS = 10  # How often a server of 2026-07-28 may ask in one call; the SDKs have this limit too.
MOST_ASKED = 8  # Requests in one result of a server, at most.
STATE_ONLY_SECONDS = 0.1  # Pause before a call is sent again if the server's answer has only a `requestState`.
PURGE_SECONDS = 60.0
BACKGROUND_SECONDS = 5.0

NOT_SUPPORTED: Object = {"error": {"code": jsonrpc.METHOD_NOT_FOUND, "message": "Not supported by this client"}}


class ClientStream(Protocol):
    """Protocol for an event stream to a client: the stream of a call, or a standing stream."""

    @property
    def is_over(self) -> bool:
        """True if nothing can be sent on the stream any more."""

    async def notify(self, message: Object) -> None:
        """Send a message."""


class StreamOver(Exception):
    """The client's stream ended before the request could be sent on it."""


class InteractiveCall(NamedTuple):
    """A call in which the server may send requests to the client.

    `capabilities` are the client's capabilities. `stream` is the stream to the client; None if there is none.
    """

    request: McpRequest
    grant: AccessRow
    capabilities: Mapping[str, Any]
    server_name: str
    stream: ClientStream | None


class InputRefused(UpstreamError):
    """The client did not give the input that the server asked for. This does not count as a failure of the server."""

    outcome = "rpc_error"
    reason = "input_refused"
    sentence = 'Server "{server}" needs input that the client did not give.'


def can_be_asked(capabilities: Mapping[str, Any]) -> bool:
    """Return whether a client with these capabilities supports at least one kind of request from servers."""
    return any(name in capabilities for name in BRIDGED)


def can_answer(capabilities: Mapping[str, Any], asked: Object) -> bool:
    """Return whether a client with these capabilities supports this request."""
    method, params = asked.get("method"), asked.get("params", {})
    known = capabilities.get(CAPABILITIES.get(method, "")) if isinstance(method, str) else None
    if not isinstance(known, dict) or not isinstance(params, dict):
        return False
    if method == "elicitation/create":
        # An empty capability means forms (MCP 2025-11-25, Elicitation, Capabilities).
        return params.get("mode", "form") in [*(known or {"form": {}})]  # A list: the server's value can be any JSON.
    return method != "sampling/createMessage" or "tools" not in params or "tools" in known


class ServerRequests:
    """Forwards requests of servers to clients, and returns the clients' answers.

    A client has `seconds` to answer. Each request has its own row in the log, linked to the row of its call.
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
        self._recorder = recorder
        self.seconds = seconds
        self._background = Background(UpstreamError, DatabaseUnavailable, TimeoutError)

    def start(self) -> None:
        self._background.forever("requests nobody answered", self._pending.purge, every(PURGE_SECONDS))

    async def stop(self) -> None:
        """Stop background tasks, after giving them a second."""
        await self._background.stop(patience=1)

    # From a session server to a session client

    async def carry(self, asking: InteractiveCall, asked: Object, answer: Answer) -> None:
        """Forward the server's request to the client, and the client's answer to the server.

        If the call ends before the client answers, or if the server cancels its request, this task is cancelled. Then
        the server gets an error, and a client that was already asked gets `notifications/cancelled`.
        """
        session, stream = asking.grant.session, asking.stream
        if session is None or stream is None or not can_answer(asking.capabilities, asked):
            self.in_background(answer(NOT_SUPPORTED))
            return
        try:
            answered = await self.ask_client(asking, asked)
        except asyncio.CancelledError:
            self.in_background(answer(CALL_OVER))
            raise
        await answer(answered)

    async def ask_client(self, asking: InteractiveCall, asked: Object, *, withdraws: bool = True) -> Object:
        """Return the client's answer, `{"result": ...}` or `{"error": ...}`.

        If the client does not answer in time, return an error. If `withdraws` is True, the client then gets
        `notifications/cancelled`, and also if this task is cancelled while the client is asked.
        """
        stream, session = asking.stream, asking.grant.session
        assert stream is not None
        assert session is not None
        uid = str(uuid4())

        async def send() -> None:
            if stream.is_over:
                raise StreamOver
            await stream.notify({**_for_client(asking, asked), "jsonrpc": "2.0", "id": uid})

        async def withdraw(reason: str) -> None:
            params = {"requestId": uid, "reason": reason}
            await stream.notify({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})

        owner = Owner(asking.grant.connection_id, session.id)
        return await self.wait(asking, asked, uid, owner, send, withdraw if withdraws else None)

    async def wait(
        self,
        asking: InteractiveCall,
        asked: Object,
        uid: str,
        owner: Owner,
        send: Callable[[], Awaitable[None]],
        withdraw: Callable[[str], Coroutine[Any, Any, None]] | None = None,
    ) -> Object:
        """Send the request with `send`, log the request, and return the answer of `owner` or an error object.

        `withdraw` is called in the background, with a reason, if no answer comes in time, or if this task is cancelled
        between the start of `send` and the answer.
        """
        row = _row(asking, asked)
        began = time.perf_counter()
        answered: Object | None = None
        was_sent = False
        try:
            await self._pending.add(uid, owner, asked, self.seconds)
            was_sent = True  # A large request is sent whole even if this task is cancelled.
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
            # `answered` is None only if this task was cancelled; then the row is written in the background.
            row.duration_ms = (time.perf_counter() - began) * 1000
            if answered is None:
                row.outcome = "cancelled"
                self._background.spawn("row of a server's request", self._end(asking, asked, uid, row, None))
            if withdraw is not None and was_sent and (answered is None or answered is TIMED_OUT):
                reason = "No answer in time" if answered else "No answer is needed any more"
                self._background.spawn("withdrawal of a request", withdraw(reason))
        # Completed even if the call ends meanwhile: the client was asked, so the log needs the row.
        ending = self._end(asking, asked, uid, row, answered)
        return await asyncio.shield(self._background.spawn("row of a server's request", ending))

    async def _end(
        self, asking: InteractiveCall, asked: Object, uid: str, row: CallRow, answered: Object | None
    ) -> Object:
        """Delete a request and write its log row. Return `answered`, or {} if there is no answer.

        If the row cannot be written, return an error instead.
        """
        if answered is TIMED_OUT:
            row.outcome = "timeout"
        elif answered is not None and "error" in answered:
            row.outcome = "rpc_error"
            code = answered["error"].get("code")
            row.rpc_error_code = code if type(code) is int and abs(code) < 1 << 31 else None
        bodies = jsonrpc.dumps(asked), jsonrpc.dumps(answered) if answered is not None else b""
        row.request_bytes, row.response_bytes = map(len, bodies)
        if asking.grant.recorded is not None:
            await self._recorder.keep(asking.request, row, bodies, asking.grant.recorded)
        try:
            await self._pending.drop(uid)
        except DatabaseUnavailable:
            logger.warning("a server's request could not be deleted before it expires", extra={"request_id": row.uid})
        try:
            await self._writer.commit(row)
        except NotRecorded:
            return _error("The gateway could not record the answer")
        return answered or {}

    async def take_answer(self, request: McpRequest, grant: AccessRow) -> None:
        """Store a response posted by a client, so that the waiting worker finds the response.

        If no worker waits for the response, ignore the response. Raises DatabaseUnavailable.
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
        """Return the server's final answer to a call. `answer` is the server's answer so far.

        While the server asks for input, get the input from the client, and send the call again with it. `again(more)`
        sends the call with the members of `more` added to the params. Raises an UpstreamError.
        """
        server = asking.server_name
        rounds = 0
        while True:
            result = answer.document.get("result", {})
            if answer.error is not None or result.get("resultType", "complete") != "input_required":
                return answer
            if rounds == MOST_ROUNDS:
                raise BadAnswer(server, f"it asked for input more than {MOST_ROUNDS} times")
            wanted: Object = {}
            if requests := result.get("inputRequests"):
                wanted["inputResponses"] = await self._ask_all(asking, requests)
            else:
                await asyncio.sleep(STATE_ONLY_SECONDS)
            if "requestState" in result:
                wanted["requestState"] = result["requestState"]
            answer = await again(wanted)
            rounds += 1

    async def _ask_all(self, asking: InteractiveCall, requests: Any) -> Object:
        server = asking.server_name
        if not isinstance(requests, dict) or len(requests) > MOST_ASKED:
            raise BadAnswer(server, "its input requests cannot be read")
        for asked in requests.values():
            if asking.stream is None or asking.grant.session is None or not isinstance(asked, dict):
                raise BadAnswer(server, "it needs input, which this client does not support")
            if not can_answer(asking.capabilities, asked):
                raise BadAnswer(server, f"it wants {str(asked.get('method'))[:60]}, which this client cannot give")
        replies = await asyncio.gather(*(self.ask_client(asking, asked) for asked in requests.values()))
        for answered in replies:
            if "error" in answered:
                raise InputRefused(server, str(answered["error"].get("message"))[:200])
        return {key: answered["result"] for key, answered in zip(requests, replies, strict=True)}

    # Background work

    def in_background(self, work: Awaitable[object]) -> None:
        """Run `work` in a background task for at most BACKGROUND_SECONDS; failures are logged."""

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
    """Return the part of the client's answer that the server gets: the result or the error."""
    if isinstance(answer.get("error"), dict):
        return {"error": answer["error"]}
    if isinstance(answer.get("result"), dict):
        return {"result": rewriting.for_server(answer["result"], asking.request.task_ids)}
    return _error("The client's answer is not a valid result")


def as_uuid(text: object) -> str | None:
    """Return the canonical text of a UUID, or None for anything else."""
    try:
        return str(UUID(text)) if isinstance(text, str) and len(text) == 36 else None
    except ValueError:
        return None


def _row(asking: InteractiveCall, asked: Object) -> CallRow:
    """Return a log row for a request of a server.

    It is a copy of the row of the call, with the method of the request.
    """
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


# Calls by clients of MCP 2026-07-28 during which a server of the session era asks something. The client gets the result
# `input_required`, and retries the call with the answers.
#
# The worker keeps the call to the server open while the client collects the answers. The client returns a
# `requestState`: an encrypted text that names the call, is bound to the connection and the request, and works once. The
# retry may reach any worker. That worker stores the answers in rows, and waits for the outcome, which the call's worker
# stores encrypted in another row.


KIND = "requestState"
STATE_SECONDS = 300.0
GATHER_SECONDS = 0.02  # Requests of a server within this time are sent to the client together.
BEAT_SECONDS = 2.0
DEAD_SECONDS = 10.0  # A call without a heartbeat for this long is considered lost.
LOOK_SECONDS = 1.0  # How often a retry polls the call's row while no notification arrives.
MOST_SUSPENDED = 64  # Suspended calls of one connection in one worker.

HOLD = """
INSERT INTO proxy_suspendedcall (id, connection_id, turn, beat_at, expires_at)
VALUES (%s, %s, 0, statement_timestamp(), statement_timestamp() + make_interval(secs => %s))
ON CONFLICT (id) DO UPDATE SET beat_at = excluded.beat_at, expires_at = excluded.expires_at
"""
BEAT = """
UPDATE proxy_suspendedcall SET beat_at = statement_timestamp(),
    expires_at = greatest(expires_at, statement_timestamp() + make_interval(secs => 60))
WHERE id = ANY(%s::uuid[]) RETURNING id::text
"""
# One transaction stores the outcome and notifies the retry, so that the retry finds the outcome.
FINISH = """
WITH finished AS (
    UPDATE proxy_suspendedcall SET outcome = %(outcome)s,
        expires_at = statement_timestamp() + make_interval(secs => %(seconds)s)
    WHERE id = %(id)s RETURNING id
)
SELECT pg_notify('gateway', 'answer ' || id) FROM finished
"""
TELL = "SELECT pg_notify('gateway', 'answer ' || %s)"
TAKE_TURN = """
UPDATE proxy_suspendedcall SET turn = turn + 1
WHERE id = %s AND connection_id = %s AND turn = %s AND expires_at > statement_timestamp() RETURNING id
"""
LOOK = """
SELECT outcome, beat_at < statement_timestamp() - make_interval(secs => %s) FROM proxy_suspendedcall WHERE id = %s
"""
END = "DELETE FROM proxy_suspendedcall WHERE id = %s"


class BadState(UpstreamError):
    """The requestState is refused.

    It is unknown, belongs to another request or connection, was used before, is too old, or belongs to a call that
    cannot continue.
    """

    code = jsonrpc.INVALID_PARAMS
    outcome = "rpc_error"
    reason = "request_state"
    sentence = "Invalid params: {server}"

    @property
    def data(self) -> Object:
        return {"reason": self.reason}


class CallLost(UpstreamError):
    """The worker that ran the call has stopped, or the input for the call could not be sent to the server."""

    reason = "call_lost"
    sentence = 'The call to server "{server}" was lost while it waited for input; the server may have executed it.'


class Ended(UpstreamError):
    """The error that ended a suspended call. The worker of the call stores it for the client's retry."""

    def __init__(self, server: str, code: int, outcome: str, reason: str, sentence: str, data: Object | None) -> None:
        self.code, self.outcome, self.reason = code, outcome, reason
        self._data = data
        super().__init__(server)
        self.args = (sentence,)

    @property
    def data(self) -> Object | None:
        return self._data


class SuspendedCallFailed(Exception):
    """The call failed inside the gateway while it was suspended."""


@dataclass(eq=False)
class _Call:
    """A running call of this worker that may be suspended."""

    asking: InteractiveCall
    uid: str = field(default_factory=lambda: str(uuid4()))
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    held: asyncio.Lock = field(default_factory=asyncio.Lock)
    has_row: bool = False


class SuspendedCalls:
    """Keeps calls running while they wait for input. A retry, in any worker, gets the outcome of its suspended call."""

    def __init__(
        self,
        state: Statements,
        bell: Bell,
        pending: PendingRequests,
        requests: ServerRequests,
        cipher: Cipher,
        streams: Streams,
    ) -> None:
        self._state = state
        self._bell = bell
        self._pending = pending
        self._requests = requests
        self._cipher = cipher
        self._held: dict[str, tuple[str, asyncio.Task[RpcResponse]]] = {}  # Connection id and task, by id of the call.
        self._streams = streams  # Registers suspended calls, so that they end when access is lost.
        self._background = Background(DatabaseUnavailable)

    def start(self) -> None:
        self._background.forever("suspended calls", self._beat, every(BEAT_SECONDS))

    async def stop(self) -> None:
        """End the suspended calls of this worker.

        A retry that already waits gets CallLost. A later retry gets BadState.
        """
        await self._background.stop()
        tasks = [task for _, task in self._held.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1)
        for uid in list(self._held):
            with suppress(DatabaseUnavailable):
                await self._state.fetch(END, (uid,))

    async def call(
        self, asking: InteractiveCall, message: Message, ask: Callable[[OnRequest], Coroutine[Any, Any, RpcResponse]]
    ) -> RpcResponse:
        """Return the answer of `ask`, or `input_required` if the server needs something from the client first.

        Raises the errors of `ask`.
        """
        call = _Call(asking)

        async def on_request(asked: Object, answer: Answer) -> None:
            await self._carry(call, asked, answer)

        task = awaited("call that may ask its client", ask(on_request))
        told = spawn("question of a server", call.asked.wait())
        try:
            while True:
                await asyncio.wait((task, told), return_when=asyncio.FIRST_COMPLETED)
                if not task.done():
                    asking.request.may_have_run = True  # The server has asked something.
                    await asyncio.wait((task,), timeout=GATHER_SECONDS)
                if task.done():
                    # Clean up in the background, so that a failure does not affect the answer.
                    self._requests.in_background(self._forget(call))
                    return task.result()
                if asked := await self._pending.open(call.uid):
                    break
                call.asked.clear()
                told = spawn("question of a server", call.asked.wait())
        except BaseException:
            task.cancel()
            self._requests.in_background(self._forget(call))
            raise
        finally:
            told.cancel()
        self._hold(call, task)
        return self._input_required(asking.request, message, call.uid, 0, asked)

    async def resume(self, asking: InteractiveCall, message: Message) -> RpcResponse:
        """Continue the call that `message` retries, and return the call's outcome.

        If the server asks again, return `input_required`. Raises BadState, CallLost, or the error of the call.
        """
        grant, server = asking.grant, asking.server_name
        uid, turn = self._checked_state(message, grant.connection_id)
        if not await self._state.fetch(TAKE_TURN, (uid, grant.connection_id, turn)):
            raise BadState("this requestState was used before, or its call is over")
        # Listen only after TAKE_TURN: a second retry with the same state is refused by TAKE_TURN, and must not remove
        # the event of the first retry.
        news = self._bell.listen(uid)
        try:
            given = message.params.get("inputResponses")
            await self._repeated(partial(self._keep_answers, uid, grant.connection_id, given))
            while True:
                rows, asked = await self._repeated(partial(self._look, uid))
                if rows and rows[0][1]:
                    # After an outage of the database, the next heartbeat may come later than this look.
                    await asyncio.sleep(4 * LOOK_SECONDS)
                    rows, asked = await self._repeated(partial(self._look, uid))
                if rows and rows[0][0] is not None:
                    self._requests.in_background(self._state.fetch(END, (uid,)))
                    return _opened_outcome(self._pending.unseal(rows[0][0]), server)
                if not rows or rows[0][1]:
                    self._requests.in_background(self._state.fetch(END, (uid,)))
                    raise CallLost(server, "its worker has ended")
                if asked:
                    return self._input_required(asking.request, message, uid, turn + 1, asked)
                with suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), LOOK_SECONDS)
                news.clear()
        except asyncio.CancelledError:
            # The client left, so the call is cancelled: its worker notices at the next heartbeat that the row is gone.
            self._requests.in_background(self._state.fetch(END, (uid,)))
            raise
        finally:
            self._bell.forget(uid)

    async def _look(self, uid: str) -> tuple[list[tuple[Any, ...]], dict[str, Object]]:
        """Return the row of a suspended call, and its unanswered requests. Raises DatabaseUnavailable."""
        return await self._state.fetch(LOOK, (DEAD_SECONDS, uid)), await self._pending.open(uid)

    async def _repeated[T](self, ask: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `ask`. While the database is unavailable, repeat `ask` for up to STATE_SECONDS.

        A requestState works once, so the client could not repeat a failed retry. Raises DatabaseUnavailable.
        """
        ends = time.monotonic() + STATE_SECONDS
        while True:
            try:
                return await ask()
            except DatabaseUnavailable:
                if time.monotonic() > ends:
                    raise
            await asyncio.sleep(LOOK_SECONDS)

    # In the worker that runs the call

    async def _carry(self, call: _Call, asked: Object, answer: Answer) -> None:
        """Pass a server's request on to the client as `input_required`.

        The client's retry contains the client's answer. Send this answer to the server.
        """
        asking = call.asking

        async def send() -> None:
            call.asked.set()
            await self._state.fetch(TELL, (call.uid,))

        owner = Owner(asking.grant.connection_id, None, call.uid)
        try:
            if not can_answer(asking.capabilities, asked) or not await self._have_row(call):
                self._requests.in_background(answer(NOT_SUPPORTED))
                return
            answered = await self._requests.wait(asking, asked, str(uuid4()), owner, send)
        except asyncio.CancelledError:
            self._requests.in_background(answer(CALL_OVER))
            raise
        await answer(answered)

    async def _have_row(self, call: _Call) -> bool:
        connection_id = call.asking.grant.connection_id
        async with call.held:
            if not call.has_row:
                if sum(holder == connection_id for holder, _ in self._held.values()) >= MOST_SUSPENDED:
                    return False
                try:
                    await self._state.fetch(HOLD, (call.uid, connection_id, STATE_SECONDS))
                except DatabaseUnavailable:
                    return False
                call.has_row = True
        return True

    async def _forget(self, call: _Call) -> None:
        if call.has_row:
            await self._state.fetch(END, (call.uid,))

    def _hold(self, call: _Call, task: "asyncio.Future[RpcResponse]") -> None:
        assert isinstance(task, asyncio.Task)
        self._held[call.uid] = call.asking.grant.connection_id, task
        # A copy, because the original request ends with the answer `input_required`.
        held = self._streams.calls[call.uid] = copy.copy(call.asking.request)
        held.uid, held.task = call.uid, task
        task.add_done_callback(
            lambda done: self._background.spawn("outcome of a suspended call", self._finish(call, done))
        )

    async def _finish(self, call: _Call, task: "asyncio.Future[RpcResponse]") -> None:
        """Store the outcome of a suspended call. The client's retry collects the outcome."""
        try:
            outcome = _sealable(task)
            if outcome is None:
                await self._state.fetch(END, (call.uid,))
            else:
                given = {"id": call.uid, "outcome": self._pending.seal(outcome), "seconds": STATE_SECONDS}
                await self._repeated(partial(self._state.fetch, FINISH, given))
        finally:
            self._held.pop(call.uid, None)
            self._streams.calls.pop(call.uid, None)

    async def _beat(self) -> None:
        """Update the heartbeats of this worker's suspended calls. Cancel each call whose database row was deleted."""
        if not self._held:
            return
        uids = list(self._held)
        alive = {uid for (uid,) in await self._state.fetch(BEAT, (uids,))}
        for uid in uids:
            if uid not in alive and uid in self._held:
                self._held[uid][1].cancel()

    # The state that the client returns

    def _input_required(
        self, request: McpRequest, message: Message, uid: str, turn: int, asked: dict[str, Object]
    ) -> RpcResponse:
        assert request.grant is not None
        facts = [KIND, uid, turn, request.grant.connection_id, _digest(message), now() + STATE_SECONDS]
        result = {
            "resultType": "input_required",
            "inputRequests": {
                key: {name: each[name] for name in ("method", "params") if name in each} for key, each in asked.items()
            },
            "requestState": self._cipher.seal(json.dumps(facts)).decode(),
        }
        document = {"jsonrpc": "2.0", "id": 0, "result": result}
        return RpcResponse(document, jsonrpc.dumps(document), MODERN, None)

    def has_given(self, message: Message) -> bool:
        """Return whether `message` has a requestState of a suspended call, perhaps of another connection or request."""
        return self._opened_state(message) is not None

    def _checked_state(self, message: Message, connection_id: str) -> tuple[str, int]:
        """Return the id and the turn of the suspended call from the requestState.

        The turn is the number of earlier retries. Raises BadState if the requestState is not valid for this request.
        """
        facts = self._opened_state(message)
        if facts is None:
            _refuse("this requestState was not issued by this gateway")
        uid, turn, connection, digest, ends = facts
        if connection != connection_id or digest != _digest(message):
            _refuse("this requestState belongs to another request")
        if ends < now():
            _refuse("this requestState is too old")
        return uid, turn

    def _opened_state(self, message: Message) -> tuple[str, int, str, str, float] | None:
        """Return the requestState's call id, turn, connection, digest and expiry; None if it was not issued here."""
        sealed = message.params.get("requestState")
        try:
            facts = json.loads(self._cipher.open(sealed.encode() if isinstance(sealed, str) else b""))
            kind, uid, turn, connection, digest, ends = facts
        except (Undecryptable, ValueError, TypeError):
            return None
        return (uid, turn, connection, digest, ends) if kind == KIND else None

    async def _keep_answers(self, uid: str, connection_id: str, responses: object) -> None:
        owner = Owner(connection_id, None, uid)
        for key, response in _answers(responses):
            await self._pending.answer(key, owner, jsonrpc.dumps({"result": response}))


def _refuse(why: str) -> NoReturn:
    raise BadState(why)


def _answers(responses: object) -> Iterable[tuple[str, Object]]:
    if isinstance(responses, dict):
        for key, response in responses.items():
            if (uid := as_uuid(key)) is not None and isinstance(response, dict):
                yield uid, response


def _digest(message: Message) -> str:
    """Return a digest of the method and of the params that stay the same in a retry.

    The order of members does not matter.
    """
    params = {name: value for name, value in message.params.items() if name not in _OF_ONE_TURN}
    return hashlib.sha256(json.dumps([message.method, params], sort_keys=True).encode()).hexdigest()


_OF_ONE_TURN = frozenset({"_meta", "inputResponses", "requestState"})


# Outcomes of calls that failed in the gateway; the process that ran the call has logged the reason.
UNAVAILABLE = b"unavailable"
FAILED = b"failed"


def _sealable(task: "asyncio.Future[RpcResponse]") -> bytes | None:
    """Return the outcome of a suspended call as bytes to store.

    Returns None for a cancelled call, because no client waits for its outcome.
    """
    if task.cancelled():
        return None
    error = task.exception()
    if error is None:
        return b"answer " + task.result().text
    if isinstance(error, UpstreamError):
        return b"error " + jsonrpc.dumps([error.code, error.outcome, error.reason, str(error), error.data])
    if isinstance(error, DatabaseUnavailable):
        return UNAVAILABLE
    logger.error("a suspended call failed inside the gateway", exc_info=error)
    return FAILED


def _opened_outcome(text: bytes, server: str) -> RpcResponse:
    """Return the answer to the suspended call. `text` is the outcome that `_sealable` returned.

    If the call failed, raises Ended, DatabaseUnavailable or SuspendedCallFailed.
    """
    if text == UNAVAILABLE:
        raise DatabaseUnavailable("the database did not answer while the call was suspended")
    if text == FAILED:
        raise SuspendedCallFailed(SuspendedCallFailed.__doc__)
    kind, _, kept = text.partition(b" ")
    if kind == b"error":
        raise Ended(server, *jsonrpc.loads(kept))
    document = jsonrpc.loads(kept)
    error = document.get("error")
    return RpcResponse(document, kept, SESSION, error if isinstance(error, dict) else None)
