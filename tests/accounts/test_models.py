"""People, roles and teams."""

import pytest
from django.test import Client

from accounts.models import Role, Team, User, WorkspaceSettings, permissions_of
from accounts.rules import BeyondYours, EmailTaken, LastManager, NameTaken, Outranked, RoleInUse, RoleLocked
from auditlog.models import Event
from capabilities import Capability
from tests import make

pytestmark = pytest.mark.django_db


@pytest.fixture
def chief() -> User:
    """A person with every capability, and the only one who manages people."""
    return make.user(*Capability, email="chief@example.com")


def role_of(user: User) -> Role:
    assert user.role
    return user.role


def test_nobody_invites_into_a_role_that_holds_more(chief: User) -> None:
    clerk = make.user(Capability.PEOPLE_MANAGE)

    with pytest.raises(BeyondYours, match="View and export logs"):
        User.objects.invite(email="x@example.com", display_name="X", role=make.role(Capability.LOGS_READ), by=clerk)
    assert not User.objects.filter(email="x@example.com").exists()


def test_an_invited_person_has_no_password_yet(chief: User) -> None:
    bo = User.objects.invite(email=" Bo@Example.com", display_name="Bo", role=make.role(), by=chief)

    assert (bo.email, bo.has_usable_password(), bo.is_active) == ("bo@example.com", False, True)
    assert Event.objects.get(action="user.invited").actor_email == chief.email


def test_an_e_mail_is_invited_once(chief: User) -> None:
    with pytest.raises(EmailTaken):
        User.objects.invite(email="CHIEF@example.com", display_name="", role=make.role(), by=chief)


def test_nobody_adds_a_capability_to_a_role_that_they_lack(chief: User) -> None:
    clerk = make.user(Capability.PEOPLE_MANAGE)
    role = make.role()

    with pytest.raises(BeyondYours):
        role.edit(name=role.name, capabilities={Capability.LOGS_READ}, by=clerk)
    with pytest.raises(BeyondYours):
        Role.objects.add(name="mine", capabilities={Capability.LOGS_READ}, by=clerk)
    with pytest.raises(BeyondYours):
        clerk.give_role(make.role(Capability.LOGS_READ), by=clerk)


def test_nobody_changes_or_deletes_a_role_that_holds_more(chief: User) -> None:
    clerk = make.user(Capability.PEOPLE_MANAGE)
    role = make.role(Capability.LOGS_READ)

    with pytest.raises(Outranked, match="View and export logs"):
        role.edit(name="Watchers", capabilities={Capability.LOGS_READ}, by=clerk)
    with pytest.raises(Outranked):
        role.edit(name=role.name, capabilities=set(), by=clerk)
    with pytest.raises(Outranked):
        role.remove(by=clerk)

    assert Role.objects.get(pk=role.pk).capabilities == {Capability.LOGS_READ}


def test_people_who_lost_their_role_meanwhile_cannot_act(chief: User) -> None:
    """The request cached the author's capabilities at its start; the model reads them from the database again."""
    eve, bo = make.user(*Capability), make.user(Capability.LOGS_READ)
    assert eve.has_perm(Capability.LOGS_READ)

    User.objects.get(pk=eve.pk).give_role(make.role(Capability.PEOPLE_MANAGE), by=chief)

    with pytest.raises(Outranked):
        bo.deactivate(by=eve)
    with pytest.raises(BeyondYours):
        Role.objects.add(name="mine", capabilities={Capability.LOGS_READ}, by=eve)


def test_a_role_says_all_of_what_a_person_may_do(chief: User) -> None:
    """A superuser who gets a role keeps only the capabilities of the role."""
    old = make.user(is_superuser=True)

    old.give_role(make.role(Capability.LOGS_READ), by=chief)

    assert User.objects.get(pk=old.pk).granted == {Capability.LOGS_READ}
    assert Event.objects.get(action="user.role_changed").changes["is_superuser"] == [True, False]


@pytest.mark.full
def test_the_last_manager_of_people_stays(chief: User) -> None:
    with pytest.raises(LastManager):
        chief.deactivate(by=chief)
    with pytest.raises(LastManager):
        chief.give_role(make.role(), by=chief)
    with pytest.raises(LastManager):
        role_of(chief).edit(name="Chief", capabilities=set(Capability) - {Capability.PEOPLE_MANAGE}, by=chief)

    chief.refresh_from_db()
    assert chief.is_active
    assert chief.has_perm(Capability.PEOPLE_MANAGE)


def test_a_second_manager_sets_the_first_free(chief: User) -> None:
    make.user(Capability.PEOPLE_MANAGE)

    chief.deactivate(by=None)

    assert not User.objects.get(pk=chief.pk).is_active


def test_a_native_permission_of_a_role_survives_an_edit(chief: User) -> None:
    role = make.role(Capability.LOGS_READ)
    before = role.permissions.count()

    role.edit(name="Other", capabilities=set(), by=chief)

    assert (before, role.permissions.count()) == (1, 0)
    assert Event.objects.get(action="role.updated").changes["capabilities"] == [["logs:read"], []]


def test_the_locked_role_cannot_be_touched(chief: User) -> None:
    Role.objects.make_built_in()
    locked = Role.objects.get(name="Super admin")

    with pytest.raises(RoleLocked):
        locked.edit(name="Weak admin", capabilities=set(), by=chief)
    with pytest.raises(RoleLocked):
        locked.remove(by=chief)


def test_a_role_that_people_hold_is_not_deleted(chief: User) -> None:
    with pytest.raises(RoleInUse):
        role_of(chief).remove(by=chief)

    role = make.role()
    role.remove(by=chief)
    assert not Role.objects.filter(pk=role.pk).exists()


def test_names_of_roles_and_teams_differ_also_in_case(chief: User) -> None:
    Role.objects.add(name="Ops", capabilities=(), by=chief)
    Team.objects.add(name="Core", users=(), by=chief)

    with pytest.raises(NameTaken):
        Role.objects.add(name="OPS", capabilities=(), by=chief)
    with pytest.raises(NameTaken):
        Team.objects.add(name="core", users=(), by=chief)


@pytest.mark.full
def test_deactivating_ends_every_session_and_reactivating_revives_none(chief: User) -> None:
    bo = make.user()
    browser = Client()
    browser.force_login(bo)
    assert browser.get("/").status_code == 200

    bo.deactivate(by=chief)
    assert browser.get("/").status_code == 302

    bo.reactivate(by=chief)
    assert browser.get("/").status_code == 302
    assert bo.check_password(make.PASSWORD)


def test_signing_out_everywhere_ends_every_session() -> None:
    bo = make.user()
    browser = Client()
    browser.force_login(bo)

    bo.end_sessions(by=bo)

    assert browser.get("/").status_code == 302


def test_a_team_tells_who_joined_and_who_left(chief: User) -> None:
    ann, ben = make.user(email="ann@example.com"), make.user(email="ben@example.com")
    team = Team.objects.add(name="Core", users=[ann], by=chief)

    team.edit(name="Core", users=[ben], by=chief)
    team.remove(by=chief)

    told = [event.changes for event in Event.objects.filter(target_type="team").order_by("id")]
    assert [change["users"] for change in told] == [
        [[], ["ann@example.com"]],
        [["ann@example.com"], ["ben@example.com"]],
        [["ben@example.com"], []],
    ]


def test_settings_record_only_what_changed(chief: User) -> None:
    WorkspaceSettings.edit(by=chief, name="Acme", log_retention_days=90)
    WorkspaceSettings.edit(by=chief, name="Acme")

    assert Event.objects.get(action="workspace.updated").changes == {"name": ["Gateway Admin", "Acme"]}
    assert WorkspaceSettings.load().name == "Acme"


def test_every_capability_has_its_permission_row() -> None:
    assert permissions_of(Capability).count() == len(Capability)
