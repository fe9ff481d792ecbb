"""`manage.py serve`, started as an operator starts it, with only the settings that a test gives."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.eventually import PROCESS_PATIENCE
from tests.workspace import ROOT, free_port, is_ready

PASSWORD_LINE = re.compile(r"^Sign in as (\S+) with the password (\S+) \(shown only now\)\.$", re.MULTILINE)


def environment(home: Path, **settings: str) -> dict[str, str]:
    """Return the environment of a command, without the test run's own settings."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "DATABASE_", "DJANGO_"))
    }
    return inherited | {"GATEWAY_DATA_DIR": str(home), "PYTHONUNBUFFERED": "1"} | settings


def manage(home: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a management command to its end."""
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env=environment(home, **settings),
        capture_output=True,
        text=True,
        timeout=PROCESS_PATIENCE,
        check=False,
    )


@dataclass
class Started:
    """A running `serve` and its processes, in their own process group."""

    home: Path
    port: int
    process: subprocess.Popen[bytes]
    log_file: Path

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def greeting(self) -> str:
        """Return the output for people, without log lines."""
        return "\n".join(line for line in self.log().splitlines() if line and not line.startswith("{"))

    def is_ready(self) -> bool:
        return is_ready(self.port)

    def wait(self, seconds: float = PROCESS_PATIENCE) -> None:
        """Wait until the server is ready; fails with the server's output if it ends or takes longer."""
        deadline = time.monotonic() + seconds
        while not self.is_ready():
            assert self.process.poll() is None, f"serve ended with {self.process.returncode}:\n{self.log()}"
            assert time.monotonic() < deadline, f"serve was not ready in {seconds} s:\n{self.log()}"
            time.sleep(0.05)

    def stop(self) -> int:
        """Ask the process to end, like Ctrl-C or a service manager; return its exit code."""
        self.process.terminate()
        return self.process.wait(timeout=PROCESS_PATIENCE)

    def kill(self) -> None:
        """Kill the whole process group at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def serving(
    home: Path, settings: Mapping[str, str] | None = None, *, workers: int = 1, port: int = 0
) -> Iterator[Started]:
    """Yield a ready `serve` on the data directory `home`; kill it at the end if it still runs."""
    started = start(home, settings, workers=workers, port=port)
    try:
        started.wait()
        yield started
    finally:
        if started.process.poll() is None:
            started.kill()


def start(home: Path, settings: Mapping[str, str] | None = None, *, workers: int = 1, port: int = 0) -> Started:
    port = port or free_port()
    log_file = home.with_name(f"{home.name}-{port}-{time.monotonic_ns()}.log")
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "manage.py", "serve", "--port", str(port), "--workers", str(workers)],
            cwd=ROOT,
            env=environment(home, **(settings or {})),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return Started(home, port, process, log_file)


def password_of(greeting: str) -> tuple[str, str] | None:
    """Return the e-mail and password that a first start printed; None if it printed none."""
    found = PASSWORD_LINE.search(greeting)
    return (found[1], found[2]) if found else None


def signs_in(url: str, email: str, password: str) -> bool:
    """Return True if this person can sign in."""
    with httpx.Client(base_url=url) as browser:
        return sign_in(browser, email, password)


def sign_in(browser: httpx.Client, email: str, password: str) -> bool:
    """Sign this person in with the browser; return True if that worked."""
    page = browser.get("/accounts/login/")
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
    assert token, page.text
    form = {"csrfmiddlewaretoken": token[1], "login": email, "password": password}
    origin = str(browser.base_url).rstrip("/")
    answer = browser.post("/accounts/login/", data=form, headers={"Origin": origin})
    return answer.status_code == httpx.codes.FOUND
