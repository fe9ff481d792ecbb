"""Answers that a person's clients do not read use up only this person's share of the memory budget."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from auditlog.models import Call
from connections.models import Connection
from tests import make
from tests.conftest import Run
from tests.proxy.conftest import Agent, Start, eventually
from tests.proxy.scripted import Request, Script
from tests.proxy.test_tools_call import work_of

pytestmark = pytest.mark.full

SIZE = 12 << 20  # More than the buffers of the system can take.
TOOLS = [{"name": name, "inputSchema": {"type": "object"}} for name in ("large", "small")]


async def answer(request: Request) -> None:
    size = SIZE if request.message["params"]["name"] == "large" else 1
    await request.answer({"content": [{"type": "text", "text": "x" * size}]})


@contextmanager
def left_unread(agent: Agent) -> Iterator[socket.socket]:
    """Request a large answer, and read none of it until the block ends."""
    address, path = agent.url.removeprefix("http://").split("/", 1)
    host, port = address.split(":")
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "docs__large", "arguments": {}}}
    body = json.dumps(call)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((host, int(port)))
        head = (
            f"POST /{path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {agent.secret}\r\n"
            f"Content-Type: application/json\r\nAccept: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        sock.sendall((head + body).encode())
        yield sock


def large_calls() -> int:
    return Call.objects.filter(feature_name="docs__large", outcome="ok", response_bytes__gt=SIZE).count()


def test_a_client_that_reads_no_answers_gets_no_more_and_delays_nobody(start: Start, run: Run) -> None:
    work = work_of(start(answer_limit=2 * SIZE, answers_limit=4 * SIZE, queue_seconds=0.2), run)
    upstream = work.put(Script([TOOLS], answer).app(), "docs")
    sibling = work.proxy.agent(Connection.objects.get())  # Another token of the same person.
    max_ = make.user(email="max@example.com")
    other = work.proxy.agent(make.connection(make.agent(by=max_), work.gateway, max_))
    for agent in (work.agent, sibling, other):
        agent.listed()

    with left_unread(work.agent):
        eventually(lambda: large_calls() == 1)  # The call was executed, and its row written.
        asked = len(upstream.asked("tools/call"))

        for agent in (work.agent, sibling):
            refused = agent.call("docs__small").json()["error"]
            assert (refused["data"]["reason"], "not executed" in refused["message"]) == ("busy", True)
        assert len(upstream.asked("tools/call")) == asked
        assert (work.proxy.last().outcome, work.proxy.last().deny_reason) == ("rate_limited", "busy")
        assert "result" in work.agent.ask("ping").json()
        assert "result" in other.call("docs__large").json()

    eventually(lambda: "result" in work.agent.call("docs__small").json())
