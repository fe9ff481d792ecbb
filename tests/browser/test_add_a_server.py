"""Adding a server by its tile, from failed sign-ins to a logged call with the person's own credential."""

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests import curl, upstreams, workspace
from tests.asgi_server import App, Receive, Scope, Send, Upstream, answer
from tests.browser.fixtures import Trouble
from tests.issuers import Issuer
from tests.make import unique

pytestmark = pytest.mark.full

MAKE = """
from accounts.models import User
from tests import make

owner = User.objects.get(email="ana@example.com")
gateway = make.gateway(name={name!r}, slug={name!r})
print(make.token(make.connection(make.agent(by=owner, name={name!r}), gateway, owner)).secret)
"""


def asking(app: App) -> App:
    """Return this issuer with a page in front, on which the person presses Allow or Deny."""

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        query = parse_qs(scope.get("query_string", b"").decode())
        if scope["type"] != "http" or scope["path"] != "/authorize" or "allow" in query:
            await app(scope, receive, send)
            return
        denied = urlencode({"error": "access_denied", "state": query["state"][0]})
        links = f'<a href="?{scope["query_string"].decode()}&allow=1">Allow</a>'
        links += f' <a href="{query["redirect_uri"][0]}?{denied}">Deny</a>'
        page = f'<!doctype html><title>Issuer</title><link rel="icon" href="data:,">{links}'.replace(
            "&allow", "&amp;allow"
        )
        await answer(send, 200, page.encode(), headers=[(b"content-type", b"text/html")])

    return door


@pytest.fixture(scope="module")
def issuer() -> Iterator[Upstream]:
    with upstreams.running(asking(Issuer().app())) as upstream:
        yield upstream


@pytest.fixture
def tile(live: workspace.Serve, issuer: Upstream) -> str:
    """Add a tile for a local server that stands in for a well-known one; return the name of the tile."""
    name = unique("Forge")
    known = {"key": name, "name": name, "about": "Standing in", "kind": "code", "url": issuer.url, "auth": ["oauth"]}
    Path(live.settings["GATEWAY_WELL_KNOWN_SERVERS"]).write_text(json.dumps([known]))
    return name


class Clicks:
    """Presses labelled controls, and counts the clicks."""

    def __init__(self, page: Page) -> None:
        self.page, self.number = page, 0

    def press(self, label: str) -> None:
        button = self.page.get_by_role("button", name=label).or_(self.page.get_by_role("link", name=label, exact=True))
        button.locator("visible=true").first.click()
        self.number += 1

    def check(self, label: str) -> None:
        self.page.get_by_role("checkbox", name=label).check()
        self.number += 1


def begun(live: workspace.Serve, page: Page, tile: str) -> tuple[Clicks, str, str]:
    """Add the tile's server to a new gateway, and stop at the page that asks the person to authenticate.

    Return the counter of clicks, the gateway's name, and the secret of a token for the gateway.
    """
    name = unique("forge")
    secret = live.manage("shell", "-c", MAKE.format(name=name)).split()[-1]
    page.goto(f"{live.url}/servers/add/")
    clicks = Clicks(page)
    clicks.press(tile)
    clicks.check(name)
    page.locator("#add-form").get_by_role("button", name="Add a server").last.click()
    clicks.number += 1
    page.wait_for_url(f"{live.url}/settings/identities?*")
    return clicks, name, secret


def test_from_a_tile_to_a_logged_call_as_oneself_takes_six_clicks_at_most(
    live: workspace.Serve, page: Page, tile: str
) -> None:
    clicks, name, secret = begun(live, page, tile)

    clicks.press(f"Authenticate with {tile}")
    clicks.press("Allow")
    expect(page.locator("main")).to_contain_text("connected")
    url = f"{live.url}/mcp/{name}"
    (tool,) = (one["name"] for one in curl.list_tools(url, secret).json["result"]["tools"] if "whoami" in one["name"])
    called = curl.call_tool(url, secret, tool)

    assert clicks.number <= 6
    assert called.status == 200
    assert "Bearer" in called.text
    (row,) = live.rows("SELECT user_email, outcome FROM auditlog_call WHERE feature_name = %s", tool)
    assert (row["user_email"], row["outcome"]) == (workspace.OWNER, "ok")


def test_one_who_denies_leaves_and_comes_back_is_connected_in_the_end(
    live: workspace.Serve, page: Page, context: BrowserContext, tile: str, trouble: Trouble
) -> None:
    trouble.expected.add("access_denied")
    clicks, name, secret = begun(live, page, tile)
    url, here = f"{live.url}/mcp/{name}", page.url

    clicks.press(f"Authenticate with {tile}")  # The person denies.
    clicks.press("Deny")
    expect(page.locator("main")).to_contain_text(f"You did not sign in at {tile}.")
    page.goto(here)
    clicks.press(f"Authenticate with {tile}")  # The person closes the tab at the issuer.
    expect(page.get_by_role("link", name="Allow")).to_be_visible()
    page.close()
    again = context.new_page()
    again.goto(here)
    expect(again.locator("main")).to_contain_text("missing")
    clicks = Clicks(again)
    clicks.press(f"Authenticate with {tile}")  # The person comes back.
    clicks.press("Allow")
    expect(again.locator("main")).to_contain_text("connected")
    first = curl.list_tools(url, secret).json["result"]["tools"]
    clicks.press("Use another")  # The person chooses another account.
    again.get_by_role("dialog").get_by_role("button", name=f"Authenticate with {tile}").click()
    clicks.press("Allow")
    expect(again.locator("main")).to_contain_text("connected")

    assert {one["name"].rpartition("__")[2] for one in first} >= {"whoami"}
    assert curl.list_tools(url, secret).status == 200
    assert urlsplit(again.url).path == "/settings/identities"


def test_an_invalid_url_is_answered_by_the_page_and_not_by_the_browser(
    live: workspace.Serve, page: Page, trouble: Trouble
) -> None:
    trouble.expected.add("422")
    page.goto(f"{live.url}/servers/add/")
    for typed, words in {
        "npx -y @modelcontextprotocol/server-memory": "This is a command that starts a server",
        "mcp.example.com/mcp": "The URL must start with https://.",
        "localhost:3001/mcp": "A URL with http:// is allowed only",
    }.items():
        page.get_by_label("URL").fill(typed)
        page.get_by_role("button", name="Check").click()
        expect(page.get_by_text(words)).to_be_visible()
        expect(page.get_by_label("URL")).to_have_value(typed)
