"""Agents that call a tool through a load balancer, and never retry."""

import asyncio
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from bench.balanced import CALL, Agents
from tests.eventually import eventually


@dataclass
class Calls(Agents):
    """Agents that call a tool, in a thread, until the `with` block ends. They never repeat a call."""

    url: str
    token: str
    trust: Path
    agents: int = 8
    pause: float = 0.02
    answered: int = 0
    slowest: float = 0
    failed: list[str] = field(default_factory=list)

    def wait_for(self, more: int) -> None:
        """Wait for this many more successful calls."""
        goal = self.answered + more
        eventually(lambda: self.answered >= goal)

    async def _work(self) -> None:
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "application/json, text/event-stream"}
        trust = ssl.create_default_context(cafile=str(self.trust))
        async with httpx.AsyncClient(verify=trust, trust_env=False, headers=headers, timeout=60) as client:
            await asyncio.gather(*(self._agent(client, number) for number in range(self.agents)))

    async def _agent(self, client: httpx.AsyncClient, number: int) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            if problem := await self._problem(client, number):
                self.failed.append(problem)
            else:
                self.answered += 1
                self.slowest = max(self.slowest, time.monotonic() - began)
            await asyncio.sleep(self.pause)

    async def _problem(self, client: httpx.AsyncClient, number: int) -> str:
        """Make a call; return a description of the failure, or an empty string."""
        try:
            answer = await client.post(self.url, json=CALL | {"id": number})
        except httpx.HTTPError as error:
            return repr(error)
        is_fine = answer.status_code == httpx.codes.OK and "result" in answer.json()
        return "" if is_fine else f"{answer.status_code} {answer.text[:300]}"
