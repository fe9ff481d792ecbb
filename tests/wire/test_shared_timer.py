"""Deadlines of many calls over one timer: each comes, none is early, and what is dropped never comes."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.eventually import until
from wire.fair_queue import SharedTimer


@dataclass(eq=False)
class Noted:
    """Notes when it expired."""

    at: list[float] = field(default_factory=list)
    then: Callable[[], object] = bool

    def expire(self) -> None:
        self.at.append(asyncio.get_running_loop().time())
        self.then()


def run(work: Callable[[SharedTimer, float], Any]) -> None:
    async def main() -> None:
        await work(SharedTimer(), asyncio.get_running_loop().time())

    asyncio.run(main())


def test_each_expires_once_and_never_early_whatever_the_order_they_are_set_in() -> None:
    async def work(timer: SharedTimer, now: float) -> None:
        due = {Noted(): now + seconds for seconds in (0.3, 0.05, 0.31, 0.02, 0.3, 0.15)}
        for timed, at in due.items():
            timer.set(timed, at)
        await until(lambda: all(timed.at for timed in due))
        last = Noted()
        timer.set(last, asyncio.get_running_loop().time() + 0.1)
        await until(lambda: last.at)

        assert [len(timed.at) for timed in due] == [1] * len(due)
        assert all(timed.at[0] >= at for timed, at in due.items())

    run(work)


def test_what_is_dropped_does_not_expire_and_the_others_do() -> None:
    async def work(timer: SharedTimer, now: float) -> None:
        dropped, kept = Noted(), Noted()
        timer.set(dropped, now + 0.05)
        timer.set(kept, now + 0.1)
        timer.drop(dropped)
        timer.drop(dropped)  # As whoever ends twice does.
        await until(lambda: kept.at)

        assert dropped.at == []

    run(work)


def test_one_that_expires_may_be_set_anew_and_take_away_that_of_another() -> None:
    async def work(timer: SharedTimer, now: float) -> None:
        other, again = Noted(), Noted()

        def once_more() -> None:
            timer.drop(other)
            if len(again.at) == 1:
                timer.set(again, now + 0.2)

        again.then = once_more
        timer.set(again, now + 0.05)
        timer.set(other, now + 0.05)
        await until(lambda: len(again.at) == 2)

        assert other.at == []
        assert again.at[1] >= now + 0.2

    run(work)


def test_a_thousand_timer_of_calls_that_end_in_time_take_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(timer: SharedTimer, now: float) -> None:
        loop = asyncio.get_running_loop()
        started: list[float] = []
        call_at = loop.call_at

        def noted(when: float, *args: Any, **more: Any) -> asyncio.TimerHandle:
            started.append(when)
            return call_at(when, *args, **more)

        monkeypatch.setattr(loop, "call_at", noted)
        for number in range(1000):
            timed = Noted()
            timer.set(timed, now + 30 + number / 1000)
            timer.drop(timed)

        assert started == [now + 30]

    run(work)
