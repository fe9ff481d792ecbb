"""Calls over time: how many ended how in each stretch of a time range, as bars that lead to that stretch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from django.db import connection
from django.utils import timezone

from auditlog.models import Call
from auditlog.search import Search

BARS = 30
BLOCKS = 600  # Of the table, which a sample reads at most.

OK, ERROR, DENIED = "ok", "error", "denied"
KINDS = (OK, ERROR, DENIED)

HEIGHT, WIDTH, BODY = 64.0, 24, 18
MINUTE = timedelta(minutes=1)

COUNT = """
SELECT floor(extract(epoch FROM r.created_at - %s) / %s)::int,
    CASE WHEN r.outcome = 'ok' THEN 'ok' WHEN r.outcome IN ('denied', 'unauthorized', 'rate_limited') THEN 'denied'
        ELSE 'error' END,
    count(*)
FROM ({rows}) r GROUP BY 1, 2
"""


class Drawn(NamedTuple):
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

    def drawn(self) -> Iterator[Drawn]:
        """Its parts from the ground up; what happened at all is seen."""
        y = HEIGHT
        for kind in KINDS:
            if count := self.counts.get(kind, 0):
                height = min(max(round(HEIGHT * count / self.highest, 1), 1.5), y)
                yield Drawn(kind, f"M{self.x} {y:g}v-{height:g}h{BODY}v{height:g}z")
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
    def drawn(self) -> list[Drawn]:
        """What is drawn, one path for each way to end."""
        parts = [part for bar in self.bars for part in bar.drawn()]
        paths = [Drawn(kind, "".join(part.path for part in parts if part.kind == kind)) for kind in KINDS]
        return [one for one in paths if one.path]

    @property
    def totals(self) -> dict[str, int]:
        """How many ended how, over all."""
        return {kind: sum(bar.counts.get(kind, 0) for bar in self.bars) for kind in KINDS}

    @property
    def marks(self) -> list[datetime]:
        """The moments written below the bars."""
        return [*(bar.since for bar in self.bars[:: BARS // 5]), self.bars[-1].until]


def stamp(at: datetime) -> str:
    """A moment as it stands in a query string, to the second where it has some."""
    at = at.astimezone(UTC)
    return f"{at:%Y-%m-%dT%H:%M:%SZ}" if at.second else f"{at:%Y-%m-%dT%H:%MZ}"


def histogram(search: Search, *, sampled: bool) -> Histogram:
    """The bars of what was searched; when there are many, of a sample, so that it costs no more than of few."""
    until = min(search.until or timezone.now(), timezone.now())
    since = search.since or _first() or until - timedelta(hours=1)
    if until - since >= BARS * MINUTE:
        # Bars begin at whole minutes: people read their times.
        since = since.replace(second=0, microsecond=0)
        width = -((since - until) // (BARS * MINUTE)) * MINUTE
    else:
        width = max((until - since) / BARS, timedelta(seconds=1))
    counted = _counted(search, since, width, share=_share() if sampled else 1.0)
    highest = max((sum(kinds.values()) for kinds in counted.values()), default=1)
    bars = [Bar(n, since + n * width, since + (n + 1) * width, counted.get(n, {}), highest) for n in range(BARS)]
    return Histogram(bars, sampled)


def _first() -> datetime | None:
    return next(iter(Call.objects.order_by("created_at").values_list("created_at", flat=True)[:1]), None)


def _counted(search: Search, since: datetime, width: timedelta, share: float) -> dict[int, Counter[str]]:
    rows, parameters = search.rows().order_by().values("created_at", "outcome").query.sql_with_params()
    if share < 1:
        # Blocks at random, the same ones again after a reload.
        table = f'FROM "{Call._meta.db_table}"'
        rows = rows.replace(table, f"{table} TABLESAMPLE SYSTEM ({100 * share:.6f}) REPEATABLE (1)", 1)
    found: dict[int, Counter[str]] = {}
    with connection.cursor() as cursor:
        cursor.execute(COUNT.format(rows=rows), [since, width.total_seconds(), *parameters])
        for number, kind, count in cursor.fetchall():
            # Rows that arrived since belong to the last bar.
            found.setdefault(min(max(number, 0), BARS - 1), Counter())[kind] += round(count / share)
    return found


def _share() -> float:
    """Which share of the log is as much as a sample reads."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT coalesce(sum(pg_relation_size(inhrelid)), 0) / current_setting('block_size')::int"
            " FROM pg_inherits WHERE inhparent = %s::regclass",
            [Call._meta.db_table],
        )
        blocks = cursor.fetchone()[0]
    return min(1.0, BLOCKS / float(blocks)) if blocks else 1.0
