"""Journey J7: revoking ends an app at once; authorising again creates a new connection."""

import re
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests import curl
from tests.browser import people, steps
from tests.browser.fixtures import Open
from tests.clients.apps import Desktop, KeptApp
from tests.workspace import Serve

pytestmark = pytest.mark.full

APP = "Revoked Desktop"
REVOKE = (
    "Revoke this MCP connection? The associated API key will be deactivated and the client will need to re-authorize."
)
PREFIX = re.compile(r"gwk_\w{8}")


def test_j7_revoke_401_and_authorise_again(
    live: Serve, page: Page, open_browser: Open, desktop: Desktop, tmp_path: Path
) -> None:
    email = people.join(live, "max-j7")
    browser = open_browser().new_page()
    claude = KeptApp(desktop, f"{live.url}/mcp/quickstart", tmp_path / "store.json", APP)
    claude.connects(lambda asked: people.allow(browser, asked, app=APP, email=email))

    first = an_administrator_revokes(page, live)
    dead_at_once(claude, live)
    old = claude.tokens
    claude.connects(lambda asked: people.allow(browser, asked, app=APP))
    refresh_is_dead(claude, live, old["refresh_token"])
    assert curl.list_tools(claude.gateway_url, old["access_token"]).status == 401
    a_new_row_beside_the_old(page, first)


def an_administrator_revokes(page: Page, live: Serve) -> str:
    """Revoke as an administrator, check the confirmation text, and return the prefix of the revoked key."""
    page.goto(f"{live.url}/settings/mcp-connections?q=Revoked")
    connection = steps.row(page, APP)
    prefix = connection.locator("code").inner_text()
    connection.get_by_role("button", name="Revoke connection").click()
    dialog = page.get_by_role("alertdialog")
    expect(dialog).to_contain_text(REVOKE)
    dialog.get_by_role("button", name="OK").click()
    expect(connection).to_contain_text("revoked")
    return prefix


def dead_at_once(claude: KeptApp, live: Serve) -> None:
    """Check that every worker refuses the next call."""
    for _ in range(4):
        refused = curl.list_tools(claude.gateway_url, claude.tokens["access_token"])
        assert refused.status == 401
        assert 'error="invalid_token"' in refused.headers["www-authenticate"]
    refresh_is_dead(claude, live, claude.tokens["refresh_token"])


def refresh_is_dead(claude: KeptApp, live: Serve, token: str) -> None:
    """Check that the refresh token is refused, before and after the app authorises again."""
    told = {"client_id": claude.kept["client"]["client_id"], "refresh_token": token}
    refreshed = httpx.post(f"{live.url}/oauth/token", data={"grant_type": "refresh_token", **told})
    assert (refreshed.status_code, refreshed.json()["error"]) == (400, "invalid_grant")


def a_new_row_beside_the_old(page: Page, first: str) -> None:
    """Check that the revoked row stays beside the new row and cannot be restored."""
    page.reload()
    rows = page.get_by_role("row").filter(has_text=APP)
    expect(rows).to_have_count(2)
    new, old = rows.nth(0), rows.nth(1)
    expect(new).to_contain_text("active")
    expect(new).to_contain_text(PREFIX)
    expect(new).not_to_contain_text(first)
    expect(old).to_contain_text(re.compile(r"Revoked ?[A-Z][a-z]{2} \d{1,2}, \d{4}"))
    expect(old.get_by_role("button")).to_have_count(0)
    expect(old.get_by_role("switch")).to_have_count(0)
