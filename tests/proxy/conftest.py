"""The real proxy app on a loopback port, over the test database."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

import httpx
import pytest
from django.conf import settings
from django.db import connection
from django.db.models import QuerySet

from auditlog.models import Call
from connections.models import Connection
from gatewayadmin.config import database
from gateways.models import Assignment
from proxy.app import Config, runtime
from proxy.models import UpstreamSession
from proxy.reasons import CALLS
from proxy.store.bus import Bus
from proxy.store.pg import StatePool
from tests import make
from tests.asgi_server import App, Receive, Scope, Send, Upstream, running
from tests.eventually import eventually
from tests.issuers import Issuer
from tokens.models import Issued

__all__ = ["eventually"]

type Start = Callable[..., "Proxy"]


@dataclass
class Agent:
    """A client with one token for one gateway. It sends plain POST requests, as curl does."""

    url: str
    secret: str | None
    headers: dict[str, str] = field(default_factory=dict)

    def post(self, body: object, **headers: str) -> httpx.Response:
        own = {"Authorization": f"Bearer {self.secret}"} if self.secret is not None else {}
        spelled = {name.replace("_", "-"): value for name, value in headers.items()}
        content: dict[str, Any] = {"content": body} if isinstance(body, bytes) else {"json": body}
        with httpx.Client(trust_env=False, timeout=30) as client:
            return client.post(self.url, headers={**own, **self.headers, **spelled}, **content)

    def ask(self, method: str, params: object = None, **headers: str) -> httpx.Response:
        body: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": method}
        return self.post(body | ({"params": params} if params is not None else {}), **headers)

    def listed(self, **headers: str) -> httpx.Response:
        return self.ask("tools/list", **headers)

    def tools(self) -> list[str]:
        """Return the names of the tools in the agent's list."""
        return [tool["name"] for tool in self.listed().json()["result"]["tools"]]

    def call(self, tool: str, arguments: object = None, **headers: str) -> httpx.Response:
        return self.ask("tools/call", {"name": tool, "arguments": arguments or {}}, **headers)


@dataclass
class Proxy:
    """The running proxy, and the rows it wrote."""

    upstream: Upstream
    stop: Callable[[], None] = lambda: None
    soon: Callable[[Callable[[], object]], None] = lambda _: None
    """Calls a function in the proxy's event loop."""

    def url(self, slug: str) -> str:
        return f"http://127.0.0.1:{self.upstream.port}/mcp/{slug}"

    def agent(self, connection: Connection, **token: Any) -> Agent:
        """Return an agent with a new token of this connection."""
        return self.holding(make.token(connection, **token))

    def holding(self, issued: Issued, slug: str = "") -> Agent:
        return Agent(self.url(slug or issued.token.connection.gateway.slug), issued.secret)

    def calls(self) -> list[Call]:
        """Return the rows of the log, oldest first."""
        return list(Call.objects.order_by("id"))

    def last(self) -> Call:
        return self.calls()[-1]


def sessions_of_clients() -> QuerySet[UpstreamSession]:
    """Return the gateway's sessions at servers, without those that it opened only to list features."""
    return UpstreamSession.objects.exclude(owner_id__in=Assignment.objects.values("pk"))


PUBLIC_URL = "https://gateway.example.com"


def in_words(sentence: str, page: str = CALLS) -> str:
    """Return the message of a refusal: a sentence and the URL of a page."""
    return f"{sentence} {PUBLIC_URL}{page}"


def config(**changes: Any) -> Config:
    given: dict[str, Any] = {
        "conninfo": database.conninfo(),
        "token_keys": settings.TOKEN_KEYS,
        "encryption_keys": settings.ENCRYPTION_KEYS,
        "public_url": PUBLIC_URL,
        "private_upstreams": (ip_network("127.0.0.0/8"),),
        "list_seconds": 2.0,
        "log_connections": 1,  # Enough for a test's few calls; each connection occupies a PostgreSQL backend.
    }
    return Config(**{**given, **changes})


@contextmanager
def served(**changes: Any) -> Iterator[Proxy]:
    """Serve the proxy on its own port, as one worker process does."""
    settled = config(**changes)
    endpoint: App | None = None
    loop: asyncio.AbstractEventLoop | None = None

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal endpoint, loop
        if scope["type"] != "lifespan":
            assert endpoint is not None
            await endpoint(scope, receive, send)
            return
        await receive()
        loop = asyncio.get_running_loop()
        async with runtime(settled) as endpoint:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    def soon(work: Callable[[], object]) -> None:
        assert loop is not None, "it has started"
        loop.call_soon_threadsafe(work)

    with ExitStack() as stack:
        upstream = stack.enter_context(running(app, patience=1))
        yield Proxy(upstream, stack.close, soon)


@asynccontextmanager
async def hearing[T](begin: Callable[[StatePool, Bus], T]) -> AsyncIterator[T]:
    """Yield the result of `begin(state, bus)`, once the StatePool `state` and the Bus `bus` have connected."""
    state = StatePool(database.conninfo())
    bus = Bus(database.conninfo(), state)
    begun = begin(state, bus)
    await state.start()
    bus.start()
    await bus.first_attempt()
    try:
        yield begun
    finally:
        await bus.stop()
        await state.stop()


@pytest.fixture
def start(transactional_db: None) -> Iterator[Start]:
    """Return a function that starts a proxy with changed settings: `start(body_limit=100)`."""
    Call.partitions.make_ahead()
    with ExitStack() as stack:
        yield lambda **changes: stack.enter_context(served(**changes))


@pytest.fixture(name="proxy")
def proxy_(start: Start) -> Proxy:
    """A proxy with default settings."""
    return start()


@pytest.fixture
def issuer() -> Issuer:
    """An issuer with the MCP server that it protects; a test serves `issuer.app()`."""
    return Issuer()


def sql(statement: str, *parameters: Any) -> None:
    """Change rows by SQL, without the application."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)


def eventually_unused(table: str, age: str, fact: Callable[[], object]) -> None:
    """Set the last use of all rows of `table` to `age` ago, again and again until `fact` is true.

    Once is not enough, because the gateway may record the use by a call after it has answered the call.
    """

    def is_true() -> object:
        sql(f"UPDATE {table} SET last_used_at = now() - interval '{age}'")
        return fact()

    eventually(is_true)
