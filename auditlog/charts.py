"""Charts of calls over time: the histogram and latencies of the Logs page, and the plots of other pages."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from itertools import pairwise
from math import log10
from typing import Any, NamedTuple, Self
from urllib.parse import urlencode

from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.http import require_GET

from auditlog import replica
from auditlog.filters import stamp
from auditlog.groups import BY, CallGroup, cached_answer, top
from auditlog.models import ENDINGS, Call
from auditlog.rollups.reading import Bars, Book, Numbers, Where, book
from auditlog.rollups.schema import DAYS, DIMENSIONS, HOURS, MINUTES, TIME_RANGES, Grain, TimeRange, finest, range_start
from auditlog.search import Search
from auditlog.templatetags.calls import ms
from capabilities import Capability, requires
from ui.pages import AppRequest, show, wants_fragment

# The histogram above a list: calls by outcome, and their latencies; each bar links to its time span.

BARS = 31  # Maximum number of bars; with roll-ups, one more is possible, for an incomplete last period.
WIDTHS = [timedelta(minutes=n) for n in (1, 2, 3, 5, 10, 15, 20, 30, 60, 120, 180, 240, 360, 480, 720, 1440)]
FEWEST = 6  # The least number of bars that shows a trend.
MARKS = 5  # Number of labels on the time axis, besides the label of the end.
HEIGHT, WIDTH, BODY = 64.0, 24, 18
MINUTE = timedelta(minutes=1)

OF_ROWS = f"""
SELECT greatest(least({{bar}}, %s), 0) AS bar,
    {", ".join(f"count(*) FILTER (WHERE outcome IN ({', '.join(f"'{one}'" for one in each)}))" for each in ENDINGS.values())},
    percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY duration_ms)
FROM ({{rows}}) r GROUP BY bar
"""  # noqa: E501, S608  (constants)


class BarPath(NamedTuple):
    """The SVG path of one kind of outcome, in one bar or in all bars."""

    kind: str
    path: str


@dataclass(frozen=True)
class Bar:
    """One bar: the calls of a period by outcome, and their p50 and p95 in milliseconds (None without calls)."""

    number: int
    since: datetime
    until: datetime
    counts: Mapping[str, int]
    p50: float | None = None
    p95: float | None = None

    @property
    def x(self) -> int:
        return self.number * WIDTH

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def query(self) -> str:
        return f"from={stamp(self.since)}&to={stamp(self.until)}"


@dataclass(frozen=True)
class Histogram:
    """Bars for consecutive periods. All periods but the first and the last have the length `each`.

    The first period may be shorter than `each`. The last period may be shorter or longer than `each`.
    """

    bars: list[Bar]
    each: timedelta
    until: datetime
    is_partial: bool = False  # Only the newest calls are counted.

    @property
    def label_format(self) -> str:
        """Return the Django date format of the bars' start times."""
        if self.each * len(self.bars) < timedelta(days=1):
            return "H:i" if self.each >= timedelta(minutes=1) else "H:i:s"
        return "M j" if self.each % timedelta(days=1) == timedelta(0) else "M j, H:i"

    @property
    def paths(self) -> list[BarPath]:
        parts = list(self._parts())
        paths = [BarPath(kind, "".join(part.path for part in parts if part.kind == kind)) for kind in ENDINGS]
        return [path for path in paths if path.path]

    def _parts(self) -> Iterator[BarPath]:
        """Yield the parts of each bar, one per kind of outcome, from the bottom. Each part is high enough to see."""
        highest = max((bar.total for bar in self.bars), default=0) or 1
        for bar in self.bars:
            y = HEIGHT
            for kind in ENDINGS:
                if count := bar.counts.get(kind, 0):
                    height = min(max(round(HEIGHT * count / highest, 1), 1.5), y)
                    yield BarPath(kind, f"M{bar.x} {y:g}v-{height:g}h{BODY}v{height:g}z")
                    y = round(y - height, 1)

    @property
    def totals(self) -> dict[str, int]:
        return {kind: sum(bar.counts.get(kind, 0) for bar in self.bars) for kind in ENDINGS}

    @property
    def total_labels(self) -> dict[str, str]:
        """Return the totals as text, with a `+` if only the newest calls are counted."""
        return {kind: f"{n:,}{'+' if self.is_partial and n else ''}" for kind, n in self.totals.items()}

    @property
    def width(self) -> int:
        return len(self.bars) * WIDTH

    @property
    def since(self) -> datetime:
        return self.bars[0].since

    @property
    def seconds(self) -> int:
        return round(self.each.total_seconds() * len(self.bars))

    @property
    def marks(self) -> list[datetime]:
        """Return evenly spaced times for the axis, and the end time. No time is in the future."""
        shown = self.each * len(self.bars) / MARKS
        return [*(self.since + shown * n for n in range(MARKS)), self.until]

    @property
    def mark_format(self) -> str:
        """Return the Django date format of the marks: with seconds if two marks may be in the same minute."""
        return "H:i:s" if self.each * len(self.bars) < timedelta(minutes=MARKS) else "H:i"

    @property
    def longest(self) -> float:
        """Return the highest p95 in milliseconds."""
        return max((bar.p95 for bar in self.bars if bar.p95 is not None), default=0.0)

    @property
    def median(self) -> str:
        """Return the line of the medians on a logarithmic scale, as an SVG path."""
        return self._line([bar.p50 for bar in self.bars])

    @property
    def high(self) -> str:
        """Return the line of the 95th percentiles, as an SVG path."""
        return self._line([bar.p95 for bar in self.bars])

    def _line(self, values: Sequence[float | None]) -> str:
        top = log10(1 + max(self.longest, 1))
        steps = [
            f"M{number * WIDTH} {HEIGHT - (HEIGHT - 2) * log10(1 + value) / top:.1f}h{WIDTH}"
            for number, value in enumerate(values)
            if value is not None
        ]
        return "".join(steps)


def histogram(search: Search, *, timed: bool = False) -> Histogram:
    """Return the histogram of a search.

    If the calls are few enough, each call is counted. Otherwise, the counts are read from the roll-ups. If the roll-ups
    cannot answer, only the newest calls are counted. A histogram from the roll-ups has latencies only if `timed` is
    True. Other histograms always have them.
    """
    until = min(search.until or timezone.now(), timezone.now())
    since = search.since or Call.objects.oldest() or until - timedelta(hours=1)
    if search.floor is not None:
        where = search.equalities()
        if where is not None and (exact := _of_rollups(where, search, since, until, timed=timed)):
            return exact
        since = search.floor
    width, end = max(-((since - until) // BARS), timedelta(seconds=1)), until
    if until - since >= BARS * MINUTE:
        # Bars start at whole minutes, for readability. The current minute belongs to the last bar.
        since, end = since.replace(second=0, microsecond=0), until.replace(second=0, microsecond=0)
        width = bar_width(end - since)
    edges = [*(since + n * width for n in range(max(-((since - end) // width), 1))), _end_of_last(search, until)]
    found = _of_rows(search, Bars(since, width), len(edges) - 2)
    bars = [Bar(n, *span, *found.get(n, ({},))) for n, span in enumerate(pairwise(edges))]
    return Histogram(bars, width, until, is_partial=search.floor is not None)


def bar_width(length: timedelta, least: timedelta = MINUTE) -> timedelta:
    """Return the duration of one bar, so that at most BARS bars cover the duration `length`.

    The result is the shortest suitable duration in WIDTHS that is not shorter than `least`. If even the longest
    duration in WIDTHS is too short, the result is a whole number of days.
    """
    day = WIDTHS[-1]
    widths = (width for width in WIDTHS if width >= least and width * BARS >= length)
    return next(widths, -(-length // (BARS * day)) * day)


def _end_of_last(search: Search, until: datetime) -> datetime:
    """Return the end of the last bar: `until` if the search ends there, otherwise the end of the minute of `until`."""
    # The whole minute lets the bar's link include new calls.
    return until if search.until and until == search.until else MINUTES.begin(until) + MINUTE


def _of_rows(search: Search, bars: Bars, last: int) -> dict[int, tuple[Any, ...]]:
    """Return the counts and percentiles of the newest calls, by bar. The bar `last` includes all later calls."""
    rows = search.newest().order_by().values("created_at", "outcome", "duration_ms")
    (inner, parameters), (bar, span) = rows.query.sql_with_params(), bars.number_of("r.created_at")
    with connection.cursor() as cursor:
        cursor.execute(OF_ROWS.format(bar=bar, rows=inner), [*span, last, *parameters])
        return {n: (dict(zip(ENDINGS, counts, strict=True)), *times) for n, *counts, times in cursor.fetchall()}


def _of_rollups(where: Where, search: Search, since: datetime, until: datetime, *, timed: bool) -> Histogram | None:
    """Return the histogram from the roll-ups.

    Return None if the roll-ups cannot answer, if the roll-ups give too few bars, or if the period is short.
    """
    grain = finest({*where} & {*DIMENSIONS}, timezone.now() - since)
    begin, end = grain.begin(since), grain.begin(until)
    width, to = bar_width(end - begin, grain.length), _end_of_last(search, until)
    if to - begin < BARS * MINUTE:
        return None  # Calls of such a short period can be counted row by row.
    # With roll-ups by hour or day, all bars but the first begin at whole hours or days.
    edges = [since if grain is not MINUTES else begin, *(begin + n * width for n in range(1, -((begin - to) // width)))]
    if len(edges) < FEWEST:
        return None  # Roll-ups of such old calls exist only by day, which gives too few bars.
    with book() as opened:
        found = opened.read(where, since, to, bars=Bars(begin, width), timed=timed)
    if found is None:
        return None
    numbers = {n: each for (n,), each in found.items()}
    spans = [(n, span, numbers.get(n, Numbers())) for n, span in enumerate(pairwise([*edges, to]))]
    bars = [Bar(n, *span, one.endings, one.p50, one.p95) for n, span, one in spans]
    return Histogram(bars, width, until)


# The plots of a page (calls, latency, errors, denials) over a time range, each linked to its calls.

PLOT_WIDTH, PLOT_HEIGHT, PLOT_TOP = 240.0, 40.0, 3.0
LISTED = 5


class PlotRange(NamedTuple):
    """A time range up to now, shown as bars. Each bar covers `number` grains (minutes, hours or days)."""

    time: TimeRange
    grain: Grain
    number: int

    @property
    def label(self) -> str:
        return self.time.label

    @property
    def words(self) -> str:
        return self.time.words


RANGES = {
    "1h": PlotRange(TIME_RANGES["1h"], MINUTES, 2),
    "24h": PlotRange(TIME_RANGES["24h"], HOURS, 1),
    "7d": PlotRange(TIME_RANGES["7d"], HOURS, 6),
    "30d": PlotRange(TIME_RANGES["30d"], DAYS, 1),
}
DEFAULT = "24h"


def chosen_range(asked: str | None, among: Collection[str] = RANGES, default: str = DEFAULT) -> str:
    """Return the range named in the URL, or the default if the URL names no range or an unknown one."""
    return asked if asked is not None and asked in among else default


class PlotLine(NamedTuple):
    """A line of a plot: the points of an SVG polyline, and the path of the area under it."""

    series: str
    points: str
    area: str


@dataclass(frozen=True)
class Plot:
    """One plot: a number, a comparison with the previous period, and the lines."""

    key: str
    label: str
    value: str
    note: str
    is_bad: bool
    link: str
    lines: Sequence[PlotLine]
    summary: str


class PlotBar(NamedTuple):
    """The numbers of one period. They give each line of the plots a point, and the table under the plots a row."""

    at: datetime
    numbers: Numbers
    link: str


class CallPlots:
    """The calls of one object, or all calls, over a range.

    Falsy if there is nothing to plot: the roll-ups cannot answer, or there are no calls in the range and in the equally
    long period before it.
    """

    def __init__(
        self,
        where: Where,  # Limits the calls by columns of the log.
        filters: dict[str, str],  # The equivalent filters of the Logs page.
        asked: str | None,
        *,
        tops: Sequence[str] = (),  # The fields for which the groups with the most calls are listed.
        named: Mapping[str, str] | None = None,  # Labels by the key of the plot; the range is added to them.
    ) -> None:
        self.chosen = chosen_range(asked)
        self.range = RANGES[self.chosen]
        self._filters, self._named = filters, named or {}
        until, length = timezone.now(), self.range.time.length
        since = range_start(until, length)
        shortest = finest({*where} & {*DIMENSIONS}, until - since)
        coarse = shortest.seconds > self.range.grain.seconds
        grain, number = (shortest, 1) if coarse else (self.range.grain, self.range.number)
        self._bars = Bars(grain.begin(since), grain.length * number)
        self._until = until
        with book() as opened:
            found = opened.read(where, since, until, bars=self._bars)
            before = opened.total(where, since - length, since)
            read = (Top.read(opened, where, filters, by, self.chosen, since, until) for by in tops if found)
            self.tops = [one for one in read if one and one.rows]
        self._found = None if found is None else {number: numbers for (number,), numbers in found.items()}
        self._before = before if before and before.calls else None
        self._longer = (until - since) / length

    @classmethod
    def of(cls, request: HttpRequest, where: Where, filters: dict[str, str], **more: Any) -> Self:
        """Read the plots for a page. The page's URL contains the time range of the plots."""
        return replica.read_from_replica(request, lambda: cls(where, filters, request.GET.get("range"), **more))

    def __bool__(self) -> bool:
        return self._found is not None and bool(self.total.calls or self._before)

    @property
    def ranges(self) -> list[tuple[str, PlotRange]]:
        return list(RANGES.items())

    @cached_property
    def total(self) -> Numbers:
        total = Numbers()
        for numbers in (self._found or {}).values():
            total.add(numbers)
        return total

    @cached_property
    def moments(self) -> list[PlotBar]:
        number = -((self._bars.since - self._until) // self._bars.width)
        return [self._moment(n) for n in range(number)]

    def _moment(self, number: int) -> PlotBar:
        at = self._bars.since + number * self._bars.width
        between = {"from": stamp(at), "to": stamp(at + self._bars.width)}
        return PlotBar(at, (self._found or {}).get(number, Numbers()), urlencode(self._filters | between))

    @property
    def plots(self) -> list[Plot]:
        """Return the four plots: calls, latency, errors and refusals."""
        total, before = self.total, self._before
        calls = [each.numbers.calls for each in self.moments]
        p50, p95 = ([each.numbers.quantile(part) or 0.0 for each in self.moments] for part in (0.5, 0.95))
        errors = [each.numbers.error_rate * 100 for each in self.moments]
        denied = [each.numbers.denied for each in self.moments]
        was = before.p95 if before else None
        return [
            self._plot(
                "plots.calls",
                "Calls",
                f"{total.calls:,}",
                _change(total.calls, self._longer * before.calls if before else 0),
                {"1": calls},
                f"Calls: {min(calls):,} to {max(calls):,} per bar",
            ),
            self._plot(
                "plots.took",
                "p95 latency",
                ms(total.p95) or "none",
                f"was {ms(was)}" if was else "",
                {"1": p50, "2": p95},
                f"p95 latency: {ms(total.p95) or 'none'}; half of the calls within {ms(total.p50)}",
                is_bad=was is not None and (total.p95 or 0) > 1.5 * was,
            ),
            self._plot(
                "plots.errors",
                "Errors",
                f"{total.errors:,}",
                f"{100 * total.error_rate:.1f} %" if total.errors else "",
                {"bad": errors},
                f"Errors: up to {max(errors):.1f} % of the calls",
                is_bad=total.error_rate > 0.02,
                q="error",
            ),
            self._plot(
                "plots.denied",
                "Refused",
                f"{total.denied:,}",
                _change(total.denied, self._longer * before.denied if before else 0),
                {"bad": denied},
                f"Refused calls: {min(denied):,} to {max(denied):,} per bar",
                q="refused",
            ),
        ]

    def _plot(
        self,
        key: str,
        label: str,
        value: str,
        note: str,
        series: Mapping[str, Sequence[float]],
        summary: str,
        *,
        is_bad: bool = False,
        **query: str,
    ) -> Plot:
        link = urlencode(self._filters | {"range": self.chosen} | query)
        label = f"{self._named[key]} {self.range.label}" if key in self._named else label
        highest = max((value for values in series.values() for value in values), default=0) or 1
        lines = [_line(name, values, highest) for name, values in series.items()]
        return Plot(key, label, value, note, is_bad, link, lines, summary)


def _change(now: int, before: float) -> str:
    """Return the change since the previous period in per cent, as text; empty if there is nothing to compare."""
    if not before:
        return ""
    change = round(100 * (now - before) / before)
    return f"{change:+,} %" if change else "as before"


def _line(name: str, values: Sequence[float], highest: float) -> PlotLine:
    step = PLOT_WIDTH / max(len(values) - 1, 1)
    scale = (PLOT_HEIGHT - PLOT_TOP) / highest
    points = [(round(n * step, 1), round(PLOT_HEIGHT - scale * value, 1)) for n, value in enumerate(values)]
    line = " ".join(f"{x:g},{y:g}" for x, y in points)
    steps = "".join(f" L{x:g},{y:g}" for x, y in points)
    return PlotLine(name, line, f"M 0,{PLOT_HEIGHT:g}{steps} L{points[-1][0]:g},{PLOT_HEIGHT:g} Z")


# Panels of the busiest tools, people, apps and agents. The dashboard loads these panels after the page.

TOPS = ("tool", "user", "host")


@dataclass(frozen=True)
class Top:
    """A panel with the groups that have the most calls, such as the busiest tools."""

    by: str
    chosen: str  # The range.
    link: str
    # Each group with its query string, and its calls in per cent of the first group's calls.
    rows: Sequence[tuple[CallGroup, str, float]] = ()
    is_read: bool = False
    counted_from: datetime | None = None  # Set if only calls from this time on were counted.

    @classmethod
    def read(
        cls, opened: Book, where: Where, filters: dict[str, str], by: str, chosen: str, since: datetime, until: datetime
    ) -> Self | None:
        """Return the panel with the groups that have the most calls, counted with the roll-ups.

        If the roll-ups cannot answer, count only the newest calls that match `where`, or return None if `where` is
        empty.
        """
        found = top(opened, where, BY[by], since, until, LISTED)
        if found is None:
            return None
        in_range = filters | {"range": chosen}
        rows = [
            (row, urlencode(in_range | {by: row.value}), round(100 * row.calls / found.rows[0].calls, 1))
            for row in found.rows
        ]
        return cls(by, chosen, urlencode(in_range | {"by": by}), rows, is_read=True, counted_from=found.since)

    @property
    def label(self) -> str:
        return BY[self.by].label


def unread_tops(chosen: str) -> list[Top]:
    """Return the panels for the range `chosen`, without data."""
    return [Top(by, chosen, urlencode({"range": chosen, "by": by})) for by in TOPS]


def read_tops(chosen: str) -> list[Top]:
    """Return the panels for the range `chosen`, except panels for which the roll-ups have no answer."""
    until = timezone.now()
    since = range_start(until, RANGES[chosen].time.length)
    with book() as opened:
        found = [Top.read(opened, {}, {}, by, chosen, since, until) for by in TOPS]
    return [one for one in found if one]


@require_GET
@requires(Capability.LOGS_READ)
def busiest(request: AppRequest) -> HttpResponse:
    """Render the page with the panels of the busiest tools, people, apps and agents.

    If htmx requests a fragment of the page, render only the panels.
    """
    chosen = chosen_range(request.GET.get("range"))
    found = cached_answer(
        f"busiest {chosen}",
        RANGES[chosen].time.length,
        lambda: replica.read_from_replica(request, lambda: read_tops(chosen)),
    )
    part = "#panels" if wants_fragment(request) else ""
    context = {"tops": found.answer, "read_at": found.read_at, "range": RANGES[chosen]}
    return show(request, f"auditlog/busiest.html{part}", context)
