"""Cleans up after a killed test run: `python -m tests.reaper FOLDER`.

Standard input is a pipe from the test run, which closes when the run ends. A run that ends normally has already cleaned
up, so nothing is left to do.
"""

import contextlib
import shutil
import signal
import sys
from pathlib import Path

import psutil

MARK = "TEST_RUN_FOLDER"


def main(home: Path) -> None:
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, signal.SIG_IGN)  # A signal that ends the run must not end this process first.
    sys.stdin.buffer.read()
    psutil.wait_procs(ended(home), timeout=10)
    shutil.rmtree(home, ignore_errors=True)


def ended(home: Path) -> list[psutil.Process]:
    """Terminate the processes of this run, and return them."""
    found = [process for process in psutil.process_iter() if belongs(process, home)]
    with contextlib.suppress(OSError, psutil.NoSuchProcess):
        postmaster = (home / "postgres" / "postmaster.pid").read_text().splitlines()[0]
        found.append(psutil.Process(int(postmaster)))
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGQUIT if process.name().startswith("postgres") else signal.SIGTERM)
    return found


def belongs(process: psutil.Process, home: Path) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.pid != psutil.Process().pid and process.environ().get(MARK) == str(home))
    return False


if __name__ == "__main__":
    main(Path(sys.argv[1]))
