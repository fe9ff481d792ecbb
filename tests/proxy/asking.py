"""A server of the session era that sends requests during each call, and a client that answers them."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.conformance.counter import is_for_lists
from tests.proxy.conftest import Agent
from tests.proxy.scripted import Object, Request, Script, tool

BOTH = "application/json, text/event-stream"

FORM: Object = {
    "method": "elicitation/create",
    "params": {"mode": "form", "message": "Who?", "requestedSchema": {"type": "object", "properties": {}}},
}
LINK: Object = {
    "method": "elicitation/create",
    "params": {"mode": "url", "message": "Sign in", "url": "https://idp.example.com/", "elicitationId": "e1"},
}
SAMPLE: Object = {"method": "sampling/createMessage", "params": {"messages": [], "maxTokens": 9}}
ROOTS: Object = {"method": "roots/list"}

EVERYTHING: Object = {"elicitation": {"form": {}, "url": {}}, "sampling": {}, "roots": {"listChanged": True}}


@dataclass
class Asker(Script):
    """A server that sends the requests in `asks` to the client, one after the other, during each call of `it`.

    The result of the call contains the client's answers.
    """

    sessions: bool = True
    asks: Sequence[Object] = ()
    version: str = "2025-11-25"
    told: list[Object] = field(default_factory=list)
    """The params of each `initialize`."""
    answers: list[Object] = field(default_factory=list)
    _waiting: dict[tuple[str, object], asyncio.Future[Object]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pages = [[tool("it"), tool("quick"), tool("hasty")]]
        self.call = self._call

    async def serve(self, request: Request, verb: str) -> None:
        if verb != "POST" or "method" in request.message:
            await super().serve(request, verb)
            return
        self.answers.append(request.message)
        waiting = self._waiting.pop((request.headers["mcp-session-id"], request.message["id"]), None)
        if waiting is not None:
            waiting.set_result(request.message)
        await request.answer(b"", status=202)

    async def initialize(self, request: Request) -> None:
        if not is_for_lists(request.message["params"]):
            self.told.append(request.message["params"])
        await super().initialize(request)

    async def _call(self, request: Request) -> None:
        match request.message["params"].get("name"):
            case "quick":
                await request.answer({"content": []})
                return
            case "hasty":
                await request.open_stream()
                await request.event({"jsonrpc": "2.0", "id": "late", **self.asks[0]})
                await asyncio.sleep(1)  # Time for the request to reach the client.
                await self._finish(request, [])
                return
        await request.open_stream()
        answers = []
        for number, asked in enumerate(self.asks):
            waiting = asyncio.get_running_loop().create_future()
            # The SDKs count from 0 in each session.
            self._waiting[request.headers["mcp-session-id"], number] = waiting
            await request.event({"jsonrpc": "2.0", "id": number, **asked})
            answers.append(await asyncio.wait_for(waiting, 30))
        await self._finish(request, answers)

    async def _finish(self, request: Request, answers: list[Object]) -> None:
        result = {"content": [], "structuredContent": {"answers": answers}}
        await request.event({"jsonrpc": "2.0", "id": request.message["id"], "result": result}, last=True)


type Reply = Callable[[Object], object]


@dataclass
class Person:
    """A client with a session, in which it can answer a server's requests."""

    agent: Agent
    capabilities: Object = field(default_factory=lambda: EVERYTHING)
    session: str = ""
    heard: list[Object] = field(default_factory=list)

    def initialize(self, version: str = "2025-11-25") -> "Person":
        info = {"name": "probe", "version": "7"}
        params = {"protocolVersion": version, "capabilities": self.capabilities, "clientInfo": info}
        self.session = self.agent.ask("initialize", params).headers["mcp-session-id"]
        return self

    @property
    def headers(self) -> dict[str, str]:
        return {"Mcp-Session-Id": self.session} if self.session else {}

    def say(self, message: Object, agent: Agent | None = None) -> int:
        """Post a message that has no answer, through `agent` (default: the client's own); return the HTTP status."""
        return (agent or self.agent).post({"jsonrpc": "2.0", **message}, **self.headers).status_code

    def call(self, name: str, reply: Reply = lambda _: None, accept: str = BOTH) -> Object:
        """Call the tool `name`, and return the answer; see `ask` for the arguments."""
        return self.ask("tools/call", {"name": name, "arguments": {}}, reply, accept)

    def ask(self, method: str, params: Object, reply: Reply = lambda _: None, accept: str = BOTH) -> Object:
        """Send a request and return the answer; messages before the answer are recorded and passed to `reply`."""
        body = {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}
        own = {"Authorization": f"Bearer {self.agent.secret}", "Content-Type": "application/json", "Accept": accept}
        content, given = json.dumps(body), own | self.headers
        with httpx.stream(
            "POST", self.agent.url, content=content, headers=given, timeout=30, trust_env=False
        ) as answer:
            if answer.headers["content-type"] == "application/json":
                answer.read()
                return dict(answer.json())
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                event: Object = json.loads(line[6:])
                if "method" not in event:
                    return event
                self.heard.append(event)
                reply(event)
        raise AssertionError("the stream ended without an answer")


def answers_of(response: Object) -> Any:
    """Return the answers that the server got from the client during the call, as the call's result lists them."""
    return response["result"]["structuredContent"]["answers"]


def late_reply(person: Person, result: Object, quick: list[Object]) -> Callable[[Object], None]:
    """Return a `reply` that waits, makes another call in the same session, and only then answers the server.

    The answer to the other call is appended to `quick`.
    """

    def reply(asked: Object) -> None:
        time.sleep(1.5)
        quick.append(Person(person.agent, session=person.session).call("docs__quick"))
        person.say({"id": asked["id"], "result": result})

    return reply
