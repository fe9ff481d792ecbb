"""PgBouncer in front of a PostgreSQL server: few database sessions for many clients."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

import psycopg

from tests.eventually import PATIENCE, eventually
from tests.running.debian import as_account
from tests.workspace import free_port

CONFIGURATION = """
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {home}/users
logfile = {home}/log
pidfile = {home}/pid
pool_mode = {mode}
default_pool_size = {size}
{more}
"""


def program() -> Path:
    """Return the PgBouncer program named by TEST_PGBOUNCER, otherwise the installed one."""
    found = os.environ.get("TEST_PGBOUNCER") or shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
    assert found, "These tests need PgBouncer: install Debian's package pgbouncer, or name another in TEST_PGBOUNCER."
    return Path(found)


def version() -> tuple[int, int]:
    told = subprocess.run([program(), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"PgBouncer (\d+)\.(\d+)", told)
    assert found, told
    return int(found[1]), int(found[2])


@contextmanager
def pooler(url: str, mode: str = "transaction", size: int = 3, more: str = "") -> Iterator[str]:
    """Yield a URL that leads through PgBouncer to the database of `url`, with the same database role."""
    there, listen = urlsplit(url), free_port()
    home = Path(tempfile.mkdtemp(prefix="gateway-admin-pooler-"))
    user, secret = unquote(there.username or ""), unquote(there.password or "")
    (home / "users").write_text(f'"{user}" "{secret}"\n')
    words = {"host": there.hostname, "port": there.port, "listen": listen, "home": home}
    (home / "pgbouncer.ini").write_text(CONFIGURATION.format(**words, mode=mode, size=size, more=more))
    for path in (home, *home.iterdir()):
        shutil.chown(path, as_account().get("user", os.geteuid()))
    with (home / "out").open("wb") as out:
        command: list[Path | str] = [program(), "--quiet", str(home / "pgbouncer.ini")]
        process = subprocess.Popen(command, cwd="/", stdout=out, stderr=out, start_new_session=True, **as_account())
    pooled = urlunsplit(there._replace(netloc=f"{there.netloc.rpartition(':')[0]}:{listen}"))
    try:
        eventually(lambda: process.poll() is not None or _answers(pooled))
        assert process.poll() is None, (home / "out").read_text() + (home / "log").read_text()
        yield pooled
    finally:
        process.kill()  # From PgBouncer 1.23 on, SIGTERM waits for the clients.
        process.wait(timeout=PATIENCE)
        shutil.rmtree(home, ignore_errors=True)


def _answers(url: str) -> bool:
    try:
        with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)
    except psycopg.OperationalError:
        return False
