"""A response is parsed to the same result however it is cut into chunks, and its limits are exact to the byte."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import Mock

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.test_pool import LOOPBACK, Reader, Writer, head_of, listening
from wire.fair_queue import Slices
from wire.http import HEAD_LIMIT, ConnectionBroken, HttpConnection, Oversized, Transport

pytestmark = pytest.mark.full

MIB = 1 << 20
LIMIT = 10 * MIB
READ = 256 * 1024  # The number of bytes that uvloop and asyncio read at once.

type Outcome = tuple[int, bytes] | str


def answer_to(*pieces: bytes, limit: int = LIMIT, ends: bool = False) -> Outcome:
    """Return status and body of a response that arrives in `pieces`, or the name of the error."""
    return asyncio.run(_answer(pieces, limit, ends))


async def _answer(pieces: tuple[bytes, ...], limit: int, ends: bool) -> Outcome:
    with connected(limit) as channel:
        asked = asyncio.create_task(channel.exchange(b""))
        await asyncio.sleep(0)
        for piece in pieces:
            if not channel.complete:
                channel.data_received(piece)
        if ends:
            channel.connection_lost(None)
        try:
            async with asyncio.timeout(20):
                await asked
                if channel.streams:
                    return channel.status, b"".join([chunk async for chunk in channel.chunks()])
        except (ConnectionBroken, Oversized) as refused:
            return type(refused).__name__
        return channel.status, await channel.body()


@contextmanager
def connected(limit: int = LIMIT) -> Iterator[HttpConnection]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = HttpConnection(ours, limit, Slices())
        channel.connection_made(Mock(asyncio.Transport, is_closing=lambda: False))
        yield channel


def cut(stream: bytes, at: list[int]) -> list[bytes]:
    ends = sorted({*at, len(stream)} - {0})
    return [stream[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def head(size: int, *lines: bytes) -> bytes:
    """Return a response head of `size` bytes."""
    text = b"\r\n".join((b"HTTP/1.1 200 OK", *lines, b"X-Filler: "))
    return text + b"x" * (size - len(text) - 4) + b"\r\n\r\n"


@given(st.integers(200, 2 * HEAD_LIMIT), st.integers(0, 3 * READ), st.booleans(), st.data())
def test_only_the_head_counts_as_head_however_an_answer_is_cut(
    head_size: int, body_size: int, chunked: bool, data: st.DataObject
) -> None:
    body = bytes(n & 255 for n in range(256)) * (body_size // 256)
    if chunked:
        framed = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        stream = head(head_size, b"Transfer-Encoding: chunked") + framed
    else:
        stream = head(head_size, b"Content-Length: %d" % len(body)) + body
    near = st.integers(max(head_size - 5, 0), min(head_size + 5, len(stream)))
    cuts = data.draw(st.lists(st.integers(0, len(stream)) | near, max_size=20))

    expected: Outcome = (200, body) if head_size <= HEAD_LIMIT else "Oversized"
    assert answer_to(*cut(stream, cuts)) == expected
    assert answer_to(*cut(stream, list(range(0, len(stream), READ)))) == expected


def test_each_single_cut_gives_the_same_answer() -> None:
    for stream in (
        head(300, b"Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\nX-Last: 1\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + head(300, b"Content-Length: 5") + b"hello",
    ):
        assert {answer_to(stream[:at], stream[at:]) for at in range(1, len(stream))} == {(200, b"hello")}
        assert answer_to(*(stream[at : at + 1] for at in range(len(stream)))) == (200, b"hello")


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_large_answers_pass_over_a_real_socket(make_loop: object) -> None:
    body = b"x" * LIMIT

    async def serve(reader: Reader, writer: Writer) -> None:
        while await head_of(reader):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % LIMIT + body)
            await writer.drain()
        writer.close()

    async def ask() -> set[tuple[int, bool]]:
        async with listening(serve) as port, Transport(LOOPBACK, limit=LIMIT, listener="", secret="") as transport:
            seen = set()
            for _ in range(3):
                with await transport.send("POST", "docs", f"http://127.0.0.1:{port}/", {}) as reply:
                    seen.add((reply.status, await reply.read() == body))
            return seen

    with asyncio.Runner(loop_factory=make_loop) as runner:  # type: ignore[arg-type]
        assert runner.run(ask()) == {(200, True)}
