"""Django's `migrate`, made safe to run beside `serve`: calls never wait long for a migration's locks."""

import time
from contextlib import suppress
from typing import Any

from django.core.management import call_command
from django.core.management.base import CommandError, CommandParser
from django.core.management.commands import migrate
from django.db import DEFAULT_DB_ALIAS, DatabaseError, OperationalError, ProgrammingError, connections
from django.db.migrations.recorder import MigrationRecorder
from psycopg import errors

from auditlog import indexes
from auditlog.models import Call
from gatewayadmin import grants
from gatewayadmin.config import database, schema_versions
from gatewayadmin.config.database import UnusableDatabase
from gatewayadmin.serving.start import make_partitions

# Other statements queue behind a statement that waits for a lock, so migrations wait only briefly: the proxy refuses
# calls while one of its statements takes longer than a second.
LOCK_TIMEOUT = "400ms"
TRIES = 20
PAUSE_S = 3.0
NOT_FINISHED = (
    "Earlier migrations stay applied; this one and later ones have not run. Find the session that uses the table "
    "(SELECT pid, state, xact_start, query FROM pg_stat_activity), then try again."
)
NOT_INDEXED = "The gateway can start without the indexes. Run this command again, or let housekeeping create them."


class Command(migrate.Command):
    """Migrate with short lock timeouts and retries, then create everything else that `serve` needs.

    Indexes of the log are created last; `serve` can start without them.
    """

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.set_defaults(skip_checks=True)  # `make check` runs the checks, which are slow.
        parser.add_argument(
            "--no-log-indexes",
            action="store_false",
            dest="log_indexes",
            help="leave new indexes of the log to housekeeping, which creates them later",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        connection = connections[options["database"]]
        try:
            database.require(tables=False)
        except UnusableDatabase as error:
            raise CommandError(str(error)) from error
        try:
            for attempt in range(1, TRIES + 1):
                # A session setting lasts across transactions, including failed ones.
                with connection.cursor() as cursor:
                    cursor.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
                if self._migrates(attempt, *args, **options):
                    break
        finally:
            with suppress(DatabaseError), connection.cursor() as cursor:  # A lost connection has lost the setting.
                cursor.execute("RESET lock_timeout")
        if options["database"] == DEFAULT_DB_ALIAS and _is_whole(options):
            self._make_the_rest()
            if options["log_indexes"]:
                self._index_the_log(options["verbosity"])

    def _migrates(self, attempt: int, *args: Any, **options: Any) -> bool:
        """Run the migrations. Return False if a table was in use and the caller should try again."""
        try:
            if _is_whole(options) and not MigrationRecorder(connections[options["database"]]).has_table():
                # A migration of oauth2_provider renders all models many times: run it while there are few models.
                super().handle(*args, **options | {"app_label": "oauth2_provider"})
            super().handle(*args, **options)
        except OperationalError as error:
            if not isinstance(error.__cause__, (errors.LockNotAvailable, errors.DeadlockDetected)):
                raise
            waiting = f"{_next_migration()} needs a table that is in use"
            if attempt == TRIES:
                raise CommandError(f"{waiting}. {NOT_FINISHED}") from error
            self.stderr.write(f"{waiting}; trying again in {PAUSE_S:g} s ({attempt} of {TRIES}).")
            time.sleep(PAUSE_S)
            return False
        except ProgrammingError as error:
            if not isinstance(error.__cause__, errors.InsufficientPrivilege):
                raise
            raise CommandError(
                f"{_first_line(error)}. Migrate as the role that owns the tables. "
                "To serve as another role, run `serve --no-migrate`."
            ) from error
        return True

    def _make_the_rest(self) -> None:
        """Create the cache table and partitions, grant serving roles their rights, and record the version."""
        call_command("createcachetable", verbosity=0)
        make_partitions()
        grants.renew_grants()
        if Call.partitions.is_owner():
            schema_versions.record()

    def _index_the_log(self, verbosity: int) -> None:
        """Create the declared indexes of the log, and print a line for each partition."""
        if not (todo := indexes.missing_indexes(Call.partitions)):
            return
        if verbosity:
            self.stdout.write(f"The tables are ready. Log partitions without an index: {todo}. Calls are not blocked:")
        try:
            indexes.complete(Call.partitions, told=self._tell if verbosity else str)
        except DatabaseError as error:
            raise CommandError(f"{_first_line(error)}. {NOT_INDEXED}") from error
        if todo := indexes.missing_indexes(Call.partitions):
            self.stderr.write(f"{todo} partitions of the log still lack an index. {NOT_INDEXED}")

    def _tell(self, made: indexes.Made) -> None:
        self.stdout.write(f"  {made}")
        self.stdout.flush()


def _is_whole(options: dict[str, Any]) -> bool:
    return not (options["app_label"] or options["plan"] or options["check_unapplied"] or options["fake"])


def _next_migration() -> str:
    with suppress(OperationalError):  # The table in use may be the table of migrations.
        return next(iter(database.missing()), "A migration")
    return "A migration"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
