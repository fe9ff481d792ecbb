"""A first start on an operator's own PostgreSQL instead of the embedded one."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.running.debian import postgres, programs
from tests.running.starts import manage, password_of, serving, signs_in
from tests.running.test_refusals import KEYS

pytestmark = pytest.mark.full


@pytest.fixture
def database_url() -> Iterator[str]:
    with postgres(programs()) as url:
        yield url


def test_serves_from_another_postgresql(fresh: Path, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        assert connection.info.server_version >= 150000
    owner = ("ops@example.com", "a password of the operator's")
    given = {"GATEWAY_ADMIN_EMAIL": owner[0], "GATEWAY_ADMIN_PASSWORD": owner[1]}
    settings = {"DATABASE_URL": database_url, **KEYS}

    with serving(fresh, settings | given, workers=2) as served:
        assert password_of(served.greeting()) is None
        assert owner[1] not in served.log()
        assert signs_in(served.url, *owner)
        words = ("issue_token", "--user", owner[0], "--host", "CI bot", "--gateway", "quickstart")
        assert manage(fresh, *words, **settings).returncode == 0
        assert served.stop() == 0

    assert not (fresh / "postgres").exists()
    assert not (fresh / "keys").exists()
