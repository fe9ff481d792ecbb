"""Limits the memory a worker uses for large answers: in total, and per person."""

import asyncio
from contextlib import suppress

from wire.turns import MOST_WAITING, MOST_WAITING_OF_ONE, QueueFull

SHARES = 8  # A person may use 1/SHARES of the ceiling.
HOLD_SECONDS = 60.0  # To wait for room. A client that hardly reads its answer is cut off after half of that.


class HeldBytes:
    """Bytes that are counted for `person` for as long as this object exists."""

    __slots__ = ("_budget", "person", "size")

    def __init__(self, budget: "ByteBudget", person: str, size: int) -> None:
        self._budget = budget
        self.person = person
        self.size = 0
        self.resize(size)

    def resize(self, size: int) -> None:
        """Count `size` bytes instead."""
        self._budget.add(self.person, size - self.size)
        self.size = size

    def __del__(self) -> None:
        self._budget.give_back(self.person, self.size)


class ByteBudget:
    """Memory budget for large answers, from the time they are partly read until their clients have received them.

    A person may have one answer of any size, and more within the share. A call waits at most `seconds` for room before
    it is sent to its server; an answer being read waits in its socket.
    """

    def __init__(self, ceiling: int, seconds: float = 10) -> None:
        self.ceiling = ceiling
        self.share = ceiling // SHARES
        self.total = 0
        self._seconds = seconds
        self._held: dict[str, int] = {}  # By person.
        self._waiting: dict[asyncio.Future[HeldBytes], tuple[str, int]] = {}  # In order of arrival.
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def waiting(self) -> int:
        """Number of answers and calls waiting for room."""
        return len(self._waiting)

    async def admit(self, person: str) -> None:
        """Wait until another call of this person may start. Raises QueueFull or TimeoutError."""
        if self.total:
            async with asyncio.timeout(self._seconds):
                await self.hold(person, 0)

    async def hold(self, person: str, size: int) -> HeldBytes:
        """Wait for room for `size` bytes and reserve it. Raises QueueFull or, after HOLD_SECONDS, TimeoutError."""
        waiting = sum(person == other for other, _ in self._waiting.values())
        if not waiting and self._has_room(person, size):
            return HeldBytes(self, person, size)
        if len(self._waiting) >= MOST_WAITING or waiting >= MOST_WAITING_OF_ONE:
            raise QueueFull
        turn: asyncio.Future[HeldBytes] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = person, size
        try:
            async with asyncio.timeout(HOLD_SECONDS):
                return await turn
        finally:
            self._waiting.pop(turn, None)

    def add(self, person: str, size: int) -> None:
        """Add `size` bytes, which may be negative, to the count of this person."""
        self._loop = self._loop or asyncio.get_running_loop()
        self.total += size
        held = self._held.pop(person, 0) + size
        if held:
            self._held[person] = held
        if size < 0:
            self._let_in()

    def give_back(self, person: str, size: int) -> None:
        """Release bytes. Safe in any thread: HeldBytes may be garbage-collected anywhere."""
        if size and self._loop is not None:
            with suppress(RuntimeError):  # The loop is closed.
                self._loop.call_soon_threadsafe(self.add, person, -size)

    def _has_room(self, person: str, size: int) -> bool:
        held = self._held.get(person, 0)
        if not held:
            return not size or not self.total or self.total + size <= self.ceiling
        return held + size <= self.share and self.total + size <= self.ceiling

    def _let_in(self) -> None:
        """Give room to waiting calls and answers, in order of arrival for each person."""
        blocked = set()
        for turn, (person, size) in list(self._waiting.items()):
            if person in blocked or turn.done():
                continue
            if self._has_room(person, size):
                del self._waiting[turn]
                turn.set_result(HeldBytes(self, person, size))
            else:
                blocked.add(person)
