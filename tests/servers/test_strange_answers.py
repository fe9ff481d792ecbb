"""Hostile or broken servers: each contact ends in time, with a sentence for people and rows that can be stored."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from accounts.models import User
from gateways.models import Feature
from servers.discovery import DiscoveryFailed, discover_features
from servers.models import Health
from tests import make
from tests.asgi_server import Receive, Scope, Send, answer, live, read
from tests.conftest import Run, SignIn
from tests.eventually import PATIENCE
from tests.upstreams import App, garbage

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("loopback_is_allowed")]

HTMX = {"HX-Request": "true"}


# A peer that never stops talking


@contextmanager
def dripping(head: bytes) -> Iterator[str]:
    """Run a server that sends `head` at once, and then single bytes for minutes."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def drip() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.sendall(head)
            for _ in range(int(PATIENCE / 0.05)):
                try:
                    peer.sendall(b"x")
                except OSError:
                    return
                if over.wait(0.05):
                    return

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
    finally:
        over.set()
        thread.join()
        listener.close()


@pytest.mark.full
def test_a_dripped_answer_is_given_up_when_its_time_is_over(subtests: pytest.Subtests) -> None:
    for head in (b"HTTP/1.1 200 OK\r\nX-Long: ", b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"):
        with subtests.test(head.decode()), dripping(head) as url:
            server = make.server(url=url, timeout_seconds=1)
            with pytest.raises(DiscoveryFailed, match="did not answer within 1 s"):
                discover_features(server, None)


@contextmanager
def pouring(head: bytes, more: bytes) -> Iterator[str]:
    """Run a server that sends `head`, and then repeats `more` as fast as the client reads."""
    listener = socket.create_server(("127.0.0.1", 0))

    def pour() -> None:
        peer, _ = listener.accept()
        with peer, suppress(OSError):
            peer.recv(65_536)
            peer.sendall(head)
            while True:
                peer.sendall(more)

    thread = threading.Thread(target=pour)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
    finally:
        listener.close()
        thread.join()


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


FLOODS = {
    "events": (STREAM + b"\r\n", b'data: {"jsonrpc":"2.0","method":"x"}\n\n' * 1000, "more than 1,000 events a second"),
    "blank lines": (STREAM + b"\r\n", b"\n" * 9999, "more than (1,000 events a second|10 MiB)"),
    "one event": (STREAM + b"\r\n", b"data: " + b"x" * 100_000 + b"\n", "answered with more than 10 MiB"),
    "a body": (JSON + b"\r\n", b" " * 100_000, "answered with more than 10 MiB"),
    "chunks of a byte": (JSON + CHUNKED, b"1\r\n \r\n" * 10_000, "answered with more than 10 MiB"),
}


@pytest.mark.full
def test_a_flood_is_given_up_in_time(subtests: pytest.Subtests) -> None:
    for name, (head, more, why) in FLOODS.items():
        with subtests.test(name), pouring(head, more) as url:
            server = make.server(url=url, timeout_seconds=int(PATIENCE))
            with pytest.raises(DiscoveryFailed, match=why):
                discover_features(server, None)


@pytest.mark.full
def test_an_answer_of_too_many_values_or_tools_or_a_number_that_json_lacks_is_not_read(run: Run) -> None:
    values = b"[]," * 600_000 + b"[]"
    kind = "application/json"
    tools = {"result": {"tools": [{"name": f"t{n}", "inputSchema": {}} for n in range(5_001)]}}
    for app, why in (
        (garbage(b'{"jsonrpc":"2.0","id":1,"result":{"x":[' + values + b"]}}", kind=kind), "more than 500,000 JSON"),
        (scripted({"initialize": GREETING, "tools/list": tools}), "lists more than 5,000 tools"),
        (garbage(b'{"jsonrpc":"2.0","id":1,"result":{"n":NaN}}', kind=kind), "answered, but not in MCP"),
        (garbage(b'{"jsonrpc":"2.0","id":1,"result":{"n":1e999}}', kind=kind), "answered, but not in MCP"),
    ):
        with pytest.raises(DiscoveryFailed, match=why):
            discover_features(make.server(url=run(app).url), None)


# Text that no row and no header can store


def scripted(replies: dict[str, Any], headers: list[tuple[bytes, bytes]] | None = None) -> App:
    """Return a server that answers each method with its reply as JSON."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send)
            return
        message = json.loads(await read(receive) or "{}")
        reply = replies.get(message.get("method"), {"error": {"code": -32601, "message": "no such method"}})
        body = {"jsonrpc": "2.0", "id": message.get("id"), **reply}
        await answer(send, 200, json.dumps(body).encode(), headers=headers)

    return app


GREETING = {"result": {"protocolVersion": "2025-11-25", "capabilities": {}}}
UNSUPPORTED = {"error": {"code": -32022, "message": "", "data": {"supported": ["\ud800", 7]}}}


STRANGE = (
    (
        scripted({"initialize": GREETING}, [(b"mcp-session-id", "sé".encode("latin-1"))]),
        "opened a session with an id that cannot be sent in a header",
    ),
    (scripted({"initialize": {"result": {"protocolVersion": "\ud800"}}}), "speaks MCP \N{REPLACEMENT CHARACTER},"),
    (scripted({"initialize": {"result": {"protocolVersion": ["2025-11-25"]}}}), "speaks MCP of no version"),
    (
        scripted({"initialize": {"error": {"code": "\ud800" * 900, "message": "a\0b\udfff"}}}),
        "answered with an error: a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER} (without a code)",
    ),
    (scripted({"server/discover": UNSUPPORTED}), "speaks only MCP \N{REPLACEMENT CHARACTER}, which"),
)


@pytest.mark.full
def test_strange_words_end_in_a_sentence_that_is_kept(
    run: Run, ana: User, sign_in: SignIn, subtests: pytest.Subtests
) -> None:
    for app, why in STRANGE:
        with subtests.test(why):
            server = make.server(url=run(app).url)
            response = sign_in(ana).post(f"/servers/{server.slug}/test/", headers=HTMX)
            assert response.status_code == 200
            assert why in response.content.decode()
            server.refresh_from_db()
            assert server.health == Health.DOWN
            assert why in server.health_error


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"items": value}
    return value


def test_tools_that_cannot_be_kept_are_left_out_and_the_others_are_learnt(run: Run, ana: User, sign_in: SignIn) -> None:
    tools = [
        {"name": "good", "description": "a\0b\ud800"},
        {"name": "bad\ud800"},
        {"name": 7},
        {"name": "x" * 201},
        {"name": "deep", "inputSchema": nested(500)},
        "no tool",
    ]
    replies = {"initialize": GREETING, "tools/list": {"result": {"tools": tools}}}
    server = make.server(url=run(scripted(replies, [(b"set-cookie", "a=é".encode())])).url)
    gateway = make.gateway(server)
    client = sign_in(ana)

    assert client.post(f"/gateways/{gateway.slug}/tools/refresh/", headers=HTMX).status_code == 200
    assert client.post(f"/api/servers/{server.slug}/test").json()["tools"] == ["good"]

    (known,) = Feature.objects.all()
    assert (known.name, known.description) == ("good", "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}")
