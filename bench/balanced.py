"""Calls without end to whichever of several gateways is ready: agents, and the load balancer before them.

The balancer asks /readyz of each and sends calls to those that are ready. A call is sent once more where HTTP clients
and nginx do so: when no connection could be made, or when the one that was kept was closed before anything of an answer
had come. Whether a gateway made such a call after all is for its log to say.
"""

import asyncio
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

LOOK_S = 0.2  # Between two looks whether a process is ready.
CALL = {"jsonrpc": "2.0", "method": "tools/call", "params": {"name": "echo", "arguments": {"text": "hello"}}}
CLOSED = (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)


@dataclass(kw_only=True)
class Agents:
    """Agents at work in a thread until the block ends, as long as `_stop` is not set."""

    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._work()))
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join()

    async def _work(self) -> None:
        """What they do."""
        raise NotImplementedError


@dataclass
class Balanced(Agents):
    """Agents that call whichever process is ready, in a thread, until the block ends."""

    token: str
    slug: str
    agents: int = 4
    pause: float = 0.02
    ports: list[int] = field(default_factory=list)
    ready: list[int] = field(default_factory=list)
    taken: list[tuple[float, float]] = field(default_factory=list)
    """When each call ended, well or not, and the seconds it took."""
    failed: list[str] = field(default_factory=list)
    sent_again: int = 0
    _turn: int = 0

    def since(self, began: float) -> list[float]:
        """The seconds of each call that ended since then, the shortest first."""
        return sorted(seconds for came, seconds in list(self.taken) if came >= began)

    async def _work(self) -> None:
        async with httpx.AsyncClient(trust_env=False, timeout=2) as balancer, asyncio.TaskGroup() as group:
            group.create_task(self._look(balancer))
            for number in range(self.agents):
                group.create_task(self._agent(number))

    async def _look(self, balancer: httpx.AsyncClient) -> None:
        while not self._stop.is_set():
            self.ready = [port for port in list(self.ports) if await _is_ready(balancer, port)]
            await asyncio.sleep(LOOK_S)

    async def _agent(self, number: int) -> None:
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "application/json, text/event-stream"}
        async with httpx.AsyncClient(trust_env=False, headers=headers, timeout=30) as client:
            while not self._stop.is_set():
                began = time.monotonic()
                if said := await self._ask(client, CALL | {"id": number}):
                    self.failed.append(said)
                self.taken.append((time.monotonic(), time.monotonic() - began))
                await asyncio.sleep(self.pause)

    async def _ask(self, client: httpx.AsyncClient, message: dict[str, Any]) -> str:
        """What went wrong, if something did; a call whose connection was closed is sent to the next one once."""
        for is_last in (False, True):
            try:
                answer = await client.post(self._url(), json=message)
            except CLOSED as error:
                if is_last:
                    return repr(error)
                self.sent_again += 1
            except (httpx.HTTPError, LookupError) as error:
                return repr(error)
            else:
                fine = answer.status_code == httpx.codes.OK and "result" in answer.json()
                return "" if fine else f"{answer.status_code} {answer.text[:300]}"
        return ""

    def _url(self) -> str:
        """That of the next process that is ready. Raises LookupError when none is."""
        self._turn += 1
        ready = self.ready
        if not ready:
            raise LookupError("no process is ready")
        return f"http://127.0.0.1:{ready[self._turn % len(ready)]}/mcp/{self.slug}"


async def _is_ready(client: httpx.AsyncClient, port: int) -> bool:
    with suppress(httpx.HTTPError):
        return (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == httpx.codes.OK
    return False
