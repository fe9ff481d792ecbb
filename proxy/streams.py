"""The calls in progress and the standing streams (long-lived event streams) of this worker.

The gateway checks every 10 seconds, and at once after any revocation, whether each call and stream is still allowed. It
ends the calls and streams that are not allowed any more.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from proxy import metrics, response
from proxy.access.decision import DENIALS, AccessQuery, AccessRow, Denied, ServersNeeded, Wanted, decide, find_again
from proxy.access.features import refusal_now
from proxy.request import McpRequest
from proxy.response import is_primed
from proxy.store.bus import Bus, Statements
from proxy.store.events import CALL, MOST_BYTES, EventId, Kept, StreamEvents, StreamHistory
from proxy.store.pg import DatabaseUnavailable, StatementRejected
from proxy.store.sessions import SessionKeeper
from wire import jsonrpc, sse
from wire.background import Background, spawn
from wire.errors import UpstreamError
from wire.jsonrpc import Object

if TYPE_CHECKING:
    from proxy.upstream_streams import ServerStreams

logger = logging.getLogger(__name__)

RECHECK_SECONDS = 10.0
RECHECK_PAUSE = 0.1  # Least time between two full re-checks.
DECIDED_AT_ONCE = 100  # Calls and streams re-checked by one statement: larger statements would delay other calls.
LISTS_SECONDS = 1.0  # How long list changes made in the gateway are collected before clients are notified once.
SAID_SECONDS = 0.25  # How long list changes that servers report are collected before clients are notified once.
BEGIN_SECONDS = 0.5  # How long a `subscriptions/listen` waits for servers' streams before it is acknowledged.
MOST_PENDING = 1000  # Messages that may wait until the client reads them.
MOST_PENDING_BYTES = 4 * MOST_BYTES  # Total size of these messages; a single message may be larger.
END_SECONDS = 1.0  # How long a client may take to read the end of its stream.

# Notifications of changed lists, by list.
LIST_CHANGED = {
    "tools": "notifications/tools/list_changed",
    "prompts": "notifications/prompts/list_changed",
    "resources": "notifications/resources/list_changed",
}

# In `initialize` and `server/discover`, the gateway promises to report changes of these lists.
LISTS = ("tools", "prompts", "resources")
LISTS_ARE_TOLD: Object = {"listChanged": True}

UPDATED = "notifications/resources/updated"

# The names of the lists in `subscriptions/listen`, and the first notification on its stream.
LISTEN_KINDS = {"tools": "toolsListChanged", "prompts": "promptsListChanged", "resources": "resourcesListChanged"}
ACKNOWLEDGED = "notifications/subscriptions/acknowledged"

SUBSCRIPTION_KEY = "io.modelcontextprotocol/subscriptionId"

CANCELLATIONS = """
SELECT key, extract(epoch FROM at)::float8 FROM proxy_cancellation WHERE at > now() - interval '1 minute'
"""
CANCEL = """
WITH gone AS (
    DELETE FROM proxy_cancellation WHERE key IN (
        SELECT key FROM proxy_cancellation WHERE at < now() - interval '5 minutes' LIMIT 100 FOR UPDATE SKIP LOCKED
    )
)
INSERT INTO proxy_cancellation (key, at) VALUES (%(key)s, now()) ON CONFLICT (key) DO UPDATE SET at = excluded.at
"""

# The query for a standing stream includes its servers, because the gateway subscribes to them.
INTRODUCED = Wanted(ServersNeeded.INTRODUCED)

type Feed = Callable[[StandingStream], Coroutine[None, None, None]]


class StopReason(NamedTuple):
    """The reason to end a call or stream early. If no field is set, the call or stream was cancelled."""

    denied: Denied | None = None  # Set if the whole request is now denied.
    refusal: UpstreamError | None = None  # Set if the server or feature is now refused.


CANCELLED = StopReason()


class StandingStream:
    """A long-lived event stream: a GET of a session, or `subscriptions/listen`.

    The stream sends the messages given to `put`, and pings.
    """

    def __init__(
        self,
        request: McpRequest,
        grant: AccessRow,
        *,
        subscription: jsonrpc.Id | None = None,
        lists: Iterable[str] = LISTS,
        uris: Iterable[str] = (),
        history: StreamHistory | None = None,
        feed: Feed | None = None,
        repeats: bool = False,
    ) -> None:
        self.request = request
        self.history = history  # With a history, events have ids.
        self.feed = feed  # Adds further messages.
        # True if the client only resumes the stream of a call: it gets the events of that stream and no others.
        self.repeats = repeats
        self.beginning = b""
        self.owner = grant.owner_id
        self.gateway_id = grant.gateway_id
        self.subscription = subscription  # The request id that every message of a `subscriptions/listen` carries.
        # The lists and resources whose changes the stream reports.
        self.lists = frozenset(lists)
        self.uris = frozenset(uris)
        self.sent = 0
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0
        self._woken = asyncio.Event()
        self._over = False
        self._left = False
        self.heard = asyncio.Event()  # Set when the servers' streams are open.
        self._task: asyncio.Task[object] | None = None

    def acknowledge(self) -> None:
        """Send the first message, which lists the notifications that this subscription will get."""
        told: Object = {LISTEN_KINDS[kind]: True for kind in LISTS if kind in self.lists}
        if self.uris:
            told["resourceSubscriptions"] = sorted(self.uris)
        self.put({"jsonrpc": "2.0", "method": ACKNOWLEDGED, "params": {"notifications": told}}, first=True)

    @property
    def is_over(self) -> bool:
        """True if the stream has ended."""
        return self._over

    @property
    def is_listening(self) -> bool:
        """True if the stream is open and answers a GET of a session. Messages of servers may be sent on it."""
        return self.subscription is None and not self._over

    async def notify(self, message: Object) -> None:
        """Queue a message (async alias of `put`, for the ClientStream protocol)."""
        self.put(message)

    def put(self, message: Object, *, first: bool = False) -> None:
        """Queue this message, before all others if `first` is True. If the client reads too slowly, end the stream."""
        if self._over:
            return
        if self.subscription is not None:
            params = message.get("params", {})
            meta = {**params.get("_meta", {}), SUBSCRIPTION_KEY: self.subscription}
            message = {**message, "params": {**params, "_meta": meta}}
        text = jsonrpc.dumps(message)
        data = sse.event(text) if self.history is None else self.history.add(text)
        if first:
            self._pending.appendleft(data)
            self._pending_bytes += len(data)
        else:
            self.put_event(data)

    def put_event(self, data: bytes) -> None:
        """Queue an encoded event."""
        if self._over:
            return
        self._pending.append(data)
        self._pending_bytes += len(data)
        self._woken.set()
        is_behind = self._pending_bytes > MOST_PENDING_BYTES and len(self._pending) > 1
        if is_behind or len(self._pending) > MOST_PENDING:
            self.end(b"")

    def end(self, last: bytes) -> None:
        """Send the message `last` unless it is empty, then end. The client has END_SECONDS to read the rest."""
        if self._over:
            return
        self._over = True
        if last:
            self._pending.append(event := sse.event(last))
            self._pending_bytes += len(event)
        self._woken.set()
        if self._task is not None:
            asyncio.get_running_loop().call_later(END_SECONDS, self._task.cancel)

    async def serve(self, ping_seconds: float) -> None:
        """Serve the stream until it ends."""
        self._task = spawn("standing stream", self._write_all(ping_seconds))
        beside = [spawn("client of a standing stream", self._watch())]
        if self.feed is not None:
            beside.append(spawn("feed of a standing stream", self.feed(self)))
        try:
            await asyncio.wait({self._task})
        finally:
            for task in beside:
                task.cancel()
            self._task.cancel()
            if self.history is not None:
                self.history.leave()
                self.history.end()
        if not self._task.cancelled():  # Cancelled if the client did not read the end of its stream.
            self._task.result()

    async def _write_all(self, ping_seconds: float) -> None:
        request = self.request
        headers = [
            *response.STREAM_HEADERS,
            (b"x-request-id", request.uid.encode()),
            *response.cors_headers(request.origin),
        ]
        await request.send({"type": "http.response.start", "status": 200, "headers": headers})
        if self.beginning:
            await self._write(self.beginning)
        elif not self._pending:
            await self._write(sse.PING)
        while not self._left:
            over = self._over
            while self._pending:
                data = self._pending.popleft()
                self._pending_bytes -= len(data)
                await self._write(data)
            if over:
                break
            timer = asyncio.get_running_loop().call_later(ping_seconds, self._woken.set)
            try:
                await self._woken.wait()
            finally:
                timer.cancel()
            self._woken.clear()
            if not (self._pending or self._over):
                await self._write(sse.PING)
        if not self._left:
            await request.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, data: bytes) -> None:
        self.sent += len(data)
        await self.request.send({"type": "http.response.body", "body": data, "more_body": True})

    async def _watch(self) -> None:
        await self.request.disconnected()
        self._left = self._over = True
        self._woken.set()


class Streams:
    """The calls and standing streams of one worker."""

    def __init__(self, bus: Bus, statements: Statements, public_url: str) -> None:
        self._bus = bus
        self._statements = statements
        self._public_url = public_url
        # Calls and streams by id. The code that serves a call adds it, with its task, and removes it at the end.
        self.calls: dict[str, McpRequest] = {}
        self.before_stop: list[Callable[[], None]] = []  # Called when this process begins to stop.
        self._standing: dict[str, StandingStream] = {}
        self._due: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._cut = asyncio.Event()
        self._left: list[tuple[int, int]] = []  # The parts that remain to be checked in this round.
        self._background = Background(DatabaseUnavailable, StatementRejected)
        self.changed = asyncio.Event()  # Set when there is news about standing streams.
        self._changed: set[str] = set()
        self._granted: dict[AccessQuery, AccessRow] = {}
        _open.append(self)
        bus.on("cut", self._access_was_cut)
        bus.on("ended", self._session_ended)
        bus.on("lost", self._session_lost)
        bus.on("lists", self._lists_changed)
        bus.on("cancel", self._cancel_told)

    def start(self) -> None:
        self._background.forever("open streams", self._check, self._wait_for_check, guards_access=True)

    async def stop(self) -> None:
        """Stop checking the access of calls and streams, and cancel delayed notifications about lists."""
        _open.remove(self)
        for timer in self._due.values():
            timer.cancel()
        await self._background.stop()

    # Running calls and standing streams

    async def serve(self, standing: StandingStream, ping_seconds: float) -> StopReason | None:
        """Serve this stream until it ends. Return the reason if the gateway ended it early, otherwise None."""
        request = standing.request
        self.calls[request.uid] = request
        self._standing[request.uid] = standing
        metrics.open_counts["streams"] += 1
        self.note(standing.owner)
        try:
            if standing.subscription is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(BEGIN_SECONDS):
                        await standing.heard.wait()
                standing.acknowledge()
            await standing.serve(ping_seconds)
        finally:
            metrics.open_counts["streams"] -= 1
            del self._standing[request.uid], self.calls[request.uid]
            self.note(standing.owner)
        ending: StopReason | None = request.ending
        return ending

    def note(self, owner: str) -> None:
        """Mark `owner` as changed, so that the next call of `news` returns this owner.

        The caller of `news` then checks again which streams of servers the owner needs.
        """
        self._changed.add(owner)
        self.changed.set()

    def news(self) -> tuple[set[str], dict[AccessQuery, AccessRow]]:
        """Return the changes since this method was last called.

        The changes are the owners that `note` marked, and the grants that were re-read for standing streams.
        """
        self.changed.clear()
        news = self._changed, self._granted
        self._changed, self._granted = set(), {}
        return news

    def of_owner(self, owner: str) -> list[StandingStream]:
        """Return the standing streams of `owner`, newest first.

        The owner is a client's session, or the connection of a client without a session.
        """
        return [standing for standing in reversed(self.standing()) if standing.owner == owner]

    def sessions(self) -> set[str]:
        """Return the sessions with running calls or streams in this worker."""
        grants = (request.grant for request in self.calls.values())
        return {grant.session.id for grant in grants if grant is not None and grant.session is not None}

    def standing(self) -> list[StandingStream]:
        """Return the standing streams of this worker that get server notifications."""
        return [standing for standing in self._standing.values() if not standing.repeats]

    def end_standing(self) -> None:
        """End all standing streams because this process stops; clients reconnect to another process."""
        for tell in self.before_stop:
            tell()
        for standing in self._standing.values():
            standing.end(_result(standing))

    # Re-checking access

    def _access_was_cut(self, _: str | None) -> None:
        self._cut.set()

    def _session_ended(self, session_id: str | None) -> None:
        """End the calls and streams of this session."""
        if session_id is None:
            return  # Messages may have been missed: then everything is re-checked anyway.
        for request in [*self.calls.values()]:
            session = request.grant.session if request.grant is not None else None
            if session is not None and session.id == session_id:
                self._end(request, CANCELLED)

    def _session_lost(self, session_id: str | None) -> None:
        """End the standing streams of a client's session that has lost its session at a server.

        The calls of the client's session continue, because they may be running at other servers.
        """
        for standing in [*self._standing.values()]:
            if session_id is not None and standing.owner == session_id:
                self._end(standing.request, CANCELLED)

    async def _wait_for_check(self) -> None:
        """Wait until the next batch of calls and streams is due for a check, or until access was revoked."""
        self._left = self._left or self._parts()
        with suppress(TimeoutError):
            async with asyncio.timeout(RECHECK_SECONDS / self._left[0][1]):
                await self._cut.wait()

    async def _check(self) -> None:
        """Re-check access for the next batch of calls and streams.

        After a revocation or a failed check, re-check access for all calls and streams.
        """
        is_about_all = self._cut.is_set() or not self._left
        self._cut.clear()
        try:
            for part, parts in self._parts() if is_about_all else [self._left.pop(0)]:
                await self._decide_anew(part, parts)
        except BaseException:
            self._cut.set()  # The next round checks everything.
            raise
        if is_about_all:
            self._left = []
            await asyncio.sleep(RECHECK_PAUSE)

    def _parts(self) -> list[tuple[int, int]]:
        parts = max(1, -(-len(self.calls) // DECIDED_AT_ONCE))
        return [(part, parts) for part in range(parts)]

    async def recheck(self, request: McpRequest) -> AccessRow | None:
        """Re-check a call that has waited. Return its current grant; None if the call may not continue.

        If None, the reason is in `request.ending`. Raises DatabaseUnavailable.
        """
        if request.query is None:
            return request.grant
        try:
            (grant,) = await find_again(self._bus.query, [request.query])
        except StatementRejected as error:
            raise DatabaseUnavailable(str(error)) from None
        if isinstance(grant, DatabaseUnavailable):
            raise grant
        ending = request.ending or self._verdict(request, grant)
        if ending is not None:
            request.ending = ending
            return None
        return grant

    async def _decide_anew(self, part: int, parts: int) -> None:
        """Re-check access for one group of the calls and streams.

        All calls and streams are divided into `parts` groups. The group has the number `part`; numbers begin at 0.
        """
        requests = [
            request
            for request in self.calls.values()
            if request.query is not None and request.grant is not None and hash(request.grant.owner_id) % parts == part
        ]
        if not requests:
            return
        grants = await find_again(self._bus.query, [self._query(request) for request in requests])
        failures = []
        for request, grant in zip(requests, grants, strict=True):
            try:
                self._apply(request, grant)
            except Exception as error:  # noqa: BLE001 - raised after all requests have been checked
                self._end(request, CANCELLED)  # A call or stream must not continue unchecked.
                failures.append(error)
        if self._granted:
            self.changed.set()
        if failures:
            raise failures[0]

    def _apply(self, request: McpRequest, grant: AccessRow | DatabaseUnavailable | None) -> None:
        """End this call or stream if it lost access. Otherwise, for a standing stream, note the new grant.

        Does nothing if `grant` is a DatabaseUnavailable.
        """
        if isinstance(grant, DatabaseUnavailable) or request.uid not in self.calls:
            return
        if (ending := self._verdict(request, grant)) is not None:
            self._end(request, ending)
        elif request.uid in self._standing and request.query is not None and grant is not None:
            self._granted[request.query] = grant

    def _query(self, request: McpRequest) -> AccessQuery:
        assert request.query is not None, "running calls have been authorized"
        return request.query._replace(wanted=INTRODUCED) if request.uid in self._standing else request.query

    def _verdict(self, request: McpRequest, grant: AccessRow | None) -> StopReason | None:
        if grant is None:
            return StopReason(denied=DENIALS["unknown"])
        is_standing = request.uid in self._standing
        if grant.by_oauth and not is_standing:
            # Apps get a new token at least once an hour; a call that began with the previous one continues.
            grant = grant._replace(token_expired=False)
        if (denied := decide(grant, request.parsed_headers.client_ip)) is not None:
            return StopReason(denied=denied)
        if request.grant is not None and grant.owner_id != request.grant.owner_id:
            return CANCELLED  # The session of the call or stream has ended.
        if is_standing and grant.session is not None and grant.session.is_lost:
            return CANCELLED  # The session is lost: the client should reconnect, which is answered with 404.
        refusal = None if is_standing else refusal_now(grant, request.feature)
        return None if refusal is None else StopReason(refusal=refusal)

    def _end(self, request: McpRequest, ending: StopReason) -> None:
        if request.ending is not None:
            return
        request.ending = ending
        standing = self._standing.get(request.uid)
        if standing is not None:
            standing.end(_last_message(standing, ending, self._public_url))
        else:
            assert request.task is not None, "a call has its task before it runs"
            request.task.cancel()

    # Cancelling

    async def cancel(self, owner: str, request_id: object) -> None:
        """Cancel the call of `owner` that has this request id, in whichever worker the call runs.

        `owner` is the client's session, or the connection of a client without a session. If several calls of `owner`
        in a worker have the id, the worker cancels none of them.
        """
        if type(request_id) is not int and not isinstance(request_id, str):
            return
        key = _cancel_key(owner, request_id)
        if self._cancel_here(key) is None:
            with suppress(DatabaseUnavailable):
                await self._statements.fetch(CANCEL, {"key": key})
                await self._bus.publish("cancel", key)

    def _cancel_here(self, key: str, before: float | None = None) -> McpRequest | None:
        found = [request for request in self.calls.values() if _is_cancelled_by(request, key)]
        if before is not None:
            found = [request for request in found if request.arrived < before]
        if len(found) != 1:  # Clients without sessions may use the same request ids.
            return None
        self._end(found[0], CANCELLED)
        return found[0]

    async def _cancel_told(self, key: str | None) -> None:
        if key is not None:
            self._cancel_here(key)
            return
        if not self.calls:
            return
        for missed, at in await self._statements.fetch(CANCELLATIONS):
            self._cancel_here(missed, before=at)

    # Notifications

    def _lists_changed(self, changed: str | None) -> None:
        """Schedule notifications about changed lists.

        `changed` is `GATEWAY_ID [LIST [said]]`; `said` means that a server reported the change. If LIST is missing, all
        lists of the gateway have changed. If `changed` is None, all lists of all gateways may have changed.
        """
        gateway_id, *more = (changed or "").split(" ")
        kinds = [more[0]] if more else LISTS
        seconds = SAID_SECONDS if "said" in more else LISTS_SECONDS
        told = {standing.gateway_id for standing in self._standing.values()}
        for each in told if changed is None else told & {gateway_id}:
            for kind in kinds:
                if (each, kind) not in self._due:
                    loop = asyncio.get_running_loop()
                    self._due[each, kind] = loop.call_later(seconds, self._tell_list, each, kind)

    def _tell_list(self, gateway_id: str, kind: str) -> None:
        del self._due[gateway_id, kind]
        told: set[str] = set()
        for standing in reversed(self.standing()):
            if standing.gateway_id != gateway_id:
                continue
            if standing.subscription is None:
                # MCP: each message is sent on only one stream of a session.
                if standing.owner in told:
                    continue
                told.add(standing.owner)
            if kind in standing.lists:
                standing.put({"jsonrpc": "2.0", "method": LIST_CHANGED[kind]})


def honoured(asked: object) -> tuple[list[str], list[str]]:
    """Return the lists and the resource URIs that a `subscriptions/listen` asks for. Invalid entries are ignored."""
    if not isinstance(asked, dict):
        return [], []
    named = asked.get("resourceSubscriptions")
    uris = [uri for uri in named if isinstance(uri, str)] if isinstance(named, list) else []
    return [kind for kind in LISTS if asked.get(LISTEN_KINDS[kind]) is True], [*dict.fromkeys(uris)]


_open: list[Streams] = []


def end_standing() -> None:
    """End the standing streams of this process. Must be called in the event loop."""
    for streams in _open:
        streams.end_standing()


def _last_message(standing: StandingStream, ending: StopReason, public_url: str) -> bytes:
    """Return the last message: the result of `subscriptions/listen`, the error of a GET that is now denied, or b""."""
    if standing.subscription is not None:
        return _result(standing)
    if ending.denied is None:
        return b""
    return ending.denied.error(public_url, None)


def _result(standing: StandingStream) -> bytes:
    if standing.subscription is None:
        return b""
    result: Object = {"resultType": "complete", "_meta": {SUBSCRIPTION_KEY: standing.subscription}}
    return jsonrpc.result(standing.subscription, result)


def _cancel_key(owner: str, request_id: int | str) -> str:
    spelled = f"{owner} {type(request_id).__name__} {request_id}"
    return hashlib.sha256(spelled.encode(errors="surrogatepass")).hexdigest()


def _is_cancelled_by(request: McpRequest, key: str) -> bool:
    message, grant = request.message, request.grant
    if request.modern or message is None or message.id is None or grant is None or message.method == "initialize":
        return False
    return _cancel_key(grant.owner_id, message.id) == key


def params_of(message: Object) -> Object:
    params = message.get("params")
    return params if isinstance(params, dict) else {}


def grants_digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]


def update(uri: str) -> Object:
    return {"jsonrpc": "2.0", "method": UPDATED, "params": {"uri": uri}}


# Resume standing streams and streams of calls for clients that reconnect with `Last-Event-ID`.

ALIVE_SECONDS = 3.0  # If no worker answers within this time, the call is considered lost.
LISTENING_SECONDS = 2.0  # How long to wait for the servers' streams before reporting possible changes.
HANDED_OVER_SECONDS = 1.0  # How long to wait until the previous worker of a standing stream has written the events.

CALL_LOST = "The call was lost; its outcome is unknown."

# The standing streams of this worker that resume a call's stream, by session and stream id.
type Repeats = dict[tuple[str, str], StandingStream]


class Resumption:
    """Opens the standing streams of sessions: new streams, and streams that resume an earlier stream."""

    def __init__(self, events: StreamEvents, keeper: SessionKeeper, server_streams: ServerStreams) -> None:
        self.events = events
        self.server_streams = server_streams
        self._keeper = keeper
        self._repeats: Repeats = {}

    async def standing(self, request: McpRequest, grant: AccessRow) -> StandingStream:
        """Return the stream that answers this GET of a session. Raises DatabaseUnavailable."""
        assert grant.session is not None, "refused before"
        name = EventId.read(request.header(b"last-event-id")) if b"last-event-id" in request.headers else None
        if name is not None and name.kind == CALL:
            return StandingStream(
                request, grant, lists=(), feed=_Repeat(self.events, name, self._repeats).feed, repeats=True
            )
        missed = await self._take(grant.session.id, name) if name is not None else []
        subscribed = (await self._keeper.subscriptions([grant.session.id])).get(grant.session.id, [])
        standing = self._begun(request, grant, name, missed)
        lists = LIST_CHANGED.values() if name is not None else ()
        standing.feed = partial(self._begin_to_tell, lists=lists, subscribed=subscribed)
        return standing

    def _begun(
        self, request: McpRequest, grant: AccessRow, name: EventId | None, missed: Sequence[Kept]
    ) -> StandingStream:
        session = grant.session
        assert session is not None
        if name is None:
            history = self.events.begin_standing(session.id)
        else:
            last = max([name.number, *(event.number for event in missed)])
            history = self.events.begin(session.id, name._replace(number=last))
        standing = StandingStream(request, grant, history=history)

        def taken() -> None:
            history.end()
            standing.end(b"")

        history.taken = taken
        if is_primed(session.version) and name is None:
            standing.beginning = history.beginning()
        for event in missed:
            if event.data:
                standing.put_event(sse.event(event.data, history.event_id(event.number)))
        return standing

    async def _take(self, session_id: str, name: EventId) -> list[Kept]:
        """Take over a stream from another worker: end it there, and return the events after `name`.

        Raises DatabaseUnavailable.
        """
        news = self.events.listen(name.stream)
        try:
            missed = await self.events.read(session_id, name)
            if not _is_over(missed):
                await self.events.want(session_id, name)
                with suppress(TimeoutError):
                    async with asyncio.timeout(HANDED_OVER_SECONDS):
                        while not _is_over(missed):
                            await news.wait()
                            news.clear()
                            missed = await self.events.read(session_id, name)
            await self.events.take(session_id, name)
        finally:
            self.events.forget(name.stream, news)
        return missed

    async def _begin_to_tell(
        self, standing: StandingStream, *, lists: Iterable[str], subscribed: Sequence[str]
    ) -> None:
        """Send the stored messages, the notifications named in `lists`, and an update of each resource in `subscribed`.

        Resources to which the client may no longer subscribe are left out; all are if the database is unavailable.
        """
        self.server_streams.give_waiting(standing.owner)
        # Changes of lists and resources may have been missed.
        for method in lists:
            standing.put({"jsonrpc": "2.0", "method": method})
        if not subscribed:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(LISTENING_SECONDS):
                await standing.heard.wait()
        with suppress(DatabaseUnavailable):
            for uri in await self.server_streams.honoured(standing.request, subscribed):
                standing.put({"jsonrpc": "2.0", "method": UPDATED, "params": {"uri": uri}})


class _Repeat:
    """Sends the events of a call's stream again, from the first event after `name`.

    If the client requests the stream once more, this repeat ends.
    """

    def __init__(self, events: StreamEvents, name: EventId, repeats: Repeats) -> None:
        self._events = events
        self._name = name
        self._repeats = repeats

    async def feed(self, standing: StandingStream) -> None:
        """Send the events on `standing`, and end it after the last event."""
        key = standing.owner, self._name.stream
        if (earlier := self._repeats.get(key)) is not None:
            earlier.end(b"")
        self._repeats[key] = standing
        news = self._events.listen(self._name.stream)
        try:
            await self._follow(standing, news)
        except DatabaseUnavailable:
            standing.end(b"")  # The client reconnects with the id of the last event it received.
        finally:
            self._events.forget(self._name.stream, news)
            if self._repeats.get(key) is standing:
                del self._repeats[key]

    async def _follow(self, standing: StandingStream, news: asyncio.Event) -> None:
        session_id, name = standing.owner, self._name
        is_alive = False
        while True:
            news.clear()
            for event in await self._events.read(session_id, name):
                name = name._replace(number=event.number)
                if event.data:
                    standing.put_event(sse.event(event.data, name.text()))
                if event.is_last:
                    standing.end(b"")
                    return
            if not is_alive:
                await self._events.want(session_id, name)
            try:
                async with asyncio.timeout(ALIVE_SECONDS):
                    await news.wait()
                is_alive = True
            except TimeoutError:
                if not is_alive:
                    self._lose(standing)
                    return
                is_alive = False  # Ask once more whether a worker still has the stream.

    def _lose(self, standing: StandingStream) -> None:
        """End `standing`, because no worker has the call's stream. If the request id is known, report `call_lost`."""
        if self._name.request_id is None:
            standing.end(b"")
            return
        data = {"reason": "call_lost"}
        standing.end(jsonrpc.error(self._name.request_id, jsonrpc.INTERNAL_ERROR, CALL_LOST, data))


def _is_over(missed: Sequence[Kept]) -> bool:
    return any(event.is_last for event in missed)
