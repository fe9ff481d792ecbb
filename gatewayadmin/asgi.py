"""The web application: the proxy under /mcp, Django for people, health for machines; and what runs beside them."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import cast

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gatewayadmin.settings")

from django.conf import settings
from django.core.asgi import get_asgi_application

django = get_asgi_application()  # First: what follows needs the settings and the apps.

from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from gatewayadmin import database, environment, health, housekeeping, quickstart
from gatewayadmin.database import Unusable
from gatewayadmin.edge import Edge

logger = logging.getLogger(__name__)

WATCH_S = 1


class Raw:
    """An ASGI app as the endpoint of one route; a plain function would be taken for a view."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


async def _watch(parent: int) -> None:
    """Bring a killed embedded PostgreSQL back; stop when the process that started us is gone."""
    while True:
        await asyncio.sleep(WATCH_S)
        try:
            await asyncio.to_thread(database.ensure)
        except Unusable:
            logger.exception("the database cannot be started")
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


@asynccontextmanager
async def lifespan(router: Router) -> AsyncIterator[None]:
    await asyncio.to_thread(database.ensure)
    chores = [asyncio.create_task(_watch(os.getppid())), asyncio.create_task(housekeeping.forever())]
    try:
        yield
    finally:
        for chore in chores:
            chore.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*chores)


_secret = environment.text("GATEWAY_BUILTIN_SECRET")
application = Edge(
    Router(
        [
            Route("/livez", health.livez),
            Route("/readyz", health.readyz),
            Route("/metrics", health.metrics),
            Route(quickstart.PATH, Raw(quickstart.app(_secret))),
            Mount("/", cast(ASGIApp, django)),
        ],
        redirect_slashes=False,
        lifespan=lifespan,
    ),
    hosts=settings.ALLOWED_HOSTS,
    scheme=settings.PUBLIC_URL.partition(":")[0],
    trusted=settings.TRUSTED_PROXIES,
    unchecked={*health.PATHS, quickstart.PATH},
)
