"""Create indexes on tables while the gateway uses them.

To attach a partition's index to the index of the table, a lock is needed. Each attempt to take this lock delays calls
by at most ATTACH_TIMEOUT.

A migration declares an index of the log with `DeclareIndex`. New partitions have the index from the
start. Existing partitions get the index later, one partition at a time
(docs/decisions/0038-upgrades-without-an-outage.md).
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import inf
from typing import Any

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import DatabaseError, OperationalError, ProgrammingError, connection
from django.db.migrations.operations import AddIndex
from psycopg import errors, sql

from auditlog.partitions import Partitions, limited_lock_wait

logger = logging.getLogger(__name__)

LOCK = 0x67776107  # An arbitrary key for pg_try_advisory_lock.
ATTACH_TIMEOUT = "300ms"  # Calls wait for the lock at most this long; after a second they would be refused.
BUILD_TIMEOUT = "30s"  # Longest wait for any other transaction, when a migration indexes a table in use.
ATTEMPTS = 5
# Errors of PostgreSQL if retention has detached or dropped the partition in the meantime.
DROPPED = (errors.UndefinedTable, errors.UndefinedObject, errors.ObjectNotInPrerequisiteState)

# For each index of the table, the partitions that have no index attached to it, newest partition first.
_MISSING = """
SELECT top.relname, part.relname, substr(pg_get_indexdef(top.oid), strpos(pg_get_indexdef(top.oid), ' USING '))
FROM pg_index i
JOIN pg_class top ON top.oid = i.indexrelid
JOIN pg_inherits p ON p.inhparent = i.indrelid AND NOT p.inhdetachpending
JOIN pg_class part ON part.oid = p.inhrelid
WHERE i.indrelid = %s::regclass AND NOT EXISTS (
    SELECT FROM pg_inherits h JOIN pg_index own ON own.indexrelid = h.inhrelid
    WHERE h.inhparent = i.indexrelid AND own.indrelid = part.oid
)
ORDER BY top.relname, pg_get_expr(part.relpartbound, part.oid) DESC
"""
# True if the index of this name is complete and has the current definition.
_USABLE = """
SELECT i.indisvalid AND right(pg_get_indexdef(i.indexrelid), length(%s)) = %s
FROM pg_index i WHERE i.indexrelid = to_regclass(%s)
"""


@dataclass(frozen=True, slots=True)
class Made:
    """Notice that the index of one partition was created. `left` is the number of partition indexes still to create."""

    index: str
    partition: str
    left: int

    def __str__(self) -> str:
        return f"{self.index}: {self.partition} is indexed, {self.left} left"


@dataclass(frozen=True, slots=True)
class _Missing:
    """A partition that lacks an index of the table, and that index's definition."""

    index: str
    partition: str
    definition: str

    @property
    def name(self) -> str:
        return f"{self.partition}_{self.index}"

    def statement(self, text: str) -> sql.Composed:
        names = {"index": self.index, "partition": self.partition, "name": self.name}
        identifiers = {key: sql.Identifier(value) for key, value in names.items()}
        # The definition is text from the catalogue, which PostgreSQL has quoted already.
        return sql.SQL(text).format(definition=sql.SQL(self.definition), **identifiers)


class DeclareIndex(AddIndex):
    """Declare an index of a partitioned table instantly: new partitions have the index, existing ones get it later.

    Use it instead of `AddIndex`, which blocks all calls while it reads the whole log.
    """

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        model = to_state.apps.get_model(app_label, self.model_name)
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            statement = self.index.create_sql(model, schema_editor)
            statement.template = statement.template.replace(" ON ", " ON ONLY ", 1)
            schema_editor.execute(statement, params=None)

    def describe(self) -> str:
        return f"Declare index {self.index.name} of {self.model_name}"


class AddIndexInUse(AddIndexConcurrently):
    """Add an index to a table that is not partitioned, without blocking reads and writes. Requires `atomic = False`.

    An incomplete index of an interrupted run is rebuilt.
    """

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        with schema_editor.connection.cursor() as cursor:
            cursor.execute("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", [self.index.name])
            found = cursor.fetchone()
            if found == (True,):
                return
            # The timeout is longer than in other migrations, because no call waits for a concurrent build.
            cursor.execute("SELECT current_setting('lock_timeout')")
            (before,) = cursor.fetchone()
            cursor.execute("SELECT set_config('lock_timeout', %s, false)", [BUILD_TIMEOUT])
            try:
                if found is not None:
                    schema_editor.execute(f"DROP INDEX CONCURRENTLY {schema_editor.quote_name(self.index.name)}")
                super().database_forwards(app_label, schema_editor, from_state, to_state)
            finally:
                with suppress(DatabaseError):  # A lost connection has no setting to reset.
                    cursor.execute("SELECT set_config('lock_timeout', %s, false)", [before])


def missing_indexes(partitions: Partitions) -> int:
    """Return the number of missing partition indexes."""
    return len(_missing(partitions))


def complete(partitions: Partitions, *, seconds: float = inf, told: Callable[[Made], object] = str) -> int:
    """Create missing partition indexes, call `told` for each, and return the number of created indexes.

    After `seconds`, no further index is started. Does nothing if another process is creating indexes, or if the
    database role does not own the table. An index that cannot be attached now is left for the next run.
    """
    if not (_missing(partitions) and partitions.is_owner()):
        return 0
    made, until = 0, time.monotonic() + seconds
    with connection.cursor() as cursor, _alone(cursor) as alone:
        todo = _missing(partitions) if alone else []
        for left, each in zip(range(len(todo) - 1, -1, -1), todo, strict=True):
            if time.monotonic() > until:
                break
            if _make(cursor, each):
                made += 1
                told(Made(each.index, each.partition, left))
    return made


def _missing(partitions: Partitions) -> list[_Missing]:
    with connection.cursor() as cursor:
        cursor.execute(_MISSING, [partitions.table])
        return [_Missing(*row) for row in cursor.fetchall()]


@contextmanager
def _alone(cursor: Any) -> Iterator[bool]:
    """Yield True if no other process creates indexes, otherwise False."""
    # The lock belongs to the session: if the client is killed, PostgreSQL finishes the running statement and keeps the
    # lock until then, so no other process drops the unfinished index. Others do not wait for the lock: a waiting
    # process would hold a snapshot, and CREATE INDEX CONCURRENTLY waits for snapshots.
    cursor.execute("SELECT pg_try_advisory_lock(%s)", [LOCK])
    alone = bool(cursor.fetchone()[0])
    try:
        if alone:
            cursor.execute("SET max_parallel_maintenance_workers = 0")  # Leave the other cores to calls.
        yield alone
    finally:
        with suppress(DatabaseError):  # A lost connection has no lock and no setting.
            if alone:
                cursor.execute("RESET max_parallel_maintenance_workers")
                cursor.execute("SELECT pg_advisory_unlock(%s)", [LOCK])


def _make(cursor: Any, missing: _Missing) -> bool:
    """Create and attach the index of one partition; return False if that is not possible now."""
    try:
        with limited_lock_wait(cursor, "0"):  # The statements below wait for transactions, but block no transaction.
            quoted = sql.Identifier(missing.name).as_string(cursor.connection)
            cursor.execute(_USABLE, [missing.definition, missing.definition, quoted])
            found = cursor.fetchone()
            if found is not None and not found[0]:  # A process that was killed left an incomplete index.
                cursor.execute(missing.statement("DROP INDEX CONCURRENTLY {name}"))
            if found is None or not found[0]:
                cursor.execute(missing.statement("CREATE INDEX CONCURRENTLY {name} ON {partition}{definition}"))
        return _attach(cursor, missing)
    except (OperationalError, ProgrammingError) as error:
        if not isinstance(error.__cause__, DROPPED):
            raise
        logger.info("a partition was dropped before it was indexed", extra={"partition": missing.partition})
        return False


def _attach(cursor: Any, missing: _Missing) -> bool:
    """Attach the partition's index to the table's index, with an exclusive lock for a short time.

    Return False if the lock cannot be taken now.
    """
    for attempt in range(ATTEMPTS):
        time.sleep(attempt)
        try:
            with limited_lock_wait(cursor, ATTACH_TIMEOUT):
                cursor.execute(missing.statement("ALTER INDEX {index} ATTACH PARTITION {name}"))
        except OperationalError as error:
            if not isinstance(error.__cause__, (errors.LockNotAvailable, errors.DeadlockDetected)):
                raise
        else:
            return True
    logger.warning("a partition is in use: its index is attached later", extra={"partition": missing.partition})
    return False
