"""Run management commands in a separate process, so that the calling process does not import the product."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class Commands:
    """Runs management commands one after another in one process (tests/clerk.py), started for the first command."""

    def __init__(self, environment: Callable[[], dict[str, str]]) -> None:
        self._environment = environment  # Read when the process starts.
        self._process: subprocess.Popen[str] | None = None
        self._turn = threading.Lock()

    def run(self, *arguments: str) -> dict[str, Any]:
        """Run a command; return its output as `printed`, its errors as `told`, and its exit status as `code`."""
        with self._turn:
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "tests.clerk"],
                    cwd=ROOT,
                    env=self._environment(),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(f"{json.dumps(arguments)}\n")
            self._process.stdin.flush()
            return dict(json.loads(self._process.stdout.readline()))

    def stop(self) -> None:
        """End the process, so that the next command uses the current settings and keys."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()  # Also closes its pipes.
            self._process = None
