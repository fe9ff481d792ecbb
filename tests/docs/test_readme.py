"""The README's tutorial, command by command as printed, by a newcomer with a browser."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests import cluster
from tests.browser import steps
from tests.browser.fixtures import Open
from tests.docs.pages import ROOT
from tests.running.conftest import folder
from tests.sampling import full
from tests.workspace import free_port

pytestmark = pytest.mark.xdist_group("readme")

README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"<!-- tutorial[^>]*-->\n```bash\n(.*?)```", re.DOTALL)
WELCOME = re.compile(r"Gateway Admin runs at (\S+)\nSign in as (\S+) with the password (\S+) \(shown only now\)")


class Terminal:
    """A shell that stays open from one command of the tutorial to the next, as a person's does."""

    def __init__(self, **environment: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "DATABASE_URL"))}
        self.shell = subprocess.Popen(
            ["bash", "--norc"],
            cwd=ROOT,
            env=kept | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, block: str, *typed: str) -> str:
        """What the commands print; `typed` is what a person enters, a line for each time they are asked."""
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        self.shell.stdin.write("\n".join([*block.splitlines(), *typed, "echo; echo end of block", ""]))
        self.shell.stdin.flush()
        return "".join(iter(self.shell.stdout.readline, "end of block\n")).strip()

    def close(self) -> None:
        self.shell.communicate(timeout=60)


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A workspace started by the README's own command, and what it said about signing in."""

    url: str
    email: str
    password: str
    environment: dict[str, str]


@pytest.fixture(scope="module", params=["with tables", full("embedded")])
def newcomer(request: pytest.FixtureRequest) -> Iterator[Newcomer]:
    """On a database that has its tables, for quickness, and on none at all, as in the first start of `finished`."""
    start = re.search(r"^make run$", README, re.MULTILINE)
    assert start
    database = {}
    if request.param == "with tables":
        database = {"DATABASE_URL": cluster.fresh_database(f"readme_{os.getpid()}", cluster.tables()), **cluster.keys()}
    with folder() as path:
        yield from started(start.group(), path, database)


def started(command: str, folder: Path, database: dict[str, str]) -> Iterator[Newcomer]:
    environment = {"PORT": str(free_port()), "GATEWAY_DATA_DIR": str(folder / "var"), **database}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "DATABASE_URL"))}
    log = folder / "make-run.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command.split(),
            cwd=ROOT,
            env=kept | environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield Newcomer(*welcome(process, log), environment)
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=90)


def welcome(process: subprocess.Popen[bytes], log: Path) -> tuple[str, str, str]:
    """Address, e-mail and password as printed, once the server answers."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        if found := WELCOME.search(log.read_text()):
            url, email, password = found.groups()
            assert httpx.get(f"{url}/readyz").status_code == 200
            return url, email, password
        time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.fixture
def terminal(newcomer: Newcomer) -> Iterator[Terminal]:
    opened = Terminal(**newcomer.environment)
    yield opened
    opened.close()


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


def test_the_python_example_runs(newcomer: Newcomer, terminal: Terminal) -> None:
    *_, issue_token, _ = BLOCK.findall(README)
    program, _ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    terminal.run(issue_token)
    terminal.run(f"export GATEWAY_URL={newcomer.url}/mcp/quickstart")

    assert terminal.run(f".venv/bin/python - <<'END'\n{program}END").splitlines()[0] == "echo"
