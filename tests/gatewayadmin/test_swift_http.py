"""The short way of a call and uvicorn's own way answer alike, byte for byte."""

import asyncio
import re

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from gatewayadmin.swift_http import Cycle, SwiftHttp

SHORT, LONG = b"/mcp/tools", b"/mcp/t%6Fols"  # The same path, once as everybody writes it.


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what arrived; the first word of the body says how."""
    body, more = b"", True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        body += event["body"]
        more = event["more_body"]
    told = b"%s %s %s %s" % (scope["method"].encode(), scope["path"].encode(), scope["http_version"].encode(), body)
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


async def _talk(pieces: list[bytes], keep_alive: float, wait: float) -> tuple[bytes, set[str]]:
    config = Config(app, log_config=None, ws="none", timeout_keep_alive=keep_alive)  # type: ignore[arg-type]
    cycles: set[str] = set()

    class Watched(SwiftHttp):
        def on_message_complete(self) -> None:
            cycles.add(type(self.cycle).__name__)
            super().on_message_complete()

    listener = await asyncio.get_running_loop().create_server(
        lambda: Watched(config, ServerState(), {}), "127.0.0.1", 0
    )
    async with listener:
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        heard = b""
        try:
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.02)
            while chunk := await asyncio.wait_for(reader.read(65536), wait):
                heard += chunk
            heard += b"<closed>"
        except TimeoutError:
            pass
        finally:
            writer.close()
    return heard, cycles


def talk(path: bytes, *pieces: bytes, keep_alive: float = 5, wait: float = 0.6) -> bytes:
    """What comes back for these pieces, in which PATH stands for the path; says so when the server closes."""
    heard, cycles = asyncio.run(_talk([piece.replace(b"PATH", path) for piece in pieces], keep_alive, wait))
    assert (Cycle.__name__ in cycles) is (path == SHORT), "not the way that was to be tried"
    return re.sub(rb"date: [^\r]*\r\n", b"", heard)


def post(body: bytes, *headers: bytes, version: bytes = b"1.1") -> bytes:
    lines = [b"POST PATH HTTP/" + version, b"Host: x", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


CHUNKED = b"POST PATH HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"

TALKS = {
    "a call": [post(b"hello")],
    "without a body": [post(b"")],
    "two calls": [post(b"hello"), post(b"again")],
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


@pytest.mark.parametrize("name", TALKS)
def test_both_ways_answer_alike(name: str) -> None:
    short, long = (talk(path, *TALKS[name], wait=0.4) for path in (SHORT, LONG))
    assert short == long
    assert short.startswith(b"HTTP/1.1 ")


def test_a_header_with_a_line_break_never_leaves() -> None:
    heard = talk(SHORT, post(b"break \r\nx-forged: 1"))
    assert heard.startswith(b"HTTP/1.1 500 ")
    assert b"x-forged" not in heard


@pytest.mark.parametrize("request_line", [b"GET PATH", b"DELETE PATH", b"POST PATH?a=b", b"POST http://x/mcp/tools"])
def test_what_is_no_plain_call_goes_the_long_way(request_line: bytes) -> None:
    heard = talk(LONG, request_line + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    assert heard.endswith(b"%s /mcp/tools 1.1 " % request_line.split()[0])


@pytest.mark.parametrize("path", [SHORT, LONG])
class TestIdle:
    """A connection at rest is closed, and one at work is not."""

    def test_closed_once_nothing_has_come_for_so_long(self, path: bytes) -> None:
        assert talk(path, post(b"hello"), keep_alive=0.2, wait=2).endswith(b"<closed>")

    def test_a_later_call_puts_it_off(self, path: bytes) -> None:
        heard = talk(path, *[post(b"hello")] * 20, keep_alive=0.25, wait=2)
        assert heard.count(b"HTTP/1.1 200") == 20
        assert heard.endswith(b"<closed>")

    def test_never_while_a_call_is_under_way(self, path: bytes) -> None:
        heard = talk(path, post(b"hello"), post(b"slow"), keep_alive=0.1, wait=2)
        assert heard.count(b"HTTP/1.1 200") == 2
        assert heard.endswith(b"1.1 slow<closed>")
