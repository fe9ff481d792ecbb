"""Of the answers that are large only few are kept in memory at once; the others wait in their sockets."""

import asyncio
import json
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from unittest.mock import Mock

import pytest

from tests.eventually import PATIENCE
from tests.wire.test_http1 import LIMIT, MIB, READ
from tests.wire.test_pool import LOOPBACK
from wire.errors import TooSlow
from wire.fair_queue import LARGE_AT_ONCE
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
    """A call at `server`, and the server's end of its connection, which sends while somebody reads."""

    def __init__(self, transport: Transport, sock: socket.socket, server: str, stream: bytes = b"") -> None:
        self._pool = transport
        self._stream = stream
        self._reads = True
        self.sent = 0
        self.connection = HttpConnection(sock, LIMIT, transport._turns, server)
        events = {"pause_reading": self._pause, "resume_reading": self._resume}
        self.connection.connection_made(Mock(asyncio.Transport, is_closing=lambda: False, **events))
        self.connection.mark_idle()
        host = f"{id(self)}.example"
        transport._idle[Origin("http", host, 80)] = deque([self.connection])
        self.task = asyncio.create_task(self._ask(host))

    async def _ask(self, host: str) -> RpcResponse:
        target = Target("s", "Docs", f"http://{host}/", "", 60, 1, "c", None, "")
        with await self._pool.send("POST", "Docs", target.url, {}) as response:
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
async def calls(make: Callable[[int], bytes]) -> AsyncIterator[tuple[Begin, Transport]]:
    async with Transport(LOOPBACK, limit=LIMIT) as transport:
        stream, begun = make(1), []
        with sockets() as sock:

            def begin(server: str) -> Call:
                begun.append(Call(transport, sock, server, stream))
                return begun[-1]

            yield begin, transport
            for call in begun:
                call.task.cancel()
            await asyncio.gather(*(call.task for call in begun), return_exceptions=True)


async def in_turn(begin: Begin, size: int) -> list[Call]:
    """Three calls that hold every place, one after the other: the second of one server may not come after another's."""
    holders = []
    for server in ("one", "one", "another"):
        holders.append(begin(server))
        await holders[-1].send(size)
    return holders


WITHOUT_PLACE = LARGE + 2 * AHEAD_LIMIT + READ


@pytest.mark.parametrize("make", [as_json, as_event])
async def test_few_large_answers_are_read_at_once_and_one_server_leaves_a_place_to_others(
    make: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wire.http.LARGE_WINDOW", 600)  # However slow this machine is, nobody is too slow here.
    async with calls(make) as (begin, transport):
        of_one, of_another = [begin("one") for _ in range(4)], [begin("another") for _ in range(2)]
        everybody = [*of_one, *of_another]
        ends = time.monotonic() + PATIENCE
        # First those of one: with one place each, the last would stay free for a third server.
        for calls_of, places in ((of_one, LARGE_AT_ONCE - 1), (everybody, LARGE_AT_ONCE)):
            while sum(call.sent == SIZE for call in calls_of) < places and time.monotonic() < ends:
                await asyncio.gather(*(call.send(SIZE) for call in calls_of))

        assert sum(call.sent == SIZE for call in everybody) == LARGE_AT_ONCE
        assert sum(call.sent == SIZE for call in of_one) == LARGE_AT_ONCE - 1
        assert all(call.sent == SIZE or call.sent <= WITHOUT_PLACE for call in everybody)

        while not all(call.task.done() for call in everybody):
            await asyncio.gather(*(call.send(2 * SIZE) for call in everybody))
        assert [call.task.result().text == answer(1) for call in everybody] == [True] * 6
        assert transport._turns.large.is_idle


async def test_what_is_not_large_waits_for_nobody() -> None:
    async with calls(as_json) as (begin, _):
        await in_turn(begin, SIZE)
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"text": "x" * (MIB - 100)}}).encode()
        small = begin("one")
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
async def test_a_place_is_free_again_however_its_answer_ends(
    make: Callable[[int], bytes], end: Callable[[Call], None]
) -> None:
    async with calls(make) as (begin, transport):
        holders = await in_turn(begin, SIZE)
        late, gone = begin("another"), begin("one")
        await asyncio.gather(late.send(SIZE), gone.send(SIZE))
        gone.task.cancel()  # While it waits.
        assert late.sent <= WITHOUT_PLACE
        for call in holders:
            end(call)
        await asyncio.gather(*(call.task for call in holders), return_exceptions=True)

        await late.send(2 * SIZE)

        assert (await asyncio.wait_for(late.task, 20)).text == answer(1)
        assert transport._turns.large.is_idle


@pytest.mark.parametrize("make", [as_json, as_event])
async def test_a_large_answer_that_hardly_comes_loses_its_place_when_others_wait_and_not_before(
    make: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wire.http.LARGE_WINDOW", 0.05)
    async with calls(make) as (begin, _):
        slow = await in_turn(begin, SIZE // 2)
        await asyncio.sleep(0.5)
        assert not any(call.task.done() for call in slow)

        good = begin("good")
        while not good.task.done():
            await good.send(2 * SIZE)

        assert good.task.result().text == answer(1)
        ended = [error for call in slow if call.task.done() and (error := call.task.exception()) is not None]
        assert ended
        assert all(isinstance(error, TooSlow) for error in ended)
