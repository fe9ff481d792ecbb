"""Visual details that make a page look unfinished if they are wrong."""

import pytest
from playwright.sync_api import Page, expect

from tests import curl
from tests.browser.looks import PHONE
from tests.make import unique
from tests.workspace import Serve

pytestmark = pytest.mark.full


def test_log_shows_who_called_what_through_what_on_a_small_desk(live: Serve, page: Page) -> None:
    issued = live.issue_token(host=unique("bot"), gateway="quickstart")
    curl.call_tool(issued["gateway_url"], issued["token"], "echo", text="x")
    page.set_viewport_size({"width": 1280, "height": 900})

    page.goto(f"{live.url}/logs/")

    for name in ("Host", "User email", "Gateway", "Server", "Tool", "Outcome", "Duration"):
        expect(page.get_by_role("columnheader", name=name)).to_be_visible()


CLEAR = """
const rail = document.querySelector(".rail > ul"), current = [...rail.querySelectorAll("ul [aria-current]")].at(-1);
const faded = parseFloat(getComputedStyle(rail).paddingBottom);
return rail.scrollHeight > rail.clientHeight
    && current.getBoundingClientRect().bottom <= rail.getBoundingClientRect().bottom - faded;
"""


def test_current_item_of_a_long_rail_stands_clear_of_its_faded_end(live: Serve, page: Page) -> None:
    page.set_viewport_size({"width": 1440, "height": 900})

    page.goto(f"{live.url}/settings/sinks/")

    assert page.evaluate(f"() => {{ {CLEAR} }}")


PHONED = """
from accounts.models import User
from tests import make
make.call(
    method="tools/call", host_name="Nightly report", user_email="ana.rodriguez@example.com", gateway_name="Phoned",
    server_name="GitHub", feature_type="tool", feature_name="github__list_pull_requests", duration_ms=12345,
)
"""
TOPS = """row => [6, 7, 1, 2, 0].map(number => {
  const cell = row.children[number], {top, bottom} = cell.getBoundingClientRect();
  return {text: cell.textContent.trim(), middle: (top + bottom) / 2, cut: cell.scrollWidth > cell.clientWidth};
})"""


def test_log_on_a_phone_shows_tool_and_outcome_then_host_and_user_then_the_time(live: Serve, page: Page) -> None:
    live.manage("shell", "--verbosity", "0", "-c", PHONED)
    page.set_viewport_size(PHONE)
    page.goto(f"{live.url}/logs/?gateway=Phoned")

    tool, outcome, host, user, time = page.locator("tbody tr").first.evaluate(TOPS)

    assert [part["text"] for part in (tool, host, user)] == [
        "github__list_pull_requests", "Nightly report", "ana.rodriguez@example.com",
    ]  # fmt: skip
    assert not any(part["cut"] for part in (tool, outcome, host, user, time))
    assert abs(tool["middle"] - outcome["middle"]) < 4
    assert abs(host["middle"] - user["middle"]) < 2
    assert tool["middle"] + 10 < host["middle"] < time["middle"] - 10


def test_bar_of_picked_rows_is_one_line_on_a_phone(live: Serve, page: Page) -> None:
    live.issue_token(host=unique("bot"), gateway="quickstart")
    page.set_viewport_size(PHONE)
    page.goto(f"{live.url}/hosts/")

    page.locator("tbody .pick input").first.check()

    bar = page.locator("#bulk")
    expect(bar.get_by_role("button", name="Archive")).to_be_visible()
    box = bar.bounding_box()
    assert box is not None
    assert box["height"] < 60


def test_acts_of_the_tools_stand_beside_their_heading(live: Serve, page: Page) -> None:
    page.goto(f"{live.url}/tools/")

    acts, heading = (page.locator(f".page-header > .{name}").bounding_box() for name in ("actions", "headline"))

    assert acts is not None
    assert heading is not None
    assert abs(acts["y"] + acts["height"] / 2 - heading["y"] - heading["height"] / 2) < 12


def test_lifetimes_of_a_token_stand_in_one_row_and_the_bar_of_a_duration_below_its_digits(
    live: Serve, page: Page
) -> None:
    host = unique("bot")
    issued = live.issue_token(host=host, gateway="quickstart")
    curl.call_tool(issued["gateway_url"], issued["token"], "echo", text="x")
    page.set_viewport_size({"width": 1440, "height": 900})

    page.goto(f"{live.url}/settings/api-tokens?q={host}")
    page.locator("tbody .row-link").first.click()
    expect(page.locator(".presets label").first).to_be_visible()
    tops = page.locator(".presets label").evaluate_all("all => all.map(one => one.getBoundingClientRect().top)")
    assert len(tops) == 4
    assert len(set(tops)) == 1

    page.goto(f"{live.url}/logs/")
    beneath = page.locator("td[data-took]").first.evaluate(
        """cell => {
          const words = document.createRange(), style = getComputedStyle(cell), box = cell.getBoundingClientRect();
          words.selectNodeContents(cell);
          const thick = parseFloat(style.backgroundSize.split(" ")[1]);
          const top = parseFloat(style.backgroundPositionY) / 100 * (box.height - thick);
          return box.top + top - words.getBoundingClientRect().bottom;
        }"""
    )
    assert beneath >= 0


def test_a_changed_row_lights_up_to_its_last_column(live: Serve, page: Page) -> None:
    host = unique("bot")
    live.issue_token(host=host, gateway="quickstart")
    page.goto(f"{live.url}/hosts/?q={host}")
    page.emulate_media(reduced_motion="no-preference")

    page.get_by_role("switch").first.click()
    page.get_by_role("alertdialog").get_by_role("button", name="OK", exact=True).click()

    expect(page.locator("tr.changed")).to_be_visible()
    for part in ("tr.changed", "tr.changed [data-cell=acts]"):
        assert page.locator(part).evaluate("one => getComputedStyle(one).animationName") == "changed"
