"""The outer middleware: request id, real sender, Host check, and one log line."""

import io
import json
import logging
from collections.abc import AsyncIterator
from ipaddress import ip_network
from uuid import UUID

import httpx
import pytest
from django.test import Client
from django.urls import reverse
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from gatewayadmin.middleware import OuterMiddleware, client_address
from gatewayadmin.serving.log_format import JsonFormatter
from wire.hosts import of_header

PROXIES = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


@pytest.mark.full
@pytest.mark.parametrize(
    ("peer", "forwarded", "seen"),
    [
        ("203.0.113.9", ["198.51.100.7"], "203.0.113.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.7, 10.9.9.9"], "198.51.100.7"),
        ("10.0.0.1", ["1.1.1.1", "198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["198.51.100.7, nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.7:4711"], "198.51.100.7"),
        ("10.0.0.1", ["[2001:db8::7]:4711"], "2001:db8::7"),
        ("10.0.0.1", ["fe80::7%eth0"], "fe80::7"),
        ("::ffff:10.0.0.1", ["::ffff:198.51.100.7"], "198.51.100.7"),
        ("", [], ""),
    ],
)
def test_true_sender_is_the_last_hop_nobody_vouches_for(peer: str, forwarded: list[str], seen: str) -> None:
    assert client_address(peer, forwarded, PROXIES) == seen


@pytest.mark.full
@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("LocalHost:8000", "localhost"),
        ("gateway.example.com.", "gateway.example.com"),
        ("[::1]:8000", "[::1]"),
        ("", ""),
        ("localhost:", ""),
        ("localhost:port", ""),
        ("[::1]evil", ""),
        ("user@localhost", ""),
        ("gateway%2eexample.com", ""),
        ("xn--bcher-kva.example:443", "xn--bcher-kva.example"),
    ],
)
def test_host_is_compared_without_port(header: str, name: str) -> None:
    assert of_header(header) == name


async def mirror(scope: Scope, receive: Receive, send: Send) -> None:
    answer = JSONResponse({name: str(scope[name]) for name in ("client", "scheme", "request_id")})
    await answer(scope, receive, send)


@pytest.fixture
async def browser() -> AsyncIterator[httpx.AsyncClient]:
    edge = OuterMiddleware(mirror, hosts=["gateway.example.com"], scheme="https", trusted=PROXIES, unchecked=["/livez"])
    transport = httpx.ASGITransport(edge, client=("10.0.0.1", 5))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway.example.com") as client:
        yield client


async def test_the_application_sees_the_true_sender_and_the_public_scheme(browser: httpx.AsyncClient) -> None:
    answer = await browser.get("/", headers={"X-Forwarded-For": "198.51.100.7", "X-Forwarded-Proto": "gopher"})

    assert answer.json() | {"request_id": ""} == {
        "client": "('198.51.100.7', 0)",
        "scheme": "https",
        "request_id": "",
    }
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == str(UUID(answer.headers["x-request-id"]))


async def test_another_host_is_refused_except_for_health(browser: httpx.AsyncClient) -> None:
    refused = await browser.get("/mcp/quickstart", headers={"Host": "rebound.example"})
    health = await browser.get("/livez", headers={"Host": "10.1.2.3:8000"})

    assert (refused.status_code, health.status_code) == (400, 200)
    assert "GATEWAY_PUBLIC_URL" in refused.text
    assert "x-request-id" in refused.headers


async def test_two_hosts_are_refused_though_both_are_ours(browser: httpx.AsyncClient) -> None:
    ours = ("Host", "gateway.example.com")
    assert (await browser.get("/", headers=[ours, ours])).status_code == 400


def test_errors_caused_by_strangers_are_logged_in_one_line_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    handler = logging.getLogger("django.security").handlers[0]
    written = io.StringIO()
    before = handler.setStream(written)  # type: ignore[attr-defined]
    try:
        Client(raise_request_exception=False).get("/", headers={"Host": "localhost:80:80"})
    finally:
        handler.setStream(before)  # type: ignore[attr-defined]

    [line] = [json.loads(text) for text in written.getvalue().splitlines()]
    assert (line["level"], line["logger"]) == ("warning", "django.security.DisallowedHost")
    assert "exception" not in line


async def test_one_line_per_request_without_its_query(
    browser: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "gatewayadmin.middleware"):
        await browser.get("/hosts/?access_token=gwa_secret")

    [record] = [record for record in caplog.records if record.name == "gatewayadmin.middleware"]
    line = json.loads(JsonFormatter().format(record))
    assert (line["method"], line["path"], line["status"], line["client"]) == ("GET", "/hosts/", 200, "10.0.0.1")
    assert "secret" not in json.dumps(line)


def test_log_lines_lose_secrets_in_paths() -> None:
    token = "gwa_" + "A1b2" * 11
    record = logging.makeLogRecord(
        {"msg": f"GET /accounts/password/reset/key/3-c0ffee/ {token} 200", "levelname": "INFO"}
    )

    line = JsonFormatter().format(record)

    assert json.loads(line)["message"] == "GET /accounts/password/reset/key/.../ gwa_... 200"


def test_log_lines_lose_the_key_of_an_invitation_with_which_any_reader_could_join() -> None:
    path = reverse("accounts:invitation", args=["0123abcd-d1x4xk-c0ffee"])

    line = JsonFormatter().format(logging.makeLogRecord({"msg": "request", "path": path}))

    assert json.loads(line)["path"] == "/accounts/join/.../"


def test_log_lines_take_whatever_they_are_given() -> None:
    record = logging.makeLogRecord({"msg": "odd", "levelname": "INFO", "name\udce9": "caf\udce9", "size": 1 << 70})

    line = json.loads(JsonFormatter().format(record))

    assert (line["message"], line["size"]) == ("odd", 1 << 70)
