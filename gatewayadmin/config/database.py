"""Database configuration: DATABASE_URL, or an embedded PostgreSQL in the data directory."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any

import psycopg
from django.conf import settings
from django.db import connection, connections
from django.db.migrations.executor import MigrationExecutor
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool

from gatewayadmin.config import schema_versions
from gatewayadmin.config.environment import Refused, forget_libpq, refuse
from gatewayadmin.embedded.cluster import DATABASE, OWNER, ClusterError, cluster, socket_folder
from ui import databases

OLDEST = 150000
POOL = {"min_size": 1, "timeout": 10}

# JIT compilation takes longer than any of our statements.
NO_JIT = "-c jit=off"
READ_ONLY = "-c default_transaction_read_only=on"  # Stays read-only if the replica is promoted.
# Time limit for statements of pages: users do not wait longer, and other requests need the connection.
LIMITED = " -c statement_timeout=15s"
UNLIMITED = "-c statement_timeout=0"

READ = "DATABASE_READ_URL"
SHARED = {"CONN_HEALTH_CHECKS": True, "ATOMIC_REQUESTS": False}
IMPATIENT = {
    "connect_timeout": 2,
    "tcp_user_timeout": 5000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}


# Longest wait of a request for a connection from the pool of its process; then the answer is 503.
POOL_WAIT_S = 1.5
# PostgreSQL ends statements of pages after 15 s. So if it is silent for longer, it hangs.
SILENCE_S = 20.0
CHECK_S = 1.0


class PageConnection(psycopg.Connection[Any]):
    """A database connection for pages and REST.

    A statement that PostgreSQL does not complete within SILENCE_S raises OperationalError.
    """

    longest_wait: float | None = SILENCE_S

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, timeout or self.longest_wait)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.pgconn.finish()  # A rollback would hang for the same time again.
            raise

    @staticmethod
    def check(connection: PageConnection) -> None:
        """Raise an error unless PostgreSQL answers within CHECK_S. Called when a connection is taken from the pool."""
        connection.longest_wait = CHECK_S
        ConnectionPool.check_connection(connection)
        connection.longest_wait = SILENCE_S


class UnusableDatabase(Exception):
    """The database cannot be used; the message is one line."""


def configuration(url: str, data_dir: Path, *, web_connections: int, direct_url: str = "") -> dict[str, Any]:
    """Return Django's settings for the default database, with a pool of at most `web_connections` per process.

    Django connects to `direct_url` if it is given, otherwise to `url`. If `url` is empty, the database is the embedded
    one, and the variables of libpq (PGPORT, ...) are removed from the environment.
    """
    pool = {**POOL, "max_size": web_connections}
    if not url:
        forget_libpq()
        folder = str(socket_folder(data_dir / "postgres"))
        embedded = {"ENGINE": "gatewayadmin.embedded", "NAME": DATABASE, "USER": OWNER, "HOST": folder}
        return {**SHARED, **embedded, "OPTIONS": {"options": NO_JIT, "pool": pool}}
    parameters = _parsed(DIRECT if direct_url else "DATABASE_URL", direct_url or url)
    # The database role may have a time limit for pages, because a pooler cannot set a limit per connection. The direct
    # connection must not have this limit.
    options = f"{NO_JIT} {UNLIMITED}" if direct_url else NO_JIT
    parameters["options"] = f"{parameters.get('options', '')} {options}".strip()
    return {**SHARED, **_of_server(parameters, pool)}


def require_url(url: str, direct_url: str, read_url: str) -> None:
    """Raise Refused if the direct URL or the replica's URL is set, but DATABASE_URL is not."""
    for name, value in ((DIRECT, direct_url), (READ, read_url)):
        if value and not url:
            refuse(name, "is set, so DATABASE_URL must be set too.")


def pages(url: str, *, web_connections: int) -> dict[str, Any]:
    """Return Django's database settings for pages and REST, which connect through a pooler.

    Server-side cursors are disabled, because they do not work with a pooler in transaction mode.
    """
    parameters = _parsed("DATABASE_URL", url)
    pool = {**POOL, "max_size": web_connections}
    return {**SHARED, **_of_server(parameters, pool), "DISABLE_SERVER_SIDE_CURSORS": True}


def replica(url: str, *, web_connections: int) -> dict[str, Any]:
    """Return Django's settings for a read replica, with short timeouts to detect an unreachable replica."""
    parameters = _parsed(READ, url)
    parameters["options"] = f"{parameters.get('options', '')} {NO_JIT}{LIMITED} {READ_ONLY}".strip()
    pool = {"min_size": 0, "max_size": web_connections, "timeout": 2}
    # No health checks: a hanging check could not be interrupted, and failed reads are repeated on the primary.
    return {**SHARED, "CONN_HEALTH_CHECKS": False, **_of_server({**IMPATIENT, **parameters}, pool)}


def _of_server(parameters: dict[str, Any], pool: dict[str, Any]) -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parameters.pop("dbname", ""),
        "USER": parameters.pop("user", ""),
        "PASSWORD": parameters.pop("password", ""),
        "HOST": parameters.pop("host", ""),
        "PORT": parameters.pop("port", ""),
        "OPTIONS": {"connect_timeout": 5, **parameters, "pool": pool},
    }


def conninfo() -> str:
    """Return the libpq connection string of the direct connection (in tests: to the test database)."""
    return conninfo_of(databases.direct_settings())


def conninfo_of(settings_dict: dict[str, Any]) -> str:
    """Convert Django's database settings to a libpq connection string, without the statement timeout for pages."""
    options = {name: value for name, value in settings_dict["OPTIONS"].items() if name != "pool"}
    if "options" in options:
        options["options"] = options["options"].removesuffix(LIMITED)
    named = {"dbname": settings_dict["NAME"], "user": settings_dict["USER"], "password": settings_dict["PASSWORD"]}
    location = {"host": settings_dict["HOST"], "port": settings_dict["PORT"]}
    return make_conninfo("", **{name: value for name, value in {**named, **location, **options}.items() if value != ""})


def serve_pages() -> None:
    """Configure this process to serve pages: set time limits, and use PAGES_DATABASE if it is set."""
    if settings.PAGES_DATABASE is None:
        limit_statements()
    else:
        # The operator has set the time limit of statements for the database role (see `checks.survey`).
        databases.take_pages_through(settings.PAGES_DATABASE)
    options = connections.settings["default"]["OPTIONS"]
    options["pool"] |= {"timeout": POOL_WAIT_S, "connection_class": PageConnection, "check": PageConnection.check}


def limit_statements() -> None:
    """Set the statement timeout for new connections of this process, which serves pages or does chores."""
    options = connections.settings["default"]["OPTIONS"]
    options["options"] = options["options"].removesuffix(LIMITED) + LIMITED


@contextmanager
def without_time_limit() -> Iterator[None]:
    """Lift the time limit of SQL statements for this thread, while the block runs."""
    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = 0")
    connection.connection.longest_wait = None  # Only PageConnection reads this.
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            connection.connection.longest_wait = SILENCE_S
            cursor.execute("RESET statement_timeout")


def is_embedded() -> bool:
    return bool(connection.settings_dict["ENGINE"] == "gatewayadmin.embedded")


def ensure() -> None:
    """Start the embedded PostgreSQL, if this installation uses it and it does not run. Raises UnusableDatabase."""
    if is_embedded():
        try:
            cluster(settings.DATA_DIR).ensure()
        except ClusterError as error:
            raise UnusableDatabase(f"{error}.") from error


def require(*, tables: bool = True) -> None:
    """Raise UnusableDatabase if the database does not answer, or if this version cannot use the database or its tables.

    Also raises UnusableDatabase if the connection goes through a pooler in transaction mode.

    If `tables` is True, the database must exist and have tables. If `tables` is False, it may be empty, and a missing
    embedded database is created.
    """
    if tables and is_embedded() and not (settings.DATA_DIR / "postgres" / "PG_VERSION").exists():
        raise UnusableDatabase(
            f"There is no database in {settings.DATA_DIR}: set GATEWAY_DATA_DIR to where it is, or start"
            " `manage.py serve` once to create it."
        )
    ensure()
    try:
        with psycopg.connect(conninfo(), connect_timeout=5, autocommit=True) as probe:
            fault = encoding_fault(probe) or pooling_fault(probe, direct_name()) or schema_versions.fault(probe)
            version = probe.info.server_version
            row = probe.execute("SELECT to_regclass('accounts_workspacesettings')").fetchone()
    except psycopg.errors.InsufficientPrivilege as error:
        raise UnusableDatabase(f"{error.diag.message_primary}: `manage.py grant` gives a role its rights.") from error
    except psycopg.Error as error:
        raise UnusableDatabase(unreachable_text(error, direct_name())) from error
    if fault:
        raise UnusableDatabase(fault)
    if version < OLDEST:
        raise UnusableDatabase(f"The database is PostgreSQL {version // 10000}; the minimum is 15.")
    if tables and (row is None or row[0] is None):
        raise UnusableDatabase("The database is empty: start `manage.py serve` once to create the tables.")


def encoding_fault(probe: psycopg.Connection[Any]) -> str:
    """Return an error text if the encoding of this database cannot store all characters, otherwise an empty string."""
    encoding = probe.info.parameter_status("server_encoding")
    return "" if encoding == "UTF8" else f"The database has the encoding {encoding}: create one with ENCODING 'UTF8'."


def direct_name() -> str:
    """Return the name of the variable whose URL must not lead to a connection pooler in transaction mode."""
    return DIRECT if settings.DIRECT_DATABASE_URL else "DATABASE_URL"


def missing() -> list[str]:
    """Return the names of everything that `manage.py migrate` would add.

    These are migrations (such as `app.0001_name`), the cache table, and the recorded version of the tables.
    """
    executor = MigrationExecutor(connection)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    names = [f"{migration.app_label}.{migration.name}" for migration, _ in plan]
    has_cache = settings.CACHES["default"]["LOCATION"] in connection.introspection.table_names()
    names += [] if has_cache else ["the cache table"]
    return names if schema_versions.is_recorded() else [*names, "the version of the tables"]


def _parsed(name: str, url: str) -> dict[str, Any]:
    if not url.startswith(("postgres://", "postgresql://")):
        refuse(name, "must be a URL such as postgresql://user:password@host:5432/name.")
    try:
        parameters = conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        raise Refused(f"{name} is not a PostgreSQL URL that libpq understands.") from error
    if not parameters.get("dbname"):
        refuse(name, "must name a database: postgresql://user:password@host:5432/name.")
    return dict(parameters)


# Detects connection poolers in front of a database, and their mode.
#
# A pooler invents the process id that clients get when they connect, so this id differs from the server's. In
# transaction mode, two clients share a server session, or one client uses several.

DIRECT = "GATEWAY_DIRECT_DATABASE_URL"
ROUNDS = 5
# Longest wait for a session of the pooler. In session mode, the first client may have taken the last session.
WAIT_S = 3.0
REFUSED_OPTIONS = "unsupported startup parameter"  # PgBouncer's error for `options`.


class Pooling(StrEnum):
    """The kind of pooler in front of a database."""

    NONE = "direct"
    SESSION = "through a pooler in session mode"
    TRANSACTION = "through a pooler in transaction mode"


def pooling_fault(connection: psycopg.Connection[Any], name: str) -> str:
    """Return an error text if this connection is through a pooler in transaction mode, otherwise "".

    `name` is the environment variable that configures the connection.
    """
    return _needs_direct(name) if pooling_of(connection) is Pooling.TRANSACTION else ""


def unreachable_text(error: psycopg.Error, name: str) -> str:
    """Return one line that says why the database cannot be reached; `name` is the variable that has its URL."""
    if REFUSED_OPTIONS in str(error):
        return _needs_direct(name)
    return f"The database cannot be reached: {' '.join(str(error).split())}"


def _needs_direct(name: str) -> str:
    if name == DIRECT:
        return f"{DIRECT} leads to a connection pooler in transaction mode; it must lead to PostgreSQL itself."
    return (
        f"{name} leads to a connection pooler in transaction mode, which can serve pages only: "
        f"set {DIRECT} to a URL that leads to PostgreSQL itself."
    )


def pooling_of(first: psycopg.Connection[Any]) -> Pooling:
    """Return the kind of pooler in front of a connection. The connection must be in autocommit mode."""
    before = _session(first)
    if before == first.info.backend_pid:
        return Pooling.NONE
    conninfo = make_conninfo(first.info.dsn, password=first.info.password or None)
    with closing(PageConnection.connect(conninfo, autocommit=True)) as second:
        second.longest_wait = WAIT_S
        for _ in range(ROUNDS):
            try:
                second.execute("BEGIN", prepare=False)
                other = _session(second)
                second.execute("ROLLBACK", prepare=False)
            except psycopg.OperationalError:  # The pooler has no free session: the first client still has one.
                return Pooling.SESSION
            if other == before or _session(first) != before:
                return Pooling.TRANSACTION
    return Pooling.SESSION


def same_database(direct: psycopg.Connection[Any], pages: psycopg.Connection[Any]) -> bool:
    """Return whether both connections are to the same database."""
    # Restored or replicated copies of a database have the same name and identifier, but separate locks. Only in the
    # same database is a lock that `direct` holds unavailable to `pages`.
    key = secrets.randbits(63)
    direct.execute("SELECT pg_advisory_lock(%s)", [key])
    try:
        row = pages.execute("SELECT pg_try_advisory_xact_lock(%s)", [key], prepare=False).fetchone()
        return row is not None and row[0] is False
    finally:
        direct.execute("SELECT pg_advisory_unlock(%s)", [key])


def _session(connection: psycopg.Connection[Any]) -> int:
    """Return the process id of the PostgreSQL session that serves this connection now."""
    row = connection.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    return int(row[0]) if row else 0


# Locks across processes and machines: advisory locks of PostgreSQL.

LOCK_PAUSE_S = 0.1  # Between two attempts to take a lock.


class Lock(IntEnum):
    """Locks for tasks that only one process may do at a time."""

    FIRST_START = 0x67776101
    HOUSEKEEPING = 0x67776102
    TELLING = 0x67776103


@contextmanager
def advisory_lock(lock: Lock) -> Iterator[None]:
    """Wait for the lock and hold it for the block. PostgreSQL releases it if the process is killed."""
    with psycopg.connect(conninfo(), autocommit=True) as connection:
        # Polled: a waiting statement has a snapshot. A holder that creates an index concurrently waits until the
        # snapshot is gone, which would be a deadlock.
        while not _try_lock(connection, lock):
            time.sleep(LOCK_PAUSE_S)
        yield


@contextmanager
def held_if_free(lock: Lock) -> Iterator[bool]:
    """Take the lock if it is free, hold it during the block, and yield True. If the lock is taken, yield False."""
    with psycopg.connect(conninfo(), autocommit=True) as connection:
        yield _try_lock(connection, lock)


def _try_lock(connection: psycopg.Connection, lock: Lock) -> bool:
    """Try to take the lock. Return True if this connection now holds it."""
    row = connection.execute("SELECT pg_try_advisory_lock(%s)", [int(lock)]).fetchone()
    return bool(row and row[0])
