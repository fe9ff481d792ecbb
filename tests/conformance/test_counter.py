"""The counting server counts per session, and records session events for tests."""

import threading
from typing import Any

import httpx
import pytest

from tests.asgi_server import running
from tests.conformance.counter import MODERN, Counter
from tests.eventually import PATIENCE

ACCEPT = {"Accept": "application/json, text/event-stream"}


class Session:
    """A client of the session era, initialised and with its own session id."""

    def __init__(self, http: httpx.Client, url: str) -> None:
        self.http, self.url = http, url
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        answered = self.post("initialize", params, headers=ACCEPT)
        self.headers = {**ACCEPT, "Mcp-Session-Id": answered.headers["mcp-session-id"]}

    def post(
        self, method: str, params: dict[str, Any], *, headers: dict[str, str] | None = None, id_: int | None = 1
    ) -> httpx.Response:
        body = {"jsonrpc": "2.0", "method": method, "params": params} | ({} if id_ is None else {"id": id_})
        return self.http.post(self.url, json=body, headers=headers or self.headers)

    def count(self) -> int:
        return int(self.post("tools/call", {"name": "count"}).json()["result"]["structuredContent"]["count"])


def test_counts_per_session() -> None:
    counter = Counter()
    with running(counter) as upstream, httpx.Client() as http:
        one, other = Session(http, upstream.url), Session(http, upstream.url)

        assert [one.count(), one.count(), other.count(), one.count()] == [1, 2, 1, 3]

    assert len({event.session for event in counter.events("initialize")}) == 2


def test_deleted_session_is_unknown() -> None:
    counter = Counter()
    with running(counter) as upstream, httpx.Client() as http:
        session = Session(http, upstream.url)

        assert http.delete(upstream.url, headers=session.headers).status_code == 200
        assert session.post("tools/call", {"name": "count"}).status_code == 404

    assert [event.what for event in counter.seen] == ["initialize", "delete"]


def test_cancelled_call_ends_without_an_answer() -> None:
    counter = Counter()
    bodies = []
    with running(counter) as upstream, httpx.Client() as http:
        session = Session(http, upstream.url)
        call = threading.Thread(target=lambda: bodies.append(session.post("tools/call", {"name": "wait"}, id_=7).text))
        call.start()
        counter.wait_for("call")

        session.post("notifications/cancelled", {"requestId": 7}, id_=None)
        call.join(timeout=PATIENCE)

        assert not call.is_alive()
    assert "result" not in bodies[0]
    assert [event.detail for event in counter.events("cancelled")] == [7]


@pytest.mark.parametrize("era", ["session", "modern"])
def test_caller_who_leaves_is_seen(era: str) -> None:
    counter = Counter()
    with running(counter) as upstream, httpx.Client() as http:
        headers = {**ACCEPT, "MCP-Protocol-Version": MODERN} if era == "modern" else Session(http, upstream.url).headers
        params = {"name": "wait", "_meta": {"progressToken": 1}}
        body = {"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": params}
        with http.stream("POST", upstream.url, json=body, headers=headers) as stream:
            lines = stream.iter_lines()
            assert next(line for line in lines if "notifications/progress" in line)

        assert counter.wait_for("left")[0].detail == 9
