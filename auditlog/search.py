"""Search the calls: conditions as SQL, with a cost that does not grow with the log.

Conditions with an index select rows. All others are tested row by row, SEARCH_LIMIT rows at a time: a page with too few
results shows how far it searched, and the next page continues from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, time, timedelta
from ipaddress import ip_address
from itertools import batched
from typing import Any, NamedTuple
from uuid import UUID

from django.db.models import Q, QuerySet, Value
from django.utils import timezone

from auditlog import paging, query_language
from auditlog.fields import FIELDS, FREE_TEXT, PAYLOADS, Comparison, LogField
from auditlog.models import COMMON, Call, span_of_uid
from auditlog.name_lookups import MAX_IDS, lookups
from auditlog.paging import EPOCH, NEWER, OLDER, Cursor, Page
from auditlog.query_language import CONTAINS, IS, IS_NOT, Condition, Either
from auditlog.rollups.reading import book, known
from auditlog.rollups.schema import DIMENSIONS

SEARCH_LIMIT = 10_000  # Rows that one page tests at most.
RECENT = timedelta(days=7)
MOST_PLANNED = 200  # Days times alternatives in one statement: takes a few milliseconds and 25 MB to plan.
LATEST = datetime.max.replace(tzinfo=UTC)
DAYS_AT_ONCE = 8  # Partitions per statement of an export: each costs it a dozen locks.
AHEAD = timedelta(hours=1)  # Allows for clocks that are ahead.
COUNT_LIMIT = 10_000  # Above it "10,000+" is shown: an exact large number is not worth the wait.

LOOKUPS = {"<": "__lt", "<=": "__lte", ">": "__gt", ">=": "__gte"}
NOTHING = Q(pk=None)


class Criterion(NamedTuple):
    """A condition for the database: alternatives that each have an index, or else a test of each row."""

    alternatives: tuple[Q, ...]
    test: Q

    @property
    def is_indexed(self) -> bool:
        return bool(self.alternatives)


def criterion(condition: Condition | Either) -> Criterion:
    """Convert a condition of the search language."""
    if isinstance(condition, Either):
        return row_test(_any([_all(map(criterion, each)) for each in condition.alternatives]))
    match condition.field:
        case query_language.ANY_NAME:
            return free_text_criterion(str(condition.values[0]))
        case query_language.ANY_ID:
            return _of_anything(UUID(str(condition.values[0])))
    return _of_field(condition)


def _of_field(condition: Condition) -> Criterion:
    field, operator = FIELDS[condition.field], condition.operator
    if operator == IS_NOT:
        same = criterion(replace(condition, operator=IS))
        return row_test(~_any(same.alternatives) if same.is_indexed else ~same.test)
    match field.comparison:
        case Comparison.NAME:
            return _named(field, str(condition.values[0]), part=operator == CONTAINS)
        case Comparison.ID:
            return indexed(Q(**{field.column: pk}) for pk in uuids(condition.values))
        case Comparison.ADDRESS:
            return row_test(_address(field.column, str(condition.values[0]), part=operator == CONTAINS))
    if field.is_indexed and operator == IS:
        values = condition.values
        return one_of(field.column, _exposed(values) if field.name == "tool" else values)
    return row_test(_compared(field.column, condition))


def _all(criteria: Iterable[Criterion]) -> Q:
    together = Q()
    for each in criteria:
        together &= _any(each.alternatives) if each.is_indexed else each.test
    return together


def _of_anything(pk: UUID) -> Criterion:
    """Match the call with this id, the calls of its request, and those of the object with this id."""
    columns = {field.id_column or field.column for field in FIELDS.values() if field.is_indexed}
    ids = {column for column in columns if column.endswith("_id")} - _never_called(pk)
    # A call that is alone in its request has the request's id, and is found by that.
    alone = Q(uid=pk, created_at__range=span_of_uid(pk)) & ~Q(correlation_id=pk)
    return indexed([alone, *(Q(**{column: pk.hex if column == "trace_id" else pk}) for column in sorted(ids))])


def _never_called(pk: UUID) -> set[str]:
    """Return the columns in which, by the roll-ups, no call has this id.

    PostgreSQL mistakes a rare id for a frequent one, and would scan the whole log for its first call.
    """
    with book() as opened:
        ids = [column for column in DIMENSIONS if column.endswith("_id")]
        totals = {column: opened.total({column: [pk]}, EPOCH, timezone.now() + AHEAD, timed=False) for column in ids}
    return {column for column, total in totals.items() if total is not None and not total.calls}


def _exposed(names: Sequence[str | float]) -> list[str | float]:
    """Return these names, plus the names under which such tools are exposed to clients: `docs__echo` for `echo`."""
    known = [exposed for name in names for exposed in lookups.exposed_names(str(name))]
    return list(dict.fromkeys([*names, *known]))


def parameter_criterion(field: LogField, value: Any) -> Criterion:
    """Convert a parameter of the API: exactly this value, or one of these; objects are given by id."""
    if field.comparison is Comparison.NAME:
        same = [Q(**{field.id_column: pk}) for pk in value]
        return indexed(same) if field.is_indexed else row_test(_any(same))
    if not field.is_indexed:
        return row_test(Q(**{field.column: value}))
    rows = one_of(field.column, value if isinstance(value, list) else [value])
    condition = field.parameter.condition if field.parameter else None
    return rows if condition is None else indexed(same & condition for same in rows.alternatives)


def free_text_criterion(text: str) -> Criterion:
    """Match rows with this text in one of the free-text fields."""
    columns = [column for field in FREE_TEXT for column in field.name_columns]
    return row_test(_any([Q(**{f"{column}__icontains": text}) for column in columns]))


def indexed(alternatives: Iterable[Q]) -> Criterion:
    """Match rows by alternatives that each have an index; duplicates are removed, and no alternative matches no row."""
    return Criterion(tuple(dict.fromkeys(alternatives)), NOTHING)


def either(criteria: Sequence[Criterion]) -> Criterion:
    """Match rows that meet at least one of these, with indexes if all of them have one."""
    if all(each.is_indexed for each in criteria):
        return indexed(same for each in criteria for same in each.alternatives)
    return row_test(_any([_any(each.alternatives) if each.is_indexed else each.test for each in criteria]))


def none_of(criteria: Sequence[Criterion]) -> Criterion:
    """Match rows that meet none of these."""
    return row_test(_all(row_test(~(_any(each.alternatives) if each.is_indexed else each.test)) for each in criteria))


def row_test(test: Q) -> Criterion:
    """Test each row, without an index."""
    return Criterion((), test)


def one_of(column: str, values: Sequence[Any]) -> Criterion:
    """Match rows with one of these values in an indexed column. The most common value is not in the index."""
    if COMMON.get(column) in values:
        return row_test(Q(**{f"{column}__in": values}))
    return indexed(Q(**{column: value}) for value in values)


def _named(field: LogField, text: str, *, part: bool) -> Criterion:
    """Match rows of objects that have this name today, or if there are none, rows recorded with this name."""
    pks = uuids([text]) or lookups.ids_named(field.name, text, part=part)
    if pks and len(pks) <= MAX_IDS:
        same = [Q(**{field.id_column: pk}) for pk in pks]
        return indexed(same) if field.is_indexed else row_test(_any(same))
    way = "icontains" if part else "iexact"
    return row_test(_any([Q(**{f"{column}__{way}": text}) for column in field.name_columns]))


def _compared(column: str, condition: Condition) -> Q:
    value = condition.values[0]
    if condition.operator in LOOKUPS:
        return Q(**{f"{column}{LOOKUPS[condition.operator]}": value})
    if isinstance(value, float):
        return Q(**{column: value})
    return Q(**{f"{column}__icontains" if condition.operator == CONTAINS else f"{column}__iexact": value})


def _address(column: str, text: str, *, part: bool) -> Q:
    if part:
        return Q(**{f"{column}__startswith": text})
    try:
        return Q(**{column: str(ip_address(text))})
    except ValueError:
        return NOTHING


def uuid_of(text: str) -> UUID | None:
    """Return `text` as an id, or None if it is something else, such as a name."""
    try:
        return UUID(text)
    except ValueError:
        return None


def uuids(values: Sequence[str | float]) -> list[UUID]:
    """Return the values that are ids."""
    return [pk for value in values if (pk := uuid_of(str(value)))]


def _any(alternatives: Sequence[Q]) -> Q:
    any_of = Q()
    for alternative in alternatives:
        any_of |= alternative
    return any_of


def without_payloads() -> QuerySet[Call]:
    """Return calls without their payloads, which may be large."""
    return Call.objects.defer(*PAYLOADS)


class RowCount(NamedTuple):
    """A number of rows; there may be more unless `is_all`."""

    number: int
    is_all: bool

    @property
    def is_none(self) -> bool:
        """True if there are certainly no rows."""
        return self.is_all and not self.number

    @property
    def is_large(self) -> bool:
        """True if there are too many rows to read all of them."""
        return not self.is_all or self.number > COUNT_LIMIT

    def __str__(self) -> str:
        return f"{self.number:,}{'' if self.is_all else '+'}"


def count_rows[M: Any](rows: QuerySet[M]) -> RowCount:
    """Count the rows, up to COUNT_LIMIT."""
    number = rows[: COUNT_LIMIT + 1].count()
    return RowCount(min(number, COUNT_LIMIT), number <= COUNT_LIMIT)


@dataclass(frozen=True)
class SearchPage:
    """A page, and how far back the search went if it did not reach the end."""

    page: Page[Call]
    looked_to: datetime | None = None


@dataclass
class Known:
    """Per-request cache of index end positions, shared by all searches of the request.

    Searches with the same condition on an index query it only once.
    """

    at: datetime = field(default_factory=timezone.now)
    ends: dict[tuple[Any, ...], datetime | None] = field(default_factory=dict)


class Search:
    """Calls between two times that meet all conditions; `known` is the cache shared by searches of the request."""

    def __init__(
        self,
        conditions: Sequence[Condition | Either | Criterion],
        since: datetime | None = None,
        until: datetime | None = None,
        *,
        known: Known | None = None,
    ) -> None:
        self.base = without_payloads()
        criteria = [item if isinstance(item, Criterion) else criterion(item) for item in conditions]
        self._indexed = [item.alternatives for item in criteria if item.is_indexed]
        self._row_tests = [item.test for item in criteria if not item.is_indexed]
        self.since = since
        self.until = until
        self.known = known or Known()
        self._floors: dict[int, datetime | None] = {}
        self._count: RowCount | None = None

    @property
    def is_direct(self) -> bool:
        """True if one index finds the rows, without row tests."""
        return not self._row_tests and len(self._indexed) <= 1

    def rows(self) -> QuerySet[Call]:
        """Return all matching rows as one query, whatever it costs."""
        rows = self._between()
        for alternatives in self._indexed:
            rows = rows.filter(_any(alternatives))
        return rows.filter(*self._row_tests)

    def equalities(self) -> dict[str, list[Any]] | None:
        """Return the conditions as values of columns, or None if the roll-ups cannot answer them."""
        return known([*self._indexed, *([test] for test in self._row_tests)])

    def parts(self) -> list[QuerySet[Call]]:
        """Split a direct search into disjoint queries, each with its own index."""
        return [self._between().filter(condition) for condition in self._alternatives()]

    def recent(self, most: int) -> tuple[QuerySet[Call], datetime | None]:
        """Return the matches among the newest `most` rows of the best index, and where these end (None: all rows)."""
        if self.is_direct and self._count and self._count.is_all and self._count.number <= most:
            self._floors.setdefault(most, None)  # The index has as few rows.
        if most not in self._floors:
            floors = (near._reach(None, OLDER, most) for near in self._from_near(None))  # noqa: SLF001  (its own kind)
            self._floors[most] = next(filter(None, floors), None)
        floor = self._floors[most]
        return (self.rows().filter(created_at__gte=floor) if floor else self.rows()), floor

    @property
    def is_small(self) -> bool:
        """True if the search covers so few rows that they are counted directly, without roll-ups."""
        return self.recent(COUNT_LIMIT)[1] is None

    def page(self, cursor: Cursor | None, size: int) -> SearchPage:
        """Return the cursor's page, or the newest page without a cursor."""
        way = cursor.way if cursor else OLDER
        result = SearchPage(Page([], None, None))
        for search in self._from_near(cursor):
            result = search._page(cursor, size)  # noqa: SLF001  (its own kind)
            if result.page.older if way == OLDER else result.page.newer:  # The full search would not fill another page.
                break
        return result

    def slowest(self, size: int) -> SearchPage:
        """Return the slowest of the newest COUNT_LIMIT calls; there is no further page."""
        rows, floor = self.recent(COUNT_LIMIT)
        return SearchPage(Page(list(rows.order_by("-duration_ms", "-pk")[:size]), None, None), floor)

    def _from_near(self, cursor: Cursor | None) -> Iterator[Search]:
        """Yield this search limited to the 7 days next to the cursor, then unlimited.

        Most pages need only the former, for which the database plans few partitions.
        """
        near = copy(self)
        near._floors = {}  # noqa: SLF001  (its own kind)
        with suppress(OverflowError):
            if cursor is not None and cursor.way == NEWER:
                near.until = min(cursor.at + RECENT, self.until or LATEST)
            else:
                near.since = max((cursor.at if cursor else self.known.at) - RECENT, self.since or EPOCH)
            if (near.since, near.until) != (self.since, self.until):
                yield near
        yield self

    def _page(self, cursor: Cursor | None, size: int) -> SearchPage:
        if self.is_direct:
            return SearchPage(paging.page(self.parts(), cursor, size, self._at_once))
        way = cursor.way if cursor else OLDER
        reach = self._reach(cursor, way, SEARCH_LIMIT)
        rows = self.rows()
        if reach is not None:
            rows = rows.filter(**{"created_at__gte" if way == OLDER else "created_at__lte": reach})
        page = paging.page([rows], cursor, size)
        full = page.older if way == OLDER else page.newer
        if reach is None or (full and len(page.rows) == size):
            return SearchPage(page)
        if way == OLDER:
            return SearchPage(replace(page, older=Cursor(way, reach, 0)), reach)
        return SearchPage(replace(page, newer=Cursor(way, reach, paging.LAST)), reach)

    def by_time(self) -> Iterator[QuerySet[Call]]:
        """Yield queries of a few partitions each, newest first."""
        rows, later = self.rows(), None
        for start in sorted(Call.partitions.starts(), reverse=True)[DAYS_AT_ONCE - 1 :: DAYS_AT_ONCE]:
            since = datetime.combine(start, time.min, UTC)
            part = rows.filter(created_at__gte=since)
            yield part if later is None else part.filter(created_at__lt=later)
            if self.since is not None and since <= self.since:
                return
            later = since
        yield rows if later is None else rows.filter(created_at__lt=later)

    def count(self) -> RowCount:
        """Return the number of calls, cached; beyond COUNT_LIMIT only if the roll-ups can answer.

        Small numbers are counted in the log itself: rows of long calls reach the roll-ups up to a quarter of an hour
        later.
        """
        if self._count is None:
            self._count = self._counted()
        return self._count

    def _counted(self) -> RowCount:
        rows, floor = self.recent(COUNT_LIMIT)
        if floor is None:
            return count_rows(rows.order_by("-created_at"))
        if (where := self.equalities()) is not None:
            with book() as opened:
                exact = opened.total(where, self.since or EPOCH, self.until or timezone.now() + AHEAD, timed=False)
            if exact is not None:
                return RowCount(exact.calls, True)
        return count_rows(rows.order_by("-created_at"))._replace(is_all=False)

    @property
    def _at_once(self) -> int:
        """Return the number of alternatives per statement: PostgreSQL plans each of them for every day."""
        days = ((self.until or timezone.now()) - (self.since or EPOCH)).days + 1
        return max(MOST_PLANNED // max(days, 1), 1)

    def _between(self) -> QuerySet[Call]:
        rows = self.base
        if self.since:
            rows = rows.filter(created_at__gte=self.since)
        return rows.filter(created_at__lt=self.until) if self.until else rows

    def _alternatives(self) -> Sequence[Q]:
        return self._indexed[0] if self._indexed else (Q(),)

    def _reach(self, cursor: Cursor | None, way: str, most: int) -> datetime | None:
        """Return how far `most` rows of the furthest-reaching index go, or None if an index ends before."""
        reaches = []
        for alternatives in self._indexed or [(Q(),)]:
            ends = self._ends(alternatives, cursor, way, most // len(alternatives))
            moments = [end for end in ends if end is not None]
            if not moments:
                return None
            # All alternatives are known up to the nearest of their ends.
            reaches.append(max(moments) if way == OLDER else min(moments))
        return min(reaches) if way == OLDER else max(reaches)

    def _ends(self, alternatives: Sequence[Q], cursor: Cursor | None, way: str, number: int) -> list[datetime | None]:
        """Return, for each index, the time of the row with `number` rows before it, or None if there is none."""
        asked = [(str(alternative), self.since, self.until, cursor, way, number) for alternative in alternatives]
        unknown = {one: alternatives[n] for n, one in enumerate(asked) if one not in self.known.ends}
        rows = paging.beyond(self._between(), cursor).order_by("-created_at" if way == OLDER else "created_at")
        parts = [
            rows.filter(alternative, *self._within(one, way))
            .annotate(place=Value(n))
            .values_list("place", "created_at")[number : number + 1]
            for n, (one, alternative) in enumerate(unknown.items())
        ]
        found = dict[int, datetime]()
        for few in batched(parts, self._at_once):
            found |= dict(paging.together(few))
        self.known.ends |= {one: found.get(n) for n, one in enumerate(unknown)}
        return [self.known.ends[one] for one in asked]

    def _within(self, asked: tuple[Any, ...], way: str) -> list[Q]:
        """Narrow the search for an end by the known end of more rows: PostgreSQL then plans fewer days."""
        *same, number = asked
        further = (end for (*one, most), end in self.known.ends.items() if one == same and most > number and end)
        end = next(further, None)
        return [] if end is None else [Q(**{"created_at__gte" if way == OLDER else "created_at__lte": end})]
