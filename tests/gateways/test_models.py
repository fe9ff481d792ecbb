"""Gateways, and the servers assigned to them."""

import pytest
from django.db import IntegrityError, transaction

from accounts.models import Team, User
from capabilities import Capability
from gateways.models import AliasRequired, Assignment, Effect, Feature, Gateway, IdentityScheme, Reach, WrongIdentity
from tests import make

pytestmark = pytest.mark.django_db


@pytest.mark.full
def test_a_user_reaches_open_gateways_and_those_of_the_own_teams() -> None:
    ana = make.user()
    team = Team.objects.create(name=make.unique("team"))
    team.users.add(ana)
    everyone, teams, others = make.gateway(), make.gateway(reach=Reach.TEAMS), make.gateway(reach=Reach.TEAMS)
    teams.teams.add(team)

    assert set(Gateway.objects.reachable_by(ana)) == {everyone, teams}
    assert set(Gateway.objects.reachable_by(make.user(Capability.GATEWAYS_USE))) == {everyone, teams, others}


def test_two_teams_show_a_gateway_once() -> None:
    ana = make.user()
    gateway = make.gateway(reach=Reach.TEAMS)
    for _ in range(2):
        team = Team.objects.create(name=make.unique("team"))
        team.users.add(ana)
        gateway.teams.add(team)

    assert list(Gateway.objects.reachable_by(ana)) == [gateway]


def test_the_url_of_a_gateway_is_built_from_the_public_url(settings: object) -> None:
    settings.PUBLIC_URL = "https://mcp.example.com"  # type: ignore[attr-defined]

    assert make.gateway(slug="work").url == "https://mcp.example.com/mcp/work"


@pytest.mark.parametrize("alias", ["docs", ""])
def test_an_alias_is_unique_on_its_gateway_and_so_is_none(alias: str) -> None:
    gateway = make.gateway()
    make.assignment(gateway, make.server(), alias=alias)

    with pytest.raises(IntegrityError, match="live_assignment_alias"), transaction.atomic():
        Assignment.objects.create(gateway=gateway, server=make.server(), alias=alias)


@pytest.mark.full
def test_an_alias_is_required_as_soon_as_a_gateway_has_another_server() -> None:
    ana, gateway = make.user(), make.gateway()
    first = make.assignment(gateway, make.server(), alias="")
    with pytest.raises(AliasRequired):
        make.assignment(gateway, make.server(), alias="")
    second = make.assignment(gateway, make.server(), alias="second")

    with pytest.raises(AliasRequired):
        second.edit(by=ana, alias="")
    second.refresh_from_db()
    assert second.alias == "second"
    first.edit(by=ana, alias="", identity_scheme="none")  # The alias stays empty.

    first.edit(by=ana, alias="first")
    with pytest.raises(AliasRequired):
        first.edit(by=ana, alias="")
    second.remove(by=ana)
    Assignment.objects.get(pk=first.pk).edit(by=ana, alias="")


def test_the_database_allows_one_server_without_an_alias_per_gateway() -> None:
    gateway = make.gateway()
    make.assignment(gateway, make.server(), alias="")
    with pytest.raises(IntegrityError, match="live_assignment_alias"), transaction.atomic():
        Assignment.objects.create(gateway=gateway, server=make.server(), alias="")


def test_reauthenticating_as_another_person_starts_again(ana: User) -> None:
    crm = make.server(auth_type="bearer")
    assignment = make.assignment(make.gateway(), crm)
    Feature.objects.learn(assignment, [{"name": "echo"}])

    assignment.edit(identity_scheme=IdentityScheme.PER_USER, by=ana)

    assert not assignment.listings.exists()


def test_a_removed_assignment_frees_its_alias() -> None:
    ana, gateway = make.user(), make.gateway()
    make.assignment(gateway, make.server(), alias="docs").remove(by=ana)

    make.assignment(gateway, make.server(), alias="docs")

    assert gateway.assignments.live().count() == 1


def test_a_shared_identity_must_be_a_service_account_of_that_server() -> None:
    crm, other, ana = make.server(auth_type="bearer"), make.server(auth_type="bearer"), make.user()
    gateway = make.gateway()

    for wrong in (make.identity(other), make.identity(crm, ana)):
        with pytest.raises(WrongIdentity):
            make.assignment(gateway, crm, identity_scheme=IdentityScheme.SHARED, shared_identity=wrong)
    assert make.assignment(
        gateway, crm, identity_scheme=IdentityScheme.SHARED, shared_identity=make.identity(crm)
    ).shared_identity


def test_the_database_refuses_a_shared_identity_of_another_server() -> None:
    crm, other = make.server(auth_type="bearer"), make.server(auth_type="bearer")
    assigned = make.assignment(make.gateway(), crm, identity_scheme=IdentityScheme.SHARED)

    with pytest.raises(IntegrityError, match="service account of the same server"), transaction.atomic():
        Assignment.objects.filter(pk=assigned.pk).update(shared_identity=make.identity(other))


def test_only_the_shared_scheme_names_a_shared_identity() -> None:
    crm = make.server(auth_type="bearer")

    with pytest.raises(IntegrityError, match="only_shared_scheme"), transaction.atomic():
        make.assignment(make.gateway(), crm, shared_identity=make.identity(crm))


CLAIMS = [
    {},
    {"title": "Search"},
    {"readOnlyHint": True},
    {"readOnlyHint": True, "destructiveHint": True},
    {"readOnlyHint": False},
    {"readOnlyHint": False, "destructiveHint": True},
    {"readOnlyHint": False, "destructiveHint": False},
    {"destructiveHint": True},
    {"destructiveHint": False},
    {"readOnlyHint": None, "destructiveHint": True},
    *({"readOnlyHint": value, "destructiveHint": value} for value in ("true", 1, 0, [True], {"a": True}, None)),
    [],
    ["readOnlyHint"],
    "readOnlyHint",
]


def test_the_database_works_out_the_effect_as_it_is_told_before_a_server_is_added() -> None:
    assignment = make.assignment(make.gateway(), make.server())
    for number, annotations in enumerate(CLAIMS):
        Feature.objects.create(assignment=assignment, name=f"t{number}", annotations=annotations)

    of_each = {
        name: Effect.of(annotations) for name, annotations in assignment.features.values_list("name", "annotations")
    }
    assert dict(assignment.features.values_list("name", "effect")) == of_each
    assert {*of_each.values()} == {*Effect}


def test_an_effect_follows_its_annotations_whoever_writes_them() -> None:
    """The database derives the effect: `save` writes an old value, and `update` and older releases write none."""
    assignment = make.assignment(make.gateway(), make.server())
    feature = Feature.objects.create(assignment=assignment, name="t", annotations={"readOnlyHint": True})
    for annotations in ({"destructiveHint": True}, {"readOnlyHint": False}):
        feature.annotations = annotations
        feature.save()
        feature.refresh_from_db()
        assert feature.effect == Effect.of(annotations)

    assignment.features.update(annotations={"readOnlyHint": True})
    feature.refresh_from_db()
    assert feature.effect == "read_only"

    assignment.features.update(effect="writes")
    feature.refresh_from_db()
    assert feature.effect == "read_only"
