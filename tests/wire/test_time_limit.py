"""`TimeLimit` behaves like `asyncio.timeout`, in whichever way its block ends."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from wire.fair_queue import TimeLimit


@asynccontextmanager
async def ours(seconds: float) -> Any:
    with TimeLimit(seconds):
        yield


type Limit = Callable[[float], AbstractAsyncContextManager[Any]]
LIMITS = (asyncio.timeout, ours)


async def outcome(limit: Limit, seconds: float, work: Callable[[], Any], cancel_after: float | None) -> object:
    """Return how a block under `limit` ends: result or error, pending cancellations, and the end of its task."""
    ended: list[object] = []

    async def block() -> None:
        try:
            async with limit(seconds):
                ended.append(await work())
        except BaseException as error:
            ended.append((type(error), type(error.__cause__)))
            raise
        finally:
            task = asyncio.current_task()
            ended.append(task.cancelling() if task else None)
        await asyncio.sleep(0)  # A pending cancellation would be raised here.
        ended.append("went on")

    task = asyncio.create_task(block())
    if cancel_after is not None:
        asyncio.get_running_loop().call_later(cancel_after, task.cancel)
    result = (await asyncio.gather(task, return_exceptions=True))[0]
    return ended, type(result)


async def quick() -> str:
    return "done"


async def slow() -> None:
    await asyncio.sleep(5)


async def failing() -> None:
    raise ValueError


async def stubborn() -> str:
    try:
        await asyncio.sleep(5)
    except asyncio.CancelledError:
        return "went its own way"
    return ""


async def failing_when_late() -> None:
    try:
        await asyncio.sleep(5)
    except asyncio.CancelledError:
        raise ValueError from None


async def cancelled_meanwhile() -> None:
    try:
        await asyncio.sleep(5)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        raise


@pytest.mark.full
async def test_it_ends_as_in_the_standard_library() -> None:
    for seconds, cancel_after in ((0.02, None), (5, 0.02)):
        for work in (quick, slow, failing, stubborn, failing_when_late, cancelled_meanwhile):
            theirs, mine = [await outcome(limit, seconds, work, cancel_after) for limit in LIMITS]
            assert mine == theirs, work


async def test_a_limit_within_a_limit() -> None:
    for limit in LIMITS:
        with pytest.raises(TimeoutError):
            async with limit(5), limit(0.01):
                await slow()
        with pytest.raises(TimeoutError):
            async with limit(0.01), limit(5):
                await slow()
        await asyncio.sleep(0)
