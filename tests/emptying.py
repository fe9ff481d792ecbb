"""An empty database after a test whose rows were really written, at the price of the rows it wrote.

Django empties every table there is, however few of them hold something, and then makes the content types and the
permissions anew, which migrations made and no test changes.
"""

import time
from functools import cache
from typing import Any

import psycopg
from django.apps import apps
from django.db import connection, transaction
from psycopg import sql

KEPT = {"auth_permission", "django_content_type"}
# Tables whose rows nobody may delete; they may be emptied. Triggers that only tell of a deletion guard nothing.
GUARDED = """
SELECT tgrelid::regclass::text FROM pg_trigger
WHERE NOT tgisinternal AND tgtype & 8 > 0 AND tgname NOT LIKE 'tell%'
"""


def empty(*_: object) -> None:
    """Take away the rows of every model, whichever test made them."""
    with transaction.atomic(), connection.cursor() as cursor:
        # Planned once for each session: there are a hundred tables, and of those with partitions a dozen.
        asking = psycopg.Cursor(connection.connection)
        filled = [name for (name,) in asking.execute(filled_tables(), prepare=True)]
        if not filled:
            return
        cursor.execute(GUARDED)
        guarded = {name for (name,) in cursor}
        cursor.execute("SELECT usesuper FROM pg_user WHERE usename = current_user")
        _empty(cursor, filled, guarded, is_superuser=cursor.fetchone() == (True,))


def _empty(cursor: Any, filled: list[str], guarded: set[str], *, is_superuser: bool) -> None:
    """TRUNCATE makes new files for each partition and each index; a superuser may delete without the guards.

    As TRUNCATE does, it waits for who is writing to the end. Foreign keys are not looked at: no row will have one.
    """
    to_empty = [name for name in filled if name in guarded]
    to_delete = [name for name in filled if name not in guarded]
    if is_superuser:
        if to_empty:
            cursor.execute(_each("LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE", to_empty, "; "))
        cursor.execute("SET LOCAL session_replication_role = replica")
        cursor.execute(_each("DELETE FROM {table}", filled, "; "))
        return
    if to_empty:
        cursor.execute(sql.SQL("TRUNCATE ") + _each("{table}", to_empty, ", "))
    if to_delete:
        cursor.execute(_each("DELETE FROM {table}", to_delete, "; "))


@cache
def filled_tables() -> sql.Composed:
    """A statement that gives the names of the tables that hold something."""
    return _each("SELECT {name} WHERE EXISTS (SELECT FROM {table})", tables(), " UNION ALL ")


def tables() -> list[str]:
    models = apps.get_models(include_auto_created=True)
    return sorted({model._meta.db_table for model in models if not model._meta.proxy} - KEPT)


def _each(template: str, names: list[str], between: str) -> sql.Composed:
    parts = [sql.SQL(template).format(name=sql.Literal(name), table=sql.Identifier(name)) for name in names]
    return sql.SQL(between).join(parts)


def drop(creation: Any, name: str, verbosity: int, seconds: float = 2) -> None:
    """Drop a test database as soon as the last session of it has ended; after so long, with whoever is still there."""
    creation.connection.close_pool()  # As Django does here: what waits in a pool is a session that never ends.
    deadline = time.monotonic() + seconds
    with creation._nodb_cursor() as cursor:
        while time.monotonic() < deadline:
            cursor.execute("SELECT application_name FROM pg_stat_activity WHERE datname = %s", [name])
            if cursor.fetchone() is None:
                break
            time.sleep(0.1)
        cursor.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
