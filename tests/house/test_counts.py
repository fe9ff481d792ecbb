"""Every count and state of connections on every page, for each role and single capability, against the database."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.db import transaction
from django.test import Client

from accounts.models import Team, User
from capabilities import Capability
from capabilities.catalogue import BUILT_IN, SEES_CONNECTIONS
from connections.models import Connection
from gateways.models import Gateway, Reach
from hosts.models import Host
from tests import make
from tests.sampling import one_in

pytestmark = pytest.mark.django_db

STATES = ("active", "blocked", "disabled", "expired", "revoked")
VIEWERS = [*(role.name for role in BUILT_IN), *Capability]


@dataclass
class World:
    """Connections of one agent, one in each state and one that lacks an identity, and what they are for."""

    host: Host
    off: Host
    gateway: Gateway
    closed: Gateway
    asking: Gateway
    states: dict[str, str]

    def seen_by(self, viewer: User, **of: Any) -> list[str]:
        """The connections that `viewer` is shown, by id."""
        rows = Connection.objects.filter(**of)
        if not any(map(viewer.has_perm, SEES_CONNECTIONS)):
            rows = rows.filter(user=viewer)
        return sorted(str(row.pk) for row in rows)


@pytest.fixture(scope="module")
def world(django_db_setup: None, django_db_blocker: Any) -> Iterator[World]:
    with django_db_blocker.unblock(), transaction.atomic():
        yield built()
        transaction.set_rollback(True)


def built() -> World:
    boss = make.user(*Capability)
    team = Team.objects.create(name="Platform")
    gateway = make.gateway(make.server())
    closed = make.gateway(reach=Reach.TEAMS, teams=[team])
    asking = make.gateway()
    make.assignment(asking, make.server(auth_type="bearer"), identity_scheme="per_user")
    host, off = make.agent(by=boss), make.agent(by=boss)
    states: dict[str, str] = {}

    def connect(state: str, host: Host, gateway: Gateway, user: User | None = None) -> Connection:
        connection = make.connection(host, gateway, user or make.user())
        if state != "expired":
            make.token(connection)
        states[str(connection.pk)] = state
        return connection

    connect("active", host, gateway)
    connect("active", host, closed, make.user(Capability.GATEWAYS_READ))
    connect("active", host, asking)
    connect("expired", host, gateway)
    connect("disabled", host, gateway).disable(by=boss)
    connect("revoked", host, gateway).revoke(by=boss)
    left = make.user()
    left.teams.add(team)
    connect("blocked", host, closed, left)
    left.teams.clear()
    gone = make.user()
    connect("blocked", host, gateway, gone)
    User.objects.filter(pk=gone.pk).update(is_active=False)
    connect("blocked", off, gateway)
    off.disable(by=boss)
    return World(host, off, gateway, closed, asking, states)


def viewer_of(who: str | Capability) -> User:
    if isinstance(who, Capability):
        return make.user(who)
    return make.user(*next(role.capabilities for role in BUILT_IN if role.name == who))


def counted(page: str, pattern: str) -> str:
    found = re.search(pattern, page, re.DOTALL)
    assert found is not None, pattern
    return re.sub(r"<[^>]+>", "", found[1]).strip()


def said(number: int, viewer: User) -> str:
    if any(map(viewer.has_perm, SEES_CONNECTIONS)):
        return str(number)
    return f"{number} of yours" if number else "none of yours"


def states_in(page: str) -> dict[str, str]:
    """The state of each connection's row or card, which its mark and its words agree on."""
    rows = re.findall(r'id="connection-([0-9a-f-]{36})"(.*?)(?=id="connection-|</table>|</section>)', page, re.DOTALL)
    found = {}
    for pk, row in rows:
        found[pk] = counted(row, r'data-state="(\w+)"')
        told = re.search(
            r'data-label="Status"><span class="badge" data-state="(\w+)">([^<]+)</span>(&nbsp;<small>[^<]+)?', row
        )
        assert told is not None, pk
        badge, state, why = told.groups("")
        if badge == "attention":
            assert (found[pk], state, why) == ("active", "needs attention", "&nbsp;<small>active")
        else:
            assert (badge, state in {found[pk], "no active token"}) == (found[pk], True)
            assert (badge == "blocked") is bool(why)
    return found


@pytest.mark.parametrize("who", one_in(7, VIEWERS))
def test_what_pages_count_and_say_is_what_the_database_holds(who: str | Capability, world: World) -> None:
    viewer = viewer_of(who)
    own = make.connection(world.host, world.gateway, viewer)
    make.token(own)
    states = world.states | {str(own.pk): "active"}
    client = Client()
    client.force_login(viewer)

    def page(path: str) -> str:
        response = client.get(path)
        assert response.status_code == 200, path
        return str(response.content.decode())

    for gateway in (world.gateway, world.closed, world.asking):
        if not Gateway.objects.visible_to(viewer).filter(pk=gateway.pk).exists():
            continue
        rows = world.seen_by(viewer, gateway=gateway)
        live = world.seen_by(viewer, gateway=gateway, revoked_at=None)
        tab = page(f"/gateways/{gateway.slug}/connections/")
        assert states_in(tab) == {pk: states[pk] for pk in rows}
        assert counted(tab, r'id="connection-count">(.*?)</span>') == said(len(rows), viewer)
        listed = page("/gateways/").partition(f'id="gateway-{gateway.slug}"')[2]
        assert counted(listed, r'data-label="Connections" class="number">(.*?)</td>') == said(len(live), viewer)
    if viewer.has_perm(Capability.HOSTS_READ):
        for host in (world.host, world.off):
            rows = world.seen_by(viewer, host=host)
            live = world.seen_by(viewer, host=host, revoked_at=None)
            tab = page(f"/hosts/{host.pk}/connections/")
            assert states_in(tab) == {pk: states[pk] for pk in rows}
            assert counted(tab, r'id="connection-count">(.*?)</span>') == said(len(rows), viewer)
            listed = page("/hosts/").partition(f'id="host-{host.pk}"')[2]
            assert counted(listed, r'data-label="Connections" class="number">(.*?)</td>') == said(len(live), viewer)
    if viewer.has_perm(Capability.MCP_CONNECTIONS_READ):
        everything = page("/settings/mcp-connections?type=all")
        assert states_in(everything) == states
        of = {state: sum(one == state for one in states.values()) for state in STATES}
        told = f"{len(states)} connections, {of['active']} active, {of['blocked']} blocked"
        assert told in everything
        tile = counted(page("/"), r"<span>Connections</span>(.*?)</a>")
        assert tile == f"{len(states) - of['revoked']} {of['active']} active, {of['blocked']} blocked"
    mine = page("/settings/identities")
    assert states_in(mine) == {str(own.pk): "active"}
    assert counted(page("/settings/api-tokens"), r'(<span id="count-of-active">.*?</span>)') == "1"


@pytest.mark.parametrize("state", STATES)
def test_the_filter_of_a_state_finds_the_rows_in_it(state: str, world: World) -> None:
    client = Client()
    client.force_login(make.user(Capability.MCP_CONNECTIONS_READ))

    page = client.get(f"/settings/mcp-connections?type=all&status={state}").content.decode()
    told = client.get(f"/api/connections?status={state}").json()["results"]

    expected = {pk: one for pk, one in world.states.items() if one == state}
    assert states_in(page) == expected
    assert {row["id"]: row["status"] for row in told} == expected
    assert ("needs attention" in page) is (state == "active")
