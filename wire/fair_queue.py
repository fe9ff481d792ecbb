"""Fair sharing of a worker: concurrency slots per server, time slices, and the memory budget for large answers."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from types import TracebackType
from typing import Any, NamedTuple, Self

# Limit the memory that a worker uses for large answers: in total, per person, and per server.

SHARES = 8  # The answers for one person may use 1/SHARES of the memory budget.
SERVER_SHARES = 2  # The answers that are being read from one server may use 1/SERVER_SHARES of the budget.
HOLD_SECONDS = 60.0  # Longest wait for room. A client that hardly reads its answer is cut off after half of this time.
# An answer slower than LEAST_PACE is cut off once another answer has waited `pace_seconds` for room.
LEAST_PACE = 64 * 1024  # Bytes a second.
PACE_SECONDS = 5.0

PERSON, SERVER, ALL = "person", "server", "all"

type Account = tuple[str, str]  # PERSON, SERVER or ALL, and the id of the person or the name of the server.


class HeldBytes:
    """The reservation of memory for one answer: the number of bytes reserved in each account of the budget.

    The reservation ends when this object is garbage-collected.
    """

    __slots__ = ("_budget", "counted")

    def __init__(self, budget: "ByteBudget", counted: dict[Account, int]) -> None:
        self._budget = budget
        self.counted = counted
        budget.change({}, counted)

    @property
    def size(self) -> int:
        return self.counted[ALL, ""]

    def resize(self, size: int) -> None:
        """Change the reservation to `size` bytes, after the answer has been read.

        The reservation then no longer counts against the server's share.
        """
        counted = {account: size for account in self.counted if account[0] != SERVER}
        self._budget.change(self.counted, counted)
        self.counted = counted

    def __del__(self) -> None:
        self._budget.give_back(self.counted)


class Claim(NamedTuple):
    """A call or answer that has waited since `began`. `counted` maps accounts to an answer's bytes, 0 for a call."""

    counted: dict[Account, int]
    began: float


class ByteBudget:
    """Memory budget for large answers. An answer counts from its `hold` or `take` until its client has received it.

    Each person and each server has a share of the budget. `hold` waits until the answer fits into the free part of the
    budget, of the person's share and of the server's share. If the answer is larger than a share, `hold` waits until
    the whole share is free.
    """

    def __init__(self, ceiling: int, seconds: float = 10) -> None:
        self.pace_seconds = PACE_SECONDS
        self._shares = {PERSON: ceiling // SHARES, SERVER: ceiling // SERVER_SHARES, ALL: ceiling}
        self._seconds = seconds  # How long a call waits for room, at most, before it is sent to its server.
        self._held: dict[Account, int] = {}
        self._waiting: dict[asyncio.Future[HeldBytes], Claim] = {}  # In order of arrival.
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def total(self) -> int:
        """Number of reserved bytes."""
        return self._held.get((ALL, ""), 0)

    @property
    def waiting(self) -> int:
        """Number of answers and calls waiting for room."""
        return len(self._waiting)

    async def admit(self, person: str) -> None:
        """Wait until this person's answers do not exceed the person's share. Raises QueueFull or TimeoutError."""
        if self.total:
            async with asyncio.timeout(self._seconds):
                await self._enter({(PERSON, person): 0})

    async def hold(self, person: str, size: int, server: str = "") -> HeldBytes:
        """Wait for room to read an answer of `size` bytes at most, and reserve the bytes.

        Raises QueueFull or, after HOLD_SECONDS, TimeoutError.
        """
        counted = {(PERSON, person): min(size, self._shares[PERSON])}
        if server:
            counted[SERVER, server] = min(size, self._shares[SERVER])
        return await self._enter({**counted, (ALL, ""): size})

    def take(self, person: str, size: int) -> HeldBytes:
        """Reserve `size` bytes for this person without waiting for room."""
        return HeldBytes(self, {(PERSON, person): size, (ALL, ""): size})

    def is_short_of(self, held: HeldBytes) -> bool:
        """Return whether another answer has waited `pace_seconds` or longer for room that `held` occupies."""
        latest = time.monotonic() - self.pace_seconds
        claims = (claim for claim in self._waiting.values() if (ALL, "") in claim.counted and claim.began <= latest)
        return any(self._full(claim) in held.counted for claim in claims)

    def change(self, before: dict[Account, int], after: dict[Account, int]) -> None:
        """Release the bytes in `before`, and reserve the bytes in `after`. Both map accounts to numbers of bytes."""
        self._loop = self._loop or asyncio.get_running_loop()
        for account in before | after:
            held = self._held.pop(account, 0) + after.get(account, 0) - before.get(account, 0)
            if held:
                self._held[account] = held
        if before:
            self._let_in()

    def give_back(self, counted: dict[Account, int]) -> None:
        """Release bytes. Safe in any thread: HeldBytes may be garbage-collected anywhere."""
        if any(counted.values()) and self._loop is not None:
            with suppress(RuntimeError):  # The loop is closed.
                self._loop.call_soon_threadsafe(self.change, counted, {})

    def _full(self, claim: Claim) -> Account | None:
        """Return the first of the claim's accounts that has no room for the claim; None if all accounts have room."""
        for account, size in claim.counted.items():
            share = self._shares[account[0]]
            if self._held.get(account, 0) + min(size, share) > share:
                return account
        return None

    async def _enter(self, counted: dict[Account, int]) -> HeldBytes:
        turn: asyncio.Future[HeldBytes] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = Claim(counted, time.monotonic())
        self._let_in()
        try:
            if not turn.done() and self._is_crowded(next(iter(counted))):
                raise QueueFull
            async with asyncio.timeout(HOLD_SECONDS):
                return await turn
        finally:
            self._waiting.pop(turn, None)

    def _is_crowded(self, person: Account) -> bool:
        of_person = sum(person in claim.counted for claim in self._waiting.values())
        return len(self._waiting) > MOST_WAITING or of_person > MOST_WAITING_OF_ONE

    def _let_in(self) -> None:
        """Give room to waiting calls and answers.

        No call or answer overtakes an earlier one that waits for the same account.
        """
        blocked: set[Account] = set()  # Accounts for which an earlier call or answer waits.
        for turn, claim in list(self._waiting.items()):
            if turn.done():
                continue
            blocking = self._full(claim) or next((each for each in claim.counted if each in blocked), None)
            if blocking is None:
                del self._waiting[turn]
                turn.set_result(HeldBytes(self, claim.counted))
            else:
                blocked.add(blocking)


# Fair scheduling: concurrency slots per server, time slices for parsing, and time limits.

REST_SECONDS = 0.001  # Pause between two slices of large answers; see `python -m bench.large_answers`.
# The pause after work that cannot be sliced, as a multiple of the work's duration. In this pause other calls run, each
# of which needs several turns of the event loop.
REST_SHARE = 4

MOST_WAITING = 1024  # Calls that wait in one queue.
MOST_WAITING_OF_ONE = 128  # Calls of one person that wait in one queue.

type Turn = asyncio.Future[None]


class QueueFull(Exception):
    """The queue is full."""


class FairQueue:
    """Concurrency slots of one server, shared fairly by people. Each call has to `enter` first and `leave` at its end.

    With two or more slots, slow calls of one person never delay the first call of another person. People take turns,
    and so do the connections of each person.
    """

    __slots__ = ("__weakref__", "_held", "_under_way", "_waiting", "_waiting_count", "bound")

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self._under_way = 0
        # Slots per person and per connection; people and connections without slots are missing.
        self._held: dict[str, int] = {}
        # The waiting calls by person and connection. People are in the order of their turns, and so are the connections
        # of each person.
        self._waiting: dict[str, dict[str, deque[Turn]]] = {}
        self._waiting_count = 0

    @property
    def waiting(self) -> int:
        """Number of waiting calls."""
        return self._waiting_count

    @property
    def under_way(self) -> int:
        """Number of calls with a slot."""
        return self._under_way

    def enter_now(self, person: str, connection: str) -> bool:
        """Take a slot if one is available now. Return whether it was taken."""
        if not self._may_start(person, connection):
            return False
        self._start(person, connection)
        return True

    async def enter(self, person: str, connection: str) -> None:
        """Wait for a slot and take it. Raises QueueFull when too many wait already."""
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
            else:  # The call got a slot at the moment it was cancelled.
                self.leave(person, connection)
            raise

    async def run[T](self, seconds: float, person: str, connection: str, start: Callable[[], asyncio.Future[T]]) -> T:
        """Wait for a slot. Then call `start`, and return the result of the future that `start` returns.

        The future keeps the slot until it is done, even if this call is cancelled. Raises QueueFull if the queue is
        full, or if no slot is free within `seconds`. Raises the future's exception if it has one.
        """
        if not self.enter_now(person, connection):
            try:
                async with asyncio.timeout(seconds):
                    await self.enter(person, connection)
            except TimeoutError:
                raise QueueFull from None
        try:
            running = start()
        except BaseException:
            self.leave(person, connection)
            raise
        running.add_done_callback(lambda _: self.leave(person, connection))
        return await asyncio.shield(running)

    def come_back(self, person: str, connection: str) -> None:
        """Take back the slot that a running call released for a while. Does not wait, even if no slot is free."""
        self._start(person, connection)

    def leave(self, person: str, connection: str) -> None:
        """Release a slot and give it to the next waiting call."""
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
        # The last free slot is for a person who has none.
        # If nobody else has calls, a person can take two thirds of all slots, and one connection half of all slots.
        return of_person < 2 * (free - 1) and self._held.get(connection, 0) < free - 1

    def _start(self, person: str, connection: str) -> None:
        self._under_way += 1
        held = self._held
        held[person] = held.get(person, 0) + 1
        held[connection] = held.get(connection, 0) + 1

    def _start_next(self) -> bool:
        """Give a slot to the next waiting call that may start. Return False if no waiting call may start."""
        for person, connections in self._waiting.items():
            for connection, turns in connections.items():
                # A call that was cancelled in this round of the event loop is still in the queue.
                turn = next((turn for turn in turns if not turn.done()), None)
                if turn is not None and self._may_start(person, connection):
                    turns.remove(turn)
                    self._start(person, connection)
                    self._took_turn(person, connection)
                    turn.set_result(None)
                    return True
        return False

    def _took_turn(self, person: str, connection: str) -> None:
        """Move the person and the connection of a started call to the end of the queue.

        Remove the connection if it has no waiting call. Remove the person if the person has no waiting call.
        """
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


class Slices:
    """Turns for reading large answers: one slice of one answer at a time, then a pause.

    Other calls wait for one slice at most, and get half of the event loop's time.
    """

    def __init__(self) -> None:
        self._waiting: deque[Turn] = deque()
        self._whole = asyncio.Lock()

    async def wait(self) -> None:
        """Wait for the next slice."""
        loop = asyncio.get_running_loop()
        turn: Turn = loop.create_future()
        self._waiting.append(turn)
        if len(self._waiting) == 1:
            loop.call_later(REST_SECONDS, self._next, loop)
        await turn

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # Otherwise the waiting task was cancelled.
                turn.set_result(None)
                break
        if self._waiting:
            loop.call_later(REST_SECONDS, self._next, loop)

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Context for work that cannot be sliced. Pieces of such work run one at a time, with a pause after each."""
        await self._whole.acquire()
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            yield
        finally:
            loop.call_later(REST_SHARE * (loop.time() - began), self._whole.release)


class TimeLimit:
    """Context that raises TimeoutError after `seconds` without a `touch`, or after `total` seconds. Not reentrant.

    `exceeded` tells which limit was exceeded.
    """

    __slots__ = (
        "_cancelled_before",
        "_ends",
        "_expired",
        "_held",
        "_loop",
        "_moved",
        "_running",
        "_task",
        "seconds",
        "total",
    )

    def __init__(self, seconds: float, total: float = math.inf) -> None:
        self.seconds = seconds
        self.total = total
        self._expired = False
        self._held = 0
        self._moved = 0.0

    @property
    def exceeded(self) -> str:
        """The exceeded limit: `total` or `idle`."""
        return "total" if self._loop.time() >= self._ends else "idle"

    def touch(self) -> None:
        """Restart the idle limit."""
        self._moved = self._loop.time()

    def hold(self) -> None:
        """Pause the idle limit. It runs again when `go_on` has been called as often as `hold`."""
        self._held += 1

    def go_on(self) -> None:
        """Undo one `hold`, and restart the idle limit."""
        self._held -= 1
        self.touch()

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelled_before = task.cancelling()
        self._loop = task.get_loop()
        self._moved = self._loop.time()
        self._ends = self._moved + self.total
        running = _limits.get(self._loop)
        if running is None:
            running = _limits[self._loop] = set()
            self._loop.call_later(LIMITS_SECONDS, _enforce_limits, self._loop)
        running.add(self)
        self._running = running
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.discard(self)
        # Other cancellations of the task take precedence (as in asyncio.Timeout.__aexit__).
        alone = self._expired and self._task.uncancel() <= self._cancelled_before
        if alone and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise TimeoutError from error

    def cancel_if_due(self, now: float) -> None:
        """Cancel the task if a limit was exceeded."""
        if not self._expired and now >= min((now if self._held else self._moved) + self.seconds, self._ends):
            self._expired = True
            self._task.cancel()

    def is_of(self, task: asyncio.Task[Any] | None) -> bool:
        """Return whether this time limit applies to `task`."""
        return self._task is task


# One timer for all limits of an event loop: a timer per limit would double the cost of a limit.
LIMITS_SECONDS = 0.05
_limits: dict[asyncio.AbstractEventLoop, set[TimeLimit]] = {}  # The limits that are running, by event loop.


def _enforce_limits(loop: asyncio.AbstractEventLoop) -> None:
    running, now = _limits[loop], loop.time()
    for limit in [*running]:
        limit.cancel_if_due(now)
    if running:
        loop.call_later(LIMITS_SECONDS, _enforce_limits, loop)
    else:
        del _limits[loop]


@contextmanager
def without_idle_limits() -> Iterator[None]:
    """Pause the idle limits of the current task during the block.

    Use it while the task waits for the gateway itself, not for the server.
    """
    task = asyncio.current_task()
    limits = [limit for limit in _limits.get(asyncio.get_running_loop(), ()) if limit.is_of(task)]
    for limit in limits:
        limit.hold()
    try:
        yield
    finally:
        for limit in limits:
            limit.go_on()
