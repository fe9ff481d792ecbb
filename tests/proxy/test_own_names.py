"""A call may name a tool as its server does, without the alias, if only one server has it. MCP Apps do so."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest

from accounts.models import User
from gateways.models import Assignment, Feature
from servers.models import Server
from tests.asgi_server import Upstream
from tests.eventually import PATIENCE
from tests.proxy.conftest import in_words, sql
from tests.proxy.features import offer, server
from tests.proxy.scripted import Request, calling, offering
from tests.proxy.test_tools_call import Work, work

__all__ = ["work"]


@pytest.fixture
def clock(work: Work) -> Upstream:
    """Add the servers `docs` (tools `it` and `both`) and `clock` (`now` and `both`). List the tools; return `clock`."""
    work.put(offering("it", "both"))
    clock = work.put(offering("now", "both"), "clock")
    assert {"docs__it", "clock__now"} <= set(work.agent.tools())
    return clock


def error(work: Work, name: str) -> Any:
    return work.agent.call(name).json()["error"]


@pytest.mark.full
def test_an_own_name_that_one_server_has_is_called_there_and_logged_as_listed(work: Work, clock: Upstream) -> None:
    answer = work.agent.call("now").json()

    assert answer["result"]["content"][0]["text"] == "now"
    assert [request.body["params"]["name"] for request in clock.asked("tools/call")] == ["now"]
    row = work.proxy.last()
    assert (row.server_name, row.feature_type, row.feature_name, row.outcome) == ("Clock", "tool", "clock__now", "ok")


SWITCHES = (
    "UPDATE gateways_feature SET enabled = %s WHERE exposed_name = 'clock__both'",
    "UPDATE gateways_assignment SET enabled = %s WHERE alias = 'clock'",
    "UPDATE servers_server SET enabled = %s WHERE slug = 'clock'",
)


def test_an_own_name_of_two_servers_is_refused_and_never_sent_to_the_one_that_is_not_disabled(
    work: Work, clock: Upstream
) -> None:
    said = "Unknown tool: both; several servers have it, call one of: "
    assert error(work, "both") == {"code": -32602, "message": in_words(f"{said}clock__both, docs__both.")}
    assert (work.proxy.last().server_name, work.proxy.last().feature_name) == ("", "both")

    for statement in SWITCHES:
        sql(statement, False)
        assert error(work, "both")["message"] == in_words(f"{said}docs__both."), statement
        sql(statement, True)
    assert clock.asked("tools/call") == []


@pytest.mark.full
def test_an_own_name_passes_no_switch(work: Work, clock: Upstream) -> None:
    now = Feature.objects.filter(exposed_name="clock__now")
    for change, reason in (
        ({"state": "quarantined"}, "definition_quarantined"),
        ({"state": "new"}, "definition_held"),
        ({"enabled": False}, "tool_disabled"),
    ):
        now.update(**change)
        assert error(work, "now")["data"]["reason"] == reason
        assert (work.proxy.last().deny_reason, work.proxy.last().server_name) == (reason, "Clock")
        now.update(state="approved", enabled=True)
    assert clock.asked("tools/call") == []


@pytest.mark.full
def test_a_token_reaches_no_server_outside_its_scope_by_an_own_name(work: Work, clock: Upstream) -> None:
    connection = work.proxy.last().connection_id
    docs = Assignment.objects.get(alias="docs")
    sql("UPDATE tokens_token SET scope_all = false WHERE connection_id = %s", connection)
    sql("INSERT INTO tokens_tokenscope (token_id, assignment_id) SELECT id, %s FROM tokens_token", docs.pk)

    refused = work.agent.call("now")
    chosen = work.agent.call("both").json()

    assert (refused.status_code, refused.json()["error"]["message"]) == (403, "Forbidden")
    assert chosen["result"]["content"][0]["text"] == "both"
    assert (work.proxy.last().server_name, clock.asked("tools/call")) == ("Docs", [])


@pytest.mark.full
def test_a_name_the_server_no_longer_lists_or_one_behind_an_alias_is_nobodys(work: Work, clock: Upstream) -> None:
    Feature.objects.filter(exposed_name="clock__now").update(missing_since="2026-01-01T00:00Z")
    offer("docs__it", "tool", alias="clock")

    assert error(work, "now")["message"] == in_words("Unknown tool: now.")
    assert work.agent.call("docs__it").json()["result"]["content"][0]["text"] == "it"
    assert error(work, "docs__none")["message"] == in_words("Unknown tool: docs__none.")


@pytest.mark.full
def test_a_server_without_an_alias_comes_first(work: Work, clock: Upstream) -> None:
    plain = offering("now")
    work.put(plain, "plain")
    Assignment.objects.filter(alias="plain").update(alias="")

    assert work.agent.call("now").json()["result"]["content"][0]["text"] == "now"
    assert work.proxy.last().server_name == "Plain"
    assert work.agent.call("it").json()["result"]["content"][0]["text"] == "it"
    assert work.proxy.last().server_name == "Docs"


def test_a_prompt_goes_by_its_own_name_too(work: Work) -> None:
    async def get(request: Request) -> None:
        await request.answer({"messages": [], "description": request.message["params"]["name"]})

    work.put(server(prompts_get=get))
    offer("greet", "prompt")

    assert work.agent.ask("prompts/get", {"name": "greet"}).json()["result"]["description"] == "greet"
    assert work.proxy.last().feature_name == "docs__greet"


@pytest.mark.full
def test_a_call_under_way_by_an_own_name_ends_for_the_reason_that_its_server_gives(work: Work) -> None:
    begun = Event()

    async def call(request: Request) -> None:
        begun.set()
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work.put(calling(call))
    work.agent.tools()

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(work.agent.call, "it")
        assert begun.wait(PATIENCE)
        Server.objects.get(slug="docs").disable(by=User.objects.get(email="ana@example.com"))
        assert answer.result(PATIENCE).json()["error"]["data"]["reason"] == "server_disabled"
