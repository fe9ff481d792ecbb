"""Locks across processes and machines: PostgreSQL advisory locks."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import psycopg

from gatewayadmin.config import database


class Lock(IntEnum):
    """What only one process may do at a time."""

    FIRST_START = 0x67776101
    HOUSEKEEPING = 0x67776102


@contextmanager
def held(lock: Lock) -> Iterator[None]:
    """Wait for the lock and hold it for the block; a killed process loses it by itself."""
    with psycopg.connect(database.conninfo(), autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [int(lock)])
        yield


@contextmanager
def held_if_free(lock: Lock) -> Iterator[bool]:
    """Whether we got the lock; if so it is held for the block."""
    with psycopg.connect(database.conninfo(), autocommit=True) as connection:
        row = connection.execute("SELECT pg_try_advisory_lock(%s)", [int(lock)]).fetchone()
        yield bool(row and row[0])
