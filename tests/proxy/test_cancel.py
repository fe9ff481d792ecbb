"""`notifications/cancelled` reaches the server from any worker, and never affects other clients' calls."""

from typing import Any

import pytest

from gateways.models import Feature
from tests import make
from tests.conformance.counter import MODERN, SESSION_ERA, Counter
from tests.conftest import Run
from tests.eventually import PATIENCE
from tests.proxy.conftest import Agent, Proxy, Start, eventually
from tests.proxy.listening import Listener, listening
from tests.proxy.test_bus import end_bus_connections
from tests.proxy.test_endpoint import modern


class Work:
    """A gateway with a counting server, at one worker or two."""

    def __init__(self, start: Start, run: Run, eras: tuple[str, ...] = SESSION_ERA, workers: int = 1) -> None:
        self.counter = Counter(eras)
        self.gateway = make.gateway(slug="work")
        self.assignment = make.assignment(self.gateway, make.server(slug="docs", url=run(self.counter).url))
        Feature.objects.learn(self.assignment, [{"name": "wait", "inputSchema": {"type": "object"}}])
        self.proxies = [start() for _ in range(workers)]

    @property
    def proxy(self) -> Proxy:
        return self.proxies[0]

    def agent(self, name: str = "ana") -> Agent:
        user = make.user(email=f"{name}@example.com")
        return self.proxy.agent(make.connection(make.agent(by=user, name=name), self.gateway, user))

    def elsewhere(self, agent: Agent) -> Agent:
        """Return this client at the other worker."""
        return Agent(self.proxies[1].url("work"), agent.secret, agent.headers)


def waiting(request_id: object = "mine", seconds: float = 600, token: object = None) -> dict[str, Any]:
    params: dict[str, Any] = {"name": "docs__wait", "arguments": {"seconds": seconds}}
    if token is not None:
        params["_meta"] = {"progressToken": token}
    return {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}


def cancel(agent: Agent, request_id: object) -> int:
    params = {"requestId": request_id, "reason": "enough"}
    body = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
    return agent.post(body).status_code


def cancelled(work: Work, under_way: Listener, agent: Agent, request_id: object) -> None:
    """Cancel the call; check that the server is notified, the stream ends without an answer, and the row is written."""
    assert cancel(agent, request_id) == 202
    told = "cancelled" if MODERN not in work.counter.eras else "left"
    work.counter.wait_for(told)
    assert under_way.over.wait(PATIENCE)
    assert [event for event in under_way.events if "id" in event] == []
    eventually(lambda: [row.outcome for row in work.proxy.calls() if row.method == "tools/call"] == ["cancelled"])


@pytest.mark.full
@pytest.mark.parametrize("eras", [SESSION_ERA, (MODERN,)], ids=["session server", "modern server"])
def test_a_cancelled_call_ends_at_the_server_although_another_worker_is_told(
    start: Start, run: Run, eras: tuple[str, ...]
) -> None:
    work = Work(start, run, eras, workers=2)
    agent = work.agent()
    with listening(agent, "POST", waiting(token=7)) as under_way:
        under_way.wait_for(1)
        cancelled(work, under_way, work.elsewhere(agent), "mine")


@pytest.mark.full
def test_a_call_that_takes_json_only_is_told_that_it_was_cancelled(start: Start, run: Run) -> None:
    work = Work(start, run)
    agent = work.agent()
    with listening(agent, "POST", waiting(5), Accept="application/json") as under_way:
        work.counter.wait_for("call")
        assert cancel(agent, 5) == 202
        assert under_way.over.wait(PATIENCE)
    assert under_way.status == 200
    assert b'"code":-32800' in under_way.body
    assert work.proxy.calls()[-1].outcome == "cancelled"


@pytest.mark.full
def test_only_the_client_cancels_its_call_by_an_id_that_names_one_call(start: Start, run: Run) -> None:
    work = Work(start, run, workers=2)
    agent, stranger = work.agent(), work.agent("eve")
    body, headers = modern("tools/call", waiting(seconds=1)["params"])
    with (
        listening(agent, "POST", waiting(1, seconds=1)) as under_way,
        listening(agent, "POST", body | {"id": "modern"}, **headers) as ended_by_leaving_only,
        listening(agent, "POST", waiting("twice", 1)) as one,
        listening(agent, "POST", waiting("twice", 1)) as other,
    ):
        work.counter.wait_for("call", 4)
        for request_id in ("1", 2, None, 1.0, True, ["x"], {"a": 1}, "x" * 5000, "modern", "twice"):
            assert cancel(agent, request_id) == 202
        assert cancel(stranger, 1) == 202
        assert cancel(work.elsewhere(stranger), 1) == 202
        assert agent.post({"jsonrpc": "2.0", "method": "notifications/cancelled"}).status_code == 202
        for call in (under_way, ended_by_leaving_only, one, other):
            assert call.over.wait(PATIENCE)
            assert "waited" in str(call.events[-1] if call.events else call.body)
    assert work.counter.events("cancelled") == []


def test_a_worker_that_was_deaf_for_a_moment_reads_what_was_cancelled_meanwhile(start: Start, run: Run) -> None:
    work = Work(start, run, workers=2)
    agent = work.agent()
    with listening(agent, "POST", waiting(token=7)) as under_way:
        under_way.wait_for(1)
        end_bus_connections(2)
        cancelled(work, under_way, work.elsewhere(agent), "mine")
