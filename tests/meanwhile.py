"""Two who act on one row at the same moment, always in the same order."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from django.db import connection, transaction

from tests.eventually import eventually

KEPT_WAITING = (
    "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid)))"
)


def meanwhile(ask: Callable[[], Any], act: Callable[[], object]) -> Any:
    """What `ask` gets, which finds everything as it was before `act` and has to wait for that to be committed.

    It takes a test whose transactions are real.
    """

    def asked() -> Any:
        with closing(connection):
            return ask()

    with ThreadPoolExecutor(1) as other:
        with transaction.atomic():
            act()
            answer = other.submit(asked)
            eventually(_keeps_it_waiting)
        return answer.result(timeout=60)


def _keeps_it_waiting() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(KEPT_WAITING)
        return bool(cursor.fetchone()[0])
