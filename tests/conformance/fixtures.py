"""Starts the fixture servers, each as a process on its own loopback port."""

import contextlib
import fcntl
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.clients import fixtures as npm
from tests.eventually import PATIENCE
from tests.workspace import ROOT, free_port

SERVERS = Path(__file__).resolve().parent / "servers"
SESSION_ERA = "2025-11-25"
MODERN = "2026-07-28"
SCORED = {SESSION_ERA: 30, MODERN: 37}
"""The number of scenarios that the suite requires, by era."""
V1_HOME = Path(sys.prefix) / "conformance-v1"
FASTMCP_HOME = Path(sys.prefix) / "matrix-fastmcp"
FASTMCP_LOCK = ROOT / "tests" / "matrix" / "fastmcp.lock"
PACKAGE = "tests.conformance.servers"
NO_SUBSCRIPTIONS = frozenset({"resources-subscribe", "resources-unsubscribe"})
"""FastMCP has no handlers for these methods and does not declare the capability."""
FASTMCP_LACKS = NO_SUBSCRIPTIONS | {"dns-rebinding-protection"}
"""FastMCP checks neither Host nor Origin unless `host_origin_protection` is set."""


@dataclass(frozen=True, slots=True)
class Fixture:
    """A fixture server: its command, and the MCP versions it speaks."""

    program: tuple[str, ...]
    revisions: tuple[str, ...] = (SESSION_ERA, MODERN)
    lacks: frozenset[str] = frozenset()
    """Scenarios that the library's public interface cannot pass, even without a gateway."""


FIXTURES = {
    "python-v2": Fixture((sys.executable, "-m", f"{PACKAGE}.python_v2")),
    "typescript-v2": Fixture((str(npm.MODULES / ".bin" / "node"), str(SERVERS / "typescript_v2.mjs"))),
    "fastmcp-4": Fixture((str(FASTMCP_HOME / "bin" / "python"), "-m", f"{PACKAGE}.fastmcp_v4"), lacks=FASTMCP_LACKS),
    "python-v1": Fixture((str(V1_HOME / "bin" / "python"), "-m", f"{PACKAGE}.python_v1"), (SESSION_ERA,)),
}


def install() -> None:
    """Install the npm packages and the environments of Python SDK 1 and FastMCP by their lock files."""
    npm.install()
    install_v1()
    install_environment(FASTMCP_HOME, FASTMCP_LOCK)


def install_v1() -> None:
    """Create the environment of Python SDK 1."""
    install_environment(V1_HOME, SERVERS / "requirements-v1.lock")


def install_environment(home: Path, requirements: Path) -> None:
    """Create a virtual environment from a lock file, once; other processes of the run wait."""
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    home.mkdir(exist_ok=True)
    with home.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        mark = home / ".installed"
        if mark.exists() and mark.read_text() == wanted:
            return
        uv = str(Path(sys.prefix) / "bin" / "uv")
        ran(uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(home))
        python = str(home / "bin" / "python")
        ran(uv, "pip", "sync", "--quiet", "--require-hashes", "--python", python, str(requirements))
        mark.write_text(wanted)


def ran(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}\n{done.stderr}"


@contextlib.contextmanager
def running(name: str, *more: str) -> Iterator[str]:
    """Run this fixture server with the arguments `more`, and yield its address. Needs `install()`."""
    port = free_port()
    with tempfile.TemporaryFile() as log:
        command = [*FIXTURES[name].program, str(port), *more]
        process = subprocess.Popen(command, cwd=ROOT, env=dict(os.environ), stdout=log, stderr=subprocess.STDOUT)
        try:
            if not is_listening(process, port):
                log.seek(0)
                raise AssertionError(f"{name} did not start: {log.read().decode(errors='replace')}")
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            process.kill()
            process.wait()


def is_listening(process: subprocess.Popen[bytes], port: int, seconds: float = PATIENCE) -> bool:
    """Wait up to `seconds` until the process listens on `port`; False as soon as it has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(0.05)
    return False
