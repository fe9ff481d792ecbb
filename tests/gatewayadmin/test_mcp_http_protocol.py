"""The fast HTTP path and uvicorn's own give the same answers, byte for byte."""

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from gatewayadmin.serving.http_protocol import LimitedHttpProtocol, McpCycle, McpHttpProtocol
from proxy.request import SAME_HEAD
from tests.eventually import PATIENCE

SHORT, LONG = b"/mcp/tools", b"/mcp/t%6Fols"  # The same path; the second is percent-encoded.


class Way(NamedTuple):
    """An HTTP protocol, and the spelling of the path in requests."""

    protocol: type[LimitedHttpProtocol]
    path: bytes


FAST = Way(McpHttpProtocol, SHORT)
OTHER_SPELLING = Way(McpHttpProtocol, LONG)
PLAIN = Way(LimitedHttpProtocol, SHORT)  # GATEWAY_FAST_HTTP=0
WAYS = {"fast": FAST, "other spelling": OTHER_SPELLING, "plain": PLAIN}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the received request, in the manner selected by the first word of the body."""
    body, more = b"", True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        body += event["body"]
        more = event["more_body"]
    length = dict(scope["headers"]).get(b"content-length", b"-")
    line = scope["method"], scope["path"], scope["http_version"]
    told = b"%s %s %s" % (" ".join(line).encode(), length, body)
    if body.startswith(b"fail"):
        raise ValueError(body)
    if body.startswith(b"slow"):
        await asyncio.sleep(0.3)
    if body.startswith(b"stream"):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        for word in told.split():
            await send({"type": "http.response.body", "body": word, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return
    headers = [(b"content-length", b"%d" % len(told))]
    if body.startswith(b"break"):
        headers.append((b"x-told", body))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": told})


async def _talk(
    way: Way, pieces: list[bytes], keep_alive: float, wait: float, served: ASGIApp = app
) -> tuple[bytes, set[str], int]:
    config = Config(served, log_config=None, ws="none", timeout_keep_alive=keep_alive)  # type: ignore[arg-type]
    cycles: set[str] = set()
    heads = received = 0
    state = ServerState()

    class Watched(way.protocol):  # type: ignore[misc,name-defined]
        def on_headers_complete(self) -> None:
            nonlocal heads
            heads += 1
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            cycles.add(type(self.cycle).__name__)
            super().on_message_complete()

        def data_received(self, data: bytes) -> None:
            nonlocal received
            received += len(data)
            super().data_received(data)

    listener = await asyncio.get_running_loop().create_server(lambda: Watched(config, state, {}), "127.0.0.1", 0)
    async with listener:
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        heard = bytearray()

        async def hear() -> None:
            with suppress(ConnectionError):
                while chunk := await reader.read(65536):
                    heard.extend(chunk)
            heard.extend(b"<closed>")

        hearing = asyncio.create_task(hear())
        for piece in pieces:
            writer.write(piece.replace(b"PATH", way.path))
            await asyncio.sleep(0.02)
        size = sum(map(len, pieces))
        await _until_answered(hearing, heard, lambda: received >= size and not state.tasks and keep_alive > wait, wait)
        hearing.cancel()
        writer.close()
    return bytes(heard), cycles, heads


async def _until_answered(
    hearing: asyncio.Task[None], heard: bytearray, is_at_rest: Callable[[], bool], wait: float
) -> None:
    """Return once the server has closed the connection or answered all requests, at the latest after `wait` seconds."""
    known, deadline = -1, asyncio.get_running_loop().time() + wait
    while not hearing.done() and asyncio.get_running_loop().time() < deadline:
        if is_at_rest() and known == len(heard):
            return
        known = len(heard)
        await asyncio.wait([hearing], timeout=0.02)


def talk(way: Way, *pieces: bytes, keep_alive: float = 2 * PATIENCE, wait: float = PATIENCE) -> bytes:
    """Send the pieces, with PATH replaced by the path; return the response, with a note if the server closed."""
    return asyncio.run(_checked_talk(way, *pieces, keep_alive=keep_alive, wait=wait))


async def _checked_talk(way: Way, *pieces: bytes, keep_alive: float = 2 * PATIENCE, wait: float = PATIENCE) -> bytes:
    heard, cycles, _ = await _talk(way, [*pieces], keep_alive, wait)
    assert (McpCycle.__name__ in cycles) is (way == FAST), "not the way that was to be tried"
    return re.sub(rb"date: [^\r]*\r\n", b"", heard)


def talk_in_time(way: Way, *pieces: bytes, keep_alive: float) -> bytes:
    """Return the response. Make up to twenty attempts, because a slow machine may send a request too late."""
    heard = b""
    for _ in range(20):
        heard = talk(way, *pieces, keep_alive=keep_alive)
        if heard.count(b"HTTP/1.1 200") == len(pieces):
            break
    return heard


def parsed(*pieces: bytes) -> int:
    """Count the header blocks that the server parsed to answer these requests."""
    return asyncio.run(_talk(FAST, [*pieces], 2 * PATIENCE, PATIENCE))[2]


def post(body: bytes, *headers: bytes, version: bytes = b"1.1") -> bytes:
    lines = [b"POST PATH HTTP/" + version, b"Host: x", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


CHUNKED = b"POST PATH HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"

TALKS = {
    "calls of other lengths": [post(b"hello"), post(b"once again"), post(b""), post(b"x" * 5000)],
    "another head between": [post(b"hello"), post(b"again", b"X-Other: 1"), post(b"hello"), post(b"again")],
    "the same head in pieces": [post(b"hello"), post(b"again")[:30], post(b"again")[30:], post(b"hello")],
    "the same head and half a body": [post(b"hello"), post(b"again")[:-2], b"in", post(b"hello")],
    "the same head and a word too many": [post(b"hello"), post(b"again") + b"more", post(b"hello")],
    "the same head twice at once": [post(b"hello"), post(b"hello") + post(b"again"), post(b"hello")],
    "the same head inside a body": [post(b"hello"), post(post(b"again"))[:-80], post(post(b"again"))[-80:]],
    "the same head while another is answered": [post(b"hello"), post(b"slow 1"), post(b"again")],
    "line ends between calls": [post(b"hello"), b"\r\n", post(b"again"), b"\r\n\r\n", post(b"hello")],
    "a length with zeros": [post(b"hello"), post(b"again").replace(b": 5", b": 005"), post(b"hello")],
    "a length that is none": [post(b"hello"), post(b"again").replace(b": 5", b": 5a")],
    "two lengths": [post(b"hello"), post(b"again", b"Content-Length: 5")],
    "three at once": [post(b"one") + post(b"two") + post(b"three")],
    "the second before the first is answered": [post(b"slow one") + post(b"two")],
    "a stream and a call": [post(b"stream one") + post(b"two")],
    "a stream, then closed": [post(b"stream", b"Connection: close")],
    "a call, then closed": [post(b"hello", b"Connection: close")],
    "HTTP/1.0": [post(b"hello", version=b"1.0")],
    "in pieces": [post(b"hello")[:20], post(b"hello")[20:]],
    "asked before it is sent": [post(b"hello there", b"Expect: 100-continue")[:-11], b"hello there"],
    "in chunks": [CHUNKED, b"3\r\nabc\r\n", b"2\r\nde\r\n0\r\n\r\n"],
    "a large body": [post(b"x" * 300_000)],
    "the application fails": [post(b"fail"), post(b"again")],
    "an upgrade nobody offers": [post(b"hello", b"Upgrade: websocket", b"Connection: Upgrade")],
}


@pytest.mark.full
def test_all_ways_answer_alike(subtests: pytest.Subtests) -> None:
    async def conversations(pieces: list[bytes]) -> list[bytes]:
        return await asyncio.gather(*(_checked_talk(way, *pieces) for way in WAYS.values()))

    for name, pieces in TALKS.items():
        with subtests.test(name):
            answers = dict(zip(WAYS, asyncio.run(conversations(pieces)), strict=True))
            assert answers["fast"] == answers["other spelling"] == answers["plain"]
            assert answers["fast"].startswith(b"HTTP/1.1 ")


@pytest.mark.full
def test_repeated_headers_are_parsed_once() -> None:
    """Calls of one client differ only in their bodies, so their headers are parsed once."""
    assert parsed(post(b"hello"), post(b"once again"), post(b""), post(b"x" * 5000)) == 1
    assert parsed(post(b"hello"), post(b"hello", b"Mcp-Name: a"), post(b"again", b"Mcp-Name: a"), post(b"hello")) == 3


def test_a_cached_head_is_not_changed_through_a_scope() -> None:
    """An application's changes to a scope affect one call; only notes in SAME_HEAD reach calls with equal headers."""
    seen: list[object] = []

    async def careless(scope: Scope, receive: Receive, send: Send) -> None:
        noted = scope.get("extensions", {}).get(SAME_HEAD)
        seen.append((scope.get("mark"), len(scope["headers"]), None if noted is None else dict(noted)))
        if noted is not None:
            noted["calls"] = noted.get("calls", 0) + 1
        scope["mark"] = "changed"
        scope["headers"].append((b"x-added", b"1"))
        await app(scope, receive, send)

    asyncio.run(_talk(FAST, [post(b"hello")] * 4, 2 * PATIENCE, PATIENCE, careless))

    assert seen == [(None, 2, None), (None, 2, {}), (None, 2, {"calls": 1}), (None, 2, {"calls": 2})]


@pytest.mark.full
@every_way
def test_the_body_of_an_offered_upgrade_never_becomes_a_request(way: Way) -> None:
    """The parser would treat the body of an upgrade as another protocol, or a body that arrives later as a request."""
    inner = post(b"smuggled").replace(b"PATH", SHORT)
    head = post(b"x" * len(inner), b"Upgrade: h2c", b"Connection: Upgrade").removesuffix(b"x" * len(inner))
    for pieces in ([head, inner, inner], [head + inner, inner]):
        heard = talk(way, *pieces)

        assert heard.startswith(b"HTTP/1.1 200 ")
        assert heard.count(b"HTTP/1.1") == 1
        assert b"smuggled" not in heard
        assert heard.endswith(b"<closed>")


@pytest.mark.full
def test_after_its_body_a_call_hears_only_that_the_client_left() -> None:
    for way in (FAST, PLAIN):
        heard: list[str] = []

        async def patient(scope: Scope, receive: Receive, send: Send, heard: list[str] = heard) -> None:
            if not heard:
                heard.append("first")
                await app(scope, receive, send)
                return
            heard.append(f"{(await receive())['body']!r}")
            heard.append((await receive())["type"])

        asyncio.run(_talk(way, [post(b"hello")] * 2, 2 * PATIENCE, 1, patient))

        assert heard == ["first", "b'hello'", "http.disconnect"], way


def test_a_header_with_a_line_break_never_leaves() -> None:
    for way in (FAST, PLAIN):
        heard = talk(way, post(b"break \r\nx-forged: 1"))
        assert heard.startswith(b"HTTP/1.1 500 ") is (way == FAST)  # uvicorn closes the connection without a response.
        assert b"x-forged" not in heard


@pytest.mark.full
def test_unusual_calls_use_uvicorns_own_path() -> None:
    for line in (b"GET PATH", b"DELETE PATH", b"POST PATH?a=b", b"POST http://x/mcp/tools"):
        heard = talk(OTHER_SPELLING, line + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert heard.endswith(b"%s /mcp/tools 1.1 - " % line.split()[0])


@pytest.mark.full
def test_idle_connections_are_closed_and_busy_ones_are_not() -> None:
    assert talk(FAST, post(b"hello"), keep_alive=0.2).endswith(b"<closed>")

    heard = talk_in_time(FAST, *[post(b"hello")] * 40, keep_alive=0.6)
    assert heard.count(b"HTTP/1.1 200") == 40, "a later call puts it off"
    assert heard.endswith(b"<closed>")

    for way in (FAST, PLAIN):
        heard = talk_in_time(way, post(b"hello"), post(b"slow"), keep_alive=0.1)
        assert heard.count(b"HTTP/1.1 200") == 2, "never while a call is under way"
        assert heard.endswith(b"1.1 4 slow<closed>")
