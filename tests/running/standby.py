"""A streaming replica of a PostgreSQL server of tests.running.debian, and its failures."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psutil
import psycopg

from tests.eventually import eventually
from tests.running.debian import UNSYNCED, as_account
from tests.workspace import free_port


@dataclass
class Standby:
    """A running replica; `url` is the URL of the replica's database, which has the primary database's name."""

    binaries: Path
    folder: Path
    port: int
    url: str
    operator: str

    def execute(self, statement: str) -> object:
        """Run a statement on the replica as its superuser; return the first value of the result, or None."""
        with psycopg.connect(self.operator, autocommit=True) as connection:
            row = connection.execute(statement.encode()).fetchone()
            return row[0] if row else None

    def copy(self, server: str) -> None:
        """Copy the data of the primary at the URL `server`, and configure the copy as its replica."""
        self._run("pg_basebackup", "-D", self._data, "-d", server, "-R", "-X", "stream", "-c", "fast", "--no-sync")

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self.folder} {UNSYNCED}"
        self._run("pg_ctl", "start", "-w", "-D", self._data, "-l", str(self.folder / "log"), "-o", options)

    def kill(self) -> None:
        """Kill the replica, like a machine that loses power."""
        self._run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", self._data)

    def freeze(self) -> None:
        """Freeze the replica, like a machine out of memory: it neither answers nor ends."""
        for process in self._processes():
            process.suspend()

    def thaw(self) -> None:
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):  # Ended since, because its client has gone.
                process.resume()

    def _processes(self) -> list[psutil.Process]:
        postmaster = psutil.Process(int((self.folder / "data" / "postmaster.pid").read_text().split()[0]))
        return [postmaster, *postmaster.children()]

    def pause(self) -> None:
        """Let the replica fall behind: it receives data but does not replay them."""
        self.execute("SELECT pg_wal_replay_pause()")
        eventually(lambda: self.execute("SELECT pg_get_wal_replay_pause_state()") == "paused")

    def resume(self) -> None:
        self.execute("SELECT pg_wal_replay_resume()")

    def promote(self) -> None:
        """Promote the replica to a primary."""
        self._run("pg_ctl", "promote", "-w", "-D", self._data)

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def _run(self, program: str, *arguments: str) -> None:
        command: list[Path | str] = [self.binaries / program, *arguments]
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL, **as_account())


def _at(port: int, url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{port}"))


@contextmanager
def standby(binaries: Path, url: str, server: str) -> Iterator[Standby]:
    """Yield a replica of the server at the superuser URL `server`. The replica's URL has database and role of `url`."""
    folder, port = Path(tempfile.mkdtemp(prefix="gateway-admin-standby-")), free_port()
    shutil.chown(folder, as_account().get("user", os.geteuid()))
    here, operator = _at(port, url), _at(port, urlunsplit(urlsplit(server)._replace(path=urlsplit(url).path)))
    made = Standby(binaries, folder, port, here, operator)
    made.copy(server)
    made.start()
    try:
        yield made
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            made.kill()
        shutil.rmtree(folder, ignore_errors=True)
