"""The Connections tabs of a host and of a gateway."""

import re
from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from pytest_django import DjangoAssertNumQueries

from accounts.models import User
from capabilities import Capability
from connections import views
from connections.models import Connection
from hosts.models import Host, HostKind
from tests import make
from tests.conftest import SignIn, wire_size
from tests.connections.rows import HTMX, a_connection, row, text
from tokens.models import Token

pytestmark = pytest.mark.django_db


@pytest.mark.full
def test_a_row_says_everything_but_the_secret(ana: User, sign_in: SignIn) -> None:
    with time_machine.travel(datetime(2026, 11, 20, 12, tzinfo=UTC), tick=False):
        connection = a_connection(ana, "CI bot")
        issued = make.token(connection, name="ci-pipeline")
        Connection.objects.filter(pk=connection.pk).update(last_used_at=datetime(2026, 11, 20, 11, 55, tzinfo=UTC))

        seen = row(sign_in(ana).get(f"/hosts/{connection.host_id}/connections/"), connection)
        on_gateway = sign_in(ana).get(f"/gateways/{connection.gateway.slug}/connections/")

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
    assert issued.secret not in seen + text(on_gateway)
    assert "CI bot" in row(on_gateway, connection)


def app_connection(user: User) -> Connection:
    """Return a connection of an app that signed in through OAuth."""
    host = Host.objects.create(kind=HostKind.HEADED, name="Claude Desktop", dedupe_key=make.unique("key"))
    return make.connection(host, make.gateway(), user)


@pytest.mark.full
def test_the_status_says_what_stops_a_connection_the_most_and_an_ended_one_stays_last(
    ana: User, sign_in: SignIn
) -> None:
    connection = a_connection(ana)
    token, client = make.token(connection).token, sign_in(ana)
    path = f"/hosts/{connection.host_id}/connections/"
    live = make.connection(connection.host, make.gateway(), ana)

    def status() -> tuple[str, str]:
        [(state, words)] = re.findall(
            r'<span class="badge" data-state="(\w+)"[^>]*>([^<]*)<', row(client.get(path), connection).split("</tr>")[0]
        )
        return state, words

    assert status() == ("active", "active")
    connection.gateway.disable(by=ana)
    assert status() == ("blocked", "blocked: gateway disabled")
    Token.objects.filter(pk=token.pk).update(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    assert status() == ("expired", "expired")
    token.revoke(by=ana)
    assert status() == ("expired", "no active token")
    connection.disable(by=ana)
    assert status() == ("disabled", "disabled")
    with time_machine.travel(datetime(2026, 11, 1, tzinfo=UTC), tick=False):
        connection.revoke(by=ana)
    assert status() == ("revoked", "revoked")

    page = client.get(path)
    assert text(page).index(str(live.pk)) < text(page).index(str(connection.pk))
    ended = row(page, connection)
    assert "Nov 1, 2026" in ended
    for control in ("<button", "<input", "<form"):
        assert control not in ended


def test_an_agents_tab_leads_to_the_flow_in_a_new_tab_unless_it_would_be_refused(ana: User, sign_in: SignIn) -> None:
    host, client = make.agent(by=ana), sign_in(ana)
    path = f"/hosts/{host.pk}/connections/"

    page = text(client.get(path))
    link = page.split("Add a connection</a>")[0].rsplit("<a ", 1)[1]
    assert f'href="/connect/?host={host.pk}"' in link
    assert 'target="_blank"' in link
    assert 'rel="noopener"' in link
    assert 'hx-trigger="focus from:window, token-shown from:body"' in page, "what was connected there is shown here"

    make.connection(host, make.gateway(), ana)
    host.disable(by=ana)
    assert "/connect/?" not in text(client.get(path))
    of_app = text(client.get(f"/hosts/{app_connection(ana).host_id}/connections/"))
    assert "Connections of this app appear when someone connects it." in of_app
    assert "Add a connection" not in of_app


def test_a_gateway_lists_three_tokens_of_a_connection_and_leads_to_all(ana: User, sign_in: SignIn) -> None:
    connection, client = a_connection(ana), sign_in(ana)
    *others, newest = [make.token(connection, name=f"key {number}").token for number in range(5)]
    Token.objects.filter(pk=newest.pk).update(expires_at=datetime.now(UTC) - timedelta(days=1))
    works_first = ["key 3", "key 2", "key 1", "key 0", "key 4"]
    tab = f"/gateways/{connection.gateway.slug}/connections/"

    def listed(response: object) -> list[str]:
        return re.findall(r"<(?:a|b)[^>]*>(key \d)<", row(response, connection))

    assert listed(client.get(tab)) == works_first[:3]
    [to_all] = re.findall(r'<a href="(/hosts/[^"]+\?q=[^"]+)"><span[^>]*>2 more<', row(client.get(tab), connection))
    assert listed(client.get(to_all)) == works_first
    assert listed(client.get(f"{tab}?q={newest.prefix}")) == works_first
    open_on_tab = {**HTMX, "HX-Current-URL": f"http://testserver{tab}"}
    assert listed(client.post(f"/tokens/{others[0].pk}/revoke/", headers=open_on_tab)) == works_first[:3]


@pytest.mark.full
def test_the_query_string_narrows_the_tab(ana: User, sign_in: SignIn, subtests: pytest.Subtests) -> None:
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
    client = sign_in(ana)

    for query, names in {
        "?status=active": {"live", "app"},
        "?status=expired": {"old"},
        "?status=revoked&status=disabled": {"ended", "off"},
        "?type=app": {"app"},
        "?type=agent&status=active": {"live"},
        "?q=OF": {"off"},
        "?q=nobody": set(),
        "?status=x&type=y&page=z": {"live", "off", "old", "ended", "app"},
    }.items():
        with subtests.test(query):
            response = client.get(f"/gateways/{gateway.slug}/connections/{query}")
            assert {one.connection.host.name for one in response.context["rows"]} == names


@pytest.mark.full
def test_a_full_tab_is_light_and_takes_few_statements(
    ana: User, sign_in: SignIn, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    host, client = make.agent(by=ana), sign_in(ana)
    for _ in range(52):
        connection = make.connection(host, make.gateway(), ana)
        for _ in range(4):
            make.token(connection)

    with django_assert_num_queries(10):  # session, user, permissions, host, count, keys, rows, tokens, rail, file
        response = client.get(f"/hosts/{host.pk}/connections/")

    assert len(response.context["rows"]) == 50
    assert "51 to 52" in text(client.get(f"/hosts/{host.pk}/connections/?page=2"))
    assert wire_size(response) <= 30 * 1024
    fragment = text(client.get(f"/hosts/{host.pk}/connections/", headers=HTMX))
    assert "<html" not in fragment
    assert 'id="connection-count" hx-swap-oob="true">52</span>' in fragment


# --- Key buttons and tokens --------------------------------------------------------------------


def offered(response: object, connection: Connection) -> set[tuple[str, str]]:
    """Return the forms in a connection's rows as the parts of their URLs before and after the id."""
    return set(re.findall(r'action="/((?:connections|tokens)/)[0-9a-f-]{36}(/[\w-]+/)"', row(response, connection)))


KEY, TRASH = ("connections/", "/regenerate/"), ("connections/", "/revoke/")
TOKEN_KEY, TOKEN_TRASH = ("tokens/", "/regenerate/"), ("tokens/", "/revoke/")
TOKEN_ASK = ("tokens/", "/ask-for-new/")


@pytest.mark.full
def test_a_row_offers_what_its_viewer_may_do(ann: User, sign_in: SignIn) -> None:
    connection = a_connection(ann)
    make.token(connection)
    path = f"/hosts/{connection.host_id}/connections/"
    seeing = (Capability.MCP_CONNECTIONS_READ, Capability.HOSTS_READ)

    for more, expected in (
        ((), set()),
        ((Capability.MCP_CONNECTIONS_REVOKE,), {KEY, TRASH, TOKEN_ASK, TOKEN_TRASH}),
        ((Capability.API_TOKENS_MANAGE,), {TOKEN_ASK, TOKEN_TRASH}),
    ):
        page = sign_in(make.user(*seeing, *more)).get(path)
        assert offered(page, connection) == expected, more
        assert ("/edit/" in row(page, connection)) is (Capability.API_TOKENS_MANAGE in more)
    assert offered(sign_in(ann).get(path), connection) == {KEY, TRASH, TOKEN_KEY, TOKEN_TRASH}

    for more, there in (((Capability.MCP_CONNECTIONS_REVOKE,), True), ((), False)):
        owner = make.user(*more, Capability.HOSTS_READ)
        of_app = app_connection(owner)
        Token.objects.provide_key(of_app, by=owner)
        page = sign_in(owner).get(f"/hosts/{of_app.host_id}/connections/")
        assert (KEY in offered(page, of_app)) is there, "the key of an app takes the capability, of one's own too"


@pytest.mark.full
def test_no_key_button_where_there_is_nothing_to_regenerate(ana: User, sign_in: SignIn) -> None:
    client = sign_in(ana)
    for state in ("connection", "host", "gateway", "expired", "none"):
        connection = a_connection(ana, state)
        token = make.token(connection).token if state != "none" else None
        if token and state == "expired":
            Token.objects.filter(pk=token.pk).update(expires_at=datetime.now(UTC))
        elif token:
            (connection if state == "connection" else getattr(connection, state)).disable(by=ana)

        page = client.get(f"/hosts/{connection.host_id}/connections/")

        expected = {TRASH, TOKEN_TRASH} if token else {TRASH}
        assert offered(page, connection) - {("connections/", "/enable/")} == expected, state
        another = f"host={connection.host_id}&amp;gateway={connection.gateway.slug}"
        assert token or another in row(page, connection), "a token can be created"


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


@pytest.mark.full
def test_a_tab_of_many_connections_comes_before_a_list_that_takes_long(
    ana: User, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, host = make.gateway(), make.app()
    works, _ = make.app_connection(ana, gateway, host=host), make.app_connection(make.user(), gateway, host=host)
    Token.objects.exclude(connection=works).update(expires_at=datetime.now(UTC))
    client = sign_in(ana)
    monkeypatch.setattr(views, "FILTERED_AT_ONCE", 1)

    for tab in (f"/gateways/{gateway.slug}/connections/", f"/hosts/{host.pk}/connections/"):
        page = client.get(f"{tab}?status=active")
        section = re.findall(r'<section[^>]*id="connections"[^>]*>', text(page))[0]
        loaded = client.get(f"{tab}?status=active", headers=HTMX | {"HX-Target": "connections"})
        now = client.get(f"{tab}?status=active&now=1")

        assert 'hx-trigger="load, focus' in section
        assert ("Searching…" in text(page), "No connection matches" in text(page)) == (True, False)
        for answer in (loaded, now):
            assert [row.connection for row in answer.context["rows"]] == [works]
            assert not re.search('Searching…|hx-trigger="load, focus', text(answer).split("sessions-title")[0])
        assert len(client.get(f"{tab}?status=live").context["rows"]) == 2
