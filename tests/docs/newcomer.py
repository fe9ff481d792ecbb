"""A newcomer, who has only the README's start command and a terminal."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.docs.pages import ROOT
from tests.eventually import PROCESS_PATIENCE
from tests.workspace import free_port

WELCOME = re.compile(
    r"Gateway Admin [\d.]+(?: \(\w+\))? runs at (\S+)\nSign in as (\S+) with the password (\S+) \(shown only now\)"
)


class Terminal:
    """A shell that stays open between the commands of a tutorial."""

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
        """Return the output of the commands; `typed` has the person's input, one line for each prompt."""
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        self.shell.stdin.write("\n".join([*block.splitlines(), *typed, "echo; echo end of block", ""]))
        self.shell.stdin.flush()
        return "".join(iter(self.shell.stdout.readline, "end of block\n")).strip()

    def close(self) -> None:
        self.shell.communicate(timeout=60)


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A workspace started by the README's command, with the printed address, e-mail and password."""

    url: str
    email: str
    password: str
    environment: dict[str, str]


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
        process.wait(timeout=PROCESS_PATIENCE)


def welcome(process: subprocess.Popen[bytes], log: Path) -> tuple[str, str, str]:
    """Return the printed address, e-mail and password, once the workspace answers."""
    deadline = time.monotonic() + PROCESS_PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        if found := WELCOME.search(log.read_text()):
            url, email, password = found.groups()
            assert httpx.get(f"{url}/readyz").status_code == 200
            return url, email, password
        time.sleep(0.1)
    raise AssertionError(log.read_text())
