"""Reads of the logs from a replica of the database (DATABASE_READ_URL), as docs/how-to/scale-out.md describes.

Only what tells of the past is read there: lists, exports, numbers. Nothing is decided by it, nothing is written after
it, and whoever has just changed something reads the primary. Each process measures once a second how far the replica
is behind, by positions in the write-ahead log: clocks do not matter, nor whether the replica still hears the primary.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
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

logger = logging.getLogger(__name__)

ALIAS = "replica"
SAFE = {"GET", "HEAD", "OPTIONS"}
WROTE = "gateway_wrote"  # The cookie of a browser that has just changed something.
# A measurement counts for so long. Together with the limit it says how old the newest row may be that a replica lacks.
FRESH_S = 3.0
MARGIN_S = 5
TELLS_FROM_S = 3.0  # A replica so far behind is told of on the page.
READ_ONLY, CANCELLED = "25006", "57014"
FAULTS_OF_SERVERS = {"08", "40", "53", "55", "57", "58", "XX"}
MOST_POSITIONS = 900  # A quarter of an hour; what is further behind is not told how far.

# Which database of which cluster this is: a replica says the same as its primary.
IDENTITY = """
(SELECT system_identifier FROM pg_control_system()),
(SELECT oid FROM pg_database WHERE datname = current_database())
"""
# A replica that did not follow when another server was promoted stays on the timeline of before. Who may not see what
# it receives (pg_read_all_stats) is told as of its last checkpoint: then none counts for a while after a promotion.
_AT_REPLICA = f"""
SELECT pg_is_in_recovery(), (pg_last_wal_replay_lsn() - '0/0'::pg_lsn)::bigint,
    coalesce((SELECT received_tli FROM pg_stat_wal_receiver), (SELECT timeline_id FROM pg_control_checkpoint())),
    {IDENTITY}
""".encode()  # noqa: S608  (constants)
_AT_PRIMARY = f"""
SELECT (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint,
    ('x' || left(pg_walfile_name(pg_current_wal_flush_lsn()), 8))::bit(32)::int,
    {IDENTITY}
"""


class Standing(NamedTuple):
    """Whether the replica may be read, as measured at a moment; `fault` says why not."""

    fault: str
    lag: float
    at: float


class Gauging:
    """Measures how far the replica is behind, over a connection of its own."""

    def __init__(self) -> None:
        self._own: psycopg.Connection[Any] | None = None
        self._positions: deque[tuple[float, int]] = deque(maxlen=MOST_POSITIONS)
        self._standing = Standing("not asked yet", 0.0, float("-inf"))
        self.reads = {"replica": 0, "primary": 0}  # Of this process, by where they went.
        self.readers: set[BaseDatabaseWrapper] = set()  # The connections that pages read over just now.
        self._began: float | None = None

    @property
    def standing(self) -> Standing:
        """As it was measured last; what was measured too long ago says nothing any more."""
        if time.monotonic() - self._standing.at > FRESH_S:
            return self._standing._replace(fault=self._standing.fault or "the database did not say lately")
        return self._standing

    def measure(self) -> None:
        """Measure once. Never raises an error of a database: what cannot be measured cannot be used."""
        self._began = time.monotonic()
        try:
            fault, lag = self._measured()
        except (DatabaseError, InterfaceError, psycopg.Error, OSError):
            # What the server says names addresses, and /readyz is open to anybody.
            self.close()
            fault, lag = "it cannot be reached", 0.0
        self._began = None
        self._standing = Standing(fault, lag, time.monotonic())

    def cut_if_stuck(self) -> None:
        """Cut all connections to a replica that does not answer: who reads there would wait for as long as it hangs."""
        if self._began is None or time.monotonic() - self._began < FRESH_S:
            return
        reading = [reader.connection for reader in tuple(self.readers)]
        for each in filter(None, [self._own, *reading]):
            with suppress(OSError, psycopg.Error), socket(fileno=os.dup(each.fileno())) as cut:
                cut.shutdown(SHUT_RDWR)

    def failed(self) -> None:
        """It could not be read just now: not before it was measured again."""
        self._standing = Standing("it could not be read", 0.0, time.monotonic())

    def close(self) -> None:
        own, self._own = self._own, None
        if own is not None:
            own.close()

    def _measured(self) -> tuple[str, float]:
        """Why it may not be used, and the seconds it is behind."""
        asked_at = time.monotonic()
        with connection.cursor() as cursor:
            cursor.execute(_AT_PRIMARY)
            position, timeline, *primary = cursor.fetchone()
        if not self._positions or position > self._positions[-1][1]:
            self._positions.append((asked_at, position))
        elif position == self._positions[-1][1]:
            self._positions[-1] = (asked_at, position)
        else:
            self._positions.clear()  # Another primary than before.
            self._positions.append((asked_at, position))
        self._own = self._own or _connect()
        row = self._own.execute(_AT_REPLICA).fetchone()
        assert row
        is_replica, replayed, followed, *there = row
        if not is_replica:
            return "it is no replica", 0.0
        if there != primary:
            return "it is a replica of another database", 0.0
        if followed != timeline:
            return "it has not followed the present primary yet", 0.0
        return self._behind(replayed, time.monotonic())

    def _behind(self, replayed: int | None, now: float) -> tuple[str, float]:
        if replayed is None:
            return "it does not say how far it is", 0.0
        if replayed >= self._positions[-1][1]:
            return "", 0.0
        reached = next((at for at, position in reversed(self._positions) if position <= replayed), None)
        lag = now - (self._positions[0][0] if reached is None else reached)
        if reached is None:
            return "it has not caught up yet", lag
        return (f"it is more than {settings.READ_LAG_SECONDS} s behind" if lag > settings.READ_LAG_SECONDS else ""), lag


gauging = Gauging()


def is_set() -> bool:
    """Whether there is a replica to read from at all."""
    return settings.READ_DATABASE is not None


def _connect() -> psycopg.Connection[Any]:
    return psycopg.connect(**_wrapper().get_connection_params(), autocommit=True)


def _wrapper() -> Any:
    return databases.wrapper(databases.complete(settings.READ_DATABASE or {}), ALIAS)


def connector() -> Callable[[], psycopg.Connection[Any]] | None:
    """What opens a session of one's own at the replica; None in a thread that does not read from it."""
    return _connect if connections[DEFAULT_DB_ALIAS].alias == ALIAS else None


def read[T](request: Any, work: Callable[[], T]) -> T:
    """What `work` returns, which reads and does not write: from the replica where this request may be answered from it.

    When the replica fails meanwhile, `work` is done again on the primary.
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
    """Whether this browser, or this person from anywhere, changed something that the replica may lack."""
    if WROTE in request.COOKIES:
        return True
    if not hasattr(request, "wrote_lately"):
        lately = timezone.now() - timedelta(seconds=settings.READ_LAG_SECONDS + MARGIN_S)
        request.wrote_lately = Event.objects.filter(actor_id=request.user.pk, created_at__gte=lately).exists()
    return bool(request.wrote_lately)


def _is_of_the_replica(error: BaseException) -> bool:
    """Whether the primary would not have failed: the connection, a conflict with what is replayed, a write."""
    state = getattr(error.__cause__ if error.__cause__ is not None else error, "sqlstate", None)
    return state is None or state == READ_ONLY or (state != CANCELLED and state[:2] in FAULTS_OF_SERVERS)


def from_replica(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Let a view that writes nothing read from the replica, where the request may; below what checks capabilities."""

    @wraps(view)
    def reading(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return read(request, lambda: view(request, *args, **kwargs))

    return reading


def note_writes(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware: whoever has changed something reads from the primary until a replica that is read must have it."""

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
    """A context processor: how many seconds the replica that answers is behind, where that is to be told."""
    return {"replica_lag": getattr(request, "replica_lag", None)}
