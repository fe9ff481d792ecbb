"""The Connections tabs of a host and of a gateway."""

import re
from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from pytest_django import DjangoAssertNumQueries

from accounts.models import User
from capabilities import Capability
from connections.models import Connection
from hosts.models import Host, HostKind
from tests import make
from tests.conftest import SignIn, wire_size
from tests.connections.rows import HTMX, a_connection, row, text
from tokens.models import Token

pytestmark = pytest.mark.django_db


@pytest.mark.full
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


@pytest.mark.full
def test_on_the_gateways_tab_a_row_leads_with_the_client(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana, "CI bot")

    page = sign_in(ana).get(f"/gateways/{connection.gateway.slug}/connections/")

    assert "Client name" in text(page)
    assert "CI bot" in row(page, connection)


def app_connection(user: User) -> Connection:
    """A connection of an app, whose key is never shown."""
    host = Host.objects.create(kind=HostKind.HEADED, name="Claude Desktop", dedupe_key=make.unique("key"))
    return make.connection(host, make.gateway(), user)


@pytest.mark.full
@pytest.mark.parametrize(
    ("change", "state", "words"),
    [
        ("nothing", "active", ">active<"),
        ("connection", "disabled", ">disabled<"),
        ("expire", "expired", ">expired<"),
        ("no token", "expired", ">no active token<"),
        ("revoke", "revoked", ">revoked<"),
        ("host", "blocked", "app or agent disabled"),
        ("gateway", "blocked", "gateway disabled"),
        ("user", "blocked", "person deactivated"),
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


@pytest.mark.full
def test_revoked_outranks_disabled_and_disabled_outranks_expired(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana)
    path = f"/hosts/{connection.host_id}/connections/"
    connection.disable(by=ana)

    assert ">disabled<" in row(sign_in(ana).get(path), connection)
    connection.revoke(by=ana)
    assert ">revoked<" in row(sign_in(ana).get(path), connection)


@pytest.mark.full
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
    assert '<span class="visually-hidden">Revoked</span><time' in seen
    assert "Nov 1, 2026" in seen
    for control in ("<button", "<input", "<form"):
        assert control not in seen


@pytest.mark.full
def test_add_a_connection_opens_the_flow_in_a_new_tab(ana: User, sign_in: SignIn) -> None:
    host = make.agent(by=ana)

    page = text(sign_in(ana).get(f"/hosts/{host.pk}/connections/"))

    link = page.split("Add a connection</a>")[0].rsplit("<a ", 1)[1]
    assert f'href="/connect/?host={host.pk}"' in link
    assert 'target="_blank"' in link
    assert 'rel="noopener"' in link


def test_a_disabled_agent_offers_no_flow_that_would_be_refused(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana)
    client = sign_in(ana)
    connection.host.disable(by=ana)

    assert "/connect/?" not in text(client.get(f"/hosts/{connection.host_id}/connections/"))


@pytest.mark.full
def test_an_apps_tab_says_that_connections_appear_by_themselves(ana: User, sign_in: SignIn) -> None:
    page = text(sign_in(ana).get(f"/hosts/{app_connection(ana).host_id}/connections/"))

    assert "Connections of this app appear when someone connects it." in page
    assert "How to Connect" in page
    assert "Add a connection" not in page


@pytest.mark.full
def test_the_list_refreshes_itself_when_the_window_is_looked_at_again(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana)
    path = f"/hosts/{connection.host_id}/connections/"

    whole = text(sign_in(ana).get(path))
    fragment = text(sign_in(ana).get(path, headers=HTMX))

    assert 'hx-trigger="focus from:window, token-shown from:body"' in whole
    assert "<html" not in fragment
    assert 'id="connection-count" hx-swap-oob="true">1</span>' in fragment


@pytest.mark.full
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
    host = Host.objects.create(kind=HostKind.HEADED, name="app", dedupe_key="a")
    made["app"] = make.connection(host, gateway, ana)
    tokens = {name: make.token(connection).token for name, connection in made.items()}
    made["off"].disable(by=ana)
    made["ended"].revoke(by=ana)
    Token.objects.filter(pk=tokens["old"].pk).update(expires_at=datetime.now(UTC))

    response = sign_in(ana).get(f"/gateways/{gateway.slug}/connections/{query}")

    assert {one.connection.host.name for one in response.context["rows"]} == names


@pytest.mark.full
def test_the_tab_costs_the_same_for_one_row_and_for_many(
    ana: User, sign_in: SignIn, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    host = make.agent(by=ana)
    for _ in range(12):
        make.token(make.connection(host, make.gateway(), ana))
    client = sign_in(ana)

    with django_assert_num_queries(9):  # session, user, permissions, host, count, keys, rows, tokens
        client.get(f"/hosts/{host.pk}/connections/")


@pytest.mark.full
def test_a_full_tab_stays_light(ana: User, sign_in: SignIn) -> None:
    host = make.agent(by=ana)
    for _ in range(52):
        connection = make.connection(host, make.gateway(), ana)
        for _ in range(4):
            make.token(connection)

    response = sign_in(ana).get(f"/hosts/{host.pk}/connections/")

    assert len(response.context["rows"]) == 50
    assert "51 to 52" in text(sign_in(ana).get(f"/hosts/{host.pk}/connections/?page=2"))
    assert wire_size(response) <= 30 * 1024


# --- Key buttons and tokens --------------------------------------------------------------------


def offered(response: object, connection: Connection) -> set[tuple[str, str]]:
    """Return the actions in a connection's rows, as first and last part of their URLs."""
    return set(re.findall(r'action="/((?:connections|tokens)/)[0-9a-f-]{36}(/[\w-]+/)"', row(response, connection)))


KEY, TRASH = ("connections/", "/regenerate/"), ("connections/", "/revoke/")
TOKEN_KEY, TOKEN_TRASH = ("tokens/", "/regenerate/"), ("tokens/", "/revoke/")
TOKEN_ASK = ("tokens/", "/ask-for-new/")


@pytest.mark.full
@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ((), set()),
        ((Capability.MCP_CONNECTIONS_REVOKE,), {KEY, TRASH, TOKEN_ASK, TOKEN_TRASH}),
        ((Capability.API_TOKENS_MANAGE,), {TOKEN_ASK, TOKEN_TRASH}),
        ((Capability.API_TOKENS_MANAGE, Capability.MCP_CONNECTIONS_REVOKE), {KEY, TRASH, TOKEN_ASK, TOKEN_TRASH}),
    ],
)
def test_another_persons_agent_offers_what_the_viewers_role_allows(
    capabilities: tuple[Capability, ...], expected: set[tuple[str, str]], sign_in: SignIn
) -> None:
    connection = a_connection(make.user())
    make.token(connection)
    viewer = make.user(Capability.MCP_CONNECTIONS_READ, Capability.HOSTS_READ, *capabilities)

    page = sign_in(viewer).get(f"/hosts/{connection.host_id}/connections/")

    assert offered(page, connection) == expected
    assert ("/edit/" in row(page, connection)) is (Capability.API_TOKENS_MANAGE in capabilities)


@pytest.mark.full
def test_ones_own_agent_offers_everything(ann: User, sign_in: SignIn) -> None:
    connection = a_connection(ann)
    make.token(connection)

    page = sign_in(ann).get(f"/hosts/{connection.host_id}/connections/")

    assert offered(page, connection) == {KEY, TRASH, TOKEN_KEY, TOKEN_TRASH}
    assert "Regenerate API key" in row(page, connection)
    assert "/edit/" in row(page, connection)


@pytest.mark.full
@pytest.mark.parametrize(("capability", "there"), [(Capability.MCP_CONNECTIONS_REVOKE, True), (None, False)])
def test_an_apps_key_button_takes_its_capability(capability: Capability | None, there: bool, sign_in: SignIn) -> None:
    owner = make.user(*([capability] if capability else []), Capability.HOSTS_READ)
    connection = app_connection(owner)
    Token.objects.provide_key(connection, by=owner)

    page = sign_in(owner).get(f"/hosts/{connection.host_id}/connections/")

    assert (KEY in offered(page, connection)) is there


@pytest.mark.full
@pytest.mark.parametrize("state", ["connection", "host", "gateway", "expired"])
def test_no_key_button_where_there_is_nothing_to_regenerate(state: str, ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana)
    token = make.token(connection).token
    if state == "expired":
        Token.objects.filter(pk=token.pk).update(expires_at=datetime.now(UTC))
    else:
        (connection if state == "connection" else getattr(connection, state)).disable(by=ana)

    page = sign_in(ana).get(f"/hosts/{connection.host_id}/connections/")

    assert offered(page, connection) - {("connections/", "/enable/")} == {TRASH, TOKEN_TRASH}


@pytest.mark.full
def test_a_connection_without_any_token_takes_another(ana: User, sign_in: SignIn) -> None:
    connection = a_connection(ana)

    page = sign_in(ana).get(f"/hosts/{connection.host_id}/connections/")

    assert "Create Token" in row(page, connection)
    assert f"host={connection.host_id}&amp;gateway={connection.gateway.slug}" in row(page, connection)


@pytest.mark.full
def test_a_gateway_that_its_reader_may_not_open_is_no_link(ana: User, sign_in: SignIn) -> None:
    link = a_connection(ana)
    link.gateway.edit(reach="teams", by=ana)
    path = f"/hosts/{link.host_id}/connections/"
    reader = sign_in(make.user(Capability.HOSTS_READ, Capability.MCP_CONNECTIONS_READ))

    seen, of_manager = row(reader.get(path), link), row(sign_in(ana).get(path), link)

    assert link.gateway.name in seen
    assert f'href="/gateways/{link.gateway.slug}/"' not in seen
    assert f'href="/gateways/{link.gateway.slug}/"' in of_manager


@pytest.mark.full
def test_a_gateway_for_teams_without_a_team_says_so(ana: User, sign_in: SignIn) -> None:
    gateway = make.gateway(reach="teams")
    client = sign_in(ana)

    assert "No team" in text(client.get("/gateways/"))
    assert "No team is chosen" in text(client.get(f"/gateways/{gateway.slug}/"))


@pytest.mark.full
def test_connections_are_picked_on_the_tab_and_switched_together_and_the_tab_follows(
    ana: User, sign_in: SignIn
) -> None:
    gateway = make.gateway()
    links = [make.connection(make.agent(by=ana), gateway, ana) for _ in range(3)]
    links[2].revoke(by=ana)
    tab = f"/gateways/{gateway.slug}/connections/"
    client = sign_in(ana)

    shown = text(client.get(tab))
    picked = {"pick": [link.pk for link in links], "act": "disable", "sure": "1", "back": tab}
    done = client.post("/switch/connections/", picked)

    assert shown.count('name="pick"') == 2  # The third connection has ended.
    assert f'<input type="hidden" name="back" value="{tab}">' in shown
    assert done["Location"] == tab
    assert [link.enabled for link in Connection.objects.filter(pk__in=[links[0].pk, links[1].pk])] == [False, False]
