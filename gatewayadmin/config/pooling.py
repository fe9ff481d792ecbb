"""Tells whether a connection pooler stands before a database, and how long a session lasts behind it.

A pooler invents the process id that a client is told when it connects; the server's own tells otherwise. In transaction
mode two clients then share a session, or one client has several.
"""

from __future__ import annotations

import secrets
import time
from contextlib import closing
from enum import StrEnum
from select import select
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

DIRECT = "GATEWAY_DIRECT_DATABASE_URL"
ROUNDS = 5
WAIT_S = 3.0  # For so long at most for a session; in session mode a client has its own already, and waits for none.
REFUSED_OPTIONS = "unsupported startup parameter"  # PgBouncer's words for `options`.


class Pooling(StrEnum):
    """What stands before a database."""

    NONE = "direct"
    SESSION = "through a pooler in session mode"
    TRANSACTION = "through a pooler in transaction mode"


def fault(connection: psycopg.Connection[Any], name: str) -> str:
    """Why what needs a session cannot use this connection, to where the variable `name` leads; empty when it can."""
    return _needs_direct(name) if pooling_of(connection) is Pooling.TRANSACTION else ""


def words_for(error: psycopg.Error, name: str) -> str:
    """Why there is no connection to the database `name` leads to, in one line."""
    if REFUSED_OPTIONS in str(error):
        return _needs_direct(name)
    return f"The database cannot be reached: {' '.join(str(error).split())}"


def _needs_direct(name: str) -> str:
    if name == DIRECT:
        return f"{DIRECT} leads to a connection pooler in transaction mode; it must lead to PostgreSQL itself."
    return (
        f"{name} leads to a connection pooler in transaction mode, which can serve pages only: "
        f"set {DIRECT} to a URL that leads to PostgreSQL itself."
    )


def pooling_of(first: psycopg.Connection[Any]) -> Pooling:
    """What stands before the database of this connection, which has to be idle."""
    if _session(first) == first.info.backend_pid:
        return Pooling.NONE
    conninfo = make_conninfo(first.info.dsn, password=first.info.password or None)
    with closing(psycopg.connect(conninfo, autocommit=True)) as second:
        for _ in range(ROUNDS):
            before, other, after = _session(first), _session(second, b"BEGIN"), _session(first)
            # Who was served before has to wait now, or is served by another, or the other has what was theirs.
            if after != before or other == before:
                return Pooling.TRANSACTION
            if other is None or _answer(second, b"ROLLBACK") is None:
                break
    return Pooling.SESSION


def same_database(direct: psycopg.Connection[Any], pages: psycopg.Connection[Any]) -> bool:
    """Whether both lead to the same database of the same running server: a lock taken over one is seen over the other.

    A copy of the database, restored or replicated, has the same name and identifier, and locks of its own.
    """
    key = secrets.randbits(63)
    direct.execute("SELECT pg_advisory_lock(%s)", [key])
    try:
        row = pages.execute("SELECT pg_try_advisory_xact_lock(%s)", [key], prepare=False).fetchone()
        return row is not None and row[0] is False
    finally:
        direct.execute("SELECT pg_advisory_unlock(%s)", [key])


def _session(connection: psycopg.Connection[Any], before: bytes = b"") -> int | None:
    """The process id of the server's session that answers; None when there is none for it in WAIT_S."""
    result = _answer(connection, before + b"; SELECT pg_backend_pid()")
    return int(result.get_value(0, 0) or 0) if result else None


def _answer(connection: psycopg.Connection[Any], statements: bytes) -> PGresult | None:
    """The last result of these; None when there is none in WAIT_S, and the connection can then only be closed."""
    pgconn, last = connection.pgconn, None
    pgconn.send_query(statements)
    pgconn.flush()
    until = time.monotonic() + WAIT_S
    while True:
        pgconn.consume_input()
        while not pgconn.is_busy():
            if (result := pgconn.get_result()) is None:
                return last
            if result.status not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK, ExecStatus.EMPTY_QUERY):
                raise psycopg.OperationalError(result.get_error_message())
            last = result
        if not select([pgconn.socket], [], [], max(until - time.monotonic(), 0))[0]:
            return None
