"""Deadlines, background loops and background tasks.

Failures of loops and tasks are logged and counted; expected errors of tasks are only logged. A failed loop runs again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import httpcore
import httpx

if TYPE_CHECKING:
    from prometheus_client import Counter

# A total deadline for httpx: every wait on a socket is limited to the time that is left.
#
# httpx limits each wait separately, so a peer that sends a byte now and then could keep a connection open for ever.

PART = 16 * 1024  # Bytes written between two checks of the deadline.


class Deadline:
    """A deadline that can be changed. Until `set` is called, time is unlimited."""

    def __init__(self) -> None:
        self._at = math.inf

    def set(self, seconds: float) -> None:
        """Set the deadline to `seconds` from now."""
        self._at = time.monotonic() + seconds

    def left(self, most: float | None) -> float:
        """Return the seconds left, limited to `most` if given. Raises httpcore.ReadTimeout when no time is left."""
        left = min(self._at - time.monotonic(), math.inf if most is None else most)
        if left <= 0:
            raise httpcore.ReadTimeout
        return left

    def check(self) -> None:
        """Raise httpx.ReadTimeout when no time is left. Call this while processing data that was already read."""
        if time.monotonic() >= self._at:
            raise httpx.ReadTimeout("the deadline has passed")


class TimedStream(httpcore.NetworkStream):
    """A network stream whose reads and writes end at the deadline."""

    def __init__(
        self, stream: httpcore.NetworkStream, deadline: Deadline, leads_to: tuple[str, int] | None = None
    ) -> None:
        self._stream = stream
        self._deadline = deadline
        self._leads_to = leads_to  # The far end of a tunnel. The socket itself only knows the address of the proxy.

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), PART):
            self._stream.write(buffer[start : start + PART], self._deadline.left(timeout))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, self._deadline.left(timeout))
        return TimedStream(stream, self._deadline, self._leads_to)

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        if info == "server_addr" and self._leads_to is not None:
            return self._leads_to
        return self._stream.get_extra_info(info)


# Background loops and tasks: failures are logged and counted. A failed loop is run again, and shown in /readyz.

logger = logging.getLogger(__name__)

RETRY_SECONDS = 0.25  # Pause between a failed round of a loop and the next round.
STOP_SECONDS = 1.0  # How long stop() waits for cancelled tasks.


class LoopFault(NamedTuple):
    """A loop whose last round failed, and the type of the error. The error's message is in the log, but not here."""

    task: str
    error: str
    guards_access: bool


_faults: dict[object, LoopFault] = {}


def faults() -> list[LoopFault]:
    """Return the loops of this process that have not completed a round since their last failure."""
    return [*_faults.values()]


@cache
def failures() -> Counter:
    """Return the Prometheus counter of failed rounds of loops, and of failed tasks."""
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
        """Run `wait` and `work` alternately, until the loop is stopped or `until` returns True.

        After a failure, `work` is tried again every RETRY_SECONDS. Meanwhile /readyz answers 503 if `guards_access`.
        """
        with suppress(OSError, ValueError):  # The disk may be full.
            failures().labels(name)  # Start at 0: Prometheus sees no increase in a series that begins with 1.
        task = asyncio.create_task(self._supervise(name, work, wait, guards_access, until), name=name)
        self._loops.add(task)
        task.add_done_callback(self._loops.discard)
        return task

    def spawn[T](self, name: str, work: Coroutine[Any, Any, T], *, eager: bool = False) -> asyncio.Task[T]:
        """Run `work` once as a task. With `eager`, `work` runs up to its first wait before `spawn` returns."""
        task = asyncio.Task(work, loop=asyncio.get_running_loop(), name=name, eager_start=eager)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def stop(self, patience: float = 0.0) -> None:
        """Cancel the loops at once. Cancel the tasks only if they have not ended after `patience` seconds."""
        loops = [*self._loops]
        for loop in loops:
            loop.cancel()
        ends = asyncio.get_running_loop().time() + patience
        while self._tasks and (left := ends - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(self._tasks, timeout=left)  # A task may spawn another task while it ends.
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
    """Return whether the running task was cancelled. False if only a task that it awaits was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _count(name: str) -> None:
    with suppress(OSError, ValueError):  # The disk may be full.
        failures().labels(name).inc()


spawn = Background().spawn  # For tasks that end with one request.
awaited = Background(Exception).spawn  # For tasks that the caller awaits: the caller gets their errors.
