"""Concurrent items share a batch, and none is lost or delayed."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gatewayadmin.config import database
from proxy.store.pg import FULL_BATCH, DatabaseUnavailable, GroupCommit, PgConnection, Waiting, resolve
from tests.eventually import PATIENCE, until
from tests.forward_proxy import close_listener

pytestmark = pytest.mark.django_db(transaction=True)

type Load = list[Waiting[int, int]]


class Carrier:
    """Batch handler that waits until `open` is set. Then it doubles each number, or raises if `fails` is True."""

    def __init__(self) -> None:
        self.loads: list[list[int]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.fails = False

    async def carry(self, load: Load) -> None:
        self.loads.append([number for number, _ in load])
        await self.open.wait()
        if self.fails:
            raise ValueError("the lane broke")
        for number, future in load:
            resolve(future, 2 * number)


def said(log: pytest.LogCaptureFixture) -> list[int]:
    """Return the number of requests in each log line."""
    return [vars(record)["requests"] for record in log.records]


class Lost(Exception):
    """The outcome of a batch is unknown."""


def batches_of(carriers: list[Carrier], conninfo: str = "", **more: Any) -> GroupCommit[int, int]:
    """Return a GroupCommit with these carriers as batch handlers; each has its own connection."""
    connections = [PgConnection(conninfo or database.conninfo(), ()) for _ in carriers]
    carried = [carrier.carry for carrier in carriers]
    return GroupCommit("numbers", carried, connections, to_error=lambda error: Lost(str(error)), max_batch=20, **more)


def run(
    scene: Callable[[GroupCommit[int, int], Carrier, Carrier], Coroutine[Any, Any, None]], *, connections: int = 1
) -> None:
    """Run `scene` with one carrier for each connection, and check that the GroupCommit can then be stopped."""

    async def play() -> None:
        first, second = Carrier(), Carrier()
        batches = batches_of([first, second][:connections])
        batches.start()
        await batches.first_attempt()
        await scene(batches, first, second)
        first.open.set()
        second.open.set()
        await asyncio.wait_for(batches.stop(), 5)

    asyncio.run(play())


async def turns(number: int = 10) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def test_those_who_are_on_their_way_share_a_batch_until_there_are_enough() -> None:
    async def scene(batches: GroupCommit[int, int], carrier: Carrier, _: Carrier) -> None:
        async def arrive(number: int) -> int:
            await turns(number)
            return await batches.put(number)

        assert await batches.put(4) == 8
        assert await asyncio.gather(*[arrive(number) for number in range(3)]) == [0, 2, 4]
        sent = [batches.put(number) for number in range(FULL_BATCH)]
        await turns(2)
        sent.append(batches.put(FULL_BATCH))
        await asyncio.gather(*sent)
        assert carrier.loads == [[4], [0, 1, 2], [*range(FULL_BATCH)], [FULL_BATCH]]

    run(scene)


def test_items_that_arrive_meanwhile_share_the_next_batch_within_its_limit() -> None:
    async def scene(batches: GroupCommit[int, int], carrier: Carrier, _: Carrier) -> None:
        carrier.open.clear()
        sent = [batches.put(0)]
        await turns()
        sent += [batches.put(number) for number in range(1, 31)]
        await turns()
        assert (carrier.loads, batches.waiting) == ([[0]], 30)
        carrier.open.set()
        assert await asyncio.gather(*sent) == [2 * number for number in range(31)]
        assert [len(load) for load in carrier.loads] == [1, 20, 10]

    run(scene)


def test_another_carrier_takes_what_comes_while_one_is_away() -> None:
    async def scene(batches: GroupCommit[int, int], first: Carrier, second: Carrier) -> None:
        first.open.clear()
        second.open.clear()
        sent = [batches.put(0)]
        await turns()
        sent.append(batches.put(1))
        await turns()
        assert sorted(first.loads + second.loads) == [[0], [1]]
        first.open.set()
        second.open.set()
        assert await asyncio.gather(*sent) == [0, 2]

    run(scene, connections=2)


def test_a_broken_batch_is_told_and_the_next_goes_on() -> None:
    async def scene(batches: GroupCommit[int, int], carrier: Carrier, _: Carrier) -> None:
        carrier.fails = True
        for answer in await asyncio.gather(batches.put(1), batches.put(2), return_exceptions=True):
            assert isinstance(answer, Lost)
            assert str(answer) == "the lane broke"
        carrier.fails = False
        assert await batches.put(3) == 6

    run(scene)


def test_a_stop_hands_over_what_waits() -> None:
    sent: list[asyncio.Future[int]] = []

    async def scene(batches: GroupCommit[int, int], *_: Carrier) -> None:
        sent.extend(batches.put(number) for number in range(50))

    run(scene, connections=2)
    assert [future.result() for future in sent] == [2 * number for number in range(50)]


def test_a_database_that_is_away_is_told_of_once_a_second(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("proxy.store.pg.time.monotonic", lambda: now[0])

    async def scene(batches: GroupCommit[int, int], first: Carrier, _: Carrier) -> None:
        first.fails = True
        for at in (10, 10.2, 10.9, 11.1):
            now[0] = at
            with pytest.raises(Lost):
                await batches.put(1)
        first.fails = False
        now[0] = 11.2
        await batches.put(1)
        first.fails = True
        now[0] = 99
        with pytest.raises(Lost):
            await batches.put(1)

    run(scene)

    assert said(caplog) == [1, 3, 1]
    assert {record.getMessage() for record in caplog.records} == {"database statements fail; requests get 503"}


# Stops


class Mute:
    """A database that accepts connections and never answers on them."""

    def __init__(self) -> None:
        self.callers: list[asyncio.StreamWriter] = []
        self.conninfo = ""

    async def take(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.callers.append(writer)

    def hang_up(self) -> None:
        for writer in self.callers:
            writer.close()


@asynccontextmanager
async def mute() -> AsyncIterator[Mute]:
    database = Mute()
    server = await asyncio.start_server(database.take, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    database.conninfo = f"host={host} port={port} sslmode=disable gssencmode=disable"
    async with server:
        yield database
        await close_listener(server)
        database.hang_up()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the timeout of connection attempts longer than any test."""
    monkeypatch.setattr("proxy.store.pg.CONNECT_SECONDS", 2 * PATIENCE)
    monkeypatch.setattr("proxy.store.pg.STOP_SECONDS", 0.02)


@pytest.mark.usefixtures("patient")
async def test_a_stop_does_not_wait_for_a_database_that_does_not_let_anybody_in() -> None:
    await asyncio.wait_for(batches_of([Carrier()]).stop(), PATIENCE)  # It was never started.
    async with mute() as away:
        batches = batches_of([Carrier(), Carrier()], away.conninfo)
        batches.start()
        await until(lambda: len(away.callers) == 2)

        await asyncio.wait_for(batches.stop(), PATIENCE)

        assert batches.fault == "not connected yet"


@pytest.mark.full
@pytest.mark.usefixtures("patient")
async def test_a_stop_lets_what_waits_have_the_attempt_to_connect_that_is_under_way() -> None:
    async with mute() as away:
        carrier = Carrier()
        batches = batches_of([carrier], away.conninfo, rejects_when_full=False)
        batches.start()
        sent = batches.put(1)
        await until(lambda: away.callers)
        stopping = asyncio.create_task(batches.stop())
        await asyncio.sleep(0.2)  # Several times as long as a stop takes when nothing is pending.
        assert not sent.done()

        away.hang_up()

        await asyncio.wait_for(stopping, PATIENCE)
        with pytest.raises(Lost):
            await sent
        assert carrier.loads == []


@pytest.mark.full
@pytest.mark.usefixtures("patient")
async def test_a_stop_lets_a_batch_that_is_under_way_arrive() -> None:
    carrier = Carrier()
    batches = batches_of([carrier])
    batches.start()
    carrier.open.clear()
    sent = batches.put(1)
    await until(lambda: carrier.loads)
    stopping = asyncio.create_task(batches.stop())
    await asyncio.sleep(0.2)
    assert not stopping.done()

    carrier.open.set()

    await asyncio.wait_for(stopping, PATIENCE)
    assert sent.result() == 2


# Databases that hang


async def test_items_are_refused_while_a_batch_hangs_waiting_or_new(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.store.pg.TICK_SECONDS", 0.01)
    carrier, hung = Carrier(), asyncio.Event()
    batches = batches_of([carrier])
    batches.on_hang = hung.set
    batches.start()
    await batches.first_attempt()
    carrier.open.clear()
    away = batches.put(1)
    await until(lambda: carrier.loads)
    waits = batches.put(2)

    await asyncio.wait_for(hung.wait(), PATIENCE)
    for future in (away, waits, batches.put(3)):
        with pytest.raises((DatabaseUnavailable, Lost)):
            await asyncio.wait_for(future, PATIENCE)
    assert batches.fault == "the database hangs"

    carrier.open.set()
    await until(lambda: not batches.fault)
    assert await batches.put(4) == 8
    await asyncio.wait_for(batches.stop(), PATIENCE)
