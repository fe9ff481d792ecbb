"""The impact that the confirmation of a switch states."""

from typing import Any
from uuid import uuid4

import pytest
from django.utils import timezone

from accounts.models import User
from auditlog.models import Call
from capabilities import Capability
from connections.impact import NothingGoesThrough, impact_of
from connections.models import Connection, ConnectionAlreadyRevoked, StillEnabled
from gateways.models import Assignment, Feature, IdentityScheme, ServerStillEnabled
from servers.models import Server
from tests import make
from tests.conftest import SignIn
from tests.connections.rows import HTMX, text

pytestmark = pytest.mark.django_db


def called(**ids: Any) -> None:
    Call.partitions.make_ahead()
    Call.objects.create(
        uid=uuid4(),
        created_at=timezone.now(),
        correlation_id=uuid4(),
        method="tools/call",
        outcome="ok",
        http_status=200,
        duration_ms=1,
        **ids,
    )


@pytest.fixture
def link() -> Connection:
    ana = make.user()
    github = make.server(auth_type="bearer")
    gateway = make.gateway()
    make.assignment(gateway, github, identity_scheme=IdentityScheme.PER_USER)
    link = make.connection(make.agent(by=ana), gateway, ana, [make.identity(github, ana)])
    other = make.user()
    make.connection(link.host, gateway, other)
    make.connection(make.agent(by=ana), make.gateway(), ana).revoke(by=ana)
    called(
        host_id=link.host_id,
        gateway_id=gateway.pk,
        connection_id=link.pk,
        user_id=ana.pk,
        server_id=github.pk,
        identity_id=link.identities.get().identity_id,
        feature_name="github__search",
    )
    called(host_id=link.host_id, gateway_id=gateway.pk, user_id=other.pk)
    return link


@pytest.mark.full
def test_each_layer_counts_what_goes_through_it(link: Connection) -> None:
    assigned = link.gateway.assignments.get()
    tool = Feature.objects.create(assignment=assigned, name="search", exposed_name="github__search")

    told = {
        type(thing).__name__: str(impact_of(thing))
        for thing in (link.host, link.gateway, link, assigned.server, assigned, tool, link.user)
    }

    assert told == {
        "Host": "1 app or agent, 2 people, 1 credential",
        "Gateway": "1 app or agent, 2 people, 1 credential",
        "Connection": "1 app or agent, 1 person, 1 credential",
        "Server": "1 app or agent, 2 people, 1 credential",
        "Assignment": "1 app or agent, 2 people, 1 credential",
        "Feature": "1 app or agent, 2 people, 1 credential",
        "User": "1 app or agent, 1 person, 1 credential",
    }


@pytest.mark.full
def test_an_own_identity_carries_its_own_users_connections_only(link: Connection) -> None:
    identity = link.identities.get().identity

    assert str(impact_of(identity)) == "1 app or agent, 1 person"


@pytest.mark.full
def test_a_shared_identity_carries_all_of_its_gateways() -> None:
    ana, crm = make.user(), make.server(auth_type="bearer")
    shared = make.identity(crm)
    gateway = make.gateway()
    make.assignment(gateway, crm, identity_scheme=IdentityScheme.SHARED, shared_identity=shared)
    make.connection(make.agent(by=ana), gateway, ana)

    assert impact_of(shared).connections == 1
    assert {impact_of(thing).identities for thing in (crm, gateway, gateway.assignments.get())} == {1}


@pytest.mark.full
def test_people_who_may_not_see_connections_get_no_impact_of_several_servers(link: Connection, sign_in: SignIn) -> None:
    make.gateway(make.server(slug="docs"))
    picked = {"act": "disable", "pick": [str(server.pk) for server in Server.objects.all()]}
    seeing = make.user(Capability.SERVERS_TOGGLE, Capability.MCP_CONNECTIONS_READ)

    told = text(sign_in(seeing).post("/switch/servers/", picked, headers=HTMX))
    untold = text(sign_in(make.user(Capability.SERVERS_TOGGLE)).post("/switch/servers/", picked, headers=HTMX))

    assert "Cuts off 2 connections, 1 app or agent, 2 people." in told
    assert "Disable 2 servers" in untold
    assert "Cuts" not in untold


def test_a_thing_without_a_switch_is_refused() -> None:
    with pytest.raises(NothingGoesThrough, match="a Role"):
        impact_of(make.role())


@pytest.mark.full
def test_archiving_a_host_needs_it_disabled_and_ends_its_connections(link: Connection) -> None:
    with pytest.raises(StillEnabled):
        Connection.objects.archive_host(link.host, by=link.user)

    link.host.disable(by=link.user)
    Connection.objects.archive_host(link.host, by=link.user)

    assert not Connection.objects.live().filter(host=link.host).exists()
    assert {c.revoke_reason for c in Connection.objects.filter(host=link.host)} == {"archived"}


@pytest.mark.full
def test_archiving_a_gateway_ends_its_connections(link: Connection) -> None:
    link.gateway.disable(by=link.user)
    Connection.objects.archive_gateway(link.gateway, by=link.user)

    assert not Connection.objects.live().filter(gateway=link.gateway).exists()


def test_archiving_a_server_takes_it_off_every_gateway(link: Connection) -> None:
    server = link.gateway.assignments.get().server
    with pytest.raises(ServerStillEnabled):
        Assignment.objects.archive_server(server, by=link.user)

    server.disable(by=link.user)
    Assignment.objects.archive_server(server, by=link.user)

    assert not link.gateway.assignments.live().exists()
    assert not type(server).objects.live().filter(pk=server.pk).exists()


@pytest.mark.full
def test_cutting_a_person_off_deactivates_and_revokes_everything(link: Connection) -> None:
    chief = make.user(Capability.PEOPLE_MANAGE)

    assert Connection.objects.cut_off(link.user, by=chief) == 1

    link.refresh_from_db()
    assert link.revoke_reason == "user_deactivated"
    assert not User.objects.get(pk=link.user_id).is_active
    with pytest.raises(ConnectionAlreadyRevoked):
        link.revoke(by=chief)
