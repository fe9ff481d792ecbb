"""Every page that links lead to, in light, in dark and on a phone: accessible, quiet, small."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag, urljoin, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, Page, Response

from tests import curl
from tests.browser import steps
from tests.browser.fixtures import Open, Trouble
from tests.workspace import ROOT, Serve

LARGEST = 60 * 1024
DESK = {"width": 1440, "height": 900}
PHONE = {"width": 380, "height": 800}
LOOKS = {
    "light": {"viewport": DESK, "color_scheme": "light", "reduced_motion": "reduce"},
    "dark": {"viewport": DESK, "color_scheme": "dark", "reduced_motion": "reduce"},
    "phone": {"viewport": PHONE, "color_scheme": "light", "reduced_motion": "reduce"},
}
# The same markup in other colours needs no other rule.
COLOUR_RULES = {"runOnly": ["color-contrast", "link-in-text-block"]}
# Nor does the same markup in another width, but for what moves, shrinks or scrolls there.
NARROW_RULES = {"runOnly": ["color-contrast", "target-size", "scrollable-region-focusable", "meta-viewport"]}
RULES = {"light": None, "dark": COLOUR_RULES, "phone": NARROW_RULES}
IDENTIFIER = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|(?<=/api/docs/)[a-z-]+")
NOT_PAGES = ("/static/", "/admin/", "/accounts/logout/", "/api/schema/")

ROWS = (ROOT / "tests" / "browser" / "rows.py").read_text()


@pytest.fixture(scope="module")
def lived_in(live: Serve) -> Serve:
    """The workspace after a while: each kind of row in each of its states, and calls of every outcome."""
    live.manage("shell", "--verbosity", "0", "-c", ROWS)
    issued = live.issue_token(host="Nightly report", gateway="quickstart")
    url, token = issued["gateway_url"], issued["token"]
    curl.list_tools(url, token)
    curl.call_tool(url, token, "echo", text="<b>not bold</b>")
    curl.call_tool(url, token, "fail")
    curl.call_tool(url, token, "no-such-tool")
    curl.list_tools(url.replace("quickstart", "work"), token)
    return live


@pytest.fixture(params=LOOKS)
def look(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def window(look: str, open_browser: Open, lived_in: Serve, signed_in: Path) -> BrowserContext:
    return open_browser(storage_state=signed_in, **LOOKS[look])


def test_every_page_is_accessible_quiet_and_small(window: BrowserContext, lived_in: Serve, look: str) -> None:
    page = window.new_page()

    faults = [fault for url in crawl(page, lived_in.url) for fault in faults_of(page, url, RULES[look])]

    assert not faults, "\n".join(faults)


def test_the_authorize_flow_is_accessible_at_each_step(window: BrowserContext, lived_in: Serve) -> None:
    page = window.new_page()
    steps.open_connections(page, lived_in.url, "Nightly report")
    flow = steps.start_connection(page)
    faults = faults_of(flow, "choose a gateway")
    steps.choose_gateway(flow, "Quickstart")
    faults += faults_of(flow, "token options")
    steps.generate(flow)
    faults += faults_of(flow, "the token, once")
    steps.done(flow)
    faults += faults_of(flow, "after the token")

    assert not faults, "\n".join(faults)


def test_dialogs_are_accessible(window: BrowserContext, lived_in: Serve) -> None:
    page = window.new_page()
    page.goto(f"{lived_in.url}/hosts/")
    steps.press(page, "Add API access token-based host")
    page.get_by_role("dialog").wait_for()

    assert faults_of(page, "add a host") == []


def test_pages_for_strangers_are_accessible(look: str, open_browser: Open, live: Serve, trouble: Trouble) -> None:
    trouble.expected = {"the server responded with a status of 404"}
    page = open_browser(**LOOKS[look]).new_page()

    faults = []
    for path in ("/accounts/login/", "/accounts/password/reset/", "/no/such/page/"):
        page.goto(live.url + path)
        faults += faults_of(page, path)

    assert not faults, "\n".join(faults)


def crawl(page: Page, start: str) -> Iterator[str]:
    """Open every page of the site that links lead to, one of each kind, and give its address."""
    waiting, kinds = [f"{start}/"], set[str]()
    while waiting:
        url = waiting.pop()
        if (kind := kind_of(url)) in kinds:
            continue
        kinds.add(kind)
        response = page.goto(url)
        assert response is not None
        if page.url != url and kind_of(page.url) in kinds:
            continue
        kinds.add(kind_of(page.url))
        yield check(response)
        hrefs = page.eval_on_selector_all("a[href]", "links => links.map(link => link.getAttribute('href'))")
        absolute = (urldefrag(urljoin(page.url, href)).url for href in hrefs)
        waiting += [link for link in absolute if link.startswith(f"{start}/") and is_page(link)]


def kind_of(url: str) -> str:
    """Pages that differ in an identifier or in the values of a query are of one kind."""
    parts = urlsplit(url)
    # Each bar of a chart leads to its moments, and each filter keeps the others: one after another will do.
    named = {pair.partition("=")[0] for pair in parts.query.split("&")} - {"from", "to", ""}
    query = next(iter(named)) if len(named) == 1 else "several" if named else ""
    return f"{IDENTIFIER.sub('*', parts.path)}?{query}"


def is_page(url: str) -> bool:
    """Files, the Django admin and downloads are looked at elsewhere."""
    path = urlsplit(url).path
    return not path.startswith(NOT_PAGES) and not path.endswith("/export/")


def check(response: Response) -> str:
    """The page's address; fails when it is no page or too large."""
    assert response.status == 200, f"{response.url}: {response.status}"
    assert len(response.body()) <= LARGEST, f"{response.url} has {len(response.body())} bytes of HTML"
    return response.url


def faults_of(page: Page, name: str, rules: dict[str, Any] | None = None) -> list[str]:
    """What axe finds on the page as it stands, and whether it is wider than the window."""
    violations: list[dict[str, Any]] = Axe().run(page, options=rules).response["violations"]
    faults = [f"{name}: {one['id']}: {[node['target'] for node in one['nodes']][:3]}" for one in violations]
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return faults + ([f"{name}: {wide} px wider than the window"] if wide > 0 else [])
