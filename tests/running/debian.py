"""A PostgreSQL that is not ours: the one this machine has installed, as a server of its own."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from tests.workspace import free_port


def programs() -> Path:
    """Where this machine's PostgreSQL server lives: the oldest, if there are several."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found and (own := shutil.which("initdb")):
        found = [Path(own)]
    assert found, "These tests need a PostgreSQL server that is not ours: install Debian's package postgresql."
    return found[0].parent


@contextmanager
def postgres(binaries: Path) -> Iterator[str]:
    """The URL of an empty database on a server that asks for a password over TCP."""
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
    run("initdb", "-D", data, "-U", "gateway", "--auth=scram-sha-256", f"--pwfile={secret}", "--encoding=UTF8")
    options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder}"
    run("pg_ctl", "start", "-w", "-D", data, "-l", str(folder / "log"), "-o", options)
    try:
        yield f"postgresql://gateway:p%40ss%2Fword@127.0.0.1:{port}/postgres"
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", data)
        shutil.rmtree(folder, ignore_errors=True)


def restart(binaries: Path, url: str) -> None:
    """Restart the server of `postgres`, as its operator would; it is back when this returns."""
    with psycopg.connect(url) as connection:
        (data,) = connection.execute("SHOW data_directory").fetchone() or ("",)
    command = [binaries / "pg_ctl", "restart", "-w", "-m", "fast", "-D", data, "-l", f"{data}/../log"]
    subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL, **as_account())


def stop(binaries: Path, url: str) -> None:
    """End the server of `postgres` as a machine that is switched off."""
    with psycopg.connect(url) as connection:
        (data,) = connection.execute("SHOW data_directory").fetchone() or ("",)
    command = [binaries / "pg_ctl", "stop", "-w", "-m", "immediate", "-D", data]
    subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL, **as_account())


def as_account() -> dict[str, Any]:
    """As whom these programs run, in the words of subprocess: they refuse root."""
    if os.geteuid() != 0:
        return {}
    account = pwd.getpwnam("postgres")
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
