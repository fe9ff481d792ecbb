"""The Connections tabs of a host and of a gateway, and what can be done to one connection (requirements 5.3, 5.4)."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from connections.models import Connection
from hosts.models import Host, Kind
from tests import make
from tests.conftest import SignIn
from tokens.models import Token

pytestmark = pytest.mark.django_db

HTMX = {"HX-Request": "true"}
REVOKE = (
    "Revoke this MCP connection? The associated API key will be deactivated and the client will need to re-authorize."
)


def text(response: Any) -> str:
    return str(response.content.decode())


def row(response: Any, connection: Connection) -> str:
    """The markup of one connection, its tokens included."""
    return text(response).split(f'id="connection-{connection.pk}"')[1].split("</tbody>")[0]


def a_connection(user: User, name: str = "CI bot") -> Connection:
    return make.connection(make.agent(by=user, name=name), make.gateway(), user)


# --- Who may do what ----------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("verb", ["disable", "enable", "revoke"])
def test_what_one_may_not_see_does_not_exist(verb: str, sign_in: SignIn) -> None:
    connection = a_connection(make.user())
    unseeing = make.user(*set(Capability) - {Capability.MCP_CONNECTIONS_READ})

    assert sign_in(unseeing).post(f"/connections/{connection.pk}/{verb}/").status_code == 404


def test_everybody_may_end_their_own_connection(sign_in: SignIn) -> None:
    ann = make.user()
    connection = make.connection(make.agent(by=make.user()), make.gateway(), ann)

    sign_in(ann).post(f"/connections/{connection.pk}/revoke/")

    connection.refresh_from_db()
    assert (connection.is_live, connection.revoked_by) == (False, ann)


def test_a_viewer_sees_rows_without_any_control(viv: User, sign_in: SignIn) -> None:
    connection = a_connection(make.user())
    make.token(connection)

    page = sign_in(viv).get(f"/hosts/{connection.host_id}/connections/")

    seen = row(page, connection)
    for control in ('role="switch"', "revoke", "<button", "<form", "Create Token"):
        assert control not in seen
    assert "Add a connection" not in text(page)


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


# --- What a row says ----------------------------------------------------------------------------------------------


def test_a_row_says_everything_5_3_asks_for(ana: User, sign_in: SignIn) -> None:
    with time_machine.travel(datetime(2026, 11, 20, 12, tzinfo=UTC), tick=False):
        connection = a_connection(ana)
        issued = make.token(connection, name="ci-pipeline")
        Connection.objects.filter(pk=connection.pk).update(last_used_at=datetime(2026, 11, 20, 11, 55, tzinfo=UTC))

        seen = row(sign_in(ana).get(f"/hosts/{connection.host_id}/connections/"), connection)

    for words in (
        connection.gateway.name,
        ana.email,
        ">active</span>",
        issued.token.prefix,
        "Nov 20, 2026",
        "Never",
        "5m ago",
        "ci-pipeline",
        "Feb 18, 2027",
        "Create Token",
    ):
        assert words in seen
    assert issued.secret not in seen


def test_on_the_gateways_tab_a_row_leads_with_the_client(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana, "CI bot")

    page = sign_in(ana).get(f"/gateways/{connection.gateway.slug}/connections/")

    assert "Client name" in text(page)
    assert "CI bot" in row(page, connection)


def app_connection(user: User) -> Connection:
    """A connection of an app, with its never-shown key."""
    host = Host.objects.create(kind=Kind.HEADED, name="Claude Desktop", dedupe_key=make.unique("key"))
    return make.connection(host, make.gateway(), user)


@pytest.mark.parametrize(
    ("change", "state", "words"),
    [
        ("nothing", "active", ">active<"),
        ("connection", "disabled", ">disabled<"),
        ("expire", "expired", ">expired<"),
        ("no token", "expired", ">no active token<"),
        ("revoke", "revoked", ">revoked<"),
        ("host", "active", "blocked: host disabled"),
        ("gateway", "active", "blocked: gateway disabled"),
        ("user", "active", "blocked: user deactivated"),
    ],
)
def test_the_status_never_claims_to_work_when_it_cannot(
    change: str, state: str, words: str, ana: User, sign_in: SignIn
) -> None:
    person = make.user()
    connection = a_connection(person)
    token = make.token(connection).token
    match change:
        case "connection":
            connection.disable(by=ana)
        case "expire":
            Token.objects.filter(pk=token.pk).update(expires_at=datetime.now(UTC) - timedelta(seconds=1))
        case "no token":
            token.revoke(by=ana)
        case "revoke":
            connection.revoke(by=ana)
        case "host":
            connection.host.disable(by=ana)
        case "gateway":
            connection.gateway.disable(by=ana)
        case "user":
            User.objects.filter(pk=person.pk).update(is_active=False)

    seen = row(sign_in(ana).get(f"/hosts/{connection.host_id}/connections/"), connection)

    assert f'data-state="{state}"' in seen
    assert words in seen


def test_revoked_outranks_disabled_and_disabled_outranks_expired(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana)
    path = f"/hosts/{connection.host_id}/connections/"
    connection.disable(by=ana)

    assert ">disabled<" in row(sign_in(ana).get(path), connection)
    connection.revoke(by=ana)
    assert ">revoked<" in row(sign_in(ana).get(path), connection)


def test_a_revoked_row_stays_last_with_its_date_and_no_button(ana: User, sign_in: SignIn) -> None:
    host, gateway = make.agent(by=ana), make.gateway()
    with time_machine.travel(datetime(2026, 11, 1, tzinfo=UTC), tick=False):
        ended = make.connection(host, gateway, ana)
        make.token(ended)
        ended.revoke(by=ana)
    live = make.connection(host, gateway, ana)

    page = sign_in(ana).get(f"/hosts/{host.pk}/connections/")

    assert text(page).index(str(live.pk)) < text(page).index(str(ended.pk))
    seen = row(page, ended)
    assert "Revoked <time" in seen
    assert "Nov 1, 2026" in seen
    for control in ("<button", "<input", "<form"):
        assert control not in seen


def test_add_a_connection_opens_the_flow_in_a_new_tab(ana: User, sign_in: SignIn) -> None:
    host = make.agent(by=ana)

    page = text(sign_in(ana).get(f"/hosts/{host.pk}/connections/"))

    link = page.split("Add a connection</a>")[0].rsplit("<a ", 1)[1]
    assert f'href="/connect/?host={host.pk}"' in link
    assert 'target="_blank"' in link
    assert 'rel="noopener"' in link


def test_an_apps_tab_says_that_connections_appear_by_themselves(ana: User, sign_in: SignIn) -> None:
    page = text(sign_in(ana).get(f"/hosts/{app_connection(ana).host_id}/connections/"))

    assert "Connections of this app appear when someone connects it." in page
    assert "How to Connect" in page
    assert "Add a connection" not in page


def test_the_list_refreshes_itself_when_the_window_is_looked_at_again(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana)
    path = f"/hosts/{connection.host_id}/connections/"

    whole = text(sign_in(ana).get(path))
    fragment = text(sign_in(ana).get(path, headers=HTMX))

    assert 'hx-trigger="focus from:window"' in whole
    assert "<html" not in fragment
    assert 'id="connection-count" hx-swap-oob="true">1</span>' in fragment


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", {"live", "off", "old", "ended", "app"}),
        ("?status=active", {"live", "app"}),
        ("?status=disabled", {"off"}),
        ("?status=expired", {"old"}),
        ("?status=revoked", {"ended"}),
        ("?status=revoked&status=disabled", {"ended", "off"}),
        ("?type=app", {"app"}),
        ("?type=agent&status=active", {"live"}),
        ("?q=OF", {"off"}),
        ("?q=nobody", set()),
        ("?status=x&type=y&page=z", {"live", "off", "old", "ended", "app"}),
    ],
)
def test_the_query_string_narrows_the_tab(query: str, names: set[str], ana: User, sign_in: SignIn) -> None:
    gateway = make.gateway()
    made = {
        name: make.connection(make.agent(by=ana, name=name), gateway, ana) for name in ("live", "off", "old", "ended")
    }
    host = Host.objects.create(kind=Kind.HEADED, name="app", dedupe_key="a")
    made["app"] = make.connection(host, gateway, ana)
    tokens = {name: make.token(connection).token for name, connection in made.items()}
    made["off"].disable(by=ana)
    made["ended"].revoke(by=ana)
    Token.objects.filter(pk=tokens["old"].pk).update(expires_at=datetime.now(UTC))

    response = sign_in(ana).get(f"/gateways/{gateway.slug}/connections/{query}")

    assert {one.connection.host.name for one in response.context["rows"]} == names


def test_the_tab_costs_the_same_for_one_row_and_for_many(
    ana: User, sign_in: SignIn, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    host = make.agent(by=ana)
    for _ in range(12):
        make.token(make.connection(host, make.gateway(), ana))
    client = sign_in(ana)

    with django_assert_num_queries(7):  # session, user, permissions, host, count, rows, tokens
        client.get(f"/hosts/{host.pk}/connections/")


def test_a_full_tab_stays_light(ana: User, sign_in: SignIn) -> None:
    host = make.agent(by=ana)
    for _ in range(25):
        make.token(make.connection(host, make.gateway(), ana))

    response = sign_in(ana).get(f"/hosts/{host.pk}/connections/")

    assert len(response.context["rows"]) == 20
    assert "21" in text(sign_in(ana).get(f"/hosts/{host.pk}/connections/?page=2"))
    assert len(response.content) <= 60 * 1024


# --- Disable, enable, revoke --------------------------------------------------------------------------------------


def test_disabling_asks_first_and_names_what_stops(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana)

    asked = text(sign_in(ana).get(f"/connections/{connection.pk}/disable/"))

    assert (
        f"Disable this connection? {ana.email} / CI bot loses access to {connection.gateway.name} on the next request."
    ) in asked


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


def test_the_answer_shows_the_row_as_its_tab_does(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana, "CI bot")
    on_gateway = HTMX | {"HX-Current-URL": f"http://testserver/gateways/{connection.gateway.slug}/connections/"}

    answer = row(sign_in(ana).post(f"/connections/{connection.pk}/disable/", headers=on_gateway), connection)

    assert "CI bot</a>" in answer
    assert f"/gateways/{connection.gateway.slug}/" not in answer


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


def test_revoking_twice_says_so_and_writes_one_event(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana)
    client = sign_in(ana)

    client.post(f"/connections/{connection.pk}/revoke/", headers=HTMX)
    again = client.post(f"/connections/{connection.pk}/revoke/", headers=HTMX)

    assert "revoked before" in again["HX-Trigger"]
    assert Event.objects.filter(action="connection.revoked").count() == 1


def test_without_script_one_comes_back_to_the_tab(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana)

    response = sign_in(ana).post(f"/connections/{connection.pk}/revoke/", follow=True)

    assert response.redirect_chain == [(f"/hosts/{connection.host_id}/connections/", 302)]
    assert "Connection revoked" in text(response)


# --- Archiving a host ---------------------------------------------------------------------------------------------


def test_archiving_names_the_connections_it_ends_and_ends_them(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana, "CI bot")
    connection.host.disable(by=ana)
    path = f"/hosts/{connection.host_id}/archive/"

    asked = text(sign_in(ana).get(path))
    response = sign_in(ana).post(path, follow=True)

    assert f"{ana.email} on {connection.gateway.name}" in asked
    assert response.redirect_chain == [("/hosts/", 302)]
    connection.refresh_from_db()
    assert connection.revoke_reason == "archived"


def test_only_a_disabled_host_is_archived(ana: User, sign_in: SignIn) -> None:
    host = make.agent(by=ana)

    response = sign_in(ana).post(f"/hosts/{host.pk}/archive/", follow=True)

    assert "Disable it first" in text(response)
    host.refresh_from_db()
    assert host.archived_at is None


@pytest.mark.parametrize("lacking", [Capability.HOSTS_TOGGLE, Capability.MCP_CONNECTIONS_REVOKE])
def test_archiving_takes_both_capabilities(lacking: Capability, sign_in: SignIn) -> None:
    host = make.agent(by=make.user())

    assert sign_in(make.user(*set(Capability) - {lacking})).post(f"/hosts/{host.pk}/archive/").status_code == 403
