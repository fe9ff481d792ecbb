"""A headed app connects by itself: register, authorise, exchange, refresh, revoke."""

import re
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.core import mail
from django.test import Client
from django.utils import timezone
from oauth2_provider.models import Grant, RefreshToken

from accounts.models import User, WorkspaceSettings
from attention import telling
from auditlog.models import Event
from capabilities import Capability
from connections.models import Connection, HostAtGateway
from gateways.models import Gateway
from hosts.models import Host
from oauth.models import Binding, Registration
from tests import make
from tests.issuers import query
from tests.meanwhile import meanwhile
from tests.oauth.apps import CALLBACK, App, browser, connect, decide, register
from tests.oauth.steps import per_user
from tokens.models import Token
from wire import token_text

pytestmark = pytest.mark.django_db


@pytest.mark.full
def test_an_app_appears_by_itself_and_gets_tokens_for_one_gateway(app: App, member: User, gateway: Gateway) -> None:
    answer = decide(browser(member), app.question(gateway))
    tokens = app.exchange(answer["code"]).json()

    assert answer["to"] == CALLBACK
    assert (answer["state"], answer["iss"]) == ("xyz", "http://localhost:8000")
    assert tokens["expires_in"] <= 3600
    assert token_text.well_formed(tokens["access_token"], {"gwo"})
    assert token_text.well_formed(tokens["refresh_token"], {"gwr"})
    connection = Connection.objects.get()
    assert (connection.user, connection.gateway, connection.host.name) == (member, gateway, "Claude Desktop")
    assert connection.host.kind == "headed"
    assert connection.last_token_at is None
    assert Token.objects.get(connection=connection, kind="key").prefix.startswith("gwk_")
    assert Binding.objects.filter(access_token__isnull=False).get().connection == connection


@pytest.mark.full
def test_no_secret_of_the_flow_is_stored_in_clear(app: App, member: User, gateway: Gateway) -> None:
    tokens = connect(app, member, gateway)

    stored = RefreshToken.objects.get()
    assert tokens["refresh_token"] not in str(vars(stored))
    assert tokens["access_token"] not in str(vars(stored.access_token))


@pytest.mark.full
def test_a_second_registration_of_the_same_app_joins_its_host(app: App, member: User, gateway: Gateway) -> None:
    """The host is the same, although the port of the loopback redirect differs each time."""
    connect(app, member, gateway)
    again = register(redirect_uris=["http://127.0.0.1:51000/callback"], client_name="claude desktop").json()
    other = App(again["client_id"], redirect_uri="http://127.0.0.1:51000/callback")

    connect(other, make.user(Capability.OAUTH_CONNECT), gateway)

    assert Host.objects.count() == 1
    assert Connection.objects.count() == 2
    assert Registration.objects.filter(host=Host.objects.get()).count() == 2


@pytest.mark.full
def test_an_app_that_borrows_a_name_is_another_host(app: App, member: User, gateway: Gateway) -> None:
    """Attack: an app registers another app's name with a different redirect URI."""
    connect(app, member, gateway)
    thief = register(redirect_uris=["https://thief.example.com/cb"]).json()

    connect(App(thief["client_id"], redirect_uri="https://thief.example.com/cb"), member, gateway)

    assert Host.objects.filter(name="Claude Desktop").count() == 2


@pytest.mark.full
def test_a_nameless_app_is_called_mcp_client(member: User, gateway: Gateway) -> None:
    nameless = App(register(client_name=None).json()["client_id"])

    connect(nameless, member, gateway)

    assert Host.objects.get().name == "MCP Client"


@pytest.mark.full
def test_authorising_a_live_triple_again_joins_it(app: App, member: User, gateway: Gateway) -> None:
    """A second authorisation keeps the connection and its key, and adds a token family."""
    connect(app, member, gateway)
    key = Token.objects.get().prefix

    connect(app, member, gateway)

    assert Connection.objects.count() == 1
    assert Token.objects.get().prefix == key
    assert RefreshToken.objects.values("token_family").distinct().count() == 2


@pytest.mark.full
def test_a_code_works_once_and_its_replay_ends_what_it_brought(app: App, member: User, gateway: Gateway) -> None:
    """Attack: code replay (OAuth 2.1 section 4.1.3). The tokens issued for the code are revoked."""
    code = decide(browser(member), app.question(gateway))["code"]
    tokens = app.exchange(code).json()

    assert app.exchange(code).json()["error"] == "invalid_grant"
    assert app.refresh(tokens["refresh_token"]).json()["error"] == "invalid_grant"
    assert Event.objects.get(action="oauth.family_ended").changes == {"reason": [None, "code used again"]}


@pytest.mark.full
@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"code_verifier": "x" * 64}, "invalid_grant"),
        ({"code_verifier": ""}, "invalid_grant"),
        ({"redirect_uri": "http://127.0.0.1:33418/other"}, "invalid_grant"),
        ({"redirect_uri": "http://127.0.0.1:33419/callback"}, "invalid_grant"),
        ({"redirect_uri": "http://localhost:33418/callback"}, "invalid_grant"),
        ({"redirect_uri": "https://evil.example/callback"}, "invalid_grant"),
        ({"resource": "http://localhost:8000/mcp/another"}, "invalid_target"),
        ({"resource": "http://localhost:8000"}, "invalid_target"),
        ({"resource": "http://[localhost:8000/mcp"}, "invalid_target"),
        ({"client_id": "somebody"}, "invalid_client"),
    ],
)
def test_a_code_is_worth_nothing_to_others(
    app: App, member: User, gateway: Gateway, change: dict[str, str], error: str
) -> None:
    """Attack: a stolen code with another verifier, redirect URI, resource or client."""
    code = decide(browser(member), app.question(gateway))["code"]

    response = app.exchange(code, **change)

    assert response.status_code in {400, 401}
    assert response.json()["error"] == error


@pytest.mark.full
def test_the_resource_may_end_with_a_slash(app: App, member: User, gateway: Gateway) -> None:
    code = decide(browser(member), app.question(None, resource=gateway.url + "/"))["code"]

    assert app.exchange(code, resource=gateway.url).status_code == 200


@pytest.mark.full
def test_an_old_code_is_dead(app: App, member: User, gateway: Gateway) -> None:
    code = decide(browser(member), app.question(gateway))["code"]
    Grant.objects.update(expires=timezone.now())

    assert app.exchange(code).json()["error"] == "invalid_grant"


@pytest.mark.full
def test_refreshing_moves_last_token_and_forgives_a_race(app: App, member: User, gateway: Gateway) -> None:
    """After a refresh, the previous refresh token still works for a minute."""
    first = connect(app, member, gateway)["refresh_token"]

    second = app.refresh(first).json()
    raced = app.refresh(first)

    assert raced.status_code == 200
    assert app.refresh(second["refresh_token"]).status_code == 200
    assert app.refresh(raced.json()["refresh_token"]).status_code == 200
    assert Connection.objects.get().last_token_at is not None


def test_a_refresh_token_that_returns_late_ends_its_family(app: App, member: User, gateway: Gateway) -> None:
    """Attack: refresh token replay. After a minute, using the previous refresh token counts as theft."""
    first = connect(app, member, gateway)["refresh_token"]
    second = app.refresh(first).json()["refresh_token"]
    Binding.objects.filter(superseded_at__isnull=False).update(superseded_at=timezone.now() - timedelta(seconds=61))

    assert app.refresh(first).json()["error"] == "invalid_grant"
    assert app.refresh(second).json()["error"] == "invalid_grant"
    assert Connection.objects.get().is_live


@pytest.mark.full
def test_a_refresh_token_unused_for_a_month_is_dead(app: App, member: User, gateway: Gateway) -> None:
    first = connect(app, member, gateway)["refresh_token"]
    RefreshToken.objects.update(created=timezone.now() - timedelta(days=30))

    assert app.refresh(first).json()["error"] == "invalid_grant"


@pytest.mark.full
def test_revoking_the_connection_kills_everything_for_good(app: App, member: User, gateway: Gateway) -> None:
    """The old tokens stay revoked, even after the person has authorised the same app again."""
    tokens = connect(app, member, gateway)
    Connection.objects.get().revoke(by=member)

    assert app.refresh(tokens["refresh_token"]).json()["error"] == "invalid_grant"
    new = connect(app, member, gateway)
    assert app.refresh(tokens["refresh_token"]).json()["error"] == "invalid_grant"
    assert app.refresh(new["refresh_token"]).status_code == 200
    assert Connection.objects.count() == 2


@pytest.mark.full
def test_a_code_of_a_revoked_connection_is_dead(app: App, member: User, gateway: Gateway) -> None:
    code = decide(browser(member), app.question(gateway))["code"]
    Connection.objects.get().revoke(by=member)

    assert app.exchange(code).json()["error"] == "invalid_grant"


@pytest.mark.full
def test_regenerating_keeps_the_refresh_token(app: App, member: User, gateway: Gateway) -> None:
    """Only the access token becomes invalid; the next access token has the new generation."""
    tokens = connect(app, member, gateway)
    Token.objects.renew_key(Connection.objects.get(), by=member)

    assert app.refresh(tokens["refresh_token"]).status_code == 200
    made = Binding.objects.filter(access_token__isnull=False).order_by("generation")
    assert [binding.generation for binding in made] == [1, 2]


@pytest.mark.full
def test_a_deactivated_person_refreshes_nothing_until_reactivated(app: App, member: User, gateway: Gateway) -> None:
    make.user(Capability.PEOPLE_MANAGE)
    refresh = connect(app, member, gateway)["refresh_token"]

    member.deactivate(by=None)
    assert app.refresh(refresh).json()["error"] == "invalid_grant"
    member.reactivate(by=None)
    assert app.refresh(refresh).status_code == 200


@pytest.mark.full
@pytest.mark.parametrize("layer", ["host", "gateway", "connection"])
def test_a_disabled_layer_does_not_stop_a_refresh(app: App, member: User, gateway: Gateway, layer: str) -> None:
    """The proxy refuses calls of a disabled object; a failed refresh would only make apps open browsers."""
    refresh = connect(app, member, gateway)["refresh_token"]
    connection = Connection.objects.get()
    {"host": connection.host, "gateway": gateway, "connection": connection}[layer].disable(by=member)

    assert app.refresh(refresh).status_code == 200


@pytest.mark.full
def test_the_app_itself_ends_one_family_only(app: App, member: User, gateway: Gateway) -> None:
    """An app revokes one token family; other families stay (RFC 7009)."""
    one, other = connect(app, member, gateway), connect(app, member, gateway)

    gone = Client().post("/oauth/revoke", {"token": one["access_token"], "client_id": app.client_id})

    assert gone.status_code == 200
    assert app.refresh(one["refresh_token"]).json()["error"] == "invalid_grant"
    assert app.refresh(other["refresh_token"]).status_code == 200


@pytest.mark.full
@pytest.mark.parametrize("is_known", [True, False], ids=["blocked", "never seen"])
def test_an_app_that_the_gateway_does_not_allow_is_refused_to_a_newcomer_before_anything_is_made(
    is_known: bool, app: App, member: User, gateway: Gateway
) -> None:
    if is_known:
        connect(app, make.user(Capability.OAUTH_CONNECT), gateway)
        HostAtGateway.objects.at(gateway, Host.objects.get()).block(by=member)
    else:
        Gateway.objects.update(hosts_allowed="listed")
    other = make.gateway()
    Gateway.objects.filter(pk=other.pk).update(hosts_allowed="all")
    before, person = (Host.objects.count(), Connection.objects.count(), Token.objects.count()), browser(member)

    refused = person.get(person.get(app.question(gateway))["Location"])
    offered = person.get(person.get(app.question(None))["Location"]).context["offered"]

    assert refused.status_code == 403
    assert "This gateway does not allow this app or agent." in refused.content.decode()
    assert [one for one, _ in offered] == [other]
    assert (Host.objects.count(), Connection.objects.count(), Token.objects.count()) == before


@pytest.mark.full
def test_a_block_during_the_consent_makes_neither_host_nor_connection(app: App, member: User, gateway: Gateway) -> None:
    person = browser(member)
    page = person.post(person.get(app.question(gateway))["Location"], {"gateway": gateway.slug})["Location"]
    assert person.get(page).status_code == 200
    Gateway.objects.update(hosts_allowed="listed")

    assert person.post(page, {"decision": "allow"}).status_code == 403
    assert not Host.objects.exists()
    assert not Connection.objects.exists()


@pytest.mark.full
def test_denying_goes_back_with_error_state_and_issuer(app: App, member: User, gateway: Gateway) -> None:
    answer = decide(browser(member), app.question(gateway), "deny")

    assert (answer["error"], answer["state"], answer["iss"]) == ("access_denied", "xyz", "http://localhost:8000")
    assert not Connection.objects.exists()


@pytest.mark.full
@pytest.mark.parametrize("at", ["gateway", "identity"])
def test_each_step_before_the_consent_can_be_denied(at: str, app: App, member: User, gateway: Gateway) -> None:
    per_user(gateway)
    make.gateway()
    client = browser(member)
    page = client.get(app.question(None))["Location"]
    if at == "identity":
        page = client.post(page, {"gateway": gateway.slug})["Location"]
    shown = client.get(page).content.decode()
    form = re.search(r'<form id="deny" method="post" action="([^"]+)">.*name="decision" value="deny"', shown)
    assert form
    first = re.search(r'<form method="post"(?! ?action)[^>]*>.*?</form>', shown, re.DOTALL)
    assert first, "The form of the step itself"
    own = [button for button in re.findall(r"<button[^>]*>", first[0]) if "form=" not in button]
    assert len(own) == 1, "Enter in a field is the step's own button and no other."

    sent = client.post(form[1], {"decision": "deny"})

    assert f"/{at}/" in page or at == "gateway"
    assert query(sent["Refresh"].removeprefix("0; url="))["error"] == "access_denied"
    assert not Connection.objects.exists()


@pytest.mark.full
def test_people_who_may_not_connect_apps_get_an_error_and_an_approved_app_gets_access_denied(
    app: App, member: User, gateway: Gateway
) -> None:
    connect(app, member, gateway)
    person = browser(make.user())

    page = person.get(person.get(app.question(gateway))["Location"])

    assert page.status_code == 403
    assert "Your role lacks Authenticate via OAuth." in page.content.decode()
    assert 'name="capability" value="oauth:connect"' in page.content.decode()
    seconds, _, url = page["Refresh"].partition("; url=")
    answer = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    assert int(seconds) >= 10, "time to read it"
    assert (answer["error"], answer["state"], answer["iss"]) == ("access_denied", "xyz", "http://localhost:8000")
    assert answer["error_description"] == "The gateway refused access."


@pytest.mark.full
def test_an_app_that_nobody_connected_gets_that_answer_only_from_the_person(app: App, gateway: Gateway) -> None:
    person = browser(make.user())

    page = person.get(person.get(app.question(gateway))["Location"])

    assert page.status_code == 403
    assert "Refresh" not in page
    assert "error=access_denied" in page.content.decode()


@pytest.mark.full
def test_consent_is_asked_for_every_time(app: App, member: User, gateway: Gateway) -> None:
    """Consent is asked for even if the OAuth toolkit's setting to skip it is on."""
    connect(app, member, gateway)

    begun = browser(member).get(app.question(gateway, approval_prompt="auto"))

    assert begun["Location"].startswith("/connect/")


@pytest.mark.full
@pytest.mark.parametrize(
    "change",
    [
        {"client_id": "nobody"},
        {"redirect_uri": "http://127.0.0.1:33418/other"},
        {"redirect_uri": "https://evil.example/callback"},
        {"redirect_uri": "http://evil.example:33418/callback"},
        {"redirect_uri": "http://127.0.0.1@evil.example/callback"},
        {"redirect_uri": "http://127.0.0.1:33418/callback#x"},
        {"redirect_uri": "https://127.0.0.1:33418/callback"},
        {"redirect_uri": "http://localhost:33418/callback"},
        {"redirect_uri": "http://127.0.0.1.:33418/callback"},
        {"redirect_uri": "http://127.0.0.1:33418/callback/"},
        {"redirect_uri": "http://127.0.0.1:33418/callback?x=1"},
        {"redirect_uri": "http://127.0.0.1:33418/callback/../other"},
        {"redirect_uri": "http://127.0.0.1:33418/call%62ack"},
        {"redirect_uri": "http://127.0.0.1:33418//callback"},
        {"redirect_uri": "http://127.0.0.1:33418\\@evil.example/callback"},
        {"redirect_uri": "//evil.example/callback"},
        {"redirect_uri": "cursor://anysphere/callback"},
        {"redirect_uri": ""},
        {"redirect_uri": "javascript:alert(1)"},
    ],
)
def test_nothing_is_sent_to_an_address_that_is_not_the_apps(
    app: App, member: User, gateway: Gateway, change: dict[str, str]
) -> None:
    """Attack: redirect mix-ups and an open redirect, signed in or not. The answer is a page with status 400."""
    for somebody in (browser(member), Client()):
        response = somebody.get(app.question(gateway, **change))

        assert response.status_code == 400
        assert "Location" not in response
        assert "Refresh" not in response


@pytest.mark.full
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_another_loopback_port_is_the_same_address(member: User, gateway: Gateway, host: str) -> None:
    """A loopback redirect URI matches with any port (RFC 8252 section 7.3)."""
    registered = register(redirect_uris=[f"http://{host}:1024/callback"]).json()
    app = App(registered["client_id"], redirect_uri=f"http://{host}:50123/callback")

    answer = decide(browser(member), app.question(gateway))

    assert answer["to"] == app.redirect_uri
    assert app.exchange(answer["code"]).status_code == 200


@pytest.mark.full
def test_consent_says_which_app_gets_what_and_where_the_answer_goes(app: App, member: User) -> None:
    """The page shows the app's name as unverified, the person, the gateway, its servers and the redirect URI."""
    gateway = make.gateway(make.server(name="Handbook"), name="Work")
    client = browser(member)
    begun = client.get(app.question(gateway))["Location"]

    page = client.get(client.post(begun, {"gateway": gateway.slug})["Location"]).content.decode()

    for words in ("Claude Desktop", "is not verified", member.email, "Work", "Handbook", CALLBACK, "your own machine"):
        assert words in page


@pytest.mark.full
def test_consent_says_as_whom_each_server_is_called(app: App, member: User) -> None:
    gateway = make.gateway(make.server(name="Handbook"))
    # The flow asks about servers in the order of their aliases.
    brought, skipped = sorted((per_user(gateway, "A"), per_user(gateway, "B")), key=lambda server: server.slug)
    own = make.identity(brought, member, label="ann-work")
    client = browser(member)
    first = client.post(client.get(app.question(gateway))["Location"], {"gateway": gateway.slug})["Location"]
    second = client.post(first, {"identity": str(own.pk)})["Location"]

    page = client.get(client.post(second, {"skip": "1"})["Location"]).content.decode()

    for server, words in (
        ("Handbook", "no credential"),
        (brought.name, "as ann-work"),
        (skipped.name, "with the credential you chose before, if any"),
    ):
        assert words in page.split(server)[1].split("</li>")[0], server


@pytest.mark.full
def test_servers_that_are_switched_off_are_neither_counted_nor_promised(app: App, member: User) -> None:
    """Only enabled servers with an enabled assignment are counted and shown."""
    off, gateway = make.server(name="Archive"), make.gateway(make.server(name="Handbook"), name="Work")
    make.assignment(gateway, make.server(name="Wiki")).disable(by=member)
    make.assignment(gateway, off)
    off.disable(by=member)
    client = browser(member)
    begun = client.get(app.question(gateway))["Location"]

    choice = client.get(begun).content.decode()
    consent = client.get(client.post(begun, {"gateway": gateway.slug})["Location"]).content.decode()

    assert ">1 server</span>" in choice
    assert "1 server, 0 usable tools" in consent
    for name in ("Archive", "Wiki"):
        assert name not in consent


@pytest.mark.full
@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"code_challenge": None, "code_challenge_method": None}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge_method": None}, "invalid_request"),
        ({"resource": "https://elsewhere.example/mcp/x"}, "invalid_target"),
        ({"resource": "http://localhost:8000"}, "invalid_target"),
        ({"resource": "http://localhost:8000/mcp/unknown"}, "invalid_target"),
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"prompt": "none"}, "interaction_required"),
    ],
)
def test_a_wrong_question_goes_back_with_its_error_state_and_issuer(
    app: App, member: User, gateway: Gateway, change: dict[str, Any], error: str
) -> None:
    """Errors return only to an approved app, because links must never redirect to a stranger's address."""
    connect(app, member, gateway)

    response = browser(member).get(app.question(gateway, **change))

    assert response.status_code == 302
    answer = parse_qs(urlsplit(response["Location"]).query)
    assert response["Location"].startswith(CALLBACK)
    assert (answer["error"], answer["state"], answer["iss"]) == ([error], ["xyz"], ["http://localhost:8000"])


def test_a_stranger_signs_in_first_and_comes_back(app: App, gateway: Gateway) -> None:
    response = Client().get(app.question(gateway))

    assert response.status_code == 302
    assert parse_qs(urlsplit(response["Location"]).query)["next"][0].startswith("/oauth/authorize?")


@pytest.mark.full
def test_unknown_scopes_are_dropped(app: App, member: User, gateway: Gateway) -> None:
    code = decide(browser(member), app.question(gateway, scope="claudeai offline_access openid"))["code"]

    assert app.exchange(code).json()["scope"] == "mcp"


@pytest.mark.full
def test_without_a_resource_the_person_picks_the_gateway(app: App, member: User) -> None:
    gateway = make.gateway()

    code = decide(browser(member), app.question(None))["code"]

    assert app.exchange(code).status_code == 200
    assert Connection.objects.get().gateway == gateway


@pytest.mark.full
def test_a_flow_belongs_to_the_person_and_browser_that_began_it(app: App, member: User, gateway: Gateway) -> None:
    """Attack: another person in the same browser, or the same person in another browser, continues a flow."""
    mine = browser(member)
    page = mine.get(app.question(gateway))["Location"]

    assert browser(member).get(page).status_code == 404
    mine.force_login(make.user(Capability.OAUTH_CONNECT))
    assert mine.get(page).status_code == 404


@pytest.mark.full
def test_a_finished_flow_gives_no_second_code(app: App, member: User, gateway: Gateway) -> None:
    client = browser(member)
    page = client.get(app.question(gateway))["Location"]
    consent = client.post(page, {"gateway": gateway.slug})["Location"]
    client.post(consent, {"decision": "allow"})

    again = client.post(consent, {"decision": "allow"})

    assert again.status_code == 410
    assert "Refresh" not in again


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_allowed_in_two_windows_at_once_it_gives_one_code(app: App, member: User, gateway: Gateway) -> None:
    client, second = browser(member), Client()
    page = client.get(app.question(gateway))["Location"]
    consent = client.post(page, {"gateway": gateway.slug})["Location"]
    second.cookies = client.cookies

    late = meanwhile(
        lambda: second.post(consent, {"decision": "allow"}), lambda: client.post(consent, {"decision": "allow"})
    )

    assert (late.status_code, "Refresh" in late) == (410, False)
    assert Grant.objects.count() == 1


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_a_connection_disabled_while_the_person_allows_gives_no_code(app: App, member: User, gateway: Gateway) -> None:
    connect(app, member, gateway)
    client, link = browser(member), Connection.objects.get()
    page = client.get(app.question(gateway))["Location"]
    consent = client.post(page, {"gateway": gateway.slug})["Location"]

    refused = meanwhile(lambda: client.post(consent, {"decision": "allow"}), lambda: link.disable(by=make.user()))

    assert refused.status_code == 403
    assert query(refused["Refresh"].partition("url=")[2])["error"] == "access_denied"
    assert "code=" not in refused["Refresh"]
    assert b"This connection has been disabled by an administrator." in refused.content
    assert not Grant.objects.exists()


def elsewhere(path: str, **body: str) -> Any:
    """Return the response to a request from another address, which has separate rate limits."""
    return Client(REMOTE_ADDR="198.51.100.7").post(path, body)


@pytest.mark.django_db(transaction=True)
def test_a_code_exchanged_twice_at_once_gives_one_pair_of_tokens(app: App, member: User, gateway: Gateway) -> None:
    """Attack: a stolen code is sent at the same moment as the app's own request."""
    code = decide(browser(member), app.question(gateway))["code"]
    same = {"grant_type": "authorization_code", "code": code, "client_id": app.client_id}

    late = meanwhile(
        lambda: app.exchange(code),
        lambda: elsewhere("/oauth/token", **same, redirect_uri=CALLBACK, code_verifier=app.verifier),
    )

    assert (late.status_code, late.json()["error"]) == (400, "invalid_grant")
    assert RefreshToken.objects.count() == 1


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("ends", ["connection", "family"])
def test_a_refresh_that_waits_for_the_end_of_its_tokens_brings_none(
    ends: str, app: App, member: User, gateway: Gateway
) -> None:
    refresh = connect(app, member, gateway)["refresh_token"]
    link = Connection.objects.get()

    def end() -> None:
        if ends == "connection":
            link.revoke(by=member)
        else:
            elsewhere("/oauth/revoke", token=refresh, client_id=app.client_id)

    late = meanwhile(lambda: app.refresh(refresh), end)

    assert (late.status_code, late.json()["error"]) == (400, "invalid_grant")
    assert RefreshToken.objects.count() == 1


def test_a_member_without_the_capability_connects_nothing(app: App, gateway: Gateway) -> None:
    client = browser(make.user())

    response = client.get(client.get(app.question(gateway))["Location"])

    assert response.status_code == 403
    assert b"Authenticate via OAuth" in response.content


@pytest.mark.full
def test_a_new_app_waits_for_approval_where_the_workspace_says_so(app: App, member: User, gateway: Gateway) -> None:
    WorkspaceSettings.edit(by=None, new_app_policy="approve")
    client = browser(member)

    begun = client.get(app.question(gateway))["Location"]
    asked = client.get(begun)
    assert b"An administrator must approve new apps" in asked.content
    assert not Host.objects.exists()  # Opening the page does not request approval.
    assert client.post(begun, {"gateway": gateway.slug}).status_code == 200
    assert not Host.objects.exists()

    waiting = client.post(begun, {"ask": "yes"}, follow=True)
    assert waiting.status_code == 403
    assert b"waiting for an administrator" in waiting.content
    assert client.get(client.get(app.question(gateway))["Location"]).status_code == 403

    Host.objects.get().approve(by=make.user())
    assert "code" in decide(client, app.question(gateway))


@pytest.mark.full
def test_those_who_approve_apps_hear_of_a_new_one_and_who_asked_hears_of_the_approval(
    app: App, member: User, gateway: Gateway
) -> None:
    WorkspaceSettings.edit(by=None, new_app_policy="approve")
    chief = make.user(Capability.HOSTS_TOGGLE, email="chief@example.com")
    client = browser(member)
    begun = client.get(app.question(gateway))["Location"]

    client.post(begun, {"ask": "yes"})
    telling.tell_at_once()
    telling.deliver_due()
    host = Host.objects.get()
    dashboards = [browser(person).get("/").content.decode() for person in (chief, member)]
    host.approve(by=chief)
    telling.tell_at_once()
    telling.deliver_due()

    waits = f"{host.name} waits for approval"
    assert [waits in page for page in dashboards] == [True, False]
    assert waits not in browser(chief).get("/").content.decode()
    asked, approved = mail.outbox
    assert (asked.subject, asked.bcc) == ("1 app waits for approval", [chief.email])
    assert host.name in asked.body
    assert "/hosts/?status=pending" in asked.body
    assert (approved.subject, approved.bcc) == (f"{host.name} is approved", [member.email])


@pytest.mark.full
def test_a_disabled_app_is_told_so(app: App, member: User, gateway: Gateway) -> None:
    connect(app, member, gateway)
    Host.objects.get().disable(by=member)
    client = browser(member)

    response = client.get(client.get(app.question(gateway))["Location"])

    assert response.status_code == 403
    assert b"An administrator has disabled this app." in response.content


@pytest.mark.full
def test_the_consent_page_is_never_framed(app: App, member: User, gateway: Gateway) -> None:
    """Attack: clickjacking."""
    client = browser(member)
    begun = client.get(app.question(gateway))["Location"]
    page = client.get(client.post(begun, {"gateway": gateway.slug})["Location"])

    assert b"Allow" in page.content
    assert "frame-ancestors 'none'" in page["Content-Security-Policy"]
    assert page["X-Frame-Options"] == "DENY"
