"""Counters of the proxy for /metrics; multi-process by prometheus-client's own means.

Durations are collected and written once a second: each sample is a write into a file that the workers share, and a call
has a dozen. Gauges are read at the same moment.
"""

from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Callable, Mapping
from functools import partial

from prometheus_client import Counter, Gauge, Histogram

from proxy.store.call_writer import CallRow

BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class BatchedHistogram(Histogram):
    """A histogram that takes many observations at once."""

    def add(self, counts: Counts[int], total: float) -> None:
        """Add observations: how many by number of bucket, and their sum."""
        self._sum.inc(total)
        for bucket, count in counts.items():
            self._buckets[bucket].inc(count)


class Timer:
    """Durations for one histogram, in seconds."""

    __slots__ = ("_histogram", "_seconds", "note")

    def __init__(self, name: str, what: str) -> None:
        self._histogram = BatchedHistogram(f"gateway_{name}_duration_seconds", what, buckets=BUCKETS)
        self._seconds: list[float] = []
        self.note = self._seconds.append  # Bound to this list: clear it, never replace it.

    def flush(self) -> None:
        self._histogram.add(Counts(map(partial(bisect_left, BUCKETS), self._seconds)), sum(self._seconds))
        self._seconds.clear()


CALLS = Counter("gateway_calls", "MCP requests with a known token", ("outcome", "deny_reason"))
UNKNOWN_TOKENS = Counter("gateway_unknown_tokens", "MCP requests without a token, or with one nobody knows")
UNAVAILABLE = Counter("gateway_unavailable", "MCP requests answered 503", ("why",))
COMMIT_ROWS = Histogram("gateway_commit_rows", "Rows of calls that shared one commit", buckets=BATCH_BUCKETS)
WAITING = Gauge("gateway_waiting", "MCP requests that wait for the database", ("lane",), multiprocess_mode="livesum")
LANE_DOWN = Gauge(
    "gateway_lane_down",
    "Workers whose statements to the database cannot be carried; of `record`: that execute no call",
    ("lane",),
    multiprocess_mode="livesum",
)
STREAMS = Gauge("gateway_open_streams", "Event streams to clients that are open", multiprocess_mode="livesum")
IDLE = Gauge("gateway_idle_upstream_connections", "Connections kept for the next call", multiprocess_mode="livesum")

TOTAL = Timer("call", "Time from the arrival of an MCP request until its row was to be written")
AUTHORISE = Timer("authorise", "Time until the database had said what a token may do")
UPSTREAM = Timer("upstream", "Time a server took for a call")
RECORD = Timer("record", "Time until the row of a call was committed")

_calls: Counts[tuple[str, str]] = Counts()
_lanes: dict[str, Callable[[], int]] = {}
_faults: dict[str, Callable[[], str]] = {}
_idle: list[Callable[[], int]] = []

# How many are open now, counted where they are opened and closed.
open_counts = Counts[str]()


def count(row: CallRow, ended: tuple[str, str], seconds: float, recorded: float) -> None:
    """Count one call: its outcome and deny_reason, what it took, and how long its row took then."""
    _calls[ended] += 1
    TOTAL.note(seconds)
    RECORD.note(recorded)
    if row.authorise_ms is not None:
        AUTHORISE.note(row.authorise_ms / 1000)
    if row.upstream_ms is not None:
        UPSTREAM.note(row.upstream_ms / 1000)


def watch(
    lanes: Mapping[str, Callable[[], int]], faults: Mapping[str, Callable[[], str]], idle: Callable[[], int]
) -> None:
    """The sources of the gauges: requests that wait, faults, and idle upstream connections."""
    _lanes.update(lanes)
    _faults.update(faults)
    _idle[:] = [idle]


def flush() -> None:
    """Write what was counted since the last flush, and the gauges as they are now."""
    for labels, calls in _calls.items():
        CALLS.labels(*labels).inc(calls)
    _calls.clear()
    for times in (TOTAL, AUTHORISE, UPSTREAM, RECORD):
        times.flush()
    for lane, waiting in _lanes.items():
        WAITING.labels(lane).set(waiting())
    for lane, fault in _faults.items():
        LANE_DOWN.labels(lane).set(bool(fault()))
    for idle in _idle:
        IDLE.set(idle())
    STREAMS.set(open_counts["streams"])
