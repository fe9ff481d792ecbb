"""A real Chromium in which any console message fails the test."""

import os
import re
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    expect,
    sync_playwright,
)

from tests import workspace
from tests.browser import steps
from tests.eventually import PATIENCE

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # No processes for site isolation: starting them took a tenth of a browser's start.
    "--disable-site-isolation-trials",
    "--renderer-process-limit=1",
)
# On a busy machine Chromium aborts view transitions and logs that on the console.
STILL: dict[str, Any] = {"reduced_motion": "reduce"}
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

FAILED = pytest.StashKey[bool]()
RESULTS = workspace.ROOT / "test-results"
ROWS = Path(__file__).with_name("rows.py")

expect.set_options(timeout=1000 * PATIENCE)

type Open = Callable[..., BrowserContext]


# htmx reports a request that a newer one replaced (`hx-sync`) as an error; failed requests have further messages.
ABORTED = re.compile("htmx:(sendAbort|afterRequest),")


@dataclass
class Trouble:
    """Errors reported by the browser; a test that provokes an error page adds the expected text to `expected`."""

    expected: set[str] = field(default_factory=set)
    seen: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("console", self.console)
        page.on("pageerror", lambda error: self.seen.append(f"{page.url}: {error}"))

    def console(self, message: ConsoleMessage) -> None:
        is_replaced = ABORTED.search(message.text)
        if message.type in ("error", "warning") and not is_replaced:
            self.seen.append(f"{message.location.get('url')}: {message.text}")

    def unexpected(self) -> list[str]:
        return [line for line in self.seen if not any(words in line for words in self.expected)]


def fill(live: workspace.Serve) -> None:
    """Fill a workspace with rows of each kind in each state, as after some use."""
    live.manage("shell", "--verbosity", "0", "-c", ROWS.read_text())


def system_chromium() -> str | None:
    """Return this machine's Chromium, or None for Playwright's own."""
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield a browser. While it is open, no other event loop can run in this thread."""
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=system_chromium(), args=[*FLAGS])
        yield opened
        opened.close()


@contextmanager
def owner_at(live: workspace.Serve) -> Iterator[Page]:
    """Yield a page of a new browser with the owner signed in. Fails at the end if the browser reported errors."""
    noticed = Trouble()
    with chromium() as opened:
        page = opened.new_page(**STILL)
        noticed.watch(page)
        steps.sign_in(page, live.url)
        yield page
    assert not noticed.unexpected()


def cookies_of_owner(browser: Browser, live: workspace.Serve, folder: Path) -> Path:
    """Sign in the workspace's owner through the page, and save the cookies as a file in this folder."""
    context = browser.new_context()
    steps.sign_in(context.new_page(), live.url)
    cookies = folder / "owner.json"
    context.storage_state(path=cookies)
    context.close()
    return cookies


# Not session-scoped: async tests of the same process need their own event loops.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def trouble() -> Iterator[Trouble]:
    noticed = Trouble()
    yield noticed
    assert not noticed.unexpected()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Store with each test whether it failed, so that its fixtures can take screenshots."""
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest.fixture
def open_browser(browser: Browser, trouble: Trouble, request: pytest.FixtureRequest) -> Iterator[Open]:
    """Return a function that opens a browser window with separate cookies; the function takes Playwright's options."""
    contexts: list[BrowserContext] = []

    def window(**options: Any) -> BrowserContext:
        context = browser.new_context(**STILL | options)
        context.set_default_timeout(1000 * PATIENCE)
        context.on("page", trouble.watch)
        contexts.append(context)
        return context

    yield window
    for context in contexts:
        if request.node.stash.get(FAILED, False):
            keep_pictures(context, request.node.name)
        context.close()


def keep_pictures(context: BrowserContext, name: str) -> None:
    """Save screenshots of a failed test."""
    RESULTS.mkdir(exist_ok=True)
    for number, page in enumerate(context.pages):
        page.screenshot(path=RESULTS / f"{name}-{number}.png", full_page=True)
        (RESULTS / f"{name}-{number}.html").write_text(f"<!-- {page.url} -->\n{page.content()}")
