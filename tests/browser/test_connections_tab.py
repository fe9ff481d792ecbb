"""On the Connections tabs of a host and of a gateway, several actions on a row work without a reload between them."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser import steps
from tests.make import unique
from tests.workspace import Serve

pytestmark = pytest.mark.full


def test_the_button_that_stops_the_agent_counts_the_connections_that_are_left(live: Serve, page: Page) -> None:
    name = unique("Stopped bot")
    live.issue_token(host=name, gateway="quickstart")
    steps.open_connections(page, live.url, name)

    expect(page.get_by_role("button", name="Disable and revoke 1")).to_be_visible()
    page.get_by_role("button", name="Revoke (delete) this connection").click()
    page.get_by_role("alertdialog").get_by_role("button", name="OK", exact=True).click()

    expect(page.get_by_role("row").filter(has_text="Revoked")).to_be_visible()
    expect(page.get_by_role("button", name="Disable and revoke")).to_be_hidden()


@pytest.mark.parametrize("side", ["host", "gateway"])
def test_a_switch_leaves_the_questions_of_its_row_at_work(live: Serve, page: Page, side: str) -> None:
    name = unique("Switched bot")
    live.issue_token(host=name, gateway="quickstart")
    if side == "host":
        steps.open_connections(page, live.url, name)
        row = page.get_by_role("row").filter(has=page.get_by_role("switch"))
    else:
        page.goto(f"{live.url}/gateways/quickstart/connections/?q={name}")
        row = steps.row(page, name)
    switch = row.get_by_role("switch")
    question = page.get_by_role("alertdialog")

    switch.click()
    question.get_by_role("button", name="Cancel").click()
    expect(question).to_be_hidden()
    row.get_by_role("button", name="Revoke (delete) this connection").click()
    expect(question).to_contain_text("Revoke")
    question.get_by_role("button", name="Cancel").click()

    for _ in range(2):
        switch.click()
        question.get_by_role("button", name="OK", exact=True).click()
        expect(switch).not_to_be_checked()
        page.locator(".toast").filter(has_text="disabled").get_by_role("button", name="Undo").click()
        expect(switch).to_be_checked()
