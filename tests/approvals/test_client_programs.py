"""Third-party client programs at their default time-outs: an approved call runs once, and the client gets the answer.

Claude Code is one of the clients if the environment variable CLAUDE_CODE has the path of its program. It then uses a
stand-in for a model (`ModelApi`), which asks it to call the tool.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from approvals.models import Hold, HoldState
from tests.approvals.conftest import TOOL, Desk
from tests.approvals.model_api import ModelApi
from tests.asgi_server import App, Upstream
from tests.clients.fixtures import FOLDER, MODULES, Npm
from tests.conformance.fixtures import FASTMCP_HOME, FASTMCP_LOCK, install_environment
from tests.eventually import eventually
from tests.matrix.servers import HERE, python_of

pytestmark = pytest.mark.full

MODERN = "2026-07-28"
AGENTS_HOME, AGENTS_LOCK = Path(sys.prefix) / "matrix-agents", HERE / "agents.lock"
CLAUDE_CODE = os.environ.get("CLAUDE_CODE", "")
SECONDS = 400
WAITING = "waits for approval"

type Start = Callable[[App], Upstream]
type Client = Callable[[Desk, Npm, Start], str]


def printed(command: list[str], given: str = "", **environment: Any) -> str:
    """Return the output of a program. Ignore its exit code, because some programs fail for a result with `isError`."""
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, timeout=SECONDS, check=False, **environment
    )
    return str(done.stdout + done.stderr)


def python(name: str, home: Path, lock: Path, mode: str = "") -> Client:
    def call(desk: Desk, npm: Npm, start: Start) -> str:
        install_environment(home, lock)
        command = [python_of(home.name), str(FOLDER / "held.py"), name, desk.agent.url, str(desk.agent.secret), TOOL]
        return printed([*command, *([mode] if mode else [])])

    return call


def typescript(sdk: str, mode: str = "", progress: str = "") -> Client:
    def call(desk: Desk, npm: Npm, start: Start) -> str:
        told = {"GATEWAY_URL": desk.agent.url, "TOKEN": str(desk.agent.secret), "TOOL": TOOL, "ARGUMENTS": '{"n": 1}'}
        environment = npm.environment | told | {"SDK": sdk, "MODE": mode, "PROGRESS": progress}
        return printed([str(MODULES / ".bin" / "node"), "held.mjs"], "call\n", env=environment, cwd=FOLDER)

    return call


def inspector(era: str) -> Client:
    def call(desk: Desk, npm: Npm, start: Start) -> str:
        server = ["--server-url", desk.agent.url, "--transport", "http", "--protocol-era", era]
        header = ["--header", f"Authorization: Bearer {desk.agent.secret}"]
        asked = ["--method", "tools/call", "--tool-name", TOOL, "--tool-args-json", '{"n": 1}', "--format", "json"]
        return printed(
            [str(MODULES / ".bin" / "mcp-inspector"), "--cli", *server, *header, *asked], env=npm.environment
        )

    return call


def claude_code(desk: Desk, npm: Npm, start: Start) -> str:
    tool = f"mcp__gateway__{TOOL}"
    api = start(ModelApi(tool, {"n": 1}))
    server = {"type": "http", "url": desk.agent.url, "headers": {"Authorization": f"Bearer {desk.agent.secret}"}}
    configuration = npm.home / "mcp.json"
    configuration.write_text(json.dumps({"mcpServers": {"gateway": server}}))
    environment = {
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{api.port}",
        "ANTHROPIC_API_KEY": "none",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "ENABLE_TOOL_SEARCH": "false",
        "MCP_CONNECTION_NONBLOCKING": "0",
    }
    options = ["--mcp-config", str(configuration), "--strict-mcp-config", "--allowedTools", tool]
    command = [CLAUDE_CODE, "--bare", "-p", "count", *options, "--output-format", "json"]
    return printed(command, env=npm.environment | environment, cwd=npm.home)


CLIENTS: dict[str, Client] = {
    "TypeScript SDK 1": typescript("1"),
    "TypeScript SDK 1, with progress": typescript("1", progress="yes"),
    "TypeScript SDK 2, legacy": typescript("2", "legacy"),
    "TypeScript SDK 2, modern": typescript("2", MODERN),
    "FastMCP, legacy": python("fastmcp", FASTMCP_HOME, FASTMCP_LOCK, "legacy"),
    "FastMCP, modern": python("fastmcp", FASTMCP_HOME, FASTMCP_LOCK, MODERN),
    "OpenAI Agents": python("openai-agents", AGENTS_HOME, AGENTS_LOCK),
    "Inspector, legacy": inspector("legacy"),
    "Inspector, modern": inspector("modern"),
    **({"Claude Code": claude_code} if CLAUDE_CODE else {}),
}


@pytest.fixture(params=CLIENTS, ids=str)
def call(request: pytest.FixtureRequest, desk: Desk, npm: Npm, run: Start) -> Callable[[], str]:
    """Return a function that makes one call with a client, and returns the client's output."""
    desk.wait(None)
    return lambda: CLIENTS[request.param](desk, npm, run)


def ran(desk: Desk, answer: str) -> bool:
    """Return True if `answer` contains the server's answer, and the server was called once."""
    return "count" in answer and '"session' in answer.replace("\\", "") and desk.runs == 1


def test_a_client_is_told_of_a_denial_and_that_it_waits_and_runs_its_approved_call_once(
    desk: Desk, call: Callable[[], str]
) -> None:
    desk.wait(0)
    assert WAITING in call()
    Hold.objects.get().deny(by=desk.ben, sentence="Not today.")
    assert "Not today." in call()
    Hold.objects.update(ends_at=timezone.now())
    assert WAITING in call()
    assert desk.runs == 0
    Hold.objects.get(state=HoldState.WAITING).approve(by=desk.ben)

    answer = call()

    assert ran(desk, answer), answer


def test_a_client_whose_call_is_approved_while_it_runs_gets_the_answer(desk: Desk, call: Callable[[], str]) -> None:
    first = desk.pool.submit(call)
    eventually(lambda: first.done() or Hold.objects.exists())
    Hold.objects.get().approve(by=desk.ben)

    answer = first.result(SECONDS)

    if desk.runs == 0:  # The client gave up, or the gateway answered, before the approval.
        answer = call()
    assert ran(desk, answer), answer
