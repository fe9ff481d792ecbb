"""Sign-in at third-party authorization servers: from sign-in through renewal to revocation, at each server."""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network

import httpx
import pytest
from django.test import Client
from pytest_django import Settings

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from gateways.models import IdentityScheme
from servers.models import ENDPOINTS, AuthType, Identity, Server
from servers.oauth_client.models import Grant
from servers.oauth_client.registration import redirect_uri
from tests import make
from tests.asgi_server import App, Receive, Scope, Send, answer
from tests.clients.fixtures import Npm
from tests.clients.issuers import PROGRAMS, SECRET, RealIssuer, Visitor, running
from tests.conftest import Run
from tests.issuers import destination
from tests.oauth.apps import browser
from tests.proxy.conftest import Agent, Proxy, eventually, sql
from ui.sealing import cipher
from wire.oauth_client import issuer_metadata_urls

pytestmark = pytest.mark.full

NEXT = "/settings/identities"


@pytest.fixture(scope="module", params=PROGRAMS)
def issuer(request: pytest.FixtureRequest, npm: Npm) -> Iterator[RealIssuer]:
    with running(request.param, npm, redirect_uri) as one:
        yield one


@dataclass
class Place:
    """The server `github` behind the gateway `work`, with per-user identities."""

    issuer: RealIssuer
    proxy: Proxy
    url: str

    def __post_init__(self) -> None:
        server = make.server(slug="github", name="GitHub", url=self.url, auth_type=AuthType.OAUTH)
        self.gateway = make.gateway(slug="work")
        make.assignment(self.gateway, server, identity_scheme=IdentityScheme.PER_USER)

    def agent(self, person: User) -> Agent:
        return self.proxy.agent(make.connection(make.agent(by=person), self.gateway, person))

    def begin(self, client: Client, path: str = "/servers/github/authenticate/") -> str:
        return destination(client.post(path, {"next": NEXT}))

    def sign_in(self, person: User, path: str = "/servers/github/authenticate/") -> Identity:
        client = browser(person)
        with Visitor(person.email.partition("@")[0]) as visitor:
            response = client.get(visitor.comes_back(self.begin(client, path)))
        assert (response.status_code, response.headers.get("Location")) == (302, NEXT), response.content.decode()
        return Identity.objects.own(person).order_by("-updated_at")[0]

    def end(self, identity: Identity, hint: str) -> None:
        """Revoke a token at the issuer (RFC 7009), as the issuer's own pages would."""
        grant = Grant.objects.get(identity=identity)
        client, endpoint = grant.registration.client, grant.revocation_endpoint
        form = {"token": tokens(identity)[hint], "token_type_hint": hint, "client_id": client.client_id}
        auth = (client.client_id, client.secret) if client.auth_method == "client_secret_basic" else None
        if client.auth_method == "client_secret_post":
            form["client_secret"] = client.secret
        httpx.post(endpoint, data=form, auth=auth, trust_env=False).raise_for_status()


def tokens(identity: Identity) -> dict[str, str]:
    """Return the identity's stored tokens, decrypted."""
    identity.refresh_from_db()
    sealed = {
        "access_token": identity.secret_ciphertext,
        "refresh_token": Grant.objects.get(identity=identity).refresh_ciphertext,
    }
    return {name: cipher().open(bytes(each)) for name, each in sealed.items() if each}


def expire(identity: Identity) -> None:
    sql("UPDATE servers_identity SET expires_at = now() - interval '1 s', renew_at = now() WHERE id = %s", identity.pk)


def heard(agent: Agent) -> str:
    """Return the credential the server received; fails on an error."""
    return str(agent.call("github__whoami").json()["result"]["content"][0]["text"])


def refusal(agent: Agent) -> str:
    response = agent.call("github__whoami")
    assert response.status_code == 200
    return str(response.json()["error"]["data"]["reason"])


def is_refused(place: Place, token: str) -> bool:
    """Return True if the server answers 401 to this token."""
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json, text/event-stream"}
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    return httpx.post(place.url, json=ping, headers=headers, trust_env=False).status_code == 401


@pytest.fixture
def place(issuer: RealIssuer, proxy: Proxy, run: Run, settings: Settings) -> Place:
    settings.PRIVATE_UPSTREAMS = [ip_network("127.0.0.0/8")]
    return Place(issuer, proxy, run(issuer.app()).url)


def test_two_people_sign_in_call_as_themselves_renew_and_end_alone(place: Place, ann: User, ben: User) -> None:
    ann_s, ben_s = place.agent(ann), place.agent(ben)
    assert refusal(ann_s) == "identity_missing"
    one, two = place.sign_in(ann), place.sign_in(ben)
    first = tokens(one)

    # Each person calls with their own token, through a client registered dynamically at the issuer.
    assert heard(ann_s) == f"Bearer {first['access_token']}"
    assert heard(ben_s) == f"Bearer {tokens(two)['access_token']}"
    assert one.issuer == two.issuer == place.issuer.name
    registration = Grant.objects.get(identity=one).registration
    assert registration.kind == "dynamic"
    assert registration == Grant.objects.get(identity=two).registration

    # An expired token is renewed.
    expire(one)
    assert heard(ann_s) == f"Bearer {tokens(one)['access_token']}"
    assert tokens(one)["access_token"] != first["access_token"]

    # A refused renewal ends only ann's sign-in.
    place.end(one, "refresh_token")
    expire(one)
    assert refusal(ann_s) == "identity_sign_in"
    one.refresh_from_db()
    assert (one.status, one.sign_in_reason) == ("sign_in_needed", "refused")
    assert Event.objects.filter(action="identity.sign_in_needed", target_id=str(one.pk)).count() == 1
    assert heard(ben_s) == f"Bearer {tokens(two)['access_token']}"

    # After signing in again, the same connection works.
    assert place.sign_in(ann, f"/identities/{one.pk}/authenticate/") == one
    assert heard(ann_s) == f"Bearer {tokens(one)['access_token']}"

    # Revocation in the gateway revokes both tokens at the issuer.
    last = tokens(two)
    Identity.objects.get(pk=two.pk).revoke(by=ben)
    eventually(lambda: is_refused(place, last["access_token"]))


def test_a_client_that_was_registered_by_hand_signs_in_renews_and_revokes(place: Place, ann: User) -> None:
    ana = make.user(*Capability, email="ana@example.com")
    asked = {"issuer": place.issuer.name, "client_id": "entered", "secret": SECRET}
    entered = browser(ana).post("/servers/github/client/", asked)
    assert entered.status_code == 302
    agent = place.agent(ann)

    identity = place.sign_in(ann)

    registration = Grant.objects.get(identity=identity).registration
    assert (registration.kind, registration.client_id) == ("manual", "entered")
    before = tokens(identity)
    assert heard(agent) == f"Bearer {before['access_token']}"
    expire(identity)
    assert heard(agent) == f"Bearer {tokens(identity)['access_token']}" != f"Bearer {before['access_token']}"
    after = tokens(identity)
    Identity.objects.get(pk=identity.pk).revoke(by=ann)
    eventually(lambda: is_refused(place, after["access_token"]))


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_issuer_that_nobody_describes_is_signed_in_to_by_the_endpoints_that_were_entered(
    name: str, npm: Npm, proxy: Proxy, run: Run, settings: Settings, ann: User
) -> None:
    settings.PRIVATE_UPSTREAMS = [ip_network("127.0.0.0/8")]
    ana = make.user(*Capability, email="ana@example.com")

    def comes_back(issuer: str) -> str:
        return redirect_uri(*(issuer.rstrip("/") + path for path in PROGRAMS[name].endpoints))

    with running(name, npm, comes_back) as issuer:
        known = next(
            found.json()
            for url in issuer_metadata_urls(issuer.name)
            if (found := httpx.get(url, trust_env=False)).status_code == 200
        )
        place = Place(issuer, proxy, run(without_metadata(issuer.app())).url)
        endpoints = {each: known[each] for each in ENDPOINTS}
        lasting = [each for each in known["scopes_supported"] if each == "offline_access"]
        scopes = " ".join([*issuer.program.scopes, *lasting])
        Server.objects.get().edit(**endpoints, expected_issuer=issuer.name, fixed_scopes=scopes, by=ana)
        asked = {"issuer": known["authorization_endpoint"], "client_id": "entered", "secret": SECRET} | endpoints
        assert browser(ana).post("/servers/github/client/", asked).status_code == 302
        agent = place.agent(ann)

        identity = place.sign_in(ann)

        assert identity.issuer == known["authorization_endpoint"]
        assert heard(agent) == f"Bearer {tokens(identity)['access_token']}"
        expire(identity)
        assert heard(agent) == f"Bearer {tokens(identity)['access_token']}"
        last = tokens(identity)["access_token"]
        Identity.objects.get(pk=identity.pk).revoke(by=ann)
        eventually(lambda: is_refused(place, last))


def without_metadata(app: App) -> App:
    """Return `app` without its resource metadata."""

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "well-known" in scope["path"]:
            await answer(send, 404, b"")
        else:
            await app(scope, receive, send)

    return door


def test_somebody_who_denies_is_told_so_and_may_begin_again(place: Place, ann: User) -> None:
    client = browser(ann)
    with Visitor("ann", allows=False) as visitor:
        page = client.get(visitor.comes_back(place.begin(client)))

    assert page.status_code == 400
    assert place.issuer.program.denial in page.content.decode()
    assert not Identity.objects.exists()
    assert place.sign_in(ann).status == "active"


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_issuer_that_has_forgotten_everybody_is_signed_in_to_again(
    name: str, npm: Npm, proxy: Proxy, run: Run, settings: Settings, ann: User
) -> None:
    settings.PRIVATE_UPSTREAMS = [ip_network("127.0.0.0/8")]
    with running(name, npm, redirect_uri) as issuer:
        place = Place(issuer, proxy, run(issuer.app()).url)
        agent = place.agent(ann)
        identity = place.sign_in(ann)
        before = Grant.objects.get(identity=identity).registration

    with running(name, npm, redirect_uri, port=int(issuer.origin.rpartition(":")[2])):
        assert refusal(agent) == "identity_sign_in"
        identity.refresh_from_db()
        assert identity.sign_in_reason == "client"
        before.refresh_from_db()
        assert before.ended_at is not None

        assert place.sign_in(ann, f"/identities/{identity.pk}/authenticate/") == identity
        assert heard(agent) == f"Bearer {tokens(identity)['access_token']}"
        assert Grant.objects.get(identity=identity).registration != before
