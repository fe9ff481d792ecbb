"""The npm clients and servers of package.json: installed once, run as separate processes.

If npm or its registry is missing, the tests that use these programs fail. They are not skipped, because a skipped
check proves nothing.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.workspace import free_port

FOLDER = Path(__file__).resolve().parent
MODULES = FOLDER / "node_modules"


@dataclass(frozen=True, slots=True)
class Npm:
    """The installed packages, and a temporary home."""

    home: Path

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment with the packages' Node first in PATH, because most machines have an older one."""
        path = f"{MODULES / '.bin'}{os.pathsep}{os.environ['PATH']}"
        return {"PATH": path, "HOME": str(self.home)}

    def run(self, program: str, *arguments: str, **settings: str) -> str:
        """Return the program's output; fails unless it succeeds within three minutes."""
        done = subprocess.run(
            [MODULES / ".bin" / program, *arguments],
            env=self.environment | settings,
            cwd=FOLDER,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, f"{program}: {done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="session")
def npm(tmp_path_factory: pytest.TempPathFactory) -> Npm:
    install()
    return Npm(tmp_path_factory.mktemp("npm"))


def install(folder: Path = FOLDER) -> None:
    """Install a folder's node_modules by its lock file; other processes of the run wait."""
    with (folder / ".install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = hashlib.sha256((folder / "package-lock.json").read_bytes()).hexdigest()
        mark = folder / "node_modules" / ".installed"
        if mark.exists() and mark.read_text() == wanted:
            return
        npm = shutil.which("npm")
        assert npm, "npm is needed to run real MCP clients; install Node 20 or newer."
        done = subprocess.run(
            [npm, "ci", "--no-progress"], cwd=folder, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        mark.write_text(wanted)


@pytest.fixture(scope="module")
def everything(npm: Npm) -> Iterator[str]:
    """The address of npm's server-everything."""
    port = free_port()
    command = [str(MODULES / ".bin" / "mcp-server-everything"), "streamableHttp"]
    with listening(npm, command, port, PORT=str(port)):
        yield f"http://127.0.0.1:{port}/mcp"


@contextlib.contextmanager
def listening(npm: Npm, command: Sequence[str], port: int, **settings: str) -> Iterator[None]:
    """Run the command as a process that listens at `port`; its output is shown if the block fails."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=npm.environment | settings, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for(process, port)
            yield
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace"))
            raise
        finally:
            process.kill()
            process.wait()


def wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    """Return once the process listens on `port`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, f"{process.args!r} ended by itself"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError(f"{process.args!r} did not start")
