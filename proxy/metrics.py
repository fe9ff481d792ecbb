"""Counters of the proxy for /metrics; multi-process by prometheus-client's own means.

A call is counted in a dict and handed over once a second: each sample is a write into a file that
the workers share, and a call has three.
"""

from bisect import bisect_left
from collections import Counter as Counts

from prometheus_client import Counter, Histogram

BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Gathered(Histogram):
    """A histogram that is given what was gathered meanwhile."""

    def add(self, counts: Counts[int], total: float) -> None:
        """Add observations: how many by number of bucket, and their sum."""
        self._sum.inc(total)
        for bucket, count in counts.items():
            self._buckets[bucket].inc(count)


CALLS = Counter("gateway_calls", "MCP requests with a known token", ("outcome", "deny_reason"))
STRANGERS = Counter("gateway_unknown_tokens", "MCP requests without a token, or with one nobody knows")
UNAVAILABLE = Counter("gateway_unavailable", "MCP requests answered 503", ("why",))
SECONDS = Gathered("gateway_call_seconds", "Time from the arrival of an MCP request to its answer", buckets=BUCKETS)
BATCHES = Histogram(
    "gateway_rows_per_commit", "Rows of calls that shared one commit", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
)

_calls: Counts[tuple[str, str]] = Counts()
_buckets: Counts[int] = Counts()
_seconds = [0.0]


def count(outcome: str, deny_reason: str, seconds: float) -> None:
    """Count one call."""
    _calls[outcome, deny_reason] += 1
    _buckets[bisect_left(BUCKETS, seconds)] += 1
    _seconds[0] += seconds


def hand_over() -> None:
    """Hand over what was counted since the last time."""
    for labels, calls in _calls.items():
        CALLS.labels(*labels).inc(calls)
    SECONDS.add(_buckets, _seconds[0])
    _calls.clear()
    _buckets.clear()
    _seconds[0] = 0.0
