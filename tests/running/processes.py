"""The processes of one `serve`: those that serve requests, and the one that does the chores."""

import psutil


def runs(process: psutil.Process) -> bool:
    """Whether it does anything; a zombie only waits for somebody to read its exit code."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def workers(pid: int) -> list[psutil.Process]:
    """The processes of the `serve` with this process id that serve requests."""
    return [child for child in _children(pid) if not _does_chores(child)]


def chores(pid: int) -> list[psutil.Process]:
    """Those that do the chores: one, but for the moment in which another takes its place."""
    return [child for child in _children(pid) if _does_chores(child)]


def _children(pid: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children() if runs(child)]


def _does_chores(process: psutil.Process) -> bool:
    try:
        return any(file.path.endswith("/chores.lock") for file in process.open_files())
    except psutil.NoSuchProcess:
        return False
