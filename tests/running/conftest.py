"""Data directories, one of them with a finished first start to copy."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running.starts import serving


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory whose first start has been and gone."""
    home = tmp_path_factory.mktemp("finished") / "var"
    with serving(home) as served:
        assert served.stop() == 0, served.log()
    assert postmaster(home) is None, served.log()
    return home


@pytest.fixture
def home(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it for one test; its PostgreSQL is ended with the test."""
    copy = tmp_path / "var"
    subprocess.run(["cp", "-a", str(finished), str(copy)], check=True)
    yield copy
    end_postgres(copy)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Path]:
    """A data directory nobody has started in."""
    home = tmp_path / "var"
    yield home
    end_postgres(home)


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
