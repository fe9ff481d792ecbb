"""The Logs page in a real browser: live calls, filter values, the bar chart, and a call opened beside the list."""

import re
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from auditlog.filters import COLUMN_NAMES as COLUMNS
from tests import curl
from tests.browser.fixtures import Open
from tests.browser.looks import DESK, faults_of
from tests.eventually import PATIENCE, eventually
from tests.make import unique
from tests.workspace import OWNER, Serve

pytestmark = pytest.mark.full

SOON = 1000 * PATIENCE  # Milliseconds until a new call appears.


# Collect the addresses of all rows that were ever in the list.
COLLECT = """() => {
    window.collected = new Set();
    const rows = () => [...document.querySelectorAll("[data-calls] .row-link")];
    const collect = () => rows().forEach((link) => window.collected.add(link.pathname));
    new MutationObserver(collect).observe(document.body, {childList: true, subtree: true});
    collect();
}"""


def has_collected(page: Page, total: int) -> bool:
    return bool(page.evaluate("window.collected.size") == total)


def test_live_shows_calls_as_they_arrive_and_waits_while_somebody_reads(live: Serve, page: Page) -> None:
    host = unique("bot")
    issued = live.issue_token(host=host, gateway="quickstart")
    url, token = issued["gateway_url"], issued["token"]
    rows, tail = page.locator("[data-calls] tbody tr"), page.locator("#tail")

    page.goto(f"{live.url}/logs/?q=host is {host}")
    page.get_by_text("Live", exact=True).click()
    expect(page).to_have_url(f"{live.url}/logs/?live=1&q=host+is+{host}")
    curl.call_tool(url, token, "echo", text="first")
    expect(rows).to_have_count(1, timeout=SOON)
    expect(page.locator("tr[data-new]")).to_contain_text("echo")
    expect(page.locator("#call-count")).to_have_text("1 in last 24 hours")
    expect(page.locator(".legend")).to_contain_text("ok 1")
    expect(page.locator("#facet-host .count")).to_have_text("1")

    rows.first.hover()
    curl.call_tool(url, token, "add", a=1, b=2)
    expect(tail).to_contain_text("1 new", timeout=SOON)
    curl.call_tool(url, token, "add", a=1, b=2)
    expect(tail).to_contain_text("2 new", timeout=SOON)
    expect(tail).to_contain_text("Paused while you read.")
    expect(rows).to_have_count(1)
    page.get_by_role("heading", name="Logs").hover()
    expect(rows).to_have_count(3, timeout=SOON)
    expect(page.locator("tr[data-new]")).to_have_count(2)
    expect(rows.first).to_contain_text("add")
    expect(tail).to_have_text("", timeout=SOON)

    rows.first.hover()
    curl.call_tool(url, token, "echo", text="last")
    page.get_by_role("link", name="1 new").click(timeout=SOON)
    expect(rows).to_have_count(4)
    expect(page).to_have_url(f"{live.url}/logs/?live=1&q=host+is+{host}")


def test_live_misses_no_call_and_the_page_does_not_grow(live: Serve, page: Page) -> None:
    host = unique("bot")
    issued = live.issue_token(host=host, gateway="quickstart")
    rows = page.locator("[data-calls] tbody tr")
    page.goto(f"{live.url}/hosts/")
    page.get_by_role("link", name=host).click()
    page.get_by_role("link", name="Logs", exact=True).last.click()
    page.get_by_text("Live", exact=True).click()
    expect(page).to_have_url(re.compile("live=1"))
    page.evaluate(COLLECT)

    elements, beside = [], []
    for number in range(1, 6):
        for _ in range(20):
            curl.call_tool(issued["gateway_url"], issued["token"], "echo", text="x")
        eventually(partial(has_collected, page, 20 * number))
        elements.append(page.evaluate("document.querySelectorAll('*').length"))
        beside.append(page.evaluate("document.querySelector('#entries').parentNode.childNodes.length"))
    expect(rows).to_have_count(50)
    assert elements[-1] <= elements[-2] + 20  # Bars may be added, rows may not.
    assert beside[-1] == beside[0], "each answer left the space between its parts on the page"

    page.mouse.wheel(0, 2000)  # While the first row is out of view, new rows wait behind a link.
    for _ in range(12):
        curl.call_tool(issued["gateway_url"], issued["token"], "echo", text="x")
    page.get_by_role("link", name="12 new").click(timeout=SOON)
    expect(page.locator("tr[data-new]")).to_have_count(12)
    eventually(lambda: page.evaluate("scrollY") < 200)


def test_the_dashboard_shows_calls_as_they_arrive(live: Serve, page: Page) -> None:
    host = unique("bot")
    issued = live.issue_token(host=host, gateway="quickstart")
    curl.call_tool(issued["gateway_url"], issued["token"], "echo", text="before")
    page.goto(f"{live.url}/?range=1h")
    number = page.locator('[data-count="plots.calls"]')
    before = int(number.inner_text().replace(",", ""))
    curl.call_tool(issued["gateway_url"], issued["token"], "add", a=1, b=2)

    expect(page.locator("#traffic li[data-new]").first).to_contain_text(host, timeout=SOON)
    expect(page.locator("#traffic li[data-new]").first).to_contain_text("add")
    expect(number).not_to_have_text(f"{before:,}")


def test_keys_move_open_and_close_and_are_listed(live: Serve, page: Page) -> None:
    host = unique("bot")
    issued = live.issue_token(host=host, gateway="quickstart")
    for _ in range(3):
        curl.call_tool(issued["gateway_url"], issued["token"], "echo", text="x")

    page.goto(f"{live.url}/logs/?q=host is {host}")
    for key in "jjjk":
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    expect(page.locator("[data-calls] tbody tr").nth(1)).to_have_attribute("aria-selected", "true")
    page.keyboard.press("j")
    expect(page.locator("[data-calls] tbody tr").nth(2)).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Escape")
    expect(page.locator(".drawer")).to_have_count(0)
    page.keyboard.press("?")
    expect(page.locator("#keys:modal")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Keys")).to_be_hidden()
    page.get_by_role("button", name="Keys").click()
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()


def test_a_time_range_chosen_while_a_search_runs_is_kept(live: Serve, page: Page) -> None:
    page.goto(f"{live.url}/logs/")
    search, slow = page.get_by_role("searchbox", name="Filter expression"), list[Route]()

    def delay(route: Route) -> None:
        slow.append(route)

    page.route(lambda url: "q=" in url and "range=7d" not in url, delay)

    with page.expect_request(re.compile("q=tool")):
        search.fill("tool is echo")
    page.get_by_role("button", name="Time range").click()
    page.get_by_role("radio", name="Last 7 days").check()
    for route in slow:
        if not route.request.failure:
            route.continue_()

    expect(page).to_have_url(f"{live.url}/logs/?q=tool+is+echo&range=7d")
    expect(page.locator("#range-label")).to_have_text("Last 7 days")


def test_dragging_over_the_chart_chooses_a_time_range(live: Serve, page: Page) -> None:
    host = unique("bot")
    issued = live.issue_token(host=host, gateway="quickstart")
    curl.call_tool(issued["gateway_url"], issued["token"], "echo", text="x")

    page.goto(f"{live.url}/logs/?q=host is {host}&chart=latency")
    chart = page.locator(".brushable svg").bounding_box()
    assert chart is not None
    x, y, wide = chart["x"], chart["y"] + 10, chart["width"]
    page.mouse.move(x + 0.5 * wide, y)
    page.mouse.down()
    page.mouse.move(x + 0.7 * wide, y, steps=4)
    page.mouse.move(x + wide + 20, y, steps=4)
    page.mouse.up()

    expect(page.locator(".chip")).to_contain_text("Time")
    expect(page).to_have_url(re.compile("chart=latency&from=[^&]+&q="))
    expect(page.locator("[data-calls] tbody tr")).to_have_count(1)
    expect(page.locator("#from")).to_have_value(re.compile("T"))


def test_filters_bars_and_calls_are_addresses(live: Serve, page: Page) -> None:
    page.set_viewport_size({"width": 1680, "height": 900})  # Below 100rem, the filters open as an overlay.
    host = unique("bot")
    issued = live.issue_token(host=host, gateway="quickstart")
    for _ in range(2):
        curl.call_tool(issued["gateway_url"], issued["token"], "echo", text="x")
    curl.list_tools(issued["gateway_url"], issued["token"])

    page.goto(f"{live.url}/logs/?q=host is {host}")
    page.locator("summary", has_text="Tool").click()
    page.get_by_role("checkbox", name="echo", exact=True).check()
    expect(page.locator("tbody tr")).to_have_count(2)
    expect(page.locator(".chip")).to_have_text("Tool echo")
    expect(page.get_by_role("checkbox", name="echo", exact=True)).to_be_focused()
    page.get_by_role("checkbox", name="Not echo").check()
    expect(page.locator("tbody tr")).to_have_count(0)
    page.get_by_role("checkbox", name="Not echo").uncheck()
    expect(page.locator("tbody tr")).to_have_count(2)

    page.locator("tbody .row-link").first.click()
    expect(page.get_by_role("heading", name="Repeat the call")).to_be_visible()
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
    expect(page.locator(".chip").first).to_contain_text("Time")
    expect(page.locator("tbody tr")).to_have_count(2)

    page.get_by_role("searchbox").fill("duration is fast")
    expect(page.locator("#search-error")).to_contain_text("Position 13")


@pytest.mark.parametrize("with_script", [True, False])
def test_links_keep_all_filters_in_a_tab_of_their_own_and_without_script(
    live: Serve, open_browser: Open, signed_in: Path, with_script: bool
) -> None:
    host = unique("bot")
    issued = live.issue_token(host=host, gateway="quickstart")
    for _ in range(2):
        curl.call_tool(issued["gateway_url"], issued["token"], "echo", text="x")
    others = "&".join(f"not_tool=another-{n}-{unique('x')}" for n in range(6))
    query = f"{others}&q=host+is+{host}"
    page = open_browser(storage_state=signed_in, java_script_enabled=with_script).new_page()

    page.goto(f"{live.url}/logs/?{query}")
    row = page.locator("tbody .row-link").last
    with page.context.expect_page() as opened:
        row.click(modifiers=["ControlOrMeta"])
    expect(opened.value).to_have_url(re.compile(f"/logs/[0-9a-f-]{{36}}/.{re.escape(query)}$"))
    row.click()
    expect(page).to_have_url(re.compile(f"/logs/[0-9a-f-]{{36}}/.{re.escape(query)}$"))
    expect(page.locator(".drawer")).to_contain_text("Recorded")
    expect(page.locator("tbody tr")).to_have_count(2)
    page.locator(".chart a").last.click()
    expect(page).to_have_url(re.compile(r"/logs/\?.*from="))
    assert query in page.url
    expect(page.locator("tbody tr")).to_have_count(2)
    page.get_by_role("link", name="Remove filter: Tool is not another-0").click()
    expect(page.locator(".chip")).to_have_count(6)


WHOLE_ROWS = """rows => rows.map(row => row.getBoundingClientRect())
    .filter(box => box.top >= 0 && box.bottom <= innerHeight).length"""


def test_a_desk_of_1440_by_900_shows_20_calls_and_their_chart(live: Serve, page: Page) -> None:
    host = unique("bot")
    live.manage("shell", "-c", f"from tests import make\nfor _ in range(24): make.call(host_name={host!r})")
    page.set_viewport_size(DESK)

    for query in ("", f"?q=host is {host}", f"?q=host is {host}&chart=latency"):
        page.goto(f"{live.url}/logs/{query}")
        expect(page.locator(".brushable svg")).to_be_visible()
        assert page.locator("[data-calls] tbody tr").evaluate_all(WHOLE_ROWS) >= 20


HEADS = """heads => heads.filter(head => head.offsetWidth)
    .map(head => [head.textContent.trim(), head.offsetWidth, head.scrollWidth > head.clientWidth + 1])"""


@pytest.mark.parametrize(
    "chosen", ["", "?" + "&".join(f"columns={name}" for name in COLUMNS), "?columns=host&columns=error"]
)
def test_each_column_has_its_room_at_every_width_and_chosen_ones_are_all_there(
    live: Serve, page: Page, chosen: str
) -> None:
    live.manage("shell", "-c", "from tests import make\nmake.call(host_name='x', feature_name='tool')")
    for width in (800, 1280, 1440, 1660, 1728, 1920, 2200):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(f"{live.url}/logs/{chosen}")
        heads = {name: (room, cut) for name, room, cut in page.locator("[data-calls] thead th").evaluate_all(HEADS)}
        assert heads["Tool"][0] >= 140, (width, heads)
        assert not any(cut for _, cut in heads.values()), (width, heads)
        assert not chosen or len(heads) == 2 + chosen.count("columns=")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_views_of_long_names_leave_the_buttons_beside_them_their_room(live: Serve, page: Page) -> None:
    name = "Quickstart failures of four agents, " + unique("view")
    live.manage(
        "shell",
        "-c",
        "from accounts.models import SavedView, User\nfrom tests import make\n"
        f"owner = User.objects.get(email={OWNER!r})\n"
        f"for n in range(4): SavedView.objects.add(name=f'{{n}} {name}', query='outcome=ok', by=owner)\n"
        "make.call(host_name='x', feature_name='tool')",
    )
    page.goto(f"{live.url}/logs/?range=all")
    page.locator("tbody .row-link").first.click()
    expect(page.locator(".drawer")).to_be_visible()

    for width in (1280, 1440, 1680):
        page.set_viewport_size({"width": width, "height": 900})
        for button in ("Export", "Save view"):
            box = page.get_by_role("button", name=button, exact=True).first.bounding_box()
            assert box is not None
            assert box["height"] < 45
            assert box["x"] + box["width"] < width


def test_lists_of_many_filters_and_columns_are_accessible_in_every_look(live: Serve, page: Page) -> None:
    host = unique("bot")
    issued = live.issue_token(host=host, gateway="quickstart")
    for _ in range(3):
        curl.call_tool(issued["gateway_url"], issued["token"], "echo", text="x")
    columns = "&".join(f"columns={name}" for name in COLUMNS)
    filters = "&".join(f"not_tool=another-{n}-{unique('x')}" for n in range(8))

    lists = (f"/logs/?{filters}&{columns}", f"/logs/groups/?by=tool&{filters}")
    searches = ("/settings/api-tokens?owner=all&q=nothing", "/settings/api-tokens?owner=all&q=token")

    for path in (*lists, *searches):
        page.goto(f"{live.url}{path}")
        assert faults_of(page, path) == []
