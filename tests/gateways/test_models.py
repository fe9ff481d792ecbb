"""Gateways, and the servers assigned to them."""

import pytest
from django.db import IntegrityError, transaction

from accounts.models import Team, User
from capabilities import Capability
from gateways.models import AliasRequired, Assignment, Effect, Feature, Gateway, IdentityScheme, Reach
from tests import make

pytestmark = pytest.mark.django_db


@pytest.mark.full
def test_a_user_reaches_open_gateways_and_those_of_the_own_teams() -> None:
    ana = make.user()
    everyone, teams, others = make.gateway(), make.gateway(reach=Reach.TEAMS), make.gateway(reach=Reach.TEAMS)
    for _ in range(2):
        team = Team.objects.create(name=make.unique("team"))
        team.users.add(ana)
        teams.teams.add(team)

    assert sorted(Gateway.objects.reachable_by(ana), key=str) == sorted([everyone, teams], key=str), "each once"
    assert set(Gateway.objects.reachable_by(make.user(Capability.GATEWAYS_USE))) == {everyone, teams, others}


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


def test_the_database_refuses_an_alias_twice_and_identities_that_do_not_fit(subtests: pytest.Subtests) -> None:
    named, bare = make.gateway(), make.gateway()
    make.assignment(named, make.server(), alias="docs")
    make.assignment(bare, make.server(), alias="")
    crm, other = make.server(auth_type="bearer"), make.server(auth_type="bearer")
    shared = make.assignment(make.gateway(), crm, identity_scheme=IdentityScheme.SHARED)
    foreign = Assignment.objects.filter(pk=shared.pk)
    for rule, act in (
        ("live_assignment_alias", lambda: Assignment.objects.create(gateway=named, server=crm, alias="docs")),
        ("live_assignment_alias", lambda: Assignment.objects.create(gateway=bare, server=crm, alias="")),
        ("service account of the same server", lambda: foreign.update(shared_identity=make.identity(other))),
        ("only_shared_scheme", lambda: make.assignment(make.gateway(), crm, shared_identity=make.identity(crm))),
    ):
        with subtests.test(rule), pytest.raises(IntegrityError, match=rule), transaction.atomic():
            act()


def test_reauthenticating_as_another_person_starts_again(ana: User) -> None:
    crm = make.server(auth_type="bearer")
    assignment = make.assignment(make.gateway(), crm)
    Feature.objects.learn(assignment, [{"name": "echo"}])

    assignment.edit(identity_scheme=IdentityScheme.PER_USER, by=ana)

    assert not assignment.listings.exists()


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
    """The database derives the effect from the annotations, even if a writer sets an old effect or none."""
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
