"""The Logs page in a real browser: new calls by themselves, values of a filter, bars, a call beside the list (5.9)."""

import pytest
from playwright.sync_api import Page, expect

from tests import curl
from tests.eventually import PROMPT
from tests.make import unique
from tests.workspace import Serve

pytestmark = pytest.mark.xdist_group("browser")

SOON = 1000 * PROMPT  # Milliseconds until a call is seen.


def test_the_list_grows_by_itself_and_waits_while_one_points_at_it(live: Serve, page: Page) -> None:
    host = unique("bot")
    issued = live.issue_token(host=host, gateway="quickstart")
    url, token = issued["gateway_url"], issued["token"]
    rows = page.locator("tbody tr")

    page.goto(f"{live.url}/logs/?q=host is {host}")
    page.get_by_text("Live", exact=True).click()
    expect(page).to_have_url(f"{live.url}/logs/?live=1&q=host+is+{host}")
    curl.call_tool(url, token, "echo", text="first")
    expect(rows).to_have_count(1, timeout=SOON)

    rows.first.hover()
    curl.call_tool(url, token, "add", a=1, b=2)
    page.wait_for_timeout(1_300)  # One question and a bit: nothing may come.
    expect(rows).to_have_count(1)
    page.mouse.move(1, 1)
    expect(rows).to_have_count(2, timeout=SOON)
    expect(rows.first).to_contain_text("add")


def test_filters_bars_and_calls_are_addresses(live: Serve, page: Page) -> None:
    host = unique("bot")
    issued = live.issue_token(host=host, gateway="quickstart")
    for _ in range(2):
        curl.call_tool(issued["gateway_url"], issued["token"], "echo", text="x")
    curl.list_tools(issued["gateway_url"], issued["token"])

    page.goto(f"{live.url}/logs/?q=host is {host}")
    page.get_by_role("button", name="Tool").click()
    page.get_by_role("link", name="echo 2").click()
    expect(page.locator("tbody tr")).to_have_count(2)
    expect(page.locator("#label-tool")).to_have_text("Tool: echo")

    page.locator("tbody .row-link").first.click()
    expect(page.get_by_role("heading", name="The call again")).to_be_visible()
    assert "/mcp/quickstart" in page.locator("#curl-command").inner_text()
    expect(page.locator("tbody tr").first).to_have_attribute("aria-selected", "true")
    page.get_by_role("link", name="Older call").click()
    expect(page.locator("tbody tr").nth(1)).to_have_attribute("aria-selected", "true")
    expect(page.locator("tr[aria-selected]")).to_have_count(1)
    expect(page.get_by_role("link", name="Older call")).to_have_count(0)
    page.get_by_role("link", name="Newer call").click()
    expect(page.locator("tbody tr").first).to_have_attribute("aria-selected", "true")
    page.reload()
    expect(page.locator(".drawer")).to_contain_text("Recorded")
    page.get_by_role("link", name="Close").click()
    expect(page.locator(".drawer")).to_have_count(0)

    page.locator(".chart a").last.click()
    expect(page.locator(".chip")).to_contain_text("Time")
    expect(page.locator("tbody tr")).to_have_count(2)

    page.get_by_role("searchbox").fill("duration is fast")
    expect(page.locator("#search-error")).to_contain_text("Position 13")
