"""A connection joins one host, one gateway and one user."""

import pytest
from django.db import IntegrityError, transaction

from accounts.models import Team, User
from auditlog.models import Event
from capabilities import Capability
from connections.models import (
    UNBLOCKED,
    Connection,
    ConnectionAlreadyRevoked,
    ConnectionIdentity,
    ConnectionRefused,
    stopped_above,
)
from gateways.models import IdentityScheme, Reach
from hosts.models import Host
from tests import make

pytestmark = pytest.mark.django_db


def test_opening_the_same_triple_again_joins_the_live_connection() -> None:
    ana = make.user()
    host, gateway = make.agent(by=ana), make.gateway()

    assert make.connection(host, gateway, ana) == make.connection(host, gateway, ana)
    assert Event.objects.filter(action="connection.opened").count() == 1


def test_the_database_holds_one_live_connection_per_triple() -> None:
    ana = make.user()
    first = make.connection(make.agent(by=ana), make.gateway(), ana)

    with pytest.raises(IntegrityError, match="one_live_connection_per_host_gateway_user"), transaction.atomic():
        Connection.objects.create(host=first.host, gateway=first.gateway, user=ana)


def test_a_revoked_connection_stays_and_reconnecting_makes_a_new_row() -> None:
    ana = make.user()
    old = make.connection(make.agent(by=ana), make.gateway(), ana)
    old.revoke(by=ana)

    new = make.connection(old.host, old.gateway, ana)

    assert new.pk != old.pk
    assert set(Connection.objects.filter(host=old.host)) == {old, new}


def test_revoking_ends_the_tokens_in_the_same_breath() -> None:
    ana = make.user()
    connection = make.connection(make.agent(by=ana), make.gateway(), ana)
    token = make.token(connection).token

    connection.revoke(by=ana)

    token.refresh_from_db()
    assert token.status == "revoked"
    assert token.revoke_reason == "manual"
    event = Event.objects.get(action="connection.revoked")
    assert (event.actor_email, event.target_id) == (ana.email, str(connection.pk))


def test_revoking_twice_is_refused() -> None:
    ana = make.user()
    connection = make.connection(make.agent(by=ana), make.gateway(), ana)
    connection.revoke(by=ana)

    with pytest.raises(ConnectionAlreadyRevoked):
        connection.revoke(by=ana)


def test_disabling_loses_nothing_and_is_recorded_with_before_and_after() -> None:
    ana = make.user()
    connection = make.connection(make.agent(by=ana), make.gateway(), ana)
    token = make.token(connection).token

    connection.disable(by=ana)
    connection.disable(by=ana)

    connection.refresh_from_db()
    token.refresh_from_db()
    assert (connection.enabled, connection.disabled_by, token.status) == (False, ana, "active")
    assert Event.objects.get(action="connection.disabled").changes == {"enabled": [True, False]}

    connection.enable(by=ana)

    connection.refresh_from_db()
    assert (connection.enabled, connection.disabled_at) == (True, None)


def test_a_disabled_connection_is_not_opened_again_by_the_flow() -> None:
    ana = make.user()
    connection = make.connection(make.agent(by=ana), make.gateway(), ana)
    connection.disable(by=ana)

    with pytest.raises(ConnectionRefused, match="disabled by an administrator"):
        make.connection(connection.host, connection.gateway, ana)


@pytest.mark.full
def test_a_disabled_host_or_gateway_takes_no_connection() -> None:
    ana = make.user()
    host, gateway = make.agent(by=ana), make.gateway()
    host.disable(by=ana)
    with pytest.raises(ConnectionRefused, match="disabled this app"):
        make.connection(host, gateway, ana)

    host.enable(by=ana)
    gateway.disable(by=ana)
    with pytest.raises(ConnectionRefused, match="disabled this gateway"):
        make.connection(host, gateway, ana)


@pytest.mark.full
def test_a_gateway_of_another_team_takes_no_connection() -> None:
    ana, ben = make.user(), make.user()
    gateway = make.gateway(reach=Reach.TEAMS)
    team = Team.objects.create(name=make.unique("team"))
    gateway.teams.add(team)
    team.users.add(ben)

    assert make.connection(make.agent(by=ana), gateway, ben).is_live
    with pytest.raises(ConnectionRefused, match="teams do not include"):
        make.connection(make.agent(by=ana), gateway, ana)


def test_a_holder_of_gateways_read_reaches_every_gateway() -> None:
    ana = make.user(Capability.GATEWAYS_USE)

    assert make.connection(make.agent(by=ana), make.gateway(reach=Reach.TEAMS), ana).is_live


@pytest.mark.full
def test_stopped_above_matches_every_blocked_connection() -> None:
    ana, ben = make.user(), make.user()
    reader, chief = make.user(Capability.GATEWAYS_USE), make.user(is_superuser=True)
    team = Team.objects.create(name=make.unique("team"))
    team.users.add(ben)
    narrow = make.gateway(reach=Reach.TEAMS)
    narrow.teams.add(team)
    hosts = [make.agent(by=ana) for _ in range(3)]
    gateways = [make.gateway(), make.gateway(), narrow]
    for user in (ana, ben, reader, chief):
        Connection.objects.bulk_create(
            Connection(host=host, gateway=gateway, user=user) for host in hosts for gateway in gateways
        )
    hosts[1].disable(by=ana)
    Host.objects.filter(pk=hosts[2].pk).update(needs_approval=True, approved_at=None)
    gateways[1].disable(by=ana)
    User.objects.filter(pk=chief.pk).update(is_active=False)

    working = set(Connection.objects.with_reach().filter(UNBLOCKED))
    stopped = set(Connection.objects.filter(stopped_above()))

    assert len(working) == 3 + 2
    assert working | stopped == set(Connection.objects.all())
    assert not working & stopped


def test_another_persons_identity_is_never_bound() -> None:
    """Both the model's method and the database refuse another person's identity."""
    ann, ben = make.user(), make.user()
    github = make.server(auth_type="bearer")
    gateway = make.gateway()
    assigned = make.assignment(gateway, github, identity_scheme=IdentityScheme.PER_USER)
    bens = make.identity(github, ben)
    anns_connection = make.connection(make.agent(by=ann), gateway, ann, [make.identity(github, ann)])

    with pytest.raises(ConnectionRefused, match="cannot be used"):
        anns_connection.bind({assigned: bens})
    with pytest.raises(IntegrityError, match="own user's identities only"), transaction.atomic():
        ConnectionIdentity.objects.filter(connection=anns_connection).update(identity=bens)


def test_an_identity_of_another_server_is_never_bound() -> None:
    ann = make.user()
    github, jira = make.server(auth_type="bearer"), make.server(auth_type="bearer")
    gateway = make.gateway()
    assigned = make.assignment(gateway, github, identity_scheme=IdentityScheme.PER_USER)

    with pytest.raises(ConnectionRefused):
        make.connection(make.agent(by=ann), gateway, ann).bind({assigned: make.identity(jira, ann)})
