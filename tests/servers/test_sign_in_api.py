"""Sign-in at a server's issuer from a program: POST /api/sign-ins, and the state of identities."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from gateways.models import IdentityScheme
from servers.models import AuthType, Identity, Server
from servers.oauth_client.models import ClientRegistration, Grant, SignIn
from tests import make
from tests.asgi_server import Upstream
from tests.conftest import Run
from tests.issuers import Issuer, consent, query
from tests.oauth.apps import browser
from tests.workspace import free_port
from ui.sealing import cipher

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("loopback_is_allowed")]


@pytest.fixture(autouse=True)
def _keys_of_this_test() -> Iterator[None]:
    yield
    cipher.cache_clear()


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def upstream(run: Run, issuer: Issuer) -> Upstream:
    return run(issuer.app())


@pytest.fixture
def github(upstream: Upstream) -> Server:
    server = make.server(slug="github", name="GitHub", url=upstream.url, auth_type=AuthType.OAUTH)
    make.assignment(make.gateway(slug="work"), server, identity_scheme=IdentityScheme.PER_USER)
    return server


def begin(client: Client, body: dict[str, Any], **headers: str) -> Any:
    return client.post("/api/sign-ins", body, content_type="application/json", headers=headers)


def with_key(person: User) -> dict[str, str]:
    return {"Authorization": f"Bearer {make.api_key(person, Capability.SERVERS_MANAGE).secret}"}


@pytest.mark.full
def test_a_program_with_a_session_begins_what_its_browser_finishes(github: Server, upstream: Upstream) -> None:
    ann = make.user(email="ann@example.com")
    client, elsewhere = browser(ann), browser(ann)

    begun = begin(client, {"server_id": str(github.pk)})

    assert begun.status_code == 201
    told = begun.json()
    assert (told["server"]["slug"], told["issuer"]) == ("github", upstream.url.removesuffix("/mcp"))
    assert query(told["authorization_url"])["code_challenge_method"] == "S256"
    back = consent(told["authorization_url"])
    assert elsewhere.get(back).status_code == 400, "it was finished in another browser"
    assert client.get(back)["Location"] == "/settings/identities"
    (identity,) = client.get("/api/identities").json()["results"]
    assert (identity["status"], identity["issuer"], identity["sign_in_needed"]) == ("active", told["issuer"], "")
    assert identity["expires_at"] is not None


@pytest.mark.full
def test_a_key_begins_what_its_owner_finishes_and_nobody_else(github: Server) -> None:
    ana, ben = make.user(*Capability, email="ana@example.com"), make.user(email="ben@example.com")

    begun = begin(Client(), {"server_id": str(github.pk)}, **with_key(ana))

    assert begun.status_code == 201, begun.content
    assert "Set-Cookie" not in begun
    back = consent(begun.json()["authorization_url"])
    assert browser(ben).get(back).status_code == 400
    assert browser(ana).get(back).status_code == 302
    assert Identity.objects.get().owner == ana
    assert browser(ana).get(back).status_code == 400, "it counted twice"


@pytest.mark.full
def test_a_sign_in_takes_the_place_of_one_s_own_identity_and_is_carried_where_one_says(github: Server) -> None:
    ann = make.user(email="ann@example.com")
    client = browser(ann)
    link = make.connection(make.agent(by=ann), github.assignments.get().gateway, ann)

    first = begin(client, {"server_id": str(github.pk), "connection_id": str(link.pk)}).json()
    client.get(consent(first["authorization_url"]))
    identity = link.identities.get().identity
    again = begin(client, {"server_id": str(github.pk), "identity_id": str(identity.pk)}).json()
    client.get(consent(again["authorization_url"]))

    assert Identity.objects.get() == identity
    assert Event.objects.filter(action="identity.signed_in").count() == 1


@pytest.mark.full
def test_nobody_signs_in_for_another_or_where_nobody_can(github: Server) -> None:
    ann, ben = make.user(email="ann@example.com"), make.user(email="ben@example.com")
    gateway = github.assignments.get().gateway
    bens = {
        "server_id": make.server(auth_type=AuthType.OAUTH).pk,
        "connection_id": make.connection(make.agent(by=ben), gateway, ben).pk,
        "identity_id": Identity.objects.create(server=github, owner=ben, label="his", kind="oauth").pk,
    }
    for name, value in bens.items():
        refused = begin(browser(ann), {"server_id": str(github.pk), name: str(value)})
        assert (refused.status_code, list(refused.json()["errors"])) == (400, [name])
    elsewhere = make.connection(make.agent(by=ann), make.gateway(), ann)
    refused = begin(browser(ann), {"server_id": str(github.pk), "connection_id": str(elsewhere.pk)})
    assert refused.json()["errors"].keys() == {"connection_id"}, "its gateway has no such server"
    assert not SignIn.objects.exists()


def test_obstacles_to_a_sign_in_are_reported(run: Run, github: Server) -> None:
    github.url = run(Issuer(metadata={"registration_endpoint": None}).app()).url
    github.save()

    refused = begin(browser(make.user()), {"server_id": str(github.pk)})

    assert (refused.status_code, refused.json()["code"]) == (409, "sign_in_refused")
    assert "does not support automatic registration" in refused.json()["detail"]


@pytest.mark.full
def test_a_server_that_names_another_issuer_is_an_event_with_the_sign_ins_it_ended(github: Server) -> None:
    ana, ann = make.user(*Capability, email="ana@example.com"), make.user(email="ann@example.com")
    signing = browser(ann)
    signing.get(consent(begin(signing, {"server_id": str(github.pk)}).json()["authorization_url"]))
    Identity.objects.update(issuer="https://was.example.com")

    begun = begin(browser(ana), {"server_id": str(github.pk)}).json()

    event = Event.objects.get(action="server.issuer_changed")
    assert (event.actor_email, event.target_label) == (ana.email, "GitHub")
    assert event.changes["issuer"] == ["https://was.example.com", begun["issuer"]]
    assert event.changes["sign_ins_ended"] == [0, 1]
    (identity,) = signing.get("/api/identities").json()["results"]
    assert identity["status"] == "sign_in_needed"
    assert identity["sign_in_needed"] == Identity.objects.get().sign_in_words != ""


def signed_in(client: Client, server: Server) -> Any:
    """Sign in, and return the one new identity."""
    client.get(consent(begin(client, {"server_id": str(server.pk)}).json()["authorization_url"]))
    (identity,) = client.get("/api/identities").json()["results"]
    return identity


@pytest.mark.full
def test_an_issuer_is_asked_who_signed_in_where_the_person_agreed_to_that(
    issuer: Issuer, upstream: Upstream, github: Server, subtests: pytest.Subtests
) -> None:
    own, nobody = f"{upstream.url.removesuffix('/mcp')}/userinfo", f"http://127.0.0.1:{free_port()}/userinfo"
    for scope, status, endpoint, account in (
        ("read", 200, own, ""),
        ("openid", 200, own, "octo-ann"),
        ("openid", 403, own, ""),
        ("openid", 200, nobody, ""),
    ):
        with subtests.test(f"{scope} {status} {endpoint}"):
            Grant.objects.all().delete()
            ClientRegistration.objects.all().delete()
            issuer.scopes = (scope,)
            issuer.metadata = {"userinfo_endpoint": endpoint}
            issuer.answers["/userinfo"] = (status, "application/json", '{"login": "octo-ann", "sub": "1"}')
            identity = signed_in(browser(make.user()), github)
            assert (identity["account"], identity["status"]) == (account, "active")
            assert ("/userinfo" in issuer.asked) is (scope == "openid")


@pytest.mark.full
def test_a_key_that_is_changed_during_a_sign_in_has_it_begun_again(
    github: Server, issuer: Issuer, settings: Settings
) -> None:
    client = browser(make.user())
    back = consent(begin(client, {"server_id": str(github.pk)}).json()["authorization_url"])
    ClientRegistration.objects.update(secret_ciphertext=None, auth_method="none")
    settings.ENCRYPTION_KEYS = [Fernet.generate_key()]
    cipher.cache_clear()

    refused = client.get(back).content.decode()

    assert "The encryption key was changed during this sign-in. Start again." in refused
    assert issuer.forms == [], "the code was used"
    assert not Identity.objects.exists()


@pytest.mark.full
def test_this_gateway_registers_anew_once_its_secret_at_an_issuer_has_ended(issuer: Issuer, github: Server) -> None:
    for expires, registered in ((1, 2), (0, 1), (4_102_444_800, 1)):  # It is over, never ends, ends later.
        SignIn.objects.all().delete()
        ClientRegistration.objects.all().delete()
        issuer.registrations.clear()
        given = {"client_id": "gateway", "client_secret": "s3cret", "client_secret_expires_at": expires}
        issuer.answers["/register"] = (201, "application/json", json.dumps(given))

        for _ in range(2):
            begin(browser(make.user()), {"server_id": str(github.pk)})

        assert len(issuer.registrations) == registered, expires
        assert ClientRegistration.objects.filter(ended_at=None).count() == 1


@pytest.mark.full
def test_pages_say_of_a_sign_in_what_the_issuer_said_and_never_a_word_of_the_program(github: Server) -> None:
    ann = make.user(email="ann@example.com")
    client = browser(ann)
    link = make.connection(make.agent(by=ann), github.assignments.get().gateway, ann)
    begun = begin(client, {"server_id": str(github.pk), "connection_id": str(link.pk)}).json()
    client.get(consent(begun["authorization_url"]))

    page = client.get("/settings/identities").content.decode()
    assert "Connected by “GitHub”" in page, "nobody is called by the name of a server"
    assert "Replace secret" not in page
    assert 'aria-label="Sign in again: ' in page

    Identity.objects.update(sign_in_needed_since=timezone.now(), sign_in_reason="refused")
    page = client.get("/settings/identities").content.decode()
    assert "sign in again</span>" in page
    assert ">sign_in_needed<" not in page
    ana = make.user(*Capability, email="ana@example.com")
    assert 'data-copy="#redirect-uri"' in browser(ana).get("/servers/github/client/").content.decode()
