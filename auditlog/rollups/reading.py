"""Count calls from the roll-ups, and from the log for periods without roll-ups.

Whole weeks, days, hours and minutes are read from the roll-ups. The rest of a period, and calls that are not in the
roll-ups yet, are read from the log. The roll-ups and the log are read in one database snapshot. So the numbers are the
numbers of the log, with one exception: a call longer than an hour may be missing for 15 minutes after it ends.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from django.db import connection, transaction
from django.utils import timezone

from auditlog.models import ENDINGS, Call, RollupState
from auditlog.rollups.schema import (
    CLASS_COLUMNS,
    CLASS_OF,
    CLASSES,
    DAYS,
    DIMENSIONS,
    ENDS,
    GRAINS,
    Grain,
    quantile,
)

# The most rows that may be counted from the log for an answer, and the longest period that may be counted without an
# index. If an answer needs more, `read` returns None.
MOST_FROM_LOG = 60_000
LONGEST_FROM_LOG = timedelta(hours=48)  # Enough for both ends of a period with roll-ups by day only.
A_MOMENT = timedelta(seconds=1)  # A caller's "now" is at most this old.
# Columns with an index that finds the calls with one value, over any period.
FOUND_BY_INDEX = ("user_id", "host_id", "feature_name", "server_id", "gateway_id")
MOST_ROWS = 20_000  # Limit on the groups of an answer, because clients may call any number of invented names.

# The planner does not know that few of the roll-ups are by day, and would scan the whole table.
_BEGIN = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET LOCAL enable_seqscan = off"
_OF_LOG = """
SELECT {keys}, outcome, {class_of} AS class, count(*), sum(duration_ms)
FROM ({rows} LIMIT %s) c GROUP BY {positions}
"""
_ROWS_OF_LOG = "SELECT {columns} FROM auditlog_call WHERE {where}"
_ROWS_OF_ROLLUPS = """
SELECT {columns}, outcome AS ended FROM auditlog_rollup
WHERE cube = %s AND seconds = %s AND at >= %s AND at < %s{filters}
"""
# Outcomes are columns, because one row per outcome would repeat all duration classes.
_OF_ROLLUPS = "SELECT {keys}, {calls}, sum(duration_ms){classes} FROM ({rows}) c {groups} LIMIT %s"
# Outcomes are summed only for the values with the most calls. Names are sorted by their bytes; ids have no collation.
_BUSIEST = """
WITH c AS MATERIALIZED (SELECT * FROM ({rows}) r WHERE {named}), best AS (
    SELECT {by}, sum(calls) AS most, count(*) OVER () AS number FROM c
    GROUP BY {by} ORDER BY most DESC, {by}{collation} LIMIT %s
)
SELECT b.{by}, {calls}, max(number) FROM best b JOIN c ON c.{by} = b.{by}
GROUP BY b.{by}, most ORDER BY most DESC, b.{by}{collation}
"""
# `ended` is the outcome under another name, because calls may be grouped by `outcome` too.
_CALLS = ", ".join(
    f"coalesce(sum(calls) FILTER (WHERE ended IN ({', '.join(f"'{one}'" for one in outcomes)})), 0)::bigint"
    for outcomes in ENDINGS.values()
)
NO_SUCH = " AND deny_reason <> 'unknown_tool'"
_LOG_HAS = "SELECT count(*) FROM ({rows} LIMIT %s) c"
_ENDING_OF = {outcome: kind for kind, outcomes in ENDINGS.items() for outcome in outcomes}

type Where = Mapping[str, Sequence[Any]]
type Key = tuple[Any, ...]
type SQL = tuple[str, list[Any]]


@dataclass
class Numbers:
    """Counts of calls by outcome and by duration class; `classes` is empty if durations were not requested."""

    endings: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ENDINGS, 0))
    classes: list[int] = field(default_factory=list)
    duration_ms: float = 0.0

    @classmethod
    def timed(cls) -> Numbers:
        """Return Numbers with all counts at zero, including a count for each duration class."""
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
        """Return the quantile `part` (0 to 1) of durations in ms (±10 %); None without durations."""
        return quantile(self.classes, part)

    def add(self, other: Numbers) -> None:
        for kind, number in other.endings.items():
            self.endings[kind] += number
        if other.classes:
            before = self.classes or [0] * CLASSES
            self.classes = [a + b for a, b in zip(before, other.classes, strict=True)]
        self.duration_ms += other.duration_ms


class SourcePeriod(NamedTuple):
    """A period read from one source: the roll-ups of the grain `grain`, or the log if `grain` is None."""

    since: datetime
    until: datetime
    grain: Grain | None = None


@dataclass(frozen=True)
class Bars:
    """Consecutive periods of equal length from `since`, counted separately."""

    since: datetime
    width: timedelta

    def number_of(self, column: str) -> SQL:
        """Return SQL for the number of the bar that contains the time in a column."""
        return f"floor(extract(epoch FROM {column} - %s) / %s)::int", [self.since, self.width.total_seconds()]


class Book:
    """The roll-ups and the log in one snapshot."""

    def __init__(self, state: RollupState | None) -> None:
        self._state = state
        self._now = timezone.now()

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
        """Return the counts of calls between two times, for each combination of values in the columns `by`.

        If `bars` is given, the counts of each bar are separate. Returns None if no roll-ups exist, if there are too
        many groups, or if too much of the log would have to be read. `timed=False` is faster, and leaves out durations.
        """
        pieces = self._pieces({*where, *by}, since, until, bars)
        if pieces is None or not self._may_read(pieces, where):
            return None
        found: dict[Key, Numbers] = defaultdict(Numbers.timed if timed else Numbers)
        if not self._add_log(found, self._rows_of_log(pieces, _filters(where)), by, bars, timed=timed):
            return None
        if not _add_rollups(found, _rollups(pieces, where, by, "*"), by, bars, timed=timed):
            return None
        return dict(found)

    def total(self, where: Where, since: datetime, until: datetime, *, timed: bool = True) -> Numbers | None:
        found = self.read(where, since, until, timed=timed)
        return None if found is None else found.get((), Numbers())

    def busiest(
        self, where: Where, since: datetime, until: datetime, by: str, most: int, *, named: bool = False
    ) -> dict[Any, Numbers] | None:
        """Return the counts of calls between two times, for the values of the column `by` that have the most calls.

        `most` is the maximum number of values. The empty value is left out. With `named`, calls of unknown tools are
        left out, too. Returns None in the same cases as `read`.
        """
        query = self.query_of(where, since, until, by=(by,), named=named)
        if query is None:
            return None
        is_id = by.endswith("_id")
        statement = _BUSIEST.format(
            by=by,
            calls=_CALLS,
            rows=query[0],
            named=f"{by} IS NOT NULL" if is_id else f"{by} <> ''",
            collation="" if is_id else ' COLLATE "C"',
        )
        with connection.cursor() as cursor:
            cursor.execute(statement, [*query[1], most])
            rows = cursor.fetchall()
        if rows and rows[0][-1] > MOST_ROWS:
            return None
        return {value: Numbers(dict(zip(ENDINGS, calls, strict=True))) for value, *calls, _ in rows}

    def query_of(
        self, where: Where, since: datetime, until: datetime, *, by: Sequence[str], named: bool = False
    ) -> SQL | None:
        """Return a query that counts calls by outcome (`ended`) and by the columns named in `by`.

        Each row also has `calls`, the number of calls, and `last_at`, the start of the newest call. Several rows can
        have the same outcome and the same values in `by`: the caller must add up the `calls` of such rows. Returns None
        in the same cases as `read`.
        """
        pieces = self._pieces({*where, *by}, since, until, None)
        if pieces is None or not self._may_read(pieces, where):
            return None
        filters, values = _filters(where, named=named)
        rows = self._rows_of_log(pieces, (filters, values))
        if self._number_in_log(rows) > MOST_FROM_LOG:
            return None
        keys = ", ".join(by)
        columns = f"{keys}, 1 AS calls, created_at AS last_at, outcome AS ended"
        log = [_ROWS_OF_LOG.format(columns=columns, where=condition) for condition, _ in rows]
        rollups, parameters = _rollups(pieces, where, by, f"{keys}, calls, last_at", named=named)
        return " UNION ALL ".join([*log, rollups]), [*(value for _, bounds in rows for value in bounds), *parameters]

    def knows_days_from(self, moment: datetime) -> bool:
        """True if all days since `moment` are in the roll-ups."""
        return self._state is not None and self._state.counted_from <= DAYS.begin(moment)

    def _may_read(self, pieces: Sequence[SourcePeriod], where: Where) -> bool:
        """Return True if these periods do not require reading too much of the log."""
        # A period without roll-ups may be long only if an index finds few matching rows in it.
        long = [each for each in pieces if each.grain is None and each.until - each.since > LONGEST_FROM_LOG]
        indexed = [name for name in FOUND_BY_INDEX if name in where] if long else []
        found = (self._rows_of_log(long, _filters({name: where[name]})) for name in indexed)
        return not long or any(self._number_in_log(rows) <= MOST_FROM_LOG for rows in found)

    def _number_in_log(self, rows: Sequence[SQL]) -> int:
        """Return the number of rows in the log that meet one of the conditions `rows`; at most MOST_FROM_LOG + 1."""
        if not rows:
            return 0
        statement, parameters = _union(rows, "")
        with connection.cursor() as cursor:
            cursor.execute(_LOG_HAS.format(rows=statement), [*parameters, MOST_FROM_LOG + 1])
            return int(cursor.fetchone()[0])

    def _pieces(
        self, columns: set[str], since: datetime, until: datetime, bars: Bars | None
    ) -> list[SourcePeriod] | None:
        """Divide a period into periods that are each read from one source. Returns None if no roll-ups exist yet."""
        if self._state is None:
            return None
        if since < self._state.days_from and (days := Call.partitions.starts()):
            since = max(since, datetime.combine(days[0], datetime.min.time(), UTC))
        if until > self._now - A_MOMENT:
            # There are no later calls, so the whole current day can be read.
            until = DAYS.next(self._now + A_MOMENT)
        # Use a grain only if its smallest combination that has these dimensions is also the smallest in DAYS. Example
        # without dimensions: seven days are a few rows of DAYS, but a week is thousands of rows of WEEKS, because weeks
        # are counted only by host, person and tool.
        dimensions = columns & {*DIMENSIONS}
        smallest = DAYS.cube(dimensions)
        grains = [
            grain
            for grain in GRAINS
            if smallest is not None
            and grain.cube(dimensions) == smallest
            and (bars is None or (grain.begin(bars.since) == bars.since and not bars.width % grain.length))
        ]
        return list(self._cut(since, until, grains))

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
        """Return the time from which the roll-ups of this grain are complete."""
        assert self._state is not None
        return max(self._state.floor(grain), self._state.days_from, self._state.counted_from)

    def _rows_of_log(self, pieces: Sequence[SourcePeriod], filters: SQL) -> list[SQL]:
        """Return SQL conditions for the rows of the log that must be counted for these pieces of a period.

        For a piece with roll-ups, these are only the rows that are not in the roll-ups yet.
        """
        assert self._state is not None
        rows = []
        for piece in pieces:
            since, more = piece.since, list[int]()
            if piece.grain is not None:
                since, more = max(since, self._state.near_from), [self._state.counted_to]
            if since < piece.until:
                condition = f"created_at >= %s AND created_at < %s{' AND id > %s' if more else ''}{filters[0]}"
                rows.append((condition, [since, piece.until, *more, *filters[1]]))
        return rows

    @staticmethod
    def _add_log(
        found: dict[Key, Numbers], rows: Sequence[SQL], by: Sequence[str], bars: Bars | None, *, timed: bool
    ) -> bool:
        """Add the numbers from the log to `found`; return False if there were too many rows, otherwise True."""
        if not rows:
            return True
        columns = ", ".join(dict.fromkeys(("outcome", "duration_ms", "created_at", *by)))
        (keys, at), (statement, parameters) = _keys(by, bars, "created_at"), _union(rows, columns)
        number = len(by) + (bars is not None)
        statement = _OF_LOG.format(
            keys=keys,
            class_of=CLASS_OF if timed else "0::int",
            rows=statement,
            positions=", ".join(map(str, range(2, number + 4))),
        )
        with connection.cursor() as cursor:
            cursor.execute(statement, [*at, *parameters, MOST_FROM_LOG + 1])
            read = 0
            for _, *key, outcome, which, calls, duration in cursor.fetchall():
                numbers = found[tuple(key)]
                numbers.endings[_ENDING_OF[outcome]] += calls
                if timed:
                    numbers.classes[which] += calls
                numbers.duration_ms += duration
                read += calls
        return read <= MOST_FROM_LOG


def _add_rollups(found: dict[Key, Numbers], rollups: SQL, by: Sequence[str], bars: Bars | None, *, timed: bool) -> bool:
    """Add the numbers from the roll-ups to `found`; return False if there were too many groups, otherwise True."""
    keys, at = _keys(by, bars, "at")
    begin = 1 + len(by) + (bars is not None)
    statement = _OF_ROLLUPS.format(
        keys=keys,
        calls=_CALLS,
        classes="".join(f", sum({name})" for name in CLASS_COLUMNS) if timed else "",
        rows=rollups[0],
        groups=f"GROUP BY {', '.join(map(str, range(2, begin + 1)))}" if begin > 1 else "HAVING count(*) > 0",
    )
    with connection.cursor() as cursor:
        cursor.execute(statement, [*at, *rollups[1], MOST_ROWS + 1])
        rows = cursor.fetchall()
    took = begin + len(ENDINGS)
    for row in rows[:MOST_ROWS]:
        numbers = found[tuple(row[1:begin])]
        for kind, number in zip(ENDINGS, row[begin:took], strict=True):
            numbers.endings[kind] += number
        numbers.duration_ms += row[took]
        for n, number in enumerate(row[took + 1 :]):
            if number:
                numbers.classes[n] += number
    return len(rows) <= MOST_ROWS


def _rollups(
    pieces: Sequence[SourcePeriod], where: Where, by: Sequence[str], columns: str, *, named: bool = False
) -> SQL:
    """Return SQL that selects `columns` and the outcome, as `ended`, from the roll-ups of these pieces."""
    dimensions = {*where, *by} & {*DIMENSIONS}
    filters, values = _filters(where, named=named)
    read = [(piece.grain, piece.since, piece.until) for piece in pieces if piece.grain]
    statement = _ROWS_OF_ROLLUPS.format(columns=columns, filters=filters)
    parameters = [[grain.cube(dimensions), grain.seconds, *span, *values] for grain, *span in read]
    if not read:
        return f"SELECT {columns}, outcome AS ended FROM auditlog_rollup WHERE false", []  # noqa: S608  (constants)
    return " UNION ALL ".join([statement] * len(read)), [value for each in parameters for value in each]


def _filters(where: Where, *, named: bool = False) -> SQL:
    """Return the conditions as SQL that works for the log and for the roll-ups.

    With `named`, calls of unknown tools are left out.
    """
    types = {name: "uuid[]" if name.endswith("_id") else "text[]" for name in (*DIMENSIONS, *ENDS)}
    conditions = "".join(f" AND {name} = ANY(%s::{types[name]})" for name in where)
    return conditions + (NO_SUCH if named else ""), [array(one) for one in where.values()]


def array(values: Iterable[Any]) -> str:
    """Return these values as a PostgreSQL array literal, which is faster to pass than a list of hundreds of values."""
    quoted = (str(value).replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return "{" + ",".join(f'"{value}"' for value in quoted) + "}"


def _union(rows: Sequence[SQL], columns: str) -> SQL:
    """Return SQL that selects `columns` of the calls in the log that meet one of the conditions `rows`."""
    statements = [_ROWS_OF_LOG.format(columns=columns, where=condition) for condition, _ in rows]
    return " UNION ALL ".join(statements), [value for _, bounds in rows for value in bounds]


def _keys(by: Sequence[str], bars: Bars | None, at: str) -> SQL:
    """Return SQL for the columns by which rows are grouped, and the parameters of the SQL.

    The first column is always NULL, because the list of columns must not be empty.
    """
    number, parameters = bars.number_of(at) if bars else ("", [])
    return ", ".join(filter(None, ("NULL", *by, number))), parameters


@contextmanager
def book() -> Iterator[Book]:
    """Yield the roll-ups and the log in one database snapshot.

    Inside a transaction, that transaction is used. Otherwise, a new one with its own snapshot begins.
    """
    if connection.in_atomic_block:
        yield Book(RollupState.objects.first())
        return
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(_BEGIN)
        yield Book(RollupState.objects.first())
