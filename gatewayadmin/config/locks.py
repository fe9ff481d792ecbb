"""Locks across processes and machines: PostgreSQL advisory locks."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import psycopg

from gatewayadmin.config import database

PAUSE_S = 0.1  # Between two tries.


class Lock(IntEnum):
    """Locks for tasks that only one process may do at a time."""

    FIRST_START = 0x67776101
    HOUSEKEEPING = 0x67776102


@contextmanager
def advisory_lock(lock: Lock) -> Iterator[None]:
    """Wait for the lock and hold it for the block. PostgreSQL releases it if the process is killed.

    The lock is polled: a waiting statement would have a snapshot, and the holder of the lock would wait for that
    snapshot when it creates an index concurrently, which is a deadlock.
    """
    with psycopg.connect(database.conninfo(), autocommit=True) as connection:
        while not _is_taken(connection, lock):
            time.sleep(PAUSE_S)
        yield


@contextmanager
def held_if_free(lock: Lock) -> Iterator[bool]:
    """Yield whether the lock was free; if so, hold it for the block."""
    with psycopg.connect(database.conninfo(), autocommit=True) as connection:
        yield _is_taken(connection, lock)


def _is_taken(connection: psycopg.Connection, lock: Lock) -> bool:
    """Try to take the lock. Return whether it was taken."""
    row = connection.execute("SELECT pg_try_advisory_lock(%s)", [int(lock)]).fetchone()
    return bool(row and row[0])
