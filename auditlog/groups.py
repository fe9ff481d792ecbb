"""Group calls by a column: number, failures and durations, for any filter of the log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from django.db import connection
from django.db.models import Q
from django.utils import timezone

from auditlog.models import ENDINGS
from auditlog.paging import EPOCH
from auditlog.rollups.reading import Book, Numbers, Where, book
from auditlog.search import AHEAD, SEARCH_LIMIT, Search, indexed, row_test

LISTED = 50  # Groups on a page,
MOST = 1_000  # and in files and the API.
PARTS = {"p50": 0.5, "p95": 0.95, "p99": 0.99}

OF_ROWS = """
SELECT {column}, count(*), count(*) FILTER (WHERE outcome = ANY(%s)), count(*) FILTER (WHERE outcome = ANY(%s)),
    percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY duration_ms)
FROM ({rows}) c WHERE {column}::text <> '' GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT %s
"""
NEWEST_NAMES = """
SELECT k.id, (
    SELECT c.{name} FROM auditlog_call c WHERE c.{column} = k.id AND c.created_at >= %s AND c.created_at < %s
    ORDER BY c.created_at DESC LIMIT 1
) FROM unnest(%s::uuid[]) AS k (id)
"""


class By(NamedTuple):
    """A grouping: the id column, the column of its name, and its label."""

    column: str
    name: str
    label: str

    @property
    def is_named(self) -> bool:
        """True if the values are ids of objects with names."""
        return self.column != self.name


BY = {
    "host": By("host_id", "host_name", "Host"),
    "user": By("user_id", "user_email", "User"),
    "gateway": By("gateway_id", "gateway_name", "Gateway"),
    "server": By("server_id", "server_name", "Server"),
    "tool": By("feature_name", "feature_name", "Tool"),
    "reason": By("deny_reason", "deny_reason", "Reason"),
}


@dataclass(frozen=True)
class CallGroup:
    """The calls of one value. Durations in milliseconds, `error_rate` from 0 to 1; `value` is the filter's value."""

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
        """Return the error rate as text."""
        return f"{100 * self.error_rate:.1f} %" if self.errors else "0 %"


@dataclass(frozen=True)
class Groups:
    """The groups with the most calls. `more`: there are others; `since`: only calls from this time are counted."""

    rows: Sequence[CallGroup]
    more: bool
    since: datetime | None = None

    def sorted(self, by: str) -> Sequence[CallGroup]:
        """Sort the groups by a number or by name; a `-` before the field reverses the order."""
        field = by.removeprefix("-")
        if field == "name":
            return sorted(self.rows, key=lambda row: row.name.lower(), reverse=by.startswith("-"))
        return sorted(self.rows, key=lambda row: getattr(row, field) or 0, reverse=by.startswith("-"))


SORTS = ("name", "calls", "errors", "error_rate", "denied", *PARTS)


def group_calls(search: Search, by: By, most: int = MOST) -> Groups:
    """Group the calls of a search; return at most `most` groups.

    Counts all calls if the roll-ups can answer, otherwise the newest SEARCH_LIMIT, as in searches without an index.
    """
    where = search.equalities()
    found = None if where is None else _of_rollups(where, search, by, most)
    return _of_rows(search, by, most) if found is None else found


def _between(search: Search) -> tuple[datetime, datetime]:
    return search.since or EPOCH, search.until or timezone.now() + AHEAD


def _of_rollups(where: Where, search: Search, by: By, most: int) -> Groups | None:
    since, until = _between(search)
    with book() as opened:
        busiest = opened.busiest(where, since, until, by.column, most + 1)
        if busiest is None:
            return None
        listed = [*busiest][:most]
        found = opened.read({**where, by.column: listed}, since, until, by=(by.column,)) if listed else {}
    if found is None:
        return None
    names = newest_names(by, listed, since, until)
    rows = [_group(key, names, found[key,]) for key in listed if (key,) in found]
    return Groups(rows, len(busiest) > most)


def top(opened: Book, where: Where, by: By, since: datetime, until: datetime, most: int) -> Groups | None:
    """Return the groups with the most calls, as `group_calls` does; None while the roll-ups are counted.

    Of tools, names that no server has are left out: they are typing errors.
    """
    of_tools = by is BY["tool"]
    busiest = opened.busiest(where, since, until, by.column, most, named=of_tools)
    if busiest is None:
        if not where:
            return None
        criteria = [indexed([Q(**{f"{column}__in": values})]) for column, values in where.items()]
        if of_tools:
            criteria.append(row_test(~Q(deny_reason="unknown_tool")))
        return _of_rows(Search(criteria, since, until), by, most)
    names = newest_names(by, [*busiest], since, until)
    return Groups([_group(key, names, numbers) for key, numbers in busiest.items()], False)


def _group(key: Any, names: dict[Any, str], numbers: Numbers) -> CallGroup:
    percentiles = [numbers.quantile(part) for part in PARTS.values()]
    return CallGroup(str(key), names.get(key) or str(key), numbers.calls, numbers.errors, numbers.denied, *percentiles)


def _of_rows(search: Search, by: By, most: int) -> Groups:
    rows, floor = search.recent(SEARCH_LIMIT)
    columns = {by.column, "outcome", "duration_ms"}
    inner, parameters = rows.order_by().values(*columns).query.sql_with_params()
    with connection.cursor() as cursor:
        statement = OF_ROWS.format(column=by.column, rows=inner)
        cursor.execute(statement, [list(ENDINGS["error"]), list(ENDINGS["denied"]), *parameters, most + 1])
        found = cursor.fetchall()
    names = newest_names(by, [row[0] for row in found], *_between(search))
    listed = [CallGroup(str(key), names.get(key) or str(key), *told, *parts) for key, *told, parts in found[:most]]
    return Groups(listed, len(found) > most, floor)


def newest_names(by: By, keys: Sequence[Any], since: datetime, until: datetime) -> dict[Any, str]:
    """Return the name in the newest call of each key."""
    if not by.is_named or not keys:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(NEWEST_NAMES.format(name=by.name, column=by.column), [since, until, list(keys)])
        return dict(cursor.fetchall())


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
