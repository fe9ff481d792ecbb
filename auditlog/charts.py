"""Charts of the log: bars over time, and latencies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from math import log10
from typing import Any, NamedTuple

from django.db import connection
from django.db.models import QuerySet
from django.utils import timezone

from auditlog.models import ENDINGS, Call
from auditlog.rollups.reading import Bars, Where, book
from auditlog.rollups.schema import DIMENSIONS, MINUTES, finest
from auditlog.search import SEARCH_LIMIT, Search

# A bar chart of calls over time by outcome; each bar links to its time span.

BARS = 31  # At most: the last one starts before the end of the search.
WIDTHS = [timedelta(minutes=n) for n in (1, 2, 3, 5, 10, 15, 20, 30, 60, 120, 180, 240, 360, 480, 720, 1440)]
FEWEST = 6  # The fewest bars that show a trend.
MARKS = 5  # Times below the bars, besides the end.
SLICES = 4  # Per bar; the first rows of each slice are counted and extrapolated.
SLICE_ROWS = 100

HEIGHT, WIDTH, BODY = 64.0, 24, 18
MINUTE = timedelta(minutes=1)

WHEN = " ".join(
    f"WHEN r.outcome IN ({', '.join(f"'{outcome}'" for outcome in outcomes)}) THEN '{kind}'"
    for kind, outcomes in ENDINGS.items()
)
KIND = f"CASE {WHEN} END"

COUNT = """
SELECT floor(extract(epoch FROM r.created_at - %s) / %s)::int, {kind}, count(*) FROM ({rows}) r GROUP BY 1, 2
"""
SAMPLE = """
SELECT (s.n - 1) / {slices}, x.kind, x.number * CASE WHEN x.total < {most} THEN 1.0
    ELSE extract(epoch FROM s.until - s.since) / greatest(extract(epoch FROM x.last - s.since), 0.001) END
FROM unnest(%s::timestamptz[], %s::timestamptz[]) WITH ORDINALITY s (since, until, n)
CROSS JOIN LATERAL (
    SELECT {kind} AS kind, count(*) AS number, sum(count(*)) OVER () AS total, max(max(r.created_at)) OVER () AS last
    FROM ({rows} AND "auditlog_call"."created_at" >= s.since AND "auditlog_call"."created_at" < s.until
        ORDER BY "auditlog_call"."created_at" LIMIT {most}) r
    GROUP BY 1
) x
"""


class BarPath(NamedTuple):
    """All bars of one outcome, as one SVG path."""

    kind: str
    path: str


@dataclass(frozen=True)
class Bar:
    """One bar: the calls of a period, by outcome."""

    number: int
    since: datetime
    until: datetime
    counts: Mapping[str, int]
    highest: int

    @property
    def x(self) -> int:
        return self.number * WIDTH

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def drawn(self) -> Iterator[BarPath]:
        """Yield the bar's parts from the bottom; any non-zero part is visible."""
        y = HEIGHT
        for kind in ENDINGS:
            if count := self.counts.get(kind, 0):
                height = min(max(round(HEIGHT * count / self.highest, 1), 1.5), y)
                yield BarPath(kind, f"M{self.x} {y:g}v-{height:g}h{BODY}v{height:g}z")
                y = round(y - height, 1)

    @property
    def query(self) -> str:
        """Return the bar's time range as a query string."""
        return f"from={stamp(self.since)}&to={stamp(self.until)}"


@dataclass(frozen=True)
class Histogram:
    """All bars, of length `each` except perhaps the last; estimates if `sampled`."""

    bars: list[Bar]
    sampled: bool
    each: timedelta
    until: datetime

    @property
    def told(self) -> str:
        """Return the Django date format of the bars' start times."""
        if self.each * len(self.bars) <= timedelta(days=1):
            return "H:i"
        return "M j" if self.each % timedelta(days=1) == timedelta(0) else "M j, H:i"

    @property
    def drawn(self) -> list[BarPath]:
        """Return one path per outcome."""
        parts = [part for bar in self.bars for part in bar.drawn()]
        paths = [BarPath(kind, "".join(part.path for part in parts if part.kind == kind)) for kind in ENDINGS]
        return [path for path in paths if path.path]

    @property
    def totals(self) -> dict[str, int]:
        """Return the total number of calls per outcome."""
        return {kind: sum(bar.counts.get(kind, 0) for bar in self.bars) for kind in ENDINGS}

    @property
    def total_labels(self) -> dict[str, str]:
        """Return the totals as text; estimates are rounded."""
        return {kind: f"~{rounded(n):,}" if self.sampled and n else f"{n:,}" for kind, n in self.totals.items()}

    @property
    def width(self) -> int:
        """Return the width of the drawing."""
        return len(self.bars) * WIDTH

    @property
    def since(self) -> datetime:
        """Return the start of the time axis."""
        return self.bars[0].since

    @property
    def seconds(self) -> int:
        """Return the length of the time axis in seconds."""
        return round(self.each.total_seconds() * len(self.bars))

    @property
    def marks(self) -> list[datetime]:
        """Return evenly spaced times for the axis, and the end; none is in the future."""
        shown = self.each * len(self.bars) / MARKS
        return [*(self.bars[0].since + shown * n for n in range(MARKS)), self.until]


def rounded(number: int) -> int:
    """Round an estimate to its first two digits."""
    return round(number, 2 - len(str(number)))


def stamp(at: datetime) -> str:
    """Format a time for a query string, with seconds if it has any."""
    at = at.astimezone(UTC)
    return f"{at:%Y-%m-%dT%H:%M:%SZ}" if at.second else f"{at:%Y-%m-%dT%H:%MZ}"


def histogram(search: Search, *, sampled: bool) -> Histogram:
    """Return the bars of a search. With `sampled`, the cost does not depend on the number of calls.

    The counts are exact for small numbers and if the roll-ups can answer.
    """
    until = min(search.until or timezone.now(), timezone.now())
    since = search.since or Call.objects.oldest() or until - timedelta(hours=1)
    where = None if search.is_small else search.equalities()
    if where is not None and (exact := _of_rollups(where, search, since, until)):
        return exact
    if not search.is_direct:
        # Without an index, the chart reaches as far back as a page searches.
        rows, floor = search.recent(SEARCH_LIMIT)
        since, sampled = floor or since, False
    else:
        rows = search.rows()
    width, end = max(-((since - until) // BARS), timedelta(seconds=1)), until
    if until - since >= BARS * MINUTE:
        # Bars start at whole minutes, for readability. The current minute belongs to the last bar.
        since, end = since.replace(second=0, microsecond=0), until.replace(second=0, microsecond=0)
        width = bar_width(end - since)
    # The link of the last bar includes calls that arrive in this minute.
    to = until if search.until and until == search.until else until.replace(second=0, microsecond=0) + MINUTE
    edges = [*(since + n * width for n in range(max(-((since - end) // width), 1))), to]
    parts = search.parts() if sampled else [rows]
    counted: dict[int, Counter[str]] = {}
    for part in parts:
        for number, kind, count in _sampled(part, edges) if sampled else _counted(part, since, width):
            # Rows that arrived in the meantime belong to the last bar.
            counted.setdefault(min(max(number, 0), len(edges) - 2), Counter())[kind] += round(count)
    highest = max((sum(kinds.values()) for kinds in counted.values()), default=1)
    bars = [Bar(n, *span, counted.get(n, {}), highest) for n, span in enumerate(pairwise(edges))]
    return Histogram(bars, sampled, width, until)


def bar_width(length: timedelta, least: timedelta = MINUTE) -> timedelta:
    """Return the shortest round width, of at least `least`, of which BARS cover `length`."""
    day = WIDTHS[-1]
    widths = (width for width in WIDTHS if width >= least and width * BARS >= length)
    return next(widths, -(-length // (BARS * day)) * day)


def _of_rollups(where: Where, search: Search, since: datetime, until: datetime) -> Histogram | None:
    """Return the histogram from the roll-ups, with bars of whole hours or days where only these are kept."""
    grain = finest({*where} & {*DIMENSIONS}, timezone.now() - since)
    begin, end = grain.begin(since), grain.begin(until)
    width = bar_width(end - begin, grain.length)
    to = until if search.until and until == search.until else MINUTES.begin(until) + MINUTE
    if to - begin < BARS * MINUTE:
        return None  # A span this short may be counted row by row.
    edges = [since if grain is not MINUTES else begin, *(begin + n * width for n in range(1, -((begin - to) // width)))]
    if len(edges) < FEWEST:
        return None  # Only days are kept of calls this old.
    with book() as opened:
        found = opened.read(where, since, to, bars=Bars(begin, width), timed=False)
    if found is None:
        return None
    counted = {number: numbers.endings for (number,), numbers in found.items()}
    highest = max((sum(kinds.values()) for kinds in counted.values()), default=1)
    bars = [Bar(n, *span, counted.get(n, {}), highest) for n, span in enumerate(pairwise([*edges, to]))]
    return Histogram(bars, False, width, until)


type Counts = list[tuple[int, str, float]]


def _counted(rows: QuerySet[Call], since: datetime, width: timedelta) -> Counts:
    inner, parameters = _sql(rows, since)
    return _asked(COUNT.format(rows=inner, kind=KIND), [since, width.total_seconds(), *parameters])


def _sampled(rows: QuerySet[Call], edges: Sequence[datetime]) -> Counts:
    inner, parameters = _sql(rows, edges[0])
    statement = SAMPLE.format(rows=inner, kind=KIND, slices=SLICES, most=SLICE_ROWS)
    cuts = [since + (until - since) * n / SLICES for since, until in pairwise(edges) for n in range(SLICES)]
    return _asked(statement, [cuts, [*cuts[1:], edges[-1]], *parameters])


def _sql(rows: QuerySet[Call], since: datetime) -> tuple[str, tuple[Any, ...]]:
    return rows.filter(created_at__gte=since).order_by().values("created_at", "outcome").query.sql_with_params()


def _asked(statement: str, parameters: list[Any]) -> Counts:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return list(cursor.fetchall())


# Latency (p50 and p95) of the calls in each bar of the histogram.
#
# Only `latencies` queries it.

PERCENTILES = """
SELECT (s.n - 1) / %s, percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY r.duration_ms)
FROM unnest(%s::timestamptz[], %s::timestamptz[]) WITH ORDINALITY s (since, until, n) CROSS JOIN LATERAL ({rows}) r
GROUP BY 1
"""
WITHIN = """(SELECT p.duration_ms FROM ({rows} AND "auditlog_call"."created_at" >= s.since
    AND "auditlog_call"."created_at" < s.until ORDER BY "auditlog_call"."created_at" LIMIT %s) p)"""


@dataclass(frozen=True)
class Latency:
    """A bar of the histogram with its p50 and p95 in milliseconds; None without calls."""

    bar: Bar
    p50: float | None
    p95: float | None


@dataclass(frozen=True)
class Latencies:
    """All bars, drawn on a logarithmic scale over the axis of the histogram."""

    histogram: Histogram
    bars: Sequence[Latency]

    @property
    def longest(self) -> float:
        """Return the highest p95 in milliseconds."""
        return max((one.p95 for one in self.bars if one.p95 is not None), default=0.0)

    @property
    def median(self) -> str:
        """Return the line of the medians, as an SVG path."""
        return self._line([one.p50 for one in self.bars])

    @property
    def high(self) -> str:
        """Return the line of the 95th percentiles, as an SVG path."""
        return self._line([one.p95 for one in self.bars])

    def _line(self, values: Sequence[float | None]) -> str:
        top = log10(1 + max(self.longest, 1))
        steps = [
            f"M{number * WIDTH} {HEIGHT - (HEIGHT - 2) * log10(1 + value) / top:.1f}h{WIDTH}"
            for number, value in enumerate(values)
            if value is not None
        ]
        return "".join(steps)


def latencies(search: Search, histogram: Histogram, *, sampled: bool) -> Latencies:
    """Return the latencies of a histogram's bars. With `sampled`, the cost does not depend on the number of calls."""
    if search.is_direct:
        parts = search.parts()
    else:
        parts, sampled = [search.recent(SEARCH_LIMIT)[0]], False
    slices = SLICES if sampled else 1
    cuts = [bar.since + (bar.until - bar.since) * n / slices for bar in histogram.bars for n in range(slices)]
    statements, parameters = [], []
    for part in parts:
        rows = part.filter(created_at__gte=cuts[0]).order_by().values("created_at", "duration_ms")
        inner, values = rows.query.sql_with_params()
        statements.append(WITHIN.format(rows=inner))
        parameters += [*values, SLICE_ROWS if sampled else None]
    with connection.cursor() as cursor:
        statement = PERCENTILES.format(rows=" UNION ALL ".join(statements))
        cursor.execute(statement, [slices, cuts, [*cuts[1:], histogram.bars[-1].until], *parameters])
        found = dict(cursor.fetchall())
    return Latencies(histogram, [Latency(bar, *found.get(bar.number, (None, None))) for bar in histogram.bars])
