"""The processes of one `serve`: its workers and its chores process."""

import psutil


def runs(process: psutil.Process) -> bool:
    """Return True if the process has not ended; a zombie has ended."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def workers(pid: int) -> list[psutil.Process]:
    """Return the worker processes of the `serve` with this process id."""
    return [child for child in _children(pid) if not _does_chores(child)]


def chores(pid: int) -> list[psutil.Process]:
    """Return the chores processes of the `serve` with this process id: one, or two while a new one takes over."""
    return [child for child in _children(pid) if _does_chores(child)]


def _children(pid: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children() if runs(child)]


def _does_chores(process: psutil.Process) -> bool:
    try:
        return any(file.path.endswith("/chores.lock") for file in process.open_files())
    except psutil.NoSuchProcess:
        return False
