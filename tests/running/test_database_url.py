"""The same on a PostgreSQL of the operator's own."""

import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.running.debian import postgres, programs
from tests.running.starts import manage, password_of, serving, signs_in
from tests.running.test_refusals import KEYS


@pytest.fixture
def database_url() -> Iterator[str]:
    binaries = programs()
    if binaries is None and not os.environ.get("CI"):
        pytest.skip("needs a PostgreSQL server, such as Debian's package postgresql; CI installs it")
    assert binaries is not None
    with postgres(binaries) as url:
        yield url


def test_serves_from_another_postgresql(fresh: Path, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        assert connection.info.server_version >= 150000
    settings = {"DATABASE_URL": database_url, **KEYS}

    with serving(fresh, workers=2, **settings) as served:
        printed = password_of(served.greeting())
        assert printed is not None
        assert signs_in(served.url, *printed)
        arguments = ("issue_token", "--user", printed[0], "--host", "CI bot", "--gateway", "quickstart")
        assert manage(fresh, *arguments, **settings).returncode == 0
        assert served.stop() == 0

    assert not (fresh / "postgres").exists()
    assert not (fresh / "keys").exists()
    with serving(fresh, **settings) as again:
        assert password_of(again.greeting()) is None
        assert signs_in(again.url, *printed)
