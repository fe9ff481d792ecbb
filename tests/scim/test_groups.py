"""Teams provisioned by a directory, and the effect on their members."""

from __future__ import annotations

import pytest

from accounts.models import Role, Team, User
from auditlog.models import Event
from gateways.models import Reach
from scim.models import DirectoryTeam
from tests import make
from tests.scim.conftest import GROUP, Directory

pytestmark = [pytest.mark.django_db, pytest.mark.full]


def test_a_group_is_a_team_of_its_members(directory: Directory) -> None:
    pk = directory.make("ana@example.com")["id"]

    made = directory.make_group("Finance", pk, externalId="g1")

    team = Team.objects.get(pk=made["id"])
    assert (team.name, team.emails(), made["externalId"]) == ("Finance", ["ana@example.com"], "g1")
    (member,) = made["members"]
    assert (member["value"], member["type"], member["$ref"].endswith(f"/scim/v2/Users/{pk}")) == (pk, "User", True)
    (group,) = directory.get(f"/Users/{pk}").json()["groups"]
    assert (group["value"], group["display"]) == (str(team.pk), "Finance")


def test_reach_follows_the_members_of_a_group(directory: Directory, member: Role) -> None:
    ben = User.objects.create_user("ben@example.com", make.PASSWORD, role=member)
    team = Team.objects.get(pk=directory.make_group("Finance", str(ben.pk))["id"])
    gateway = make.gateway(reach=Reach.TEAMS)
    gateway.teams.add(team)
    connection = make.connection(make.agent(by=ben), gateway, ben)
    assert connection.blocked_by == ""

    directory.patch(f"/Groups/{team.pk}", {"op": "remove", "path": f'members[value eq "{ben.pk}"]'})

    connection = type(connection).objects.get(pk=connection.pk)
    assert connection.blocked_by == "reach"


def test_a_group_is_renamed_and_deleted(directory: Directory) -> None:
    pk = directory.make_group("Finance")["id"]
    directory.patch(f"/Groups/{pk}", {"op": "replace", "value": {"id": pk, "displayName": "Money"}})
    assert Team.objects.get(pk=pk).name == "Money"
    refused = directory.ask("POST", "/Groups", {"schemas": [GROUP], "displayName": "MONEY"})
    assert (refused.status_code, refused.json()["scimType"]) == (409, "uniqueness")

    assert directory.ask("DELETE", f"/Groups/{pk}").status_code == 204

    assert not Team.objects.filter(pk=pk).exists()
    assert not DirectoryTeam.objects.exists()
    assert directory.get(f"/Groups/{pk}").status_code == 404
    told = Event.objects.filter(target_id=pk).order_by("pk").values_list("action", flat=True)
    assert list(told) == ["team.created", "team.updated", "team.removed"]


def test_a_member_who_is_nobody_is_refused_and_nobody_joins(directory: Directory) -> None:
    group, pk = directory.make_group("Finance")["id"], directory.make("ana@example.com")["id"]
    unknown = "00000000-0000-4000-8000-000000000000"
    refused = directory.patch(
        f"/Groups/{group}", {"op": "add", "path": "members", "value": [{"value": pk}, {"value": unknown}]}
    )
    assert (refused.status_code, refused.json()["scimType"]) == (400, "invalidValue")
    assert Team.objects.get(pk=group).emails() == []


def test_a_deleted_person_is_in_no_team_after_returning(directory: Directory) -> None:
    ana, ben = (directory.make(f"{name}@example.com")["id"] for name in ("ana", "ben"))
    group = directory.make_group("Finance", ana, ben)["id"]
    directory.ask("DELETE", f"/Users/{ben}")
    assert [one["value"] for one in directory.get(f"/Groups/{group}").json()["members"]] == [ana]

    directory.make("ben@example.com")

    assert [one["value"] for one in directory.get(f"/Groups/{group}").json()["members"]] == [ana]
    told = Event.objects.filter(target_id=group, action="team.updated").get()
    assert told.changes["users"] == [["ben@example.com"], []]


def test_members_are_left_out_where_they_are_not_asked_for(directory: Directory) -> None:
    pk = directory.make("ana@example.com")["id"]
    group = directory.make_group("Finance", pk)
    for query in ("excludedAttributes=members", "attributes=displayName"):
        (listed,) = directory.get(f"/Groups?{query}").json()["Resources"]
        assert "members" not in listed
        told = directory.get(f"/Groups/{group['id']}?{query}")
        assert "members" not in told.json()
        assert told["ETag"] == group["meta"]["version"]
    assert directory.get("/Groups?attributes=members").json()["Resources"][0]["members"]


def test_an_event_of_a_large_group_tells_who_joined_and_who_left_and_not_everybody(
    directory: Directory, member: Role
) -> None:
    people = [User(email=f"p{number:03}@example.com", password="!", role=member) for number in range(101)]
    User.objects.bulk_create(people)
    team = Team.objects.create(name="Everybody")
    team.users.set(people)
    pk = directory.make("ana@example.com")["id"]

    directory.patch(
        f"/Groups/{team.pk}",
        {"op": "add", "path": "members", "value": [{"value": pk}]},
        {"op": "remove", "path": f'members[value eq "{people[7].pk}"]'},
    )

    told = Event.objects.get(target_id=str(team.pk), action="team.updated")
    assert told.changes["users"] == [["p007@example.com"], ["ana@example.com"]]
    assert team.users.count() == 101
