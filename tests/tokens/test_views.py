"""Revoking a single token; with a connection's last token, the connection can be revoked, too."""

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
def test_with_the_last_token_the_connection_ends_if_wanted(ana: User, sign_in: SignIn) -> None:
    connection, client = a_connection(ana), sign_in(ana)
    first, second, last = (make.token(connection).token for _ in range(3))

    client.post(f"/tokens/{first.pk}/revoke/", {"connection": "1"})
    connection.refresh_from_db()
    assert connection.is_live  # It is spared while another token lives.
    client.post(f"/tokens/{second.pk}/revoke/")
    assert 'name="connection" value="1" checked' in text(client.get(f"/tokens/{last.pk}/revoke/"))
    client.post(f"/tokens/{last.pk}/revoke/", {"connection": "1"})

    connection.refresh_from_db()
    assert not Token.objects.live().exists()
    assert not connection.is_live


@pytest.mark.full
def test_others_tokens_need_a_capability(sign_in: SignIn) -> None:
    for capabilities, status in (
        (set[Capability](), 404),
        ({Capability.MCP_CONNECTIONS_READ}, 403),
        ({Capability.MCP_CONNECTIONS_READ, Capability.API_TOKENS_MANAGE}, 302),
        ({Capability.MCP_CONNECTIONS_READ, Capability.MCP_CONNECTIONS_REVOKE}, 302),
    ):
        token = make.token(a_connection(make.user())).token

        assert sign_in(make.user(*capabilities)).post(f"/tokens/{token.pk}/revoke/").status_code == status
        assert Token.objects.live().filter(pk=token.pk).exists() is (status != 302)


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
def test_anothers_connection_ends_only_by_who_may_end_connections(ana: User, sign_in: SignIn) -> None:
    for held, status in ((Capability.API_TOKENS_MANAGE, 403), (Capability.MCP_CONNECTIONS_REVOKE, 302)):
        connection = a_connection(ana)
        token, client = make.token(connection).token, sign_in(make.user(held))

        asked = text(client.get(f"/tokens/{token.pk}/revoke/"))
        answer = client.post(f"/tokens/{token.pk}/revoke/", {"connection": "1"})

        assert ("Also revoke the connection" in asked) is (status == 302)
        assert answer.status_code == status
        token.refresh_from_db()
        connection.refresh_from_db()
        assert (connection.is_live, token.status) == ((True, "active") if status == 403 else (False, "revoked"))
