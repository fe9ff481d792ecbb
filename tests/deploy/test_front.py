"""The nginx of compose.yaml, while containers start and stop: it repeats only requests that no replica received."""

import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import inet_aton
from socketserver import BaseServer, DatagramRequestHandler, UDPServer

import httpx
import pytest

from tests.deploy.test_compose import make_secrets
from tests.eventually import PATIENCE
from tests.running.conftest import folder
from tests.running.nginx import started
from tests.workspace import ROOT, free_port

pytestmark = pytest.mark.full  # `make test` must not need nginx.

TEMPLATE = ROOT / "deploy" / "compose" / "nginx.conf.template"
SERVER_FAILURE, NO_SUCH_NAME = 2, 3
IPV4, IPV6 = 1, 28
CALL, CUT_OFF = b'{"jsonrpc":"2.0"}', b'{"cut":"off"}'


@dataclass
class Replica:
    """A stand-in for a gateway. It answers every call except CUT_OFF, which it drops.

    `taken` has all calls that it received, `headers` the headers of the last one.
    """

    port: int
    taken: list[bytes] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Names:
    """A name server. It answers with `addresses`, or once with the error code that `fails` has for a query type."""

    port: int
    addresses: tuple[str, ...] = ("127.0.0.1",)
    fails: dict[int, int] = field(default_factory=dict)

    def answer(self, question: bytes) -> bytes:
        end = question.index(b"\0", 12) + 5
        (kind,) = struct.unpack("!H", question[end - 4 : end - 2])
        code = self.fails.pop(kind, 0)
        found = self.addresses if kind == IPV4 and not code else ()
        records = (b"\xc0\x0c" + struct.pack("!HHIH", IPV4, 1, 1, 4) + inet_aton(each) for each in found)
        head = struct.pack("!HHHHH", 0x8180 | code, 1, len(found), 0, 0)
        return question[:2] + head + question[12:end] + b"".join(records)


@pytest.fixture
def replica() -> Iterator[Replica]:
    known = Replica(0)

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            known.headers = dict(self.headers.items())
            known.taken.append(self.rfile.read(int(self.headers["Content-Length"])))
            if known.taken[-1] != CUT_OFF:
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server, in_a_thread(server):
        known.port = server.server_port
        yield known


@pytest.fixture
def names() -> Iterator[Names]:
    known = Names(0)

    class Answers(DatagramRequestHandler):
        def handle(self) -> None:
            self.wfile.write(known.answer(self.rfile.read()))

    with UDPServer(("127.0.0.1", 0), Answers) as server, in_a_thread(server):
        known.port = server.server_address[1]
        yield known


@contextmanager
def in_a_thread(server: BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


@pytest.fixture
def site(replica: Replica, names: Names) -> Iterator[httpx.Client]:
    with folder() as home:
        secrets, port = make_secrets(home), free_port()
        secrets.chmod(0o755)
        text = TEMPLATE.read_text().replace("8443", f"127.0.0.1:{port}").replace("/run/secrets", str(secrets))
        text = text.replace("${NAMESERVER}", f"127.0.0.1:{names.port}").replace(":8000", f":{replica.port}")
        process = started(home, text)
        trust = ssl.create_default_context(cafile=str(secrets / "tls_certificate"))
        try:
            with httpx.Client(base_url=f"https://localhost:{port}", verify=trust, trust_env=False) as client:
                yield client
        finally:
            process.terminate()
            process.wait(timeout=PATIENCE)


@pytest.mark.parametrize("code", [SERVER_FAILURE, NO_SUCH_NAME])
def test_a_call_is_answered_though_the_name_server_knows_nobody_for_a_moment(
    code: int, site: httpx.Client, names: Names, replica: Replica
) -> None:
    names.fails = {IPV4: code, IPV6: code}

    assert site.post("/mcp/quickstart", content=CALL).status_code == httpx.codes.OK
    assert names.fails == {}
    assert replica.taken == [CALL]


def test_a_call_is_answered_though_a_container_has_gone_that_the_name_server_still_knows(
    site: httpx.Client, names: Names, replica: Replica
) -> None:
    names.addresses = ("127.0.0.2", "127.0.0.1")

    answers = [site.post("/mcp/quickstart", content=CALL).status_code for _ in range(4)]

    assert answers == [httpx.codes.OK] * 4
    assert replica.taken == [CALL] * 4


def test_a_call_that_a_container_took_before_it_was_gone_is_not_sent_to_another(
    site: httpx.Client, names: Names, replica: Replica
) -> None:
    names.addresses = ("127.0.0.1", "127.0.0.1")

    assert site.post("/mcp/quickstart", content=CUT_OFF).status_code == httpx.codes.BAD_GATEWAY
    assert replica.taken == [CUT_OFF]


def test_addresses_claimed_by_clients_are_hidden(site: httpx.Client, replica: Replica) -> None:
    site.post("/mcp/quickstart", content=CALL, headers={"X-Forwarded-For": "203.0.113.9"})

    assert replica.headers["X-Forwarded-For"] in {"127.0.0.1", "::1"}
    assert replica.headers["Host"] == site.base_url.netloc.decode()
