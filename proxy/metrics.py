"""Metrics of the proxy for /metrics, in prometheus-client's multi-process mode.

In this mode, each sample is a write to a memory-mapped file. So durations are collected in memory, and are written
together once a second.
"""

import fcntl
import json
from bisect import bisect_left
from collections import Counter as Counts
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram

from proxy import open_files
from proxy.store.call_log import CallRow

# The labels `gateway` and `server` have a limited number of distinct values, which all workers of one `serve` share.

OTHER = "other"


class Names:
    """The names of gateways or servers that have label values of their own; all other names share the value `other`.

    A name is admitted while the maximum number of names is not reached. An admitted name keeps its label value until
    `serve` restarts, because its counters must never decrease.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._most = 50
        self._path: Path | None = None
        self._known: dict[str, None] = {}

    def set_up(self, most: int, folder: Path | None) -> None:
        """Set the maximum number of admitted names, and the folder in which workers share the names.

        If `folder` is None, workers share no names.
        """
        self._most, self._path = most, folder / f"{self._kind}.names" if folder else None
        self._known.clear()

    def label(self, name: str) -> str:
        """Admit the name if there is room for it. Return the name if it is admitted, otherwise `other`."""
        if name not in self._known and len(self._known) < self._most:
            self.admit([name])
        return name if name in self._known else OTHER

    def admit(self, names: Iterable[str]) -> None:
        """Give these names their own label values, in this order, while there is room."""
        if self._path is None:
            self._add(names)
            return
        with self._path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            self._known.clear()
            self._add(json.loads(line) for line in file)
            before = len(self._known)
            self._add(names)
            file.writelines(f"{json.dumps(name)}\n" for name in list(self._known)[before:])

    def _add(self, names: Iterable[str]) -> None:
        for name in names:
            if len(self._known) < self._most and name != OTHER:
                self._known[name] = None


BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
NAME_BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)  # Few, because each name has all of them.
# The index in NAME_BUCKETS for each index in BUCKETS, and for the index past the end of BUCKETS.
NAME_BUCKET_OF = [*map(partial(bisect_left, NAME_BUCKETS), BUCKETS), len(NAME_BUCKETS)]
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class BatchedHistogram(Histogram):
    """A histogram that takes many observations at once."""

    def add(self, counts: Counts[int], total: float) -> None:
        """Add observations: their number by bucket index, and the sum of their values."""
        self._sum.inc(total)
        for bucket, count in counts.items():
            self._buckets[bucket].inc(count)


def _durations(name: str, what: str) -> BatchedHistogram:
    return BatchedHistogram(f"gateway_{name}_duration_seconds", what, buckets=BUCKETS)


CALLS = Counter("gateway_calls", "MCP requests with a known token", ("outcome", "deny_reason"))
UNKNOWN_TOKENS = Counter("gateway_unknown_tokens", "MCP requests without a token, or with an unknown one")
UNAVAILABLE = Counter("gateway_unavailable", "MCP requests answered 503, except for too many open files", ("why",))
# These series start with the value 0: in a series that begins with 1, Prometheus sees no increase to alert on.
CALLS.labels("rpc_error", "internal_error")
for _why in ("access", "not_executed", "record", "sessions"):
    UNAVAILABLE.labels(_why)
COMMIT_ROWS = Histogram("gateway_commit_rows", "Rows of calls that shared one commit", buckets=BATCH_BUCKETS)
WAITING = Gauge("gateway_waiting", "MCP requests that wait for the database", ("lane",), multiprocess_mode="livesum")
LANE_DOWN = Gauge(
    "gateway_lane_down",
    "Workers that cannot run statements of this lane; a worker whose `record` lane is down executes no calls",
    ("lane",),
    multiprocess_mode="livesum",
)
STREAMS = Gauge("gateway_open_streams", "Open event streams to clients", multiprocess_mode="livesum")
OPEN_FILES = Gauge("gateway_open_files", "Open files of the worker that has the most", multiprocess_mode="livemax")
OPEN_FILES_LIMIT = Gauge("gateway_open_files_limit", "Files that a worker may open", multiprocess_mode="livemax")
OPEN_FILES_REFUSED = Counter("gateway_open_files_refused", "Refused because of too many open files", ("what",))
for _what in ("stream", "connection"):
    OPEN_FILES_REFUSED.labels(_what)
IDLE = Gauge("gateway_idle_upstream_connections", "Idle connections to servers", multiprocess_mode="livesum")
BY_GATEWAY = Counter(
    "gateway_calls_by_gateway", "MCP requests with a known token, by gateway", ("gateway", "outcome", "deny_reason")
)
BY_SERVER = Counter("gateway_calls_by_server", "Calls to one server, by server", ("server", "outcome"))
GATEWAY_SECONDS = BatchedHistogram(
    "gateway_call_duration_by_gateway_seconds",
    "Time from the arrival of an MCP request until its row is ready",
    ("gateway",),
    buckets=NAME_BUCKETS,
)
SERVER_SECONDS = BatchedHistogram(
    "gateway_upstream_duration_by_server_seconds", "Time a server took", ("server",), buckets=NAME_BUCKETS
)
AT_SERVERS = Gauge(
    "gateway_upstream_calls",
    "Calls running at servers, and calls waiting for a slot",
    ("state",),
    multiprocess_mode="livesum",
)
SPANS = Counter("gateway_spans", "Spans of traced calls, by result", ("result",))

TOTAL = _durations("call", "Time from the arrival of an MCP request until its row is ready")
AUTHORISE = _durations("authorise", "Time of the access decision in the database")
UPSTREAM = _durations("upstream", "Time a server took for a call")
RECORD = _durations("record", "Time until the row of a call was committed")

_lanes: dict[str, Callable[[], int]] = {}
_faults: dict[str, Callable[[], str]] = {}
_idle: list[Callable[[], int]] = []
_spans: list[tuple[Counts[str], Counts[str]]] = []  # Span counts by result: current, and already written.
_at_servers: list[Callable[[], Mapping[str, int]]] = []

# Names with their own label value.
GATEWAYS, SERVERS = Names("gateways"), Names("servers")

# Durations since the last flush, in seconds. `_took`: of calls, in total and at the server, by gateway, server, outcome
# and deny_reason. `_authorise`: of access decisions. `_record`: of writing rows.
_took: defaultdict[tuple[str, str, tuple[str, str]], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
_authorise: list[float] = []
_record: list[float] = []

# The number of open streams to clients, under `streams`, counted where streams are opened and closed.
open_counts = Counts[str]()


def count(row: CallRow, ended: tuple[str, str], seconds: float, recorded: float) -> None:
    """Count one call that took `seconds`; `ended` is its outcome and deny_reason.

    Writing the row of the call took `recorded` seconds.
    """
    took, at_server = _took[row.grant.gateway_name, row.server_name, ended]
    took.append(seconds)
    _record.append(recorded)
    if row.authorise_ms is not None:
        _authorise.append(row.authorise_ms / 1000)
    if row.upstream_ms is not None:
        at_server.append(row.upstream_ms / 1000)


def watch(
    lanes: Mapping[str, Callable[[], int]],
    faults: Mapping[str, Callable[[], str]],
    idle: Callable[[], int],
    at_servers: Callable[[], Mapping[str, int]],
) -> None:
    """Set the functions that return the values of the gauges.

    `lanes` and `faults` return the number of waiting requests and the fault of each database lane. `idle` returns the
    number of idle connections to servers, and `at_servers` returns the numbers of calls by state.
    """
    _lanes.update(lanes)
    _faults.update(faults)
    _idle[:] = [idle]
    _at_servers[:] = [at_servers]


def tell_apart(most: int, folder: Path | None, gateways: Iterable[str], servers: Iterable[str]) -> None:
    """Let at most `most` gateways and at most `most` servers have their own label values.

    The names in `gateways` and `servers` get label values now. Other names get label values when they are first
    counted. Workers share the names through files in `folder`, unless `folder` is None.
    """
    for names, first in ((GATEWAYS, gateways), (SERVERS, servers)):
        names.set_up(most, folder)
        names.admit(first)


def watch_spans(counts: Counts[str]) -> None:
    """Set the source of the span counts, which only increase."""
    _spans[:] = [(counts, Counts())]


def flush() -> None:
    """Write the counts since the last flush, and the current gauges."""
    _flush_calls()
    for histogram, seconds in ((AUTHORISE, _authorise), (RECORD, _record)):
        histogram.add(_in_buckets(seconds), sum(seconds))
        seconds.clear()
    _flush_gauges()
    for counts, written in _spans:
        for result, spans in list(counts.items()):  # A copy: another thread updates the counts.
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
    OPEN_FILES.set(open_files.used())
    OPEN_FILES_LIMIT.set(open_files.open_files_limit())
    for what in list(open_files.refusals):
        OPEN_FILES_REFUSED.labels(what).inc(open_files.refusals.pop(what))
    for at_servers in _at_servers:
        for state, calls in at_servers().items():
            AT_SERVERS.labels(state).set(calls)


def _flush_calls() -> None:
    # The gateways and servers with the most calls are the first to get labels.
    by_length = sorted(_took.items(), key=lambda entry: -len(entry[1][0]))
    _took.clear()
    for (gateway, server, ended), (took, at_server) in by_length:
        CALLS.labels(*ended).inc(len(took))
        its_gateway = GATEWAYS.label(gateway)
        BY_GATEWAY.labels(its_gateway, *ended).inc(len(took))
        _add_to(TOTAL, GATEWAY_SECONDS.labels(its_gateway), took)
        if server:
            its_server = SERVERS.label(server)
            BY_SERVER.labels(its_server, ended[0]).inc(len(took))
            _add_to(UPSTREAM, SERVER_SECONDS.labels(its_server), at_server)
        elif at_server:
            UPSTREAM.add(_in_buckets(at_server), sum(at_server))


def _add_to(all_calls: BatchedHistogram, of_name: BatchedHistogram, seconds: list[float]) -> None:
    counts, total = _in_buckets(seconds), sum(seconds)
    all_calls.add(counts, total)
    by_name: Counts[int] = Counts()
    for bucket, count in counts.items():
        by_name[NAME_BUCKET_OF[bucket]] += count
    of_name.add(by_name, total)


def _in_buckets(seconds: list[float]) -> Counts[int]:
    """Return the number of durations in each bucket, by the bucket's index in BUCKETS."""
    return Counts(map(partial(bisect_left, BUCKETS), seconds))
