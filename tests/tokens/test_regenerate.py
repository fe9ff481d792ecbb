"""Regenerating a token: the confirmation, and the new secret, shown once to people who may see it."""

import pytest
from django.test import Client
from django.utils import timezone

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from connections.models import Connection
from hosts.models import Host
from tests import make
from tests.conftest import SignIn
from tests.meanwhile import meanwhile
from tests.tokens.rows import HTMX, ON_LIST, a_connection, row, secret_in, text
from tokens.models import Token
from wire import token_text

pytestmark = pytest.mark.django_db

ASKED = "Regenerate this API access token? The old token stops working immediately."
ASKED_OF_APP = "Regenerate the API key for this connection? The old key will be deactivated immediately."
RENEWED = "API key regenerated. The client picks up a new access token on its own, within 1 hour at most."
GONE = "This token is no longer shown."


@pytest.fixture
def token(ana: User) -> Token:
    return make.token(a_connection(ana, name="CI bot"), name="ci").token


@pytest.fixture
def app(ann: User) -> Connection:
    """An app's connection, whose key is never shown."""
    link = make.connection(Host.objects.create(kind="headed", name="Claude Desktop"), make.gateway(), ann)
    Token.objects.provide_key(link, by=ann)
    return link


def path(token: Token) -> str:
    return f"/tokens/{token.pk}/regenerate/"


def key_path(link: Connection) -> str:
    return f"/connections/{link.pk}/regenerate/"


def generation(token: Token) -> int:
    return Token.objects.get(pk=token.pk).generation


@pytest.mark.full
def test_it_asks_with_the_focus_on_cancel_and_everything_but_the_secret_stays(ana: User, sign_in: SignIn) -> None:
    token = make.token(a_connection(ana), name="ci", allowed_ips=["10.0.0.1"]).token
    kept = ("id", "name", "expires_at", "allowed_ips", "scope_all", "created_at", "connection_id")
    before = Token.objects.filter(pk=token.pk).values(*kept).get()
    client = sign_in(ana)

    asked = text(client.get(path(token), headers=ON_LIST))
    assert ASKED in asked
    assert "autofocus>Cancel" in asked
    assert generation(token) == 1

    page = text(client.post(path(token), {"generation": 1}))
    assert "<html" in page
    assert '<dialog class="dialog" id="token-issued"' in page
    assert 'hx-history="false"' in page
    assert Token.objects.filter(pk=token.pk).values(*kept).get() == before
    token.connection.refresh_from_db()
    assert token.connection.last_token_at


@pytest.mark.full
def test_the_new_secret_is_in_that_one_answer_beside_the_changed_row(ana: User, token: Token, sign_in: SignIn) -> None:
    client = sign_in(ana)

    answer = client.post(path(token), {"generation": 1}, headers=ON_LIST)

    new = secret_in(answer)
    assert new
    assert token_text.well_formed(new, {token_text.ACCESS})
    assert Token.objects.get(pk=token.pk).is_held_by(new)
    assert new[:12] != token.prefix
    assert answer["HX-Reswap"] == "innerHTML"
    assert 'hx-swap-oob="true"' in row(answer, token).partition(">")[0]
    assert new[:12] in row(answer, token)
    assert "no-store" in answer["Cache-Control"]
    assert answer["Referrer-Policy"] == "no-referrer"
    assert new not in str(dict(client.session)) + str(list(Event.objects.values()))
    assert new not in text(client.get("/settings/api-tokens"))


@pytest.mark.full
def test_the_same_post_again_shows_nothing_and_changes_nothing(ana: User, token: Token, sign_in: SignIn) -> None:
    """Reloading the page repeats the POST."""
    client = sign_in(ana)
    first = client.post(path(token), {"generation": 1})

    again = client.post(path(token), {"generation": 1})
    clicked_twice = client.post(path(token), {"generation": 1}, headers=ON_LIST)

    assert secret_in(first)
    assert GONE in text(first)  # The text that replaces the dialog once it is closed.
    assert GONE in text(again)
    assert secret_in(again) is secret_in(clicked_twice) is None
    assert "no longer shown" in clicked_twice["HX-Trigger"]
    assert generation(token) == 2


@pytest.mark.full
def test_no_capability_opens_the_secret_of_anothers_token(token: Token, app: Connection, sign_in: SignIn) -> None:
    for capabilities, status in (
        (set[Capability](), 404),
        ({Capability.MCP_CONNECTIONS_READ}, 403),
        ({Capability.API_TOKENS_MANAGE}, 403),
        (set(Capability), 403),
    ):
        client = sign_in(make.user(*capabilities))
        assert client.get(path(token)).status_code == client.post(path(token)).status_code == status
    for url in (path(token), key_path(app)):
        assert Client().post(url)["Location"].startswith("/accounts/login/")
    assert generation(token) == 1


@pytest.mark.full
def test_the_break_glass_covers_it_too(ana: User, token: Token, app: Connection, sign_in: SignIn) -> None:
    client = sign_in(ana)
    for layer in ("connection", "host", "gateway"):
        for link in (token.connection, app):
            (link if layer == "connection" else getattr(link, layer)).disable(by=ana)

        for url in (path(token), key_path(token.connection), key_path(app)):
            assert client.post(url).status_code == 403, layer

        for link in (token.connection, app):
            (link if layer == "connection" else getattr(link, layer)).enable(by=ana)
    assert set(Token.objects.values_list("generation", flat=True)) == {1}


@pytest.mark.full
def test_ended_tokens_get_no_new_secret(ana: User, token: Token, app: Connection, sign_in: SignIn) -> None:
    client = sign_in(ana)

    def refused_with(words: str, url: str) -> None:
        for answer in (client.get(url, headers=ON_LIST), client.post(url, headers=ON_LIST)):
            assert words in answer["HX-Trigger"]

    Token.objects.filter(pk=token.pk).update(expires_at=timezone.now())
    refused_with("This token has expired. Create a new one.", path(token))
    token.revoke(by=ana)
    refused_with("This token is already revoked.", path(token))
    refused_with("This connection has no active token.", key_path(token.connection))
    app.revoke(by=ana)
    refused_with("already revoked", key_path(app))
    assert generation(token) == 1
    assert not Event.objects.filter(action="connection.key_regenerated").exists()


# --- The key button of a connection -----------------------------------------------------------------------------------


@pytest.mark.full
def test_an_apps_key_is_renewed_and_shown_to_nobody(ana: User, app: Connection, sign_in: SignIn) -> None:
    """The prefix changes; status and connected date do not, and no secret is shown."""
    before = Token.objects.get(connection=app)
    client = sign_in(ana)

    asked = text(client.get(key_path(app), headers=HTMX))
    answer = client.post(key_path(app), headers=HTMX)

    after = Token.objects.get(connection=app)
    connected = app.connected_at
    app.refresh_from_db()
    assert ASKED_OF_APP in asked
    assert "If a refresh token leaked, revoke the connection instead." in asked
    assert (after.generation, after.prefix != before.prefix, app.connected_at) == (2, True, connected)
    assert app.last_token_at is None  # Only a refresh sets `last_token_at`.
    assert 'data-state="active"' in text(answer)
    assert after.prefix in text(answer)
    assert RENEWED in text(answer)
    assert 'id="notices" hx-swap-oob="true"' in text(answer)
    assert secret_in(answer) is None
    assert Event.objects.filter(action="connection.key_regenerated").count() == 1


@pytest.mark.full
def test_an_apps_key_takes_one_capability(ann: User, app: Connection, sign_in: SignIn) -> None:
    """Even the owner may not renew the key without the capability."""
    both = {Capability.MCP_CONNECTIONS_READ, Capability.MCP_CONNECTIONS_REVOKE}
    for person, status in (
        (make.user(), 404),
        (make.user(Capability.MCP_CONNECTIONS_READ), 403),
        (make.user(*set(Capability) - {Capability.MCP_CONNECTIONS_REVOKE}), 403),
        (ann, 403),
        (make.user(*both), 302),
    ):
        client = sign_in(person)

        assert client.get(key_path(app)).status_code == (200 if status == 302 else status)
        assert client.post(key_path(app)).status_code == status
        assert Token.objects.get(connection=app).generation == (2 if status == 302 else 1)


@pytest.mark.full
def test_an_agents_only_token_is_regenerated_by_the_same_button(ana: User, token: Token, sign_in: SignIn) -> None:
    client = sign_in(ana)

    asked = client.get(key_path(token.connection), headers=HTMX)
    answer = client.post(key_path(token.connection), {"generation": 1}, headers=HTMX)

    assert ASKED in text(asked)
    assert Token.objects.get(pk=token.pk).is_held_by(secret_in(answer) or "")
    assert f'<tbody id="connection-{token.connection_id}" class="changed" hx-swap-oob="true">' in text(answer)


@pytest.mark.full
def test_several_tokens_need_a_choice_first(ana: User, token: Token, sign_in: SignIn) -> None:
    other = make.token(token.connection).token
    client = sign_in(ana)

    for answer in (client.get(key_path(token.connection)), client.post(key_path(token.connection))):
        assert {path(token), path(other)} <= set(text(answer).split('"'))
    assert (generation(token), generation(other)) == (1, 1)


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_a_connection_that_ends_at_that_moment_gets_no_other_key(ana: User, app: Connection, sign_in: SignIn) -> None:
    client, before = sign_in(ana), Token.objects.get(connection=app).prefix

    answer = meanwhile(
        lambda: client.post(f"/connections/{app.pk}/regenerate/", headers=ON_LIST), lambda: app.revoke(by=ana)
    )

    assert "This connection is already revoked." in answer["HX-Trigger"]
    assert Token.objects.get(connection=app).prefix == before


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_a_token_that_ends_at_that_moment_gets_no_other_secret(ana: User, token: Token, sign_in: SignIn) -> None:
    client, gone = sign_in(ana), Token.objects.get()

    answer = meanwhile(
        lambda: client.post(f"/tokens/{token.pk}/regenerate/", headers=ON_LIST), lambda: gone.revoke(by=ana)
    )

    assert (secret_in(answer), "This token is already revoked." in answer["HX-Trigger"]) == (None, True)
    assert (Token.objects.get().prefix, Token.objects.get().status) == (token.prefix, "revoked")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("overlap", [0, 24])
def test_regenerated_in_two_windows_at_once_it_gets_one_secret(
    overlap: int, ana: User, token: Token, sign_in: SignIn
) -> None:
    client, faster = sign_in(ana), Token.objects.get()

    answer = meanwhile(
        lambda: client.post(f"/tokens/{token.pk}/regenerate/", {"overlap_hours": overlap}, headers=ON_LIST),
        lambda: faster.rotate(by=ana, overlap_hours=overlap),
    )

    assert (secret_in(answer), "was regenerated already" in answer["HX-Trigger"]) == (None, True)
    assert Token.objects.get().prefix == faster.prefix
    assert Event.objects.filter(action="token.rotated").count() == 1


@pytest.mark.django_db(transaction=True)
def test_a_token_that_is_to_be_collected_from_that_moment_on_is_not_regenerated(
    ana: User, token: Token, sign_in: SignIn
) -> None:
    client, asked = sign_in(ana), Token.objects.get()

    answer = meanwhile(
        lambda: client.post(f"/tokens/{token.pk}/regenerate/", headers=ON_LIST), lambda: asked.ask_for_new(by=ana)
    )

    assert (secret_in(answer), "Collect the new token." in answer["HX-Trigger"]) == (None, True)
    assert Token.objects.get().status == "waiting"
