"""A client that reads almost nothing of a response is disconnected; a slow reader is not disconnected."""

import asyncio
import socket
from contextlib import suppress
from typing import Any
from unittest.mock import Mock

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from gatewayadmin.serving.http_protocol import LEAST_TAKEN, UNTAKEN_LOOKS, LimitedHttpProtocol, McpHttpProtocol
from tests.eventually import PATIENCE
from tests.gatewayadmin.test_body_clock import hasty, talk

PIECE, PIECES = b"x" * (1 << 16), 500  # More than the system's buffers can hold.
CALL = b"POST /mcp/work HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


async def a_little(sock: socket.socket) -> None:
    """Read a few bytes at a time."""
    with suppress(ConnectionResetError):
        while await asyncio.get_running_loop().sock_recv(sock, 256):  # noqa: ASYNC110 - it is slow on purpose
            await asyncio.sleep(0.02)


@pytest.mark.full
def test_a_client_that_takes_hardly_anything_is_cut_off(
    http_protocol: type[LimitedHttpProtocol], caplog: pytest.LogCaptureFixture
) -> None:
    async def conversation(connect: Any) -> bool:
        ended = asyncio.Event()
        conversations.append(ended)
        loop, other = asyncio.get_running_loop(), await connect()
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # Keep the system's receive buffer small.
            sock.setblocking(False)
            await loop.sock_connect(sock, other.writer.get_extra_info("peername"))
            await loop.sock_sendall(sock, CALL)
            taking = asyncio.create_task(a_little(sock))
            await asyncio.wait_for(ended.wait(), PATIENCE)
            taking.cancel()
            await asyncio.wait([taking])
        return True

    conversations: list[asyncio.Event] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(PIECES):
            await send({"type": "http.response.body", "body": PIECE, "more_body": number + 1 < PIECES})
        conversations[0].set()

    assert talk(app, conversation, hasty(http_protocol, untaken_seconds=0.6))
    assert "took less than 16 KiB of an answer" in caplog.text


@pytest.mark.full
def test_a_stream_with_little_to_send_is_not_cut_off() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await asyncio.sleep(0.5)
        await send({"type": "http.response.body", "body": b"data: 2\n\n"})

    async def conversation(connect: Any) -> bytes:
        client = await connect(CALL)
        client.writer.transport.pause_reading()
        await asyncio.sleep(1)
        client.writer.transport.resume_reading()
        return bytes(await client.rest())

    answer = talk(app, conversation, hasty(McpHttpProtocol, untaken_seconds=0.1))
    assert b"data: 1" in answer
    assert b"data: 2" in answer


@pytest.fixture
def watched() -> tuple[Any, Mock, Mock]:
    """Return a protocol that watches a client, and the mocks of its transport and its loop."""
    loop: Mock = Mock(asyncio.AbstractEventLoop, now=0.0)
    loop.time = lambda: loop.now
    transport = Mock(asyncio.Transport, get_extra_info=lambda *_: None, is_closing=lambda: False)
    transport.get_write_buffer_size = lambda: transport.size
    transport.size = 100 * LEAST_TAKEN
    protocol = LimitedHttpProtocol(Config(Mock(), log_config=None, ws="none"), ServerState(), {}, loop)
    protocol.connection_made(transport)
    return protocol, transport, loop


def look(protocol: Any, loop: Mock, seconds: float) -> None:
    loop.now += seconds
    protocol._judge_reader()


def test_a_client_that_reads_enough_in_time_is_not_cut_off(watched: tuple[Any, Mock, Mock]) -> None:
    protocol, transport, loop = watched
    protocol.pause_writing()
    for _ in range(10 * UNTAKEN_LOOKS):
        transport.size -= LEAST_TAKEN
        look(protocol, loop, protocol.untaken_seconds / 2)
        look(protocol, loop, protocol.untaken_seconds / 3)

    protocol.resume_writing()
    assert not protocol._untaken_clock.is_running, "all was read"
    protocol.pause_writing()
    transport.abort.assert_not_called()
    for _ in range(UNTAKEN_LOOKS + 1):
        look(protocol, loop, protocol.untaken_seconds)
    transport.abort.assert_called()
    protocol.connection_lost(None)


def test_a_connection_that_is_closed_with_something_left_to_take_does_not_stay(
    watched: tuple[Any, Mock, Mock],
) -> None:
    protocol, transport, loop = watched

    protocol.close_in_time()
    look(protocol, loop, protocol.untaken_seconds)

    transport.close.assert_called_once()
    transport.abort.assert_called_once()
    protocol.connection_lost(None)
