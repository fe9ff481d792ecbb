"""Calls to a runner's programs carry the runner's secret and the person's e-mail; other servers get neither."""

import pytest

from accounts.models import User
from gateways.models import Assignment, IdentityScheme, ToolPolicy
from servers.models import Server
from tests import make, runners, upstreams
from tests.asgi_server import Upstream
from tests.conftest import Run
from tests.proxy.conftest import Agent, Proxy, Start
from tests.runners import SECRET, program
from tests.workspace import free_port
from wire.runner import Runner

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.full]


def agent_of(proxy: Proxy, ana: User, *servers: Server) -> Agent:
    gateway = make.gateway()
    for server in servers:
        Assignment.objects.assign(
            gateway=gateway,
            server=server,
            alias=server.slug,
            identity_scheme=IdentityScheme.NONE,
            tool_policy=ToolPolicy.ALLOW_ALL,
            by=ana,
        )
    return proxy.agent(make.connection(make.agent(by=ana), gateway, ana))


def notes(upstream: Upstream) -> Server:
    url = f"http://127.0.0.1:{upstream.port}/notes/mcp"
    return make.server(slug="notes", name="Notes", url=url, private=True)


def runner_of(run: Run) -> Upstream:
    return run(runners.Runner([program("notes")], upstreams.docs()).app)


def test_a_program_gets_the_secret_and_the_person_and_no_other_server_does(start: Start, run: Run, ana: User) -> None:
    runner, other = runner_of(run), run(upstreams.docs())
    proxy = start(runner=Runner(f"http://127.0.0.1:{runner.port}", SECRET))
    docs = make.server(slug="docs", name="Docs", url=f"http://127.0.0.1:{other.port}/mcp", private=True)
    agent = agent_of(proxy, ana, notes(runner), docs)

    answers = [agent.call(f"{alias}__add", {"a": 1, "b": 2}).json() for alias in ("notes", "docs")]

    assert [answer["result"]["structuredContent"] for answer in answers] == [{"result": 3}] * 2
    assert {seen.headers.get("authorization") for seen in runner.seen} == {f"Bearer {SECRET}"}
    assert [seen.headers.get("x-gateway-user") for seen in runner.asked("tools/call")] == [ana.email]
    assert {seen.headers["x-gateway-user"] for seen in runner.asked("tools/list")} == {"gateway"}, "lists are shared"
    assert not any({"authorization", "x-gateway-user"} & seen.headers.keys() for seen in other.seen)
    assert all(SECRET not in str(row.__dict__) for row in proxy.calls())


def test_a_program_is_called_although_no_private_network_is_allowed(start: Start, run: Run, ana: User) -> None:
    runner = runner_of(run)
    proxy = start(runner=Runner(f"http://127.0.0.1:{runner.port}", SECRET), private_upstreams=())
    other = make.server(slug="docs", name="Docs", url=f"http://127.0.0.1:{runner.port}/programs", private=True)
    agent = agent_of(proxy, ana, notes(runner), other)

    assert agent.call("notes__add", {"a": 1, "b": 2}).json()["result"]["structuredContent"] == {"result": 3}
    asked = len(runner.seen)
    assert "error" in agent.call("docs__add", {"a": 1, "b": 2}).json()
    assert len(runner.seen) == asked, "another path of the runner is not called"


def test_a_redirect_of_the_runner_is_not_followed(start: Start, run: Run, ana: User) -> None:
    elsewhere = run(upstreams.docs())
    runner = run(upstreams.redirecting(elsewhere.url))
    proxy = start(runner=Runner(f"http://127.0.0.1:{runner.port}", SECRET))
    agent = agent_of(proxy, ana, notes(runner))

    assert "error" in agent.call("notes__add", {"a": 1, "b": 2}).json()
    assert runner.seen
    assert not elsewhere.seen


def test_a_runner_that_refuses_the_secret_or_is_down_is_an_error_with_a_row(start: Start, run: Run, ana: User) -> None:
    runner = runner_of(run)
    proxy = start(runner=Runner(f"http://127.0.0.1:{runner.port}", "another secret of 32 characters!!"))
    agent = agent_of(proxy, ana, notes(runner))

    refused = agent.call("notes__add", {"a": 1, "b": 2}).json()["error"]

    assert "refused the gateway's secret. An administrator of the gateway can correct it." in refused["message"]
    assert (proxy.last().outcome, proxy.last().deny_reason) == ("upstream_error", "unreachable")
    port = free_port()
    proxy = start(runner=Runner(f"http://127.0.0.1:{port}", SECRET))
    server = make.server(slug="gone", name="Gone", url=f"http://127.0.0.1:{port}/gone/mcp", private=True)
    down = agent_of(proxy, ana, server).call("gone__add", {"a": 1, "b": 2}).json()["error"]
    assert "nothing accepts connections at its address" in down["message"]
