"""Run several cases of a test on the same data: each case rolls back its changes."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import transaction


@contextmanager
def undone() -> Iterator[None]:
    """Roll back all changes of the block in the database, so that the next case starts with the same data."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)
