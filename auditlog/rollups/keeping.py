"""Update the roll-ups with new rows of the log, in small steps outside the request path.

Each step is one transaction that locks RollupState, so that only one process at a time counts rows.
A step counts rows up to a certain id. New rows can appear only above this id, so no row is missed or counted twice
(docs/decisions/0029-roll-ups-counted-by-id.md).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from typing import Any

from django.db import connection, transaction

from auditlog.models import Call, Rollup, RollupState
from auditlog.replica import LATEST, NTH_ID, last_id
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
    Grain,
    cube_number,
)
from ui import databases

STEP = 20_000  # Rows of the log to count per transaction; some transactions count slightly more.
OLD_STEP = 60_000  # The same for rows from before counting began. Larger, so that a day of calls takes fewer steps.
# Rows that are at most NEAR old when they are committed are counted at once, older rows every LATE_EVERY.
NEAR = timedelta(hours=1)
LATE_EVERY = timedelta(minutes=15)
WRITERS_S = 1.0  # Seconds that a step waits for writers.
AGAIN_AFTER = timedelta(seconds=3)  # Do not count again if another process has counted within this time.

NTH_OLDER = "SELECT created_at FROM auditlog_call WHERE created_at < %s ORDER BY created_at DESC OFFSET %s LIMIT 1"

type Condition = tuple[str, list[Any]]


def keep_up(seconds: float, *, even_if_fresh: bool = True) -> int:
    """Count new rows for about `seconds`, and return their number. Does nothing while another process counts.

    With `even_if_fresh=False`, also does nothing if another process has counted within AGAIN_AFTER.
    """
    end, counted = time.monotonic() + seconds, 0
    if not even_if_fresh and _is_fresh():
        return 0
    is_more = True
    while is_more:
        steps = [step() for step in (_count_new, _count_late, _count_old)]
        counted += sum(rows for rows, _ in steps)
        is_more = any(more for _, more in steps) and time.monotonic() < end
    return counted


def drop_before(limit: date) -> int:
    """Delete outdated roll-ups, and return the number of deleted rows.

    A roll-up is outdated if `Partitions.drop_before(limit)` drops its calls, or if it is older than the retention of
    its grain. Call this function before `Partitions.drop_before`. Does nothing while another process counts.
    """
    begin = Call.partitions.kept_from(limit)
    with transaction.atomic(), _state() as state:
        if state is None:
            return 0
        state.days_from = max(state.days_from, begin)
        state.save(update_fields=["days_from"])
    return sum(_delete_outdated(state, grain) for grain in GRAINS)


def _delete_outdated(state: RollupState, grain: Grain) -> int:
    floor, cubes = max(state.floor(grain), state.days_from), [cube_number(cube) for cube in grain.cubes]
    return Rollup.objects.filter(cube__in=cubes, seconds=grain.seconds, at__lt=floor).delete()[0]


def days_left() -> int:
    """Return the number of days of the log that are still to be counted after an upgrade; 0 if none."""
    state = RollupState.objects.first()
    if state is None or state.counted_from <= BEGINNING:
        return 0
    oldest = Call.objects.oldest()
    return 0 if oldest is None else max((state.counted_from - oldest).days + 1, 0)


def _is_fresh() -> bool:
    state = RollupState.objects.first()
    return (
        state is not None
        and state.counted_from <= BEGINNING
        and databases.database_now() - state.counted_at < AGAIN_AFTER
    )


@contextmanager
def _state() -> Iterator[RollupState | None]:
    """Yield the locked RollupState; None if another process has locked it, or if counting cannot start yet."""
    if not RollupState.objects.exists():
        _begin()
    yield RollupState.objects.select_for_update(skip_locked=True).first()


def _begin() -> None:
    """Create the state with which counting starts.

    New calls are then counted as they arrive. The calls that already exist are counted later, newest first.
    """
    last = _last_id()
    if last is None:
        return
    now = databases.database_now()
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
    """Return the earliest time for which each grain's roll-ups are retained. The keys are fields of RollupState.

    Grains without a retention of their own are left out.
    """
    return {grain.floor: (DAYS if grain is HOURS else HOURS).begin(now - grain.kept) for grain in GRAINS if grain.kept}


def _last_id() -> int | None:
    """Return an id up to which no new row can appear; None if a transaction takes too long to commit."""
    with connection.cursor() as cursor:
        return last_id(cursor, Call._meta.db_table, wait=WRITERS_S)


@transaction.atomic
def _count_new() -> tuple[int, bool]:
    """Count rows written since the last count, at most STEP rows. Rows of late calls are left out.

    Return a pair: the number of counted rows, and whether there are more to count.
    """
    with _state() as state:
        last = None if state is None else _last_id()
        if state is None or last is None or last <= state.counted_to:
            return 0, False
        with connection.cursor() as cursor:
            cursor.execute(NTH_ID, [state.near_from, state.counted_to, last, STEP - 1])
            row = cursor.fetchone()
        to = row[0] if row else last
        rows = ("created_at >= %s AND id > %s AND id <= %s", [state.near_from, state.counted_to, to])
        counted = _add(state, rows)
        state.counted_to, state.counted_at = to, databases.database_now()
        state.save(update_fields=["counted_to", "counted_at"])
        return counted, row is not None


@transaction.atomic
def _count_late() -> tuple[int, bool]:
    """Count late calls, and advance `near_from`.

    A late call began before `near_from`, so its row was written more than NEAR later, and `_count_new` left it out.
    Does nothing if late calls were counted less than LATE_EVERY ago.

    Return a pair: the number of counted calls, and whether more are left to count. The second value is always False,
    because one run counts all late calls.
    """
    with _state() as state:
        now = databases.database_now()
        if state is None or now - state.near_from < NEAR + LATE_EVERY:
            return 0, False
        near, low, high = state.near_from, state.late_counted_to, state.counted_to
        late = ("created_at >= %s AND created_at < %s AND id > %s AND id <= %s", [near - LATEST, near, low, high])
        counted = _add(state, late)
        state.late_counted_to, state.near_from = high, now - NEAR
        for name, floor in _floors(now).items():
            setattr(state, name, max(getattr(state, name), floor))
        state.save()
        for grain in (MINUTES, RECENT_HOURS):  # These have many rows, so outdated ones are deleted often.
            _delete_outdated(state, grain)
        return counted, False


@transaction.atomic
def _count_old() -> tuple[int, bool]:
    """Count the next batch of the calls that were in the log before counting began.

    Return a pair: the number of counted calls, and whether more are left to count.
    """
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


def _add(state: RollupState, rows: Condition) -> int:
    """Add these rows of the log to the roll-ups of all grains, and return the number of rows."""
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
    # `grouping` is 1 for a column that is not in the combination.
    cube = " + ".join(f"{cube_number([name])} * (1 - grouping({name}))" for name in known)
    numbers = ", ".join(f"nullif(sum(n) FILTER (WHERE class = {n}), 0)" for n in range(len(CLASS_COLUMNS)))
    added = ", ".join(
        f"{name} = coalesce(r.{name} + excluded.{name}, r.{name}, excluded.{name})" for name in CLASS_COLUMNS
    )
    return f"""
WITH c AS MATERIALIZED (
    SELECT date_bin('{grain.seconds} seconds', created_at, '1970-01-01 00:00+00') AS at, {keys}, {CLASS_OF} AS class,
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
