"""What `make test` runs of rules with many variants: some of them, others each day. `make test-all` runs every one.

Which they are follows from `TEST_SEED`, a number, by default today's: the run prints it, and the same number chooses
the same variants again.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

SEED = "TEST_SEED"
# Fixtures of tests that take tens of milliseconds for each case.
ROWS = {"db", "transactional_db", "django_db_setup", "live", "live_alone"}


def fix_seed() -> None:
    """Let all processes of a run choose alike, whatever day it is when they begin."""
    os.environ.setdefault(SEED, str(datetime.now(UTC).toordinal()))


def seed() -> int:
    return int(os.environ[SEED])


def some(values: Iterable[Any], count: int, turn: int = 0, *, days: int = 1) -> list[Any]:
    """Parameters of a test, all but `count` of them marked `full`: others with the next seed or `turn`.

    `days` is in how many the test runs once, such as `DRILLS`: they change from one of its runs to the next.
    """
    values = list(values)
    chosen = {((seed() // days + turn) * count + number) % len(values) for number in range(count)}
    return [value if number in chosen else full(value) for number, value in enumerate(values)]


def one_in(parts: int, values: Iterable[Any], turn: int = 0) -> list[Any]:
    """As `some`: one in so many of the values, each of them once in so many seeds."""
    values = list(values)
    return some(values, -(-len(values) // parts), turn)


def in_turn(number: int, of: int) -> Callable[[Any], Any]:
    """A test that is one of so many alike, each slow: `make test` runs the one with this number, by the seed."""
    return (lambda test: test) if seed() % of == number else pytest.mark.full


ONE_IN = 24  # Of the cases of a test one in so many is run, and one at least.
DRILLS = 20  # Of the tests marked `drill` one in so many is run.


def leave_out(items: Iterable[pytest.Item]) -> None:
    """Mark the cases of each test `full` that this seed does not choose.

    One in so many is chosen as its marker `one_in` says, and one in `ONE_IN` where each case needs the database.
    Whoever says with `some` what is chosen has said it all. Drills take turns, and so do tests marked `turns`.
    """
    tests = defaultdict[str, list[pytest.Item]](list)
    for item in items:
        tests[item.nodeid.partition("[")[0]].append(item)
    taking = {name: turns_of(cases[0]) for name, cases in tests.items()}
    resting = resting_tests(taking)
    for name, cases in tests.items():
        parts = min(parts_of(cases), len(cases))  # At least one is.
        day = seed() // taking[name]
        for number, case in enumerate(sorted(cases, key=place)):
            if name in resting or (number + day) % parts:
                case.add_marker(pytest.mark.full)


def turns_of(case: pytest.Item) -> int:
    """Once in how many days its test runs."""
    if case.get_closest_marker("drill"):
        return DRILLS
    marker = case.get_closest_marker("turns")
    return int(marker.args[0]) if marker else 1


def resting_tests(taking: Mapping[str, int]) -> set[str]:
    """The names of the tests whose turn it is not. Those of one module, which may be alike, come on different days."""
    alike = defaultdict[int, list[str]](list)
    for name, turns in taking.items():
        alike[turns].append(name)
    return {
        name for turns, names in alike.items() for number, name in enumerate(sorted(names)) if (number + seed()) % turns
    }


def parts_of(cases: list[pytest.Item]) -> int:
    """One in how many of these is chosen."""
    if marker := cases[0].get_closest_marker("one_in"):
        return int(marker.args[0])
    said = any(case.get_closest_marker("full") for case in cases)
    return ONE_IN if needs_rows(cases[0]) and not said else 1


def needs_rows(case: pytest.Item) -> bool:
    asked = ROWS.intersection(getattr(case, "fixturenames", ()))
    return bool(asked or case.get_closest_marker("django_db"))


def place(case: pytest.Item) -> tuple[int, ...]:
    """Where a case stands among those of its test, in whatever order they run."""
    return tuple(case.callspec.indices.values()) if hasattr(case, "callspec") else ()


def full(value: Any) -> Any:
    """A parameter, or a set of them, of which the test runs in `make test-all` only."""
    values = value.values if hasattr(value, "marks") else value if isinstance(value, tuple) else (value,)
    given = {"id": value.id, "marks": [*value.marks, pytest.mark.full]} if hasattr(value, "marks") else {}
    return pytest.param(*values, **({"marks": pytest.mark.full} | given))


def walk(parts: int) -> pytest.MarkDecorator:
    """A test that walks over the `part` of something: over one in `parts`, and in `make test-all` also over all."""
    return pytest.mark.parametrize("parts", [parts, full(1)])


def part(values: Iterable[Any], parts: int, *, days: int = 1) -> list[Any]:
    """One in so many of these, one at least: others with the next seed, or after so many `days`."""
    values = list(values)
    return values[seed() // days % min(parts, len(values)) :: parts]


def rounds(few: int, many: int) -> pytest.MarkDecorator:
    """How often a test repeats what it does: `few` times, and in `make test-all` also `many` times."""
    return pytest.mark.parametrize("rounds", [few, full(many)])
