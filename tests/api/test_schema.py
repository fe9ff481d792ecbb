"""The description of the API, and the page drawn from it."""

from typing import Any

import pytest
from django.test import Client
from drf_spectacular.drainage import GENERATOR_STATS

from accounts.models import User
from gatewayadmin.openapi import description
from tests import make
from tests.api.test_matrix import DOORS
from tests.rest import Rest

pytestmark = pytest.mark.django_db


def operations() -> list[dict[str, Any]]:
    return [operation for item in description()["paths"].values() for operation in item.values()]


def test_every_door_is_described_once_and_without_doubt() -> None:
    description.cache_clear()
    GENERATOR_STATS.reset()

    names = [operation["operationId"] for operation in operations()]

    assert description()["openapi"] == "3.1.0"
    assert len(names) == len(set(names)) == len(DOORS)
    assert not GENERATOR_STATS


def test_every_door_says_who_may_enter_and_how_it_refuses() -> None:
    for operation in operations():
        assert {"400", "401", "403"} <= set(operation["responses"]), operation["operationId"]
        assert operation["security"]
        assert "Takes `" in operation["description"] or "Open to everybody" in operation["description"]


def test_keys_are_ended_by_people_only() -> None:
    item = description()["paths"]["/api/api-keys/{id}/revoke"]["post"]

    assert item["security"] == [{"session": [], "csrf": []}]


def test_an_api_key_reads_the_description(ana: User) -> None:
    key = make.api_key(ana, *ana.granted)

    assert Rest.bearing(key.secret).get("/schema/").json()["openapi"] == "3.1.0"
    assert Rest.of().get("/schema/").status_code == 401


def test_the_page_is_for_people_and_loads_nothing_from_elsewhere(ana: User) -> None:
    client = Client()
    stranger = client.get("/api/docs/")
    client.force_login(ana)

    page = client.get("/api/docs/")

    assert stranger["Location"] == "/accounts/login/?next=/api/docs/"
    policy = page["Content-Security-Policy"]
    assert "img-src 'self' data:" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
