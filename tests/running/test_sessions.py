"""A client's session continues across the workers of one `serve`, whichever of them dies."""

import json
import subprocess
import sys
import time
from typing import Any

import httpx
import pytest

from tests.conformance.counter import Counter
from tests.conftest import Run
from tests.eventually import eventually
from tests.running.processes import workers
from tests.workspace import ROOT, Serve

# This test kills workers and restarts the gateway, as `test_replicas` does with two replicas.
pytestmark = pytest.mark.full

INITIALIZE = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "probe", "version": "1"}}


def added(serve: Serve, url: str) -> dict[str, str]:
    """Create a gateway with the server at `url`, and a token for it."""
    command = [sys.executable, "-m", "tests.conformance.rows", json.dumps({"counter": url})]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=serve.environment() | {"DJANGO_SETTINGS_MODULE": "gatewayadmin.settings"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout)["counter"])


def test_a_killed_worker_and_a_restart_lose_nothing_of_a_session(live_alone: Serve, run: Run) -> None:
    counter = Counter(("2025-06-18", "2025-11-25"))
    serve = live_alone.start(workers=2)
    made = added(serve, run(counter).url)
    headers = {"Authorization": f"Bearer {made['token']}", "Accept": "application/json, text/event-stream"}

    def ask(method: str, params: dict[str, Any]) -> httpx.Response:
        """Send a request over a new connection, so that any worker may get it; retry if the connection fails."""
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        for _ in range(200):
            try:
                with httpx.Client(trust_env=False, timeout=30) as client:
                    return client.post(f"{serve.url}/mcp/{made['slug']}", json=body, headers=headers)
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError("nobody took it")

    def count() -> tuple[int, str]:
        counted = ask("tools/call", {"name": "count"}).json()["result"]["structuredContent"]
        return counted["count"], counted["session"]

    headers["Mcp-Session-Id"] = ask("initialize", INITIALIZE).headers["mcp-session-id"]
    counted = [count() for _ in range(6)]
    assert serve.process is not None
    for worker in workers(serve.process.pid):
        worker.kill()
        worker.wait()
        counted.append(count())
    serve.stop()
    serve.start(workers=2)
    counted += [count() for _ in range(12 - len(counted))]

    assert [number for number, _ in counted] == [*range(1, len(counted) + 1)]
    assert len({session for _, session in counted}) == 1
    # Two workers may open a session at once: the slower worker ends its own session, and uses the other one.
    eventually(lambda: len(counter.events("initialize")) - len(counter.events("delete")) == 1)
