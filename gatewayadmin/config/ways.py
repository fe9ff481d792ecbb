"""Checks the database URLs of this installation: at the start, by the doctor and by `manage.py check`."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import psycopg
from django.conf import settings

from auditlog.export import READERS
from auditlog.replica import IDENTITY
from gatewayadmin.config import database
from gatewayadmin.config.database import DIRECT, READ, Pooling, UnusableDatabase
from ui import databases

KEPT = 6  # Connections of the proxy in each worker, except those that write the log.
SINKS = 8  # Two for each sink that the chores process serves at once.
SPARE = 5  # For starts, commands and administrators.
TRIPS = 5
MOST_MS = 5  # Round trip to the database.

_LIMITS = """
SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
        - coalesce(current_setting('reserved_connections', true), '0')::int,
    (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user),
    (SELECT datconnlimit FROM pg_database WHERE datname = current_database())
"""
_TIME_LIMIT = "SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'"
_REPLICA = f"SELECT pg_is_in_recovery(), {IDENTITY}".encode()


@dataclass
class Ways:
    """Findings as sentences: the connections in use, and warnings."""

    uses: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Budget:
    """Connections that one `serve` with `workers` opens, including its chores, by target."""

    workers: int
    direct: int
    pages: int
    replica: int
    pooled: bool

    @property
    def to_server(self) -> int:
        """Connections to the primary, including those of pages unless pooled."""
        return self.direct + (0 if self.pooled else self.pages)

    def __str__(self) -> str:
        parts = [f"{self.to_server} connections to the database"]
        if self.pooled:
            parts.append(f"{self.pages} to the pooler")
        if settings.READ_DATABASE:
            parts.append(f"{self.replica} to the replica")
        return f"{_number_of(self.workers)} up to {', '.join(parts)}"


def budget(workers: int, *, pooled: bool) -> Budget:
    """Return the maximum of connections of these workers and the chores process, without exports and sinks."""
    direct = workers * (KEPT + settings.RECORD_CONNECTIONS) + settings.WEB_CONNECTIONS
    pages = workers * settings.WEB_CONNECTIONS
    return Budget(workers, direct, pages, workers * (1 + settings.WEB_CONNECTIONS), pooled)


def survey(workers: int) -> Ways:
    """Check the database URLs for a `serve` with `workers`. Raises UnusableDatabase if it must not start."""
    ways = Ways()
    database.ensure()
    try:
        with closing(psycopg.connect(database.conninfo(), connect_timeout=5, autocommit=True)) as direct:
            if fault := database.pooling_fault(direct, database.way()):
                raise UnusableDatabase(fault)
            pooled = _look_at_pages(ways, direct)
            _look_at_replica(ways, direct)
            look_at_distance(ways, direct)
            _look_at_budget(ways, direct, budget(workers, pooled=pooled))
    except psycopg.Error as error:
        raise UnusableDatabase(database.unreachable_text(error, database.way())) from error
    return ways


def _look_at_pages(ways: Ways, direct: psycopg.Connection[Any]) -> bool:
    """Check the connections of pages. Return whether they use a pooler."""
    if settings.PAGES_DATABASE is None:
        ways.uses.append("Pages, calls and chores use the database direct.")
        return False
    conninfo = database.conninfo_of(databases.complete(settings.PAGES_DATABASE))
    try:
        with closing(psycopg.connect(conninfo, connect_timeout=5, autocommit=True)) as pages:
            if not database.same_database(direct, pages):
                raise UnusableDatabase(
                    f"{DIRECT} leads to another database than DATABASE_URL; both must lead to the same one."
                )
            row = pages.execute(_TIME_LIMIT, prepare=False).fetchone()
            found = database.pooling_of(pages)
    except psycopg.Error as error:
        raise UnusableDatabase(
            f"DATABASE_URL: the database cannot be reached: {' '.join(str(error).split())}"
        ) from error
    ways.uses.append(f"Pages use DATABASE_URL ({found}); calls and chores use {DIRECT}.")
    if row and not row[0]:
        ways.warnings.append(
            "Statements of pages have no time limit: ALTER ROLE ... SET statement_timeout = '15s' "
            "for the role of DATABASE_URL."
        )
    return found is not Pooling.NONE


def _look_at_replica(ways: Ways, direct: psycopg.Connection[Any]) -> None:
    if settings.READ_DATABASE is None:
        return
    conninfo = database.conninfo_of(databases.complete(settings.READ_DATABASE))
    here = direct.execute(_REPLICA).fetchone()
    try:
        with closing(psycopg.connect(conninfo, autocommit=True)) as there:
            found = there.execute(_REPLICA).fetchone()
    except psycopg.Error:
        ways.warnings.append(f"The replica of {READ} cannot be reached; logs are read from the primary until it can.")
        return
    assert here
    assert found
    if found[1:] != here[1:]:
        raise UnusableDatabase(
            f"{READ} leads to another database than DATABASE_URL; it must lead to a replica of that."
        )
    if not found[0]:
        ways.warnings.append(f"{READ} does not lead to a replica; logs are read from the primary.")
        return
    most = settings.READ_LAG_SECONDS
    ways.uses.append(f"Logs and numbers are read from the replica of {READ} while it is at most {most} s behind.")


def look_at_distance(ways: Ways, direct: psycopg.Connection[Any]) -> None:
    """Warn if the database is slow to reach: each call waits for several round trips."""
    times = []
    for _ in range(TRIPS):
        began = time.perf_counter()
        direct.execute("SELECT 1")
        times.append(time.perf_counter() - began)
    if (shortest := min(times) * 1000) > MOST_MS:
        ways.warnings.append(
            f"A round trip to the database takes {shortest:.0f} ms, and a call waits for four or five: "
            "run the gateway near its database, best below 1 ms apart."
        )


def _look_at_budget(ways: Ways, direct: psycopg.Connection[Any], planned: Budget) -> None:
    row = direct.execute(_LIMITS).fetchone() or ()
    most = min(limit for limit in row if limit is not None and limit >= 0)
    ways.uses.append(
        f"{planned}, and for moments {READERS} for exports each and {SINKS} for sinks; the server grants {most}."
    )
    if planned.to_server + SPARE > most:
        takes = f"{_number_of(planned.workers)} up to {planned.to_server} connections to the database"
        ways.warnings.append(
            f"{takes}, which grants {most}, and {SPARE} more are needed at times: "
            "raise max_connections, or start fewer workers."
        )


def _number_of(workers: int) -> str:
    return f"{workers} workers and the chores open" if workers > 1 else "1 worker and the chores open"
