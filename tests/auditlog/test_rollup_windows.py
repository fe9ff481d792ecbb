"""Windows of the roll-ups: a range of time in one piece, which moves on and stays a count of the log."""

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils import timezone

from auditlog.models import Call, Rollup, RollupState, RollupWindow
from auditlog.paging import EPOCH
from auditlog.ranges import range_start
from auditlog.rollups import keeping
from auditlog.rollups.reading import book
from auditlog.rollups.schema import (
    CLASSES,
    DAYS,
    DIMENSIONS,
    EVER,
    HOURS,
    RATIO,
    WINDOWS,
    Grain,
    cube_number,
)
from auditlog.search import AHEAD
from tests import sampling
from tests.auditlog.test_rollups import moments, partitions, row, write
from tests.calls import call

pytestmark = pytest.mark.django_db

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MOVING = WINDOWS[:-1]  # All but EVER.


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(f"{sampling.seed()} {request.node.name}")


def move(now: datetime) -> None:
    """Move the windows as at this moment, to the end."""
    more = True
    while more:
        with transaction.atomic():
            more = keeping.move_window(RollupState.objects.select_for_update().get(), now)


def kept(grain: Grain) -> dict[Any, tuple[int, datetime | None, dict[int, int]]]:
    """What the roll-ups of a window say: calls, when the newest was, their classes; by combination and its values."""
    found: dict[Any, tuple[int, datetime | None, dict[int, int]]] = {}
    for each in Rollup.objects.filter(seconds=grain.seconds):
        numbers = {n: number for n in range(CLASSES) if (number := getattr(each, f"ms_{n}"))}
        key = (each.cube, each.outcome, each.deny_reason, *(getattr(each, name) for name in DIMENSIONS))
        found[key] = (each.calls, each.last_at, numbers)
    return found


def counted(grain: Grain) -> dict[Any, tuple[int, datetime | None, dict[int, int]]]:
    """The same of the log, for the time that the window says it is of."""
    window = RollupWindow.objects.get(seconds=grain.seconds)
    calls: Counter[Any] = Counter()
    numbers: dict[Any, Counter[int]] = {}
    last = {}
    for each in Call.objects.filter(created_at__gte=window.since, created_at__lt=window.until).order_by("created_at"):
        for cube in grain.cubes:
            values = (getattr(each, name) if name in cube else None for name in DIMENSIONS)
            key = (cube_number(cube), each.outcome, each.deny_reason, *values)
            calls[key] += 1
            last[key] = each.created_at
            numbers.setdefault(key, Counter())[class_of(each.duration_ms)] += 1
    return {key: (number, last[key], dict(numbers[key])) for key, number in calls.items()}


def class_of(duration_ms: float) -> int:
    n = 0
    while n < CLASSES - 1 and RATIO ** (n + 1) <= max(duration_ms, 1):
        n += 1
    return n


def check_all() -> None:
    for grain in WINDOWS:
        assert kept(grain) == counted(grain), grain


def total(length: timedelta) -> int:
    now = timezone.now()
    with book() as opened:
        found = opened.total({}, range_start(now, length), now)
    assert found is not None
    return found.calls


def test_windows_are_a_count_of_their_time_wherever_they_are_moved(chance: random.Random) -> None:
    """By an hour, by several, over midnights, and so far that nothing of what they held is left."""
    now = timezone.now()
    partitions(36)
    write(connection, [row(chance, moments(chance, now, 33)) for _ in range(150)])
    keeping.keep_up(30)
    check_all()

    RollupWindow.objects.all().delete()  # They are never moved back.
    for hours in (-47, -46, -40, -20, 0, 1):
        move(now + hours * HOUR)
        check_all()
    write(connection, [row(chance, now - chance.random() * 0.8 * HOUR) for _ in range(20)])
    assert keeping.keep_up(5) == 20
    check_all()
    move(now + 60 * DAY)
    assert not Rollup.objects.filter(seconds__in=[grain.seconds for grain in MOVING]).exists()
    assert kept(EVER) == counted(EVER)


def test_window_is_read_in_place_of_what_it_is_made_of() -> None:
    now = timezone.now()
    for n in range(3):
        call(now - 3 * DAY + n * HOUR, feature_name="echo" if n else "add")
    keeping.keep_up(5)
    Rollup.objects.filter(seconds__in=[HOURS.seconds, DAYS.seconds]).delete()

    with book() as opened:
        found = opened.read({}, range_start(now, 7 * DAY), now, by=("feature_name",))
        busiest = opened.busiest({}, range_start(now, 7 * DAY), now, "feature_name", 5)

    assert {key: numbers.calls for key, numbers in (found or {}).items()} == {("echo",): 2, ("add",): 1}
    assert {name: numbers.calls for name, numbers in (busiest or {}).items()} == {"echo": 2, "add": 1}
    assert found is not None
    assert sum(found["echo",].classes) == 2
    assert total(7 * DAY) == 3
    assert total(4 * DAY) == 0  # The shorter window begins later.


def test_all_time_is_read_from_its_window() -> None:
    now = timezone.now()
    for days in (3, 50, 80):
        call(now - days * DAY)
    keeping.keep_up(30)
    assert kept(EVER) == counted(EVER)
    Rollup.objects.exclude(seconds=EVER.seconds).delete()

    with book() as opened:
        found = opened.total({}, EPOCH, now + AHEAD)

    assert found is not None
    assert found.calls == 3
    assert sum(found.classes) == 3


def test_call_that_comes_late_is_added_to_the_windows_that_hold_its_time() -> None:
    call(timezone.now() - 4 * DAY)
    keeping.keep_up(5)
    RollupState.objects.update(near_from=timezone.now() - 3 * DAY)

    call(timezone.now() - 2 * DAY)
    assert total(7 * DAY) == 2  # From the log, as long as it is not counted.
    assert keeping.keep_up(5) == 1

    assert total(7 * DAY) == 2
    check_all()


def test_window_that_another_release_did_not_count_with_is_not_read_and_made_anew() -> None:
    """During an upgrade a process of the release before, which knows of no windows, may be the one that counts."""
    call(timezone.now() - 4 * DAY)
    keeping.keep_up(5)
    RollupWindow.objects.update(counted_to=0)
    Rollup.objects.filter(seconds__in=[grain.seconds for grain in WINDOWS]).update(calls=7)

    assert total(7 * DAY) == 1

    keeping.keep_up(5)
    check_all()
    assert {each.counted_to for each in RollupWindow.objects.all()} == {RollupState.objects.get().counted_to}


def test_window_of_a_later_release_is_left_to_that() -> None:
    """Who goes back to this release counts on without it."""
    call(timezone.now() - 4 * DAY)
    keeping.keep_up(5)
    later = RollupWindow.objects.create(
        seconds=7, since=timezone.now() - DAY, until=timezone.now(), counted_to=0, late_counted_to=0
    )
    state = RollupState.objects.get()
    RollupWindow.objects.filter(pk=later.pk).update(counted_to=state.counted_to, late_counted_to=state.late_counted_to)

    call(timezone.now() - HOUR)

    assert keeping.keep_up(5) == 1
    assert total(7 * DAY) == 2
    assert RollupWindow.objects.get(pk=later.pk).counted_to == state.counted_to


def test_window_of_more_calls_than_it_can_count_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "MOST_CALLS", 1)
    call(timezone.now() - 20 * DAY)
    call(timezone.now() - 2 * DAY)

    keeping.keep_up(5)

    week = WINDOWS[1].seconds
    assert {each.seconds for each in RollupWindow.objects.all()} - {WINDOWS[0].seconds} == {week}
    assert total(30 * DAY) == 2


@pytest.mark.parametrize("oldest", [9, 30])
def test_days_that_are_dropped_are_in_no_window_any_more(oldest: int) -> None:
    """A few are taken away from that of all time; of more it is made anew, as the others are."""
    today = datetime.now(UTC).date()
    for n in (1, 3, 8, oldest):
        call(datetime.combine(today - n * DAY, datetime.min.time(), UTC))
    keeping.keep_up(5)
    assert RollupWindow.objects.count() == len(WINDOWS)

    keeping.drop_before(today - 5 * DAY)

    assert not Rollup.objects.filter(seconds=MOVING[-1].seconds).exists()
    assert RollupWindow.objects.filter(seconds=EVER.seconds).exists() is (oldest == 9)
    if oldest == 9:
        assert kept(EVER) == counted(EVER)
    keeping.keep_up(5)
    check_all()
    for grain in (MOVING[-1], EVER):
        assert RollupWindow.objects.get(seconds=grain.seconds).since == RollupState.objects.get().days_from
