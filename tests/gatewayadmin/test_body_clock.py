"""Time limits for request bodies, and limits on anonymous connections."""

import asyncio
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from gatewayadmin.serving.http_protocol import LimitedHttpProtocol, McpHttpProtocol
from tests.eventually import PATIENCE

HEAD = b"POST /mcp/work HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
ELSEWHERE = b"POST /oauth/token HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


BODY_SECONDS = 0.6


def hasty(protocol: type[LimitedHttpProtocol], **bounds: float) -> type[LimitedHttpProtocol]:
    """Return `protocol` with limits short enough for a test."""
    quick = {"body_seconds": BODY_SECONDS, "body_window": 0.1, "body_rate": 100, "most_unauthenticated": 3}
    return type("Hasty", (protocol,), {**quick, "unauthenticated": {}, **bounds})


async def reader_of_all(scope: Scope, receive: Receive, send: Send) -> None:
    while (event := await receive()).get("more_body"):
        pass
    if event["type"] == "http.request":
        await _answer(send, 200)


async def reader_of_nothing(scope: Scope, receive: Receive, send: Send) -> None:
    await _answer(send, 401, (b"connection", b"close"))


async def _answer(send: Send, status: int, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"2"), *headers]})
    await send({"type": "http.response.body", "body": b"hi"})


class Client:
    """One connection to a server in this loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def rest(self) -> bytes:
        """Return all remaining data until the server closes."""
        return await asyncio.wait_for(self.reader.read(), PATIENCE)

    async def is_closed(self) -> bool:
        try:
            return await asyncio.wait_for(self.reader.read(), 0.2) == b""
        except TimeoutError:
            return False


def talk(app: Any, conversation: Any, protocol: type[LimitedHttpProtocol]) -> Any:
    """Run a server, and return the result of the coroutine `conversation`, which gets a function that connects."""

    async def main() -> Any:
        config = Config(app, log_config=None, ws="none")
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(lambda: protocol(config, ServerState(), {}), "127.0.0.1", 0)
        clients = []

        async def connect(*pieces: bytes) -> Client:
            client = Client(*await asyncio.open_connection(*listener.sockets[0].getsockname()))
            clients.append(client)
            for piece in pieces:
                client.writer.write(piece)
            await asyncio.sleep(0.02)  # The server has accepted the connection.
            return client

        async with listener:
            try:
                return await conversation(connect)
            finally:
                for client in clients:
                    client.writer.close()

    return asyncio.run(main())


def test_a_body_that_stops_half_way_is_given_up_with_408(http_protocol: type[LimitedHttpProtocol]) -> None:
    async def conversation(connect: Any) -> tuple[bytes, bytes]:
        call = await connect(HEAD % 1000 + b"x" * 999)
        form = await connect(ELSEWHERE % 1000 + b"x" * 999)
        return await call.rest(), await form.rest()

    assert [answer.split(b"\r\n")[0] for answer in talk(reader_of_all, conversation, hasty(http_protocol))] == [
        b"HTTP/1.1 408 Request Timeout"
    ] * 2


@pytest.mark.full
def test_a_body_that_trickles_is_given_up_at_its_deadline(http_protocol: type[LimitedHttpProtocol]) -> None:
    async def conversation(connect: Any) -> bytes:
        client = await connect(HEAD % 100_000)
        told = asyncio.create_task(client.reader.readline())  # The answer precedes the connection reset.
        async with asyncio.timeout(PATIENCE):
            while not told.done():
                client.writer.write(b"x" * 20)
                await asyncio.sleep(0.02)
        return bytes((await told).strip())

    # The client sends more than 1 byte/s, so only the deadline can end this body. With a rate window as long as the
    # deadline, the rate is checked once, when even a client on a busy machine has sent enough.
    steady = hasty(http_protocol, body_window=BODY_SECONDS, body_rate=1)
    assert talk(reader_of_all, conversation, steady) == b"HTTP/1.1 408 Request Timeout"


@pytest.mark.full
def test_a_slow_but_steady_body_is_taken() -> None:
    async def conversation(connect: Any) -> bytes:
        client = await connect(HEAD % 30)
        for _ in range(30):
            client.writer.write(b"x")
            await asyncio.sleep(0.01)
        return bytes(await client.reader.readline())

    steady = hasty(McpHttpProtocol, body_seconds=60, body_rate=1)
    assert talk(reader_of_all, conversation, steady) == b"HTTP/1.1 200 OK\r\n"


def test_a_client_that_is_refused_while_it_sends_can_read_why(http_protocol: type[LimitedHttpProtocol]) -> None:
    async def conversation(connect: Any) -> list[bytes]:
        heard = []
        for head in (HEAD, ELSEWHERE):
            client = await connect(head % 3_000_000, b"x" * 100_000)
            for _ in range(20):  # Sent after the answer; closing the socket at once would reset it.
                client.writer.write(b"x" * 100_000)
                await asyncio.sleep(0.005)
            heard.append(await client.rest())
        return heard

    for answer in talk(reader_of_nothing, conversation, hasty(http_protocol)):
        assert answer.startswith(b"HTTP/1.1 401 Unauthorized\r\n")
        assert b"connection: close\r\n" in answer
        assert answer.endswith(b"hi")


def test_the_oldest_stranger_who_owes_us_something_makes_room_for_another(
    http_protocol: type[LimitedHttpProtocol],
) -> None:
    async def conversation(connect: Any) -> list[bool]:
        clients = [await connect(HEAD % 10 + b"x")]
        clients += [await connect(b"GET /half") for _ in range(3)]
        assert await clients[0].rest() == b""
        return [await client.is_closed() for client in clients]

    assert talk(reader_of_all, conversation, hasty(http_protocol, body_window=5)) == [True, False, False, False]


@pytest.mark.full
def test_a_connection_that_was_let_through_is_no_stranger_s_any_more(http_protocol: type[LimitedHttpProtocol]) -> None:
    for first in (HEAD % 2 + b"hi", b"GET /mcp/work HTTP/1.1\r\nHost: x\r\n\r\n"):

        async def conversation(connect: Any, first: bytes = first) -> list[bool]:
            clients = [await connect(first)]
            assert (await clients[0].reader.readline()).startswith(b"HTTP/1.1 200")
            await clients[0].reader.readexactly(len(b"content-length: 2\r\n\r\nhi"))
            clients += [await connect(b"GET /half") for _ in range(4)]
            assert await clients[1].rest() == b""
            return [await client.is_closed() for client in clients]

        assert talk(reader_of_all, conversation, hasty(http_protocol)) == [False, True, False, False, False]


def test_clients_get_an_error_when_nearly_all_files_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.open_files.open_files_limit", lambda: 5)

    async def conversation(connect: Any) -> bytes:
        return bytes(await (await connect()).rest())

    answer = talk(reader_of_all, conversation, McpHttpProtocol)

    assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 10\r\n")


async def large(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(64):
        await send({"type": "http.response.body", "body": b"x" * (1 << 20), "more_body": True})
    await send({"type": "http.response.body"})


@pytest.mark.full
def test_an_answer_that_is_read_slowly_is_not_cut() -> None:
    async def conversation(connect: Any) -> int:
        client = await connect(b"GET /logs/export/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        read = 0
        while some := await asyncio.wait_for(client.reader.read(1 << 20), PATIENCE):
            read += len(some)
            await asyncio.sleep(0.005)
        return read

    assert talk(large, conversation, hasty(LimitedHttpProtocol, untaken_seconds=1)) > 64 << 20
