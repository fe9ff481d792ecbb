"""Answer from the roll-ups, and from the log where they do not reach, with the same numbers as counting the log.

A period is cut into whole days, hours and minutes, where these are kept. The rest at both ends, and calls since the
last count, are counted from the log. A period up to now is not cut at its end: the current day is read whole.
Everything is read in one database snapshot.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Q
from django.utils import timezone

from auditlog.models import ENDINGS, Call, RollupState, RollupWindow
from auditlog.rollups import keeping
from auditlog.rollups.schema import (
    BEGINNING,
    CLASS_COLUMNS,
    CLASS_OF,
    CLASSES,
    DAYS,
    DIMENSIONS,
    ENDS,
    GRAINS,
    WINDOWS,
    Grain,
    quantile,
)

# Limits on the rows and the period an answer may count from the log; beyond them there is no answer.
MOST_FROM_LOG = 60_000
LONGEST_FROM_LOG = timedelta(hours=48)  # The ends of periods kept by day only.
A_MOMENT = timedelta(seconds=1)  # The maximum age of what a caller passes as now.
# An index finds the calls of one of these, over any period.
FOUND_BY_INDEX = ("user_id", "host_id", "feature_name", "server_id", "gateway_id")
MOST_ROWS = 20_000  # Roll-ups by name in one piece: clients choose the names they call.
ENDING_OF = {outcome: kind for kind, outcomes in ENDINGS.items() for outcome in outcomes}

# The planner would scan the whole table: it does not know that few roll-ups are days.
_BEGIN = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET LOCAL enable_seqscan = off"
_OF_LOG = """
SELECT outcome, {class_of} AS class, count(*), sum(duration_ms), {keys}
FROM ({rows} LIMIT %s) c GROUP BY outcome, class{positions}
"""
_ROWS_OF_LOG = "SELECT {columns} FROM auditlog_call WHERE {where}"
# Outcomes are columns: one row per outcome would repeat all duration classes.
_OF_ROLLUPS = """
SELECT {calls}, sum(duration_ms), {keys} FROM (
    SELECT *, outcome AS ended FROM auditlog_rollup WHERE cube = %s AND seconds = %s AND at >= %s AND at < %s{filters}
) c {groups} LIMIT %s
"""
# Outcomes are summed for the busiest only.
_BUSIEST = """
WITH c AS MATERIALIZED (SELECT * FROM ({rows}) r WHERE {named}), best AS (
    SELECT {by}, sum(calls) AS most, count(*) OVER () AS number FROM c
    GROUP BY {by} ORDER BY most DESC, {by} COLLATE "C" LIMIT %s
)
SELECT b.{by}, {calls}, max(number) FROM best b JOIN c ON c.{by} = b.{by}
GROUP BY b.{by}, most ORDER BY most DESC, b.{by} COLLATE "C"
"""
# Names have the database's collation; ids have none.
_BUSIEST_BY = {
    True: _BUSIEST.replace(' COLLATE "C"', "").replace("{named}", "{by} IS NOT NULL"),
    False: _BUSIEST.replace("{named}", "{by} <> ''"),
}
_CALLS_ENDED = ", ".join(
    f"coalesce(sum(calls) FILTER (WHERE ended IN ({', '.join(f"'{one}'" for one in outcomes)})), 0)::bigint"
    for outcomes in ENDINGS.values()
)
_CALLS_OF_ROLLUPS = """
SELECT {keys}, outcome AS ended, calls, last_at FROM auditlog_rollup
WHERE cube = %s AND seconds = %s AND at >= %s AND at < %s{filters}
"""
NO_SUCH = " AND deny_reason <> 'unknown_tool'"
_CALLS_OF_LOG = "SELECT {keys}, outcome AS ended, 1 AS calls, created_at AS last_at FROM auditlog_call WHERE {where}"
_LOG_HAS = "SELECT count(*) FROM ({rows} LIMIT %s) c"

type Where = Mapping[str, Sequence[Any]]
type Key = tuple[Any, ...]
type SQL = tuple[str, list[Any]]


@dataclass
class Numbers:
    """Numbers of some calls: outcomes and durations; `classes` is empty if durations were not requested."""

    endings: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ENDINGS, 0))
    classes: list[int] = field(default_factory=list)
    duration_ms: float = 0.0

    @classmethod
    def timed(cls) -> Numbers:
        """Return zero calls, with room for durations."""
        return cls(classes=[0] * CLASSES)

    @property
    def calls(self) -> int:
        return sum(self.endings.values())

    @property
    def errors(self) -> int:
        return self.endings["error"]

    @property
    def denied(self) -> int:
        return self.endings["denied"]

    @property
    def error_rate(self) -> float:
        """Return the share of failed calls, 0 to 1."""
        return self.errors / self.calls if self.calls else 0.0

    @property
    def p50(self) -> float | None:
        return self.quantile(0.5)

    @property
    def p95(self) -> float | None:
        return self.quantile(0.95)

    def quantile(self, part: float) -> float | None:
        """Return the duration (ms) within which this share of calls ended, within ±10 %."""
        return quantile(self.classes, part)

    def add(self, other: Numbers) -> None:
        for kind, number in other.endings.items():
            self.endings[kind] += number
        if other.classes:
            before = self.classes or [0] * CLASSES
            self.classes = [a + b for a, b in zip(before, other.classes, strict=True)]
        self.duration_ms += other.duration_ms


class SourcePeriod(NamedTuple):
    """A period read from one source: the roll-ups of a grain, or the log."""

    since: datetime
    until: datetime
    grain: Grain | None = None

    @property
    def rollups(self) -> list[Any]:
        """Return the parameters that select this piece's roll-ups: length in seconds, start, and end (exclusive)."""
        assert self.grain is not None
        between = (BEGINNING, BEGINNING + self.grain.length) if self.grain in WINDOWS else (self.since, self.until)
        return [self.grain.seconds, *between]


@dataclass(frozen=True)
class Bars:
    """Equal periods from `since`, counted separately."""

    since: datetime
    width: timedelta


class Book:
    """The roll-ups and the log in one snapshot."""

    def __init__(self, state: RollupState | None) -> None:
        self._state = state
        self._now = timezone.now()
        self._known_rows: dict[str, int] = {}

    def read(
        self,
        where: Where,
        since: datetime,
        until: datetime,
        *,
        by: Sequence[str] = (),
        bars: Bars | None = None,
        timed: bool = True,
    ) -> dict[Key, Numbers] | None:
        """Return the numbers of the calls between two times, by values of `by` and the number of the bar.

        None if that would read more than a page may, or if nothing is counted yet. Without `timed` durations are left
        out, which is faster.
        """
        pieces = self._pieces({*where, *by} & {*DIMENSIONS}, since, until, bars)
        if not self._may_read(pieces, where):
            return None
        found: dict[Key, Numbers] = defaultdict(Numbers.timed if timed else Numbers)
        filters, cube = _filters(where), {*where, *by} & {*DIMENSIONS}
        if not self._read_log(found, pieces, filters, by, bars, timed=timed):
            return None
        for piece in pieces:
            if piece.grain and not _read_rollups(found, piece, piece.grain.cube(cube), filters, by, bars, timed=timed):
                return None
        return dict(found)

    def busiest(
        self, where: Where, since: datetime, until: datetime, by: str, most: int, *, named: bool = False
    ) -> dict[Any, Numbers] | None:
        """Return the values of a column with the most calls between two times, in that order, with their outcomes.

        The empty value is left out; `named` also leaves out calls of unknown tools. None as in `read`.
        """
        query = self.query_of(where, since, until, by=(by,), named=named)
        if query is None:
            return None
        statement = _BUSIEST_BY[by.endswith("_id")].format(by=by, calls=_CALLS_ENDED, rows=query[0])
        with connection.cursor() as cursor:
            cursor.execute(statement, [*query[1], most])
            rows = cursor.fetchall()
        if rows and rows[0][-1] > MOST_ROWS:
            return None
        return {value: Numbers(dict(zip(ENDINGS, calls, strict=True))) for value, *calls, _ in rows}

    def query_of(
        self, where: Where, since: datetime, until: datetime, *, by: Sequence[str], named: bool = False
    ) -> SQL | None:
        """Return a query for `calls` by columns and `ended`, with several rows per key; None as in `read`.

        `last_at` is the start of a row's newest call.
        """
        pieces = self._pieces({*where, *by} & {*DIMENSIONS}, since, until, None)
        if not self._may_read(pieces, where):
            return None
        filters, values = _filters(where)
        filters += NO_SUCH if named else ""
        keys, cube = ", ".join(by), {*where, *by} & {*DIMENSIONS}
        rows = self._rows_of_log(pieces, (filters, values))
        if self._rows_in_log(rows) > MOST_FROM_LOG:
            return None
        parts = [_CALLS_OF_LOG.format(keys=keys, where=condition) for condition, _ in rows]
        parameters = [value for _, bounds in rows for value in bounds]
        for piece in pieces:
            if piece.grain:
                parts.append(_CALLS_OF_ROLLUPS.format(keys=keys, filters=filters))
                parameters += [piece.grain.cube(cube), *piece.rollups, *values]
        return " UNION ALL ".join(parts or [_CALLS_OF_LOG.format(keys=keys, where="false")]), parameters

    def _rows_in_log(self, rows: Sequence[SQL]) -> int:
        """Return how many rows of the log these are, up to one more than allowed; cached."""
        if not rows:
            return 0
        known = self._known_rows.get(repr(rows))
        if known is None:
            parts = " UNION ALL ".join(_ROWS_OF_LOG.format(columns="", where=condition) for condition, _ in rows)
            parameters = [value for _, bounds in rows for value in bounds]
            with connection.cursor() as cursor:
                cursor.execute(_LOG_HAS.format(rows=parts), [*parameters, MOST_FROM_LOG + 1])
                known = self._known_rows[repr(rows)] = int(cursor.fetchone()[0])
        return known

    def knows_days_from(self, moment: datetime) -> bool:
        """True if all days since this time are counted."""
        return self._state is not None and self._state.counted_from <= DAYS.begin(moment)

    def total(self, where: Where, since: datetime, until: datetime, *, timed: bool = True) -> Numbers | None:
        """Return the sum of these calls; None as in `read`."""
        found = self.read(where, since, until, timed=timed)
        return None if found is None else found.get((), Numbers())

    def _may_read(self, pieces: Sequence[SourcePeriod], where: Where) -> bool:
        """True if counting has begun and no piece of the log is too long to read."""
        if self._state is None:
            return False
        long = [each for each in pieces if each.grain is None and each.until - each.since > LONGEST_FROM_LOG]
        # An index may find few rows in all of that time, of which the other conditions leave some.
        indexed = [name for name in FOUND_BY_INDEX if name in where] if long else []
        found = (self._rows_of_log(long, _filters({name: where[name]})) for name in indexed)
        return not long or any(self._rows_in_log(rows) <= MOST_FROM_LOG for rows in found)

    def _pieces(self, dimensions: set[str], since: datetime, until: datetime, bars: Bars | None) -> list[SourcePeriod]:
        if self._state is None:
            return []
        if since < self._state.days_from and (days := Call.partitions.starts()):
            since = max(since, datetime.combine(days[0], datetime.min.time(), UTC))
        if until > self._now - A_MOMENT:
            # There are no later calls: the count of today is complete.
            until = DAYS.next(self._now + A_MOMENT)
        grains = [
            grain
            for grain in GRAINS
            if grain.cube(dimensions) is not None
            and (bars is None or (grain.begin(bars.since) == bars.since and not bars.width % grain.length))
        ]
        window = None if bars else self._window(dimensions, since, until)
        if window is None:
            return list(self._cut(since, until, grains))
        return [*self._cut(since, window.since, grains), window, *self._cut(window.until, until, grains)]

    def _window(self, dimensions: set[str], since: datetime, until: datetime) -> SourcePeriod | None:
        """Return the longest window between two times that has these dimensions."""
        if until - since < WINDOWS[0].length:
            return None
        grains = {grain.seconds: grain for grain in WINDOWS if grain.cube(dimensions) is not None}
        floor = self._floor(DAYS)
        known = (each for each in self._windows if each.seconds in grains and each.since >= floor)
        pieces = (SourcePeriod(each.since, each.until, grains[each.seconds]) for each in known)
        within = [piece for piece in pieces if since <= piece.since < piece.until <= until]
        return max(within, key=lambda piece: piece.until - piece.since, default=None)

    @cached_property
    def _windows(self) -> list[RollupWindow]:
        assert self._state is not None
        return keeping.current_windows(self._state)

    def _cut(self, since: datetime, until: datetime, grains: Sequence[Grain]) -> Iterator[SourcePeriod]:
        if since >= until:
            return
        if not grains:
            yield SourcePeriod(since, until)
            return
        grain, *finer = grains
        first = max(grain.next(since), grain.next(self._floor(grain)))
        last = grain.begin(until)
        if first >= last:
            yield from self._cut(since, until, finer)
            return
        yield from self._cut(since, first, finer)
        yield SourcePeriod(first, last, grain)
        yield from self._cut(last, until, finer)

    def _floor(self, grain: Grain) -> datetime:
        """Return the start of the period that this grain covers completely."""
        assert self._state is not None
        return max(self._state.floor(grain), self._state.days_from, self._state.counted_from)

    def _of_log(self, piece: SourcePeriod) -> tuple[str, list[Any]] | None:
        """Return the condition for a piece's rows in the log: all, or those not in its roll-ups yet."""
        condition = "created_at >= %s AND created_at < %s"
        if piece.grain is None:
            return condition, [piece.since, piece.until]
        assert self._state is not None
        if piece.until <= self._state.near_from:
            return None
        since = max(piece.since, self._state.near_from)
        return condition + " AND id > %s", [since, piece.until, self._state.counted_to]

    def _rows_of_log(self, pieces: Sequence[SourcePeriod], filters: SQL) -> list[SQL]:
        """Return the conditions for all rows to read from the log."""
        told = (self._of_log(piece) for piece in pieces)
        return [(condition + filters[0], [*bounds, *filters[1]]) for condition, bounds in filter(None, told)]

    def _read_log(
        self,
        found: dict[Key, Numbers],
        pieces: Sequence[SourcePeriod],
        filters: SQL,
        by: Sequence[str],
        bars: Bars | None,
        *,
        timed: bool,
    ) -> bool:
        """Add the numbers from the log; return False if there were too many rows."""
        rows = self._rows_of_log(pieces, filters)
        if not rows:
            return True
        keys, at = _keys(by, bars, "created_at")
        columns = ", ".join(dict.fromkeys(("outcome", "duration_ms", "created_at", *by)))
        statement = _OF_LOG.format(
            class_of=CLASS_OF if timed else "0::int",
            keys=keys,
            rows=" UNION ALL ".join(_ROWS_OF_LOG.format(columns=columns, where=condition) for condition, _ in rows),
            positions="".join(f", {position}" for position in _positions(6, by, bars)),
        )
        parameters = [value for _, bounds in rows for value in bounds]
        with connection.cursor() as cursor:
            cursor.execute(statement, [*at, *parameters, MOST_FROM_LOG + 1])
            read = 0
            for outcome, which, number, duration, _, *key in cursor.fetchall():
                numbers = found[tuple(key)]
                numbers.endings[ENDING_OF[outcome]] += number
                if timed:
                    numbers.classes[which] += number
                numbers.duration_ms += duration
                read += number
        return read <= MOST_FROM_LOG


def _read_rollups(
    found: dict[Key, Numbers],
    piece: SourcePeriod,
    cube: int | None,
    filters: SQL,
    by: Sequence[str],
    bars: Bars | None,
    *,
    timed: bool,
) -> bool:
    """Add the numbers from a piece's roll-ups; return False if there were too many rows."""
    keys, at = _keys(by, bars, "at")
    classes = "".join(f", sum({name})" for name in CLASS_COLUMNS) if timed else ""
    took, begin = len(ENDINGS), len(ENDINGS) + 2
    positions = _positions(begin + 1, by, bars)
    end = begin + len(positions)
    statement = _OF_ROLLUPS.format(
        calls=_CALLS_ENDED,
        keys=keys + classes,
        filters=filters[0],
        groups=f"GROUP BY {', '.join(map(str, positions))}" if positions else "HAVING count(*) > 0",
    )
    with connection.cursor() as cursor:
        cursor.execute(statement, [*at, cube, *piece.rollups, *filters[1], MOST_ROWS + 1])
        rows = cursor.fetchall()
    for row in rows[:MOST_ROWS]:
        numbers = found[tuple(row[begin:end])]
        for kind, number in zip(ENDINGS, row, strict=False):  # The outcomes are the first columns.
            numbers.endings[kind] += number
        numbers.duration_ms += row[took]
        for n, number in enumerate(row[end:]):
            if number:
                numbers.classes[n] += number
    return len(rows) <= MOST_ROWS


def _filters(where: Where) -> tuple[str, list[Any]]:
    """Return the conditions as SQL, for both the log and the roll-ups."""
    types = {name: "uuid[]" if name.endswith("_id") else "text[]" for name in (*DIMENSIONS, *ENDS)}
    return "".join(f" AND {name} = ANY(%s::{types[name]})" for name in where), [array(one) for one in where.values()]


def array(values: Iterable[Any]) -> str:
    """Return these values as a PostgreSQL array literal: faster to pass than a list of hundreds.

    Also, nested arrays must have equal lengths, texts need not.
    """
    quoted = (str(value).replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return "{" + ",".join(f'"{value}"' for value in quoted) + "}"


def _keys(by: Sequence[str], bars: Bars | None, at: str) -> tuple[str, list[Any]]:
    """Return the key columns, after a NULL in case there are none, and their parameters."""
    columns = ["NULL", *by]
    if bars is None:
        return ", ".join(columns), []
    columns.append(f"floor(extract(epoch FROM {at} - %s) / %s)::int")
    return ", ".join(columns), [bars.since, bars.width.total_seconds()]


def _positions(first: int, by: Sequence[str], bars: Bars | None) -> range:
    """Return the positions of the key columns, starting at `first`."""
    return range(first, first + len(by) + (bars is not None))


@contextmanager
def book() -> Iterator[Book]:
    """Yield the roll-ups and the log in one snapshot; inside a transaction, in that one."""
    if connection.in_atomic_block:
        yield Book(RollupState.objects.first())
        return
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(_BEGIN)
        yield Book(RollupState.objects.first())


def known(criteria: Sequence[Sequence[Q]]) -> dict[str, list[Any]] | None:
    """Return the values the criteria ask for, by column, or None if the roll-ups cannot answer all of them.

    Each criterion is a list of alternatives.
    """
    where: dict[str, list[Any]] = {}
    for alternatives in criteria:
        found = [_equality(each) for each in alternatives]
        columns = {one[0] for one in found if one}
        if len(columns) != 1 or None in found:
            return None
        column = columns.pop()
        values = [value for one in found if one for value in one[1]]
        where[column] = [value for value in values if value in where[column]] if column in where else values
    return where


def _equality(condition: Q) -> tuple[str, list[Any]] | None:
    if condition.negated or len(condition.children) != 1 or not isinstance(condition.children[0], tuple):
        return None
    lookup, value = condition.children[0]
    column, _, operator = lookup.partition("__")
    operators = ("", "in", "iexact") if column == "deny_reason" else ("", "in")
    if column not in (*DIMENSIONS, *ENDS) or operator not in operators:
        return None
    values = list(value) if operator == "in" else [value]
    if column.endswith("_id"):
        return column, [UUID(str(one)) for one in values]
    return column, [str(one).lower() if operator == "iexact" else str(one) for one in values]
