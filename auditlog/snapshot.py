"""Database snapshots, used by the live log to find calls committed since its last request.

Neither times nor ids would do: a long call is older than short ones written before it, and of two writers the one with
lower ids may commit last.
"""

from __future__ import annotations

import re
from copy import copy
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from django.db import connection
from django.db.models import QuerySet
from django.utils import timezone

from auditlog.models import Call
from auditlog.search import Known, Search

LONGEST_CALL = timedelta(minutes=5)

_ROW = "((pg_snapshot_xmax(%s::pg_snapshot)::text::bigint >> 32 << 32) + auditlog_call.xmin::text::bigint)::text::xid8"
VISIBLE = f"pg_visible_in_snapshot({_ROW}, %s::pg_snapshot)"

_snapshot = re.compile(r"([0-9]{1,18}):([0-9]{1,18}):((?:[0-9]{1,18},){0,400}[0-9]{1,18})?").fullmatch


class Snapshot(NamedTuple):
    """A database snapshot: the transactions committed at a point in time."""

    snapshot: str
    seconds: int

    def __str__(self) -> str:
        return f"{self.seconds}-{self.snapshot}"

    @property
    def age(self) -> int:
        """Return the age in seconds."""
        return int(timezone.now().timestamp()) - self.seconds


def current_snapshot() -> Snapshot:
    """Return the current snapshot."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_current_snapshot()::text")
        return Snapshot(cursor.fetchone()[0], int(timezone.now().timestamp()))


def parse_snapshot(text: str) -> Snapshot | None:
    """Parse a snapshot; return None for any other text."""
    seconds, _, snapshot = text.partition("-")
    if not (seconds.isascii() and seconds.isdecimal() and len(seconds) < 12 and _is_snapshot(snapshot)):
        return None
    return Snapshot(snapshot, int(seconds))


def _is_snapshot(text: str) -> bool:
    """True if PostgreSQL accepts it: transaction ids ascending and within its bounds."""
    match = _snapshot(text)
    if match is None:
        return False
    lowest, highest = int(match[1]), int(match[2])
    running = [int(xid) for xid in (match[3] or "").split(",") if xid]
    return 0 < lowest <= highest and running == sorted(running) and all(lowest <= xid < highest for xid in running)


def visible_in(rows: QuerySet[Call], then: Snapshot) -> QuerySet[Call]:
    """Return the rows that were committed in a snapshot."""
    return _where(rows, VISIBLE, then)


def search_in(search: Search, then: Snapshot) -> Search:
    """Return the search, limited to calls committed in a snapshot."""
    same = copy(search)
    same.base, same.known = visible_in(search.base, then), Known(search.known.at)
    return same


def number_between(search: Search, then: Snapshot, now: Snapshot, most: int) -> int:
    """Count the calls of a search committed between two snapshots, up to `most`."""
    since = datetime.fromtimestamp(then.seconds, UTC) - LONGEST_CALL
    unseen = _where(search.rows().filter(created_at__gte=since), f"NOT {VISIBLE}", then)
    return visible_in(unseen, now).order_by()[:most].count()


def _where(rows: QuerySet[Call], condition: str, then: Snapshot) -> QuerySet[Call]:
    # Django does not expose a row's xmin. The conditions are constants; outside values are parameters.
    return rows.extra(where=[condition], params=[then.snapshot] * 2)  # noqa: S610  (constants, as said above)
