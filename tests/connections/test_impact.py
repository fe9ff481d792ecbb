"""The numbers of connections, people, apps and agents that disabling an object would cut off."""

import pytest

from capabilities import Capability
from connections.impact import impact_of
from connections.models import Connection
from gateways.models import Feature, IdentityScheme
from servers.models import Server
from tests import make
from tests.conftest import SignIn
from tests.connections.rows import HTMX, text

pytestmark = [pytest.mark.django_db, pytest.mark.full]


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
    return link


def test_each_layer_counts_what_goes_through_it(link: Connection) -> None:
    assigned = link.gateway.assignments.get()
    tool = Feature.objects.create(assignment=assigned, name="search", exposed_name="github__search")
    identity = link.identities.get().identity

    told = {
        type(thing).__name__: str(impact_of(thing))
        for thing in (link.host, link.gateway, link, assigned.server, assigned, tool, link.user, identity)
    }

    assert told == {
        "Host": "1 app or agent, 2 people, 1 credential",
        "Gateway": "1 app or agent, 2 people, 1 credential",
        "Connection": "1 app or agent, 1 person, 1 credential",
        "Server": "1 app or agent, 2 people, 1 credential",
        "Assignment": "1 app or agent, 2 people, 1 credential",
        "Feature": "1 app or agent, 2 people, 1 credential",
        "User": "1 app or agent, 1 person, 1 credential",
        "Identity": "1 app or agent, 1 person",
    }


def test_a_shared_identity_carries_all_of_its_gateways() -> None:
    ana, crm = make.user(), make.server(auth_type="bearer")
    shared = make.identity(crm)
    gateway = make.gateway()
    make.assignment(gateway, crm, identity_scheme=IdentityScheme.SHARED, shared_identity=shared)
    make.connection(make.agent(by=ana), gateway, ana)

    assert impact_of(shared).connections == 1
    assert {impact_of(thing).identities for thing in (crm, gateway, gateway.assignments.get())} == {1}


def test_people_who_may_not_see_connections_get_no_impact_of_several_servers(link: Connection, sign_in: SignIn) -> None:
    make.gateway(make.server(slug="docs"))
    picked = {"act": "disable", "pick": [str(server.pk) for server in Server.objects.all()]}
    seeing = make.user(Capability.SERVERS_TOGGLE, Capability.MCP_CONNECTIONS_READ)

    told = text(sign_in(seeing).post("/switch/servers/", picked, headers=HTMX))
    untold = text(sign_in(make.user(Capability.SERVERS_TOGGLE)).post("/switch/servers/", picked, headers=HTMX))

    assert "Cuts off 2 connections, 1 app or agent, 2 people." in told
    assert "Disable 2 servers" in untold
    assert "Cuts" not in untold
