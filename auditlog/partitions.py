"""Time partitions of a log table, created in advance and dropped by retention. Rows are removed in no other way.

Partitions are longer for a longer retention (docs/decisions/0006), because each partition adds planning time and locks
to every statement over the whole log.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from itertools import takewhile
from typing import Any

from django.db import OperationalError, connection, transaction
from psycopg import sql

logger = logging.getLogger(__name__)

AHEAD = timedelta(days=10)  # Without a partition a call cannot be recorded, and an unrecorded call is not answered.
DAY = timedelta(days=1)
ATTEMPTS = 3
MOST_COUNTED = 100_000  # In a partition without statistics, rows are counted up to this number.
LOCK_TIMEOUT = "900ms"

DAYS, WEEKS, MONTHS = 1, 7, 31  # The longest partition of each kind, in days.
# The longest retention in days for which each length is used. For a longer retention, partitions are months.
LENGTHS = ((100, DAYS), (730, WEEKS))

_NAME = re.compile(r"_(?P<year>\d{4})_(?:w(?P<week>\d\d)|(?P<month>\d\d)(?:_(?P<day>\d\d))?)$")

type Dropped = Callable[[str, PartitionDays, int], object]

# How a partition is detached, by the result of `_attached`.
DETACHING = {True: "CONCURRENTLY", False: "FINALIZE", None: ""}


def longest_partition(kept_days: int) -> int:
    """Return the maximum number of days per partition for a retention of `kept_days`.

    A partition is dropped as a whole. So rows may be kept up to this number of days longer than `kept_days`.
    """
    return next((length for most, length in LENGTHS if kept_days <= most), MONTHS)


@dataclass(frozen=True, slots=True, order=True)
class PartitionDays:
    """The days of one partition (UTC), from `start` up to, but not including, `end`."""

    start: date
    end: date

    @property
    def days(self) -> int:
        return (self.end - self.start).days

    def overlaps(self, other: "PartitionDays") -> bool:
        return self.start < other.end and other.start < self.end

    @classmethod
    def around(cls, day: date, longest: int) -> "PartitionDays":
        """Return the period that contains `day`. `longest` is DAYS, WEEKS (from Monday) or MONTHS."""
        if longest == DAYS:
            return cls(day, day + DAY)
        if longest == WEEKS:
            monday = day - timedelta(days=day.weekday())
            return cls(monday, monday + timedelta(days=7))
        first = day.replace(day=1)
        return cls(first, (first + timedelta(days=32)).replace(day=1))

    @classmethod
    def named(cls, name: str) -> "PartitionDays | None":
        """Return the days of the partition with this name, or None if `name` is not the name of a partition."""
        match = _NAME.search(name)
        if match is None:
            return None
        year = int(match["year"])
        if match["week"]:
            return cls.around(date.fromisocalendar(year, int(match["week"]), 1), WEEKS)
        first = date(year, int(match["month"]), int(match["day"] or 1))
        return cls.around(first, DAYS if match["day"] else MONTHS)


@dataclass(frozen=True, slots=True)
class Partitions:
    """The partitions of one table: `<table>_2026_11_20` is a day, `<table>_2026_w47` a week, `<table>_2026_11` a month.

    Only the table's owner can drop them.
    """

    table: str
    maker: str  # The database function that creates them, also for a role that does not own the table.

    def make_ahead(self, today: date | None = None, *, kept_days: int = 90) -> list[str]:
        """Create missing partitions from yesterday to ten days ahead, and return their names.

        A partition that begins after tomorrow is replaced if it is empty and has more days than
        `longest_partition(kept_days)`.
        """
        today = today or datetime.now(UTC).date()
        longest = longest_partition(kept_days)
        self._drop_too_long(today, longest)
        spans, created, day = list(self._attached_spans().values()), [], today - DAY  # For clocks that are behind.
        while day <= today + AHEAD:
            span = next((span for span in spans if span.start <= day < span.end), None)
            if span is None:
                span = _longest_free(day, longest, spans)
                created.append(self._make(span))
                spans.append(span)
            day = span.end
        return created

    def make_for(self, day: date) -> None:
        """Create a partition for this day if there is none."""
        spans = list(self._attached_spans().values())
        if not any(span.start <= day < span.end for span in spans):
            self._make(PartitionDays.around(day, DAYS))

    def drop_before(self, limit: date, note: Dropped = lambda name, span, rows: None) -> list[str]:
        """Drop the partitions in which all rows are older than `limit`, and return their names.

        Rows can be written and read meanwhile. If a partition is in use for too long, this run stops at it, and the
        next run tries again. Does nothing if the database role does not own the table. `note` is called with a
        partition's name, days and number of rows, in the transaction that drops the partition.
        """
        if not self.is_owner():
            return []
        dropped = takewhile(lambda each: self._drop(each[0], note=partial(note, *each)), self.expired(limit))
        return [name for name, _ in dropped]

    def has_rows_since(self, name: str, moment: datetime) -> bool:
        """True if a row of the partition was recorded at or after `moment`. Its call may have begun earlier."""
        with connection.cursor() as cursor:
            since = sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE recorded_at >= %s)").format(sql.Identifier(name))
            cursor.execute(since, [moment])
            return bool(cursor.fetchone()[0])

    def expired(self, limit: date) -> list[tuple[str, PartitionDays]]:
        """Return the partitions in which all rows are older than `limit`, oldest first, including detached ones."""
        spans = self._spans(self._all_names())
        return [
            (name, span) for span, name in sorted((span, name) for name, span in spans.items()) if span.end <= limit
        ]

    def estimate_before(self, limit: date) -> int:
        """Return the approximate number of rows that `drop_before(limit)` would drop, from the planner's statistics."""
        names = [name for name, _ in self.expired(limit)]
        with connection.cursor() as cursor:
            cursor.execute("SELECT relname, reltuples FROM pg_class WHERE relname = ANY(%s)", [names])
            estimates = dict(cursor.fetchall())
            for name in (name for name, rows in estimates.items() if rows < 0):  # Not analyzed yet, so with few rows.
                few = sql.SQL("SELECT count(*) FROM (SELECT FROM {} LIMIT %s) rows").format(sql.Identifier(name))
                cursor.execute(few, [MOST_COUNTED])
                estimates[name] = cursor.fetchone()[0]
        return int(sum(estimates.values()))

    def kept_from(self, limit: date) -> datetime:
        """Return the start of the oldest partition that `drop_before(limit)` keeps; `limit` if it keeps none."""
        return midnight(min((span.start for span in self.spans() if span.end > limit), default=limit))

    def is_owner(self) -> bool:
        """True if the current database role owns the table, as required to drop partitions."""
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_has_role(current_user, relowner, 'USAGE') FROM pg_class WHERE oid = %s::regclass",
                [self.table],
            )
            return bool(cursor.fetchone()[0])

    def names(self) -> list[str]:
        """Return the names of the partitions, oldest first."""
        spans = self._attached_spans()
        return sorted(spans, key=lambda name: spans[name])

    def spans(self) -> list[PartitionDays]:
        """Return the days of each partition."""
        return list(self._attached_spans().values())

    def starts(self) -> list[date]:
        """Return the first day of each partition, oldest first."""
        return sorted(span.start for span in self._attached_spans().values())

    def _attached_spans(self) -> dict[str, PartitionDays]:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
                " WHERE i.inhparent = %s::regclass",
                [self.table],
            )
            return self._spans([name for (name,) in cursor.fetchall()])

    def _spans(self, names: Sequence[str]) -> dict[str, PartitionDays]:
        return {
            name: span for name in names if (span := PartitionDays.named(name.removeprefix(self.table))) is not None
        }

    def _make(self, span: PartitionDays) -> str:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {self.maker}(%s, %s)", [span.start, span.end])
            return str(cursor.fetchone()[0])

    def _drop_too_long(self, today: date, longest: int) -> None:
        """Drop empty partitions that begin after tomorrow and are longer than `longest` days."""
        spans = self._attached_spans()
        ahead = [name for name, span in spans.items() if span.start > today + DAY and span.days > longest]
        if ahead and self.is_owner():
            for name in ahead:
                if not self._holds_rows(name):
                    self._drop(name, keep_rows=True)

    def _holds_rows(self, name: str) -> bool:
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL("SELECT EXISTS (SELECT FROM {name})").format(name=sql.Identifier(name)))
            return bool(cursor.fetchone()[0])

    def _drop(self, name: str, *, keep_rows: bool = False, note: Callable[[int], object] = lambda rows: None) -> bool:
        """Detach a partition and drop it; return False if it could not be dropped.

        If an earlier process was killed before it dropped the partition, the partition may be detached already, or its
        detachment may have begun. With `keep_rows`, a partition that has rows is attached again, and not dropped.
        """
        names = {"name": sql.Identifier(name), "table": sql.Identifier(self.table)}
        for attempt in range(ATTEMPTS):
            time.sleep(attempt)
            try:
                with connection.cursor() as cursor, limited_lock_wait(cursor, LOCK_TIMEOUT):
                    if statement := DETACHING[self._attached(name)]:
                        # Run outside of any transaction: CONCURRENTLY waits for readers of the table. While
                        # the statement waits, it holds no lock that would block a COPY or a reader.
                        cursor.execute(
                            sql.SQL(f"ALTER TABLE {{table}} DETACH PARTITION {{name}} {statement}").format(**names)
                        )
                    if keep_rows and self._holds_rows(name):  # A row arrived at the last moment.
                        span = self._spans([name])[name]
                        self._make(span)
                        return False
                    with transaction.atomic():
                        cursor.execute(sql.SQL("SELECT count(*) FROM {name}").format(**names))
                        note(cursor.fetchone()[0])
                        cursor.execute(sql.SQL("DROP TABLE {name}").format(**names))
            except OperationalError as error:
                logger.warning("an old partition is in use", extra={"partition": name, "error": str(error)})
            else:
                return True
        return False

    def _attached(self, name: str) -> bool | None:
        """Return True if the partition is attached, False if its detachment began but did not end, None if detached."""
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT NOT inhdetachpending FROM pg_inherits"
                " WHERE inhparent = %s::regclass AND inhrelid = %s::regclass",
                [self.table, name],
            )
            row = cursor.fetchone()
        return row[0] if row else None

    def _all_names(self) -> list[str]:
        """Return the names of all partitions, including partitions that are detached but not dropped yet."""
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ %s"
                " AND relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = %s::regclass)",
                [rf"^{self.table}_\d{{4}}_(w\d\d|\d\d(_\d\d)?)$", self.table],
            )
            return [name for (name,) in cursor.fetchall()]


def _longest_free(day: date, longest: int, existing: Sequence[PartitionDays]) -> PartitionDays:
    """Return the longest partition around `day`, at most `longest` days long, that overlaps no existing partition."""
    candidates = [PartitionDays.around(day, length) for length in (MONTHS, WEEKS, DAYS) if length <= longest]
    return next(span for span in candidates if not any(span.overlaps(other) for other in existing))


@contextmanager
def limited_lock_wait(cursor: Any, longest: str) -> Iterator[None]:
    """Let statements inside the block wait for a lock for at most the time `longest`. The time "0" means no limit.

    A statement that waits for a lock holds up the statements that come after it, so it should not wait for long.
    """
    cursor.execute(f"SET lock_timeout = '{longest}'")
    try:
        yield
    finally:
        cursor.execute("RESET lock_timeout")


def midnight(day: date) -> datetime:
    """Return the start of this day (UTC)."""
    return datetime.combine(day, datetime.min.time(), UTC)
