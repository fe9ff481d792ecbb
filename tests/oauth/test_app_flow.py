"""A headed app connects by itself: register, authorise, exchange, refresh, revoke."""

import re
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.core import mail
from django.test import Client
from django.utils import timezone
from oauth2_provider.models import Application, Grant, RefreshToken

from accounts.models import User, WorkspaceSettings
from attention import telling
from auditlog.models import Event
from capabilities import Capability
from connections.models import Connection, HostAtGateway
from gatewayadmin.config.key_uses import key_uses
from gateways.models import Gateway
from hosts.models import Host
from oauth.models import Binding, Registration
from tests import make
from tests.issuers import query
from tests.meanwhile import meanwhile
from tests.oauth.apps import CALLBACK, App, browser, connect, decide, register
from tests.oauth.steps import per_user, text
from tokens.models import Token
from wire import token_text

pytestmark = pytest.mark.django_db


@pytest.mark.full
def test_an_app_appears_by_itself_and_gets_tokens_for_one_gateway(app: App, member: User, gateway: Gateway) -> None:
    """Authorising again asks for consent, keeps the connection and its key, and adds a token family."""
    answer = decide(browser(member), app.question(gateway))
    tokens = app.exchange(answer["code"]).json()

    assert answer["to"] == CALLBACK
    assert (answer["state"], answer["iss"]) == ("xyz", "http://localhost:8000")
    assert tokens["expires_in"] <= 3600
    assert token_text.well_formed(tokens["access_token"], {"gwo"})
    assert token_text.well_formed(tokens["refresh_token"], {"gwr"})
    stored = RefreshToken.objects.get()
    assert tokens["refresh_token"] not in str(vars(stored))
    assert tokens["access_token"] not in str(vars(stored.access_token))
    connection, key = Connection.objects.get(), Token.objects.get()
    assert (connection.user, connection.gateway, connection.host.name) == (member, gateway, "Claude Desktop")
    assert connection.host.kind == "headed"
    assert connection.last_token_at is None
    assert (key.connection, key.kind, key.prefix[:4]) == (connection, "key", "gwk_")
    assert Binding.objects.filter(access_token__isnull=False).get().connection == connection

    again = browser(member).get(app.question(gateway, approval_prompt="auto"))
    assert again["Location"].startswith("/connect/"), "the toolkit's setting to skip the consent is on"
    connect(app, member, gateway)
    assert Connection.objects.get() == connection
    assert Token.objects.get().prefix == key.prefix
    assert RefreshToken.objects.values("token_family").distinct().count() == 2


@pytest.mark.full
def test_a_second_registration_of_the_same_app_joins_its_host_and_one_that_borrows_its_name_does_not(
    app: App, member: User, gateway: Gateway
) -> None:
    """Registrations may differ in the loopback port. Attack: another redirect URI under a known name."""
    connect(app, member, gateway)
    again = register(redirect_uris=["http://127.0.0.1:51000/callback"], client_name="claude desktop").json()
    other = App(again["client_id"], redirect_uri="http://127.0.0.1:51000/callback")
    connect(other, make.user(Capability.OAUTH_CONNECT), gateway)
    host = Host.objects.get()
    assert Connection.objects.filter(host=host).count() == 2
    assert Registration.objects.filter(host=host).count() == 2

    uris = [CALLBACK, "https://thief.example.com/cb"]
    thief = register(client_name="CLAUDE  Desktop", redirect_uris=uris).json()
    connect(App(thief["client_id"], redirect_uri=uris[1]), member, gateway)
    connect(App(register(client_name=None).json()["client_id"]), member, gateway)

    assert Connection.objects.filter(host=host).count() == 2
    assert set(Host.objects.exclude(pk=host.pk).values_list("name", flat=True)) == {"CLAUDE Desktop", "MCP Client"}


@pytest.mark.full
def test_a_code_works_once_and_its_replay_ends_what_it_brought(app: App, member: User, gateway: Gateway) -> None:
    """Attack: code replay (OAuth 2.1 section 4.1.3). The tokens issued for the code are revoked."""
    code = decide(browser(member), app.question(gateway))["code"]
    tokens = app.exchange(code).json()

    assert app.exchange(code).json()["error"] == "invalid_grant"
    assert app.refresh(tokens["refresh_token"]).json()["error"] == "invalid_grant"
    ended = Event.objects.get(action="oauth.family_ended")
    assert (ended.via, ended.changes) == ("oauth", {"reason": [None, "code used again"], "owner": member.email})


@pytest.mark.full
def test_a_code_is_worth_nothing_to_others(app: App, member: User, gateway: Gateway, subtests: pytest.Subtests) -> None:
    """Attack: a stolen code with another verifier, redirect URI, resource or client."""
    client = browser(member)
    for change, error in (
        ({"code_verifier": "x" * 64}, "invalid_grant"),
        ({"code_verifier": ""}, "invalid_grant"),
        ({"redirect_uri": "http://127.0.0.1:33418/other"}, "invalid_grant"),
        ({"redirect_uri": "http://127.0.0.1:33419/callback"}, "invalid_grant"),
        ({"resource": "http://localhost:8000/mcp/another"}, "invalid_target"),
        ({"resource": "http://[localhost:8000/mcp"}, "invalid_target"),
        ({"client_id": "somebody"}, "invalid_client"),
        ({"client_id": register().json()["client_id"]}, "invalid_grant"),
    ):
        with subtests.test(str(change)):
            code = decide(client, app.question(gateway))["code"]

            response = app.exchange(code, **change)

            assert response.status_code in {400, 401}
            assert response.json()["error"] == error


@pytest.mark.full
def test_a_code_dies_with_its_minute_and_with_its_connection(app: App, member: User, gateway: Gateway) -> None:
    old = decide(browser(member), app.question(gateway))["code"]
    Grant.objects.update(expires=timezone.now())
    assert app.exchange(old).json()["error"] == "invalid_grant"

    code = decide(browser(member), app.question(gateway))["code"]
    Connection.objects.get().revoke(by=member)
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
def test_a_refresh_outlives_switches_and_a_new_key_but_neither_deactivation_nor_a_month_of_silence(
    app: App, member: User, gateway: Gateway
) -> None:
    """A disabled object stops calls, but not refreshes, because an app opens a browser after a failed refresh."""
    make.user(Capability.PEOPLE_MANAGE)
    refresh = connect(app, member, gateway)["refresh_token"]
    connection = Connection.objects.get()
    for layer in (connection.host, gateway, connection):
        layer.disable(by=member)
        refresh = app.refresh(refresh).json()["refresh_token"]

    Token.objects.renew_key(connection, by=member)
    refresh = app.refresh(refresh).json()["refresh_token"]
    generations = Binding.objects.filter(access_token__isnull=False).values_list("generation", flat=True)
    assert {*generations} >= {1, 2}, "the next access token has the new generation"
    assert not +key_uses()[0].uses, "no token key digests what an app sends"

    member.deactivate(by=None)
    assert app.refresh(refresh).json()["error"] == "invalid_grant"
    member.reactivate(by=None)
    refresh = app.refresh(refresh).json()["refresh_token"]
    RefreshToken.objects.update(created=timezone.now() - timedelta(days=30))
    assert app.refresh(refresh).json()["error"] == "invalid_grant"


@pytest.mark.full
def test_the_app_itself_ends_one_family_only(app: App, member: User, gateway: Gateway) -> None:
    """An app revokes one token family; other families stay (RFC 7009)."""
    one, other = connect(app, member, gateway), connect(app, member, gateway)

    gone = Client().post("/oauth/revoke", {"token": one["access_token"], "client_id": app.client_id})

    assert gone.status_code == 200
    assert app.refresh(one["refresh_token"]).json()["error"] == "invalid_grant"
    assert app.refresh(other["refresh_token"]).status_code == 200


@pytest.mark.full
def test_an_app_that_the_gateway_does_not_allow_is_refused_to_a_newcomer_before_anything_is_made(
    app: App, member: User, gateway: Gateway
) -> None:
    other, person = make.gateway(), browser(member)
    Gateway.objects.filter(pk=other.pk).update(hosts_allowed="all")

    def refused() -> None:
        before = Host.objects.count(), Connection.objects.count(), Token.objects.count()
        page = person.get(person.get(app.question(gateway))["Location"])
        offered = person.get(person.get(app.question(None))["Location"]).context["offered"]

        assert page.status_code == 403
        assert "This gateway does not allow this app or agent." in page.content.decode()
        assert [one for one, _ in offered] == [other]
        assert (Host.objects.count(), Connection.objects.count(), Token.objects.count()) == before

    Gateway.objects.filter(pk=gateway.pk).update(hosts_allowed="listed")
    refused()
    Gateway.objects.filter(pk=gateway.pk).update(hosts_allowed="all")
    connect(app, make.user(Capability.OAUTH_CONNECT), gateway)
    HostAtGateway.objects.at(gateway, Host.objects.get()).block(by=member)
    refused()


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
def test_each_step_before_the_consent_can_be_denied(app: App, member: User, gateway: Gateway) -> None:
    per_user(gateway)
    make.gateway()
    client = browser(member)
    for at in ("gateway", "identity"):
        page = client.get(app.question(None))["Location"]
        if at == "identity":
            page = client.post(page, {"gateway": gateway.slug})["Location"]
            assert "/identity/" in page
        shown = client.get(page).content.decode()
        form = re.search(r'<form id="deny" method="post" action="([^"]+)">.*name="decision" value="deny"', shown)
        assert form
        first = re.search(r'<form method="post"(?! ?action)[^>]*>.*?</form>', shown, re.DOTALL)
        assert first, "The form of the step itself"
        own = [button for button in re.findall(r"<button[^>]*>", first[0]) if "form=" not in button]
        assert len(own) == 1, "Enter in a field is the step's own button and no other."

        sent = client.post(form[1], {"decision": "deny"})

        assert query(sent["Refresh"].removeprefix("0; url="))["error"] == "access_denied"
    assert not Connection.objects.exists()


@pytest.mark.full
def test_people_who_may_not_connect_apps_get_an_error_and_an_approved_app_gets_access_denied(
    app: App, member: User, gateway: Gateway
) -> None:
    person = browser(make.user())
    page = person.get(person.get(app.question(gateway))["Location"])
    assert page.status_code == 403
    assert "Refresh" not in page, "an app that nobody connected gets the answer only from the person"
    assert "error=access_denied" in page.content.decode()
    connect(app, member, gateway)

    page = person.get(person.get(app.question(gateway))["Location"])

    assert page.status_code == 403
    assert "Your role lacks Authenticate via OAuth." in page.content.decode()
    assert 'name="capability" value="oauth:connect"' in page.content.decode()
    seconds, _, url = page["Refresh"].partition("; url=")
    answer = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    assert int(seconds) >= 10, "time to read it"
    assert (answer["error"], answer["state"], answer["iss"]) == ("access_denied", "xyz", "http://localhost:8000")
    assert answer["error_description"] == "The gateway refused access."


WEB = "https://app.example.com/callback"
NOT_LOOPBACK = (
    "http://127.0.0.1:33418/other",
    "https://evil.example/callback",
    "http://evil.example:33418/callback",
    "http://127.0.0.1@evil.example/callback",
    "http://127.0.0.1:33418/callback#x",
    "https://127.0.0.1:33418/callback",
    "http://localhost:33418/callback",
    "http://127.0.0.1.:33418/callback",
    "http://127.0.0.1:33418/callback/",
    "http://127.0.0.1:33418/callback?x=1",
    "http://127.0.0.1:33418/callback/../other",
    "http://127.0.0.1:33418/call%62ack",
    "http://127.0.0.1:33418\\@evil.example/callback",
    "//evil.example/callback",
    "cursor://anysphere/callback",
    "",
    "javascript:alert(1)",
)
NOT_WEB = (
    "http://app.example.com/callback",
    "https://app.example.com:8443/callback",
    "https://app.example.com/other",
    "https://app.example.com/callback/more",
    "https://app.example.com/callback?next=https://evil.example",
    "https://app.example.com.evil.example/callback",
    "https://app.example.com@evil.example/callback",
    "https://evil.example#@app.example.com/callback",
    "https://APP.example.com/callback/",
)


@pytest.mark.full
def test_nothing_is_sent_to_an_address_that_is_not_the_apps(
    app: App, member: User, gateway: Gateway, subtests: pytest.Subtests
) -> None:
    """Attack: a redirect URI that the app did not register. Visitors get a 400 page, signed in or not."""
    web = App(register(redirect_uris=[WEB]).json()["client_id"])
    links = [app.question(gateway, redirect_uri=uri) for uri in NOT_LOOPBACK]
    links += [web.question(gateway, redirect_uri=uri) for uri in NOT_WEB]
    people = (browser(member), Client())
    for link in (*links, app.question(gateway, client_id="nobody")):
        with subtests.test(link):
            for somebody in people:
                response = somebody.get(link)

                assert response.status_code == 400
                assert not {"Location", "Refresh"} & set(response.headers)


@pytest.mark.full
def test_another_loopback_port_is_the_same_address(member: User, gateway: Gateway) -> None:
    """A loopback redirect URI matches with any port (RFC 8252 section 7.3)."""
    for host in ("127.0.0.1", "[::1]", "localhost"):
        registered = register(redirect_uris=[f"http://{host}:1024/callback"]).json()
        app = App(registered["client_id"], redirect_uri=f"http://{host}:50123/callback")

        answer = decide(browser(member), app.question(gateway))

        assert answer["to"] == app.redirect_uri
        assert app.exchange(answer["code"]).status_code == 200


@pytest.mark.full
def test_consent_says_which_app_gets_what_and_where_the_answer_goes(app: App, member: User) -> None:
    """Consent pages list enabled servers only, call the app unverified, and refuse frames (attack: clickjacking)."""
    off, gateway = make.server(name="Archive"), make.gateway(make.server(name="Handbook"), name="Work")
    make.assignment(gateway, make.server(name="Wiki")).disable(by=member)
    make.assignment(gateway, off)
    off.disable(by=member)
    client = browser(member)
    begun = client.get(app.question(gateway))["Location"]

    choice = client.get(begun).content.decode()
    page = client.get(client.post(begun, {"gateway": gateway.slug})["Location"])
    consent = page.content.decode()

    assert ">1 server</span>" in choice
    for words in ("Claude Desktop", "is not verified", member.email, "Work", "Handbook", CALLBACK, "your own machine"):
        assert words in consent
    assert "1 server, 0 usable tools" in consent
    assert "Archive" not in consent
    assert "Wiki" not in consent
    assert "frame-ancestors 'none'" in page["Content-Security-Policy"]
    assert page["X-Frame-Options"] == "DENY"


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
        ("Handbook", "needs no credential"),
        (brought.name, "as ann-work"),
        (skipped.name, "with the credential you chose before, if any"),
    ):
        assert words in page.split(server)[1].split("</li>")[0], server


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"code_challenge": None, "code_challenge_method": None}, "invalid_request"),
    ({"code_challenge_method": "plain"}, "invalid_request"),
    ({"code_challenge_method": None}, "invalid_request"),
    ({"code_challenge": "x" * 42}, "invalid_request"),
    ({"code_challenge": "x" * 129}, "invalid_request"),
    ({"code_challenge": "x" * 42 + "\xe9"}, "invalid_request"),
    ({"resource": "https://elsewhere.example/mcp/x"}, "invalid_target"),
    ({"resource": "http://localhost:8000"}, "invalid_target"),
    ({"resource": "http://localhost:8000/mcp/unknown"}, "invalid_target"),
    ({"response_type": "token"}, "unsupported_response_type"),
    ({"prompt": "none"}, "interaction_required"),
]


@pytest.mark.full
def test_a_wrong_question_goes_back_with_its_error_state_and_issuer(
    app: App, member: User, gateway: Gateway, subtests: pytest.Subtests
) -> None:
    """Errors are sent only to an approved app, because a link must never redirect to a stranger's address."""
    connect(app, member, gateway)
    client = browser(member)
    for change, error in WRONG:
        with subtests.test(str(change)):
            response = client.get(app.question(gateway, **change))

            assert response.status_code == 302
            answer = parse_qs(urlsplit(response["Location"]).query)
            assert response["Location"].startswith(CALLBACK)
            assert (answer["error"], answer["state"], answer["iss"]) == ([error], ["xyz"], ["http://localhost:8000"])


def test_a_stranger_signs_in_first_and_comes_back(app: App, gateway: Gateway) -> None:
    response = Client().get(app.question(gateway))

    assert response.status_code == 302
    assert parse_qs(urlsplit(response["Location"]).query)["next"][0].startswith("/oauth/authorize?")


@pytest.mark.full
def test_without_a_resource_the_person_picks_the_gateway_and_unknown_scopes_are_dropped(app: App, member: User) -> None:
    gateway, client = make.gateway(), browser(member)

    choice = text(client.get(client.get(app.question(None))["Location"]))
    assert (f'value="{gateway.slug}" required' in choice, " checked" in choice) == (True, False)
    code = decide(client, app.question(None, scope="claudeai offline_access openid"))["code"]
    told = app.exchange(code).json()

    assert told["scope"] == "mcp"
    assert Connection.objects.get().gateway == gateway
    code = decide(client, app.question(None, resource=gateway.url + "/"))["code"]  # It may end with a slash.
    assert app.exchange(code, resource=gateway.url).status_code == 200


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


def test_an_app_with_another_redirect_uri_by_now_is_refused_on_a_page_and_not_connected(
    app: App, member: User, gateway: Gateway
) -> None:
    client = browser(member)
    page = client.get(app.question(gateway))["Location"]
    consent = client.post(page, {"gateway": gateway.slug})["Location"]
    Application.objects.update(redirect_uris="http://127.0.0.1:33418/other")

    refused = client.post(consent, {"decision": "allow"})
    denied = client.post(consent, {"decision": "deny"})
    over = client.post(consent, {"decision": "allow"})

    assert "Mismatching redirect URI." in text(refused)
    assert "You declined" in text(denied)
    assert [answer.status_code for answer in (refused, denied, over)] == [400, 200, 410]
    for answer in (refused, denied, over):
        assert "Refresh" not in answer
        assert CALLBACK not in answer.content.decode()
    assert not Connection.objects.exists()


def test_an_app_that_is_refused_is_not_linked_at_a_redirect_uri_that_it_no_longer_has(
    app: App, member: User, gateway: Gateway
) -> None:
    connect(app, member, gateway)
    client = browser(member)
    page = client.get(app.question(gateway))["Location"]
    Host.objects.update(enabled=False)
    linked = client.get(page)
    Application.objects.update(redirect_uris="http://127.0.0.1:33418/other")

    refused = client.get(page)

    assert (linked.status_code, refused.status_code) == (403, 403)
    assert CALLBACK in linked.content.decode()
    assert CALLBACK not in refused.content.decode()


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


@pytest.mark.django_db(transaction=True)
def test_a_person_cut_off_while_they_allow_an_app_gets_no_connection(app: App, member: User, gateway: Gateway) -> None:
    client, manager = browser(member), make.user(*Capability)
    page = client.get(app.question(gateway))["Location"]
    consent = client.post(page, {"gateway": gateway.slug})["Location"]

    refused = meanwhile(
        lambda: client.post(consent, {"decision": "allow"}), lambda: Connection.objects.cut_off(member, by=manager)
    )

    assert (refused.status_code, b"Your access ended meanwhile." in refused.content) == (403, True)
    assert not Grant.objects.exists()
    assert not Connection.objects.exists()


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


@pytest.mark.full
def test_a_new_app_waits_for_approval_where_the_workspace_says_so(app: App, member: User, gateway: Gateway) -> None:
    WorkspaceSettings.edit(by=None, new_app_policy="approve")
    before, client = Event.objects.count(), browser(member)

    begun = client.get(app.question(gateway))["Location"]
    asked = client.get(begun)
    assert b"An administrator must approve new apps" in asked.content
    assert b"Ask for approval" in asked.content
    assert client.post(begun, {"gateway": gateway.slug}).status_code == 200
    # Opening the page does not request approval.
    assert (Host.objects.count(), Event.objects.count()) == (0, before)
    assert Registration.objects.get().host is None

    waiting = client.post(begun, {"ask": "yes"}, follow=True)
    assert waiting.status_code == 403
    assert b"waiting for an administrator" in waiting.content
    assert client.get(client.get(app.question(gateway))["Location"]).status_code == 403

    Host.objects.get().approve(by=make.user())
    telling.tell_at_once()
    telling.deliver_due()
    assert (mail.outbox[-1].subject, mail.outbox[-1].bcc) == ("Claude Desktop is approved", [member.email])
    assert "code" in decide(client, app.question(gateway))
