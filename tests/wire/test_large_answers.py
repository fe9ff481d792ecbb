"""Of large answers those for which there is room are kept in memory; the others wait in their sockets."""

import asyncio
import json
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from unittest.mock import Mock

import pytest

from tests.eventually import PATIENCE
from tests.wire.test_http1 import LIMIT, MIB, READ
from tests.wire.test_pool import LOOPBACK
from wire.fair_queue import SHARES, ByteBudget
from wire.http import AHEAD_LIMIT, HttpConnection, Origin, Oversized, Transport
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
    """A call of `person`, and the server's end of its connection, which sends while somebody reads."""

    def __init__(self, transport: Transport, sock: socket.socket, person: str, stream: bytes = b"") -> None:
        self._person = person
        self._pool = transport
        self._stream = stream
        self._reads = True
        self.sent = 0
        self.connection = HttpConnection(sock, LIMIT, transport._slices, transport._budget)
        events = {"pause_reading": self._pause, "resume_reading": self._resume}
        self.connection.connection_made(Mock(asyncio.Transport, is_closing=lambda: False, **events))
        self.connection.mark_idle()
        host = f"{id(self)}.example"
        transport._idle[Origin("http", host, 80)] = deque([self.connection])
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
        """Send the first `upto` bytes of the answer, or fewer when nobody reads on for a while."""
        await asyncio.sleep(0)  # The request goes first.
        idle = 0
        while self.sent < upto and idle < 200 and not self.task.done():
            if self._reads:
                piece = self._stream[self.sent : min(self.sent + READ, upto)]
                self.connection.data_received(piece)
                self.sent += len(piece)
                idle = 0
            idle += 1
            await asyncio.sleep(0.001)


type Begin = Callable[[str], Call]


@contextmanager
def sockets() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours


@asynccontextmanager
async def calls(make: Callable[[int], bytes]) -> AsyncIterator[Begin]:
    """Begin calls within a budget of which each person has room for two answers."""
    stream, begun = make(1), []
    budget = ByteBudget(SHARES * 2 * (LIMIT if make is as_event else len(stream)))
    async with Transport(LOOPBACK, limit=LIMIT, budget=budget) as transport:
        with sockets() as sock:

            def begin(person: str) -> Call:
                begun.append(Call(transport, sock, person, stream))
                return begun[-1]

            yield begin
            for call in begun:
                call.task.cancel()
            await asyncio.gather(*(call.task for call in begun), return_exceptions=True)


async def taking_all(begin: Begin) -> list[Call]:
    """Two calls of one person that take all the room there is for that person."""
    holders = [begin("ana") for _ in range(2)]
    await asyncio.gather(*(call.send(SIZE) for call in holders))
    return holders


WITHOUT_ROOM = LARGE + 2 * AHEAD_LIMIT + READ


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


async def test_what_is_not_large_waits_for_nobody() -> None:
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


@pytest.mark.parametrize("end", [cut_off, leave, grow_too_large])
@pytest.mark.parametrize("make", [as_json, as_event])
async def test_there_is_room_again_however_an_answer_ends(
    make: Callable[[int], bytes], end: Callable[[Call], None]
) -> None:
    async with calls(make) as begin:
        holders = await taking_all(begin)
        late, gone = begin("ana"), begin("ana")
        await asyncio.gather(late.send(SIZE), gone.send(SIZE))
        gone.task.cancel()  # While it waits.
        assert late.sent <= WITHOUT_ROOM
        for call in holders:
            end(call)
        await asyncio.gather(*(call.task for call in holders), return_exceptions=True)

        await late.send(2 * SIZE)

        assert (await asyncio.wait_for(late.task, PATIENCE)).text == answer(1)
