"""Concurrent changes: another person's action between our check and our write."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any

from django.db import connection, connections, transaction

from tests.eventually import eventually

WAITED_FOR = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid)))"


@contextmanager
def just_before(act: Callable[[], object], then: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Run `act` in a concurrent transaction, which stays open until the block waits for the transaction's locks.

    The transaction runs `act` before the block starts. When the block waits, the transaction runs `then` and commits.
    Fails if the block never waits. The test needs `django_db(transaction=True)`.
    """
    acted = Event()

    def another() -> None:
        try:
            with transaction.atomic():
                act()
                acted.set()
                eventually(_is_waited_for)
                then()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as others:
        other = others.submit(another)
        eventually(lambda: acted.is_set() or other.done())
        yield
        other.result()


def meanwhile(ask: Callable[[], Any], act: Callable[[], object]) -> Any:
    """Return the result of `ask`, called while a concurrent transaction has run `act` but has not committed.

    The test fails if `ask` never waits for the transaction.
    """
    with just_before(act):
        return ask()


def _is_waited_for() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(WAITED_FOR)
        return bool(cursor.fetchone()[0])
