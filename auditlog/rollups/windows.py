"""Roll-ups of whole time ranges, so that a page need not add up many hours and days on each request.

The window of a day moves by whole hours, the others by whole days: new roll-ups are added, old ones subtracted, and
late rows are added as in the source roll-ups. Each step is one transaction that locks the row of RollupState, so a
window always equals the roll-ups of its period. Where that is not possible, the window is rebuilt.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.db import connection
from django.db.models import Sum

from auditlog.models import Rollup, RollupState, RollupWindow
from auditlog.rollups.schema import (
    BEGINNING,
    CLASS_COLUMNS,
    DAY,
    DAYS,
    DIMENSIONS,
    ENDS,
    EVER,
    HOURS,
    NAME,
    TOOL,
    WINDOWS,
    Grain,
    cube_number,
)

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
