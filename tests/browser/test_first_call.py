"""The page with a client's instructions and the dialog with a new token show the first call without a reload."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests import curl
from tests.browser import steps
from tests.workspace import Serve

pytestmark = pytest.mark.full


def test_the_page_that_connects_a_client_names_its_call_when_it_arrives(live: Serve, page: Page) -> None:
    issued = live.issue_token(host="Waited for", gateway="quickstart")
    page.goto(f"{live.url}/connect/client/?gateway=quickstart")
    page.get_by_role("radio", name="With a token").check(force=True)
    expect(page).to_have_url(re.compile("how=token"))  # Applies at once; with scripts there is no button.
    expect(page.get_by_role("button", name="Show")).to_have_count(0)
    page.get_by_role("navigation", name="Client").get_by_role("link", name="curl").click()
    expect(page.get_by_text("Waiting for your first call")).to_be_visible()

    curl.call_tool(issued["gateway_url"], issued["token"], "echo", text="hello")
    expect(page.get_by_role("status").get_by_text("Received: echo from Waited for")).to_be_visible()

    assert "/logs/" in str(page.get_by_role("link", name="See the call").get_attribute("href"))


def test_the_dialog_that_shows_a_token_waits_for_its_call_and_stays_open(live: Serve, page: Page) -> None:
    steps.add_host(page, live.url, "Waiting bot")
    flow = steps.add_connection(page, "Quickstart")
    minted = steps.copied(flow)

    curl.call_tool(minted.gateway_url, minted.token, "echo", text="hello")

    dialog = steps.token_dialog(flow)
    expect(dialog.get_by_text("Received: echo from Waiting bot")).to_be_visible()
    expect(dialog.get_by_role("link", name="See the call")).to_have_attribute("target", "_blank")
    steps.done(flow)
