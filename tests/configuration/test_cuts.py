"""A plan says who loses access through a change, in the same words as the pages."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from accounts.models import Team, User
from capabilities import Capability
from configuration import document
from configuration.kinds import Act
from configuration.plan import NOT_COUNTED, plan
from configuration.words import as_text
from connections.impact import cuts
from connections.models import HostAtGateway
from gateways.models import Assignment, Feature, Gateway, ToolGrant, ToolSet
from hosts.models import Host
from servers.models import Server
from tests import make
from tests.calls import call

pytestmark = pytest.mark.django_db

WORK = "version: 1\ngateways:\n  - slug: work\n    name: work\n"


@pytest.fixture
def owner() -> User:
    """A person with every capability, and an agent of theirs that called a tool of `docs` on the gateway `work`."""
    owner = make.user(*Capability)
    server = make.server(slug="docs")
    gateway = make.gateway(server, slug="work")
    Feature.objects.learn(Assignment.objects.get(), [{"name": "search"}])
    link = make.connection(make.agent(by=owner, name="CI bot"), gateway, owner)
    of_call: dict[str, Any] = {
        "host_id": link.host_id,
        "gateway_id": gateway.pk,
        "server_id": server.pk,
        "user_id": owner.pk,
    }
    call(**of_call, feature_name="docs__search")
    return owner


def said(text: str, owner: User) -> str:
    """Plan a file with one change; return the plan's text about the access that this change ends."""
    (change,) = plan(document.read({"gateway.yaml": text}), owner).changes
    return change.cuts


CUTTING = (
    f"{WORK}    enabled: false\n",
    f"{WORK}    servers: []\n",
    f"{WORK}    servers: [{{server: docs, enabled: false}}]\n",
    f"{WORK}    servers: [{{server: docs, tool_policy: block_all}}]\n",
    f"{WORK}    servers: [{{server: docs, disabled_tools: [search]}}]\n",
    "version: 1\nservers: [{slug: docs, name: docs, url: 'https://docs.example.com/mcp', enabled: false}]\n",
    "version: 1\nagents: [{name: CI bot, enabled: false}]\n",
    "version: 1\nagents: [{name: CI bot, gateways: [{gateway: work, allowed: false}]}]\n",
)


def test_a_change_says_whom_it_cuts_off_in_the_words_of_the_page(owner: User) -> None:
    for text in CUTTING:
        cut = said(text, owner)
        assert cut.startswith("Cuts off 1 "), text
        assert "1 app or agent, 1 person" in cut
        assert "In the last 7 days 1 call of 1 " in cut
    assert said(CUTTING[0], owner) == cuts(Gateway.objects.get(), owner)
    assert said(CUTTING[1], owner) == cuts(Assignment.objects.get(), owner)
    assert said(f"{WORK}    hosts_allowed: listed\n", owner).startswith("Refuses CI bot: ")


def test_a_narrower_reach_says_what_came_from_outside(owner: User) -> None:
    text = (
        "version: 1\nteams: [{name: Sales}]\n"
        + WORK.removeprefix("version: 1\n")
        + "    reach: teams\n    teams: [Sales]\n"
    )

    changes = plan(document.read({"gateway.yaml": text}), owner).changes

    assert [change.title for change in changes] == ["team Sales", "gateway work"]
    assert "of the last 7 days" in changes[1].cuts or "In the last 7 days" in changes[1].cuts


def test_what_grants_and_lists_gave_is_counted(owner: User) -> None:
    gateway, host = Gateway.objects.get(), Host.objects.get()
    call(gateway_id=gateway.pk, user_id=owner.pk, feature_type="tool", feature_name="docs__drop")
    assert "1 call of 1 " in said(f"{WORK}    tools_given: granted\n", owner)
    dated, common = (
        ToolSet.objects.add(gateway=gateway, name=name, patterns=["*"], by=owner) for name in ("Dated", "Common")
    )
    team = Team.objects.create(name="Sales")
    ToolGrant.objects.give(dated, team=team, ends_at=timezone.now() + timedelta(days=1), by=owner)
    ToolGrant.objects.give(common, by=owner)
    kept = "tool_sets: [{name: Dated, patterns: ['*']}"

    narrower = f"{WORK}    {kept.replace('*', 'docs__*')}, {{name: Common, everyone: true}}]\n"
    assert said(narrower, owner) == ""
    gone = "The tools of this set are no longer given to everybody."
    made = plan(document.read({"gateway.yaml": f"{WORK}    {kept}]\n"}), owner)
    assert [(change.title, change.cuts) for change in made.changes if change.act is Act.REMOVE] == [
        ("tool set Common on gateway work", gone)
    ]
    gateway.edit(hosts_allowed="listed", by=owner)
    HostAtGateway.objects.at(gateway, host).allow(by=owner)
    assert said("version: 1\nagents: [{name: CI bot, gateways: []}]\n", owner).startswith("Cuts off 1 app or agent")


def test_what_there_is_no_time_for_is_not_counted(owner: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("configuration.plan.COUNTING_S", -1.0)
    gateways = f"{WORK}    enabled: false\n  - {{slug: new, name: new}}\n"
    text = f"{gateways}rules: [{{name: No drops, effect: refuse, mode: 'on'}}]\n"

    changes = plan(document.read({"gateway.yaml": text}), owner).changes

    assert {change.title: change.cuts for change in changes} == {
        "gateway work": NOT_COUNTED,
        "gateway new": "",
        "rule No drops": NOT_COUNTED,
    }


def test_the_text_of_a_plan_has_signs_values_and_a_digest(owner: User) -> None:
    made = plan(document.read({"gateway.yaml": f"{WORK}    description: For work\n    servers: []\n"}), owner)

    text = as_text(made)

    assert text.startswith(
        "gateway.yaml: 1 changed, 1 removed.\n\n~ gateway work\n    description: For work, was empty\n"
    )
    assert "- server docs on gateway work\n    Cuts off 1 app or agent, 1 person." in text
    assert text.endswith(f"Digest: {made.digest}\n")
    assert Server.objects.get().enabled
