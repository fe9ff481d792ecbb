"""A page asks before the first change by hand of an object that a configuration file governs."""

import re
from html import unescape
from typing import Any

import pytest
from django.test import Client

from accounts.models import Role, Team, User, WorkspaceSettings
from auditlog.models import Event
from capabilities import Capability
from configuration import document
from configuration.apply import apply
from configuration.by_hand import changed_by_hand
from configuration.models import ManagedObject
from connections.models import HostAtGateway
from gateways.models import Feature, Gateway, ToolSet
from hosts.models import Host
from rules.models import Rule
from servers.models import Server
from tests import make
from tests.accounts.again import confirmed
from tests.conftest import SignIn
from tests.rest import Rest

pytestmark = pytest.mark.django_db

FILE = """
version: 1
source: platform-team
teams: [{name: Sales}]
servers: [{slug: docs, name: Docs, url: 'https://93.184.216.34/mcp'}]
gateways:
  - {slug: work, name: Work, servers: [{server: docs, enabled_tools: [search]}], tool_sets: [{name: Reading}]}
agents: [{name: CI bot}]
roles: [{name: Support, capabilities: ['logs:read']}]
rules: [{name: No drops, effect: refuse, gateway: work}]
"""
DISABLE = "/gateways/work/disable/"


@pytest.fixture
def owner() -> User:
    return make.user(*Capability)


@pytest.fixture
def browser(owner: User, sign_in: SignIn) -> Client:
    apply_file(owner)
    return confirmed(sign_in(owner))


def apply_file(owner: User) -> None:
    apply(document.read({"gateway.yaml": FILE}), by=owner)


def asks(response: Any) -> bool:
    return "Change by hand</" in response.content.decode()


def confirm(browser: Client, asked: Any) -> Any:
    """Press *Change by hand*."""
    found = re.search(r'<dialog class="dialog" id="confirm".*?</dialog>', asked.content.decode(), re.DOTALL)
    assert found
    text = found[0]
    action = re.search(r'<form method="post" action="([^"]*)"', text)
    assert action, text
    hidden = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', text)
    return browser.post(unescape(action[1]), {name: unescape(value) for name, value in hidden})


@pytest.mark.full
def test_the_first_change_is_made_when_the_question_is_answered(browser: Client, owner: User) -> None:
    before = Event.objects.count()

    asked = browser.post(DISABLE)

    assert "“Work” is managed by gateway.yaml (platform-team)." in asked.content.decode()
    assert asks(asked)
    assert Gateway.objects.get().enabled
    assert Event.objects.count() == before
    assert confirm(browser, asked).status_code == 302
    assert not Gateway.objects.get().enabled
    assert Event.objects.latest("pk").action == "gateway.disabled"

    assert not asks(browser.post("/gateways/work/enable/"))
    assert Gateway.objects.get().enabled

    apply_file(owner)
    assert asks(browser.post(DISABLE))


def test_every_kind_of_object_asks(browser: Client) -> None:
    tool, rule = Feature.objects.get(), Rule.objects.get()
    places = {
        f"/tools/{tool.pk}/disable/": "Docs on Work",
        "/servers/docs/disable/": "Docs",
        f"/hosts/{Host.objects.get().pk}/disable/": "CI bot",
        f"/rules/{rule.pk}/disable/": "No drops",
        f"/rules/{rule.pk}/turn-on/": "No drops",
        f"/people/roles/{Role.objects.get(name='Support').pk}/delete/": "Support",
        f"/people/teams/{Team.objects.get().pk}/delete/": "Sales",
        f"/tool-sets/{ToolSet.objects.get().pk}/give/": "Reading",
        f"/tool-sets/{ToolSet.objects.get().pk}/archive/": "Reading",
        "/gateways/work/rename/": "Work",
    }
    for place, name in places.items():
        asked = browser.post(place, {"name": "Another", "to": "everyone"})

        assert asks(asked), place
        assert f"“{name}" in asked.content.decode()
    assert Gateway.objects.get().name == "Work"
    assert Server.objects.get().enabled


@pytest.mark.full
def test_a_list_asks_too_and_changes_all_selected_objects(browser: Client) -> None:
    by_hand, governed = make.gateway(), Gateway.objects.get(slug="work")
    data = {"act": "disable", "sure": "1", "pick": [str(by_hand.pk), str(governed.pk)]}

    asked = browser.post("/switch/gateways/", data)
    confirm(browser, asked)

    assert asks(asked)
    assert not Gateway.objects.filter(enabled=True).exists()


@pytest.mark.full
def test_htmx_gets_the_question_as_a_dialog(browser: Client) -> None:
    asked = browser.post(f"{DISABLE}?on=page", headers={"HX-Request": "true", "HX-Target": "gateway-head"})

    assert (asked["HX-Retarget"], asked["HX-Reswap"]) == ("#dialog", "innerHTML")
    assert "<html" not in asked.content.decode()
    assert confirm(browser, asked).status_code == 302
    assert not Gateway.objects.get().enabled


def test_nobody_is_asked_about_other_objects_members_and_emergencies(browser: Client, owner: User) -> None:
    others, team = make.gateway(), Team.objects.get()

    browser.post(f"/gateways/{others.slug}/disable/")
    browser.post(f"/people/teams/{team.pk}/add/", {"emails": owner.email})
    browser.post(f"/incident/servers/{Server.objects.get().pk}/stop/")

    assert not Gateway.objects.get(pk=others.pk).enabled
    assert team.users.get() == owner
    assert not Server.objects.get().enabled


def test_rest_does_not_ask_and_the_page_shows_the_change(browser: Client, owner: User) -> None:
    Rest.of(owner).post("/gateways/work/disable")

    page = browser.get("/gateways/work/").content.decode()

    assert not Gateway.objects.get().enabled
    assert f"by {owner.email}, after <b>gateway.yaml</b> (platform-team) was applied" in page
    assert '<a class="button" data-size="small" href="/gateways/work/yaml/">Copy as YAML</a>' in page


def test_the_page_of_a_change_by_hand_names_its_person_to_who_sees_admin_events(owner: User, sign_in: SignIn) -> None:
    apply(document.read({"gateway.yaml": "version: 1\nsource: platform-team\nworkspace: {zone: UTC}\n"}), by=owner)
    WorkspaceSettings.edit(by=owner, log_retention_days=30)
    viewer = make.user(Capability.WORKSPACE_READ)

    shown, hidden = (sign_in(one).get("/settings/workspace").content.decode() for one in (owner, viewer))

    assert f"by {owner.email}, after <b>gateway.yaml</b>" in shown
    assert "Changed by hand" in hidden
    assert owner.email not in hidden


@pytest.mark.full
def test_a_change_of_a_tool_is_shown_until_the_file_is_applied(browser: Client, owner: User) -> None:
    gateway, tool = Gateway.objects.get(), Feature.objects.get()
    tool.disable(by=owner)

    changed = changed_by_hand(gateway, managed(gateway))

    assert changed is not None
    assert changed.action == "feature.disabled"
    apply_file(owner)
    assert changed_by_hand(gateway, managed(gateway)) is None
    bot = Host.objects.get()
    HostAtGateway.objects.at(gateway, bot).block(by=owner)
    assert changed_by_hand(bot, managed(bot)) is not None


def managed(gateway: Gateway | Host) -> ManagedObject:
    found = ManagedObject.objects.of(gateway)
    assert found
    return found
