"""Journey J11: a password reset ends all access of the person, including apps, and no access of other people."""

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

APP = "Reset Desktop"
WARNING = "Resetting your password revokes all your API tokens and app connections."


def test_j11_a_password_reset_ends_apps_and_agents(
    live: Serve, page: Page, open_browser: Open, desktop: Desktop, tmp_path: Path
) -> None:
    email = people.join(live, "max-j11")
    browser = open_browser().new_page()
    claude = KeptApp(desktop, f"{live.url}/mcp/quickstart", tmp_path / "store.json", APP)
    claude.connects(lambda asked: people.allow(browser, asked, app=APP, email=email))
    agent = live.issue_token(host="Reset bot", gateway="quickstart", user=email)["token"]
    access = claude.tokens["access_token"]
    link = asked_for_a_link(open_browser().new_page(), live, email)
    assert statuses(claude, agent, access) == [200, 200]

    a_new_password(open_browser().new_page(), link)

    assert statuses(claude, agent, access) == [401, 401]
    told = {"client_id": claude.kept["client"]["client_id"], "refresh_token": claude.tokens["refresh_token"]}
    refreshed = httpx.post(f"{live.url}/oauth/token", data={"grant_type": "refresh_token", **told})
    assert (refreshed.status_code, refreshed.json()["error"]) == (400, "invalid_grant")
    browser.goto(f"{live.url}/")
    expect(browser.get_by_role("button", name="Sign in")).to_be_visible()
    page.goto(f"{live.url}/settings/mcp-connections?q=Reset+Desktop")
    expect(steps.row(page, APP, email)).to_contain_text("revoked")


def statuses(claude: KeptApp, *tokens: str) -> list[int]:
    return [curl.list_tools(claude.gateway_url, token).status for token in tokens]


def asked_for_a_link(browser: Page, live: Serve, email: str) -> str:
    """Return a reset link from the operator's command. Without a mail server, the page says to ask for one."""
    browser.goto(f"{live.url}/accounts/login/")
    browser.get_by_role("link", name="Forgot your password?").click()
    expect(browser.get_by_text("Ask an administrator for a reset link")).to_be_visible()
    link = rf"{re.escape(live.url)}/accounts/password/reset/key/\S+"
    return str(re.findall(link, live.manage("password_link", email))[-1])


def a_new_password(browser: Page, link: str) -> None:
    """Set the new password on the page, which warns of the consequences."""
    browser.goto(link)
    expect(browser.get_by_text(WARNING)).to_be_visible()
    for label in ("New password", "New password, again"):
        browser.get_by_label(label, exact=True).fill("another battery staple")
    browser.get_by_role("button", name="Set password").click()
    expect(browser.get_by_role("button", name="Set password")).to_be_hidden()
