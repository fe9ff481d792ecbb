"""Counters of the proxy for /metrics; multi-process by prometheus-client's own means.

Durations are collected and written once a second: each sample is a write into a file that the workers share, and a call
has a dozen. Gauges are read at the same moment.
"""

from bisect import bisect_left
from collections import Counter as Counts
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram

from proxy.store.call_writer import CallRow
from proxy.told_apart import Names

BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
NAME_BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)  # Fewer: there is a set of them for each name.
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
# What alerts fire at once for is there from the beginning: Prometheus sees no increase in a series that begins with 1.
CALLS.labels("rpc_error", "internal_error")
for _why in ("access", "not_executed", "record", "sessions"):
    UNAVAILABLE.labels(_why)
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
BY_GATEWAY = Counter("gateway_calls_by_gateway", "The same by gateway", ("gateway", "outcome", "deny_reason"))
BY_SERVER = Counter("gateway_calls_by_server", "Those that were for one server, by it", ("server", "outcome"))
GATEWAY_SECONDS = BatchedHistogram(
    "gateway_call_duration_by_gateway_seconds",
    "Time from the arrival of an MCP request until its row was to be written",
    ("gateway",),
    buckets=NAME_BUCKETS,
)
SERVER_SECONDS = BatchedHistogram(
    "gateway_upstream_duration_by_server_seconds", "Time a server took", ("server",), buckets=NAME_BUCKETS
)
AT_SERVERS = Gauge(
    "gateway_upstream_calls",
    "Calls that are at their servers, and those that wait for a place there",
    ("state",),
    multiprocess_mode="livesum",
)
SPANS = Counter("gateway_spans", "Spans of traced calls, by what became of them", ("result",))

TOTAL = Timer("call", "Time from the arrival of an MCP request until its row was to be written")
AUTHORISE = Timer("authorise", "Time until the database had said what a token may do")
UPSTREAM = Timer("upstream", "Time a server took for a call")
RECORD = Timer("record", "Time until the row of a call was committed")

_calls: Counts[tuple[str, str]] = Counts()
_lanes: dict[str, Callable[[], int]] = {}
_faults: dict[str, Callable[[], str]] = {}
_idle: list[Callable[[], int]] = []
_spans: list[tuple[Counts[str], Counts[str]]] = []  # What became of them, and what was written of that.
_at_servers: list[Callable[[], Mapping[str, int]]] = []

# What is told apart by name, and what was counted for each since the last flush.
GATEWAYS, SERVERS = Names("gateways"), Names("servers")
_by_name: list[tuple[str, str, tuple[str, str], float, float | None]] = []

# How many are open now, counted where they are opened and closed.
open_counts = Counts[str]()


def count(row: CallRow, ended: tuple[str, str], seconds: float, recorded: float) -> None:
    """Count one call: its outcome and deny_reason, what it took, and how long its row took then."""
    _calls[ended] += 1
    TOTAL.note(seconds)
    RECORD.note(recorded)
    _by_name.append((row.grant.gateway_name, row.server_name, ended, seconds, row.upstream_ms))
    if row.authorise_ms is not None:
        AUTHORISE.note(row.authorise_ms / 1000)
    if row.upstream_ms is not None:
        UPSTREAM.note(row.upstream_ms / 1000)


def watch(
    lanes: Mapping[str, Callable[[], int]],
    faults: Mapping[str, Callable[[], str]],
    idle: Callable[[], int],
    at_servers: Callable[[], Mapping[str, int]],
) -> None:
    """The sources of the gauges: requests that wait, faults, idle connections, and calls at servers by state."""
    _lanes.update(lanes)
    _faults.update(faults)
    _idle[:] = [idle]
    _at_servers[:] = [at_servers]


def tell_apart(most: int, folder: Path | None, gateways: Iterable[str], servers: Iterable[str]) -> None:
    """From now on so many gateways and as many servers have labels of their own, first of all these.

    `folder` is where the workers of one `serve` agree upon them; None for a process that is alone.
    """
    for names, first in ((GATEWAYS, gateways), (SERVERS, servers)):
        names.set_up(most, folder)
        names.admit(first)


def watch_spans(counts: Counts[str]) -> None:
    """The source of what became of spans, which only grows."""
    _spans[:] = [(counts, Counts())]


def flush() -> None:
    """Write what was counted since the last flush, and the gauges as they are now."""
    for labels, calls in _calls.items():
        CALLS.labels(*labels).inc(calls)
    _calls.clear()
    _flush_by_name()
    for times in (TOTAL, AUTHORISE, UPSTREAM, RECORD):
        times.flush()
    _flush_gauges()
    for counts, written in _spans:
        for result, spans in list(counts.items()):  # Of which another thread adds to some.
            SPANS.labels(result).inc(spans - written[result])
            written[result] = spans


def _flush_gauges() -> None:
    for lane, waiting in _lanes.items():
        WAITING.labels(lane).set(waiting())
    for lane, fault in _faults.items():
        LANE_DOWN.labels(lane).set(bool(fault()))
    for idle in _idle:
        IDLE.set(idle())
    STREAMS.set(open_counts["streams"])
    for at_servers in _at_servers:
        for state, calls in at_servers().items():
            AT_SERVERS.labels(state).set(calls)


def _flush_by_name() -> None:
    by_gateway: Counts[tuple[str, str, str]] = Counts()
    by_server: Counts[tuple[str, str]] = Counts()
    took: dict[str, list[float]] = defaultdict(list)
    took_at: dict[str, list[float]] = defaultdict(list)
    for gateway, server, (outcome, deny_reason), seconds, upstream_ms in _by_name:
        by_gateway[gateway, outcome, deny_reason] += 1
        took[gateway].append(seconds)
        if server:
            by_server[server, outcome] += 1
            if upstream_ms is not None:
                took_at[server].append(upstream_ms / 1000)
    _by_name.clear()
    for (gateway, *ended), calls in by_gateway.most_common():
        BY_GATEWAY.labels(GATEWAYS.label(gateway), *ended).inc(calls)
    for (server, outcome), calls in by_server.most_common():
        BY_SERVER.labels(SERVERS.label(server), outcome).inc(calls)
    for histogram, names, durations in ((GATEWAY_SECONDS, GATEWAYS, took), (SERVER_SECONDS, SERVERS, took_at)):
        for name, values in durations.items():
            child = histogram.labels(names.label(name))
            child.add(Counts(map(partial(bisect_left, NAME_BUCKETS), values)), sum(values))
