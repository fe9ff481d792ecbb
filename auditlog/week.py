"""The number of calls of a list's objects in the last seven days."""

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
MOST = 1_000  # Rows read per object if the roll-ups lack the column.

OF_LOG = """
SELECT k.id, (SELECT count(*) FROM (
    SELECT FROM auditlog_call c WHERE c.{column} = k.id AND c.created_at >= %s LIMIT %s
) newest) FROM unnest(%s::uuid[]) AS k (id)
"""


class Week(NamedTuple):
    """A number of calls; a lower bound if `more`."""

    calls: int
    more: bool = False

    def __str__(self) -> str:
        return f"{self.calls:,}{'+' if self.more else ''}"


def weeks(column: str, keys: Sequence[UUID]) -> dict[Any, Week]:
    """Return the calls of the last seven days by value of a column, for people who may read the whole log.

    From the roll-ups if they have the column, otherwise from the log, at most MOST per value.
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
