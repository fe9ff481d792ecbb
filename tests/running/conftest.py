"""Data directories, one of them with a finished first start to copy."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests import cluster
from tests.running.starts import serving


# Not pytest's own folder: each pytest run closes that one to others, also to the account of PostgreSQL.
@contextmanager
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="gateway-admin-", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture(scope="session")
def finished() -> Path:
    """A data directory whose first start has been and gone; one for the whole run."""
    home = Path(os.environ[cluster.HOME]) / "finished" / "var"
    with cluster.once("finished") as missing:
        if missing:
            home.parent.mkdir(exist_ok=True)
            with serving(home) as served:
                assert served.stop() == 0, served.log()
            assert postmaster(home) is None, served.log()
    return home


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
