"""An administrator asks for a new token. Its owner, who needs no capability, can collect it only once."""

import pytest
from playwright.sync_api import Page, expect

from tests import curl, secrecy
from tests.browser import people, steps
from tests.browser.fixtures import Open
from tests.make import unique
from tests.workspace import PASSWORD, Serve

pytestmark = pytest.mark.full


def test_an_administrator_asks_and_the_owner_collects(live: Serve, page: Page, open_browser: Open) -> None:
    host, email = unique("bot"), people.join(live, unique("max"))
    issued = live.issue_token(host=host, gateway="quickstart", user=email)
    first, url, name = issued["token"], issued["gateway_url"], issued["name"]
    page.goto(f"{live.url}/settings/api-tokens?owner=all&q={host}")
    row = page.get_by_role("row").filter(has_text=name)

    expect(row.get_by_role("button", name="Regenerate")).to_have_count(0)
    row.get_by_role("button", name="Ask for a new token").click()
    dialog = page.get_by_role("alertdialog")
    expect(dialog).to_contain_text(f"{email} collects a new one after signing in")
    expect(dialog.get_by_role("radio", name="24 hours")).to_be_checked()
    dialog.get_by_role("radio", name="Not at all").check()
    dialog.get_by_role("button", name="OK").click()
    expect(row).to_contain_text("to be collected")
    assert curl.list_tools(url, first).status == 401

    own = open_browser().new_page()
    steps.sign_in(own, live.url, email, PASSWORD)
    notice = own.get_by_role("main").locator(".notice").filter(has_text="asked for a new token in place of your token")
    notice.get_by_role("button", name="Collect").click()
    own.get_by_role("alertdialog").get_by_role("button", name="OK").click()
    second = steps.token_dialog(own).get_by_label("API access token").input_value()
    steps.done(own)

    expect(notice).to_have_count(0)
    assert curl.list_tools(url, second).status == 200
    own.goto(f"{live.url}/settings/api-tokens")
    expect(own.get_by_role("row").filter(has_text=name)).to_contain_text(second[:12])
    page.reload()
    assert second not in page.content() + own.content()
    assert not secrecy.leaks(live)


def test_a_token_is_rolled_with_an_overlap_and_the_old_secret_ended(live: Serve, page: Page) -> None:
    host = unique("bot")
    issued = live.issue_token(host=host, gateway="quickstart")
    first, url, name = issued["token"], issued["gateway_url"], issued["name"]
    page.goto(f"{live.url}/settings/api-tokens?q={host}")
    row = page.get_by_role("row").filter(has_text=name)

    row.get_by_role("button", name="Regenerate").click()
    dialog = page.get_by_role("alertdialog")
    expect(dialog.get_by_role("radio", name="24 hours")).to_be_checked()
    dialog.get_by_role("button", name="OK").click()
    second = steps.token_dialog(page).get_by_label("API access token").input_value()
    expect(steps.token_dialog(page)).to_contain_text(first[:12])
    steps.done(page)
    expect(row).to_contain_text("old ends")
    assert [curl.list_tools(url, one).status for one in (first, second)] == [200, 200]

    row.get_by_role("link", name=name).click()
    page.get_by_role("dialog").get_by_text("End old token").click()
    page.get_by_role("alertdialog").get_by_role("button", name="OK").click()
    expect(row).not_to_contain_text("old ends")

    assert [curl.list_tools(url, one).status for one in (first, second)] == [401, 200]
