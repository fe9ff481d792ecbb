"""Apps with a browser, run as separate processes: an app opens a page, a person answers, and the app continues."""

import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import workspace
from tests.clients.fixtures import FOLDER, MODULES, Npm
from tests.clients.person import Person
from tests.workspace import Serve

SECONDS = 90
CALL = {"TOOL": "echo", "ARGUMENTS": '{"text": "hello"}'}


@dataclass(frozen=True, slots=True)
class Desktop:
    """A machine for apps. An app opens a page with the program $BROWSER, which writes the page's URL to a pipe."""

    folder: Path
    environment: Mapping[str, str]

    @property
    def pipe(self) -> Path:
        return self.folder / "opened"

    @property
    def browser(self) -> Path:
        return self.folder / "browser"

    @contextmanager
    def app(self, command: list[str], **settings: str) -> Iterator["App"]:
        """Start a program here; it ends with the block."""
        pipe = os.open(self.pipe, os.O_RDWR | os.O_NONBLOCK)
        output = self.folder / f"app-{time.monotonic_ns()}.out"
        errors = output.with_suffix(".err")
        with output.open("w") as out, errors.open("w") as err:
            process = subprocess.Popen(
                command,
                env=dict(self.environment) | settings,
                cwd=workspace.ROOT,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        try:
            yield App(process, output, errors, pipe)
        finally:
            process.kill()
            process.communicate()
            os.close(pipe)


@dataclass(frozen=True, slots=True)
class App:
    """A running program that may open pages."""

    process: subprocess.Popen[bytes]
    output: Path
    errors: Path
    pipe: int

    def opened(self) -> str:
        """Return the URL the program opens; fails with the program's output if it opens none."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            ready, _, _ = select.select([self.pipe], [], [], 0.2)
            if ready:
                return os.read(self.pipe, 65536).decode().splitlines()[0]
            assert self.process.poll() is None, f"it ended before it opened a page:\n{self.everything()}"
        raise AssertionError(f"it opened no page:\n{self.everything()}")

    def opened_nothing(self) -> bool:
        return not select.select([self.pipe], [], [], 0)[0]

    def send(self, *messages: dict[str, Any]) -> None:
        """Send JSON-RPC messages to a program on its standard input."""
        assert self.process.stdin
        for message in messages:
            self.process.stdin.write(json.dumps({"jsonrpc": "2.0"} | message).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self, number: int) -> dict[str, Any]:
        """Return the program's result for the JSON-RPC message with this id."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            for line in self.said().split("\n")[:-1]:
                message = json.loads(line) if line.startswith("{") else {}
                if message.get("id") == number:
                    return dict(message["result"])
            assert self.process.poll() is None, self.everything()
            time.sleep(0.05)
        raise AssertionError(f"no answer to {number}:\n{self.everything()}")

    def wait_for(self, pattern: str) -> str:
        """Return the first line of the program's output that matches the regular expression."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            if found := re.search(pattern, self.said()):
                return found[0]
            assert self.process.poll() is None, self.everything()
            time.sleep(0.05)
        raise AssertionError(f"it said nothing like {pattern}:\n{self.everything()}")

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def everything(self) -> str:
        """Return the program's whole output, for failure messages."""
        return self.said() + self.errors.read_text(errors="replace")

    def ended(self) -> str:
        """Wait until the program ends successfully, and return the program's output."""
        self.process.wait(timeout=SECONDS)
        assert self.process.returncode == 0, self.everything()
        return self.said()

    def result(self) -> dict[str, Any]:
        """Return the last line of the program's output, parsed as JSON."""
        return dict(json.loads(self.ended().splitlines()[-1]))


@pytest.fixture(scope="module")
def desktop(npm: Npm, tmp_path_factory: pytest.TempPathFactory) -> Desktop:
    folder = tmp_path_factory.mktemp("desktop")
    made = Desktop(folder, npm.environment | {"BROWSER": str(folder / "browser"), "PYTHONPATH": str(workspace.ROOT)})
    os.mkfifo(made.pipe)
    made.browser.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$1\" > '{made.pipe}'\n")
    made.browser.chmod(0o755)
    return made


@pytest.fixture(scope="module")
def owner(live: Serve) -> Iterator[Person]:
    """The workspace's owner in a browser without script."""
    person = Person.signed_in(live.url)
    yield person
    person.http.close()


def node(program: str) -> list[str]:
    return [str(MODULES / ".bin" / "node"), str(FOLDER / program)]


def python(program: str) -> list[str]:
    return [sys.executable, str(FOLDER / program)]


@dataclass(frozen=True, slots=True)
class KeptApp:
    """An app that stores its tokens between starts, as desktop apps do."""

    desktop: Desktop
    gateway_url: str
    store: Path
    name: str = ""

    @property
    def kept(self) -> dict[str, Any]:
        """Return the stored registration, tokens and last PKCE verifier."""
        return dict(json.loads(self.store.read_text()))

    @property
    def tokens(self) -> dict[str, Any]:
        return dict(self.kept["tokens"])

    def connects(self, answer: Callable[[str], object]) -> dict[str, Any]:
        """Start the app, let a person answer the page it opens, and return the app's output."""
        with self._start() as app:
            answer(app.opened())
            return app.result()

    def goes_on(self) -> dict[str, Any]:
        """Start the app again without a person to answer a page, and return the app's output."""
        with self._start() as app:
            said = app.result()
            assert app.opened_nothing()
            return said

    def forget_access(self) -> None:
        """Invalidate the stored access token, as if it had expired; the refresh token stays valid."""
        spoiled = self.tokens | {"access_token": self.tokens["access_token"][:-1] + "!"}
        self.store.write_text(json.dumps(self.kept | {"tokens": spoiled}))

    def _start(self) -> AbstractContextManager[App]:
        named = {"APP_NAME": self.name} if self.name else {}
        told = {"SDK": "1", "GATEWAY_URL": self.gateway_url, "STORE": str(self.store)}
        return self.desktop.app(node("oauth_app.mjs"), **told, **CALL, **named)
