"""A gateway whose rule holds calls, and the person who decides on them."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from accounts.models import User
from approvals.models import Hold
from auditlog.models import Call
from capabilities import Capability
from connections.models import Connection
from rules.models import Rule
from tests import make
from tests.asgi_server import App
from tests.conformance.counter import Counter
from tests.conftest import Run
from tests.eventually import eventually
from tests.proxy.conftest import Agent, Proxy, served

TOOL = "docs__count"


@dataclass
class Desk:
    """Mia's agent, whose calls of TOOL are held until ben decides.

    `proxies` are the gateway's workers, `agents` is the same agent at each worker, and `counter` is the default server.
    """

    proxies: list[Proxy]
    counter: Counter
    connection: Connection
    agents: list[Agent]
    rule: Rule
    ben: User
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(16))

    @property
    def agent(self) -> Agent:
        return self.agents[0]

    def wait(self, seconds: int | None) -> None:
        """Set the seconds for which a held call keeps its request open; None means the default."""
        Connection.objects.filter(pk=self.connection.pk).update(hold_wait=seconds)

    def call(self, arguments: object = None, agent: Agent | None = None) -> Any:
        """Return the result of a call."""
        return (agent or self.agent).call(TOOL, arguments or {}).json()["result"]

    def begin(self, arguments: object = None, agent: Agent | None = None) -> "Future[Any]":
        """Begin a call in a thread, and return its future once the call is held or has ended."""
        before = Hold.objects.count()
        future = self.pool.submit(self.call, arguments, agent)
        eventually(lambda: future.done() or Hold.objects.count() > before)
        return future

    def held(self, arguments: object = None) -> Hold:
        """Make a call that is held, and return its hold."""
        result = self.call(arguments)
        return Hold.objects.get(pk=result["_meta"]["hold"])

    @property
    def runs(self) -> int:
        """The number of calls that reached the server."""
        return len(self.counter.events("call"))


def text_of(result: Any) -> str:
    return str(result["content"][0]["text"])


def counted(result: Any) -> int:
    """Return the number in an answer of the server."""
    return int(json.loads(text_of(result))["count"])


@pytest.fixture
def desk_of(transactional_db: None, run: Run) -> Iterator[Callable[..., Desk]]:
    """Return a function that makes a Desk from a number of workers, a server (default: a counter), and rule fields."""
    Call.partitions.make_ahead()
    stack = ExitStack()

    def make_desk(workers: int = 1, app: App | None = None, **rule: Any) -> Desk:
        counter = Counter()
        work = make.gateway(make.server(slug="docs", url=run(app or counter).url), slug="work")
        mia, ben = make.user(email="mia@example.com"), make.user(Capability.APPROVALS_DECIDE, email="ben@example.com")
        connection = make.connection(make.agent(by=mia, name="CI bot"), work, mia)
        proxies = [stack.enter_context(served()) for _ in range(workers)]
        agent = proxies[0].agent(connection)
        agents = [Agent(proxy.url("work"), agent.secret) for proxy in proxies]
        assert TOOL in agent.tools()
        given = {"name": "Ask first", "effect": "hold", "mode": "on", "tools": [TOOL], "by": None} | rule
        desk = Desk(proxies, counter, connection, agents, Rule.objects.add(**given), ben)
        desk.wait(0)
        stack.callback(desk.pool.shutdown)
        return desk

    with stack:
        yield make_desk


@pytest.fixture
def desk(desk_of: Callable[..., Desk]) -> Desk:
    return desk_of()
