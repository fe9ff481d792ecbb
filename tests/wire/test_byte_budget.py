"""The memory budget of large answers, per person and in total."""

import asyncio
from contextlib import suppress

import pytest

from tests.eventually import PATIENCE
from wire.fair_queue import (
    MOST_WAITING_OF_ONE,
    SHARES,
    ByteBudget,
    HeldBytes,
    QueueFull,
    TimeLimit,
    without_idle_limits,
)

SHARE = 1000


def budget_of(seconds: float = 60) -> ByteBudget:
    return ByteBudget(SHARES * SHARE, seconds)


async def soon() -> None:
    """Let all ready tasks of the loop run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_an_answer_beyond_the_share_of_its_person_waits_and_those_of_others_do_not() -> None:
    budget = budget_of()
    first = await budget.hold("ana", SHARE - 1)
    second = asyncio.create_task(budget.hold("ana", SHARE))
    other = await asyncio.wait_for(budget.hold("max", SHARE), PATIENCE)
    await soon()
    assert not second.done()

    first.resize(0)  # It is smaller than was reserved.
    await soon()

    assert second.result().size == SHARE
    assert budget.total == first.size + SHARE + other.size


async def test_one_answer_of_a_person_has_room_whatever_its_size() -> None:
    budget = budget_of()

    held = await budget.hold("ana", SHARES * SHARE + 1)

    assert budget.total == held.size


async def test_all_people_together_stay_below_the_ceiling_and_a_small_answer_does_not_overtake_a_large_one() -> None:
    budget = budget_of()
    held = [await budget.hold(f"person {number}", SHARE) for number in range(SHARES)]
    large, small = (asyncio.create_task(budget.hold(person, size)) for person, size in (("ana", 2 * SHARE), ("max", 1)))
    await soon()
    assert not large.done()

    held.pop()
    await soon()
    assert not small.done()
    held.pop()
    await soon()

    assert large.done()


async def test_a_call_begins_when_nothing_of_its_person_waits() -> None:
    budget = budget_of()
    held = await budget.hold("ana", SHARE)
    answer = asyncio.create_task(budget.hold("ana", 1))
    await soon()
    call = asyncio.create_task(budget.admit("ana"))
    await soon()
    assert not call.done()

    del held
    await soon()

    assert answer.done()
    assert call.done()


async def test_a_call_that_found_no_room_in_time_does_not_begin() -> None:
    budget = budget_of(seconds=0.01)
    held = [budget.take("ana", SHARE + 1)]

    with pytest.raises(TimeoutError):
        await budget.admit("ana")

    await budget.admit("max")
    held.clear()
    await soon()
    await budget.admit("ana")
    assert (budget.total, budget.waiting) == (0, 0)


async def test_disconnecting_while_waiting_takes_no_room() -> None:
    budget = budget_of()
    held = await budget.hold("ana", SHARE)
    gone, patient = (asyncio.create_task(budget.hold("ana", SHARE)) for _ in range(2))
    await soon()
    gone.cancel()
    with suppress(asyncio.CancelledError):
        await gone

    del held
    await soon()

    assert patient.done()
    assert budget.total == SHARE


@pytest.mark.full
async def test_one_person_cannot_fill_the_queue_for_others() -> None:
    budget = budget_of()
    held = [await budget.hold(person, SHARE) for person in ("ana", "max")]
    waiting = [asyncio.create_task(budget.hold("ana", 1)) for _ in range(MOST_WAITING_OF_ONE)]
    await soon()

    with pytest.raises(QueueFull):
        await budget.hold("ana", 1)
    other = asyncio.create_task(budget.hold("max", 1))
    held.pop()
    await soon()

    assert other.done()
    for each in waiting:
        each.cancel()


async def test_bytes_are_given_back_in_whichever_thread_the_last_reference_ends() -> None:
    budget = budget_of()
    held: list[HeldBytes] = [await budget.hold("ana", SHARE)]

    await asyncio.to_thread(held.clear)
    await soon()

    assert budget.total == 0


@pytest.mark.full
async def test_a_server_s_time_does_not_pass_while_its_answer_waits_for_us() -> None:
    with TimeLimit(0.01), without_idle_limits():
        await asyncio.sleep(0.2)


async def test_the_time_of_others_passes_meanwhile() -> None:
    async def other() -> None:
        with TimeLimit(0.01):
            await asyncio.Event().wait()

    with TimeLimit(0.01), without_idle_limits(), pytest.raises(TimeoutError):
        await asyncio.create_task(other())
