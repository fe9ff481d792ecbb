"""The clients in the compatibility table: their environments, and the commands that run them."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.clients import fixtures as npm
from tests.matrix.servers import node, npm_version, pip_version, python_of
from tests.workspace import ROOT

SECONDS = 600
INSPECTOR_SECONDS = 40

type Targets = dict[str, dict[str, Any]]
"""For each server: its `url`, the `token` ("" for none), and the requests to send (`asks`)."""
type Found = dict[str, dict[str, str]]
"""For each server and ability: why the ability does not work; "" if it works."""


@dataclass(frozen=True, slots=True)
class Client:
    """One client in the compatibility table."""

    run: Callable[[Targets], Found]
    version: Callable[[], str]


def environment(home: str, **more: str) -> dict[str, str]:
    path = f"{npm.MODULES / '.bin'}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "HOME": home, "PYTHONPATH": str(ROOT), **more}


def printed(command: list[str], given: str, **more: str) -> Found:
    with tempfile.TemporaryDirectory(prefix="gateway-matrix-") as home:
        done = subprocess.run(
            command,
            env=environment(home, **more),
            cwd=npm.FOLDER if command[0] == node("node") else ROOT,
            input=given,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return dict(json.loads(lines[-1]))


def python(program: str, home: str = "", mode: str = "") -> Callable[[Targets], Found]:
    """Return a function that runs `program` of tests/matrix/programs.py.

    The program runs in the virtual environment `home`, or in the current one if `home` is empty.
    """
    command = [python_of(home) if home else sys.executable, "-m", "tests.matrix.programs", program]
    return lambda targets: printed(command, json.dumps({"mode": mode, "targets": targets}))


def typescript(sdk: str, mode: str = "") -> Callable[[Targets], Found]:
    command = [node("node"), "matrix.mjs"]
    return lambda targets: printed(command, json.dumps({"targets": targets}), SDK=sdk, MODE=mode)


def inspector(era: str) -> Callable[[Targets], Found]:
    def run(targets: Targets) -> Found:
        return {server: inspected(era, target) for server, target in targets.items()}

    return run


def inspected(era: str, target: dict[str, Any]) -> dict[str, str]:
    """Return the results of Inspector's command line, with one process per request."""
    found = {}
    for ability, ask in target["asks"].items():
        if ability in ("list", "call", "prompt", "resource"):
            found[ability] = inspected_once(era, target, asked_of_inspector(ability, ask), ask["says"])
    return found


def asked_of_inspector(ability: str, ask: dict[str, Any]) -> list[str]:
    if ability == "call":
        arguments = ["--tool-args-json", json.dumps(ask["arguments"])]
        return ["--method", "tools/call", "--tool-name", ask["name"], *arguments]
    if ability == "prompt":
        pairs = [word for name, value in ask["arguments"].items() for word in ("--prompt-args", f"{name}={value}")]
        return ["--method", "prompts/get", "--prompt-name", ask["name"], *pairs]
    return ["--method", "resources/read", "--uri", ask["name"]] if ability == "resource" else ["--method", "tools/list"]


def inspected_once(era: str, target: dict[str, Any], asked: list[str], says: str) -> str:
    header = ["--header", f"Authorization: Bearer {target['token']}"] if target["token"] else []
    server = ["--cli", "--server-url", target["url"], "--transport", "http", "--protocol-era", era, *header]
    with tempfile.TemporaryDirectory(prefix="gateway-matrix-") as home:
        try:
            done = subprocess.run(
                [node("mcp-inspector"), *server, *asked, "--format", "json"],
                env=environment(home),
                capture_output=True,
                text=True,
                timeout=INSPECTOR_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "no end"
    return "" if done.returncode == 0 and re.search(says, done.stdout) else (done.stdout + done.stderr)[-300:]


MODERN = "2026-07-28"
CLIENTS = {
    "Python SDK 1": Client(python("sdk-1", "conformance-v1"), lambda: pip_version("conformance-v1", "mcp")),
    "Python SDK 2, legacy": Client(python("sdk-2", mode="legacy"), lambda: pip_version("", "mcp")),
    "Python SDK 2, auto": Client(python("sdk-2", mode="auto"), lambda: pip_version("", "mcp")),
    f"Python SDK 2, {MODERN}": Client(python("sdk-2", mode=MODERN), lambda: pip_version("", "mcp")),
    "fastmcp": Client(python("fastmcp", "matrix-fastmcp"), lambda: pip_version("matrix-fastmcp", "fastmcp")),
    "TypeScript SDK 1": Client(typescript("1"), lambda: npm_version("@modelcontextprotocol/sdk")),
    "TypeScript SDK 2, legacy": Client(typescript("2", "legacy"), lambda: npm_version("@modelcontextprotocol/client")),
    "TypeScript SDK 2, auto": Client(typescript("2", "auto"), lambda: npm_version("@modelcontextprotocol/client")),
    f"TypeScript SDK 2, {MODERN}": Client(typescript("2", MODERN), lambda: npm_version("@modelcontextprotocol/client")),
    "mcp-remote": Client(python("mcp-remote"), lambda: npm_version("mcp-remote")),
    "Inspector CLI, legacy": Client(inspector("legacy"), lambda: npm_version("@modelcontextprotocol/inspector")),
    "Inspector CLI, modern": Client(inspector("modern"), lambda: npm_version("@modelcontextprotocol/inspector")),
    "LangChain MCP adapters": Client(
        python("langchain", "matrix-agents"), lambda: pip_version("matrix-agents", "langchain-mcp-adapters")
    ),
    "OpenAI Agents SDK": Client(
        python("openai-agents", "matrix-agents"), lambda: pip_version("matrix-agents", "openai-agents")
    ),
    "pydantic-ai": Client(
        python("pydantic-ai", "matrix-agents"), lambda: pip_version("matrix-agents", "pydantic-ai-slim")
    ),
}
