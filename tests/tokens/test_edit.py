"""Editing a token changes only its name, expiration date and IP allowlist."""

from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from django.test import Client
from django.utils import timezone

from accounts.models import User, WorkspaceSettings
from auditlog.models import Event
from capabilities import Capability
from tests import make
from tests.conftest import SignIn
from tests.meanwhile import meanwhile
from tests.tokens.rows import HTMX, ON_LIST, a_connection, row, text
from tokens.models import Token

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
KEPT: dict[str, str] = {"name": "ci", "expires_in_days": "", "allowed_ips": ""}


@pytest.fixture
def token(ana: User) -> Token:
    return make.token(a_connection(ana), name="ci").token


def path(token: Token) -> str:
    return f"/tokens/{token.pk}/edit/"


@pytest.mark.full
def test_the_dialog_shows_what_is_and_says_what_cannot_change(ana: User, sign_in: SignIn) -> None:
    with time_machine.travel(NOW, tick=False):
        token = make.token(a_connection(ana), name="ci-pipeline", allowed_ips=["198.51.100.7", "2001:db8::/32"]).token

        dialog = text(sign_in(ana).get(path(token), headers=HTMX))

    assert 'value="ci-pipeline"' in dialog
    assert '<label>Keep<small><time datetime="2027-02-18T12:00:00Z"' in dialog
    for words in ("7 days", "30 days", "90 days", "Nov 27, 2026", "Dec 20, 2026"):
        assert words in dialog
    assert "198.51.100.7/32\n2001:db8::/32</textarea>" in dialog
    assert "The servers of a token cannot be changed. Create a new token instead." in dialog
    assert "No expiry" not in dialog


@pytest.mark.full
def test_nothing_touched_is_nothing_changed(ana: User, token: Token, sign_in: SignIn) -> None:
    """A missing expiry does not change either, although new tokens of this workspace must expire."""
    Token.objects.filter(pk=token.pk).update(expires_at=None)
    before = Token.objects.filter(pk=token.pk).values().get()

    answer = sign_in(ana).post(path(token), KEPT, headers=ON_LIST)

    assert answer.status_code == 200
    assert Token.objects.filter(pk=token.pk).values().get() == before
    assert not Event.objects.filter(action="token.updated").exists()


@pytest.mark.full
def test_name_expiration_and_allowlist_change_and_are_recorded(ana: User, sign_in: SignIn) -> None:
    with time_machine.travel(NOW, tick=False):
        token = make.token(a_connection(ana), name="ci", expires_in_days=7).token
        wanted = {"name": "ci-next", "expires_in_days": "30", "allowed_ips": "198.51.100.7, 10.0.0.0/8"}

        answer = sign_in(ana).post(path(token), wanted, headers=ON_LIST)

    token.refresh_from_db()
    assert (token.name, token.expires_at) == ("ci-next", NOW + timedelta(days=30))
    assert token.allowed_ips == ["198.51.100.7/32", "10.0.0.0/8"]
    assert "ci-next" in row(answer, token)
    assert '"toast": {"value": "Token saved"}' in answer["HX-Trigger"]
    assert set(Event.objects.get(action="token.updated").changes) == {"name", "expires_at", "allowed_ips", "owner"}


@pytest.mark.full
def test_a_manager_sets_a_limit_and_its_owner_tightens_and_does_not_loosen_it(
    ana: User, ann: User, sign_in: SignIn
) -> None:
    token = make.token(a_connection(ann), name="ci", allowed_ips=["10.0.0.1"]).token
    client, manager = sign_in(ann), sign_in(ana)

    manager.post(path(token), KEPT | {"calls_per_minute": "600"})
    assert 'value="600"' in text(client.get(path(token)))
    for looser in ("601", ""):
        refused = client.post(path(token), KEPT | {"calls_per_minute": looser})
        assert refused.status_code == 422
        assert "Raising or removing a limit needs \u201cCreate and manage API tokens\u201d." in text(refused)
    client.post(path(token), KEPT | {"name": "kept", "calls_per_minute": "600"})
    client.post(path(token), KEPT | {"calls_per_minute": "60"})
    token.refresh_from_db()
    assert (token.name, token.calls_per_minute, token.allowed_ips) == ("ci", 60, None)

    manager.post(path(token), KEPT)
    token.refresh_from_db()
    assert token.calls_per_minute is None


@pytest.mark.full
def test_bad_input_is_refused_in_words(ana: User, token: Token, sign_in: SignIn, subtests: pytest.Subtests) -> None:
    make.token(token.connection, name="taken")
    before = Token.objects.filter(pk=token.pk).values().get()

    for change, words in (
        ({"name": " "}, "This field is required."),
        ({"name": "x" * 101}, "at most 100 characters"),
        ({"name": "TAKEN"}, "This connection already has an unrevoked token of that name."),
        ({"name": "ta\N{KELVIN SIGN}en"}, "This connection already has an unrevoked token of that name."),
        ({"expires_in_days": "365"}, "Select a valid choice"),
        ({"expires_in_days": "never"}, "Select a valid choice"),
        ({"allowed_ips": "10.0.0.1\n300.1.1.1"}, "\u201c300.1.1.1\u201d is neither an IP address nor a CIDR range."),
        ({"calls_per_minute": "0"}, "greater than or equal to 1"),
    ):
        with subtests.test(words):
            answer = sign_in(ana).post(path(token), KEPT | change, headers=ON_LIST)

            assert answer.status_code == 422
            assert answer["HX-Retarget"] == "#dialog"
            assert words in text(answer)
    assert Token.objects.filter(pk=token.pk).values().get() == before


@pytest.mark.full
def test_no_expiry_is_offered_where_the_workspace_allows_it(ana: User, token: Token, sign_in: SignIn) -> None:
    WorkspaceSettings.edit(by=ana, allow_non_expiring_tokens=True)
    client = sign_in(ana)

    assert "No expiry" in text(client.get(path(token)))
    client.post(path(token), KEPT | {"expires_in_days": "never"})

    token.refresh_from_db()
    assert token.expires_at is None


@pytest.mark.full
def test_ended_tokens_are_not_edited(ana: User, token: Token, sign_in: SignIn) -> None:
    client = sign_in(ana)

    def refused_with(words: str) -> None:
        for answer in (
            client.get(path(token), headers=ON_LIST),
            client.post(path(token), KEPT | {"name": "renamed"}, headers=ON_LIST),
        ):
            assert words in answer["HX-Trigger"]

    Token.objects.filter(pk=token.pk).update(expires_at=timezone.now())
    refused_with("This token has expired. Create a new one.")
    token.revoke(by=ana)
    refused_with("This token is already revoked.")
    token.refresh_from_db()
    assert token.name == "ci"


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_a_row_that_ends_while_it_is_saved_is_not_edited(ana: User, token: Token, sign_in: SignIn) -> None:
    client, gone = sign_in(ana), Token.objects.get()

    answer = meanwhile(
        lambda: client.post(path(token), KEPT | {"name": "renamed"}, headers=ON_LIST), lambda: gone.revoke(by=ana)
    )

    assert (answer.status_code, "This token is already revoked." in text(answer)) == (422, True)
    assert Token.objects.get().name == "ci"


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_one_of_two_tokens_given_the_same_name_at_once_gets_it(ana: User, token: Token, sign_in: SignIn) -> None:
    client, other = sign_in(ana), make.token(token.connection, name="other").token

    answer = meanwhile(
        lambda: client.post(path(token), KEPT | {"name": "Wanted"}, headers=ON_LIST),
        lambda: other.edit(name="wanted", by=ana),
    )

    assert answer.status_code == 422
    assert "This connection already has an unrevoked token of that name." in text(answer)
    assert set(Token.objects.values_list("name", flat=True)) == {"ci", "wanted"}


def test_others_tokens_take_the_capability(token: Token, sign_in: SignIn) -> None:
    renamed = KEPT | {"name": "renamed"}
    for capabilities, status in (
        (set[Capability](), 404),
        ({Capability.MCP_CONNECTIONS_READ}, 403),
        (set(Capability) - {Capability.API_TOKENS_MANAGE}, 403),
    ):
        client = sign_in(make.user(*capabilities))
        assert client.get(path(token)).status_code == client.post(path(token), renamed).status_code == status
    assert Client().post(path(token), renamed)["Location"].startswith("/accounts/login/")
    assert Token.objects.get().name == "ci"

    client = sign_in(make.user(Capability.API_TOKENS_MANAGE))
    assert (client.get(path(token)).status_code, client.post(path(token), renamed).status_code) == (200, 302)
    assert Token.objects.get().name == "renamed"


@pytest.mark.full
def test_on_a_connections_tab_the_connections_row_comes_back(ana: User, token: Token, sign_in: SignIn) -> None:
    link = token.connection
    tab = HTMX | {"HX-Current-URL": f"http://testserver/hosts/{link.host_id}/connections/"}

    dialog = text(sign_in(ana).get(path(token), headers=tab))
    answer = text(sign_in(ana).post(path(token), KEPT | {"name": "renamed"}, headers=tab))

    assert f'hx-target="#connection-{link.pk}" hx-swap="outerHTML"' in dialog
    assert answer.lstrip().startswith(f'<tbody id="connection-{link.pk}" class="changed">')
    assert "renamed" in answer
