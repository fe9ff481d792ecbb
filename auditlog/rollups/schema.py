"""The schema of the roll-ups (dimensions, periods and duration classes), and the time ranges that pages offer."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from math import ceil, log
from typing import NamedTuple

# Dimensions that only some roll-ups have. Every roll-up also has outcome and reason (ENDS). The names are those of the
# log's columns.
DIMENSIONS = ("host_id", "user_id", "gateway_id", "server_id", "method", "feature_name")
ENDS = ("outcome", "deny_reason")

# Durations are counted in classes, each a tenth longer than the previous class, so that a percentile is within ±10 %,
# on average ±5 %. The first class contains all durations below 1.1 ms, the last all of three minutes or more.
CLASSES = 128
RATIO = 1.1
CLASS_COLUMNS = tuple(f"ms_{n}" for n in range(CLASSES))
CLASS_OF = f"least(floor(ln(greatest(duration_ms, 1)) / {log(RATIO)!r}), {CLASSES - 1})::int"

_TOOL = ("gateway_id", "server_id", "method", "feature_name")
# Combinations in FEW need few rows in any period. Combinations in MANY need nearly one row per call if there are
# thousands of people.
FEW: tuple[tuple[str, ...], ...] = ((), ("gateway_id",), ("method",), ("server_id",))
MANY: tuple[tuple[str, ...], ...] = (("host_id",), ("user_id",), _TOOL)


def cube_number(dimensions: Iterable[str]) -> int:
    """Return the bit mask of a combination of dimensions."""
    return sum(1 << DIMENSIONS.index(one) for one in dimensions)


@dataclass(frozen=True)
class Grain:
    """A period length, and the combinations of dimensions counted for it."""

    seconds: int
    cubes: Sequence[tuple[str, ...]]  # Smallest first.
    kept: timedelta | None  # The retention; None: as long as the calls.
    floor: str  # The RollupState field with the time before which roll-ups are neither counted nor retained.

    @property
    def length(self) -> timedelta:
        return timedelta(seconds=self.seconds)

    def begin(self, at: datetime) -> datetime:
        """Return the start of the period that contains this time."""
        return datetime.fromtimestamp(at.timestamp() // self.seconds * self.seconds, UTC)

    def next(self, at: datetime) -> datetime:
        """Return the first start of a period at or after this time."""
        return datetime.fromtimestamp(ceil(at.timestamp() / self.seconds) * self.seconds, UTC)

    def cube(self, dimensions: set[str]) -> int | None:
        """Return the bit mask of the smallest combination that has all these dimensions, or None if there is none."""
        return next((cube_number(one) for one in self.cubes if dimensions <= set(one)), None)


MINUTES = Grain(60, (*FEW, *MANY), timedelta(hours=4), "minutes_from")
RECENT_HOURS = Grain(3600, MANY, timedelta(days=2), "recent_hours_from")
HOURS = Grain(3600, FEW, timedelta(days=35), "hours_from")
DAYS = Grain(86400, (*FEW, *MANY), None, "days_from")
WEEKS = Grain(604800, MANY, None, "days_from")  # With weeks, a month is the sum of four rows, not of thirty.
GRAINS = (WEEKS, DAYS, HOURS, RECENT_HOURS, MINUTES)


def finest(dimensions: set[str], length: timedelta) -> Grain:
    """Return the grain with the shortest periods, for a chart of the last `length` with these dimensions.

    The grain must be retained for `length`, and its roll-ups must have counts by these dimensions. If no grain has
    such counts, return the shortest grain that is retained for `length`. That grain only sets the length of the bars,
    and the calls are counted in the log.
    """
    known = [grain for grain in reversed(GRAINS) if grain.kept is None or length <= grain.kept]
    return next((grain for grain in known if grain.cube(dimensions) is not None), known[0])


BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
# The dimensions used by lists of all tools.
OF_TOOLS = ("gateway_id", "server_id", "feature_name")
TOOL_CALLS = {"method": ["tools/call"]}


class TimeRange(NamedTuple):
    """A time range that pages offer: a short label, a label in words, and the length."""

    label: str
    words: str
    length: timedelta


# Time ranges by their names in URLs.
TIME_RANGES = {
    "5m": TimeRange("5 min", "Last 5 minutes", timedelta(minutes=5)),
    "15m": TimeRange("15 min", "Last 15 minutes", timedelta(minutes=15)),
    "1h": TimeRange("1 h", "Last hour", timedelta(hours=1)),
    "24h": TimeRange("24 h", "Last 24 hours", timedelta(hours=24)),
    "7d": TimeRange("7 d", "Last 7 days", timedelta(days=7)),
    "30d": TimeRange("30 d", "Last 30 days", timedelta(days=30)),
}


def range_start(now: datetime, length: timedelta) -> datetime:
    """Return the start of a range up to `now`, aligned to the roll-ups.

    A range of one day starts at a whole hour. A longer range starts at a whole day (UTC). A shorter range is not
    aligned: it starts exactly `length` before `now`.
    """
    if length < timedelta(days=1):
        return now - length
    return (DAYS if length > timedelta(days=1) else HOURS).begin(now) - length


def quantile(classes: Sequence[int], part: float) -> float | None:
    """Return the quantile `part` (0 to 1) of the durations of calls in ms, ±10 %; None if there are no calls.

    `classes` has the number of calls in each duration class.
    """
    up_to = [*accumulate(classes)]
    if not up_to or not up_to[-1]:
        return None
    wanted = part * up_to[-1]
    n = bisect_left(up_to, wanted)
    return float(RATIO ** (n + (wanted - up_to[n] + classes[n]) / classes[n]))
