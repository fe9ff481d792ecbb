"""Rules on tool calls in configuration files: their values, their order, and the calls that they would affect."""

from typing import Any

import pytest
import yaml

from accounts.models import Team, User, WorkspaceSettings
from accounts.workspace_views import WorkspaceForm
from auditlog.models import Call, Event
from capabilities import Capability
from configuration import document
from configuration.apply import Lacking, apply
from configuration.document import ConfigurationError
from configuration.export import export
from configuration.kinds.people import WorkspaceKind
from configuration.plan import Plan, plan
from gateways.models import Assignment
from rules.models import MOST_RULES, Rule
from servers.models import Server
from tests import make
from tests.calls import call

pytestmark = pytest.mark.django_db

LARGE = """
version: 1
source: platform-team
workspace: {zone: Europe/Berlin}
teams: [{name: Finance}]
servers: [{slug: pay, name: Pay, url: 'https://93.184.216.34/mcp'}]
gateways: [{slug: work, name: Work, servers: [{server: pay}]}]
rules:
  - name: Large payments
    gateway: work
    servers: [pay]
    tools: ['pay__create_*']
    when: |
      args.amount > 500
      && now.hour < 18
    effect: hold
    mode: 'on'
    approvers: team
    approver_team: Finance
    hold_minutes: 60
  - {name: No drops, tool_effect: destructive, effect: refuse, text: Ask the team., enabled: false}
  - {name: Mail, tools: [mail__send], effect: label, text: mail}
"""


@pytest.fixture
def owner() -> User:
    return make.user(*Capability)


def applied(text: str, owner: User, **more: Any) -> Plan:
    return apply(document.read({"gateway.yaml": text}), by=owner, **more)


def rules_file(*names: str, **more: Any) -> str:
    """Return a file with rules of these names in this order."""
    return yaml.safe_dump({"version": 1, "rules": [{"name": name, "effect": "refuse", **more} for name in names]})


def order() -> list[str]:
    return [rule.name for rule in Rule.objects.all()]


@pytest.mark.full
def test_rules_are_made_and_read_again(owner: User) -> None:
    applied(LARGE, owner)

    text = export(owner)
    large, drops, mail = Rule.objects.all()
    assert plan(document.read({"gateway.yaml": text}), owner).changes == []
    assert applied(LARGE, owner).changes == []
    assert (str(large.gateway), [server.slug for server in large.servers.all()]) == ("Work", ["pay"])
    assert (large.when, large.status) == ("args.amount > 500\n&& now.hour < 18", "on")
    assert (large.approver_team, large.hold_minutes) == (Team.objects.get(), 60)
    assert (drops.status, mail.status, mail.text) == ("disabled", "watch", "mail")
    assert WorkspaceSettings.load().zone == "Europe/Berlin"
    assert Event.objects.get(action="rule.created", target_label="Mail").changes["file"] == "gateway.yaml"


def test_a_changed_rule_keeps_its_other_values_and_pruning_disables(owner: User) -> None:
    applied(LARGE, owner)

    made = applied("version: 1\nrules: [{name: Large payments, effect: refuse, text: Too much.}]\n", owner)

    rule = Rule.objects.get(name="Large payments")
    assert [{*change.fields} for change in made.changes] == [{"effect", "text"}]
    assert (rule.when, rule.effect, rule.approvers) == ("args.amount > 500\n&& now.hour < 18", "refuse", "anybody")
    assert made.not_in_file == ["rule Mail", "rule No drops"]
    applied("version: 1\nsource: platform-team\nrules: []\n", owner, prune=True)
    assert [rule.enabled for rule in Rule.objects.all()] == [False] * 3, "pruning disables"


@pytest.mark.full
def test_the_order_of_the_list_is_that_of_the_rules(owner: User) -> None:
    applied(rules_file("A", "B", "C"), owner)

    made = applied(rules_file("New", "C", "A", "B"), owner)

    assert [(change.title, change.fields.get("place")) for change in made.changes] == [
        ("rule C", (3, 2)),
        ("rule New", (4, 1)),
    ]
    assert order() == ["New", "C", "A", "B"]
    assert Event.objects.filter(action="rule.moved").count() == 2
    assert applied(rules_file("New", "C", "A", "B"), owner).changes == []


def test_rules_of_others_and_renamed_rules_keep_their_places(owner: User) -> None:
    for name in ("By hand", "A", "Other", "B"):
        Rule.objects.add(name=name, effect="refuse", by=owner)

    applied(rules_file("B", "A", "C"), owner)

    assert order() == ["By hand", "B", "Other", "A", "C"]
    renamed = Rule.objects.get(name="B")
    made = applied(rules_file("Z", "A", "C").replace("name: Z", "name: Z\n  moved: {from: B, to: Z}"), owner)
    assert [{*change.fields} for change in made.changes] == [{"name"}]
    assert Rule.objects.get(name="Z") == renamed
    assert order() == ["By hand", "Z", "Other", "A", "C"]


@pytest.mark.full
def test_a_rule_of_archived_servers_only_is_not_in_files(owner: User) -> None:
    applied(LARGE, owner)
    server = Server.objects.get()
    server.disable(by=owner)
    Assignment.objects.archive_server(server, by=owner)

    text = export(owner)

    assert "Large payments" not in text
    assert plan(document.read({"gateway.yaml": text}), owner).changes == []
    with pytest.raises(ConfigurationError, match="all its servers are archived"):
        applied("version: 1\nrules: [{name: Large payments, effect: refuse}]\n", owner)


@pytest.mark.full
def test_too_many_rules_are_refused_and_none_is_added(owner: User) -> None:
    with pytest.raises(ConfigurationError, match="cannot have more"):
        applied(rules_file(*map(str, range(1000, 1001 + MOST_RULES))), owner)

    assert not Rule.objects.exists()


def test_rules_need_their_own_permission(owner: User) -> None:
    with pytest.raises(Lacking, match="- rule A: “Manage rules” "):
        applied(rules_file("A"), make.user(Capability.RULES_READ))

    assert "\nrules:" not in export(make.user(Capability.GATEWAYS_READ))
    assert not Rule.objects.exists()


OF_TOOL = ("gateway_id", "server_id", "user_id", "feature_name", "feature_type")


@pytest.fixture
def called(owner: User) -> User:
    """A person whose agent called the tool of a server on the gateway `work`."""
    server = make.server(slug="docs")
    gateway = make.gateway(server, slug="work")
    link = make.connection(make.agent(by=owner), gateway, owner)
    call(
        host_id=link.host_id,
        gateway_id=gateway.pk,
        server_id=server.pk,
        user_id=owner.pk,
        feature_name="docs__search",
        feature_type="tool",
        method="tools/call",
    )
    return owner


@pytest.mark.full
def test_a_plan_says_which_calls_a_rule_would_have_touched(called: User) -> None:
    touched: tuple[tuple[dict[str, Any], str], ...] = (
        ({"mode": "on"}, "The rule would have affected 1 call of 1 agent in the last 7 days."),
        ({"mode": "on", "servers": ["docs"], "gateway": "work"}, "The rule would have affected 1 call of 1 agent"),
        ({"mode": "on", "tools": ["other"]}, "The rule would have affected 0 calls of 0 agents"),
        ({"mode": "watch"}, ""),
        ({"mode": "on", "enabled": False}, ""),
    )
    for fields, told in touched:
        (change,) = plan(document.read({"gateway.yaml": rules_file("A", **fields)}), called).changes
        assert change.cuts.startswith(told)
        assert bool(change.cuts) == bool(told)


def test_a_plan_counts_the_calls_that_the_unchanged_rule_labelled_while_watching(called: User) -> None:
    small, large = "args.amount > 5", "args.amount > 500"
    applied(rules_file("A", when=small), called)
    seen = Call.objects.get()
    call(labels="would refuse: A", **{name: getattr(seen, name) for name in ("host_id", *OF_TOOL)})

    kept, changed = (
        plan(document.read({"gateway.yaml": rules_file("A", when=when, mode="on")}), called).changes[0].cuts
        for when in (small, large)
    )

    assert kept.startswith("The rule would have affected 1 call of 1 agent in the last 7 days. 1 call without")
    assert changed.endswith("is not known: 2 calls without complete recorded arguments cannot be judged.")


def test_a_plan_says_that_a_rule_does_not_refuse_any_more(called: User) -> None:
    applied(rules_file("A", mode="on"), called)

    cuts = [
        plan(document.read({"gateway.yaml": rules_file("A", **fields)}), called).changes[0].cuts
        for fields in ({"mode": "watch"}, {"enabled": False}, {"text": "Ask."}, {"tools": ["docs__*"]})
    ]

    assert cuts[:3] == ["From the next call on, this rule no longer refuses or holds calls."] * 2 + [""]
    assert cuts[3].startswith("The rule would have affected 1 call")


def test_the_workspace_has_all_settings_of_its_page() -> None:
    assert {field.name for field in WorkspaceKind.fields} == {*WorkspaceForm.base_fields}
