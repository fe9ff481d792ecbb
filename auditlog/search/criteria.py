"""What the calls are narrowed to, and how that is asked so that it costs the same in a large log as in a small one.

A condition that an index knows leads; what no index knows is judged row by row, some thousand rows at
a time: a page that finds too little in those says how far it looked, and its next page looks further.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from ipaddress import ip_address
from typing import Any, NamedTuple
from uuid import UUID

from django.db.models import Q, QuerySet
from django.utils import timezone

from auditlog.models import COMMON, Call
from auditlog.names import MOST, names
from auditlog.search import keyset
from auditlog.search.keyset import EPOCH, NEWER, OLDER, Cursor, Page
from auditlog.search.query_language import CONTAINS, IS, IS_NOT, Condition

SEARCHED = 10_000  # Rows one page looks at, at most.
NEAR = timedelta(days=7)
LATEST = datetime.max.replace(tzinfo=UTC)
DAYS_AT_ONCE = 8  # Partitions that one statement of an export reads: each costs it a dozen locks.
COUNTED = 10_000  # More are "10,000+": nobody waits for an exact large number.

SUBJECTS = ("host", "gateway", "server", "user")
SNAPSHOTS = {"user": "user_email"}
COLUMNS = {
    "outcome": "outcome",
    "method": "method",
    "tool": "feature_name",
    "token": "token_prefix",
    "identity": "identity_label",
    "client": "client_name",
    "reason": "deny_reason",
    "ip": "client_ip",
    "duration": "duration_ms",
    "upstream": "upstream_ms",
    "status": "http_status",
    "code": "rpc_error_code",
    "request": "request_bytes",
    "response": "response_bytes",
}
LOOKUPS = {"<": "__lt", "<=": "__lte", ">": "__gt", ">=": "__gte"}
NOTHING = Q(pk=None)


class Criterion(NamedTuple):
    """A condition in the database's words: alternatives of which each has an index, or else a test of each row."""

    alternatives: tuple[Q, ...]
    test: Q

    @property
    def leads(self) -> bool:
        return bool(self.alternatives)


def meaning(condition: Condition) -> Criterion:  # noqa: PLR0911  (one for each kind of field)
    """What a condition asks of a row."""
    if condition.operator == IS_NOT:
        same = meaning(replace(condition, operator=IS))
        return Criterion((), ~_any(same.alternatives) if same.leads else ~same.test)
    match condition.field:
        case "host" | "gateway" | "server" | "user":
            return _subject(condition.field, str(condition.values[0]), part=condition.operator == CONTAINS)
        case "connection" | "correlation":
            return indexed(Q(**{f"{condition.field}_id": pk}) for pk in uuids(condition.values))
        case "token" if pks := uuids(condition.values):
            return Criterion((), Q(token_id=pks[0]))
        case "ip":
            return Criterion((), _address(str(condition.values[0]), part=condition.operator == CONTAINS))
        case "outcome" | "method" | "tool" if condition.operator == IS:
            return one_of(COLUMNS[condition.field], condition.values)
    return Criterion((), _compared(COLUMNS[condition.field], condition))


def indexed(alternatives: Iterable[Q]) -> Criterion:
    """Alternatives of which each has an index."""
    return Criterion(tuple(alternatives), NOTHING)


def one_of(column: str, values: Sequence[str | float]) -> Criterion:
    """Rows with one of these values; what most calls are has no index of its own."""
    if COMMON.get(column) in values:
        return Criterion((), Q(**{f"{column}__in": values}))
    return indexed(Q(**{column: value}) for value in values)


def _subject(kind: str, text: str, *, part: bool) -> Criterion:
    """Rows of what is called so today, under whatever name they have; else rows with this name of then."""
    pks = uuids([text]) or names.bearers_of(kind, text, part=part)
    if pks and len(pks) <= MOST:
        return indexed(Q(**{f"{kind}_id": pk}) for pk in pks)
    column = SNAPSHOTS.get(kind, f"{kind}_name")
    return Criterion((), Q(**{f"{column}__icontains" if part else f"{column}__iexact": text}))


def _compared(column: str, condition: Condition) -> Q:
    value = condition.values[0]
    if condition.operator in LOOKUPS:
        return Q(**{f"{column}{LOOKUPS[condition.operator]}": value})
    if isinstance(value, float):
        return Q(**{column: value})
    return Q(**{f"{column}__icontains" if condition.operator == CONTAINS else f"{column}__iexact": value})


def _address(text: str, *, part: bool) -> Q:
    if part:
        return Q(client_ip__startswith=text)
    try:
        return Q(client_ip=str(ip_address(text)))
    except ValueError:
        return NOTHING


def uuid_of(text: str) -> UUID | None:
    """The id that `text` is; None when it is something else, such as a name."""
    try:
        return UUID(text)
    except ValueError:
        return None


def uuids(values: Sequence[str | float]) -> list[UUID]:
    """Those of the values that are ids."""
    return [pk for value in values if (pk := uuid_of(str(value)))]


def _any(alternatives: Sequence[Q]) -> Q:
    whole = Q()
    for one in alternatives:
        whole |= one
    return whole


def bare() -> QuerySet[Call]:
    """Calls without what they carried, which may be large."""
    return Call.objects.defer("request_payload", "response_payload")


class Counted(NamedTuple):
    """A number of rows; unless it `is_all`, there are or may be more."""

    number: int
    is_all: bool

    def __str__(self) -> str:
        return f"{self.number:,}{'' if self.is_all else '+'}"


def counted[M: Any](rows: QuerySet[M]) -> Counted:
    """How many rows there are, as far as anybody wants to know."""
    number = rows[: COUNTED + 1].count()
    return Counted(min(number, COUNTED), number <= COUNTED)


@dataclass(frozen=True)
class Found:
    """One page, and how far it looked when that was not to the end."""

    page: Page[Call]
    looked_to: datetime | None = None


class Search:
    """The calls between two moments that meet all conditions."""

    def __init__(
        self,
        conditions: Sequence[Condition | Criterion],
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> None:
        self.base = bare()
        meanings = [one if isinstance(one, Criterion) else meaning(one) for one in conditions]
        self._leaders = [one.alternatives for one in meanings if one.leads]
        self._tests = [one.test for one in meanings if not one.leads]
        self.since = since
        self.until = until

    @property
    def is_direct(self) -> bool:
        """Whether an index alone finds the rows."""
        return not self._tests and len(self._leaders) <= 1

    def rows(self) -> QuerySet[Call]:
        """All of them as one query, whatever that costs."""
        rows = self._between()
        for alternatives in self._leaders:
            rows = rows.filter(_any(alternatives))
        return rows.filter(*self._tests)

    def parts(self) -> list[QuerySet[Call]]:
        """The same as several queries without a row in common, each with an index of its own. For a direct one."""
        return [self._between().filter(one) for one in self._lead()]

    def recent(self, most: int) -> tuple[QuerySet[Call], datetime | None]:
        """Those among the newest `most` rows that the best index finds, and where these end; None: it is all."""
        floors = (near._reach(near._between(), OLDER, most) for near in self._from_near(None))  # noqa: SLF001  (its own kind)
        floor = next(filter(None, floors), None)
        return (self.rows().filter(created_at__gte=floor) if floor else self.rows()), floor

    def page(self, cursor: Cursor | None, size: int) -> Found:
        """The page a cursor names, the newest one without."""
        way = cursor.way if cursor else OLDER
        found = Found(Page([], None, None))
        for search in self._from_near(cursor):
            found = search._page(cursor, size)  # noqa: SLF001  (its own kind)
            if found.page.older if way == OLDER else found.page.newer:  # All of it would not hold another page.
                break
        return found

    def _from_near(self, cursor: Cursor | None) -> Iterator[Search]:
        """The same in the week beside a place in the log, then all of it.

        That week mostly holds what a page shows, and the database has few partitions to think about.
        """
        near = copy(self)
        with suppress(OverflowError):
            if cursor is not None and cursor.way == NEWER:
                near.until = min(cursor.at + NEAR, self.until or LATEST)
            else:
                near.since = max((cursor.at if cursor else timezone.now()) - NEAR, self.since or EPOCH)
            if (near.since, near.until) != (self.since, self.until):
                yield near
        yield self

    def _page(self, cursor: Cursor | None, size: int) -> Found:
        if self.is_direct:
            return Found(keyset.page(self.parts(), cursor, size))
        way = cursor.way if cursor else OLDER
        reach = self._reach(keyset.beyond(self._between(), cursor), way, SEARCHED)
        rows = self.rows()
        if reach is not None:
            rows = rows.filter(**{"created_at__gte" if way == OLDER else "created_at__lte": reach})
        page = keyset.page([rows], cursor, size)
        full = page.older if way == OLDER else page.newer
        if reach is None or (full and len(page.rows) == size):
            return Found(page)
        if way == OLDER:
            return Found(replace(page, older=Cursor(way, reach, 0)), reach)
        return Found(replace(page, newer=Cursor(way, reach, keyset.LAST)), reach)

    def by_time(self) -> Iterator[QuerySet[Call]]:
        """All of them as queries of a few partitions each, the newest first."""
        rows, later = self.rows(), None
        for start in sorted(Call.partitions.starts(), reverse=True)[DAYS_AT_ONCE - 1 :: DAYS_AT_ONCE]:
            since = datetime.combine(start, time.min, UTC)
            part = rows.filter(created_at__gte=since)
            yield part if later is None else part.filter(created_at__lt=later)
            if self.since is not None and since <= self.since:
                return
            later = since
        yield rows if later is None else rows.filter(created_at__lt=later)

    def count(self) -> Counted:
        """How many there are, as far as that is found out."""
        rows, floor = self.rows(), None
        if not self.is_direct or len(self._lead()) > 1:
            rows, floor = self.recent(COUNTED if self.is_direct else SEARCHED)
        else:
            near, *rest = self._from_near(None)
            if rest and not (found := counted(near.rows().order_by("-created_at"))).is_all:
                return found
        found = counted(rows.order_by("-created_at"))
        return found if floor is None else found._replace(is_all=False)

    def _between(self) -> QuerySet[Call]:
        rows = self.base
        if self.since:
            rows = rows.filter(created_at__gte=self.since)
        return rows.filter(created_at__lt=self.until) if self.until else rows

    def _lead(self) -> Sequence[Q]:
        return self._leaders[0] if self._leaders else (Q(),)

    def _reach(self, rows: QuerySet[Call], way: str, most: int) -> datetime | None:
        """How far `most` rows of the index that reaches furthest go; None when one of them is at its end before."""
        reaches = []
        for alternatives in self._leaders or [(Q(),)]:
            ends = [_nth(rows.filter(one), way, most // len(alternatives)) for one in alternatives]
            known = [end for end in ends if end is not None]
            if not known:
                return None
            # Each alternative is known as far as the nearest of these ends.
            reaches.append(max(known) if way == OLDER else min(known))
        return min(reaches) if way == OLDER else max(reaches)


def _nth(rows: QuerySet[Call], way: str, number: int) -> datetime | None:
    order = "-created_at" if way == OLDER else "created_at"
    return next(iter(rows.order_by(order).values_list("created_at", flat=True)[number : number + 1]), None)
