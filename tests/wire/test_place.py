"""While a server waits for the client's input, the call's concurrency slot is free and its idle limit is paused."""

import asyncio
from contextlib import suppress

import pytest

from wire.client import QueueSlot
from wire.fair_queue import FairQueue, TimeLimit


def test_a_limit_says_which_of_the_two_was_exceeded() -> None:
    async def work() -> None:
        for seconds, total, exceeded in ((0.05, 5, "idle"), (5, 0.05, "total")):
            limit = TimeLimit(seconds, total)
            with pytest.raises(TimeoutError), limit:
                await asyncio.sleep(3)
            assert limit.exceeded == exceeded

    asyncio.run(work())


def test_a_call_that_ends_while_somebody_is_asked_gives_its_place_back_once() -> None:
    async def work() -> None:
        queue = FairQueue(1)
        assert queue.enter_now("ana", "c1")
        with TimeLimit(1, 5) as limit:
            place = QueueSlot(queue, "ana", "c1", limit)
            asked = asyncio.Event()

            async def ask() -> None:
                with place:
                    asked.set()
                    await asyncio.sleep(60)

            asking = [asyncio.ensure_future(ask()) for _ in range(2)]
            await asked.wait()
            place.end()
            for task in asking:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        assert (queue.under_way, queue.waiting) == (0, 0)

    asyncio.run(work())


@pytest.mark.full
def test_a_touch_begins_the_first_limit_anew_but_not_the_total() -> None:
    async def work() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        limit = TimeLimit(0.5, 1.2)

        async def keep_touching() -> None:
            while True:
                await asyncio.sleep(0.02)
                limit.touch()

        with pytest.raises(TimeoutError), limit:
            await keep_touching()
        assert limit.exceeded == "total"
        return loop.time() - began

    assert asyncio.run(work()) >= 1.2
