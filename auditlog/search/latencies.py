"""Latency (p50 and p95) of the calls in each bar of the histogram.

Only `latencies` queries it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10

from django.db import connection

from auditlog.search.criteria import SEARCH_LIMIT, Search
from auditlog.search.histogram import HEIGHT, SLICE_ROWS, SLICES, WIDTH, Bar, Histogram

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
