"""Health endpoints, and access to metrics."""

from ipaddress import ip_network
from pathlib import Path

import httpx
import pytest
from django.conf import settings
from starlette.applications import Starlette
from starlette.routing import Route

from gatewayadmin.middleware import OuterMiddleware
from gatewayadmin.serving import health
from tests.eventually import PROCESS_PATIENCE, eventually
from tests.running.starts import serving
from wire.versions import with_commit

TRUSTED = [ip_network("127.0.0.9/32")]
ROUTES = [Route(path, getattr(health, path[1:])) for path in health.PATHS]


async def ask(path: str, peer: str = "127.0.0.1", **headers: str) -> int:
    edge = OuterMiddleware(Starlette(routes=ROUTES), hosts=[], scheme="http", trusted=TRUSTED, unchecked=health.PATHS)
    transport = httpx.ASGITransport(edge, client=(peer, 5))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return (await client.get(path, headers=headers)).status_code


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))


@pytest.mark.usefixtures("counting")
async def test_metrics_are_for_this_machine_or_with_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = "203.0.113.9"
    assert await ask("/metrics") == 200
    assert await ask("/metrics", "::1") == 200
    assert await ask("/metrics", elsewhere) == 403
    assert await ask("/metrics", elsewhere, authorization="Bearer ") == 403

    monkeypatch.setattr(settings, "METRICS_TOKEN", "the-token-of-prometheus")
    assert await ask("/metrics", elsewhere, authorization="Bearer wrong") == 403
    assert await ask("/metrics", elsewhere, authorization="bearer the-token-of-prometheus") == 200


@pytest.mark.usefixtures("counting")
async def test_a_worker_that_has_only_just_opened_its_counters_hides_those_of_nobody(tmp_path: Path) -> None:
    (tmp_path / "counter_17.db").touch()
    assert await ask("/metrics") == 200


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize(
    "header",
    ["X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded", "X-Real-IP", "Via", "CF-Connecting-IP"],
)
async def test_a_proxy_on_this_machine_opens_the_metrics_to_nobody(header: str) -> None:
    assert await ask("/metrics", **{header: "127.0.0.1"}) == 403


@pytest.mark.usefixtures("counting")
async def test_a_trusted_proxy_on_this_machine_opens_the_metrics_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "TRUSTED_PROXIES", TRUSTED)
    assert await ask("/metrics", "127.0.0.8") == 200
    assert await ask("/metrics", "127.0.0.9") == 403


@pytest.fixture
def readiness(monkeypatch: pytest.MonkeyPatch) -> health.Readiness:
    """The readiness of a process that has not started yet."""
    fresh = health.Readiness()
    monkeypatch.setattr(health, "readiness", fresh)
    return fresh


async def test_readiness_is_that_of_the_connections_calls_take_and_says_what_is_wrong(
    readiness: health.Readiness,
) -> None:
    assert await ask("/readyz") == 503
    readiness.watch(dict)
    assert await ask("/readyz") == 200
    readiness.watch(lambda: {"limits": "subquery in FROM must have an alias"})
    assert await ask("/readyz") == 503
    assert readiness.problem() == "limits: subquery in FROM must have an alias\n"
    readiness.watch(dict)
    readiness.drain()
    assert (await ask("/readyz"), readiness.problem()) == (503, "draining\n")


@pytest.mark.full
def test_from_the_signal_to_end_on_a_worker_is_not_ready_and_serves_for_as_long_as_was_said(home: Path) -> None:
    with serving(home, {"GATEWAY_DRAIN_SECONDS": "5"}) as served:
        served.process.terminate()
        eventually(lambda: httpx.get(f"{served.url}/readyz").text == "draining\n")
        assert httpx.get(f"{served.url}/livez").status_code == 200
        assert httpx.post(f"{served.url}/mcp/quickstart", json={}).status_code == 401
        assert served.process.wait(timeout=PROCESS_PATIENCE) == 0


@pytest.mark.full
def test_every_worker_is_counted_and_health_needs_no_host(home: Path) -> None:
    with serving(home, workers=2) as served:
        for path, text in (("/livez", "ok\n"), ("/readyz", f"ok\nversion: {with_commit(settings.COMMIT)}\n")):
            assert httpx.get(served.url + path, headers={"Host": "10.1.2.3"}).text == text
        assert httpx.get(f"{served.url}/metrics").status_code == 200
        assert httpx.get(served.url, headers={"Host": "rebound.example"}).status_code == 400
        assert served.stop() == 0
    assert not [path for path in (home / "metrics").iterdir() if path.name != str(served.process.pid)]
