"""Checks of the installation, run by `manage.py check`, at the start, and by the doctor."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import psycopg
from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_permission_codename
from django.core import checks
from django.core.checks import CheckMessage
from django.db.models import Model

from capabilities import Capability
from gatewayadmin.config import database
from gatewayadmin.config.database import DIRECT, READ, Pooling, UnusableDatabase
from gatewayadmin.config.outbound import domain_of
from ui import databases


@checks.register("capabilities")
def every_capability_is_a_permission(**kwargs: Any) -> list[CheckMessage]:
    """Report capabilities without a Django permission. Such capabilities could never be granted."""
    declared = {permission for model in apps.get_models() for permission in permissions_of(model)}
    return [
        checks.Error(f"No model declares the permission {capability}.", obj=capability.name, id="gatewayadmin.E001")
        for capability in Capability
        if capability not in declared
    ]


@checks.register("security", deploy=True)
def the_public_url_is_https(**kwargs: Any) -> list[CheckMessage]:
    """Warn if the public URL is not https, because clients send bearer tokens to it."""
    if settings.PUBLIC_URL.startswith("https://"):
        return []
    hint = "Set GATEWAY_PUBLIC_URL to the https address your proxy serves."
    return [checks.Warning(f"{settings.PUBLIC_URL} is not https.", hint=hint, id="gatewayadmin.W001")]


@checks.register("mail", deploy=True)
def mail_has_a_sender(**kwargs: Any) -> list[CheckMessage]:
    """Warn if the mail sender is unset or local, because other mail servers refuse its mail or treat it as spam."""
    if not settings.MAIL_SERVER:
        return []
    hint = "Set GATEWAY_EMAIL_FROM to an address your mail server accepts as sender."
    if not settings.EMAIL_FROM_IS_SET:
        problem = f"Mail goes through {settings.MAIL_SERVER}, but GATEWAY_EMAIL_FROM is not set."
    elif is_local_domain(domain_of(settings.DEFAULT_FROM_EMAIL)):
        problem = f"Mail is sent from {settings.DEFAULT_FROM_EMAIL}, an address that exists only on this machine."
    else:
        return []
    return [checks.Warning(problem, hint=hint, id="gatewayadmin.W002")]


@checks.register(checks.Tags.database)
def the_database_urls_lead_where_they_should(
    databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Report how the database URLs are used, and problems with them.

    If `databases` is empty or None, the check does nothing. Django passes databases to this check only if people run
    `manage.py check --database`.
    """
    if not databases:
        return []
    try:
        found = survey(settings.WORKERS or default_workers())
    except UnusableDatabase as error:
        return [checks.Error(str(error), id="gatewayadmin.E002")]
    uses: list[CheckMessage] = [checks.Info(line, id="gatewayadmin.I001") for line in found.uses]
    return uses + [checks.Warning(line, id="gatewayadmin.W003") for line in found.warnings]


def is_local_domain(domain: str) -> bool:
    """Return True for a domain to which other machines cannot send mail."""
    return domain == "localhost" or domain.endswith((".localhost", ".localdomain", ".local")) or "." not in domain


def permissions_of(model: type[Model]) -> set[str]:
    """Return every permission `model` declares, as `app.codename`."""
    codenames = {codename for codename, _ in model._meta.permissions}
    native = {get_permission_codename(action, model._meta) for action in model._meta.default_permissions}
    return {f"{model._meta.app_label}.{codename}" for codename in codenames | native}


# The database URLs, and the number of connections.

PROXY = 6  # Connections of the proxy in each worker, without the connections that write the log.
SINKS = 8  # Two for each sink that the chores process serves at once.
SPARE = 5  # For starts, commands and administrators.
TRIPS = 5
MOST_MS = 5  # Longest round trip to the database without a warning.

_LIMITS = """
SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
        - coalesce(current_setting('reserved_connections', true), '0')::int,
    (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user),
    (SELECT datconnlimit FROM pg_database WHERE datname = current_database())
"""
_TIME_LIMIT = "SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'"


@dataclass
class DatabaseReport:
    """The result of `survey`: sentences about the use of the database URLs, and warnings."""

    uses: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Budget:
    """Maximum numbers of database connections that one `serve`, including its chores process, opens.

    `direct` counts the connections of calls and chores. `pages` counts those of pages. `replica` counts those to the
    replica.
    """

    workers: int
    direct: int
    pages: int
    replica: int
    pooled: bool

    @property
    def to_server(self) -> int:
        """The number of connections to the primary.

        The connections of pages are included unless pages use a pooler.
        """
        return self.direct + (0 if self.pooled else self.pages)

    def __str__(self) -> str:
        parts = [f"{self.to_server} connections to the database"]
        if self.pooled:
            parts.append(f"{self.pages} to the pooler")
        if settings.READ_DATABASE:
            parts.append(f"{self.replica} to the replica")
        return f"{_number_of(self.workers)} up to {', '.join(parts)}"


def default_workers() -> int:
    """Return the number of available processor cores minus one, but at least 1."""
    # The database and the chores need a core. Measured on two cores that PostgreSQL used too, in calls a second: one
    # worker 6,248, two workers 4,878, four workers 4,046.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)


def budget(workers: int, *, pooled: bool) -> Budget:
    """Return the maximum numbers of database connections for this number of workers and the chores process.

    Connections of exports and sinks are not included.
    """
    direct = workers * (PROXY + settings.RECORD_CONNECTIONS) + settings.WEB_CONNECTIONS
    pages = workers * settings.WEB_CONNECTIONS
    return Budget(workers, direct, pages, workers * (1 + settings.WEB_CONNECTIONS), pooled)


def survey(workers: int) -> DatabaseReport:
    """Check the database URLs for a `serve` with `workers`. Raises UnusableDatabase if `serve` must not start."""
    report = DatabaseReport()
    database.ensure()
    try:
        with closing(psycopg.connect(database.conninfo(), connect_timeout=5, autocommit=True)) as direct:
            if fault := database.pooling_fault(direct, database.direct_name()):
                raise UnusableDatabase(fault)
            pooled = _look_at_pages(report, direct)
            _look_at_replica(report, direct)
            look_at_distance(report, direct)
            _look_at_budget(report, direct, budget(workers, pooled=pooled))
    except psycopg.Error as error:
        raise UnusableDatabase(database.unreachable_text(error, database.direct_name())) from error
    return report


def _look_at_pages(report: DatabaseReport, direct: psycopg.Connection[Any]) -> bool:
    """Check the database connections of pages. Return whether they use a pooler."""
    if settings.PAGES_DATABASE is None:
        report.uses.append("Pages, calls and background chores connect to the database directly.")
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
    report.uses.append(f"Pages use DATABASE_URL ({found}); calls and background chores use {DIRECT}.")
    if row and not row[0]:
        report.warnings.append(
            "The SQL statements of pages have no time limit: run ALTER ROLE ... SET statement_timeout = '15s' "
            "for the role of DATABASE_URL."
        )
    return found is not Pooling.NONE


def _look_at_replica(report: DatabaseReport, direct: psycopg.Connection[Any]) -> None:
    if settings.READ_DATABASE is None:
        return
    # Imported late: modules with metrics need the directory that `serve` sets.
    from auditlog.replica import IDENTITY  # noqa: PLC0415

    query = f"SELECT pg_is_in_recovery(), {IDENTITY}".encode()
    conninfo = database.conninfo_of(databases.complete(settings.READ_DATABASE))
    here = direct.execute(query).fetchone()
    try:
        with closing(psycopg.connect(conninfo, autocommit=True)) as there:
            found = there.execute(query).fetchone()
    except psycopg.Error:
        report.warnings.append(f"The replica of {READ} cannot be reached; meanwhile, logs are read from the primary.")
        return
    assert here
    assert found
    if found[1:] != here[1:]:
        raise UnusableDatabase(
            f"{READ} leads to another database than DATABASE_URL; it must lead to a replica of the same one."
        )
    if not found[0]:
        report.warnings.append(f"{READ} does not lead to a replica; logs are read from the primary.")
        return
    most = settings.READ_LAG_SECONDS
    report.uses.append(f"Logs and numbers are read from the replica of {READ} while it is at most {most} s behind.")


def look_at_distance(report: DatabaseReport, direct: psycopg.Connection[Any]) -> None:
    """Warn if the database is slow to reach, because each call waits for several round trips."""
    times = []
    for _ in range(TRIPS):
        began = time.perf_counter()
        direct.execute("SELECT 1")
        times.append(time.perf_counter() - began)
    if (shortest := min(times) * 1000) > MOST_MS:
        report.warnings.append(
            f"A round trip to the database takes {shortest:.0f} ms, and each call waits for four or five of them. "
            "Run the gateway near its database, best less than 1 ms away."
        )


def _look_at_budget(report: DatabaseReport, direct: psycopg.Connection[Any], planned: Budget) -> None:
    from ui.export import READERS  # noqa: PLC0415

    row = direct.execute(_LIMITS).fetchone() or ()
    most = min(limit for limit in row if limit is not None and limit >= 0)
    report.uses.append(
        f"{planned}. Exports temporarily open up to {READERS} more in each process, and sinks up to {SINKS} more. "
        f"PostgreSQL allows {most}."
    )
    if planned.to_server + SPARE > most:
        takes = f"{_number_of(planned.workers)} up to {planned.to_server} connections to the database"
        report.warnings.append(
            f"{takes}. Starts, commands and administrators temporarily need {SPARE} more, but PostgreSQL allows {most}."
            " Raise max_connections or the limit of the role or database, or start fewer workers."
        )


def _number_of(workers: int) -> str:
    return f"{workers} workers and the chores open" if workers > 1 else "1 worker and the chores open"
