"""Tasks of a person, starting at the dashboard, done with a mouse whose clicks are counted, or by keyboard alone."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

import httpx
from playwright.sync_api import Locator, Page, expect

from tests import curl
from tests.eventually import eventually
from tests.make import unique
from tests.oauth.apps import CALLBACK, App
from tests.upstreams import App as Asgi
from tests.upstreams import Upstream, docs
from tests.workspace import OWNER, PASSWORD, Serve

MOST_STEPS = 400  # The row can be at the end of the page.
ARRIVED = '<link rel="icon" href="data:,"><h1>Arrived</h1>'
ROWS = """
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
UNUSED = """
UPDATE connections_connection SET connected_at = now() - interval '60 days', last_used_at = NULL
WHERE host_id = (SELECT id FROM hosts_host WHERE name = %s)
"""


class Person(Protocol):
    """The actions that a task needs from a person: going to pages, pressing controls and filling in fields."""

    page: Page

    def go(self, label: str) -> None: ...
    def follow(self, url: str) -> None: ...
    def press(self, it: Locator) -> None: ...
    def write(self, it: Locator, text: str) -> None: ...


@dataclass
class Mouse:
    """A person with a mouse; counts every click, including the click that focuses a field, and every filled field."""

    page: Page
    clicks: int = 0
    fields: int = 0

    def go(self, label: str) -> None:
        rail = self.page.get_by_role("navigation", name="Main")
        self.press(rail.get_by_role("link", name=re.compile(f"^{label}")))

    def follow(self, url: str) -> None:
        """Open a link from an e-mail, which counts as a click."""
        self.page.goto(url)
        self.clicks += 1

    def press(self, it: Locator) -> None:
        it.click()
        self.clicks += 1

    def write(self, it: Locator, text: str) -> None:
        expect(it).to_be_visible()
        if not it.evaluate("field => field === document.activeElement"):
            self.press(it)
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(text)
        self.fields += 1

    def choose(self, it: Locator, day: date) -> None:
        """Enter a day."""
        self.press(it)
        it.fill(day.isoformat())
        self.fields += 1


@dataclass
class Keys:
    """A person with only a keyboard: palette, Tab, arrows for radio buttons, Enter to press, Space to tick."""

    page: Page

    def go(self, label: str) -> None:
        self.page.wait_for_load_state()  # A page can be seen before the scripts that listen to keys have run.
        self.page.keyboard.press("Control+k")
        expect(self.page.get_by_role("searchbox", name="Search anything")).to_be_focused()
        self.page.keyboard.type(label)
        self.page.keyboard.press("Enter")
        expect(self.page.get_by_role("heading", level=1)).to_have_text(re.compile(f"^{label}"))

    def follow(self, url: str) -> None:
        self.page.goto(url)

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
    """A workspace with the rows of one task. All are called `name`, which lists sort before other names."""

    live: Serve
    name: str
    token: str
    run: Callable[[Asgi], Upstream]
    stranger: Callable[[], Page]

    @property
    def gateway_url(self) -> str:
        return f"{self.live.url}/mcp/quickstart"

    def call(self, token: str = "") -> int:
        return curl.call_tool(self.gateway_url, token or self.token, "echo", text="x").status


def connect_a_first_agent(one: Person, stage: Stage) -> None:
    page = one.page
    one.go("Apps & Agents")
    one.press(page.get_by_role("button", name="Add API access token-based host"))
    one.write(page.get_by_role("dialog").get_by_label("Name"), f"1 {stage.name}")
    one.press(page.get_by_role("button", name="Create and connect"))
    one.press(page.get_by_role("button", name="Allow"))
    one.press(page.get_by_role("button", name="Generate"))
    token = page.get_by_role("textbox", name="API access token").input_value()
    assert curl.list_tools(page.get_by_label("Gateway URL").input_value(), token).status == 200


def cut_off_an_agent(one: Person, stage: Stage) -> None:
    one.go("Apps & Agents")
    row = one.page.get_by_role("row").filter(has_text=stage.name)
    one.press(row.get_by_role("switch"))
    one.press(one.page.get_by_role("alertdialog").get_by_role("button", name="OK"))
    expect(row).to_contain_text("Disabled")
    assert stage.call() == 403


def find_why_a_call_was_refused_and_undo_it(one: Person, stage: Stage) -> None:
    stage.live.rows("UPDATE hosts_host SET enabled = false WHERE name = %s", stage.name)
    assert stage.call() == 403
    one.page.reload()
    one.press(one.page.get_by_role("region", name="Recent refusals").get_by_role("link", name=stage.name))
    trail = one.page.locator(".trail")
    expect(trail).to_contain_text("An administrator disabled this app or agent.")
    one.press(trail.get_by_role("button", name="Enable agent"))
    expect(trail).to_contain_text("The reason for this refusal no longer applies.")
    assert stage.call() == 200


def roll_a_token_without_an_outage(one: Person, stage: Stage) -> None:
    page = one.page
    one.press(page.get_by_role("region", name="Your API tokens").get_by_role("link", name="All tokens"))
    one.press(page.get_by_role("row").filter(has_text=stage.name).get_by_role("button", name="Regenerate"))
    one.press(page.get_by_role("alertdialog").get_by_role("button", name="OK"))
    new = page.get_by_role("textbox", name="API access token").input_value()
    assert [stage.call(), stage.call(new)] == [200, 200]


def add_a_server_and_see_its_tools(one: Person, stage: Stage) -> None:
    page = one.page
    one.go("Servers")
    one.press(page.get_by_role("link", name="Add a server", exact=True))
    one.write(page.get_by_label("URL"), stage.run(docs()).url)
    one.press(page.get_by_role("button", name="Check"))
    expect(page.get_by_role("list", name="Tools of the server")).to_contain_text("search")
    one.write(page.get_by_label("Name", exact=True), stage.name)
    one.press(page.locator("#add-form").get_by_role("button", name="Add a server", exact=True))
    expect(page.get_by_role("heading", name=stage.name, level=1)).to_be_visible()


def give_a_person_access_with_a_team(one: Person, stage: Stage) -> None:
    page = one.page
    one.go("People")
    one.press(page.get_by_role("link", name=stage.name))
    one.press(page.get_by_role("button", name="Add to a team"))
    one.press(page.get_by_role("dialog").get_by_role("button", name=stage.name))
    expect(page.get_by_role("status").filter(has_text=f"was added to {stage.name}")).to_be_visible()
    expect(page.locator(".facts").get_by_role("link", name=stage.name)).to_be_visible()


def see_who_uses_what(one: Person, stage: Stage) -> None:
    assert stage.call() == 200
    page = one.page
    busiest = page.get_by_role("region", name="Busiest users")
    eventually(lambda: page.reload() and busiest.count())
    one.press(busiest.get_by_role("link", name=OWNER))
    one.press(page.get_by_role("navigation", name="Group by").get_by_role("link", name="Tool", exact=True))
    expect(page.get_by_role("row", name=re.compile(r"^echo\W*\d"))).to_be_visible()


def export_calls(one: Person, stage: Stage) -> None:
    assert stage.call() == 200
    one.go("Logs")
    one.press(one.page.get_by_role("button", name="Export"))
    with one.page.expect_download() as download:
        one.press(one.page.get_by_role("link", name="CSV"))
    assert stage.name in download.value.path().read_text()


def stop_an_incident(one: Person, stage: Stage) -> None:
    page = one.page
    one.go("Apps & Agents")
    one.press(page.get_by_role("link", name=stage.name))
    one.press(page.get_by_role("button", name="Disable and revoke 1"))
    one.press(page.get_by_role("alertdialog").get_by_role("button", name="Disable and revoke 1"))
    expect(page.get_by_text("There is nothing left to stop")).to_be_visible()
    assert stage.call() == 401


def take_unused_access_away(one: Person, stage: Stage) -> None:
    stage.live.rows(UNUSED, stage.name)
    page = one.page
    one.go("Apps & Agents")
    one.press(page.get_by_role("link", name=stage.name))
    one.press(page.get_by_role("navigation", name=stage.name).get_by_role("link", name="Least privilege"))
    one.press(page.get_by_role("button", name="Disable 1 unused"))
    expect(page.get_by_text("Every enabled connection was used")).to_be_visible()
    assert stage.call() == 403


def bring_a_member_from_invitation_to_a_first_call(one: Person, stage: Stage) -> None:
    page = one.page
    one.go("People")
    one.press(page.get_by_role("button", name="Invite"))
    one.write(page.get_by_label("E-mail addresses"), f"{unique('new')}@example.com")
    one.press(page.get_by_role("radio", name="Member", exact=True))
    one.press(page.get_by_role("dialog").get_by_role("button", name="Invite"))
    invited = page.get_by_role("dialog", name="is invited")
    link = invited.get_by_role("textbox").input_value()

    one.page = stage.stranger()
    one.follow(link)
    one.write(one.page.get_by_label("Your name"), "Bo")
    for label in ("Password", "Password, again"):
        one.write(one.page.get_by_label(label, exact=True), PASSWORD)
    one.press(one.page.get_by_role("button", name="Join"))
    expect(one.page.get_by_role("heading", name="Dashboard", level=1)).to_be_visible()
    assert stage.call(connect_an_app(one, stage)) == 200


def connect_an_app(one: Person, stage: Stage) -> str:
    """Allow an app that opens the browser, and return the access token that the app gets."""
    said = {"client_name": stage.name, "redirect_uris": [CALLBACK], "token_endpoint_auth_method": "none"}
    app = App(httpx.post(f"{stage.live.url}/oauth/register", json=said).json()["client_id"])
    one.page.route(f"{CALLBACK}**", lambda route: route.fulfill(body=ARRIVED, content_type="text/html"))
    one.page.goto(stage.live.url + app.question(None, resource=stage.gateway_url))
    one.press(one.page.get_by_role("button", name="Next"))
    one.press(one.page.get_by_role("button", name="Allow", exact=True))
    expect(one.page.get_by_role("heading", name="Arrived")).to_be_visible()
    code = parse_qs(urlsplit(one.page.url).query)["code"][0]
    return str(httpx.post(f"{stage.live.url}/oauth/token", data=app.exchange_form(code)).json()["access_token"])


type Task = Callable[[Person, Stage], None]
EIGHT: tuple[Task, ...] = (
    connect_a_first_agent,
    cut_off_an_agent,
    find_why_a_call_was_refused_and_undo_it,
    roll_a_token_without_an_outage,
    add_a_server_and_see_its_tools,
    give_a_person_access_with_a_team,
    see_who_uses_what,
    export_calls,
)
# Further tasks, each with the maximum number of clicks and fields.
MORE: dict[Task, tuple[int, int]] = {
    stop_an_incident: (4, 0),
    take_unused_access_away: (4, 0),
    bring_a_member_from_invitation_to_a_first_call: (10, 4),
}
