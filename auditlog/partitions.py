"""Monthly partitions of a log table: made ahead of time, dropped by retention (traps E6, E7)."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import takewhile
from typing import Any

from django.db import OperationalError, connection, transaction
from psycopg import sql

logger = logging.getLogger(__name__)

AHEAD = 3
ATTEMPTS = 3
PATIENCE = "900ms"

# How a partition is taken off, by what `_attached` says of it.
DETACHING = {True: "CONCURRENTLY", False: "FINALIZE", None: ""}


@dataclass(frozen=True, slots=True)
class Partitions:
    """The partitions of one table, named `<table>_<year>_<month>`."""

    table: str

    def make_ahead(self, today: date | None = None) -> list[str]:
        """Make this month's partition and the next three where missing; the names of those made.

        A row without a partition could not be recorded, and an unrecorded call is not answered.
        """
        first = (today or datetime.now(UTC).date()).replace(day=1)
        existing = set(self.names())
        return [self._make(start, end) for start, end in _months(first, AHEAD + 1) if self._name(start) not in existing]

    def drop_before(self, limit: date) -> list[str]:
        """Drop the partitions that hold nothing as new as `limit`; the names of those dropped.

        Calls go on meanwhile. One that somebody reads for too long stays, with those after it, until the next time.
        """
        old = [name for name in self._all_names() if _next_month(self._start(name)) <= limit]
        return list(takewhile(self._drop, old))

    def names(self) -> list[str]:
        """The partitions there are, oldest first."""
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
                " WHERE i.inhparent = %s::regclass ORDER BY 1",
                [self.table],
            )
            return [name for (name,) in cursor.fetchall()]

    def _name(self, start: date) -> str:
        return f"{self.table}_{start:%Y_%m}"

    def _make(self, start: date, end: date) -> str:
        name = self._name(start)
        words = {
            "name": sql.Identifier(name),
            "table": sql.Identifier(self.table),
            "start": sql.Literal(f"{start} 00:00+00"),
            "end": sql.Literal(f"{end} 00:00+00"),
        }
        # ATTACH takes a weaker lock than CREATE ... PARTITION OF, so running calls go on.
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '2s'")
            cursor.execute(
                sql.SQL("CREATE TABLE {name} (LIKE {table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)").format(**words)
            )
            cursor.execute(
                sql.SQL("ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ({start}) TO ({end})").format(
                    **words
                )
            )
        return name

    def _drop(self, name: str) -> bool:
        """Take a partition off and drop it; False when it could not be had in time.

        Each step may have been the last of a process that was killed: off, half off, or only not dropped yet.
        """
        words = {"name": sql.Identifier(name), "table": sql.Identifier(self.table)}
        for attempt in range(ATTEMPTS):
            time.sleep(attempt)
            try:
                with connection.cursor() as cursor, _patience(cursor):
                    if how := DETACHING[self._attached(name)]:
                        # Outside of any transaction: CONCURRENTLY waits for those that read the table, and for
                        # that time holds nothing that a COPY or a reader would wait for.
                        cursor.execute(
                            sql.SQL(f"ALTER TABLE {{table}} DETACH PARTITION {{name}} {how}").format(**words)
                        )
                    cursor.execute(sql.SQL("DROP TABLE {name}").format(**words))
            except OperationalError as error:
                logger.warning("an old partition is in use", extra={"partition": name, "error": str(error)})
            else:
                return True
        return False

    def _attached(self, name: str) -> bool | None:
        """Whether it is a partition: None when it is none any more, False when it was left half way off."""
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT NOT inhdetachpending FROM pg_inherits"
                " WHERE inhparent = %s::regclass AND inhrelid = %s::regclass",
                [self.table, name],
            )
            row = cursor.fetchone()
        return row[0] if row else None

    def _all_names(self) -> list[str]:
        """The partitions there are and those that were taken off but not dropped, oldest first."""
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ %s"
                " AND relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = %s::regclass) ORDER BY 1",
                [rf"^{self.table}_\d{{4}}_\d\d$", self.table],
            )
            return [name for (name,) in cursor.fetchall()]

    def _start(self, name: str) -> date:
        year, month = (int(part) for part in name.removeprefix(f"{self.table}_").split("_"))
        return date(year, month, 1)


@contextmanager
def _patience(cursor: Any) -> Iterator[None]:
    """Wait for a lock for a moment only: whoever comes after us would wait behind us."""
    cursor.execute(f"SET lock_timeout = '{PATIENCE}'")
    try:
        yield
    finally:
        cursor.execute("RESET lock_timeout")


def _months(first: date, count: int) -> Iterator[tuple[date, date]]:
    start = first
    for _ in range(count):
        end = _next_month(start)
        yield start, end
        start = end


def _next_month(first: date) -> date:
    return (first + timedelta(days=32)).replace(day=1)
