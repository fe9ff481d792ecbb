"""Adds to the roll-ups what the log got since, in small steps, off the path of calls.

Each step is one transaction that holds the row of RollupState: of all processes one counts, and how far it came and
what it counted are committed together. Rows are counted by their id, and may become visible in any order: an id is
taken as the last one only when every transaction that was writing to the log at that moment has ended, so no row is
missed or counted twice (docs/explanation/roll-ups.md).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from typing import Any

from django.db import connection, transaction

from auditlog.committed import LATEST, NTH_ID, last_id
from auditlog.models import Call, Rollup, RollupState, RollupWindow
from auditlog.rollups import windows
from auditlog.rollups.schema import (
    BEGINNING,
    CLASS_COLUMNS,
    CLASS_OF,
    DAYS,
    DIMENSIONS,
    ENDS,
    GRAINS,
    HOURS,
    MINUTES,
    RECENT_HOURS,
    WINDOWS,
    Grain,
    cube_number,
)
from ui import databases

STEP = 20_000  # Rows of the log that one transaction counts, or a few more.
OLD_STEP = 60_000  # The same for what was there before: days get whole in fewer steps.
# How old a row may be when it is committed to be found at once, and within how long those older still are found.
NEAR = timedelta(hours=1)
LATE_EVERY = timedelta(minutes=15)
WRITERS_S = 1.0  # How long a step waits for those who are writing.
AGAIN_AFTER = timedelta(seconds=3)  # What another process counted a moment ago is not counted again.

NTH_OLDER = "SELECT created_at FROM auditlog_call WHERE created_at < %s ORDER BY created_at DESC OFFSET %s LIMIT 1"

AN_AGE = timedelta(days=365_000) // timedelta(seconds=1)  # From BEGINNING on: all that a window holds.

type Condition = tuple[str, list[Any]]


def keep_up(seconds: float, *, even_if_fresh: bool = True) -> int:
    """Count what there is to count, for about so long; how many rows of the log were counted.

    Nothing when another process is at it, or was a moment ago and it need not be done `even_if_fresh`.
    """
    end, counted = time.monotonic() + seconds, 0
    if not even_if_fresh and _is_fresh():
        return 0
    is_more = True
    while is_more:
        steps = [step() for step in (_count_new, _count_late, _count_old, _move_windows)]
        counted += sum(rows for rows, _ in steps)
        is_more = any(more for _, more in steps) and time.monotonic() < end
    return counted


def drop_before(limit: date) -> int:
    """Forget the calls whose partitions are dropped when calls before `limit` are; how many roll-ups were deleted.

    To be called before these partitions are dropped: until then they are counted from the log itself.
    """
    begin = Call.partitions.kept_from(limit)
    with transaction.atomic(), _state() as state:
        if state is None:
            return 0
        state.days_from = max(state.days_from, begin)
        state.save(update_fields=["days_from"])
        windows.forget(state, begin)
    return sum(_delete_outdated(state, grain) for grain in GRAINS)


def _delete_outdated(state: RollupState, grain: Grain) -> int:
    floor, cubes = max(state.floor(grain), state.days_from), [cube_number(cube) for cube in grain.cubes]
    return Rollup.objects.filter(cube__in=cubes, seconds=grain.seconds, at__lt=floor).delete()[0]


def days_left() -> int:
    """How many days of the log are still to be counted, after an upgrade."""
    state = RollupState.objects.first()
    if state is None or state.counted_from <= BEGINNING:
        return 0
    oldest = Call.objects.oldest()
    return 0 if oldest is None else max((state.counted_from - oldest).days + 1, 0)


def _is_fresh() -> bool:
    state = RollupState.objects.first()
    return state is not None and state.counted_from <= BEGINNING and databases.now() - state.counted_at < AGAIN_AFTER


@contextmanager
def _state() -> Iterator[RollupState | None]:
    """The state, locked until the transaction ends; None when another process has it, or it cannot begin yet."""
    if not RollupState.objects.exists():
        _begin()
    yield RollupState.objects.select_for_update(skip_locked=True).first()


def _begin() -> None:
    """From now on what comes is counted; what is there already will be, from the newest back."""
    last = _last_id()
    if last is None:
        return
    now = databases.now()
    newest = Call.objects.order_by("-created_at").values_list("created_at", flat=True).first()
    after = MINUTES.next(max(now, newest or now)) + MINUTES.length
    state = RollupState(
        counted_to=last,
        near_from=now - NEAR,
        late_counted_to=last,
        began_at_id=last,
        counted_from=after if newest else BEGINNING,
        days_from=BEGINNING,
        counted_at=now,
        **_floors(now),
    )
    RollupState.objects.bulk_create([state], ignore_conflicts=True)


def _floors(now: datetime) -> dict[str, datetime]:
    """Return from when on there are roll-ups of each grain that is not kept for ever, by the names of the fields."""
    return {grain.floor: (DAYS if grain is HOURS else HOURS).begin(now - grain.kept) for grain in GRAINS if grain.kept}


def _last_id() -> int | None:
    """An id up to which every row of the log is visible, or never will be; None while somebody writes for too long."""
    with connection.cursor() as cursor:
        return last_id(cursor, Call._meta.db_table, wait=WRITERS_S)


@transaction.atomic
def _count_new() -> tuple[int, bool]:
    """Count the newest rows: how many, and whether there are more."""
    with _state() as state:
        last = None if state is None else _last_id()
        if state is None or last is None or last <= state.counted_to:
            return 0, False
        with connection.cursor() as cursor:
            cursor.execute(NTH_ID, [state.near_from, state.counted_to, last, STEP - 1])
            row = cursor.fetchone()
        to = row[0] if row else last
        rows = ("created_at >= %s AND id > %s AND id <= %s", [state.near_from, state.counted_to, to])
        with _in_windows(state, rows):
            counted = _add(state, rows)
            state.counted_to, state.counted_at = to, databases.now()
        state.save(update_fields=["counted_to", "counted_at"])
        return counted, row is not None


@transaction.atomic
def _count_late() -> tuple[int, bool]:
    """When it is time for that, count the rows that were older than NEAR when they came, and begin a new stretch."""
    with _state() as state:
        now = databases.now()
        if state is None or now - state.near_from < NEAR + LATE_EVERY:
            return 0, False
        near, low, high = state.near_from, state.late_counted_to, state.counted_to
        late = ("created_at >= %s AND created_at < %s AND id > %s AND id <= %s", [near - LATEST, near, low, high])
        with _in_windows(state, late):
            counted = _add(state, late)
            state.late_counted_to, state.near_from = high, now - NEAR
        for name, floor in _floors(now).items():
            setattr(state, name, max(getattr(state, name), floor))
        state.save()
        for grain in (MINUTES, RECENT_HOURS):  # There would be many of a day.
            _delete_outdated(state, grain)
        return counted, False


@transaction.atomic
def _count_old() -> tuple[int, bool]:
    """Count some of what was there when counting began, the newest first: how many, and whether there are more."""
    with _state() as state:
        if state is None or state.counted_from <= BEGINNING:
            return 0, False
        with connection.cursor() as cursor:
            cursor.execute(NTH_OLDER, [state.counted_from, OLD_STEP])
            row = cursor.fetchone()
        since = MINUTES.begin(row[0]) if row else BEGINNING
        old = ("created_at >= %s AND created_at < %s AND id <= %s", [since, state.counted_from, state.began_at_id])
        counted = _add(state, old)
        state.counted_from = since
        state.save(update_fields=["counted_from"])
        return counted, row is not None


@transaction.atomic
def _move_windows() -> tuple[int, bool]:
    """Move the windows on to the last whole hour: no row, and whether there is more to do."""
    with _state() as state:
        return 0, state is not None and windows.move(state, databases.now())


@contextmanager
def _in_windows(state: RollupState, rows: Condition) -> Iterator[None]:
    """Add these rows of the log to the windows that hold their time, and note in these how far it is counted then."""
    held = windows.current(state)
    yield
    with connection.cursor() as cursor:
        for window in held:
            statement = _WINDOW_STATEMENTS[window.seconds].format(rows=f"{rows[0]} AND created_at < %s")
            cursor.execute(statement, [*rows[1], window.until, window.since])
    for window in held:
        window.counted_to, window.late_counted_to = state.counted_to, state.late_counted_to
    RollupWindow.objects.bulk_update(held, ["counted_to", "late_counted_to"])


def _add(state: RollupState, rows: Condition) -> int:
    """Add these rows of the log to the roll-ups of all lengths; how many they were."""
    counted = 0
    with connection.cursor() as cursor:
        for grain, statement in _STATEMENTS:
            cursor.execute(statement.format(rows=rows[0]), [*rows[1], state.floor(grain)])
            counted = max(counted, int(cursor.fetchone()[0] or 0))
    return counted


def _statement(grain: Grain) -> str:
    known = [name for name in DIMENSIONS if any(name in cube for cube in grain.cubes)]
    keys = ", ".join((*ENDS, *known))
    sets = ", ".join(f"(at, {', '.join((*ENDS, *cube))})" for cube in grain.cubes)
    # `grouping` is 1 for a column that is not told apart.
    cube = " + ".join(f"{cube_number([name])} * (1 - grouping({name}))" for name in known)
    numbers = ", ".join(f"nullif(sum(n) FILTER (WHERE class = {n}), 0)" for n in range(len(CLASS_COLUMNS)))
    added = ", ".join(
        f"{name} = coalesce(r.{name} + excluded.{name}, r.{name}, excluded.{name})" for name in CLASS_COLUMNS
    )
    seconds = AN_AGE if grain in WINDOWS else grain.seconds
    return f"""
WITH c AS MATERIALIZED (
    SELECT date_bin('{seconds} seconds', created_at, '1970-01-01 00:00+00') AS at, {keys}, {CLASS_OF} AS class,
        count(*)::int AS n, sum(duration_ms) AS ms, max(created_at) AS last
    FROM auditlog_call WHERE {{rows}} AND created_at >= %s GROUP BY at, {keys}, class
), counted AS (
    INSERT INTO auditlog_rollup AS r
        (seconds, cube, at, {keys}, calls, duration_ms, last_at, {", ".join(CLASS_COLUMNS)})
    SELECT {grain.seconds}, {cube}, at, {keys}, sum(n), sum(ms), max(last), {numbers}
    FROM c GROUP BY GROUPING SETS ({sets})
    ON CONFLICT (cube, seconds, at, {", ".join((*ENDS, *DIMENSIONS))}) DO UPDATE SET calls = r.calls + excluded.calls,
        duration_ms = r.duration_ms + excluded.duration_ms,
        last_at = greatest(r.last_at, excluded.last_at), {added}
)
SELECT sum(n) FROM c
"""  # noqa: S608  (constants of the schema)


_STATEMENTS = [(grain, _statement(grain)) for grain in GRAINS]
_WINDOW_STATEMENTS = {grain.seconds: _statement(grain) for grain in WINDOWS}
