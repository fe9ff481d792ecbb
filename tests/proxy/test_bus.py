"""Messages between workers, over a connection that may be lost at any time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from accounts.models import Role, User
from gatewayadmin.config import database
from gateways.models import Assignment, Feature, Gateway
from proxy.store.bus import Bus
from proxy.store.pg import StatePool
from tests import make
from tests.eventually import eventually, until
from tests.proxy.conftest import hearing

pytestmark = pytest.mark.django_db(transaction=True)


@asynccontextmanager
async def bus_of(**handlers: Any) -> AsyncIterator[Bus]:
    """Yield a connected bus with these handlers."""

    def with_handlers(_: StatePool, bus: Bus) -> Bus:
        for topic, handler in handlers.items():
            bus.on(topic, handler)
        return bus

    async with hearing(with_handlers) as bus:
        yield bus


def waits_for_a_lock() -> bool:
    with psycopg.connect(database.conninfo()) as connection:
        found = connection.execute(
            "SELECT 1 FROM pg_stat_activity WHERE application_name = 'gateway bus'"
            " AND datname = current_database() AND wait_event = 'advisory'"
        ).fetchone()
    return found is not None


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(work())  # type: ignore[arg-type]


def end_bus_connections(number: int) -> None:
    """Wait until the buses have `number` database connections, then kill these connections.

    On a busy machine, a connection may be missing, because the bus closes it after a timeout and opens another.
    """

    def ended() -> bool:
        with psycopg.connect(database.conninfo(), autocommit=True) as connection:
            killed = connection.execute(
                "WITH found AS (SELECT pid FROM pg_stat_activity"
                " WHERE application_name = 'gateway bus' AND datname = current_database())"
                " SELECT count(pg_terminate_backend(pid)) FROM found WHERE (SELECT count(*) FROM found) = %s",
                [number],
            ).fetchone()
        return killed == (number,)

    eventually(ended)


def test_every_worker_hears_what_one_tells_the_one_that_tells_included() -> None:
    async def work() -> None:
        heard: dict[str, list[str | None]] = {"first": [], "second": []}
        async with bus_of(cancel=heard["first"].append) as one, bus_of(cancel=heard["second"].append):
            await until(lambda: heard == {"first": [None], "second": [None]})
            await one.publish("cancel", "some-id")
            await one.publish("other", "nobody listens")
            await until(lambda: heard == {"first": [None, "some-id"], "second": [None, "some-id"]})

    run(work)


def test_a_killed_connection_is_back_and_handlers_are_told_to_read_their_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.store.bus.BEAT_SECONDS", 600)  # The loss must be noticed without a heartbeat.

    async def work() -> None:
        heard: list[str | None] = []
        async with bus_of(answer=heard.append) as bus:
            await until(lambda: heard == [None])
            await asyncio.to_thread(end_bus_connections, 1)
            await until(lambda: heard == [None, None])
            await bus.publish("answer", "after")
            await until(lambda: heard == [None, None, "after"])
            assert bus.fault == ""

    run(work)


def test_a_statement_whose_caller_leaves_keeps_the_connection_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.store.bus.BEAT_SECONDS", 600)
    monkeypatch.setattr("proxy.store.bus.BEAT_TIMEOUT", 600)
    heard: list[str | None] = []

    async def work() -> None:
        state = StatePool(database.conninfo())
        bus = Bus(database.conninfo(), state, (b"PREPARE waits AS SELECT pg_advisory_xact_lock(5150)",))
        bus.on("answer", heard.append)
        await state.start()
        bus.start()
        await until(lambda: heard == [None])
        async with await psycopg.AsyncConnection.connect(database.conninfo(), autocommit=True) as holder:
            await holder.execute("SELECT pg_advisory_lock(5150)")
            caller = asyncio.ensure_future(bus.query(b"waits", []))
            await asyncio.to_thread(eventually, waits_for_a_lock)
            caller.cancel()
            await asyncio.wait([caller])
        assert caller.cancelled()
        await bus.query(b"waits", [])
        await bus.publish("answer", "after")
        await until(lambda: len(heard) > 1)
        await bus.stop()
        await state.stop()

    run(work)
    assert heard == [None, "after"]  # The bus stayed connected.


def test_a_handler_that_fails_or_waits_keeps_nothing_from_the_others() -> None:
    async def work() -> None:
        heard: list[str | None] = []
        slow: list[str | None] = []
        go = asyncio.Event()

        def broken(_: str | None) -> None:
            raise ValueError("broken")

        async def waiting(told: str | None) -> None:
            await go.wait()
            slow.append(told)

        async with bus_of(cut=broken) as bus:
            bus.on("cut", waiting)
            bus.on("cut", heard.append)
            await bus.publish("cut", "1")
            await bus.publish("cut", "2")
            await until(lambda: "2" in heard)
            assert slow == []
            go.set()
            await until(lambda: "2" in slow)

    run(work)


# Notifications of the database's triggers


@pytest.fixture
def told() -> Iterator[Callable[[], set[str]]]:
    """Yield a function that returns the database's notifications since the previous call of the function."""
    with psycopg.connect(database.conninfo(), autocommit=True) as connection:
        connection.execute("LISTEN gateway")
        yield lambda: {note.payload for note in connection.notifies(timeout=0.05)}


@pytest.fixture
def gateway() -> Gateway:
    return make.gateway(slug="work")


@pytest.fixture
def assignment(gateway: Gateway) -> Assignment:
    return make.assignment(gateway, make.server(slug="docs"))


@pytest.mark.full
def test_changes_that_end_access_notify_workers(assignment: Assignment, told: Callable[[], set[str]]) -> None:
    ana = make.user(email="ana@example.com")
    issued = make.token(make.connection(make.agent(by=ana), assignment.gateway, ana))
    token, connection = issued.token, issued.token.connection
    told()
    acts: dict[str, Callable[[], object]] = {
        "token": lambda: token.revoke(by=ana),
        "host": lambda: connection.host.disable(by=ana),
        "connection": lambda: connection.disable(by=ana),
        "revoke": lambda: connection.revoke(by=ana),
        "user": lambda: User.objects.filter(pk=ana.pk).update(is_active=False),
        "looking": lambda: Role.objects.filter(pk=str(ana.role_id)).update(uses_gateways=False),
        "role": lambda: User.objects.filter(pk=ana.pk).update(role=Role.objects.exclude(pk=str(ana.role_id)).first()),
        "gateway": lambda: assignment.gateway.disable(by=ana),
        "reach": lambda: Gateway.objects.filter(pk=assignment.gateway_id).update(reach="teams"),
        "server": lambda: assignment.server.disable(by=ana),
        "assignment": lambda: assignment.disable(by=ana),
    }
    silent = [name for name, act in acts.items() if (act(), "cut " not in told())[1]]

    assert silent == []


@pytest.mark.full
def test_changes_of_a_list_notify_the_gateway(assignment: Assignment, told: Callable[[], set[str]]) -> None:
    ana = make.user(email="ana@example.com")
    elsewhere = make.assignment(make.gateway(slug="other"), make.server(slug="other"))
    Feature.objects.learn(assignment, [{"name": "search", "inputSchema": {"type": "object"}}])
    told()
    tool = Feature.objects.get()
    acts: dict[str, Callable[[], object]] = {
        "switch of a tool": lambda: tool.disable(by=ana),
        "definition": lambda: Feature.objects.update(description="Find it."),
        "policy": lambda: assignment.edit(tool_policy="block_all", by=ana),
        "alias": lambda: assignment.edit(alias="handbook", by=ana),
        "assignment": lambda: assignment.disable(by=ana),
        "server": lambda: assignment.server.disable(by=ana),
        "another server": lambda: make.assignment(assignment.gateway, make.server(slug="third"), alias="third"),
        "removal": lambda: assignment.remove(by=ana),
    }
    lists = f"lists {assignment.gateway_id}"
    silent, heard = [], set()
    for name, act in acts.items():
        act()
        heard |= (now := told())
        if not now & {lists, f"{lists} tools"}:
            silent.append(name)

    assert silent == []
    assert f"{lists} tools" in heard
    assert f"lists {elsewhere.gateway_id}" not in heard


@pytest.mark.full
def test_columns_written_by_calls_notify_nobody(assignment: Assignment, told: Callable[[], set[str]]) -> None:
    ana = make.user(email="ana@example.com")
    token = make.token(make.connection(make.agent(by=ana), assignment.gateway, ana)).token
    Feature.objects.learn(assignment, [{"name": "search", "inputSchema": {"type": "object"}}])
    told()

    with psycopg.connect(database.conninfo(), autocommit=True) as connection:
        for statement in (
            "UPDATE tokens_token SET last_used_at = now(), secret_last_used_at = now()",
            "UPDATE connections_connection SET last_used_at = now()",
            "UPDATE hosts_host SET last_seen_at = now(), first_seen_at = now()",
            "UPDATE servers_server SET health = 'ok', health_checked_at = now(), protocol_era = 'modern'",
            "UPDATE gateways_feature SET last_seen_at = now()",
        ):
            assert connection.execute(statement).rowcount == 1
    Feature.objects.learn(assignment, [{"name": "search", "inputSchema": {"type": "object"}}])

    assert str(token.pk)
    assert told() == set()
