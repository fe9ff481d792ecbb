"""Malformed requests get a readable error, never a 500."""

from urllib.parse import urlencode

import pytest
from django.test import Client

from accounts.models import Attempt, User
from gateways.models import Gateway
from tests.oauth.apps import App, browser

pytestmark = pytest.mark.django_db

STRANGE = ["a\x00b", "%00", "x" * 5000, "é\u202e["]


@pytest.mark.full
def test_the_endpoints_answer_strange_values_in_json_or_on_a_page(
    app: App, member: User, gateway: Gateway, subtests: pytest.Subtests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(Attempt.objects), "note", lambda *_, **__: 1)  # No limits: these are many requests.
    good = {
        "client_id": app.client_id,
        "code": "x",
        "code_verifier": "x" * 43,
        "refresh_token": "x",
        "redirect_uri": app.redirect_uri,
    }
    client = browser(member)
    for text in STRANGE:
        for name in (*good, "grant_type", "resource", "scope", "client_secret"):
            for grant in ("authorization_code", "refresh_token"):
                with subtests.test(f"{grant} {name} {text[:9]!r}"):
                    response = Client().post("/oauth/token", {"grant_type": grant} | good | {name: text})
                    assert response.status_code in {400, 401}
                    assert response.json()["error"]
        for name in ("client_id", "redirect_uri", "response_type", "code_challenge", "scope", "state", "resource"):
            with subtests.test(f"authorize {name} {text[:9]!r}"):
                assert client.get(app.question(gateway, **{name: text})).status_code in {302, 400}
        for body in ({"token": text, "client_id": app.client_id}, {"token": "x", "client_id": text}):
            assert Client().post("/oauth/revoke", body).status_code in {200, 400, 401}
        path = f"/.well-known/oauth-protected-resource/mcp/{urlencode({'': text})[1:]}"
        assert Client().get(path).status_code == 404


def test_a_broken_authorization_header_is_no_error_of_ours() -> None:
    body = {"grant_type": "refresh_token", "refresh_token": "x", "token": "x"}
    for header in ("Basic", "Basic \xe9", "Basic !", "Basic AA==", "Basic YQBiOmM=", "Bearer \xe9", "\xe9"):
        for path in ("/oauth/token", "/oauth/revoke"):
            assert Client().post(path, body, headers={"Authorization": header}).status_code in {400, 401}, header
        asked = Client().get("/oauth/register/a%00b", headers={"Authorization": header})
        assert asked.status_code in {401, 403, 404}, header
