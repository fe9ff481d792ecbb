"""The servers of the table: how each is started, and what is asked of it.

A server that speaks stdio alone stands behind a bridge that makes it an HTTP server, as a user would do it.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clients import fixtures as npm
from tests.conformance import fixtures
from tests.workspace import ROOT, free_port

HERE = Path(__file__).resolve().parent
ABILITIES = ("list", "call", "prompt", "resource", "progress", "session", "elicitation", "cancel", "sampling", "roots")

type Ask = dict[str, Any]


def asked(name: str, arguments: dict[str, Any] | None = None, says: str = "") -> Ask:
    """Call or get `name`; the answer looks like the regular expression `says`."""
    return {"name": name, "arguments": arguments or {}, "says": says}


@dataclass(frozen=True, slots=True)
class Server:
    """One server of the table."""

    command: Callable[[int, str], list[str]]
    """From the port and a folder it may write to."""
    asks: dict[str, Any]
    """By ability; what the server does not offer is absent. `session` and `cancel` are several calls on one session."""
    version: Callable[[], str]


def npm_version(package: str) -> str:
    return str(json.loads((npm.MODULES / package / "package.json").read_text())["version"])


def pip_version(environment: str, package: str) -> str:
    """The version of a package in .venv (""), or in an environment beside it."""
    python = python_of(environment) if environment else sys.executable
    code = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
    return subprocess.run([python, "-c", code, package], capture_output=True, text=True, check=True).stdout.strip()


def python_of(environment: str) -> str:
    return str(Path(sys.prefix) / environment / "bin" / "python")


def node(program: str) -> str:
    return str(npm.MODULES / ".bin" / program)


def supergateway(port: int, command: str) -> list[str]:
    """`command`, which speaks stdio, at http://127.0.0.1:port/mcp with sessions."""
    options = ["--outputTransport", "streamableHttp", "--stateful", "--port", str(port), "--streamableHttpPath", "/mcp"]
    return [node("supergateway"), "--stdio", command, *options, "--logLevel", "none"]


def bridged_by_mcp_proxy(port: int, *command: str) -> list[str]:
    program = str(Path(python_of("matrix-agents")).parent / "mcp-proxy")
    return [program, "--port", str(port), "--host", "127.0.0.1", "--", *command]


def fixture(name: str) -> Server:
    """One of the servers of tests/conformance."""
    versions = {
        "python-v1": lambda: pip_version("conformance-v1", "mcp"),
        "python-v2": lambda: pip_version("", "mcp"),
        "typescript-v2": lambda: npm_version("@modelcontextprotocol/server"),
    }
    return Server(
        lambda port, folder: [*fixtures.FIXTURES[name].program, str(port)],
        {
            "list": {"says": "test_simple_text"},
            "call": asked("test_simple_text", says="simple text response"),
            "prompt": asked("test_prompt_with_arguments", {"arg1": "one", "arg2": "two"}, "two"),
            "resource": asked("test://static-text", says="static text"),
            "progress": asked("test_tool_with_progress"),
            "elicitation": asked("test_elicitation", {"message": "Who?"}, "accept.*Ana"),
            "sampling": asked("test_sampling", {"prompt": "Say it"}, "said by a model"),
        },
        versions[name],
    )


SERVERS = {
    "server-everything": Server(
        lambda port, folder: ["env", f"PORT={port}", node("mcp-server-everything"), "streamableHttp"],
        {
            "list": {"says": "get-sum"},
            "call": asked("get-sum", {"a": 2, "b": 3}, "is 5"),
            "prompt": asked("args-prompt", {"city": "Bern"}, "Bern"),
            "resource": asked("demo://resource/static/document/features.md", says="# "),
            "progress": asked("trigger-long-running-operation", {"duration": 0.5, "steps": 3}),
            "elicitation": asked("trigger-elicitation-request", says="provided"),
        },
        lambda: npm_version("@modelcontextprotocol/server-everything"),
    ),
    "server-memory, supergateway": Server(
        lambda port, folder: supergateway(port, f"{node('node')} {node('mcp-server-memory')}"),
        {"list": {"says": "read_graph"}, "call": asked("read_graph", says="entities")},
        lambda: f"{npm_version('@modelcontextprotocol/server-memory')}, {npm_version('supergateway')}",
    ),
    "server-filesystem, supergateway": Server(
        lambda port, folder: supergateway(port, f"{node('node')} {node('mcp-server-filesystem')} {folder}"),
        {
            "list": {"says": "read_text_file"},
            "call": asked("list_allowed_directories", says="Allowed"),
            "session": [asked("list_allowed_directories"), asked("list_allowed_directories", says="Allowed")],
        },
        lambda: f"{npm_version('@modelcontextprotocol/server-filesystem')}, {npm_version('supergateway')}",
    ),
    "server-time, mcp-proxy": Server(
        lambda port, folder: bridged_by_mcp_proxy(port, python_of("matrix-agents"), "-m", "mcp_server_time"),
        {"list": {"says": "convert_time"}, "call": asked("get_current_time", {"timezone": "UTC"}, "UTC")},
        lambda: f"{pip_version('matrix-agents', 'mcp-server-time')}, {pip_version('matrix-agents', 'mcp-proxy')}",
    ),
    "fixture python-v1": fixture("python-v1"),
    "fixture python-v2": fixture("python-v2"),
    "fixture typescript-v2": fixture("typescript-v2"),
    "fastmcp": Server(
        lambda port, folder: [python_of("matrix-fastmcp"), "-m", "tests.matrix.fastmcp_server", str(port)],
        {
            "list": {"says": "add"},
            "call": asked("add", {"a": 20, "b": 33}, "53"),
            "prompt": asked("greet", {"name": "Ana"}, "Ana"),
            "resource": asked("notes://today", says="Nothing"),
            "progress": asked("steps"),
        },
        lambda: pip_version("matrix-fastmcp", "fastmcp"),
    ),
    "counter": Server(
        lambda port, folder: [sys.executable, "-m", "tests.conformance.counter", str(port)],
        {
            "list": {"says": "count"},
            "call": asked("count", says="count"),
            "progress": asked("wait", {"seconds": 1}),
            "session": [asked("count", says=r"count\W+2\b"), asked("count", says=r"count\W+3\b")],
        },
        lambda: "1.0",
    ),
    "page": Server(
        lambda port, folder: [python_of("conformance-v1"), "-m", "tests.conformance.page", str(port)],
        {
            "list": {"says": "navigate"},
            "call": asked("snapshot", says="at "),
            "progress": asked("load", {"seconds": 0.5}),
            "session": [
                asked("navigate", {"url": "http://a.example/"}),
                asked("snapshot", says="at http://a.example/"),
            ],
            "elicitation": asked("dialog", says="accept: "),
            "cancel": [asked("load", {"seconds": 20}), asked("snapshot", says="stopped 1")],
            "sampling": asked("summary", says="said by a model"),
            "roots": asked("folders", says="file:///home/ana/work"),
        },
        lambda: "1.0",
    ),
}


def install() -> None:
    """Every package the table needs: npm's, the Python SDK 1, the agents' and fastmcp's environment."""
    fixtures.install()
    for name in ("agents", "fastmcp"):
        fixtures.install_environment(Path(sys.prefix) / f"matrix-{name}", HERE / f"{name}.lock")


@contextlib.contextmanager
def running(name: str, folder: Path) -> Iterator[str]:
    """The address of this server, running until the block ends; fails with its output when it does not start."""
    port = free_port()
    environment = dict(os.environ) | {"PATH": f"{npm.MODULES / '.bin'}{os.pathsep}{os.environ['PATH']}"}
    with tempfile.TemporaryFile() as log:
        command = SERVERS[name].command(port, str(folder))
        # A bridge has children: all of a session of processes end together.
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            if not fixtures.is_listening(process, port):
                log.seek(0)
                raise AssertionError(f"{name} did not start: {log.read().decode(errors='replace')}")
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
