"""Permissions for each action on a connection, its confirmation and its response."""

import pytest
from django.test import Client

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from capabilities.catalogue import including
from tests import make
from tests.conftest import SignIn
from tests.connections.rows import HTMX, a_connection, row, text
from tokens.models import Token

pytestmark = pytest.mark.django_db

REVOKE = (
    "Revoke this MCP connection? The associated API key will be deactivated and the client will need to re-authorize."
)


@pytest.mark.full
@pytest.mark.parametrize(
    ("method", "verb", "capability"),
    [
        ("get", "disable", Capability.CONNECTIONS_TOGGLE),
        ("post", "disable", Capability.CONNECTIONS_TOGGLE),
        ("post", "enable", Capability.CONNECTIONS_TOGGLE),
        ("get", "revoke", Capability.MCP_CONNECTIONS_REVOKE),
        ("post", "revoke", Capability.MCP_CONNECTIONS_REVOKE),
    ],
)
def test_others_connections_need_the_capability(
    method: str, verb: str, capability: Capability, sign_in: SignIn
) -> None:
    connection = a_connection(make.user())
    path = f"/connections/{connection.pk}/{verb}/"

    anonymous = getattr(Client(), method)(path)
    without = getattr(sign_in(make.user(*set(Capability) - {capability})), method)(path)
    assert not Event.objects.filter(action__in=["connection.disabled", "connection.revoked"]).exists()
    holder = getattr(sign_in(make.user(capability, Capability.MCP_CONNECTIONS_READ)), method)(path)

    assert (anonymous.status_code, without.status_code) == (302, 403)
    assert holder.status_code in (200, 302)


@pytest.mark.full
@pytest.mark.parametrize(
    ("verb", "capability"),
    [
        ("disable", Capability.CONNECTIONS_TOGGLE),
        ("enable", Capability.CONNECTIONS_TOGGLE),
        ("revoke", Capability.MCP_CONNECTIONS_REVOKE),
    ],
)
def test_acting_on_a_connection_does_not_need_the_list(verb: str, capability: Capability, sign_in: SignIn) -> None:
    connection = a_connection(make.user())
    path = f"/connections/{connection.pk}/{verb}/"

    assert sign_in(make.user(capability)).post(path)["Location"] == "/settings/identities"
    assert row(sign_in(make.user(capability)).post(path, headers=HTMX), connection)


@pytest.mark.full
def test_objects_one_may_neither_see_nor_end_do_not_exist(sign_in: SignIn) -> None:
    connection = a_connection(make.user())
    unseeing = make.user(*set(Capability) - including([Capability.MCP_CONNECTIONS_READ]))

    assert sign_in(unseeing).post(f"/connections/{connection.pk}/revoke/").status_code == 404


@pytest.mark.full
def test_everybody_may_end_their_own_connection(sign_in: SignIn) -> None:
    ann = make.user()
    connection = make.connection(make.agent(by=make.user()), make.gateway(), ann)

    sign_in(ann).post(f"/connections/{connection.pk}/revoke/")

    connection.refresh_from_db()
    assert (connection.is_live, connection.revoked_by) == (False, ann)


@pytest.mark.full
def test_a_viewer_sees_rows_without_any_control(viv: User, sign_in: SignIn) -> None:
    connection = a_connection(make.user())
    make.token(connection)

    page = sign_in(viv).get(f"/hosts/{connection.host_id}/connections/")

    seen = row(page, connection)
    for control in ('role="switch"', "revoke", "<button", "<form", "Create Token"):
        assert control not in seen
    assert "Add a connection" not in text(page)


@pytest.mark.full
@pytest.mark.parametrize("where", ["hosts", "gateways"])
def test_without_the_capability_only_ones_own_rows_are_listed(where: str, ann: User, sign_in: SignIn) -> None:
    host, gateway = make.agent(by=make.user()), make.gateway()
    own = make.connection(host, gateway, ann)
    other = make.connection(host, gateway, make.user())
    path = f"/hosts/{host.pk}/connections/" if where == "hosts" else f"/gateways/{gateway.slug}/connections/"

    page = text(sign_in(ann).get(path))

    assert str(own.pk) in page
    assert str(other.pk) not in page
    assert other.user.email not in page


def test_a_gateway_out_of_reach_does_not_exist(ann: User, sign_in: SignIn) -> None:
    gateway = make.gateway(reach="teams")

    assert sign_in(ann).get(f"/gateways/{gateway.slug}/connections/").status_code == 404


def test_disabling_asks_first_and_names_what_stops(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana)

    asked = text(sign_in(ana).get(f"/connections/{connection.pk}/disable/"))

    assert (
        f"Disable this connection? {ana.email} / CI bot loses access to {connection.gateway.name} on the next request."
    ) in asked


@pytest.mark.full
def test_a_connection_is_switched_off_and_on_with_nothing_lost(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana)
    make.token(connection)
    client = sign_in(ana)

    off = client.post(f"/connections/{connection.pk}/disable/", headers=HTMX)
    on = client.post(f"/connections/{connection.pk}/enable/", headers=HTMX)

    assert 'data-state="disabled"' in row(off, connection)
    assert 'data-state="active"' in row(on, connection)
    assert Token.objects.active().filter(connection=connection).count() == 1
    done = Event.objects.filter(target_id=connection.pk, actor_email=ana.email).values_list("action", flat=True)
    assert {"connection.disabled", "connection.enabled"} <= set(done)


@pytest.mark.full
def test_the_answer_shows_the_row_as_its_tab_does(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana, "CI bot")
    on_gateway = HTMX | {"HX-Current-URL": f"http://testserver/gateways/{connection.gateway.slug}/connections/"}

    answer = row(sign_in(ana).post(f"/connections/{connection.pk}/disable/", headers=on_gateway), connection)

    assert "CI bot</a>" in answer
    assert f"/gateways/{connection.gateway.slug}/" not in answer


@pytest.mark.full
def test_revoking_asks_in_these_words_with_the_focus_on_cancel(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana)
    make.token(connection)
    make.token(connection)

    asked = text(sign_in(ana).get(f"/connections/{connection.pk}/revoke/", headers=HTMX))

    assert REVOKE in asked
    assert "Its 2 tokens end." in asked
    assert ">OK<" in asked
    assert "autofocus>Cancel" in asked
    connection.refresh_from_db()
    assert connection.is_live


@pytest.mark.full
def test_revoking_ends_the_connection_and_its_tokens_for_good(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana)
    make.token(connection)

    answer = sign_in(ana).post(f"/connections/{connection.pk}/revoke/", headers=HTMX)

    assert 'data-state="revoked"' in row(answer, connection)
    assert "<button" not in row(answer, connection)
    assert not Token.objects.live().exists()
    assert sign_in(ana).post(f"/connections/{connection.pk}/enable/").status_code == 302
    connection.refresh_from_db()
    assert not connection.is_live


@pytest.mark.full
def test_revoking_twice_says_so_and_writes_one_event(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana)
    client = sign_in(ana)

    client.post(f"/connections/{connection.pk}/revoke/", headers=HTMX)
    again = client.post(f"/connections/{connection.pk}/revoke/", headers=HTMX)

    assert "already revoked" in again["HX-Trigger"]
    assert Event.objects.filter(action="connection.revoked").count() == 1


@pytest.mark.full
def test_without_script_one_comes_back_to_the_tab(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana)

    response = sign_in(ana).post(f"/connections/{connection.pk}/revoke/", follow=True)

    assert response.redirect_chain == [(f"/hosts/{connection.host_id}/connections/", 302)]
    assert "Connection revoked" in text(response)


def test_archiving_names_the_connections_it_ends_and_ends_them(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana, "CI bot")
    connection.host.disable(by=ana)
    path = f"/hosts/{connection.host_id}/archive/"

    asked = text(sign_in(ana).get(path))
    response = sign_in(ana).post(path, {"typed": "CI bot"}, follow=True)

    assert f"{ana.email} on {connection.gateway.name}" in asked
    assert response.redirect_chain == [("/hosts/", 302)]
    connection.refresh_from_db()
    assert connection.revoke_reason == "archived"


@pytest.mark.full
def test_only_a_disabled_host_is_archived(ana: User, sign_in: SignIn) -> None:
    host = make.agent(by=ana)

    response = sign_in(ana).post(f"/hosts/{host.pk}/archive/", follow=True)

    assert "Disable it first" in text(response)
    host.refresh_from_db()
    assert host.archived_at is None


@pytest.mark.full
@pytest.mark.parametrize("lacking", [Capability.HOSTS_TOGGLE, Capability.MCP_CONNECTIONS_REVOKE])
def test_archiving_takes_both_capabilities(lacking: Capability, sign_in: SignIn) -> None:
    host = make.agent(by=make.user())

    assert sign_in(make.user(*set(Capability) - {lacking})).post(f"/hosts/{host.pk}/archive/").status_code == 403
