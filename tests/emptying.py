"""Empty the database after a test with committed rows, at a cost proportional to those rows.

Django truncates every table, and then creates content types and permissions again. This module leaves content types,
permissions and the recorded migrations in place, because no test changes them.
"""

import time
from contextlib import suppress
from functools import cache
from typing import Any

import psycopg
from django.apps import apps
from django.db import connection
from psycopg import sql

from gatewayadmin.config.database import conninfo

KEPT = {"auth_permission", "django_content_type", "accounts_schemaversion"}
# Tables with a trigger that forbids DELETE but not TRUNCATE. Triggers named `tell...` only notify, those named
# `note...` add to a history.
GUARDED = """
SELECT tgrelid::regclass::text FROM pg_trigger
WHERE NOT tgisinternal AND tgtype & 8 > 0 AND tgname NOT LIKE ALL ('{tell%,note%}')
"""


# The database session that deletes the rows, by database name. Django's own session is not used, because setting
# session_replication_role discards all prepared plans of a session.
_sweepers: dict[str, psycopg.Connection[Any]] = {}


def empty(*_: object) -> None:
    """Delete the rows of every model, whichever test made them."""
    session = _sweeper(connection.settings_dict["NAME"])
    with session.transaction():
        filled = [name for (name,) in session.execute(filled_tables())]
        if filled:
            _empty(session, filled)


def _sweeper(name: str) -> psycopg.Connection[Any]:
    """Return the session that empties this database; reconnect it if lost. A superuser's session runs no triggers."""
    with suppress(KeyError, psycopg.OperationalError):
        _sweepers[name].execute("SELECT")
        return _sweepers[name]
    session = psycopg.connect(conninfo(), dbname=name, application_name="sweeper", autocommit=True)
    session.prepare_threshold = 0
    # A test that leaves a transaction open causes an error instead of a hang.
    session.execute("SET lock_timeout = '60s'")
    if session.execute("SELECT usesuper FROM pg_user WHERE usename = current_user").fetchone() == (True,):
        session.execute("SET session_replication_role = replica")
    _sweepers[name] = session
    return session


def _empty(session: psycopg.Connection[Any], filled: list[str]) -> None:
    """Delete the rows of these tables. DELETE is preferred: TRUNCATE creates new files for each partition and index.

    A superuser's session deletes without triggers and foreign keys, which is safe because no row remains. Any other
    session truncates the tables with triggers that forbid DELETE. Both wait for writers of those tables.
    """
    guarded = {name for (name,) in session.execute(GUARDED)}
    to_empty = [name for name in filled if name in guarded]
    to_delete = [name for name in filled if name not in guarded]
    if session.execute("SHOW session_replication_role").fetchone() == ("replica",):
        if to_empty:
            session.execute(_each("LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE", to_empty, "; "), prepare=False)
        session.execute(_each("DELETE FROM {table}", filled, "; "), prepare=False)
        return
    if to_empty:
        session.execute(sql.SQL("TRUNCATE ") + _each("{table}", to_empty, ", "), prepare=False)
    if to_delete:
        session.execute(_each("DELETE FROM {table}", to_delete, "; "), prepare=False)


@cache
def filled_tables() -> sql.Composed:
    """Return a statement that selects the names of non-empty tables."""
    return _each("SELECT {name} WHERE EXISTS (SELECT FROM {table})", tables(), " UNION ALL ")


def tables() -> list[str]:
    models = apps.get_models(include_auto_created=True)
    return sorted({model._meta.db_table for model in models if not model._meta.proxy} - KEPT)


def _each(template: str, names: list[str], between: str) -> sql.Composed:
    parts = [sql.SQL(template).format(name=sql.Literal(name), table=sql.Identifier(name)) for name in names]
    return sql.SQL(between).join(parts)


def drop(creation: Any, name: str, verbosity: int, seconds: float = 2) -> None:
    """Drop a test database when its last session has ended, at the latest after `seconds`."""
    for session in _sweepers.values():
        session.close()
    _sweepers.clear()
    creation.connection.close_pool()  # Django does this too, because idle sessions of a pool never end.
    deadline = time.monotonic() + seconds
    with creation._nodb_cursor() as cursor:
        while time.monotonic() < deadline:
            cursor.execute("SELECT application_name FROM pg_stat_activity WHERE datname = %s", [name])
            if cursor.fetchone() is None:
                break
            time.sleep(0.1)
        cursor.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
