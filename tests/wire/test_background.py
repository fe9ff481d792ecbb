"""Background loops and tasks: no failure is silent."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import pytest

from tests.eventually import until
from wire import background
from wire.background import Background, LoopFault, every


class Expected(Exception):
    """An expected error."""


@pytest.fixture
async def loops() -> AsyncIterator[Background]:
    made = Background(Expected)
    yield made
    await made.stop()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.01)


def failed(name: str) -> float:
    counted = background.failures().labels(name)
    return float(counted._value.get())


def logged(log: pytest.LogCaptureFixture, name: str) -> list[tuple[str, bool]]:
    """Return the level of each log line about this task, and whether it has a traceback."""
    return [(record.levelname, bool(record.exc_info)) for record in log.records if getattr(record, "task", "") == name]


class Rounds:
    """The work of a loop. Each round adds background.faults() to `faults`, then raises the next of `errors`, if any."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = [*errors]
        self.faults: list[list[LoopFault]] = []

    async def work(self) -> None:
        self.faults.append(background.faults())
        if self.errors:
            raise self.errors.pop(0)


async def test_a_loop_that_fails_is_logged_once_counted_shown_and_tried_again(
    loops: Background, caplog: pytest.LogCaptureFixture
) -> None:
    rounds, before = Rounds(TypeError("a"), TypeError("b"), KeyError("c")), failed("one")
    waits: list[int] = []

    async def wait() -> None:
        waits.append(len(rounds.faults))
        if len(waits) > 1:
            await asyncio.sleep(600)

    loops.forever("one", rounds.work, wait, guards_access=True)
    await until(lambda: len(waits) == 2)

    shown = [LoopFault("one", error, guards_access=True) for error in ("TypeError", "TypeError", "KeyError")]
    assert rounds.faults == [[], *([each] for each in shown)]
    assert background.faults() == []
    assert waits == [0, 4]  # This pause is not used after a failed round.
    assert failed("one") - before == 3
    assert logged(caplog, "one") == [("ERROR", True)] * 2


async def test_an_expected_error_of_a_loop_is_a_warning_without_a_traceback(
    loops: Background, caplog: pytest.LogCaptureFixture
) -> None:
    rounds = Rounds(Expected("away"), Expected("away"))
    loops.forever("two", rounds.work, every(0))
    await until(lambda: len(rounds.faults) > 2)

    assert logged(caplog, "two") == [("WARNING", False)]


async def test_a_loop_outlives_a_cancellation_inside_and_ends_without_a_fault_when_it_is_cancelled_itself(
    loops: Background,
) -> None:
    rounds = Rounds(asyncio.CancelledError(), *map(TypeError, range(1000)))
    task = loops.forever("three", rounds.work, every(0))
    await until(background.faults)

    await loops.stop()

    assert task.cancelled()
    assert background.faults() == []


async def test_a_full_disk_does_not_end_a_loop(loops: Background, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(background, "failures", full)
    rounds = Rounds(TypeError())
    loops.forever("four", rounds.work, every(0))

    await until(lambda: len(rounds.faults) > 1)


async def test_a_task_that_fails_is_logged_and_a_fault_is_counted(
    loops: Background, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    before = failed("task")

    await asyncio.wait([loops.spawn("task", Rounds(error).work()) for error in (TypeError("a"), Expected("b"))])
    await asyncio.sleep(0)

    assert failed("task") - before == 1
    assert sorted(logged(caplog, "task")) == [("DEBUG", False), ("ERROR", True)]


@pytest.mark.parametrize("patience", [0.0, 600.0])
async def test_a_stop_waits_for_tasks_and_those_they_begin_as_long_as_it_is_told(
    loops: Background, patience: float
) -> None:
    ended: list[str] = []
    go = asyncio.Event()

    async def work(name: str, then: Callable[[], object] = bool) -> None:
        await go.wait()
        await asyncio.sleep(0)
        ended.append(name)
        then()

    loops.spawn("first", work("first", lambda: loops.spawn("second", work("second"))))
    asyncio.get_running_loop().call_soon(go.set)
    await loops.stop(patience)

    assert ended == (["first", "second"] if patience else [])
