"""A new credential is tested at its server; a refused credential is shown as refused, never as active."""

from typing import Any

import pytest
from django.test import Client

from accounts.models import User
from connections.models import Connection
from gateways.models import IdentityScheme
from servers.models import AuthType, Identity, Server
from tests import make, upstreams
from tests.asgi_server import App
from tests.conftest import Run, SignIn
from tests.oauth.steps import begin, text
from tests.rest import Rest
from tests.undone import undone

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("loopback_is_allowed")]

RIGHT, WRONG = "notes-key-that-works", "notes-key-mistyped"
REFUSED = "Notes answered 401: it refused the credential. Use another credential, or keep this one anyway."


def notes() -> App:
    """Return a server that accepts only one key."""
    return upstreams.guarded(upstreams.whoami_server(), "authorization", f"Bearer {RIGHT[:-1]}")


@pytest.fixture
def server(run: Run) -> Server:
    return make.server(name="Notes", url=run(notes()).url, auth_type=AuthType.BEARER)


@pytest.fixture
def link(server: Server, ana: User) -> Connection:
    gateway = make.gateway()
    make.assignment(gateway, server, identity_scheme=IdentityScheme.PER_USER)
    return make.connection(make.agent(by=ana), gateway, ana)


def consent(client: Client, link: Connection) -> str:
    """Start the authorization of a new agent, and return the URL of the page that asks for the identity."""
    first = begin(client, make.agent(by=link.user), gateway=link.gateway.slug)
    return str(client.post(first, {"gateway": link.gateway.slug})["Location"])


def door(name: str, link: Connection, client: Client) -> str:
    place = link.gateway.assignments.get()
    shared = f"/servers/{place.server.slug}/identities/add/"
    return {
        "consent": lambda: consent(client, link),
        "own connection": lambda: f"/connections/{link.pk}/identities/{place.pk}/",
        "shared": lambda: shared,
    }[name]()


@pytest.mark.full
def test_a_server_is_added_with_a_refused_key_only_on_demand(run: Run, ana: User, sign_in: SignIn) -> None:
    client, url = sign_in(ana), run(notes()).url
    form = {"name": "Notes", "slug": "notes", "url": url, "auth_type": "bearer", "secret": WRONG, "who": "own"}
    form |= {"tools": "all", "timeout_seconds": "30", "total_seconds": "600", "max_concurrent": "64"}

    refused = client.post("/servers/add/", form)
    assert refused.status_code == 422
    assert REFUSED in text(refused)
    assert not Server.objects.filter(url=url).exists()
    assert client.post("/servers/add/", form | {"keep": "on"}).status_code == 302
    assert Identity.objects.get(server__url=url).status == "refused"


@pytest.mark.full
def test_a_refused_key_is_said_so_at_once_and_stored_only_on_demand(
    link: Connection, ana: User, sign_in: SignIn, subtests: pytest.Subtests
) -> None:
    for name in ("consent", "own connection", "shared"):
        with subtests.test(name), undone():
            client = sign_in(ana)
            page = door(name, link, client)
            data = {"identity": "new", "label": "mine", "secret": WRONG}

            refused = client.post(page, data)

            assert refused.status_code == 422
            assert REFUSED in text(refused)
            assert "Keep it anyway" in text(refused)
            assert WRONG not in text(refused)
            assert not Identity.objects.exists()
            assert client.post(page, data | {"keep": "on"}).status_code == 302
            assert Identity.objects.get().status == "refused"


def test_a_key_is_active_if_it_is_accepted_or_nobody_can_be_asked(link: Connection, ana: User, sign_in: SignIn) -> None:
    client = sign_in(ana)
    down = make.server(auth_type=AuthType.BEARER, url="http://127.0.0.1:9/mcp")

    brought = client.post(consent(client, link), {"identity": "new", "label": "mine", "secret": RIGHT})
    added = client.post(f"/servers/{down.slug}/identities/add/", {"label": "shared", "secret": WRONG})

    assert (brought.status_code, added.status_code) == (302, 302)
    assert [identity.status for identity in Identity.objects.all()] == ["active"] * 2


@pytest.mark.full
def test_a_refused_identity_is_never_preselected_and_is_tried_again_when_chosen(
    link: Connection, server: Server, ana: User, sign_in: SignIn
) -> None:
    bad = make.identity(server, ana, label="a first one", secret=WRONG)
    Identity.objects.filter(pk=bad.pk).update(last_error="answered 401: it refused the credential")
    good = make.identity(server, ana, label="z last one", secret=RIGHT)
    client = sign_in(ana)
    page = consent(client, link)

    shown = text(client.get(page))
    again = client.post(page, {"identity": str(bad.pk)})

    assert f'value="{good.pk}" checked' in shown
    assert f'value="{bad.pk}" checked' not in shown
    assert (again.status_code, REFUSED in text(again)) == (422, True)
    good.revoke(by=ana)
    assert 'value="new" checked' in text(client.get(page))
    bad.seal(RIGHT)
    bad.save()
    assert client.post(page, {"identity": str(bad.pk)}).status_code == 302
    bad.refresh_from_db()
    assert bad.status == "active"


@pytest.mark.full
def test_a_refused_identity_is_made_whole_by_one_new_secret(
    link: Connection, server: Server, ana: User, sign_in: SignIn
) -> None:
    place = link.gateway.assignments.select_related("server").get()
    identity = make.identity(server, ana, secret=WRONG)
    link.use_identity(place, identity, by=ana)
    Identity.objects.update(last_error="answered 401: it refused the credential")
    client, path = sign_in(ana), f"/identities/{identity.pk}/replace/"

    before = text(client.get("/settings/identities"))
    wrong = client.post(path, {"secret": WRONG})
    right = client.post(path, {"secret": RIGHT})

    assert "Notes rejected this credential. Enter a new one." in before
    assert before.count(path) == 2  # At the connection, and in the list of identities.
    assert (wrong.status_code, REFUSED in text(wrong)) == (422, True)
    assert right.status_code == 302
    assert ">connected<" in text(client.get("/settings/identities"))
    identity.refresh_from_db()
    assert identity.status == "active"


@pytest.mark.full
def test_rest_refuses_and_keeps_as_the_pages_do(server: Server, ana: User) -> None:
    client = Rest.of(ana)
    new: dict[str, Any] = {"server_id": str(server.pk), "label": "mine", "secret": WRONG}

    refused = client.post("/identities", new)
    kept = client.post("/identities", new | {"keep": True})
    path = f"/identities/{kept.json()['id']}/secret"
    again = client.put(path, {"secret": WRONG})
    right = client.put(path, {"secret": RIGHT})

    assert (refused.status_code, again.status_code) == (400, 400)
    assert REFUSED in refused.content.decode()
    assert (kept.status_code, kept.json()["status"]) == (201, "refused")
    assert (right.status_code, right.json()["status"]) == (200, "active")


@pytest.mark.full
def test_the_page_that_asks_for_a_key_says_where_to_get_one(
    link: Connection, server: Server, ana: User, sign_in: SignIn
) -> None:
    server.edit(key_help="Ask the <notes> team", key_url="https://notes.example.com/keys", by=ana)
    client = sign_in(ana)

    page = text(client.get(consent(client, link)))

    assert "Ask the &lt;notes&gt; team" in page
    assert 'href="https://notes.example.com/keys"' in page
    assert page.count("Get a key for Notes") == 1
    for url in ("javascript:alert(1)", "ftp://notes.example.com"):
        assert Rest.of(ana).patch(f"/servers/{server.slug}", {"key_url": url}).status_code == 400
