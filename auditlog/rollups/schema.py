"""What is counted apart, over which stretches of time, and how durations are kept."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from math import ceil, log

# What calls are told apart by, besides outcome and reason, which every roll-up has. Named as the columns of the log.
DIMENSIONS = ("host_id", "user_id", "gateway_id", "server_id", "method", "feature_name")
ENDS = ("outcome", "deny_reason")

# Durations are counted in classes, each a tenth longer than the one before: a percentile is right to within a tenth,
# half of that on average. The first holds all below 1.1 ms, the last all from three minutes on.
CLASSES = 128
RATIO = 1.1
CLASS_COLUMNS = tuple(f"ms_{n}" for n in range(CLASSES))
CLASS_OF = f"least(floor(ln(greatest(duration_ms, 1)) / {log(RATIO)!r}), {CLASSES - 1})::int"

_TOOL = ("gateway_id", "server_id", "method", "feature_name")
# Smallest first: a question is answered by the first that knows all it asks for.
SINGLE: tuple[tuple[str, ...], ...] = (
    (),
    ("gateway_id",),
    ("method",),
    ("server_id",),
    ("host_id",),
    ("user_id",),
    _TOOL,
)
PAIRS: tuple[tuple[str, ...], ...] = (
    ("user_id", "gateway_id"),
    ("user_id", "server_id"),
    ("host_id", "user_id"),
    ("host_id", *_TOOL),
    ("user_id", *_TOOL),
)


def cube_number(dimensions: Iterable[str]) -> int:
    """The number of a combination of dimensions: a bit for each."""
    return sum(1 << DIMENSIONS.index(one) for one in dimensions)


@dataclass(frozen=True)
class Grain:
    """A length of time that is counted as one: which combinations are, and for how long they are kept.

    `kept` None: as long as the log keeps the calls themselves.
    """

    seconds: int
    cubes: Sequence[tuple[str, ...]]
    kept: timedelta | None

    @property
    def length(self) -> timedelta:
        return timedelta(seconds=self.seconds)

    def begin(self, at: datetime) -> datetime:
        """The beginning of the stretch that holds this moment."""
        return datetime.fromtimestamp(at.timestamp() // self.seconds * self.seconds, UTC)

    def next(self, at: datetime) -> datetime:
        """The first beginning that is not before this moment."""
        return datetime.fromtimestamp(ceil(at.timestamp() / self.seconds) * self.seconds, UTC)

    def cube(self, dimensions: set[str]) -> int | None:
        """The smallest combination that knows all these."""
        return next((cube_number(one) for one in self.cubes if dimensions <= set(one)), None)


MINUTES = Grain(60, SINGLE, timedelta(days=2))
HOURS = Grain(3600, SINGLE, timedelta(days=35))
DAYS = Grain(86400, (*SINGLE, *PAIRS), None)
GRAINS = (DAYS, HOURS, MINUTES)

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
TOOL, NAME = cube_number(_TOOL), cube_number(("feature_name",))
_OF_WINDOWS = (*SINGLE[:-1], ("feature_name",), _TOOL)
# All that the log holds: so long ago there was none.
EVER = Grain(int(timedelta(days=24_000).total_seconds()), _OF_WINDOWS, None)
# The ranges of pages less two hours: a window ends with a whole hour, and is moved some time after that. Its roll-ups
# say BEGINNING; of when they are, RollupWindow says.
WINDOWS = (
    *(
        Grain(int(timedelta(hours=hours).total_seconds()), _OF_WINDOWS, None)
        for hours in (24 - 2, 7 * 24 - 2, 30 * 24 - 2)
    ),
    EVER,
)
MONTH = WINDOWS[2]
# What lists of all tools ask for: their calls of a month are kept once more, in short rows.
OF_TOOLS = ("gateway_id", "server_id", "feature_name")
TOOL_CALLS = {"method": ["tools/call"]}
IS_TOOL = "method = 'tools/call' AND gateway_id IS NOT NULL AND server_id IS NOT NULL"


def quantile(classes: Sequence[int], part: float) -> float | None:
    """Within how many milliseconds this part of the calls ended; None of no calls.

    `classes` are the numbers of calls by class of duration. Right to within a tenth.
    """
    up_to = [*accumulate(classes)]
    if not up_to or not up_to[-1]:
        return None
    wanted = part * up_to[-1]
    n = bisect_left(up_to, wanted)
    return float(RATIO ** (n + (wanted - up_to[n] + classes[n]) / classes[n]))
