"""A stopping process answers connected clients, and refuses new connections."""

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path

import httpx
import pytest

from bench.balanced import Agents
from tests import cluster
from tests.eventually import PROCESS_PATIENCE, eventually
from tests.running.processes import chores, workers
from tests.running.starts import manage, serving
from tests.workspace import free_port

pytestmark = pytest.mark.full

CALL = (
    b"POST /mcp/quickstart HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: 2\r\n\r\n{}"
)
REFUSED, ANSWERED = "refused", "401"


class Callers(Agents):
    """Clients that open a connection per call, like proxies; `seen` counts the outcomes."""

    def __init__(self, port: int, number: int = 16, pause: float = 0) -> None:
        super().__init__()
        self._port, self._number, self._pause = port, number, pause
        self.seen: Counter[str] = Counter()

    async def _work(self) -> None:
        await asyncio.gather(*(self._call_on() for _ in range(self._number)))

    async def _call_on(self) -> None:
        while not self._stop.is_set():
            self.seen[await self._call()] += 1

    async def _call(self) -> str:
        """Call, and return the status or the error."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.01)
            return REFUSED
        await asyncio.sleep(self._pause)
        try:
            writer.write(CALL)
            answer = await asyncio.wait_for(reader.read(), 30)
            return answer[9:12].decode() or "closed without an answer"
        except OSError as error:
            return repr(error)
        finally:
            writer.close()


def test_a_stopping_worker_or_process_answers_connected_clients_and_then_refuses_new_ones(home: Path) -> None:
    """Nothing was sent over a refused connection, so a proxy can retry at once, even a tool call."""
    with (
        serving(home, {"GATEWAY_DRAIN_SECONDS": "5"}, workers=2) as served,
        Callers(served.port) as quick,
        Callers(served.port, 64, pause=1) as slow,  # They call when they get a processor.
    ):
        eventually(lambda: quick.seen[ANSWERED] > 100)
        eventually(lambda: slow.seen[ANSWERED] > 100)
        (one,) = chores(served.process.pid)
        eventually(lambda: not [each for each in one.net_connections() if each.status == "LISTEN"])
        another_worker_takes_the_place_of_an_ended_one(served.process.pid)
        before = quick.seen[ANSWERED]
        eventually(lambda: quick.seen[ANSWERED] > before + 100)
        assert quick.seen.keys() | slow.seen.keys() == {ANSWERED}

        served.process.terminate()
        eventually(lambda: httpx.get(f"{served.url}/readyz").text == "draining\n")
        assert httpx.get(f"{served.url}/livez").status_code == httpx.codes.OK
        assert httpx.post(f"{served.url}/mcp/quickstart", json={}).status_code == httpx.codes.UNAUTHORIZED
        assert served.process.wait(timeout=PROCESS_PATIENCE) == 0
        eventually(lambda: quick.seen[REFUSED] > 100)

    assert quick.seen.keys() | slow.seen.keys() == {ANSWERED, REFUSED}
    assert not [path for path in (home / "metrics").iterdir() if path.name != str(served.process.pid)]


def another_worker_takes_the_place_of_an_ended_one(pid: int) -> None:
    first = workers(pid)
    os.kill(first[0].pid, signal.SIGTERM)
    eventually(lambda: first[0] not in (now := workers(pid)) and len(now) == 2)


def test_nobody_has_connected_to_a_process_that_finds_that_it_cannot_start(fresh: Path) -> None:
    """The process refuses connections, so that calls go to another one while Compose or Kubernetes restarts it."""
    port, empty = free_port(), cluster.fresh_database(f"empty_{os.getpid()}")
    with Callers(port) as callers:
        done = manage(fresh, "serve", "--no-migrate", "--port", str(port), DATABASE_URL=empty, **cluster.keys())

    assert done.stderr.startswith("CommandError: The database is empty")
    assert callers.seen.keys() == {REFUSED}
