"""Malformed requests get a readable error, never a 500."""

from urllib.parse import urlencode

import pytest
from django.test import Client

from accounts.models import User
from gateways.models import Gateway
from tests.oauth.apps import App, browser, connect

pytestmark = pytest.mark.django_db

STRANGE = ["a\x00b", "%00", "x" * 5000, "é\u202e["]


@pytest.mark.full
@pytest.mark.parametrize("text", STRANGE)
def test_the_token_endpoint_answers_in_json(app: App, text: str) -> None:
    for grant in ("authorization_code", "refresh_token"):
        good = {
            "grant_type": grant,
            "client_id": app.client_id,
            "code": "x",
            "code_verifier": "x" * 43,
            "refresh_token": "x",
            "redirect_uri": app.redirect_uri,
        }
        for name in (*good, "resource", "scope", "client_secret"):
            response = Client().post("/oauth/token", good | {name: text})
            assert response.status_code in {400, 401, 429}, name
            assert response.json()["error"], name


@pytest.mark.full
@pytest.mark.parametrize("text", STRANGE)
def test_the_authorize_endpoint_answers_on_a_page_or_to_the_app(
    app: App, member: User, gateway: Gateway, text: str
) -> None:
    client = browser(member)
    for name in ("client_id", "redirect_uri", "response_type", "code_challenge", "scope", "state", "resource"):
        response = client.get(app.question(gateway, **{name: text}))
        assert response.status_code in {302, 400}, name


@pytest.mark.parametrize("text", STRANGE)
def test_other_endpoints_answer_too(app: App, text: str) -> None:
    for body in ({"token": text, "client_id": app.client_id}, {"token": "x", "client_id": text}):
        assert Client().post("/oauth/revoke", body).status_code in {200, 400, 401}
    assert Client().get(f"/.well-known/oauth-protected-resource/mcp/{urlencode({'': text})[1:]}").status_code == 404


@pytest.mark.parametrize("header", ["Basic", "Basic é", "Basic !", "Basic AA==", "Basic YQBiOmM=", "Bearer é", "é"])
def test_a_broken_authorization_header_is_no_error_of_ours(header: str) -> None:
    for path in ("/oauth/token", "/oauth/revoke"):
        body = {"grant_type": "refresh_token", "refresh_token": "x", "token": "x"}
        assert Client().post(path, body, headers={"Authorization": header}).status_code in {400, 401}
    assert Client().get("/oauth/register/a%00b", headers={"Authorization": header}).status_code in {401, 403, 404}


@pytest.mark.full
@pytest.mark.parametrize("challenge", ["short", "x" * 42, "x" * 129, "x" * 42 + "é", "x" * 43 + " "])
def test_a_challenge_that_is_none_is_refused_before_anybody_is_asked(
    app: App, member: User, gateway: Gateway, challenge: str
) -> None:
    """The malformed PKCE challenge would be too long to store with its code."""
    connect(app, member, gateway)

    response = browser(member).get(app.question(gateway, code_challenge=challenge))

    assert response.status_code == 302
    assert "error=invalid_request" in response["Location"]
