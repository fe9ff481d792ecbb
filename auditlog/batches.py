"""What waits travels together: a few carriers, each with one batch under way. Needs no Django."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from auditlog.lane import Lane

logger = logging.getLogger(__name__)

# A batch leaves when so many wait, or after so many turns of the loop. A round trip and a commit cost as much
# as a dozen more items in them; in a larger batch all wait for each other, while the loop has nothing to do.
ENOUGH = 16
TURNS = 3
TELL_SECONDS = 1.0

type Waiting[Item, Answer] = tuple[Item, asyncio.Future[Answer]]
type Carry[Item, Answer] = Callable[[list[Waiting[Item, Answer]]], Awaitable[None]]


class Batches[Item, Answer]:
    """Hands over what is put in, as many items at once as wait; a carrier sets the answer of each.

    A carrier that raises fails its whole batch with what `lost` makes of the error. `lanes` are what they carry over.
    """

    def __init__(
        self,
        what: str,
        carriers: Sequence[Carry[Item, Answer]],
        lanes: Sequence[Lane],
        *,
        lost: Callable[[Exception], Exception],
        most: int = 200,
    ) -> None:
        self._what = what
        self._carriers = carriers
        self._lanes = lanes
        self._lost = lost
        self._most = most
        self._waiting: list[Waiting[Item, Answer]] = []
        self._resting: list[asyncio.Future[None]] = []
        self._stopping = False
        self._told, self._untold = float("-inf"), 0
        self._workers: list[asyncio.Task[None]] = []

    @property
    def waiting(self) -> int:
        """How many wait for the next batch."""
        return len(self._waiting)

    def start(self) -> None:
        self._workers = [asyncio.create_task(self._work(carry), name=self._what) for carry in self._carriers]

    async def stop(self) -> None:
        """Hand over what is waiting, then stop and give the connections up."""
        self._stopping = True
        while self._resting:
            self._wake()
        await asyncio.gather(*self._workers)
        for lane in self._lanes:
            lane.close()

    def put(self, item: Item) -> asyncio.Future[Answer]:
        """The answer to `item`, when it is there."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if len(self._waiting) == 1:  # The others travel with the first.
            self._wake()
        return future

    def _wake(self) -> None:
        if self._resting:
            self._resting.pop().set_result(None)

    async def _work(self, carry: Carry[Item, Answer]) -> None:
        while self._waiting or not self._stopping:
            if not self._waiting:
                rest = asyncio.get_running_loop().create_future()
                self._resting.append(rest)
                await rest
            await self._gather()
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            if not batch:  # The other carrier was quicker.
                continue
            if self._waiting:
                self._wake()
            try:
                await carry(batch)
            except Exception as error:  # noqa: BLE001 - a dead worker would leave every later item waiting
                self._tell(len(batch), error)
                fail(batch, self._lost(error))
            else:
                self._untold = 0

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


def settle[Answer](future: asyncio.Future[Answer], answer: Answer) -> None:
    """Give an answer to whoever still waits for it."""
    if not future.done():
        future.set_result(answer)


def fail[Item, Answer](batch: Sequence[Waiting[Item, Answer]], error: Exception) -> None:
    """End the waiting of a batch with this error."""
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
