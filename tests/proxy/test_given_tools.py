"""Tools given to people, and limits of agents: lists, calls, running calls and notifications agree."""

import os
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from django.utils import timezone

from accounts.models import Team, User
from connections.models import HostAtGateway
from gateways.models import Feature, Gateway, ToolGrant, ToolSet
from tests import make, upstreams
from tests.conftest import Run
from tests.eventually import PATIENCE
from tests.proxy.conftest import Agent, Proxy, Start, eventually
from tests.proxy.listening import listening
from tests.proxy.scripted import Script, returning, tool
from tests.proxy.test_standing_streams import TOOLS_CHANGED, in_session

pytestmark = pytest.mark.full

NAMES = ("get_page", "get_user", "put_page", "drop_page")
PEOPLE = int(os.environ.get("PEOPLE_WITH_TOOLS", "3"))
EXPOSED = [f"docs__{name}" for name in NAMES]


CALLED = returning({"content": []})


def annotated(name: str, **annotations: bool) -> dict[str, Any]:
    return {**tool(name), "annotations": annotations}


@pytest.fixture
def boss(transactional_db: None) -> User:
    return make.user(email="boss@example.com")


@pytest.fixture
def work(run: Run, boss: User) -> Gateway:
    tools = [
        annotated("get_page", readOnlyHint=True),
        annotated("get_user", readOnlyHint=True),
        annotated("put_page", readOnlyHint=False),
        tool("drop_page"),
    ]
    return make.gateway(make.server(slug="docs", url=run(Script([tools], CALLED).app()).url), slug="work")


def reason(agent: Agent, name: str) -> str:
    error = agent.call(name).json().get("error")
    return error["data"]["reason"] if error else ""


def usable(agent: Agent) -> set[str]:
    """Return the tools that this agent can call, after checking that its list has the same tools."""
    reasons = {name: reason(agent, name) for name in EXPOSED}
    assert {*reasons.values()} <= {"", "tool_not_granted"}
    allowed = {name for name in EXPOSED if not reasons[name]}
    assert {*agent.tools()} == allowed
    return {name.removeprefix("docs__") for name in allowed}


def test_people_and_agents_can_list_and_call_what_grants_and_limits_give(
    proxy: Proxy, work: Gateway, boss: User, ann: User
) -> None:
    bot, other = make.agent(by=boss), make.agent(by=boss)
    of_boss, of_ann = (proxy.agent(make.connection(bot, work, user)) for user in (boss, ann))
    elsewhere = proxy.agent(make.connection(other, work, ann))
    assert usable(of_boss) == usable(of_ann) == {*NAMES}
    team = Team.objects.create(name="Writers")
    team.users.add(ann)
    reading = ToolSet.objects.add(gateway=work, name="Read only", effects=["read_only"], by=boss)
    writing = ToolSet.objects.add(gateway=work, name="Pages", patterns=["docs__*_page"], by=boss)
    chosen = ToolSet.objects.add(gateway=work, name="One", members=Feature.objects.filter(name="put_page"), by=boss)

    work.edit(tools_given="granted", by=boss)
    assert usable(of_boss) == usable(of_ann) == set()
    to_all = ToolGrant.objects.give(reading, by=boss)
    assert usable(of_boss) == usable(of_ann) == {"get_page", "get_user"}
    ToolGrant.objects.give(writing, team=team, by=boss)
    ToolGrant.objects.give(chosen, user=boss, by=boss)
    assert usable(of_boss) == {"get_page", "get_user", "put_page"}
    assert usable(of_ann) == usable(elsewhere) == {*NAMES}
    HostAtGateway.objects.at(work, bot).limit(writing, by=boss)
    assert usable(of_ann) == {"get_page", "put_page", "drop_page"}
    assert usable(of_boss) == {"get_page", "put_page"}
    assert usable(elsewhere) == {*NAMES}
    to_all.end(by=boss)
    team.users.remove(ann)
    assert (usable(of_boss), usable(of_ann), usable(elsewhere)) == ({"put_page"}, set(), set())

    error = of_ann.call("docs__put_page").json()["error"]
    assert error["message"].startswith('This person, or this app or agent, was not given tool "put_page" of server')
    assert proxy.last().deny_reason == "tool_not_granted"


def test_a_new_tool_falls_into_what_its_set_says(proxy: Proxy, run: Run, boss: User) -> None:
    served = Script([[tool("get_page")]], CALLED)
    work = make.gateway(make.server(slug="docs", url=run(served.app()).url), slug="work", tools_given="granted")
    agent = proxy.agent(make.connection(make.agent(by=boss), work, boss))
    reading = ToolSet.objects.add(gateway=work, name="Gets", patterns=["docs__get_*"], by=boss)
    ToolGrant.objects.give(reading, by=boss)
    assert agent.tools() == ["docs__get_page"]

    served.pages = [[tool("get_page"), tool("get_user"), tool("put_page")]]

    assert reason(agent, "docs__get_user") == ""
    assert reason(agent, "docs__put_page") == "tool_not_granted"
    assert agent.call("docs__nothing").json()["error"]["code"] == -32602
    assert agent.tools() == ["docs__get_page", "docs__get_user"]


def test_prompts_and_resources_are_given_by_name_and_not_by_effect(proxy: Proxy, run: Run, boss: User) -> None:
    work = make.gateway(make.server(slug="docs", url=run(upstreams.docs()).url), slug="work")
    agent = proxy.agent(make.connection(make.agent(by=boss), work, boss))

    def listed() -> list[list[str]]:
        kinds = (("prompts", "name"), ("resources", "uri"))
        return [[one[key] for one in agent.ask(f"{kind}/list").json()["result"][kind]] for kind, key in kinds]

    def asked() -> list[str]:
        prompt = agent.ask("prompts/get", {"name": "docs__summarise", "arguments": {"topic": "x"}})
        resource = agent.ask("resources/read", {"uri": "docs://handbook"})
        return [one.json().get("error", {}).get("data", {}).get("reason", "") for one in (prompt, resource)]

    everything = listed()
    assert (everything, asked()) == ([["docs__summarise"], ["docs://handbook"]], ["", ""])
    effects = ["read_only", "writes", "destructive"]
    by_effect = ToolSet.objects.add(gateway=work, name="Any effect", effects=effects, by=boss)
    by_name = ToolSet.objects.add(gateway=work, name="Names", patterns=["docs*"], by=boss)

    work.edit(tools_given="granted", by=boss)
    ToolGrant.objects.give(by_effect, by=boss)
    assert (listed(), asked()) == ([[], []], ["tool_not_granted"] * 2)
    ToolGrant.objects.give(by_name, by=boss)
    assert (listed(), asked()) == (everything, ["", ""])


def test_lists_are_what_calls_allow_for_random_people(proxy: Proxy, work: Gateway, boss: User) -> None:
    chance = Random(7)
    people = [boss, *(make.user() for _ in range(PEOPLE - 1))]
    bots = [make.agent(by=boss) for _ in range(2)]
    agents = [proxy.agent(make.connection(bot, work, person)) for bot in bots for person in people]
    agents[0].tools()
    features = [*Feature.objects.filter(assignment__gateway=work).order_by("name")]
    team = Team.objects.create(name="Team")

    for number in range(6):
        tool_set = ToolSet.objects.add(
            gateway=work,
            name=f"Set {number}",
            patterns=chance.choice([[], ["*page"], ["docs__get_*"], ["docs__?ut_page", "nothing"]]),
            effects=chance.choice([[], [], ["read_only"], ["writes", "destructive"]]),
            members=chance.sample(features, chance.randint(0, 1)),
            by=boss,
        )
        subject: dict[str, Any] = chance.choice([{}, {"team": team}, {"user": chance.choice(people)}])
        ToolGrant.objects.give(tool_set, **subject, by=boss)
        team.users.set(chance.sample(people, len(people) // 3))
        limit = chance.choice([None, tool_set])
        HostAtGateway.objects.at(work, chance.choice(bots)).limit(limit, by=boss)
        work.edit(tools_given=chance.choice(["all", "granted"]), by=boss)
        if PEOPLE < 10 or number == 5:
            for agent in agents:
                usable(agent)
        if chance.random() < 0.5:
            ToolGrant.objects.live().first().end(by=boss)  # type: ignore[union-attr]


ENDS: dict[str, Callable[[Gateway, ToolSet, ToolGrant, User], object]] = {
    "grant ended": lambda _, __, grant, boss: grant.end(by=boss),
    "date come": lambda _, __, grant, ___: (
        ToolGrant.objects.filter(pk=grant.pk).update(ends_at=timezone.now()),
        ToolGrant.objects.all().end_due(),
    ),
    "set narrowed": lambda _, tool_set, __, boss: tool_set.edit(
        name="Narrowed", patterns=["other"], effects=[], members=[], by=boss
    ),
    "agent limited": lambda gateway, _, __, boss: HostAtGateway.objects.at(gateway, boss.connections.get().host).limit(
        ToolSet.objects.add(gateway=gateway, name="Nothing", by=boss), by=boss
    ),
}


def test_a_running_call_ends_whose_tool_is_taken_away(
    start: Start, run: Run, boss: User, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    monkeypatch.setattr("proxy.streams.RECHECK_SECONDS", 600)  # The worker must be notified, not poll.
    proxy = start()
    work = make.gateway(make.server(slug="docs", url=run(upstreams.docs()).url), slug="work")
    agent = proxy.agent(make.connection(make.agent(by=boss), work, boss))
    agent.tools()
    work.edit(tools_given="granted", by=boss)
    body = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "docs__slow", "arguments": {"seconds": 30}, "_meta": {"progressToken": 1}},
    }
    for how, end in ENDS.items():
        with subtests.test(how):
            tool_set = ToolSet.objects.add(gateway=work, name=f"Set: {how}", patterns=["docs__slow"], by=boss)
            grant = ToolGrant.objects.give(tool_set, user=boss, by=boss)
            with listening(agent, "POST", body) as call:
                call.wait_for(1)
                end(work, tool_set, grant, boss)
                assert call.over.wait(PATIENCE)
            assert call.events[-1]["error"]["data"]["reason"] == "tool_not_granted"
    eventually(lambda: [row.deny_reason for row in proxy.calls()].count("tool_not_granted") == len(ENDS))


def test_sessions_are_told_when_their_tools_change(
    start: Start, run: Run, boss: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.streams.LISTS_SECONDS", 0.1)
    proxy = start()
    work = make.gateway(make.server(slug="docs", url=run(upstreams.docs()).url), slug="work", tools_given="granted")
    host, team = make.agent(by=boss), Team.objects.create(name="Team")
    agent = proxy.agent(make.connection(host, work, boss))
    tool_set = ToolSet.objects.add(gateway=work, name="Set", patterns=["docs__slow"], by=boss)
    changes: list[Callable[[], object]] = [
        lambda: ToolGrant.objects.give(tool_set, team=team, by=boss),
        lambda: team.users.add(boss),
        lambda: tool_set.edit(name="Set", patterns=["docs__*"], effects=[], members=[], by=boss),
        lambda: HostAtGateway.objects.at(work, host).limit(tool_set, by=boss),
        lambda: work.edit(tools_given="all", by=boss),
    ]
    with listening(in_session(agent), "GET") as stream:
        assert stream.begun.wait(PATIENCE)
        for number, change in enumerate(changes, 1):
            before = len(stream.events)
            change()
            assert stream.wait_for(before + 1)[-1]["method"].endswith("/list_changed"), number
        assert TOOLS_CHANGED in stream.events


def test_what_is_given_of_many_templates_and_no_other_server_introduces_itself(
    proxy: Proxy, run: Run, boss: User
) -> None:
    docs = make.server(slug="docs", name="Docs", url=run(upstreams.docs()).url)
    work = make.gateway(docs, slug="work", description="Look things up here.")
    agent = proxy.agent(make.connection(make.agent(by=boss), work, boss))
    assert agent.ask("resources/list").status_code == 200
    [assignment] = work.assignments.all()
    templates = [{"uriTemplate": f"docs://part{n}/{{file}}", "name": f"part{n}"} for n in range(60)]
    public = {"uriTemplate": "docs://public/{file}", "name": "public"}
    Feature.objects.learn(assignment, [*templates, public], kind="template")
    patterns = ["docs://public/*", "docs://part1?/*"]
    some = ToolSet.objects.add(gateway=work, name="Some", patterns=patterns, by=boss)
    grant = ToolGrant.objects.give(some, user=boss, by=boss)

    def refused(uri: str) -> bool:
        error = agent.ask("resources/read", {"uri": uri}).json().get("error", {})
        return bool(error.get("data", {}).get("reason", "") == "tool_not_granted")

    def instructions() -> str:
        return str(agent.ask("server/discover").json()["result"]["instructions"])

    everything = instructions()
    work.edit(tools_given="granted", by=boss)
    assert [refused(f"docs://part{n}/a") for n in (1, 10, 19, 20)] == [True, False, False, True]
    inside_and_outside = ("docs://public/a", "docs://public/../handbook", "docs://public/a/b", "docs://handbook")
    assert [refused(uri) for uri in inside_and_outside] == [False, True, True, True]
    assert instructions() == everything == "Look things up here.\n\n## Docs\n\nSearch the handbook."
    grant.end(by=boss)
    assert instructions() == "Look things up here."


def test_clients_see_the_texts_an_administrator_states(proxy: Proxy, run: Run, boss: User) -> None:
    served = Script([[tool("get_page"), {**tool("put_page"), "title": "Put", "description": "Puts."}]], CALLED)
    work = make.gateway(make.server(slug="docs", url=run(served.app()).url), slug="work")
    agent = proxy.agent(make.connection(make.agent(by=boss), work, boss))

    def listed() -> dict[str, dict[str, Any]]:
        return {one["name"]: one for one in agent.listed().json()["result"]["tools"]}

    before = listed()
    get, put = (Feature.objects.get(name=name) for name in ("get_page", "put_page"))
    hashes = get.definition_hash, put.definition_hash
    get.say_texts(title='Read "it"', description="", by=boss)
    put.say_texts(title="", description="Overwrites\na page.", by=boss)

    after = listed()
    assert after["docs__get_page"] == before["docs__get_page"] | {"title": 'Read "it"'}
    assert after["docs__put_page"] == before["docs__put_page"] | {"description": "Overwrites\na page."}
    served.pages = [[tool("get_page"), {**tool("put_page"), "title": "Put", "description": "Steals."}]]
    agent.ask("tools/list")
    Feature.objects.learn(put.assignment, served.pages[0])
    put.refresh_from_db()
    assert (put.state, put.definition_hash, get.definition_hash) == ("held", hashes[1], hashes[0])
    assert listed() == after
