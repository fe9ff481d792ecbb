"""What machines ask about this process: is it alive, can it serve, how is it doing."""

import asyncio
import hmac
import time

import psycopg
from django.conf import settings
from django.db import connections
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest, multiprocess
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from gatewayadmin import database
from gatewayadmin.client_address import is_local

PATHS = ("/livez", "/readyz", "/metrics")
PROBE_S = 3

POOL = Gauge(
    "gateway_web_pool_connections",
    "Database connections of pages and REST, by what they do",
    ("state",),
    multiprocess_mode="livesum",
)
POOL_WAITING = Gauge(
    "gateway_web_pool_waiting", "Pages and REST requests that wait for a connection", multiprocess_mode="livesum"
)


class Readiness:
    """Whether the database answers, asked at most once a second however many ask us."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._asked_at = -1.0
        self._ready = False

    async def __call__(self) -> bool:
        async with self._lock:
            if time.monotonic() - self._asked_at > 1:
                self._ready = await _database_answers()
                self._asked_at = time.monotonic()
            return self._ready


async def _database_answers() -> bool:
    try:
        async with asyncio.timeout(PROBE_S):
            async with await psycopg.AsyncConnection.connect(database.conninfo()) as connection:
                await connection.execute("SELECT 1")
    except (psycopg.Error, TimeoutError):
        return False
    return True


async def livez(request: Request) -> Response:
    """200 while the process serves requests at all."""
    return PlainTextResponse("ok\n")


_is_ready = Readiness()


async def readyz(request: Request) -> Response:
    """200 when the database answers, else 503."""
    return PlainTextResponse("ok\n") if await _is_ready() else PlainTextResponse("no database\n", 503)


def sample() -> None:
    """Note how this process's database connections are used just now."""
    pool = getattr(connections["default"], "pool", None)
    if pool is not None:
        stats = pool.get_stats()
        idle = stats.get("pool_available", 0)
        POOL.labels("idle").set(idle)
        POOL.labels("in_use").set(stats.get("pool_size", 0) - idle)
        POOL_WAITING.set(stats.get("requests_waiting", 0))


async def metrics(request: Request) -> Response:
    """The counters of all workers, for this machine itself or with GATEWAY_METRICS_TOKEN."""
    if not (_is_local(request) or _has_token(request)):
        return PlainTextResponse("Only from the loopback address, or with GATEWAY_METRICS_TOKEN as bearer.\n", 403)
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return Response(await asyncio.to_thread(generate_latest, registry), media_type=CONTENT_TYPE_LATEST)


def _is_local(request: Request) -> bool:
    return is_local(request.scope["peer"], request.headers.keys(), settings.TRUSTED_PROXIES)


def _has_token(request: Request) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    wanted = settings.METRICS_TOKEN
    return bool(wanted) and scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), wanted.encode())
