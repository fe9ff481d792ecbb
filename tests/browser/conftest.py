"""One browser for all tests of this folder, with the owner signed in once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from tests import workspace
from tests.browser.fixtures import Open, chromium, cookies_of_owner


# While a browser is open, a test can neither be async nor open the database in its own process.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="package")
def signed_in(browser: Browser, live: workspace.Serve, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cookies of the workspace's owner, signed in once through the page."""
    return cookies_of_owner(browser, live, tmp_path_factory.mktemp("browser"))


@pytest.fixture
def context(open_browser: Open, signed_in: Path) -> BrowserContext:
    """A browser window in which the owner is signed in."""
    context = open_browser(storage_state=signed_in)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    return context


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()
