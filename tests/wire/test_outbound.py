"""The client for all HTTP except MCP copes with servers that misbehave."""

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network

import pytest

from wire.guard import Guard
from wire.outbound import AnswerTooLarge, MayNotBeCalled, NoAnswer, OutboundClient, TooSlow

MOST = 64 * 1024
LOOPBACK = Guard((ip_network("127.0.0.0/8"),))
ANSWERS: dict[str, tuple[int, dict[str, str], bytes]] = {
    "/plain": (200, {"Content-Type": "Application/JSON; charset=utf-8", "Set-Cookie": "a=b; Path=/"}, b'{"n": 1}'),
    "/list": (200, {}, b"[1]"),
    "/packed": (200, {"Content-Encoding": "gzip"}, gzip.compress(b'{"n": 2}')),
    "/bomb": (200, {"Content-Encoding": "gzip"}, gzip.compress(b" " * 10 * MOST)),
    "/torn": (200, {"Content-Encoding": "gzip"}, b"no gzip"),
    "/odd": (200, {"Content-Encoding": "br"}, b"?"),
    "/large": (201, {}, b" " * (MOST + 1)),
    "/refused": (429, {"Content-Encoding": "br", "Retry-After": "40"}, b"?"),
    "/cut": (200, {"X-Cut": "1"}, b"?"),
    "/elsewhere": (302, {"Location": "/plain"}, b""),
}


class Server:
    def __init__(self) -> None:
        self.heads: list[dict[str, str]] = []
        self.over = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.heads.append({name.lower(): value for name, value in self.headers.items()})
                if self.path == "/stream":
                    self.answer(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"}, b"")
                    outer.over.wait(30)
                elif self.path == "/silent":
                    outer.over.wait(30)
                elif self.path == "/garbage":
                    self.wfile.write(b"\x00\xff no HTTP\r\n\r\n")
                    self.close_connection = True
                else:
                    status, headers, body = ANSWERS[self.path]
                    is_cut = "X-Cut" in headers
                    self.answer(status, {**headers, "Content-Length": str(len(body) + is_cut)}, body)
                    self.close_connection = is_cut

            def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def client() -> Iterator[OutboundClient]:
    with OutboundClient(LOOPBACK, MOST, 20) as made:
        yield made


def test_answers_are_unpacked_and_say_where_they_came_from(server: Server, client: OutboundClient) -> None:
    plain, packed, listed = (client.ask("GET", f"{server.url}/{name}") for name in ("plain", "packed", "list"))
    assert (plain.status, plain.media_type, plain.document) == (200, "application/json", {"n": 1})
    assert plain.address == "127.0.0.1"
    assert packed.document == {"n": 2}
    assert listed.document is None


def test_neither_cookies_nor_credentials_are_kept_and_no_redirect_is_followed(
    server: Server, client: OutboundClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    client.ask("GET", f"{server.url}/plain", {"Authorization": "Bearer secret"})
    assert client.ask("GET", f"{server.url}/elsewhere").status == 302
    assert len(server.heads) == 2
    assert not {"cookie", "authorization"} & set(server.heads[1])


def test_an_answer_too_large_or_unreadable_is_an_error_in_words(server: Server, client: OutboundClient) -> None:
    for name in ("large", "bomb"):
        with pytest.raises(AnswerTooLarge, match="answered with more than 64 KiB") as caught:
            client.ask("GET", f"{server.url}/{name}")
        assert caught.value.answer.status == ANSWERS[f"/{name}"][0]
    for name, words in (
        ("garbage", "does not answer in HTTP"),
        ("torn", "a broken encoding"),
        ("odd", "an encoding that was not requested"),
    ):
        with pytest.raises(NoAnswer, match=words):
            client.ask("GET", f"{server.url}/{name}")


@pytest.mark.full
def test_a_caller_that_needs_no_body_gets_the_answer_despite_an_unreadable_or_endless_one(
    server: Server, client: OutboundClient
) -> None:
    for name in ("torn", "odd", "large", "bomb", "cut", "refused"):
        answer = client.ask("GET", f"{server.url}/{name}", needs_body=False)

        status, headers, _ = ANSWERS[f"/{name}"]
        retry = headers.get("Retry-After")
        assert (answer.status, answer.headers.get("Retry-After"), answer.body) == (status, retry, b""), name
    assert client.ask("GET", f"{server.url}/plain", needs_body=False).document == {"n": 1}
    assert client.ask("GET", f"{server.url}/stream", reads_streams=False).body == b""
    with OutboundClient(LOOPBACK, MOST, 0.3) as hasty:
        assert hasty.ask("GET", f"{server.url}/stream", needs_body=False).status == 200
        with pytest.raises(TooSlow):
            hasty.ask("GET", f"{server.url}/silent")


def test_addresses_the_guard_refuses_are_not_called() -> None:
    with OutboundClient(Guard(), MOST, 5) as client:
        for url in ("http://127.0.0.1:9/", "https://10.0.0.1/", "https://user:x@example.com/", "ftp://a/"):
            with pytest.raises(MayNotBeCalled, match="may not be called"):
                client.ask("GET", url)


def test_why_a_place_cannot_be_reached_is_said(server: Server, client: OutboundClient) -> None:
    server.close()
    with pytest.raises(NoAnswer, match="cannot be reached: it refused the connection"):
        client.ask("GET", f"{server.url}/plain")
    with pytest.raises(NoAnswer, match="cannot be reached"):
        client.ask("GET", "https://\ud800.example.com/")
