"""Held calls: a call that a rule holds waits for a person's decision, and runs once if it is approved.

A hold is a row for one connection, tool and arguments. The row outlives the client's request. The database function
`approvals_ask` decides whether a held call may run. If the call has an approved hold, the function uses up the
approval, and the call runs. Otherwise, the function finds the current hold or makes a new hold. The function runs in
one transaction, so each approval is used only once. While a hold waits, the request stays open for some time, without a
database connection.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from proxy.access.rules import DecidingRule
from proxy.hold_answers import ANSWERS, PAGE, FoundHold, NotApproved, PageOffered, page_request
from proxy.reasons import APPROVALS
from proxy.request import Continued, McpRequest
from proxy.response import Stream
from proxy.server_requests import BadState, InteractiveCall, ServerRequests, can_answer
from proxy.store.bus import Statements, Subscribable
from proxy.store.pg import DatabaseUnavailable
from wire import canonical_json, jsonrpc, versions
from wire.background import Background, spawn
from wire.canonical_json import Ambiguous
from wire.cipher import Cipher, Undecryptable
from wire.errors import UpstreamError
from wire.jsonrpc import Message, Object
from wire.mcp import RpcResponse

logger = logging.getLogger(__name__)

TOPIC = "hold"
KIND = "approved call"
NOT_CONTINUED = "this requestState continues no approved call; call again without it"
# Members of params in a request of MCP 2026-07-28 that continues an earlier request.
MORE = ("requestState", "inputResponses")

# Seconds for which a request stays open. Some clients give up after 5 s. Most clients that ask for progress give up
# after 60 s.
WITHOUT_PROGRESS, WITH_PROGRESS, PATIENT = 4, 50, 240
PATIENCE_SHOWN = 65.0  # A client that takes an answer after this many seconds does not give up after 60 s.
PROGRESS_SECONDS = 10.0
LOOK_SECONDS = 10.0  # Poll interval, because the bus may miss a decision.
INLINE_BYTES = 1 << 16  # The arguments of a larger request body are digested in a thread.

ASK = """
SELECT verdict, hold::text, ends, sentence, approvers, patience
FROM approvals_ask(%(connection)s, %(server)s, %(tool)s, %(digest)s, %(rule)s, %(version)s, %(sealed)s, %(key)s,
    %(call)s, %(client)s)
"""
READ = """
SELECT CASE WHEN state = 'waiting' AND ends_at <= clock_timestamp() THEN 'expired' ELSE state END,
    extract(epoch FROM ends_at)::float8, sentence,
    extract(epoch FROM ends_at - clock_timestamp())::float8
FROM approvals_hold WHERE id = %s
"""
# Only the call that used an approval gives the approval back, and only while it is certain that no server was asked.
GIVE_BACK = """
UPDATE approvals_hold SET state = 'approved', used_at = NULL, run_call = NULL
WHERE id = %s AND state = 'used' AND run_call = %s
"""
# Lets the request with the id `call` continue an approved call, once. `before` is the id of the client's earlier
# request whose answer asked for input.
CONTINUE = """
UPDATE approvals_hold SET run_call = %(call)s
WHERE id = %(hold)s AND state = 'used' AND run_call = %(before)s AND used_at > clock_timestamp() - interval '1 hour'
    AND connection_id = %(connection)s AND server_id = %(server)s AND tool = %(tool)s AND digest = %(digest)s
    AND rule_id = %(rule)s AND rule_version = %(version)s
    AND definition = approvals_definition(%(connection)s, %(server)s, %(tool)s)
RETURNING id
"""
DISCONTINUE = "UPDATE approvals_hold SET run_call = %(before)s WHERE id = %(hold)s AND run_call = %(call)s"
IS_FIRST = "SELECT 1 FROM approvals_hold WHERE id = %s AND asking_call = %s"
ALLOWANCES = """
SELECT id::text, names, digest FROM approvals_allowance
WHERE connection_id = %(connection)s AND server_id = %(server)s AND tool = %(tool)s AND rule_id = %(rule)s
    AND rule_version = %(version)s AND ended_at IS NULL AND ends_at > clock_timestamp()
    AND definition = approvals_definition(%(connection)s, %(server)s, %(tool)s)
"""
USE_ALLOWANCE = """
UPDATE approvals_allowance SET calls = calls + 1
WHERE id = %s AND ended_at IS NULL AND ends_at > clock_timestamp()
RETURNING hold_id::text
"""
LEARN_PATIENCE = "UPDATE connections_connection SET hold_wait = %s WHERE id = %s AND hold_wait IS NULL"
LEARN_LIMIT = "UPDATE connections_connection SET hold_wait = least(coalesce(hold_wait, %s), %s) WHERE id = %s"


class UnclearArguments(UpstreamError):
    """The arguments could mean two things, so nobody can approve them."""

    code = jsonrpc.INVALID_PARAMS
    outcome = "bad_request"
    reason = "unclear_arguments"

    def __init__(self, problem: str) -> None:
        self.sentence = f"This call needs approval, but its arguments are unclear: {problem}."
        super().__init__("")


@dataclass(slots=True, eq=False)
class HeldCall:
    """A call that a rule holds. `began` is the start of its wait, on the clock of the event loop."""

    request: McpRequest
    stream: Stream | None
    capabilities: Object
    arguments: Object
    digest: bytes
    sealed: bytes
    progress_token: jsonrpc.Id | None
    is_retry: bool  # True if the call has a `requestState` or `inputResponses` for its server.
    began: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    reported: int = 0
    client_left: bool = False

    def waits(self, patience: int | None) -> float:
        """Return how many seconds the request stays open: `patience`, or a default if `patience` is None.

        `patience` was learned from earlier calls of the connection.
        """
        if patience is not None:
            return patience
        return WITHOUT_PROGRESS if self.progress_token is None else WITH_PROGRESS

    @property
    def waited(self) -> float:
        return asyncio.get_running_loop().time() - self.began

    async def report(self, text: str) -> None:
        """Send a progress notification with `text`, if the client asked for progress."""
        if self.stream is None or self.progress_token is None:
            return
        self.reported += 1
        # Progress is far below 1, because the values that the server sends later must be larger.
        params = {"progressToken": self.progress_token, "progress": self.reported / 1000, "message": text}
        await self.stream.notify({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})


class Holds:
    """The held calls of this worker."""

    def __init__(
        self, state: Statements, bus: Subscribable, cipher: Cipher, requests: ServerRequests, public_url: str
    ) -> None:
        self._state = state
        self._requests = requests
        self._cipher = cipher
        self._public_url = public_url
        self._news: dict[str, set[asyncio.Event]] = {}
        self._is_stopping = False
        self._background = Background(DatabaseUnavailable)
        bus.on(TOPIC, self._ring)

    async def stop(self) -> None:
        await self._background.stop(patience=1)

    def end_waits(self) -> None:
        """Answer all waiting calls now, because this process stops. Their holds still wait for a decision."""
        self._is_stopping = True
        self._ring(None)

    async def begin(self, request: McpRequest, message: Message, stream: Stream | None) -> HeldCall:
        """Return the held call with the data that a request for approval needs. Raises UnclearArguments."""
        arguments = message.params.get("arguments") or {}
        work = partial(self._prepared, request.body, arguments)
        digest, sealed = await asyncio.to_thread(work) if len(request.body) > INLINE_BYTES else work()
        token = message.meta.get("progressToken") if stream is not None else None
        is_token = type(token) is int or isinstance(token, str)
        capabilities = _capabilities(request, message)
        token = token if is_token else None
        is_retry = not message.params.keys().isdisjoint(MORE)
        return HeldCall(request, stream, capabilities, arguments, digest, sealed, token, is_retry)

    def _prepared(self, body: bytes, arguments: Object) -> tuple[bytes, bytes]:
        try:
            canonical_json.check_unambiguous(body)
        except Ambiguous as error:
            raise UnclearArguments(str(error)) from None
        return canonical_json.digest(arguments), self._cipher.seal(jsonrpc.dumps(arguments).decode())

    async def may_run(self, call: HeldCall, rule: DecidingRule) -> bool:
        """Return True if the call may be sent now. Otherwise, wait until the hold has changed, and return False.

        The call may be sent if it has used up an approval, if it continues an approved call, or if an allowance covers
        it. After False, the caller must check the rules again.

        Raises NotApproved if the client has to be answered now. Raises BadState for a retry that does not continue an
        approved call. Raises DatabaseUnavailable.
        """
        query = self._query(call, rule)
        if await self._continues(call, query) or await self._is_allowed_for_a_while(call, query):
            return True
        if call.is_retry:  # Nobody has approved the data that the retry adds.
            raise BadState(NOT_CONTINUED)
        (row,) = await self._state.fetch(ASK, query)
        found = FoundHold(*row)
        if found.id is not None:
            call.request.row.hold_id = found.id
        if found.verdict == "used":
            call.request.uses_approval = True
            return True
        if found.verdict in ANSWERS and found.verdict != "waiting":
            raise self._not_approved(found.verdict, found, found.sentence)
        if found.verdict == "waiting":
            await self._wait(call, found, offers=await self._offers_page(call, found))
        return False

    def _query(self, call: HeldCall, rule: DecidingRule) -> dict[str, Any]:
        row = call.request.row
        return {
            "connection": row.grant.connection_id,
            "server": row.server_id,
            "tool": row.feature_name,
            "digest": call.digest,
            "rule": rule.id,
            "version": rule.version,
            "sealed": call.sealed,
            "key": self._cipher.key_id,
            "call": call.request.uid,
            "client": f"{row.client_name} {row.client_version}".strip()[:200],
        }

    async def _is_allowed_for_a_while(self, call: HeldCall, query: dict[str, Any]) -> bool:
        for uid, names, digest in await self._state.fetch(ALLOWANCES, query):
            if any(name not in call.arguments for name in names):
                continue
            if canonical_json.digest({name: call.arguments[name] for name in names}) != bytes(digest):
                continue
            if used := await self._state.fetch(USE_ALLOWANCE, (uid,)):
                call.request.row.hold_id = used[0][0]
                return True
        return False

    async def give_back(self, request: McpRequest) -> None:
        """Make the approval of this call usable again, because the call was certainly not sent."""
        request.uses_approval = False
        with suppress(DatabaseUnavailable):
            if request.continues is None:
                await self._state.fetch(GIVE_BACK, (request.row.hold_id, request.uid))
            else:
                await self._state.fetch(DISCONTINUE, request.continues._asdict() | {"call": request.uid})

    # Approved calls that ask for input (MCP 2026-07-28)
    #
    # The `requestState` that the client gets has, encrypted, the ids of the hold and of the client's request. The
    # column `run_call` has the id of the call's latest request, so each `requestState` continues the call only once.

    def unwrapped(self, request: McpRequest, message: Message) -> Message:
        """Return the call in the form that its server gets, with the server's own `requestState`.

        Removes the client's response to the approval page. If the client's `requestState` comes from `wrapped`, sets
        `request.continues` to the approved call that this request continues.
        """
        params = message.params
        if message.method != "tools/call":
            return message
        given = {name: value for name, value in params.items() if name not in MORE}
        if not request.modern:  # In the session era, params do not have these members.
            return replace(message, params=given)
        responses, state = params.get("inputResponses"), params.get("requestState")
        if isinstance(responses, dict) and PAGE in responses:  # Not for the server.
            responses = {key: value for key, value in responses.items() if key != PAGE} or None
        if (opened := self._opened(state)) is not None:
            request.continues, state = opened
        members = dict(zip(MORE, (state, responses), strict=True))
        return replace(message, params=given | {name: value for name, value in members.items() if value is not None})

    def wrapped(self, request: McpRequest, answer: RpcResponse) -> RpcResponse:
        """Return the server's `answer`, which asks for input, in the form that the client gets.

        For an approved call, the returned `requestState` lets the client's next request continue the call.
        """
        if not request.uses_approval:
            return answer
        result = answer.whole["result"]
        facts = [KIND, request.row.hold_id, request.uid, result.get("requestState")]
        sealed = self._cipher.seal(json.dumps(facts)).decode()
        document = {**answer.document, "result": {**result, "requestState": sealed}}
        return answer._replace(document=document, text=jsonrpc.dumps(document), reader=None)

    def _opened(self, state: object) -> tuple[Continued, Any] | None:
        """Return a pair that `wrapped` has encrypted: the call to continue, and the server's own state.

        Return None if `state` is not from `wrapped`.
        """
        try:
            facts = json.loads(self._cipher.open(state.encode() if isinstance(state, str) else b""))
            kind, hold, before, own = facts if isinstance(facts, list) else []
        except (Undecryptable, ValueError, TypeError):
            return None
        return (Continued(hold, before), own) if kind == KIND else None

    async def _continues(self, call: HeldCall, query: dict[str, Any]) -> bool:
        """Return whether this request may continue the approved call that `request.continues` names.

        If so, store the id of this request as the latest request of that call.
        """
        request = call.request
        if request.continues is None:
            return False
        if not await self._state.fetch(CONTINUE, query | request.continues._asdict()):
            request.continues = None
            return False
        request.row.hold_id, request.uses_approval = request.continues.hold, True
        return True

    # The open wait

    async def _wait(self, call: HeldCall, found: FoundHold, *, offers: bool) -> None:
        """Wait until the hold is approved, used or gone. Raises NotApproved."""
        assert found.id is not None
        if offers and call.request.modern:
            raise PageOffered(found, self._url(found))
        try:
            with self._listening(found.id) as news, self._watching(call, news):
                async with self._page_open(call, found, offers=offers):
                    await self._until_decided(call, found, news)
        except asyncio.CancelledError:
            if call.request.was_cancelled:
                self._note_limit(call)
            raise

    async def _until_decided(self, call: HeldCall, found: FoundHold, news: asyncio.Event) -> None:
        assert found.id is not None
        reports_at = call.waited
        while True:
            news.clear()
            state, left = await self._look(found)
            if state != "waiting":
                return
            left = min(left, call.waits(found.patience) - call.waited)
            if left <= 0 or call.client_left or self._is_stopping:
                if call.client_left:
                    self._note_limit(call)
                raise self._not_approved("waiting", found)
            if call.stream is not None and not call.stream.opened:
                await call.stream.begin()
            if call.waited >= reports_at:
                await call.report(f"Waiting for approval: {self._url(found)}")
                reports_at += PROGRESS_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, LOOK_SECONDS, max(reports_at - call.waited, 0.01))):
                    await news.wait()

    async def _look(self, found: FoundHold) -> tuple[str, float]:
        """Return the state of the hold, and the seconds until the hold ends.

        If the hold no longer exists, the state is `gone`.

        Raises NotApproved if the hold was denied or withdrawn, or has expired.
        """
        try:
            rows = await self._state.fetch(READ, (found.id,))
        except DatabaseUnavailable:
            return "waiting", LOOK_SECONDS  # The next look may succeed.
        if not rows:
            return "gone", 0.0
        state, ends, sentence, left = rows[0]
        if state in ANSWERS and state != "waiting":
            raise self._not_approved(state, found._replace(ends=ends), sentence)
        return state, max(left, 0.05)

    def _not_approved(self, state: str, found: FoundHold, sentence: str = "") -> NotApproved:
        return NotApproved(state, found, self._url(found), sentence)

    def _url(self, found: FoundHold) -> str:
        return f"{self._public_url}{APPROVALS}{f'{found.id}/' if found.id else ''}"

    @contextmanager
    def _listening(self, hold: str) -> Iterator[asyncio.Event]:
        """Yield an event. The event is set when this hold has news, and when news may have been missed."""
        event = asyncio.Event()
        self._news.setdefault(hold, set()).add(event)
        try:
            yield event
        finally:
            self._news[hold].discard(event)
            if not self._news[hold]:
                del self._news[hold]

    def _ring(self, hold: str | None) -> None:
        for events in self._news.values() if hold is None else [self._news.get(hold, set())]:
            for event in events:
                event.set()

    @contextmanager
    def _watching(self, call: HeldCall, news: asyncio.Event) -> Iterator[None]:
        """Set `client_left` and `news` if the client disconnects. In MCP 2026-07-28, `proxy.call` cancels the call."""
        if call.request.modern:
            yield
            return

        async def watch() -> None:
            await call.request.disconnected()
            call.client_left = True
            news.set()

        watcher = spawn("client of a held call", watch())
        try:
            yield
        finally:
            watcher.cancel()

    # The page of the hold, for clients that open URLs

    async def _offers_page(self, call: HeldCall, found: FoundHold) -> bool:
        """Return True if the client can open URLs, and this call created the hold.

        Later calls with the same hold do not offer the page again.
        """
        if not can_answer(call.capabilities, page_request(found, "")):
            return False
        return bool(await self._state.fetch(IS_FIRST, (found.id, call.request.uid)))

    @asynccontextmanager
    async def _page_open(self, call: HeldCall, found: FoundHold, *, offers: bool) -> AsyncIterator[None]:
        """Ask the client to open the page of the hold. After the block, tell the client that the wait is over.

        Do neither if `offers` is False, or if the client has no session or no stream.
        """
        grant, stream = call.request.grant, call.stream
        if not offers or grant is None or grant.session is None or stream is None:
            yield
            return
        asking = InteractiveCall(call.request, grant, call.capabilities, call.request.row.server_name, stream)
        page = page_request(found, self._url(found))
        # The client may keep the page open when the call ends: somebody may decide later.
        offered = spawn("page of a held call", self._requests.ask_client(asking, page, withdraws=False))
        try:
            yield
        finally:
            offered.cancel()
            params = {"elicitationId": found.id}
            await stream.notify({"jsonrpc": "2.0", "method": "notifications/elicitation/complete", "params": params})

    # How long the clients of a connection wait

    def note_answered(self, request: McpRequest, seconds: float) -> None:
        """Set the connection's `hold_wait` to PATIENT if the client waited more than PATIENCE_SHOWN for an answer.

        `seconds` is the time that the client waited. A `hold_wait` that is already set is kept.
        """
        if seconds > PATIENCE_SHOWN:
            self._in_background(LEARN_PATIENCE, PATIENT, request.row.grant.connection_id)

    def _note_limit(self, call: HeldCall) -> None:
        """Record that the client stopped waiting. The next held calls of the connection are then answered earlier."""
        seconds = max(WITHOUT_PROGRESS, int(call.waited * 0.8))
        self._in_background(LEARN_LIMIT, PATIENT, seconds, call.request.row.grant.connection_id)

    def _in_background(self, statement: str, *parameters: object) -> None:
        self._background.spawn("patience of a connection", self._state.fetch(statement, parameters))


def _capabilities(request: McpRequest, message: Message) -> Object:
    """Return the capabilities that the client declared; empty if the client declared none.

    In MCP 2026-07-28, the client declares capabilities in each call. In earlier versions, the client declares
    capabilities for its session.
    """
    session = request.grant.session if request.grant is not None else None
    declared = message.meta.get(versions.CAPABILITIES_KEY) if request.modern else session and session.capabilities
    return declared if isinstance(declared, dict) else {}
