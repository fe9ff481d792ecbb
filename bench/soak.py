"""Look for failures and growth over days of use: `python -m bench.soak --minutes 120 --restart-every 15`.

Two replicas with one worker each share one database. They are behind nginx, configured as documented. Periodically both
replicas are replaced, one after the other.

Clients of both protocol eras call tools, subscribe, and listen. They break off streams, leave requests of servers
unanswered, and never end a session. With `--real`, the run also includes the clients and the servers of the
compatibility table. These clients use these servers in rounds, one client after the other. Everything that worked in a
client's first round must work in later rounds.

Every half minute a line reports memory and open files of the replicas, rows of the session tables, open sessions at the
upstream servers and the median duration of a call.

Fails if a call failed, if an answered call is missing in the log or logged twice, or if memory, files, rows or open
sessions grew after the first third of the time.

On an idle machine, clients act faster and create more rows. Unused rows are deleted after five minutes. So the
number of rows may grow in proportion to the number of client actions in the last five minutes. Memory and files are
compared by their maximum in each sixth of the time. A run needs at least fifteen minutes, so that its first third has
five minutes.
"""

import argparse
import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import httpx
import psutil
import psycopg
from cryptography.fernet import Fernet

from bench.processes import ROOT, free_port, gateway_environment, rows, running, session_at, upstream_command, wait_for
from bench.upgrade import embedded, manage
from tests.matrix import servers as real_servers
from tests.matrix.clients import CLIENTS, Found
from tests.running.nginx import Nginx

SAMPLE_SECONDS = 30.0
REAL_PAUSE_S = 20.0
TABLES = ("session", "upstreamsession", "pendingrequest", "suspendedcall", "cancellation")
ROWS = "SELECT count(*) FROM proxy_{}"
# Sessions of real clients are not counted: they never end, and the gateway stores up to 100 per connection.
OWN_ROWS = dict.fromkeys(
    ("session", "upstreamsession"),
    ROWS
    + """ WHERE connection_id IN (
        SELECT c.id FROM connections_connection c JOIN gateways_gateway g ON g.id = c.gateway_id
        WHERE g.slug IN ('bench', 'sessions'))""",
)
MOST_SESSIONS = 100  # Stored by the gateway per connection.
AT_ONCE = 4
LISTENED_SECONDS = 2.0  # Long enough for the gateway to start listening to the server too.
KEPT_SECONDS = 300.0  # How long unused rows are stored.
# Differences that do not count as growth: a factor, and a number of rows or files.
ALLOWED, FEW = 1.05, 10
MODERN = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": {"name": "soak", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}},
}

type Json = dict[str, Any]


@dataclass
class Counted:
    """The results of the clients' actions.

    Three fields are reset after each printed line: `taken` has the milliseconds of each plain call, `failed` has a text
    for each failure, and `actions` is the number of actions. The fields `answered` and `failures` are never reset.
    """

    taken: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    actions: int = 0
    answered: int = 0
    """Plain calls since the start."""
    failures: int = 0

    def line_printed(self) -> None:
        self.failures += len(self.failed)
        self.taken, self.failed, self.actions = [], [], 0


@dataclass(frozen=True)
class Sample:
    """The measurements in one printed line."""

    memory: list[float]
    """MB of each replica: its main process, its worker and its process for chores."""
    files: list[int]
    rows: dict[str, int]
    at_server: int
    at: float = 0.0
    """Seconds since the beginning."""
    actions: int = 0
    """The number of actions since the previous line."""


@dataclass
class Client:
    """A client with one token, which acts until it is stopped."""

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
        """Send a request, and read the answer to its end; `plain` calls are timed."""
        began = time.perf_counter()
        answer = await self.http.post(self.url, json=body, headers=headers)
        if plain:
            self.counted.taken.append((time.perf_counter() - began) * 1000)
        self.counted.actions += 1
        lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
        told: Json = json.loads(lines[-1] if lines else answer.text or "{}")
        if plain and "result" in told:
            self.counted.answered += 1
        elif plain:
            self.counted.failed.append(f"{answer.status_code} {answer.text[:200]}")
        await asyncio.sleep(self.pause * random.uniform(0.5, 1.5))
        return told

    async def broken(self, body: Json, headers: dict[str, str]) -> None:
        """Send a request, and close the connection after the first event."""
        async with self.http.stream("POST", self.url, json=body, headers=headers) as answer:
            with suppress(StopAsyncIteration):
                await anext(_events(answer))
        self.counted.actions += 1
        await asyncio.sleep(self.pause)

    @asynccontextmanager
    async def standing(self, verb: str, body: Json | None, headers: dict[str, str]) -> AsyncIterator[None]:
        """Hold a stream open during the block, then drop it."""
        async with self.http.stream(verb, self.url, json=body, headers=headers):
            yield
        self.counted.actions += 1

    def call(self, tool: str, **arguments: Any) -> Json:
        params = {"name": f"{self.alias}__{tool}", "arguments": arguments, "_meta": {"progressToken": "p"}}
        return {"jsonrpc": "2.0", "id": random.randrange(1 << 30), "method": "tools/call", "params": params}


async def session_life(client: Client) -> None:
    """Act as one client of protocol 2025-11-25. The client never ends its session."""
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
    """Act as one client of protocol 2026-07-28."""

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
            lines = [frame.line for frame in traceback.extract_tb(error.__traceback__) if frame.filename == __file__]
            client.counted.failed.append(f"{type(error).__name__} {error}: {lines[1]}")
            await asyncio.sleep(client.pause)


async def _events(answer: httpx.Response) -> AsyncIterator[str]:
    async for line in answer.aiter_lines():
        if line.startswith("data: "):
            yield line


def main() -> None:
    options = parsed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Ended before its time."))
    with tempfile.TemporaryDirectory(prefix="gateway-soak-") as folder, ExitStack() as stack:
        home = Path(folder)
        home.chmod(0o755)  # If root runs this, the embedded PostgreSQL runs as another user.
        site = stack.enter_context(Site.running(home))
        real = stack.enter_context(real_targets(site)) if options.real else {}
        counted = Counted()
        before = site.recorded()
        samples = asyncio.run(soak(options, site, real, counted))
        recorded = site.recorded() - before
    wrong = list(what_grew(samples))
    if counted.failures:
        wrong.append(f"FAILED: {counted.failures} of the clients' actions")
    if recorded != counted.answered:
        wrong.append(f"IN THE LOG: {recorded:,} of {counted.answered:,} answered calls")
    print(f"{counted.answered:,} plain calls answered, {recorded:,} recorded, {counted.failures} failures")
    print("\n".join(wrong) or "Nothing grew.")
    sys.exit(1 if wrong else 0)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20, help="how long (default: %(default)s)")
    parser.add_argument("--pause", type=float, default=0.2, help="seconds between actions (default: %(default)s)")
    parser.add_argument("--restart-every", type=float, default=15, metavar="MINUTES", help="default: %(default)s")
    parser.add_argument("--agents", type=int, default=4, help="per server, which call continuously (default: 4)")
    parser.add_argument("--real", action="store_true", help="also the clients and servers of the compatibility table")
    return parser.parse_args()


class Site:
    """Two replicas on one database behind nginx, and the raw upstream servers."""

    def __init__(self, home: Path, environment: dict[str, str], upstream: str) -> None:
        self._home = home
        self._ports = [free_port(), free_port()]
        self.port = free_port()
        self.environment = environment | {"GATEWAY_PUBLIC_URL": f"http://127.0.0.1:{self.port}"}
        self._upstream = upstream
        self._serves: dict[int, subprocess.Popen[bytes]] = {}
        self.clients: list[tuple[str, str, str, Any]] = []

    @classmethod
    @contextmanager
    def running(cls, home: Path) -> Iterator["Site"]:
        keys = {"GATEWAY_SECRET_KEY": uuid4().hex * 2, "GATEWAY_TOKEN_KEYS": uuid4().hex * 2}
        keys["GATEWAY_ENCRYPTION_KEYS"] = Fernet.generate_key().decode()
        upstream = free_port()
        with ExitStack() as stack:
            address = stack.enter_context(embedded(home / "database"))
            with psycopg.connect(address, autocommit=True) as connection:
                connection.execute("CREATE DATABASE soak")
            keys["DATABASE_URL"] = address.replace("/postgres?", "/soak?")
            site = cls(home, gateway_environment(home) | keys, f"http://127.0.0.1:{upstream}")
            manage(ROOT, site.environment, "migrate", "--verbosity", "0")
            stack.enter_context(running(upstream_command(upstream), upstream))
            stack.callback(site._end)
            for port in site._ports:
                site._start(port)
            stack.callback(Nginx(site.port, site._ports).close)
            site._make_clients()
            yield site

    def replace(self) -> None:
        """Restart one replica after the other, because nginx always needs a replica that serves."""
        for port in self._ports:
            process = self._serves.pop(port)
            process.terminate()
            if process.wait(timeout=60):
                raise AssertionError(f"a replica ended with {process.returncode}: {self._log(port)}")
            self._start(port)
            time.sleep(11)  # nginx skips a failed replica for ten seconds.

    def recorded(self) -> int:
        """Return the number of plain calls in the log."""
        query = "SELECT count(*) FROM auditlog_call WHERE feature_name IN ('bench__echo', 'sessions__echo')"
        with psycopg.connect(self.environment["DATABASE_URL"]) as connection:
            (count,) = connection.execute(query).fetchone() or (0,)
        return int(count)

    def sample(self) -> Sample:
        processes = [psutil.Process(serve.pid) for serve in list(self._serves.values())]
        families = [[one, *one.children(recursive=True)] for one in processes]
        families = [[one for one in family if one.is_running()] for family in families]
        with psycopg.connect(self.environment["DATABASE_URL"]) as connection:
            counts = {
                table: connection.execute(OWN_ROWS.get(table, ROWS).format(table).encode()).fetchone()
                for table in TABLES
            }
        with urllib.request.urlopen(f"{self._upstream}/count", timeout=10) as counted:
            at_server = int(counted.read())
        return Sample(
            [sum(one.memory_info().rss for one in family) / 1e6 for family in families],
            [sum(one.num_fds() for one in family) for family in families],
            {table: int(row[0]) for table, row in counts.items() if row},
            at_server,
        )

    def _make_clients(self) -> None:
        servers = {"sessions": f"{self._upstream}/sessions", "bench": f"{self._upstream}/mcp"}
        for name, one in rows(ROOT, self.environment, "make", servers=servers, tokens=2).items():
            url = f"http://127.0.0.1:{self.port}/mcp/{one['slug']}"
            for token, life in zip(one["tokens"], (session_life, modern_life), strict=True):
                self.clients.append((url, token, name, life))
                if life is session_life:
                    asyncio.run(fill(url, token, f"{name}__echo"))

    def _start(self, port: int) -> None:
        folder = self._home / str(port)
        folder.mkdir(mode=0o700, exist_ok=True)
        with (self._home / f"{port}.log").open("ab") as log:
            process = self._serves[port] = subprocess.Popen(
                [sys.executable, "manage.py", "serve", "--no-migrate", "--workers", "1", "--port", str(port)],
                cwd=ROOT,
                env=self.environment | {"GATEWAY_DATA_DIR": str(folder)},
                stdout=log,
                stderr=log,
            )
        wait_for(f"http://127.0.0.1:{port}/readyz", process)

    def _end(self) -> None:
        for process in self._serves.values():
            process.terminate()
        for process in self._serves.values():
            process.wait(timeout=60)

    def _log(self, port: int) -> str:
        return (self._home / f"{port}.log").read_text()[-2000:]


@contextmanager
def real_targets(site: Site) -> Iterator[dict[str, Any]]:
    """Yield the targets of each client in the compatibility table, by client. The servers run during the block."""
    real_servers.install()
    with tempfile.TemporaryDirectory(prefix="gateway-soak-real-") as home, ExitStack() as stack:
        urls = {}
        for number, name in enumerate(real_servers.SERVERS):
            folder = Path(home) / str(number)
            folder.mkdir()
            urls[name] = stack.enter_context(real_servers.running(name, folder))
        command = [sys.executable, "-m", "tests.matrix.rows", json.dumps({"servers": urls, "clients": list(CLIENTS)})]
        made = json.loads(subprocess.check_output(command, cwd=ROOT, env=site.environment))
        yield {
            client: {
                name: {
                    "url": f"http://127.0.0.1:{site.port}/mcp/{made[name]['slug']}",
                    "token": made[name]["tokens"][client],
                    "asks": {ability: _any_number(ask) for ability, ask in real_servers.SERVERS[name].asks.items()},
                }
                for name in urls
            }
            for client in CLIENTS
        }


def _any_number(ask: Any) -> Any:
    """Return `ask`, changed so that its expected answer may contain any numbers.

    One of the servers counts its calls, so its answer differs in each round.
    """
    if isinstance(ask, list):
        return [_any_number(one) for one in ask]
    return ask | {"says": re.sub(r"\d+", r"\\d+", ask.get("says", ""))}


async def live_really(targets: dict[str, Any], counted: Counted, until: float) -> None:
    """Run the real clients in turn. Record a failure if something that worked in a client's first round fails later."""
    first: dict[str, Found] = {}
    while time.monotonic() < until:
        for client, target in targets.items():
            found = await asyncio.to_thread(CLIENTS[client].run, target)
            first.setdefault(client, found)
            for server, abilities in found.items():
                counted.actions += len(abilities)
                counted.failed.extend(
                    f"{client}, {server}, {ability}: {reason}"
                    for ability, reason in abilities.items()
                    if reason and first[client][server].get(ability) == ""
                )
            await asyncio.sleep(REAL_PAUSE_S)
            if time.monotonic() > until:
                break


async def restart(site: Site, minutes: float, until: float) -> None:
    while time.monotonic() + minutes * 60 < until:
        await asyncio.sleep(minutes * 60)
        print("both replicas are replaced", flush=True)
        await asyncio.to_thread(site.replace)


async def fill(url: str, token: str, tool: str) -> None:
    """Open as many sessions as the gateway stores per connection. In each session, call `tool` once and listen once."""
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


async def agent(client: Client) -> None:
    """Call the tool `echo` once.

    At random, the call has no protocol headers, or it has those of protocol 2026-07-28. If the client makes no pauses,
    the call always has those of 2026-07-28.
    """
    if client.pause and random.random() < 0.5:
        await client.post(client.call("echo", text="hello"), client.headers(), plain=True)
        return
    body = client.call("echo", text="hello")
    body["params"]["_meta"] |= META
    headers = client.headers(MCP_Protocol_Version=MODERN, Mcp_Method="tools/call", Mcp_Name=body["params"]["name"])
    await client.post(body, headers, plain=True)


async def soak(options: argparse.Namespace, site: Site, real: dict[str, Any], counted: Counted) -> list[Sample]:
    seconds, samples, began = options.minutes * 60, list[Sample](), time.monotonic()
    until = began + seconds
    limits = httpx.Limits(max_keepalive_connections=8)
    async with httpx.AsyncClient(timeout=60, limits=limits, trust_env=False) as http, asyncio.TaskGroup() as group:
        for url, token, alias, life in site.clients:
            client = Client(http, url, token, alias, counted, options.pause)
            group.create_task(live(client, life, until))
            for _ in range(options.agents if life is modern_life else 0):
                group.create_task(live(client, agent, until))
        if real:
            group.create_task(live_really(real, counted, until))
        group.create_task(restart(site, options.restart_every, until))
        while (passed := time.monotonic() - began) < seconds:
            await asyncio.sleep(min(SAMPLE_SECONDS, seconds - passed))
            with suppress(psutil.Error, psycopg.Error, OSError):  # A replica is being replaced.
                sample = await asyncio.to_thread(site.sample)
                samples.append(replace(sample, at=time.monotonic() - began, actions=counted.actions))
                print_line(samples[-1], counted)
                counted.line_printed()
    counted.line_printed()
    return samples


def print_line(sample: Sample, counted: Counted) -> None:
    memory = " ".join(f"{each:7.1f}" for each in sample.memory)
    files = " ".join(f"{each:4}" for each in sample.files)
    tables = ", ".join(f"{name} {number}" for name, number in sample.rows.items())
    p50 = f"{median(counted.taken):6.1f}" if counted.taken else "   -"
    print(
        f"{sample.at / 60:5.1f} min  MB {memory}  files {files}  {tables}  at the server {sample.at_server}"
        f"  p50 {p50} ms of {len(counted.taken)}, {sample.actions} actions"
        + "".join(f"\n  FAILED: {failure}" for failure in counted.failed[:20]),
        flush=True,
    )


def what_grew(samples: list[Sample]) -> Iterator[str]:
    """Yield a sentence for each value that grew.

    A value can grow from the middle third of the run to its last third, and it can grow within the last third. Memory
    and files are reported only if they grew in both ways. Numbers of rows and sessions are reported if they grew in
    either way.
    """
    if len(samples) < 6:
        yield "Too short to tell."
        return
    cuts = [len(samples) * part // 6 for part in range(7)]
    for name, few in (("memory", 0), ("files", FEW)):
        sums = [sum(getattr(one, name)) for one in samples]
        third, fourth, fifth, sixth = (max(sums[cuts[part] : cuts[part + 1]]) for part in range(2, 6))
        # A leak raises the maximum in every sixth of the time, a spike only in one sixth.
        # After a step (more clients at once) the maximum stays the same.
        is_more = _grew(third, fifth, few) and _grew(fourth, sixth, few)
        if is_more and _grew(fifth, sixth, few / 4, 1 + (ALLOWED - 1) / 4):
            yield f"GREW: {name} of the replicas from {fourth:.1f} to {sixth:.1f} at the most"
    acted = [sum(one.actions for one in samples if last.at - KEPT_SECONDS < one.at <= last.at) for last in samples]
    counts = {f"rows of {name}": [one.rows[name] for one in samples] for name in TABLES}
    counts["sessions at the server"] = [one.at_server for one in samples]
    for name, numbers in counts.items():
        # If clients act faster in the last third than before, a leak still shows within that third.
        for start, middle in ((2, 4), (4, 5)):
            parts = slice(cuts[start], cuts[middle]), slice(cuts[middle], cuts[6])
            (before, after), (slow, fast) = ([median(each[part]) for part in parts] for each in (numbers, acted))
            if _grew(before * max(fast / max(slow, 1), 1), after, FEW):
                yield f"GREW: {name} from {before:.0f} to {after:.0f}, actions in 5 min from {slow:.0f} to {fast:.0f}"
                break


def _grew(before: float, after: float, few: float, allowed: float = ALLOWED) -> bool:
    return after > before * allowed + few


if __name__ == "__main__":
    main()
