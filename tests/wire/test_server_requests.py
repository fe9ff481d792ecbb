"""A server may send requests during a call. Without a handler, a ping is answered and other requests are refused."""

import asyncio
import gc
from dataclasses import dataclass, field
from ipaddress import ip_network

from tests.conftest import Run
from tests.eventually import PATIENCE
from tests.proxy.scripted import Object, Request, Script, tool
from wire.client import McpClient
from wire.guard import Guard
from wire.http import Transport
from wire.mcp import Answer, Target, ignore


@dataclass
class Asking(Script):
    """A server that sends the client a request during a call. The call's result contains the client's answer."""

    asks: str = "ping"
    told: Object = field(default_factory=dict)
    is_told: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, request: Request, verb: str) -> None:
        if verb == "POST" and "method" not in request.message:
            self.told = request.message
            self.is_told.set()
            await request.answer(b"", status=202)
        elif request.message.get("method") == "tools/call":
            await request.open_stream()
            await request.event({"jsonrpc": "2.0", "id": "q1", "method": self.asks, "params": {}})
            await asyncio.wait_for(self.is_told.wait(), PATIENCE)
            result: Object = {"content": [], "told": self.told}
            await request.event({"jsonrpc": "2.0", "id": request.message["id"], "result": result}, last=True)
        else:
            await super().serve(request, verb)


async def test_a_ping_is_answered_and_what_nobody_takes_is_refused(run: Run) -> None:
    outcomes: dict[str, Object] = {
        "ping": {"result": {}},
        "roots/list": {"error": {"code": -32601, "message": "Not supported by this client"}},
    }
    guard = Guard((ip_network("127.0.0.0/8"),))
    for method, outcome in outcomes.items():
        url = run(Asking([[tool("it")]], sessions=True, asks=method).app()).url
        target = Target("s", "docs", url, "session", 10, 4, "c", None, "", capabilities={"sampling": {}})
        async with Transport(guard, limit=1 << 20) as transport, McpClient(transport) as client:
            answered = await client.ask(target, "tools/call", {"name": "it"}, ignore)

        assert answered.document["result"]["told"] == {"jsonrpc": "2.0", "id": "q1", **outcome}


async def test_a_server_keeps_its_queue_while_its_only_call_waits_for_the_client(run: Run) -> None:
    """If the queue were deleted, the next call would get a new queue, which does not count the waiting call."""
    url = run(Asking([[tool("it")]], sessions=True, asks="sampling/createMessage").app()).url
    target = Target("s", "docs", url, "session", 10, 1, "c", None, "", capabilities={"sampling": {}})
    seen = []

    async def reply(_: object, answer: Answer) -> None:
        gc.collect()
        seen.append(([*client._queues], client.at_servers()["under_way"]))
        await answer({"jsonrpc": "2.0", "id": "q1", "result": {}})

    guard = Guard((ip_network("127.0.0.0/8"),))
    async with Transport(guard, limit=1 << 20) as transport, McpClient(transport) as client:
        await client.ask(target, "tools/call", {"name": "it"}, ignore, on_request=reply)

    assert seen == [(["s"], 0)]
