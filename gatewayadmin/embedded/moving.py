"""Moves the rows of the embedded database to the operator's own PostgreSQL: all rows, or none.

Before the move, `migrate` has created the tables of the target. The move replaces the rows that `migrate` added there.
All rows are moved as text. Therefore the target may have another version of PostgreSQL.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection, IsolationLevel, sql

from auditlog.models import Call
from auditlog.partitions import PartitionDays
from gatewayadmin.config import database
from gatewayadmin.embedded.cluster import DATABASE, OWNER, cluster, socket_folder

LOG = Call.partitions.table
APPLIED = "SELECT app || '.' || name FROM django_migrations"
# Tables that `migrate` fills with the same rows in every database. Rows in any other table belong to an installation.
MADE_BY_MIGRATE = {"django_migrations", "django_content_type", "auth_permission", "accounts_schemaversion"}

_TABLES = """
SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition
AND relnamespace = current_schema()::regnamespace ORDER BY 1
"""
_COLUMNS = """
SELECT attname FROM pg_attribute
WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum
"""
_PARTITIONS = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = %s::regclass"
_OTHERS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
_SEQUENCES = "SELECT sequencename, last_value FROM pg_sequences WHERE last_value IS NOT NULL"

type Say = Callable[[str], object]


class Immovable(Exception):
    """The database cannot be moved; the message is one line."""


@contextmanager
def source(data_dir: Path) -> Iterator[Connection]:
    """Connect to the embedded database of `data_dir`. The connection reads one snapshot of the database.

    Raises Immovable if the database is missing or in use.
    """
    folder = data_dir / "postgres"
    if not (folder / "PG_VERSION").exists():
        raise Immovable(f"There is no embedded database in {data_dir}: set GATEWAY_DATA_DIR to where it is.")
    cluster(data_dir).ensure()
    with _connected(host=str(socket_folder(folder)), port=5432, dbname=DATABASE, user=OWNER) as connection:
        _refuse_if_used(connection, data_dir)
        connection.rollback()
        connection.isolation_level, connection.read_only = IsolationLevel.REPEATABLE_READ, True
        yield connection


def refuse_unless_empty(target: Connection) -> None:
    """Raise Immovable if the target has tables of other programs, or if it has rows that `migrate` did not create."""
    names = _names(target, _TABLES)
    if names and "django_migrations" not in names:
        raise Immovable(f"The database has tables that are not the gateway's, such as {names[0]}: use an empty one.")
    for name in (name for name in names if name not in MADE_BY_MIGRATE):
        if _number(target, sql.SQL("SELECT count(*) FROM (SELECT FROM {} LIMIT 1) row").format(sql.Identifier(name))):
            raise Immovable(f"The database is not empty, {name} has rows: use an empty one.")


def move(data_dir: Path, say: Say) -> int:
    """Move all rows to the configured database and return their number. `migrate` must have created the tables there.

    `say` is called with a line for each table that has rows. Raises Immovable. After any error, the target is
    unchanged.
    """
    with source(data_dir) as old, _connected(database.conninfo()) as new:
        new.execute("LOCK TABLE accounts_user IN ACCESS EXCLUSIVE MODE")  # A gateway that starts now waits.
        refuse_unless_empty(new)
        _compare(old, new)
        tables = _names(old, _TABLES)
        moved = 0
        with _prepared(old, new, tables):
            for table in (table for table in tables if table != "django_migrations"):
                rows = _copy(old, new, table)
                moved += rows
                if rows:
                    say(f"{table} {rows}")
        _take_over_sequences(old, new)
        _refuse_if_used(old, data_dir)  # Rows written in the meantime would not be moved.
        return moved


def _refuse_if_used(old: Connection, data_dir: Path) -> None:
    old.execute("SELECT pg_stat_clear_snapshot()")
    if _number(old, _OTHERS):
        raise Immovable(f"A gateway is running on {data_dir}: stop it first.")


@contextmanager
def _connected(conninfo: str = "", **parameters: Any) -> Iterator[Connection]:
    """Connect, and make PostgreSQL write rows as text that every PostgreSQL version can read."""
    with psycopg.connect(conninfo, client_encoding="utf8", **parameters) as connection:
        for setting in ("datestyle = 'ISO, YMD'", "intervalstyle = 'postgres'", "extra_float_digits = 3"):
            connection.execute(f"SET {setting}".encode())
        connection.execute("SET statement_timeout = 0")
        connection.commit()
        yield connection


def _compare(old: Connection, new: Connection) -> None:
    """Raise Immovable unless the same migrations were applied to both databases."""
    if odd := set(_names(old, APPLIED)) ^ set(_names(new, APPLIED)):
        raise Immovable(
            f"The embedded database has other migrations than this version ({min(odd)}): start the gateway once "
            "without DATABASE_URL to migrate the embedded database, or use the version that last ran on it."
        )


@contextmanager
def _prepared(old: Connection, new: Connection, tables: list[str]) -> Iterator[None]:
    """Empty the target, create the source's partitions in it, and disable its triggers inside the `with` block."""
    names = sql.SQL(", ").join(sql.Identifier(name) for name in tables if name != "django_migrations")
    new.execute(sql.SQL("TRUNCATE {}").format(names))
    for name in _names(new, _PARTITIONS, LOG):
        new.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(name)))
    for name in _names(old, _PARTITIONS, LOG):
        span = PartitionDays.named(name.removeprefix(LOG))
        if span is None:
            raise Immovable(f"{name} is not a partition known to this version.")
        new.execute("SELECT auditlog_make_partition(%s, %s)", [span.start, span.end])
    for name in tables:
        new.execute(sql.SQL("ALTER TABLE {} DISABLE TRIGGER USER").format(sql.Identifier(name)))
    yield
    new.execute("SET CONSTRAINTS ALL IMMEDIATE")  # Each reference is checked here.
    for name in tables:
        new.execute(sql.SQL("ALTER TABLE {} ENABLE TRIGGER USER").format(sql.Identifier(name)))


def _copy(old: Connection, new: Connection, table: str) -> int:
    """Copy a table and return its number of rows. Raises Immovable if a different number arrived."""
    columns = sql.SQL(", ").join(sql.Identifier(name) for name in _names(old, _COLUMNS, table))
    names = {"table": sql.Identifier(table), "columns": columns}
    read = sql.SQL("COPY (SELECT {columns} FROM {table}) TO STDOUT").format(**names)
    write = sql.SQL("COPY {table} ({columns}) FROM STDIN").format(**names)
    with old.cursor() as reading, new.cursor() as writing, reading.copy(read) as rows, writing.copy(write) as place:
        for data in rows:
            place.write(data)
    count = sql.SQL("SELECT count(*) FROM {table}").format(**names)
    had, has = _number(old, count), _number(new, count)
    if had != has:
        raise Immovable(f"{table} has {had} rows in the embedded database, and {has} arrived.")
    return has


def _take_over_sequences(old: Connection, new: Connection) -> None:
    for name, value in old.execute(_SEQUENCES).fetchall():
        new.execute("SELECT setval(%s::regclass, %s)", [name, value])


def _names(connection: Connection, query: str, *params: str) -> list[str]:
    return [name for (name,) in connection.execute(query.encode(), params).fetchall()]


def _number(connection: Connection, query: str | sql.Composed) -> int:
    row = connection.execute(query.encode() if isinstance(query, str) else query).fetchone()
    assert row is not None
    return int(row[0])
