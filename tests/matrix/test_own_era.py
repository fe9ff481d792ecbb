"""FastMCP 4, which speaks both eras, serves each client in the client's own era, through two workers.

Sessions keep their state and get server requests, while 2026-07-28 clients call on both workers.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import psutil
import pytest

from tests import secrecy
from tests.conformance import fixtures
from tests.eventually import PATIENCE
from tests.matrix import servers
from tests.matrix.clients import CLIENTS, Targets, python
from tests.matrix.servers import asked, counted
from tests.proxy.test_endpoint import modern
from tests.running.processes import workers
from tests.workspace import ROOT, Serve

pytestmark = pytest.mark.full

SERVER = "fastmcp-4"
# The last two tools return an error to a client without a session.
ASKS = {
    "session": counted(),
    "elicitation": asked("test_elicitation", {"message": "Who?"}, "accept.*Ana"),
    "sampling": asked("test_sampling", {"prompt": "Say it"}, servers.SAMPLED),
}
ALL, NO_MODEL, NEITHER = {*ASKS}, {"session", "elicitation"}, {"session"}
ABILITIES = {
    "Python SDK 2, legacy": ALL,
    "TypeScript SDK 1": ALL,
    "TypeScript SDK 2, legacy": ALL,
    "mcp-remote": ALL,
    "fastmcp, legacy": ALL,
    "Python SDK 1": ALL,
    "LangChain MCP adapters": NO_MODEL,
    "pydantic-ai": NO_MODEL,
    "OpenAI Agents SDK": NEITHER,
}
MODERN_CLIENT = "2026-07-28"
PAUSE_SECONDS = 0.05
FEWEST_CALLS = 6
RUN = {name: client.run for name, client in CLIENTS.items()}
RUN["fastmcp, legacy"] = python("fastmcp", "matrix-fastmcp", mode="legacy")


@pytest.fixture(scope="module")
def targets(live: Serve) -> Iterator[dict[str, Targets]]:
    """Yield each client's target: a gateway with FastMCP, and the client's token for it."""
    servers.install()
    with fixtures.running(SERVER) as url:
        rows = json.dumps({"servers": {SERVER: url}, "clients": [*ABILITIES, MODERN_CLIENT]})
        command = [sys.executable, "-m", "tests.matrix.rows", rows]
        done = subprocess.run(command, cwd=ROOT, env=live.environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        made = json.loads(done.stdout)[SERVER]
        for token in made["tokens"].values():
            secrecy.note(token)
        address = f"{live.url}/mcp/{made['slug']}"
        yield {name: {SERVER: {"url": address, "token": token, "asks": ASKS}} for name, token in made["tokens"].items()}


def test_each_session_counts_and_is_asked_beside_clients_without_one(targets: dict[str, Targets], live: Serve) -> None:
    with calling_on_each_worker(live, targets[MODERN_CLIENT][SERVER]) as said, ThreadPoolExecutor(3) as pool:
        runs = {name: pool.submit(RUN[name], targets[name]) for name in ABILITIES}
        found = {name: run.result()[SERVER] for name, run in runs.items()}

    assert found == {name: dict.fromkeys(abilities, "") for name, abilities in ABILITIES.items()}
    assert len(said) == 2
    assert all(set(texts) == {"call 1"} for texts in said.values()), said


@contextmanager
def calling_on_each_worker(serve: Serve, target: dict[str, Any]) -> Iterator[dict[int, list[str]]]:
    """Yield the answers by worker. A 2026-07-28 client calls each worker until the block ends, at least six times."""
    said: dict[int, list[str]] = {}
    is_over = threading.Event()
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor())
        stack.callback(is_over.set)
        counting = []
        for worker, client in connected_to_each_worker(serve, stack).items():
            said[worker] = []
            counting.append(pool.submit(keep_counting, client, target, said[worker], is_over))
        yield said
        is_over.set()
        for one in counting:
            one.result()


def connected_to_each_worker(serve: Serve, stack: ExitStack) -> dict[int, httpx.Client]:
    """Return an HTTP client per worker process id; the client's keep-alive connection leads to that worker."""
    assert serve.process is not None
    processes = workers(serve.process.pid)
    clients: dict[int, httpx.Client] = {}
    for _ in range(200):
        client = stack.enter_context(httpx.Client(base_url=serve.url, trust_env=False, timeout=PATIENCE))
        stream = client.get("/livez").extensions["network_stream"]
        worker = worker_at(stream.get_extra_info("client_addr")[1], processes)
        clients.setdefault(worker, client)
        if len(clients) == len(processes):
            return clients
    raise AssertionError(f"200 connections reached {len(clients)} of {len(processes)} workers")


def worker_at(port: int, processes: list[psutil.Process]) -> int:
    """Return the worker that accepted the connection from this port."""
    found: list[int] = [
        process.pid
        for process in processes
        if any(one.raddr and one.raddr.port == port for one in process.net_connections("tcp"))
    ]
    assert len(found) == 1
    return found[0]


def keep_counting(client: httpx.Client, target: dict[str, Any], said: list[str], is_over: threading.Event) -> None:
    body, headers = modern("tools/call", {"name": "count", "arguments": {}})
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    while not is_over.wait(PAUSE_SECONDS) or len(said) < FEWEST_CALLS:
        answer = client.post(target["url"], json=body, headers=headers | {"Authorization": f"Bearer {target['token']}"})
        said.append(answer.json().get("result", {}).get("content", [{"text": answer.text}])[0]["text"])
