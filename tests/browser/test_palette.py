"""The palette by keys, by touch, and for who hears it."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.workspace import Serve

pytestmark = pytest.mark.xdist_group("browser")


def opened(live: Serve, page: Page) -> Page:
    page.goto(f"{live.url}/gateways/")
    page.get_by_label("Search gateways").focus()
    page.keyboard.press("Control+k")
    expect(page.locator("#found a").first).to_be_visible()
    return page


@pytest.mark.full
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


@pytest.mark.full
def test_what_is_marked_is_said_and_the_button_that_closes_opens_nothing(live: Serve, page: Page) -> None:
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
