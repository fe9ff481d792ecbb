"""Whose turn it is, and for how long: places shared fairly, the reading of answers in slices, and time limits."""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, Protocol, Self

QUICK_TURNS = 8  # So many slices of an answer follow each other closely; from then on it shares what time is left over.
REST_SECONDS = 0.001
# The rest after work in one piece, as a multiple of its time: a call beside it takes several turns of the loop.
REST_SHARE = 4

LARGE_AT_ONCE = 3  # Of all answers of which much is kept in memory; of one server two at most.

MOST_WAITING = 1024  # In one queue.
MOST_WAITING_OF_ONE = 128  # Of one person, in one queue.

GRAIN_SECONDS = 0.05  # Between two looks at which deadlines have passed, at least: so late one may be.

type Turn = asyncio.Future[None]


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
    def under_way(self) -> int:
        """How many calls hold a place."""
        return self._under_way

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way and nobody waits."""
        return not self._under_way and not self._waiting_count

    def enter_now(self, person: str, connection: str) -> bool:
        """Take a place when there is one to take at once."""
        held = self._held
        if person not in held and self._under_way < self.bound:  # Nearly always; what follows holds here too.
            self._under_way += 1
            held[person] = 1
            held[connection] = held.get(connection, 0) + 1
            return True
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
                # Whoever gave up in this very round of the loop has not left the line yet.
                turn = next((turn for turn in turns if not turn.done()), None)
                if turn is not None and self._may_start(person, connection):
                    turns.remove(turn)
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


class Turns:
    """Turns of whoever has much to read: one slice of one answer at a time, whoever's it is.

    However many answers pour in, a call beside them waits for one slice and not for one of each. An answer that has had
    its quick turns gets the others with a rest before each, so that all such answers together leave most of the time
    to those that are small.
    """

    def __init__(self) -> None:
        self._quick: deque[asyncio.Future[None]] = deque()
        self._slow: deque[asyncio.Future[None]] = deque()
        self._whole = asyncio.Lock()
        self.large = FairQueue(LARGE_AT_ONCE)
        self.timer = SharedTimer()

    @contextmanager
    def unlimited(self) -> Iterator[None]:
        """Stop the idle limits of the current task: it is not the server that it waits for."""
        limits = self.timer.limits_of(asyncio.current_task())
        for limit in limits:
            limit.hold()
        try:
            yield
        finally:
            for limit in limits:
                limit.go_on()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """For work that cannot be cut into slices: one piece at a time, and after each the loop rests from them."""
        await self._whole.acquire()
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            yield
        finally:
            loop.call_later(REST_SHARE * (loop.time() - began), self._whole.release)

    async def wait(self, taken: int) -> None:
        """Let everybody else go first; `taken` is how many turns this answer has had."""
        loop = asyncio.get_running_loop()
        waiting = self._quick if taken < QUICK_TURNS else self._slow
        turn = loop.create_future()
        waiting.append(turn)
        if len(waiting) == 1:
            self._schedule(loop, waiting)
        await turn

    def _schedule(self, loop: asyncio.AbstractEventLoop, waiting: deque[asyncio.Future[None]]) -> None:
        if waiting is self._quick:
            loop.call_soon(self._next, loop, waiting)
        else:
            loop.call_later(REST_SECONDS, self._next, loop, waiting)

    def _next(self, loop: asyncio.AbstractEventLoop, waiting: deque[asyncio.Future[None]]) -> None:
        while waiting:
            turn = waiting.popleft()
            if not turn.done():  # Else whoever waited has left.
                turn.set_result(None)
                break
        if waiting:
            self._schedule(loop, waiting)


class Timed(Protocol):
    """What has a deadline."""

    def expire(self) -> None:
        """The deadline has passed; it is none any more."""


class SharedTimer:
    """One timer for many deadlines of a loop, by what has them, at most one each; times are those of its clock.

    Each call has two, nearly all of which never pass: to note one here takes a fifth of what it takes to start and stop
    a timer of the loop.
    """

    __slots__ = ("_due", "_next", "_timer")

    def __init__(self) -> None:
        self._due: dict[Timed, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next = math.inf  # When the timer looks.

    def set(self, timed: Timed, due: float) -> None:
        """Have `timed` expire at that time, or a moment later."""
        self._due[timed] = due
        if due < self._next:
            self._look_at(due)

    def drop(self, timed: Timed) -> None:
        """Forget the deadline of `timed`, if it has one."""
        self._due.pop(timed, None)

    def limits_of(self, task: asyncio.Task[Any] | None) -> "list[TimeLimit]":
        """Return the time limits that `task` is under."""
        return [timed for timed in self._due if isinstance(timed, TimeLimit) and timed.is_of(task)]

    def _look_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = when
        self._timer = asyncio.get_running_loop().call_at(when, self._look)

    def _look(self) -> None:
        self._timer, self._next = None, math.inf
        now = asyncio.get_running_loop().time()
        try:
            for timed in [timed for timed, due in self._due.items() if due <= now]:
                # One that expires may take another's deadline away.
                if self._due.get(timed, math.inf) <= now:
                    del self._due[timed]
                    timed.expire()
        finally:
            if self._due:
                self._look_at(min(self._next, max(min(self._due.values()), now + GRAIN_SECONDS)))


class TimeLimit:
    """A block that raises TimeoutError when it takes longer than `seconds`. Enter it inside a task, once.

    The first limit begins anew at each `touch`, and `total` is what the block may take in all; `exceeded` says which it
    was. It is `asyncio.timeout` in a fraction of its time, since every call is under one; `timer` is shared by all
    such blocks of a loop.
    """

    __slots__ = (
        "_cancelled_before",
        "_ends",
        "_expired",
        "_held",
        "_loop",
        "_moved",
        "_task",
        "_timer",
        "seconds",
        "total",
    )

    def __init__(self, seconds: float, total: float = math.inf, *, timer: SharedTimer) -> None:
        self.seconds = seconds
        self.total = total
        self._timer = timer
        self._expired = False
        self._held = 0
        self._moved = 0.0

    @property
    def exceeded(self) -> str:
        """`total` or `idle`."""
        return "total" if self._loop.time() >= self._ends else "idle"

    def is_of(self, task: asyncio.Task[Any] | None) -> bool:
        """Return whether it limits this task."""
        return self._task is task

    def touch(self) -> None:
        """Something came: the first limit begins anew."""
        self._moved = self._loop.time()

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
        self._loop = task.get_loop()
        now = self._loop.time()
        self._ends = now + self.total
        self._moved = now
        self._timer.set(self, min(now + self.seconds, self._ends))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.drop(self)
        # Whoever else cancelled the task meanwhile goes first (as in asyncio.Timeout.__aexit__).
        alone = self._expired and self._task.uncancel() <= self._cancelled_before
        if alone and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise TimeoutError from error

    def expire(self) -> None:
        """The deadline that was set has passed: it is set anew if something came meanwhile, else the block ends."""
        now = self._loop.time()
        due = min((now if self._held else self._moved) + self.seconds, self._ends)
        if due > now:
            self._timer.set(self, due)
            return
        self._expired = True
        self._task.cancel()
