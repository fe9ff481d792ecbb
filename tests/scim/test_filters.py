"""Filters and pages of SCIM lists, and refused filters."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from scim2_models import ScimFilter

from accounts.models import Role, User
from scim import directory_resources, storage
from scim.schemas import provider
from tests import make
from tests.scim.conftest import Directory

pytestmark = pytest.mark.django_db

FILTERS = [
    'userName eq "ANA@example.com"',
    'userName eq "benny"',
    'userName eq "ben@example.com"',
    'userName eq "dan@example.com"',
    'userName eq "dan.berg@example.com"',
    'userName eq ""',
    'externalId eq "E1"',
    'externalId eq "e1"',
    'externalId eq ""',
    "active eq true",
    "active eq false",
    "active ne true",
    'emails eq "ANA@home.example"',
    'emails.value eq "cat@example.com"',
    'emails[type eq "home" and value eq "ana@home.example"]',
    'emails[type eq "work" and value eq "ana@home.example"]',
    'emails[value eq "ben@example.com"]',
    'emails eq "dan@example.com"',
    'emails eq "dan.berg@example.com"',
    'emails eq ""',
    'displayName eq "ANA"',
    'displayName sw "a"',
    'userName co "example"',
    "externalId pr",
    "not (externalId pr)",
    'userName eq "benny" or externalId eq "E1"',
    'userName eq "benny" or displayName co "a"',
    'active eq true and displayName co "n"',
    'urn:ietf:params:scim:schemas:core:2.0:User:userName eq "cat@example.com"',
    'name.familyName eq "ruiz"',
    'id eq "nobody"',
    'meta.created gt "2000-01-01T00:00:00Z"',
    'groups.display eq "finance"',
]


@pytest.fixture
def people(directory: Directory, member: Role) -> dict[str, Any]:
    """Return the SCIM resources of people by id, including a person whom the directory did not create."""
    cat = User.objects.create_user("cat@example.com", make.PASSWORD, role=member)
    ana = directory.make(
        "ana@example.com",
        externalId="E1",
        displayName="Ana",
        name={"familyName": "Ruiz"},
        emails=[{"value": "ana@example.com", "type": "work"}, {"value": "Ana@Home.example", "type": "home"}],
    )
    ben = directory.make("benny", displayName="Ben", active=False, emails=[{"value": "ben@example.com"}])
    dan = directory.make("dan@example.com")
    User.objects.get(pk=dan["id"]).edit(email="dan.berg@example.com", display_name="", by=None)  # A correction.
    gone = directory.make("gone@example.com", externalId="E1")
    directory.make_group("Finance", ana["id"], str(cat.pk))
    directory.ask("DELETE", f"/Users/{gone['id']}")
    pks = [str(pk) for pk in directory_resources.people().values_list("pk", flat=True)]
    assert {ana["id"], ben["id"], dan["id"], str(cat.pk)} < {*pks}
    return {pk: directory.get(f"/Users/{pk}").json() for pk in pks}


@pytest.mark.full
def test_a_filter_finds_what_it_says_however_it_is_evaluated(
    directory: Directory, people: dict[str, Any], subtests: pytest.Subtests
) -> None:
    model: Any = provider().model_for("User")
    for said in FILTERS:
        with subtests.test(said):
            bound: Any = ScimFilter[model](said)
            expected = {pk for pk, told in people.items() if bound.match(model.model_validate(told))}
            assert set(directory.found(said)) == expected
    assert all(directory.found(f'id eq "{pk}"') == [pk] for pk in people)


@pytest.mark.full
def test_groups_are_found_by_name_and_by_member(directory: Directory, people: dict[str, Any]) -> None:
    (group,) = directory.found('displayName eq "FINANCE"', "Groups")
    members = [one["value"] for one in directory.get(f"/Groups/{group}").json()["members"]]
    for pk in people:
        found = [group] if pk in members else []
        for said in (f'members eq "{pk}"', f'members.value eq "{pk}"', f'members[value eq "{pk}"]'):
            assert directory.found(said, "Groups") == found
    assert directory.found('displayName eq "None"', "Groups") == directory.found('externalId eq "x"', "Groups") == []


@pytest.mark.full
def test_pages_begin_where_they_are_asked_to_and_hold_each_person_once(
    directory: Directory, people: dict[str, Any]
) -> None:
    for query in ("", 'filter=userName co "@"&'):
        seen, total = [], 0
        for start in range(1, len(people) + 2, 2):
            page = directory.get(f"/Users?{query}startIndex={start}&count=2").json()
            seen += [one["id"] for one in page.get("Resources", [])]
            assert page["startIndex"] == start
            total = page["totalResults"]
        assert len(seen) == len({*seen}) == total > 0
    assert directory.get("/Users?count=0").json()["totalResults"] == len(people)


@pytest.mark.full
def test_a_search_at_the_root_finds_people_and_groups(directory: Directory, people: dict[str, Any]) -> None:
    body = {"schemas": ["urn:ietf:params:scim:api:messages:2.0:SearchRequest"], "startIndex": len(people), "count": 2}
    page = directory.ask("POST", "/.search", body).json()
    assert (page["totalResults"], page["itemsPerPage"]) == (len(people) + 1, 2)
    assert [one["meta"]["resourceType"] for one in page["Resources"]] == ["User", "Group"]


@pytest.mark.full
def test_no_page_has_more_than_200(directory: Directory, member: Role) -> None:
    User.objects.bulk_create(User(email=f"p{number}@example.com", password="!", role=member) for number in range(205))
    page = directory.get("/Users?count=100000").json()
    assert (page["itemsPerPage"], page["totalResults"] > 205) == (200, True)


@pytest.mark.full
def test_the_number_of_statements_does_not_grow_with_the_people(directory: Directory, member: Role) -> None:
    def statements(query: str) -> int:
        with CaptureQueriesContext(connection) as made:
            assert directory.get(query).status_code == 200
        return len(made)

    directory.make_group("first", directory.make("first@example.com")["id"])
    statements("/Users")  # The first request of a key also records the key's use.
    before = [statements(query) for query in ("/Users", "/Groups", "/Users?filter=displayName pr")]
    people = [directory.make(f"p{number}@example.com")["id"] for number in range(6)]
    for number in range(4):
        directory.make_group(f"team {number}", *people)

    assert [statements(query) for query in ("/Users", "/Groups", "/Users?filter=displayName pr")] == before


@pytest.mark.full
def test_a_filter_that_would_look_through_too_many_is_refused(
    directory: Directory, people: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "MOST_LOOKED_THROUGH", 2)
    refused = directory.get('/Users?filter=displayName co "a"')
    assert (refused.status_code, refused.json()["scimType"]) == (400, "tooMany")
    assert directory.get('/Users?filter=userName eq "benny" and displayName co "e"').json()["totalResults"] == 1


def test_a_filter_that_cannot_be_read_is_refused_in_scim(directory: Directory) -> None:
    for said in (
        "userName",
        'userName eq "a',
        "nothing eq 1",
        'active gt "x"',
        "a" * 5000,
        "(" * 500 + 'userName eq "a"',
    ):
        refused = directory.get(f"/Users?filter={said}")
        assert (refused.status_code, refused.json()["scimType"]) == (400, "invalidFilter"), said


def test_conditions_on_several_members_find_each_group_once(directory: Directory) -> None:
    a, b = directory.make("a@example.com")["id"], directory.make("b@example.com")["id"]
    both, one = directory.make_group("Both", a, b)["id"], directory.make_group("One", a)["id"]

    assert directory.found(f'members eq "{a}" and members eq "{b}"', "Groups") == [both]
    assert directory.found(f'members eq "{a}" or members eq "{b}"', "Groups") == [both, one]
