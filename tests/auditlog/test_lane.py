"""Database connections under uvloop: a lost connection is noticed at once, and a hanging one blocks nobody."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

import psycopg
import pytest
import uvloop

from proxy.store.call_log import CallRow, CallWriter, NotRecorded, new_uid
from proxy.store.pg import (
    DatabaseUnavailable,
    GroupCommit,
    PgConnection,
    StatementRejected,
    StatementTimeout,
    Waiting,
    resolve,
)
from tests.eventually import PATIENCE, until
from tests.running.debian import postgres, programs

SETUP = (b"PREPARE one (int) AS SELECT $1",)
ROUNDS = 8


@pytest.fixture(scope="module")
def own_server() -> Iterator[str]:
    """A PostgreSQL server of this module only, which tests may crash."""
    with postgres(programs()) as url:
        yield url


@pytest.fixture
def server(own_server: str) -> str:
    """Return the URL of this module's PostgreSQL, once it has recovered from the crash of the previous test."""
    return _again(own_server)


def play[T](scene: Callable[[], Awaitable[T]]) -> T:
    async def main() -> T:
        return await scene()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


def crash(connection: PgConnection) -> None:
    """Kill the backend of this connection; PostgreSQL then ends all other backends and recovers."""
    assert connection._connection is not None
    with suppress(ProcessLookupError):
        os.kill(connection._connection.pgconn.backend_pid, signal.SIGKILL)


async def came_back(connection: PgConnection) -> None:
    while True:
        try:
            await connection.query(b"one", [b"1"])
        except (DatabaseUnavailable, StatementRejected):
            await asyncio.sleep(0.02)
        else:
            return


async def busy(connection: PgConnection, done: asyncio.Event) -> list[Exception]:
    """Use the connection continuously until `done`; return the time-out errors of its statements."""
    late: list[Exception] = []
    while not done.is_set():
        try:
            async with asyncio.timeout(2 * PATIENCE):
                await connection.query(b"one", [b"1"])
        except (StatementTimeout, TimeoutError) as error:
            late.append(error)
        except (DatabaseUnavailable, StatementRejected):
            await asyncio.sleep(0.01)
    return late


@pytest.mark.full
def test_no_statement_waits_for_its_time_when_a_backend_is_killed(server: str) -> None:
    """Each round kills the backend of one of three busy connections; PostgreSQL then resets the other connections."""

    async def scene() -> list[Exception]:
        connections = [PgConnection(server, SETUP, timeout=3 * PATIENCE) for _ in range(3)]
        done = asyncio.Event()
        users = [asyncio.create_task(busy(connection, done)) for connection in connections]
        for number in range(ROUNDS):
            await until(lambda: all(connection.connected for connection in connections))
            crash(connections[number % 3])
            await asyncio.sleep(0.02)
        done.set()
        late = await asyncio.gather(*users)
        for connection in connections:
            connection.close()
        return [error for each in late for error in each]

    assert play(scene) == []


@pytest.mark.full
def test_an_idle_lane_says_that_it_was_lost(server: str) -> None:
    async def scene() -> None:
        connection = PgConnection(server, SETUP)
        await came_back(connection)
        to_error = asyncio.Event()
        connection.on_lost = to_error.set
        crash(connection)
        await asyncio.wait_for(to_error.wait(), PATIENCE)
        assert not connection.connected
        await came_back(connection)
        connection.close()

    play(scene)


def test_a_statement_the_server_refuses_to_prepare_is_said_when_the_lane_connects(server: str) -> None:
    async def scene() -> None:
        connection = PgConnection(server, (b"PREPARE wrong AS SELECT 1 FROM nowhere",))
        with pytest.raises(StatementRejected, match='relation "nowhere" does not exist'):
            await connection.connect()

    play(scene)


# A database that hangs


class Numbers(GroupCommit[int, int]):
    """Each request is a number, and its answer is this number. Each batch of requests runs one database statement."""

    def __init__(self, url: str, max_waiting: int) -> None:
        self.connection = PgConnection(url, SETUP, timeout=2 * PATIENCE)
        super().__init__(
            "numbers",
            [self._ask],
            [self.connection],
            to_error=lambda error: DatabaseUnavailable(str(error)),
            max_batch=10,
            max_waiting=max_waiting,
        )

    async def _ask(self, batch: list[Waiting[int, int]]) -> None:
        await self.connection.query_with_retry(b"one", [b"1"])
        for number, future in batch:
            resolve(future, number)


@pytest.mark.full
def test_new_requests_are_refused_while_the_database_hangs_and_served_when_it_recovers(server: str) -> None:
    async def scene() -> None:
        numbers = Numbers(server, max_waiting=50)
        await came_back(numbers.connection)
        numbers.start()
        assert await numbers.put(1) == 1
        assert numbers.fault == ""
        assert numbers.connection._connection is not None
        backend = numbers.connection._connection.pgconn.backend_pid
        os.kill(backend, signal.SIGSTOP)
        try:
            under_way = numbers.put(2)
            await asyncio.sleep(0.1)
            crowd = [numbers.put(number) for number in range(500)]
            assert numbers.waiting == 50
            await asyncio.gather(*crowd[50:], return_exceptions=True)  # Refused, because the queue is full.
            told = await asyncio.wait_for(asyncio.gather(*crowd, return_exceptions=True), PATIENCE)
            assert {type(each) for each in told} == {DatabaseUnavailable}
            assert numbers.waiting == 0
            assert numbers.fault == "the database hangs"
            assert isinstance(numbers.put(3).exception(), DatabaseUnavailable)
        finally:
            os.kill(backend, signal.SIGCONT)
        with pytest.raises(DatabaseUnavailable):
            await under_way
        await until(lambda: numbers.fault == "")
        assert await numbers.put(4) == 4
        await numbers.stop()

    play(scene)


@pytest.fixture
def log(server: str) -> Iterator[psycopg.Connection]:
    """Create a table in place of the log, in this module's PostgreSQL; yield a connection to it."""
    texts = (
        "method feature_type feature_name outcome deny_reason host_name gateway_name server_name user_email"
        " identity_label token_name token_prefix user_agent client_name client_version protocol_version"
        " error_text trace_id labels request_payload response_payload"
    )
    uuids = (
        "uid correlation_id host_id gateway_id connection_id user_id token_id server_id identity_id session_id rule_id"
        " hold_id"
    )
    numbers = "http_status rpc_error_code duration_ms authorise_ms upstream_ms request_bytes response_bytes"
    columns = [f"{name} text" for name in texts.split()] + [f"{name} uuid" for name in uuids.split()]
    columns += [f"{name} float" for name in numbers.split()]
    columns += ["client_ip inet", "payload_truncated boolean", "created_at timestamptz"]
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE auditlog_call ({', '.join(columns)})".encode())
        yield connection
        connection.execute("DROP TABLE auditlog_call")


def _again(server: str) -> str:
    """Return the URL of this PostgreSQL, once it has recovered from the last crash."""

    async def scene() -> None:
        connection = PgConnection(server, SETUP)
        await came_back(connection)
        connection.close()

    play(scene)
    return server


def row() -> CallRow:
    return CallRow(new_uid(AT), AT, method="tools/call")


AT = 1_795_000_000.0


@pytest.mark.full
def test_after_a_commit_failed_calls_are_refused_until_a_row_can_be_written(
    server: str, log: psycopg.Connection
) -> None:
    async def scene() -> None:
        writer = CallWriter(server)
        writer.start()
        await writer.first_attempt()
        log.execute("ALTER TABLE auditlog_call RENAME TO elsewhere")
        with pytest.raises(NotRecorded):
            await writer.commit(row())
        assert not writer.may_begin()
        await asyncio.sleep(0.3)
        assert 'relation "auditlog_call" does not exist' in writer.fault
        log.execute("ALTER TABLE elsewhere RENAME TO auditlog_call")
        await until(writer.may_begin)
        await writer.commit(row())
        await writer.stop()

    play(scene)

    assert log.execute("SELECT count(*) FROM auditlog_call").fetchone() == (1,)


@pytest.mark.full
def test_when_all_its_connections_are_lost_calls_are_refused_at_once(server: str, log: psycopg.Connection) -> None:
    async def scene() -> None:
        writer = CallWriter(server)
        writer.start()
        await writer.first_attempt()
        log.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'gateway call log'"
        )
        await until(lambda: not writer.may_begin())
        await until(writer.may_begin)
        await writer.commit(row())
        await writer.stop()

    play(scene)
