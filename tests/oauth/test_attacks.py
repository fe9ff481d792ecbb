"""Every attack on the authorization server is refused. Wrong steps of the flow are tested in other modules."""

from typing import Any

import httpx
import pytest
from django.test import Client

from accounts.models import User
from auditlog.models import Call
from capabilities import Capability
from connections.models import Connection
from gateways.models import Gateway
from tests import make
from tests.oauth.apps import App, browser, connect, decide, register
from tests.proxy.conftest import served
from tokens.models import Token


def consent_page(client: Client, app: App, gateway: Gateway) -> str:
    """Start a flow and choose the gateway; return the URL of the page with Allow and Deny."""
    begun = client.get(app.question(gateway))["Location"]
    return str(client.post(begun, {"gateway": gateway.slug})["Location"])


@pytest.mark.full
def test_nobody_says_yes_from_another_site(app: App, member: User, gateway: Gateway) -> None:
    """Attack: another site posts a forged consent."""
    client = browser(member)
    page = consent_page(client, app, gateway)
    forged = Client(enforce_csrf_checks=True, headers={"Origin": "https://evil.example"})
    forged.cookies = client.cookies

    assert forged.post(page, {"decision": "allow"}).status_code == 403
    assert not Connection.objects.exists()


@pytest.mark.full
def test_another_person_cannot_finish_what_somebody_began(app: App, member: User, gateway: Gateway) -> None:
    """Attack: the session's user is replaced between two steps of the flow, and nothing else in the session changes."""
    client = browser(member)
    page = consent_page(client, app, gateway)
    bound = client.session["authorize_browser"]
    client.force_login(make.user(Capability.OAUTH_CONNECT))
    session = client.session
    session["authorize_browser"] = bound
    session.save()

    assert client.post(page, {"decision": "allow"}).status_code == 404
    assert not Connection.objects.exists()


@pytest.mark.full
def test_going_back_after_the_end_shows_nothing_and_gives_nothing(app: App, member: User, gateway: Gateway) -> None:
    """Attack: the Back button after the end of a flow, at every step."""
    client = browser(member)
    for decision in ("deny", "allow"):
        page = consent_page(client, app, gateway)
        client.post(page, {"decision": decision})
        flow = page.split("/")[2]

        for address in (page, f"/connect/{flow}/", f"/connect/{flow}/token/"):
            for again in (client.get(address), client.post(address, {"decision": "allow", "gateway": gateway.slug})):
                assert again.status_code == 410
                assert "Refresh" not in again
                assert b"code=" not in again.content
        assert Connection.objects.count() == (decision == "allow")


def test_an_api_token_is_nothing_at_the_oauth_endpoints(app: App, member: User, gateway: Gateway) -> None:
    """Attack: an agent's token is sent in place of each OAuth credential."""
    issued = make.token(make.connection(make.agent(by=member), gateway, member))
    bearer = {"Authorization": f"Bearer {issued.secret}"}
    registered = register().json()["registration_client_uri"].removeprefix("http://localhost:8000")

    assert app.refresh(issued.secret).json()["error"] == "invalid_grant"
    assert app.exchange(issued.secret).json()["error"] == "invalid_grant"
    assert "error" in Client().post("/oauth/token", {"grant_type": "refresh_token"}, headers=bearer).json()
    assert Client().post("/oauth/revoke", {"token": issued.secret, "client_id": app.client_id}).status_code == 200
    assert Client().get(registered, headers=bearer).status_code in {401, 403}
    assert Client().get(app.question(gateway), headers=bearer)["Location"].startswith("/accounts/login/")
    issued.token.refresh_from_db()
    assert issued.token.revoked_at is None


@pytest.mark.full
def test_another_clients_tokens_are_nothing_to_an_app(app: App, member: User, gateway: Gateway) -> None:
    """Attack: another client uses a stolen code, refresh token or access token."""
    tokens = connect(app, member, gateway)
    code = decide(browser(member), app.question(gateway))["code"]
    other = App(register().json()["client_id"], app.verifier)

    assert other.exchange(code).json()["error"] == "invalid_grant"
    assert other.refresh(tokens["refresh_token"]).json()["error"] == "invalid_grant"
    Client().post("/oauth/revoke", {"token": tokens["refresh_token"], "client_id": other.client_id})
    assert app.refresh(tokens["refresh_token"]).status_code == 200


# With the running proxy


def ask(port: int, gateway: Gateway, token: str) -> httpx.Response:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    url = f"http://127.0.0.1:{port}/mcp/{gateway.slug}"
    return httpx.post(url, json=body, headers={"Authorization": f"Bearer {token}"}, trust_env=False)


def is_dead(response: httpx.Response) -> bool:
    return response.status_code == 401 and 'error="invalid_token"' in response.headers["www-authenticate"]


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_a_token_opens_its_own_gateway_and_lives_as_long_as_its_connection() -> None:
    """Attacks: a token of gateway A at B, a refresh token as access token, and an access token as refresh token."""
    Call.partitions.make_ahead()
    member: Any = make.user(Capability.OAUTH_CONNECT)
    own, other = make.gateway(), make.gateway()
    app = App(register().json()["client_id"])
    first = connect(app, member, own)
    with served() as proxy:
        port = proxy.upstream.port

        def works(tokens: dict[str, Any]) -> bool:
            return ask(port, own, tokens["access_token"]).status_code == 200

        assert works(first)
        assert is_dead(ask(port, other, first["access_token"]))
        assert is_dead(ask(port, own, first["refresh_token"]))
        assert app.refresh(first["access_token"]).json()["error"] == "invalid_grant"

        # After a key renewal, old access tokens are invalid at once, and the app gets a new one with its refresh token.
        connection = Connection.objects.get()
        Token.objects.renew_key(connection, by=member)
        assert is_dead(ask(port, own, first["access_token"]))
        second = app.refresh(first["refresh_token"]).json()
        assert works(second)

        # After a revocation, the tokens are refused for good, even if the same person authorises the same app again.
        connection.revoke(by=member)
        for _ in range(2):
            assert is_dead(ask(port, own, second["access_token"]))
            for refresh in (first["refresh_token"], second["refresh_token"]):
                assert app.refresh(refresh).json()["error"] == "invalid_grant"
            third = connect(app, member, own)
            assert works(third)
