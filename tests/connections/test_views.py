"""Each action on a connection: who may do it, its confirmation page, and its response."""

import pytest

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from capabilities.catalogue import including
from tests import make
from tests.conftest import SignIn
from tests.connections.rows import HTMX, a_connection, row, text
from tokens.models import Token

pytestmark = [pytest.mark.django_db, pytest.mark.full]


def test_acting_on_a_connection_does_not_need_the_list_but_a_capability_or_being_its_person(sign_in: SignIn) -> None:
    for verb, capability in (
        ("disable", Capability.CONNECTIONS_TOGGLE),
        ("enable", Capability.CONNECTIONS_TOGGLE),
        ("revoke", Capability.MCP_CONNECTIONS_REVOKE),
    ):
        connection = a_connection(make.user(), f"To {verb}")
        path = f"/connections/{connection.pk}/{verb}/"
        assert sign_in(make.user(capability)).post(path)["Location"] == "/settings/identities"
        assert row(sign_in(make.user(capability)).post(path, headers=HTMX), connection)

    connection = a_connection(make.user())
    unseeing = make.user(*set(Capability) - including([Capability.MCP_CONNECTIONS_READ]))
    assert sign_in(unseeing).post(f"/connections/{connection.pk}/revoke/").status_code == 404
    sign_in(connection.user).post(f"/connections/{connection.pk}/revoke/")
    connection.refresh_from_db()
    assert (connection.is_live, connection.revoked_by) == (False, connection.user)


def test_without_the_capability_only_ones_own_rows_are_listed(ann: User, sign_in: SignIn) -> None:
    host, gateway = make.agent(by=make.user()), make.gateway()
    own = make.connection(host, gateway, ann)
    other = make.connection(host, gateway, make.user())

    for path in (f"/hosts/{host.pk}/connections/", f"/gateways/{gateway.slug}/connections/"):
        page = text(sign_in(ann).get(path))
        assert str(own.pk) in page
        assert str(other.pk) not in page
        assert other.user.email not in page
    hidden = make.gateway(reach="teams")
    assert sign_in(ann).get(f"/gateways/{hidden.slug}/connections/").status_code == 404


def test_a_connection_is_switched_off_after_a_question_and_on_with_nothing_lost(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana)
    make.token(connection)
    client, gateway = sign_in(ana), connection.gateway

    asked = text(client.get(f"/connections/{connection.pk}/disable/"))
    off = client.post(f"/connections/{connection.pk}/disable/", headers=HTMX)
    on = client.post(f"/connections/{connection.pk}/enable/", headers=HTMX)

    words = f"Disable this connection? {ana.email} / CI bot loses access to {gateway.name} on the next request."
    assert words in asked
    assert 'data-state="disabled"' in row(off, connection)
    assert 'data-state="active"' in row(on, connection)
    assert Token.objects.active().filter(connection=connection).count() == 1
    done = Event.objects.filter(target_id=connection.pk, actor_email=ana.email).values_list("action", flat=True)
    assert {"connection.disabled", "connection.enabled"} <= set(done)
    on_gateway = HTMX | {"HX-Current-URL": f"http://testserver/gateways/{gateway.slug}/connections/"}
    as_on_tab = row(client.post(f"/connections/{connection.pk}/disable/", headers=on_gateway), connection)
    assert "CI bot</a>" in as_on_tab
    assert f"/gateways/{gateway.slug}/" not in as_on_tab


def test_revoking_asks_first_and_ends_the_connection_and_its_tokens_for_good(ana: User, sign_in: SignIn) -> None:
    connection, client = a_connection(ana), sign_in(ana)
    for _ in range(2):
        make.token(connection)
    path = f"/connections/{connection.pk}/revoke/"

    asked = text(client.get(path, headers=HTMX))
    assert "The 2 tokens of the connection will end." in asked
    assert "autofocus>Cancel" in asked
    connection.refresh_from_db()
    assert connection.is_live
    answer = client.post(path, headers=HTMX)

    assert 'data-state="revoked"' in row(answer, connection)
    assert "<button" not in row(answer, connection)
    assert not Token.objects.live().exists()
    assert client.post(f"/connections/{connection.pk}/enable/").status_code == 302
    connection.refresh_from_db()
    assert not connection.is_live
    for again in (path, f"/connections/{connection.pk}/disable/"):
        assert "already revoked" in client.post(again, headers=HTMX)["HX-Trigger"]
    wait = client.post(f"/approvals/{make.hold(connection, make.server()).pk}/wait/", {"seconds": "9"})
    assert "already revoked" in text(wait)
    assert Event.objects.filter(action="connection.revoked").count() == 1
    without_script = client.post(f"/connections/{a_connection(ana, 'Other').pk}/revoke/", follow=True)
    assert without_script.redirect_chain[0][0].endswith("/connections/")
    assert "Connection revoked" in text(without_script)
