"""Each list takes a fixed number of SQL statements, however many rows it has.

Each number includes two statements that read the session and its user. Except for /capabilities, it also includes one
that reads the capabilities of the user's role.
"""

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from accounts.models import SavedView, Team, User
from capabilities import Capability
from gateways.models import Feature, Gateway
from scim.models import ProvisioningKey
from servers.models import AuthType, Server
from tests import make
from tests.api.world import holder
from tests.calls import call
from tests.rest import Rest, results

pytestmark = [pytest.mark.django_db, pytest.mark.full]

FROZEN = {
    "/admin-events": 4,
    "/api-keys?scope=all": 6,
    "/capabilities": 2,
    "/connections": 7,
    "/gateways": 8,
    "/gateways/busy/connections": 8,
    "/gateways/busy/servers": 7,
    "/gateways/busy/tools": 7,
    "/hosts": 6,
    "/identities?scope=all": 6,
    "/logs": 6,  # Two find where the newest 10,000 rows end: in the last week, and in the whole log.
    "/log-views": 6,
    "/provisioning-keys": 6,
    "/roles": 8,
    "/servers": 6,
    "/teams": 7,
    "/tokens?scope=all": 9,  # One reads the connections, and whether each user may use the gateway.
    "/users": 7,
}


@pytest.fixture
def boss(db: None) -> User:
    return holder(*Capability)


def one_more_of_everything(boss: User) -> None:
    """Add rows to the lists, and to these rows the related rows that the lists show or count."""
    busy = Gateway.objects.filter(slug="busy").first() or make.gateway(slug="busy", by=boss)
    server = make.server(by=boss, auth_type=AuthType.BEARER)
    assignment = make.assignment(busy, server, identity_scheme="shared", shared_identity=make.identity(server))
    Feature.objects.create(assignment=assignment, name="search", exposed_name=make.unique("tool"))
    somebody = holder(Capability.LOGS_READ, Capability.HOSTS_READ)
    link = make.connection(make.agent(by=boss), busy, somebody)
    make.token(link)
    make.token(link, servers=[assignment])
    make.api_key(somebody, Capability.LOGS_READ)
    role = make.role(name=make.unique("Newcomers"))
    ProvisioningKey.objects.all().issue(name=make.unique("Okta"), role=role, capabilities=[], by=boss)
    SavedView.objects.create(owner=somebody, name="Denied", query="outcome=denied", is_shared=True)
    team = Team.objects.create(name=make.unique("team"))
    team.users.add(somebody)
    make.gateway(by=boss, reach="teams").teams.add(team)
    call()


def counted(boss: User, path: str) -> tuple[int, int]:
    """Request a list in a new session; return the number of statements and the number of rows."""
    rest = Rest.of(boss)
    with CaptureQueriesContext(connection) as queries:
        rows = results(rest.get(path))
    return len(queries), len(rows)


def test_lists_take_as_many_statements_as_ever_and_one_of_a_kind_takes_none_per_part(boss: User) -> None:
    one_more_of_everything(boss)

    few = {path: counted(boss, path) for path in FROZEN}
    for _ in range(3):
        one_more_of_everything(boss)
    many = {path: counted(boss, path) for path in FROZEN}

    assert {path: statements for path, (statements, _) in few.items()} == FROZEN
    assert {path: statements for path, (statements, _) in many.items()} == FROZEN
    assert {path for path in FROZEN if many[path][1] <= few[path][1]} == {"/capabilities"}
    rest = Rest.of(boss)
    with CaptureQueriesContext(connection) as queries:
        assert rest.get(f"/servers/{Server.objects.values_list('slug', flat=True)[0]}").status_code == 200

    assert len(queries) <= 6
