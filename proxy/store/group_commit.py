"""Group commit: items that arrive together go to the database in one batch."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from proxy.store.pg_connection import DatabaseUnavailable, PgConnection, StatementRejected

logger = logging.getLogger(__name__)

# A batch leaves when so many wait, or after so many turns of the loop. A round trip and a commit cost as much
# as a dozen more items in them; in a larger batch all wait for each other, while the loop has nothing to do.
FULL_BATCH = 16
LOOP_TURNS = 3
LOG_SECONDS = 1.0

# A statement is taken to hang after so many ticks of a clock. Ticks are counted, not seconds: when this process itself
# stood still, that is one tick and says nothing of the database.
TICK_SECONDS = 0.2
HANGING_TICKS = 5

STOP_SECONDS = 1.0  # How long a stop waits for a connection attempt when no item waits.

RETRY_SECONDS = 0.25  # Between two attempts to connect while nothing waits,
URGENT_RETRY_SECONDS = 0.05  # and while items wait.

type Waiting[Item, Answer] = tuple[Item, asyncio.Future[Answer]]
type HandleBatch[Item, Answer] = Callable[[list[Waiting[Item, Answer]]], Awaitable[None]]


@dataclass(slots=True, eq=False)
class _Worker[Item, Answer]:
    """A task that handles batches over one connection.

    `ticks` have passed since its statement began (-1: none is running); `first_attempt` is set when the connection was
    made and checked, or failed to be, for the first time.
    """

    handle: HandleBatch[Item, Answer]
    connection: PgConnection | None
    first_attempt: asyncio.Event
    healthy: bool
    ticks: int = -1
    repairing: bool = False
    logged: str = ""
    batch: Sequence[Waiting[Item, Answer]] = ()


class GroupCommit[Item, Answer]:
    """Gives the items that wait to `handlers`, in batches; a handler resolves the future of each item.

    A handler that raises fails its whole batch with what `to_error` makes of the error. Each handler has one of the
    `connections`, which are opened ahead and again when they are lost. A connection whose batch failed is opened anew
    and checked before it is used again.

    `fault` says why no batch can be handled just now; it is empty while one can. With `rejects_when_full`, items that
    come while a statement hangs, or while `max_waiting` wait, fail at once with DatabaseUnavailable; so do those that
    wait when a statement is found to hang, and those in its batch.
    """

    def __init__(
        self,
        name: str,
        handlers: Sequence[HandleBatch[Item, Answer]],
        connections: Sequence[PgConnection],
        *,
        to_error: Callable[[Exception], Exception],
        max_batch: int = 200,
        max_waiting: int = 2000,
        rejects_when_full: bool = True,
    ) -> None:
        self._name = name
        self._workers = [
            _Worker(handle, connection, asyncio.Event(), healthy=connection is None)
            for handle, connection in zip_longest(handlers, connections)
        ]
        self._to_error = to_error
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._rejects_when_full = rejects_when_full
        self._waiting: list[Waiting[Item, Answer]] = []
        self._idle: list[asyncio.Future[None]] = []
        self._stopping = False
        self._logged_at, self._unlogged = float("-inf"), 0
        self._is_hanging = False
        self._failed = ""
        self._tasks: list[asyncio.Task[None]] = []
        self._clock: asyncio.Task[None] | None = None
        self.fault = "not connected yet" if connections else ""

    @property
    def waiting(self) -> int:
        """How many wait for the next batch."""
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether as many wait as may."""
        return len(self._waiting) >= self._max_waiting

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._work(worker), name=self._name) for worker in self._workers]
        self._clock = asyncio.create_task(self._tick(), name=f"{self._name}, clock")
        for worker in self._workers:
            if worker.connection is not None:
                worker.connection.on_lost = self._connection_lost

    async def first_attempt(self) -> None:
        """Return when each connection was made and checked, or failed to be; `fault` says which."""
        for worker in self._workers:
            if worker.connection is not None:
                await worker.first_attempt.wait()

    async def stop(self) -> None:
        """Handle what is waiting, then stop and close the connections."""
        self._stopping = True
        if self._clock is not None:
            self._clock.cancel()
        while self._idle:
            self._wake()
        while self._tasks and (await asyncio.wait(self._tasks, timeout=STOP_SECONDS))[1]:
            self._give_up_repairs()
        for worker in self._workers:
            if worker.connection is not None:
                worker.connection.close()

    def _give_up_repairs(self) -> None:
        for worker, task in zip(self._workers, self._tasks, strict=True):
            if worker.repairing and not self._waiting:
                task.cancel()

    def put(self, item: Item) -> asyncio.Future[Answer]:
        """The answer to `item`, when it is there."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        if self._rejects_when_full and (self._is_hanging or len(self._waiting) >= self._max_waiting):
            future.set_exception(DatabaseUnavailable("the database is behind"))
            return future
        self._waiting.append((item, future))
        if len(self._waiting) == 1:  # Later items join the batch of the first.
            self._wake()
        return future

    async def _check(self, connection: PgConnection) -> None:
        """Check that an open connection can handle a batch; raises what a batch would."""

    def _wake(self) -> None:
        if self._idle:
            self._idle.pop().set_result(None)

    async def _wait_for_work(self, seconds: float | None = None) -> None:
        """Wait until there is something to do."""
        if self._stopping:
            return
        wakeup = asyncio.get_running_loop().create_future()
        self._idle.append(wakeup)
        if seconds is None:
            await wakeup
            return
        await asyncio.wait([wakeup], timeout=seconds)
        if wakeup in self._idle:
            self._idle.remove(wakeup)

    async def _work(self, worker: _Worker[Item, Answer]) -> None:
        while self._waiting or not self._stopping:
            if not worker.healthy and not await self._repair(worker):
                continue
            if not self._waiting:
                await self._wait_for_work()
                continue  # The connection may have been lost meanwhile.
            await self._gather_batch()
            batch, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
            if not batch:  # Another worker was quicker.
                continue
            if self._waiting:
                self._wake()
            await self._run_batch(worker, batch)

    async def _run_batch(self, worker: _Worker[Item, Answer], batch: list[Waiting[Item, Answer]]) -> None:
        worker.ticks, worker.batch = 0, batch
        try:
            await worker.handle(batch)
        except Exception as error:  # noqa: BLE001 - a dead worker would leave every later item waiting
            self._log_failure(len(batch), error)
            fail(batch, self._to_error(error))
            self._mark_broken(worker, error)
        else:
            self._unlogged = 0
            worker.ticks = -1
            if self.fault:
                self._failed = ""
                self._update_fault()
        finally:
            worker.batch = ()

    async def _repair(self, worker: _Worker[Item, Answer]) -> bool:
        """Connect and check; when no other worker is healthy, a failure fails the items that wait."""
        if worker.connection is None:
            worker.healthy = True
            return True
        if self._waiting:
            self._wake()  # Another worker may handle what this one was woken for.
        worker.ticks, worker.repairing = 0, True
        try:
            await worker.connection.connect()
            await self._check(worker.connection)
        except Exception as error:  # noqa: BLE001 - as above
            worker.connection.close()
            self._mark_broken(worker, error)
            self._log_broken_connection(worker, error)
            if not any(other.healthy for other in self._workers):
                self._fail_waiting(error)
            await self._pause()
            return False
        else:
            worker.healthy, worker.ticks, worker.logged, self._failed = True, -1, "", ""
            self._update_fault()
            return True
        finally:
            worker.repairing = False
            worker.first_attempt.set()

    def _log_broken_connection(self, worker: _Worker[Item, Answer], error: Exception) -> None:
        if worker.logged != str(error):
            worker.logged = str(error)
            extra = {"what": self._name, "error": str(error)}
            logger.error("a connection to the database cannot be used", extra=extra)

    async def _pause(self) -> None:
        """Wait before the next attempt to connect."""
        if not self._stopping:
            await asyncio.sleep(URGENT_RETRY_SECONDS)
        if not self._waiting:
            await self._wait_for_work(RETRY_SECONDS)

    def _connection_lost(self) -> None:
        for worker in self._workers:
            if worker.connection is not None and not worker.connection.connected:
                worker.healthy = False
        self._update_fault()
        while self._idle:
            self._wake()

    def _mark_broken(self, worker: _Worker[Item, Answer], error: Exception) -> None:
        """Use this worker's connection for nothing before it is repaired."""
        worker.ticks = -1
        if worker.connection is not None:
            worker.healthy = False
            # What the server says of a statement; what it says of a connection names addresses, and is for the log.
            self._failed = str(error) if isinstance(error, StatementRejected) else "the database did not answer"
            self._update_fault()

    def _update_fault(self) -> None:
        self._is_hanging = any(worker.ticks >= HANGING_TICKS for worker in self._workers)
        if self._is_hanging:
            self.fault = "the database hangs"
        elif self._failed or not any(worker.healthy for worker in self._workers):
            self.fault = self._failed or "the connection was lost"
        else:
            self.fault = ""

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            for worker in self._workers:
                if worker.ticks >= 0:
                    worker.ticks += 1
            was_hanging = self._is_hanging
            self._update_fault()
            if self._is_hanging and not was_hanging and self._rejects_when_full:
                error = DatabaseUnavailable(self.fault)
                self._fail_waiting(error)
                for worker in self._workers:
                    fail(worker.batch, error)

    def _fail_waiting(self, error: Exception) -> None:
        batch, self._waiting = self._waiting, []
        if batch:
            self._log_failure(len(batch), error)
            fail(batch, self._to_error(error))

    def _log_failure(self, requests: int, error: Exception) -> None:
        """Say in the log that batches failed, once a second at most."""
        self._unlogged += requests
        now = time.monotonic()
        if now - self._logged_at >= LOG_SECONDS:
            extra = {"what": self._name, "requests": self._unlogged, "why": type(error).__name__, "error": str(error)}
            logger.error("the database did not do what it was asked; requests get 503", extra=extra)
            self._logged_at, self._unlogged = now, 0

    async def _gather_batch(self) -> None:
        """Let requests that the event loop has already received join the batch."""
        for _ in range(LOOP_TURNS):
            if len(self._waiting) >= FULL_BATCH:
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
