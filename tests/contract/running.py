"""Runs the workspace under test: its database, `manage.py serve`, and management commands."""

import base64
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import httpx
import psycopg
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from psycopg import sql

from tests.commands import Commands
from tests.contract.web import TLS, Browser

ROOT = Path(__file__).resolve().parent.parent.parent
OWNER, PASSWORD = "ana@example.com", "correct horse battery staple"
LATELY = 600  # Seconds. A sign-in counts as recent for 15 minutes (ACCOUNT_REAUTHENTICATION_TIMEOUT).
RUN_DATABASE = "TEST_RUN_DATABASE"  # PostgreSQL of the test run, where databases may be created and dropped.


@dataclass
class Workspace:
    """A running workspace: address, the owner's browser, database and commands."""

    folder: Path
    database_url: str
    port: int
    checkpoint_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate, repr=False)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list, repr=False)
    _settings: dict[str, str] = field(default_factory=dict, repr=False)
    _owner: Browser | None = field(default=None, repr=False)
    _signed_in_at: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        self._settings = {
            "DATABASE_URL": self.database_url,
            "GATEWAY_DATA_DIR": str(self.folder),
            "GATEWAY_PUBLIC_URL": self.url,
            "GATEWAY_ADMIN_EMAIL": OWNER,
            "GATEWAY_ADMIN_PASSWORD": PASSWORD,
            "GATEWAY_PRIVATE_UPSTREAMS": "127.0.0.0/8",
            "GATEWAY_TRUSTED_PROXIES": "127.0.0.0/8",  # Clients choose their address with X-Forwarded-For.
            "GATEWAY_SECRET_KEY": secrets.token_hex(32),
            "GATEWAY_TOKEN_KEYS": secrets.token_hex(32),
            "GATEWAY_ENCRYPTION_KEYS": Fernet.generate_key().decode(),
            "GATEWAY_CHECKPOINT_KEY": base64.b64encode(self.checkpoint_key.private_bytes_raw()).decode(),
            "DJANGO_SETTINGS_MODULE": "tests.quick_settings",  # The product's settings, with cheap password hashes.
            "PYTHONUNBUFFERED": "1",
        }

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    @property
    def owner(self) -> Browser:
        """Return a browser in which the first owner signed in recently enough to change roles and secrets."""
        if self._owner is None or time.monotonic() - self._signed_in_at > LATELY:
            self._owner, self._signed_in_at = self.sign_in(OWNER, PASSWORD), time.monotonic()
        return self._owner

    def sign_in(self, email: str, password: str) -> Browser:
        browser = Browser.at(self.url)
        browser.sign_in(email, password)
        assert browser.is_signed_in(), f"{email} could not sign in"
        return browser

    def start(self, port: int | None = None, **settings: str) -> None:
        """Start a `serve` with two workers and wait until it is ready."""
        port = port or self.port
        log_file = self.folder.with_name(f"{self.folder.name}-{port}.log")
        command = [sys.executable, "manage.py", "serve", "--port", str(port), "--workers", "2"]
        with log_file.open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment(**settings),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        deadline = time.monotonic() + 180
        while not is_ready(port):
            assert process.poll() is None, f"serve ended:\n{log_file.read_text(errors='replace')}"
            assert time.monotonic() < deadline, f"serve is not ready:\n{log_file.read_text(errors='replace')}"
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop every `serve`, the newest first, and the process that runs management commands."""
        while self.processes:
            self.stop_newest()
        self._commands.stop()

    def stop_newest(self) -> None:
        stop(self.processes.pop())

    def environment(self, **settings: str) -> dict[str, str]:
        """Return the environment of this workspace, without the test run's own settings."""
        ours = ("GATEWAY_", "DJANGO_", "DATABASE_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return inherited | self._settings | settings

    @cached_property
    def _commands(self) -> Commands:
        return Commands(self.environment)

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a management command to its end."""
        done = self._commands.run(*arguments)
        return subprocess.CompletedProcess(arguments, done["code"], done["printed"], done["told"])

    def sql(self, statement: str, *parameters: object, triggers: bool = True) -> list[tuple[Any, ...]]:
        """Run an SQL statement as the database's owner, without triggers if `triggers` is false; return the rows."""
        options = "" if triggers else "-c session_replication_role=replica"
        with closing(psycopg.connect(self.database_url, autocommit=True, options=options)) as connection:
            cursor = connection.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://localhost:{port}/readyz", timeout=5, trust_env=False, verify=TLS).is_success
    except httpx.HTTPError:
        return False


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def own_database(template: str) -> Iterator[str]:
    """Yield the address of a copy of the `template` database, dropped at the end."""
    run, name = os.environ[RUN_DATABASE], f"contract_{uuid4().hex[:12]}"
    with closing(psycopg.connect(run, autocommit=True)) as connection:
        names = {"name": sql.Identifier(name), "template": sql.Identifier(template)}
        connection.execute(sql.SQL("CREATE DATABASE {name} TEMPLATE {template}").format(**names))
    try:
        yield urlunsplit(urlsplit(run)._replace(path=f"/{name}"))
    finally:
        with closing(psycopg.connect(run, autocommit=True)) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
