"""Every page that links lead to, in light, in dark and on a phone: accessible, without errors, small.

`make test` fetches each page and one in five of its addresses with a query, and renders one in 36, in one of the three
looks.
"""

import gzip
import html
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urldefrag, urljoin

import pytest
from playwright.sync_api import APIResponse, Browser, BrowserContext, Page, Response

from tests import curl, secrecy, workspace
from tests.browser import steps
from tests.browser.fixtures import Open, Trouble, cookies_of_owner, fill
from tests.browser.links import LINK, is_page, kind_of
from tests.browser.looks import LOOKS, PHONE, faults_of
from tests.cases import full
from tests.workspace import Serve

# One worker runs these, and groups come before single tests: the longest test of all is never the last.
pytestmark = pytest.mark.xdist_group("pages")

LARGEST = 30 * 1024  # Bytes on the wire.
SHOWN = 36  # One in so many pages is, in `make test`,
ASKED = 5  # where one in so many addresses with a query is opened.


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """A workspace of this module only: the size of a page depends on the names in it."""
    served = workspace.new(tmp_path_factory.mktemp("pages"), "pages")
    with secrecy.keeping_secrets(served):
        yield served


@pytest.fixture(scope="module")
def signed_in(browser: Browser, live: Serve, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cookies_of_owner(browser, live, tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def lived_in(live: Serve) -> Serve:
    """The workspace after some use: each kind of row in each state, and calls of every outcome."""
    fill(live)
    issued = live.issue_token(host="Nightly report", gateway="quickstart")
    url, token = issued["gateway_url"], issued["token"]
    curl.list_tools(url, token)
    curl.call_tool(url, token, "echo", text="<b>not bold</b>")
    curl.call_tool(url, token, "fail")
    curl.call_tool(url, token, "no-such-tool")
    curl.list_tools(url.replace("quickstart", "work"), token)
    return live


@pytest.fixture
def page(open_browser: Open, lived_in: Serve, signed_in: Path) -> Page:
    """The owner's page on a phone; journeys test the desktop."""
    return phone(open_browser, storage_state=signed_in).new_page()


def phone(open_browser: Open, **options: Path) -> BrowserContext:
    return open_browser(viewport=PHONE, reduced_motion="reduce", **options)


@pytest.mark.parametrize("all_looks", [False, full(True)])
def test_every_page_is_accessible_quiet_and_small(page: Page, lived_in: Serve, all_looks: bool) -> None:
    looks, one_in = [*LOOKS], 1 if all_looks else SHOWN
    shown, faults = 0, []
    for shown, url in enumerate(crawl(page, lived_in.url, one_in), 1):
        first = shown % len(LOOKS)
        faults += faults_of(page, url, looks if all_looks else looks[first : first + 1])

    assert shown > 2
    assert not faults, "\n".join(faults)


@pytest.mark.full
def test_the_authorize_flow_is_accessible_at_each_step(page: Page, lived_in: Serve) -> None:
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


@pytest.mark.full
def test_dialogs_are_accessible(page: Page, lived_in: Serve) -> None:
    page.goto(f"{lived_in.url}/hosts/")
    steps.press(page, "Add API access token-based host")
    page.get_by_role("dialog").wait_for()

    assert faults_of(page, "add a host") == []


def test_pages_for_strangers_are_accessible(open_browser: Open, live: Serve, trouble: Trouble) -> None:
    trouble.expected = {"the server responded with a status of 404"}
    page = phone(open_browser).new_page()

    faults = []
    for path in ("/accounts/login/", "/accounts/password/reset/", "/no/such/page/"):
        page.goto(live.url + path)
        faults += faults_of(page, path)

    assert not faults, "\n".join(faults)


def crawl(page: Page, start: str, one_in: int) -> Iterator[str]:
    """Open one page of each kind that links lead to, and yield its address; others are only fetched."""
    waiting, kinds, turn, asked = [f"{start}/"], set[str](), 0, 0
    while waiting:
        url = waiting.pop()
        if (kind := kind_of(url)) in kinds:
            continue
        kinds.add(kind)
        if one_in > 1 and not kind.endswith("?"):
            asked += 1
            if asked % ASKED:
                continue
        turn += 1
        shown = turn % one_in == 0
        response = page.goto(url) if shown else page.request.get(url)
        assert response is not None
        here = page.url if shown else response.url
        if here != url and kind_of(here) in kinds:
            continue
        kinds.add(kind_of(here))
        check(response)
        if shown:
            yield here
            hrefs = page.eval_on_selector_all("a[href]", "links => links.map(link => link.getAttribute('href'))")
        else:
            hrefs = [html.unescape(href) for href in LINK.findall(response.text())]
        absolute = (urldefrag(urljoin(here, href)).url for href in hrefs)
        waiting += [link for link in absolute if link.startswith(f"{start}/") and is_page(link)]


def check(response: Response | APIResponse) -> None:
    """Fail if it is no page or too large."""
    assert response.status == 200, f"{response.url}: {response.status}"
    size = len(gzip.compress(response.body()))
    assert size <= LARGEST, f"{response.url} has {size} bytes of compressed HTML"
