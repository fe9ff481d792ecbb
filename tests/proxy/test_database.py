"""A PostgreSQL connection: each statement gets its own answer, or an error that says that there is no answer."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
import uvloop
from psycopg.pq.abc import PGresult

from gatewayadmin.config import database
from proxy.store.pg import DatabaseFault, DatabaseUnavailable, PgConnection, StatementRejected, StatementTimeout
from tests.eventually import PATIENCE
from tests.proxy.test_group_commit import Carrier, batches_of

pytestmark = pytest.mark.django_db(transaction=True)

SETUP = (
    b"PREPARE one (int) AS SELECT $1",
    b"PREPARE wait (float) AS SELECT pg_sleep($1)",
    b"CREATE TEMPORARY TABLE texts (text text)",
    b"PREPARE length AS SELECT sum(length(text)) FROM texts",
)
type Play = Callable[..., None]

MOST_PARAMETERS = 65_535  # PostgreSQL's limit per statement.


@pytest.fixture
def play() -> Play:
    """Return a function that calls an async function with a new PostgreSQL connection, and closes it afterwards."""

    def play(scene: Callable[[PgConnection], Awaitable[None]], timeout: float = PATIENCE) -> None:
        async def main() -> None:
            connection = PgConnection(database.conninfo(), SETUP, timeout=timeout)
            try:
                await scene(connection)
            finally:
                connection.close()

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())

    return play


def value(result: PGresult) -> bytes | None:
    return result.get_value(0, 0)


def test_the_answer_to_an_abandoned_statement_is_not_taken_for_the_next_ones(play: Play) -> None:
    async def scene(connection: PgConnection) -> None:
        await connection.connect()
        asked = asyncio.create_task(connection.query(b"one", [b"1"]))
        await asyncio.sleep(0)  # Let the statement be sent, and its answer stay unread.
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

        assert not connection.connected
        assert value(await connection.query(b"one", [b"2"])) == b"2"

    play(scene)


@pytest.mark.full
def test_a_statement_that_took_its_time_is_not_sent_again(play: Play) -> None:
    lost: list[bool] = []

    async def scene(connection: PgConnection) -> None:
        await connection.connect()
        connection.on_lost = lambda: lost.append(True)
        with pytest.raises(StatementTimeout):
            await connection.query_with_retry(b"wait", [b"3"])  # PostgreSQL continues to run the statement.

        assert lost == [True]
        assert value(await connection.query(b"one", [b"2"])) == b"2"

    play(scene, timeout=2)


def test_rejected_statements_are_repeated_once_over_a_new_connection(play: Play) -> None:
    async def scene(connection: PgConnection) -> None:
        await connection.run(b"DEALLOCATE one")
        with pytest.raises(StatementRejected, match="does not exist"):
            await connection.query(b"one", [b"1"])
        assert value(await connection.query_with_retry(b"one", [b"2"])) == b"2"

    play(scene)


def test_the_databases_own_reason_is_reported_when_it_cannot_serve(play: Play) -> None:
    async def scene(connection: PgConnection) -> None:
        full = b"DO $$ BEGIN RAISE 'No space left on device' USING ERRCODE = 'disk_full'; END $$"
        batches = batches_of([Carrier()])
        with pytest.raises(DatabaseFault, match="No space left on device") as caught:
            await connection.run(full)
        batches._mark_broken(batches._workers[0], caught.value)
        assert "No space left on device" in batches.fault  # /readyz shows this text.

    play(scene)


def test_a_statement_that_cannot_be_sent_is_said_at_once_and_the_next_one_is_answered(play: Play) -> None:
    async def scene(connection: PgConnection) -> None:
        with pytest.raises(DatabaseUnavailable, match="parameters"):
            await asyncio.wait_for(connection.query(b"one", [b"1"] * (MOST_PARAMETERS + 1)), PATIENCE)
        assert value(await connection.query(b"one", [b"2"])) == b"2"

    play(scene)


def test_more_than_a_socket_takes_at_once_arrives_whole(play: Play) -> None:
    rows, row = 200, b"x" * 99_999

    async def scene(connection: PgConnection) -> None:
        await connection.copy(b"COPY texts FROM STDIN", (row + b"\n") * rows)
        assert value(await connection.query(b"length", [])) == b"%d" % (rows * len(row))
        # The connection is still read: small results arrive too.
        assert value(await connection.query(b"one", [b"2"])) == b"2"

    play(scene)


@pytest.mark.full
def test_a_database_that_takes_connections_and_is_silent_did_not_answer_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.store.pg.CONNECT_SECONDS", 0.2)

    async def scene(port: int) -> None:
        connection = PgConnection(f"host=127.0.0.1 port={port} sslmode=disable gssencmode=disable", SETUP)
        with pytest.raises(StatementTimeout):
            await asyncio.wait_for(connection.query_with_retry(b"one", [b"1"]), PATIENCE)
        assert not connection.connected

    with socket.create_server(("127.0.0.1", 0)) as listener, asyncio.Runner() as runner:
        runner.run(scene(listener.getsockname()[1]))
