"""Server requests during our request: passed to a handler, and answered in the same session."""

import asyncio
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

import pytest

from tests.conftest import Run
from tests.proxy.scripted import Object, Request, Script, tool
from wire.client import McpClient
from wire.guard import Guard
from wire.http import Transport
from wire.mcp import Answer, RpcResponse, Target, ignore

ASKED = {"jsonrpc": "2.0", "id": "q1", "method": "sampling/createMessage", "params": {}}


@dataclass
class Asking(Script):
    """A server that sends a request before it answers a call, and returns the client's answer."""

    told: dict[object, tuple[str, Object]] = field(default_factory=dict)
    asked: Object = field(default_factory=lambda: ASKED)
    patience: float = 5

    async def serve(self, request: Request, verb: str) -> None:
        if verb == "POST" and "method" not in request.message:
            self.told[request.message["id"]] = request.headers["mcp-session-id"], request.message
            await request.answer(b"", status=202)
        elif request.message.get("method") == "tools/call":
            await self.ask(request)
        else:
            await super().serve(request, verb)

    async def ask(self, request: Request) -> None:
        await request.open_stream()
        await request.event(self.asked)
        for _ in range(int(self.patience * 100)):
            if self.asked["id"] in self.told:
                break
            await asyncio.sleep(0.01)
        result: Object = {"content": [], "told": self.told.get(self.asked["id"])}
        await request.event({"jsonrpc": "2.0", "id": request.message["id"], "result": result}, last=True)


async def called(url: str, **more: Any) -> RpcResponse:
    target = Target("s", "docs", url, "session", 10, 4, "c", None, "", capabilities={"sampling": {}})
    guard = Guard((ip_network("127.0.0.0/8"),))
    async with Transport(guard, limit=1 << 20) as transport, McpClient(transport) as client:
        return await client.ask(target, "tools/call", {"name": "it"}, ignore, **more)


async def test_a_handler_of_server_requests_answers_in_their_session(run: Run) -> None:
    script = Asking([[tool("it")]], sessions=True)

    async def take(message: Object, answer: Answer) -> None:
        assert message == ASKED
        await answer({"result": {"role": "assistant"}})

    answered = await called(run(script.app()).url, on_request=take)

    session, told = answered.document["result"]["told"]
    assert told == {"jsonrpc": "2.0", "id": "q1", "result": {"role": "assistant"}}
    assert session == script.opened[0]


@pytest.mark.parametrize(
    ("method", "outcome"),
    [
        ("ping", {"result": {}}),
        ("roots/list", {"error": {"code": -32601, "message": "Not supported by this client"}}),
    ],
)
async def test_a_ping_is_answered_and_what_nobody_takes_is_refused(run: Run, method: str, outcome: Object) -> None:
    script = Asking([[tool("it")]], sessions=True, asked={**ASKED, "method": method})

    answered = await called(run(script.app()).url)

    assert answered.document["result"]["told"][1] == {"jsonrpc": "2.0", "id": "q1", **outcome}


async def test_an_unanswered_question_is_cancelled_when_the_server_has_answered(run: Run) -> None:
    script = Asking([[tool("it")]], sessions=True, patience=0.1)
    interrupted = asyncio.Event()

    async def take(message: Object, answer: Answer) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            interrupted.set()

    answered = await called(run(script.app()).url, on_request=take)

    assert answered.document["result"]["told"] is None
    await asyncio.wait_for(interrupted.wait(), 5)
