"""The README's tutorial, command by command as printed, by a newcomer with a browser."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser import steps
from tests.browser.fixtures import Open
from tests.docs.newcomer import Newcomer, Terminal
from tests.docs.pages import ROOT

pytestmark = pytest.mark.xdist_group("readme")

README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"<!-- tutorial[^>]*-->\n```bash\n(.*?)```", re.DOTALL)


def test_the_tutorial_works_as_printed(newcomer: Newcomer, terminal: Terminal, open_browser: Open) -> None:
    give, list_tools, call_echo, after_revoking, issue_token, call_add = BLOCK.findall(README)
    page = open_browser().new_page()
    steps.sign_in(page, newcomer.url, newcomer.email, newcomer.password)
    steps.add_host(page, newcomer.url, "CI bot")
    flow = steps.add_connection(page, "Quickstart")
    minted = steps.copied(flow)
    steps.done(flow)
    flow.close()
    terminal.run(give, minted.token, minted.gateway_url)

    assert {"echo", "add"} <= set(terminal.run(list_tools).splitlines())
    assert terminal.run(call_echo) == "hello"
    in_the_log(page, newcomer, "CI bot", newcomer.email, "echo")

    revoke(page, newcomer)
    assert terminal.run(after_revoking) == "401"

    assert terminal.run(issue_token) == ""
    assert terminal.run(call_add) == "5"
    in_the_log(page, newcomer, "Nightly report", newcomer.email, "add")


def in_the_log(page: Page, newcomer: Newcomer, *words: str) -> None:
    page.goto(f"{newcomer.url}/logs/")
    entry = steps.row(page, "tools/call")
    for word in words:
        expect(entry).to_contain_text(word)


def revoke(page: Page, newcomer: Newcomer) -> None:
    steps.open_connections(page, newcomer.url, "CI bot")
    steps.revoke(page, "Quickstart", newcomer.email)


@pytest.mark.full
def test_the_python_example_runs(newcomer: Newcomer, terminal: Terminal) -> None:
    *_, issue_token, _ = BLOCK.findall(README)
    program, *_ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    terminal.run(issue_token)
    terminal.run(f"export GATEWAY_URL={newcomer.url}/mcp/quickstart")

    assert terminal.run(f".venv/bin/python - <<'END'\n{program}END").splitlines()[0] == "echo"
