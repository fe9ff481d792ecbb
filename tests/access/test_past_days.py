"""The access report of a past day, computed from the history or, for a day before the history, from admin events."""

from datetime import date, timedelta
from importlib import import_module
from typing import Any

import pytest
from django.apps import apps
from django.db import connection
from django.utils import timezone

from access.in_force import in_force_at, in_force_now
from access.models import Fact, FactKind
from access.report import AccessReport, Asked, end_of
from accounts.models import Role, Team, User
from auditlog.models import Event
from capabilities import Capability
from connections.models import Connection
from gateways.models import Feature, Gateway, GatewayGrant, Reach, ToolGrant, ToolSet
from tests import make
from tests.conftest import SignIn
from tests.rest import Rest

pytestmark = pytest.mark.django_db
DAY = timedelta(days=1)


@pytest.fixture
def work(ana: User) -> Gateway:
    return make.gateway(slug="work", name="Work", reach=Reach.TEAMS)


def moved(days: int) -> None:
    """Make the history, and all people, gateways, assignments, grants and tools, older by this number of days."""
    ages = {
        Fact: ("began_at", "ended_at"),
        User: ("date_joined",),
        Gateway: ("created_at",),
        GatewayGrant: ("given_at", "ends_at", "ended_at"),
        ToolGrant: ("given_at", "ended_at"),
        Feature: ("first_seen_at",),
    }
    with connection.cursor() as cursor:
        for model, columns in ages.items():
            told = ", ".join(f"{column} = {column} - %s * interval '1 day'" for column in columns)
            cursor.execute(f"UPDATE {model._meta.db_table} SET {told}", [days] * len(columns))
        cursor.execute("UPDATE gateways_assignment SET created_at = created_at - %s * interval '1 day'", [days])


def ago(days: int) -> date:
    return (timezone.now() - days * DAY).date()


def lines(person: User, work: Gateway, days: int) -> list[Any]:
    return [*AccessReport(Asked(people=[person.pk], gateways=[work.pk], on=ago(days)))]


@pytest.mark.full
def test_a_past_day_has_the_members_and_teams_of_then(ana: User, ann: User, work: Gateway) -> None:
    team = Team.objects.add(name="Support", users=[ann], by=None)
    work.edit(teams=[team], by=ana)
    moved(10)
    team.edit(name="Support", users=[], by=None)
    moved(10)

    assert [line.through for line in lines(ann, work, 15)] == [["team Support"]]
    assert lines(ann, work, 5) == lines(ann, work, 0) == []
    assert lines(ann, work, 25) == []
    assert [line.person for line in AccessReport(Asked(teams=[team.pk], gateways=[work.pk], on=ago(15)))] == [ann]


def test_a_deleted_team_keeps_its_name_and_its_grants_in_the_past(ana: User, ann: User, work: Gateway) -> None:
    assignment = make.assignment(work, make.server(slug="docs"))
    Feature.objects.create(assignment=assignment, name="get", exposed_name="docs__get")
    team = Team.objects.add(name="Support", users=[ann], by=None)
    work.edit(teams=[team], tools_given="granted", by=ana)
    ToolGrant.objects.give(ToolSet.objects.add(gateway=work, name="All", patterns=["*"], by=ana), team=team, by=ana)
    moved(10)
    team.remove(by=None)
    moved(10)

    (line,) = lines(ann, work, 15)
    assert (line.through, line.tools, line.sets) == (["team Support"], 1, ["All (Support)"])
    assert lines(ann, work, 5) == []
    by_tool = AccessReport(Asked(people=[ann.pk], tool="get", on=ago(15)))
    assert [line.feature.exposed_name for line in by_tool if line.feature] == ["docs__get"]


@pytest.mark.full
def test_a_team_that_was_renamed_and_deleted_keeps_its_grants_in_the_past(ana: User, ann: User, work: Gateway) -> None:
    assignment = make.assignment(work, make.server(slug="docs"))
    for name in ("get", "drop"):
        Feature.objects.create(assignment=assignment, name=name, exposed_name=f"docs__{name}")
    team = Team.objects.add(name="Support", users=[ann], by=None)
    work.edit(teams=[team], tools_given="granted", by=ana)
    every, some = (
        ToolSet.objects.add(gateway=work, name=name, patterns=[pattern], by=ana)
        for name, pattern in (("All", "*"), ("Gets", "*get"))
    )
    ended = ToolGrant.objects.give(every, team=team, by=ana)
    ToolGrant.objects.give(some, team=team, by=ana)
    moved(10)
    team.edit(name="Help", by=None)
    ToolGrant.objects.get(pk=ended.pk).end(by=ana)
    moved(10)
    Team.objects.get(pk=team.pk).edit(name="Desk", by=None)
    Team.objects.get(pk=team.pk).remove(by=None)
    Team.objects.add(name="Desk", users=[ann], by=None)  # Another team, with the last name of the deleted one.
    moved(10)

    (first,), (second,) = lines(ann, work, 25), lines(ann, work, 15)
    assert (first.tools, first.sets) == (2, ["All (Help)", "Gets (Desk)"])
    assert (second.tools, second.sets) == (1, ["Gets (Desk)"])
    assert [source.since.date() for source in second.given if source.since] == [ago(30)]
    by_tool = AccessReport(Asked(people=[ann.pk], tool="docs", on=ago(15)))
    assert [line.feature.exposed_name for line in by_tool if line.feature] == ["docs__get"]
    assert lines(ann, work, 5) == []


@pytest.mark.full
def test_roles_reach_and_activity_are_those_of_then(ana: User, ann: User, work: Gateway) -> None:
    make.user(Capability.PEOPLE_MANAGE)
    everything, looking = make.role(Capability.GATEWAYS_USE, name="Operators"), make.role(name="Readers")
    ann.give_role(everything, by=None)
    moved(10)
    ann.give_role(looking, by=None)
    looking.edit(name="Readers", capabilities=[], uses_gateways=False, by=None)
    work.edit(reach=Reach.EVERYONE, by=ana)
    moved(10)
    looking.edit(name="Readers", capabilities=[], uses_gateways=True, by=None)
    moved(10)
    ann.deactivate(by=None)

    assert [line.through for line in lines(ann, work, 25)] == [["role Operators"]]
    assert lines(ann, work, 15) == []
    assert [line.through for line in lines(ann, work, 5)] == [["everyone"]]
    assert lines(ann, work, 0) == []


def test_an_extended_grant_began_with_the_first_one(ana: User, ann: User, work: Gateway) -> None:
    GatewayGrant.objects.give(work, ann, ends_at=timezone.now() + 30 * DAY, by=ana)
    moved(20)
    GatewayGrant.objects.give(work, ann, ends_at=timezone.now() + 60 * DAY, by=ana)
    moved(20)

    (line,) = AccessReport(Asked(people=[ann.pk], gateways=[work.pk]))
    assert line.since is not None
    assert line.since.date() == ago(40)
    assert len(AccessReport(Asked(people=[ann.pk], gateways=[work.pk], unused=30))) == 1


@pytest.mark.full
def test_access_through_a_team_is_new_when_the_membership_is(ana: User, ann: User, ben: User, work: Gateway) -> None:
    team = Team.objects.add(name="Support", users=[ann], by=None)
    work.edit(teams=[team], by=ana)
    moved(40)
    team.edit(name="Support", users=[ann, ben], by=None)

    both = AccessReport(Asked(teams=[team.pk], gateways=[work.pk]))
    assert {line.person: line.since and line.since.date() for line in both} == {ann: ago(40), ben: ago(0)}
    assert [line.person for line in AccessReport(Asked(gateways=[work.pk], teams=[team.pk], unused=30))] == [ann]


def test_the_history_begins_with_what_admin_events_say(ana: User, ann: User, ben: User, work: Gateway) -> None:
    make.user(Capability.PEOPLE_MANAGE)
    operators, readers = make.role(Capability.GATEWAYS_USE, name="Operators"), make.role(name="Readers")
    for person in (ann, ben):
        person.give_role(operators, by=None)
    events = [Event.objects.latest("pk").pk]

    def then() -> None:
        events.append(Event.objects.latest("pk").pk)

    team = Team.objects.add(name="Support", users=[ann], by=None)
    work.edit(teams=[team], by=ana)
    then()
    ann.give_role(readers, by=None)
    team.edit(name="Help", users=[ben], by=None)
    work.edit(reach=Reach.EVERYONE, tools_given="granted", by=ana)
    then()
    ben.deactivate(by=ana)
    Team.objects.get(pk=team.pk).remove(by=ana)
    operators.edit(name="Operators", capabilities=[], by=None)
    then()
    _spread(events)
    moved(40)
    Fact.objects.all().delete()
    import_module("access.migrations.0002_read_events").begin(apps, None)

    assert set(Fact.objects.values_list("from_events", flat=True)) == {True}
    now, again = in_force_now(), in_force_at(timezone.now())
    for name in ("people", "gateways", "open_to", "use_all"):
        assert getattr(now, name) == getattr(again, name), name
    first, second = in_force_at(end_of(ago(25))), in_force_at(end_of(ago(15)))
    assert {*first.teams_of[ann.pk]} == {*first.open_to[work.pk]} == {team.pk}
    assert (ann.pk in first.use_all, ann.pk in second.use_all) == (True, False)
    assert {ann.pk: second.teams_of.get(ann.pk), ben.pk: second.teams_of.get(ben.pk)} == {
        ann.pk: None,
        ben.pk: {team.pk},
    }
    assert [each.for_everyone for each in second.gateways if each.pk == work.pk] == [True]
    assert [(each.for_everyone, each.gives_all) for each in first.gateways if each.pk == work.pk] == [(False, True)]
    assert (ben.pk in second.people, ben.pk in again.people) == (True, False)


def _spread(events: list[int]) -> None:
    """Set the dates of events: 40 days ago up to the id `events[0]`, then 30 days ago up to `events[1]`, and so on."""
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL session_replication_role = replica")
        for number, (start, end) in enumerate(zip([0, *events], events, strict=False)):
            at = timezone.now() - (40 - 10 * number) * DAY
            cursor.execute("UPDATE auditlog_event SET created_at = %s WHERE id > %s AND id <= %s", [at, start, end])
        cursor.execute("SET LOCAL session_replication_role = DEFAULT")


def test_the_page_says_of_which_day_it_is_and_refuses_others(
    ana: User, ann: User, work: Gateway, sign_in: SignIn
) -> None:
    GatewayGrant.objects.give(work, ann, by=ana)
    moved(9)
    link = make.connection(make.agent(by=ana, name="Bot"), work, ann)
    Connection.objects.update(connected_at=timezone.now() - 9 * DAY)
    link.host.disable(by=ana)
    Connection.objects.archive_host(link.host, by=ana)
    everything = make.user(*Capability)
    page = sign_in(everything).get(f"/access/report/?agent=bot&on={ago(5)}").content.decode()
    assert f'data-of="access:{ann.pk}:{work.pk}"' in page
    reader = make.user(Capability.GATEWAYS_READ, Capability.PEOPLE_READ)
    client = sign_in(reader)

    page = client.get(f"/access/report/?person={ann.pk}&on={ago(5)}").content.decode()
    assert f'data-of="access:{ann.pk}:{work.pk}"' in page
    assert "For earlier days, the report derives teams, roles and access from admin events" in page
    assert "Enter a past day" not in page
    for wrong in ("yesterday", f"{ago(-2)}"):
        page = client.get("/access/report/", {"on": wrong}).content.decode()
        assert "Enter a past day" in page
        assert "data-of=" not in page.partition("<tbody>")[2]
        assert client.get("/access/report/", {"on": wrong, "format": "csv"}).status_code == 400
        assert Rest.of(reader).get("/access", on=wrong).status_code == 400
    (line,) = Rest.of(reader).get("/access", on=f"{ago(5)}", user=ann.email, gateway="work").json()["results"]
    assert line["last_used_at"] is None
    assert Rest.of(reader).get("/access", on=f"{ago(20)}", user=ann.email).json()["results"] == []


def test_facts_of_kinds_are_recorded_by_any_way_to_change_them(ann: User, work: Gateway) -> None:
    team = Team.objects.create(name="Raw")
    team.users.add(ann)
    role = Role.objects.create(name="Raw")
    with connection.cursor() as cursor:
        cursor.execute("UPDATE accounts_user SET role_id = %s, is_active = false WHERE id = %s", [role.pk, ann.pk])
        cursor.execute("UPDATE gateways_gateway SET reach = 'everyone' WHERE id = %s", [work.pk])
        cursor.execute("DELETE FROM accounts_team_users WHERE user_id = %s", [ann.pk])

    of_ann = Fact.objects.filter(subject=ann.pk)
    assert of_ann.get(kind=FactKind.MEMBER).ended_at is not None
    assert of_ann.get(kind=FactKind.ROLE, ended_at=None).label == "Raw"
    assert of_ann.filter(kind=FactKind.INACTIVE, ended_at=None).exists()
    assert Fact.objects.filter(kind=FactKind.EVERYONE, subject=work.pk, ended_at=None).exists()
