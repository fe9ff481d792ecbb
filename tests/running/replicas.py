"""Two `serve` processes on one database behind a round-robin port, and their upstream server."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests import upstreams, workspace
from tests.asgi_server import Receive, Send, answer, headers_of
from tests.conformance.counter import (
    SESSION_ERA,
    TOOLS,
    Counter,
    Event,
    begin_stream,
    event,
    gone,
    respond,
    result_of,
)
from tests.proxy.conftest import Agent
from tests.running.nginx import Nginx
from tests.workspace import OWNER, Serve, free_port

type Json = dict[str, Any]

FORM = {"mode": "form", "message": "Who?", "requestedSchema": {"type": "object", "properties": {}}}


class RoundRobin:
    """A port whose connections go to `ports` in turn; ports without a listener are skipped."""

    def __init__(self, port: int, ports: list[int]) -> None:
        self._ports = self.doors = ports
        self._next = 0
        self.taken: list[int] = []
        """The port of each connection, in order."""
        self._listener = socket.create_server(("127.0.0.1", port))
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, sock=self._listener))
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
            with suppress(asyncio.CancelledError):
                self._loop.run_until_complete(task)
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in self._ports:
            port = self._ports[self._next % len(self._ports)]
            self._next += 1
            with suppress(OSError):
                there = await asyncio.open_connection("127.0.0.1", port)
                break
        else:
            writer.close()
            return
        self.taken.append(port)
        ways = [asyncio.create_task(copy(reader, there[1])), asyncio.create_task(copy(there[0], writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (writer, there[1]):
                end.close()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()


class Troubled(Counter):
    """A counting server with two more tools, `ask` and `bad`.

    `ask` sends a request to the client: on the call's stream, or with `standing` on the session's standing stream.
    `bad` misbehaves: its argument `how` selects one of FAULTS.
    """

    def __init__(self) -> None:
        super().__init__(SESSION_ERA)
        self.answers: list[Json] = []
        self.say: list[Json] = []
        """The messages on all standing streams."""
        self.say_in: dict[str | None, list[Json]] = {}
        """The messages on the standing stream of one session."""
        self._asked: dict[tuple[str | None, Any], asyncio.Future[Json]] = {}

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "GET":
            await self._talk(headers_of(scope).get("mcp-session-id"), receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def _talk(self, session: str | None, receive: Receive, send: Send) -> None:
        left, said = asyncio.create_task(gone(receive)), 0
        own = self.say_in.setdefault(session, [])
        self.seen.append(Event("get", None))
        await begin_stream(send)
        while not left.done():
            new = self.say[said:]
            said += len(new)
            for message in new:
                await send({"type": "http.response.body", "body": event(message), "more_body": True})
            while own:
                await send({"type": "http.response.body", "body": event(own.pop(0)), "more_body": True})
            await asyncio.wait([left], timeout=0.05)

    async def _post(self, message: Json, session: str | None, is_modern: bool, receive: Receive, send: Send) -> None:
        if "method" in message:
            await super()._post(message, session, is_modern, receive, send)
            return
        self.answers.append(message)
        if waiting := self._asked.pop((session, message["id"]), None):
            waiting.set_result(message)
        await answer(send, 202, b"")

    async def _call(self, message: Json, params: Json, session: str | None, receive: Receive, send: Send) -> None:
        if params.get("name") == "ask":
            await self._ask(message, params.get("arguments") or {}, session, send)
        elif params.get("name") == "bad":
            await misbehave(params["arguments"]["how"], message, receive, send)
        else:
            await super()._call(message, params, session, receive, send)

    def _listed(self, method: str) -> Json:
        tools = [*TOOLS, *({"name": name, "inputSchema": {"type": "object"}} for name in ("ask", "bad"))]
        return {"tools": tools} if method == "tools/list" else super()._listed(method)

    async def _ask(self, message: Json, asked: Json, session: str | None, send: Send) -> None:
        number = len(self.answers)
        waiting = self._asked[session, number] = asyncio.get_running_loop().create_future()
        is_standing = asked.pop("standing", False)
        question = {"jsonrpc": "2.0", "id": number, "method": "elicitation/create", "params": FORM} | asked
        await begin_stream(send)
        if is_standing:
            self.say_in.setdefault(session, []).append(question)
        else:
            await send({"type": "http.response.body", "body": event(question), "more_body": True})
        answered = await asyncio.wait_for(waiting, 60)
        body = {"jsonrpc": "2.0", "id": message["id"], "result": result_of({"answer": answered}, session)}
        await send({"type": "http.response.body", "body": event(body)})


# Values of `how` for the tool `bad`, and the reason in the gateway's error.
FAULTS = {
    "hang": "timeout",
    "garbage": "bad_answer",
    "half an event": "unreachable",
    "50 MB": "too_large",
    "wrong id": "bad_answer",
    "wrong ids on a stream": "unreachable",
    "deep JSON": "bad_answer",
}


async def misbehave(how: str, message: Json, receive: Receive, send: Send) -> None:
    others = [{"jsonrpc": "2.0", "id": number, "result": {"content": []}} for number in range(900, 903)]
    match how:
        case "hang":
            await gone(receive)
        case "garbage":
            await answer(send, 200, b"\xff\xfe{{{ no json")
        case "50 MB":
            await pour(send)
        case "wrong id":
            await respond(send, message | {"id": "somebody else's"}, {"content": []})
        case "deep JSON":
            deep = b"[" * 99_000 + b"]" * 99_000
            await answer(send, 200, b'{"jsonrpc":"2.0","id":%d,"result":%s}' % (message["id"], deep))
        case "wrong ids on a stream":
            await begin_stream(send)
            await send({"type": "http.response.body", "body": b"".join(map(event, others))})
        case _:  # Half an event.
            await begin_stream(send)
            half = event({"jsonrpc": "2.0", "id": message["id"], "result": {"content": []}})[:-20]
            await send({"type": "http.response.body", "body": half})


async def pour(send: Send) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"jsonrpc":"2.0","x":"', "more_body": True})
    for _ in range(50):
        await send({"type": "http.response.body", "body": b"x" * (1 << 20), "more_body": True})
    await send({"type": "http.response.body", "body": b'"}'})


@dataclass
class Replicas:
    """Two `serve` processes with two workers each, behind `front`, and an upstream server."""

    serves: list[Serve]
    front: RoundRobin | Nginx
    url: str
    counter: Troubled
    upstream_url: str
    made: int = field(default=0)

    def agent(self, upstream_url: str = "") -> Agent:
        """Create a gateway with the upstream server, and a token for it; return a client with that token."""
        url = upstream_url or self.upstream_url
        self.made += 1
        name = f"work{self.made}"
        made = json.loads(
            self.shell(
                f"import json; from tests.conformance.rows import make\nprint(json.dumps(make({name!r}, {url!r})))"
            )
        )
        return Agent(f"{self.url}/mcp/{made['slug']}", made["token"], {"Accept": "application/json, text/event-stream"})

    def shell(self, code: str) -> str:
        """Run code in the shell and return its output; `by` is the owner of the workspace."""
        begin = f"from accounts.models import User; by = User.objects.get(email={OWNER!r})\n"
        return self.serves[0].manage("shell", "--no-imports", "-c", begin + code)

    def at(self, number: int, agent: Agent) -> Agent:
        """Return a copy of `agent` that calls only the `serve` process with this number."""
        door = f"http://localhost:{self.front.doors[number]}"
        return Agent(agent.url.replace(self.url, door), agent.secret, agent.headers)

    def rows(self, agent: Agent) -> list[Json]:
        """Return the rows of this client's gateway in the log, oldest first."""
        slug = agent.url.rsplit("/", 1)[1]
        return self.serves[0].rows("SELECT * FROM auditlog_call WHERE gateway_name = %s ORDER BY created_at", slug)


def in_session(agent: Agent, capabilities: Json | None = None) -> Agent:
    """Open a new session with `initialize`, and return a copy of this client that uses it."""
    info = {"name": "probe", "version": "1"}
    params = {"protocolVersion": "2025-11-25", "capabilities": capabilities or {}, "clientInfo": info}
    answered = agent.ask("initialize", params)
    assert answered.status_code == 200, answered.text
    return Agent(agent.url, agent.secret, agent.headers | {"Mcp-Session-Id": answered.headers["mcp-session-id"]})


def leave(agent: Agent) -> None:
    """End this client's session, and its streams."""
    own = {"Authorization": f"Bearer {agent.secret}", **agent.headers}
    assert httpx.delete(agent.url, headers=own, trust_env=False, timeout=30).status_code in {200, 204}


def call(name: str, request_id: object = 7, **arguments: Any) -> Json:
    params = {"name": name, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}


def count(agent: Agent) -> tuple[int, str]:
    """Call `count`; return the number of this call in the server's session, and the id of that session."""
    counted = agent.call("count").json()["result"]["structuredContent"]
    return counted["count"], counted["session"]


def good_again(agent: Agent, seconds: float) -> float:
    """Repeat a call until it succeeds, and return the seconds this took; fails after `seconds`."""
    began = time.monotonic()
    while "result" not in (answered := agent.call("count").json()):
        assert time.monotonic() - began < seconds, answered
        time.sleep(0.02)
    return time.monotonic() - began


@contextmanager
def replicas(
    directory: Path,
    database_url: str = "",
    before: type[RoundRobin] | type[Nginx] = RoundRobin,
    **settings: str,
) -> Iterator[Replicas]:
    """Yield ready replicas behind a load balancer of the type `before`, on a new database unless a URL is given."""
    counter, port = Troubled(), free_port()
    url = f"http://localhost:{port}"
    if before is Nginx:
        settings["GATEWAY_TRUSTED_PROXIES"] = "127.0.0.1/32,::1/128"
    first = workspace.new(directory, "replica1", GATEWAY_PUBLIC_URL=url, **settings)
    if database_url:
        first.database_url = database_url
    (directory / "replica2").mkdir(mode=0o700)
    second = Serve(directory / "replica2", first.database_url, free_port(), first.settings)
    serves = [first, second]
    front = before(port, [serve.port for serve in serves])
    try:
        with upstreams.running(counter) as upstream:
            with ThreadPoolExecutor() as starts:  # Concurrently, as an orchestrator starts them.
                list(starts.map(Serve.start, serves))
            yield Replicas(serves, front, url, counter, upstream.url)
            for serve in serves:
                serve.stop()
    finally:
        for serve in serves:
            serve.stop()
        front.close()
