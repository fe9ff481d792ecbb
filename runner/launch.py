"""Start a program as its own user and with its limits, or kill all processes of a program's user.

`runner.process` runs this script in a new Python process without site-packages, so the script imports only the standard
library. The program's environment is passed as the environment of the script, not as an argument, because other users
can read the arguments of a process.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any

PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 1, 24, 38, 47, 4
HIGHEST_CAPABILITY = 63


def main() -> None:
    given = json.loads(sys.argv[1])
    prctl = ctypes.CDLL(None).prctl
    if not given.get("kill"):
        set_limits(given)
    if given["uid"]:
        become(given["uid"], prctl, given.get("guard") or given["uid"])
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    if prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        sys.exit("runner: this system cannot refuse new privileges")
    if given.get("kill"):
        kill_all_of(given["uid"], given["guard"])
        return
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    command = given["command"]
    try:
        os.chdir(given["folder"])
        os.execvp(command[0], command)  # noqa: S606  A list from runner.yaml; no shell reads it.
    except OSError as error:
        sys.exit(f"runner: cannot run {command[0]} in {given['folder']}: {error.strerror}")


def set_limits(given: dict[str, Any]) -> None:
    limits = [(resource.RLIMIT_CORE, 0, 0), (resource.RLIMIT_NOFILE, given["open_files"], given["open_files"])]
    if given["uid"]:  # Without a user of its own, the processes of other programs would count too.
        limits.append((resource.RLIMIT_NPROC, given["processes"], given["processes"]))
    if given["cpu_seconds"]:
        limits.append((resource.RLIMIT_CPU, given["cpu_seconds"], given["cpu_seconds"] + 1))
    for kind, soft, hard in limits:
        highest = resource.getrlimit(kind)[1]
        most = hard if highest == resource.RLIM_INFINITY else min(hard, highest)  # Root may be unable to raise a limit.
        resource.setrlimit(kind, (min(soft, most), most))
    os.umask(0o077)


def become(uid: int, prctl: Any, real: int) -> None:
    for capability in range(HIGHEST_CAPABILITY + 1):
        prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    # With another real and saved user than `uid`, the killing process can signal the program, but not the reverse.
    os.setresuid(real, uid, real)
    # The kernel removes capabilities by itself only if this process was root.
    if ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()):
        sys.exit("runner: capabilities cannot be given up")


def kill_all_of(uid: int, guard: int) -> None:
    """Kill all processes of user `uid`.

    The effective user of this process must be `uid`; its real and saved user must be `guard`.
    """
    if os.getresuid() != (guard, uid, guard) or 0 in (uid, guard):
        sys.exit("runner: this process does not run as the user of a program")
    with contextlib.suppress(ProcessLookupError):  # There is no other process in this container.
        # Processes cannot escape by forking fast: one call kills them all, and none can change its user.
        os.kill(-1, signal.SIGKILL)


if __name__ == "__main__":
    main()
