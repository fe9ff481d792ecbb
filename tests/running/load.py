"""Agents that call a tool, by default without pauses, and record every answer."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import httpx
import psycopg

from bench.balanced import CALL, Agents
from gatewayadmin.embedded.cluster import DATABASE, OWNER, socket_folder
from tests.running.starts import Started, manage

AGENTS = 6


@dataclass
class Load(Agents):
    """Agents that call, in a thread, until the `with` block ends.

    `answered` are the request ids of all successful calls; `slowest` is the longest duration of one, in seconds.
    """

    url: str
    token: str
    agents: int = AGENTS
    pause: float = 0  # Seconds between two calls of an agent; 0 for the maximum load.
    answered: set[UUID] = field(default_factory=set)
    refused: int = 0
    slowest: float = 0

    def wait_for(self, more: int, seconds: float = 60) -> None:
        """Wait until `more` further calls have been answered."""
        goal, deadline = len(self.answered) + more, time.monotonic() + seconds
        while len(self.answered) < goal:
            assert time.monotonic() < deadline, f"{len(self.answered)} answers, {goal} wanted"
            time.sleep(0.02)

    async def _work(self) -> None:
        limits = httpx.Limits(max_connections=self.agents)
        headers = {"Authorization": f"Bearer {self.token}"}
        async with httpx.AsyncClient(limits=limits, headers=headers) as client:
            await asyncio.gather(*(self._agent(client, number) for number in range(self.agents)))

    async def _agent(self, client: httpx.AsyncClient, number: int) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                answer = await client.post(self.url, json=CALL | {"id": number})
            except httpx.TransportError:
                await asyncio.sleep(0.05)
                continue
            if answer.status_code == httpx.codes.OK and "result" in answer.json():
                self.slowest = max(self.slowest, time.monotonic() - began)
                self.answered.add(UUID(answer.headers["x-request-id"]))
                await asyncio.sleep(self.pause)
            else:
                self.refused += 1
                await asyncio.sleep(0.05)


def on(served: Started) -> Load:
    """Return a Load that calls the Quickstart gateway with a new token."""
    words = ("issue_token", "--user", "admin@localhost", "--host", "Load", "--gateway", "quickstart")
    done = manage(served.home, *words)
    assert done.returncode == 0, done.stderr
    # Without a pause, the agents would keep the cores busy while a killed process restarts.
    return Load(f"{served.url}/mcp/quickstart", json.loads(done.stdout)["token"], pause=0.05)


def recorded(home: Path) -> set[UUID]:
    """Return the request ids of all calls in the log."""
    address = f"host={socket_folder(home / 'postgres')} dbname={DATABASE} user={OWNER}"
    with psycopg.connect(address) as connection:
        return {row[0] for row in connection.execute("SELECT correlation_id FROM auditlog_call")}
