"""Look for what grows while clients come and go badly: `python -m bench.soak --minutes 20`.

Clients of both eras call tools, subscribe, listen, break streams in the middle, leave questions of servers unanswered
and never end a session, at a gateway of two workers with its embedded PostgreSQL. Every half minute a line tells the
memory of each worker, the rows of the tables of sessions, the sessions open at the server and the median of a call.
Fails when memory or rows grow after the first third of the time.

What nobody answers is kept for five minutes, so that less than fifteen minutes say little.
"""

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil
import psycopg

from bench.processes import (
    ROOT,
    free_port,
    gateway_environment,
    rows,
    running,
    serve_command,
    session_at,
    upstream_command,
)
from gatewayadmin.embedded.cluster import DATABASE, OWNER, socket_folder

SAMPLE_SECONDS = 30.0
TABLES = ("session", "upstreamsession", "pendingrequest", "suspendedcall", "cancellation")
MOST_SESSIONS = 100  # The gateway keeps so many of a connection.
AT_ONCE = 4
LISTENED_SECONDS = 2.0  # Enough for the gateway to listen to the server as well.
# What may be between two medians without anything having grown.
MEMORY_ALLOWED, ROWS_ALLOWED, FEW_ROWS = 1.03, 1.05, 10
MODERN = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": {"name": "soak", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}},
}

type Json = dict[str, Any]


@dataclass
class Counted:
    """What clients did since the last line: milliseconds of plain calls, and what failed."""

    taken: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    actions: int = 0


@dataclass(frozen=True)
class Sample:
    """One line."""

    memory: dict[int, float]
    """MB of each worker."""
    files: dict[int, int]
    rows: dict[str, int]
    at_server: int

    @property
    def stored(self) -> int:
        return sum(self.rows.values())


@dataclass
class Client:
    """A client with one token, which does things until it is stopped."""

    http: httpx.AsyncClient
    url: str
    token: str
    alias: str
    counted: Counted
    pause: float

    def headers(self, **more: str) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self.token}",
            "Accept": "application/json, text/event-stream",
            **{name.replace("_", "-"): value for name, value in more.items()},
        }

    async def post(self, body: Json, headers: dict[str, str], *, plain: bool = False) -> Json:
        """Ask, and read the answer to its end; `plain` is timed."""
        began = time.perf_counter()
        answer = await self.http.post(self.url, json=body, headers=headers)
        if plain:
            self.counted.taken.append((time.perf_counter() - began) * 1000)
        self.counted.actions += 1
        lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
        told: Json = json.loads(lines[-1] if lines else answer.text or "{}")
        if plain and "result" not in told:
            self.counted.failed.append(f"{answer.status_code} {answer.text[:200]}")
        await asyncio.sleep(self.pause * random.uniform(0.5, 1.5))
        return told

    async def broken(self, body: Json, headers: dict[str, str]) -> None:
        """Ask, and close the connection after the first event."""
        async with self.http.stream("POST", self.url, json=body, headers=headers) as answer:
            with suppress(StopAsyncIteration):
                await anext(_events(answer))
        self.counted.actions += 1
        await asyncio.sleep(self.pause)

    @asynccontextmanager
    async def standing(self, verb: str, body: Json | None, headers: dict[str, str]) -> AsyncIterator[None]:
        """Hold a stream open meanwhile, then drop it."""
        async with self.http.stream(verb, self.url, json=body, headers=headers):
            yield
        self.counted.actions += 1

    def call(self, tool: str, **arguments: Any) -> Json:
        params = {"name": f"{self.alias}__{tool}", "arguments": arguments, "_meta": {"progressToken": "p"}}
        return {"jsonrpc": "2.0", "id": random.randrange(1 << 30), "method": "tools/call", "params": params}


async def session_life(client: Client) -> None:
    """One client of the session era; it leaves without a word."""
    info = {"name": "soak", "version": "1"}
    params = {"protocolVersion": "2025-11-25", "capabilities": {"elicitation": {}}, "clientInfo": info}
    body = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
    answer = await client.http.post(client.url, json=body, headers=client.headers())
    own = client.headers(Mcp_Session_Id=answer.headers["mcp-session-id"])
    await client.post({"jsonrpc": "2.0", "method": "notifications/initialized"}, own)
    async with client.standing("GET", None, own):
        await client.post({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, own)
        subscribe = {"jsonrpc": "2.0", "id": 2, "method": "resources/subscribe", "params": {"uri": "bench://one"}}
        await client.post(subscribe, own)
        for _ in range(5):
            await client.post(client.call("echo", text="hello"), own, plain=True)
        await client.post(client.call("steps", steps=5), own)
        await client.broken(client.call("steps", steps=50, pause=0.1), own)
        await client.broken(client.call("ask"), own)
        cancel = client.call("steps", steps=50, pause=0.1)
        note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": cancel["id"]}}
        await asyncio.gather(client.post(cancel, own), client.post(note, own))


async def modern_life(client: Client) -> None:
    """One client of 2026-07-28."""

    def told(body: Json) -> tuple[Json, dict[str, str]]:
        params = {**body.get("params", {})}
        params["_meta"] = {**params.get("_meta", {}), **META}
        named = {"Mcp_Name": params["name"]} if "name" in params else {}
        headers = client.headers(MCP_Protocol_Version=MODERN, Mcp_Method=body["method"], **named)
        return {**body, "params": params}, headers

    wanted = {"notifications": {"toolsListChanged": True, "resourceSubscriptions": ["bench://one"]}}
    listen = {"jsonrpc": "2.0", "id": "sub", "method": "subscriptions/listen", "params": wanted}
    await client.post(*told({"jsonrpc": "2.0", "id": 0, "method": "server/discover"}))
    body, headers = told(listen)
    async with client.standing("POST", body, headers):
        await client.post(*told({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}))
        for _ in range(5):
            await client.post(*told(client.call("echo", text="hello")), plain=True)
        await client.post(*told(client.call("steps", steps=5)))
        await client.broken(*told(client.call("steps", steps=50, pause=0.1)))
        asked = client.call("ask")
        result = (await client.post(*told(asked))).get("result", {})
        if result.get("resultType") == "input_required" and random.random() < 0.5:
            answers = {name: {"action": "accept", "content": {}} for name in result["inputRequests"]}
            retried = {"inputResponses": answers, "requestState": result["requestState"]}
            asked["params"] |= retried
            await client.post(*told(asked))


async def live(client: Client, life: Any, until: float) -> None:
    while time.monotonic() < until:
        try:
            await life(client)
        except (httpx.HTTPError, KeyError) as error:
            client.counted.failed.append(f"{type(error).__name__} {error}")
            await asyncio.sleep(client.pause)


async def _events(answer: httpx.Response) -> AsyncIterator[str]:
    async for line in answer.aiter_lines():
        if line.startswith("data: "):
            yield line


def main() -> None:
    options = parsed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Ended before its time."))
    with tempfile.TemporaryDirectory(prefix="gateway-soak-") as folder:
        home = Path(folder)
        home.chmod(0o755)  # The embedded PostgreSQL of root runs as somebody else.
        with gateway(home) as (look, clients):
            samples = asyncio.run(soak(options.minutes * 60, options.pause, look, clients))
    grown = [told for told in what_grew(samples) if told]
    print("\n".join(grown) or "Nothing grew.")
    sys.exit(1 if grown else 0)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20, help="how long (default: %(default)s)")
    parser.add_argument("--pause", type=float, default=0.2, help="seconds between actions (default: %(default)s)")
    return parser.parse_args()


@contextmanager
def gateway(home: Path) -> Iterator[tuple[Any, list[tuple[str, str, str, Any]]]]:
    """A gateway with its sessions already as many as it keeps; what looks at it, and who is to call it."""
    upstream, port, environment = free_port(), free_port(), gateway_environment(home)
    with ExitStack() as stack:
        stack.enter_context(running(upstream_command(upstream), upstream))
        serve = serve_command(ROOT, port, workers=2)
        process = stack.enter_context(running(serve, port, environment, path="/readyz"))
        at = f"http://127.0.0.1:{upstream}"
        made = rows(ROOT, environment, "make", servers={"sessions": f"{at}/sessions", "bench": f"{at}/mcp"}, tokens=2)
        clients = []
        for name, one in made.items():
            url = f"http://127.0.0.1:{port}/mcp/{one['slug']}"
            for token, life in zip(one["tokens"], (session_life, modern_life), strict=True):
                clients.append((url, token, name, life))
                if life is session_life:
                    asyncio.run(fill(url, token, f"{name}__echo"))

        def look() -> Sample:
            workers = {child.pid: child for child in psutil.Process(process.pid).children() if _is_python(child)}
            address = f"host={socket_folder(home / 'data' / 'postgres')} dbname={DATABASE} user={OWNER}"
            with psycopg.connect(address) as connection:
                counts = {
                    table: connection.execute(f"SELECT count(*) FROM proxy_{table}".encode()).fetchone()
                    for table in TABLES
                }
            with urllib.request.urlopen(f"{at}/count", timeout=10) as counted:
                at_server = int(counted.read())
            return Sample(
                {pid: worker.memory_info().rss / 1e6 for pid, worker in workers.items()},
                {pid: worker.num_fds() for pid, worker in workers.items()},
                {table: int(row[0]) for table, row in counts.items() if row},
                at_server,
            )

        yield look, clients


def _is_python(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "postgres" not in process.name()
    return False


async def fill(url: str, token: str, tool: str) -> None:
    """Open as many sessions as are kept; each has called, and listened, so that all has been kept that one needs."""
    at_once = asyncio.Semaphore(AT_ONCE)
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json, text/event-stream"}
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": {"text": "hello"}}}

    async def one(http: httpx.AsyncClient) -> None:
        async with at_once:
            own = {**headers, "Mcp-Session-Id": await asyncio.to_thread(session_at, url, headers)}
            (await http.post(url, json=call, headers=own)).raise_for_status()
            async with http.stream("GET", url, headers=own):
                await asyncio.sleep(LISTENED_SECONDS)

    async with httpx.AsyncClient(timeout=60, trust_env=False) as http, asyncio.TaskGroup() as group:
        for _ in range(MOST_SESSIONS):
            group.create_task(one(http))


async def soak(seconds: float, pause: float, look: Any, clients: list[tuple[str, str, str, Any]]) -> list[Sample]:
    counted, samples, began = Counted(), list[Sample](), time.monotonic()
    limits = httpx.Limits(max_keepalive_connections=8)
    async with httpx.AsyncClient(timeout=60, limits=limits, trust_env=False) as http, asyncio.TaskGroup() as group:
        for url, token, alias, life in clients:
            client = Client(http, url, token, alias, counted, pause)
            group.create_task(live(client, life, began + seconds))
        while (passed := time.monotonic() - began) < seconds:
            await asyncio.sleep(min(SAMPLE_SECONDS, seconds - passed))
            samples.append(await asyncio.to_thread(look))
            print_line(time.monotonic() - began, samples[-1], counted)
            counted.taken, counted.failed, counted.actions = [], [], 0
    return samples


def print_line(passed: float, sample: Sample, counted: Counted) -> None:
    memory = " ".join(f"{each:7.1f}" for each in sample.memory.values())
    files = " ".join(f"{each:4}" for each in sample.files.values())
    tables = ", ".join(f"{name} {number}" for name, number in sample.rows.items())
    p50 = f"{median(counted.taken):6.1f}" if counted.taken else "   -"
    print(
        f"{passed / 60:5.1f} min  MB {memory}  files {files}  {tables}  at the server {sample.at_server}"
        f"  p50 {p50} ms of {len(counted.taken)}, {counted.actions} actions"
        + (f"  {len(counted.failed)} FAILED: {counted.failed[0]}" if counted.failed else ""),
        flush=True,
    )


def what_grew(samples: list[Sample]) -> Iterator[str]:
    """Sentences about what was more in the last third than in the second, by the medians."""
    second, last = samples[len(samples) // 3 : 2 * len(samples) // 3], samples[2 * len(samples) // 3 :]
    if not second or not last:
        yield "Too short to tell."
        return
    for pid in last[-1].memory:
        early, late = (median(one.memory.get(pid, 0) for one in third) for third in (second, last))
        if late > early * MEMORY_ALLOWED:
            yield f"GREW: worker {pid} from {early:.1f} to {late:.1f} MB"
    for name in TABLES:
        before, after = (median(one.rows[name] for one in third) for third in (second, last))
        if after > before * ROWS_ALLOWED + FEW_ROWS:
            yield f"GREW: {name} from {before:.0f} to {after:.0f} rows"
    before, after = (median(one.at_server for one in third) for third in (second, last))
    if after > before * ROWS_ALLOWED + FEW_ROWS:
        yield f"GREW: sessions at the server from {before:.0f} to {after:.0f}"


if __name__ == "__main__":
    main()
