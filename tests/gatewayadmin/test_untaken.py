"""A client that takes nothing of what it is sent is cut off; one that takes it slowly is not."""

import asyncio
from typing import Any
from unittest.mock import Mock

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from gatewayadmin.serving.head_limits import UNTAKEN_LOOKS, HeadLimits
from tests.eventually import PATIENCE
from tests.gatewayadmin.test_body_clock import hasty, talk

PIECE, PIECES = b"x" * (1 << 16), 500  # More than the buffers of the system hold.
CALL = b"POST /mcp/work HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


def test_a_client_that_takes_nothing_is_cut_off(
    http_protocol: type[HeadLimits], caplog: pytest.LogCaptureFixture
) -> None:
    async def conversation(connect: Any) -> bool:
        ended = asyncio.Event()
        await connect(CALL)
        conversations.append(ended)
        await asyncio.wait_for(ended.wait(), PATIENCE)
        return True

    conversations: list[asyncio.Event] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(PIECES):
            await send({"type": "http.response.body", "body": PIECE, "more_body": number + 1 < PIECES})
        conversations[0].set()

    assert talk(app, conversation, hasty(http_protocol, untaken_seconds=0.3))
    assert "took nothing of an answer" in caplog.text


@pytest.fixture
def watched(http_protocol: type[HeadLimits]) -> tuple[Any, Mock, Mock]:
    """A protocol that watches a client; its transport, of which the test says what the client took, and its loop."""
    loop: Mock = Mock(asyncio.AbstractEventLoop, now=0.0)
    loop.time = lambda: loop.now
    transport = Mock(asyncio.Transport, get_extra_info=lambda *_: None, is_closing=lambda: False)
    transport.get_write_buffer_size = lambda: transport.size
    transport.size = 1000
    protocol = http_protocol(Config(Mock(), log_config=None, ws="none"), ServerState(), {}, loop)
    protocol.connection_made(transport)
    return protocol, transport, loop


def look(protocol: Any, loop: Mock, seconds: float) -> None:
    loop.now += seconds
    protocol._judge_reader()


def test_whoever_takes_a_little_in_time_is_waited_for(watched: tuple[Any, Mock, Mock]) -> None:
    protocol, transport, loop = watched
    protocol.pause_writing()
    for _ in range(10 * UNTAKEN_LOOKS):
        transport.size -= 1
        look(protocol, loop, protocol.untaken_seconds / 2)
        look(protocol, loop, protocol.untaken_seconds / 3)

    transport.abort.assert_not_called()
    look(protocol, loop, protocol.untaken_seconds)
    transport.abort.assert_called_once()
    protocol.connection_lost(None)


def test_whoever_has_taken_all_is_not_watched_any_more(watched: tuple[Any, Mock, Mock]) -> None:
    protocol, transport, _ = watched
    protocol.pause_writing()
    clock = protocol._untaken_clock

    protocol.resume_writing()

    clock.cancel.assert_called_once()
    transport.abort.assert_not_called()
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
