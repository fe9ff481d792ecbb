"""A program of runner.yaml is added as a server and called through a gateway; then it and the runner are killed."""

import os
import signal

import psutil
import pytest
from playwright.sync_api import expect

from tests import curl
from tests.browser import steps
from tests.browser.fixtures import owner_at
from tests.clients.fixtures import MODULES, Npm
from tests.runner.running import SECRET, Running, runner
from tests.workspace import Serve, new

pytestmark = pytest.mark.full

ECHO = "everything__echo"


def test_from_the_file_to_a_call_and_what_is_said_when_the_program_and_the_runner_end(
    npm: Npm, tmp_path_factory: pytest.TempPathFactory
) -> None:
    command = [str(MODULES / ".bin" / "mcp-server-everything")]
    entry = {
        "name": "everything",
        "title": "Everything",
        "command": command,
        "environment": {"PATH": npm.environment["PATH"]},
    }
    with runner([entry]) as running:
        named = {"GATEWAY_RUNNER_URL": f"http://127.0.0.1:{running.port}", "GATEWAY_RUNNER_SECRET": SECRET}
        served = new(tmp_path_factory.mktemp("programs"), "programs", GATEWAY_PRIVATE_UPSTREAMS="", **named)
        try:
            added_called_and_ended(served.start(workers=1), running)
        finally:
            served.stop()
        assert SECRET not in served.log()


def added_called_and_ended(served: Serve, running: Running) -> None:
    with owner_at(served) as page:
        page.goto(f"{served.url}/servers/add/")
        page.get_by_role("button", name="Add Everything", exact=True).click()
        expect(page.get_by_role("heading", name="Everything", exact=True)).to_be_visible()
        expect(page.locator("#program")).to_contain_text("running")
        expect(page.locator("#stderr")).to_contain_text("Starting default (STDIO) server")
        steps.add_gateway(page, served.url, "Second")
        steps.assign(page, served.url, "Second", "Everything", alias="everything")
        steps.add_host(page, served.url, "Second bot")
        minted = steps.copied(steps.add_connection(page, "Second"))

        assert ECHO in curl.list_tools(minted.gateway_url, minted.token).tools
        assert curl.call_tool(minted.gateway_url, minted.token, ECHO, message="hello").text == "Echo: hello"

        page.goto(f"{served.url}/servers/everything/")
        os.kill(program_of(running).pid, signal.SIGKILL)
        expect(page.locator("#program")).to_contain_text("killed by SIGKILL")  # The card asks again by itself.
        assert curl.call_tool(minted.gateway_url, minted.token, ECHO, message="again").text == "Echo: again"
        expect(page.locator("#program")).to_contain_text("running")

        running.process.kill()
        expect(page.locator("#program")).to_contain_text("cannot be reached")
        refused = curl.call_tool(minted.gateway_url, minted.token, ECHO, message="nobody")
        assert "nothing accepts connections at its address" in refused.json["error"]["message"]
    last = served.rows("SELECT outcome, deny_reason FROM auditlog_call ORDER BY id DESC LIMIT 1")
    assert last == [{"outcome": "upstream_error", "deny_reason": "unreachable"}]


def program_of(running: Running) -> psutil.Process:
    """Return the process of the only program."""
    children = psutil.Process(running.process.pid).children(recursive=True)
    return next(child for child in children if "mcp-server-everything" in " ".join(child.cmdline()))
