"""Find the id up to which a log is complete: writers commit in any order, so rows become visible in any order.

Readers that follow a log by id and must not miss rows stop there (docs/explanation/roll-ups.md).
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

# Rows are found by primary key, (created_at, id), and written when a call ends. Rows up to NEAR old by then are read at
# once; those of longer calls about every LATE_EVERY, up to LATEST back.
NEAR = timedelta(minutes=10)
LATE_EVERY = timedelta(minutes=5)
LATEST = timedelta(days=2)  # No call takes longer.

# Each writer holds this lock from before its first id is assigned until its rows are committed or rolled back.
WRITERS = """
SELECT coalesce(array_agg(virtualtransaction), '{}') FROM pg_locks
WHERE locktype = 'relation' AND relation = %s::regclass AND mode = 'RowExclusiveLock' AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND pid IS DISTINCT FROM pg_backend_pid()
"""
# The n-th id between two ids, among rows not older than a given time.
NTH_ID = """
SELECT id FROM auditlog_call WHERE created_at >= %s AND id > %s AND id <= %s ORDER BY id OFFSET %s LIMIT 1
"""
LAST_ID = "SELECT pg_sequence_last_value(pg_get_serial_sequence(%s, 'id')::regclass)"


def last_id(cursor: Any, table: str, *, wait: float) -> int | None:
    """Return an id up to which all rows of `table` are visible to this cursor or never will be.

    None if a writer has not finished after `wait` seconds.
    """
    last = newest_id(cursor, table)
    writers, until = _writers(cursor, table), time.monotonic() + wait
    while writers:
        if time.monotonic() > until:
            return None
        time.sleep(0.01)
        writers &= _writers(cursor, table)
    return last


def newest_id(cursor: Any, table: str) -> int:
    """Return the newest id assigned in `table`, even if its row was rolled back; 0 if none was."""
    cursor.execute(LAST_ID, [table])
    return int(cursor.fetchone()[0] or 0)


def _writers(cursor: Any, table: str) -> set[str]:
    cursor.execute(WRITERS, [table])
    return set(cursor.fetchone()[0])
