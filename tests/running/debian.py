"""Separate PostgreSQL servers, run by the PostgreSQL programs installed on this machine.

`python -m tests.running.debian COMMAND...` runs a command, such as pytest, with such a server as `TEST_DATABASE_URL`.
The installed PostgreSQL must be the oldest supported version, so that every statement of the product runs on this
version before a release. Daily test runs use the embedded PostgreSQL.
"""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from gatewayadmin.config import database
from tests.workspace import free_port


def programs() -> Path:
    """Return the folder of this machine's PostgreSQL programs: the oldest version's, if there are several."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found and (own := shutil.which("initdb")):
        found = [Path(own)]
    assert found, "These tests need a PostgreSQL server that is not ours: install Debian's package postgresql."
    return found[0].parent


# These tests kill servers, not the machine, so data survive without waiting for the disk.
UNSYNCED = "-c fsync=off"
# Like the embedded server of a test run.
OF_A_RUN = "-c max_connections=300 -c full_page_writes=off -c synchronous_commit=off -c checkpoint_timeout=1h"


@contextmanager
def postgres(binaries: Path, more: str = "") -> Iterator[str]:
    """Yield the URL of an empty database on a server with password authentication over TCP.

    `more` are further options of the server.
    """
    account = as_account()
    folder = Path(tempfile.mkdtemp(prefix="gateway-admin-pg-"))
    port = free_port()
    secret = folder / "secret"
    secret.write_text("p@ss/word")
    for path in (folder, secret):
        shutil.chown(path, account.get("user", os.geteuid()))

    def run(program: str, *arguments: str) -> None:
        subprocess.run([binaries / program, *arguments], check=True, cwd="/", stdout=subprocess.DEVNULL, **account)

    data = str(folder / "data")
    run(
        "initdb",
        "--no-sync",
        "-D",
        data,
        "-U",
        "gateway",
        "--auth=scram-sha-256",
        f"--pwfile={secret}",
        "--encoding=UTF8",
        "--locale=C.UTF-8",  # As in the embedded cluster; in the locale C, only ASCII letters have two cases.
    )
    options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} {UNSYNCED} {more}"
    run("pg_ctl", "start", "-w", "-D", data, "-l", str(folder / "log"), "-o", options)
    try:
        yield f"postgresql://gateway:p%40ss%2Fword@127.0.0.1:{port}/postgres"
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", data)
        shutil.rmtree(folder, ignore_errors=True)


def restart(binaries: Path, url: str) -> None:
    """Restart the server of `postgres`, and wait until it is ready."""
    with psycopg.connect(url) as connection:
        (data,) = connection.execute("SHOW data_directory").fetchone() or ("",)
    command = [binaries / "pg_ctl", "restart", "-w", "-m", "fast", "-D", data, "-l", f"{data}/../log"]
    subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL, **as_account())


def as_account() -> dict[str, Any]:
    """Return subprocess arguments that run a program as `postgres` if we are root, which PostgreSQL refuses."""
    if os.geteuid() != 0:
        return {}
    account = pwd.getpwnam("postgres")
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # So that the server is stopped.
    with postgres(programs(), OF_A_RUN) as address:
        with psycopg.connect(address) as connection:
            version, oldest = connection.info.server_version // 10000, database.OLDEST // 10000
        if version != oldest:
            sys.exit(f"The tests before a release need PostgreSQL {oldest}, the oldest supported; this is {version}.")
        environment = os.environ | {"TEST_DATABASE_URL": address}
        sys.exit(subprocess.run(sys.argv[1:], env=environment, check=False).returncode)
