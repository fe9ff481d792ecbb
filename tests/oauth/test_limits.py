"""How often a client may ask for tokens, and what that costs us (decisions 7.12)."""

import base64
import json
from typing import Any

import pytest
from django.contrib.auth.hashers import identify_hasher
from django.core.cache import cache
from django.test import Client
from oauth2_provider.models import Application

from tests.oauth.apps import App, register

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _fresh_limits() -> None:
    cache.clear()


def ask(client_id: str, **headers: str) -> Any:
    body = {"grant_type": "refresh_token", "refresh_token": "x"} | ({"client_id": client_id} if client_id else {})
    return Client().post("/oauth/token", body, headers=headers)


def asked_too_often(response: Any) -> bool:
    if response.status_code != 429:
        return False
    assert (response["Retry-After"], response["Cache-Control"]) == ("60", "no-store")
    assert json.loads(response.content)["error"] == "temporarily_unavailable"
    return True


def test_a_client_asks_thirty_times_a_minute_from_one_address() -> None:
    one, other = register().json()["client_id"], register().json()["client_id"]

    answers = [ask(one).status_code for _ in range(30)]

    assert set(answers) == {400}
    assert asked_too_often(ask(one))
    assert ask(other).status_code == 400
    assert Client(REMOTE_ADDR="203.0.113.9").post("/oauth/token", {"client_id": one}).status_code == 400


def test_http_basic_and_root_aliases_count_alike() -> None:
    said = register(token_endpoint_auth_method="client_secret_basic").json()
    basic = base64.b64encode(f"{said['client_id']}:{said['client_secret']}".encode()).decode()

    answers = [ask("", Authorization=f"Basic {basic}").status_code for _ in range(30)]

    assert set(answers) == {400}
    assert asked_too_often(ask("", Authorization=f"Basic {basic}"))
    assert asked_too_often(Client().post("/token", {"client_id": said["client_id"]}))


@pytest.mark.parametrize("header", ["Basic", "Basic !", "Basic " + base64.b64encode(b"\xff\xfe:x").decode()])
def test_made_up_clients_are_counted_together(header: str) -> None:
    """Each one by itself would fill the counters' table with whatever a stranger invents."""
    for number in range(30):
        assert ask(f"made-up-{number}").status_code == 401

    assert asked_too_often(ask("made-up-\x00"))
    assert asked_too_often(ask("", Authorization=header))


def test_a_random_secret_is_hashed_quickly_and_still_checked() -> None:
    """A slow hash for every token request would be a way to keep us busy."""
    said = register(token_endpoint_auth_method="client_secret_post").json()
    app = App(said["client_id"])
    stored = Application.objects.get(client_id=app.client_id).client_secret

    right = app.refresh("x", client_secret=said["client_secret"]).json()["error"]
    wrong = app.refresh("x", client_secret="x" * 128).json()["error"]

    assert identify_hasher(stored).algorithm == "client_secret"
    assert stored.split("$")[1] == "1"
    assert (right, wrong) == ("invalid_grant", "invalid_client")
