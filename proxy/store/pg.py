"""Fast database access for the proxy: a connection driven by the event loop itself, and group commit.

Each request has two statements: one decides on access, one stores the row of the call. The two statements cause most of
the proxy's own cost. So both use libpq directly, without psycopg's `execute`. Items that arrive together go to the
database in one batch.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from wire.background import Background, every

logger = logging.getLogger(__name__)

# Classes of SQLSTATE that concern PostgreSQL, not the statement: connection lost, out of resources, shutting down.
_SERVER_ERRORS = ("08", "53", "57", "58", "XX")
CONNECT_SECONDS = 3.0
_SUCCESS = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)

# A batch is sent when FULL_BATCH items wait, or after LOOP_TURNS turns of the event loop. If each of the last SINGLES
# batches had one item, a batch is sent at once. A round trip and a commit cost as much as a dozen items in a batch. If
# FULL_BATCH was larger, items would wait for each other while the event loop is idle.
FULL_BATCH = 16
LOOP_TURNS = 3
SINGLES = 16
LOG_SECONDS = 1.0

# A statement counts as hanging after HANGING_TICKS. Ticks are counted instead of seconds: if this process itself was
# paused, only one tick is counted, because the pause is not the database's fault.
TICK_SECONDS = 0.2
HANGING_TICKS = 5

STOP_SECONDS = 1.0  # How long stop() waits for a connection attempt when no items wait.

NO_CONNECTION = "08000"  # The SQLSTATE of a connection that could not be made.

RETRY_SECONDS = 0.25  # Pause between two attempts to connect while no items wait.
URGENT_RETRY_SECONDS = 0.05  # Pause between two attempts to connect while items wait.

type Waiting[Item, Answer] = tuple[Item, asyncio.Future[Answer]]
type HandleBatch[Item, Answer] = Callable[[list[Waiting[Item, Answer]]], Awaitable[None]]


class DatabaseUnavailable(Exception):
    """The database did not answer."""


class DatabaseFault(DatabaseUnavailable):
    """The database server has a fault, such as "No space left on device". The exception's message names the fault."""


class StatementTimeout(DatabaseUnavailable):
    """The database did not answer in time."""


class StatementRejected(Exception):
    """The database refused the statement, with `sqlstate`; `of_constraint` is True if a named constraint failed."""

    def __init__(self, sqlstate: str, message: str, *, of_constraint: bool = False) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.of_constraint = of_constraint


class PgConnection:
    """Runs one statement at a time; after a lost connection the next statement connects again.

    `timeout` is in seconds, for each statement. `on_lost` is called when the connection fails.
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
        """Connect and run the setup, unless connected. Raises DatabaseUnavailable or StatementRejected."""
        await self._ensure_connected()

    async def query(self, name: bytes, parameters: Sequence[bytes | None]) -> PGresult:
        """Run a statement that the setup prepared. Parameters and results are in text format.

        Raises DatabaseUnavailable or StatementRejected.
        """
        pgconn = await self._ensure_connected()
        waiter = self._start_statement()
        try:
            pgconn.send_query_prepared(name, parameters)
            self._flush(pgconn)
        except psycopg.Error as error:
            self._fail(error)
        return await self._wait_for_result(waiter)

    async def query_with_retry(self, name: bytes, parameters: Sequence[bytes]) -> PGresult:
        """Call `query`. If it fails, retry once over a new connection, unless the database did not answer in time."""
        try:
            return await self.query(name, parameters)
        except StatementTimeout:
            raise
        except (DatabaseUnavailable, StatementRejected):
            self.close()  # The database was restarted, for example, or a migration changed a table.
            return await self.query(name, parameters)

    async def run(self, statements: bytes) -> None:
        """Run statements without parameters or results. Raises DatabaseUnavailable or StatementRejected."""
        await self.copy(statements, b"")

    async def copy(self, statement: bytes, data: bytes) -> None:
        """Run a COPY with `data`. The rows are committed on return, unless a transaction is open.

        Raises DatabaseUnavailable if the outcome is unknown, or StatementRejected if the rows are not committed.
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
        """Close the connection; the next statement connects again."""
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
            raise _error(state or NO_CONNECTION, str(error)) from error
        pgconn = connection.pgconn
        pgconn.nonblocking = 1
        # The event loop watches a selector instead of libpq's socket. libpq may close the socket, and the file number
        # may be reused before the loop stops watching it. If a socket has an error, such as a reset, uvloop stops
        # watching it, although there may be more to read. A selector stays readable until everything is read.
        self._connection, self._selector, self._is_sending = connection, DefaultSelector(), False
        self._selector.register(pgconn.socket, EVENT_READ)
        asyncio.get_running_loop().add_reader(self._selector.fileno(), self._on_ready, pgconn)
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
            # The answer to an abandoned statement must not be read as the answer to the next statement.
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

    def _on_ready(self, pgconn: PGconn) -> None:
        """Send pending data, and read received data."""
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
        # /readyz shows the message of a DatabaseFault, so the database server's address before "FATAL: " is removed.
        return (
            DatabaseUnavailable(message)
            if sqlstate == NO_CONNECTION
            else DatabaseFault(message.rpartition("FATAL: ")[2])
        )
    return StatementRejected(sqlstate, message, of_constraint=of_constraint)


@dataclass(slots=True, eq=False)
class _Worker[Item, Answer]:
    """A task that handles batches over one connection."""

    handle: HandleBatch[Item, Answer]
    connection: PgConnection
    first_attempt: asyncio.Event  # Set after the first attempt to connect and check.
    healthy: bool = False
    ticks: int = -1  # Units of TICK_SECONDS since the running statement began; -1 if none is running.
    repairing: bool = False
    logged: str = ""
    batch: Sequence[Waiting[Item, Answer]] = ()


class GroupCommit[Item, Answer]:
    """Passes waiting items to `handlers`, in batches. Each handler has one of the `connections`.

    A handler resolves the future of each item. If a handler raises, all items of the batch fail with the error that
    `to_error` returns.

    If `rejects_when_full` is set, a new item fails at once with DatabaseUnavailable while a statement hangs, or while
    `max_waiting` items wait. When a statement begins to hang, all waiting and running items also fail.
    """

    def __init__(
        self,
        name: str,
        handlers: Sequence[HandleBatch[Item, Answer]],
        connections: Sequence[PgConnection],
        *,
        to_error: Callable[[Exception], Exception],
        max_batch: int = 200,
        max_waiting: int = 2000,
        rejects_when_full: bool = True,
    ) -> None:
        self._name = name
        self._workers = [
            _Worker(handle, connection, asyncio.Event())
            for handle, connection in zip(handlers, connections, strict=True)
        ]
        self._to_error = to_error
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._rejects_when_full = rejects_when_full
        self._waiting: list[Waiting[Item, Answer]] = []
        self._idle: list[asyncio.Future[None]] = []
        self._stopping = False
        self._logged_at, self._unlogged = float("-inf"), 0
        self._is_hanging = False
        self._alone_in_a_row = 0
        self._failed = ""
        self._tasks: list[asyncio.Task[None]] = []
        self._background = Background()
        self.fault = "not connected yet"  # The reason why no batch can be handled now; empty if there is none.
        self.on_hang: Callable[[], object] = bool  # Called when a statement is found to hang.

    @property
    def waiting(self) -> int:
        """The number of items waiting for the next batch."""
        return len(self._waiting)

    @property
    def comes_singly(self) -> bool:
        """True if each of the last `SINGLES` batches had one item."""
        return self._alone_in_a_row >= SINGLES

    def start(self) -> None:
        self._tasks = [
            self._background.forever(
                self._name,
                partial(self._work, worker),
                partial(self._wait_for_batch, worker),
                guards_access=True,
                until=lambda: self._stopping and not self._waiting,
            )
            for worker in self._workers
        ]
        self._background.forever(f"{self._name}, clock", self._tick, every(TICK_SECONDS), guards_access=True)
        for worker in self._workers:
            worker.connection.on_lost = self._connection_lost

    async def first_attempt(self) -> None:
        """Wait until each connection has been tried and checked once; `fault` has the error, if any."""
        for worker in self._workers:
            await worker.first_attempt.wait()

    async def stop(self) -> None:
        """Handle the waiting items, then stop and close the connections."""
        self._stopping = True
        self._wake_all()
        while self._tasks and (await asyncio.wait(self._tasks, timeout=STOP_SECONDS))[1]:
            self._give_up_repairs()
        await self._background.stop()
        for worker in self._workers:
            worker.connection.close()

    def _give_up_repairs(self) -> None:
        for worker, task in zip(self._workers, self._tasks, strict=True):
            if worker.repairing and not self._waiting:
                task.cancel()

    def put(self, item: Item) -> asyncio.Future[Answer]:
        """Add an item, and return the future of its answer."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        if self._rejects_when_full and (self._is_hanging or len(self._waiting) >= self._max_waiting):
            future.set_exception(DatabaseUnavailable("the database is too slow"))
            return future
        self._waiting.append((item, future))
        if len(self._waiting) == 1:  # Later items join the batch of the first.
            self._wake()
        return future

    async def _check(self, connection: PgConnection) -> None:
        """Check that an open connection can handle a batch. If not, raise the error that a batch would get."""

    def _wake(self) -> None:
        if self._idle:
            self._idle.pop().set_result(None)

    def _wake_all(self) -> None:
        while self._idle:
            self._wake()

    async def _wait_for_work(self, seconds: float | None = None) -> None:
        """Wait until there is something to do, at most `seconds`."""
        if self._stopping:
            return
        wakeup = asyncio.get_running_loop().create_future()
        self._idle.append(wakeup)
        if seconds is None:
            await wakeup
            return
        await asyncio.wait([wakeup], timeout=seconds)
        if wakeup in self._idle:
            self._idle.remove(wakeup)

    async def _wait_for_batch(self, worker: _Worker[Item, Answer]) -> None:
        if worker.healthy and not self._waiting:
            await self._wait_for_work()

    async def _work(self, worker: _Worker[Item, Answer]) -> None:
        """Handle one batch, if any item waits. A broken connection is repaired first."""
        if (not worker.healthy and not await self._repair(worker)) or not self._waiting:
            return
        await self._gather_batch()
        batch, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
        if not batch:  # Another worker was quicker.
            return
        self._alone_in_a_row = self._alone_in_a_row + 1 if len(batch) == 1 else 0
        if self._waiting:
            self._wake()
        await self._run_batch(worker, batch)

    async def _run_batch(self, worker: _Worker[Item, Answer], batch: list[Waiting[Item, Answer]]) -> None:
        worker.ticks, worker.batch = 0, batch
        try:
            await worker.handle(batch)
        except Exception as error:  # noqa: BLE001 - a dead worker would leave every later item waiting
            fail(batch, self._to_error(error))  # Before anything else, so that no item waits forever.
            self._log_failure(len(batch), error)
            self._mark_broken(worker, error)
        else:
            self._unlogged = 0
            worker.ticks = -1
            if self.fault:
                self._failed = ""
                self._update_fault()
        finally:
            worker.batch = ()

    async def _repair(self, worker: _Worker[Item, Answer]) -> bool:
        """Reopen the worker's connection if it is closed, and check the connection. Return True if it works again."""
        if self._waiting:
            self._wake()  # Let another worker handle the waiting items during the repair.
        worker.ticks, worker.repairing = 0, True
        try:
            await worker.connection.connect()
            await self._check(worker.connection)
        except Exception as error:  # noqa: BLE001 - a dead worker would leave every later item waiting
            worker.connection.close()
            self._mark_broken(worker, error)
            self._log_broken_connection(worker, error)
            if not any(other.healthy for other in self._workers):
                self._fail_waiting(error)
            await self._pause()
            return False
        else:
            worker.healthy, worker.ticks, worker.logged, self._failed = True, -1, "", ""
            self._update_fault()
            return True
        finally:
            worker.repairing = False
            worker.first_attempt.set()

    def _log_broken_connection(self, worker: _Worker[Item, Answer], error: Exception) -> None:
        if worker.logged != str(error):
            worker.logged = str(error)
            extra = {"what": self._name, "error": str(error)}
            logger.error("a connection to the database cannot be used", extra=extra)

    async def _pause(self) -> None:
        """Wait before the next attempt to connect."""
        if not self._stopping:
            await asyncio.sleep(URGENT_RETRY_SECONDS)
        if not self._waiting:
            await self._wait_for_work(RETRY_SECONDS)

    def _connection_lost(self) -> None:
        for worker in self._workers:
            if not worker.connection.connected:
                worker.healthy = False
        self._update_fault()
        self._wake_all()

    def distrust(self) -> None:
        """Mark all connections as unhealthy, so that each is checked before it handles another batch."""
        for worker in self._workers:
            worker.healthy = False
        self._failed = "the database hangs"
        self._update_fault()
        self._wake_all()

    def _mark_broken(self, worker: _Worker[Item, Answer], error: Exception) -> None:
        """Stop using this worker's connection until it is repaired."""
        worker.ticks, worker.healthy = -1, False
        said = isinstance(error, StatementRejected | DatabaseFault)
        self._failed = str(error).strip() if said else "the database did not answer"
        self._update_fault()

    def _update_fault(self) -> None:
        self._is_hanging = any(worker.ticks >= HANGING_TICKS for worker in self._workers)
        if self._is_hanging:
            self.fault = "the database hangs"
        elif self._failed or not any(worker.healthy for worker in self._workers):
            self.fault = self._failed or "the connection was lost"
        else:
            self.fault = ""

    async def _tick(self) -> None:
        for worker in self._workers:
            if worker.ticks >= 0:
                worker.ticks += 1
        was_hanging = self._is_hanging
        self._update_fault()
        if not self._is_hanging or was_hanging:
            return
        if self._rejects_when_full:
            error = DatabaseUnavailable(self.fault)
            self._fail_waiting(error)
            for worker in self._workers:
                fail(worker.batch, error)
        self.on_hang()

    def _fail_waiting(self, error: Exception) -> None:
        batch, self._waiting = self._waiting, []
        if batch:
            self._log_failure(len(batch), error)
            fail(batch, self._to_error(error))

    def _log_failure(self, requests: int, error: Exception) -> None:
        """Log failed batches, at most once a second, with the number of requests since the last entry."""
        self._unlogged += requests
        now = time.monotonic()
        if now - self._logged_at >= LOG_SECONDS:
            extra = {"what": self._name, "requests": self._unlogged, "why": type(error).__name__, "error": str(error)}
            logger.error("database statements fail; requests get 503", extra=extra)
            self._logged_at, self._unlogged = now, 0

    async def _gather_batch(self) -> None:
        """Wait a moment, so that requests which have already arrived join the batch.

        Returns at once if requests usually come one at a time.
        """
        for _ in range(0 if self.comes_singly else LOOP_TURNS):
            if len(self._waiting) >= FULL_BATCH:
                return
            await asyncio.sleep(0)


def resolve[Answer](future: asyncio.Future[Answer], answer: Answer) -> None:
    """Set the answer, unless the future is done or cancelled."""
    if not future.done():
        future.set_result(answer)


def fail[Item, Answer](batch: Sequence[Waiting[Item, Answer]], error: Exception) -> None:
    """Fail all items of a batch with this error."""
    for _, future in batch:
        if not future.done():
            future.set_exception(error)


# Connections for state that outlives requests: sessions, pending requests, sealed results.
#
# The access query, the call log and the usage have separate connections, so that they never wait for this pool.

CONNECTIONS = 2
POOL_SECONDS = 5.0
MOST_WAITING = 1000
SETUP = b"SET application_name = 'gateway state'; SET statement_timeout = '5s'; SET lock_timeout = '2s'"

type Parameters = Sequence[Any] | Mapping[str, Any]


class StatePool:
    """A small pool of database connections; each statement runs in a separate transaction."""

    def __init__(self, conninfo: str) -> None:
        self._pool = AsyncConnectionPool(
            conninfo,
            min_size=1,
            max_size=CONNECTIONS,
            max_waiting=MOST_WAITING,
            timeout=POOL_SECONDS,
            kwargs={"autocommit": True, "connect_timeout": int(POOL_SECONDS)},
            configure=_configure,
            check=AsyncConnectionPool.check_connection,  # Replaces connections broken by a restart of the database.
            open=False,
            name="state",
        )

    async def start(self) -> None:
        """Start connecting in the background; the pool retries while the database is unavailable."""
        await self._pool.open()

    async def stop(self) -> None:
        """Close the connections."""
        await self._pool.close()

    async def fetch(self, sql: str, params: Parameters = ()) -> list[tuple[Any, ...]]:
        """Run one statement with psycopg parameters; return its rows, if any.

        Raises DatabaseUnavailable. Even then, the statement may have been executed.
        """
        try:
            async with self._pool.connection() as connection:
                cursor = await connection.execute(sql.encode(), params)
                return await cursor.fetchall() if cursor.description else []
        except (psycopg.Error, OSError, PoolTimeout, PoolClosed, TooManyRequests) as error:
            raise DatabaseUnavailable(" ".join(str(error).split())) from error


async def _configure(connection: AsyncConnection) -> None:
    await connection.execute(SETUP)
