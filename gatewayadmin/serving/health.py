"""/livez, /readyz and /metrics."""

from __future__ import annotations

import asyncio
import hmac
import logging
import socket
import statistics
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import orjson
from django.conf import settings
from django.db import connection, connections
from django.db.models import Count, Sum
from django.utils import timezone
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from approvals.models import Hold, HoldState
from auditlog import indexes, replica
from auditlog.models import Call, Checkpoint, Rollup
from auditlog.replica import newest_id
from auditlog.rollups.schema import HOURS, cube_number
from gatewayadmin.middleware import is_local
from gateways.models import Gateway
from servers.models import Server
from sinks.models import TONES, Sink
from ui import databases
from wire import background, versions
from wire.hosts import LOOPBACK, of_header

PATHS = ("/livez", "/readyz", "/metrics")

POOL = Gauge(
    "gateway_web_pool_connections",
    "Database connections of pages and REST, by what they do",
    ("state",),
    multiprocess_mode="livesum",
)
POOL_WAITING = Gauge(
    "gateway_web_pool_waiting", "Pages and REST requests that wait for a connection", multiprocess_mode="livesum"
)

REPLICA_LAG = Gauge(
    "gateway_replica_lag_seconds",
    "Replication lag of the read replica, as measured by the worker",
    multiprocess_mode="livemax",
)
REPLICA_UNUSED = Gauge(
    "gateway_replica_unused", "Workers that read the primary instead of the replica", multiprocess_mode="livesum"
)
REPLICA_READS = Counter(
    "gateway_replica_reads", "Reads that a replica may answer, by the database that answered", ("by",)
)
_told: dict[str, int] = {}


class Readiness:
    """Readiness of this process to serve MCP calls, based on faults of the proxy and of loops that guard access."""

    def __init__(self) -> None:
        self._faults: Callable[[], Mapping[str, str]] = lambda: {"proxy": "not started yet"}
        self._is_draining = False

    def watch(self, faults: Callable[[], Mapping[str, str]]) -> None:
        """Set the function that returns the faults of the proxy, with the faulty components as keys."""
        self._faults = faults

    def drain(self) -> None:
        """Make this process report that it is not ready, because it is about to stop."""
        self._is_draining = True

    def problem(self) -> str:
        """Return the reasons for not being ready, one per line; empty if ready."""
        if self._is_draining:
            return "draining\n"
        failing = {fault.task: f"failing, {fault.error}" for fault in background.faults() if fault.guards_access}
        return "".join(f"{name}: {fault}\n" for name, fault in {**failing, **self._faults()}.items())


readiness = Readiness()


async def livez(request: Request) -> Response:
    """Answer 200 while the process serves requests."""
    return PlainTextResponse("ok\n")


async def readyz(request: Request) -> Response:
    """Answer 200 with details if this process can authorize and log calls. Otherwise, answer 503 with the reasons."""
    problem = readiness.problem()
    return PlainTextResponse(problem or f"ok\n{_details()}", 503 if problem else 200)


def _details() -> str:
    """Return the details of a ready process as lines: the version, the failing loops, `pages` and `logs`.

    The line `pages` names the database connection of pages. It is left out if pages use the direct connection. The line
    `logs` tells whether the log is read from the primary or the replica. It is left out if there is no replica.
    """
    standing = replica.gauging.standing
    used = f"primary, {standing.fault}" if standing.fault else f"replica, {standing.lag:.0f} s behind"
    lines = [f"version: {versions.with_commit(settings.COMMIT)}\n"]
    lines += ["pages: DATABASE_URL\n"] if settings.PAGES_DATABASE else []
    lines += [f"{fault.task}: failing, {fault.error}\n" for fault in background.faults()]
    return "".join([*lines, f"logs: {used}\n"] if replica.is_set() else lines)


def update_connection_gauges() -> None:
    """Update the gauges of database connections of this process."""
    pool = getattr(connections["default"], "pool", None)
    if pool is not None:
        stats = pool.get_stats()
        idle = stats.get("pool_available", 0)
        POOL.labels("idle").set(idle)
        POOL.labels("in_use").set(stats.get("pool_size", 0) - idle)
        POOL_WAITING.set(stats.get("requests_waiting", 0))
    if replica.is_set():
        _sample_replica()


def _sample_replica() -> None:
    replica.gauging.cut_if_stuck()
    standing = replica.gauging.standing
    REPLICA_LAG.set(standing.lag)
    REPLICA_UNUSED.set(bool(standing.fault))
    for where, number in replica.gauging.reads.items():
        REPLICA_READS.labels(where).inc(number - _told.get(where, 0))
        _told[where] = number


class _Counters(MultiProcessCollector):
    """Collects the metrics of all workers from their files. Empty files are left out."""

    def collect(self) -> Iterable[Metric]:
        # The Prometheus client creates a file empty, and cannot read it if the worker was killed before writing to it.
        files = [str(path) for path in Path(self._path).glob("*.db") if _size(path)]
        merged: Iterable[Metric] = self.merge(files)  # type: ignore[no-untyped-call]
        return merged


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # The worker has ended.
        return 0


class _OfReplica:
    """Adds the label `replica` to the metrics, so that gateway replicas behind one address have separate series."""

    def __init__(self, registry: CollectorRegistry, replica: str) -> None:
        self._registry = registry
        self._label = {"replica": replica}

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample._replace(labels={**sample.labels, **self._label}) for sample in metric.samples]
            yield metric


async def metrics(request: Request) -> Response:
    """Answer with the metrics of all workers, or with 403.

    The request must come from a program on this machine, or have GATEWAY_METRICS_TOKEN.
    """
    if not (_is_local(request) or _has_token(request)):
        return PlainTextResponse(
            "Send GATEWAY_METRICS_TOKEN as a bearer token. Programs on this machine need no token if they connect to "
            "loopback directly, not through a proxy. If GATEWAY_TRUSTED_PROXIES contains loopback, every request needs "
            "the token.\n",
            403,
        )
    registry = CollectorRegistry()
    _Counters(registry)  # type: ignore[no-untyped-call]
    registry.register(await stored())
    _, port = request.scope["server"]
    told = _OfReplica(registry, f"{socket.gethostname()}:{port}")
    return Response(await asyncio.to_thread(generate_latest, told), media_type=CONTENT_TYPE_LATEST)


def _is_local(request: Request) -> bool:
    """Return whether a local program sent the request. The Host header must be ours, to prevent DNS rebinding."""
    named = request.headers.getlist("host")
    if len(named) != 1 or of_header(named[0]) not in LOOPBACK.union(settings.ALLOWED_HOSTS):
        return False
    return is_local(request.scope["peer"], request.headers.keys(), settings.TRUSTED_PROXIES)


def _has_token(request: Request) -> bool:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    expected = settings.METRICS_TOKEN
    return (
        bool(expected) and scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), expected.encode())
    )


# Metrics read from the database on each scrape: sinks, unsealed calls, missing indexes, held calls and the clock.
#
# A process cannot count the rows of a sink itself: another process may serve the sink later, and sinks can be removed.

logger = logging.getLogger(__name__)

PATIENCE_S = 2.0  # Longest wait for the database; then a scrape has only the other metrics.
MOST_SINKS = 50
LATELY = timedelta(days=7)
DAY = timedelta(days=1)
MOST_DECISIONS = 10_000

_reading = threading.Lock()


class Stored:
    """Prometheus collector of metrics that have already been read from the database."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


async def stored() -> Stored:
    """Return a collector of the metrics in the database. It is empty if they cannot be read in time."""
    try:
        return Stored(await asyncio.wait_for(asyncio.to_thread(_read), PATIENCE_S))
    except TimeoutError:
        return Stored(())


def _read() -> list[Metric]:
    if not _reading.acquire(blocking=False):  # The database hangs; one waiting thread is enough.
        return []
    try:
        sinks = list(Sink.objects.order_by("created_at")[:MOST_SINKS])
        apart = databases.clock_difference().total_seconds()
        return families(sinks, unsealed(), indexes.missing_indexes(Call.partitions), apart, _held_calls())
    except Exception:  # A scrape still gets the other metrics.
        logger.exception("metrics in the database could not be read")
        return []
    finally:
        _reading.release()
        connection.close()


class HeldCalls(NamedTuple):
    """Held calls of the last day: the number in each state, and the median number of seconds until a decision."""

    numbers: Mapping[str, int]
    decision_seconds: float = 0.0


def families(
    sinks: Iterable[Sink],
    unsealed_seconds: float,
    unindexed: int,
    apart: float = 0.0,
    held: HeldCalls = HeldCalls({}),  # noqa: B008  never changed
) -> list[Metric]:
    """Return these values as metric families of Prometheus.

    `unindexed` is the number of partitions that lack an index. `apart` is the difference between our clock and the
    database's clock in seconds.
    """
    lag = GaugeMetricFamily("gateway_sink_lag_seconds", "Age of the oldest row that the sink lacks", labels=["sink"])
    status = GaugeMetricFamily("gateway_sink_status", "1 for the current status of the sink", labels=["sink", "status"])
    delivered = CounterMetricFamily("gateway_sink_rows", "Rows that the sink has acknowledged", labels=["sink"])
    for sink in sinks:
        lag.add_metric([sink.name], sink.lag.total_seconds() if sink.lag else 0.0)
        delivered.add_metric([sink.name], sink.delivered)
        for each in TONES:
            status.add_metric([sink.name, each], float(sink.status == each))
    age = GaugeMetricFamily("gateway_log_unsealed_seconds", "Time since the newest checkpoint while later calls wait")
    age.add_metric([], unsealed_seconds)
    lacking = GaugeMetricFamily("gateway_log_partitions_unindexed", "Partitions of the log that lack an index")
    lacking.add_metric([], unindexed)
    clocks = GaugeMetricFamily("gateway_clock_difference_seconds", "Difference between our clock and the database's")
    clocks.add_metric([], apart)
    by_state = GaugeMetricFamily("gateway_holds", "Held calls of the last day, by state", labels=["state"])
    for state in HoldState:
        by_state.add_metric([state], held.numbers.get(state, 0))
    median = GaugeMetricFamily("gateway_hold_decision_seconds", "Median time to the decisions of the last day")
    median.add_metric([], held.decision_seconds)
    return [lag, status, delivered, age, lacking, clocks, by_state, median]


def _held_calls() -> HeldCalls:
    recent = Hold.objects.filter(asked_at__gt=timezone.now() - DAY).order_by()
    numbers = dict(recent.values_list("state").annotate(number=Count("pk")))
    taken = recent.filter(decided_by__isnull=False).values_list("asked_at", "decided_at")[:MOST_DECISIONS]
    seconds = [(decided - asked).total_seconds() for asked, decided in taken if decided]
    return HeldCalls(numbers, statistics.median(seconds) if seconds else 0.0)


def unsealed() -> float:
    """Return the seconds since the newest checkpoint; 0 if it covers all calls, or if there is no checkpoint."""
    newest = Checkpoint.objects.order_by("-number").values_list("body", flat=True).first()
    if newest is None:
        return 0.0
    body = orjson.loads(newest)
    with connection.cursor() as cursor:
        if newest_id(cursor, Call._meta.db_table) <= body["near_to"]:
            return 0.0
    return max((timezone.now() - datetime.fromisoformat(body["sealed_at"])).total_seconds(), 0.0)


def busiest() -> tuple[list[str], list[str]]:
    """Return the names of the gateways, and of the servers, with the most calls in the last seven days.

    The names with most calls are first. Both lists are empty if the database cannot be read.
    """
    try:
        most = settings.METRICS_NAMES
        return _busiest("gateway_id", Gateway, most), _busiest("server_id", Server, most)
    except Exception:  # If the names are unknown, the gateways and servers that are called first get labels.
        logger.exception("the most called objects could not be read")
        return [], []
    finally:
        connection.close()


def _busiest(dimension: str, model: type[Gateway] | type[Server], most: int) -> list[str]:
    since = timezone.now() - LATELY
    rows = Rollup.objects.filter(cube=cube_number([dimension]), seconds=HOURS.seconds, at__gte=since)
    ranked = rows.values(dimension).annotate(number=Sum("calls")).order_by("-number").values_list(dimension, flat=True)
    keys = list(ranked[:most])
    names = dict(model.objects.filter(pk__in=keys).values_list("pk", "name"))
    return [names[key] for key in keys if key in names]
