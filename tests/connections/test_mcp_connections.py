"""The MCP Connections page."""

import re
from datetime import UTC, datetime, timedelta
from html import unescape

import pytest
import time_machine
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from accounts.models import User
from connections import views
from connections.models import Connection
from tests import make
from tests.conftest import SignIn, wire_size
from tests.connections.rows import HTMX, a_connection, text
from tokens.models import Token

pytestmark = pytest.mark.django_db

PATH = "/settings/mcp-connections"
OPEN = HTMX | {"HX-Current-URL": f"http://testserver{PATH}"}
NOW = datetime(2026, 1, 20, 12, tzinfo=UTC)


def row(response: object, connection: Connection) -> str:
    return text(response).split(f'id="connection-{connection.pk}"')[1].split("</tr>")[0]


def number(response: object, client: Client) -> str:
    """Return the header's number of connections, and the numbers by status, which the page loads separately."""
    found = re.findall(r'id="connection-number"[^>]*><span[^>]*>([^<]*)</span><span hx-get="([^"]*)"', text(response))
    ((listed, url),) = found
    return f"{listed}{text(client.get(unescape(url)))}"


def names(response: object) -> list[str]:
    return [row.connection.host.name for row in response.context["rows"]]  # type: ignore[attr-defined]


@pytest.mark.full
def test_a_row_says_everything_that_is_asked_for(ana: User, max: User, sign_in: SignIn) -> None:
    """The row shows app, person, gateway, key prefix, connected date, time of the last token, and status."""
    with time_machine.travel(NOW - timedelta(days=5), tick=False):
        link = make.app_connection(max, make.gateway(name="Quickstart"), name="Claude Desktop")
    Connection.objects.filter(pk=link.pk).update(last_token_at=NOW - timedelta(hours=3))

    with time_machine.travel(NOW, tick=False):
        page = sign_in(ana).get(PATH)

    seen = row(page, link)
    for words in ("Claude Desktop", max.email, "Quickstart", Token.objects.get().prefix, "Jan 15, 2026", "3h ago"):
        assert words in seen
    assert '<span class="badge" data-state="active">active</span>' in seen
    assert Token.objects.get().prefix.startswith("gwk_")
    assert number(page, sign_in(ana)) == "1 connection, 1 active"


@pytest.mark.full
def test_the_page_says_that_agents_are_listed_elsewhere_and_leads_there(ana: User, sign_in: SignIn) -> None:
    """By default the page lists only apps. Without a hint, people who have only agents would see just an empty list."""
    make.connection(make.agent(by=ana, name="Nightly"), make.gateway(), ana)
    client = sign_in(ana)

    page = client.get(PATH)

    assert "No connections yet. Connections appear here when an MCP client completes the OAuth flow." in text(page)
    assert names(page) == []
    assert 'Agents use tokens. The connections of agents are listed under <a href="?type=agent">' in text(page)
    assert names(client.get(f"{PATH}?type=agent")) == ["Nightly"]


@pytest.mark.full
def test_reading_alone_shows_rows_without_a_button(viv: User, sign_in: SignIn) -> None:
    """Even the viewer's own rows have no button, because each button on this page needs a capability."""
    own, other = make.app_connection(viv, make.gateway()), make.app_connection(make.user(), make.gateway())

    page = sign_in(viv).get(PATH)

    for link in (own, other):
        for control in ("<button", "<form", "<input"):
            assert control not in row(page, link)


@pytest.mark.full
def test_with_many_connections_the_page_comes_before_a_list_that_takes_long(
    ana: User, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("Works", "Over"):
        make.app_connection(ana, make.gateway(name=name), name=name)
    Token.objects.filter(connection__gateway__name="Over").update(expires_at=datetime.now(UTC))
    client = sign_in(ana)
    monkeypatch.setattr(views, "FILTERED_AT_ONCE", 1)

    page = client.get(f"{PATH}?status=active&q=")
    (address,) = re.findall(r'id="connections" hx-get="([^"]+)"', text(page))
    loaded = client.get(unescape(address), headers={"HX-Request": "true", "HX-Target": "connections"})

    assert names(page) == []
    assert ("Searching…" in text(page), "No connection matches" in text(page)) == (True, False)
    assert "Searching…" not in text(loaded)
    assert (names(loaded), number(loaded, client)) == (["Works"], "1 connection, 1 active")
    for query in ("status=active&now=1", "status=active&page=9&now=1"):
        assert names(client.get(f"{PATH}?{query}")) == ["Works"]
    assert names(client.get(f"{PATH}?status=live")) == ["Over", "Works"]
    assert b"Works" in client.get(f"{PATH}?status=active&format=csv").getvalue()


def buttons(response: object, connection: Connection) -> list[str]:
    return re.findall(r'<button[^>]* data-tip="([^"]+)"', row(response, connection))


@pytest.mark.full
def test_a_row_has_the_buttons_its_state_allows_and_a_revoked_one_stays_last(
    ana: User, ann: User, sign_in: SignIn
) -> None:
    links = {
        state: make.app_connection(ann, make.gateway(name=state))
        for state in ("revoked", "active", "disabled", "expired", "gateway")
    }
    links["disabled"].disable(by=ana)
    Token.objects.filter(connection=links["expired"]).update(expires_at=datetime.now(UTC))
    links["gateway"].gateway.disable(by=ana)
    with time_machine.travel(NOW, tick=False):
        links["revoked"].revoke(by=ana)

    page = sign_in(ana).get(PATH)

    assert {state: buttons(page, link) for state, link in links.items()} == {
        "active": ["Regenerate API key", "Revoke connection"],
        "disabled": ["Revoke connection"],
        "expired": ["Revoke connection"],
        "gateway": ["Revoke connection"],
        "revoked": [],
    }
    assert ">blocked: gateway disabled<" in row(page, links["gateway"])
    assert [one.connection.pk for one in page.context["rows"]][-1] == links["revoked"].pk
    assert '<span class="badge" data-state="revoked">revoked</span>' in row(page, links["revoked"])
    assert "Jan 20, 2026" in row(page, links["revoked"])
    assert number(page, sign_in(ana)) == "5 connections, 1 active, 1 blocked"


def test_revoking_swaps_the_row_and_the_second_number(ana: User, ann: User, sign_in: SignIn) -> None:
    link, _ = make.app_connection(ann, make.gateway()), make.app_connection(ann, make.gateway())
    client = sign_in(ana)

    asked = text(client.get(f"/connections/{link.pk}/revoke/", headers=OPEN))
    answer = client.post(f"/connections/{link.pk}/revoke/", headers=OPEN)

    assert (
        "Revoke this MCP connection? The associated API key will be deactivated and the client will need to "
        "re-authorize."
    ) in asked
    assert ">Cancel<" in asked
    assert ">OK<" in asked
    assert text(answer).lstrip().startswith(f'<tr id="connection-{link.pk}" data-state="revoked" class="changed">')
    assert number(answer, client) == "2 connections, 1 active"
    assert 'id="connection-number" hx-swap-oob="true"' in text(answer)
    assert not Token.objects.active().filter(connection=link).exists()


def test_regenerating_swaps_the_row_and_says_what_happens_next(ana: User, ann: User, sign_in: SignIn) -> None:
    link = make.app_connection(ann, make.gateway())
    before = Token.objects.get().prefix

    answer = sign_in(ana).post(f"/connections/{link.pk}/regenerate/", headers=OPEN)

    assert '<span class="badge" data-state="active">active</span>' in row(answer, link)
    assert Token.objects.get().prefix in row(answer, link)
    assert before not in text(answer)
    assert ("API key regenerated. The client picks up a new access token on its own, within 1 hour at most.") in text(
        answer
    )


def test_an_agents_secret_regenerated_here_comes_with_its_row(ana: User, sign_in: SignIn) -> None:
    link = a_connection(ana)
    make.token(link)

    answer = sign_in(ana).post(f"/connections/{link.pk}/regenerate/", {"generation": "1"}, headers=OPEN)

    assert 'id="token-issued"' in text(answer)
    assert f'<tr id="connection-{link.pk}" data-state="active" class="changed" hx-swap-oob="true">' in text(answer)


@pytest.mark.full
def test_the_query_string_narrows_the_list_and_its_numbers(
    ana: User, sign_in: SignIn, subtests: pytest.Subtests
) -> None:
    make.app_connection(ana, make.gateway(), name="Ended").revoke(by=ana)
    claude = make.app_connection(make.user(email="lee@example.com"), make.gateway(slug="work"), name="Claude")
    make.app_connection(make.user(email="marylee@example.com"), make.gateway(), name="Cursor").disable(by=ana)
    agent = a_connection(ana, "CI bot")
    make.token(agent)
    client = sign_in(ana)

    for query, expected, counted in (
        ("", ["Cursor", "Claude", "Ended"], "3 connections, 1 active"),
        ("?type=all&status=live", ["CI bot", "Cursor", "Claude"], "3 connections, 2 active"),
        ("?status=disabled", ["Cursor"], "1 connection, 0 active"),
        ("?status=revoked&status=active", ["Claude", "Ended"], "2 connections, 1 active"),
        ("?gateway=work", ["Claude"], "1 connection, 1 active"),
        ("?q=CLAU", ["Claude"], "1 connection, 1 active"),
        ("?q=Lee@example.com", ["Claude"], "1 connection, 1 active"),
        ("?q=lee@example", ["Cursor", "Claude"], "2 connections, 1 active"),
        (f"?q={Token.objects.get(connection=claude).prefix}", ["Claude"], "1 connection, 1 active"),
        ("?q=nobody", [], "0 connections, 0 active"),
        ("?type=x&status=y&gateway=z&page=w", ["Cursor", "Claude", "Ended"], "3 connections, 1 active"),
    ):
        with subtests.test(query):
            page = client.get(PATH + query)
            assert names(page) == expected
            assert number(page, client) == counted

    agents = HTMX | {"HX-Current-URL": f"http://testserver{PATH}?type=agent"}
    answer = client.post(f"/connections/{agent.pk}/revoke/", headers=agents)
    assert number(answer, client) == "1 connection, 0 active", "the numbers of an answer follow the page"


@pytest.mark.full
def test_a_full_page_is_light_and_takes_few_statements(
    ana: User, sign_in: SignIn, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for _ in range(52):
        make.app_connection(ana, make.gateway())
    client = sign_in(ana)

    with django_assert_num_queries(9):  # session, user, permissions, gateways, numbers, keys, rows, tokens
        page = client.get(PATH)

    assert len(page.context["rows"]) == 50
    assert wire_size(page) <= 30 * 1024
    fragment = text(client.get(PATH, headers=OPEN))
    assert "<html" not in fragment
    assert 'id="connection-number" hx-swap-oob="true"' in fragment
