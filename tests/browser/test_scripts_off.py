"""Pages without scripts: people read lists, pages and the filtered log, and disable and enable agents."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from tests import curl
from tests.browser import steps
from tests.browser.fixtures import Open
from tests.make import unique
from tests.upstreams import App, Upstream, docs
from tests.workspace import Serve

pytestmark = pytest.mark.full

ROWS = """
from gateways.models import Feature
from tests import make
work = make.gateway(make.server(name={name!r}, slug={name!r}, url={url!r}), name={name!r}, slug={name!r})
Feature.objects.learn(work.assignments.get(), [{{"name": "search"}}])
"""


@dataclass
class Agent:
    """An agent with a gateway and a server that have the agent's name."""

    name: str
    url: str
    token: str

    def answers(self) -> bool:
        answer = curl.call_tool(self.url, self.token, f"{self.name}__search", query="holidays")
        return answer.status == 200 and "result" in answer.json and not answer.result.get("isError")


@pytest.fixture
def agent(live: Serve, run: Callable[[App], Upstream]) -> Agent:
    name = unique("off")
    live.manage("shell", "--verbosity", "0", "-c", ROWS.format(name=name, url=run(docs()).url))
    issued = live.issue_token(host=name, gateway=name)
    made = Agent(name, issued["gateway_url"], issued["token"])
    assert made.answers()
    return made


@pytest.fixture
def page(open_browser: Open, signed_in: Path) -> Page:
    """The owner's page in a browser that runs no scripts."""
    return open_browser(storage_state=signed_in, java_script_enabled=False).new_page()


@pytest.mark.parametrize(
    "path", ["/hosts/", "/gateways/", "/servers/", "/settings/mcp-connections?type=all", "/settings/api-tokens"]
)
def test_a_list_is_searched_and_narrowed(live: Serve, page: Page, agent: Agent, path: str) -> None:
    page.goto(live.url + path)
    page.get_by_role("main").get_by_role("searchbox").fill(agent.name)
    steps.press(page, "Search")
    expect(page.get_by_role("row").filter(has_text=agent.name)).to_have_count(1)

    page.get_by_role("main").get_by_role("searchbox").fill(unique("nothing"))
    steps.press(page, "Search")
    expect(page.get_by_role("row").filter(has_text=agent.name)).to_have_count(0)


def test_the_log_is_filtered_and_a_call_opened(live: Serve, page: Page, agent: Agent) -> None:
    curl.call_tool(agent.url, agent.token, "no-such-tool")
    page.goto(f"{live.url}/logs/")
    page.get_by_label("Filter expression").fill(f"host is {agent.name}")
    steps.press(page, "Filter")
    expect(page.locator("tbody tr")).to_have_count(2)

    filters = page.locator("#facets")
    steps.press(page, "Filters")
    filters.locator("summary", has_text="Tool").click()
    filters.get_by_role("link", name="Count the values of tool").click()
    steps.press(page, "Filters")
    filters.get_by_label(f"{agent.name}__search", exact=True).check()
    filters.get_by_role("button", name="Filter").click()
    expect(page.locator("tbody tr")).to_have_count(1)
    page.locator("tbody .row-link").click()

    expect(page.locator(".drawer")).to_contain_text(f"{agent.name}__search")


@pytest.mark.parametrize("path", ["/hosts/", "/gateways/", "/servers/"])
def test_it_is_disabled_on_its_page_and_enabled_again(live: Serve, page: Page, agent: Agent, path: str) -> None:
    page.goto(f"{live.url}{path}?q={quote(agent.name)}")
    page.get_by_role("link", name=agent.name, exact=True).click()
    head = page.locator("main header .headline")
    expect(head.get_by_role("heading", name=agent.name, level=1)).to_be_visible()

    head.get_by_role("link", name="Disable").click()
    confirm(page)
    expect(head).to_contain_text("Disabled")
    assert not agent.answers()

    head.get_by_role("button", name="Enable").click()
    expect(head).to_contain_text("Enabled")
    assert agent.answers()


@pytest.mark.parametrize("path", ["/hosts/?", "/settings/mcp-connections?type=all&"])
def test_a_row_is_disabled_in_its_list_and_enabled_again(live: Serve, page: Page, agent: Agent, path: str) -> None:
    page.goto(f"{live.url}{path}q={quote(agent.name)}")

    act_on(page, agent, "Disable")
    confirm(page)
    assert not agent.answers()
    assert page.url == f"{live.url}{path}q={agent.name}"

    act_on(page, agent, "Enable")
    expect(page.get_by_role("status").filter(has_text="enabled")).to_be_visible()
    assert agent.answers()


def act_on(page: Page, agent: Agent, verb: str) -> None:
    """Select the agent's row, and press the button `verb` below the list."""
    steps.row(page, agent.name).get_by_role("checkbox").check()
    page.locator("#bulk").get_by_role("button", name=verb).click()


def confirm(page: Page) -> None:
    page.get_by_role("alertdialog").get_by_role("button", name="OK").click()
