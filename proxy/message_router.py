"""Keep track of the calls that run in sessions at servers, and forward the servers' messages to the clients.

The gateway's session at a server has a standing stream. During a call, the server may send a request for the client on
this stream. One worker reads the stream, and passes each message to the worker that runs the call or has the client's
standing stream. Messages are passed in encrypted rows of the database. The bus, which notifies the workers of these
rows, carries only ids, names, flags and digests.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from proxy import tasks
from proxy.access.decision import AccessRow, AssignedServer
from proxy.access.features import Resolved
from proxy.request import McpRequest
from proxy.response import Stream
from proxy.server_requests import NOT_SUPPORTED, InteractiveCall, ServerRequests, can_answer
from proxy.store.bus import Bus, Owner, PendingRequests
from proxy.store.events import WAITING, StreamEvents
from proxy.store.pg import DatabaseUnavailable
from proxy.store.sessions import SessionKeeper
from proxy.streams import UPDATED, StandingStream, Streams, grants_digest, params_of, update
from wire import jsonrpc, rewriting, versions
from wire.client import McpClient
from wire.jsonrpc import Message, Object
from wire.mcp import Answer, OnNotification, OnRequest, SessionHandle, Target, ignore

if TYPE_CHECKING:
    from proxy.upstream_streams import Audience, OpenServerStream

IDLE_SECONDS = 30.0  # The stream of a session is read for this long after its last call.
INTERESTED_SECONDS = 25.0  # A worker's announced interest in a session's messages is valid for this long.
BIDS_SECONDS = 0.25  # How long to wait for bids: other workers' offers to take a message.
MOST_BIDS_SECONDS = 1.0  # How long to wait for bids if some workers have announced interest.
OFFERED_SECONDS = 30.0
MOST_OFFERED = 256

PROGRESS = "notifications/progress"


@dataclass(eq=False, slots=True)
class SessionCall:
    """A running call in a session at a server; `row` is the id of the session's row in the database."""

    calls: SessionCalls
    grant: AccessRow
    assigned: AssignedServer
    target: Target
    token: int | None
    has_stream: bool
    row: str = ""
    on_notification: OnNotification = ignore
    on_request: OnRequest | None = None

    async def begin(
        self, session: SessionHandle, on_notification: OnNotification, on_request: OnRequest | None
    ) -> None:
        """Register the call. Then wait for the session's stream from the server to open, but only for a short time."""
        self.end()
        if not session.id or not session.row:
            return
        self.row = session.row
        if self.target.session is not session:
            self.target = self.target._replace(session=session)
        self.on_notification, self.on_request = on_notification, on_request
        await self.calls.begin(self)

    def end(self) -> None:
        """Deregister the call."""
        if self.row:
            self.calls.end(self)
            self.row = ""


@dataclass(eq=False, slots=True)
class SessionUse:
    """A session at a server with running or recent calls of this worker; `newest` is the latest call."""

    newest: SessionCall
    calls: list[SessionCall] = field(default_factory=list)
    ended: float = 0.0
    in_doubt: bool = False  # True after access may have been revoked, until the next call in the session.
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    beginning: bool = False


class SessionCalls:
    """Server sessions with running or recent calls of this worker, by row id.

    `listen` opens the stream of a session at the server if possible. It waits for the stream only for a short time.
    """

    def __init__(self, listen: Callable[[str, SessionUse], Awaitable[None]]) -> None:
        self.uses: dict[str, SessionUse] = {}
        self._listen = listen
        self._interested: dict[str, dict[str, float]] = {}

    async def begin(self, call: SessionCall) -> None:
        use = self.uses.get(call.row)
        if use is None:
            use = self.uses[call.row] = SessionUse(call)
        use.calls.append(call)
        use.newest, use.in_doubt = call, False
        if not use.settled.is_set():
            await self._listen(call.row, use)

    def end(self, call: SessionCall) -> None:
        if (use := self.uses.get(call.row)) is not None and call in use.calls:
            use.calls.remove(call)
            use.ended = time.monotonic()

    def of(self, row: str) -> list[SessionCall]:
        """Return the running calls of this worker in this session."""
        use = self.uses.get(row)
        return use.calls if use is not None else []

    def is_beginning(self, row: str) -> bool:
        """Return whether a call in the session `row` waits for the session's stream to open."""
        return (use := self.uses.get(row)) is not None and use.beginning

    def by_token(self, row: str, message: Object) -> SessionCall | None:
        """Return the running call with the progress token of this message, or None."""
        params = message.get("params")
        token = params.get("progressToken") if isinstance(params, dict) else None
        return next((call for call in self.of(row) if call.token is not None and call.token == token), None)

    def doubt(self) -> None:
        """Mark all sessions, because access may have been revoked.

        `drop_idle` forgets a marked session as soon as no call runs in it. A new call removes the mark.
        """
        for use in self.uses.values():
            use.in_doubt = True

    def drop_idle(self) -> None:
        """Forget the sessions that are no longer in use."""
        now = time.monotonic()
        idle = [
            row
            for row, use in self.uses.items()
            if not use.calls and not use.beginning and (use.in_doubt or now - use.ended > IDLE_SECONDS)
        ]
        for row in idle:
            del self.uses[row]
        for row in [*self._interested]:
            if not self.others(row):
                self._interested.pop(row, None)

    def note_interest(self, row: str, worker: str) -> None:
        """Record that another worker wants the messages of this session."""
        self._interested.setdefault(row, {})[worker] = time.monotonic()

    def others(self, row: str) -> set[str]:
        """Return the other workers that recently announced interest in this session."""
        since = time.monotonic() - INTERESTED_SECONDS
        return {worker for worker, at in self._interested.get(row, {}).items() if at > since}


class Heard(NamedTuple):
    """Messages that a server sent in a session.

    The messages are rewritten for the client with the two aliases. Log messages below `level` are dropped.
    """

    row: str
    owner: str
    alias: str
    uri_alias: str  # Empty if URIs are not rewritten.
    level: str
    messages: list[Object]
    is_of_session: bool = True  # True if `owner` is a client's session, False if `owner` is a connection.


class Bid(NamedTuple):
    """A worker's offer to take a session's messages: its number of calls in the session, and which streams it has."""

    calls: int
    has_stream: bool
    has_standing: bool


class Destination(NamedTuple):
    """The worker that gets the messages, and whether they go to the session's only call or to a standing stream."""

    worker: str
    to_call: bool


type Deliver = Callable[[Heard, bool], Awaitable[None]]


class Courier:
    """Hands messages over to the worker that should get them.

    `own` returns the `Bid` of this worker. `deliver` gets the messages that other workers hand over.
    """

    def __init__(
        self,
        name: str,
        bus: Bus,
        pending: PendingRequests,
        calls: SessionCalls,
        own: Callable[[str, str], Bid],
        deliver: Deliver,
    ) -> None:
        self.name = name
        self._bus = bus
        self._pending = pending
        self._calls = calls
        self._own = own
        self._deliver = deliver
        self._bids: dict[str, tuple[dict[str, Bid], asyncio.Event]] = {}
        self._offered: dict[str, Heard] = {}
        bus.on("interest", self._note_interest)
        bus.on("said", self._said)
        bus.on("bid", self._bid)
        bus.on("carry", self._carry)

    async def tell_interest(self, rows: list[str]) -> None:
        """Announce that this worker wants the messages of these sessions. Raises DatabaseUnavailable."""
        for first in range(0, len(rows), 100):
            await self._bus.publish("interest", " ".join([self.name, *rows[first : first + 100]]))

    async def offer(self, heard: Heard, owner: Owner) -> Destination | None:
        """Return the destination of these messages; None if no worker has a stream for them.

        If the destination is another worker, hand the messages over to that worker. If the destination is this worker,
        the caller has to deliver the messages.
        """
        uid, others = str(uuid4()), self._calls.others(heard.row)
        bids: dict[str, Bid] = {}
        news = asyncio.Event()
        self._bids[uid] = bids, news
        try:
            await self._pending.leave(uid, owner, jsonrpc.dumps([*heard[2:]]))
            await self._bus.publish("said", f"{uid} {heard.row} {heard.owner} {self.name}")
            await self._gather(bids, news, others)
            place = choose_destination({self.name: self._own(heard.row, heard.owner), **bids}, self.name)
            if place is not None and place.worker != self.name:
                await self._bus.publish("carry", f"{uid} {place.worker} {int(place.to_call)}")
            await self._pending.drop(uid)
        except DatabaseUnavailable:
            return choose_destination({self.name: self._own(heard.row, heard.owner)}, self.name)
        finally:
            del self._bids[uid]
        return place

    async def _gather(self, bids: dict[str, Bid], news: asyncio.Event, others: set[str]) -> None:
        ends = time.monotonic() + (MOST_BIDS_SECONDS if others else BIDS_SECONDS)
        while not (others and others <= bids.keys()) and (left := ends - time.monotonic()) > 0:
            news.clear()
            try:
                async with asyncio.timeout(left):
                    await news.wait()
            except TimeoutError:
                return

    # Messages of other workers

    def _note_interest(self, told: str | None) -> None:
        worker, *rows = (told or "").split(" ")
        if worker != self.name:
            for row in rows:
                self._calls.note_interest(row, worker)

    async def _said(self, told: str | None) -> None:
        if told is None:
            return
        uid, row, owner, worker = told.split(" ")
        if worker == self.name or not any(own := self._own(row, owner)):
            return
        text = await self._pending.left(uid)
        if text is None:
            return
        heard = Heard(row, owner, *jsonrpc.loads(text))
        for message in heard.messages:
            if message["method"] == PROGRESS and (call := self._calls.by_token(row, message)) is not None:
                await call.on_notification(message)
        self._offered[uid] = heard
        while len(self._offered) > MOST_OFFERED:
            del self._offered[next(iter(self._offered))]
        asyncio.get_running_loop().call_later(OFFERED_SECONDS, self._offered.pop, uid, None)
        await self._bus.publish("bid", " ".join([uid, self.name, *(str(int(each)) for each in own)]))

    def _bid(self, told: str | None) -> None:
        uid, *bid = (told or "").split(" ")
        if uid in self._bids:
            bids, news = self._bids[uid]
            worker, calls, has_stream, has_standing = bid
            bids[worker] = Bid(int(calls), has_stream == "1", has_standing == "1")
            news.set()

    async def _carry(self, told: str | None) -> None:
        uid, _, place = (told or "").partition(" ")
        worker, _, to_call = place.partition(" ")
        if worker == self.name and (heard := self._offered.pop(uid, None)) is not None:
            rest = [message for message in heard.messages if message["method"] != PROGRESS]
            await self._deliver(heard._replace(messages=rest), to_call == "1")


def choose_destination(bids: dict[str, Bid], own: str) -> Destination | None:
    """Return the destination of a message that names no call, or None if there is no destination.

    If exactly one call of the session is running, and this call has a stream, the destination is this call. Otherwise,
    the destination is a standing stream, preferably of this worker (`own`).
    """
    if sum(bid.calls for bid in bids.values()) == 1:
        (worker,) = (worker for worker, bid in bids.items() if bid.calls)
        if bids[worker].has_stream:
            return Destination(worker, to_call=True)
    standing = [worker for worker, bid in bids.items() if bid.has_standing]
    return Destination(own if own in standing else standing[0], to_call=False) if standing else None


# Notifications that a server sends on the stream of a call, rewritten for the client of the call.

# Methods of notifications that are forwarded to clients of the session era with only the URIs rewritten.
PASSED_ON = frozenset({"notifications/resources/updated", "notifications/elicitation/complete"})

LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
ALL_LEVELS = frozenset(LEVELS)
NO_LEVELS: frozenset[str] = frozenset()
FROM_LEVEL = {level: frozenset(LEVELS[number:]) for number, level in enumerate(LEVELS)}


async def relay(
    request: McpRequest,
    resolved: Resolved,
    grant: AccessRow,
    message: Message,
    stream: Stream,
    progress_token: int | None,
    notification: Object,
) -> None:
    """Rewrite and forward a notification that arrived during a call. Drop it if it is not for this client."""
    own, method = notification.get("params"), notification.get("method")
    if not isinstance(own, dict) or not isinstance(method, str):
        return
    own = rewriting.for_client(own, request.task_ids)
    if method == "notifications/progress":
        if progress_token is None or own.get("progressToken") != progress_token:
            return
        own = {**own, "progressToken": message.meta.get("progressToken")}
    elif method == "notifications/message":
        if str(own.get("level")) not in _levels(request, grant, message):
            return
        own = {**own, "logger": under_alias(resolved.assigned.alias, own.get("logger"))}
    elif request.modern or not _is_passed_on(request, method, own):
        return
    elif method == tasks.STATUS and request.mcp_task is not None:
        own = {**own, "taskId": request.mcp_task.client_id}
    else:
        own = rewriting.with_exposed_uris(own, resolved.alias)
    await stream.notify({**notification, "params": own})


def _is_passed_on(request: McpRequest, method: str, params: Object) -> bool:
    """Return whether a client of the session era gets this notification."""
    if method == tasks.STATUS:
        return request.mcp_task is not None and params.get("taskId") == request.mcp_task.own_id
    return method in PASSED_ON


def _level(request: McpRequest, grant: AccessRow, message: Message) -> str:
    """Return the minimum level of log messages for this client; empty if the client set none."""
    if not request.modern:
        return grant.session.log_level if grant.session is not None else ""
    level = message.meta.get(versions.LOG_LEVEL_KEY)
    return level if isinstance(level, str) and level in FROM_LEVEL else ""


def told_level(request: McpRequest, resolved: Resolved, grant: AccessRow, message: Message) -> str:
    """Return the log level to send to the server: the level that the client set, or "" if the client set none.

    For clients of MCP versions with sessions, also return "" if the server cannot log.
    """
    return _level(request, grant, message) if request.modern or resolved.assigned.logs else ""


def _levels(request: McpRequest, grant: AccessRow, message: Message) -> frozenset[str]:
    """Return the levels of the log messages that this client gets.

    If no level is set, a client of MCP 2026-07-28 gets no log messages, and any other client gets all.
    """
    level = _level(request, grant, message)
    return NO_LEVELS if request.modern and not level else told_levels(level)


def told_levels(level: str) -> frozenset[str]:
    """Return this level and all more severe levels; all levels if `level` is empty."""
    return FROM_LEVEL[level] if level else ALL_LEVELS


def under_alias(alias: str, logger: object) -> str:
    """Return the logger name of a message, prefixed with its server's alias."""
    own = logger if isinstance(logger, str) else ""
    return f"{alias}/{own}" if alias and own else alias or own


# Messages that a server sends on the standing stream of a session: for the call concerned, or for the client's stream.

logger = logging.getLogger(__name__)

MOST_WAITING = 256  # Messages of one session that wait for the bids of other workers.
MOST_WAITING_BYTES = 1 << 20  # Total size of these messages.
# Attempts to read waiting messages while the database is unavailable, and the pause between two attempts.
LOOKS, LOOK_AGAIN_SECONDS = 5, 1.0
MOST_HANDED_OVER = 8  # Concurrent server requests of one session that this worker forwards after bids of the workers.

LOGGED = "notifications/message"
COMPLETED = "notifications/elicitation/complete"

NO_STREAM: Object = {
    "error": {
        "code": jsonrpc.INTERNAL_ERROR,
        "message": "The client cannot be asked: it has no open stream here, and either no running call or several",
    }
}


class RouterParts(NamedTuple):
    """The components that carry messages between servers and clients; proxy/app.py makes them."""

    streams: Streams
    keeper: SessionKeeper
    client: McpClient
    bus: Bus
    requests: ServerRequests
    pending: PendingRequests
    events: StreamEvents


class Carrier:
    """Forwards servers' messages to clients, on streams of this worker or through another worker.

    Also forwards messages that another worker has received. `run` starts a background task.
    """

    def __init__(
        self,
        name: str,
        parts: RouterParts,
        calls: SessionCalls,
        run: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._name = name
        self.calls = calls
        self.streams, self._keeper, self._client, self._bus, self._requests, pending, self._events = parts
        self._run = run
        self.courier = Courier(name, self._bus, pending, calls, self._own, self._deliver)
        self.refused: dict[str, frozenset[str]] = {}  # Subscribed URIs that the client may not read, by owner.
        self._handed_over: dict[str, int] = {}  # Requests being forwarded after bids, by session.
        self._bus.on(WAITING, self.give_waiting)

    async def carry(self, held: OpenServerStream, asked: Object, answer: Answer) -> None:
        """Forward a server's request to the client, on a stream of this worker or through another worker.

        Refuse the request if neither is possible, or if the client does not support the request.
        """
        if not can_answer(held.source.target.capabilities, asked):
            self._requests.in_background(answer(NOT_SUPPORTED))
            return
        heard = self._heard(held, [asked])
        if not self.calls.others(held.row):
            if self._own(held.row, heard.owner).calls == 1 and await self._ask_call(heard, asked, answer):
                return
            if await self._ask_standing(heard, held.source.target, asked, answer):
                return
        if not await self._hand_over(held, asked):
            self._requests.in_background(answer(NO_STREAM))

    async def _ask_call(self, heard: Heard, asked: Object, answer: Answer) -> bool:
        """Forward a server's request on the stream of the oldest call of this worker in the session.

        Return False if this worker has no call in the session, or if the oldest call cannot carry the request.
        """
        call = next(iter(self.calls.of(heard.row)), None)
        if call is None or call.on_request is None or not call.has_stream:
            return False
        await call.on_request(asked, answer)
        return True

    async def _ask_standing(self, heard: Heard, upstream: Target, asked: Object, answer: Answer) -> bool:
        newest = next(iter(self.streams.of_owner(heard.owner)), None)
        grant = newest.request.grant if newest is not None else None
        if newest is None or grant is None or grant.session is None:
            return False
        asking = InteractiveCall(newest.request, grant, upstream.capabilities, upstream.server_name, newest)
        await self._requests.carry(asking, asked, answer)
        return True

    async def tell(self, held: OpenServerStream, message: Object) -> None:
        """Forward a server's notification to the client, on a stream of this worker or through another worker.

        A progress notification goes to the call that has its progress token. Other notifications go to the session's
        only call, if the session has exactly one call and this call has a stream. Otherwise, they go to a standing
        stream (see `_deliver`).
        """
        if message["method"] == PROGRESS and (call := self.calls.by_token(held.row, message)) is not None:
            await call.on_notification(message)
            return
        own = self._own(held.row, held.source.audience.owner)
        to_call = own[:2] == (1, True)
        # A call without a stream cannot take the message; the client may have a stream at another worker.
        if self.calls.others(held.row) or not (to_call or own.has_standing):
            self._hand_over(held, message)
        elif message["method"] != PROGRESS:
            await self._deliver(self._heard(held, [message]), to_call)

    def _hand_over(self, held: OpenServerStream, message: Object) -> asyncio.Future[bool]:
        """Queue a server's message. Queued messages are offered to all workers, in the order of the queue.

        Return a future. Its result is True if a worker took the message; False if no worker has a stream, or if the
        queue is full.
        """
        told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        held.waiting_bytes += (size := len(jsonrpc.dumps(message)))
        if len(held.waiting) >= MOST_WAITING or held.waiting_bytes > MOST_WAITING_BYTES:
            held.waiting_bytes -= size
            told.set_result(False)
            return told
        held.waiting.append((message, told))
        if held.handing_over is None or held.handing_over.done():
            held.handing_over = self._run(self._hand_over_all(held))
        return told

    async def _hand_over_all(self, held: OpenServerStream) -> None:
        while held.waiting:
            waiting, held.waiting, held.waiting_bytes = held.waiting, [], 0
            heard = self._heard(held, [message for message, _ in waiting])
            grant = held.source.audience.grant
            place = None
            try:
                session_id = grant.session.id if grant.session is not None else None
                place = await self.courier.offer(heard, Owner(grant.connection_id, session_id))
                if place is not None and place.worker == self._name:
                    rest = [message for message in heard.messages if message["method"] != PROGRESS]
                    await self._deliver(heard._replace(messages=rest), place.to_call)
                elif place is None:
                    rest = [message for message in heard.messages if "id" not in message]
                    await self._deliver(heard._replace(messages=rest), False)
            finally:
                for _, told in waiting:
                    if not told.done():
                        told.set_result(place is not None)

    def _heard(self, held: OpenServerStream, messages: list[Object]) -> Heard:
        audience, assigned, _ = held.source
        use = self.calls.uses.get(held.row)
        grant = audience.grant if use is None else use.newest.grant  # The newest grant has the newest log level.
        level = grant.session.log_level if grant.session is not None else ""
        aliases = assigned.alias, audience.alias(assigned)
        return Heard(held.row, audience.owner, *aliases, level, messages, is_of_session=grant.session is not None)

    def _own(self, row: str, owner: str) -> Bid:
        """Return this worker's bid for the messages of the session `row`, which belongs to the client `owner`."""
        calls = self.calls.of(row)
        return Bid(len(calls), any(call.has_stream for call in calls), bool(self._standing_of_session(owner)))

    def _standing_of_session(self, owner: str) -> list[StandingStream]:
        return [each for each in self.streams.of_owner(owner) if each.is_listening]

    async def _deliver(self, heard: Heard, to_call: bool) -> None:
        """Send a server's messages to the client.

        If `to_call` is True, the messages go to the call that this worker runs in the session. If `to_call` is False,
        the messages go to a standing stream. Updates of resources always go to a standing stream.
        """
        call = next(iter(self.calls.of(heard.row)), None) if to_call else None
        for message in heard.messages:
            if "id" in message:
                self._run(self._ask_for_another(heard, message, to_call=to_call))
            elif call is not None and message["method"] != UPDATED:
                await call.on_notification(message)
            else:
                self._put(heard, message)

    def _put(self, heard: Heard, message: Object) -> None:
        """Rewrite a notification for the client, and send it on the client's standing stream.

        If the client has no standing stream, two kinds of notifications are dropped: updates of resources, and
        notifications to a client without a session. All other notifications are stored for the client's session.
        """
        standing = next(iter(self._standing_of_session(heard.owner)), None)
        params = params_of(message)
        if message["method"] == LOGGED:
            if str(params.get("level")) not in told_levels(heard.level):
                return
            message = {**message, "params": {**params, "logger": under_alias(heard.alias, params.get("logger"))}}
        elif message["method"] == UPDATED:
            uri = rewriting.exposed_uri(heard.uri_alias, str(params.get("uri")))
            if uri in self.refused.get(heard.owner, ()):
                return
            message = update(uri)
        if standing is not None:
            standing.put(message)
        elif message["method"] != UPDATED and heard.is_of_session:
            self._events.keep_waiting(heard.owner, jsonrpc.dumps(message))

    def give_waiting(self, session_id: str | None) -> None:
        """Send the stored messages of this session on its standing stream, if this worker has such a stream.

        If `session_id` is None, do this for all sessions. Must be called when a stream has begun, because the bus
        announces only messages that are stored later.
        """
        streams = self.streams.standing() if session_id is None else self.streams.of_owner(session_id)
        if found := {each.owner: None for each in streams if each.is_listening}:
            self._run(self._give_waiting([*found]))

    async def _give_waiting(self, session_ids: list[str]) -> None:
        for session_id in session_ids:
            for message in await self._waiting(session_id):
                if listening := self._standing_of_session(session_id):
                    listening[0].put(jsonrpc.loads(message))
                else:  # The stream ended while the messages were read.
                    self._events.keep_waiting(session_id, message)

    async def _waiting(self, session_id: str) -> list[bytes]:
        """Return the stored messages of this session, and delete them.

        Returns an empty list if the database stays unavailable.
        """
        for _ in range(LOOKS):
            try:
                return await self._events.take_waiting(session_id)
            except DatabaseUnavailable:
                await asyncio.sleep(LOOK_AGAIN_SECONDS)
        logger.warning("the stored messages of a session cannot be read", extra={"session": session_id})
        return []

    async def _ask_for_another(self, heard: Heard, asked: Object, *, to_call: bool) -> None:
        """Forward a server's request to the client, and the client's answer to the server.

        The request may have been received by another worker.
        """
        call = next(iter(self.calls.of(heard.row)), None) if to_call else None
        upstream = call.target if call is not None else await self._keeper.target_of(heard.row)
        if upstream is None:
            return

        async def answer(outcome: Object) -> None:
            await self._client.post(upstream, {"jsonrpc": "2.0", "id": asked["id"], **outcome})

        if self._handed_over.get(heard.row, 0) >= MOST_HANDED_OVER:
            await answer(NO_STREAM)
            return
        self._handed_over[heard.row] = self._handed_over.get(heard.row, 0) + 1
        try:
            if to_call and await self._ask_call(heard, asked, answer):
                return
            if not await self._ask_standing(heard, upstream, asked, answer):
                await answer(NO_STREAM)
        finally:
            self._handed_over[heard.row] -= 1
            if not self._handed_over[heard.row]:
                del self._handed_over[heard.row]

    async def updated(self, held: OpenServerStream, message: Object, uri: str) -> None:
        audience = held.source.audience
        if audience.grant.session is None or self._standing_of_session(audience.owner):
            await self.tell_updated_of(audience, uri)
        elif self.calls.others(held.row):
            self._hand_over(held, message)

    async def tell_updated_of(self, audience: Audience, uri: str) -> None:
        if uri in audience.refused:
            return
        if audience.grant.session is None:
            # The update is published, because other workers may also have streams of this connection.
            await self._bus.publish("resource", f"{audience.owner} {grants_digest(uri)}")
        elif streams := self._standing_of_session(audience.owner):
            # MCP: each message is sent on only one stream of a session.
            streams[0].put(update(uri))
