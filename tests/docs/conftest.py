"""One workspace for all tests of a process that follow the README."""

import os
import re
from collections.abc import Iterator

import pytest

from tests import cluster
from tests.cases import full
from tests.docs.newcomer import Newcomer, Terminal, started
from tests.docs.pages import ROOT
from tests.running.conftest import folder

README = (ROOT / "README.md").read_text()
QUICKSTART = (ROOT / "docs" / "quickstart.md").read_text()


@pytest.fixture(scope="session", params=["with tables", full("embedded")])
def newcomer(request: pytest.FixtureRequest) -> Iterator[Newcomer]:
    """A newcomer's workspace. For speed, its database is migrated; the full tests also use a new embedded database."""
    start = re.search(r"^make run$", README, re.MULTILINE)
    again = re.search(r"^(GATEWAY_PRIVATE_UPSTREAMS)=(\S+) make run$", QUICKSTART, re.MULTILINE)
    assert start
    assert again
    database = {}
    if request.param == "with tables":
        database = {"DATABASE_URL": cluster.fresh_database(f"readme_{os.getpid()}", cluster.tables()), **cluster.keys()}
    with folder() as path:
        yield from started(start.group(), path, {again[1]: again[2], **database})


@pytest.fixture
def terminal(newcomer: Newcomer) -> Iterator[Terminal]:
    opened = Terminal(**newcomer.environment)
    yield opened
    opened.close()
