"""A page's row of plots (calls, latency, errors, denials) over a time range, each linked to its calls."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, NamedTuple, Self
from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.http import require_GET

from auditlog import replica
from auditlog.charts import stamp
from auditlog.groups import BY, CallGroup, top
from auditlog.ranges import STRETCHES, range_start
from auditlog.rollups.reading import Bars, Book, Numbers, Where, book
from auditlog.rollups.schema import DAYS, DIMENSIONS, HOURS, MINUTES, Grain, finest
from auditlog.templatetags.calls import ms
from capabilities import Capability, requires
from ui.pages import AppRequest, show, wants_fragment

# The dashboard's panels of the busiest tools, people and apps, loaded after the page.

TOLD = ("tool", "user", "host")


def to_come(chosen: str) -> list[Top]:
    """Return the panels of this range, without data."""
    return [Top.to_come(by, chosen) for by in TOLD]


def busiest_panels(chosen: str) -> list[Top]:
    """Return the panels the roll-ups can answer."""
    until = timezone.now()
    since = range_start(until, RANGES[chosen].length)
    with book() as opened:
        tops = [Top.read(opened, {}, {}, by, chosen, since, until) for by in TOLD]
    return [one for one in tops if one]


@require_GET
@requires(Capability.LOGS_READ)
def busiest(request: AppRequest) -> HttpResponse:
    """Render the panels, or without script a page of them."""
    chosen = chosen_range(request.GET.get("range"))
    tops = replica.read_from_replica(request, lambda: busiest_panels(chosen))
    part = "#panels" if wants_fragment(request) else ""
    return show(request, f"auditlog/busiest.html{part}", {"tops": tops, "range": RANGES[chosen]})


WIDTH, HEIGHT, TOP = 240.0, 40.0, 3.0
LISTED = 5


class Range(NamedTuple):
    """A time range up to now, shown as bars of `number` grains."""

    label: str
    words: str
    length: timedelta
    grain: Grain
    number: int


RANGES = {
    "1h": Range(*STRETCHES["1h"], MINUTES, 2),
    "24h": Range(*STRETCHES["24h"], HOURS, 1),
    "7d": Range(*STRETCHES["7d"], HOURS, 6),
    "30d": Range(*STRETCHES["30d"], DAYS, 1),
}
DEFAULT = "24h"


def chosen_range(asked: str | None, among: Collection[str] = RANGES, default: str = DEFAULT) -> str:
    """Return the range named in the URL, or the default if there is none or it is unknown."""
    return asked if asked is not None and asked in among else default


class PlotLine(NamedTuple):
    """A line of a plot: the points of an SVG polyline, and the path of the area under it."""

    series: str
    points: str
    area: str


@dataclass(frozen=True)
class Plot:
    """One plot: a number, its comparison with the period before, and its lines."""

    key: str
    label: str
    value: str
    note: str
    is_bad: bool
    link: str
    lines: Sequence[PlotLine]
    summary: str


class PlotBar(NamedTuple):
    """One bar, for the table behind the plots."""

    at: datetime
    numbers: Numbers
    link: str


@dataclass(frozen=True)
class Top:
    """The groups with the most calls, each with the query string of its calls and its size in per cent of the first.

    `is_read` distinguishes unread groups from no calls. `chosen` is the range; `counted_from` is set if there were too
    many calls to count them all.
    """

    by: str
    chosen: str
    link: str
    rows: Sequence[tuple[CallGroup, str, float]] = ()
    is_read: bool = False
    counted_from: datetime | None = None

    @classmethod
    def to_come(cls, by: str, chosen: str) -> Self:
        """Return the panel of all calls, before it is read."""
        return cls(by, chosen, urlencode({"range": chosen, "by": by}))

    @classmethod
    def read(
        cls, opened: Book, where: Where, filters: dict[str, str], by: str, chosen: str, since: datetime, until: datetime
    ) -> Self | None:
        """Read the groups of calls between two times; None if the roll-ups cannot answer."""
        found = top(opened, where, BY[by], since, until, LISTED)
        if found is None:
            return None
        groups = found.rows
        in_range = filters | {"range": chosen}
        rows = [
            (row, urlencode(in_range | {by: row.value}), round(100 * row.calls / groups[0].calls, 1)) for row in groups
        ]
        return cls(by, chosen, urlencode(in_range | {"by": by}), rows, is_read=True, counted_from=found.since)

    @property
    def label(self) -> str:
        return BY[self.by].label


class Instruments:
    """The calls of one object, or of all, over a range; false if the roll-ups cannot answer yet or there were no calls.

    `where` are columns of the log, `filters` the same as filters of the Logs page, `tops` the groupings to list.
    `named` overrides plot labels, by key; these include the range.
    """

    def __init__(
        self,
        where: Where,
        filters: dict[str, str],
        asked: str | None,
        *,
        tops: Sequence[str] = (),
        named: Mapping[str, str] | None = None,
    ) -> None:
        self.chosen = chosen_range(asked)
        self.range = RANGES[self.chosen]
        self._filters, self._named = filters, named or {}
        until = timezone.now()
        since = range_start(until, self.range.length)
        shortest = finest({*where} & {*DIMENSIONS}, until - since)
        coarse = shortest.seconds > self.range.grain.seconds
        grain, number = (shortest, 1) if coarse else (self.range.grain, self.range.number)
        self._bars = Bars(grain.begin(since), grain.length * number)
        self._until = until
        with book() as opened:
            found = opened.read(where, since, until, bars=self._bars)
            begin = since - self.range.length
            before = opened.total(where, begin, since)
            read = (Top.read(opened, where, filters, by, self.chosen, since, until) for by in tops if found)
            self.tops = [one for one in read if one and one.rows]
        self._found = None if found is None else {number: numbers for (number,), numbers in found.items()}
        self._before = before if before and before.calls else None
        self._longer = (until - since) / (since - begin)

    @classmethod
    def of(cls, request: HttpRequest, where: Where, filters: dict[str, str], **more: Any) -> Self:
        """Read the plots for a page, over the range in its URL."""
        return replica.read_from_replica(request, lambda: cls(where, filters, request.GET.get("range"), **more))

    def __bool__(self) -> bool:
        return self._found is not None and bool(self.total.calls or self._before)

    @property
    def ranges(self) -> list[tuple[str, Range]]:
        return list(RANGES.items())

    @cached_property
    def total(self) -> Numbers:
        """Sum the whole range."""
        total = Numbers()
        for numbers in (self._found or {}).values():
            total.add(numbers)
        return total

    @cached_property
    def moments(self) -> list[PlotBar]:
        """Return the bars, oldest first."""
        number = -((self._bars.since - self._until) // self._bars.width)
        return [self._moment(n) for n in range(number)]

    def _moment(self, number: int) -> PlotBar:
        at = self._bars.since + number * self._bars.width
        between = {"from": stamp(at), "to": stamp(at + self._bars.width)}
        return PlotBar(at, (self._found or {}).get(number, Numbers()), self._link(**between))

    def _link(self, **more: str) -> str:
        return urlencode(self._filters | more)

    @property
    def plots(self) -> list[Plot]:
        """Return the four plots shown on every page."""
        total, before, in_range = self.total, self._before, {"range": self.chosen}
        calls = [each.numbers.calls for each in self.moments]
        p50, p95 = ([each.numbers.quantile(part) or 0.0 for each in self.moments] for part in (0.5, 0.95))
        errors = [each.numbers.error_rate * 100 for each in self.moments]
        denied = [each.numbers.denied for each in self.moments]
        was = before.quantile(0.95) if before else None
        slower = was is not None and (total.quantile(0.95) or 0) > 1.5 * was
        return [
            Plot(
                "plots.calls",
                self._name("plots.calls", "Calls"),
                f"{total.calls:,}",
                _change(total.calls, self._longer * before.calls if before else 0),
                False,
                self._link(**in_range),
                _lines(("1", calls)),
                f"Calls: {min(calls):,} to {max(calls):,} at a time",
            ),
            Plot(
                "plots.took",
                "p95 latency",
                ms(total.quantile(0.95)) or "none",
                f"was {ms(was)}" if was else "",
                slower,
                self._link(**in_range),
                _lines(("1", p50), ("2", p95)),
                f"p95 latency: {ms(total.p95) or 'none'}; half of the calls within {ms(total.p50)}",
            ),
            Plot(
                "plots.errors",
                "Errors",
                f"{total.errors:,}",
                f"{100 * total.error_rate:.1f} %" if total.errors else "",
                total.error_rate > 0.02,
                self._link(**in_range, q="error"),
                _lines(("bad", errors)),
                f"Errors: up to {max(errors):.1f} % of the calls",
            ),
            Plot(
                "plots.denied",
                self._name("plots.denied", "Denied"),
                f"{total.denied:,}",
                _change(total.denied, self._longer * before.denied if before else 0),
                False,
                self._link(**in_range, q="denied"),
                _lines(("bad", denied)),
                f"Denied calls: {min(denied):,} to {max(denied):,} at a time",
            ),
        ]

    def _name(self, key: str, usual: str) -> str:
        return f"{self._named[key]} {self.range.label}" if key in self._named else usual


def _change(now: int, before: float) -> str:
    """Return the change since the period before, in per cent."""
    if not before:
        return ""
    change = round(100 * (now - before) / before)
    return f"{change:+,} %" if change else "as before"


def _lines(*series: tuple[str, Sequence[Any]]) -> list[PlotLine]:
    highest = max((value for _, values in series for value in values), default=0) or 1
    return [_line(name, values, highest) for name, values in series]


def _line(name: str, values: Sequence[float], highest: float) -> PlotLine:
    step = WIDTH / max(len(values) - 1, 1)
    scale = (HEIGHT - TOP) / highest
    points = [(round(n * step, 1), round(HEIGHT - scale * value, 1)) for n, value in enumerate(values)]
    drawn = " ".join(f"{x:g},{y:g}" for x, y in points)
    area = f"M 0,{HEIGHT:g}" + "".join(f" L{x:g},{y:g}" for x, y in points) + f" L{points[-1][0]:g},{HEIGHT:g} Z"
    return PlotLine(name, drawn, area)
