"""Group calls by a column. Each group has the number of its calls and of its failures, and percentiles of durations.

`calls_of_week` is for lists of objects: it counts the calls of each object in the last seven days.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID

from django.core.cache import cache
from django.db import connection
from django.db.models import Q
from django.utils import timezone

from auditlog.fields import FIELDS, LogField
from auditlog.models import ENDINGS
from auditlog.names import newest_names
from auditlog.paging import EPOCH
from auditlog.rollups.reading import Book, Numbers, Where, book
from auditlog.rollups.schema import DIMENSIONS, range_start
from auditlog.search import AHEAD, Criterion, RowCount, Search, equal
from ui.pages import PAGE_SIZE

LISTED = PAGE_SIZE  # Groups on a page.
MOST = 1_000  # Groups in files and the API.
PARTS = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
SORTS = ("name", "calls", "errors", "error_rate", "denied", *PARTS)
BY = {name: FIELDS[name] for name in ("host", "user", "gateway", "server", "tool", "reason")}

OF_ROWS = """
SELECT {column}, count(*), count(*) FILTER (WHERE outcome = ANY(%s)), count(*) FILTER (WHERE outcome = ANY(%s)),
    percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY duration_ms)
FROM ({rows}) c WHERE {column}::text <> '' GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT %s
"""


@dataclass(frozen=True)
class CallGroup:
    """The calls with one value of a column. Durations are in milliseconds.

    `value` is the value in the form that a filter of the Logs page accepts.
    """

    value: str
    name: str
    calls: int
    errors: int
    denied: int
    p50: float | None
    p95: float | None
    p99: float | None

    @property
    def error_rate(self) -> float:
        return self.errors / self.calls if self.calls else 0.0

    @property
    def error_percent(self) -> str:
        return f"{100 * self.error_rate:.1f} %" if self.errors else "0 %"


@dataclass(frozen=True)
class Groups:
    """The groups with the most calls; `more` is True if others exist. Calls before `since` are not counted."""

    rows: Sequence[CallGroup]
    more: bool
    since: datetime | None = None

    def sorted(self, by: str) -> Sequence[CallGroup]:
        """Return the groups, sorted by a number or by name; a `-` before the field reverses the order."""
        field = by.removeprefix("-")
        if field == "name":
            return sorted(self.rows, key=lambda row: row.name.lower(), reverse=by.startswith("-"))
        return sorted(self.rows, key=lambda row: getattr(row, field) or 0, reverse=by.startswith("-"))


def group_calls(search: Search, by: LogField, most: int = MOST) -> Groups:
    """Group the calls of a search; return at most `most` groups.

    Counts all calls if the roll-ups can answer, otherwise only the newest calls (`Search.newest`).
    """
    where = search.equalities()
    found = None if where is None else _of_rollups(where, search, by, most)
    return _of_rows(search, by, most) if found is None else found


def _of_rollups(where: Where, search: Search, by: LogField, most: int) -> Groups | None:
    since, until, column = search.since or EPOCH, search.until or timezone.now() + AHEAD, by.group_column
    with book() as opened:
        busiest = opened.busiest(where, since, until, column, most + 1)
        if busiest is None:
            return None
        listed = [*busiest][:most]
        found = opened.read({**where, column: listed}, since, until, by=(column,)) if listed else {}
    if found is None:
        return None
    return _groups(by, {key: found[key,] for key in listed if (key,) in found}, more=len(busiest) > most)


def top(opened: Book, where: Where, by: LogField, since: datetime, until: datetime, most: int) -> Groups | None:
    """Return the groups with the most calls, counted with the roll-ups.

    If the roll-ups cannot answer, count only the newest calls that match `where`, or return None if `where` is empty.
    If `by` is the tool, calls of unknown tools are left out.
    """
    of_tools = by.name == "tool"  # Clients may invent names of tools.
    busiest = opened.busiest(where, since, until, by.group_column, most, named=of_tools)
    if busiest is not None:
        return _groups(by, busiest, more=False)
    if not where:
        return None
    named = [Criterion(~Q(deny_reason="unknown_tool"))] if of_tools else []
    return _of_rows(Search([*(equal(*each) for each in where.items()), *named], since, until), by, most)


def _groups(by: LogField, found: Mapping[Any, Numbers], *, more: bool) -> Groups:
    names = newest_names(by, found)
    rows = [
        CallGroup(
            str(key),
            names.get(key) or str(key),
            numbers.calls,
            numbers.errors,
            numbers.denied,
            *(numbers.quantile(part) for part in PARTS.values()),
        )
        for key, numbers in found.items()
    ]
    return Groups(rows, more)


def _of_rows(search: Search, by: LogField, most: int) -> Groups:
    column = by.group_column
    inner, parameters = search.newest().order_by().values(*{column, "outcome", "duration_ms"}).query.sql_with_params()
    with connection.cursor() as cursor:
        statement = OF_ROWS.format(column=column, rows=inner)
        cursor.execute(statement, [list(ENDINGS["error"]), list(ENDINGS["denied"]), *parameters, most + 1])
        found = cursor.fetchall()
    names = newest_names(by, [row[0] for row in found])
    listed = [CallGroup(str(key), names.get(key) or str(key), *counts, *parts) for key, *counts, parts in found[:most]]
    return Groups(listed, len(found) > most, search.floor)


def as_rows(found: Groups, sort: str) -> Iterator[dict[str, Any]]:
    """Yield the groups as rows for files and the API."""
    for one in found.sorted(sort):
        yield {
            "value": one.value,
            "name": one.name,
            "calls": one.calls,
            "errors": one.errors,
            "error_rate": round(one.error_rate, 6),
            "denied": one.denied,
            **{f"{part}_ms": _rounded(getattr(one, part)) for part in PARTS},
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


KEPT_SECONDS = 60
KEPT_FROM = timedelta(days=2)  # Answers about periods this long or longer are cached.


class CachedAnswer[T](NamedTuple):
    """An answer. If the answer is cached, `read_at` is the time at which it was read from the database."""

    answer: T
    read_at: datetime | None = None


def cached_answer[T](key: str, length: timedelta | None, read: Callable[[], T]) -> CachedAnswer[T]:
    """Return the answer of `read`. An answer about a long period is cached under `key` for KEPT_SECONDS.

    `length` is the length of the period. A period of KEPT_FROM or longer is long. If the period is all time, or if the
    person chose a start or end time, `length` is None. These periods count as long, too.
    """
    if length is not None and length < KEPT_FROM:
        return CachedAnswer(read())
    key = f"calls:{sha256(key.encode()).hexdigest()}"
    kept: CachedAnswer[T] | None = cache.get(key)
    if kept is None:
        kept = CachedAnswer(read(), timezone.now())
        cache.set(key, kept, KEPT_SECONDS)
    return kept


WEEK = timedelta(days=7)
MOST_OF_WEEK = 1_000  # Rows read per object if the roll-ups do not have the column.
OF_WEEK = """
SELECT k.id, (SELECT count(*) FROM (
    SELECT FROM auditlog_call c WHERE c.{column} = k.id AND c.created_at >= %s LIMIT %s
) newest) FROM unnest(%s::uuid[]) AS k (id)
"""


def calls_of_week(column: str, keys: Sequence[UUID]) -> dict[Any, RowCount]:
    """Return the number of calls in the last seven days, by value of `column`, for the values in `keys`.

    Show the numbers only to people who may read the whole log. If the roll-ups cannot answer, at most MOST_OF_WEEK
    calls are counted for each value.
    """
    now = timezone.now()
    since = range_start(now, WEEK)
    if column in DIMENSIONS and keys:
        with book() as opened:
            found = opened.read({column: list(keys)}, since, now, by=(column,), timed=False)
        if found is not None:
            return {key: RowCount(numbers.calls, is_all=True) for (key,), numbers in found.items()}
    with connection.cursor() as cursor:
        cursor.execute(OF_WEEK.format(column=column), [since, MOST_OF_WEEK + 1, list(keys)])
        return {key: RowCount(min(calls, MOST_OF_WEEK), calls <= MOST_OF_WEEK) for key, calls in cursor.fetchall()}
