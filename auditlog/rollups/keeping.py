"""Update the roll-ups with new rows of the log, in small steps outside the request path.

Each step is one transaction that locks the row of RollupState: only one process counts, and its progress and counts are
committed together. Rows are counted by id and may become visible in any order: an id is used as the last one only when
every transaction that was writing to the log at that time has ended, so no row is missed or counted twice
(docs/explanation/roll-ups.md).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from typing import Any

from django.db import connection, transaction
from django.db.models import Sum

from auditlog.models import Call, Rollup, RollupState, RollupWindow
from auditlog.replica import LATEST, NTH_ID, last_id
from auditlog.rollups.schema import (
    BEGINNING,
    CLASS_COLUMNS,
    CLASS_OF,
    DAY,
    DAYS,
    DIMENSIONS,
    ENDS,
    EVER,
    GRAINS,
    HOURS,
    MINUTES,
    NAME,
    RECENT_HOURS,
    TOOL,
    WINDOWS,
    Grain,
    cube_number,
)
from ui import databases

# Roll-ups of whole time ranges, so that a page need not add up many hours and days on each request.
#
# The window of a day moves by whole hours, the others by whole days: new roll-ups are added, old ones subtracted, and
# late rows are added as in the source roll-ups. Each step is one transaction that locks the row of RollupState, so a
# window always equals the roll-ups of its period. Where that is not possible, the window is rebuilt.

MOST_TAKEN = timedelta(days=7)  # To remove more than this, rebuilding the window is faster.
# A window's calls per class are stored in four bytes, and more may arrive before the next move.
MOST_CALLS = 1_500_000_000
CUBES = [cube_number(cube) for cube in WINDOWS[0].cubes]

_KEYS = ", ".join((*ENDS, *DIMENSIONS))
_NAMES = ", ".join((*ENDS, *("feature_name" if name == "feature_name" else "NULL" for name in DIMENSIONS)))
_SUMS = ("calls", "duration_ms", *CLASS_COLUMNS)
# The newest call stays correct as calls are subtracted: the oldest leave first.
_NUMBERS = ", ".join(("max(last_at)", *(f"sum({name}) * %(sign)s" for name in _SUMS)))
_ADDED = ", ".join(
    f"{name} = nullif(coalesce(r.{name}, 0) + coalesce(excluded.{name}, 0), 0)" for name in CLASS_COLUMNS
)
# There are no roll-ups by name alone for hours and days: names are summed over the tools.
MOVE = f"""
INSERT INTO auditlog_rollup AS r (seconds, cube, at, {_KEYS}, last_at, {", ".join(_SUMS)})
SELECT %(window)s, cube, %(at)s, {_KEYS}, {_NUMBERS} FROM auditlog_rollup
WHERE cube = ANY(%(cubes)s) AND seconds = %(seconds)s AND at >= %(since)s AND at < %(until)s GROUP BY cube, {_KEYS}
UNION ALL
SELECT %(window)s, {NAME}, %(at)s, {_NAMES.replace("NULL, ", "NULL::uuid, ", 4)}, {_NUMBERS} FROM auditlog_rollup
WHERE cube = {TOOL} AND seconds = %(seconds)s AND at >= %(since)s AND at < %(until)s
GROUP BY {", ".join(ENDS)}, feature_name
ON CONFLICT (cube, seconds, at, {_KEYS}) DO UPDATE
SET calls = r.calls + excluded.calls, duration_ms = r.duration_ms + excluded.duration_ms,
    last_at = greatest(r.last_at, excluded.last_at), {_ADDED}
"""  # noqa: S608  (constants of the schema)
EMPTIED = "DELETE FROM auditlog_rollup WHERE cube = ANY(%s) AND seconds = %s AND calls <= 0"
FIRST = "SELECT min(at) FROM auditlog_rollup WHERE cube = 0 AND seconds = %s AND at >= %s AND at < %s"


def current_windows(state: RollupState) -> list[RollupWindow]:
    """Return the windows that are up to date with the roll-ups, without those of a later release."""
    known = RollupWindow.objects.filter(seconds__in=[grain.seconds for grain in WINDOWS])
    return list(known.filter(counted_to=state.counted_to, late_counted_to=state.late_counted_to))


def move_window(state: RollupState, now: datetime) -> bool:
    """Move a window one step towards its current position; return whether there is more to do.

    The caller must hold the lock of `state`.
    """
    return any(_move(grain, state, now) for grain in WINDOWS)


def drop_from_windows(state: RollupState, before: datetime) -> None:
    """Remove everything before this time from all windows, since its roll-ups are about to be deleted.

    The caller must hold the lock of `state`. From EVER days are subtracted; the other windows are rebuilt.
    """
    for window in RollupWindow.objects.filter(since__lt=before):
        if window.seconds == EVER.seconds and window in current_windows(state) and _is_near(state, window, before):
            while window.since < before:
                window.since = _move_end(EVER, DAYS, window.since, before, -1)
            window.save(update_fields=["since"])
        else:
            _forget(window.seconds)


def _is_near(state: RollupState, window: RollupWindow, before: datetime) -> bool:
    """True if only a few of the window's days are before this time, and all of them still have roll-ups."""
    first = _first(DAYS, window.since, before)
    return window.until >= before and (first is None or before - first <= MOST_TAKEN)


def _move(grain: Grain, state: RollupState, now: datetime) -> bool:
    source = HOURS if grain == DAY else DAYS
    until = source.begin(now)
    floor = max(state.recent_hours_from, state.days_from) if grain == DAY else state.days_from
    since = max(until - grain.length, source.next(floor))
    if state.counted_from > max(BEGINNING, since) or since >= until:
        return False
    window = next((each for each in current_windows(state) if each.seconds == grain.seconds), None)
    if window is not None and (window.since < floor or window.until <= since):
        window = None
    if window is not None and (window.since, window.until) == (since, max(until, window.until)):
        return False
    is_too_much = _calls_since(since) > MOST_CALLS
    if window is None or is_too_much:
        _forget(grain.seconds)
    if is_too_much:
        return False
    if window is None:
        window = RollupWindow(seconds=grain.seconds, since=since, until=since)
        window.counted_to, window.late_counted_to = state.counted_to, state.late_counted_to
    window.until = _move_end(grain, source, window.until, until, 1)
    window.since = _move_end(grain, source, window.since, since, -1)
    window.save()
    return window.since < since or window.until < until


def _move_end(grain: Grain, source: Grain, at: datetime, to: datetime, sign: int) -> datetime:
    """Add or subtract the roll-ups at one end of a window, at most a day; return the new end."""
    first = _first(source, at, to)
    if first is None:
        return max(at, to)
    end = min(DAYS.begin(first) + DAYS.length, to)
    stretch = {"seconds": source.seconds, "since": at, "until": end}
    told: dict[str, Any] = {"window": grain.seconds, "at": BEGINNING, "cubes": CUBES, "sign": sign}
    with connection.cursor() as cursor:
        cursor.execute(MOVE, told | stretch)
        if sign < 0:
            cursor.execute(EMPTIED, [[*CUBES], grain.seconds])
    return end


def _calls_since(since: datetime) -> int:
    days = Rollup.objects.filter(cube=0, seconds=DAYS.seconds, at__gte=DAYS.begin(since))
    return days.aggregate(number=Sum("calls"))["number"] or 0


def _first(grain: Grain, since: datetime, until: datetime) -> datetime | None:
    """Return the start of the first roll-up with calls between two times, or None."""
    with connection.cursor() as cursor:
        cursor.execute(FIRST, [grain.seconds, since, until])
        found: datetime | None = cursor.fetchone()[0]
    return found


def _forget(seconds: int) -> None:
    Rollup.objects.filter(seconds=seconds, cube__in=CUBES).delete()
    RollupWindow.objects.filter(pk=seconds).delete()


STEP = 20_000  # Rows of the log counted per transaction, or slightly more.
OLD_STEP = 60_000  # For rows from before counting began: days are completed in fewer steps.
# The age up to which committed rows are found at once, and the interval at which older ones are found.
NEAR = timedelta(hours=1)
LATE_EVERY = timedelta(minutes=15)
WRITERS_S = 1.0  # How long a step waits for writers.
AGAIN_AFTER = timedelta(seconds=3)  # Skip if another process has just counted.

NTH_OLDER = "SELECT created_at FROM auditlog_call WHERE created_at < %s ORDER BY created_at DESC OFFSET %s LIMIT 1"

AN_AGE = timedelta(days=365_000) // timedelta(seconds=1)  # From BEGINNING: everything in a window.

type Condition = tuple[str, list[Any]]


def keep_up(seconds: float, *, even_if_fresh: bool = True) -> int:
    """Count new rows for about `seconds`, and return how many rows were counted.

    Does nothing while another process counts, or shortly after it did unless `even_if_fresh`.
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
    """Remove the calls that retention before `limit` will drop, and return how many roll-ups were deleted.

    Call it before the partitions are dropped: until then these calls are counted from the log.
    """
    begin = Call.partitions.kept_from(limit)
    with transaction.atomic(), _state() as state:
        if state is None:
            return 0
        state.days_from = max(state.days_from, begin)
        state.save(update_fields=["days_from"])
        drop_from_windows(state, begin)
    return sum(_delete_outdated(state, grain) for grain in GRAINS)


def _delete_outdated(state: RollupState, grain: Grain) -> int:
    floor, cubes = max(state.floor(grain), state.days_from), [cube_number(cube) for cube in grain.cubes]
    return Rollup.objects.filter(cube__in=cubes, seconds=grain.seconds, at__lt=floor).delete()[0]


def days_left() -> int:
    """Return how many days of the log are still to be counted after an upgrade."""
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
    """Yield the state, locked until the transaction ends; None if another process holds it or counting cannot start."""
    if not RollupState.objects.exists():
        _begin()
    yield RollupState.objects.select_for_update(skip_locked=True).first()


def _begin() -> None:
    """Start counting: new rows from now, existing ones later, newest first."""
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
    """Return the start of each grain with limited retention, by field name."""
    return {grain.floor: (DAYS if grain is HOURS else HOURS).begin(now - grain.kept) for grain in GRAINS if grain.kept}


def _last_id() -> int | None:
    """Return an id up to which every row is visible or never will be, or None if a writer takes too long."""
    with connection.cursor() as cursor:
        return last_id(cursor, Call._meta.db_table, wait=WRITERS_S)


@transaction.atomic
def _count_new() -> tuple[int, bool]:
    """Count the newest rows; return how many, and whether there are more."""
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
            state.counted_to, state.counted_at = to, databases.database_now()
        state.save(update_fields=["counted_to", "counted_at"])
        return counted, row is not None


@transaction.atomic
def _count_late() -> tuple[int, bool]:
    """Count rows that were older than NEAR when they arrived, if it is time, and advance `near_from`."""
    with _state() as state:
        now = databases.database_now()
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
        for grain in (MINUTES, RECENT_HOURS):  # A whole day's would be many.
            _delete_outdated(state, grain)
        return counted, False


@transaction.atomic
def _count_old() -> tuple[int, bool]:
    """Count some rows from before counting began, newest first; return how many, and whether there are more."""
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
    """Move the windows to the last whole hour; return 0 rows, and whether there is more to do."""
    with _state() as state:
        return 0, state is not None and move_window(state, databases.database_now())


@contextmanager
def _in_windows(state: RollupState, rows: Condition) -> Iterator[None]:
    """Add these rows to the windows that contain them, and update the windows' positions."""
    held = current_windows(state)
    yield
    with connection.cursor() as cursor:
        for window in held:
            statement = _WINDOW_STATEMENTS[window.seconds].format(rows=f"{rows[0]} AND created_at < %s")
            cursor.execute(statement, [*rows[1], window.until, window.since])
    for window in held:
        window.counted_to, window.late_counted_to = state.counted_to, state.late_counted_to
    RollupWindow.objects.bulk_update(held, ["counted_to", "late_counted_to"])


def _add(state: RollupState, rows: Condition) -> int:
    """Add these rows to the roll-ups of all grains, and return how many there were."""
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
    # `grouping` is 1 for a column outside the combination.
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
