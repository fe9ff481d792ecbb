"""The description of the API, and the page that renders it."""

import re
from typing import Any

import pytest
from django.test import Client
from drf_spectacular.drainage import GENERATOR_STATS

from accounts.models import User
from gatewayadmin.rest.docs_views import operations_by_tag
from gatewayadmin.rest.openapi import description
from tests import make
from tests.api.test_matrix import DOORS
from tests.rest import Rest

pytestmark = pytest.mark.django_db


def operations() -> list[dict[str, Any]]:
    return [operation for item in description()["paths"].values() for operation in item.values()]


@pytest.mark.full
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
        assert "Requires `" in operation["description"] or "Open to everybody" in operation["description"]


def test_keys_are_ended_by_people_only() -> None:
    item = description()["paths"]["/api/api-keys/{id}/revoke"]["post"]

    assert item["security"] == [{"session": [], "csrf": []}]
    shown = {one["path"]: one["example"] for group in operations_by_tag().values() for one in group["operations"]}
    assert "X-CSRFToken" in shown["/api/api-keys/{id}/revoke"]
    assert "gwp_" not in shown["/api/api-keys/{id}/revoke"]


def test_an_api_key_reads_the_description(ana: User) -> None:
    key = make.api_key(ana, *ana.granted)

    assert Rest.bearing(key.secret).get("/schema/").json()["openapi"] == "3.1.0"
    assert Rest.of().get("/schema/").status_code == 401


def test_the_pages_are_for_people_and_show_every_door(ana: User) -> None:
    client = Client()
    stranger = client.get("/api/docs/")
    client.force_login(ana)

    index = client.get("/api/docs/").content.decode()
    groups = sorted(set(re.findall(r'href="(/api/docs/[a-z-]+/)"', index)))
    pages = {group: client.get(group).content.decode() for group in groups}

    assert stranger["Location"] == "/accounts/login/?next=/api/docs/"
    for operation in operations():
        name = operation["operationId"]
        assert f"#{name}" in index
        assert sum(f'id="{name}"' in page for page in pages.values()) == 1
    for page in pages.values():
        spoken_of = set(re.findall(r'href="#(object-[A-Za-z]+)"', page))
        assert spoken_of <= set(re.findall(r'id="(object-[A-Za-z]+)"', page))
    assert client.get("/api/docs/nothing/").status_code == 404
