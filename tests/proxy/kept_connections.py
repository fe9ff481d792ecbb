"""Connections to the database that one proxy of these tests leaves to the next.

To connect and to plan the statement that decides is most of what a start costs, and there are a thousand in a run. A
proxy takes a connection while it starts and leaves it as it stops. In between it connects as ever: what is lost or
given up is made anew.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum, auto

import psycopg
from psycopg.pq import ExecStatus, TransactionStatus

from proxy.store.bus import Listener
from proxy.store.database import PgConnection


class Phase(Enum):
    STARTING = auto()
    SERVING = auto()
    STOPPING = auto()


class Life:
    """What one proxy is doing now. Its tasks have this in their context."""

    phase = Phase.STARTING


life = ContextVar[Life | None]("life", default=None)


class Kept:
    """The connections that nobody uses just now, by what they were made for."""

    def __init__(self) -> None:
        self._idle = defaultdict[object, list[tuple[psycopg.AsyncConnection, bytes]]](list)

    def take(self, wanted: PgConnection) -> psycopg.AsyncConnection | None:
        idle = self._idle[_kind_of(wanted)]
        while idle:
            connection, name = idle.pop()
            if _rename(connection, name) is not None:
                return connection
            connection.pgconn.finish()
        return None

    def leave(self, by: PgConnection) -> None:
        """Keep its connection, should it have one that is in order.

        None that listens: what it is told and nobody reads would fill it up, and the database then waits for it when
        another one is dropped.
        """
        if isinstance(by, Listener):
            return
        connection, selector = by._connection, by._selector
        if connection is None or selector is None or by._waiter is not None:
            return
        if connection.pgconn.transaction_status != TransactionStatus.IDLE:
            return
        if (name := _rename(connection, b"kept")) is not None:
            asyncio.get_running_loop().remove_reader(selector.fileno())
            selector.close()
            by._connection = by._selector = None
            self._idle[_kind_of(by)].append((connection, name))

    def close(self) -> None:
        for connections in self._idle.values():
            for connection, _ in connections:
                connection.pgconn.finish()
        self._idle.clear()


def _kind_of(connection: PgConnection) -> object:
    return connection._conninfo, tuple(connection._setup)


def _rename(connection: psycopg.AsyncConnection, name: bytes) -> bytes | None:
    """Have the database know it by another name, and give the last; None when it does not answer any more.

    Under its own name it would be taken for one in use.
    """
    pgconn = connection.pgconn
    pgconn.nonblocking = 0
    try:
        last = pgconn.exec_(b"SELECT current_setting('application_name')").get_value(0, 0)
        renamed = pgconn.exec_(b"SET application_name = '%s'" % name).status == ExecStatus.COMMAND_OK
    except psycopg.Error:
        return None
    return last if renamed else None


def _is(phase: Phase) -> bool:
    mine = life.get()
    return mine is not None and mine.phase is phase


@contextmanager
def keeping() -> Iterator[None]:
    """Let proxies leave their connections to the next, until the block ends."""
    connect, close = PgConnection._connect, PgConnection.close
    kept = Kept()

    async def take_or_connect(self: PgConnection) -> psycopg.AsyncConnection:
        return (_is(Phase.STARTING) and kept.take(self)) or await connect(self)

    def leave_or_close(self: PgConnection) -> None:
        if _is(Phase.STOPPING):
            kept.leave(self)
        close(self)

    PgConnection._connect, PgConnection.close = take_or_connect, leave_or_close  # type: ignore[method-assign]
    try:
        yield
    finally:
        PgConnection._connect, PgConnection.close = connect, close  # type: ignore[method-assign]
        kept.close()
