"""Limits on request headers and pending bytes."""

import asyncio
from collections.abc import Callable

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from gatewayadmin.serving.http_protocol import MOST, LimitedHttpProtocol
from tests.eventually import PATIENCE


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


async def _exchange(protocol: type[LimitedHttpProtocol], pieces: list[bytes], pause: float, seconds: float) -> bytes:
    config = Config(hello, log_config=None, ws="none")
    hasty = type("Hasty", (protocol,), {"seconds": seconds})
    listener = await asyncio.get_running_loop().create_server(lambda: hasty(config, ServerState(), {}), "127.0.0.1", 0)
    async with listener:
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        try:
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(pause)
            return await asyncio.wait_for(reader.read(4096), PATIENCE)
        except ConnectionError:
            return b""
        finally:
            writer.close()


type AnswerTo = Callable[..., bytes]


@pytest.fixture
def answer_to(http_protocol: type[LimitedHttpProtocol]) -> AnswerTo:
    """Return a function that sends pieces of a request, and returns the first line of the response.

    The line is empty if the connection is closed without a response.
    """

    def answer(*pieces: bytes, pause: float = 0.01, seconds: float = 60) -> bytes:
        return asyncio.run(_exchange(http_protocol, list(pieces), pause, seconds)).partition(b"\r\n")[0]

    return answer


async def _paused_and_kept(protocol: type[LimitedHttpProtocol], head: bytes, body: bytes) -> tuple[bool, int, int]:
    """Send a request; return whether reading was paused when the app began, and two numbers of bytes.

    The first counts the body's bytes that were buffered when the app began; the second, those that the app received.
    """
    seen: list[tuple[bool, int]] = []
    got, began = 0, asyncio.Event()

    async def judge(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal got
        seen.append((serving[0].flow.read_paused, len(serving[0].cycle.body)))
        began.set()
        more = True
        while more:
            message = await receive()
            got += len(message.get("body", b""))
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    config = Config(judge, log_config=None, ws="none")
    serving: list[LimitedHttpProtocol] = []

    def serve() -> LimitedHttpProtocol:
        serving.append(protocol(config, ServerState(), {}))
        return serving[-1]

    listener = await asyncio.get_running_loop().create_server(serve, "127.0.0.1", 0)
    async with listener:
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\n" + head)
        await asyncio.wait_for(began.wait(), PATIENCE)
        writer.write(body)
        assert (await asyncio.wait_for(reader.readline(), PATIENCE)).startswith(b"HTTP/1.1 200")
        writer.close()
    return *seen[0], got


def test_a_large_body_is_read_only_on_demand(http_protocol: type[LimitedHttpProtocol]) -> None:
    for head, body, paused in (
        (b"Content-Length: %d\r\n\r\n" % (4 * MOST), b"x" * 4 * MOST, True),
        (b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n%s\r\n0\r\n\r\n" % (4 * MOST, b"x" * 4 * MOST), True),
        (b"Content-Length: %d\r\n\r\n" % MOST, b"x" * MOST, False),
    ):
        got = body.count(b"x")
        assert asyncio.run(_paused_and_kept(http_protocol, head, body)) == (paused, 0, got), head


@pytest.mark.full
def test_an_endless_head_is_refused_once_too_large(answer_to: AnswerTo) -> None:
    refused, endless = b"HTTP/1.1 431 Request Header Fields Too Large", [b"x" * (MOST // 4)] * 5
    assert answer_to(b"GET /", *endless) == refused
    assert answer_to(b"GET / HTTP/1.1\r\nX: ", *endless) == refused
    assert answer_to(b"GET / HTTP/1.1\r\n", b"X: 123456789\r\n" * (MOST // 10) + b"\r\n") == refused
    trailer = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: "
    assert answer_to(trailer, *endless) == b""


@pytest.mark.full
def test_a_head_that_takes_too_long_closes_the_connection(answer_to: AnswerTo) -> None:
    for drip in (b"", b"x", b"\r\n"):
        assert answer_to(*[drip] * 4, pause=0.1, seconds=0.2) == b"", drip
