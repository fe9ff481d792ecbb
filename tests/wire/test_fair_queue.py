"""The queue of calls to a server shares the server's slots fairly between people and connections."""

import asyncio
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import fair_queue
from wire.fair_queue import FairQueue, QueueFull


def filled(bound: int, *callers: tuple[str, str]) -> tuple[FairQueue, int]:
    """Return a new queue that each of `callers` has tried to enter, and the number of callers that entered."""
    queue = FairQueue(bound)
    return queue, sum(queue.enter_now(*caller) for caller in callers)


def test_one_person_and_one_connection_hold_a_share_and_never_all() -> None:
    for bound, person, connection in ((1, 1, 1), (2, 1, 1), (4, 2, 2), (16, 10, 8)):
        _, alone = filled(bound, *[("ann", "laptop")] * bound)
        _, spread = filled(bound, *[("ann", f"agent {n}") for n in range(bound)])
        assert (alone, spread) == (connection, person), bound


@given(st.integers(2, 64), st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("123")), max_size=200))
def test_the_first_call_of_somebody_starts_at_once_beside_anybody_s_many(
    bound: int, callers: list[tuple[str, str]]
) -> None:
    one = [caller for caller in callers if caller[0] == "a"]
    queue, _ = filled(bound, *[(person, person + connection) for person, connection in one])
    assert queue.enter_now("newcomer", "n1")


@pytest.mark.full
@given(st.integers(1, 20), st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("123")), max_size=100))
def test_no_more_than_the_bound_are_under_way_and_nothing_is_lost(bound: int, callers: list[tuple[str, str]]) -> None:
    async def main() -> None:
        queue = FairQueue(bound)
        under_way = most = ended = 0

        async def call(person: str, connection: str) -> None:
            nonlocal under_way, most, ended
            if not queue.enter_now(person, connection):
                await queue.enter(person, connection)
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0)
            under_way -= 1
            ended += 1
            queue.leave(person, connection)

        await asyncio.wait_for(asyncio.gather(*(call(p, p + c) for p, c in callers)), 20)
        assert (ended, queue.under_way, queue.waiting) == (len(callers), 0, 0)
        assert most <= bound

    asyncio.run(main())


def test_waiting_calls_take_turns_by_person_and_by_connection() -> None:
    async def main() -> list[str]:
        queue, order = FairQueue(1), []
        queue.enter_now("first", "f")

        async def call(person: str, connection: str) -> None:
            await queue.enter(person, connection)
            order.append(connection)
            queue.leave(person, connection)

        waiting = [("ann", "ann 1")] * 6 + [("ann", "ann 2")] * 2 + [("bob", "bob 1")] * 2
        tasks = [asyncio.create_task(call(*caller)) for caller in waiting]
        await asyncio.sleep(0)
        queue.leave("first", "f")
        await asyncio.gather(*tasks)
        return order

    order = asyncio.run(main())
    assert order[:4] == ["ann 1", "bob 1", "ann 2", "bob 1"]
    assert Counter(order) == {"ann 1": 6, "ann 2": 2, "bob 1": 2}
    assert all(a != b for a, b in pairwise(order[:6]))


def test_a_caller_who_gives_up_leaves_no_slot_taken() -> None:
    async def main() -> bool:
        queue = FairQueue(1)
        queue.enter_now("ann", "a")
        gone = asyncio.create_task(queue.enter("bob", "b"))
        late = asyncio.create_task(queue.enter("cy", "c"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        queue.leave("ann", "a")
        late.cancel()  # The task has been given its slot, but has not run since.
        await asyncio.gather(gone, late, return_exceptions=True)
        return not queue.under_way and not queue.waiting

    assert asyncio.run(main())


def test_a_caller_who_gives_up_as_a_slot_gets_free_is_skipped() -> None:
    async def main() -> tuple[bool, bool]:
        queue = FairQueue(1)
        queue.enter_now("ann", "a")
        gone, next_one = (asyncio.create_task(queue.enter("bob", "b")) for _ in range(2))
        await asyncio.sleep(0)
        gone.cancel()
        queue.leave("ann", "a")  # In the event loop iteration of the cancellation, as if both calls timed out.
        await asyncio.gather(gone, next_one, return_exceptions=True)
        entered = not next_one.cancelled() and next_one.exception() is None
        queue.leave("bob", "b")
        return entered, not queue.under_way and not queue.waiting

    assert asyncio.run(main()) == (True, True)


def test_so_many_may_wait_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_queue, "MOST_WAITING", 3)
    monkeypatch.setattr(fair_queue, "MOST_WAITING_OF_ONE", 2)

    async def main() -> list[bool]:
        queue = FairQueue(1)
        queue.enter_now("ann", "a")
        tasks = []
        for person in ("ann", "ann", "ann", "bob", "bob"):
            tasks.append(asyncio.create_task(queue.enter(person, person)))
            await asyncio.sleep(0)
        refused = [task.done() and isinstance(task.exception(), QueueFull) for task in tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return refused

    assert asyncio.run(main()) == [False, False, True, False, True]
