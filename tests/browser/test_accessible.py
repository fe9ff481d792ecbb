"""Pages before signing in are accessible, and links and buttons have meaningful names for screen readers.

test_pages.py checks the pages after signing in.
"""

import re

import pytest
from playwright.sync_api import Page

from tests import curl
from tests.browser.fixtures import Open, Trouble
from tests.browser.looks import PHONE, faults_of
from tests.make import unique
from tests.workspace import Serve

pytestmark = pytest.mark.full


def test_pages_for_strangers_are_accessible(open_browser: Open, live: Serve, trouble: Trouble) -> None:
    trouble.expected = {"the server responded with a status of 404"}
    page = open_browser(viewport=PHONE, reduced_motion="reduce").new_page()

    faults = []
    for path in ("/accounts/login/", "/accounts/password/reset/", "/no/such/page/"):
        page.goto(live.url + path)
        faults += faults_of(page, path)

    assert not faults, "\n".join(faults)


ROLES = "link|button|checkbox|switch|textbox|searchbox|combobox|radio"
CONTROL = re.compile(rf"""^ *- '?(?:{ROLES})(?: "(.*?)")?[ :\\[]*.*$""", re.MULTILINE)
SAYS_NOTHING = re.compile(
    r"(all of (it|them)|see (them )?all|open|more|here|show|details|edit|review|select)?", re.IGNORECASE
)


def test_controls_of_the_main_pages_name_what_they_do(page: Page, live: Serve) -> None:
    name = unique("named")
    issued = live.issue_token(host=name, gateway="quickstart")
    for tool in ("echo", "no-such-tool"):
        curl.call_tool(issued["gateway_url"], issued["token"], tool, text="x")
    [host] = live.rows("SELECT id::text FROM hosts_host WHERE name = %s", name)

    nameless = {}
    for path in ("/", "/hosts/", f"/hosts/{host['id']}/", "/logs/", "/gateways/quickstart/"):
        page.goto(live.url + path)
        names = CONTROL.findall(page.locator("body").aria_snapshot())
        assert len(names) > 20
        nameless[path] = [words for words in names if SAYS_NOTHING.fullmatch(words)]

    assert not any(nameless.values()), nameless
