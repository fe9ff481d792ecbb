"""People, roles and teams."""

from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from accounts.models import Role, Team, User
from accounts.rules import BeyondYours, Outranked
from auditlog.models import Event
from capabilities import Capability
from gateways.models import ToolGrant, ToolSet
from tests import make

pytestmark = pytest.mark.django_db


@pytest.fixture
def chief() -> User:
    """Return a person with every capability."""
    return make.user(*Capability, email="chief@example.com")


def test_people_who_lost_their_role_meanwhile_cannot_act(chief: User) -> None:
    """The object `eve` still has her old capabilities cached. Each change reads the current ones from the database."""
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


def test_a_change_of_one_field_keeps_what_others_changed_meanwhile(chief: User) -> None:
    bo, role, team = make.user(email="bo@example.com"), make.role(), Team.objects.add(name="Team", users=[], by=chief)
    same = User.objects.get(pk=bo.pk)
    bo.edit(email="new@example.com", display_name="", by=chief)
    Team.objects.get(pk=team.pk).edit(users=[bo], by=chief)
    Role.objects.get(pk=role.pk).edit(capabilities={Capability.LOGS_READ}, by=chief)

    same.edit(email="bo@example.com", display_name="Bo", by=chief)
    team.edit(name="Other", by=chief)
    role.edit(name="Another", by=chief)

    assert (same.email, same.display_name) == ("new@example.com", "Bo")
    assert (team.name, team.emails()) == ("Other", ["new@example.com"])
    assert (role.name, role.capabilities) == ("Another", frozenset({Capability.LOGS_READ}))


def test_a_team_is_removed_though_a_grant_to_it_is_past_its_end(chief: User) -> None:
    team = Team.objects.add(name="Team", users=[], by=chief)
    tools = ToolSet.objects.add(gateway=make.gateway(), name="Tools", by=chief)
    grant = ToolGrant.objects.give(tools, team=team, ends_at=timezone.now() + timedelta(days=1), by=chief)
    ToolGrant.objects.filter(pk=grant.pk).update(ends_at=timezone.now())

    team.remove(by=chief)

    grant.refresh_from_db()
    assert (grant.team, grant.team_name) == (None, "Team")


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
