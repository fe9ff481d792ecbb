"""Limits on the changes that a provisioning key allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from accounts.models import Role, Team, User
from accounts.rules import BeyondYours
from auditlog.models import Event
from capabilities import Capability
from capabilities.catalogue import SUPER_ADMIN
from scim.models import IssuedProvisioningKey, MakesOwners, ProvisioningKey, RoleBeyond
from tests import make
from tests.scim.conftest import USER, Directory, key_for

pytestmark = pytest.mark.django_db

type Act = Callable[[Directory, User], Any]


def renamed(directory: Directory, person: User) -> Any:
    return directory.patch(f"/Users/{person.pk}", {"op": "replace", "path": "displayName", "value": "Other"})


def readdressed(directory: Directory, person: User) -> Any:
    return directory.patch(f"/Users/{person.pk}", {"op": "replace", "path": "userName", "value": "x@example.com"})


def replaced(directory: Directory, person: User) -> Any:
    return directory.ask("PUT", f"/Users/{person.pk}", {"schemas": [USER], "userName": "x@example.com"})


def described(directory: Directory, person: User) -> Any:
    return directory.patch(f"/Users/{person.pk}", {"op": "replace", "path": "externalId", "value": "00u1"})


def deactivated(directory: Directory, person: User) -> Any:
    return directory.deactivate(person.pk)


def deleted(directory: Directory, person: User) -> Any:
    return directory.ask("DELETE", f"/Users/{person.pk}")


def put_in_a_team(directory: Directory, person: User) -> Any:
    return directory.ask(
        "POST", "/Groups", {"displayName": make.unique("team"), "members": [{"value": str(person.pk)}]}
    )


ACTS: list[Act] = [renamed, readdressed, replaced, described, deactivated, deleted, put_in_a_team]


def owner(email: str) -> User:
    Role.objects.make_built_in()
    return User.objects.create_user(email, make.PASSWORD, role=Role.objects.get(name=SUPER_ADMIN.name))


def state(person: User) -> Any:
    return User.objects.filter(pk=person.pk).values().get(), list(person.teams.all())


@pytest.mark.full
def test_nobody_who_holds_more_than_the_key_may_act_on_is_touched(
    directory: Directory, issued: IssuedProvisioningKey, subtests: pytest.Subtests
) -> None:
    granted = issued.key.granted
    others = [one for one in Capability if one not in (Capability.PEOPLE_MANAGE, Capability.WORKSPACE_MANAGE)]
    for act, beyond in [(act, Capability.WORKSPACE_MANAGE) for act in ACTS] + [(deactivated, one) for one in others]:
        with subtests.test(f"{act.__name__}: {beyond}"):
            person = make.user(*(granted | {beyond}))
            before, is_beyond = state(person), beyond not in granted

            answered = act(directory, person)

            assert (answered.status_code == 403) is is_beyond
            assert (state(person) == before) is is_beyond
    assert directory.deactivate(make.user(is_superuser=True).pk).status_code == 403


@pytest.mark.full
def test_the_last_owner_is_not_touched_by_a_key_that_may_act_on_everybody(
    member: Role, subtests: pytest.Subtests
) -> None:
    directory, last = Directory(key_for(member, *Capability).secret), owner("last@example.com")
    assert directory.deactivate(owner("other@example.com").pk).status_code == 204
    before = state(last)

    for act in ACTS:
        if act is not put_in_a_team:
            with subtests.test(act.__name__):
                refused = act(directory, last)
                assert (refused.status_code, state(last)) == (403, before)
                assert "Super admin" in refused.json()["detail"]


@pytest.mark.full
def test_a_refusal_is_in_the_form_of_scim_and_an_event(directory: Directory, issued: IssuedProvisioningKey) -> None:
    refused = directory.deactivate(make.user(Capability.WORKSPACE_MANAGE).pk)

    body = refused.json()
    assert (body["schemas"], body["status"]) == (["urn:ietf:params:scim:api:messages:2.0:Error"], "403")
    assert "You lack: Manage workspace settings." in body["detail"]
    event = Event.objects.get(action="attempt.refused")
    assert (event.actor_email, event.changes["method"], event.via) == (
        f"provisioning key {issued.key}",
        "PATCH",
        "scim",
    )


@pytest.mark.full
def test_people_get_the_role_of_the_key_whatever_is_sent_and_none_once_it_grew_beyond_the_key(
    directory: Directory, member: Role
) -> None:
    made = directory.make("bo@example.com", roles=[{"value": SUPER_ADMIN.name}], role=SUPER_ADMIN.name)
    person = User.objects.get(pk=made["id"])
    assert (person.role, person.is_staff, person.is_superuser) == (member, False, False)
    make.user(Capability.PEOPLE_MANAGE)
    member.edit(name=member.name, capabilities=[*member.capabilities, Capability.WORKSPACE_MANAGE], by=None)

    refused = directory.ask("POST", "/Users", {"schemas": [USER], "userName": "ana@example.com"})

    assert refused.status_code == 403
    assert not User.objects.filter(email="ana@example.com").exists()


@pytest.mark.full
def test_members_who_stay_in_a_team_do_not_matter(directory: Directory) -> None:
    boss, team = make.user(*Capability), None
    team = Team.objects.add(name="Finance", users=[boss], by=None)
    pk = directory.make("ana@example.com")["id"]

    add = directory.patch(f"/Groups/{team.pk}", {"op": "add", "path": "members", "value": [{"value": pk}]})
    remove = directory.patch(f"/Groups/{team.pk}", {"op": "remove", "path": f'members[value eq "{boss.pk}"]'})

    assert (add.status_code, remove.status_code) == (204, 403)
    assert sorted(team.emails()) == sorted([boss.email, "ana@example.com"])


def test_nobody_makes_a_key_that_may_more_than_they_do(member: Role) -> None:
    maker = make.user(*member.capabilities, Capability.PEOPLE_MANAGE, Capability.PROVISIONING_MANAGE)
    with pytest.raises(BeyondYours):
        ProvisioningKey.objects.issue(name="Okta", role=member, capabilities=[*Capability], by=maker)
    made = ProvisioningKey.objects.issue(name="Okta", role=member, capabilities=member.capabilities, by=maker)
    other = make.user(Capability.PEOPLE_MANAGE, Capability.PROVISIONING_MANAGE)
    with pytest.raises(BeyondYours):
        made.key.roll(by=other)


@pytest.mark.full
def test_no_key_makes_owners_or_people_it_may_not_act_on(member: Role) -> None:
    boss = owner("boss@example.com")
    assert boss.role is not None
    with pytest.raises(MakesOwners):
        ProvisioningKey.objects.issue(name="Okta", role=boss.role, capabilities=[*Capability], by=boss)
    with pytest.raises(RoleBeyond):
        ProvisioningKey.objects.issue(name="Okta", role=member, capabilities=[], by=boss)
