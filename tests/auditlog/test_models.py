"""Logs are insert-only, partitioned by time, and outlive what they tell of (decisions 4, E6, E7)."""

from datetime import UTC, date, datetime
from uuid import UUID, uuid4

import psycopg
import pytest
from django.db import IntegrityError, connection, transaction

from auditlog import partitions
from auditlog.actions import Action
from auditlog.models import Call, Event
from auditlog.origin import Origin, Via, coming_from
from gatewayadmin import database
from tests import make

pytestmark = pytest.mark.django_db


def call(at: datetime) -> Call:
    milliseconds = int(at.timestamp() * 1000)
    uid = UUID(int=(milliseconds << 80) | (7 << 76) | (2 << 62) | (uuid4().int & ((1 << 62) - 1)))
    return Call.objects.create(
        uid=uid,
        created_at=at,
        correlation_id=uuid4(),
        method="tools/call",
        outcome="ok",
        http_status=200,
        duration_ms=1.5,
    )


def test_partitions_are_made_three_months_ahead_and_once() -> None:
    Call.partitions.make_ahead(date(2031, 11, 20))

    assert Call.partitions.make_ahead(date(2031, 11, 30)) == []
    assert {f"auditlog_call_{month}" for month in ("2031_11", "2031_12", "2032_01", "2032_02")} <= set(
        Call.partitions.names()
    )


def test_a_call_is_found_by_its_uid() -> None:
    Call.partitions.make_ahead(date(2031, 11, 20))
    one = call(datetime(2031, 11, 30, 23, 59, 59, 999_900, tzinfo=UTC))
    call(datetime(2031, 12, 1, tzinfo=UTC))

    assert Call.objects.find(one.uid) == one


@pytest.mark.parametrize("change", ["UPDATE {} SET method = 'x'", "DELETE FROM {}"])
@pytest.mark.parametrize("table", ["auditlog_call", "auditlog_call_2031_11"])
def test_a_call_can_be_neither_changed_nor_deleted(change: str, table: str) -> None:
    Call.partitions.make_ahead(date(2031, 11, 20))
    call(datetime(2031, 11, 5, tzinfo=UTC))

    with pytest.raises(IntegrityError, match="insert-only"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(change.format(table))


@pytest.mark.parametrize("change", ["UPDATE auditlog_event SET action = 'x'", "DELETE FROM auditlog_event"])
def test_an_event_can_be_neither_changed_nor_deleted(change: str) -> None:
    Event.objects.record(Action.HOST_CREATED, make.user(), by=None)

    with pytest.raises(IntegrityError, match="insert-only"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(change)


@pytest.mark.django_db(transaction=True)
def test_retention_drops_only_partitions_that_are_wholly_old() -> None:
    Call.partitions.make_ahead(date(2001, 1, 15))

    dropped = Call.partitions.drop_before(date(2001, 3, 15))

    assert dropped == ["auditlog_call_2001_01", "auditlog_call_2001_02"]
    assert Call.partitions.drop_before(date(2001, 5, 1)) == ["auditlog_call_2001_03", "auditlog_call_2001_04"]


@pytest.mark.django_db(transaction=True)
def test_a_partition_that_is_read_stays_and_is_taken_up_where_it_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "ATTEMPTS", 1)
    monkeypatch.setattr(partitions, "PATIENCE", "100ms")
    Call.partitions.make_ahead(date(2002, 1, 15))
    with psycopg.connect(database.conninfo()) as reader:
        reader.execute("SELECT count(*) FROM auditlog_call")
        assert Call.partitions.drop_before(date(2002, 2, 1)) == []
        call(datetime(2002, 3, 5, tzinfo=UTC))  # Others write on.
    # One is half off now; another was taken off by a process that got no further.
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_inherits WHERE inhdetachpending")
        assert cursor.fetchone() == (1,)
    assert Call.partitions.drop_before(date(2002, 2, 1)) == ["auditlog_call_2002_01"]
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE auditlog_call DETACH PARTITION auditlog_call_2002_02")

    assert Call.partitions.drop_before(date(2002, 5, 1)) == [f"auditlog_call_2002_0{month}" for month in (2, 3, 4)]
    assert not [name for name in Call.partitions.names() if "2002" in name]


def test_an_event_says_who_where_from_and_through_which_door() -> None:
    ana = make.user()
    here = Origin(via=Via.API, ip="192.0.2.7")

    with coming_from(here):
        event = Event.objects.record(Action.HOST_CREATED, ana, by=ana, changes={"name": [None, "x"]})

    event.refresh_from_db()
    assert (event.actor_email, event.via, event.ip, event.correlation_id) == (
        ana.email,
        "api",
        "192.0.2.7",
        here.correlation_id,
    )


def test_an_event_outside_of_any_request_comes_from_the_system() -> None:
    event = Event.objects.record(Action.HOST_CREATED, make.user(), by=None)

    assert (event.actor_email, event.via, event.ip) == ("system", "system", None)
