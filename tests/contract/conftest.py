"""The shared workspace, and a server for each test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.contract.running import Workspace, free_port, own_database
from tests.contract.servers import Server, serving
from tests.contract.web import CLIENTS
from tests.contract.world import Place, new_place

type Run = Callable[[Server], Server]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory, migrated: str) -> Iterator[Workspace]:
    """A running workspace, shared by all tests of the folder: create your own rows."""
    folder = tmp_path_factory.mktemp("contract") / "data"
    folder.mkdir(mode=0o700)
    with own_database(migrated) as database_url:
        running = Workspace(folder, database_url, free_port())
        try:
            running.start()
            yield running
        finally:
            CLIENTS.close()
            running.stop()


@pytest.fixture
def run() -> Iterator[Run]:
    """Serve an MCP server until the test ends."""
    with ExitStack() as stack:
        yield lambda server: stack.enter_context(serving(server))


@pytest.fixture
def server(run: Run) -> Server:
    """A server without a credential."""
    return run(Server())


@pytest.fixture
def place(workspace: Workspace, server: Server) -> Place:
    """A new gateway in front of the fixture `server`, with a token."""
    return new_place(workspace, server)
