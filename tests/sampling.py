"""What `make test` runs of rules with many variants: some of them, others each day. `make test-all` runs every one.

Which they are follows from `TEST_SEED`, a number, by default today's: the run prints it, and the same number chooses
the same variants again.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import pytest

SEED = "TEST_SEED"


def fix_seed() -> None:
    """Let all processes of a run choose alike, whatever day it is when they begin."""
    os.environ.setdefault(SEED, str(datetime.now(UTC).toordinal()))


def seed() -> int:
    return int(os.environ[SEED])


def some(values: Iterable[Any], count: int, turn: int = 0) -> list[Any]:
    """Parameters of a test, all but `count` of them marked `full`: others with the next seed or `turn`."""
    values = list(values)
    chosen = {((seed() + turn) * count + number) % len(values) for number in range(count)}
    return [value if number in chosen else full(value) for number, value in enumerate(values)]


def one_in(parts: int, values: Iterable[Any], turn: int = 0) -> list[Any]:
    """As `some`: one in so many of the values, each of them once in so many seeds."""
    values = list(values)
    return some(values, -(-len(values) // parts), turn)


def in_turn(number: int, of: int) -> Callable[[Any], Any]:
    """A test that is one of so many alike, each slow: `make test` runs the one with this number, by the seed."""
    return (lambda test: test) if seed() % of == number else pytest.mark.full


_met: Counter[str] = Counter()


def leave_out(item: pytest.Item) -> None:
    """Mark a test `full` unless it is among the parameters that its marker `one_in` chooses with this seed."""
    if marker := item.get_closest_marker("one_in"):
        function = item.nodeid.partition("[")[0]
        if (_met[function] + seed()) % marker.args[0]:
            item.add_marker(pytest.mark.full)
        _met[function] += 1


def full(value: Any) -> Any:
    """A parameter, or a set of them, of which the test runs in `make test-all` only."""
    values = value.values if hasattr(value, "marks") else value if isinstance(value, tuple) else (value,)
    given = {"id": value.id, "marks": [*value.marks, pytest.mark.full]} if hasattr(value, "marks") else {}
    return pytest.param(*values, **({"marks": pytest.mark.full} | given))


def rounds(few: int, many: int) -> pytest.MarkDecorator:
    """How often a test repeats what it does: `few` times, and in `make test-all` also `many` times."""
    return pytest.mark.parametrize("rounds", [few, full(many)])
