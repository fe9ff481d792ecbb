"""Revoking a single token, the last step of replacing a token."""

from typing import Any

import pytest

from accounts.models import User
from capabilities import Capability
from connections.models import Connection
from tests import make
from tests.conftest import SignIn
from tokens.models import Token

pytestmark = pytest.mark.django_db

HTMX = {"HX-Request": "true"}


def text(response: Any) -> str:
    return str(response.content.decode())


def a_connection(user: User) -> Connection:
    return make.connection(make.agent(by=user), make.gateway(), user)


def test_one_of_two_tokens_ends_and_the_other_lives(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana)
    old, new = make.token(connection, name="old").token, make.token(connection, name="new").token

    asked = text(sign_in(ana).get(f"/tokens/{old.pk}/revoke/"))
    answer = sign_in(ana).post(f"/tokens/{old.pk}/revoke/", headers=HTMX)

    assert (
        "Revoke this API access token? Requests using it will fail with 401 immediately. This cannot be undone."
    ) in asked
    assert "Also revoke the connection" not in asked
    assert f'id="connection-{connection.pk}"' in text(answer)
    assert list(Token.objects.live()) == [new]
    connection.refresh_from_db()
    assert connection.is_live


@pytest.mark.full
@pytest.mark.parametrize(("ticked", "lives"), [({"connection": "1"}, False), ({}, True)])
def test_with_the_last_token_the_connection_ends_if_wanted(
    ticked: dict[str, str], lives: bool, ana: User, sign_in: SignIn
) -> None:
    connection = a_connection(ana)
    token = make.token(connection).token

    asked = text(sign_in(ana).get(f"/tokens/{token.pk}/revoke/"))
    sign_in(ana).post(f"/tokens/{token.pk}/revoke/", ticked)

    assert 'name="connection" value="1" checked' in asked
    token.refresh_from_db()
    connection.refresh_from_db()
    assert token.status == "revoked"
    assert connection.is_live is lives


@pytest.mark.full
def test_the_connection_is_spared_while_another_token_lives(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana)
    token = make.token(connection).token
    make.token(connection)

    sign_in(ana).post(f"/tokens/{token.pk}/revoke/", {"connection": "1"})

    connection.refresh_from_db()
    assert connection.is_live


@pytest.mark.full
def test_revoking_twice_changes_nothing_more(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana)
    token = make.token(connection).token
    make.token(connection)
    sign_in(ana).post(f"/tokens/{token.pk}/revoke/")
    token.refresh_from_db()
    ended = token.revoked_at

    assert sign_in(ana).post(f"/tokens/{token.pk}/revoke/").status_code == 302

    token.refresh_from_db()
    assert token.revoked_at == ended


@pytest.mark.full
@pytest.mark.parametrize(
    ("capabilities", "status"),
    [
        (set(), 404),
        ({Capability.MCP_CONNECTIONS_READ}, 403),
        ({Capability.MCP_CONNECTIONS_READ, Capability.API_TOKENS_MANAGE}, 302),
        ({Capability.MCP_CONNECTIONS_READ, Capability.MCP_CONNECTIONS_REVOKE}, 302),
    ],
)
def test_others_tokens_need_a_capability(capabilities: set[Capability], status: int, sign_in: SignIn) -> None:
    token = make.token(a_connection(make.user())).token

    assert sign_in(make.user(*capabilities)).post(f"/tokens/{token.pk}/revoke/").status_code == status
    assert Token.objects.live().exists() is (status != 302)


@pytest.mark.full
def test_everybody_may_end_their_own_token(sign_in: SignIn) -> None:
    ann = make.user()
    token = make.token(make.connection(make.agent(by=make.user()), make.gateway(), ann)).token

    assert sign_in(ann).post(f"/tokens/{token.pk}/revoke/").status_code == 302
    assert not Token.objects.live().exists()


@pytest.mark.full
def test_on_the_api_tokens_page_its_row_and_the_numbers_come_back(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana)
    token, _ = make.token(connection).token, make.token(connection)
    page = HTMX | {"HX-Current-URL": "http://testserver/settings/api-tokens?status=active"}

    asked = text(sign_in(ana).get(f"/tokens/{token.pk}/revoke/", headers=page))
    answer = text(sign_in(ana).post(f"/tokens/{token.pk}/revoke/", headers=page))

    assert f'hx-target="#token-{token.pk}" hx-swap="outerHTML"' in asked
    assert answer.lstrip().startswith(f'<tr id="token-{token.pk}" data-state="revoked" class="changed">')
    assert 'class="count" id="count-revoked" hx-swap-oob="true">1</span>' in answer


@pytest.mark.full
@pytest.mark.parametrize(
    ("held", "status", "lives"),
    [
        ([Capability.API_TOKENS_MANAGE], 403, True),
        ([Capability.MCP_CONNECTIONS_REVOKE], 302, False),
        ([Capability.API_TOKENS_MANAGE, Capability.MCP_CONNECTIONS_REVOKE], 302, False),
    ],
    ids=["tokens", "connections", "both"],
)
def test_anothers_connection_ends_only_by_who_may_end_connections(
    held: list[Capability], status: int, lives: bool, ana: User, sign_in: SignIn
) -> None:
    connection = a_connection(ana)
    token = make.token(connection).token
    client = sign_in(make.user(*held))

    asked = text(client.get(f"/tokens/{token.pk}/revoke/"))
    answer = client.post(f"/tokens/{token.pk}/revoke/", {"connection": "1"})

    assert ("Also revoke the connection" in asked) is not lives
    assert answer.status_code == status
    token.refresh_from_db()
    connection.refresh_from_db()
    assert connection.is_live is lives
    assert token.status == ("active" if lives else "revoked")
