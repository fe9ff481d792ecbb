"""Journey J6: an app registers itself, with the TypeScript SDK and a real browser."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests import curl
from tests.browser import people, steps
from tests.browser.fixtures import Open
from tests.clients.apps import Desktop, KeptApp
from tests.clients.person import answer_in
from tests.workspace import Serve

pytestmark = pytest.mark.full

APP = "Claude Desktop"


def test_j6_a_headed_app_appears_by_itself(
    live: Serve, page: Page, open_browser: Open, desktop: Desktop, tmp_path: Path
) -> None:
    url = f"{live.url}/mcp/quickstart"
    max_, ben = people.join(live, "max-j6"), people.join(live, "ben-j6")
    claude = KeptApp(desktop, url, tmp_path / "max.json", APP)

    finds_its_way(url)
    a_person_allows(claude, open_browser().new_page(), max_)
    appears_without_an_administrator(page, live, max_)
    refreshes_by_itself(claude, page, live, max_)
    again = KeptApp(desktop, url, tmp_path / "ben.json", APP)
    is_the_same_app_for_others(again, open_browser().new_page(), page, live, ben)
    reaches_its_own_gateway_only(claude, page, live)
    needs_no_name(KeptApp(desktop, url, tmp_path / "nameless.json"), open_browser().new_page(), page, live, ben)


def finds_its_way(url: str) -> None:
    """Check that the 401 response leads to the metadata of the gateway and of the authorization server."""
    refused = curl.list_tools(url, None)
    challenge = refused.headers["www-authenticate"]
    found = re.search(r'resource_metadata="([^"]+)"', challenge)

    assert refused.status == 401
    assert found, challenge
    resource = httpx.get(found[1]).json()
    [issuer] = resource["authorization_servers"]
    server = httpx.get(f"{issuer}/.well-known/oauth-authorization-server").json()
    assert resource["resource"] == url
    assert server["issuer"] == issuer
    assert server["code_challenge_methods_supported"] == ["S256"]


def a_person_allows(claude: KeptApp, browser: Page, email: str) -> None:
    """Sign in as a person, press Allow for the preselected gateway, and check the returned code, state and issuer."""
    arrived = []

    said = claude.connects(lambda asked: arrived.append(people.allow(browser, asked, app=APP, email=email)))

    assert {"code", "state", "iss"} <= set(answer_in(arrived[0]))
    assert said == {"tools": said["tools"], "text": "hello"}
    assert "echo" in said["tools"]
    assert claude.tokens["access_token"].startswith("gwo_")
    assert claude.tokens["expires_in"] <= 3600
    assert claude.tokens["refresh_token"].startswith("gwr_")


def appears_without_an_administrator(page: Page, live: Serve, email: str) -> None:
    page.goto(f"{live.url}/hosts/?q={APP}")
    expect(steps.row(page, APP)).to_contain_text("App (OAuth)")

    mcp_connections(page, live, email)
    connection = steps.row(page, APP, email)
    today, before = datetime.now(UTC), datetime.now(UTC) - timedelta(hours=1)  # Midnight may have just passed.
    days = "|".join(f"{day:%b} {day.day}, {day.year}" for day in (today, before))
    for words in ("active", "Quickstart", re.compile(days), "Never"):
        expect(connection).to_contain_text(words)
    expect(connection).to_contain_text(re.compile(r"gwk_\w{8}"))


def mcp_connections(page: Page, live: Serve, words: str) -> None:
    page.goto(f"{live.url}/settings/mcp-connections?q={quote(words)}")


def refreshes_by_itself(claude: KeptApp, page: Page, live: Serve, email: str) -> None:
    before = claude.tokens
    claude.forget_access()

    assert claude.goes_on()["text"] == "hello"

    assert claude.tokens["access_token"] != before["access_token"]
    assert claude.tokens["refresh_token"] != before["refresh_token"]
    mcp_connections(page, live, email)
    expect(steps.row(page, APP, email)).to_contain_text("just now")


def is_the_same_app_for_others(claude: KeptApp, browser: Page, page: Page, live: Serve, email: str) -> None:
    """Check that another person's registration of the app belongs to the same host."""
    claude.connects(lambda asked: people.allow(browser, asked, app=APP, email=email))

    mcp_connections(page, live, APP)
    expect(page.get_by_role("row").filter(has_text=APP)).to_have_count(2)
    page.get_by_role("navigation", name="Main").get_by_role("link", name="Apps & Agents").click()
    expect(page).to_have_url(f"{live.url}/hosts/")
    page.goto(f"{live.url}/hosts/?q={quote(APP)}")  # Other tests may have filled the first page of the list.
    expect(page.get_by_role("row").filter(has_text=APP)).to_have_count(1)


def reaches_its_own_gateway_only(claude: KeptApp, page: Page, live: Serve) -> None:
    """Check that another gateway refuses the app's token."""
    steps.add_gateway(page, live.url, "Elsewhere")
    token = claude.tokens["access_token"]

    assert curl.list_tools(claude.gateway_url, token).status == 200
    refused = curl.list_tools(f"{live.url}/mcp/elsewhere", token)
    assert refused.status == 401
    assert 'error="invalid_token"' in refused.headers["www-authenticate"]


def needs_no_name(nameless: KeptApp, browser: Page, page: Page, live: Serve, email: str) -> None:
    """Check that an app without a name connects, and that using a code twice revokes its tokens."""
    arrived = []
    nameless.connects(lambda asked: arrived.append(people.allow(browser, asked, app="MCP Client", email=email)))

    mcp_connections(page, live, email)
    expect(steps.row(page, "MCP Client")).to_contain_text("active")
    again = {
        "grant_type": "authorization_code",
        "code": answer_in(arrived[0])["code"],
        "client_id": nameless.kept["client"]["client_id"],
        "redirect_uri": arrived[0].partition("?")[0],
        "code_verifier": nameless.kept["verifier"],
    }
    refused = httpx.post(f"{live.url}/oauth/token", data=again)
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")
    assert curl.list_tools(nameless.gateway_url, nameless.tokens["access_token"]).status == 401
