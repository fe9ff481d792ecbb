"""Regenerating in a real browser: the secret is shown once, and the row is updated."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests import curl
from tests.browser import steps
from tests.make import unique
from tests.workspace import Serve

pytestmark = pytest.mark.full


def regenerate(page: Page, name: str, button: str) -> str:
    """Regenerate the token of this row, close the dialog, and return the new secret."""
    row = page.get_by_role("row").filter(has_text=name)
    row.get_by_role("button", name=button).first.click()
    page.get_by_role("alertdialog").get_by_role("radio", name="Not at all").check()
    page.get_by_role("alertdialog").get_by_role("button", name="OK").click()
    secret = steps.token_dialog(page).get_by_label("API access token").input_value()
    steps.done(page)
    return secret


def test_the_secret_is_shown_once_and_its_row_changes_beside_it(live: Serve, page: Page) -> None:
    host = unique("bot")
    issued = live.issue_token(host=host, gateway="quickstart")
    first, url = issued["token"], issued["gateway_url"]

    page.goto(f"{live.url}/settings/api-tokens?q={host}")
    second = regenerate(page, issued["name"], "Regenerate")
    expect(page.get_by_role("row").filter(has_text=issued["name"])).to_contain_text(second[:12])

    steps.open_connections(page, live.url, host)
    other = page.context.new_page()
    steps.open_connections(other, live.url, host)
    page.bring_to_front()  # Presses in a background tab would be slow.
    third = regenerate(page, issued["name"], f"Regenerate token: {issued['name']}")
    expect(page.locator("#connections")).to_contain_text(third[:12])
    expect(other.locator("#connections")).to_contain_text(third[:12])  # Updated without a reload.
    expect(page.locator("#connections")).not_to_contain_text(second[:12])

    assert len({first, second, third}) == 3
    assert not re.search(f"{second}|{third}", page.content())
    assert [curl.list_tools(url, token).status for token in (first, second, third)] == [401, 401, 200]


def test_the_question_follows_how_long_the_old_secret_works_on(live: Serve, page: Page) -> None:
    issued = live.issue_token(host=unique("bot"), gateway="quickstart")
    page.goto(f"{live.url}/settings/api-tokens?q={issued['name']}")
    page.get_by_role("row").filter(has_text=issued["name"]).get_by_role("button", name="Regenerate").click()
    dialog = page.get_by_role("alertdialog")
    at_once = dialog.get_by_text("The old token stops working immediately.")
    later = dialog.get_by_text("The old token keeps working for the time chosen below")

    expect(dialog.get_by_role("radio", name="24 hours")).to_be_checked()
    expect(at_once).to_be_hidden()
    expect(later).to_be_visible()
    expect(dialog).not_to_have_accessible_description(re.compile("immediately"))
    expect(dialog).to_have_accessible_description(re.compile("The old token keeps working for the time chosen below"))
    dialog.get_by_role("radio", name="Not at all").check()
    expect(at_once).to_be_visible()
