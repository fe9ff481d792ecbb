"""Run a program as its own user, with limits, and end all processes that it started."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runner.document import RunnerEntry, RunnerFile

MESSAGE_BYTES = 16 * 1024 * 1024
LINES, LINE_CHARACTERS = 200, 4000
STDERR_BYTES_PER_SECOND = 1024 * 1024
CLOSE_SECONDS, TERM_SECONDS = 2.0, 3.0
SHARED_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  Searched for files that a program left.
CAPABILITIES = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "KILL": 5, "SETGID": 6, "SETUID": 7}
logger = logging.getLogger("runner")
_killing = asyncio.Lock()
LAUNCH = str(Path(__file__).with_name("launch.py"))
PATH = "/usr/local/bin:/usr/bin:/bin"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def lacking_capabilities() -> list[str]:
    """Return the missing Linux capabilities that this process needs to run each program as a separate user."""
    if os.geteuid() == 0 and not Path("/proc/self/status").exists():
        return []
    effective = int(_status(os.getpid()).get("CapEff", "0"), 16)
    return [f"CAP_{name}" for name, bit in CAPABILITIES.items() if not effective >> bit & 1]


def _status(pid: int) -> dict[str, str]:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return {}


@dataclass(frozen=True)
class ProcessUsage:
    """A process of this machine, and the memory that it uses."""

    pid: int
    parent: int
    uid: int
    session: int
    memory_bytes: int

    def has_home(self, home: Path) -> bool:
        """True if the environment of the process has this HOME.

        Child processes inherit HOME, and keep it even if they leave their session and their parent.
        """
        with contextlib.suppress(OSError):
            return f"HOME={home}".encode() in Path(f"/proc/{self.pid}/environ").read_bytes().split(b"\0")
        return False


def running_processes() -> Iterator[ProcessUsage]:
    """Yield all processes except zombies.

    The user ID of a process is read from its `status` file. The owner of the process's folder in /proc is not
    reliable, because a program can change it.
    """
    for folder in Path("/proc").glob("[0-9]*"):
        found = _status(int(folder.name))
        if found and not found["State"].startswith("Z"):
            session = found.get("NSsid", "0").split()[0]
            memory = int(found.get("VmRSS", "0").split()[0]) * 1024
            yield ProcessUsage(int(folder.name), int(found["PPid"]), int(found["Uid"].split()[0]), int(session), memory)


def closed_above(path: Path) -> Path | None:
    """Return a parent folder of `path` that other users cannot enter; None if they can enter all parent folders."""
    return next((folder for folder in path.resolve().parents if not folder.stat().st_mode & 0o001), None)


@dataclass(frozen=True)
class ProgramAccount:
    """The user and home of a program."""

    uid: int  # 0 stands for the runner's own user.
    guard: int  # The real user ID of the process that kills the program's processes.
    home: Path
    lasting: bool


class Accounts:
    """Gives each program a home and, with isolation `uid`, a user ID.

    A shared program that is started again keeps its home and its user ID.
    """

    def __init__(self, file: RunnerFile) -> None:
        self._homes = file.data / "homes"
        uids = file.uids if file.value("isolation") == "uid" else range(1)
        self._guard, self._uids = uids[0], uids[1:]
        self._taken: set[int] = set()
        self._next = 0
        self._homes.mkdir(parents=True, exist_ok=True)
        self._homes.chmod(0o711)
        for home in self._homes.glob("*.session-*"):
            remove(home)

    @property
    def isolated(self) -> bool:
        return bool(self._uids)

    def closed_folder(self) -> Path | None:
        """Return a folder above the programs' homes that programs cannot enter; None if there is none."""
        return closed_above(self._homes) if self.isolated else None

    async def clear(self) -> None:
        """Kill the program processes that an earlier run of the runner left behind.

        If the processes of a user ID cannot be killed, this user ID counts as in use.
        """
        for uid in {each.uid for each in running_processes() if each.uid in self._uids}:
            if not await kill_user(uid, self._guard):
                self._taken.add(uid)

    def take(self, name: str, *, lasting: bool) -> ProgramAccount:
        """Return a free account with a home. Raises LookupError if no user ID is free.

        A `lasting` account is for a shared program, and its home is kept for the next start. Another account gets a
        new home, which `give_back` removes.
        """
        home = self._homes / (name if lasting else f"{name}.session-{time.time_ns()}")
        uid = self._free_uid(home) if self.isolated else 0
        home.mkdir(mode=0o700, exist_ok=True)
        if uid:
            os.chown(home, uid, uid)
            self._taken.add(uid)
        return ProgramAccount(uid, self._guard, home, lasting)

    def _free_uid(self, home: Path) -> int:
        owners = {each.stat().st_uid for each in self._homes.iterdir()}
        owner = home.stat().st_uid if home.exists() else -1
        if owner in self._uids and owner not in self._taken:
            return owner
        for _ in self._uids:  # Take the user IDs in turn, so that the same one is not used again soon.
            uid = self._uids[self._next % len(self._uids)]
            self._next += 1
            if uid not in self._taken | owners:
                return uid
        raise LookupError("All user IDs of “uids” are in use. Write a longer range.")

    async def give_back(self, account: ProgramAccount) -> None:
        """Kill the account's remaining processes, and remove its files. A `lasting` account keeps its home.

        Without isolation `uid`, processes and files outside the home are left alone, because they belong to the
        runner's own user.
        """
        is_free = not account.uid or await kill_user(account.uid, account.guard)
        try:
            await asyncio.to_thread(self._remove, account)
        finally:
            if is_free:  # Otherwise processes of this user may still be running.
                self._taken.discard(account.uid)

    def _remove(self, account: ProgramAccount) -> None:
        if not account.lasting:
            remove(account.home)
        if account.uid:
            its = ("-mindepth", "1", "-maxdepth", "1", "-uid", str(account.uid))
            remove(*filter(os.path.isdir, SHARED_FOLDERS), matching=its)


def remove(*paths: str | Path, matching: Sequence[str] = ("-maxdepth", "0")) -> None:
    """Remove the files and folders under `paths` that pass `matching`, which are options of the command find(1).

    Without `matching`, remove `paths` themselves.
    """
    # shutil cannot remove folders that are nested too deep.
    command = ["find", *paths, *matching, "-exec", "rm", "-rf", "--", "{}", "+"]
    subprocess.run(command, stderr=subprocess.DEVNULL, check=False)  # noqa: S603


async def kill_user(uid: int, guard: int) -> bool:
    """Kill all processes of a program's user. Return True if it is certain that all were killed."""
    given = json.dumps({"uid": uid, "guard": guard, "kill": True})
    async with _killing:  # One at a time: killers with the same guard could kill each other.
        try:
            killer = await asyncio.create_subprocess_exec(sys.executable, "-I", "-S", LAUNCH, given)
            is_done = await killer.wait() == 0
        except OSError:
            is_done = False
    if not is_done:
        logger.error("The processes of user %d could not be killed.", uid)
    return is_done


class Pace:
    """Slows down a reader. If a second has more than `per_second` bytes, `spend` sleeps until this second ends."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._second, self._spent = 0.0, 0

    async def spend(self, amount: int) -> None:
        if time.monotonic() - self._second >= 1:
            self._second, self._spent = time.monotonic(), 0
        self._spent += amount
        if self._spent > self._per_second:
            await asyncio.sleep(max(0.0, self._second + 1 - time.monotonic()))


class ErrorLines:
    """The last lines of standard error of an entry's programs, without the secrets that the entry was given."""

    def __init__(self, entry: RunnerEntry) -> None:
        self._entry = entry
        self.lines: deque[dict[str, Any]] = deque(maxlen=LINES)

    def add(self, pid: int, text: str) -> None:
        shown = self._entry.masked(text)[:LINE_CHARACTERS]
        self.lines.append({"at": now(), "pid": pid, "text": shown})

    async def read(self, stream: asyncio.StreamReader, pid: int) -> None:
        """Read all of `stream`, and add its lines to `lines`. The end of a line longer than 64 KiB is dropped."""
        pace, rest, dropping = Pace(STDERR_BYTES_PER_SECOND), b"", False
        while chunk := await stream.read(65_536):
            await pace.spend(len(chunk))
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines[1:] if dropping and lines else lines:
                self.add(pid, line.decode(errors="replace").rstrip("\r"))
            dropping = dropping and not lines
            if len(rest) > 65_536:
                if not dropping:
                    self.add(pid, rest.decode(errors="replace"))
                rest, dropping = b"", True
        if rest and not dropping:
            self.add(pid, rest.decode(errors="replace"))


class ProgramProcess:
    """A running program and its children."""

    def __init__(
        self, entry: RunnerEntry, account: ProgramAccount, errors: ErrorLines, process: asyncio.subprocess.Process
    ) -> None:
        self.entry, self.account, self.process = entry, account, process
        self.memory_bytes = 0
        self.reason, self.is_stopped = "", False
        self.started_at = now()
        self.last_exit: dict[str, Any] | None = None
        self.exited = asyncio.Event()
        assert process.stdin
        assert process.stdout
        assert process.stderr
        self.stdin, self.stdout = process.stdin, process.stdout
        self._tasks = [
            asyncio.create_task(errors.read(process.stderr, process.pid)),
            asyncio.create_task(self._await_exit()),
        ]

    @classmethod
    async def start(
        cls,
        entry: RunnerEntry,
        account: ProgramAccount,
        errors: ErrorLines,
        command: list[str],
        variables: Mapping[str, str],
    ) -> "ProgramProcess":
        """Run `command` with the limits of `entry`.

        The environment of the program is `variables`, with default values for PATH, HOME, TMPDIR and LANG.
        """
        limits = {name: entry.limit(name) for name in ("processes", "open_files", "cpu_seconds")}
        folder = entry.fields.get("folder") or str(account.home)
        given = limits | {"uid": account.uid, "folder": folder, "command": command}
        home = str(account.home)
        fixed = {"PATH": PATH, "HOME": home, "TMPDIR": home, "LANG": "C.UTF-8"}
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", LAUNCH, json.dumps(given)),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=fixed | dict(variables),
            start_new_session=True,
            limit=MESSAGE_BYTES,
        )
        return cls(entry, account, errors, process)

    async def _await_exit(self) -> None:
        """Poll until the program exits, because Process.wait() also waits for pipes that a child may hold open."""
        while self.process.returncode is None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        code = self.process.returncode
        name = signal.Signals(-code).name if code < 0 else None
        reason = self.reason or (f"killed by {name}" if name else f"exit code {code}")
        self.last_exit = {"at": now(), "code": None if name else code, "signal": name, "reason": reason}
        try:
            await self._kill_rest()
        finally:
            self.exited.set()

    async def _kill_rest(self) -> None:
        if self.account.uid:
            await kill_user(self.account.uid, self.account.guard)
            return
        for _ in range(20):  # Again, because a process may fork before it is killed.
            rest = self._mine(await asyncio.to_thread(list, running_processes()))
            for each in rest:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(each.pid, signal.SIGKILL)
            if not rest:
                return
            await asyncio.sleep(0.05)

    async def stop(self, reason: str) -> None:
        """Close standard input. If the program does not end, send SIGTERM to it and its children, then SIGKILL."""
        self.reason, self.is_stopped = self.reason or reason, True
        self.stdin.close()
        if not await self._exits_within(CLOSE_SECONDS):
            self._signal(signal.SIGTERM)
            if not await self._exits_within(TERM_SECONDS):
                self._signal(signal.SIGKILL)
        await self.exited.wait()

    def kill(self, reason: str) -> None:
        if self.process.returncode is None:
            self.reason = self.reason or reason
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)

    async def ends_soon(self) -> None:
        """Wait until the program has ended, but at most CLOSE_SECONDS."""
        await self._exits_within(CLOSE_SECONDS)

    async def _exits_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.exited.wait()
        return self.exited.is_set()

    def check_limits(self, processes: Iterable[ProcessUsage]) -> None:
        """Kill the program if it and its children use more memory or processes than the entry allows."""
        mine = self._mine(processes)
        self.memory_bytes = sum(each.memory_bytes for each in mine)
        most = self.entry.limit("memory_mb")
        if self.memory_bytes > most * 1_000_000:
            self.kill(f"used more than {most} MB of memory")
        elif not self.account.uid and len(mine) > self.entry.limit("processes"):
            self.kill(f"started more than {self.entry.limit('processes')} processes")

    def _mine(self, processes: Iterable[ProcessUsage]) -> list[ProcessUsage]:
        if self.account.uid:
            return [each for each in processes if each.uid == self.account.uid]
        return [each for each in processes if each.session == self.process.pid or each.has_home(self.account.home)]
