"""On a desktop, lists cut off no status; on a phone, lists show that they scroll sideways."""

from pathlib import Path

import pytest
from playwright.sync_api import Page

from auditlog.outcomes import REASONS, Step
from tests.browser.fixtures import Open, fill
from tests.browser.looks import DESK
from tests.workspace import Serve
from ui.states import WORDS
from ui.templatetags.ui import badge

pytestmark = pytest.mark.full

REVOKED = '<span class="muted"><time title="whenever">Nov 22, 2026</time></span>'
SHORT = [f"blocked: {reason.short}" for reason in REASONS.values() if reason.short]


def badges(*words: str) -> list[str]:
    return [badge(one.partition(":")[0], one) for one in words]


def ends() -> list[str]:
    """Return the log's outcome badges as HTML: one for each reason of a failure, and one for a protocol error."""
    said = []
    for name, reason in REASONS.items():
        outcome = {Step.TOKEN: "unauthorized", Step.USER: "unauthorized", Step.UPSTREAM: "upstream error"}
        said.append(f"{outcome.get(reason.step, 'denied')}: {name.replace('_', ' ')}")
    return badges(*said, "protocol error: unknown tool")


# For each list: the columns with states, and their longest states.
SAID = {
    "/settings/mcp-connections?type=all": {
        "Status": badges("needs attention", *SHORT),
        "Actions": [REVOKED],
    },
    "/gateways/work/connections/": {"Status": badges("needs attention", *SHORT), "Actions": [REVOKED]},
    "/settings/api-tokens": {
        "Status": [
            f"{badge('active')} <small>old ends <time>23:59 UTC</time></small>",
            *badges(*SHORT, *WORDS["token"].values()),
        ],
        "Actions": [REVOKED],
    },
    "/hosts/": {"Status": badges(*WORDS["host"].values())},
    "/people/": {"Status": badges("provisioned", "deactivated", *WORDS["user"].values())},
    "/settings/identities": {"Status": badges(*WORDS["identity"].values())},
    "/servers/github/gateways/": {"Status": badges("server disabled", "gateway disabled", "disabled here")},
    "/logs/?range=all": {"Outcome": ends()},
}
CUT = """([column, html]) => {
  const heads = [...document.querySelectorAll("main .table thead th")];
  const at = heads.findIndex(head => head.textContent.trim() === column);
  const cell = document.querySelector("main .table tbody tr").children[at], before = cell.innerHTML;
  cell.innerHTML = html;
  const cut = [cell, ...cell.querySelectorAll("*")].some(one => one.scrollWidth > one.clientWidth && one.clientWidth);
  cell.innerHTML = before;
  return cut;
}"""


@pytest.fixture(scope="module")
def lived_in(live: Serve) -> Serve:
    fill(live)
    live.manage("shell", "--verbosity", "0", "-c", "from tests import make; make.call(host_name='CI bot')")
    return live


@pytest.fixture
def page(open_browser: Open, lived_in: Serve, signed_in: Path) -> Page:
    return open_browser(storage_state=signed_in, viewport=DESK, reduced_motion="reduce").new_page()


@pytest.mark.parametrize("path", SAID)
def test_no_state_of_a_list_is_cut_on_a_desk(page: Page, lived_in: Serve, path: str) -> None:
    page.goto(lived_in.url + path)

    asked = [(column, html) for column, said in SAID[path].items() for html in said]
    assert [html for column, html in asked if page.evaluate(CUT, [column, html])] == []


# For each list: a window width, and the columns shown at that width.
KEPT = [
    ("/settings/mcp-connections?type=all", 1280, "Client name, Status, User email, Gateway, Last used"),
    ("/settings/mcp-connections?type=all", 768, "Client name, Status, User email, Gateway, Last used"),
    ("/settings/api-tokens", 1280, "Name, Prefix, Host, Gateway, Servers, Expiration date, Last used date, Status"),
    ("/settings/api-tokens", 768, "Name, Prefix, Host, Expiration date, Status"),
    ("/logs/?range=all", 1280, "Created at, Host, User email, Gateway, Server, Tool, Outcome, Duration"),
    ("/logs/?range=all", 768, "Created at, Host, User email, Tool, Outcome, Duration"),
    ("/gateways/", 768, "Name, Gateway URL, Enabled"),
    ("/servers/", 768, "Name, URL, Health"),
    ("/people/", 768, "Name, E-mail, Status"),
    ("/tools/", 768, "Tool, Server, State"),
]
SHOWN = """heads => heads.filter(head => head.checkVisibility() && head.getBoundingClientRect().width > 16)
  .map(head => head.innerText.trim())"""


@pytest.mark.parametrize(("path", "width", "columns"), KEPT)
def test_columns_that_identify_a_row_stay(page: Page, lived_in: Serve, path: str, width: int, columns: str) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(lived_in.url + path)

    shown = page.locator("main .table thead th").evaluate_all(SHOWN)
    assert [name for name in shown if name in columns.split(", ")] == columns.split(", ")


@pytest.mark.parametrize("path", ["/hosts/", "/settings/api-tokens", "/servers/", "/people/"])
def test_the_menus_of_a_list_stay_beside_its_search_on_a_small_laptop(page: Page, lived_in: Serve, path: str) -> None:
    page.set_viewport_size({"width": 1024, "height": 900})
    page.goto(lived_in.url + path)

    bar = page.get_by_role("search")
    export = bar.get_by_role("button", name="Export", exact=True).bounding_box()
    search = bar.get_by_role("searchbox").bounding_box()
    assert export is not None
    assert search is not None
    assert abs(export["y"] + export["height"] / 2 - search["y"] - search["height"] / 2) < 1


def test_buttons_beside_or_below_a_headline_leave_it_room(page: Page, lived_in: Serve) -> None:
    for width in (1024, 768, 600):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(f"{lived_in.url}/gateways/work/")

        headline = page.locator(".page-header > .headline").bounding_box()
        buttons = page.locator(".page-header > .actions").bounding_box()
        assert headline is not None
        assert buttons is not None
        below = buttons["y"] - headline["y"] - headline["height"]
        beside = buttons["x"] - headline["x"] - headline["width"]
        assert max(below, beside) >= 8, width


BESIDE = """list => {
  const {left, right} = list.getBoundingClientRect(), box = document.activeElement.getBoundingClientRect();
  return {scrolls: list.scrollWidth > list.clientWidth, sign: getComputedStyle(list).backgroundAttachment,
    seen: box.left >= left - 1 && box.right <= right + 1};
}"""


@pytest.mark.parametrize(("path", "name"), [("/gateways/work/", "Work"), ("/settings/api-tokens", "Status")])
def test_sideways_scrolling_on_a_phone_is_visible_and_follows_focus(
    page: Page, lived_in: Serve, path: str, name: str
) -> None:
    page.set_viewport_size({"width": 390, "height": 900})
    page.goto(lived_in.url + path)
    parts = page.get_by_role("navigation", name=name, exact=True)

    for link in parts.get_by_role("link").all():
        link.focus()
        told = parts.evaluate(BESIDE)
        assert told["scrolls"]
        assert told["seen"]
        assert told["sign"] == "local, local, scroll, scroll"


def test_the_bar_of_the_log_keeps_its_rows_beside_an_open_call(page: Page, lived_in: Serve) -> None:
    page.goto(f"{lived_in.url}/logs/?range=all")
    page.locator("tbody .row-link").first.click()
    page.locator(".drawer").wait_for()

    for bar, rows in (("#log .filters", 1), (".page-header > .actions", 1)):
        tops = page.locator(f"{bar} > :is(.button, .icon-button, .search):visible").evaluate_all(
            """all => {
              const boxes = all.map(one => one.getBoundingClientRect());
              return new Set(boxes.map(({top, bottom}) => Math.round((top + bottom) / 2))).size;
            }"""
        )
        assert tops == rows, bar
    page.set_viewport_size({"width": 1024, "height": 900})
    left = page.locator(".drawer").evaluate("drawer => drawer.getBoundingClientRect().left")
    assert left == page.locator("main").evaluate("main => main.getBoundingClientRect().left"), (
        "it covers all or nothing"
    )
