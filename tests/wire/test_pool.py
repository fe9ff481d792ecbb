"""Our HTTP client handles all answers that HTTP/1.1 allows, and some that HTTP/1.1 forbids."""

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_network
from unittest.mock import Mock

import httptools
import pytest
import uvicorn

from tests.eventually import PATIENCE
from wire.errors import AddressBlocked, BadAnswer, NotConnected, TooLarge, Unreachable
from wire.guard import Guard
from wire.http import IDLE_SECONDS, HttpResponse, Transport

LIMIT = 100_000
LOOPBACK = Guard((ip_network("127.0.0.0/8"), ip_network("::1/128")))

type Reader = asyncio.StreamReader
type Writer = asyncio.StreamWriter
type Handler = Callable[[Reader, Writer], Awaitable[None]]


@dataclass
class Server:
    """A server that answers each request with the same bytes."""

    answer: bytes
    close: bool = False
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    async def serve(self, reader: Reader, writer: Writer) -> None:
        self.connections += 1
        while head := await head_of(reader):
            self.requests.append(head)
            writer.write(self.answer)
            await writer.drain()
            if self.close:
                break
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        self.closed.set()


async def head_of(reader: Reader) -> bytes:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return b""
    length = next((int(line[15:]) for line in head.splitlines() if line.lower().startswith(b"content-length:")), 0)
    return head + await reader.readexactly(length)


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[int]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def serving(answer: bytes, *, close: bool = False) -> AsyncIterator[tuple[Server, Transport]]:
    server = Server(answer, close)
    async with listening(server.serve) as server.port, client() as transport:
        yield server, transport


def client(guard: Guard = LOOPBACK, listener: str = "", limit: int = LIMIT) -> Transport:
    return Transport(guard, limit=limit, listener=listener, secret="the secret of this start")


async def fetch(transport: Transport, url: str, **headers: str) -> tuple[int, bytes]:
    with await transport.send("POST", "docs", url, headers, b'{"a":1}') as reply:
        return reply.status, await reply.read()


def test_idle_connections_end_before_usual_servers_close_them() -> None:
    """A call on a connection that the server is closing fails, because the call cannot be sent again."""
    assert uvicorn.Config("", log_config=None).timeout_keep_alive > IDLE_SECONDS


async def test_idle_connections_end_without_another_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wire.http.IDLE_SECONDS", 0.05)
    async with serving(whole(b"hello")) as (server, transport):
        await fetch(transport, server.url)

        await asyncio.wait_for(server.closed.wait(), PATIENCE)

        assert (transport.idle, server.connections) == (0, 1)


@asynccontextmanager
async def open_stream(transport: Transport, port: int) -> AsyncIterator[HttpResponse]:
    with await transport.send("POST", "docs", f"http://127.0.0.1:{port}/", {}) as reply:
        yield reply


def whole(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def chunked(*parts: bytes, headers: str = "") -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in [*parts, b""])
    return f"HTTP/1.1 200 OK\r\n{headers}Transfer-Encoding: chunked\r\n\r\n".encode() + body


async def test_bodies_arrive_however_they_are_packed() -> None:
    for answer in (
        b"HTTP/1.1 100 Continue\r\n\r\n" + whole(b"hello"),
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nContent-Length: 9\r\n\r\n" + whole(b"hello"),
        whole(zlib.compress(b"hello"), "Content-Encoding: deflate"),
        whole(zlib.compress(b"hello")[2:-4], "Content-Encoding: deflate"),
        whole(b"hello", "Content-Encoding: identity"),
        chunked(*(bytes([byte]) for byte in gzip.compress(b"hello", mtime=0)), headers="Content-Encoding: GZIP\r\n"),
        chunked(b"he", b"llo", headers="Content-Type: text/event-stream\r\n"),
    ):
        async with serving(answer) as (server, transport):
            assert [await fetch(transport, server.url) for _ in range(3)] == [(200, b"hello")] * 3, answer

            assert server.connections == 1


async def test_a_head_that_comes_again_is_not_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    parsers: list[object] = []

    def parser(channel: object) -> object:
        parsers.append(channel)
        return httptools.HttpResponseParser(channel)

    monkeypatch.setattr("wire.http.httptools", Mock(wraps=httptools, HttpResponseParser=parser))
    async with serving(whole(b"hello", "Mcp-Session-Id: one", "Content-Type: text/plain")) as (server, transport):
        seen, first = [], server.answer
        longer, empty = (first.replace(b"5\r\n\r\nhello", other) for other in (b"11\r\n\r\nhello again", b"0\r\n\r\n"))
        other = first.replace(b"one", b"two")
        for server.answer in (first, longer, empty, other, other):
            with await transport.send("POST", "docs", server.url, {}) as reply:
                seen.append((await reply.read(), reply.header("mcp-session-id"), reply.header("content-length")))

        assert seen == [
            (b"hello", "one", "5"),
            (b"hello again", "one", "11"),
            (b"", "one", "0"),
            (b"hello", "two", "5"),
            (b"hello", "two", "5"),
        ]
        assert (len(parsers), server.connections) == (2, 1)


async def test_a_kept_connection_lets_nothing_else_through() -> None:
    for answer, refused in ((whole(b"x" * (LIMIT + 1)), TooLarge), (whole(b"hello") + b"more", Unreachable)):
        async with serving(whole(b"hello")) as (server, transport):
            assert [await fetch(transport, server.url) for _ in range(2)] == [(200, b"hello")] * 2
            server.answer = answer
            with pytest.raises(refused):
                await fetch(transport, server.url)


async def test_a_connection_is_kept_only_when_the_server_keeps_it() -> None:
    for answer in (
        *(whole(b"x", "Connection: close"), whole(b"x").replace(b"1.1", b"1.0")),
        b"HTTP/1.1 200 OK\r\n\r\nx",  # A body without a length ends with the connection.
    ):
        async with serving(answer, close=True) as (server, transport):
            assert [await fetch(transport, server.url) for _ in range(2)] == [(200, b"x")] * 2

            assert server.connections == 2


async def test_a_connection_that_the_server_closed_meanwhile_is_not_used() -> None:
    async with serving(whole(b"x"), close=True) as (server, transport):
        for _ in range(20):
            server.closed.clear()
            assert await fetch(transport, server.url) == (200, b"x")
            await server.closed.wait()


async def test_a_request_that_was_written_and_not_answered_is_not_sent_again() -> None:
    """Send the request on a new connection, and on a connection that has answered before."""
    for answered in (0, 1):
        requests: list[bytes] = []

        async def serve(
            reader: Reader, writer: Writer, requests: list[bytes] = requests, times: int = answered
        ) -> None:
            for _ in range(times):
                requests.append(await head_of(reader))
                writer.write(whole(b"x"))
            requests.append(await head_of(reader))
            writer.close()

        async with listening(serve) as port, client() as transport:
            for _ in range(answered):
                assert await fetch(transport, f"http://127.0.0.1:{port}/") == (200, b"x")
            with pytest.raises(Unreachable) as failure:
                await fetch(transport, f"http://127.0.0.1:{port}/")

        assert not isinstance(failure.value, NotConnected)
        assert len([*filter(None, requests)]) == answered + 1


async def test_bytes_after_an_answer_are_not_taken_for_the_next_one() -> None:
    async with serving(whole(b"one") + whole(b"smuggled"), close=False) as (server, transport):
        for _ in range(5):
            with pytest.raises(Unreachable):
                await fetch(transport, server.url)

        assert server.connections == 5


async def test_a_server_without_http_is_unreachable() -> None:
    for answer in (
        b"",
        b"SSH-2.0-OpenSSH_9\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        whole(b"not gzip", "Content-Encoding: gzip"),
        whole(b"x", "Content-Encoding: br"),
    ):
        async with serving(answer, close=True) as (server, transport):
            with pytest.raises(Unreachable, match='Server "docs" did not answer'):
                await fetch(transport, server.url)


async def test_an_answer_cannot_grow_past_the_limit() -> None:
    for answer in (
        whole(b"x" * (LIMIT + 1)),
        chunked(*[b"x" * 1000] * (LIMIT // 1000 + 1)),
        whole(gzip.compress(b"x" * 50 * LIMIT, mtime=0), "Content-Encoding: gzip"),
        chunked(b"x" * (LIMIT + 1), headers="Content-Type: text/event-stream\r\n"),
        b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"x" * LIMIT,
        b"HTTP/1.1 200 OK\r\n" + b"X-Many: x\r\n" * LIMIT,
    ):
        async with serving(answer) as (server, transport):
            with pytest.raises(TooLarge):
                await fetch(transport, server.url)


async def test_an_event_stream_is_handed_over_as_it_arrives() -> None:
    released = asyncio.Event()

    async def handler(reader: Reader, writer: Writer) -> None:
        await head_of(reader)
        writer.write(chunked(b"data: 1\n\n", headers="Content-Type: text/event-stream\r\n").removesuffix(b"0\r\n\r\n"))
        await released.wait()
        writer.write(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")
        writer.close()

    async with (
        listening(handler) as port,
        client() as transport,
        asyncio.timeout(PATIENCE),
        open_stream(transport, port) as reply,
    ):
        chunks = reply.chunks()
        assert await anext(chunks) == b"data: 1\n\n"
        released.set()
        assert [chunk async for chunk in chunks] == [b"data: 2\n\n"]


@pytest.mark.full
async def test_a_server_that_writes_faster_than_we_read_has_to_wait() -> None:
    written = 0

    async def handler(reader: Reader, writer: Writer) -> None:
        nonlocal written
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for _ in range(1000):
            writer.write(b":" * 65_535 + b"\n")
            await writer.drain()
            written += 1
        writer.close()

    async with (
        listening(handler) as port,
        client(limit=64 << 20) as transport,
        asyncio.timeout(20),
        open_stream(transport, port) as reply,
    ):
        chunks = reply.chunks()
        await anext(chunks)
        before = -1
        while before != written:
            before = written
            await asyncio.sleep(0.2)
        assert written < 500
        assert sum([len(chunk) async for chunk in chunks]) > 60_000_000


@pytest.mark.full
async def test_a_connection_that_waits_for_its_reader_is_not_used_again() -> None:
    """The server has sent the whole event stream, but the reader has not read it to the end."""
    waiting = b"data: 1\n\n" + b":" * (1 << 20) + b"\n\n"

    async def handler(reader: Reader, writer: Writer) -> None:
        await head_of(reader)
        writer.write(whole(waiting, "Content-Type: text/event-stream"))
        if await head_of(reader):
            writer.write(whole(b"hello"))
        writer.close()

    async with listening(handler) as port, client() as transport, asyncio.timeout(PATIENCE):
        for _ in range(2):
            async with open_stream(transport, port) as reply:
                await anext(reply.chunks())
                await asyncio.sleep(0.2)
        assert transport.idle == 0


async def test_leaving_an_exchange_closes_its_connection() -> None:
    gone = asyncio.Event()

    async def handler(reader: Reader, writer: Writer) -> None:
        await head_of(reader)
        await reader.read()
        gone.set()
        writer.close()

    async with listening(handler) as port, client() as transport, asyncio.timeout(PATIENCE):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await fetch(transport, f"http://127.0.0.1:{port}/")
        await gone.wait()


async def test_nothing_of_one_call_or_of_the_environment_is_sent_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with serving(whole(b"x", "Set-Cookie: session=ana", "WWW-Authenticate: Basic")) as (server, transport):
        await fetch(transport, server.url, Authorization="Bearer ana")
        await fetch(transport, server.url)

        first, second = (request.decode().lower() for request in server.requests)
        assert "authorization: bearer ana" in first
        assert "authorization" not in second
        assert "cookie" not in second


async def test_redirects_are_not_followed() -> None:
    async with serving(b"") as (elsewhere, _):
        location = f"Location: {elsewhere.url}"
        async with serving(whole(b"", location, status="307 Temporary Redirect")) as (server, transport):
            assert await fetch(transport, server.url) == (307, b"")
        assert elsewhere.requests == []


async def test_a_header_that_would_be_two_is_not_sent() -> None:
    async with serving(whole(b"x")) as (server, transport):
        for value in ("a\r\nX-Evil: 1", "a\nb", "a\rb", "a\0b", "na\xefve"):
            with pytest.raises(BadAnswer):
                await fetch(transport, server.url, Authorization=value)

        assert server.requests == []


async def test_a_path_goes_out_as_it_was_given_and_nothing_else_does() -> None:
    async with serving(whole(b"x")) as (server, transport):
        await fetch(transport, f"http://127.0.0.1:{server.port}/a%20b/c d/ü?key=a&b=%2F x#part")

        assert server.requests[0].split(b"\r\n")[0] == b"POST /a%20b/c%20d/%C3%BC?key=a&b=%2F%20x HTTP/1.1"
        assert f"Host: 127.0.0.1:{server.port}\r\n".encode() in server.requests[0]


async def test_a_url_that_leads_nowhere_is_unreachable() -> None:
    async with serving(b"") as (server, _):
        closed = f"http://127.0.0.1:{server.port}/"
    async with client() as transport:
        for url in ("ftp://x/", "https://", "http://x:99999/", "http://x:port/", "nonsense", "builtin:x", closed):
            with pytest.raises(Unreachable):
                await fetch(transport, url)


async def test_j14_the_address_is_judged_when_a_socket_is_opened() -> None:
    async with serving(whole(b"x")) as (server, _), client(Guard()) as transport:
        for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"):
            with pytest.raises(AddressBlocked):
                await fetch(transport, f"http://{host}:{server.port}/")
        with pytest.raises(AddressBlocked):  # Public, but without TLS.
            await fetch(transport, "http://8.8.8.8/")

        assert server.connections == 0


async def test_the_builtin_url_leads_to_the_own_listener_with_the_secret_of_this_start() -> None:
    async with serving(whole(b"x")) as (server, _):
        async with client(Guard(), listener=f"http://127.0.0.1:{server.port}") as transport:
            assert await fetch(transport, "builtin:quickstart") == (200, b"x")
            # Only the builtin: URL is exempt from the address check; the listener's own URL is not.
            with pytest.raises(AddressBlocked):
                await fetch(transport, f"http://127.0.0.1:{server.port}/builtin/quickstart")

        assert server.requests[0].startswith(b"POST /builtin/quickstart HTTP/1.1\r\n")
        assert b"X-Gateway-Builtin-Secret: the secret of this start\r\n" in server.requests[0]
