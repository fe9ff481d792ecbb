"""What waits travels together: a few carriers, each with one batch under way. Needs no Django."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from proxy.store.pg_connection import PgConnection, Rejected, Unobtainable

logger = logging.getLogger(__name__)

# A batch leaves when so many wait, or after so many turns of the loop. A round trip and a commit cost as much
# as a dozen more items in them; in a larger batch all wait for each other, while the loop has nothing to do.
ENOUGH = 16
TURNS = 3
TELL_SECONDS = 1.0

# A statement is taken to hang after so many ticks of a clock. Ticks are counted, not seconds: when this process itself
# stood still, that is one tick and says nothing of the database.
TICK_SECONDS = 0.2
HANGING = 5

STOP_SECONDS = 1.0  # So long a stop waits for a lane that is being connected and has nothing to carry.

AGAIN_SECONDS = 0.25  # Between two tries to repair a lane; when somebody waits for it,
AGAIN_SOON_SECONDS = 0.05  # so many.

type Waiting[Item, Answer] = tuple[Item, asyncio.Future[Answer]]
type Carry[Item, Answer] = Callable[[list[Waiting[Item, Answer]]], Awaitable[None]]


@dataclass(slots=True, eq=False)
class _Worker[Item, Answer]:
    """A carrier and its lane.

    `sound` while nothing speaks against the lane, `ticks` since its statement began (-1: none is under way),
    `tried` when it has been found sound or not for the first time.
    """

    carry: Carry[Item, Answer]
    lane: PgConnection | None
    tried: asyncio.Event
    sound: bool
    ticks: int = -1
    repairing: bool = False
    told: str = ""
    batch: Sequence[Waiting[Item, Answer]] = ()


class GroupCommit[Item, Answer]:
    """Hands over what is put in, as many items at once as wait; a carrier sets the answer of each.

    A carrier that raises fails its whole batch with what `lost` makes of the error. `lanes` are what they carry over,
    one each: connected ahead, and again when they are lost. A lane whose batch failed is repaired, that is connected
    and tried, before it carries another one.

    `fault` says why nothing can be carried just now, and is empty while it can. With `turns_away` whoever comes while
    a statement hangs, or when `room` wait already, gets Unobtainable at once, and so do all who waited for that long,
    those in the statement's batch too.
    """

    def __init__(
        self,
        what: str,
        carriers: Sequence[Carry[Item, Answer]],
        lanes: Sequence[PgConnection],
        *,
        lost: Callable[[Exception], Exception],
        most: int = 200,
        room: int = 2000,
        turns_away: bool = True,
    ) -> None:
        self._what = what
        self._workers = [
            _Worker(carry, lane, asyncio.Event(), sound=lane is None) for carry, lane in zip_longest(carriers, lanes)
        ]
        self._lost = lost
        self._most = most
        self._room = room
        self._turns_away = turns_away
        self._waiting: list[Waiting[Item, Answer]] = []
        self._resting: list[asyncio.Future[None]] = []
        self._stopping = False
        self._told, self._untold = float("-inf"), 0
        self._hangs = False
        self._failed = ""
        self._tasks: list[asyncio.Task[None]] = []
        self._clock: asyncio.Task[None] | None = None
        self.fault = "not connected yet" if lanes else ""

    @property
    def waiting(self) -> int:
        """How many wait for the next batch."""
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether as many wait as may."""
        return len(self._waiting) >= self._room

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._work(worker), name=self._what) for worker in self._workers]
        self._clock = asyncio.create_task(self._tick(), name=f"{self._what}, clock")
        for worker in self._workers:
            if worker.lane is not None:
                worker.lane.when_lost = self._lane_lost

    async def tried(self) -> None:
        """Return when each lane was connected and tried, or could not be; `fault` says which."""
        for worker in self._workers:
            if worker.lane is not None:
                await worker.tried.wait()

    async def stop(self) -> None:
        """Hand over what is waiting, then stop and give the connections up."""
        self._stopping = True
        if self._clock is not None:
            self._clock.cancel()
        while self._resting:
            self._wake()
        while self._tasks and (await asyncio.wait(self._tasks, timeout=STOP_SECONDS))[1]:
            self._give_up_repairs()
        for worker in self._workers:
            if worker.lane is not None:
                worker.lane.close()

    def _give_up_repairs(self) -> None:
        for worker, task in zip(self._workers, self._tasks, strict=True):
            if worker.repairing and not self._waiting:
                task.cancel()

    def put(self, item: Item) -> asyncio.Future[Answer]:
        """The answer to `item`, when it is there."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        if self._turns_away and (self._hangs or len(self._waiting) >= self._room):
            future.set_exception(Unobtainable("the database is behind"))
            return future
        self._waiting.append((item, future))
        if len(self._waiting) == 1:  # The others travel with the first.
            self._wake()
        return future

    async def _try_out(self, lane: PgConnection) -> None:
        """Find out whether a lane that is connected carries; raises what a batch would."""

    def _wake(self) -> None:
        if self._resting:
            self._resting.pop().set_result(None)

    async def _rest(self, seconds: float | None = None) -> None:
        """Wait until there is something to do."""
        if self._stopping:
            return
        rest = asyncio.get_running_loop().create_future()
        self._resting.append(rest)
        if seconds is None:
            await rest
            return
        await asyncio.wait([rest], timeout=seconds)
        if rest in self._resting:
            self._resting.remove(rest)

    async def _work(self, worker: _Worker[Item, Answer]) -> None:
        while self._waiting or not self._stopping:
            if not worker.sound and not await self._repair(worker):
                continue
            if not self._waiting:
                await self._rest()
                continue  # The lane may have been lost meanwhile.
            await self._gather()
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            if not batch:  # The other carrier was quicker.
                continue
            if self._waiting:
                self._wake()
            await self._carry(worker, batch)

    async def _carry(self, worker: _Worker[Item, Answer], batch: list[Waiting[Item, Answer]]) -> None:
        worker.ticks, worker.batch = 0, batch
        try:
            await worker.carry(batch)
        except Exception as error:  # noqa: BLE001 - a dead worker would leave every later item waiting
            self._tell(len(batch), error)
            fail(batch, self._lost(error))
            self._mark(worker, error)
        else:
            self._untold = 0
            worker.ticks = -1
            if self.fault:
                self._failed = ""
                self._judge()
        finally:
            worker.batch = ()

    async def _repair(self, worker: _Worker[Item, Answer]) -> bool:
        """Connect the lane and try it; while there is no other, who waits is told that it failed."""
        if worker.lane is None:
            worker.sound = True
            return True
        if self._waiting:
            self._wake()  # Another lane may carry what this worker was woken for.
        worker.ticks, worker.repairing = 0, True
        try:
            await worker.lane.connect()
            await self._try_out(worker.lane)
        except Exception as error:  # noqa: BLE001 - as above
            worker.lane.close()
            self._mark(worker, error)
            self._tell_once(worker, error)
            if not any(other.sound for other in self._workers):
                self._fail_waiting(error)
            await self._pause()
            return False
        else:
            worker.sound, worker.ticks, worker.told, self._failed = True, -1, "", ""
            self._judge()
            return True
        finally:
            worker.repairing = False
            worker.tried.set()

    def _tell_once(self, worker: _Worker[Item, Answer], error: Exception) -> None:
        if worker.told != str(error):
            worker.told = str(error)
            what = {"what": self._what, "error": str(error)}
            logger.error("a connection to the database cannot be used", extra=what)

    async def _pause(self) -> None:
        """Wait before a lane is tried again."""
        if not self._stopping:
            await asyncio.sleep(AGAIN_SOON_SECONDS)
        if not self._waiting:
            await self._rest(AGAIN_SECONDS)

    def _lane_lost(self) -> None:
        for worker in self._workers:
            if worker.lane is not None and not worker.lane.connected:
                worker.sound = False
        self._judge()
        while self._resting:
            self._wake()

    def _mark(self, worker: _Worker[Item, Answer], error: Exception) -> None:
        """Carry nothing over this lane before it is repaired."""
        worker.ticks = -1
        if worker.lane is not None:
            worker.sound = False
            # What the server says of a statement; what it says of a connection names addresses, and is for the log.
            self._failed = str(error) if isinstance(error, Rejected) else "the database did not answer"
            self._judge()

    def _judge(self) -> None:
        self._hangs = any(worker.ticks >= HANGING for worker in self._workers)
        if self._hangs:
            self.fault = "the database hangs"
        elif self._failed or not any(worker.sound for worker in self._workers):
            self.fault = self._failed or "the connection was lost"
        else:
            self.fault = ""

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            for worker in self._workers:
                if worker.ticks >= 0:
                    worker.ticks += 1
            hung = self._hangs
            self._judge()
            if self._hangs and not hung and self._turns_away:
                error = Unobtainable(self.fault)
                self._fail_waiting(error)
                for worker in self._workers:
                    fail(worker.batch, error)

    def _fail_waiting(self, error: Exception) -> None:
        batch, self._waiting = self._waiting, []
        if batch:
            self._tell(len(batch), error)
            fail(batch, self._lost(error))

    def _tell(self, requests: int, error: Exception) -> None:
        """Say in the log that batches failed, once a second at most."""
        self._untold += requests
        now = time.monotonic()
        if now - self._told >= TELL_SECONDS:
            what = {"what": self._what, "requests": self._untold, "why": type(error).__name__, "error": str(error)}
            logger.error("the database did not do what it was asked; requests get 503", extra=what)
            self._told, self._untold = now, 0

    async def _gather(self) -> None:
        """Let those who have come as far as the loop already join the batch."""
        for _ in range(TURNS):
            if len(self._waiting) >= ENOUGH:
                return
            await asyncio.sleep(0)


def resolve[Answer](future: asyncio.Future[Answer], answer: Answer) -> None:
    """Give an answer to whoever still waits for it."""
    if not future.done():
        future.set_result(answer)


def fail[Item, Answer](batch: Sequence[Waiting[Item, Answer]], error: Exception) -> None:
    """End the waiting of a batch with this error."""
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
