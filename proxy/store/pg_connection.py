"""One PostgreSQL connection driven by the event loop itself: a statement, one round trip, its result.

The two statements of a proxied request, the decision before and the row after, are most of what the proxy itself costs.
psycopg connects; the statements then go through libpq directly, without the cursor, the lock and the wait machinery
that each `execute` would pay for.
"""

import asyncio
from collections.abc import Callable, Sequence
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector

import psycopg
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus
from psycopg.pq.abc import PGconn, PGresult

# Classes of SQLSTATE that tell of the server, not of the statement: lost, out of resources, going down.
_SERVER_ERRORS = ("08", "53", "57", "58", "XX")
CONNECT_SECONDS = 3.0
_SUCCESS = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)


class DatabaseUnavailable(Exception):
    """The database did not answer."""


class StatementTimeout(DatabaseUnavailable):
    """The database did not answer in time."""


class StatementRejected(Exception):
    """The database refused the statement; `sqlstate` says why, `of_constraint` whether a named constraint did."""

    def __init__(self, sqlstate: str, message: str, *, of_constraint: bool = False) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.of_constraint = of_constraint


class PgConnection:
    """Runs one statement at a time; after a lost connection the next statement connects again.

    `timeout` is in seconds, for each statement. `on_lost` is called when the connection ends unasked.

    The loop watches a selector of its own, never libpq's socket: libpq closes that by itself, so its number
    may be another socket's before the loop forgets it, and libuv, which uvloop runs on, stops watching a socket after
    one event once it has an error, such as a reset by a server that crashed, although there may be more to read.
    A selector is readable for as long as there is something to do, an error included.
    """

    def __init__(self, conninfo: str, setup: Sequence[bytes], *, timeout: float = 5.0) -> None:
        self._conninfo = conninfo
        self._setup = setup
        self._timeout = timeout
        self._connection: psycopg.AsyncConnection | None = None
        self._selector: DefaultSelector | None = None
        self._is_sending = False
        self._waiter: asyncio.Future[PGresult] | None = None
        self._result: PGresult | None = None
        self._copy_data = b""
        self.on_lost: Callable[[], None] = lambda: None

    @property
    def connected(self) -> bool:
        return self._connection is not None

    async def connect(self) -> None:
        """Connect and run the setup, unless that is done. Raises DatabaseUnavailable or StatementRejected."""
        await self._ensure_connected()

    async def query(self, name: bytes, parameters: Sequence[bytes]) -> PGresult:
        """Run a statement that the setup prepared, all in text. Raises DatabaseUnavailable or StatementRejected."""
        pgconn = await self._ensure_connected()
        waiter = self._start_statement()
        try:
            pgconn.send_query_prepared(name, parameters)
            self._flush(pgconn)
        except psycopg.Error as error:
            self._fail(error)
        return await self._wait_for_result(waiter)

    async def query_with_retry(self, name: bytes, parameters: Sequence[bytes]) -> PGresult:
        """The same, once more over a new connection when the first try fails other than by its time.

        A server that restarted, and a migration that changed a table, both want one.
        """
        try:
            return await self.query(name, parameters)
        except StatementTimeout:
            raise
        except (DatabaseUnavailable, StatementRejected):
            self.close()
            return await self.query(name, parameters)

    async def run(self, statements: bytes) -> None:
        """Run what has neither parameters nor a result. Raises DatabaseUnavailable or StatementRejected."""
        await self.copy(statements, b"")

    async def copy(self, statement: bytes, data: bytes) -> None:
        """COPY `data`; it is committed on return.

        Raises DatabaseUnavailable, when nobody knows whether it is, or StatementRejected, when it is not.
        """
        pgconn = await self._ensure_connected()
        self._copy_data = data
        waiter = self._start_statement()
        try:
            pgconn.send_query(statement)
            self._flush(pgconn)
        except psycopg.Error as error:
            self._fail(error)
        await self._wait_for_result(waiter)

    def close(self) -> None:
        """Give the connection up; the next statement connects again."""
        connection, self._connection = self._connection, None
        selector, self._selector = self._selector, None
        if connection is None or selector is None:
            return
        asyncio.get_running_loop().remove_reader(selector.fileno())
        selector.close()
        connection.pgconn.finish()

    async def _ensure_connected(self) -> PGconn:
        if self._connection is not None:
            return self._connection.pgconn
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                connection = await self._connect()
        except TimeoutError as error:
            raise StatementTimeout(StatementTimeout.__doc__) from error
        except (psycopg.Error, OSError) as error:
            state = error.sqlstate if isinstance(error, psycopg.Error) else None
            raise _error(state or "08000", str(error)) from error
        pgconn = connection.pgconn
        pgconn.nonblocking = 1
        self._connection, self._selector, self._is_sending = connection, DefaultSelector(), False
        self._selector.register(pgconn.socket, EVENT_READ)
        asyncio.get_running_loop().add_reader(self._selector.fileno(), self._on_ready)
        return pgconn

    async def _connect(self) -> psycopg.AsyncConnection:
        connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
        try:
            for statement in self._setup:
                await connection.execute(statement)
        except BaseException:
            await connection.close()
            raise
        return connection

    def _start_statement(self) -> asyncio.Future[PGresult]:
        self._result = None
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter

    async def _wait_for_result(self, waiter: asyncio.Future[PGresult]) -> PGresult:
        timer = waiter.get_loop().call_later(self._timeout, self._fail, StatementTimeout(StatementTimeout.__doc__))
        try:
            return _checked(await waiter)
        except asyncio.CancelledError:
            # The answer to an abandoned statement must not be taken for the next one's.
            self.close()
            raise
        finally:
            timer.cancel()
            self._waiter = None

    def _flush(self, pgconn: PGconn) -> None:
        unsent = bool(pgconn.flush())
        if unsent != self._is_sending and self._selector is not None:
            self._is_sending = unsent
            self._selector.modify(pgconn.socket, EVENT_READ | EVENT_WRITE if unsent else EVENT_READ)

    def _on_ready(self) -> None:
        """Read and write what the connection is ready for."""
        if self._connection is None:
            return
        pgconn = self._connection.pgconn
        try:
            if self._is_sending:
                self._flush(pgconn)
            self._read(pgconn)
        except psycopg.Error as error:
            self._fail(error)

    def _read(self, pgconn: PGconn) -> None:
        pgconn.consume_input()
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                self._finish(pgconn)
                return
            if result.status == ExecStatus.COPY_IN:
                pgconn.put_copy_data(self._copy_data)
                pgconn.put_copy_end()
                self._flush(pgconn)
                return
            self._result = result

    def _finish(self, pgconn: PGconn) -> None:
        if pgconn.status != ConnStatus.OK:
            self._fail(DatabaseUnavailable(pgconn.get_error_message()))
        elif self._waiter is not None and not self._waiter.done() and self._result is not None:
            self._waiter.set_result(self._result)

    def _fail(self, why: Exception) -> None:
        self.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(why if isinstance(why, DatabaseUnavailable) else DatabaseUnavailable(str(why)))
        self.on_lost()


def _checked(result: PGresult) -> PGresult:
    if result.status in _SUCCESS:
        return result
    state = (result.error_field(DiagnosticField.SQLSTATE) or b"XX000").decode()
    raise _error(
        state, result.get_error_message(), of_constraint=bool(result.error_field(DiagnosticField.CONSTRAINT_NAME))
    )


def _error(sqlstate: str, message: str, *, of_constraint: bool = False) -> DatabaseUnavailable | StatementRejected:
    message = " ".join(message.split())
    if sqlstate.startswith(_SERVER_ERRORS):
        return DatabaseUnavailable(message)
    return StatementRejected(sqlstate, message, of_constraint=of_constraint)
