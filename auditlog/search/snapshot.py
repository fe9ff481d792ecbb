"""Database snapshots, with which the live log finds the calls committed since its last request.

Neither the time of a call nor its id would do: a long call is older than short ones that were written before it, and of
two writers the one with the lower ids may commit last.
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
from auditlog.search.criteria import Known, Search

LONGEST_CALL = timedelta(minutes=5)

_ROW = "((pg_snapshot_xmax(%s::pg_snapshot)::text::bigint >> 32 << 32) + auditlog_call.xmin::text::bigint)::text::xid8"
VISIBLE = f"pg_visible_in_snapshot({_ROW}, %s::pg_snapshot)"

_snapshot = re.compile(r"([0-9]{1,18}):([0-9]{1,18}):((?:[0-9]{1,18},){0,400}[0-9]{1,18})?").fullmatch


class Snapshot(NamedTuple):
    """What the database had committed at a moment."""

    snapshot: str
    seconds: int

    def __str__(self) -> str:
        return f"{self.seconds}-{self.snapshot}"

    @property
    def age(self) -> int:
        """How many seconds ago it was."""
        return int(timezone.now().timestamp()) - self.seconds


def current() -> Snapshot:
    """The snapshot of this moment."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_current_snapshot()::text")
        return Snapshot(cursor.fetchone()[0], int(timezone.now().timestamp()))


def parse(text: str) -> Snapshot | None:
    """The snapshot that `text` writes down; None for any other text."""
    seconds, _, snapshot = text.partition("-")
    if not (seconds.isascii() and seconds.isdecimal() and len(seconds) < 12 and _is_snapshot(snapshot)):
        return None
    return Snapshot(snapshot, int(seconds))


def _is_snapshot(text: str) -> bool:
    """Whether PostgreSQL accepts it: transaction ids in ascending order, and all between its bounds."""
    match = _snapshot(text)
    if match is None:
        return False
    lowest, highest = int(match[1]), int(match[2])
    running = [int(xid) for xid in (match[3] or "").split(",") if xid]
    return 0 < lowest <= highest and running == sorted(running) and all(lowest <= xid < highest for xid in running)


def visible_in(rows: QuerySet[Call], then: Snapshot) -> QuerySet[Call]:
    """Those rows that were committed in a snapshot."""
    return _where(rows, VISIBLE, then)


def search_in(search: Search, then: Snapshot) -> Search:
    """The same search of the calls that were committed in a snapshot."""
    same = copy(search)
    same.base, same.known = visible_in(search.base, then), Known(search.known.at)
    return same


def number_between(search: Search, then: Snapshot, now: Snapshot, most: int) -> int:
    """How many calls of a search were committed between two snapshots; counted up to `most`."""
    since = datetime.fromtimestamp(then.seconds, UTC) - LONGEST_CALL
    unseen = _where(search.rows().filter(created_at__gte=since), f"NOT {VISIBLE}", then)
    return visible_in(unseen, now).order_by()[:most].count()


def _where(rows: QuerySet[Call], condition: str, then: Snapshot) -> QuerySet[Call]:
    # Django has no name for a row's xmin. The conditions are constants; what comes from outside is a parameter.
    return rows.extra(where=[condition], params=[then.snapshot] * 2)  # noqa: S610  (constants, as said above)
