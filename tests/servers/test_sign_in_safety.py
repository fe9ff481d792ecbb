"""Security of sign-ins at a server's issuer, with concurrent changes."""

import html
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import anyio.to_thread
import httpx
import pytest
from cryptography.fernet import Fernet
from django.db import connections
from django.test import Client
from mcp.server.auth.provider import AuthorizationCode
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from pytest_django import Settings

from accounts.models import User
from capabilities import Capability
from connections.models import Connection
from gateways.models import Gateway, IdentityScheme
from servers.models import AuthType, Identity, Server
from servers.oauth_client.discovery import Http, UnusableIssuer, issuer_metadata
from servers.oauth_client.flow import MOST_OPEN
from servers.oauth_client.models import ClientRegistration, Grant, RegistrationMethod, SignIn
from servers.oauth_client.registration import common_redirect_uri, redirect_uri
from tests import make
from tests.asgi_server import Upstream
from tests.cases import first
from tests.conftest import Run
from tests.eventually import eventually
from tests.issuers import Issuer, consent, destination, query
from tests.oauth.apps import browser
from ui.sealing import cipher
from wire.guard import Guard
from wire.oauth_client import authorize_url

pytestmark = pytest.mark.usefixtures("loopback_is_allowed")

NEXT = "/settings/identities"


@dataclass
class Busy(Issuer):
    """An issuer that calls `meanwhile` during the exchange of a code."""

    meanwhile: Callable[[], Any] | None = None
    issued: list[OAuthToken] = field(default_factory=list)

    async def exchange_authorization_code(self, client: Any, authorization_code: AuthorizationCode) -> OAuthToken:
        token = await super().exchange_authorization_code(client, authorization_code)
        self.issued.append(token)
        if self.meanwhile is not None:
            await anyio.to_thread.run_sync(self._act)
        return token

    def _act(self) -> None:
        assert self.meanwhile is not None
        try:
            self.meanwhile()
        finally:
            connections.close_all()


@dataclass
class Github:
    """The server `github`, protected by `issuer`. On the gateway `work`, each person signs in to the server."""

    issuer: Busy
    upstream: Upstream
    server: Server
    gateway: Gateway

    def begin(self, client: Client, path: str = "/servers/github/authenticate/", **fields: Any) -> str:
        return destination(client.post(path, {"next": NEXT, **fields}))

    def sign_in(self, person: User, path: str = "/servers/github/authenticate/", **fields: Any) -> Identity:
        client = browser(person)
        response = client.get(consent(self.begin(client, path, **fields)))
        assert response.status_code == 302, response.content.decode()
        return Identity.objects.own(person).order_by("-updated_at")[0]

    def is_revoked(self, token: OAuthToken) -> bool:
        return token.access_token in self.issuer.revoked and token.refresh_token in self.issuer.revoked


@pytest.fixture(autouse=True)
def _keys_of_this_test() -> Iterator[None]:
    """Discard the cached cipher after a test that removed the key."""
    yield
    cipher.cache_clear()


def lose_the_key(settings: Settings) -> None:
    settings.ENCRYPTION_KEYS = [Fernet.generate_key()]
    cipher.cache_clear()


@pytest.fixture
def github(run: Run, transactional_db: None) -> Github:
    issuer = Busy()
    upstream = run(issuer.app())
    server = make.server(slug="github", name="GitHub", url=upstream.url, auth_type=AuthType.OAUTH)
    gateway = make.gateway(slug="work")
    make.assignment(gateway, server, identity_scheme=IdentityScheme.PER_USER)
    return Github(issuer, upstream, server, gateway)


@pytest.fixture
def ann(transactional_db: None) -> User:
    return make.user(email="ann@example.com")


@pytest.fixture
def boss(transactional_db: None) -> User:
    return make.user(*Capability, email="boss@example.com")


def words(response: Any) -> str:
    return html.unescape(response.content.decode())


@pytest.mark.full
def test_a_sign_in_holds_no_connection_while_it_waits_for_its_issuer(github: Github, ann: User) -> None:
    person, held = connections["default"], list[bool]()
    github.issuer.meanwhile = lambda: held.append(person.connection is not None)

    github.sign_in(ann)

    assert held == [False]


# --- What changed while somebody was signing in -----------------------------------------------------------------------


def cut_off(github: Github, ann: User, boss: User) -> None:
    Connection.objects.cut_off(ann, by=boss)


def sign_out_everywhere(github: Github, ann: User, boss: User) -> None:
    User.objects.get(pk=ann.pk).end_sessions(by=boss)


def archive(github: Github, ann: User, boss: User) -> None:
    Server.objects.filter(pk=github.server.pk).update(archived_at="2026-01-01T00:00Z")


def paste_keys(github: Github, ann: User, boss: User) -> None:
    Server.objects.get(pk=github.server.pk).edit(auth_type=AuthType.BEARER, by=boss)


def take_off_the_gateway(github: Github, ann: User, boss: User) -> None:
    github.gateway.assignments.get().remove(by=boss)


CHANGES = {
    cut_off: "signed out",
    sign_out_everywhere: "signed out",
    archive: "GitHub has been archived.",
    paste_keys: "GitHub no longer uses sign-in",
    take_off_the_gateway: "No gateway that you may use asks for your own credential at GitHub.",
}


@pytest.mark.parametrize("change", first(1, CHANGES), ids=lambda change: change.__name__)
def test_changes_while_a_code_is_exchanged_leave_no_identity_and_the_tokens_are_revoked(
    change: Callable[..., None], github: Github, ann: User, boss: User
) -> None:
    client = browser(ann)
    back = consent(github.begin(client))
    github.issuer.meanwhile = lambda: change(github, ann, boss)

    response = client.get(back)

    assert response.status_code == 400
    assert CHANGES[change] in words(response)
    assert not Identity.objects.exists()
    assert not Grant.objects.exists()
    eventually(lambda: github.is_revoked(github.issuer.issued[0]))


@pytest.mark.full
@pytest.mark.parametrize("change", [archive, take_off_the_gateway], ids=lambda change: change.__name__)
def test_changes_during_a_sign_in_are_seen_before_its_code_is_used(
    change: Callable[..., None], github: Github, ann: User, boss: User
) -> None:
    client = browser(ann)
    back = consent(github.begin(client))
    change(github, ann, boss)

    assert CHANGES[change] in words(client.get(back))
    assert "/token" not in github.issuer.asked


@pytest.mark.full
def test_a_shared_sign_in_whose_person_lost_the_capability_leaves_no_identity(github: Github, boss: User) -> None:
    ana = make.user(Capability.SERVERS_MANAGE)
    client = browser(ana)
    back = consent(github.begin(client, "/servers/github/identities/add/", label="service"))
    github.issuer.meanwhile = lambda: User.objects.get(pk=ana.pk).give_role(make.role(), by=boss)

    assert client.get(back).status_code == 403

    assert not Identity.objects.exists()
    eventually(lambda: github.is_revoked(github.issuer.issued[0]))


# --- Existing identities ----------------------------------------------------------------------------------------------


def test_a_disabled_identity_is_refused_before_the_issuer_is_asked(github: Github, ann: User, boss: User) -> None:
    identity = github.sign_in(ann)
    path = f"/identities/{identity.pk}/authenticate/"
    identity.disable(by=ann)
    own = browser(ann).post(path, {"next": NEXT})
    identity.enable(by=ann)
    identity.disable(by=boss)
    held = browser(ann).post(path, {"next": NEXT})

    assert (own.status_code, held.status_code) == (400, 400)
    assert "This credential is disabled. Enable it first, then sign in." in words(own)
    assert "This credential is disabled. Ask an administrator to enable it first." in words(held)


@pytest.mark.full
def test_an_identity_disabled_during_its_sign_in_keeps_what_it_had_and_the_new_tokens_are_revoked(
    github: Github, ann: User, boss: User
) -> None:
    make.connection(make.agent(by=ann), github.gateway, ann)
    identity = github.sign_in(ann)
    before = bytes(Identity.objects.get(pk=identity.pk).secret_ciphertext or b"")
    client = browser(ann)
    back = consent(github.begin(client, f"/identities/{identity.pk}/authenticate/"))
    github.issuer.meanwhile = lambda: Identity.objects.get(pk=identity.pk).disable(by=boss)

    response = client.get(back)

    assert response.status_code == 400
    assert "This credential is disabled." in words(response)
    assert bytes(Identity.objects.get(pk=identity.pk).secret_ciphertext or b"") == before
    eventually(lambda: github.is_revoked(github.issuer.issued[1]))
    assert github.issuer.issued[0].refresh_token not in github.issuer.revoked


@pytest.mark.full
def test_signing_in_again_revokes_the_tokens_of_before_and_only_once_the_new_ones_are_kept(
    github: Github, ann: User
) -> None:
    identity = github.sign_in(ann)
    old = github.issuer.issued[0]

    again = github.sign_in(ann, f"/identities/{identity.pk}/authenticate/")

    new = github.issuer.issued[1]
    eventually(lambda: github.is_revoked(old))
    assert cipher().open(bytes(again.secret_ciphertext or b"")) == new.access_token
    assert cipher().open(bytes(Grant.objects.get().refresh_ciphertext or b"")) == new.refresh_token
    assert not {new.access_token, new.refresh_token} & set(github.issuer.revoked)


@pytest.mark.full
@pytest.mark.parametrize("gives", ["the same refresh token", "no refresh token"])
def test_nothing_is_revoked_where_the_issuer_goes_on_with_the_same_grant(gives: str, github: Github, ann: User) -> None:
    identity = github.sign_in(ann)
    old = github.issuer.issued[0]
    issue = github.issuer.issue

    def same(*args: Any) -> OAuthToken:
        return issue(*args).model_copy(
            update={"refresh_token": old.refresh_token if gives == "the same refresh token" else None}
        )

    github.issuer.issue = same  # type: ignore[method-assign, assignment]
    github.sign_in(ann, f"/identities/{identity.pk}/authenticate/")
    ended = github.sign_in(ann)  # A later grant: once its revocation arrives, an earlier one would have arrived too.
    ended.revoke(by=ann)

    eventually(lambda: github.issuer.issued[2].access_token in github.issuer.revoked)
    assert old.access_token not in github.issuer.revoked


@pytest.mark.full
def test_an_identity_of_a_server_where_nobody_signs_in_leads_to_no_issuer(
    github: Github, ann: User, boss: User
) -> None:
    identity = github.sign_in(ann)
    for change in (paste_keys, archive):
        change(github, ann, boss)
        response = browser(ann).post(f"/identities/{identity.pk}/authenticate/", {"next": NEXT})
        assert CHANGES[change] in words(response)
        assert "Refresh" not in response


@pytest.mark.full
def test_a_key_that_is_pasted_in_place_of_a_sign_in_ends_what_the_issuer_granted(
    github: Github, ann: User, boss: User
) -> None:
    identity = github.sign_in(ann)
    paste_keys(github, ann, boss)

    browser(ann).post(f"/identities/{identity.pk}/replace/", {"secret": "ghp_pasted", "keep": "on"})

    identity = Identity.objects.get()
    assert cipher().open(bytes(identity.secret_ciphertext or b"")) == "ghp_pasted"
    assert (identity.by_oauth, identity.account, identity.kind, identity.status) == (False, "", "bearer", "refused")
    assert (identity.expires_at, identity.renew_at) == (None, None)
    assert not Grant.objects.exists()
    eventually(lambda: github.is_revoked(github.issuer.issued[0]))


@pytest.mark.full
def test_an_identity_that_is_revoked_while_one_signs_in_again_stays_revoked(github: Github, ann: User) -> None:
    identity = github.sign_in(ann)
    client = browser(ann)
    back = consent(github.begin(client, f"/identities/{identity.pk}/authenticate/"))
    Identity.objects.get().revoke(by=ann)

    refused = client.get(back)

    assert "This credential has been revoked. Add a new one." in words(refused)
    assert Identity.objects.get().status == "revoked"
    assert len(github.issuer.issued) == 1, "the code was used"


@pytest.mark.full
def test_a_sign_in_whose_key_is_lost_is_revoked_here_and_nothing_is_sent(
    github: Github, ann: User, settings: Settings
) -> None:
    identity = github.sign_in(ann)
    asked = len(github.issuer.asked)
    lose_the_key(settings)

    gone = browser(ann).post(f"/identities/{identity.pk}/revoke/")

    assert gone.status_code == 302
    assert Identity.objects.get().secret_ciphertext is None
    assert Grant.objects.get().refresh_ciphertext is None
    assert len(github.issuer.asked) == asked


@pytest.mark.full
def test_the_oldest_unfinished_sign_ins_of_a_person_end(github: Github, ann: User, boss: User) -> None:
    client, other = browser(ann), browser(boss)
    kept = consent(github.begin(other))
    oldest, second, *_ = [github.begin(client) for _ in range(MOST_OPEN + 1)]

    assert SignIn.objects.filter(user=ann).count() == MOST_OPEN
    ended = client.get(consent(oldest))
    assert ended.status_code == 400
    assert "was ended by newer sign-ins" in words(ended)
    assert client.get(consent(second)).status_code == 302
    assert other.get(kept).status_code == 302


# --- Registrations ----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_registration_that_fails_leaves_the_one_of_before_in_force(github: Github, ann: User) -> None:
    github.sign_in(ann)
    before = ClientRegistration.objects.get()
    ClientRegistration.objects.update(scope="read")
    github.issuer.scopes = ("read", "write")
    github.issuer.metadata = {"registration_endpoint": f"{origin(github)}/nowhere"}

    refused = browser(ann).post("/servers/github/authenticate/", {"next": NEXT})

    assert "refused to register this gateway" in words(refused)
    assert ClientRegistration.objects.get(ended_at=None) == before
    github.issuer.metadata = {}
    github.sign_in(ann)
    assert ClientRegistration.objects.get(ended_at=None).scope == "read write"
    assert ClientRegistration.objects.filter(pk=before.pk, ended_at=None).count() == 0


# --- Two issuers ------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_an_issuer_or_a_resource_that_is_too_long_to_store_is_refused_with_a_reason(
    github: Github, ann: User, subtests: pytest.Subtests
) -> None:
    long, known = "x" * 500, github.issuer.metadata_paths[0]
    issuer = f"{origin(github)}/{long}"
    cases: tuple[tuple[dict[str, Any], dict[str, Any], str, str], ...] = (
        ({"authorization_servers": [issuer]}, {"issuer": issuer}, f"{known}/{long}", "not an https:// URL of 500"),
        ({"resource": f"{github.upstream.url}?{long}"}, {}, known, "are for another URL"),
    )
    for prm, metadata, path, why in cases:
        with subtests.test(why):
            github.issuer.prm, github.issuer.metadata, github.issuer.metadata_paths = prm, metadata, (path,)
            response = browser(ann).post("/servers/github/authenticate/", {"next": NEXT})
            assert response.status_code == 400
            assert why in words(response)
    assert github.issuer.registrations == []


@pytest.mark.full
def test_a_subject_that_cannot_be_stored_does_not_fail_a_sign_in(github: Github, ann: User) -> None:
    github.issuer.scopes = ("openid",)
    github.issuer.metadata = {"userinfo_endpoint": f"{origin(github)}/userinfo"}
    github.issuer.answers["/userinfo"] = (200, "application/json", r'{"sub": "ann\u0000"}')

    identity = github.sign_in(ann)

    assert (identity.account, identity.grant.subject) == ("ann", "ann\N{REPLACEMENT CHARACTER}")


@pytest.fixture
def evil(github: Github, run: Run) -> Github:
    """Return a second server of github's gateway. Its issuer tries to get GitHub's tokens."""
    issuer = Busy()
    upstream = run(issuer.app())
    server = make.server(slug="evil", name="Evil", url=upstream.url, auth_type=AuthType.OAUTH)
    make.assignment(github.gateway, server, identity_scheme=IdentityScheme.PER_USER)
    return Github(issuer, upstream, server, github.gateway)


def origin(github: Github) -> str:
    return github.upstream.url.removesuffix("/mcp")


def mixed_up(evil: Github, client: Client, **instead: str) -> str:
    """Start a sign-in at Evil; return its authorization URL, but with the client and the URL of another issuer."""
    asked = evil.begin(client, "/servers/evil/authenticate/")
    registration = ClientRegistration.objects.get(issuer=instead.pop("issuer"))
    theirs = {"client_id": registration.client_id, "redirect_uri": registration.redirect_uri, "resource": ""}
    return authorize_url(f"{registration.issuer}/authorize", query(asked) | theirs | instead)


@pytest.mark.full
def test_a_code_of_one_issuer_is_never_sent_to_another(github: Github, evil: Github, ann: User) -> None:
    github.sign_in(ann)
    client = browser(ann)
    asked_at_github = mixed_up(evil, client, issuer=origin(github))

    response = client.get(consent(asked_at_github))

    assert response.status_code == 400
    assert "at the redirect address of another issuer" in words(response)
    assert "/token" not in evil.issuer.asked


@pytest.mark.full
def test_an_issuer_does_not_send_a_code_to_the_address_of_another(github: Github, evil: Github, ann: User) -> None:
    github.sign_in(ann)
    client = browser(ann)
    own = query(evil.begin(client, "/servers/evil/authenticate/"))["redirect_uri"]
    asked_at_github = mixed_up(evil, client, issuer=origin(github), redirect_uri=own)

    assert httpx.get(asked_at_github, trust_env=False).status_code == 400


@pytest.mark.full
def test_a_client_entered_before_each_issuer_had_its_address_is_answered_at_the_common_one(
    github: Github, evil: Github, ann: User
) -> None:
    common = common_redirect_uri()
    github.issuer.clients["entered"] = OAuthClientInformationFull.model_validate(
        {"client_id": "entered", "redirect_uris": [common], "token_endpoint_auth_method": "none"}
    )
    ClientRegistration.objects.create(
        issuer=origin(github),
        server=github.server,
        kind=RegistrationMethod.MANUAL,
        redirect_uri=common,
        client_id="entered",
        auth_method="none",
    )
    client = browser(ann)

    response = client.get(consent(mixed_up(evil, client, issuer=origin(github))))

    assert "at the redirect address of another issuer" in words(response)
    assert github.sign_in(ann).issuer == origin(github)


@pytest.mark.full
def test_one_that_registered_itself_for_the_common_address_registers_anew(github: Github, ann: User) -> None:
    github.sign_in(ann)
    ClientRegistration.objects.update(redirect_uri=common_redirect_uri())

    github.sign_in(ann)

    assert ClientRegistration.objects.get(ended_at=None).redirect_uri == redirect_uri(origin(github))


@pytest.mark.full
def test_an_issuer_that_would_have_people_asked_at_another_one_s_is_refused(
    github: Github, evil: Github, ann: User
) -> None:
    github.sign_in(ann)
    evil.issuer.metadata = {"authorization_endpoint": f"{origin(github)}/authorize"}

    response = browser(ann).post("/servers/evil/authenticate/", {"next": NEXT})

    assert response.status_code == 400
    assert f"The sign-in page of {origin(evil)} is at {origin(github)}" in words(response)


@pytest.mark.full
def test_our_document_is_for_issuers_that_promise_to_name_themselves(
    github: Github, ann: User, settings: Settings
) -> None:
    settings.PUBLIC_URL = "https://gateway.example.com"
    for promises in (True, False):
        github.issuer.metadata = {
            "client_id_metadata_document_supported": True,
            "authorization_response_iss_parameter_supported": promises,
        }

        asked = query(github.begin(browser(ann)))

        assert (asked["client_id"] == "https://gateway.example.com/upstream-oauth/client.json") is promises
        document = Client().get("/upstream-oauth/client.json").json()
        assert (asked["redirect_uri"] in document["redirect_uris"]) is promises


# --- The client an administrator enters -------------------------------------------------------------------------------


@pytest.mark.full
def test_a_client_s_secret_goes_to_the_issuer_that_was_shown_beside_it(
    github: Github, evil: Github, boss: User
) -> None:
    client = browser(boss)
    page = words(client.get("/servers/github/client/"))
    assert f'<code class="address">{origin(github)}</code>' in page
    assert f'name="issuer" value="{origin(github)}"' in page
    github.issuer.prm = {"authorization_servers": [origin(evil)]}

    entered = client.post(
        "/servers/github/client/", {"client_id": "ours", "secret": "s3cret-of-ours", "issuer": origin(github)}
    )

    assert entered.status_code == 422
    assert f"GitHub names another issuer now: {origin(evil)}." in words(entered)
    assert f'name="issuer" value="{origin(evil)}"' in words(entered)
    assert "s3cret-of-ours" not in words(entered)
    assert not ClientRegistration.objects.exists()


def enter(client: Client, github: Github) -> None:
    values = {"client_id": "ours", "secret": "s3cret-of-ours", "issuer": origin(github)}
    assert client.post("/servers/github/client/", values).status_code == 302


def test_a_client_that_was_entered_is_not_shown_to_another_issuer(github: Github, evil: Github, boss: User) -> None:
    client = browser(boss)
    enter(client, github)
    github.issuer.prm = {"authorization_servers": [origin(evil)]}

    refused = words(client.post("/servers/github/authenticate/", {"next": NEXT}))

    assert f"names {origin(evil)} as its issuer now, but its client was entered for {origin(github)};" in refused
    assert "an administrator has to enter the client again." in refused
    assert not evil.issuer.registrations
    assert not SignIn.objects.exists()


@pytest.mark.full
def test_a_client_whose_secret_no_key_opens_has_to_be_entered_again(
    github: Github, boss: User, settings: Settings
) -> None:
    client = browser(boss)
    enter(client, github)
    lose_the_key(settings)

    refused = words(client.post("/servers/github/authenticate/", {"next": NEXT}))

    assert "No encryption key decrypts the client's secret. Enter the client again." in refused
    enter(client, github)
    assert "Refresh" in client.post("/servers/github/authenticate/", {"next": NEXT})


# --- Private addresses ------------------------------------------------------------------------------------------------


@pytest.fixture
def _public(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat the private addresses that the tests use as public."""
    monkeypatch.setattr(Guard, "is_inside", lambda self, address: False, raising=False)


@pytest.mark.full
@pytest.mark.usefixtures("_public")
def test_private_addresses_named_by_a_public_server_are_not_called(github: Github, ann: User) -> None:
    refused = browser(ann).post("/servers/github/authenticate/", {"next": NEXT})

    assert "may not be called" in words(refused)
    assert github.issuer.asked == ["/mcp"]


def test_an_issuer_that_the_operator_names_may_be_private_although_the_server_is_public(
    github: Github, settings: Settings
) -> None:
    with pytest.raises(UnusableIssuer, match="may not be called"):
        issuer_metadata(Http(private=False, entered=()), origin(github), like="http://")

    settings.PRIVATE_ISSUERS = [origin(github)]

    assert issuer_metadata(Http(private=False, entered=()), origin(github), like="http://").private
