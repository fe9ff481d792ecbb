"""Logs are insert-only, partitioned by time, and outlive the objects they name."""

import itertools
from datetime import UTC, date, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest
from django.db import IntegrityError, connection, transaction

from auditlog import partitions
from auditlog.actions import Action
from auditlog.models import Call, Event, EventContext, Via, use_context
from auditlog.partitions import PartitionDays, longest_partition
from gatewayadmin.config import database
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


def old_month(year: int, month: int) -> None:
    """Create a monthly partition, as earlier releases did."""
    span = PartitionDays.around(date(year, month, 1), 31)
    with connection.cursor() as cursor:
        cursor.execute("SELECT auditlog_make_partition(%s, %s)", [span.start, span.end])


@pytest.mark.full
def test_partitions_are_made_ahead_and_once() -> None:
    made = Call.partitions.make_ahead(date(2031, 11, 28))

    assert (made[0], made[-1], len(made)) == ("auditlog_call_2031_11_27", "auditlog_call_2031_12_08", 12)
    assert Call.partitions.make_ahead(date(2031, 11, 28)) == []
    assert Call.partitions.make_ahead(date(2031, 11, 29)) == ["auditlog_call_2031_12_09"]


@pytest.mark.full
def test_partitions_are_as_long_as_retention_allows_and_every_day_has_one() -> None:
    today, lengths = date(2031, 11, 12), {3650: 31, 731: 31, 730: 7, 101: 7, 100: 1, 1: 1}
    for kept_days, longest in [*lengths.items(), (365, 7), (90, 1), (3650, 31), (90, 1)]:
        assert longest_partition(kept_days) == longest
        # For any retention, a year's log has few enough partitions for a statement over the whole log.
        assert kept_days / longest <= 122
        before = set(Call.partitions.names())
        Call.partitions.make_ahead(today, kept_days=kept_days)
        made = [PartitionDays.named(name) for name in Call.partitions.names() if name not in before]
        assert all(span and span.days <= longest for span in made)
        today += timedelta(days=9)

    spans = [
        span for name in Call.partitions.names() if (span := PartitionDays.named(name)) and span.start.year >= 2031
    ]
    assert len(spans) > 20
    assert all(one.end == other.start for one, other in itertools.pairwise(spans))


@pytest.mark.django_db(transaction=True)
def test_empty_months_to_come_make_way_for_days_and_filled_ones_stay() -> None:
    for month in (1, 2, 3):
        old_month(2003, month)
    call(datetime(2003, 3, 5, tzinfo=UTC))

    Call.partitions.make_ahead(date(2003, 1, 30))

    names = [name.removeprefix("auditlog_call_") for name in Call.partitions.names() if "call_2003" in name]
    assert names == ["2003_01", *[f"2003_02_{day:02}" for day in range(1, 10)], "2003_03"]
    call(datetime(2003, 2, 9, 23, 59, tzinfo=UTC))
    Call.partitions.drop_before(date(2003, 4, 1))


def test_a_partition_left_off_is_taken_up_again() -> None:
    Call.partitions.make_for(date(2031, 11, 20))
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE auditlog_call DETACH PARTITION auditlog_call_2031_11_20")

    Call.partitions.make_for(date(2031, 11, 20))

    call(datetime(2031, 11, 20, 8, tzinfo=UTC))


def test_a_call_is_found_by_its_uid() -> None:
    for day in (date(2031, 11, 30), date(2031, 12, 1)):
        Call.partitions.make_for(day)
    one = call(datetime(2031, 11, 30, 23, 59, 59, 999_900, tzinfo=UTC))
    call(datetime(2031, 12, 1, tzinfo=UTC))

    assert Call.objects.find(one.uid) == one


def test_calls_and_events_can_be_neither_changed_nor_deleted(subtests: pytest.Subtests) -> None:
    Call.partitions.make_for(date(2031, 11, 5))
    call(datetime(2031, 11, 5, tzinfo=UTC))
    Event.objects.record(Action.HOST_CREATED, make.user(), by=None)

    for table in ("auditlog_call", "auditlog_call_2031_11_05", "auditlog_event"):
        for change in (f"UPDATE {table} SET correlation_id = correlation_id", f"DELETE FROM {table}"):
            with subtests.test(change), pytest.raises(IntegrityError, match="insert-only"), transaction.atomic():
                connection.cursor().execute(change)


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_retention_drops_only_partitions_that_are_wholly_old() -> None:
    old_month(2001, 1)
    for day in (1, 2, 3):
        Call.partitions.make_for(date(2001, 2, day))

    assert Call.partitions.drop_before(date(2001, 1, 31)) == []
    dropped = Call.partitions.drop_before(date(2001, 2, 2))

    assert dropped == ["auditlog_call_2001_01", "auditlog_call_2001_02_01"]
    assert Call.partitions.drop_before(date(2001, 5, 1)) == ["auditlog_call_2001_02_02", "auditlog_call_2001_02_03"]


@pytest.mark.django_db(transaction=True)
def test_a_partition_that_is_read_stays_and_is_taken_up_where_it_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "ATTEMPTS", 1)
    monkeypatch.setattr(partitions, "LOCK_TIMEOUT", "100ms")
    for month in (1, 2, 3):
        old_month(2002, month)
    with psycopg.connect(database.conninfo()) as reader:
        reader.execute("SELECT count(*) FROM auditlog_call")
        assert Call.partitions.drop_before(date(2002, 2, 1)) == []
        call(datetime(2002, 3, 5, tzinfo=UTC))  # Other processes can still write.
    # One partition is half detached; another was detached by a process that stopped before dropping it.
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_inherits WHERE inhdetachpending")
        assert cursor.fetchone() == (1,)
    assert Call.partitions.drop_before(date(2002, 2, 1)) == ["auditlog_call_2002_01"]
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE auditlog_call DETACH PARTITION auditlog_call_2002_02")

    assert Call.partitions.drop_before(date(2002, 5, 1)) == [f"auditlog_call_2002_0{month}" for month in (2, 3)]
    assert not [name for name in Call.partitions.names() if "2002" in name]


def test_an_event_says_who_where_from_and_through_which_door_or_that_it_was_the_system() -> None:
    ana = make.user()
    here = EventContext(via=Via.API, ip="192.0.2.7")

    with use_context(here):
        event = Event.objects.record(Action.HOST_CREATED, ana, by=ana, changes={"name": [None, "x"]})

    event.refresh_from_db()
    assert (event.actor_email, event.via, event.ip, event.correlation_id) == (
        ana.email,
        "api",
        "192.0.2.7",
        here.correlation_id,
    )
    event = Event.objects.record(Action.HOST_CREATED, make.user(), by=None)
    assert (event.actor_email, event.via, event.ip) == ("system", "system", None)
