"""Tool sets, agents and sinks in files; renames, sources and pruning."""

from typing import Any

import pytest

from accounts.models import Team, User, WorkspaceSettings
from auditlog.models import Event
from capabilities import Capability
from configuration import document
from configuration.apply import Lacking, StillDiffers, apply
from configuration.document import ConfigurationError
from configuration.export import export
from configuration.kinds import KINDS
from configuration.models import ManagedObject
from configuration.plan import Plan, plan
from configuration.words import as_text
from connections.models import HostAtGateway
from gateways.models import Assignment, Gateway, ToolGrant, ToolSet
from hosts.models import Host
from sinks.models import Sink
from sso.models import Provider
from tests import make

pytestmark = pytest.mark.django_db

EVERYTHING = """
version: 1
source: platform-team
teams:
  - name: Engineering
servers:
  - {slug: docs, name: Docs, url: 'https://93.184.216.34/mcp'}
gateways:
  - slug: work
    name: Work
    tools_given: granted
    servers:
      - {server: docs, tool_policy: selected, enabled_tools: [search]}
    tool_sets:
      - {name: Reading, patterns: ['docs__get_*'], effects: [read_only], tools: [docs__find], teams: [Engineering]}
      - {name: Common, patterns: [docs__search], everyone: true}
agents:
  - name: CI bot
    description: Runs tests
    gateways:
      - {gateway: work, allowed: true, tool_set: Reading}
  - {name: Old bot, enabled: false}
sinks:
  - {name: Output, kind: stdout, sends_payloads: true}
"""


@pytest.fixture
def owner() -> User:
    return make.user(*Capability)


def applied(text: str, owner: User, **more: Any) -> Plan:
    return apply(document.read({"gateway.yaml": text}), by=owner, **more)


def refusal(text: str, owner: User, **more: Any) -> str:
    with pytest.raises(ConfigurationError) as refused:
        applied(text, owner, **more)
    return str(refused.value)


@pytest.mark.full
def test_all_kinds_are_made_and_read_again(owner: User) -> None:
    applied(EVERYTHING, owner)

    text = export(owner)
    assert plan(document.read({"gateway.yaml": text}), owner).changes == []
    reading = ToolSet.objects.get(name="Reading")
    assert [grant.subject for grant in reading.grants.live()] == ["Engineering"]
    assert [feature.exposed_name for feature in reading.members.all()] == ["docs__find"]
    row = HostAtGateway.objects.get()
    assert (row.host.name, row.allowed, row.tool_set) == ("CI bot", True, reading)
    assert not Host.objects.get(name="Old bot").enabled
    assert Sink.objects.get().sends_payloads


def test_what_the_lists_of_an_object_lack_is_removed(owner: User) -> None:
    applied(EVERYTHING, owner)
    less = EVERYTHING[: EVERYTHING.index("    servers:\n")] + "    servers: []\n    tool_sets: []\n"
    less += "agents: [{name: CI bot, gateways: []}]\n"

    made = applied(less, owner)

    assert not Assignment.objects.live().exists()
    assert not ToolSet.objects.live().exists()
    assert not ToolGrant.objects.live().exists()
    assert not HostAtGateway.objects.exists()
    assert made.not_in_file == ["agent Old bot"]


def test_a_rename_keeps_what_belongs_to_the_object(owner: User) -> None:
    applied(EVERYTHING, owner)
    team, assignment = Team.objects.get(), Assignment.objects.get()
    team.users.add(owner)
    renamed = EVERYTHING.replace("  - name: Engineering\n", MOVED_TEAM).replace(
        "teams: [Engineering]", "teams: [Platform]"
    )
    renamed = renamed.replace("docs__find", "wiki__find").replace(
        "{server: docs,", "{server: docs, alias: wiki, moved: {from: docs, to: wiki},"
    )

    made = applied(renamed, owner)

    team.refresh_from_db()
    assignment.refresh_from_db()
    assert (team.name, [*team.users.all()], assignment.alias) == ("Platform", [owner], "wiki")
    titles = ["team Platform", "server wiki on gateway work", "tool set Reading on gateway work"]
    assert [change.title for change in made.changes] == titles
    assert not Event.objects.filter(action__in=("assignment.removed", "tool_set.updated")).exists()
    assert applied(renamed, owner).changes == []


def test_a_renamed_agent_keeps_its_block_and_its_limit(owner: User) -> None:
    applied(EVERYTHING, owner)
    row = HostAtGateway.objects.get()
    row.block(by=owner)
    work = "gateways: [{gateway: work}]"
    renamed = f"version: 1\nagents: [{{name: Builder, moved: {{from: CI bot, to: Builder}}, {work}}}]\n"

    made = applied(renamed, owner)

    kept = HostAtGateway.objects.get()
    assert [change.title for change in made.changes] == ["agent Builder"]
    assert (kept.host.name, kept.allowed, kept.tool_set) == ("Builder", False, row.tool_set)
    none_listed = "agents: [{name: Tester, moved: {from: Builder, to: Tester}, gateways: []}]"
    taken = applied(f"version: 1\n{none_listed}\n", owner)
    assert [change.act for change in taken.changes] == ["change", "remove"]
    assert not HostAtGateway.objects.exists()


MOVED_TEAM = "  - name: Platform\n    moved: {from: Engineering, to: Platform}\n"


@pytest.mark.full
def test_a_wrong_rename_says_what_to_write(owner: User) -> None:
    applied(EVERYTHING, owner)
    engineering = "- name: Engineering"

    for before, after, message in (
        ("slug: work", "slug: office\n    moved: {from: work, to: office}", "A slug never changes"),
        (engineering, "- name: Sales\n    moved: {from: Engineering, to: Salez}", "Write “to: Sales”."),
        (engineering, "- name: Sales\n    moved: {from: Support, to: Sales}", "There is no team Support."),
        (
            "{server: docs,",
            "{server: docs, alias: wiki,",
            "gateway.yaml:13:18: Server docs is on this gateway as docs. Write “moved: {from: docs, to: wiki}”",
        ),
    ):
        assert message in refusal(EVERYTHING.replace(before, after), owner)
    moved = EVERYTHING.replace("{server: docs,", "{server: docs, alias: wiki, moved: {from: docs, to: wiki},")
    with pytest.raises(StillDiffers, match="would still change: tool set Reading on gateway work"):
        applied(moved, owner)  # It has the old name elsewhere.
    assert Assignment.objects.get().alias == "docs"


@pytest.mark.full
def test_pruning_disables_objects_of_the_own_source_only(owner: User) -> None:
    by_hand = make.gateway(slug="by-hand", name="By hand")
    applied(EVERYTHING, owner)
    less = "version: 1\nsource: platform-team\ngateways: []\nagents: []\nteams: []\n"

    kept = applied(less, owner)
    pruned = applied(less, owner, prune=True, commit="1a2b3c")

    assert kept.changes == []
    assert [change.title for change in pruned.changes] == ["gateway work", "agent CI bot"]
    absent = "Not in the file, so not changed: team Engineering, gateway by-hand{}, agent Old bot.\n"
    assert absent.format(", gateway work, agent CI bot") in as_text(kept)
    assert absent.format("") in as_text(pruned)
    assert not Gateway.objects.get(slug="work").enabled
    assert Gateway.objects.get(slug="work").archived_at is None
    assert Gateway.objects.get(pk=by_hand.pk).enabled
    assert Team.objects.exists()
    assert applied(less, owner, prune=True).changes == []
    assert Event.objects.get(action="gateway.disabled").changes["file"] == "gateway.yaml, commit 1a2b3c"
    assert "Write “source: " in refusal("version: 1\ngateways: []\n", owner, prune=True)


@pytest.mark.full
def test_missing_permissions_for_a_kind_are_named_and_nothing_changes(owner: User) -> None:
    applied(EVERYTHING, owner)
    changing = {capability for kind in KINDS for capability in (kind.manages, kind.toggles)}
    person = make.user(*(set(Capability) - changing))
    before, events = export(owner), Event.objects.count()

    assert DIFFERENT.keys() == {kind.id for kind in KINDS}
    for kind in KINDS:
        with pytest.raises((Lacking, ConfigurationError)) as refused:  # Some lists may not even be seen.
            applied("version: 1\n" + DIFFERENT[kind.id], person)

        assert f"({kind.manages.slug})" in str(refused.value), kind.id
    assert (export(owner), Event.objects.count()) == (before, events)


GATEWAY = "gateways: [{slug: work, name: Work, "
DIFFERENT = {
    "workspace": "workspace: {calls_per_minute: 5}",
    "teams": "teams: [{name: Sales}]",
    "roles": "roles: [{name: Support}]",
    "servers": "servers: [{slug: docs, name: Documents, url: 'https://93.184.216.34/mcp'}]",
    "gateways": f"{GATEWAY}description: For work}}]",
    "gateways.servers": f"{GATEWAY}servers: []}}]",
    "gateways.tool_sets": f"{GATEWAY}tool_sets: []}}]",
    "agents": "agents: [{name: CI bot, description: Runs jobs}]",
    "agents.gateways": "agents: [{name: CI bot, gateways: []}]",
    "rules": "rules: [{name: No drops, effect: refuse}]",
    "sinks": "sinks: [{name: Output, kind: stdout, sends_calls: false}]",
    "organisation": "organisation: {name: Example}",
}


@pytest.mark.full
def test_sign_in_by_the_organisation_is_set_up_with_its_secret(owner: User) -> None:
    file = document.read({"gateway.yaml": SIGN_IN})

    apply(file, by=owner, secrets={"env:IDP": "s3cret of the client"})

    provider = Provider.load()
    assert (provider.issuer, provider.secret, provider.domains) == (ISSUER, "s3cret of the client", ["example.com"])
    assert [(rule.group, str(rule.role), str(rule.team)) for rule in provider.rules] == [
        ("dev", "Developer", "Engineering")
    ]
    assert plan(file, owner).changes == []
    assert plan(document.read({"gateway.yaml": export(owner)}), owner).changes == []
    elsewhere = refusal(SIGN_IN.replace(ISSUER, "https://93.184.216.35"), owner)
    assert "Set env:IDP: a new issuer needs a new client secret." in elsewhere
    assert Provider.load().issuer == ISSUER
    webhook = "version: 1\nsinks: [{name: SIEM, kind: webhook, address: 'https://93.184.216.34/in'}]\n"
    with pytest.raises(ConfigurationError, match="This kind of sink needs a secret"):
        plan(document.read({"gateway.yaml": webhook}), owner)


ISSUER = "https://93.184.216.34"
SIGN_IN = f"""
version: 1
teams: [{{name: Engineering}}]
roles: [{{name: Developer}}]
organisation:
  name: Example
  issuer: {ISSUER}
  client_id: gateway
  client_secret: env:IDP
  domains: [example.com]
  default_role: Developer
  rules: [{{group: dev, role: Developer, team: Engineering}}]
"""


def test_an_object_moves_to_another_file_once_its_file_no_longer_lists_it(owner: User) -> None:
    mine = "version: 1\nsource: mine\ngateways: [{slug: work, name: Work}]\nteams: [{name: Ops}]\n"
    theirs = "version: 1\nsource: theirs\ngateways: [{slug: work, name: Work}]\n"
    applied(mine, owner)

    assert refusal(theirs, owner) == (
        "gateway.yaml:3:12: gateway work has the source “mine”. Remove it from this file, or remove it "
        "from the file of that source first."
    )
    applied("version: 1\nsource: mine\ngateways: []\n", owner)
    assert applied(theirs, owner).claimed == ["gateway work"]

    assert source_of(Gateway.objects.get(slug="work")) == "theirs"
    assert source_of(Team.objects.get(name="Ops")) == "mine"  # Its list was not in the second file.


def test_a_gateway_moves_to_another_file_with_its_servers_and_tool_sets(owner: User) -> None:
    work = """
servers: [{slug: docs, name: Docs, url: 'https://93.184.216.34/mcp'}]
gateways:
  - {slug: work, name: Work, servers: [{server: docs}], tool_sets: [{name: Common, everyone: true}]}
"""
    applied(f"version: 1\nsource: mine{work}", owner)
    applied("version: 1\nsource: mine\nservers: []\ngateways: []\n", owner)

    applied(f"version: 1\nsource: theirs{work}", owner)

    assert {*ManagedObject.objects.values_list("source", flat=True)} == {"theirs"}
    assert ManagedObject.objects.count() == 4


def test_only_objects_that_the_person_may_manage_are_claimed(owner: User) -> None:
    make.gateway(slug="work", name="Work")
    toggler = make.user(Capability.GATEWAYS_TOGGLE, Capability.PEOPLE_MANAGE)

    plan = applied("version: 1\nsource: mine\ngateways: [{slug: work, name: Work}]\nteams: [{name: Ops}]\n", toggler)

    assert plan.claimed == []
    assert source_of(Gateway.objects.get(slug="work")) == ""
    assert source_of(Team.objects.get(name="Ops")) == "mine"


def source_of(row: Any) -> str:
    managed = ManagedObject.objects.of(row)
    return managed.source if managed else ""


def test_the_present_retention_revokes_a_shorter_one_that_waits(owner: User) -> None:
    applied("version: 1\nworkspace: {log_retention_days: 91}\n", owner)
    applied("version: 1\nworkspace: {log_retention_days: 60}\n", owner)

    applied("version: 1\nworkspace: {log_retention_days: 91}\n", owner)

    settings = WorkspaceSettings.load()
    assert (settings.log_retention_days, settings.shorter_retention_days) == (91, None)
