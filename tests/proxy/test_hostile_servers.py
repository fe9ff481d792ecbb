"""A call of a hostile or broken server gets a clear error and a row in the log, and the next call works."""

import asyncio
import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from django.db.models import F

from servers.models import Server
from tests import make
from tests.cases import full
from tests.proxy.conftest import Agent, Proxy, Start
from tests.wire.test_pool import Reader, Writer, client, head_of, listening
from wire import sse
from wire.mcp import SESSION, Target, read_response

type Object = dict[str, Any]
type Talk = Callable[["Peer", int], None]

LIMIT = 300_000
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
PROGRESS = b'data: {"jsonrpc":"2.0","method":"notifications/progress","params":{"progress":1}}\n\n'


class Peer:
    """A connection from the gateway, with methods for every kind of answer."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._file = sock.makefile("rb")

    def request(self) -> Object | None:
        size = None
        while line := self._file.readline():
            if line.lower().startswith(b"content-length:"):
                size = int(line.split(b":")[1])
            if line == b"\r\n":
                break
        if size is None:
            return None
        return json.loads(self._file.read(size) or b"{}")  # type: ignore[no-any-return]

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def answer(self, body: bytes, *lines: bytes) -> None:
        head = [b"HTTP/1.1 200 OK", b"Content-Type: application/json", b"Content-Length: %d" % len(body), *lines]
        self.send(b"\r\n".join([*head, b"", body]))

    def forever(self, data: bytes, pause: float = 0) -> None:
        """Send `data` repeatedly until the gateway disconnects, for at most 20 seconds."""
        ends = time.monotonic() + 20
        while time.monotonic() < ends:
            self.send(data)
            time.sleep(pause)


def result(request_id: object, text: str = "fine") -> bytes:
    content = [{"type": "text", "text": text}]
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "result": {"content": content}}).encode()


def served(sock: socket.socket, talk: Talk) -> None:
    """Handle the requests of one connection."""
    with sock, suppress(OSError):
        peer = Peer(sock)
        while (message := peer.request()) is not None:
            match message.get("method"):
                case "initialize":
                    own = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "hostile"}}
                    peer.answer(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": own}).encode())
                case "tools/list":
                    tools = {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in ("bad", "good")]}
                    peer.answer(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": tools}).encode())
                case "tools/call" if message["params"]["name"] == "bad":
                    talk(peer, message["id"])
                case "tools/call":
                    peer.answer(result(message["id"]))
                case _:
                    peer.send(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")


@contextmanager
def hostile(talk: Talk) -> Iterator[str]:
    """Yield the URL of a server with two tools. Calls of `bad` are passed to `talk`; calls of `good` are answered."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=served, args=(sock, talk), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


# Responses in place of an answer


def flood_of_notifications(peer: Peer, _: int) -> None:
    peer.send(STREAM + b"\r\n")
    peer.forever(b"%x\r\n%s\r\n" % (len(PROGRESS * 500), PROGRESS * 500))


def flood_of_comments(peer: Peer, _: int) -> None:
    peer.send(STREAM + b"\r\n")
    peer.forever(b"1000\r\n" + b":\n\n\n" * 0x400 + b"\r\n")


def flood_of_bytes(peer: Peer, _: int) -> None:
    peer.send(STREAM + b"\r\n")
    event = b": " + b"x" * 9_000 + b"\n\n"
    peer.forever(b"%x\r\n%s\r\n" % (len(event), event))


def bomb_at_the_exact_limit(peer: Peer, _: int) -> None:
    bomb = gzip.compress(b":" * (2 * LIMIT + 1), mtime=0)
    peer.send(STREAM + b"Content-Encoding: gzip\r\n\r\n")
    peer.chunk(bomb[:-20])
    peer.chunk(bomb[-20:])


def bomb_in_json(peer: Peer, _: int) -> None:
    peer.answer(gzip.compress(b" " * 50 * LIMIT, mtime=0), b"Content-Encoding: gzip")


def endless_head(peer: Peer, _: int) -> None:
    peer.send(b"HTTP/1.1 200 OK\r\n")
    peer.forever(b"X-More: and more\r\n" * 100)


def endless_interim(peer: Peer, _: int) -> None:
    peer.forever(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 100)


def endless_trailer(peer: Peer, _: int) -> None:
    peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-Last: ")
    peer.forever(b"x" * 1000)


def endless_chunk_extension(peer: Peer, _: int) -> None:
    peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=")
    peer.forever(b"x" * 1000)


def chunks_of_a_byte(peer: Peer, _: int) -> None:
    peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    peer.forever(b"1\r\nx\r\n" * 1000)


def byte_by_byte(peer: Peer, _: int) -> None:
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n")
    peer.forever(b"x", 0.05)


def deep_json(peer: Peer, request_id: int) -> None:
    peer.answer(b'{"jsonrpc":"2.0","id":%d,"result":%s%s}' % (request_id, b"[" * 99_000, b"]" * 99_000))


def deep_json_with_half_a_pair(peer: Peer, request_id: int) -> None:
    deep = b'["\\ud800",' * 20_000 + b"1" + b"]" * 20_000
    peer.answer(b'{"jsonrpc":"2.0","id":%d,"result":{"x":%s}}' % (request_id, deep))


def huge_number_as_id(peer: Peer, _: int) -> None:
    peer.answer(b'{"jsonrpc":"2.0","id":' + b"9" * 200_000 + b',"result":{}}')


def endless_float(peer: Peer, request_id: int) -> None:
    peer.answer(b'{"jsonrpc":"2.0","id":%d,"result":{"x":1e9999999,"y":"\\ud800","z":%d}}' % (request_id, request_id))


def wrong_id(peer: Peer, _: int) -> None:
    peer.answer(result(7))


def answer_twice(peer: Peer, request_id: int) -> None:
    body = result(request_id)
    one = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    peer.send(one + one)


def wrong_ids_then_the_end(peer: Peer, _: int) -> None:
    peer.send(STREAM + b"\r\n")
    peer.chunk(b"data: " + result(7) + b"\n\n")
    peer.chunk(b"")


def cut_off(peer: Peer, _: int) -> None:
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")
    raise OSError


TALKS: dict[str, tuple[Talk, ...]] = {
    "too_large": (
        flood_of_notifications,
        bomb_at_the_exact_limit,
        bomb_in_json,
        endless_head,
        endless_interim,
        endless_trailer,
        endless_chunk_extension,
        chunks_of_a_byte,
        flood_of_comments,
        flood_of_bytes,
    ),
    "timeout": (byte_by_byte,),
    "bad_answer": (deep_json, deep_json_with_half_a_pair, huge_number_as_id, endless_float, wrong_id),
    "unreachable": (answer_twice, wrong_ids_then_the_end, cut_off),
}


@pytest.mark.parametrize("reasons", [("unreachable",), full((("bad_answer", "too_large", "timeout"),))])
def test_it_ends_in_an_error_and_a_row_and_the_next_call_works(
    start: Start, reasons: tuple[str, ...], subtests: pytest.Subtests
) -> None:
    proxy = start(answer_limit=LIMIT)
    for reason in reasons:
        for talk in TALKS[reason]:
            with subtests.test(talk.__name__):
                _ends_in(reason, talk, proxy)


def _ends_in(reason: str, talk: Talk, proxy: Proxy) -> None:
    before = len(proxy.calls())
    with hostile(talk) as url:
        agent = agent_of(proxy, url)
        assert agent.call("docs__good").json()["result"]["content"][0]["text"] == "fine"

        refused = agent.call("docs__bad").json()

        limit = {"limit": "idle", "seconds": 3.0} if reason == "timeout" else {}
        assert refused["error"]["data"] == {"reason": reason, "server": "Docs", **limit}
        assert agent.call("docs__good").json()["result"]["content"][0]["text"] == "fine"
    outcome = "timeout" if reason == "timeout" else "upstream_error"
    assert [row.outcome for row in proxy.calls()[before:]] == ["ok", outcome, "ok"]


MOST = 4 << 20


def trickle(peer: Peer, _: int) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % MOST
    peer.send(head + b" " * (MOST // 2))
    while True:  # Until the gateway closes the connection.
        peer.send(b" ")
        time.sleep(0.02)


def much(peer: Peer, request_id: int) -> None:
    peer.answer(result(request_id, "x" * (MOST // 2)))


@pytest.mark.full
def test_a_server_that_trickles_is_cut_off_for_others_that_wait_and_its_call_is_recorded(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wire.fair_queue.PACE_SECONDS", 0.1)
    proxy = start(answer_limit=MOST, answers_limit=MOST)
    with hostile(trickle) as slow, hostile(much) as quick, ThreadPoolExecutor() as threads:
        agent, other = agent_of(proxy, slow, "slow"), agent_of(proxy, quick, "quick")
        trickled = threads.submit(agent.call, "slow__bad")
        while not trickled.done():
            assert len(other.call("quick__bad").json()["result"]["content"][0]["text"]) == MOST // 2
        refused = trickled.result().json()["error"]

    assert refused["data"] == {"reason": "timeout", "server": "Slow", "limit": "pace"}
    assert "the server may have executed the call" in refused["message"]
    [row] = [row for row in proxy.calls() if row.feature_name == "slow__bad"]
    assert (row.outcome, row.rpc_error_code) == ("timeout", -32603)


def agent_of(proxy: Proxy, url: str, slug: str = "docs") -> Agent:
    user = make.user()
    gateway = make.gateway()
    seconds = 3 if slug == "docs" else 120
    Server.objects.filter(name=slug.title()).update(name=F("slug"))  # An earlier server of the test.
    make.assignment(gateway, make.server(name=slug.title(), url=url, timeout_seconds=seconds), alias=slug)
    return proxy.agent(make.connection(make.agent(by=user), gateway, user))


def two_answers_on_a_stream(peer: Peer, request_id: int) -> None:
    peer.send(STREAM + b"\r\n")
    peer.chunk(b"".join(b"data: " + result(request_id, text) + b"\n\n" for text in ("fine", "again")))
    peer.chunk(b"")


def a_question_with_a_huge_id(peer: Peer, request_id: int) -> None:
    question = json.dumps({"jsonrpc": "2.0", "id": "x" * 100_000, "method": "ping"}).encode()
    peer.send(STREAM + b"\r\n")
    peer.chunk(b"data: " + question + b"\n\ndata: " + result(request_id) + b"\n\n")
    peer.chunk(b"")


def many_events_then_the_answer(peer: Peer, request_id: int) -> None:
    peer.send(STREAM + b"\r\n")
    peer.chunk(PROGRESS * 2_000)
    peer.chunk(b"data: " + result(request_id) + b"\n\n")
    peer.chunk(b"")


def notifications_of_odd_forms(peer: Peer, request_id: int) -> None:
    odd: list[object] = [
        {"jsonrpc": "2.0", "method": []},
        {"jsonrpc": "2.0", "method": {}, "params": {}},
        {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": []}},
        {"jsonrpc": "2.0", "method": "notifications/message", "params": []},
        {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": {}}},
    ]
    peer.send(STREAM + b"\r\n")
    peer.chunk(b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in odd))
    peer.chunk(b"data: " + result(request_id) + b"\n\n")
    peer.chunk(b"")


ANY = "application/json, text/event-stream"


def test_unusual_but_bounded_answers_are_accepted(start: Start, subtests: pytest.Subtests) -> None:
    proxy = start(answer_limit=LIMIT)
    talks = (
        two_answers_on_a_stream,
        a_question_with_a_huge_id,
        many_events_then_the_answer,
        notifications_of_odd_forms,
    )
    for talk in talks:
        with subtests.test(talk.__name__), hostile(talk) as url:
            agent = agent_of(proxy, url)
            answers = [agent.call(f"docs__{name}", Accept=ANY).json() for name in ("bad", "good", "bad")]
            assert [answer["result"]["content"] for answer in answers] == [[{"type": "text", "text": "fine"}]] * 3
    assert {row.outcome for row in proxy.calls()} == {"ok"}


# Fairness among streams


@pytest.mark.full
async def test_however_many_streams_pour_in_one_slice_is_read_in_each_round_of_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wire.http.SLICE_SECONDS", -1)  # Each slice has one event.
    rounds = 0
    heard: list[int] = []

    async def serve(reader: Reader, writer: Writer) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + PROGRESS * 200)
        writer.write(b"data: " + result(1) + b"\n\n")
        writer.close()

    async def count() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            await asyncio.sleep(0)

    async def hear(_: object) -> None:
        heard.append(rounds)

    async def ask(port: int) -> None:
        target = Target("s", "docs", "", "", 5, 1, "c", None, "")
        with await transport.send("POST", "docs", f"http://127.0.0.1:{port}/", {}) as reply:
            await read_response(reply, target, 1, SESSION, hear)

    async with listening(serve) as port, client(limit=10 << 20) as transport:
        counting = asyncio.create_task(count())
        await asyncio.gather(*(ask(port) for _ in range(8)))
        counting.cancel()

    assert len(heard) == 8 * 200
    # Nearly all events are handled in a round of their own; only an awaited message is handled as it arrives.
    assert len(set(heard)) > 0.9 * len(heard)


async def test_a_stream_as_fast_as_the_budget_fills_is_read_and_a_faster_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("wire.sse.time.monotonic", lambda: now)
    steady, hasty = sse.EventParser(LIMIT), sse.EventParser(LIMIT)
    for _ in range(20):
        now += 1
        assert len(steady.feed(PROGRESS * sse.PER_SECOND)) == sse.PER_SECOND

    hasty.feed(PROGRESS * sse.BURST)
    now += 0.5
    hasty.feed(PROGRESS * (sse.PER_SECOND // 2))
    with pytest.raises(sse.TooManyEvents):
        hasty.feed(PROGRESS)


@pytest.mark.full
def test_a_stream_ends_at_so_many_events_however_slow_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("wire.sse.time.monotonic", lambda: now)
    reader = sse.EventParser(LIMIT)
    for _ in range(sse.MOST_EVENTS // 1_000):
        now += 10
        reader.feed(b"data:\n\n" * 1_000)

    with pytest.raises(sse.TooManyEvents):
        reader.feed(b"data:\n\n")
