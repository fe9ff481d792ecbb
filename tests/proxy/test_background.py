"""If any background loop fails with an exception, the failure is reported, the loop restarts, and nothing is lost."""

import ast
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from auditlog.models import Call
from gatewayadmin import asgi
from gatewayadmin.serving import health, housekeeping
from proxy.app import runtime
from proxy.store.call_log import CallRow, CallWriter, new_uid
from tests import upstreams
from tests.conftest import Run
from tests.eventually import until
from tests.house.test_background import functions, modules
from tests.proxy.conftest import Start, config, eventually
from tests.proxy.test_streams import work_of
from tests.workspace import ROOT
from wire import background
from wire.background import Background, every

pytestmark = pytest.mark.full

# Loops whose failure makes /readyz answer 503: without them, access is not revoked or not decided.
GUARDS = {"access", "access, clock", "bus", "call log", "call log, clock", "limits", "limits, clock", "open streams"}
OTHERS = {
    "idle sessions",
    "idle upstream connections",
    "requests nobody answered",
    "streams of servers",
    "suspended calls",
    "usage",
}
# Loops started by the application around the proxy, and by the chores process.
AROUND = {"database watch", "replica lag", "chores", *(f"chore {name}" for name in housekeeping.STEADY)}


@dataclass
class Killer:
    """Lets each loop in `victims` fail once. `seen` has the status and text of /readyz after each failure, by loop."""

    victims: set[str] = field(default_factory=set)
    begun: set[str] = field(default_factory=set)
    places: set[str] = field(default_factory=set)
    seen: dict[str, tuple[int, str]] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)


@pytest.fixture
def killer(monkeypatch: pytest.MonkeyPatch) -> Killer:
    killer, begin = Killer(), Background.forever
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.01)

    def forever(
        self: Background, name: str, work: Callable[[], Awaitable[object]], _: object, **more: Any
    ) -> asyncio.Task[None]:
        frame = sys._getframe(1)
        killer.places.add(f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_code.co_name}")
        killer.begun.add(name)
        failing = False

        async def round_() -> None:
            nonlocal failing
            if failing:  # The next round; the failure still counts.
                failing = False
                killer.seen[name] = await readyz()
            elif name in killer.victims:
                killer.victims.remove(name)
                failing = True
                raise TypeError("injected")
            if name not in AROUND:
                await work()
            killer.rounds[name] = killer.rounds.get(name, 0) + 1

        return begin(self, name, round_, every(0.02), **more)

    monkeypatch.setattr(Background, "forever", forever)
    monkeypatch.setattr(health.readiness, "_faults", dict)
    return killer


async def readyz() -> tuple[int, str]:
    transport = httpx.ASGITransport(Starlette(routes=[Route("/readyz", health.readyz)]))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.get("/readyz")
        return answer.status_code, answer.text


def failures(name: str) -> float:
    return float(background.failures().labels(name)._value.get())


def loops_in(*packages: str) -> set[str]:
    """Return each function of these packages that starts a loop, as `path:function`, found by parsing the code."""

    def begins(node: ast.AST) -> bool:
        return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "forever"

    own = [(path, tree) for path, tree in modules({"forever"}) if path.startswith(packages)]
    return {f"{path}:{function}" for path, tree in own for function in functions(tree, begins)}


def test_every_loop_of_the_proxy_that_raises_is_seen_and_back_and_calls_go_on(
    killer: Killer, start: Start, run: Run
) -> None:
    proxy = start()
    work = work_of(proxy, run)
    work.put(upstreams.docs())
    assert killer.begun == GUARDS | OTHERS
    assert killer.places == loops_in("proxy/", "wire/")

    for name in sorted(killer.begun):
        rounds, counted = killer.rounds.get(name, 0), failures(name)
        killer.victims.add(name)
        eventually(lambda: name in killer.seen and killer.rounds.get(name, 0) > rounds)  # noqa: B023
        status, text = killer.seen[name]
        assert (status, f"{name}: failing, TypeError\n" in text) == (503 if name in GUARDS else 200, True), name
        assert failures(name) == counted + 1
        eventually(lambda: not background.faults())
        assert work.agent.call("docs__echo", {"text": name}).status_code == 200
    assert Call.objects.filter(method="tools/call", outcome="ok").count() == len(killer.begun)


async def test_every_loop_around_the_proxy_that_raises_is_seen_and_back(killer: Killer) -> None:
    loops = Background()
    asgi.start_loops(loops, has_replica=True, does_chores=True)
    assert killer.begun == AROUND
    assert killer.places == loops_in("gatewayadmin/")

    killer.victims |= AROUND
    await until(lambda: killer.seen.keys() == AROUND and not background.faults())
    await loops.stop()

    assert {status for status, _ in killer.seen.values()} == {200}
    assert all(f"{name}: failing, TypeError\n" in text for name, (_, text) in killer.seen.items())


@pytest.mark.django_db(transaction=True)
def test_a_stop_that_raises_ends_no_other_and_the_call_log_is_written_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Let all components raise on stop, except the component that writes the rows of the call log."""
    Call.partitions.make_ahead()
    parts = (
        "proxy.store.events.StreamEvents",
        "proxy.server_requests.SuspendedCalls",
        "proxy.server_requests.ServerRequests",
        "proxy.upstream_streams.ServerStreams",
        "proxy.store.sessions.SessionKeeper",
        "proxy.lists.Lists",
        "proxy.handshake.Eras",
        "proxy.refresh.Refresher",
        "proxy.streams.Streams",
        "proxy.store.bus.Bus",
        "proxy.access.decision.Access",
        "proxy.store.rate_limits.Limits",
        "proxy.store.usage.UsageTracker",
        "proxy.store.pg.StatePool",
    )
    stopped: list[str] = []
    written: list[asyncio.Future[None]] = []

    def raising(path: str) -> Callable[[Any], Awaitable[None]]:
        module, _, name = path.rpartition(".")
        stop: Callable[[Any], Awaitable[None]] = getattr(sys.modules[module], name).stop

        async def stops(part: Any) -> None:
            stopped.append(path)
            await stop(part)
            raise TypeError(path)

        return stops

    for path in parts:
        monkeypatch.setattr(f"{path}.stop", raising(path))
    stop = CallWriter.stop

    async def last_row(writer: CallWriter) -> None:
        now = time.time()
        written.append(writer.commit(CallRow(new_uid(now), now, method="ping")))
        await stop(writer)

    monkeypatch.setattr(CallWriter, "stop", last_row)

    async def serve() -> None:
        async with runtime(config()):
            pass

    with pytest.raises(TypeError):
        asyncio.run(serve())

    assert sorted(stopped) == sorted(parts)
    assert [row.exception() for row in written] == [None]
    assert Call.objects.filter(method="ping").count() == 1
