"""A capability to change includes that to view. The role editor lists actions that need several capabilities."""

import pytest

from accounts.models import Role
from capabilities import Capability
from capabilities.catalogue import AUDITOR, BESIDE, DEVELOPER, including, with_included
from connections.models import Connection, ConnectionRefused
from gateways.models import Gateway
from tests import make
from tests.api.test_matrix import DOORS
from tests.house.test_page_matrix import PAGES
from tests.rest import Rest

pytestmark = pytest.mark.django_db


def test_what_takes_several_capabilities_is_named_beside_one_of_them() -> None:
    """The role editor names every set of capabilities that a page or an operation requires, and two more sets."""
    needed = {door.rule for door in DOORS if isinstance(door.rule, frozenset)}
    pages = [door for doors in PAGES.values() for door in doors]
    needed |= {frozenset().union(*page.wanted) for page in pages if all(len(one) == 1 for one in page.wanted)}
    together = {least(one) for one in needed if len(least(one)) > 1}
    named = {least(frozenset({one, *others})) for one, beside in BESIDE.items() for _, others in beside}

    assert together - named == set()
    # A part of a call's page, and of what the form of a rule takes.
    parts = ((Capability.LOGS_PAYLOADS, Capability.LOGS_READ), (Capability.LOGS_PAYLOADS, Capability.RULES_MANAGE))
    assert named - together == {*map(frozenset, parts)}


def least(capabilities: frozenset[Capability]) -> frozenset[Capability]:
    """Return `capabilities` without those that another of them includes."""
    return frozenset(one for one in capabilities if not (including([one]) - {one}) & capabilities)


def test_looking_is_not_using() -> None:
    gateway = make.gateway(reach="teams")
    viewer, user = make.user(Capability.GATEWAYS_READ), make.user(Capability.GATEWAYS_USE)

    assert gateway in Gateway.objects.visible_to(viewer)
    assert gateway not in Gateway.objects.reachable_by(viewer)
    assert gateway in Gateway.objects.reachable_by(user)


@pytest.mark.full
def test_a_role_that_only_looks_ends_what_its_people_used_before() -> None:
    gateway, ann = make.gateway(), make.user()
    connection = make.connection(make.agent(by=ann), gateway, ann)
    assert connection.refused_for() == ""

    Role.objects.make_built_in()
    ann.give_role(Role.objects.get(name=AUDITOR.name), by=None)

    row = Connection.objects.with_reach().get(pk=connection.pk)
    assert row.refused_for() == "gateway_not_reachable"
    assert Connection.objects.get(pk=connection.pk).refused_for() == "gateway_not_reachable"
    assert not Gateway.objects.reachable_by(ann).exists()
    with pytest.raises(ConnectionRefused, match="only look"):
        Connection.objects.open(host=make.agent(by=ann), gateway=gateway, user=ann, identities={}, by=ann)


def test_the_auditor_holds_all_that_only_views_but_payloads() -> None:
    views = {one for one in Capability if one.slug.endswith(":read")}

    assert AUDITOR.capabilities == views
    assert with_included(AUDITOR.capabilities) == views


@pytest.mark.full
def test_a_developer_makes_own_agents_and_tokens_and_opens_them_to_nobody() -> None:
    dev = make.user(*DEVELOPER.capabilities)
    gateway, rest = make.gateway(), Rest.of(dev)

    made = rest.post("/hosts", {"name": "My bot"})
    token = rest.post("/tokens", {"host_id": made.json()["id"], "gateway_id": str(gateway.pk), "name": "mine"})
    opened = rest.post("/hosts", {"name": "Everybody's bot", "allow_enrolment": True})
    renamed = rest.patch(f"/hosts/{made.json()['id']}", {"name": "Ours"})

    assert (made.status_code, token.status_code, opened.status_code, renamed.status_code) == (201, 201, 403, 403)
    assert (token.json()["user_email"], opened.json()["capability"]) == (dev.email, "api-tokens:manage")
