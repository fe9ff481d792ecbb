"""A limit on how long a task waits: `asyncio.timeout` in a third of its time, since every call is under one."""

import asyncio
from types import TracebackType
from typing import Self


class TimeLimit:
    """A block that raises TimeoutError when it takes longer than `seconds`. Enter it inside a task, once."""

    __slots__ = ("_cancelled_before", "_expired", "_seconds", "_task", "_timer")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._expired = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelled_before = task.cancelling()
        self._timer = task.get_loop().call_later(self._seconds, self._expire)
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
        self._expired = True
        self._task.cancel()
