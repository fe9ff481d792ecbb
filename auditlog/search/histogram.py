"""Calls over time by outcome, as bars of a chart; each bar links to its time span."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from django.db import connection
from django.db.models import QuerySet
from django.utils import timezone

from auditlog.models import ENDINGS, Call
from auditlog.search.criteria import SEARCH_LIMIT, Search

BARS = 30
SLICES = 4  # Of a bar; of each the first rows are counted, and their number scaled to its length.
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
SELECT n / {slices}, x.kind, x.number * CASE WHEN x.total < {most} THEN 1.0
    ELSE extract(epoch FROM s.until - s.since) / greatest(extract(epoch FROM x.last - s.since), 0.001) END
FROM (
    SELECT n, %s + n * %s AS since, %s + (n + 1) * %s AS until FROM generate_series(0, {bars} * {slices} - 1) n
) s
CROSS JOIN LATERAL (
    SELECT {kind} AS kind, count(*) AS number, sum(count(*)) OVER () AS total, max(max(r.created_at)) OVER () AS last
    FROM ({rows} AND "auditlog_call"."created_at" >= s.since AND "auditlog_call"."created_at" < s.until
        ORDER BY "auditlog_call"."created_at" LIMIT {most}) r
    GROUP BY 1
) x
"""


class BarPath(NamedTuple):
    """All that ended alike, as one path."""

    kind: str
    path: str


@dataclass(frozen=True)
class Bar:
    """One stretch of time."""

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
        """Its parts from the ground up; what happened at all is seen."""
        y = HEIGHT
        for kind in ENDINGS:
            if count := self.counts.get(kind, 0):
                height = min(max(round(HEIGHT * count / self.highest, 1), 1.5), y)
                yield BarPath(kind, f"M{self.x} {y:g}v-{height:g}h{BODY}v{height:g}z")
                y = round(y - height, 1)

    @property
    def query(self) -> str:
        """The time range of this bar, for a query string."""
        return f"from={stamp(self.since)}&to={stamp(self.until)}"


@dataclass(frozen=True)
class Histogram:
    """All bars; `sampled` when they are estimates."""

    bars: list[Bar]
    sampled: bool

    @property
    def drawn(self) -> list[BarPath]:
        """What is drawn, one path for each way to end."""
        parts = [part for bar in self.bars for part in bar.drawn()]
        paths = [BarPath(kind, "".join(part.path for part in parts if part.kind == kind)) for kind in ENDINGS]
        return [path for path in paths if path.path]

    @property
    def totals(self) -> dict[str, int]:
        """How many ended how, over all."""
        return {kind: sum(bar.counts.get(kind, 0) for bar in self.bars) for kind in ENDINGS}

    @property
    def total_labels(self) -> dict[str, str]:
        """The same for people; an estimate has no digits it does not know."""
        return {kind: f"~{rounded(n):,}" if self.sampled and n else f"{n:,}" for kind, n in self.totals.items()}

    @property
    def marks(self) -> list[datetime]:
        """The moments written below the bars."""
        return [*(bar.since for bar in self.bars[:: BARS // 5]), self.bars[-1].until]


def rounded(number: int) -> int:
    """An estimate, to its first two digits."""
    return round(number, 2 - len(str(number)))


def stamp(at: datetime) -> str:
    """A time as text in a query string, with seconds if it has any."""
    at = at.astimezone(UTC)
    return f"{at:%Y-%m-%dT%H:%M:%SZ}" if at.second else f"{at:%Y-%m-%dT%H:%MZ}"


def histogram(search: Search, *, sampled: bool) -> Histogram:
    """The bars of what was searched; `sampled` costs no more for many than for few."""
    until = min(search.until or timezone.now(), timezone.now())
    since = search.since or _first() or until - timedelta(hours=1)
    if not search.is_direct:
        # What no index knows is drawn as far back as a page looks.
        rows, floor = search.recent(SEARCH_LIMIT)
        since, sampled = floor or since, False
    else:
        rows = search.rows()
    if until - since >= BARS * MINUTE:
        # Bars begin at whole minutes: people read their times.
        since = since.replace(second=0, microsecond=0)
        width = -((since - until) // (BARS * MINUTE)) * MINUTE
    else:
        width = max((until - since) / BARS, timedelta(seconds=1))
    parts = search.parts() if sampled else [rows]
    counted: dict[int, Counter[str]] = {}
    for part in parts:
        for number, kind, count in (_sampled if sampled else _counted)(part, since, width):
            # Rows that arrived since belong to the last bar.
            counted.setdefault(min(max(number, 0), BARS - 1), Counter())[kind] += round(count)
    highest = max((sum(kinds.values()) for kinds in counted.values()), default=1)
    bars = [Bar(n, since + n * width, since + (n + 1) * width, counted.get(n, {}), highest) for n in range(BARS)]
    return Histogram(bars, sampled)


def _first() -> datetime | None:
    return next(iter(Call.objects.order_by("created_at").values_list("created_at", flat=True)[:1]), None)


type Counts = list[tuple[int, str, float]]


def _counted(rows: QuerySet[Call], since: datetime, width: timedelta) -> Counts:
    inner, parameters = _sql(rows, since)
    return _asked(COUNT.format(rows=inner, kind=KIND), [since, width.total_seconds(), *parameters])


def _sampled(rows: QuerySet[Call], since: datetime, width: timedelta) -> Counts:
    inner, parameters = _sql(rows, since)
    statement = SAMPLE.format(rows=inner, kind=KIND, bars=BARS, slices=SLICES, most=SLICE_ROWS)
    length = width / SLICES
    return _asked(statement, [since, length, since, length, *parameters])


def _sql(rows: QuerySet[Call], since: datetime) -> tuple[str, tuple[Any, ...]]:
    return rows.filter(created_at__gte=since).order_by().values("created_at", "outcome").query.sql_with_params()


def _asked(statement: str, parameters: list[Any]) -> Counts:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return list(cursor.fetchall())
