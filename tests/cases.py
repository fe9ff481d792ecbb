"""Cases of a test: marks for those that `make test` leaves to `make test-all`, and one world for many of them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import transaction


def full(value: Any) -> Any:
    """Return this parameter (or tuple of parameters) with the mark `full`."""
    if hasattr(value, "marks"):
        return pytest.param(*value.values, id=value.id, marks=[*value.marks, pytest.mark.full])
    values = value if isinstance(value, tuple) else (value,)
    return pytest.param(*values, marks=pytest.mark.full)


def first(count: int, values: Iterable[Any]) -> list[Any]:
    """Mark all parameters as `full`, except the first `count`."""
    return [value if number < count else full(value) for number, value in enumerate(values)]


@contextmanager
def undone() -> Iterator[None]:
    """Roll back all changes of the block in the database, so that the next case starts in the same world."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)
