"""Journey J8: regenerating a key ends old access tokens at once, and the app continues without a person."""

from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests import curl
from tests.browser import people, steps
from tests.browser.fixtures import Open
from tests.clients.apps import Desktop, KeptApp
from tests.eventually import eventually
from tests.workspace import OWNER, Serve

pytestmark = pytest.mark.full

APP = "Regenerated Desktop"
QUESTION = "Regenerate the API key for this connection? The old key will be deactivated immediately."


def has_been_used(page: Page) -> bool:
    """Return True if the page shows the first use of the connection, which is stored a moment after the call."""
    return steps.row(page, APP).get_by_text("just now").count() > 0


def test_j8_regenerate_a_key(live: Serve, page: Page, open_browser: Open, desktop: Desktop, tmp_path: Path) -> None:
    email = people.join(live, "max-j8")
    claude = KeptApp(desktop, f"{live.url}/mcp/quickstart", tmp_path / "store.json", APP)
    claude.connects(lambda asked: people.allow(open_browser().new_page(), asked, app=APP, email=email))
    eventually(lambda: page.goto(f"{live.url}/settings/mcp-connections?q=Regenerated") and has_been_used(page))

    regenerated(page, steps.row(page, APP))
    the_app_goes_on(claude)

    page.reload()
    expect(steps.row(page, APP)).to_contain_text("just now")
    events = live.rows(
        "SELECT actor_email FROM auditlog_event WHERE action = %s AND target_label LIKE %s",
        "connection.key_regenerated",
        f"{APP}%",
    )
    assert events == [{"actor_email": OWNER}]


def regenerated(page: Page, connection: Locator) -> None:
    """Check that Cancel changes nothing, and that OK changes the prefix and shows no secret."""
    before, cells = connection.locator("code").inner_text(), connection.get_by_role("cell").all_inner_texts()
    button, dialog = connection.get_by_role("button", name="Regenerate API key"), page.get_by_role("alertdialog")
    button.click()
    expect(dialog).to_contain_text(QUESTION)
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_be_hidden()
    assert connection.get_by_role("cell").all_inner_texts() == cells

    button.click()
    dialog.get_by_role("button", name="OK").click()

    expect(connection.locator("code")).not_to_have_text(before)
    after = connection.get_by_role("cell").all_inner_texts()
    prefix = connection.locator("code").inner_text()
    assert [text.replace(prefix, before) for text in after] == cells
    assert page.content().count("gwk_") == 1


def the_app_goes_on(claude: KeptApp) -> None:
    """Check that the old access token is refused, and that the app refreshes it without a browser."""
    old = claude.tokens["access_token"]
    refused = curl.list_tools(claude.gateway_url, old)
    assert refused.status == 401
    assert 'error="invalid_token"' in refused.headers["www-authenticate"]

    assert claude.goes_on()["text"] == "hello"

    assert claude.tokens["access_token"] != old
