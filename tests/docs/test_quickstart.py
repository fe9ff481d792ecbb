"""docs/quickstart.md, run as printed: an agent and its revocation, three kinds of servers, three people, and their
calls in the log.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests import curl
from tests.browser import steps
from tests.browser.fixtures import Open
from tests.clients.fixtures import MODULES, Npm, wait_for
from tests.docs.newcomer import Newcomer, Terminal
from tests.docs.pages import ROOT
from tests.workspace import free_port

pytestmark = [
    pytest.mark.full,
    pytest.mark.parametrize("newcomer", ["with tables"], indirect=True),  # The README also uses the other.
]

PAGE = (ROOT / "docs" / "quickstart.md").read_text()
BRIDGE = (ROOT / "docs" / "how-to" / "add-a-server.md").read_text()
PASSWORD = "a horse, a battery, and a staple"
CALLS = {
    "ann": ("everything__echo", {"message": "hello"}),
    "ben": ("clock__now", {}),
    "cat": ("memory__read_graph", {}),
}


def block(page: str, mark: str) -> str:
    """Return the block after the comment with this mark."""
    (found,) = re.findall(rf"<!-- {re.escape(mark)} -->\n```\w+\n(.*?)```", page, re.DOTALL)
    return str(found)


@contextmanager
def running(command: str, port: int, npm: Npm, folder: Path, **settings: str) -> Iterator[str]:
    """Run a command in its own terminal, and yield the server's address once the server listens."""
    with (folder / f"{port}.log").open("w") as log:
        process = subprocess.Popen(
            ["bash", "-c", f"exec env {command}"],
            env=npm.environment | settings,
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_for(process, port)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        with suppress(ProcessLookupError):  # It may have ended already, which `wait_for` reports.
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def servers(npm: Npm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The addresses of the page's three servers.

    The page's downloads are installed already, and its ports are replaced by free ports.
    """
    folder = tmp_path_factory.mktemp("servers")
    (folder / "mcp-bridge").mkdir()
    (folder / "mcp-bridge" / "node_modules").symlink_to(MODULES)
    ports = {documented: free_port() for documented in ("3001", "3002", "3003")}

    def printed(page: str, mark: str) -> str:
        text = block(page, mark)
        for documented, port in ports.items():
            text = text.replace(documented, str(port))
        return text

    install, fetch, clock = block(PAGE, "quickstart: clock").splitlines()
    assert (install, fetch) == ("python3 -m venv clock", "clock/bin/pip install 'mcp>=2'")
    assert block(BRIDGE, "bridge: once").startswith("npm install --prefix mcp-bridge supergateway@")
    (folder / "clock.py").write_text(printed(PAGE, "quickstart: clock.py"))
    everything = printed(PAGE, "quickstart: everything")
    everything = everything.replace("npx -y @modelcontextprotocol/server-everything", "mcp-server-everything")
    commands = {
        "Everything": (everything, ports["3001"]),
        "Clock": (clock.replace("clock/bin/python", sys.executable), ports["3003"]),
        "Memory": (printed(BRIDGE, "bridge: start"), ports["3002"]),
    }
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(running(command, port, npm, folder)) for name, (command, port) in commands.items()
        }


def test_an_agent_calls_until_it_is_revoked_as_the_page_says(
    newcomer: Newcomer, terminal: Terminal, open_browser: Open
) -> None:
    page = open_browser().new_page()
    steps.sign_in(page, newcomer.url, newcomer.email, newcomer.password)
    steps.add_host(page, newcomer.url, "First bot")
    flow = steps.add_connection(page, "Quickstart")
    minted = steps.copied(flow)
    steps.done(flow)
    flow.close()
    terminal.run(block(PAGE, "quickstart: token"), minted.token, minted.gateway_url)

    assert {"echo", "add"} <= set(terminal.run(block(PAGE, "quickstart: list")).splitlines())
    assert terminal.run(block(PAGE, "quickstart: echo")) == "hello"
    expect_in_log(page, newcomer, "First bot", newcomer.email, "echo")

    page.goto(f"{newcomer.url}/gateways/quickstart/tools/")
    steps.row(page, "echo").get_by_role("switch").click()
    page.get_by_role("alertdialog").get_by_role("button", name="OK").click()
    expect(page.get_by_role("alertdialog")).to_be_hidden()
    refused = terminal.run(block(PAGE, "quickstart: echo"))
    assert refused.startswith('An administrator disabled tool "echo" of server "Quickstart"')
    expect_in_log(page, newcomer, "First bot", "echo", "denied")
    steps.row(page, "tools/call").get_by_role("link").first.click()
    drawer = page.locator("#drawer")
    expect(drawer).to_contain_text(f"by {newcomer.email}")
    drawer.get_by_role("button", name="Enable tool").click()
    expect(page.get_by_role("status")).to_contain_text("enabled")
    assert terminal.run(block(PAGE, "quickstart: echo")) == "hello"

    steps.open_connections(page, newcomer.url, "First bot")
    steps.revoke(page, "Quickstart", newcomer.email)
    assert terminal.run(block(PAGE, "quickstart: revoked")) == "401"


def expect_in_log(page: Page, newcomer: Newcomer, *words: str) -> None:
    page.goto(f"{newcomer.url}/logs/")
    entry = steps.row(page, "tools/call")
    for word in words:
        expect(entry).to_contain_text(word)


def test_three_servers_and_three_people_as_the_page_says(
    newcomer: Newcomer, terminal: Terminal, open_browser: Open, servers: dict[str, str]
) -> None:
    page = open_browser().new_page()
    steps.sign_in(page, newcomer.url, newcomer.email, newcomer.password)
    steps.add_gateway(page, newcomer.url, "Work")
    for name, url in servers.items():
        add(page, newcomer, name, url)
    tools_of_work(page, newcomer)

    steps.add_host(page, newcomer.url, "Quickstart bot")
    flow = steps.add_connection(page, "Work")
    minted = steps.copied(flow)
    steps.done(flow)
    terminal.run(block(PAGE, "quickstart: token"), minted.token, minted.gateway_url)
    assert terminal.run(block(PAGE, "quickstart: call")) == "The sum of 2 and 3 is 5."

    for person in CALLS:
        add_agent(page, newcomer, f"Agent of {person}")
    for person, link in invite(page, newcomer).items():
        own = join(open_browser(), link)
        token = enrol(own, f"Agent of {person}")
        tool, arguments = CALLS[person]
        assert '"isError":true' not in curl.call_tool(token.gateway_url, token.token, tool, **arguments).body
    page.goto(f"{newcomer.url}/logs/")
    for person, (tool, _) in CALLS.items():
        entry = steps.row(page, f"Agent of {person}", tool)
        for words in (f"{person}@example.com", "Work", tool.partition("__")[0].title(), "ok"):
            expect(entry).to_contain_text(words)


def add(page: Page, newcomer: Newcomer, name: str, url: str) -> None:
    """Use *Add a server*: check the URL and enter the name.

    The form ticks Work beforehand if every other gateway has a built-in server.
    """
    flow = steps.check_server(page, newcomer.url, url)
    flow.get_by_label("Name", exact=True).fill(name)
    expect(flow.get_by_role("checkbox", name="Quickstart")).not_to_be_checked()
    flow.get_by_role("checkbox", name="Work").check()
    steps.press(flow, "Add a server")
    expect(page.get_by_role("heading", name=name, level=1)).to_be_visible()


def tools_of_work(page: Page, newcomer: Newcomer) -> None:
    page.goto(f"{newcomer.url}/gateways/work/tools/")
    for name in ("everything__echo", "clock__now", "memory__read_graph"):
        expect(page.get_by_role("rowheader", name=name)).to_be_visible()


def add_agent(page: Page, newcomer: Newcomer, name: str) -> None:
    page.goto(f"{newcomer.url}/hosts/")
    steps.press(page, "Add API access token-based host")
    dialog = page.get_by_role("dialog", name="Add API access token-based host")
    dialog.get_by_label("Name").fill(name)
    dialog.get_by_label("Allow enrolment").check()
    dialog.get_by_role("button", name="Create", exact=True).click()
    expect(page.get_by_role("heading", name=name, level=1)).to_be_visible()


def invite(page: Page, newcomer: Newcomer) -> dict[str, str]:
    """Invite everybody, and return the displayed links."""
    page.goto(f"{newcomer.url}/people/")
    steps.press(page, "Invite")
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("E-mail addresses").fill(", ".join(f"{person}@example.com" for person in CALLS))
    dialog.get_by_label("Member").check()
    steps.press(dialog, "Invite")
    expect(page.get_by_role("dialog", name="3 people are invited")).to_be_visible()
    return {person: page.get_by_label(f"{person}@example.com").input_value() for person in CALLS}


def join(window: BrowserContext, link: str) -> Page:
    """Accept an invitation, and return the page that opens then."""
    page = window.new_page()
    page.goto(link)
    page.get_by_label("Your name").fill("Somebody New")
    for field in page.locator("input[type=password]").all():
        field.fill(PASSWORD)
    steps.press(page, "Join")
    expect(page.get_by_text("Gateways you can use")).to_be_visible()
    return page


def enrol(page: Page, agent: str) -> steps.Minted:
    page.get_by_role("link", name=agent).click()
    steps.choose_gateway(page, "Work")
    steps.generate(page)
    return steps.copied(page)
