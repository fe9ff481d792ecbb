"""How many calls the things of a list had in the last seven days."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection
from django.utils import timezone

from auditlog.ranges import range_start
from auditlog.rollups.reading import book
from auditlog.rollups.schema import DIMENSIONS

WEEK = timedelta(days=7)
MOST = 1_000  # Of one thing, where the roll-ups do not tell it apart: so many rows of the log are read, and no more.

OF_LOG = """
SELECT k.id, (SELECT count(*) FROM (
    SELECT FROM auditlog_call c WHERE c.{column} = k.id AND c.created_at >= %s LIMIT %s
) newest) FROM unnest(%s::uuid[]) AS k (id)
"""


class Week(NamedTuple):
    """A number of calls, at least; exact unless there are `more`."""

    calls: int
    more: bool = False

    def __str__(self) -> str:
        return f"{self.calls:,}{'+' if self.more else ''}"


def weeks(column: str, keys: Sequence[UUID]) -> dict[Any, Week]:
    """The calls of the last seven days by the values of a column of the log, for those who may read all of it.

    From the roll-ups where these know the column; else from the log, MOST of each.
    """
    now = timezone.now()
    since = range_start(now, WEEK)
    if column in DIMENSIONS and keys:
        with book() as opened:
            found = opened.read({column: list(keys)}, since, now, by=(column,), timed=False)
        if found is not None:
            return {key: Week(numbers.calls) for (key,), numbers in found.items()}
    with connection.cursor() as cursor:
        cursor.execute(OF_LOG.format(column=column), [since, MOST + 1, list(keys)])
        return {key: Week(min(calls, MOST), calls > MOST) for key, calls in cursor.fetchall()}
