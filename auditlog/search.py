"""Search the calls, with a cost that does not grow with the log.

For one page, at most SEARCH_LIMIT rows are read, from one index. If they contain too few matches to fill the page, the
page shows how far back it searched, and the next page continues from that time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from functools import cached_property, reduce
from ipaddress import ip_address
from operator import and_, or_
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection
from django.db.models import FloatField, Q, QuerySet, UUIDField, Value
from django.db.models.expressions import RawSQL
from django.utils import timezone

from auditlog import names, paging, query_language
from auditlog.fields import FIELDS, FREE_TEXT, PAYLOADS, Comparison, LogField
from auditlog.models import COMMON, LAST_MOMENT, Call, span_of_uid
from auditlog.paging import EPOCH, LAST, RECENT, Cursor, Page, is_newer
from auditlog.query_language import CONTAINS, IS, IS_NOT, Condition, Either
from auditlog.rollups.reading import book
from auditlog.rollups.schema import DIMENSIONS, ENDS
from ui.pages import uuid_of

SEARCH_LIMIT = 10_000  # Rows that one page reads at most. If roll-ups cannot count all, the count ends with "+".
DAYS_AT_ONCE = 8  # Partitions per statement of an export, because each partition costs a dozen locks.
AHEAD = timedelta(hours=1)  # Searches also read this hour of the future: clocks of other machines may be ahead.

LOOKUPS = {"<": "__lt", "<=": "__lte", ">": "__gt", ">=": "__gte"}
NOTHING = Q(pk=None)
# Columns with an index on (column, created_at), and the condition of the index if it is partial.
INDEXES = {index.fields[0]: index.condition or Q() for index in Call._meta.indexes} | {"created_at": Q()}
# Columns that are compared case-sensitively, so that an index or a roll-up can be used.
EXACT = {*INDEXES, *DIMENSIONS, *ENDS}
POSITION = ("created_at", "id")


@dataclass(frozen=True)
class Criterion:
    """A condition on a row."""

    test: Q
    # A row can meet the condition only if a column has one of the values given for it. Indexes can then find the rows.
    values: Mapping[str, Sequence[Any]] | None = None

    @property
    def is_equality(self) -> bool:
        """True if the condition only compares one column with values."""
        return self.values is not None and any(self == equal(*one) for one in self.values.items())

    @property
    def is_indexed(self) -> bool:
        """True if indexes find the rows.

        False if there are no `values`, if a column has no index, or if an index leaves out one of the values. Indexes
        leave out empty values. In the columns of COMMON, indexes also leave out the most common value.
        """
        return self.values is not None and all(
            column in INDEXES and not {COMMON.get(column), ""} & {*values} for column, values in self.values.items()
        )


def equal(column: str, values: Iterable[Any]) -> Criterion:
    """Return a criterion that matches rows with one of these values in a column; without values, no row matches."""
    listed = list(dict.fromkeys(values))
    return Criterion(Q(**{f"{column}__in": listed}), {column: listed}) if listed else Criterion(NOTHING)


def in_sessions(ids: Iterable[UUID]) -> Criterion:
    """Return a criterion that matches the calls of these MCP sessions."""
    listed = list(dict.fromkeys(ids))
    if not listed:
        return Criterion(NOTHING)
    # The index by connection finds the calls, if the log still has the calls that opened the sessions.
    opening = [Call.objects.filter(uid=pk, created_at__range=span_of_uid(pk)) for pk in listed]
    connections = [pk for rows in opening for pk in rows.values_list("connection_id", flat=True) if pk]
    test = Q(session_id__in=listed)
    if len(connections) < len(listed):
        return Criterion(test)
    return Criterion(test & Q(connection_id__in=connections), {"connection_id": list(dict.fromkeys(connections))})


def either(criteria: Sequence[Criterion]) -> Criterion:
    """Return a criterion that matches rows that meet at least one of these criteria."""
    test, values = reduce(or_, [each.test for each in criteria]), dict[str, list[Any]]()
    for each in criteria:
        if each.values is None:
            return Criterion(test)
        for column, more in each.values.items():
            values[column] = list(dict.fromkeys([*values.get(column, []), *more]))
    same = next(iter(values)) if len(values) == 1 and all(each.is_equality for each in criteria) else ""
    return equal(same, values[same]) if same else Criterion(test, values)


def none_of(criteria: Sequence[Criterion]) -> Criterion:
    """Return a criterion that matches rows that meet none of these criteria."""
    return Criterion(reduce(and_, [~each.test for each in criteria]))


def criterion(condition: Condition | Either) -> Criterion:
    """Convert a condition of the search language to a criterion."""
    if isinstance(condition, Either):
        alternatives = [reduce(and_, [criterion(one).test for one in each]) for each in condition.alternatives]
        return Criterion(reduce(or_, alternatives))
    match condition.field:
        case query_language.ANY_NAME:
            columns = [column for field in FREE_TEXT for column in field.name_columns]
            return Criterion(_any_column(columns, "icontains", condition.values[0]))
        case query_language.ANY_ID:
            return _of_anything(UUID(str(condition.values[0])))
    return _of_field(condition)


def _of_field(condition: Condition) -> Criterion:
    field, operator, values = FIELDS[condition.field], condition.operator, condition.values
    text, is_part = str(values[0]), operator == CONTAINS
    match field.comparison:
        case _ if operator == IS_NOT:
            found = none_of([criterion(replace(condition, operator=IS))])
        case Comparison.NAME:
            found = _named(field, text, part=is_part)
        case Comparison.ID:
            found = _with_ids(field, uuids(values))
        case Comparison.ADDRESS:
            found = Criterion(_address(field.column, text, part=is_part))
        case Comparison.NUMBER:
            # As a floating-point number: Django refuses integers outside the column's range, and rounds fractions.
            number = Value(float(str(values[0])), FloatField())
            found = Criterion(Q(**{f"{field.column}{LOOKUPS.get(operator, '')}": number}))
        case _ if is_part or field.column not in EXACT:
            found = _with_text(field, text, part=is_part)
        case _ if field.name == "tool":
            found = equal(field.column, [text, *names.exposed_names(text)])
        case _:
            found = equal(field.column, [str(value).lower() if field.column in ENDS else value for value in values])
    return found


def _with_text(field: LogField, text: str, *, part: bool = False) -> Criterion:
    if part:
        return Criterion(Q(**{f"{field.column}__icontains": text}))
    if field.comparison is Comparison.LIST and text:
        item = Q(**{f"{field.column}__iregex": f"(^|, ){re.escape(text)}(, |$)"})
        return Criterion(~Q(**{field.column: ""}) & item)  # The index has only rows with labels.
    return Criterion(Q(**{f"{field.column}__iexact": text}))


def _with_ids(field: LogField, ids: Sequence[UUID]) -> Criterion:
    return in_sessions(ids) if field.name == "session" else equal(field.column, ids)


def _named(field: LogField, text: str, *, part: bool) -> Criterion:
    """Return a criterion that matches calls of all objects whose present name is `text`, or whose id is `text`.

    With `part`, the name only has to contain `text`. If no object or too many objects have the name, the
    criterion compares the names recorded with the calls.
    """
    pks = uuids([text]) or names.ids_named(field.name, text, part=part)
    if pks and len(pks) <= names.MAX_IDS:
        return equal(field.id_column, pks)
    return Criterion(_any_column(field.name_columns, "icontains" if part else "iexact", text))


def _of_anything(pk: UUID) -> Criterion:
    """Return a criterion that matches calls by an id of any kind: of a call, a request, a trace or an object."""
    ids = {name: pk for name in INDEXES if isinstance(Call._meta.get_field(name), UUIDField)} | {"trace_id": pk.hex}
    newest = [
        Call.objects.filter(INDEXES[name], **{name: value}).order_by("-created_at").values_list(Value(name))[:1]
        for name, value in ids.items()
    ]
    values: dict[str, list[Any]] = {name: [ids[name]] for (name,) in newest[0].union(*newest[1:], all=True).order_by()}
    test = _any_of([Q(**{f"{name}__in": value}) for name, value in values.items()])
    call = Call.objects.filter(uid=pk, created_at__range=span_of_uid(pk)).values_list("created_at", flat=True).first()
    if call is not None:
        values["created_at"], test = [call], test | Q(uid=pk, created_at=call)
    return Criterion(test, values) if values else Criterion(NOTHING)


def parameter_criteria(field: LogField, value: Any) -> list[Criterion]:
    """Return criteria that match calls in which `field` is exactly `value`. Pass only fields with an API parameter.

    If `value` is a list, the criteria match calls in which the field is any item of `value`. For a field with
    Comparison.NAME, `value` is always a list of ids. A field with Comparison.LIST is a list itself: the criteria match
    calls in which this list contains `value`.
    """
    if field.comparison is Comparison.NAME:
        return [equal(field.id_column, value)]
    if field.comparison is Comparison.ID:
        return [_with_ids(field, value if isinstance(value, list) else [value])]
    if field.comparison is Comparison.LIST:
        return [_with_text(field, value)]
    if field.column not in EXACT:
        return [Criterion(Q(**{field.column: value}))]
    condition = field.parameter.condition if field.parameter else None
    same = equal(field.column, value if isinstance(value, list) else [value])
    return [same] if condition is None else [same, Criterion(condition)]


def _address(column: str, text: str, *, part: bool) -> Q:
    if part:
        return Q(**{f"{column}__startswith": text})
    try:
        return Q(**{column: str(ip_address(text))})
    except ValueError:
        return NOTHING


def _any_column(columns: Iterable[str], lookup: str, value: Any) -> Q:
    return _any_of([Q(**{f"{column}__{lookup}": value}) for column in columns])


def _any_of(tests: Sequence[Q]) -> Q:
    return reduce(or_, tests, Q())


def uuids(values: Sequence[str | float]) -> list[UUID]:
    """Return the values that are ids."""
    return [pk for value in values if (pk := uuid_of(str(value)))]


class RowCount(NamedTuple):
    """A number of rows. Unless `is_all`, there may be more rows."""

    number: int
    is_all: bool

    @property
    def is_none(self) -> bool:
        """True if there are certainly no rows."""
        return self.is_all and not self.number

    def __str__(self) -> str:
        return f"{self.number:,}{'' if self.is_all else '+'}"


def count_rows[M: Any](rows: QuerySet[M]) -> RowCount:
    """Count the rows, up to SEARCH_LIMIT."""
    number = rows[: SEARCH_LIMIT + 1].count()
    return RowCount(min(number, SEARCH_LIMIT), number <= SEARCH_LIMIT)


@dataclass(frozen=True)
class SearchPage:
    """A page of calls. If the search stopped at SEARCH_LIMIT, calls beyond the time `looked_to` were not searched."""

    page: Page[Call]
    looked_to: datetime | None = None


class Search:
    """Calls between two times that meet all conditions."""

    def __init__(
        self,
        conditions: Sequence[Condition | Either | Criterion],
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> None:
        self.criteria = [item if isinstance(item, Criterion) else criterion(item) for item in conditions]
        self._indexed = [each for each in self.criteria if each.is_indexed]
        # If a condition can never be met, the search begins after all calls, so that nothing is read.
        self.since = LAST_MOMENT if any(each.test == NOTHING for each in self.criteria) else since
        self.until = until

    def rows(self) -> QuerySet[Call]:
        """Return one query for all matching rows, without a limit. The query leaves out payloads."""
        return self._between().filter(*(each.test for each in self.criteria))

    @cached_property
    def floor(self) -> datetime | None:
        """Return the earliest time from which the first page reads rows; None if it reads the whole range."""
        return self._reach(None)

    def newest(self) -> QuerySet[Call]:
        """Return the matching rows since `floor`."""
        return self.rows() if self.floor is None else self.rows().filter(created_at__gte=self.floor)

    def page(self, cursor: Cursor | None, size: int) -> SearchPage:
        """Return the page at `cursor`, or the newest page without a cursor."""
        reach = self.floor if cursor is None else self._reach(cursor)
        rows = paging.beyond(self.rows(), cursor)
        if reach is not None:
            rows = rows.filter(**{"created_at__lte" if is_newer(cursor) else "created_at__gte": reach})
        page = paging.page_beside(self._nearest(rows, size + 1), cursor, size)
        if reach is None or (page.newer if is_newer(cursor) else page.older):
            return SearchPage(page)
        if is_newer(cursor):
            return SearchPage(replace(page, newer=Cursor(paging.NEWER, reach, LAST)), reach)
        return SearchPage(replace(page, older=Cursor(paging.OLDER, reach, 0)), reach)

    def latest(self, size: int) -> Sequence[Call]:
        """Return the newest `size` calls. If no index covers all conditions, this may read any number of rows."""
        return self._nearest(paging.beyond(self.rows(), None), size)

    def slowest(self, size: int) -> SearchPage:
        """Return the slowest of the newest calls; there is no further page."""
        return SearchPage(Page(list(self.newest().order_by("-duration_ms", "-pk")[:size]), None, None), self.floor)

    def count(self) -> RowCount:
        """Return the number of matching calls. The number is cached.

        If the search has to stop at SEARCH_LIMIT, the number is exact only if the roll-ups can count the calls.
        """
        return self._count

    @cached_property
    def _count(self) -> RowCount:
        if self.floor is not None and (where := self.equalities()) is not None:
            with book() as opened:
                exact = opened.total(where, self.since or EPOCH, self.until or timezone.now() + AHEAD, timed=False)
            if exact is not None:
                return RowCount(exact.calls, is_all=True)
        # Up to SEARCH_LIMIT, the log itself is counted, because long calls are added to the roll-ups only every quarter
        # of an hour.
        return RowCount(min(self.newest().count(), SEARCH_LIMIT), is_all=self.floor is None)

    def equalities(self) -> dict[str, list[Any]] | None:
        """Return the searched values of each column; None if there is a condition that the roll-ups cannot test."""
        where: dict[str, list[Any]] = {}
        for values in (each.values for each in self.criteria):
            if values is None or len(values) != 1 or not values.keys() <= {*DIMENSIONS, *ENDS}:
                return None
            for column, asked in values.items():
                where[column] = [value for value in asked if value in where.get(column, asked)]
        return where

    def by_time(self) -> Iterator[QuerySet[Call]]:
        """Yield queries that together return all rows, newest first. Each query reads only a few partitions."""
        rows, later = self.rows(), None
        for start in sorted(Call.partitions.starts(), reverse=True)[DAYS_AT_ONCE - 1 :: DAYS_AT_ONCE]:
            since = datetime.combine(start, time.min, UTC)
            part = rows.filter(created_at__gte=since)
            yield part if later is None else part.filter(created_at__lt=later)
            if self.since is not None and since <= self.since:
                return
            later = since
        yield rows if later is None else rows.filter(created_at__lt=later)

    def _between(self) -> QuerySet[Call]:
        # With any lower limit of the time, PostgreSQL uses an index; without one, it would read whole partitions.
        rows = Call.objects.defer(*PAYLOADS).filter(created_at__gte=self.since or EPOCH)
        return rows.filter(created_at__lt=self.until) if self.until else rows

    def _nearest(self, rows: QuerySet[Call], size: int) -> Sequence[Call]:
        """Return the first `size` rows."""
        indexed = [dict(each.values or {}) for each in self._indexed]
        if not indexed or any(sum(map(len, values.values())) == 1 for values in indexed):
            return list(rows[:size])
        # Read the first rows of each value separately: a plain query would read and sort all rows with these values.
        statement, parameters = _union(_of_each(rows, *one, slice(size)) for one in indexed[0].items())
        order = ", ".join(f"{name} {'ASC' if rows.query.order_by[0] == 'created_at' else 'DESC'}" for name in POSITION)
        return list(Call.objects.raw(f"{statement} ORDER BY {order} LIMIT %s", [*parameters, size]))

    def _reach(self, cursor: Cursor | None) -> datetime | None:
        """Return the `created_at` where the page at `cursor` must stop reading rows; None if it may read all rows."""
        rows = paging.beyond(self._between(), cursor)
        recent = (cursor.at if cursor else timezone.now()) - RECENT
        if not is_newer(cursor) and (self.since is None or self.since < recent):
            end = self._end(rows.filter(created_at__gte=recent), cursor)
            if end is not None:
                return end
        return self._end(rows, cursor)

    def _end(self, rows: QuerySet[Call], cursor: Cursor | None) -> datetime | None:
        """Return the time of the row at which the page must stop reading; None if the page may read all of `rows`."""
        rows = rows.order_by("created_at" if is_newer(cursor) else "-created_at")
        near, far = (min, max) if is_newer(cursor) else (max, min)
        if not self._indexed:
            return rows.values_list("created_at", flat=True)[SEARCH_LIMIT : SEARCH_LIMIT + 1].first()
        parts = []
        for n, values in enumerate(each.values or {} for each in self._indexed):
            # The values share SEARCH_LIMIT equally; reading stops at the first row that exceeds the share of its value.
            limit = SEARCH_LIMIT // sum(map(len, values.values()))
            moments = rows.annotate(criterion=Value(n)).values("criterion", "created_at")
            parts += [_of_each(moments, *one, slice(limit, limit + 1)) for one in values.items()]
        with connection.cursor() as database:
            database.execute(*_union(parts))
            ends = database.fetchall()
        nearest = [near(found) for n in range(len(self._indexed)) if (found := [at for of, at in ends if of == n])]
        # The criterion that stops last decides.
        return far(nearest) if len(nearest) == len(self._indexed) else None


def _of_each(rows: QuerySet[Call, Any], column: str, values: Sequence[Any], cut: slice) -> tuple[str, list[Any]]:
    """Return SQL that takes, for each of `values`, the rows with this value in `column`, and selects a slice of them.

    `cut` is this slice, for example the first ten rows. The SQL looks up each value separately in the index of
    `column`.
    """
    same = rows.filter(INDEXES[column], **{column: RawSQL("v.value", ())})
    statement, parameters = same[cut].query.sql_with_params()
    kind = Call._meta.get_field(column).db_type(connection) or ""
    array = "text[]" if kind.startswith("varchar") else f"{kind}[]"
    each = f"SELECT r.* FROM unnest(%s::{array}) v (value) CROSS JOIN LATERAL ({statement}) r"  # noqa: S608  (constants)
    return each, [values, *parameters]


def _union(parts: Iterable[tuple[str, list[Any]]]) -> tuple[str, list[Any]]:
    statements, parameters = zip(*parts, strict=True)
    return " UNION ".join(statements), [value for part in parameters for value in part]
