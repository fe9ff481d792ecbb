"""Monthly partitions of a log table: made ahead of time, dropped by retention (traps E6, E7)."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from django.db import connection, transaction
from psycopg import sql

AHEAD = 3


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
        """Drop the partitions that hold nothing as new as `limit`; the names of those dropped."""
        dropped = []
        for name in self.names():
            year, month = (int(part) for part in name.removeprefix(f"{self.table}_").split("_"))
            if _next_month(date(year, month, 1)) <= limit:
                self._drop(name)
                dropped.append(name)
        return dropped

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

    def _drop(self, name: str) -> None:
        words = {"name": sql.Identifier(name), "table": sql.Identifier(self.table)}
        with connection.cursor() as cursor:  # CONCURRENTLY refuses to run inside a transaction.
            cursor.execute(sql.SQL("ALTER TABLE {table} DETACH PARTITION {name} CONCURRENTLY").format(**words))
            cursor.execute(sql.SQL("DROP TABLE {name}").format(**words))


def _months(first: date, count: int) -> Iterator[tuple[date, date]]:
    start = first
    for _ in range(count):
        end = _next_month(start)
        yield start, end
        start = end


def _next_month(first: date) -> date:
    return (first + timedelta(days=32)).replace(day=1)
