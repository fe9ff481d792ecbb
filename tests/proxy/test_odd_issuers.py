"""Issuers that have bad or no metadata, forget clients, or have one client for several servers.

Checks the person's page, the agent's error, the requests sent to each host, and the log.
"""

import html
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any
from urllib.parse import urlsplit

import anyio.to_thread
import httpx
import pytest
from django.db import connections
from django.test import Client
from django.urls import reverse
from mcp.shared.auth import OAuthClientInformationFull
from pytest_django import Settings

from accounts.models import User
from auditlog.models import Call, Event
from capabilities import Capability
from gateways.models import Gateway, IdentityScheme
from servers.models import ENDPOINTS, AuthType, Identity, Server
from servers.oauth_client.discovery import needs_of
from servers.oauth_client.models import MANY_UNFINISHED, ClientRegistration, Grant, unfinished_sign_ins
from servers.oauth_client.registration import keep_fresh, redirect_uri, refresh_identity
from tests import make
from tests.asgi_server import Upstream
from tests.conftest import Run
from tests.issuers import PRM, Issuer, consent, destination, query
from tests.oauth.apps import browser
from tests.proxy.conftest import Agent, Proxy, Start, eventually, in_words, sql
from tests.rest import Rest
from ui.sealing import cipher

NEXT = "/settings/identities"
JSON = "application/json"
METADATA = "/.well-known/oauth-authorization-server"
OPENID = "/.well-known/openid-configuration"
UNAVAILABLE = in_words(
    'The credential for server "GitHub" cannot be renewed at the moment; try again soon.', "/settings/identities"
)
# Client metadata fields of RFC 7591 (section 2) and OpenID Connect Registration (application_type).
REGISTERED = {
    "redirect_uris",
    "token_endpoint_auth_method",
    "grant_types",
    "response_types",
    "client_name",
    "client_uri",
    "scope",
    "application_type",
}


@pytest.fixture(autouse=True)
def _loopback(settings: Settings) -> None:
    settings.PRIVATE_UPSTREAMS = [ip_network("127.0.0.0/8"), ip_network("::1/128")]


@dataclass
class Place:
    """A server of the gateway `work`, protected by `issuer`, with per-user identities."""

    issuer: Issuer
    upstream: Upstream
    server: Server
    gateway: Gateway

    @property
    def origin(self) -> str:
        return self.upstream.url.removesuffix("/mcp")

    def begin(self, client: Client, path: str = "") -> Any:
        return client.post(path or f"/servers/{self.server.slug}/authenticate/", {"next": NEXT})

    def sign_in(self, person: User, path: str = "") -> Identity:
        client = browser(person)
        response = client.get(consent(destination(self.begin(client, path))))
        assert response.status_code == 302, words(response)
        return Identity.objects.own(person).filter(server=self.server).order_by("-updated_at")[0]

    def set(self, **fields: Any) -> None:
        Server.objects.filter(pk=self.server.pk).update(**fields)
        self.server.refresh_from_db()

    def connection(self, person: User) -> Any:
        return make.connection(make.agent(by=person), self.gateway, person)

    def knows(self, client_id: str, *redirect_uris: str, secret: str = "", method: str = "client_secret_basic") -> None:
        """Make this client known to the issuer, as if it was registered by hand."""
        known = {"client_id": client_id, "redirect_uris": redirect_uris, "token_endpoint_auth_method": method}
        known |= {"client_secret": secret} if secret else {}
        self.issuer.clients[client_id] = OAuthClientInformationFull.model_validate(known)

    def enter(self, by: User, client_id: str, issuer: str, *, secret: str = "") -> Any:
        """Enter a client of `issuer` on the client page, and leave the server's endpoints unchanged."""
        self.server.refresh_from_db()
        shown = {name: getattr(self.server, name) for name in ("token_endpoint", "revocation_endpoint")}
        typed = {"client_id": client_id, "secret": secret, "issuer": issuer}
        return browser(by).post(f"/servers/{self.server.slug}/client/", typed | shown)

    def with_entered_client(self, by: User, *, method: str = "client_secret_post") -> dict[str, str]:
        """Remove the issuer's metadata. Enter and return the issuer's endpoints; enter a client known to the issuer."""
        self.set(**(endpoints := undescribed(self)))
        authorize = endpoints["authorization_endpoint"]
        secret = "" if method == "none" else "s3cret-of-ours"
        self.knows("ours", redirect_uri(*endpoints.values()), secret=secret, method=method)
        assert self.enter(by, "ours", authorize, secret=secret).status_code == 302
        return endpoints


def place(
    issuer: Issuer, run: Run, slug: str = "github", name: str = "GitHub", gateway: Gateway | None = None
) -> Place:
    upstream = run(issuer.app())
    server = make.server(slug=slug, name=name, url=upstream.url, auth_type=AuthType.OAUTH, private=True)
    gateway = gateway or make.gateway(slug="work")
    make.assignment(gateway, server, identity_scheme=IdentityScheme.PER_USER)
    return Place(issuer, upstream, server, gateway)


@pytest.fixture
def github(run: Run, transactional_db: None) -> Place:
    return place(Issuer(), run)


@pytest.fixture
def ann(transactional_db: None) -> User:
    return make.user(email="ann@example.com")


@pytest.fixture
def ben(transactional_db: None) -> User:
    return make.user(email="ben@example.com")


@pytest.fixture
def boss(transactional_db: None) -> User:
    return make.user(*Capability, email="boss@example.com", is_staff=True)


def words(page: Any) -> str:
    """Return the text of a page."""
    found = re.search(r"<main.*?</main>", page.content.decode(), re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"\s*<[^>]+>\s*", " ", found[0] if found else "")))


def said(response: Any) -> str:
    """Return the credential the server received."""
    return str(response.json()["result"]["content"][0]["text"])


def reason(response: Any) -> str:
    """Return the reason of a refused call."""
    return str(response.json()["error"]["data"]["reason"])


def expire(*identities: Identity) -> None:
    for identity in identities:
        ended = "UPDATE servers_identity SET expires_at = now() - interval '1 s', renew_at = now() WHERE id = %s"
        sql(ended, identity.pk)


def access_of(identity: Identity) -> str:
    identity.refresh_from_db()
    return cipher().open(bytes(identity.secret_ciphertext or b""))


# --- Where the issuer is ----------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_metadata_of_an_issuer_on_another_host_are_read_there_and_nowhere_else(
    run: Run, ann: User, proxy: Proxy
) -> None:
    elsewhere = Issuer()
    issuer = run(elsewhere.app()).url.removesuffix("/mcp").replace("127.0.0.1", "localhost")
    elsewhere.metadata = {"scopes_supported": []}
    lies = json.dumps({"issuer": "https://evil.example.com", "authorization_endpoint": "https://evil.example.com/"})
    own = Issuer(prm={"authorization_servers": [issuer]}, access=elsewhere.access)
    own.answers = dict.fromkeys((METADATA, OPENID, f"{METADATA}/mcp", f"{OPENID}/mcp"), (200, JSON, lies))
    github = place(own, run)
    agent = proxy.agent(github.connection(ann))

    identity = github.sign_in(ann)

    assert identity.issuer == issuer
    assert said(agent.call("github__whoami")) == f"Bearer {access_of(identity)}"
    assert METADATA in elsewhere.asked
    assert not [path for path in own.asked if path.startswith((METADATA, OPENID, "/authorize", "/register", "/token"))]


@pytest.mark.full
def test_the_issuer_of_all_tenants_of_entra_takes_two_exceptions_and_names_one_tenant(
    github: Place, ann: User, boss: User, proxy: Proxy
) -> None:
    common, template = f"{github.origin}/common/v2.0", github.origin + "/{tenantid}/v2.0"
    github.issuer.prm = {"authorization_servers": [common]}
    github.issuer.metadata_paths = ("/common/v2.0/.well-known/openid-configuration",)
    github.issuer.metadata = {"issuer": template, "code_challenge_methods_supported": None}
    agent = proxy.agent(github.connection(ann))

    assert f"has metadata of another issuer than {common}: {template}." in words(github.begin(browser(ann)))
    github.server.edit(expected_issuer=template, resource_sent="omit", fixed_scopes="api/.default", by=boss)
    assert "does not announce PKCE" in words(github.begin(browser(ann)))
    github.server.edit(assume_pkce=True, by=boss)
    client = browser(ann)
    asked = destination(github.begin(client))
    assert "resource" not in query(asked)
    assert query(asked)["code_challenge_method"] == "S256"

    for stranger in ("https://evil.example.com/9f/v2.0", f"{github.origin}/9f/other/v2.0", f"{github.origin}//v2.0"):
        elsewhere = client.get(f"{consent(destination(github.begin(client)))}&iss={stranger}")
        assert "another issuer" in words(elsewhere)
    assert client.get(f"{consent(asked)}&iss={github.origin}/9f3c-11/v2.0").status_code == 302
    identity = Identity.objects.get()
    expire(identity)
    assert said(agent.call("github__whoami")) == f"Bearer {access_of(identity)}"
    assert [form.get("scope") for form in github.issuer.forms] == [None, "api/.default"]
    assert [form.get("resource") for form in github.issuer.forms] == [None, None]


# --- The proof of possession ------------------------------------------------------------------------------------------


def test_an_issuer_that_says_that_it_does_not_know_the_proof_stays_refused(github: Place, ann: User) -> None:
    github.issuer.metadata = {"code_challenge_methods_supported": ["plain"]}
    github.set(assume_pkce=True)

    assert "does not support PKCE with S256" in words(github.begin(browser(ann)))


# --- No description at all --------------------------------------------------------------------------------------------


def undescribed(github: Place) -> dict[str, str]:
    """Remove the issuer's metadata, and return its endpoints as an administrator would enter them."""
    github.issuer.prm_paths = github.issuer.metadata_paths = ()
    github.issuer.challenge = False
    github.issuer.answers |= {OPENID: (404, JSON, "{}"), PRM: (404, JSON, "{}")}
    names = {"authorization": "authorize", "token": "token", "revocation": "revoke"}
    return {f"{name}_endpoint": f"{github.origin}/{path}" for name, path in names.items()}


def test_a_servers_own_metadata_count_where_endpoints_are_entered(github: Place) -> None:
    github.issuer.scopes = ("read",)
    endpoints = undescribed(github)
    github.issuer.prm_paths, github.issuer.prm = (f"{PRM}/mcp",), {"authorization_servers": ["https://github.com/x"]}
    github.set(**endpoints)

    needs = needs_of(github.server)

    assert (needs.issuer, needs.scopes) == (endpoints["authorization_endpoint"], ("read",))
    assert needs.resource.name == github.upstream.url
    assert needs.registrations == ("manual",)


# --- A manager of servers tries to steal a client's secret, or people's tokens ----------------------------------------


@pytest.fixture
def mallory(transactional_db: None) -> User:
    return make.user(Capability.SERVERS_MANAGE, email="mallory@example.com")


@pytest.fixture
def sent(github: Place) -> Callable[[], list[str]]:
    """Return a function that lists the paths requested at the attacker's addresses (see `theirs`)."""
    return lambda: [path for path in github.issuer.asked if path.startswith("/theirs/")]


def theirs(github: Place, where: str, name: str = "token") -> str:
    """Return a URL of an attacker, who has another host or shares the issuer's host (`where`)."""
    origin = github.origin if where == "the same host" else github.origin.replace("127.0.0.1", "localhost")
    return f"{origin}/theirs/{name}"


WHERE = ["another host", "the same host"]


@pytest.mark.full
@pytest.mark.parametrize(("name", "where"), [("token", WHERE[0]), ("revocation", WHERE[1])])
def test_a_client_is_used_at_no_other_endpoints_than_those_it_was_entered_for(
    name: str, where: str, github: Place, ann: User, boss: User, mallory: User, sent: Callable[[], list[str]]
) -> None:
    endpoints = github.with_entered_client(boss)
    identity = github.sign_in(ann)
    before = access_of(identity)
    changes = {f"{name}_endpoint": theirs(github, where, name)}

    refused = Rest.of(mallory).patch("/servers/github", changes)
    assert (refused.status_code, refused.json()["code"]) == (409, "would_end_sign_ins")
    assert Rest.of(mallory).patch("/servers/github", changes | {"end_sign_ins": True}).status_code == 200

    client = browser(ann)
    begun = github.begin(client)
    assert begun.status_code == 400
    assert "does not support automatic registration" in words(begun)
    identity.refresh_from_db()
    assert (identity.status, identity.sign_in_reason) == ("sign_in_needed", "settings")
    eventually(lambda: before in github.issuer.revoked)  # At the former issuer.
    assert not sent()
    ended = Event.objects.get(action="server.client_changed", actor_email=mallory.email)
    assert ended.changes == {"client": ["ours", None], "issuer": [endpoints["authorization_endpoint"], None]}
    # The client is not used again after the old endpoints are restored: it must be entered again.
    assert Rest.of(mallory).patch("/servers/github", endpoints).status_code == 200
    assert github.begin(browser(ann)).status_code == 400


@pytest.mark.full
@pytest.mark.parametrize(("name", "where"), [("token", WHERE[0]), ("revocation", WHERE[1])])
def test_the_issuer_sends_nobody_back_for_a_client_without_secret_that_is_entered_again_with_another_endpoint(
    name: str, where: str, github: Place, ann: User, boss: User, mallory: User, sent: Callable[[], list[str]]
) -> None:
    endpoints = github.with_entered_client(boss, method="none")
    changes = {f"{name}_endpoint": theirs(github, where, name)}
    assert Rest.of(mallory).patch("/servers/github", changes).status_code == 200
    assert github.enter(mallory, "ours", endpoints["authorization_endpoint"]).status_code == 302

    asked = httpx.get(destination(github.begin(browser(ann))), trust_env=False)

    assert (asked.status_code, "not registered for client" in asked.text) == (400, True), asked.text
    assert not sent()


@pytest.mark.full
def test_a_client_whose_address_did_not_depend_on_its_endpoints_is_used_until_they_change(
    github: Place, ann: User, boss: User
) -> None:
    endpoints = undescribed(github)
    authorize = endpoints["authorization_endpoint"]
    github.set(**endpoints)
    github.knows("ours", redirect_uri(authorize), method="none")
    assert github.enter(boss, "ours", authorize).status_code == 302
    ClientRegistration.objects.update(redirect_uri=redirect_uri(authorize))  # Older rows have this URI.

    assert github.sign_in(ann).issuer == authorize


@pytest.mark.full
@pytest.mark.parametrize(("known", "where"), [("entered", WHERE[0]), ("registered itself", WHERE[1])])
def test_a_client_of_an_issuer_that_describes_itself_is_used_at_no_entered_endpoints(
    known: str, where: str, github: Place, ann: User, boss: User, mallory: User, sent: Callable[[], list[str]]
) -> None:
    if known == "entered":
        github.knows("ours", redirect_uri(github.origin), secret="s3cret-of-ours")
        assert github.enter(boss, "ours", github.origin, secret="s3cret-of-ours").status_code == 302
    else:
        github.sign_in(ann).revoke(by=ann)
        assert ClientRegistration.objects.get(ended_at=None).server is None
    changes = {"authorization_endpoint": github.origin, "token_endpoint": theirs(github, where)}
    assert Rest.of(mallory).patch("/servers/github", changes).status_code == 200

    client = browser(mallory)
    begun = github.begin(client)

    assert begun.status_code == 400, "a sign-in began, whose code would be sent to Mallory"
    assert not sent()


@pytest.mark.full
def test_a_client_ends_when_its_issuer_is_to_describe_itself_again(github: Place, boss: User, mallory: User) -> None:
    endpoints = github.with_entered_client(boss)

    assert Rest.of(mallory).patch("/servers/github", dict.fromkeys(endpoints, "")).status_code == 200

    assert not ClientRegistration.objects.filter(ended_at=None).exists()
    assert Event.objects.filter(action="server.client_changed", actor_email=mallory.email).count() == 1


@pytest.mark.full
def test_a_registration_that_was_made_for_other_endpoints_is_refused_whatever_changed_them(
    github: Place, ann: User, boss: User
) -> None:
    endpoints = github.with_entered_client(boss)

    for field in ("token_endpoint", "revocation_endpoint"):
        github.set(**endpoints | {field: theirs(github, "the same host")})
        refused = github.begin(browser(ann))
        assert (refused.status_code, "changed after the client of GitHub was entered" in words(refused)) == (
            400,
            True,
        ), field


@pytest.mark.full
def test_a_client_is_not_stored_for_endpoints_that_were_changed_since_its_page_was_shown(
    github: Place, boss: User, mallory: User
) -> None:
    endpoints = undescribed(github)
    github.set(**endpoints)
    page = browser(boss).get("/servers/github/client/").content.decode()
    assert page.count(endpoints["token_endpoint"]) == page.count(endpoints["revocation_endpoint"]) == 2
    assert Rest.of(mallory).patch("/servers/github", {"token_endpoint": theirs(github, WHERE[0])}).status_code == 200

    typed = {"client_id": "ours", "secret": "s3cret-of-ours", "issuer": endpoints["authorization_endpoint"]}
    refused = browser(boss).post("/servers/github/client/", typed | endpoints)

    assert refused.status_code == 422
    assert "has other endpoints now. Nothing was stored." in words(refused)
    assert not ClientRegistration.objects.exists()


@pytest.mark.full
def test_no_endpoint_is_at_another_issuer_s_while_others_are_elsewhere(
    github: Place, run: Run, ann: User, boss: User
) -> None:
    other = place(Issuer(), run, "other", "Other", github.gateway)
    other.sign_in(ann)
    endpoints = undescribed(github)
    for field in endpoints:
        github.set(**endpoints | {field: f"{other.origin}/authorize"})
        authorize = github.server.authorization_endpoint
        assert github.enter(boss, "ours", authorize, secret="s3cret-of-ours").status_code == 302

        refused = github.begin(browser(ann))

        assert refused.status_code == 400, field
        assert f"are at {other.origin}, where another issuer, {other.origin}, asks people" in words(refused), field


@pytest.mark.full
@pytest.mark.parametrize("stored", ["a client", "a sign-in"])
def test_another_endpoint_under_a_client_or_a_sign_in_asks_for_the_password(
    stored: str, github: Place, ann: User, boss: User
) -> None:
    github.set(**undescribed(github))
    authorize = github.server.authorization_endpoint
    if stored == "a client":
        assert github.enter(boss, "ours", authorize, secret="s3cret-of-ours").status_code == 302
    else:
        identity = make.identity(github.server, ann)
        Identity.objects.filter(pk=identity.pk).update(issuer=authorize)
    typed = {"name": "GitHub", "url": github.upstream.url, "auth_type": "oauth", "timeout_seconds": 30, "private": "on"}
    typed |= {name: getattr(github.server, name) for name in ENDPOINTS}
    changes = {"token_endpoint": theirs(github, "another host"), "end_sign_ins": True}
    admin = reverse("admin:servers_server_change", args=[github.server.pk])
    in_admin = typed | {"resource_sent": "server", "private": "true"} | changes

    page = browser(boss).post("/servers/github/edit/", typed | changes)
    staff = browser(boss).post(admin, in_admin)
    api = Rest.of(boss, confirmed=False).patch("/servers/github", changes)

    for answer in (page, staff):
        assert answer.status_code == 302
        assert answer["Location"].startswith("/accounts/reauthenticate/")
    assert (api.status_code, api.json()["code"]) == (403, "password_required")
    before = github.server.endpoints
    github.server.refresh_from_db()
    assert github.server.endpoints == before
    same = browser(boss).post("/servers/github/edit/", typed | {"name": "Renamed"})
    assert same["Location"] == "/servers/github/"


# --- An issuer that sends `iss` ---------------------------------------------------------------------------------------


@pytest.mark.full
def test_an_issuer_without_metadata_that_names_itself_has_to_be_expected(github: Place, ann: User, boss: User) -> None:
    github.with_entered_client(boss, method="none")
    client = browser(ann)

    refused = client.get(f"{consent(destination(github.begin(client)))}&iss={github.origin}")

    assert "nobody has entered the expected issuer of" in words(refused)
    assert "/token" not in github.issuer.asked
    github.set(expected_issuer=github.origin)
    assert client.get(f"{consent(destination(github.begin(client)))}&iss={github.origin}").status_code == 302
    other = client.get(f"{consent(destination(github.begin(client)))}&iss=https://evil.example.com")
    assert "came from another issuer than the requested one" in words(other)


@pytest.mark.parametrize("name", ["token_endpoint", "revocation_endpoint"])
def test_an_entered_endpoint_inside_is_not_called(
    name: str, github: Place, ann: User, proxy: Proxy, settings: Settings
) -> None:
    settings.PRIVATE_UPSTREAMS = [ip_network("127.0.0.1/32")]
    endpoints = undescribed(github) | {name: "http://127.0.0.2:9/token"}
    github.set(**endpoints)
    github.knows("ours", redirect_uri(*endpoints.values()), method="none")
    ClientRegistration.objects.create(
        issuer=endpoints["authorization_endpoint"],
        server=github.server,
        token_endpoint=github.server.token_endpoint,
        revocation_endpoint=github.server.revocation_endpoint,
        kind="manual",
        redirect_uri=redirect_uri(*endpoints.values()),
        client_id="ours",
        auth_method="none",
    )
    client = browser(ann)
    answer = client.get(consent(destination(github.begin(client))))

    if name == "token_endpoint":
        assert "may not be called" in words(answer)
        assert not Identity.objects.exists()
        return
    assert answer.status_code == 302
    identity = Identity.objects.get()
    identity.revoke(by=ann)
    identity.refresh_from_db()
    assert identity.secret_ciphertext is None, "what cannot be revoked there is wiped here"


# --- Client metadata that an issuer gets, and client authentication there ---------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("scopes", [(), ("read", "write")], ids=["none wanted", "two wanted"])
def test_a_registration_says_what_the_standard_knows_and_names_only_wanted_scopes(
    scopes: tuple[str, ...], github: Place, ann: User
) -> None:
    github.issuer.scopes = scopes

    github.sign_in(ann)

    (body,) = github.issuer.registrations
    assert set(body) <= REGISTERED
    assert body["application_type"] == "web"
    assert body["grant_types"] == ["authorization_code", "refresh_token"]
    assert body["token_endpoint_auth_method"] in ("none", "client_secret_basic", "client_secret_post")
    assert body.get("scope") == (" ".join(scopes) or None)


def accept_only(github: Place, method: str) -> None:
    """Make the issuer accept only the client authentication `method`, even if its metadata lists other methods."""
    clients = github.issuer.clients
    for key, known in [*clients.items()]:
        clients[key] = known.model_copy(update={"token_endpoint_auth_method": method})


@pytest.mark.full
def test_a_client_that_is_refused_names_itself_once_in_the_other_way_which_is_remembered(
    github: Place, ann: User, proxy: Proxy
) -> None:
    takes, named = "client_secret_basic", "client_secret_post"
    github.issuer.metadata = {"token_endpoint_auth_methods_supported": [named, takes]}
    agent = proxy.agent(github.connection(ann))
    client = browser(ann)
    asked = destination(github.begin(client))
    assert ClientRegistration.objects.get().auth_method == named
    accept_only(github, takes)

    assert client.get(consent(asked)).status_code == 302

    assert [form["grant_type"] for form in github.issuer.forms] == ["authorization_code"] * 2
    identity, registration = Identity.objects.get(), ClientRegistration.objects.get()
    assert (registration.auth_method, registration.other_auth_method, registration.ended_at) == (takes, "", None)
    expire(identity)
    assert said(agent.call("github__whoami")) == f"Bearer {access_of(identity)}"
    assert len(github.issuer.forms) == 3, "the way it takes is known now"


@pytest.mark.full
def test_an_issuer_that_takes_another_way_later_is_renewed_with_it(
    github: Place, ann: User, ben: User, proxy: Proxy
) -> None:
    github.issuer.metadata = {"token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"]}
    agent = proxy.agent(github.connection(ann))
    one, two = github.sign_in(ann), github.sign_in(ben)
    accept_only(github, "client_secret_post")
    expire(one, two)

    assert said(agent.call("github__whoami")) == f"Bearer {access_of(one)}"
    assert len(github.issuer.forms) == 4, "once in either way"
    assert ClientRegistration.objects.get().auth_method == "client_secret_post"
    refresh_identity(Identity.objects.get(pk=two.pk))
    assert len(github.issuer.forms) == 5


@pytest.mark.full
def test_a_client_that_is_refused_in_both_ways_is_forgotten(github: Place, ann: User, proxy: Proxy) -> None:
    github.issuer.metadata = {"token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"]}
    agent = proxy.agent(github.connection(ann))
    identity = github.sign_in(ann)
    github.issuer.answers["/token"] = (401, JSON, '{"error":"invalid_client"}')
    expire(identity)

    assert reason(agent.call("github__whoami")) == "identity_sign_in"

    identity.refresh_from_db()
    assert identity.sign_in_reason == "client"
    assert [form["grant_type"] for form in github.issuer.forms[1:]] == ["refresh_token"] * 2
    assert reason(agent.call("github__whoami")) == "identity_sign_in"
    assert len(github.issuer.forms) == 3, "a dead grant was tried again"


# --- Clients and grants belong to their issuer ------------------------------------------------------------------------


@pytest.mark.full
def test_two_servers_of_one_issuer_have_each_the_client_that_was_entered_for_it(
    github: Place, run: Run, ann: User, boss: User, proxy: Proxy
) -> None:
    github.issuer.metadata = {"registration_endpoint": None}
    other = place(Issuer(access=github.issuer.access), run, "wiki", "Wiki", github.gateway)
    other.issuer.prm = {"authorization_servers": [github.origin]}
    agent = proxy.agent(github.connection(ann))
    for server in ("github", "wiki"):
        known = {"secret": f"s3cret-of-{server}", "method": "client_secret_post"}
        github.knows(f"for-{server}", redirect_uri(github.origin), **known)
        entered = {"client_id": f"for-{server}", "secret": f"s3cret-of-{server}", "issuer": github.origin}
        assert browser(boss).post(f"/servers/{server}/client/", entered).status_code == 302

    for one in (github, other):
        client = browser(ann)
        asked = destination(one.begin(client))
        assert query(asked)["client_id"] == f"for-{one.server.slug}"
        assert client.get(consent(asked)).status_code == 302
        identity = Identity.objects.get(server=one.server)
        assert Grant.objects.get(identity=identity).registration.client_id == f"for-{one.server.slug}"
        expire(identity)
        assert said(agent.call(f"{one.server.slug}__whoami")) == f"Bearer {access_of(identity)}"

    sent = [form["client_id"] for form in github.issuer.forms]
    assert sent == ["for-github", "for-github", "for-wiki", "for-wiki"]


@pytest.mark.full
def test_a_client_that_is_replaced_leaves_what_was_granted_to_the_one_of_before_with_that(
    github: Place, ann: User, ben: User, boss: User, proxy: Proxy
) -> None:
    agents = [proxy.agent(github.connection(person)) for person in (ann, ben)]
    identities = [github.sign_in(person) for person in (ann, ben)]
    before = ClientRegistration.objects.get()
    github.knows("ours", redirect_uri(github.origin), secret="s3cret-of-ours")
    entered = {"client_id": "ours", "secret": "s3cret-of-ours", "issuer": github.origin}
    assert browser(boss).post("/servers/github/client/", entered).status_code == 302
    expire(*identities)

    assert said(agents[0].call("github__whoami")) == f"Bearer {access_of(identities[0])}"
    assert github.issuer.forms[-1]["client_id"] == before.client_id
    # The issuer forgets the former client: each person is asked to sign in again, and renewal is not retried forever.
    del github.issuer.clients[before.client_id]
    expire(*identities)
    asked = len(github.issuer.forms)
    for _ in range(3):
        assert [reason(agent.call("github__whoami")) for agent in agents] == ["identity_sign_in"] * 2
    assert len(github.issuer.forms) <= asked + 2 * len(agents)
    for person, identity in zip((ann, ben), identities, strict=True):
        identity.refresh_from_db()
        assert (identity.status, identity.sign_in_reason) == ("sign_in_needed", "client")
        assert "The issuer no longer knows this gateway." in words(browser(person).get(NEXT))
        assert github.sign_in(person, f"/identities/{identity.pk}/authenticate/") == identity
        assert Grant.objects.get(identity=identity).registration.client_id == "ours"
    assert [said(agent.call("github__whoami")) for agent in agents] == [f"Bearer {access_of(i)}" for i in identities]


@pytest.mark.full
def test_another_secret_of_the_same_client_ends_no_sign_in(github: Place, ann: User, boss: User, proxy: Proxy) -> None:
    agent = proxy.agent(github.connection(ann))
    entered = {"client_id": "ours", "issuer": github.origin}
    github.knows("ours", redirect_uri(github.origin), secret="s3cret-of-ours")
    browser(boss).post("/servers/github/client/", entered | {"secret": "s3cret-of-ours"})
    identity = github.sign_in(ann)
    github.knows("ours", redirect_uri(github.origin), secret="an0ther-of-ours")
    browser(boss).post("/servers/github/client/", entered | {"secret": "an0ther-of-ours"})
    expire(identity)

    assert said(agent.call("github__whoami")) == f"Bearer {access_of(identity)}"


# --- An issuer that shows an error instead of sending people back -----------------------------------------------------


def give_up(github: Place, person: User, times: int) -> Any:
    """Start `times` sign-ins that end on an error page of the issuer; return the gateway's last page."""
    client = browser(person)
    pages = [github.begin(client) for _ in range(times)]
    for page in pages:
        answer = httpx.get(destination(page), trust_env=False)
        assert answer.status_code == 400, "an error page of the issuer, and no way back"
    return pages[-1]


@pytest.mark.full
def test_after_several_sign_ins_without_an_answer_one_is_told_what_it_may_mean_and_the_client_is_registered_again(
    github: Place, ann: User, ben: User, boss: User
) -> None:
    identity = github.sign_in(ann)
    github.issuer.clients.clear()
    before = ClientRegistration.objects.get()

    page = give_up(github, ben, MANY_UNFINISHED)
    assert "Refresh" in page
    assert "were not finished" not in words(browser(boss).get("/servers/github/"))
    page = give_up(github, ben, 1)

    assert "Refresh" not in page
    told = "If the sign-in page shows an error such as “unknown client”, the issuer no longer knows this gateway."
    assert told in words(page)
    assert "ask an administrator to register this gateway again, on the page of the server GitHub" in words(page)
    assert "Register again" not in words(page)
    begun = browser(ben).post("/api/sign-ins", {"server_id": str(github.server.pk)}, "application/json")
    assert (begun.status_code, begun.json()["unfinished"]) == (201, MANY_UNFINISHED + 1)
    overview = browser(boss).get("/servers/github/")
    assert told in words(overview)
    assert "Register again" in words(overview)
    viewer = make.user(Capability.SERVERS_TOGGLE, email="viv@example.com")
    assert "were not finished" not in words(browser(viewer).get("/servers/github/"))
    reset = browser(boss).post("/servers/github/client/", {"reset": "1"})
    assert reset.status_code == 302
    assert Event.objects.filter(action="server.client_changed", actor_email=boss.email).count() == 1
    before.refresh_from_db()
    assert before.ended_at is not None
    assert github.sign_in(ben).status == "active"
    assert "were not finished" not in words(browser(boss).get("/servers/github/"))
    identity.refresh_from_db()
    assert identity.status == "active", "what was granted before is left alone"


@pytest.mark.full
def test_people_who_are_signing_in_at_once_are_no_sign_ins_without_an_end(github: Place) -> None:
    people = [make.user() for _ in range(MANY_UNFINISHED + 1)]
    clients = [browser(person) for person in people]
    pages = [github.begin(client) for client in clients]

    assert all("Refresh" in page for page in pages)
    assert unfinished_sign_ins(github.server) == 0
    assert clients[0].get(consent(destination(pages[0]))).status_code == 302
    github.server.refresh_from_db()
    assert github.server.sign_ins_begun == 0


# --- One renewal, several processes -----------------------------------------------------------------------------------


def during_renewal(issuer: Issuer, act: Callable[[], object]) -> None:
    """Run `act` when the issuer gets the next renewal, and then let the issuer refuse the renewal."""
    exchange = issuer.exchange_refresh_token

    def acting() -> None:
        try:
            act()
        finally:
            connections.close_all()

    async def late(client: Any, token: Any, scopes: list[str]) -> Any:
        issuer.exchange_refresh_token = exchange  # type: ignore[method-assign]
        await anyio.to_thread.run_sync(acting)
        issuer.refusal = "invalid_grant"
        try:
            return await exchange(client, token, scopes)
        finally:
            issuer.refusal = ""

    issuer.exchange_refresh_token = late  # type: ignore[method-assign, assignment]


@pytest.mark.full
def test_one_that_is_late_and_refused_leaves_what_the_other_stored_and_calls_with_it(
    github: Place, ann: User, proxy: Proxy
) -> None:
    agent = proxy.agent(github.connection(ann))
    identity = github.sign_in(ann)
    expire(identity)

    def other_process_renews() -> None:
        sql("UPDATE upstream_oauth_grant SET leased_until = now() - interval '1 s'")
        refresh_identity(Identity.objects.get(pk=identity.pk))

    during_renewal(github.issuer, other_process_renews)

    assert said(agent.call("github__whoami")) == f"Bearer {access_of(identity)}"
    identity.refresh_from_db()
    assert identity.status == "active"
    assert Grant.objects.get().refresh_ciphertext is not None
    assert not Event.objects.filter(action="identity.sign_in_needed").exists()


@pytest.mark.full
def test_one_that_is_late_while_the_other_still_asks_says_try_again_and_ends_nothing(
    github: Place, ann: User, proxy: Proxy
) -> None:
    agent = proxy.agent(github.connection(ann))
    identity = github.sign_in(ann)
    expire(identity)
    stolen = "UPDATE upstream_oauth_grant SET lease = gen_random_uuid(), leased_until = now() + interval '1 min'"
    during_renewal(github.issuer, lambda: sql(stolen))

    assert agent.call("github__whoami").json()["error"]["message"] == UNAVAILABLE

    identity.refresh_from_db()
    assert identity.status == "active"
    assert Grant.objects.get().refresh_ciphertext is not None


def test_a_rotation_whose_answer_was_lost_is_tried_once_more_and_then_needs_a_sign_in(
    github: Place, ann: User, proxy: Proxy
) -> None:
    agent = proxy.agent(github.connection(ann))
    identity = github.sign_in(ann)
    expire(identity)
    exchange = github.issuer.exchange_refresh_token

    async def lost(*args: Any) -> Any:
        await exchange(*args)
        raise RuntimeError("the token was rotated, and its answer never arrives")

    github.issuer.exchange_refresh_token = lost  # type: ignore[method-assign, assignment]

    refused = agent.call("github__whoami")

    assert reason(refused) == "identity_sign_in"
    assert [form["grant_type"] for form in github.issuer.forms[1:]] == ["refresh_token"] * 2
    assert reason(agent.call("github__whoami")) == "identity_sign_in"
    assert len(github.issuer.forms) == 3, "a dead grant was tried again"
    github.issuer.exchange_refresh_token = exchange  # type: ignore[method-assign]
    assert github.sign_in(ann, f"/identities/{identity.pk}/authenticate/") == identity
    assert said(agent.call("github__whoami")) == f"Bearer {access_of(identity)}"


# --- Whose token ------------------------------------------------------------------------------------------------------


def test_an_identity_disconnected_at_one_worker_is_sent_by_no_other(github: Place, start: Start, ann: User) -> None:
    workers = [start(), start()]
    connection = github.connection(ann)
    identity = github.sign_in(ann)
    issued = make.token(connection)
    agents = [worker.holding(issued) for worker in workers]
    assert [said(agent.call("github__whoami")) for agent in agents] == [f"Bearer {access_of(identity)}"] * 2
    client = browser(ann)
    asked = len(github.issuer.asked)

    for how, expected in (("disable", "identity_off"), ("revoke", "identity_missing")):
        assert client.post(f"/identities/{identity.pk}/{how}/").status_code in (200, 302)
        assert [reason(agent.call("github__whoami")) for agent in agents] == [expected] * 2
    assert "/mcp" not in github.issuer.asked[asked:]


@pytest.mark.full
def test_tools_of_a_server_where_nobody_has_signed_in_are_told_to_be_missing_and_come_with_one_s_own_sign_in(
    github: Place, ann: User, ben: User, boss: User, proxy: Proxy
) -> None:
    ann_s, ben_s = (proxy.agent(github.connection(person)) for person in (ann, ben))

    missing = {"server": "GitHub", "alias": "github", "reason": "identity_missing"}
    for agent in (ann_s, ben_s):
        listed = agent.listed().json()["result"]
        assert (listed["tools"], listed["_meta"]["gateway-admin/unavailable"]) == ([], [missing])
        refused = agent.call("github__whoami")
        assert reason(refused) == "identity_missing"
        assert urlsplit(refused.json()["error"]["data"]["url"]).path == NEXT
    refreshed = browser(boss).post("/gateways/work/tools/refresh/", follow=True)
    assert "GitHub" in words(refreshed)
    github.sign_in(ann)

    assert ann_s.tools() == ["github__whoami"]
    asked = github.issuer.asked.count("/mcp")
    assert ben_s.listed().json()["result"]["_meta"]["gateway-admin/unavailable"] == [missing]
    assert github.issuer.asked.count("/mcp") == asked, "nobody's tools are listed with another's token"
    assert Call.objects.filter(user_email=ben.email, identity_id__isnull=False).count() == 0


@pytest.mark.full
def test_two_people_at_two_workers_renew_each_their_own_at_the_same_time(
    github: Place, start: Start, ann: User, ben: User
) -> None:
    workers = [start(), start()]
    people = [ann, ben]
    tokens = [make.token(github.connection(person)) for person in people]
    identities = [github.sign_in(person) for person in people]
    expire(*identities)
    github.issuer.slow = 0.2
    agents: list[Agent] = [worker.holding(issued) for worker in workers for issued in tokens]

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda n: said(agents[n % 4].call("github__whoami")), range(24)))

    own = [f"Bearer {access_of(identity)}" for identity in identities]
    assert [answers[n] for n in range(24)] == [own[n % 2] for n in range(24)]
    assert github.issuer.refreshes == 2
    keep_fresh(Identity.objects.get(pk=identities[0].pk))
    assert github.issuer.refreshes == 2
