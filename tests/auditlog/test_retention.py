"""Retention drops the right partitions of the log, even when clocks disagree."""

from datetime import datetime, timedelta
from itertools import product

import pytest
from django.db import connection
from django.utils import timezone

from accounts.models import WorkspaceSettings
from auditlog.models import Call, Event
from gatewayadmin.serving import housekeeping
from tests.calls import call
from ui import databases

pytestmark = pytest.mark.django_db(transaction=True)

DAY = timedelta(days=1)
KEPT = 90


@pytest.fixture(autouse=True)
def _no_partitions_of_other_modules() -> None:
    Call.partitions.drop_before(timezone.now().date())
    Call.partitions.make_ahead()


def drop() -> int:
    """Run all chores as `serve` does; return the number of dropped partitions."""
    counts = housekeeping._chores(databases.database_now())
    return counts.get("partitions_dropped", 0)


@pytest.mark.full
def test_nothing_is_dropped_while_the_clocks_differ(monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests) -> None:
    now = timezone.now()
    for days in (0, 1, 60, KEPT - 2, KEPT + 5):
        call(now - days * DAY)
    clocks = ("django.utils.timezone.now", "ui.databases.database_now")
    shifts = (timedelta(hours=1), timedelta(hours=-1), 100 * DAY, -40 * DAY, 3653 * DAY)
    for clock, shift in product(clocks, shifts):
        failures = housekeeping.FAILED.labels("clocks")._value.get()
        with subtests.test(f"{clock} {shift}"):
            with monkeypatch.context() as patched:
                patched.setattr(clock, lambda shift=shift: now + shift)
                assert drop() == 0
            assert Call.objects.count() == 5
            assert housekeeping.FAILED.labels("clocks")._value.get() == failures + 1


@pytest.mark.full
def test_a_dropped_partition_is_an_admin_event_with_its_days_and_rows() -> None:
    old = timezone.now() - (KEPT + 5) * DAY
    call(old)
    call(old)

    assert drop() == 1

    event = Event.objects.get(action="workspace.calls_dropped")
    assert event.actor_email == "system"
    assert event.changes == {
        "partition": f"auditlog_call_{old:%Y_%m_%d}",
        "from": f"{old:%Y-%m-%d}",
        "before": f"{old + DAY:%Y-%m-%d}",
        "calls": 2,
    }
    assert Call.objects.count() == 0


@pytest.mark.full
def test_calls_that_a_slow_clock_dated_wrong_stay_until_they_are_as_old_as_the_database_says() -> None:
    dated = timezone.now() - (KEPT + 5) * DAY
    call(dated, recorded_at=timezone.now() - (KEPT - 1) * DAY)

    assert drop() == 0
    assert Call.objects.count() == 1


@pytest.mark.full
def test_a_run_drops_a_few_partitions_the_oldest_first() -> None:
    days = [timezone.now() - (KEPT + number) * DAY for number in range(2, 9)]
    for day in days:
        call(day)

    assert drop() == housekeeping.MOST_DROPPED
    assert oldest() == days[-1 - housekeeping.MOST_DROPPED].date()
    assert drop() == len(days) - housekeeping.MOST_DROPPED
    assert Call.objects.count() == 0


def test_shorter_retention_drops_calls_a_day_after_it_was_asked_for() -> None:
    call(timezone.now() - 60 * DAY)
    WorkspaceSettings.edit(by=None, log_retention_days=30)

    assert drop() == 0
    assert WorkspaceSettings.load().log_retention_days == KEPT

    WorkspaceSettings.objects.update(shorter_retention_at=databases.database_now())
    assert drop() == 1
    assert (WorkspaceSettings.load().log_retention_days, WorkspaceSettings.load().dropping) == (30, None)
    event = Event.objects.get(action="workspace.retention_shortened")
    assert (event.actor_email, event.changes) == ("system", {"log_retention_days": [KEPT, 30]})


def oldest() -> datetime:
    with connection.cursor() as cursor:
        cursor.execute("SELECT min(created_at)::date FROM auditlog_call")
        found: datetime = cursor.fetchone()[0]
    return found
