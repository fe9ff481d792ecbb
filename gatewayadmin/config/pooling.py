"""Detects connection poolers in front of a database, and their mode.

A pooler makes up the process id that clients get when they connect, so it differs from that of the server. In
transaction mode, two clients share a session, or one client has several.
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
WAIT_S = 3.0  # Longest wait for a session; in session mode a client already has one.
REFUSED_OPTIONS = "unsupported startup parameter"  # PgBouncer's words for `options`.


class Pooling(StrEnum):
    """The kind of pooler in front of a database."""

    NONE = "direct"
    SESSION = "through a pooler in session mode"
    TRANSACTION = "through a pooler in transaction mode"


def pooling_fault(connection: psycopg.Connection[Any], name: str) -> str:
    """Return why this connection (of the variable `name`) has no lasting session; empty if it has one."""
    return _needs_direct(name) if pooling_of(connection) is Pooling.TRANSACTION else ""


def unreachable_text(error: psycopg.Error, name: str) -> str:
    """Return why the database of the variable `name` cannot be reached, in one line."""
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
    """Detect the pooler of a connection, which must be idle."""
    if _session(first) == first.info.backend_pid:
        return Pooling.NONE
    conninfo = make_conninfo(first.info.dsn, password=first.info.password or None)
    with closing(psycopg.connect(conninfo, autocommit=True)) as second:
        for _ in range(ROUNDS):
            before, other, after = _session(first), _session(second, b"BEGIN"), _session(first)
            # The first client now waits, or has another session, or the second one has its former session.
            if after != before or other == before:
                return Pooling.TRANSACTION
            if other is None or _answer(second, b"ROLLBACK") is None:
                break
    return Pooling.SESSION


def same_database(direct: psycopg.Connection[Any], pages: psycopg.Connection[Any]) -> bool:
    """Return whether both connections are to the same database: a lock of one blocks the other.

    Restored or replicated copies have the same name and identifier, but separate locks.
    """
    key = secrets.randbits(63)
    direct.execute("SELECT pg_advisory_lock(%s)", [key])
    try:
        row = pages.execute("SELECT pg_try_advisory_xact_lock(%s)", [key], prepare=False).fetchone()
        return row is not None and row[0] is False
    finally:
        direct.execute("SELECT pg_advisory_unlock(%s)", [key])


def _session(connection: psycopg.Connection[Any], before: bytes = b"") -> int | None:
    """Return the process id of the server session; None if there is none within WAIT_S."""
    result = _answer(connection, before + b"; SELECT pg_backend_pid()")
    return int(result.get_value(0, 0) or 0) if result else None


def _answer(connection: psycopg.Connection[Any], statements: bytes) -> PGresult | None:
    """Return the last result; None if there is none within WAIT_S, then the connection must be closed."""
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
