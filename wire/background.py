"""Background loops and tasks: failures are logged, counted and shown in /readyz, and loops are run again."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from prometheus_client import Counter

logger = logging.getLogger(__name__)

RETRY_SECONDS = 0.25  # Between a failed round of a loop and the next.
STOP_SECONDS = 1.0  # How long stop() waits for cancelled tasks.


class LoopFault(NamedTuple):
    """A loop whose last round failed, and the type of the error; its message is for the log."""

    task: str
    error: str
    guards_access: bool


_faults: dict[object, LoopFault] = {}


def faults() -> list[LoopFault]:
    """Return the loops of this process that have not completed a round since one failed."""
    return [*_faults.values()]


@cache
def failures() -> "Counter":
    """Return the counter of failed rounds and tasks."""
    # Imported late: the directory of the multiprocess counters is set when the workers start.
    from prometheus_client import Counter  # noqa: PLC0415

    return Counter(
        "gateway_background_failures", "Rounds of background loops, and background tasks, that failed", ("task",)
    )


class Background:
    """The loops and tasks of one component of the process.

    `expected` errors, such as an unreachable database, are logged without a traceback.
    """

    def __init__(self, *expected: type[Exception]) -> None:
        self._expected = expected
        self._loops: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    def forever(
        self,
        name: str,
        work: Callable[[], Awaitable[object]],
        wait: Callable[[], Awaitable[object]],
        *,
        guards_access: bool = False,
        until: Callable[[], bool] = lambda: False,
    ) -> asyncio.Task[None]:
        """Run `wait` and `work` in turns, until stopped or `until` is true.

        After a failed round `work` is tried again every RETRY_SECONDS, without `wait`. While a loop that
        `guards_access` fails, /readyz answers 503.
        """
        with suppress(OSError, ValueError):  # The disk may be full.
            failures().labels(name)  # Prometheus sees no increase in a series that begins with 1.
        task = asyncio.create_task(self._supervise(name, work, wait, guards_access, until), name=name)
        self._loops.add(task)
        task.add_done_callback(self._loops.discard)
        return task

    def spawn[T](self, name: str, work: Coroutine[Any, Any, T], *, eager: bool = False) -> asyncio.Task[T]:
        """Run `work` once as a task; `eager` runs it up to its first wait before this returns.

        `expected` errors are only logged at debug level: they are common in work for a server or a client.
        """
        task = asyncio.Task(work, loop=asyncio.get_running_loop(), name=name, eager_start=eager)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def stop(self, patience: float = 0.0) -> None:
        """Cancel the loops at once, and the tasks that have not ended in `patience` seconds."""
        loops = [*self._loops]
        for loop in loops:
            loop.cancel()
        ends = asyncio.get_running_loop().time() + patience
        while self._tasks and (left := ends - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(self._tasks, timeout=left)  # Ending tasks may spawn others.
        for task in self._tasks:
            task.cancel()
        if ending := [*loops, *self._tasks]:
            await asyncio.wait(ending, timeout=STOP_SECONDS)

    async def _supervise(
        self,
        name: str,
        work: Callable[[], Awaitable[object]],
        wait: Callable[[], Awaitable[object]],
        guards_access: bool,
        until: Callable[[], bool],
    ) -> None:
        key, logged = object(), set[type[BaseException]]()
        try:
            while not until():
                try:
                    if not logged:
                        await wait()
                    await work()
                except (Exception, asyncio.CancelledError) as error:
                    if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                        raise
                    _faults[key] = LoopFault(name, type(error).__name__, guards_access)
                    _count(name)
                    if type(error) not in logged:
                        logged.add(type(error))
                        self._log(logging.WARNING, name, error)
                    await asyncio.sleep(RETRY_SECONDS)
                else:
                    if logged:
                        logged.clear()
                        del _faults[key]
        finally:
            _faults.pop(key, None)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, self._expected):
            _count(task.get_name())
        self._log(logging.DEBUG, task.get_name(), error)

    def _log(self, level_if_expected: int, name: str, error: BaseException) -> None:
        if isinstance(error, self._expected):
            logger.log(level_if_expected, "background work failed", extra={"task": name, "error": str(error)})
        else:
            logger.error("background work failed", extra={"task": name, "error": str(error)}, exc_info=error)


def every(seconds: float) -> Callable[[], Awaitable[object]]:
    """Return a `wait` function for a loop with a fixed pause between rounds."""
    return lambda: asyncio.sleep(seconds)


def _is_cancelled() -> bool:
    """Return whether the running task itself was cancelled, not something it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _count(name: str) -> None:
    with suppress(OSError, ValueError):  # The disk may be full.
        failures().labels(name).inc()


spawn = Background().spawn  # For tasks that end with one request.
