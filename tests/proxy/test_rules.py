"""Rules decide the next call by its tool, arguments and caller, and the log names the rule that decided."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Any
from urllib.parse import quote

import pytest

from accounts.models import Team, User
from approvals.models import Hold
from auditlog.models import Call
from auditlog.why import Detail
from capabilities import Capability
from connections.models import Connection
from gateways.models import Feature, Gateway
from rules.models import Rule
from servers.models import Server
from tests import make, upstreams
from tests.conftest import Run
from tests.eventually import PATIENCE
from tests.proxy.conftest import Agent, Proxy, in_words, sql
from tests.proxy.features import offer, put
from tests.proxy.scripted import Request, Script, offering, returning
from tests.proxy.test_tools_call import work_of
from tests.rest import Rest

ON: dict[str, Any] = {"mode": "on", "by": None}


@dataclass
class World:
    """Ana's agent on the gateway `work`, which has the server `docs` and a server without an alias."""

    agent: Agent
    connection: Connection
    gateway: Gateway
    docs: Server


@pytest.fixture
def world(proxy: Proxy, run: Run, ana: User) -> World:
    docs = make.server(slug="docs", url=run(upstreams.docs()).url)
    work = make.gateway(docs, slug="work")
    connection = make.connection(make.agent(by=ana, name="CI bot"), work, ana)
    agent = proxy.agent(connection)
    assert "docs__echo" in agent.tools()
    return World(agent, connection, work, docs)


def reason(answer: Any) -> str:
    """Return the reason of a refusal; empty if the call was answered."""
    body = answer.json()
    return str(body["error"]["data"]["reason"]) if "error" in body else ""


@pytest.mark.full
def test_a_rule_refuses_the_next_call_by_its_arguments_and_names_itself_in_the_log(world: World, proxy: Proxy) -> None:
    rule = Rule.objects.add(
        name="No secrets", effect="refuse", text="Ask without the secret.", when="args.text.contains('secret')", **ON
    )

    refused = world.agent.call("docs__echo", {"text": "a secret"})
    allowed = world.agent.call("docs__echo", {"text": "hello"})

    assert refused.status_code == 200
    assert refused.json()["error"]["message"] == in_words("Ask without the secret.")
    assert refused.json()["error"]["data"] == {"reason": "rule_refused", "server": "docs"}
    assert reason(allowed) == ""
    row, other = proxy.calls()[-2:]
    assert (row.deny_reason, row.rule_id, row.labels) == ("rule_refused", rule.pk, "refused by: No secrets")
    assert row.server_id == world.docs.pk
    assert (other.deny_reason, other.rule_id, other.labels) == ("", None, "")
    stop = next(line for line in Detail(row).checks if line.result == "stop")
    assert (stop.name, "No secrets" in stop.text) == ("Rules", True)
    assert "Rules" in [line.name for line in Detail(other).checks]


@pytest.mark.full
def test_a_rule_is_off_at_the_next_call_even_if_switched_by_sql(world: World) -> None:
    rule = Rule.objects.add(name="None", effect="refuse", **ON)
    assert reason(world.agent.call("docs__echo", {"text": "x"})) == "rule_refused"
    assert "docs__echo" in world.agent.tools(), "lists show every tool, whatever rules say"

    sql("UPDATE rules_rule SET enabled = false WHERE id = %s", rule.pk)
    assert reason(world.agent.call("docs__echo", {"text": "x"})) == ""

    sql("""UPDATE rules_rule SET enabled = true, "when" = 'args.text == ''y''' WHERE id = %s""", rule.pk)
    assert reason(world.agent.call("docs__echo", {"text": "x"})) == ""
    assert reason(world.agent.call("docs__echo", {"text": "y"})) == "rule_refused"


def test_the_first_rule_that_refuses_wins_and_labels_add_up_and_each_finds_the_call(world: World, proxy: Proxy) -> None:
    Rule.objects.add(name="Money", effect="label", text="payments", **ON)
    Rule.objects.add(name="Held", effect="hold", **ON)
    Rule.objects.add(name="First", effect="refuse", text="First.", **ON)
    last = Rule.objects.add(name="Second", effect="refuse", text="Second.", **ON)
    Rule.objects.add(name="More", effect="label", text="audited", **ON)
    Rule.objects.add(name="Trial", effect="refuse", by=None)

    assert world.agent.call("docs__echo", {"text": "x"}).json()["error"]["message"] == in_words("First.")
    call = proxy.last()
    assert call.labels == "refused by: First, payments, audited, would refuse: Trial"
    reader = Rest.of(make.user(Capability.LOGS_READ))
    for label, found in {"payments": 1, "Would refuse: Trial": 1, "pay": 0, "audited, would": 0, "(": 0}.items():
        for question in ({"label": label}, {"q": f'label is "{label}"'}):
            assert len(reader.get("/logs", **question).json()["results"]) == found, question
        excluded = reader.get("/logs", q=f'method is tools/call and label is not "{label}"').json()["results"]
        assert len(excluded) == 1 - found, label

    last.move(1, by=None)
    assert world.agent.call("docs__echo", {"text": "x"}).json()["error"]["message"] == in_words("Second.")


@pytest.mark.full
def test_a_rule_made_while_the_list_with_a_new_tool_is_awaited_refuses_its_call(world: World, run: Run) -> None:
    asked, released = Event(), Event()
    script = Script()

    async def listing(request: Request) -> None:
        asked.set()
        await asyncio.to_thread(released.wait, PATIENCE)
        await request.answer({"tools": [{"name": "new", "inputSchema": {"type": "object"}}]})

    script.methods["tools/list"] = listing
    make.assignment(world.gateway, make.server(slug="slow", url=run(script.app()).url))
    with ThreadPoolExecutor() as pool:
        call = pool.submit(world.agent.call, "slow__new", {})
        assert asked.wait(PATIENCE)
        Rule.objects.add(name="None", effect="refuse", **ON)
        released.set()

        assert reason(call.result(PATIENCE)) == "rule_refused"


def test_a_watching_rule_only_labels(world: World, proxy: Proxy) -> None:
    rule = Rule.objects.add(name="Trial", effect="refuse", by=None)
    Rule.objects.add(name="Label", effect="label", text="seen", by=None)

    assert reason(world.agent.call("docs__echo", {"text": "x"})) == ""
    assert (proxy.last().labels, proxy.last().rule_id) == ("would refuse: Trial, would label: seen", None)

    rule.set_mode("on", by=None)
    assert reason(world.agent.call("docs__echo", {"text": "x"})) == "rule_refused"


@pytest.mark.full
@pytest.mark.parametrize(("effect", "refused"), [("refuse", True), ("label", False)])
def test_a_condition_without_a_result_fails_closed(effect: str, refused: bool, world: World, proxy: Proxy) -> None:
    rule = Rule.objects.add(name="Amounts", effect=effect, text="big", when="args.text > 500", **ON)

    answer = world.agent.call("docs__echo", {"text": "600"})

    assert (reason(answer) == "rule_refused") is refused
    assert proxy.last().rule_id == rule.pk
    assert "rule failed: Amounts (an argument has a type" in proxy.last().labels
    if refused:
        assert "has no result for this call" in answer.json()["error"]["message"]
    assert reason(world.agent.call("docs__echo", {})) != "rule_refused"  # An absent argument is no error.


@pytest.mark.full
def test_rules_select_tools_by_server_name_and_effect(world: World) -> None:
    other = make.server(slug="crm")
    Feature.objects.filter(exposed_name="docs__echo").update(said_effect="read_only")
    rule = Rule.objects.add(name="Some", effect="refuse", **ON)

    for fields, matches in (
        ({"servers": [other]}, False),
        ({"servers": [other, world.docs]}, True),
        ({"servers": [], "tools": ["docs__add"]}, False),
        ({"tools": ["docs__add", "docs__e*"]}, True),
        ({"tools": ["d?cs__[e]cho"]}, False),
        ({"tools": [], "tool_effect": "destructive"}, False),
        ({"tool_effect": "read_only"}, True),
        ({"tool_effect": "", "gateway": make.gateway()}, False),
        ({"gateway": world.gateway}, True),
    ):
        rule.edit(**fields, by=None)
        assert (reason(world.agent.call("docs__echo", {"text": "x"})) == "rule_refused") is matches, fields
    assert rule.revision == 10


@pytest.mark.full
def test_what_a_server_leaves_unsaid_counts_as_destructive(world: World) -> None:
    Rule.objects.add(name="Destructive", effect="refuse", tool_effect="destructive", **ON)
    assert reason(world.agent.call("docs__echo", {"text": "x"})) == "rule_refused"

    sql("UPDATE gateways_feature SET annotations = '{\"destructiveHint\": false}' WHERE exposed_name = 'docs__echo'")
    assert reason(world.agent.call("docs__echo", {"text": "x"})) == ""

    sql("UPDATE gateways_feature SET said_effect = 'destructive' WHERE exposed_name = 'docs__echo'")
    assert reason(world.agent.call("docs__echo", {"text": "x"})) == "rule_refused"


@pytest.mark.full
def test_conditions_see_who_calls_from_where_and_when(world: World, ana: User) -> None:
    Team.objects.create(name="Operations").users.add(ana)
    seen = (
        "tool.name == 'docs__echo' && tool.server == 'docs' && agent.name == 'CI bot' && agent.kind == 'agent'"
        f" && person.email == '{ana.email}' && 'Operations' in person.teams && person.role == '{ana.role}'"
        " && gateway.slug == 'work' && client.name == 'curl' && client.address == '127.0.0.1'"
        " && now.hour >= 0 && now.weekday >= 1 && now.date >= '2026-01-01'"
    )
    Rule.objects.add(name="All", effect="refuse", when=seen, **ON)

    client = {"_meta": {"io.modelcontextprotocol/clientInfo": {"name": "curl", "version": "8"}}}
    params = {"name": "docs__echo", "arguments": {"text": "x"}, **client}
    answer = world.agent.ask("tools/call", params)

    assert reason(answer) == ("rule_refused" if Call.objects.latest("id").client_name == "curl" else "")
    rule = Rule.objects.get(name="All")
    rule.edit(when=seen.replace(" && client.name == 'curl'", ""), by=None)
    assert reason(world.agent.call("docs__echo", {"text": "x"})) == "rule_refused"


@pytest.mark.full
def test_prompts_and_resources_are_not_ruled(world: World) -> None:
    Rule.objects.add(name="None", effect="refuse", **ON)

    prompt = world.agent.ask("prompts/get", {"name": "docs__summarise", "arguments": {"topic": "x"}})
    resource = world.agent.ask("resources/read", {"uri": "docs://handbook"})

    assert (reason(prompt), reason(resource)) == ("", "")


@pytest.mark.full
def test_a_tool_found_only_by_a_new_list_is_ruled_too(world: World, proxy: Proxy) -> None:
    Rule.objects.add(name="None", effect="refuse", **ON)
    Feature.objects.all().delete()

    assert reason(world.agent.call("docs__echo", {"text": "x"})) == "rule_refused"
    assert reason(world.agent.call("echo", {"text": "x"})) == "rule_refused"


def test_a_rule_on_a_tool_applies_whatever_spelling_of_its_name_is_called(world: World, proxy: Proxy, run: Run) -> None:
    long = "x" * 70
    make.assignment(world.gateway, make.server(slug="crm", url=run(offering("users/delete", "größe", long)).url))
    delete, size, cut = [name for name in world.agent.tools() if name.startswith("crm__")]
    refuse = Rule.objects.add(name="None", effect="refuse", tools=["crm__users_*", size, cut], **ON)

    spellings = {"crm__users/delete": delete, "users/delete": delete, "crm__größe": size, f"crm__{long}": cut}
    for called, name in spellings.items():
        assert reason(world.agent.call(called)) == "rule_refused", called
        assert proxy.last().feature_name == name

    refuse.remove(by=None)
    Connection.objects.update(hold_wait=0)
    Rule.objects.add(name="Ask", effect="hold", when=f"tool.name == '{delete}'", **ON)
    held = [world.agent.call(called).json()["result"]["_meta"]["hold"] for called in (delete, "crm__users/delete")]
    hold = Hold.objects.get(pk=held[0])
    assert (held[1], hold.tool) == (held[0], delete)
    assert hold.definition


def test_a_broken_condition_in_the_table_refuses_its_calls_and_no_other(world: World, proxy: Proxy) -> None:
    rule = Rule.objects.add(name="Broken", effect="refuse", tools=["docs__echo"], when="true", **ON)
    sql("""UPDATE rules_rule SET "when" = 'args.(' WHERE id = %s""", rule.pk)

    assert reason(world.agent.call("docs__echo", {"text": "x"})) == "rule_refused"
    assert "not valid" in proxy.last().labels
    assert reason(world.agent.call("docs__add", {"a": 1, "b": 2})) == ""


@pytest.mark.parametrize("effect", ["refuse", "hold"])
def test_rules_and_approvers_see_the_arguments_that_the_server_gets(proxy: Proxy, run: Run, effect: str) -> None:
    """A gateway URI in the arguments is decoded before rules are checked, so it cannot hide text from the rules."""
    work = work_of(proxy, run)
    docs = put(work, tools_call=returning({"content": []}))
    put(work, "other")
    offer("it", "tool")
    terms: Any = {"hold": {"hold_minutes": 5}, "refuse": {"text": "No."}}[effect]
    Connection.objects.update(hold_wait=0)
    Rule.objects.add(name="No rm", effect=effect, when="args.command.contains('rm ')", **terms, **ON)
    hidden = {"command": f"gateway://docs/{quote('rm -rf /', safe='')}"}

    refused = work.agent.call("docs__it", hidden)

    assert not docs.asked("tools/call")
    if effect == "hold":
        assert Hold.objects.get().arguments == {"command": "rm -rf /"}
    else:
        assert reason(refused) == "rule_refused"
