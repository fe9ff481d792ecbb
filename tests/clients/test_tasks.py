"""Third-party clients run tasks of both eras at third-party servers, through a gateway with two workers."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.fixtures import Npm, listening
from tests.conformance.fixtures import install_environment
from tests.workspace import ROOT, Serve, free_port

pytestmark = pytest.mark.full

PYTHON = Path(sys.prefix) / "matrix-fastmcp" / "bin" / "python"
PROGRAM = "tests.clients.tasks_fastmcp"
TOOL = "simulate-research-query"


@pytest.fixture(scope="module")
def fastmcp(npm: Npm) -> Iterator[str]:
    """The address of a fastmcp server whose tools run as tasks."""
    install_environment(PYTHON.parent.parent, ROOT / "tests" / "matrix" / "fastmcp.lock")
    port = free_port()
    with listening(npm, [str(PYTHON), "-m", PROGRAM, "serve", str(port)], port, PYTHONPATH=str(ROOT)):
        yield f"http://127.0.0.1:{port}/mcp"


def placed(live: Serve, name: str, address: str) -> tuple[str, str, str]:
    """Return the URL of a gateway for this server, and the tokens of two connections there."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.conformance.rows", json.dumps({name: address})],
        cwd=ROOT,
        env=live.environment() | {"DJANGO_SETTINGS_MODULE": "gatewayadmin.settings"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    own, other = (live.issue_token(host=f"{name} {each}", gateway=name) for each in ("one", "two"))
    return own["gateway_url"], own["token"], other["token"]


def rows(live: Serve, gateway: str) -> list[tuple[str, str, str]]:
    found = live.rows(
        "SELECT method, outcome, deny_reason FROM auditlog_call WHERE gateway_name = %s AND method LIKE 'tasks/%%'"
        " AND feature_name IN ('', %s, 'ask', 'wait') ORDER BY id",
        gateway,
        TOOL,
    )
    return [(each["method"], each["outcome"], each["deny_reason"]) for each in found]


def test_server_everything_and_the_typescript_sdk_1(live: Serve, npm: Npm, everything: str) -> None:
    url, token, other = placed(live, "tasks-everything", everything)

    said: dict[str, Any] = json.loads(
        npm.run("node", "tasks_v1.mjs", GATEWAY_URL=url, TOKEN=token, OTHER=other, TOOL=TOOL)
    )

    assert said["capability"] == {"cancel": {}, "requests": {"tools": {"call": {}}}}
    assert said["support"] == {"taskSupport": "required"}
    run = said["run"]
    assert "error" not in run
    assert {task for task, _ in run["statuses"]} == {run["created"]}
    assert [*dict.fromkeys(status for _, status in run["statuses"])] == ["working", "input_required"]
    assert "python (snake)" in run["result"]["content"][0]["text"]
    assert run["result"]["_meta"]["io.modelcontextprotocol/related-task"] == {"taskId": run["created"]}
    assert (said["cancelled"]["taskId"], said["cancelled"]["status"]) == (said["second"], "cancelled")
    assert len({*said["ofOther"].values()}) == 1
    assert "Unknown task" in said["ofOther"]["get"]
    logged = rows(live, "tasks-everything")
    assert {("tasks/get", "ok", ""), ("tasks/result", "ok", ""), ("tasks/cancel", "ok", "")} <= {*logged}
    assert [method for method, _, reason in logged if reason == "unknown_task"] == [
        "tasks/get",
        "tasks/result",
        "tasks/cancel",
        "tasks/get",
    ]


def test_fastmcp_4_with_its_own_client(live: Serve, fastmcp: str) -> None:
    url, token, other = placed(live, "tasks-fastmcp", fastmcp)

    done = subprocess.run(
        [PYTHON, "-m", PROGRAM, "use", url, token, other],
        cwd=ROOT,
        env={**os.environ, "NO_PROXY": "localhost,127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)

    assert said["waiting"] == [said["task"], "input_required"]
    assert said["done"] == "Hello Ana"
    assert said["ended"] == [True, "cancelled"]
    assert [code for code, _ in said["failures"].values()] == [-32602] * 3
    assert all(message.startswith("Unknown task. http") for _, message in said["failures"].values())
    assert {("tasks/get", "ok", ""), ("tasks/update", "ok", ""), ("tasks/cancel", "ok", "")} <= {
        *rows(live, "tasks-fastmcp")
    }
