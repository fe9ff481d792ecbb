"""The palette by keyboard, by touch, and with a screen reader."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.workspace import Serve

pytestmark = pytest.mark.full


def opened(live: Serve, page: Page) -> Page:
    page.goto(f"{live.url}/gateways/")
    page.get_by_label("Search gateways").focus()
    page.keyboard.press("Control+k")
    expect(page.locator("#found a").first).to_be_visible()
    return page


@pytest.mark.parametrize("by", ["Escape", "Close", "Control+k"])
def test_it_closes_at_once_gives_the_focus_back_and_forgets_what_was_typed(by: str, live: Serve, page: Page) -> None:
    palette = opened(live, page).get_by_role("dialog", name="Search or jump to")
    field = page.get_by_role("searchbox", name="Search anything")
    field.fill("quick")
    expect(page.locator("#found").get_by_role("link", name=re.compile("^Quickstart")).first).to_be_visible()

    if by == "Close":
        palette.get_by_role("button", name="Close").click()
    else:
        page.keyboard.press(by)

    expect(palette).to_be_hidden()
    expect(page.get_by_label("Search gateways")).to_be_focused()
    page.keyboard.press("Control+k")
    expect(field).to_have_value("")
    expect(page.locator("#found").get_by_role("link", name="Dashboard")).to_be_visible()


def test_enter_opens_the_first_thing_that_was_found_for_what_is_typed_not_for_what_was(live: Serve, page: Page) -> None:
    opened(live, page)
    page.get_by_role("searchbox", name="Search anything").fill("admin events")
    page.keyboard.press("Enter")

    expect(page.get_by_role("heading", level=1)).to_have_text("Admin events")
    assert "/settings/admin-events/" in page.url


def test_the_selection_is_shown_and_the_closing_button_opens_nothing(live: Serve, page: Page) -> None:
    palette = opened(live, page).get_by_role("dialog", name="Search or jump to")
    said = palette.get_by_role("status")

    page.keyboard.press("ArrowDown")
    expect(said).to_have_text(re.compile(r"\w"))
    marked = palette.locator("[data-active]").inner_text()
    assert marked.split()[0] in said.inner_text()

    palette.get_by_role("button", name="Close").focus()
    page.keyboard.press("Enter")
    expect(palette).to_be_hidden()
    assert page.url.endswith("/gateways/")


def test_g_and_a_letter_goes_to_a_page_and_a_question_mark_lists_the_keys_but_not_while_one_writes(
    live: Serve, page: Page
) -> None:
    page.goto(f"{live.url}/gateways/")
    page.get_by_label("Search gateways").focus()
    page.keyboard.type("gl?")
    expect(page.get_by_label("Search gateways")).to_have_value("gl?")
    assert page.url.startswith(f"{live.url}/gateways/")

    page.goto(f"{live.url}/gateways/")
    page.keyboard.press("?")
    keys = page.get_by_role("dialog", name="Keys")
    expect(keys.get_by_role("link", name="Logs")).to_be_visible()
    expect(page.locator("#keys:modal")).to_be_visible()  # Shown by htmx; a script makes it modal a moment later.
    page.keyboard.press("Escape")
    expect(keys).to_be_hidden()
    page.keyboard.type("gl")

    expect(page.get_by_role("heading", level=1)).to_have_text("Logs")


def test_help_is_found_by_a_word_of_the_trade_and_read_there(live: Serve, page: Page) -> None:
    opened(live, page)
    page.get_by_role("searchbox", name="Search anything").fill("kill switch")
    page.locator("#found").get_by_role("link", name="Emergency stop").click()

    expect(page.get_by_role("heading", level=1)).to_have_text("Emergency stop")
    page.get_by_role("searchbox", name="Search help").fill("siem")
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="Send the logs to a SIEM").first).to_be_visible()


def test_it_stays_open_when_typing_goes_on_before_an_answer_came(live: Serve, page: Page) -> None:
    page.goto(f"{live.url}/")
    page.route(lambda url: "q=approv" in url and "approval" not in url, lambda _: None)  # It is never answered.

    page.keyboard.press("Control+k")
    with page.expect_request(re.compile("q=approv")):
        page.keyboard.type("approv")
    page.keyboard.type("als")

    expect(page.locator("#found").get_by_role("link", name=re.compile("^Approvals"))).to_be_visible()
    expect(page.locator("#palette")).to_be_visible()
