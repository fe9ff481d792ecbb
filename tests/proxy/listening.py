"""Clients that hold an event stream open during a test."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.eventually import PATIENCE
from tests.proxy.conftest import Agent

BOTH = "application/json, text/event-stream"


@dataclass
class Listener:
    """An open stream, and its events so far."""

    events: list[Any] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    pings: int = 0
    status: int = 0
    headers: Any = None
    body: bytes = b""
    socket: Any = None
    begun: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    def methods(self) -> list[str]:
        return [event.get("method", "") for event in self.events]

    def wait_for(self, count: int, seconds: float = PATIENCE) -> list[Any]:
        """Wait until there are `count` events, and return them."""
        deadline = time.monotonic() + seconds
        while len(self.events) < count:
            assert time.monotonic() < deadline, f"{len(self.events)} of {count} events: {self.events} {self.body!r}"
            time.sleep(0.01)
        return self.events


@contextmanager
def listening(agent: Agent, verb: str, body: Any = None, **headers: str) -> Iterator[Listener]:
    """Hold this request open in a thread; the block begins after the response headers."""
    given = {"Authorization": f"Bearer {agent.secret}", "Accept": BOTH, **agent.headers}
    spelled = {name.replace("_", "-"): value for name, value in headers.items()}
    listener, client = Listener(), httpx.Client(trust_env=False, timeout=httpx.Timeout(30))

    def read() -> None:
        try:
            with client.stream(verb, agent.url, json=body, headers=given | spelled) as answer:
                listener.status, listener.headers = answer.status_code, answer.headers
                listener.socket = answer.extensions["network_stream"].get_extra_info("socket")
                listener.begun.set()
                if "text/event-stream" not in answer.headers.get("content-type", ""):
                    listener.body = answer.read()
                    return
                for line in answer.iter_lines():
                    listener.pings += line.startswith(":")
                    if line.startswith("id: "):
                        listener.ids.append(line[4:])
                    if line.startswith("data: ") and line != "data: ":
                        listener.at.append(time.monotonic())
                        listener.events.append(json.loads(line[6:]))
        except (httpx.HTTPError, RuntimeError, OSError):
            pass
        finally:
            listener.begun.set()
            listener.over.set()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield listener
    finally:
        if listener.socket is not None and not listener.over.is_set():
            with suppress(OSError):  # Closing alone does not notify the other side while the thread reads.
                listener.socket.shutdown(socket.SHUT_RDWR)
        client.close()
        thread.join(5)
