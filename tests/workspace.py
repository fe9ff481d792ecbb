"""Run `manage.py serve` as separate processes, for tests from outside."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Self

import psycopg

from bench.processes import free_port as free_port  # noqa: PLC0414  (tests take it from here)
from tests import cluster
from tests.commands import Commands
from tests.eventually import PROCESS_PATIENCE

ROOT = Path(__file__).resolve().parent.parent
OWNER = "ana@example.com"
TRUSTED_PROXY = "127.0.0.9"  # A loopback address that no test uses otherwise.
PASSWORD = "correct horse battery staple"


@dataclass
class Serve:
    """One `manage.py serve`, with its own database and data directory."""

    data_dir: Path
    database_url: str
    port: int
    settings: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    @property
    def log_file(self) -> Path:
        return self.data_dir.with_suffix(".log")

    def start(self, *more: str, workers: int = 2, files: tuple[int, int] | None = None) -> Self:
        """Start the command with the options `more`, and wait until the server is ready.

        If the server does not get ready, fail with its output. `files` are the soft and the hard limit of open files.
        """
        command = [sys.executable, "manage.py", "serve", "--port", str(self.port), *more]
        if files is not None:
            limited = f'ulimit -Sn {files[0]} && ulimit -Hn {files[1]} && exec "$@"'
            command = ["sh", "-c", limited, "sh", *command]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--workers", str(workers)],
                cwd=ROOT,
                env=self.environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.wait_until_ready()
        return self

    def environment(self) -> dict[str, str]:
        """Return the process's environment, without settings of the test run."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "DJANGO_"))}
        own = {
            "DATABASE_URL": self.database_url,
            "GATEWAY_DATA_DIR": str(self.data_dir),
            "GATEWAY_ADMIN_EMAIL": OWNER,
            "GATEWAY_ADMIN_PASSWORD": PASSWORD,
            "GATEWAY_PRIVATE_UPSTREAMS": "127.0.0.0/8",
            "DJANGO_SETTINGS_MODULE": "tests.quick_settings",
            "PYTHONUNBUFFERED": "1",
        }
        return inherited | own | self.settings

    def wait_until_ready(self, seconds: float = PROCESS_PATIENCE) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, f"serve ended:\n{self.log()}"
            if is_ready(self.port):
                return
            time.sleep(0.05)
        raise AssertionError(f"serve was not ready in {seconds} s:\n{self.log()}")

    @cached_property
    def commands(self) -> Commands:
        return Commands(self.environment)

    def stop(self) -> None:
        self.commands.stop()
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=PROCESS_PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise
        finally:
            self.process = None

    def log(self) -> str:
        """Return all output of the processes."""
        return self.log_file.read_text(errors="replace")

    def rows(self, query: str, *params: object) -> list[dict[str, Any]]:
        """Run an SQL query directly on the database, and return its rows."""
        connect = psycopg.connect(self.database_url, autocommit=True, row_factory=psycopg.rows.dict_row)
        with closing(connect) as connection:
            cursor = connection.execute(query.encode(), params)
            return cursor.fetchall() if cursor.description else []

    def manage(self, *arguments: str) -> str:
        """Run a management command beside the running server, and return its output."""
        done = self.commands.run(*arguments)
        assert done["code"] == 0, done["told"]
        return str(done["printed"])

    def refusal(self, *arguments: str) -> str:
        """Run a management command that must fail, and return its error."""
        done = self.commands.run(*arguments)
        assert done["code"] != 0, done["printed"]
        return str(done["told"])

    def issue_token(self, *, host: str, gateway: str, user: str = OWNER) -> dict[str, str]:
        """Issue a token that acts as `user`, and return the JSON object that `issue_token` prints."""
        arguments = ("--user", user, "--host", host, "--gateway", gateway)
        return dict(json.loads(self.manage("issue_token", *arguments)))


def new(directory: Path, name: str, **settings: str) -> Serve:
    """Return a `Serve` that is not started yet, with a new, migrated database in the test run's cluster."""
    data_dir = directory / name
    data_dir.mkdir(mode=0o700)
    database_url = cluster.fresh_database(f"{name}_{os.getpid()}", cluster.tables())
    return Serve(data_dir, database_url, free_port(), {**cluster.keys(), **settings})


def is_ready(port: int) -> bool:
    """Return True if the server on this port is ready."""
    # Not httpx, which reads the machine's certificates each time: this is called very often.
    with closing(HTTPConnection("localhost", port, timeout=2)) as asked, suppress(OSError, HTTPException):
        asked.request("GET", "/readyz")
        return asked.getresponse().status == HTTPStatus.OK
    return False
