"""What a server says of its own accord, while a client listens."""

import asyncio
import json
import time
from typing import Any

import pytest

from gateways.models import Feature
from tests import make
from tests.asgi_server import Receive, Scope, Send, read
from tests.conformance.counter import SESSION_ERA, Counter, Event, begin_stream, event
from tests.conftest import Run
from tests.eventually import PATIENCE, PROMPT
from tests.proxy.conftest import Start, eventually
from tests.proxy.listening import listening
from tests.proxy.test_cancel import Work
from tests.proxy.test_standing_streams import TOOLS_CHANGED, in_session

CHANGED = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}


class Talker(Counter):
    """A counter that says on the standing streams of its sessions whatever a test puts into `say`."""

    def __init__(self) -> None:
        super().__init__(SESSION_ERA)
        self.say: list[dict[str, Any]] = []
        self.answers: list[Any] = []
        self.open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "GET":
            await self._talk(receive, send)
            return
        if scope["type"] == "http" and scope["method"] == "POST":
            body = await read(receive)
            message = json.loads(body)
            if "method" not in message:
                self.answers.append(message)

            async def again() -> Any:
                return {"type": "http.request", "body": body, "more_body": False}

            await super().__call__(scope, again, send)
            return
        await super().__call__(scope, receive, send)

    async def _talk(self, receive: Receive, send: Send) -> None:
        await read(receive)
        self.seen.append(Event("get", None))
        self.open += 1
        await begin_stream(send)
        left = asyncio.ensure_future(receive())
        said = len(self.say)
        while not left.done():
            for message in self.say[said:]:
                await send({"type": "http.response.body", "body": event(message), "more_body": True})
            said = len(self.say)
            await asyncio.wait([left], timeout=0.02)
        self.open -= 1


class TalkingWork(Work):
    """Two workers in front of a talker."""

    def __init__(self, start: Start, run: Run) -> None:
        self.counter = self.talker = Talker()
        self.gateway = make.gateway(slug="work")
        self.assignment = make.assignment(self.gateway, make.server(slug="docs", url=run(self.talker).url))
        Feature.objects.learn(self.assignment, [{"name": "count", "inputSchema": {"type": "object"}}])
        self.proxies = [start() for _ in range(2)]


@pytest.fixture
def work(start: Start, run: Run, monkeypatch: pytest.MonkeyPatch) -> TalkingWork:
    monkeypatch.setattr("proxy.server_streams.LEASE_AGAIN_SECONDS", 0.3)
    monkeypatch.setattr("proxy.server_streams.LOOK_AGAIN_SECONDS", 0.4)
    return TalkingWork(start, run)


def test_one_worker_listens_to_a_server_while_a_client_listens_and_passes_its_changes_on(
    work: TalkingWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.session_calls.IDLE_SECONDS", 0)
    agent = in_session(work.agent())
    assert "result" in agent.call("docs__count").json()
    with listening(agent, "GET") as stream, listening(work.elsewhere(agent), "GET") as other:
        assert stream.begun.wait(PATIENCE)
        assert other.begun.wait(PATIENCE)
        eventually(lambda: work.talker.open == 1)
        time.sleep(1)
        assert work.talker.open == 1
        assert len(work.talker.events("get")) <= 2  # The first may have been for the call.
        began = time.monotonic()
        work.talker.say.append(CHANGED)
        assert stream.wait_for(1) == [TOOLS_CHANGED]
        assert time.monotonic() - began < PROMPT
    eventually(lambda: work.talker.open == 0)


def test_a_session_that_is_opened_while_a_client_listens_is_listened_to_as_well(work: TalkingWork) -> None:
    agent = in_session(work.agent())
    with listening(agent, "GET") as stream:
        assert stream.begun.wait(PATIENCE)
        assert "result" in agent.call("docs__count").json()
        eventually(lambda: work.talker.open == 1)


def test_what_a_server_asks_there_is_answered_within_two_seconds(work: TalkingWork) -> None:
    agent = in_session(work.agent())
    assert "result" in agent.call("docs__count").json()
    with listening(agent, "GET"):
        eventually(lambda: work.talker.open == 1)
        work.talker.say.append({"jsonrpc": "2.0", "id": "p", "method": "ping"})
        work.talker.say.append({"jsonrpc": "2.0", "id": "s", "method": "sampling/createMessage", "params": {}})
        eventually(lambda: len(work.talker.answers) == 2, PROMPT)
    answers = {answer["id"]: answer for answer in work.talker.answers}
    assert answers["p"]["result"] == {}
    assert answers["s"]["error"]["code"] == -32601
