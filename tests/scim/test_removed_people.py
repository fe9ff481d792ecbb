"""People deleted by a directory, their successors, and people deactivated by an administrator."""

from __future__ import annotations

from collections.abc import Callable
from secrets import token_urlsafe
from typing import Any

import pytest
from allauth.mfa.models import Authenticator

from accounts.models import Role, Team, User
from accounts.people_forms import of_status
from attention.models import Channel
from auditlog.models import Event
from capabilities import Capability
from connections.models import Connection
from gateways.models import AccessRequest, GatewayGrant, Reach, ToolGrant, ToolSet, ToolsGiven
from scim.models import DirectoryPerson
from servers.models import AuthType
from sso.models import Account
from tests import make
from tests.rest import Rest
from tests.scim.conftest import USER, Directory

pytestmark = pytest.mark.django_db


@pytest.fixture
def ben(member: Role) -> User:
    return User.objects.create_user("ben@example.com", make.PASSWORD, role=member)


def post(directory: Directory, **said: Any) -> Any:
    return directory.ask("POST", "/Users", {"schemas": [USER], "userName": "ben@example.com", **said})


def activate(directory: Directory, person: User, **said: Any) -> Any:
    return directory.patch(f"/Users/{person.pk}", {"op": "replace", "value": {"active": True, **said}})


def is_active(person: User) -> bool:
    return User.objects.get(pk=person.pk).is_active


def test_nothing_of_whom_a_directory_deleted_works_for_who_comes_after_them(
    directory: Directory, member: Role, ben: User
) -> None:
    ben.give_role(make.role(Capability.HOSTS_READ, *member.capabilities, name="Reader"), by=None)
    key = make.api_key(ben, Capability.HOSTS_READ)
    server = make.server(auth_type=AuthType.BEARER)
    identity = make.identity(server, ben)
    connection = make.connection(make.agent(by=ben), make.gateway(), ben)
    team = Team.objects.add(name="Finance", users=[ben], by=None)
    Authenticator.objects.create(user=ben, type=Authenticator.Type.TOTP, data={"secret": ""})
    Account.objects.create(user=ben, issuer="https://login.example.com", subject="1")
    User.objects.filter(pk=ben.pk).update(by_organisation=True, is_staff=True)
    boss = make.user(*Capability)
    closed, limited = make.gateway(reach=Reach.TEAMS), make.gateway(tools_given=ToolsGiven.GRANTED, takes_requests=True)
    payroll = ToolSet.objects.add(gateway=limited, name="Payroll", patterns=["*"], by=boss)
    ToolGrant.objects.give(payroll, user=ben, by=boss)
    GatewayGrant.objects.give(closed, ben, by=boss)
    closed.edit(approvers=[ben, boss], by=boss)
    asked = AccessRequest.objects.ask(limited, tool_set=ToolSet.objects.add(
        gateway=limited, name="Wages", patterns=["pay*"], by=boss), reason="For work", days=1, by=ben)  # fmt: skip
    Channel.objects.add(
        by=ben, kind="webhook", for_workspace=False, address="https://93.184.216.34/hook", secret=token_urlsafe(48)
    )

    assert directory.ask("DELETE", f"/Users/{ben.pk}").status_code == 204
    assert post(directory).status_code == 201

    again = User.objects.get(pk=ben.pk)
    assert again.role == member
    assert (again.is_active, again.status, again.has_usable_password()) == (True, "provisioned", False)
    assert (again.invited_at, again.by_organisation, again.is_staff) == (None, False, False)
    assert Rest.bearing(key.secret).get("/me").status_code == 401
    connection.refresh_from_db()
    identity.refresh_from_db()
    assert connection.revoked_at
    assert not connection.tokens.filter(revoked_at=None).exists()
    assert identity.revoked_at
    assert team.emails() == []
    assert not ToolGrant.objects.to(again).exists()
    assert not closed.is_reachable_by(again)
    assert [*closed.approvers.all()] == [boss]
    asked.refresh_from_db()
    assert asked.state == "withdrawn"
    assert not Channel.objects.filter(owner=ben).exclude(kind="mail").exists()
    assert not Authenticator.objects.filter(user=ben).exists()
    assert not Account.objects.filter(user=ben).exists()


@pytest.mark.full
def test_a_directory_that_says_it_is_somebody_else_is_told_what_to_do(directory: Directory) -> None:
    pk = directory.make("ben@example.com", externalId="00u1")["id"]
    directory.ask("DELETE", f"/Users/{pk}")

    refused = post(directory, externalId="00u2")

    assert (refused.status_code, refused.json()["scimType"]) == (409, "uniqueness")
    assert "An administrator must first change that person's e-mail" in refused.json()["detail"]
    old = User.objects.get(pk=pk)
    assert not old.is_active
    old.edit(email="ben.old@example.com", display_name="", by=None)
    assert post(directory, externalId="00u2").json()["id"] != pk
    deleted = directory.make("ann", emails=[{"value": "ann@example.com"}])["id"]
    directory.ask("DELETE", f"/Users/{deleted}")
    assert directory.make("ann", emails=[{"value": "other@example.com"}])["id"] != deleted


@pytest.mark.full
def test_an_address_that_release_1_0_0_left_with_a_deleted_person_can_be_used_again(directory: Directory) -> None:
    pk = directory.make("ben@example.com")["id"]
    directory.ask("DELETE", f"/Users/{pk}")
    DirectoryPerson.objects.filter(user=pk).update(email="ben@example.com")
    User.objects.get(pk=pk).edit(email="ben.old@example.com", display_name="", by=None)

    assert post(directory).json()["id"] != pk
    directory.make("ben.old@example.com")
    assert directory.found('userName eq "ben.old@example.com"') == [pk]


@pytest.mark.full
def test_each_deletion_and_each_return_is_an_event(directory: Directory) -> None:
    pk = directory.make("ben@example.com", active=False, name={"familyName": "Berg"}, externalId="00u1")["id"]

    directory.ask("DELETE", f"/Users/{pk}")
    left = DirectoryPerson.objects.values("external_id", "name", "emails", "addresses", "email").get()
    post(directory)

    assert left == {"external_id": "00u1", "name": {}, "emails": [], "addresses": [], "email": ""}

    told = [event.changes["removed_at"] for event in Event.objects.filter(target_id=pk, changes__has_key="removed_at")]
    assert len(told) == 2
    assert sorted(before is None for before, _ in told) == [False, True]


@pytest.mark.full
def test_an_administrators_act_is_not_undone_by_a_directory(
    directory: Directory, member: Role, subtests: pytest.Subtests
) -> None:
    boss = make.user(*Capability)

    def deactivate_after_the_directory(person: User) -> None:
        directory.deactivate(person.pk)
        User.objects.get(pk=person.pk).deactivate(by=boss)

    acts: dict[str, Callable[[User], Any]] = {
        "deactivate": lambda person: person.deactivate(by=boss),
        "cut off": lambda person: Connection.objects.cut_off(person, by=boss),
        "deactivate after the directory": deactivate_after_the_directory,
        "revoke the invitation": lambda person: person.revoke_invitation(by=boss),
    }
    for number, (name, act) in enumerate(acts.items()):
        with subtests.test(name):
            email = f"ben{number}@example.com"
            if name == "revoke the invitation":
                person = User.objects.invite(email=email, role=member, by=None)
            else:
                person = User.objects.create_user(email, make.PASSWORD, role=member)
            act(person)
            body = {"schemas": [USER], "userName": email, "displayName": "Ben", "active": True}

            refusals = [
                activate(directory, person),
                activate(directory, person, displayName="Ben"),
                directory.ask("PUT", f"/Users/{person.pk}", body),
            ]

            assert [(one.status_code, is_active(person)) for one in refusals] == [(403, False)] * 3
            assert "An administrator has deactivated this person" in refusals[0].json()["detail"]
            assert User.objects.get(pk=person.pk).display_name == ""
            directory.ask("DELETE", f"/Users/{person.pk}")
            remade = directory.ask("POST", "/Users", {"schemas": [USER], "userName": email})
            assert (remade.status_code, is_active(person)) == (403, False)


@pytest.mark.full
def test_a_directory_still_describes_people_an_administrator_deactivated(directory: Directory, ben: User) -> None:
    ben.deactivate(by=make.user(*Capability))
    change = {"op": "replace", "path": "displayName", "value": "Ben"}
    assert directory.patch(f"/Users/{ben.pk}", change).status_code == 204
    assert User.objects.get(pk=ben.pk).display_name == "Ben"


@pytest.mark.full
def test_a_reactivation_by_an_administrator_ends_what_the_directory_may_undo(directory: Directory, ben: User) -> None:
    boss = make.user(*Capability)
    directory.deactivate(ben.pk)
    User.objects.get(pk=ben.pk).end_sessions(by=boss)
    assert activate(directory, ben).status_code == 204
    directory.deactivate(ben.pk)
    User.objects.get(pk=ben.pk).reactivate(by=boss)
    User.objects.get(pk=ben.pk).deactivate(by=boss)
    assert (activate(directory, ben).status_code, is_active(ben)) == (403, False)


def test_a_revoked_invitation_stays_one_when_a_directory_describes_the_person(
    directory: Directory, member: Role
) -> None:
    person = User.objects.invite(email="ann@example.com", role=member, by=None)
    person.revoke_invitation(by=None)

    directory.patch(f"/Users/{person.pk}", {"op": "replace", "path": "externalId", "value": "00u1"})

    assert User.objects.get(pk=person.pk).status == "revoked"
    assert User.objects.filter(of_status("revoked"), pk=person.pk).exists()
