"""Requests of Microsoft Entra ID and Okta that differ from the SCIM RFCs."""

from __future__ import annotations

from typing import Any

import pytest

from accounts.models import Team, User
from tests.scim.conftest import PATCH, Directory

pytestmark = pytest.mark.django_db

ENTERPRISE = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"


@pytest.fixture
def pk(directory: Directory) -> str:
    return str(directory.make("ana@example.com")["id"])


@pytest.mark.full
def test_okta_patches_without_a_path_and_entra_says_true_and_false_as_strings(directory: Directory, pk: str) -> None:
    changes: list[tuple[dict[str, Any], bool]] = [
        ({"value": {"active": False}}, False),
        ({"path": "active", "value": "True"}, True),
        ({"path": "active", "value": "False"}, False),
        ({"value": {"active": "True"}}, True),
    ]
    for change, active in changes:
        assert directory.patch(f"/Users/{pk}", {"op": "Replace", **change}).status_code == 204
        assert User.objects.get(pk=pk).is_active is active


def test_entra_adds_the_value_of_an_address_that_is_not_there_yet(directory: Directory, pk: str) -> None:
    change = {"op": "Add", "path": 'emails[type eq "home"].value', "value": "ana@home.example"}
    assert directory.patch(f"/Users/{pk}", change).status_code == 204
    assert {"value": "ana@home.example", "type": "home"} in directory.get(f"/Users/{pk}").json()["emails"]
    assert directory.found('emails[type eq "home" and value eq "ana@home.example"]') == [pk]


@pytest.mark.full
def test_entra_takes_the_only_address_away_and_it_stays(directory: Directory, pk: str) -> None:
    other = {"op": "Replace", "path": "displayName", "value": "Ana"}
    change = {"op": "Remove", "path": 'emails[type eq "work"]'}
    assert directory.patch(f"/Users/{pk}", change, other).status_code == 204
    told = directory.get(f"/Users/{pk}").json()
    assert (told["displayName"], told["emails"][0]["value"]) == ("Ana", "ana@example.com")


@pytest.mark.full
def test_entra_sends_attributes_that_nobody_here_needs(directory: Directory, pk: str) -> None:
    changes: list[dict[str, Any]] = [
        {"op": "Add", "path": f"{ENTERPRISE}:department", "value": "R&D"},
        {"op": "Add", "path": 'addresses[type eq "work"].locality', "value": "Bern"},
        {"op": "Add", "value": {f"{ENTERPRISE}:employeeNumber": "7", "title": "Boss"}},
        {"op": "Replace", "path": "active", "value": "False"},
    ]
    assert directory.patch(f"/Users/{pk}", *changes).status_code == 204
    assert not User.objects.get(pk=pk).is_active


@pytest.mark.full
def test_entra_removes_a_member_by_a_filter_and_by_a_value(directory: Directory, pk: str) -> None:
    group = directory.make_group("Finance", pk)["id"]
    team = Team.objects.get(pk=group)
    add = {"op": "Add", "path": "members", "value": [{"value": pk}]}
    for remove in (
        {"op": "Remove", "path": f'members[value eq "{pk}"]'},
        {"op": "Remove", "path": "members", "value": [{"value": pk}]},
    ):
        assert directory.patch(f"/Groups/{group}", remove).status_code == 204
        assert team.emails() == []
        assert directory.patch(f"/Groups/{group}", add).status_code == 204
        assert team.emails() == ["ana@example.com"]


@pytest.mark.full
def test_names_of_operations_and_attributes_are_read_in_any_case(directory: Directory, pk: str) -> None:
    body = {"schemas": [PATCH], "operations": [{"Op": "REPLACE", "Path": "DisplayName", "Value": "Ana"}]}
    assert directory.ask("PATCH", f"/Users/{pk}", body).status_code == 204
    assert User.objects.get(pk=pk).display_name == "Ana"


def test_a_value_that_is_neither_true_nor_false_is_refused_and_changes_nothing(directory: Directory, pk: str) -> None:
    changes = [
        {"op": "replace", "path": "displayName", "value": "Ana"},
        {"op": "replace", "path": "active", "value": "perhaps"},
    ]
    refused = directory.patch(f"/Users/{pk}", *changes)
    assert (refused.status_code, refused.json()["scimType"]) == (400, "invalidValue")
    assert User.objects.get(pk=pk).display_name == ""
