"""The page of a rule: its buttons, and the field of the expression, which completes names and marks errors."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser.fixtures import Trouble
from tests.make import unique
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


def test_each_button_of_the_page_of_a_rule_does_what_it_says(live: Serve, page: Page) -> None:
    names = [unique("Buttons") for _ in range(2)]
    for name in names:
        page.goto(f"{live.url}/rules/add/")
        page.locator("#id_name").fill(name)
        page.locator("[name=effect][value=refuse]").check()
        page.get_by_role("button", name="Create rule").click()
        expect(page.get_by_role("heading", name=name, level=1)).to_be_visible()
    address, asked, toast = page.url, page.get_by_role("alertdialog"), page.locator(".toast")

    def places() -> list[str]:
        return [
            row["name"]
            for row in live.rows("SELECT name FROM rules_rule WHERE name = ANY(%s) ORDER BY position", names)
        ]

    for button, after in (("Move up", names[::-1]), ("Move down", names)):
        page.get_by_role("button", name=button, exact=True).click()
        expect(toast).to_contain_text(f"{names[1]} moved")
        assert places() == after
        page.goto(address)

    page.get_by_role("button", name="Turn on", exact=True).click()
    asked.get_by_role("button", name="Cancel").click()
    expect(asked).to_be_hidden()
    for act, undo in (("Turn on", "Only watch"), ("Only watch", "Turn on")):
        page.get_by_role("button", name=act, exact=True).click()
        if act == "Turn on":
            asked.get_by_role("button", name="Turn on").click()
        expect(page.get_by_role("button", name=undo, exact=True)).to_be_visible()
        assert page.url == address
    toast.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("button", name="Only watch", exact=True)).to_be_visible()

    page.get_by_role("button", name="Remove", exact=True).click()
    asked.get_by_role("button", name="OK", exact=True).click()
    expect(toast).to_contain_text("Rule removed")
    assert places() == names[:1]
