"""The ASGI application: the proxy under /mcp, Django, health endpoints, and background tasks."""

import asyncio
import gc
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import partial
from inspect import markcoroutinefunction
from pathlib import Path
from typing import cast

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gatewayadmin.settings")

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.db import connection

django = get_asgi_application()  # First: the imports below need settings and apps.

from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from auditlog import replica
from gatewayadmin.admin_server import app as admin_server
from gatewayadmin.config import database, environment
from gatewayadmin.middleware import FairShares, OuterMiddleware, client_address, is_known
from gatewayadmin.playground import run
from gatewayadmin.serving import health, housekeeping, quickstart
from gatewayadmin.serving.health import busiest
from proxy import app as proxy
from proxy import metrics
from servers.upstream_guard import own_endpoints
from wire import guard
from wire.background import Background, every

# Paths of requests that may keep a processor busy for seconds: searches of the log, and plans of files.
SEARCHES = re.compile(
    r"/logs/(|export/|busiest/|groups/.*|values/.*)|/api/logs(|/export|/groups)|/admin/auditlog/call/"
    r"|/gateways/[^/]+/usage/|/settings/configuration/(|apply/|export/)|/api/config/.*"
)
WATCH_S = 1
SWITCH_S = 0.001  # Switch interval of the interpreter between threads.


class Raw:
    """Makes an ASGI app the endpoint of a route.

    Starlette calls a plain function as a view, with a request. It calls an object of this class as an ASGI app.
    """

    def __init__(self, app: ASGIApp | None = None) -> None:
        self.app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        assert self.app is not None, "not before the application has started"
        return self.app(scope, receive, send)


_mcp = Raw()
_listener = environment.text("GATEWAY_BUILTIN_URL")
_secret = environment.text("GATEWAY_BUILTIN_SECRET")
_metrics_folder = Path(path) if (path := environment.text("GATEWAY_BUILTIN_METRICS")) else None
guard.listen_at(_listener, _secret)


def proxy_config() -> proxy.Config:
    """Build the proxy's configuration from the settings."""
    return proxy.Config(
        hosts=frozenset(settings.ALLOWED_HOSTS),
        client_address=partial(client_address, trusted=settings.TRUSTED_PROXIES),
        conninfo=database.conninfo(),
        token_keys=settings.TOKEN_KEYS,
        encryption_keys=settings.ENCRYPTION_KEYS,
        public_url=settings.PUBLIC_URL,
        allowed_origins=settings.ALLOWED_ORIGINS,
        private_upstreams=tuple(settings.PRIVATE_UPSTREAMS),
        own_endpoints=own_endpoints(),
        outbound_proxy=settings.OUTBOUND_PROXY,
        runner=settings.RUNNER,
        workers=environment.number("GATEWAY_WORKERS", 1, low=1, high=1024),
        token_calls=settings.TOKEN_CALLS,
        body_limit=settings.BODY_MIB << 20,
        answer_limit=settings.ANSWER_MIB << 20,
        answers_limit=settings.ANSWERS_MIB << 20,
        answer_seconds=settings.ANSWER_SECONDS,
        session_hours=settings.SESSION_HOURS,
        listener=_listener,
        listener_secret=_secret,
        log_connections=settings.RECORD_CONNECTIONS,
        max_waiting=settings.WAITING_CALLS,
        traces=settings.TRACES,
    )


@asynccontextmanager
async def lifespan(router: Router) -> AsyncIterator[None]:
    await asyncio.to_thread(database.ensure)
    database.serve_pages()
    metrics.tell_apart(settings.METRICS_NAMES, _metrics_folder, *await asyncio.to_thread(busiest))
    async with proxy.runtime(proxy_config()) as endpoint:
        _mcp.app = endpoint
        run.serve_by(endpoint)
        health.readiness.watch(endpoint.faults)
        gc.freeze()  # Loaded objects are never freed, so garbage collections need not scan them while calls wait.
        # The switch interval is short, because threads wait for the GIL often: a page's thread after each statement,
        # and the event loop after each iteration.
        sys.setswitchinterval(SWITCH_S)
        gc.set_threshold(20_000, 20, 20)  # Calls create no reference cycles, so frequent collections are a waste.
        background = Background()
        # Under `serve`, a separate process does the chores.
        start_loops(background, has_replica=replica.is_set(), does_chores=_metrics_folder is None)
        try:
            yield
        finally:
            await background.stop()


def start_loops(background: Background, *, has_replica: bool, does_chores: bool) -> None:
    """Start the background loops."""
    background.forever("database watch", _watch, every(WATCH_S))
    if has_replica:
        background.forever("replica lag", _gauge_replica, every(WATCH_S))
    if does_chores:
        housekeeping.start(background)


async def _watch() -> None:
    """Update the gauges of database connections, and restart the embedded PostgreSQL if it has stopped."""
    health.update_connection_gauges()
    await asyncio.to_thread(database.ensure)


async def _gauge_replica() -> None:
    """Measure the replication lag."""
    await asyncio.to_thread(_measure)


def _measure() -> None:
    try:
        replica.gauging.measure()
    finally:
        connection.close()


pages = FairShares(
    cast(ASGIApp, django),
    most=max(settings.WEB_CONNECTIONS // 2, 1),
    session_cookie=settings.SESSION_COOKIE_NAME,
    free=settings.STATIC_URL,
    heavy=SEARCHES,
)
edge = OuterMiddleware(
    Router(
        [
            *(Route(path, getattr(health, path[1:])) for path in health.PATHS),
            *(Route(each.PATH, Raw(each.app(_secret))) for each in (quickstart, admin_server)),
        ],
        redirect_slashes=False,
        default=pages,  # A catch-all route would not match paths with line breaks.
        lifespan=lifespan,
    ),
    hosts=settings.ALLOWED_HOSTS,
    scheme=settings.PUBLIC_URL.partition(":")[0],
    trusted=settings.TRUSTED_PROXIES,
    unchecked={*health.PATHS, quickstart.PATH, admin_server.PATH},
    session_cookie=settings.SESSION_COOKIE_NAME,
    is_known=is_known,
)


@markcoroutinefunction
def application(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
    """Pass MCP requests directly to the proxy, and all other requests to `edge`."""
    # The proxy itself checks the Host header, determines the client address and logs each call. Through `edge`, which
    # repeats this work, a call would cost about 1.5 times as much.
    mcp = scope["type"] == "http" and scope["path"].startswith(proxy.PREFIX)
    return (_mcp if mcp else edge)(scope, receive, send)
