"""Indexes of a partitioned log in use, made one partition at a time, under no lock that a call waits for.

A migration declares an index, with `DeclareIndex`: partitions made from then on have it. Those that are there get it
from `complete`, the newest first. What is still to be done stands in PostgreSQL's own catalogue and nowhere else, so
whoever was killed is followed by whoever comes next (docs/decisions/0038-upgrades-without-an-outage.md).
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import inf
from typing import Any

from django.contrib.postgres.operations import AddIndexConcurrently, RemoveIndexConcurrently
from django.db import DatabaseError, OperationalError, ProgrammingError, connection
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.operations import AddIndex
from django.db.migrations.state import ProjectState
from psycopg import errors, sql

from auditlog.partitions import Partitions, limited_lock_wait

logger = logging.getLogger(__name__)

LOCK = 0x67776107  # Any number of our own, for pg_try_advisory_lock.
ATTACH_TIMEOUT = "300ms"  # Calls wait behind us for so long at most, and are refused after a second.
BUILD_TIMEOUT = "30s"  # A migration that indexes a table in use waits for each transaction for so long at most.
ATTEMPTS = 5
# What is said of a partition that retention has taken off, or dropped, meanwhile.
DROPPED = (errors.UndefinedTable, errors.UndefinedObject, errors.ObjectNotInPrerequisiteState)

# Each partition that has no index of its own under one of the table's: newest first, by the bounds it has.
_LACKING = """
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
# Whether an index of this name can be used as it is: it was made to its end, and of what it is to be now.
_USABLE = """
SELECT i.indisvalid AND right(pg_get_indexdef(i.indexrelid), length(%s)) = %s
FROM pg_index i WHERE i.indexrelid = to_regclass(%s)
"""


@dataclass(frozen=True, slots=True)
class Made:
    """An index was made of one partition; so many partitions are left that lack one."""

    index: str
    partition: str
    left: int

    def __str__(self) -> str:
        return f"{self.index}: {self.partition} is indexed, {self.left} left"


@dataclass(frozen=True, slots=True)
class _Lacking:
    index: str
    partition: str
    definition: str

    @property
    def name(self) -> str:
        return f"{self.partition}_{self.index}"

    def statement(self, text: str) -> sql.Composed:
        names = {"index": self.index, "partition": self.partition, "name": self.name}
        identifiers = {key: sql.Identifier(value) for key, value in names.items()}
        # The catalogue's own words, which PostgreSQL has quoted where they need it.
        return sql.SQL(text).format(definition=sql.SQL(self.definition), **identifiers)


class DeclareIndex(AddIndex):
    """An index of a partitioned table that takes no time: partitions to come have it, the others get it later.

    A migration uses it in place of `AddIndex`, which would keep every call waiting until it has read the whole log.
    """

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        model = to_state.apps.get_model(app_label, self.model_name)
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            statement = self.index.create_sql(model, schema_editor)
            statement.template = statement.template.replace(" ON ", " ON ONLY ", 1)
            schema_editor.execute(statement, params=None)

    def describe(self) -> str:
        return f"Declare index {self.index.name} of {self.model_name}"


class AddIndexInUse(AddIndexConcurrently):
    """An index of any other table, which goes on being read and written while it is made. It takes `atomic = False`.

    One that was not made to its end, because somebody was killed or waited too long, is made anew; one that was stays.
    """

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        with _patient(schema_editor):
            if _is_lacking(schema_editor, self.index.name):
                super().database_forwards(app_label, schema_editor, from_state, to_state)

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        with _patient(schema_editor):
            super().database_backwards(app_label, schema_editor, from_state, to_state)


class RemoveIndexInUse(RemoveIndexConcurrently):
    """Remove such an index while its table goes on being read and written. It takes `atomic = False`."""

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        with _patient(schema_editor):
            super().database_forwards(app_label, schema_editor, from_state, to_state)

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        with _patient(schema_editor):
            if _is_lacking(schema_editor, self.name):
                super().database_backwards(app_label, schema_editor, from_state, to_state)


def _is_lacking(schema_editor: BaseDatabaseSchemaEditor, index: str) -> bool:
    """Whether there is no index of this name; one that was not made to its end is dropped."""
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", [index])
        found = cursor.fetchone()
    if found == (False,):
        schema_editor.execute(f"DROP INDEX CONCURRENTLY {schema_editor.quote_name(index)}")
    return bool(found != (True,))


@contextmanager
def _patient(schema_editor: BaseDatabaseSchemaEditor) -> Iterator[None]:
    """Wait for the transactions there are longer than for other locks of a migration: nobody waits behind us then."""
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('lock_timeout')")
        (before,) = cursor.fetchone()
        cursor.execute("SELECT set_config('lock_timeout', %s, false)", [BUILD_TIMEOUT])
        try:
            yield
        finally:
            with suppress(DatabaseError):  # Lost, it has no setting left.
                cursor.execute("SELECT set_config('lock_timeout', %s, false)", [before])


def left(partitions: Partitions) -> int:
    """How many partitions lack an index that was declared."""
    return len(_lacking(partitions))


def complete(partitions: Partitions, *, seconds: float = inf, told: Callable[[Made], object] = str) -> int:
    """Make what partitions lack and say `told` of each; how many were made. One begins no later than after `seconds`.

    Calls go on meanwhile. One process at a time is at it: for others, and for a role that does not own the table, there
    is nothing to do. A partition whose index cannot be put in its place, because somebody reads it all the time, is
    left for the next time.
    """
    if not (_lacking(partitions) and partitions.is_owner()):
        return 0
    made, until = 0, time.monotonic() + seconds
    with connection.cursor() as cursor, _alone(cursor) as alone:
        todo = _lacking(partitions) if alone else []
        for number, lacking in enumerate(todo):
            if time.monotonic() > until:
                break
            if _make(cursor, lacking):
                made += 1
                told(Made(lacking.index, lacking.partition, len(todo) - number - 1))
    return made


def _lacking(partitions: Partitions) -> list[_Lacking]:
    with connection.cursor() as cursor:
        cursor.execute(_LACKING, [partitions.table])
        return [_Lacking(*row) for row in cursor.fetchall()]


@contextmanager
def _alone(cursor: Any) -> Iterator[bool]:
    """Whether nobody else is at it.

    The lock is of the session that makes the indexes: PostgreSQL goes on with a statement whose client was killed, and
    until it has ended nobody may take what it makes for a leftover. And it is only tried: who waited for it would have
    a snapshot, for the end of which CREATE INDEX CONCURRENTLY waits.
    """
    cursor.execute("SELECT pg_try_advisory_lock(%s)", [LOCK])
    alone = bool(cursor.fetchone()[0])
    try:
        if alone:
            cursor.execute("SET max_parallel_maintenance_workers = 0")  # The other cores are for calls.
        yield alone
    finally:
        with suppress(DatabaseError):  # Lost, it has neither a lock nor a setting left.
            if alone:
                cursor.execute("RESET max_parallel_maintenance_workers")
                cursor.execute("SELECT pg_advisory_unlock(%s)", [LOCK])


def _make(cursor: Any, lacking: _Lacking) -> bool:
    """Make the index of one partition and put it in its place; False when that is not possible now."""
    try:
        with limited_lock_wait(cursor, "0"):  # It waits for transactions, and nobody for it.
            if not _has_usable(cursor, lacking):
                cursor.execute(lacking.statement("CREATE INDEX CONCURRENTLY {name} ON {partition}{definition}"))
        return _attach(cursor, lacking)
    except (OperationalError, ProgrammingError) as error:
        if not isinstance(error.__cause__, DROPPED):
            raise
        logger.info("a partition was dropped before it was indexed", extra={"partition": lacking.partition})
        return False


def _has_usable(cursor: Any, lacking: _Lacking) -> bool:
    """Whether its index is there already, made by somebody who was killed before it was in its place.

    One that was not made to its end is dropped.
    """
    quoted = sql.Identifier(lacking.name).as_string(cursor.connection)
    cursor.execute(_USABLE, [lacking.definition, lacking.definition, quoted])
    row = cursor.fetchone()
    if row is not None and not row[0]:
        cursor.execute(lacking.statement("DROP INDEX CONCURRENTLY {name}"))
    return bool(row and row[0])


def _attach(cursor: Any, lacking: _Lacking) -> bool:
    """Make it part of the table's index, which takes no time but excludes everybody from it for that moment."""
    for attempt in range(ATTEMPTS):
        time.sleep(attempt)
        try:
            with limited_lock_wait(cursor, ATTACH_TIMEOUT):
                cursor.execute(lacking.statement("ALTER INDEX {index} ATTACH PARTITION {name}"))
        except OperationalError as error:
            if not isinstance(error.__cause__, (errors.LockNotAvailable, errors.DeadlockDetected)):
                raise
        else:
            return True
    logger.warning("a partition is in use: its index is put in place later", extra={"partition": lacking.partition})
    return False
