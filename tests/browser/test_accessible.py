"""axe on pages that people open first, in light, in dark and on a phone; test_pages.py opens all."""

import pytest
from playwright.sync_api import Page

from tests.browser.fixtures import Open, Trouble
from tests.browser.looks import PHONE, faults_of
from tests.workspace import Serve

pytestmark = [pytest.mark.every_case, pytest.mark.xdist_group("browser")]


@pytest.mark.parametrize("path", ["/", "/logs/", "/gateways/quickstart/tools/"])
def test_a_page_is_accessible(page: Page, live: Serve, path: str) -> None:
    page.goto(live.url + path)

    assert faults_of(page, path) == []


def test_pages_for_strangers_are_accessible(open_browser: Open, live: Serve, trouble: Trouble) -> None:
    trouble.expected = {"the server responded with a status of 404"}
    page = open_browser(viewport=PHONE, reduced_motion="reduce").new_page()

    faults = []
    for path in ("/accounts/login/", "/accounts/password/reset/", "/no/such/page/"):
        page.goto(live.url + path)
        faults += faults_of(page, path)

    assert not faults, "\n".join(faults)
