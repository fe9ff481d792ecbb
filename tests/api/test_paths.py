"""Every request to a path under /api/ gets a JSON answer, whatever its path, method and headers are."""

import json
import socket
from urllib.parse import urlsplit

import pytest

from tests.workspace import Serve

pytestmark = pytest.mark.full

PATHS = [
    "/api/",
    "/api/nowhere",
    "/api/hosts/",
    "/api/%0A",
    "/api/hosts%0A",
    "/api/hosts/%0A",
    "/api/gateways/a%0Ab",
    "/api/gateways/work/servers/%0A",
    "/api/gateways/work/servers/x%0D%0Ay/disable",
    "/api/%0D%0AX-Injected:%20yes",
    "/api/%00",
    "/api/hosts/%00",
    "/api/%FF%FE",
    "/api/gateways/%C3%28",
    "/api/%E2%80%A8",
    "/api/%F0%9F%98%80",
    "/api/%2e%2e/",
    "/api/..%2Fadmin/",
    "/api//hosts",
    "/api/hosts;x=1",
    "/api/%",
    "/api/%zz",
    "/api/\\",
    "/api/" + "a" * 3000,
    "/api/hosts?" + "x=1&" * 1500,
    "/api/schema",
]
HEADERS = [
    "",
    "Accept: text/html\r\n",
    "Accept: application/xml;q=1\r\n",
    "Accept: nonsense\r\n",
    "Content-Type: multipart/form-data\r\n",
    "Authorization: Bearer \xff\r\n",
    "Cookie: sessionid=\xff\r\n",
]


def ask(live: Serve, method: str, path: str, headers: str = "") -> tuple[str, str]:
    """Send a raw request; return the answer's status and media type, and its body."""
    url = urlsplit(live.url)
    with socket.create_connection((url.hostname or "", url.port or 0), timeout=60) as wire:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {url.netloc}\r\n{headers}Content-Length: 0\r\nConnection: close\r\n\r\n"
        )
        wire.sendall(head.encode("latin-1"))
        answer = b"".join(iter(lambda: wire.recv(65536), b""))
    head, _, body = answer.decode("latin-1").partition("\r\n\r\n")
    kind = next((line.partition(": ")[2] for line in head.split("\r\n") if line.lower().startswith("content-type")), "")
    assert "X-Injected" not in head
    return f"{head.split(' ')[1]} {kind}", body


def test_every_path_and_method_is_answered_in_json(live: Serve) -> None:
    for path in PATHS:
        for method in ("GET", "POST", "PROPFIND", "OPTIONS"):
            told, body = ask(live, method, path)
            assert told.endswith("application/json"), (method, path, told)
            assert told[0] == "4", (method, path, told)
            assert {"detail", "code"} <= set(json.loads(body)), (method, path)


def test_whatever_the_headers_are_the_answer_is_json(live: Serve) -> None:
    for headers in HEADERS:
        for path in ("/api/", "/api/hosts", "/api/schema/"):
            told, body = ask(live, "GET", path, headers)
            assert told.endswith("application/json"), (headers, path, told)
            assert {"detail", "code"} <= set(json.loads(body)), (headers, path)
