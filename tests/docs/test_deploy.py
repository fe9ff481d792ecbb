"""The blocks of docs/how-to/deploy.md, run as printed except for addresses and names."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest

from tests import cluster
from tests.docs.pages import ROOT
from tests.eventually import eventually
from tests.running.starts import environment
from tests.workspace import free_port, is_ready

# Each test starts an installation, which takes a few seconds.
pytestmark = pytest.mark.full

DEPLOY = (ROOT / "docs" / "how-to" / "deploy.md").read_text()
PEOPLE = (ROOT / "docs" / "how-to" / "people-and-roles.md").read_text()
OWNER_URL = "postgresql://gateway:secret@db.internal:5432/gateway"
RUNNER_URL = "postgresql://gateway_run:another%20secret@db.internal:5432/gateway"


def block(page: str, beginning: str, language: str = "bash") -> str:
    found = [text for text in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) if text.startswith(beginning)]
    assert found, beginning
    return str(found[-1])


def with_this_python(script: str) -> str:
    python = f"{sys.executable} manage.py"
    return re.sub(r"(?m)(?:\.venv/bin/|(?<=^)|(?<= ))python manage\.py", lambda _: python, script)


@contextmanager
def shell(script: str, home: Path, port: int, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the script in its own shell until the `with` block ends; then stop its processes and wait for the shell."""
    with (home / f"{port}.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-ec", with_this_python(script)],
            cwd=ROOT,
            env=environment(home / "var", **settings),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=90)


def ready(process: subprocess.Popen[bytes], port: int) -> bool:
    assert process.poll() is None
    return is_ready(port)


@pytest.fixture
def database() -> Iterator[tuple[str, str]]:
    """Yield a suffix for the page's role names, and the URL of a PostgreSQL that allows new roles."""
    suffix = str(os.getpid())
    address = os.environ[cluster.ADDRESS]
    yield suffix, address
    with psycopg.connect(address, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS gateway_{suffix} WITH (FORCE)".encode())
        for name in (f"gateway_{suffix}", f"gateway_run_{suffix}"):
            admin.execute(f"DROP ROLE IF EXISTS {name}".encode())


def test_two_roles_as_printed(database: tuple[str, str], tmp_path: Path) -> None:
    suffix, address = database

    def mine(text: str) -> str:
        """Return the text with this run's database URL, and role names that no other run on this PostgreSQL has."""
        for printed in (OWNER_URL, RUNNER_URL):
            role, password = urlsplit(printed).username, urlsplit(printed).password
            place = urlsplit(address)
            own = place._replace(
                netloc=f"{role}:{password}@{place.netloc.rpartition('@')[2]}", path=f"/gateway_{suffix}"
            ).geturl()
            text = text.replace(printed, own.replace(f"{role}:", f"{role}_{suffix}:"))
        return re.sub(r"\b(ROLE|DATABASE|OWNER|GRANT|grant) (gateway(?:_run)?)\b", rf"\1 \2_{suffix}", text)

    with psycopg.connect(address, autocommit=True) as admin:
        for beginning in ("CREATE ROLE gateway ", "CREATE ROLE gateway_run"):
            for statement in mine(block(DEPLOY, beginning, "sql")).split(";"):
                if statement.strip():
                    admin.execute(statement.encode())
    keys = run(block(DEPLOY, "export GATEWAY_SECRET_KEY") + "env | grep _KEY", tmp_path)
    settings = dict(line.split("=", 1) for line in keys.splitlines())
    assert {*cluster.keys()} <= {*settings}
    owner = next(text for text in re.findall(r"```bash\n(.*?)```", DEPLOY, re.DOTALL) if "manage.py grant" in text)
    assert "gateway_run" in owner
    run(mine(owner), tmp_path, **settings)
    url, chores = block(DEPLOY, "DATABASE_URL=postgresql", "crontab").strip().splitlines()
    chores = chores.split("  ", 1)[1].replace("cd /srv/gateway-admin && ", "")
    assert "partitions_dropped" in run(mine(f"export {url}\n{chores}"), tmp_path, **settings)

    port = free_port()
    with shell(
        mine(block(DEPLOY, f"export DATABASE_URL={RUNNER_URL}")), tmp_path, port, PORT=str(port), **settings
    ) as p:
        eventually(lambda: ready(p, port), seconds=180)


def run(script: str, home: Path, **settings: str) -> str:
    done = subprocess.run(
        ["bash", "-ec", with_this_python(script)],
        cwd=ROOT,
        env=environment(home / "var", **settings),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_other_machines_are_let_in_as_printed(tmp_path: Path) -> None:
    port = free_port()
    database = cluster.fresh_database(f"others_{os.getpid()}", cluster.tables())
    script = block(PEOPLE, "GATEWAY_PUBLIC_URL").replace("192.0.2.10:8000", f"127.0.0.7:{port}")
    base = f"http://127.0.0.7:{port}"

    def answers() -> bool:
        try:
            return httpx.get(f"{base}/readyz", trust_env=False).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    with shell(script, tmp_path, port, PORT=str(port), DATABASE_URL=database, **cluster.keys()):
        eventually(answers, seconds=180)
        assert httpx.get(f"{base}/accounts/login/", trust_env=False).status_code == httpx.codes.OK
        assert httpx.get(f"http://localhost:{port}/accounts/login/", trust_env=False).status_code == 400
