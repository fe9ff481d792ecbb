"""Up to which id a log is complete: rows become visible in any order, since writers commit in any order.

Whoever reads a log by its ids, and must miss no row, asks here where to stop (docs/explanation/roll-ups.md).
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

# Rows are found by the log's primary key, (created_at, id), and written when a call ends. Those that are up to NEAR old
# then are looked for at once, those of calls that took longer every LATE_EVERY or so, up to LATEST back.
NEAR = timedelta(minutes=10)
LATE_EVERY = timedelta(minutes=5)
LATEST = timedelta(days=2)  # No call takes longer.

# Whoever writes to a table holds this lock from before it takes its first id until its rows are visible, or gone.
WRITERS = """
SELECT coalesce(array_agg(virtualtransaction), '{}') FROM pg_locks
WHERE locktype = 'relation' AND relation = %s::regclass AND mode = 'RowExclusiveLock' AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND pid IS DISTINCT FROM pg_backend_pid()
"""
# The id of the n-th row that came between two ids, of those that are not older than a moment.
NTH_ID = """
SELECT id FROM auditlog_call WHERE created_at >= %s AND id > %s AND id <= %s ORDER BY id OFFSET %s LIMIT 1
"""
LAST_ID = "SELECT pg_sequence_last_value(pg_get_serial_sequence(%s, 'id')::regclass)"


def last_id(cursor: Any, table: str, *, wait: float) -> int | None:
    """An id up to which every row of `table` is visible to this cursor, or never will be.

    None when somebody who was writing has not ended after `wait` seconds.
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
    """The newest id that was given to a row of `table`, whatever became of it; 0 when there was none."""
    cursor.execute(LAST_ID, [table])
    return int(cursor.fetchone()[0] or 0)


def _writers(cursor: Any, table: str) -> set[str]:
    cursor.execute(WRITERS, [table])
    return set(cursor.fetchone()[0])
