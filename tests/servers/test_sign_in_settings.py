"""An administrator's sign-in settings of a server, through each interface, and their effect."""

import html
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from gateways.models import IdentityScheme
from servers.models import AuthType, Identity, Server, WouldEndSignIns
from servers.oauth_client.discovery import discover_sign_in
from servers.oauth_client.models import Grant, SignIn
from servers.oauth_client.registration import refresh_identity
from tests import make
from tests.asgi_server import Upstream
from tests.conftest import Run
from tests.eventually import eventually
from tests.issuers import Issuer, consent, destination, query
from tests.oauth.apps import browser
from tests.rest import Rest, errors, problem
from tests.undone import undone

pytestmark = pytest.mark.usefixtures("loopback_is_allowed")

NEXT = "/settings/identities"
KNOWN_AS = "https://auth.example.com/tenant"


@dataclass
class Github:
    """The server `github`, protected by `issuer`, with per-user identities on the gateway `work`."""

    issuer: Issuer
    upstream: Upstream
    server: Server

    @property
    def origin(self) -> str:
        return self.upstream.url.removesuffix("/mcp")

    def set(self, **fields: Any) -> None:
        Server.objects.update(**fields)
        self.server.refresh_from_db()

    def begin(self, client: Client, path: str = "/servers/github/authenticate/") -> Any:
        return client.post(path, {"next": NEXT})

    def sign_in(self, person: User) -> Identity:
        client = browser(person)
        response = client.get(consent(destination(self.begin(client))))
        assert response.status_code == 302, words(response)
        return Identity.objects.own(person).order_by("-updated_at")[0]


@pytest.fixture
def issuer() -> Issuer:
    return Issuer(scopes=("read", "write"))


@pytest.fixture
def github(run: Run, issuer: Issuer, transactional_db: None) -> Github:
    upstream = run(issuer.app())
    server = make.server(slug="github", name="GitHub", url=upstream.url, auth_type=AuthType.OAUTH)
    make.assignment(make.gateway(slug="work"), server, identity_scheme=IdentityScheme.PER_USER)
    return Github(issuer, upstream, server)


@pytest.fixture
def ann(transactional_db: None) -> User:
    return make.user(email="ann@example.com")


@pytest.fixture
def boss(transactional_db: None) -> User:
    return make.user(*Capability, email="boss@example.com", is_staff=True)


def words(response: Any) -> str:
    return html.unescape(response.content.decode())


# --- The issuer that is expected --------------------------------------------------------------------------------------


@pytest.mark.full
def test_an_issuer_that_names_itself_otherwise_is_refused_and_what_it_says_is_told(github: Github, boss: User) -> None:
    github.issuer.metadata = {"issuer": KNOWN_AS}
    client, path = browser(boss), "/servers/github/identities/add/"

    own = words(github.begin(client))
    refused, unnamed = client.post(path, {"label": "service"}), client.post(path, {"label": ""})

    assert (refused.status_code, unnamed.status_code) == (422, 422)
    for told in (own, words(refused)):
        assert f"has metadata of another issuer than {github.origin}: {KNOWN_AS}." in told
    assert 'value="service"' in words(refused)
    assert "This field is required." in words(unnamed)
    assert not SignIn.objects.exists()


@pytest.mark.full
def test_an_issuer_may_name_itself_as_an_administrator_expects_and_in_no_other_way(github: Github, ann: User) -> None:
    github.issuer.metadata = {"issuer": KNOWN_AS}
    github.set(expected_issuer=KNOWN_AS)

    identity = github.sign_in(ann)

    assert identity.issuer == github.origin, "what is granted belongs to where it was granted, not to a name"
    for other in (f"{KNOWN_AS}/", github.origin, "https://auth.example.com"):
        github.issuer.metadata = {"issuer": other}
        assert "metadata of another issuer" in words(github.begin(browser(ann)))


@pytest.mark.full
def test_an_answer_has_to_come_from_the_issuer_that_is_expected(github: Github) -> None:
    github.issuer.metadata = {"issuer": KNOWN_AS}
    github.set(expected_issuer=KNOWN_AS)
    for named, taken in ((github.origin, False), (KNOWN_AS, True), ("", True)):
        person = make.user()
        client = browser(person)
        back = consent(destination(github.begin(client)))

        answer = client.get(f"{back}&{urlencode({'iss': named})}" if named else back)

        assert (answer.status_code == 302) == taken, words(answer)
        assert Identity.objects.own(person).exists() == taken


def test_an_issuer_of_an_expected_name_does_not_share_the_address_of_our_document(
    github: Github, settings: Settings
) -> None:
    settings.PUBLIC_URL = "https://gateway.example.com"
    says = {"client_id_metadata_document_supported": True, "authorization_response_iss_parameter_supported": True}
    github.issuer.metadata = says
    assert "document" in discover_sign_in(github.upstream.url).registrations

    github.issuer.metadata = says | {"issuer": KNOWN_AS}

    assert discover_sign_in(github.upstream.url, expected_issuer=KNOWN_AS).registrations == ("dynamic", "manual")


# --- The resource -----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_resource_is_the_same_when_one_is_asked_when_a_token_is_taken_and_when_it_is_renewed(
    github: Github, subtests: pytest.Subtests
) -> None:
    fixed = "https://api.example.com"
    for sent, fields, expected in (
        ("the server's own", {}, github.upstream.url),
        ("none", {"resource_sent": "omit"}, None),
        ("fixed", {"resource_sent": "fixed", "fixed_resource": fixed}, fixed),
    ):
        with subtests.test(sent):
            github.set(**fields)
            person = make.user()
            client = browser(person)
            url = destination(github.begin(client))
            assert client.get(consent(url)).status_code == 302
            refresh_identity(Identity.objects.own(person).get())
            taken, renewed = github.issuer.forms[-2:]
            assert (taken["grant_type"], renewed["grant_type"]) == ("authorization_code", "refresh_token")
            assert [form.get("resource") for form in (query(url), taken, renewed)] == [expected] * 3


# --- The scopes -------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_fixed_scopes_take_the_place_of_what_the_server_asks_for_and_nothing_is_added(
    github: Github, ann: User
) -> None:
    github.issuer.metadata = {"scopes_supported": ["offline_access"]}
    assert query(destination(github.begin(browser(ann))))["scope"] == "read write offline_access"

    github.set(fixed_scopes="read")

    assert query(destination(github.begin(browser(ann))))["scope"] == "read"


@pytest.mark.full
def test_nobody_is_led_to_an_issuer_for_rights_that_may_not_be_asked_for(github: Github, ann: User) -> None:
    identity = github.sign_in(ann)
    Grant.objects.update(wanted_scope="read admin")
    Identity.objects.update(sign_in_needed_since="2026-11-01T00:00Z", sign_in_reason="scope")
    github.set(fixed_scopes="read")

    refused = github.begin(browser(ann), f"/identities/{identity.pk}/authenticate/")

    assert "does not allow here: admin. Signing in again would not help." in words(refused)


# --- By each interface ------------------------------------------------------------------------------------------------


def by_form(boss: User, server: Server, **fields: Any) -> Any:
    typed = {"name": server.name, "url": server.url, "auth_type": "oauth", "timeout_seconds": 30, "private": "on"}
    given = {name: value for name, value in fields.items() if value is not False}
    return browser(boss).post(f"/servers/{server.slug}/edit/", typed | given)


def by_rest(boss: User, server: Server, **fields: Any) -> Any:
    return Rest.of(boss).patch(f"/servers/{server.slug}", fields)


def by_admin(boss: User, server: Server, **fields: Any) -> Any:
    typed = {"resource_sent": "server", "expected_issuer": "", "fixed_resource": "", "fixed_scopes": ""}
    typed |= dict.fromkeys(ENTERED, "")
    typed["private"] = "true"
    given = {name: value for name, value in fields.items() if value is not False}
    return browser(boss).post(reverse("admin:servers_server_change", args=[server.pk]), typed | given)


DOORS: dict[str, Callable[..., Any]] = {"the form": by_form, "REST": by_rest, "the Django admin": by_admin}
SETS = {"resource_sent": "fixed", "fixed_resource": "https://api.example.com", "fixed_scopes": "read"}
ENTERED = {
    "authorization_endpoint": "https://auth.example.com/authorize",
    "token_endpoint": "https://auth.example.com/token",
    "revocation_endpoint": "https://auth.example.com/revoke",
}


@pytest.mark.full
def test_each_door_sets_how_people_sign_in_and_it_is_an_event(
    github: Github, boss: User, subtests: pytest.Subtests
) -> None:
    unset = dict.fromkeys((*ENTERED, "expected_issuer", "fixed_resource", "fixed_scopes"), "")
    for name, door in DOORS.items():
        with subtests.test(name):
            github.set(private=True, resource_sent="server", assume_pkce=False, **unset)

            saved = door(boss, github.server, expected_issuer=KNOWN_AS, assume_pkce=True, **SETS, **ENTERED)

            assert saved.status_code in (200, 302), words(saved)
            github.server.refresh_from_db()
            assert github.server.sign_in_settings == [KNOWN_AS, *SETS.values(), *ENTERED.values(), True]
            event = Event.objects.filter(action="server.updated").latest("pk")
            assert event.actor_email == boss.email
            assert event.changes == {
                "expected_issuer": ["", KNOWN_AS],
                "resource_sent": ["server", "fixed"],
                "fixed_resource": ["", "https://api.example.com"],
                "fixed_scopes": ["", "read"],
                "assume_pkce": [False, True],
                **{name: ["", value] for name, value in ENTERED.items()},
            }


@pytest.mark.full
def test_ending_sign_ins_is_announced_and_needs_a_confirmation(
    github: Github, boss: User, subtests: pytest.Subtests
) -> None:
    for name, door in DOORS.items():
        with subtests.test(name):
            github.set(private=True, fixed_scopes="")
            identity, events = github.sign_in(make.user()), Event.objects.filter(action="server.updated")
            before, tokens = events.count(), [*github.issuer.access, *github.issuer.refresh]

            refused = door(boss, github.server, fixed_scopes="read")

            told = refused.json()["detail"] if name == "REST" else words(refused)
            assert "With this change 1 sign-in ends" in told
            if name == "REST":
                assert problem(refused) == (409, "would_end_sign_ins")
            identity.refresh_from_db()
            github.server.refresh_from_db()
            assert (identity.status, github.server.fixed_scopes, events.count()) == ("active", "", before)

            agreed = door(boss, github.server, fixed_scopes="read", end_sign_ins=True)

            assert agreed.status_code in (200, 302), words(agreed)
            identity.refresh_from_db()
            assert (identity.status, identity.sign_in_reason) == ("sign_in_needed", "settings")
            assert identity.secret_ciphertext is None
            assert events.latest("pk").changes == {"fixed_scopes": ["", "read"], "sign_ins_ended": [0, 1]}
            assert eventually(lambda tokens=tokens: {*tokens} <= {*github.issuer.revoked})  # type: ignore[misc]


UNSENDABLE = (
    ("expected_issuer", "not an address"),
    ("expected_issuer", "ftp://auth.example.com"),
    ("fixed_resource", "https://api.example.com/#part"),
    ("fixed_resource", "urn:api"),
    ("fixed_resource", ""),
    ("fixed_scopes", 'read "write"'),
    ("token_endpoint", "https://auth.example.com/token"),
    ("token_endpoint", "https://auth.example.com/token#part"),
    ("token_endpoint", "https://169.254.169.254/token"),
    ("revocation_endpoint", "https://auth.example.com/revoke"),
    ("authorization_endpoint", "javascript:alert(1)"),
    ("authorization_endpoint", "https://10.0.0.5/authorize"),
)


@pytest.mark.full
def test_unsendable_values_are_refused_beside_their_field(
    github: Github, boss: User, subtests: pytest.Subtests
) -> None:
    github.set(private=True)
    for name, value in UNSENDABLE:
        with subtests.test(f"{name} {value}"):
            fields = {"resource_sent": "fixed" if name == "fixed_resource" else "server", name: value}
            assert set(errors(by_rest(boss, github.server, **fields))) == {name}
            github.server.refresh_from_db()
            assert not github.server.sets_sign_in
    for door in (by_form, by_admin):
        refused = door(boss, github.server, resource_sent="server", token_endpoint="https://169.254.169.254/token")
        assert refused.status_code in (200, 422)
        assert "error" in words(refused)
    github.server.refresh_from_db()
    assert not github.server.sets_sign_in


def test_settings_come_with_a_server_that_is_registered(boss: User) -> None:
    new = {"name": "Docs", "url": "https://93.184.216.34/mcp", "auth_type": "oauth", "expected_issuer": KNOWN_AS}

    made = Rest.of(boss).post("/servers", new | SETS)

    assert made.status_code == 201, made.content
    assert {name: made.json()[name] for name in SETS} == SETS
    assert (made.json()["expected_issuer"], made.json()["private"]) == (KNOWN_AS, False)
    assert errors(Rest.of(boss).post("/servers", new | {"name": "Other", "private": True})) == {
        "private": ["Cannot be set."]
    }


@pytest.mark.full
def test_the_page_of_a_server_says_what_is_set(github: Github, boss: User) -> None:
    assert "Issuer expected" not in words(browser(boss).get("/servers/github/"))

    github.set(expected_issuer=KNOWN_AS, private=True, assume_pkce=True, **SETS, **ENTERED)

    page = words(browser(boss).get("/servers/github/"))
    told = ("https://api.example.com", "<code>read</code>", "At a private address", "PKCE: assumed")
    for said in (KNOWN_AS, *told, *ENTERED.values()):
        assert said in page


# --- Which sign-ins a change ends -------------------------------------------------------------------------------------

FITS: dict[str, tuple[dict[str, Any], bool]] = {
    "the issuer is called as it was": ({"expected_issuer": "its origin"}, True),
    "the issuer is called otherwise": ({"expected_issuer": KNOWN_AS}, False),
    "nothing is said of the resource": ({"resource_sent": "omit"}, False),
    "the resource is what it was": ({"resource_sent": "fixed", "fixed_resource": "its url"}, True),
    "the resource is another": ({"resource_sent": "fixed", "fixed_resource": "https://api.example.com"}, False),
    "the scopes are what was granted": ({"fixed_scopes": "write read"}, True),
    "the scopes are more": ({"fixed_scopes": "read write admin"}, True),
    "the scopes are fewer": ({"fixed_scopes": "write"}, False),
    "the endpoints are entered": (
        {"authorization_endpoint": "https://auth.example.com/a", "token_endpoint": "https://auth.example.com/t"},
        False,
    ),
    "PKCE is assumed": ({"assume_pkce": True}, True),
    "something else": ({"timeout_seconds": 5}, True),
}


@pytest.mark.full
def test_a_change_ends_what_would_not_be_granted_like_that_any_more_and_nothing_else(
    github: Github, ann: User, boss: User, subtests: pytest.Subtests
) -> None:
    known = {"its origin": github.origin, "its url": github.upstream.url}
    identity = github.sign_in(ann)
    for case, (fields, goes_on) in FITS.items():
        with subtests.test(case), undone():
            changed = {name: known.get(str(value), value) for name, value in fields.items()}
            github.server.refresh_from_db()
            if not goes_on:
                with pytest.raises(WouldEndSignIns, match="1 sign-in ends"):
                    github.server.edit(by=boss, **changed)
            github.server.edit(by=boss, end_sign_ins=not goes_on, **changed)
            identity.refresh_from_db()
            assert (identity.status == "active") == goes_on


def test_a_withdrawn_setting_ends_the_sign_ins_made_under_it(github: Github, ann: User, boss: User) -> None:
    github.issuer.metadata = {"issuer": KNOWN_AS}
    github.set(expected_issuer=KNOWN_AS, resource_sent="omit", fixed_scopes="read")
    github.sign_in(ann)

    assert not github.server.sign_ins_ended_by({"fixed_scopes": ""}).exists()
    assert github.server.sign_ins_ended_by({"resource_sent": "server"}).count() == 1
    assert github.server.sign_ins_ended_by({"expected_issuer": ""}).count() == 1
    assert github.server.sign_ins_ended_by({"expected_issuer": github.origin}).count() == 1


@pytest.mark.full
def test_a_sign_in_under_way_keeps_nothing_when_its_settings_change_meanwhile(
    github: Github, ann: User, boss: User
) -> None:
    client = browser(ann)
    back = consent(destination(github.begin(client)))
    github.server.edit(by=boss, fixed_scopes="read")

    answer = client.get(back)

    assert "The sign-in settings of GitHub were changed while you signed in. Start again." in words(answer)
    assert github.issuer.forms == [], "the code was used"
    assert not Identity.objects.exists()


# --- A second attempt without lasting access --------------------------------------------------------------------------


@pytest.fixture
def lasting(github: Github) -> Github:
    """Return `github` with an issuer that advertises offline access, but refuses requests for it."""
    github.issuer.metadata = {"scopes_supported": ["read", "offline_access"]}
    github.issuer.refuses_scope = "offline_access"
    return github


@pytest.mark.full
@pytest.mark.parametrize(("door", "place"), [("page", "authorize"), ("REST", "token")])
def test_one_whose_issuer_refuses_lasting_access_is_led_there_again_without_it(
    door: str, place: str, lasting: Github, ann: User, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "servers.oauth_client")
    lasting.issuer.refuses_at = place
    client = browser(ann)
    if door == "page":
        first = destination(lasting.begin(client))
    else:
        begun = client.post("/api/sign-ins", json.dumps({"server_id": str(lasting.server.pk)}), "application/json")
        first = begun.json()["authorization_url"]
    assert query(first)["scope"] == "read write offline_access"

    second = destination(client.get(consent(first)))

    assert urlsplit(second).path == urlsplit(first).path
    asked = query(second)
    assert (asked["scope"], "prompt" in asked, asked["resource"]) == ("read write", False, query(first)["resource"])
    assert asked["state"] != query(first)["state"]
    assert client.get(consent(second)).status_code == 302
    identity = Identity.objects.get()
    assert (identity.owner, identity.status) == (ann, "active")
    event = Event.objects.get(action="identity.created")
    assert event.changes["refused_scope"] == [None, "offline_access"]
    noted = [record for record in caplog.records if record.name == "servers.oauth_client.flow"]
    assert [record.__dict__["scope"] for record in noted] == ["offline_access"]
    assert not SignIn.objects.exists()


@pytest.mark.full
def test_they_are_led_there_again_once_and_not_for_another_scope(lasting: Github, ann: User) -> None:
    lasting.issuer.refuses_scope = "read"
    client = browser(ann)

    second = client.get(consent(destination(lasting.begin(client))))
    third = client.get(consent(destination(second)))

    assert third.status_code == 400
    assert "The issuer of GitHub answered with an error: Unknown scope." in words(third)
    assert not SignIn.objects.exists()
    lasting.issuer.metadata = {}
    refused = client.get(consent(destination(lasting.begin(client))))
    assert (refused.status_code, "Unknown scope" in words(refused)) == (400, True)


@pytest.mark.full
def test_an_answer_of_another_issuer_leads_nobody_anywhere(lasting: Github, ann: User) -> None:
    client = browser(ann)
    back = consent(destination(lasting.begin(client)))

    refused = client.get(f"{back}&iss=https%3A%2F%2Fevil.example.com")

    assert "came from another issuer" in words(refused)
    assert not SignIn.objects.exists()


@pytest.mark.full
def test_one_who_signs_in_again_keeps_the_place_when_lasting_access_is_refused(lasting: Github, ann: User) -> None:
    identity = make.identity(lasting.server, owner=ann)
    client = browser(ann)
    first = destination(lasting.begin(client, f"/identities/{identity.pk}/authenticate/"))

    answer = client.get(consent(destination(client.get(consent(first)))))

    assert (answer.status_code, answer["Location"]) == (302, NEXT)
    identity.refresh_from_db()
    assert identity.by_oauth
    assert Identity.objects.count() == 1
