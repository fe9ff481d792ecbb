"""The numbers in the navigation count the objects that wait for the viewer, and that the viewer may see and act on."""

import re
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from capabilities import Capability
from gateways.models import Feature, Gateway, Reach
from hosts.models import Host
from servers.models import Health
from tests import make
from tests.conftest import SignIn

pytestmark = [pytest.mark.django_db, pytest.mark.full]

HTMX = {"HX-Request": "true"}


def rail(page: Any) -> dict[str, str]:
    """Return the numbers in the navigation with the hidden text that explains each."""
    nav = page.content.decode().split('id="rail"')[1].split("</nav>")[0]
    found = re.findall(
        r'data-count="rail\.(\w+)"><span class="dot"[^>]*></span>(\d+)<span class="visually-hidden"> ([^<]+)', nav
    )
    return {kind: f"{number} {words}" for kind, number, words in found}


def waiting(gateway: Gateway, name: str) -> Feature:
    assigned = gateway.assignments.first() or make.assignment(gateway, make.server())
    made = Feature.objects.create(assignment=assigned, kind="tool", name=name, exposed_name=name, state="held")
    Feature.objects.filter(pk=made.pk).update(offered="{}", offered_hash="x")
    return made


@pytest.fixture
def world() -> None:
    make.app("Asks", needs_approval=True)
    make.app("Asks too", needs_approval=True)
    make.app("Works")
    waiting(make.gateway(name="Open"), "search")
    waiting(make.gateway(name="Teams only", reach=Reach.TEAMS), "find")
    make.server(name="Down").note_health(Health.DOWN, "connect timeout")
    off = make.server(name="Down and off")
    off.note_health(Health.DOWN, "connect timeout")
    off.disable(by=None)


def test_the_rail_counts_what_waits_for_the_reader_until_it_is_decided(world: None, sign_in: SignIn) -> None:
    client = sign_in(boss := make.user(*Capability))
    seen = {
        "apps": "2 waiting for approval",
        "tool": "2 with a definition that waits for a decision",
        "server": "1 down",
    }
    assert rail(client.get("/people/capabilities/")) == seen

    for app in Host.objects.filter(needs_approval=True):
        app.approve(by=boss)
    assert rail(client.get("/people/capabilities/")).keys() == {"tool", "server"}


def test_people_who_cannot_act_see_no_count(world: None, sign_in: SignIn, subtests: pytest.Subtests) -> None:
    for held, counted in (
        ((), set()),
        ((Capability.HOSTS_READ, Capability.GATEWAYS_READ, Capability.IDENTITIES_MANAGE), set()),
        ((Capability.HOSTS_TOGGLE,), {"apps"}),
        ((Capability.GATEWAYS_MANAGE,), {"tool"}),
        ((Capability.SERVERS_TOGGLE,), {"server"}),
    ):
        with subtests.test(", ".join(held)):
            assert rail(sign_in(make.user(*held)).get("/people/capabilities/")).keys() == counted


def statements(client: Client, path: str, **headers: str) -> list[str]:
    with CaptureQueriesContext(
        connection,
    ) as captured:
        assert client.get(path, headers=headers).status_code == 200
    return [one["sql"] for one in captured if "waiting_kind" in one["sql"]]


def test_one_statement_counts_all_and_fragments_ask_nothing(world: None, sign_in: SignIn) -> None:
    boss, member = sign_in(make.user(*Capability)), sign_in(make.user())

    assert len(statements(boss, "/hosts/")) == 1
    assert statements(boss, "/hosts/", **HTMX) == []
    assert statements(member, "/settings/profile") == []
