"""/livez, /readyz and /metrics."""

import asyncio
import hmac
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from django.conf import settings
from django.db import connections
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Metric, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from auditlog import replica
from gatewayadmin.serving.client_address import is_local
from gatewayadmin.serving.stored_metrics import stored
from wire import background
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
    "How far the read replica is behind, as the worker sees it",
    multiprocess_mode="livemax",
)
REPLICA_UNUSED = Gauge(
    "gateway_replica_unused", "Workers that read the primary instead of the replica", multiprocess_mode="livesum"
)
REPLICA_READS = Counter("gateway_replica_reads", "Reads that a replica may answer, by who did", ("by",))
_told: dict[str, int] = {}


class Readiness:
    """Readiness of this process, based on the proxy's own database connections."""

    def __init__(self) -> None:
        self._faults: Callable[[], Mapping[str, str]] = lambda: {"proxy": "not started yet"}
        self._is_draining = False

    def watch(self, faults: Callable[[], Mapping[str, str]]) -> None:
        """Set the function that returns what keeps this process from serving, by component."""
        self._faults = faults

    def drain(self) -> None:
        """Report not ready: this process is about to stop."""
        self._is_draining = True

    def problem(self) -> str:
        """Return the reasons for not being ready, one per line; empty if ready."""
        if self._is_draining:
            return "draining\n"
        failing = {fault.task: f"failing, {fault.error}" for fault in background.faults() if fault.guards_access}
        return "".join(f"{name}: {fault}\n" for name, fault in {**failing, **self._faults()}.items())


readiness = Readiness()


async def livez(request: Request) -> Response:
    """200 while the process serves requests at all."""
    return PlainTextResponse("ok\n")


async def readyz(request: Request) -> Response:
    """200 while calls can be decided and logged; otherwise, and while draining, 503 with the reason."""
    problem = readiness.problem()
    return PlainTextResponse(problem or f"ok\n{_details()}", 503 if problem else 200)


def _details() -> str:
    """Return the databases of pages and logs, if not the primary, and failing loops."""
    standing = replica.gauging.standing
    used = f"primary, {standing.fault}" if standing.fault else f"replica, {standing.lag:.0f} s behind"
    lines = ["pages: DATABASE_URL\n"] if settings.PAGES_DATABASE else []
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
    """Collects the counters of all workers, skipping empty files.

    The Prometheus client creates a file before it sets its size, and cannot read an empty one. A worker killed in
    between leaves such a file until the next start.
    """

    def collect(self) -> Iterable[Metric]:
        files = [str(path) for path in Path(self._path).glob("*.db") if _size(path)]
        merged: Iterable[Metric] = self.merge(files)  # type: ignore[no-untyped-call]
        return merged


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # The worker has ended.
        return 0


class _OfReplica:
    """Adds the label `replica` to the metrics of a registry.

    If several replicas are scraped at one address, each needs its own series: one that jumps between their counters
    would look like thousands of failures.
    """

    def __init__(self, registry: CollectorRegistry, replica: str) -> None:
        self._registry = registry
        self._label = {"replica": replica}

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample._replace(labels={**sample.labels, **self._label}) for sample in metric.samples]
            yield metric


async def metrics(request: Request) -> Response:
    """The counters of all workers, for this machine itself or with GATEWAY_METRICS_TOKEN."""
    if not (_is_local(request) or _has_token(request)):
        return PlainTextResponse("Only from the loopback address, or with GATEWAY_METRICS_TOKEN as bearer.\n", 403)
    registry = CollectorRegistry()
    _Counters(registry)  # type: ignore[no-untyped-call]
    registry.register(await stored())
    _, port = request.scope["server"]
    told = _OfReplica(registry, f"{socket.gethostname()}:{port}")
    return Response(await asyncio.to_thread(generate_latest, told), media_type=CONTENT_TYPE_LATEST)


def _is_local(request: Request) -> bool:
    """Return whether a local program asks, not a web page by DNS rebinding (Host must be ours)."""
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
