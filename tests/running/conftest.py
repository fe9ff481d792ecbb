"""Fixtures: new data directories, copies of one in which the gateway has run once, and two replicas."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest

from tests import cluster
from tests.running.debian import postgres, programs
from tests.running.nginx import Nginx
from tests.running.replicas import Replicas, replicas
from tests.running.starts import password_of, serving, signs_in


# Not pytest's temporary folder, which other accounts, including PostgreSQL's, cannot read.
@contextmanager
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="gateway-admin-", ignore_cleanup_errors=True) as path:
        yield Path(path)


# Each of these variables alone would make libpq connect elsewhere, or fail.
FOREIGN = {
    "PGPORT": "1",
    "PGHOST": "db.invalid",
    "PGHOSTADDR": "203.0.113.1",
    "PGUSER": "nobody",
    "PGDATABASE": "nothing",
    "PGPASSWORD": "wrong",
    "PGSERVICE": "nowhere",
    "PGDATA": "/nowhere",
    "PGREQUIREAUTH": "scram-sha-256",
    "PGCHANNELBINDING": "require",
    "PGGSSENCMODE": "require",
    "PGTARGETSESSIONATTRS": "standby",
    "PGOPTIONS": "-c nonsense=1",
    "PGCLIENTENCODING": "LATIN1",
}


class FirstStart(NamedTuple):
    """Observations of a first start in a new data directory, while PG* variables name another PostgreSQL."""

    url: str
    greeting: str
    logged: list[str]
    signed_in: bool
    code: int
    postmaster: int | None


def finish() -> Path:
    """Return a data directory after its first start and stop. It is made once per test run."""
    home = Path(os.environ[cluster.HOME]) / "finished" / "var"
    with cluster.once("finished") as missing:
        if missing:
            shutil.rmtree(home.parent, ignore_errors=True)
            home.parent.mkdir()
            # A start by root opens closed folders above the data directory, and logs that.
            home.parent.parent.chmod(0o711)
            with serving(home, FOREIGN) as served:
                printed = password_of(served.greeting())
                signed_in = printed is not None and signs_in(served.url, *printed)
                code = served.stop()
            logged = [line for line in served.log().splitlines() if line.startswith("{")]
            seen = FirstStart(served.url, served.greeting(), logged, signed_in, code, postmaster(home))
            home.with_name("seen.json").write_text(json.dumps(seen))
    return home


@pytest.fixture(scope="session")
def finished() -> Path:
    home = finish()
    assert postmaster(home) is None
    return home


@pytest.fixture(scope="session")
def first(finished: Path) -> FirstStart:
    """Observations of the first start in the data directory `finished`."""
    return FirstStart(*json.loads(finished.with_name("seen.json").read_text()))


@pytest.fixture
def home(finished: Path) -> Iterator[Path]:
    """A copy of the directory `finished` for one test; a PostgreSQL still running there is stopped after the test."""
    with folder() as path:
        copy = path / "var"
        subprocess.run(["cp", "-a", str(finished), str(copy)], check=True)
        yield copy
        end_postgres(copy)


@pytest.fixture
def fresh() -> Iterator[Path]:
    """An unused data directory."""
    with folder() as path:
        yield path / "var"
        end_postgres(path / "var")


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    """Two replicas behind nginx, on their own PostgreSQL."""
    with postgres(programs()) as url, replicas(tmp_path_factory.mktemp("replicas"), url, Nginx) as made:
        yield made


def end_postgres(home: Path) -> None:
    pid = postmaster(home)
    if pid is not None:
        subprocess.run(["kill", f"-{signal.SIGQUIT}", str(pid)], check=False, capture_output=True)


def postmaster(home: Path) -> int | None:
    """Return the process id of the embedded PostgreSQL; None if it does not run."""
    try:
        return int((home / "postgres" / "postmaster.pid").read_text().splitlines()[0])
    except FileNotFoundError:
        return None
