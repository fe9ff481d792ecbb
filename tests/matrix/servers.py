"""The servers in the compatibility table: their commands, and the requests to each.

A stdio server runs behind a bridge that serves it over HTTP, because people run it this way.
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
    """Return a request to call or get `name`; its answer must match the regular expression `says`."""
    return {"name": name, "arguments": arguments or {}, "says": says}


@dataclass(frozen=True, slots=True)
class Server:
    """One server of the table."""

    command: Callable[[int, str], list[str]]
    """Returns the command that starts the server, from the port and a folder the server may write to."""
    asks: dict[str, Any]
    """The request for each ability that the server offers. `session` and `cancel` send calls on one connection."""
    version: Callable[[], str]


def npm_version(package: str) -> str:
    return str(json.loads((npm.MODULES / package / "package.json").read_text())["version"])


def pip_version(environment: str, package: str) -> str:
    """Return the version of a package in this environment; an empty name means .venv."""
    python = python_of(environment) if environment else sys.executable
    code = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
    return subprocess.run([python, "-c", code, package], capture_output=True, text=True, check=True).stdout.strip()


def python_of(environment: str) -> str:
    return str(Path(sys.prefix) / environment / "bin" / "python")


def node(program: str) -> str:
    return str(npm.MODULES / ".bin" / program)


def supergateway(port: int, command: str) -> list[str]:
    """Return the command that serves a stdio `command` at http://127.0.0.1:port/mcp with sessions."""
    options = ["--outputTransport", "streamableHttp", "--stateful", "--port", str(port), "--streamableHttpPath", "/mcp"]
    return [node("supergateway"), "--stdio", command, *options, "--logLevel", "none"]


def bridged_by_mcp_proxy(port: int, *command: str) -> list[str]:
    program = str(Path(python_of("matrix-agents")).parent / "mcp-proxy")
    return [program, "--port", str(port), "--host", "127.0.0.1", "--", *command]


def counted(says: str = "call") -> list[Ask]:
    return [asked("count", says=rf"{says} {number}\b") for number in (1, 2, 3)]


def by_its_defaults(name: str, version: Callable[[], str], **more: Ask) -> Server:
    """Return a server of tests/conformance. It uses its library's default settings, and speaks both eras."""
    asks = {
        "list": {"says": "test_simple_text"},
        "call": asked("test_simple_text", says="simple text response"),
        "prompt": asked("test_prompt_with_arguments", {"arg1": "one", "arg2": "two"}, "two"),
        "resource": asked("test://static-text", says="static text"),
        "progress": asked("test_tool_with_progress"),
        "session": counted(),
        **more,
    }
    return Server(lambda port, folder: [*fixtures.FIXTURES[name].program, str(port)], asks, version)


SAMPLED = "said by a model"
ROOTS = "file:///home/ana/work"
IN_EITHER_ERA = {
    "elicitation": asked("ask", says="accept.*Ana"),
    "sampling": asked("say", says=SAMPLED),
    "roots": asked("folders", says=ROOTS),
}


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
            "sampling": asked("trigger-sampling-request", {"prompt": "Say it"}, SAMPLED),
            "roots": asked("get-roots-list", says=ROOTS),
        },
        lambda: npm_version("@modelcontextprotocol/server-everything"),
    ),
    "server-memory via supergateway": Server(
        lambda port, folder: supergateway(port, f"{node('node')} {node('mcp-server-memory')}"),
        {"list": {"says": "read_graph"}, "call": asked("read_graph", says="entities")},
        lambda: f"{npm_version('@modelcontextprotocol/server-memory')}, supergateway {npm_version('supergateway')}",
    ),
    "server-filesystem via supergateway": Server(
        lambda port, folder: supergateway(port, f"{node('node')} {node('mcp-server-filesystem')} {folder}"),
        {
            "list": {"says": "read_text_file"},
            "call": asked("list_allowed_directories", says="Allowed"),
            "session": [asked("list_allowed_directories"), asked("list_allowed_directories", says="Allowed")],
        },
        lambda: f"{npm_version('@modelcontextprotocol/server-filesystem')}, supergateway {npm_version('supergateway')}",
    ),
    "server-time via mcp-proxy": Server(
        lambda port, folder: bridged_by_mcp_proxy(port, python_of("matrix-agents"), "-m", "mcp_server_time"),
        {"list": {"says": "convert_time"}, "call": asked("get_current_time", {"timezone": "UTC"}, "UTC")},
        lambda: (
            f"{pip_version('matrix-agents', 'mcp-server-time')}, mcp-proxy {pip_version('matrix-agents', 'mcp-proxy')}"
        ),
    ),
    "Python SDK 2": by_its_defaults("python-v2", lambda: pip_version("", "mcp"), **IN_EITHER_ERA),
    "TypeScript SDK 2": by_its_defaults(
        "typescript-v2",
        lambda: npm_version("@modelcontextprotocol/server"),
        elicitation=asked("test_input_required_result_elicitation", says="Hello, Ana"),
        sampling=asked("test_input_required_result_sampling", says=SAMPLED),
        roots=asked("test_input_required_result_list_roots", says="1 roots"),
    ),
    "FastMCP 4": by_its_defaults("fastmcp-4", lambda: pip_version("matrix-fastmcp", "fastmcp"), **IN_EITHER_ERA),
    "Python SDK 1": Server(
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
            "sampling": asked("summary", says=SAMPLED),
            "roots": asked("folders", says=ROOTS),
        },
        lambda: pip_version("conformance-v1", "mcp"),
    ),
}


def install() -> None:
    """Install npm's packages and the environments of Python SDK 1, FastMCP and the agent frameworks."""
    fixtures.install()
    fixtures.install_environment(Path(sys.prefix) / "matrix-agents", HERE / "agents.lock")


@contextlib.contextmanager
def running(name: str, folder: Path) -> Iterator[str]:
    """Run this server, and yield the server's address; fails with the server's output if the server does not start."""
    port = free_port()
    environment = dict(os.environ) | {"PATH": f"{npm.MODULES / '.bin'}{os.pathsep}{os.environ['PATH']}"}
    with tempfile.TemporaryFile() as log:
        command = SERVERS[name].command(port, str(folder))
        # A bridge starts child processes, so it runs in a new process session, which is ended as a whole.
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,  # supergateway exits when its standard input is closed.
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            if not fixtures.is_listening(process, port):
                log.seek(0)
                raise AssertionError(f"{name} did not start: {log.read().decode(errors='replace')}")
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
