"""Marks for the cases that `make test` leaves to `make test-all`."""

from collections.abc import Iterable
from typing import Any

import pytest


def full(value: Any) -> Any:
    """Return this parameter (or tuple of parameters) with the mark `full`."""
    if hasattr(value, "marks"):
        return pytest.param(*value.values, id=value.id, marks=[*value.marks, pytest.mark.full])
    values = value if isinstance(value, tuple) else (value,)
    return pytest.param(*values, marks=pytest.mark.full)


def sampled(few: Any, every: Any = 1) -> list[Any]:
    """Return two values of a parameter: `make test` uses only `few`, `make test-all` uses only `every`.

    With `few`, a test runs a part of its cases; with `every`, it runs all of them.
    """
    return [pytest.param(few, marks=pytest.mark.sample), full(every)]


def first(count: int, values: Iterable[Any]) -> list[Any]:
    """Return all parameters; those after the first `count` have the mark `full`."""
    return [value if number < count else full(value) for number, value in enumerate(values)]
