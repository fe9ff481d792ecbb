"""Archiving gateways, servers and hosts."""

import pytest

from accounts.models import User
from connections.models import Connection
from gateways.models import Gateway
from hosts.models import Host
from tests import make
from tests.conftest import SignIn
from tests.connections.rows import text

pytestmark = pytest.mark.django_db


@pytest.fixture
def link(ann: User) -> Connection:
    gateway = make.gateway(make.server(name="Docs", slug="docs"), name="Work", slug="work")
    return make.connection(make.agent(by=ann, name="CI bot"), gateway, ann)


@pytest.mark.full
def test_a_gateway_names_the_first_connections_it_ends_and_ends_them_all_once_it_is_disabled(
    ana: User, ann: User, link: Connection, sign_in: SignIn
) -> None:
    for number in range(6):
        make.connection(make.agent(by=ann, name=f"Bot {number}"), link.gateway, ann)
    client, path = sign_in(ana), "/gateways/work/archive/"
    assert "Disable it first" in text(client.post(path, follow=True))
    assert Gateway.objects.live().exists()
    assert "first" in text(client.get("/gateways/work/")), "the page explains why not"
    link.gateway.disable(by=ana)

    asked = text(client.get(path))
    done = client.post(path, {"typed": " work "}, follow=True)

    assert "Archive &quot;Work&quot;? It is removed from the list. This cannot be undone." in asked
    assert "Archiving revokes these connections: ann@example.com with Bot 5, ann@example.com with Bot 4" in asked
    assert "ann@example.com with Bot 1 and 2 more. The URL of the gateway will never be used again." in asked
    assert done.redirect_chain == [("/gateways/", 302)]
    assert {one.revoke_reason for one in Connection.objects.all()} == {"archived"}
    assert not Gateway.objects.live().exists()


def test_a_server_names_the_gateways_it_leaves_and_leaves_them_once_it_is_disabled(
    ana: User, link: Connection, sign_in: SignIn
) -> None:
    server, client = link.gateway.assignments.get().server, sign_in(ana)
    assert "Disable it first" in text(client.post("/servers/docs/archive/", follow=True))
    assert link.gateway.assignments.live().exists()
    server.disable(by=ana)

    asked = text(client.get("/servers/docs/archive/"))
    done = client.post("/servers/docs/archive/", {"typed": "Docs"}, follow=True)

    assert "It is removed from Work. Connections are not changed." in asked
    assert done.redirect_chain == [("/servers/", 302)]
    link.refresh_from_db()
    assert link.is_live
    assert not link.gateway.assignments.live().exists()
    assert not type(server).objects.live().exists()


def test_a_host_names_the_connections_it_ends_and_is_gone_once_it_is_disabled(
    ana: User, link: Connection, sign_in: SignIn
) -> None:
    client, page = sign_in(ana), f"/hosts/{link.host_id}/"
    assert "Disable it first" in text(client.post(f"{page}archive/", follow=True))
    link.host.disable(by=ana)

    asked = text(client.get(f"{page}archive/"))
    done = client.post(f"{page}archive/", {"typed": "CI bot"}, follow=True)

    assert "ann@example.com on Work" in asked
    assert done.redirect_chain == [("/hosts/", 302)]
    link.refresh_from_db()
    assert link.revoke_reason == "archived"
    assert "CI bot" not in text(client.get("/hosts/"))
    assert client.get(page).status_code == 404
    assert client.post(f"{page}enable/").status_code == 404


def test_an_app_that_waits_can_be_declined_for_good_and_the_playground_cannot_be_archived(
    ana: User, ann: User, sign_in: SignIn
) -> None:
    client, app = sign_in(ana), make.app(name="Cursor", needs_approval=True)
    playground = Host.objects.playground(needs_approval=False, by=ann)
    playground.disable(by=ana)

    assert f"/hosts/{app.pk}/archive/" in text(client.get(f"/hosts/{app.pk}/"))
    assert "An archived app cannot connect again." in text(client.get(f"/hosts/{app.pk}/archive/"))
    assert "does not match" in text(client.post(f"/hosts/{app.pk}/archive/")), "its name must be typed"
    client.post("/archive/hosts/", {"pick": [app.pk, playground.pk], "typed": "1 app or agent"})
    assert f"/hosts/{playground.pk}/archive/" not in text(client.get(f"/hosts/{playground.pk}/"))
    refused = client.post(f"/hosts/{playground.pk}/archive/", {"typed": "Playground"}, follow=True)

    assert "The Playground is part of the gateway and cannot be archived." in text(refused)
    assert list(Host.objects.live()) == [playground]
