"""Both HTTP clients trust the machine's certificate authorities, or those in `SSL_CERT_FILE` if it is set."""

import asyncio
import ssl
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_network
from pathlib import Path
from threading import Thread

import httpx
import pytest

from tests.authority import certificate
from wire.errors import CertificateRefused
from wire.guard import Guard, GuardedTransport, tls
from wire.http import Transport

LOOPBACK = Guard((ip_network("127.0.0.0/8"),))


class Hello(BaseHTTPRequestHandler):
    """Request handler that answers every GET with hello."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@pytest.fixture(autouse=True)
def _known_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    tls.cache_clear()
    yield
    tls.cache_clear()


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """Return the path of a file with a self-signed certificate for 127.0.0.1 and its key."""
    path = tmp_path / "authority.pem"
    certificate(path, "127.0.0.1")
    return path


@pytest.fixture
def url(authority: Path) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Hello)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


async def by_pool(url: str) -> bytes:
    async with Transport(LOOPBACK, limit=1000) as transport:
        with await transport.send("GET", "docs", url, {}) as response:
            return await response.read()


def by_httpx(url: str) -> bytes:
    with httpx.Client(transport=GuardedTransport(LOOPBACK)) as client:
        return client.get(url).content


def test_servers_and_issuers_are_trusted_by_the_authority_that_the_environment_names(
    url: str, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))

    assert asyncio.run(by_pool(url)) == b"hello"
    assert by_httpx(url) == b"hello"


@pytest.mark.full
def test_an_authority_nobody_named_is_trusted_by_neither_client(url: str) -> None:
    with pytest.raises(CertificateRefused):
        asyncio.run(by_pool(url))
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        by_httpx(url)


def test_a_machine_without_authorities_trusts_those_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "empty"))

    assert tls().cert_store_stats()["x509_ca"] > 50
