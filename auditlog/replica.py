"""Read the logs from a replica of the database (DATABASE_READ_URL), as docs/how-to/scale-out.md describes.

Only history is read from the replica: lists, exports and numbers. No decision and no write depends on the replica. For
a person who has just changed something, pages read the primary.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import wraps
from socket import SHUT_RDWR, socket
from typing import Any, NamedTuple

import psycopg
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, DatabaseError, InterfaceError, connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from auditlog.models import Event
from ui import databases

# Find the id up to which a log is complete: writers commit in any order, so rows become visible in any order.
#
# Readers that must not miss rows stop at this id (docs/decisions/0029-roll-ups-counted-by-id.md).

# Rows are read by primary key, (created_at, id). `created_at` is the time when a call arrives, but the row is written
# when the call ends. Calls that took up to NEAR are read at once. Longer calls are read about every LATE_EVERY, if they
# began within LATEST.
NEAR = timedelta(minutes=10)
LATE_EVERY = timedelta(minutes=5)
LATEST = timedelta(days=2)  # No call takes longer than this.

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
    """Return an id of `table` up to which all writers have finished.

    Every row with this id or a lower one is visible to this cursor, or was rolled back. The function waits for writers
    that have not finished yet. It returns None if one of them has not finished after `wait` seconds.
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
    """Return the newest id assigned in `table`, even if its row was rolled back; 0 if no id was assigned."""
    cursor.execute(LAST_ID, [table])
    return int(cursor.fetchone()[0] or 0)


def _writers(cursor: Any, table: str) -> set[str]:
    cursor.execute(WRITERS, [table])
    return set(cursor.fetchone()[0])


logger = logging.getLogger(__name__)

ALIAS = "replica"
SAFE = {"GET", "HEAD", "OPTIONS"}
WROTE = "gateway_wrote"  # Cookie that marks a browser in which something has just been changed.
# Seconds for which a measurement is valid. So rows on the replica are late by at most READ_LAG_SECONDS plus this time.
FRESH_S = 3.0
MARGIN_S = 5
TELLS_FROM_S = 3.0  # Pages show the lag from this number of seconds on.
READ_ONLY, CANCELLED = "25006", "57014"
FAULTS_OF_SERVERS = {"08", "40", "53", "55", "57", "58", "XX"}

# Identifies the database and cluster; equal on a replica and its primary.
IDENTITY = """
(SELECT system_identifier FROM pg_control_system()),
(SELECT oid FROM pg_database WHERE datname = current_database())
"""
# A replica that did not follow a promotion stays on the previous timeline. Without the role pg_read_all_stats, this
# query reads the timeline of the replica's last PostgreSQL checkpoint. After a promotion, that timeline is outdated
# until the replica's next such checkpoint, and until then the replica is not used.
_AT_REPLICA = f"""
SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn() >= %s::pg_lsn, pg_last_xact_replay_timestamp(),
    coalesce((SELECT received_tli FROM pg_stat_wal_receiver), (SELECT timeline_id FROM pg_control_checkpoint())),
    {IDENTITY}
"""  # noqa: S608  (constants)
_AT_PRIMARY = f"""
SELECT pg_current_wal_flush_lsn()::text, clock_timestamp(),
    ('x' || left(pg_walfile_name(pg_current_wal_flush_lsn()), 8))::bit(32)::int,
    {IDENTITY}
"""


class Standing(NamedTuple):
    """Status of the replica at the time of a measurement.

    `fault` says why the replica may not be read. If the replica may be read, `fault` is empty.
    """

    fault: str
    # Seconds since the last commit that the replica has replayed, by the primary's clock; 0 if it has replayed all.
    lag: float
    at: float


class Gauging:
    """Measures the lag of the replica, over a separate database connection."""

    def __init__(self) -> None:
        self._own: psycopg.Connection[Any] | None = None
        self._standing = Standing("not asked yet", 0.0, float("-inf"))
        self.reads = {"replica": 0, "primary": 0}  # Number of reads in this process, by database.
        self.readers: set[BaseDatabaseWrapper] = set()  # Connections that pages are reading over.
        self._began: float | None = None

    @property
    def standing(self) -> Standing:
        """Return the last measurement, with a fault if it is outdated."""
        if time.monotonic() - self._standing.at > FRESH_S:
            return self._standing._replace(fault=self._standing.fault or "it was not measured recently")
        return self._standing

    def measure(self) -> None:
        """Measure the replica's lag once. A database error is not raised, but marks the replica as unusable."""
        self._began = time.monotonic()
        try:
            fault, lag = self._measured()
        except (DatabaseError, InterfaceError, psycopg.Error, OSError):
            # PostgreSQL's error text is not used, because it contains addresses and /readyz is public.
            self.close()
            fault, lag = "it cannot be reached", 0.0
        self._began = None
        self._standing = Standing(fault, lag, time.monotonic())

    def cut_if_stuck(self) -> None:
        """Close the sockets to a replica that does not answer, so that pages reading from it do not hang."""
        if self._began is None or time.monotonic() - self._began < FRESH_S:
            return
        reading = [reader.connection for reader in tuple(self.readers)]
        for each in filter(None, [self._own, *reading]):
            with suppress(OSError, psycopg.Error), socket(fileno=os.dup(each.fileno())) as cut:
                cut.shutdown(SHUT_RDWR)

    def failed(self) -> None:
        """Mark the replica as unreadable until the next measurement."""
        self._standing = Standing("reading failed", 0.0, time.monotonic())

    def close(self) -> None:
        own, self._own = self._own, None
        if own is not None:
            own.close()

    def _measured(self) -> tuple[str, float]:
        """Return the reason why the replica may not be used (empty if it may), and its lag in seconds."""
        with connection.cursor() as cursor:
            cursor.execute(_AT_PRIMARY)
            position, now, timeline, *primary = cursor.fetchone()
        self._own = self._own or _connect()
        row = self._own.execute(_AT_REPLICA.encode(), [position]).fetchone()
        assert row
        is_replica, has_all, replayed_at, followed, *there = row
        if not is_replica:
            return "it is not a replica", 0.0
        if there != primary:
            return "it is a replica of another database", 0.0
        if followed != timeline:
            return "it has not replayed from the current primary yet", 0.0
        if has_all:
            return "", 0.0
        if replayed_at is None:
            return "it has not replayed a transaction since its start", 0.0
        lag = max((now - replayed_at).total_seconds(), 0.0)
        return (f"it is more than {settings.READ_LAG_SECONDS} s behind" if lag > settings.READ_LAG_SECONDS else ""), lag


gauging = Gauging()


def is_set() -> bool:
    """True if a replica is configured."""
    return settings.READ_DATABASE is not None


def _connect() -> psycopg.Connection[Any]:
    return psycopg.connect(**_wrapper().get_connection_params(), autocommit=True)


def _wrapper() -> Any:
    return databases.wrapper(databases.complete(settings.READ_DATABASE or {}), ALIAS)


def connector() -> Callable[[], psycopg.Connection[Any]] | None:
    """Return a function that connects to the replica; None if this thread does not read from the replica."""
    return _connect if connections[DEFAULT_DB_ALIAS].alias == ALIAS else None


def read_from_replica[T](request: Any, work: Callable[[], T]) -> T:
    """Return the result of `work`, which must not write.

    `work` reads from the replica if this request may use the replica, and otherwise from the primary. If the replica
    fails, `work` runs again on the primary.
    """
    if not is_set() or connection.in_atomic_block or connections[DEFAULT_DB_ALIAS].alias == ALIAS:
        return work()
    standing = gauging.standing
    if not standing.fault and request.method in SAFE and not _has_just_written(request):
        try:
            return _read(request, work, standing)
        except (DatabaseError, InterfaceError, psycopg.Error) as error:
            if not _is_of_the_replica(error):
                raise
            logger.warning("the replica could not be read", extra={"error": " ".join(str(error).split())})
            gauging.failed()
            request.replica_lag = None
    gauging.reads["primary"] += 1
    return work()


def _read[T](request: Any, work: Callable[[], T], standing: Standing) -> T:
    if standing.lag >= TELLS_FROM_S:
        request.replica_lag = round(standing.lag)
    reader = _wrapper()
    gauging.readers.add(reader)
    try:
        with databases.swapped(reader):
            result = work()
    finally:
        gauging.readers.discard(reader)
    gauging.reads["replica"] += 1
    return result


def _has_just_written(request: Any) -> bool:
    """Return True if this person, in any browser, recently made a change that the replica may not have yet."""
    if WROTE in request.COOKIES:
        return True
    if not hasattr(request, "wrote_lately"):
        lately = timezone.now() - timedelta(seconds=settings.READ_LAG_SECONDS + MARGIN_S)
        request.wrote_lately = Event.objects.filter(actor_id=request.user.pk, created_at__gte=lately).exists()
    return bool(request.wrote_lately)


def _is_of_the_replica(error: BaseException) -> bool:
    """Return True if the replica may have caused the error, so that the same statement may succeed on the primary."""
    state = getattr(error.__cause__ if error.__cause__ is not None else error, "sqlstate", None)
    # Connection errors, attempts to write, faults of the server, and conflicts with the replay of the write-ahead log.
    return state is None or state == READ_ONLY or (state != CANCELLED and state[:2] in FAULTS_OF_SERVERS)


def from_replica(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Decorator for a view that does not write: the view reads from the replica if its request may use the replica.

    This decorator must be below the decorator that checks the capability.
    """

    @wraps(view)
    def reading(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return read_from_replica(request, lambda: view(request, *args, **kwargs))

    return reading


def note_writes(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware: after a change, the browser's requests read the primary until the replica surely has the change."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        if is_set() and request.method not in SAFE:
            response.set_cookie(
                WROTE,
                "1",
                max_age=settings.READ_LAG_SECONDS + MARGIN_S,
                secure=settings.SESSION_COOKIE_SECURE,
                httponly=True,
                samesite="Lax",
            )
        return response

    return middleware


def lag(request: HttpRequest) -> dict[str, Any]:
    """Context processor: add the replica's lag in seconds, or None if the page must not show it."""
    return {"replica_lag": getattr(request, "replica_lag", None)}
