"""The OAuth doctor in a real browser: a person opens it from *How to Connect*, and reads its report."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser import steps
from tests.browser.fixtures import Trouble
from tests.workspace import Serve

pytestmark = pytest.mark.full


def test_the_doctor_is_asked_from_how_to_connect(live: Serve, page: Page) -> None:
    page.goto(f"{live.url}/gateways/quickstart/")
    steps.press(page, "How to Connect")
    page.get_by_role("dialog").get_by_role("link", name="Ask the OAuth doctor").click()
    expect(page.get_by_label("Gateway")).to_have_value("quickstart")

    page.get_by_role("button", name="Run").click()

    expect(page.get_by_role("status").filter(has_text="An app can connect, sign in and call.")).to_be_visible()
    assert page.get_by_text("not reached").count() == 0
    page.get_by_text("Exchange").first.click()
    expect(page.get_by_text("WWW-Authenticate: Bearer resource_metadata=")).to_be_visible()
    assert not Axe().run(page).response["violations"]


def test_a_temporary_refusal_is_shown_on_the_page(live: Serve, page: Page, trouble: Trouble) -> None:
    """The doctor's form, which htmx sends, is answered with 429. The page shows the text of the answer."""
    trouble.expected = {"a status of 429", "Error Code 429"}
    page.goto(f"{live.url}/settings/oauth-doctor/?gateway=quickstart")
    told = "Too many of your requests are running. Try again in a few seconds."
    page.route(f"{live.url}/settings/oauth-doctor/", lambda route: route.fulfill(status=429, body=told))

    page.get_by_role("button", name="Run").click()

    expect(page.locator("#notices")).to_have_text(told)
    expect(page.get_by_text("That did not work.")).to_have_count(0)
