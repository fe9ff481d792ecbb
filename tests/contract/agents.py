"""MCP clients that send single requests, open sessions, or keep streams open during a test."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from tests.contract.web import TLS, new_client, some_address

BOTH = "application/json, text/event-stream"
MODERN = "2026-07-28"
ACKNOWLEDGED = "notifications/subscriptions/acknowledged"
PATIENCE = 30.0
# Each request has a new connection, so that either worker may answer.
CLIENT = new_client(limits=httpx.Limits(max_keepalive_connections=0))

type Object = dict[str, Any]


@dataclass
class Agent:
    """A client with a token at a gateway's endpoint."""

    url: str
    secret: str
    headers: dict[str, str] = field(default_factory=dict)
    address: str = field(default_factory=some_address)

    def at(self, url: str) -> "Agent":
        """Return a client with the same token at another gateway."""
        return Agent(url, self.secret)

    def all_headers(self, more: dict[str, str]) -> dict[str, str]:
        own = {"Authorization": f"Bearer {self.secret}", "Accept": "application/json", "X-Forwarded-For": self.address}
        return own | self.headers | more

    def post(self, body: Object, headers: dict[str, str] | None = None) -> httpx.Response:
        return CLIENT.post(self.url, json={"jsonrpc": "2.0", **body}, headers=self.all_headers(headers or {}))

    def ask(self, method: str, params: Object | None = None, number: int | str = 1) -> httpx.Response:
        return self.post({"id": number, "method": method, "params": params or {}})

    def call(self, tool: str, number: int | str = 1, /, **arguments: Any) -> httpx.Response:
        return self.ask("tools/call", {"name": tool, "arguments": arguments}, number)

    def tools(self) -> list[Object]:
        listed: list[Object] = self.ask("tools/list").json()["result"]["tools"]
        return listed

    def initialize(self, **capabilities: Any) -> "Agent":
        """Open a session, and return a client that sends the session's id."""
        info = {"name": "contract", "version": "1"}
        params = {"protocolVersion": "2025-11-25", "capabilities": capabilities, "clientInfo": info}
        opened = self.ask("initialize", params)
        assert opened.status_code == 200, opened.text
        session = {"Mcp-Session-Id": opened.headers["mcp-session-id"], "MCP-Protocol-Version": "2025-11-25"}
        agent = Agent(self.url, self.secret, {**self.headers, **session}, self.address)
        assert agent.post({"method": "notifications/initialized"}).status_code == 202
        return agent

    def call_modern(self, tool: str, capabilities: Object, /, **more: Any) -> httpx.Response:
        """Call a tool as a client of MCP 2026-07-28; `more` are further params."""
        params = {"name": tool, "arguments": {}, **more, "_meta": meta(capabilities)}
        headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/call", "Mcp-Name": tool, "Accept": BOTH}
        return self.post({"id": 1, "method": "tools/call", "params": params}, headers)

    @contextmanager
    def under_way(self, tool: str, number: int | str = 1, /, **arguments: Any) -> Iterator["Stream"]:
        """Start a call, yield its response stream, and disconnect at the end of the block."""
        params = {"name": tool, "arguments": arguments}
        with self.opened("POST", {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}) as stream:
            yield stream

    @contextmanager
    def listening(self) -> Iterator["Stream"]:
        """Keep a standing stream open during the block."""
        with self.opened("GET", None) as stream:
            assert stream.begun.wait(PATIENCE), "no standing stream"
            assert stream.status == 200, f"{stream.status} {stream.body!r}"
            yield stream

    @contextmanager
    def listening_modern(self, **notifications: Any) -> Iterator["Stream"]:
        """Keep a `subscriptions/listen` of 2026-07-28 open during the block."""
        method = "subscriptions/listen"
        headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": method}
        params = {"notifications": notifications, "_meta": meta({})}
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        with replace(self, headers=self.headers | headers).opened("POST", body) as stream:
            eventually(lambda: ACKNOWLEDGED in stream.methods())
            yield stream

    @contextmanager
    def opened(self, verb: str, body: Object | None) -> Iterator["Stream"]:
        stream = Stream()
        client = httpx.Client(trust_env=False, timeout=httpx.Timeout(60), verify=TLS)
        reader = threading.Thread(target=stream.read, args=(client, verb, self, body), daemon=True)
        reader.start()
        try:
            yield stream
        finally:
            if stream.socket is not None and not stream.over.is_set():
                with suppress(OSError):  # Closing alone does not wake the thread that reads.
                    stream.socket.shutdown(socket.SHUT_RDWR)
            client.close()
            reader.join(5)


def meta(capabilities: Object) -> Object:
    """Return the `_meta` of a 2026-07-28 request."""
    version, named = "io.modelcontextprotocol/protocolVersion", "io.modelcontextprotocol/clientCapabilities"
    return {version: MODERN, named: capabilities}


@dataclass
class Stream:
    """A response that a thread is still reading, with its status and the events received so far."""

    status: int = 0
    body: bytes = b""
    events: list[Object] = field(default_factory=list)
    last_event_id: str = ""
    socket: Any = None
    begun: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    def read(self, client: httpx.Client, verb: str, agent: Agent, body: Object | None) -> None:
        try:
            with client.stream(verb, agent.url, json=body, headers=agent.all_headers({"Accept": BOTH})) as answer:
                self.status = answer.status_code
                self.socket = answer.extensions["network_stream"].get_extra_info("socket")
                self.begun.set()
                if "text/event-stream" not in answer.headers.get("content-type", ""):
                    self.body = answer.read()
                    return
                for line in answer.iter_lines():
                    if line.startswith("id: "):
                        self.last_event_id = line[4:]
                    if line.startswith("data: {"):
                        self.events.append(json.loads(line[6:]))
        except (httpx.HTTPError, RuntimeError, OSError):
            pass
        finally:
            self.begun.set()
            self.over.set()

    def methods(self) -> list[str]:
        return [str(event.get("method", "")) for event in self.events]

    def answer(self) -> Object:
        """Wait for the JSON-RPC answer of a call."""
        assert self.over.wait(PATIENCE), "the call is still open"
        if self.body:
            return dict(json.loads(self.body))
        return next((event for event in self.events if "method" not in event), {})


def reason(answer: httpx.Response | Object) -> Any:
    """Return `data.reason` of a refusal."""
    body = answer.json() if isinstance(answer, httpx.Response) else answer
    return body.get("error", {}).get("data", {}).get("reason")


def refusal(answer: httpx.Response) -> tuple[int, int, Any]:
    """Return status, JSON-RPC code and reason; fails if the call returned a result."""
    error = answer.json().get("error")
    assert error is not None, f"not refused: {answer.text}"
    return answer.status_code, error["code"], error.get("data", {}).get("reason")


def text(answer: httpx.Response | Object) -> str:
    """Return the text of a tool's result."""
    body = answer.json() if isinstance(answer, httpx.Response) else answer
    assert "result" in body, body
    return str(body["result"]["content"][0]["text"])


def result_of(answer: httpx.Response) -> Object:
    """Return the result, from a JSON body or the last event of a stream."""
    body = answer.text.rpartition("data: ")[2] if "event-stream" in answer.headers["content-type"] else answer.text
    message = json.loads(body)
    assert "result" in message, message
    return dict(message["result"])


def eventually[T](fact: Callable[[], T], seconds: float = PATIENCE) -> T:
    """Return the first true value of `fact()`, which is called with growing pauses. Fails after `seconds`."""
    began = time.monotonic()
    while not (found := fact()):
        waited = time.monotonic() - began
        assert waited < seconds, f"it never came true: {found!r}"
        time.sleep(max(0.02, min(waited / 8, 0.2)))
    return found
