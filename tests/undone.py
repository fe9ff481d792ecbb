"""Run several cases of a test in one world: each case rolls back its changes."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import transaction


@contextmanager
def undone() -> Iterator[None]:
    """Roll back all changes of the block in the database, so that the next case starts in the same world."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)
