"""Every linked page, in light, in dark and on a phone: accessible, without errors, and small.

If the addresses of several pages differ only in the query, the pages have the same parts. Then only the first page is
checked in all three looks, and the others in light only.
"""

import gzip
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urldefrag, urljoin

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Response

from tests import curl, secrecy, workspace
from tests.browser import steps
from tests.browser.fixtures import Open, cookies_of_owner, fill
from tests.browser.links import is_page, kind_of, path_of
from tests.browser.looks import LOOKS, PHONE, faults_of
from tests.workspace import Serve

pytestmark = pytest.mark.full

LARGEST = 30 * 1024  # Maximum compressed size in bytes.


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """A workspace of this module only, because the size of a page depends on the names on the page."""
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
    """A page on a phone, with the owner signed in; journeys test the desktop."""
    return phone(open_browser, storage_state=signed_in).new_page()


def phone(open_browser: Open, **options: Path) -> BrowserContext:
    return open_browser(viewport=PHONE, reduced_motion="reduce", **options)


def test_every_page_is_accessible_quiet_and_small(page: Page, lived_in: Serve) -> None:
    paths, faults = set[str](), []
    for url in crawl(page, lived_in.url):
        path = path_of(url)
        faults += faults_of(page, url, ("light",) if path in paths else LOOKS)
        paths.add(path)

    assert len(paths) > 50
    assert not faults, "\n".join(faults)


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


def test_dialogs_are_accessible(page: Page, lived_in: Serve) -> None:
    page.goto(f"{lived_in.url}/hosts/")
    steps.press(page, "Add API access token-based host")
    page.get_by_role("dialog").wait_for()

    assert faults_of(page, "add a host") == []


def crawl(page: Page, start: str) -> Iterator[str]:
    """Open one page of each kind by following links, and yield its address."""
    waiting, kinds = [f"{start}/"], set[str]()
    while waiting:
        url = waiting.pop()
        if kind_of(url) in kinds:
            continue
        kinds.add(kind_of(url))
        response = page.goto(url)
        assert response is not None
        if page.url != url and kind_of(page.url) in kinds:
            continue
        kinds.add(kind_of(page.url))
        check(response)
        yield page.url
        hrefs = page.eval_on_selector_all(
            "a[href]:not([download])", "links => links.map(link => link.getAttribute('href'))"
        )
        absolute = (urldefrag(urljoin(page.url, href)).url for href in hrefs)
        waiting += [link for link in absolute if link.startswith(f"{start}/") and is_page(link)]


def check(response: Response) -> None:
    """Fail if the response is an error or too large."""
    assert response.status == 200, f"{response.url}: {response.status}"
    size = len(gzip.compress(response.body()))
    assert size <= LARGEST, f"{response.url} has {size} bytes of compressed HTML"
