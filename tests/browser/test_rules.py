"""The expression of a rule: names are completed while they are typed, and an error is marked in its line."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser.fixtures import Trouble
from tests.workspace import Serve

pytestmark = pytest.mark.full


def test_names_are_completed_by_keyboard_and_an_error_is_marked(live: Serve, page: Page, trouble: Trouble) -> None:
    trouble.expected.add("422")
    page.goto(f"{live.url}/rules/add/?from=expression")
    page.locator("#id_name").fill("Marked")
    page.locator("#id_text").fill("marked")
    field, names = page.locator("#id_when"), page.get_by_role("listbox", name="Names")

    field.press_sequentially("tool.d")
    expect(names.get_by_role("option")).to_have_count(1)
    page.keyboard.press("Enter")
    field.press_sequentially(" && person.")
    page.keyboard.press("ArrowDown")
    expect(names.get_by_role("option", selected=True)).to_contain_text("person.teams")
    page.keyboard.press("Escape")
    expect(names).to_be_hidden()

    expect(field).to_have_value("tool.destructive && person.")
    field.press_sequentially("teamz == ['x']")
    page.get_by_role("button", name="Create rule").click()
    expect(page.locator(".expression u")).to_have_text("person.teamz")
    expect(page.locator("#id_when_error")).to_contain_text("Did you mean person.teams?")
