"""A connection joins one host, one gateway and one user."""

import pytest
from django.db import IntegrityError, transaction

from accounts.models import Team, User
from auditlog.models import Event
from capabilities import Capability
from connections.models import (
    Connection,
    ConnectionIdentity,
    ConnectionRefused,
    stopped_above,
)
from gateways.models import IdentityScheme, Reach
from hosts.models import Host
from tests import make

pytestmark = pytest.mark.django_db


def test_a_host_gateway_and_user_have_one_live_connection_and_another_once_it_was_revoked() -> None:
    ana = make.user()
    host, gateway = make.agent(by=ana), make.gateway()
    old = make.connection(host, gateway, ana)
    token = make.token(old).token

    assert make.connection(host, gateway, ana) == old
    assert Event.objects.filter(action="connection.opened").count() == 1
    with pytest.raises(IntegrityError, match="one_live_connection_per_host_gateway_user"), transaction.atomic():
        Connection.objects.create(host=host, gateway=gateway, user=ana)

    old.revoke(by=ana)

    token.refresh_from_db()
    assert (token.status, token.revoke_reason) == ("revoked", "manual")
    event = Event.objects.get(action="connection.revoked")
    assert (event.actor_email, event.target_id) == (ana.email, str(old.pk))
    anew = make.connection(host, gateway, ana)
    assert set(Connection.objects.all()) == {old, anew}


@pytest.mark.full
def test_no_connection_opens_where_an_administrator_said_no_or_the_gateway_is_out_of_reach() -> None:
    ana, ben = make.user(), make.user()
    host, gateway = make.agent(by=ana), make.gateway()
    host.disable(by=ana)
    with pytest.raises(ConnectionRefused, match="disabled this app"):
        make.connection(host, gateway, ana)
    host.enable(by=ana)
    gateway.disable(by=ana)
    with pytest.raises(ConnectionRefused, match="disabled this gateway"):
        make.connection(host, gateway, ana)
    gateway.enable(by=ana)
    make.connection(host, gateway, ana).disable(by=ana)
    with pytest.raises(ConnectionRefused, match="disabled by an administrator"):
        make.connection(host, gateway, ana)

    narrow, team = make.gateway(reach=Reach.TEAMS), Team.objects.create(name=make.unique("team"))
    narrow.teams.add(team)
    team.users.add(ben)
    for person in (ben, make.user(Capability.GATEWAYS_USE)):
        assert make.connection(host, narrow, person).is_live
    with pytest.raises(ConnectionRefused, match="teams do not include"):
        make.connection(host, narrow, ana)


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

    working = {row for row in Connection.objects.all() if not row.blocked_reason}
    stopped = set(Connection.objects.filter(stopped_above()))

    assert len(working) == 3 + 2
    assert working | stopped == set(Connection.objects.all())
    assert not working & stopped


def test_identities_of_other_people_and_other_servers_are_never_bound() -> None:
    """The model's method refuses both kinds of identity. The database also refuses those of other people."""
    ann, ben = make.user(), make.user()
    github = make.server(auth_type="bearer")
    gateway = make.gateway()
    assigned = make.assignment(gateway, github, identity_scheme=IdentityScheme.PER_USER)
    bens = make.identity(github, ben)
    anns_connection = make.connection(make.agent(by=ann), gateway, ann, [make.identity(github, ann)])

    for wrong in (bens, make.identity(make.server(auth_type="bearer"), ann)):
        with pytest.raises(ConnectionRefused, match="cannot be used"):
            anns_connection.bind({assigned: wrong})
    with pytest.raises(IntegrityError, match="own user's identities only"), transaction.atomic():
        ConnectionIdentity.objects.filter(connection=anns_connection).update(identity=bens)
