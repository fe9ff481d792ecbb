"""Locks across processes and machines: PostgreSQL advisory locks."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import psycopg

from gatewayadmin.config import database

PAUSE_S = 0.1  # Between two tries.


class Lock(IntEnum):
    """What only one process may do at a time."""

    FIRST_START = 0x67776101
    HOUSEKEEPING = 0x67776102


@contextmanager
def held(lock: Lock) -> Iterator[None]:
    """Wait for the lock and hold it for the block; a killed process loses it by itself.

    It is tried again and again: a statement that waited would have a snapshot, for the end of which whoever holds the
    lock would wait in turn, when it makes an index concurrently.
    """
    with psycopg.connect(database.conninfo(), autocommit=True) as connection:
        while not _is_taken(connection, lock):
            time.sleep(PAUSE_S)
        yield


@contextmanager
def held_if_free(lock: Lock) -> Iterator[bool]:
    """Whether we got the lock; if so it is held for the block."""
    with psycopg.connect(database.conninfo(), autocommit=True) as connection:
        yield _is_taken(connection, lock)


def _is_taken(connection: psycopg.Connection, lock: Lock) -> bool:
    """Whether the lock was free, and is this connection's now."""
    row = connection.execute("SELECT pg_try_advisory_lock(%s)", [int(lock)]).fetchone()
    return bool(row and row[0])
