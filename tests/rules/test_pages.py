"""The pages of rules: the list, the form with its builders, the replay, and the switches."""

from typing import Any

import pytest
from django.test import Client

from accounts.models import Team, User
from capabilities import Capability
from gateways.models import Feature, Gateway
from rules.conditions import BadChoice, expression_of
from rules.models import NeedsPayloads, Rule
from servers.models import Server
from tests import make
from tests.calls import call
from tests.rest import Rest, problem

pytestmark = pytest.mark.django_db

FORM = {"name": "Large", "effect": "refuse", "mode": "watch", "condition": "always"}


@pytest.fixture
def boss() -> User:
    return make.user(*Capability)


@pytest.fixture
def client(boss: User) -> Client:
    client = Client()
    client.force_login(boss)
    return client


CHOICES: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("always", {}, ""),
    ("argument", {"argument": "to.name", "comparison": "equals", "value": 'a"b'}, 'args.to.name == "a\\"b"'),
    ("argument", {"argument": "größe", "comparison": "greater", "value": "5"}, 'args["größe"] > 5'),
    ("argument", {"argument": "id", "comparison": "equals", "value": "12"}, 'args.id == 12 || args.id == "12"'),
    ("argument", {"argument": "id", "comparison": "differs", "value": "12"}, 'args.id != 12 && args.id != "12"'),
    ("argument", {"argument": "a name", "comparison": "contains", "value": "x"}, 'args["a name"].contains("x")'),
    ("argument", {"argument": "force", "comparison": "equals", "value": "true"}, "args.force == true"),
    ("argument", {"argument": "to.name", "comparison": "present"}, "has(args.to.name)"),
    ("argument", {"argument": "a name", "comparison": "present"}, '"a name" in args'),
    ("hours", {"opens": 8, "closes": 18}, "now.hour < 8 || now.hour >= 18"),
    ("hours", {"opens": 8, "closes": 18, "weekends": True}, "now.hour < 8 || now.hour >= 18 || now.weekday > 5"),
    ("expression", {"when": "now.hour == 3"}, "now.hour == 3"),
)


def test_the_choices_of_the_form_are_written_as_an_expression() -> None:
    for choice, values, when in CHOICES:
        assert expression_of(choice, values) == when


NO_CONDITION: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("argument", {"argument": "", "comparison": "equals", "value": "x"}, "argument"),
    ("argument", {"argument": "amount", "comparison": "greater", "value": "much"}, "value"),
    ("argument", {"argument": "amount", "comparison": "contains", "value": ""}, "value"),
    ("hours", {"opens": 18, "closes": 8}, "closes"),
    ("production", {}, "argument"),
)


def test_a_choice_that_makes_no_condition_names_its_field() -> None:
    for choice, values, field in NO_CONDITION:
        with pytest.raises(BadChoice) as refusal:
            expression_of(choice, values)
        assert refusal.value.field == field


def test_a_rule_is_made_in_the_form_and_shown_in_the_list(client: Client, boss: User) -> None:
    chosen = {"condition": "argument", "argument": "amount", "comparison": "greater", "value": "500"}

    answer = client.post("/rules/add/", FORM | chosen | {"tools": "a__*\nb__*"})

    rule = Rule.objects.get()
    assert answer["Location"] == f"/rules/{rule.pk}/"
    assert (rule.when, rule.tools, rule.mode, rule.created_by) == ("args.amount > 500", ["a__*", "b__*"], "watch", boss)
    page = client.get("/rules/").content.decode()
    assert "Large" in page
    assert "args.amount &gt; 500" in page
    label = "rule failed: Large (an argument has a type that the condition does not expect)"
    call(feature_type="tool", feature_name="a__pay", labels=f"refused by: First, {label}")
    call(feature_type="tool", feature_name="a__pay", rule_id=rule.pk, labels="rule failed: Larger (divides by zero)")
    assert "an argument has a type" in client.get(f"/rules/{rule.pk}/").content.decode(), "a call without a result"


@pytest.mark.parametrize("capabilities", [[*Capability], [Capability.RULES_MANAGE, Capability.LOGS_READ]])
def test_a_saved_note_keeps_an_archived_gateway_and_server_in_the_rule(
    client: Client, capabilities: list[Capability]
) -> None:
    gateway, server = make.gateway(), make.server()
    rule = Rule.objects.add(name="Large", effect="refuse", gateway=gateway, servers=[server], by=None)
    Gateway.objects.update(archived_at=rule.created_at)
    Server.objects.update(archived_at=rule.created_at)
    client.force_login(make.user(*capabilities))
    page = client.get(f"/rules/{rule.pk}/").content.decode()
    assert f'value="{gateway.slug}" selected' in page
    own = FORM | {"gateway": gateway.slug, "servers": [str(server.pk)], "note": "Kept.", "version": rule.version}

    tried = client.post(f"/rules/{rule.pk}/replay/", own).content.decode()
    client.post(f"/rules/{rule.pk}/", own)

    assert "would have been affected" in tried
    rule.refresh_from_db()
    assert (rule.note, rule.gateway, [*rule.servers.all()]) == ("Kept.", gateway, [server])
    assert client.post("/rules/add/", own | {"name": "Other"}).status_code == 422


def test_an_error_of_an_expression_names_its_line_and_column_and_is_marked(client: Client) -> None:
    answer = client.post("/rules/add/", FORM | {"condition": "expression", "when": "now.hour > 3 &&\n  amount > 5"})

    assert answer.status_code == 422
    page = answer.content.decode()
    assert "There is no field or function amount. Line 2, column 3." in page
    assert "<span>now.hour &gt; 3 &amp;&amp;</span><span>  <u>amount</u> &gt; 5</span>" in page
    assert not Rule.objects.exists()


def test_an_argument_that_no_selected_tool_has_is_refused(client: Client) -> None:
    assigned = make.assignment(make.gateway(), make.server(slug="pay"))
    schema = {"type": "object", "properties": {"amount": {"type": "number"}, "in": {}}}
    Feature.objects.create(assignment=assigned, name="charge", exposed_name="pay__charge", input_schema=schema)
    wrong = FORM | {"condition": "expression", "when": "args.amuont > 5", "tools": "pay__*"}

    refused = client.post("/rules/add/", wrong).content.decode()

    assert "None of the selected tools has an argument amuont. Did you mean amount?" in refused
    named = client.get("/rules/names/", {"tools": "pay__*"}).content.decode()
    assert "<code>args.amount</code>" in named
    assert "No argument is known." in client.get("/rules/names/", {"tools": "other__*"}).content.decode()
    assert "<code>args[&quot;in&quot;]</code>" in named
    assert client.post("/rules/add/", wrong | {"when": "args.amount > 5"}).status_code == 302


def test_whoever_only_looks_gets_the_names_of_the_rule(client: Client) -> None:
    """A viewer's fields are disabled, so the browser sends no `tools`. The names come from the rule's own tools."""
    assigned = make.assignment(make.gateway(), make.server(slug="pay"))
    for tool, argument in (("pay__charge", "amount"), ("pay__note", "remark")):
        schema = {"type": "object", "properties": {argument: {"type": "string"}}}
        Feature.objects.create(assignment=assigned, name=tool, exposed_name=tool, input_schema=schema)
    rule = Rule.objects.add(name="Charges", effect="refuse", tools=["*charge"], by=None)

    named = client.get(f"/rules/{rule.pk}/names/").content.decode()

    assert "args.amount" in named
    assert "args.remark" not in named
    assert "args.remark" in client.get(f"/rules/{rule.pk}/names/", {"tools": "*note"}).content.decode()


SEEING: dict[str, tuple[set[Capability], set[str]]] = {
    "rules": (set(), {"currency"}),
    "servers": ({Capability.SERVERS_READ}, {"currency", "Theirs server"}),
    "gateways": ({Capability.GATEWAYS_READ}, {"currency", "sort_code", "Theirs gateway", "Theirs server"}),
}


@pytest.mark.full
def test_the_form_names_nothing_that_the_viewer_may_not_see_elsewhere(subtests: pytest.Subtests) -> None:
    """The names are those of gateways and servers, and of arguments in the schemas of tools."""
    for name, reach, argument in (("Ours", "everyone", "currency"), ("Theirs", "teams", "sort_code")):
        gateway = make.gateway(name=f"{name} gateway", reach=reach)
        assigned = make.assignment(gateway, make.server(name=f"{name} server"))
        schema = {"type": "object", "properties": {argument: {"type": "string"}}}
        tool = make.unique("tool")
        Feature.objects.create(assignment=assigned, name=tool, exposed_name=tool, input_schema=schema)
    rule = Rule.objects.add(name="All", effect="refuse", by=None)
    for may in (Capability.RULES_READ, Capability.RULES_MANAGE):
        for seeing, (more, shown) in SEEING.items():
            with subtests.test(f"{may} {seeing}"):
                check_names(rule, may, more, shown)


def check_names(rule: Rule, may: Capability, more: set[Capability], shown: set[str]) -> None:
    viewer = Client()
    viewer.force_login(make.user(may, *more))

    names = viewer.get("/rules/names/").content.decode()
    pages = [viewer.get(f"/rules/{rule.pk}/").content.decode() + names]
    if may == Capability.RULES_MANAGE:
        wrong = FORM | {"condition": "expression", "when": "args.sort_cod > 5"}
        added = viewer.get("/rules/add/").content.decode() + names
        pages += [added, viewer.post("/rules/add/", wrong).content.decode()]
        Rule.objects.filter(name=FORM["name"]).delete()

    for page in pages[:2]:
        assert {name for name in ("currency", "sort_code", "Theirs gateway", "Theirs server") if name in page} == shown
    assert ("Did you mean sort_code?" in pages[-1]) is (may == Capability.RULES_MANAGE and "sort_code" in shown)


def test_a_rule_that_holds_says_who_decides_and_for_how_long(client: Client) -> None:
    team = Team.objects.create(name="Release engineers")
    holding = FORM | {"effect": "hold", "approvers": "team", "hold_minutes": "30", "somebody_else": "on"}

    refused = client.post("/rules/add/", holding).content.decode()
    client.post("/rules/add/", holding | {"approver_team": str(team.pk)})

    assert "Choose the team that decides." in refused
    rule = Rule.objects.get(name="Large")
    assert (rule.effect, rule.approver_team, rule.somebody_else, rule.hold_minutes) == ("hold", team, True, 30)


@pytest.mark.full
def test_the_form_shows_recorded_calls_that_it_would_have_touched(client: Client) -> None:
    server = make.server()
    tool: dict[str, Any] = {
        "feature_type": "tool",
        "feature_name": "a__pay",
        "server_id": server.pk,
        "server_name": server.name,
    }
    payload = {"params": {"arguments": {"amount": 600}}}
    call(**tool, host_name="CI bot", user_email="ana@example.com", request_payload=payload)
    call(**tool)

    page = client.post("/rules/replay/", FORM | {"condition": "expression", "when": "args.amount > 5"}).content.decode()

    assert "<b>1 call</b> of 1 agent would have been affected" in page
    assert "1 call to tools of this rule cannot be judged" in page
    assert "a__pay" in page
    assert not Rule.objects.exists()


def test_whoever_may_not_read_arguments_tries_no_condition_on_them(client: Client) -> None:
    """Otherwise the number of matches would reveal the arguments' values."""
    client.force_login(make.user(Capability.RULES_MANAGE, Capability.LOGS_READ))
    on_arguments = FORM | {"condition": "expression", "when": 'args.iban.startsWith("D")'}

    refused = client.post("/rules/replay/", on_arguments).content.decode()
    allowed = client.post("/rules/replay/", FORM).content.decode()

    assert f"you need the permission {Capability.LOGS_PAYLOADS.label}" in refused
    assert "would have been affected" not in refused
    assert "would have been affected" in allowed
    rule = Rule.objects.add(name="All", effect="refuse", when='args.iban == "D"', by=None)
    assert "would have affected" not in client.get(f"/rules/{rule.pk}/turn-on/").content.decode()


def test_whoever_may_not_read_arguments_writes_no_condition_on_them() -> None:
    """Otherwise labels on matching calls would reveal the arguments' values. Other fields can be changed."""
    person = make.user(Capability.RULES_MANAGE, Capability.LOGS_READ)
    client = Client()
    client.force_login(person)
    rule = Rule.objects.add(name="Theirs", effect="refuse", when='args.iban == "D"', by=None)
    on_arguments = FORM | {"condition": "expression", "when": 'args.iban.startsWith("D")'}

    added = client.post("/rules/add/", on_arguments)
    edited = client.post(f"/rules/{rule.pk}/", on_arguments | {"version": rule.version})
    with pytest.raises(NeedsPayloads):
        rule.edit(when=on_arguments["when"], by=person)

    rest = Rest.of(person)
    rows = {"name": "More", "effect": "refuse", "when": on_arguments["when"]}
    by_rest = [rest.post("/rules", rows), rest.patch(f"/rules/{rule.pk}", {"when": on_arguments["when"]})]

    assert [problem(answer) for answer in by_rest] == [(400, "invalid")] * 2
    for refused in (added, edited):
        assert refused.status_code == 422
        assert "needs the permission “View recorded payloads”" in refused.content.decode()
    assert [each.when for each in Rule.objects.all()] == ['args.iban == "D"']
    assert rule.edit(text="Ask the bank.", by=person)
    assert client.post("/rules/add/", FORM | {"condition": "expression", "when": "now.hour > 3"}).status_code == 302


def test_turning_on_counts_the_calls_labelled_while_watching_and_says_if_none_can_be_judged(client: Client) -> None:
    on_arguments = FORM | {"condition": "expression", "when": "args.amount > 500"}
    client.post("/rules/add/", on_arguments)
    rule = Rule.objects.get()
    unrecorded: dict[str, Any] = {"feature_type": "tool", "feature_name": "a__pay", "server_id": make.server().pk}
    call(**unrecorded)

    def told() -> tuple[str, str]:
        tried = client.post(f"/rules/{rule.pk}/replay/", on_arguments)
        return client.get(f"/rules/{rule.pk}/turn-on/").content.decode(), tried.content.decode()

    asked, tried = told()
    assert "0 agents" not in asked + tried
    assert "is not known: 1 call without complete recorded arguments cannot be judged." in asked
    assert "It is not known which calls would have been affected." in tried

    call(labels="would refuse: Large", **unrecorded)
    asked, tried = told()
    affected = "affected 1 call of 1 agent in the last 7 days."
    assert f"{affected} 1 call without complete recorded arguments cannot" in asked
    assert "<b>1 call</b> of 1 agent would have been affected" in tried


def test_turning_on_says_what_it_cuts(client: Client) -> None:
    rule = Rule.objects.add(name="All", effect="refuse", by=None)
    call(feature_type="tool", feature_name="a__pay", server_id=make.server().pk)

    asked = client.get(f"/rules/{rule.pk}/turn-on/").content.decode()
    done = client.post(f"/rules/{rule.pk}/turn-on/")

    assert done["Location"] == f"/rules/{rule.pk}/"
    assert "The rule would have affected 1 call of 1 agent in the last 7 days." in asked
    rule.refresh_from_db()
    assert rule.mode == "on"
    client.post(f"/rules/{rule.pk}/watch/")
    rule.refresh_from_db()
    assert rule.mode == "watch"
