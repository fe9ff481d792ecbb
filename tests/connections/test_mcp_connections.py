"""The MCP Connections page."""

import re
from datetime import UTC, datetime, timedelta
from html import unescape

import pytest
import time_machine
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from accounts.models import User
from capabilities import Capability
from capabilities.catalogue import including
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
    """Return the number of connections in the page's header, with the numbers by status that the browser then gets."""
    found = re.findall(r'id="connection-number"[^>]*><span[^>]*>([^<]*)</span><span hx-get="([^"]*)"', text(response))
    ((listed, url),) = found
    return f"{listed}{text(client.get(unescape(url)))}"


def names(response: object) -> list[str]:
    return [row.connection.host.name for row in response.context["rows"]]  # type: ignore[attr-defined]


@pytest.mark.full
def test_a_row_says_everything_that_is_asked_for(ana: User, max: User, sign_in: SignIn) -> None:
    """The row names the connection's person, even for that person."""
    with time_machine.travel(NOW - timedelta(days=5), tick=False):
        link = make.app_connection(max, make.gateway(name="Quickstart"), name="Claude Desktop")
    Connection.objects.filter(pk=link.pk).update(last_token_at=NOW - timedelta(hours=3))

    with time_machine.travel(NOW, tick=False):
        page = sign_in(ana).get(PATH)

    heads = re.findall(r'<th scope="col"[^>]*>(?:<(?:span|a)[^>]*>)?([^<]+)<', text(page))
    assert heads == [
        *("Client name", "Status", "User email", "Gateway"),
        *("API key prefix", "Connected date", "Last token", "Last used", "Actions"),
    ]
    seen = row(page, link)
    for words in ("Claude Desktop", max.email, "Quickstart", Token.objects.get().prefix, "Jan 15, 2026", "3h ago"):
        assert words in seen
    assert '<span class="badge" data-state="active">active</span>' in seen
    assert Token.objects.get().prefix.startswith("gwk_")
    assert number(page, sign_in(ana)) == "1 connection, 1 active"


@pytest.mark.full
def test_the_page_says_that_agents_are_listed_elsewhere_and_leads_there(ana: User, sign_in: SignIn) -> None:
    """By default only apps are listed, so people who have only agents would see an unexplained empty list."""
    make.connection(make.agent(by=ana, name="Nightly"), make.gateway(), ana)
    client = sign_in(ana)

    page = client.get(PATH)

    assert names(page) == []
    assert 'Agents, which use tokens, are listed under <a href="?type=agent">' in text(page)
    assert names(client.get(f"{PATH}?type=agent")) == ["Nightly"]


@pytest.mark.full
def test_an_app_without_a_name_is_an_mcp_client(ana: User, sign_in: SignIn) -> None:
    link = make.app_connection(ana, make.gateway(), name="")

    seen = row(sign_in(ana).get(PATH), link)

    assert ">MCP Client</a>" in seen
    assert ">Never<" in seen  # No refresh since the authorisation.


@pytest.mark.parametrize("capability", list(Capability))
def test_each_capability_to_see_or_change_connections_opens_the_page(capability: Capability, sign_in: SignIn) -> None:
    page = sign_in(make.user(capability)).get(PATH)

    if capability in sorted(including([Capability.MCP_CONNECTIONS_READ])):
        assert page.status_code == 200
        assert f'<a href="{PATH}" aria-current="page">MCP</a>' in text(page)
    else:
        assert page.status_code == 403
        assert "Permission Denied</h1>" in text(page)
        assert "View MCP connections" in text(page)


@pytest.mark.full
def test_settings_lead_to_it_as_mcp(ana: User, ann: User, sign_in: SignIn) -> None:
    link = f'<a href="{PATH}">MCP</a>'

    assert link in text(sign_in(ana).get("/settings/profile"))
    assert link not in text(sign_in(ann).get("/settings/profile"))


@pytest.mark.full
def test_reading_alone_shows_rows_without_a_button(viv: User, sign_in: SignIn) -> None:
    """Includes the viewer's own rows, because on this page buttons need the capability."""
    own, other = make.app_connection(viv, make.gateway()), make.app_connection(make.user(), make.gateway())

    page = sign_in(viv).get(PATH)

    for link in (own, other):
        for control in ("<button", "<form", "<input"):
            assert control not in row(page, link)


def buttons(response: object, connection: Connection) -> list[str]:
    return re.findall(r'<button[^>]* data-tip="([^"]+)"', row(response, connection))


@pytest.mark.full
@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("active", ["Regenerate API key", "Revoke connection"]),
        ("disabled", ["Revoke connection"]),
        ("expired", ["Revoke connection"]),
        ("gateway", ["Revoke connection"]),
        ("revoked", []),
    ],
)
def test_a_row_has_the_buttons_its_state_allows(
    state: str, expected: list[str], ana: User, ann: User, sign_in: SignIn
) -> None:
    link = make.app_connection(ann, make.gateway())
    match state:
        case "disabled":
            link.disable(by=ana)
        case "expired":
            Token.objects.update(expires_at=datetime.now(UTC))
        case "gateway":
            link.gateway.disable(by=ana)
        case "revoked":
            link.revoke(by=ana)

    page = sign_in(ana).get(PATH)

    assert buttons(page, link) == expected
    assert (">blocked: gateway disabled<" in row(page, link)) is (state == "gateway")


@pytest.mark.full
def test_a_revoked_row_stays_last_with_a_red_badge_and_its_date(ana: User, ann: User, sign_in: SignIn) -> None:
    gateway = make.gateway()
    old = make.app_connection(ann, gateway, name="Claude Desktop")
    with time_machine.travel(NOW, tick=False):
        old.revoke(by=ana)
    new = make.app_connection(ann, gateway, host=old.host)

    page = sign_in(ana).get(PATH)

    assert text(page).index(str(new.pk)) < text(page).index(str(old.pk))
    assert '<span class="badge" data-state="revoked">revoked</span>' in row(page, old)
    assert '<span class="visually-hidden">Revoked</span> <time' in row(page, old)
    assert "Jan 20, 2026" in row(page, old)
    assert number(page, sign_in(ana)) == "2 connections, 1 active"
    assert Token.objects.filter(connection=new).get().prefix != Token.objects.filter(connection=old).get().prefix


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


@pytest.mark.full
def test_the_numbers_of_an_answer_follow_what_the_page_shows(ana: User, sign_in: SignIn) -> None:
    link = a_connection(ana)
    make.token(link)
    make.app_connection(ana, make.gateway())
    agents = HTMX | {"HX-Current-URL": f"http://testserver{PATH}?type=agent"}
    client = sign_in(ana)

    assert number(client.post(f"/connections/{link.pk}/revoke/", headers=agents), client) == "1 connection, 0 active"


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
def test_a_whole_address_finds_the_connections_of_one_person(sign_in: SignIn) -> None:
    sees = Capability.MCP_CONNECTIONS_READ
    lee, marylee = (make.user(sees, email=f"{name}@example.com") for name in ("lee", "marylee"))
    for person, name in ((lee, "Claude"), (marylee, "Cursor")):
        make.app_connection(person, make.gateway(), name=name)
    client = sign_in(lee)

    assert names(client.get(PATH, {"q": "Lee@example.com"})) == ["Claude"]
    assert names(client.get(PATH, {"q": "lee@example"})) == ["Cursor", "Claude"]


@pytest.mark.full
@pytest.mark.parametrize(
    ("query", "expected", "counted"),
    [
        ("", ["Cursor", "Claude", "Ended"], "3 connections, 1 active"),
        ("?type=agent", ["CI bot"], "1 connection, 1 active"),
        ("?type=all", ["CI bot", "Cursor", "Claude", "Ended"], "4 connections, 2 active"),
        ("?type=all&status=live", ["CI bot", "Cursor", "Claude"], "3 connections, 2 active"),
        ("?status=disabled", ["Cursor"], "1 connection, 0 active"),
        ("?status=revoked&status=active", ["Claude", "Ended"], "2 connections, 1 active"),
        ("?gateway=work", ["Claude"], "1 connection, 1 active"),
        ("?q=CLAU", ["Claude"], "1 connection, 1 active"),
        ("?q=nobody", [], "0 connections, 0 active"),
        ("?type=x&status=y&gateway=z&page=w", ["Cursor", "Claude", "Ended"], "3 connections, 1 active"),
    ],
)
def test_the_query_string_narrows_the_list_and_its_numbers(
    query: str, expected: list[str], counted: str, ana: User, sign_in: SignIn
) -> None:
    make.app_connection(ana, make.gateway(), name="Ended").revoke(by=ana)
    make.app_connection(ana, make.gateway(slug="work"), name="Claude")
    make.app_connection(ana, make.gateway(), name="Cursor").disable(by=ana)
    make.token(a_connection(ana, "CI bot"))

    page = sign_in(ana).get(PATH + query)

    assert names(page) == expected
    assert number(page, sign_in(ana)) == counted


@pytest.mark.full
def test_a_key_prefix_finds_its_connection(ana: User, sign_in: SignIn) -> None:
    link, _ = make.app_connection(ana, make.gateway(), name="Claude"), make.app_connection(ana, make.gateway())
    prefix = Token.objects.get(connection=link).prefix

    assert names(sign_in(ana).get(PATH, {"q": prefix})) == ["Claude"]


@pytest.mark.full
def test_an_empty_page_says_how_rows_get_there(ana: User, sign_in: SignIn) -> None:
    page = text(sign_in(ana).get(PATH))

    assert "No connections yet. Connections appear here when an MCP client completes the OAuth flow." in page
    assert "How to Connect" in page
    assert number(sign_in(ana).get(PATH), sign_in(ana)) == "0 connections, 0 active"


@pytest.mark.full
def test_there_is_no_button_to_make_a_connection_by_hand(ana: User, sign_in: SignIn) -> None:
    make.app_connection(ana, make.gateway())

    page = text(sign_in(ana).get(PATH))

    assert "Add a connection" not in page
    assert "Create Token" not in page


def test_htmx_gets_the_rows_and_the_numbers_alone(ana: User, sign_in: SignIn) -> None:
    fragment = text(sign_in(ana).get(PATH, headers=OPEN))

    assert "<html" not in fragment
    assert 'id="connection-number" hx-swap-oob="true"' in fragment


@pytest.mark.full
def test_the_page_costs_the_same_for_one_row_and_for_many(
    ana: User, sign_in: SignIn, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for _ in range(8):
        make.app_connection(ana, make.gateway())
    client = sign_in(ana)

    with django_assert_num_queries(9):  # session, user, permissions, gateways, numbers, keys, rows, tokens
        client.get(PATH)


@pytest.mark.full
def test_a_full_page_stays_light(ana: User, sign_in: SignIn) -> None:
    for _ in range(52):
        make.app_connection(ana, make.gateway())

    page = sign_in(ana).get(PATH)

    assert len(page.context["rows"]) == 50
    assert wire_size(page) <= 30 * 1024
