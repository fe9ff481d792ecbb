"""A large answer waits in its socket until the memory budget has room for it."""

import asyncio
import json
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol
from unittest.mock import Mock

import pytest

from tests.eventually import PATIENCE
from tests.wire.test_http1 import LIMIT, MIB, READ
from tests.wire.test_pool import LOOPBACK
from wire.errors import AnswerTooSlow, NoMemory
from wire.fair_queue import SHARES, ByteBudget
from wire.http import AHEAD_LIMIT, Origin, Oversized, Transport
from wire.jsonrpc import LARGE
from wire.mcp import SESSION, RpcResponse, Target, ignore, read_response

SIZE = 4 * MIB


def answer(request_id: int) -> bytes:
    result = {"content": [{"type": "text", "text": "x" * SIZE}]}
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "result": result}).encode()


def as_json(request_id: int) -> bytes:
    body = answer(request_id)
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def as_event(request_id: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: " + answer(request_id) + b"\n\n"


class Call:
    """A call of `person`, and the server that answers it. The server sends only while the gateway reads."""

    def __init__(
        self, transport: Transport, sock: socket.socket, person: str, stream: bytes = b"", server: str = ""
    ) -> None:
        self._person = person
        self._pool = transport
        self._stream = stream
        self._reads = True
        self.sent = 0
        host = f"{server or id(self)}.example"
        origin = Origin("http", host, 80)
        self.connection = transport._connection(sock, origin)
        events = {"pause_reading": self._pause, "resume_reading": self._resume}
        self.connection.connection_made(Mock(asyncio.Transport, is_closing=lambda: False, **events))
        self.connection.mark_idle()
        transport._idle.setdefault(origin, deque()).append(self.connection)
        self.task = asyncio.create_task(self._ask(host))

    async def _ask(self, host: str) -> RpcResponse:
        target = Target("s", "Docs", f"http://{host}/", "", 60, 1, "c", None, "")
        with await self._pool.send("POST", "Docs", target.url, {}, person=self._person) as response:
            return await read_response(response, target, 1, SESSION, ignore)

    def _pause(self) -> None:
        self._reads = False

    def _resume(self) -> None:
        self._reads = True

    async def send(self, upto: int) -> None:
        """Send the first `upto` bytes of the answer, or fewer if the client pauses reading for 0.2 seconds."""
        await asyncio.sleep(0)  # Let the task send its request first.
        idle = 0
        while self.sent < upto and idle < 200 and not self.task.done():
            if self._reads:
                piece = self._stream[self.sent : min(self.sent + READ, upto)]
                self.connection.data_received(piece)
                self.sent += len(piece)
                idle = 0
            idle += 1
            await asyncio.sleep(0.001)


class Begin(Protocol):
    def __call__(self, person: str, server: str = "") -> Call: ...


@contextmanager
def sockets() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours


@asynccontextmanager
async def calls(make: Callable[[int], bytes], most: int = SHARES * 2) -> AsyncIterator[Begin]:
    """Yield a function that starts calls. The budget has room for `most` answers, by default two per person's share."""
    stream, begun = make(1), []
    budget = ByteBudget(most * (LIMIT if make is as_event else len(stream)))
    async with Transport(LOOPBACK, limit=LIMIT, budget=budget) as transport:
        with sockets() as sock:

            def begin(person: str, server: str = "") -> Call:
                begun.append(Call(transport, sock, person, stream, server))
                return begun[-1]

            yield begin
            for call in begun:
                call.task.cancel()
            await asyncio.gather(*(call.task for call in begun), return_exceptions=True)


async def taking_all(begin: Begin) -> list[Call]:
    """Return two calls of one person that use up that person's share."""
    holders = [begin("ana") for _ in range(2)]
    await asyncio.gather(*(call.send(SIZE) for call in holders))
    return holders


WITHOUT_ROOM = LARGE + 2 * AHEAD_LIMIT + READ


@pytest.mark.full
@pytest.mark.parametrize("make", [as_json, as_event])
async def test_an_answer_without_room_waits_in_its_socket_and_others_do_not(make: Callable[[int], bytes]) -> None:
    async with calls(make) as begin:
        holders = await taking_all(begin)
        late, other = begin("ana"), begin("max")
        await asyncio.gather(late.send(SIZE), other.send(2 * SIZE))

        assert late.sent <= WITHOUT_ROOM
        assert (await asyncio.wait_for(other.task, PATIENCE)).text == answer(1)

        await asyncio.gather(*(call.send(2 * SIZE) for call in holders))
        answers = [await asyncio.wait_for(call.task, PATIENCE) for call in holders]
        assert [each.text for each in answers] == [answer(1)] * 2


async def test_small_answers_wait_for_nobody() -> None:
    async with calls(as_json) as begin:
        await taking_all(begin)
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"text": "x" * (MIB - 100)}}).encode()
        small = begin("ana")
        small._stream = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body

        await small.send(SIZE)

        assert (await asyncio.wait_for(small.task, PATIENCE)).text == body


def cut_off(call: Call) -> None:
    call.connection.connection_lost(None)


def leave(call: Call) -> None:
    call.task.cancel()


def grow_too_large(call: Call) -> None:
    call.connection._fail(Oversized("more than 10 MiB"))


@pytest.mark.full
@pytest.mark.parametrize("make", [as_json, as_event])
async def test_there_is_room_again_however_an_answer_ends(make: Callable[[int], bytes]) -> None:
    for end in (cut_off, leave, grow_too_large):
        async with calls(make) as begin:
            holders = await taking_all(begin)
            late, gone = begin("ana"), begin("ana")
            await asyncio.gather(late.send(SIZE), gone.send(SIZE))
            gone.task.cancel()  # While the call waits for room in the budget.
            assert late.sent <= WITHOUT_ROOM
            for call in holders:
                end(call)
            await asyncio.gather(*(call.task for call in holders), return_exceptions=True)

            await late.send(2 * SIZE)

            assert (await asyncio.wait_for(late.task, PATIENCE)).text == answer(1), end


@pytest.mark.full
async def test_answers_of_unknown_size_take_no_more_than_all_may() -> None:
    async with calls(as_event, most=2) as begin:
        for person in ("ana", "max", "ben"):
            await begin(person).send(SIZE)
        late = begin("viv")
        await late.send(SIZE)

        assert late.sent <= WITHOUT_ROOM


@pytest.mark.full
async def test_one_server_leaves_half_of_the_room_to_others() -> None:
    async with calls(as_event, most=4) as begin:
        for number in range(2):
            await begin(f"person {number}", "slow").send(SIZE)
        late, other = begin("ana", "slow"), begin("max", "quick")
        await asyncio.gather(late.send(SIZE), other.send(2 * SIZE))

        assert late.sent <= WITHOUT_ROOM
        assert (await asyncio.wait_for(other.task, PATIENCE)).text == answer(1)


@pytest.fixture
def soon_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wire.fair_queue.PACE_SECONDS", 0.02)


@pytest.mark.usefixtures("soon_slow")
@pytest.mark.parametrize("make", [as_json, as_event])
async def test_an_answer_that_stops_arriving_gives_its_room_to_one_that_waits(make: Callable[[int], bytes]) -> None:
    async with calls(make, most=1) as begin:
        slow = begin("ana")
        await slow.send(SIZE)
        other = begin("max")
        await other.send(SIZE)

        with pytest.raises(
            AnswerTooSlow, match="too slowly while other answers waited for memory; the server may have executed"
        ) as cut:
            await asyncio.wait_for(slow.task, PATIENCE)

        assert (cut.value.outcome, cut.value.data) == (
            "timeout",
            {"reason": "timeout", "server": "Docs", "limit": "pace"},
        )
        await other.send(2 * SIZE)
        assert (await asyncio.wait_for(other.task, PATIENCE)).text == answer(1)


@pytest.mark.full
@pytest.mark.usefixtures("soon_slow")
@pytest.mark.parametrize("waiting", [False, True])
async def test_a_slow_answer_is_read_to_its_end_when_others_wait_for_their_own_room_or_not_at_all(
    waiting: bool,
) -> None:
    async with calls(as_event) as begin:
        slow = begin("max")
        await slow.send(SIZE)
        budget = slow.connection._budget
        assert budget is not None
        untaken = budget.take("ana", 2 * LIMIT)
        other = asyncio.create_task(budget.hold("ana" if waiting else "ben", LIMIT))

        await asyncio.sleep(0.2)  # The slow answer pauses much longer than is allowed while other answers wait.
        await slow.send(2 * SIZE)

        assert (await asyncio.wait_for(slow.task, PATIENCE)).text == answer(1)
        assert other.done() is not waiting
        other.cancel()
        del untaken


@pytest.mark.full
@pytest.mark.usefixtures("soon_slow")
async def test_an_answer_that_arrives_fast_enough_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wire.http.LEAST_PACE", 0)
    async with calls(as_event, most=1) as begin:
        steady = begin("ana")
        await steady.send(SIZE)
        other = begin("max")
        await other.send(SIZE)

        await asyncio.sleep(0.2)
        await steady.send(2 * SIZE)

        assert (await asyncio.wait_for(steady.task, PATIENCE)).text == answer(1)


async def test_an_answer_without_room_is_not_called_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wire.fair_queue.HOLD_SECONDS", 0.0)
    async with calls(as_event) as begin:
        await taking_all(begin)
        late = begin("ana")
        await late.send(SIZE)

        with pytest.raises(NoMemory, match="left no memory to read it; the server may have executed"):
            await asyncio.wait_for(late.task, PATIENCE)
