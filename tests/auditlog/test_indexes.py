"""Indexes declared by a migration are created partition by partition; an interrupted run is resumed."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from django.db import connection, models
from django.db.migrations.loader import MigrationLoader

from auditlog import indexes
from auditlog.indexes import DeclareIndex, Made, complete, missing_indexes
from auditlog.models import Call
from gatewayadmin.config import database
from tests.calls import call

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("declared")]

TRIAL = models.Index(fields=["user_agent", "created_at"], name="call_by_trial", condition=~models.Q(user_agent=""))
NOW = datetime.now(UTC)  # One fixed day, also if the tests run over midnight.
TODAY = f"auditlog_call_{NOW:%Y_%m_%d}"
OF_TODAY = f"{TODAY}_call_by_trial"


@pytest.fixture
def declared() -> Iterator[None]:
    """Declare an index that no partition has yet; two partitions have rows."""
    for age in (0, 1):
        call(NOW - timedelta(days=age), user_agent="probe")
    state = MigrationLoader(connection).project_state()
    with connection.schema_editor() as editor:
        DeclareIndex("call", TRIAL).database_forwards("auditlog", editor, state, state)
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP INDEX IF EXISTS call_by_trial")
            for name in Call.partitions.names():
                cursor.execute(f"DROP INDEX IF EXISTS {name}_call_by_trial")


def oid_of(index: str) -> int | None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s)::oid", [index])
        return cursor.fetchone()[0]  # type: ignore[no-any-return]


def is_valid(index: str) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT indisvalid FROM pg_index WHERE indexrelid = %s::regclass", [index])
        return bool(cursor.fetchone()[0])


def run(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


@pytest.mark.full
def test_each_partition_gets_it_the_newest_first_and_then_the_whole_is_valid() -> None:
    told: list[Made] = []
    assert missing_indexes(Call.partitions) == len(Call.partitions.names())
    assert not is_valid("call_by_trial")

    made = complete(Call.partitions, told=told.append)

    assert [one.partition for one in told] == Call.partitions.names()[::-1]
    assert [one.left for one in told] == [*range(made)][::-1]
    assert str(told[-1]) == f"call_by_trial: {Call.partitions.names()[0]} is indexed, 0 left"
    assert is_valid("call_by_trial")
    assert (missing_indexes(Call.partitions), complete(Call.partitions)) == (0, 0)


@pytest.mark.full
def test_a_partition_made_meanwhile_has_it_from_the_beginning() -> None:
    before = missing_indexes(Call.partitions)

    Call.partitions.make_for(datetime(2032, 1, 5, tzinfo=UTC).date())

    assert missing_indexes(Call.partitions) == before
    run("DROP TABLE auditlog_call_2032_01_05")


@pytest.mark.full
def test_a_complete_index_is_attached_and_an_incomplete_or_different_one_is_rebuilt() -> None:
    yesterday, tomorrow = (f"auditlog_call_{NOW + timedelta(days=days):%Y_%m_%d}" for days in (-1, 1))
    finished, other = f"{yesterday}_call_by_trial", f"{tomorrow}_call_by_trial"
    call(NOW, user_agent="probe")
    with suppress(Exception):  # Two equal rows make the unique index fail midway and leave an invalid index.
        run(f"CREATE UNIQUE INDEX CONCURRENTLY {OF_TODAY} ON {TODAY} (user_agent)")
    run(f"CREATE INDEX {finished} ON {yesterday} (user_agent, created_at) WHERE NOT user_agent = ''")
    run(f"CREATE INDEX {other} ON {tomorrow} (client_name)")
    assert not is_valid(OF_TODAY)
    before = {name: oid_of(name) for name in (OF_TODAY, finished, other)}

    complete(Call.partitions)

    assert [name for name, oid in before.items() if oid_of(name) == oid] == [finished]
    assert is_valid(OF_TODAY)
    assert missing_indexes(Call.partitions) == 0


@pytest.mark.full
def test_a_second_process_leaves_the_work_to_the_first_and_after_its_time_a_run_ends() -> None:
    run("SET lock_timeout = '400ms'")
    before = missing_indexes(Call.partitions)
    with psycopg.connect(database.conninfo(), autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [indexes.LOCK])
        assert complete(Call.partitions) == 0

    assert complete(Call.partitions, seconds=-1) == 0

    assert missing_indexes(Call.partitions) == before
    with connection.cursor() as cursor:
        cursor.execute("SHOW lock_timeout")
        assert cursor.fetchone() == ("400ms",)
        cursor.execute("RESET lock_timeout")
        cursor.execute("SHOW max_parallel_maintenance_workers")
        assert cursor.fetchone() != ("0",)


def test_a_partition_that_is_read_all_the_time_is_left_for_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexes, "ATTEMPTS", 1)
    monkeypatch.setattr(indexes, "ATTACH_TIMEOUT", "50ms")
    run(f"CREATE INDEX {OF_TODAY} ON {TODAY} (user_agent, created_at) WHERE NOT user_agent = ''")
    with psycopg.connect(database.conninfo()) as reader:
        reader.execute(f"SELECT count(*) FROM {TODAY}".encode())
        complete(Call.partitions)
        assert missing_indexes(Call.partitions) == 1
        assert is_valid(OF_TODAY)

    assert complete(Call.partitions) == 1
    assert is_valid("call_by_trial")
