"""Rate limits of token requests, and the work that a token request causes."""

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.contrib.auth.hashers import identify_hasher
from django.test import Client
from oauth2_provider.models import Application

from accounts.models import Attempt
from oauth.limits import A_MINUTE
from tests.oauth.apps import App, register

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 3, 2, 12, 0, 15, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _within_one_minute() -> Iterator[None]:
    with time_machine.travel(NOW, tick=False):
        yield


def ask(client_id: str, **headers: str) -> Any:
    body = {"grant_type": "refresh_token", "refresh_token": "x"} | ({"client_id": client_id} if client_id else {})
    return Client().post("/oauth/token", body, headers=headers)


def asked_too_often(response: Any) -> bool:
    if response.status_code != 429:
        return False
    assert (response["Retry-After"], response["Cache-Control"]) == ("45", "no-store")
    assert json.loads(response.content)["error"] == "temporarily_unavailable"
    return True


def used_up() -> None:
    """Use up the limit of each client that has made a request."""
    Attempt.objects.update(count=A_MINUTE["token"])


def used_up_together() -> None:
    """Use up the limit that all clients of an address share."""
    Attempt.objects.update(count=A_MINUTE["tokens"])


@pytest.mark.full
def test_a_client_asks_thirty_times_a_minute_from_one_address() -> None:
    one, other = register().json()["client_id"], register().json()["client_id"]

    answers = [ask(one).status_code for _ in range(30)]

    assert set(answers) == {400}
    assert asked_too_often(ask(one))
    assert ask(other).status_code == 400
    assert Client(REMOTE_ADDR="203.0.113.9").post("/oauth/token", {"client_id": one}).status_code == 400


def test_many_clients_of_one_address_share_a_limit_until_the_next_minute() -> None:
    """Registering more clients allows no more requests."""
    clients = [register().json()["client_id"] for _ in range(3)]
    ask(clients[0])
    used_up_together()

    assert [asked_too_often(ask(client_id)) for client_id in clients] == [True] * 3
    assert Client(REMOTE_ADDR="203.0.113.9").post("/oauth/token", {"client_id": clients[1]}).status_code == 400
    with time_machine.travel(NOW + timedelta(seconds=45), tick=False):
        assert ask(clients[0]).status_code == 400


def test_an_ipv6_network_is_one_address() -> None:
    body = {"client_id": register().json()["client_id"]}
    Client(REMOTE_ADDR="2001:db8::1").post("/oauth/token", body)
    used_up()

    assert asked_too_often(Client(REMOTE_ADDR="2001:db8::ffff").post("/oauth/token", body))
    assert Client(REMOTE_ADDR="2001:db8:0:1::1").post("/oauth/token", body).status_code == 400


def test_http_basic_and_root_aliases_count_alike() -> None:
    said = register(token_endpoint_auth_method="client_secret_basic").json()
    basic = base64.b64encode(f"{said['client_id']}:{said['client_secret']}".encode()).decode()
    assert ask("", Authorization=f"Basic {basic}").status_code == 400
    used_up()

    assert asked_too_often(ask("", Authorization=f"Basic {basic}"))
    assert asked_too_often(Client().post("/token", {"client_id": said["client_id"]}))


def test_made_up_clients_are_counted_together() -> None:
    """Otherwise made-up client ids would fill the table of counters."""
    assert ask("made-up").status_code == 401
    used_up()

    for client_id in ("other", "made-up-\x00", ""):
        assert asked_too_often(ask(client_id))
    for header in ("Basic", "Basic !", "Basic " + base64.b64encode(b"\xff\xfe:x").decode()):
        assert asked_too_often(ask("", Authorization=header))


def test_a_random_secret_is_hashed_quickly_and_still_checked() -> None:
    """With a slow hash anybody could exhaust our CPUs by token requests."""
    said = register(token_endpoint_auth_method="client_secret_post").json()
    app = App(said["client_id"])
    stored = Application.objects.get(client_id=app.client_id).client_secret

    right = app.refresh("x", client_secret=said["client_secret"]).json()["error"]
    wrong = app.refresh("x", client_secret="x" * 128).json()["error"]

    assert identify_hasher(stored).algorithm == "client_secret"
    assert stored.split("$")[1] == "1"
    assert (right, wrong) == ("invalid_grant", "invalid_client")
