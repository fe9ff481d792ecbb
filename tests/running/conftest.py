"""Data directories, one of them with a finished first start to copy."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.running.starts import serving


# Not pytest's own folder: each pytest run closes that one to others, also to the account of PostgreSQL.
@contextmanager
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="gateway-admin-", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture(scope="session")
def finished() -> Iterator[Path]:
    """A data directory whose first start has been and gone."""
    with folder() as path:
        with serving(path / "var") as served:
            assert served.stop() == 0, served.log()
        assert postmaster(path / "var") is None, served.log()
        yield path / "var"


@pytest.fixture
def home(finished: Path) -> Iterator[Path]:
    """A copy of it for one test; its PostgreSQL is ended with the test."""
    with folder() as path:
        copy = path / "var"
        subprocess.run(["cp", "-a", str(finished), str(copy)], check=True)
        yield copy
        end_postgres(copy)


@pytest.fixture
def fresh() -> Iterator[Path]:
    """A data directory nobody has started in."""
    with folder() as path:
        yield path / "var"
        end_postgres(path / "var")


def end_postgres(home: Path) -> None:
    pid = postmaster(home)
    if pid is not None:
        subprocess.run(["kill", f"-{signal.SIGQUIT}", str(pid)], check=False, capture_output=True)


def postmaster(home: Path) -> int | None:
    """The process id of the embedded PostgreSQL; None when it does not run."""
    try:
        return int((home / "postgres" / "postmaster.pid").read_text().splitlines()[0])
    except FileNotFoundError:
        return None
