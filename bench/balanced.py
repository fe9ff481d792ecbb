"""Send calls continuously to several replicas, as agents behind a load balancer do.

The balancer asks each replica's /readyz, and sends calls only to ready replicas. It repeats a call in the same cases as
HTTP clients and nginx: if no connection could be made, or if a kept-alive connection was closed before the first byte
of the answer. The replicas' log shows whether the first attempt of a repeated call was executed after all.
"""

import asyncio
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

LOOK_S = 0.2  # Pause between two readiness checks.
CALL = {"jsonrpc": "2.0", "method": "tools/call", "params": {"name": "echo", "arguments": {"text": "hello"}}}
CLOSED = (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)


@dataclass(kw_only=True)
class Agents:
    """A context manager that sends calls in a thread until its `with` block ends."""

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
        """Send calls until `_stop` is set."""
        raise NotImplementedError


@dataclass
class Balanced(Agents):
    """A context manager that sends calls to ready replicas, in a thread, until its `with` block ends."""

    token: str
    slug: str
    agents: int = 4
    pause: float = 0.02
    ports: list[int] = field(default_factory=list)
    ready: list[int] = field(default_factory=list)
    taken: list[tuple[float, float]] = field(default_factory=list)
    """For each call, failed ones included: the time when it ended, and its duration in seconds."""
    failed: list[str] = field(default_factory=list)
    sent_again: int = 0
    _turn: int = 0

    def since(self, began: float) -> list[float]:
        """Return the durations in seconds of the calls that ended since `began`, shortest first."""
        return sorted(seconds for came, seconds in list(self.taken) if came >= began)

    async def _work(self) -> None:
        async with httpx.AsyncClient(trust_env=False, timeout=2) as balancer, asyncio.TaskGroup() as group:
            group.create_task(self._look(balancer))
            for number in range(self.agents):
                group.create_task(self._agent(number))

    async def _look(self, balancer: httpx.AsyncClient) -> None:
        while not self._stop.is_set():
            ports = list(self.ports)
            answers = await asyncio.gather(*(_is_ready(balancer, port) for port in ports))
            self.ready = [port for port, is_ready in zip(ports, answers, strict=True) if is_ready]
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
        """Send a call, and return the error, or "" if there was none.

        If the connection fails or is closed, the call is sent once more, to another replica.
        """
        port = None
        for is_last in (False, True):
            try:
                port = self._next(besides=port)
                answer = await client.post(f"http://127.0.0.1:{port}/mcp/{self.slug}", json=message)
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

    def _next(self, besides: int | None) -> int:
        """Return the port of the next ready replica other than `besides`. Raises LookupError if none is ready."""
        self._turn += 1
        ready = [port for port in self.ready if port != besides]
        if not ready:
            raise LookupError("no process is ready")
        return ready[self._turn % len(ready)]


async def _is_ready(client: httpx.AsyncClient, port: int) -> bool:
    with suppress(httpx.HTTPError):
        return (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == httpx.codes.OK
    return False
