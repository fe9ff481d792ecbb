"""Archiving gateways and servers; archiving hosts is tested in tests/hosts/test_views.py."""

import pytest

from accounts.models import User
from capabilities import Capability
from connections.models import Connection
from gateways.models import Gateway
from tests import make
from tests.conftest import SignIn
from tests.connections.rows import text

pytestmark = pytest.mark.django_db


@pytest.fixture
def link(ann: User) -> Connection:
    gateway = make.gateway(make.server(name="Docs", slug="docs"), name="Work", slug="work")
    return make.connection(make.agent(by=ann, name="CI bot"), gateway, ann)


@pytest.mark.full
def test_a_gateway_names_the_connections_it_ends_and_ends_them(ana: User, link: Connection, sign_in: SignIn) -> None:
    link.gateway.disable(by=ana)

    asked = text(sign_in(ana).get("/gateways/work/archive/"))
    done = sign_in(ana).post("/gateways/work/archive/", {"typed": " work "}, follow=True)

    assert "Archive &quot;Work&quot;? It is removed from the list. This cannot be undone." in asked
    assert "These connections are revoked: ann@example.com with CI bot. Its URL is never used again." in asked
    assert done.redirect_chain == [("/gateways/", 302)]
    link.refresh_from_db()
    assert link.revoke_reason == "archived"
    assert not Gateway.objects.live().exists()


@pytest.mark.full
def test_a_gateway_names_the_first_connections_it_ends_and_counts_the_others(
    ana: User, ann: User, link: Connection, sign_in: SignIn
) -> None:
    for number in range(6):
        make.connection(make.agent(by=ann, name=f"Bot {number}"), link.gateway, ann)
    link.gateway.disable(by=ana)

    asked = text(sign_in(ana).get("/gateways/work/archive/"))

    assert "ann@example.com with Bot 5, ann@example.com with Bot 4" in asked
    assert "ann@example.com with Bot 1 and 2 more." in asked


def test_a_server_names_the_gateways_it_leaves_and_leaves_them(ana: User, link: Connection, sign_in: SignIn) -> None:
    server = link.gateway.assignments.get().server
    server.disable(by=ana)

    asked = text(sign_in(ana).get("/servers/docs/archive/"))
    done = sign_in(ana).post("/servers/docs/archive/", {"typed": "Docs"}, follow=True)

    assert "It is removed from Work. Connections are not changed." in asked
    assert done.redirect_chain == [("/servers/", 302)]
    link.refresh_from_db()
    assert link.is_live
    assert not link.gateway.assignments.live().exists()


@pytest.mark.parametrize("path", ["/gateways/work/archive/", "/servers/docs/archive/"])
def test_only_what_is_disabled_is_archived(path: str, ana: User, link: Connection, sign_in: SignIn) -> None:
    client = sign_in(ana)

    done = client.post(path, follow=True)

    assert "Disable it first" in text(done)
    assert Gateway.objects.live().exists()
    assert link.gateway.assignments.live().exists()
    assert "first" in text(client.get(path.removesuffix("archive/")))  # The page explains why not.


@pytest.mark.full
@pytest.mark.parametrize(
    ("path", "lacking"),
    [
        ("/gateways/work/archive/", Capability.GATEWAYS_MANAGE),
        ("/gateways/work/archive/", Capability.MCP_CONNECTIONS_REVOKE),
        ("/servers/docs/archive/", Capability.SERVERS_MANAGE),
    ],
)
@pytest.mark.parametrize("method", ["get", "post"])
def test_each_takes_what_it_takes(
    method: str, path: str, lacking: Capability, link: Connection, sign_in: SignIn
) -> None:
    link.gateway.disable(by=link.user)
    link.gateway.assignments.get().server.disable(by=link.user)

    answer = getattr(sign_in(make.user(*set(Capability) - {lacking})), method)(path)

    assert answer.status_code == 403
    link.refresh_from_db()
    assert link.is_live
