"""Select the parametrized cases that `make test` runs. All others are marked `full` and run in `make test-all`."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pytest

# With these fixtures each case takes at least tens of milliseconds.
SLOW = {"db", "transactional_db", "django_db_setup", "live", "live_alone"}


def full(value: Any) -> Any:
    """Return this parameter (or tuple of parameters) with the mark `full`."""
    if hasattr(value, "marks"):
        return pytest.param(*value.values, id=value.id, marks=[*value.marks, pytest.mark.full])
    values = value if isinstance(value, tuple) else (value,)
    return pytest.param(*values, marks=pytest.mark.full)


def first(count: int, values: Iterable[Any]) -> list[Any]:
    """Mark all parameters as `full`, except the first `count`."""
    return [value if number < count else full(value) for number, value in enumerate(values)]


def every(step: int, values: Iterable[Any]) -> list[Any]:
    """Mark all parameters as `full`, except every `step`-th, beginning with the first."""
    return [full(value) if number % step else value for number, value in enumerate(values)]


def leave_first_cases(items: Iterable[pytest.Item]) -> None:
    """Mark all cases of each slow test except the first as `full`.

    Skips tests with parameters marked `full` already, and tests marked `every_case`.
    """
    tests = defaultdict[str, list[pytest.Item]](list)
    for item in items:
        tests[item.nodeid.partition("[")[0]].append(item)
    for cases in tests.values():
        if is_slow(cases[0]) and not any(is_marked(case, "full", "every_case") for case in cases):
            for case in sorted(cases, key=number)[1:]:
                case.add_marker(pytest.mark.full)


def is_slow(case: pytest.Item) -> bool:
    return is_marked(case, "django_db") or not SLOW.isdisjoint(getattr(case, "fixturenames", ()))


def is_marked(case: pytest.Item, *names: str) -> bool:
    return any(case.get_closest_marker(name) for name in names)


def number(case: pytest.Item) -> tuple[int, ...]:
    """Return the indices of the case's parameters, as a sort key: pytest's items are in random order."""
    return tuple(case.callspec.indices.values()) if hasattr(case, "callspec") else ()
