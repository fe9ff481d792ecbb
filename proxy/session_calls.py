"""Running calls in sessions at servers, and the messages those servers send for them on the standing stream.

A server of the session era may send a request for a call on the session's standing stream: its SDK does so when the
author names no related request. So that stream is read from before the first call in a session until IDLE_SECONDS after
the last one. One worker reads it, and passes messages to the worker that has the call or the client's standing stream,
in a sealed row. The bus carries ids only.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import uuid4

from proxy.access.decision import AccessRow, AssignedServer
from proxy.store.bus import Bus, Owner, PendingRequests
from proxy.store.pg import DatabaseUnavailable
from wire import jsonrpc
from wire.jsonrpc import Object
from wire.mcp import OnNotification, OnRequest, SessionHandle, Target, ignore

IDLE_SECONDS = 30.0  # The stream of a session is read for this long after its last call.
INTERESTED_SECONDS = 25.0  # How long another worker's interest in a session is valid.
BIDS_SECONDS = 0.25  # How long to wait for the bids of workers,
MOST_BIDS_SECONDS = 1.0  # and for those of workers known to be interested.
OFFERED_SECONDS = 30.0
MOST_OFFERED = 256

PROGRESS = "notifications/progress"


@dataclass(eq=False, slots=True)
class SessionCall:
    """A running call; `row` is the session at the server in which it was sent."""

    calls: "SessionCalls"
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
        """Return when the call may be sent in this session: once the server's stream is open, if it has one."""
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
    """A session at a server with running or recent calls of this worker; `newest` is the last of them."""

    newest: SessionCall
    calls: list[SessionCall] = field(default_factory=list)
    ended: float = 0.0
    in_doubt: bool = False  # Whether access was cut since.
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    beginning: bool = False


class SessionCalls:
    """The sessions at servers that calls of this worker use, by row."""

    def __init__(self) -> None:
        self.uses: dict[str, SessionUse] = {}
        self.listen: Callable[[str, SessionUse], Awaitable[None]] | None = None
        self._interested: dict[str, dict[str, float]] = {}

    async def begin(self, call: SessionCall) -> None:
        use = self.uses.get(call.row)
        if use is None:
            use = self.uses[call.row] = SessionUse(call)
        use.calls.append(call)
        use.newest, use.in_doubt = call, False
        if not use.settled.is_set() and self.listen is not None:
            await self.listen(call.row, use)

    def end(self, call: SessionCall) -> None:
        if (use := self.uses.get(call.row)) is not None and call in use.calls:
            use.calls.remove(call)
            use.ended = time.monotonic()

    def of(self, row: str) -> list[SessionCall]:
        """Return the running calls of this worker in this session."""
        use = self.uses.get(row)
        return use.calls if use is not None else []

    def is_beginning(self, row: str) -> bool:
        """Return whether a call in this session waits for the server's stream to open."""
        return (use := self.uses.get(row)) is not None and use.beginning

    def by_token(self, row: str, message: Object) -> SessionCall | None:
        """Return the call with the progress token of this message."""
        params = message.get("params")
        token = params.get("progressToken") if isinstance(params, dict) else None
        return next((call for call in self.of(row) if call.token is not None and call.token == token), None)

    def doubt(self) -> None:
        """After access was cut: treat each session as unused until its next call."""
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
        """Note that another worker wants the messages of this session."""
        self._interested.setdefault(row, {})[worker] = time.monotonic()

    def others(self, row: str) -> set[str]:
        """Return the workers that recently noted interest in this session."""
        since = time.monotonic() - INTERESTED_SECONDS
        return {worker for worker, at in self._interested.get(row, {}).items() if at > since}


class Heard(NamedTuple):
    """Messages a server sent in a session, plus the aliases and log level needed to rewrite them for the client."""

    row: str
    owner: str
    alias: str
    uri_alias: str  # Empty if URIs are not rewritten.
    level: str
    messages: list[Object]
    is_of_session: bool = True  # True for a client's session, False for a connection.


class Bid(NamedTuple):
    """A worker's calls in a session, and whether it has a call's stream or a standing stream for it."""

    calls: int
    has_stream: bool
    has_standing: bool


class Destination(NamedTuple):
    """The destination of a message: a worker's only call, or its standing stream."""

    worker: str
    to_call: bool


type Deliver = Callable[[Heard, bool], Awaitable[None]]


class Courier:
    """Finds the worker that should get messages received here, and hands them over.

    `own` returns this worker's bid; `deliver` forwards messages received elsewhere to the only call or a standing
    stream.
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
        """Choose the destination, and hand over if it is another worker; None if no worker has a stream for it."""
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
    """Choose the only call of all workers, if it has a stream; otherwise a standing stream, preferably our own."""
    if sum(bid.calls for bid in bids.values()) == 1:
        (worker,) = (worker for worker, bid in bids.items() if bid.calls)
        if bids[worker].has_stream:
            return Destination(worker, to_call=True)
    standing = [worker for worker, bid in bids.items() if bid.has_standing]
    return Destination(own if own in standing else standing[0], to_call=False) if standing else None
