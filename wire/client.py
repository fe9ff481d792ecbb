"""The MCP client: one request to one server, within its bound and its time, in the era it speaks."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

from wire import jsonrpc, stateless
from wire.errors import BadAnswer, Busy, NotRecordable, TimedOut, TooLarge, TooManyTools
from wire.http1 import more_than
from wire.jsonrpc import Object
from wire.pool import Transport
from wire.rpc_messages import (
    MODERN,
    SESSION,
    Answer,
    OnNotification,
    OnRequest,
    RpcResponse,
    ServerInfo,
    Target,
    WrongEra,
    ignore,
)
from wire.sessions import SessionsInMemory, SessionStore, SessionWire
from wire.tool_names import usable_tools

SWEEP_SECONDS = 60
RETRY_SECONDS = 2  # What a caller that found a server busy is asked to wait.

# What one server's list of tools may hold.
MOST_PAGES = 100
MOST_BYTES = 10 << 20
MOST_TOOLS = 5_000

MOST_WAITING = 1024  # At one server.
MOST_WAITING_OF_ONE = 128  # Of one person, at one server.

type LearnEra = Callable[[str, str, str], None]
type Introduced = Callable[[Target, ServerInfo], None]
type Turn = asyncio.Future[None]


class ToolList(NamedTuple):
    """The usable tools of one server as it sent them; `annotated` when some repeat arguments in headers."""

    tools: list[Object]
    annotated: bool


class TimeLimit:
    """A block that raises TimeoutError when it takes longer than `seconds`. Enter it inside a task, once.

    With `total` the first limit begins anew at each `touch`, and `total` is what the block may take in all; `exceeded`
    says which it was. It is `asyncio.timeout` in a third of its time, since every call is under one.
    """

    __slots__ = ("_cancelled_before", "_ends", "_expired", "_held", "_moved", "_seconds", "_task", "_timer", "_total")

    def __init__(self, seconds: float, total: float | None = None) -> None:
        self._seconds = seconds
        self._total = total
        self._expired = False
        self._held = 0
        self._moved = 0.0

    @property
    def exceeded(self) -> str:
        """`total` or `idle`."""
        over = self._total is not None and self._task.get_loop().time() >= self._ends
        return "total" if over else "idle"

    def touch(self) -> None:
        """Something came: the first limit begins anew."""
        self._moved = self._task.get_loop().time()

    def hold(self) -> None:
        """The first limit stands still until as many `go_on` were called."""
        self._held += 1

    def go_on(self) -> None:
        """The opposite of `hold`."""
        self._held -= 1
        self.touch()

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelled_before = task.cancelling()
        loop = task.get_loop()
        seconds = self._seconds
        if self._total is not None:
            self._ends = loop.time() + self._total
            seconds = min(seconds, self._total)
        self._timer = loop.call_later(seconds, self._expire)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        # Whoever else cancelled the task meanwhile goes first (as in asyncio.Timeout.__aexit__).
        alone = self._expired and self._task.uncancel() <= self._cancelled_before
        if alone and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise TimeoutError from error

    def _expire(self) -> None:
        if self._total is not None:
            loop = self._task.get_loop()
            now = loop.time()
            due = min((now if self._held else self._moved) + self._seconds, self._ends)
            if due > now:
                self._timer = loop.call_at(due, self._expire)
                return
        self._expired = True
        self._task.cancel()


class QueueFull(Exception):
    """No more may wait."""


class FairQueue:
    """The places of one server, shared fairly by the people who call: enter before a call, leave after it.

    Whoever holds places may take another only while enough of them stay free, and the last free one is for somebody who
    holds none. So slow calls of one person, or of one connection, never make another's first call wait. Those who must
    wait take turns: person by person, and connection by connection within a person.
    """

    __slots__ = ("_held", "_under_way", "_waiting", "_waiting_count", "bound")

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self._under_way = 0
        # The places each person and each connection holds; neither is in here without one.
        self._held: dict[str, int] = {}
        # Persons in the order of their turns, their connections likewise, and the calls of each.
        self._waiting: dict[str, dict[str, deque[Turn]]] = {}
        self._waiting_count = 0

    @property
    def waiting(self) -> int:
        """How many calls wait."""
        return self._waiting_count

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way and nobody waits."""
        return not self._under_way and not self._waiting_count

    def enter_now(self, person: str, connection: str) -> bool:
        """Take a place when there is one to take at once."""
        if not self._may_start(person, connection):
            return False
        self._start(person, connection)
        return True

    async def enter(self, person: str, connection: str) -> None:
        """Wait for a place and take it. Raises QueueFull when too many wait already."""
        connections = self._waiting.get(person, {})
        if self._waiting_count >= MOST_WAITING or sum(map(len, connections.values())) >= MOST_WAITING_OF_ONE:
            raise QueueFull
        turn: Turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(person, {}).setdefault(connection, deque()).append(turn)
        self._waiting_count += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._withdraw(person, connection, turn)
            else:  # It was given a place at the very moment it gave up.
                self.leave(person, connection)
            raise

    def come_back(self, person: str, connection: str) -> None:
        """Take a place again that was given back for a while, at once: the call goes on at its server as it is."""
        self._start(person, connection)

    def leave(self, person: str, connection: str) -> None:
        """Give a place back; who may have it next gets it."""
        self._under_way -= 1
        for holder in (person, connection):
            left = self._held[holder] - 1
            if left:
                self._held[holder] = left
            else:
                del self._held[holder]
        while self._waiting_count and self._start_next():
            pass

    def _may_start(self, person: str, connection: str) -> bool:
        free = self.bound - self._under_way
        of_person = self._held.get(person, 0)
        if free <= 0 or not of_person:
            return free > 0
        # One person holds two thirds at most when nobody else calls, one connection half.
        return of_person < 2 * (free - 1) and self._held.get(connection, 0) < free - 1

    def _start(self, person: str, connection: str) -> None:
        self._under_way += 1
        held = self._held
        held[person] = held.get(person, 0) + 1
        held[connection] = held.get(connection, 0) + 1

    def _start_next(self) -> bool:
        """Give a place to the next who may have one; False when there is none."""
        for person, connections in self._waiting.items():
            for connection, turns in connections.items():
                if self._may_start(person, connection):
                    turn = turns.popleft()
                    self._start(person, connection)
                    self._took_turn(person, connection)
                    turn.set_result(None)
                    return True
        return False

    def _took_turn(self, person: str, connection: str) -> None:
        """Put both at the end of their lines, or out of them when nothing of theirs waits."""
        self._waiting_count -= 1
        connections = self._waiting.pop(person)
        turns = connections.pop(connection)
        if turns:
            connections[connection] = turns
        if connections:
            self._waiting[person] = connections

    def _withdraw(self, person: str, connection: str, turn: Turn) -> None:
        self._waiting_count -= 1
        connections = self._waiting[person]
        connections[connection].remove(turn)
        if not connections[connection]:
            del connections[connection]
        if not connections:
            del self._waiting[person]


class Place:
    """The place of one call, and its time limit. Both rest while somebody is asked something for the server."""

    __slots__ = ("_away", "_connection", "_limit", "_over", "_person", "_queue")

    def __init__(self, queue: FairQueue, person: str, connection: str, limit: TimeLimit) -> None:
        self._queue = queue
        self._person = person
        self._connection = connection
        self._limit = limit
        self._away = 0
        self._over = False

    def give_back_while(self, on_request: OnRequest) -> OnRequest:
        """`on_request`, during which others may have the place."""

        async def ask_somebody(message: Object, answer: Answer) -> None:
            self._leave()
            try:
                await on_request(message, answer)
            finally:
                self._come_back()

        return ask_somebody

    def end(self) -> None:
        """The call is over."""
        self._over = True
        if not self._away:
            self._queue.leave(self._person, self._connection)

    def _leave(self) -> None:
        self._limit.hold()
        self._away += 1
        if self._away == 1 and not self._over:
            self._queue.leave(self._person, self._connection)

    def _come_back(self) -> None:
        self._limit.go_on()
        self._away -= 1
        if not self._away and not self._over:
            self._queue.come_back(self._person, self._connection)


class McpClient:
    """Calls servers; `learn_era` is told (server id, URL, era) when one was found out, `introduced` what a server says
    of itself. Sessions last in `store`; without one, until the client is closed.

    Of the calls a server may have under way this process takes its share: `workers` processes divide the bound, and
    each has one place at least. A call waits `queue_seconds` for a place at most. While `may_begin()` is false no
    request is sent: its row in the log could not be written.
    """

    def __init__(
        self,
        transport: Transport,
        learn_era: LearnEra = lambda *_: None,
        may_begin: Callable[[], bool] = lambda: True,
        *,
        store: SessionStore | None = None,
        introduced: Introduced = lambda *_: None,
        workers: int = 1,
        queue_seconds: float = 10,
    ) -> None:
        self._transport = transport
        self._may_begin = may_begin
        self._introduced = introduced
        self._sessions = SessionWire(transport, store or SessionsInMemory(), introduced)
        self._learn_era = learn_era
        self._eras: dict[str, str] = {}
        self._workers = workers
        self._queue_seconds = queue_seconds
        self._queues: dict[str, FairQueue] = {}
        self._sweeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._sweeper = asyncio.create_task(self._sweep(), name="idle queues")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._sessions.close()

    async def ask(
        self,
        target: Target,
        method: str,
        params: Object,
        on_notification: OnNotification,
        *,
        person: str = "",
        schema: object = None,
        seconds: float | None = None,
        on_request: OnRequest | None = None,
    ) -> RpcResponse:
        """The server's answer to one request of ours; raises an UpstreamError, or NotRecordable.

        `on_notification` gets the notifications that precede it, `on_request` what the server asks meanwhile, each in
        a task that ends with the request; without it a ping is answered and all else refused. `person` is whose call
        it is, for a fair share of the server; `schema` is that of the tool which is called; `seconds` shortens the
        server's own time limits, and then what the request has to wait for its turn counts too. While the server waits
        for an answer of `on_request`, others may have the place of this call.
        """
        queue = self._queue(target)
        person, connection = person or target.connection_id, target.connection_id
        began = time.monotonic()
        if not queue.enter_now(person, connection):
            await self._wait_for_turn(queue, target, person, seconds)
        idle, total = float(target.timeout_s), float(target.total_s)
        if seconds is not None:
            left = max(seconds - (time.monotonic() - began), 0.001)
            idle, total = min(idle, left), min(total, left)
        limit = TimeLimit(idle, total)
        place = None if on_request is None else Place(queue, person, connection, limit)

        async def on_event(message: Object) -> None:
            limit.touch()
            await on_notification(message)

        try:
            with limit:
                if not self._may_begin():
                    raise NotRecordable
                if place is not None and on_request is not None:
                    on_request = place.give_back_while(on_request)
                return await self._ask_in_its_era(target, method, params, on_event, on_request, schema)
        except TimeoutError:
            in_all = limit.exceeded == "total"
            raise TimedOut(target.server_name, total if in_all else idle, in_all=in_all) from None
        finally:
            if place is None:
                queue.leave(person, connection)
            else:
                place.end()

    async def _wait_for_turn(self, queue: FairQueue, target: Target, person: str, seconds: float | None) -> None:
        wait = min(self._queue_seconds, seconds or self._queue_seconds)
        try:
            with TimeLimit(wait):
                await queue.enter(person, target.connection_id)
        except TimeoutError:
            detail = f"{queue.waiting} calls wait, {queue.bound} may be under way in this worker"
            raise Busy(target.server_name, detail, seconds=RETRY_SECONDS) from None
        except QueueFull:
            raise Busy(target.server_name, "too many calls wait", seconds=RETRY_SECONDS) from None

    async def list_tools(self, target: Target, *, seconds: float) -> ToolList:
        """Every page of the server's tools/list, all of them within `seconds`; a server without tools has none.

        Raises an UpstreamError.
        """
        ends = time.monotonic() + seconds
        tools: list[Object] = []
        annotated, size = False, 0
        params: Object = {}
        for _ in range(MOST_PAGES):
            left = max(ends - time.monotonic(), 0.001)
            answer = await self.ask(target, "tools/list", params, ignore, seconds=left)
            if answer.error_code == jsonrpc.METHOD_NOT_FOUND:
                break
            page = _page(answer, target)
            page_is_annotated = stateless.ANNOTATION.encode() in answer.text
            tools += usable_tools(page["tools"], annotated=page_is_annotated)
            annotated = annotated or page_is_annotated
            size += len(answer.text)
            if size > MOST_BYTES:
                raise TooLarge(target.server_name, more_than(MOST_BYTES))
            if len(tools) > MOST_TOOLS:
                raise TooManyTools(target.server_name, f"more than {MOST_TOOLS:,} tools")
            cursor = page.get("nextCursor")
            if not isinstance(cursor, str) or not cursor or cursor == params.get("cursor"):
                break
            params = {"cursor": cursor}
        return ToolList(tools, annotated)

    async def listen(
        self, target: Target, on_notification: OnNotification, on_request: OnRequest | None = None
    ) -> bool:
        """Read what the server of this session says of its own accord, until its stream ends; False if it has none.

        Raises an UpstreamError.
        """
        return await self._sessions.listen(target, on_notification, on_request)

    def era(self, target: Target) -> str:
        """The era in which this server was asked last; empty before it was."""
        return self._eras.get(target.url, target.era)

    async def post(self, target: Target, message: Object) -> None:
        """Send a message without an answer in the session of `target`, which has one. Raises an UpstreamError."""
        await self._sessions.post(target, message)

    async def end(self, target: Target) -> None:
        """Tell the server that the session of `target` is over; a failure is its own affair."""
        await self._sessions.end_quietly(target)

    def end_in_background(self, target: Target) -> None:
        """The same, beside everything else."""
        self._sessions.start_background(self._sessions.end_quietly(target))

    async def _ask_in_its_era(
        self,
        target: Target,
        method: str,
        params: Object,
        on_notification: OnNotification,
        on_request: OnRequest | None,
        schema: object,
    ) -> RpcResponse:
        era = self._eras.get(target.url) or target.era or await self._probe(target)
        for attempt in (era, SESSION if era == MODERN else MODERN):
            try:
                if attempt == MODERN:
                    return await stateless.ask(self._transport, target, method, params, on_notification, schema=schema)
                return await self._sessions.ask(target, method, params, on_notification, on_request)
            except WrongEra:
                self._learn(target, SESSION if attempt == MODERN else MODERN)
        raise BadAnswer(target.server_name, "speaks neither wire")

    async def _probe(self, target: Target) -> str:
        info = await stateless.discover(self._transport, target)
        era = SESSION if info is None else MODERN
        self._learn(target, era)
        if info is not None:
            self._introduced(target, info)
        return era

    def _learn(self, target: Target, era: str) -> None:
        self._eras[target.url] = era
        self._learn_era(target.server_id, target.url, era)

    def _queue(self, target: Target) -> FairQueue:
        """The places at this server: a slow one must not use up everything, nor its callers each other's time."""
        bound = max(1, target.max_concurrent // self._workers)
        queue = self._queues.get(target.server_id)
        if queue is None:
            queue = self._queues[target.server_id] = FairQueue(bound)
        queue.bound = bound
        return queue

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            for server_id in [server_id for server_id, queue in self._queues.items() if queue.is_idle]:
                del self._queues[server_id]


def _page(answer: RpcResponse, target: Target) -> Object:
    """The result of tools/list. Raises BadAnswer when it holds no list."""
    page: Object = answer.document.get("result", {})
    if not isinstance(page.get("tools"), list):
        message = (answer.error or {}).get("message")
        words = message[:200] if isinstance(message, str) else ""
        raise BadAnswer(target.server_name, f"tools/list: error {answer.error_code} {words}", error=answer.error)
    return page
