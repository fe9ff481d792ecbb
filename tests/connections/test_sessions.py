"""The open MCP sessions of an app or agent: who sees them, their streams, and ways to end them."""

import secrets
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from connections.models import Connection
from proxy.models import PendingRequest, Session, UpstreamSession
from tests import make
from tests.conftest import SignIn

pytestmark = pytest.mark.django_db


@pytest.fixture
def connection(ana: User) -> Connection:
    return make.connection(make.agent(by=ana, name="CI bot"), make.gateway(), ana)


def opened(connection: Connection, client: str = "Claude", **fields: Any) -> Session:
    told = {"digest": secrets.token_bytes(32), "version": "2025-11-25", "client_name": client}
    return Session.objects.create(connection=connection, **told | fields)


def text(response: Any) -> str:
    return str(response.content.decode())


def test_sessions_are_listed_with_their_streams_and_open_requests(
    ana: User, connection: Connection, sign_in: SignIn
) -> None:
    session, server, soon = opened(connection), make.server(name="Notes"), timezone.now() + timedelta(minutes=1)
    opened(connection, "Lost", lost_at=timezone.now())
    at_server = {"owner_id": session.pk, "connection_id": connection.pk, "sealed_id": b"x", "version": "2025-11-25"}
    UpstreamSession.objects.create(server_id=server.pk, key="a", leased_until=soon, **at_server)
    PendingRequest.objects.create(
        connection_id=connection.pk, session_id=session.pk, method="elicitation/create", expires_at=soon
    )

    page = text(sign_in(ana).get(f"/hosts/{connection.host_id}/sessions/"))

    assert "Claude" in page
    assert "Lost" not in page
    assert "Notes" in page
    assert "stream open" in page
    assert "waits: elicitation/create" in page
    address = f"/hosts/{connection.host_id}/sessions/"
    assert "Claude" in text(sign_in(make.user(Capability.MCP_CONNECTIONS_READ, Capability.HOSTS_TOGGLE)).get(address))
    assert "Claude" not in text(sign_in(make.user(Capability.HOSTS_TOGGLE)).get(address))


@pytest.mark.full
def test_one_session_ends_with_its_sessions_at_servers_or_all_of_the_connection(
    ana: User, connection: Connection, sign_in: SignIn
) -> None:
    ending, staying = opened(connection), opened(connection)
    other = opened(make.connection(make.agent(by=ana, name="Other"), make.gateway(slug="other"), ana))
    at_servers = {
        session.pk: UpstreamSession.objects.create(
            owner_id=session.pk, connection_id=connection.pk, server_id=make.server().pk, key="a", sealed_id=b"x"
        )
        for session in (ending, staying)
    }
    client, address = sign_in(ana), f"/connections/{connection.pk}/sessions/end/"
    assert "has to initialize again" in text(client.get(address, {"session": str(ending.pk)}))
    assert Session.objects.count() == 3

    client.post(address, {"session": str(ending.pk)})

    assert {*Session.objects.values_list("pk", flat=True)} == {staying.pk, other.pk}
    used = {pk: UpstreamSession.objects.get(pk=row.pk).last_used_at for pk, row in at_servers.items()}
    assert used[ending.pk] < timezone.now() - timedelta(days=1)  # Backdated, so the workers end the session.
    assert used[staying.pk] > timezone.now() - timedelta(days=1)
    told = Event.objects.latest("pk")
    assert (told.action, told.changes) == (
        "connection.sessions_ended",
        {"owner": connection.user.email, "sessions": [1, 0], "clients": [["Claude"], None]},
    )
    client.post(address, {"session": str(other.pk)})
    for _ in range(2):
        client.post(address)
    assert [*Session.objects.values_list("pk", flat=True)] == [other.pk], "of another connection"
    assert Event.objects.filter(action="connection.sessions_ended").count() == 2
