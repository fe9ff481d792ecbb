"""Searching the calls: conditions as SQL, with a cost that does not grow with the log.

Conditions with an index select rows. All others are tested row by row, SEARCH_LIMIT rows at a time: a page that finds
too few says how far it searched, and the next page continues from there.
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

from auditlog.models import COMMON, Call, span_of_uid
from auditlog.name_lookups import MAX_IDS, lookups
from auditlog.rollups.reading import book, known
from auditlog.rollups.schema import DIMENSIONS
from auditlog.search import keyset, query_language
from auditlog.search.fields import FIELDS, FREE_TEXT, PAYLOADS, Comparison, LogField
from auditlog.search.keyset import EPOCH, NEWER, OLDER, Cursor, Page
from auditlog.search.query_language import CONTAINS, IS, IS_NOT, Condition, Either

SEARCH_LIMIT = 10_000  # Rows that one page tests at most.
RECENT = timedelta(days=7)
MOST_PLANNED = 200  # Days of alternatives in one statement: some milliseconds and 25 MB.
LATEST = datetime.max.replace(tzinfo=UTC)
DAYS_AT_ONCE = 8  # Partitions that one statement of an export reads: each costs it a dozen locks.
AHEAD = timedelta(hours=1)  # Some clock may be.
COUNT_LIMIT = 10_000  # More are "10,000+": nobody waits for an exact large number.

LOOKUPS = {"<": "__lt", "<=": "__lte", ">": "__gt", ">=": "__gte"}
NOTHING = Q(pk=None)


class Criterion(NamedTuple):
    """A condition as the database takes it: alternatives of which each has an index, or else a test of each row."""

    alternatives: tuple[Q, ...]
    test: Q

    @property
    def is_indexed(self) -> bool:
        return bool(self.alternatives)


def criterion(condition: Condition | Either) -> Criterion:
    """What a condition of the search language asks of a row."""
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
    """The call with this id, those of its request, and those of the row it is the id of."""
    columns = {field.id_column or field.column for field in FIELDS.values() if field.is_indexed}
    ids = {column for column in columns if column.endswith("_id")} - _never_called(pk)
    # A call that came alone has the id of its request, and is found by that.
    alone = Q(uid=pk, created_at__range=span_of_uid(pk)) & ~Q(correlation_id=pk)
    return indexed([alone, *(Q(**{column: pk.hex if column == "trace_id" else pk}) for column in sorted(ids))])


def _never_called(pk: UUID) -> set[str]:
    """The columns in which the roll-ups know that no call has this id: few calls have others, and an index finds them.

    PostgreSQL takes a thing of few for one of many, and would look for its first call through the whole log.
    """
    with book() as opened:
        ids = [column for column in DIMENSIONS if column.endswith("_id")]
        totals = {column: opened.total({column: [pk]}, EPOCH, timezone.now() + AHEAD, timed=False) for column in ids}
    return {column for column, total in totals.items() if total is not None and not total.calls}


def _exposed(names: Sequence[str | float]) -> list[str | float]:
    """These names, and those under which tools of these names are shown to clients: `docs__echo` for `echo`."""
    known = [exposed for name in names for exposed in lookups.exposed_names(str(name))]
    return list(dict.fromkeys([*names, *known]))


def parameter_criterion(field: LogField, value: Any) -> Criterion:
    """What a parameter of the API asks of a row: exactly this value, or one of these; things are given by their ids."""
    if field.comparison is Comparison.NAME:
        same = [Q(**{field.id_column: pk}) for pk in value]
        return indexed(same) if field.is_indexed else row_test(_any(same))
    if not field.is_indexed:
        return row_test(Q(**{field.column: value}))
    rows = one_of(field.column, value if isinstance(value, list) else [value])
    condition = field.parameter.condition if field.parameter else None
    return rows if condition is None else indexed(same & condition for same in rows.alternatives)


def free_text_criterion(text: str) -> Criterion:
    """Rows with this text in one of the free text fields."""
    columns = [column for field in FREE_TEXT for column in field.name_columns]
    return row_test(_any([Q(**{f"{column}__icontains": text}) for column in columns]))


def indexed(alternatives: Iterable[Q]) -> Criterion:
    """Alternatives of which each has an index, each once; without any, no row."""
    return Criterion(tuple(dict.fromkeys(alternatives)), NOTHING)


def either(criteria: Sequence[Criterion]) -> Criterion:
    """Rows that meet one of these or several; with an index where each of them has one."""
    if all(each.is_indexed for each in criteria):
        return indexed(same for each in criteria for same in each.alternatives)
    return row_test(_any([_any(each.alternatives) if each.is_indexed else each.test for each in criteria]))


def none_of(criteria: Sequence[Criterion]) -> Criterion:
    """Rows that meet none of these."""
    return row_test(_all(row_test(~(_any(each.alternatives) if each.is_indexed else each.test)) for each in criteria))


def row_test(test: Q) -> Criterion:
    """A test of each row, for which there is no index."""
    return Criterion((), test)


def one_of(column: str, values: Sequence[Any]) -> Criterion:
    """Rows with one of these values in an indexed column; the most common value is not in the index."""
    if COMMON.get(column) in values:
        return row_test(Q(**{f"{column}__in": values}))
    return indexed(Q(**{column: value}) for value in values)


def _named(field: LogField, text: str, *, part: bool) -> Criterion:
    """Rows of the things that have this name today, whatever it was then; else rows with this name at the time."""
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
    """The id that `text` is; None when it is something else, such as a name."""
    try:
        return UUID(text)
    except ValueError:
        return None


def uuids(values: Sequence[str | float]) -> list[UUID]:
    """Those of the values that are ids."""
    return [pk for value in values if (pk := uuid_of(str(value)))]


def _any(alternatives: Sequence[Q]) -> Q:
    any_of = Q()
    for alternative in alternatives:
        any_of |= alternative
    return any_of


def without_payloads() -> QuerySet[Call]:
    """Calls without their payloads, which may be large."""
    return Call.objects.defer(*PAYLOADS)


class RowCount(NamedTuple):
    """A number of rows; unless it `is_all`, there are or may be more."""

    number: int
    is_all: bool

    @property
    def is_none(self) -> bool:
        """Whether there is not one."""
        return self.is_all and not self.number

    @property
    def is_large(self) -> bool:
        """Whether they are too many to read them all."""
        return not self.is_all or self.number > COUNT_LIMIT

    def __str__(self) -> str:
        return f"{self.number:,}{'' if self.is_all else '+'}"


def count_rows[M: Any](rows: QuerySet[M]) -> RowCount:
    """How many rows there are, up to COUNT_LIMIT."""
    number = rows[: COUNT_LIMIT + 1].count()
    return RowCount(min(number, COUNT_LIMIT), number <= COUNT_LIMIT)


@dataclass(frozen=True)
class SearchPage:
    """One page, and how far back it was searched when that was not to the end."""

    page: Page[Call]
    looked_to: datetime | None = None


@dataclass
class Known:
    """What searches of one request found out of the log: when that was, and where indexes end.

    Searches that ask the same of an index share it, so that it is asked once.
    """

    at: datetime = field(default_factory=timezone.now)
    ends: dict[tuple[Any, ...], datetime | None] = field(default_factory=dict)


class Search:
    """The calls between two moments that meet all conditions; `known` is what others of the same request found."""

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
        """Whether an index alone finds the rows."""
        return not self._row_tests and len(self._indexed) <= 1

    def rows(self) -> QuerySet[Call]:
        """All of them as one query, whatever that costs."""
        rows = self._between()
        for alternatives in self._indexed:
            rows = rows.filter(_any(alternatives))
        return rows.filter(*self._row_tests)

    def equalities(self) -> dict[str, list[Any]] | None:
        """Its conditions as values of columns, when the roll-ups can tell of it; else None."""
        return known([*self._indexed, *([test] for test in self._row_tests)])

    def parts(self) -> list[QuerySet[Call]]:
        """The same as several queries without a row in common, each with an index of its own. For a direct one."""
        return [self._between().filter(condition) for condition in self._alternatives()]

    def recent(self, most: int) -> tuple[QuerySet[Call], datetime | None]:
        """Those among the newest `most` rows of the best index, and the time where these end; None when it is all."""
        if self.is_direct and self._count and self._count.is_all and self._count.number <= most:
            self._floors.setdefault(most, None)  # So many rows are in the index, too.
        if most not in self._floors:
            floors = (near._reach(None, OLDER, most) for near in self._from_near(None))  # noqa: SLF001  (its own kind)
            self._floors[most] = next(filter(None, floors), None)
        floor = self._floors[most]
        return (self.rows().filter(created_at__gte=floor) if floor else self.rows()), floor

    @property
    def is_small(self) -> bool:
        """Whether all of them are among so few rows that these are counted, and roll-ups need not be asked."""
        return self.recent(COUNT_LIMIT)[1] is None

    def page(self, cursor: Cursor | None, size: int) -> SearchPage:
        """The page a cursor names, the newest one without."""
        way = cursor.way if cursor else OLDER
        result = SearchPage(Page([], None, None))
        for search in self._from_near(cursor):
            result = search._page(cursor, size)  # noqa: SLF001  (its own kind)
            if result.page.older if way == OLDER else result.page.newer:  # All of it would not hold another page.
                break
        return result

    def slowest(self, size: int) -> SearchPage:
        """Those that took longest of the newest COUNT_LIMIT; there is no further page."""
        rows, floor = self.recent(COUNT_LIMIT)
        return SearchPage(Page(list(rows.order_by("-duration_ms", "-pk")[:size]), None, None), floor)

    def _from_near(self, cursor: Cursor | None) -> Iterator[Search]:
        """The same in the week beside a place in the log, then all of it.

        That week mostly holds what a page shows, and the database has few partitions to think about.
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
            return SearchPage(keyset.page(self.parts(), cursor, size, self._at_once))
        way = cursor.way if cursor else OLDER
        reach = self._reach(cursor, way, SEARCH_LIMIT)
        rows = self.rows()
        if reach is not None:
            rows = rows.filter(**{"created_at__gte" if way == OLDER else "created_at__lte": reach})
        page = keyset.page([rows], cursor, size)
        full = page.older if way == OLDER else page.newer
        if reach is None or (full and len(page.rows) == size):
            return SearchPage(page)
        if way == OLDER:
            return SearchPage(replace(page, older=Cursor(way, reach, 0)), reach)
        return SearchPage(replace(page, newer=Cursor(way, reach, keyset.LAST)), reach)

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

    def count(self) -> RowCount:
        """How many there are; up to COUNT_LIMIT where the roll-ups cannot tell. Counted once.

        Few are counted in the log itself, which has rows that the roll-ups get a quarter of an hour later.
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
        """Of how many alternatives one statement is made: PostgreSQL plans each for every day there is."""
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
        """How far `most` rows of the index that reaches furthest go; None when one of them is at its end before."""
        reaches = []
        for alternatives in self._indexed or [(Q(),)]:
            ends = self._ends(alternatives, cursor, way, most // len(alternatives))
            moments = [end for end in ends if end is not None]
            if not moments:
                return None
            # Each alternative is known as far as the nearest of these ends.
            reaches.append(max(moments) if way == OLDER else min(moments))
        return min(reaches) if way == OLDER else max(reaches)

    def _ends(self, alternatives: Sequence[Q], cursor: Cursor | None, way: str, number: int) -> list[datetime | None]:
        """When the row of each index is that has so many before it; None where there is none."""
        asked = [(str(alternative), self.since, self.until, cursor, way, number) for alternative in alternatives]
        unknown = {one: alternatives[n] for n, one in enumerate(asked) if one not in self.known.ends}
        rows = keyset.beyond(self._between(), cursor).order_by("-created_at" if way == OLDER else "created_at")
        parts = [
            rows.filter(alternative, *self._within(one, way))
            .annotate(place=Value(n))
            .values_list("place", "created_at")[number : number + 1]
            for n, (one, alternative) in enumerate(unknown.items())
        ]
        found = dict[int, datetime]()
        for few in batched(parts, self._at_once):
            found |= dict(keyset.together(few))
        self.known.ends |= {one: found.get(n) for n, one in enumerate(unknown)}
        return [self.known.ends[one] for one in asked]

    def _within(self, asked: tuple[Any, ...], way: str) -> list[Q]:
        """What is known of an end by that of more rows: PostgreSQL has fewer days to think about then."""
        *same, number = asked
        further = (end for (*one, most), end in self.known.ends.items() if one == same and most > number and end)
        end = next(further, None)
        return [] if end is None else [Q(**{"created_at__gte" if way == OLDER else "created_at__lte": end})]
