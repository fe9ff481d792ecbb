"""Each test keeps a case every day, and each case comes within as many days as one in so many are chosen."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests import sampling

DRILLS = sampling.DRILLS + 2  # Of the tests there are.


@dataclass
class Case:
    """What sampling asks of a case of a test: its marks, its fixtures and its place."""

    number: int
    marks: list[pytest.MarkDecorator]
    fixturenames: tuple[str, ...] = ("db",)
    nodeid: str = ""
    callspec: Any = None
    added: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.nodeid, self.callspec = f"test_it[{self.number}]", SimpleNamespace(indices={"case": self.number})

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        return next((one.mark for one in self.marks if one.name == name), None)

    def add_marker(self, mark: pytest.MarkDecorator) -> None:
        self.added.add(mark.name)


def kept(monkeypatch: pytest.MonkeyPatch, seed: int, cases: list[Case]) -> set[int]:
    monkeypatch.setenv(sampling.SEED, str(seed))
    sampling.leave_out(cast("list[pytest.Item]", cases))
    return {one.number for one in cases if "full" not in one.added}


@pytest.mark.parametrize(
    ("count", "marks", "days"),
    [
        (1, [], 1),
        (2, [], 2),
        (3, [], 3),
        (30, [], 24),
        (20, [pytest.mark.one_in(6)], 6),
        (2, [pytest.mark.one_in(3)], 2),
        (9, [pytest.mark.full], 1),
    ],
)
def test_each_case_comes_within_so_many_days_and_one_at_least_each_day(
    monkeypatch: pytest.MonkeyPatch, count: int, marks: list[pytest.MarkDecorator], days: int
) -> None:
    # In an order that differs each day, as pytest-randomly has it.
    order = [list(range(count)), list(reversed(range(count)))]
    each = [kept(monkeypatch, 7 + day, [Case(number, marks) for number in order[day % 2]]) for day in range(days)]

    assert all(each)
    assert sorted(number for one in each for number in one) == list(range(count))


@pytest.mark.parametrize(("things", "parts"), [(1, 1), (12, 1), (12, 3), (13, 4), (3, 8)])
def test_each_thing_of_a_walk_comes_within_so_many_days_and_one_at_least_each_day(
    monkeypatch: pytest.MonkeyPatch, things: int, parts: int
) -> None:
    def of_day(day: int) -> list[int]:
        monkeypatch.setenv(sampling.SEED, str(7 + day))
        return sampling.part(range(things), parts)

    each = [of_day(day) for day in range(min(things, parts))]

    assert all(each)
    assert sorted(thing for one in each for thing in one) == list(range(things))


def test_a_table_that_needs_no_rows_runs_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(kept(monkeypatch, 7, [Case(number, [], ()) for number in range(20)])) == 20


def test_each_drill_comes_within_so_many_days_and_some_each_day(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_day(day: int) -> set[int]:
        drills = [Case(number, [pytest.mark.drill]) for number in range(DRILLS)]
        for one in drills:
            one.nodeid = f"tests/test_it.py::test_{one.number:02}"
        return kept(monkeypatch, 7 + day, drills)

    each = [of_day(day) for day in range(sampling.DRILLS)]

    assert {len(one) for one in each} == {1, 2}
    assert sorted(number for one in each for number in one) == list(range(DRILLS))


def test_tests_that_take_turns_each_come_within_so_many_days_with_each_of_their_cases(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def of_day(day: int) -> set[int]:
        cases = [Case(number, [pytest.mark.turns(3), pytest.mark.one_in(2)]) for number in range(8)]
        for one in cases:
            one.nodeid = f"tests/test_it.py::test_{one.number // 2}[{one.number}]"
        return kept(monkeypatch, 7 + day, cases)

    each = [of_day(day) for day in range(6)]

    assert {len(one) for one in each} == {1, 2}
    assert sorted(number for one in each for number in one) == list(range(8))


@pytest.mark.parametrize("values", [2, 3, sampling.DRILLS, 2 * sampling.DRILLS])
@pytest.mark.parametrize("chosen", [1, 2])
def test_each_value_of_a_drills_table_comes_with_the_drill(
    monkeypatch: pytest.MonkeyPatch, values: int, chosen: int
) -> None:
    def of_day(day: int) -> set[int]:
        monkeypatch.setenv(sampling.SEED, str(7 + day))
        table = sampling.some(range(values), chosen, days=sampling.DRILLS)
        drills = [Case(number, [pytest.mark.drill, *getattr(value, "marks", ())]) for number, value in enumerate(table)]
        said = {one.number for one in drills if one.get_closest_marker("full")}
        return kept(monkeypatch, 7 + day, drills) - said

    each = [of_day(day) for day in range(sampling.DRILLS * values)]

    assert set().union(*each) == set(range(values))
    assert sum(map(bool, each)) == values  # Of so many days it runs on one.


def test_each_case_of_a_drill_that_needs_rows_comes_with_the_drill(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_day(day: int) -> set[int]:
        return kept(monkeypatch, 7 + day, [Case(number, [pytest.mark.drill]) for number in range(2 * sampling.DRILLS)])

    each = [of_day(day) for day in range(sampling.DRILLS * sampling.ONE_IN)]

    assert set().union(*each) == set(range(2 * sampling.DRILLS))
