"""Everything works by keyboard: all controls are reachable, focus is visible, and dialogs trap and return the focus."""

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser import steps
from tests.eventually import eventually
from tests.make import unique
from tests.workspace import Serve

pytestmark = pytest.mark.full

PAGES = (
    "/",
    "/hosts/",
    "/gateways/",
    "/gateways/quickstart/servers/",
    "/gateways/quickstart/tools/",
    "/servers/",
    "/logs/",
    "/people/",
    "/people/roles/",
    "/settings/mcp-connections",
    "/settings/api-tokens",
    "/settings/identities",
    "/settings/admin-events/",
    "/settings/workspace",
    "/settings/profile",
    "/help/",
)
MOST_STEPS = 1000
STRIDE = 10  # Tab presses between two checks; after the end of a page, focus starts again at its top.

WATCH = """() => {
  const shows = one => one && (style => style.outlineStyle !== "none" && style.outlineWidth !== "0px"
    || style.boxShadow !== "none")(getComputedStyle(one));
  document.addEventListener("focusout", ({relatedTarget}) => { if (!relatedTarget) window.left++; });
  window.left = 0;
  document.addEventListener("focusin", ({target}) => {
    target.reached = true;
    target.shown = [target, target.parentElement, target.nextElementSibling, target.closest("label"),
      target.closest("tr"), target.querySelector("rect")].some(shows);
  });
}"""
MISSED = """() => {
  const can = "a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex='0']";
  const name = one => `${one.localName} ${(one.ariaLabel || one.innerText || one.name || one.id).trim().slice(0, 40)}`;
  const siblings = one => [...document.querySelectorAll(`input[type=radio][name="${one.name}"]`)];
  const reached = one => one.reached || one.type === "radio" && siblings(one).some(each => each.reached);
  const there = [...document.querySelectorAll(can)].filter(one =>
    one.tabIndex >= 0 && !one.disabled && one.checkVisibility({visibilityProperty: true}) && !one.closest("[inert]"));
  return {
    missed: there.filter(one => !reached(one)).map(name),
    unseen: there.filter(one => one.reached && !one.shown).map(name),
    walked: there.filter(reached).length,
  };
}"""
IN_DIALOG = "() => document.activeElement === document.body || !!document.activeElement.closest('dialog[open]')"


def focused(page: Page) -> str:
    """Return the text of the focused element."""
    return str(
        page.evaluate("() => (document.activeElement.ariaLabel || document.activeElement.innerText || '').trim()")
    )


def tab_to(page: Page, words: str) -> None:
    for _ in range(MOST_STEPS):
        page.keyboard.press("Tab")
        if words in focused(page):
            return
    raise AssertionError(f"Tab never came to “{words}”")


@pytest.mark.parametrize("path", PAGES)
def test_tab_comes_to_everything_and_shows_where_it_is(page: Page, live: Serve, path: str) -> None:
    found = walk(page, live.url + path)

    assert (found["missed"], found["unseen"]) == ([], [])
    assert found["walked"] > 5


def walk(page: Page, url: str) -> dict[str, Any]:
    """Press Tab until focus leaves the page; return the focused controls, and the controls that were missed."""
    page.goto(url)
    # From a control that the page focuses, the second lap begins at the top.
    laps = 1 if page.evaluate("() => document.activeElement === document.body") else 2
    page.evaluate(WATCH)
    for _ in range(MOST_STEPS // STRIDE):
        for _ in range(STRIDE):
            page.keyboard.press("Tab")
        if page.evaluate("() => window.left") >= laps:
            break
    return dict(page.evaluate(MISSED))


def test_the_first_tab_offers_to_skip_the_navigation(page: Page, live: Serve) -> None:
    page.goto(f"{live.url}/hosts/")

    page.keyboard.press("Tab")
    assert "Skip" in focused(page)
    assert page.evaluate("() => document.activeElement.getBoundingClientRect().top >= 0")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")

    assert page.evaluate("() => !!document.activeElement.closest('main')")


def test_a_dialog_keeps_focus_and_gives_it_back(page: Page, live: Serve) -> None:
    page.goto(f"{live.url}/hosts/")
    opener = "Add API access token-based host"
    tab_to(page, opener)
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name=opener)
    expect(dialog.get_by_label("Name")).to_be_focused()

    for _ in range(12):
        page.keyboard.press("Tab")
        assert page.evaluate(IN_DIALOG)
    page.keyboard.press("Escape")

    expect(dialog).to_be_hidden()
    eventually(lambda: focused(page) == opener)  # Focus returns a moment after the dialog closes.


def test_a_host_is_made_switched_off_and_on_without_a_mouse(page: Page, live: Serve) -> None:
    name = unique("Keyboard bot")
    page.goto(f"{live.url}/hosts/")
    tab_to(page, "Add API access token-based host")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_label("Name")).to_be_focused()
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name=name, level=1)).to_be_visible()
    page.goto(f"{live.url}/hosts/?q={name}")
    switch = steps.row(page, name).get_by_role("switch")
    switch.focus()

    page.keyboard.press("Space")
    question = page.get_by_role("alertdialog")
    cancel = question.get_by_role("button", name="Cancel").or_(question.get_by_role("link", name="Cancel"))
    expect(cancel).to_be_focused()
    page.keyboard.press("Escape")
    expect(question).to_be_hidden()
    expect(switch).to_be_checked()
    expect(switch).to_be_focused()

    page.keyboard.press("Space")
    expect(cancel).to_be_focused()
    question.get_by_role("button", name="OK", exact=True).focus()
    page.keyboard.press("Enter")
    expect(steps.row(page, name).get_by_role("switch")).not_to_be_checked()
    expect(steps.row(page, name).get_by_role("switch")).to_be_focused()
    page.keyboard.press("Space")
    expect(steps.row(page, name).get_by_role("switch")).to_be_checked()
