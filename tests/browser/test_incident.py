"""Two clicks on an agent's page, or one on its Incident page, stop it. A token is regenerated without an outage."""

import pytest
from playwright.sync_api import Page, expect

from tests import curl
from tests.browser.tasks import Mouse
from tests.eventually import eventually
from tests.make import unique
from tests.workspace import Serve

pytestmark = pytest.mark.full


def host_of(live: Serve, name: str) -> str:
    [row] = live.rows("SELECT id::text FROM hosts_host WHERE name = %s", name)
    return str(row["id"])


def test_an_agent_is_stopped_with_two_clicks_and_its_next_request_is_refused(live: Serve, page: Page) -> None:
    host = unique("rogue")
    issued = live.issue_token(host=host, gateway="quickstart")
    assert curl.call_tool(issued["gateway_url"], issued["token"], "echo", text="x").status == 200
    page.goto(f"{live.url}/hosts/{host_of(live, host)}/")

    mouse = Mouse(page)
    mouse.press(page.get_by_role("button", name="Disable and revoke 1"))
    mouse.press(page.get_by_role("alertdialog").get_by_role("button", name="Disable and revoke 1"))

    expect(page.get_by_role("heading", name=host, level=1)).to_be_visible()
    expect(page.get_by_text("There is nothing left to stop")).to_be_visible()
    assert curl.call_tool(issued["gateway_url"], issued["token"], "echo", text="x").status == 401
    assert mouse.clicks == 2


def test_the_incident_page_shows_what_the_agent_did_and_stops_it_with_a_reason(live: Serve, page: Page) -> None:
    host = unique("rogue")
    issued = live.issue_token(host=host, gateway="quickstart")
    assert curl.call_tool(issued["gateway_url"], issued["token"], "echo", text="x").status == 200
    page.goto(f"{live.url}/incident/hosts/{host_of(live, host)}/")

    expect(page.get_by_role("region", name="Tools called")).to_contain_text("echo")
    expect(page.get_by_role("region", name="Connections")).to_contain_text("Quickstart")
    page.get_by_label("Reason").fill("Refunds to one card")
    page.get_by_role("button", name="Disable and revoke 1").click()

    expect(page.get_by_role("region", name="Last changes")).to_contain_text("Reason: Refunds to one card")
    assert curl.call_tool(issued["gateway_url"], issued["token"], "echo", text="x").status == 401


def test_a_token_rolls_without_an_outage_and_the_old_one_ends_with_the_first_call_of_the_new(
    live: Serve, page: Page
) -> None:
    issued = live.issue_token(host=unique("bot"), gateway="quickstart")
    url, old = issued["gateway_url"], issued["token"]
    assert curl.list_tools(url, old).status == 200
    page.goto(f"{live.url}/settings/api-tokens?q={issued['name']}")
    row = page.get_by_role("row").filter(has_text=issued["name"])

    row.get_by_role("button", name="Regenerate").click()
    dialog = page.get_by_role("alertdialog")
    expect(dialog.get_by_role("radio", name="Until the new one is used")).to_be_checked()
    dialog.get_by_role("button", name="OK").click()
    new = page.get_by_role("textbox", name="API access token").input_value()
    assert curl.list_tools(url, old).status == 200
    assert curl.list_tools(url, new).status == 200

    eventually(lambda: curl.list_tools(url, old).status == 401)
    assert curl.list_tools(url, new).status == 200


def test_the_token_says_which_of_its_secrets_is_in_use(live: Serve, page: Page) -> None:
    issued = live.issue_token(host=unique("bot"), gateway="quickstart")
    page.goto(f"{live.url}/settings/api-tokens?q={issued['name']}")
    row = page.get_by_role("row").filter(has_text=issued["name"])
    row.get_by_role("button", name="Regenerate").click()
    page.get_by_role("alertdialog").get_by_role("button", name="OK").click()
    page.get_by_role("textbox", name="API access token").wait_for()
    assert curl.list_tools(issued["gateway_url"], issued["token"]).status == 200

    eventually(lambda: page.reload() and row.get_by_text("old token in use").count())
    row.get_by_role("link", name=issued["name"]).click()

    expect(page.get_by_role("dialog")).to_contain_text("Only the old one is in use.")
