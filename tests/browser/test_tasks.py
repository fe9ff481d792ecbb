"""Eight tasks, each from the dashboard within a maximum of clicks, and each once more by keyboard alone."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import pytest
from playwright.sync_api import Locator, Page, expect

from tests import curl
from tests.eventually import eventually
from tests.make import unique
from tests.upstreams import App, Upstream, docs
from tests.workspace import OWNER, Serve

pytestmark = pytest.mark.xdist_group("browser")

MOST_STEPS = 150
STAGE = """
import json
from accounts.models import Role, Team, User
from gateways.models import Gateway
from tests import make

ana = User.objects.get(email="ana@example.com")
quickstart = Gateway.objects.get(slug="quickstart")
bot = make.agent(by=ana, name="0 {name}")
token = make.token(make.connection(bot, quickstart, ana), name="0 {name}")
person = User.objects.create_user("0{name}@example.com", display_name="0 {name}", role=Role.objects.get(name="Member"))
Team.objects.add(name="0 {name}", users=(), by=ana)
print(json.dumps({{"token": token.secret}}))
"""


class Person(Protocol):
    """A person at a page, who presses controls and fills in fields."""

    page: Page

    def press(self, it: Locator) -> None: ...
    def write(self, it: Locator, text: str) -> None: ...


@dataclass
class Mouse:
    """Every click is counted, including the one that focuses a field."""

    page: Page
    clicks: int = 0

    def press(self, it: Locator) -> None:
        it.click()
        self.clicks += 1

    def write(self, it: Locator, text: str) -> None:
        expect(it).to_be_visible()
        if not it.evaluate("field => field === document.activeElement"):
            self.press(it)
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(text)


@dataclass
class Keys:
    """Tab reaches a control, arrow keys choose among radio buttons, Enter presses, and Space ticks a box."""

    page: Page

    def press(self, it: Locator) -> None:
        kind = it.get_attribute("type")
        self._come_to(it, "ArrowDown" if kind == "radio" else "Tab")
        self.page.keyboard.press("Space" if kind in ("radio", "checkbox") else "Enter")

    def write(self, it: Locator, text: str) -> None:
        self._come_to(it)
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(text)

    def _come_to(self, it: Locator, step: str = "Tab") -> None:
        expect(it).to_be_visible()
        for _ in range(MOST_STEPS):
            if it.evaluate("it => it === document.activeElement"):
                return
            beside = it.evaluate("it => it.type === 'radio' && it.name === document.activeElement.name")
            self.page.keyboard.press(step if beside else "Tab")
        raise AssertionError(f"Tab never came to {it}")


@dataclass
class Stage:
    """A workspace with rows of one task only: all are called `name`, which sorts before the others."""

    live: Serve
    name: str
    token: str
    run: Callable[[App], Upstream]

    def call(self) -> int:
        return curl.call_tool(f"{self.live.url}/mcp/quickstart", self.token, "echo", text="x").status


def rail(page: Page, label: str) -> Locator:
    return page.get_by_role("navigation", name="Main").get_by_role("link", name=re.compile(f"^{label}"))


def connect_the_first_agent(one: Person, stage: Stage) -> None:
    page = one.page
    one.press(rail(page, "Apps & Agents"))
    one.press(page.get_by_role("button", name="Add API access token-based host"))
    one.write(page.get_by_role("dialog").get_by_label("Name"), f"1 {stage.name}")
    one.press(page.get_by_role("button", name="Create and connect"))
    one.press(page.get_by_role("button", name="Allow"))
    one.press(page.get_by_role("button", name="Generate"))
    token = page.get_by_role("textbox", name="API access token").input_value()
    assert curl.list_tools(page.get_by_label("Gateway URL").input_value(), token).status == 200


def cut_an_agent_off(one: Person, stage: Stage) -> None:
    page = one.page
    one.press(rail(page, "Apps & Agents"))
    one.press(page.get_by_role("row").filter(has_text=stage.name).get_by_role("switch"))
    one.press(page.get_by_role("alertdialog").get_by_role("button", name="OK"))
    expect(page.get_by_role("row").filter(has_text=stage.name)).to_contain_text("Disabled")
    assert stage.call() == 403


def learn_why_a_call_was_denied_and_undo_it(one: Person, stage: Stage) -> None:
    stage.live.rows("UPDATE hosts_host SET enabled = false WHERE name = %s", stage.name)
    assert stage.call() == 403
    page = one.page
    page.reload()
    one.press(page.get_by_role("region", name="Recent refusals").get_by_role("link", name=stage.name))
    expect(page.locator(".trail")).to_contain_text("An administrator switched this app or agent off.")
    one.press(page.locator(".trail").get_by_role("button", name="Enable agent"))
    expect(page.locator(".trail")).to_contain_text("This no longer applies.")
    assert stage.call() == 200


def roll_a_token_without_downtime(one: Person, stage: Stage) -> None:
    page = one.page
    one.press(page.get_by_role("region", name="Your API tokens").get_by_role("link", name="All of them"))
    one.press(page.get_by_role("row").filter(has_text=stage.name).get_by_role("button", name="Regenerate"))
    one.press(page.get_by_role("alertdialog").get_by_role("button", name="OK"))
    new = page.get_by_role("textbox", name="API access token").input_value()
    assert [stage.call(), curl.list_tools(f"{stage.live.url}/mcp/quickstart", new).status] == [200, 200]


def add_a_server_and_see_its_tools(one: Person, stage: Stage) -> None:
    page = one.page
    one.press(rail(page, "Servers"))
    one.press(page.get_by_role("link", name="Add a server"))
    one.write(page.get_by_label("URL"), stage.run(docs()).url)
    one.press(page.get_by_role("button", name="Check"))
    expect(page.get_by_role("list", name="Tools of the server")).to_contain_text("search")
    one.write(page.get_by_label("Name", exact=True), stage.name)
    one.press(page.locator("#add-form").get_by_role("button", name="Add a server"))
    expect(page.get_by_role("heading", name=stage.name, level=1)).to_be_visible()


def give_a_person_access_with_a_team(one: Person, stage: Stage) -> None:
    page = one.page
    one.press(rail(page, "People"))
    one.press(page.get_by_role("link", name=stage.name))
    one.press(page.get_by_role("button", name="Add to a team"))
    one.press(page.get_by_role("dialog").get_by_role("button", name=stage.name))
    expect(page.get_by_role("status").filter(has_text=f"is in {stage.name}")).to_be_visible()
    expect(page.locator(".facts").get_by_role("link", name=stage.name)).to_be_visible()


def see_who_uses_what(one: Person, stage: Stage) -> None:
    page, calls = one.page, stage.call()
    busiest = page.get_by_role("region", name="Busiest users")
    eventually(lambda: page.reload() and busiest.count())
    one.press(busiest.get_by_role("link", name=OWNER))
    one.press(page.get_by_role("navigation", name="Group by").get_by_role("link", name="Tool", exact=True))
    expect(page.get_by_role("row").filter(has_text="echo")).to_contain_text(re.compile(r"echo\D*\d"))
    assert calls == 200


def export_calls(one: Person, stage: Stage) -> None:
    page, calls = one.page, stage.call()
    one.press(rail(page, "Logs"))
    one.press(page.get_by_role("button", name="Export"))
    with page.expect_download() as download:
        one.press(page.get_by_role("link", name="CSV"))
    assert stage.name in download.value.path().read_text()
    assert calls == 200


def stop_an_incident(one: Person, stage: Stage) -> None:
    page = one.page
    one.press(rail(page, "Apps & Agents"))
    one.press(page.get_by_role("link", name=stage.name))
    one.press(page.get_by_role("button", name="Disable and revoke 1"))
    one.press(page.get_by_role("alertdialog").get_by_role("button", name="Disable and revoke 1"))
    expect(page.get_by_text("There is nothing left to stop")).to_be_visible()
    assert stage.call() == 401


type Task = Callable[[Person, Stage], None]
MOST_CLICKS: dict[Task, int] = {
    connect_the_first_agent: 5,
    cut_an_agent_off: 3,
    learn_why_a_call_was_denied_and_undo_it: 3,
    roll_a_token_without_downtime: 3,
    stop_an_incident: 4,
    add_a_server_and_see_its_tools: 5,
    give_a_person_access_with_a_team: 4,
    see_who_uses_what: 2,
    export_calls: 3,
}


@pytest.fixture
def stage(live: Serve, page: Page, run: Callable[[App], Upstream]) -> Stage:
    """The task's own rows, and the dashboard open."""
    name = unique("task")
    made = json.loads(live.manage("shell", "--verbosity", "0", "-c", STAGE.format(name=name)))
    stage = Stage(live, f"0 {name}", made["token"], run)
    page.goto(f"{live.url}/")
    return stage


@pytest.mark.full
@pytest.mark.parametrize("task", MOST_CLICKS, ids=lambda task: str(task.__name__))
def test_a_task_takes_no_more_clicks_than(task: Task, stage: Stage, page: Page) -> None:
    mouse = Mouse(page)
    task(mouse, stage)
    assert mouse.clicks <= MOST_CLICKS[task]


@pytest.mark.full
@pytest.mark.parametrize("task", MOST_CLICKS, ids=lambda task: str(task.__name__))
def test_a_task_is_done_by_keyboard_alone(task: Task, stage: Stage, page: Page) -> None:
    task(Keys(page), stage)
