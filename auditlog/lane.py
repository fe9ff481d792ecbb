"""One PostgreSQL connection driven by the event loop itself: a statement, one round trip, its result.

The two statements of a proxied request (the decision before, the row after) are the proxy's own
cost. psycopg connects; the statements then go through libpq directly, without the cursor, the lock
and the wait machinery that each `execute` would pay for. Needs no Django.
"""

import asyncio
from collections.abc import Sequence

import psycopg
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus
from psycopg.pq.abc import PGconn, PGresult

# Classes of SQLSTATE that tell of the server, not of the statement: lost, out of resources, going down.
_OF_THE_SERVER = ("08", "53", "57", "58", "XX")
_GOOD = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)


class Unobtainable(Exception):
    """The database did not answer."""


class Late(Unobtainable):
    """The database did not answer in time."""


class Rejected(Exception):
    """The database refused the statement; `sqlstate` says why."""

    def __init__(self, sqlstate: str, message: str) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class Lane:
    """Carries one statement at a time; after a loss the next statement connects anew."""

    def __init__(self, conninfo: str, setup: Sequence[bytes], *, timeout: float = 5.0) -> None:
        self._conninfo = conninfo
        self._setup = setup
        self._timeout = timeout
        self._connection: psycopg.AsyncConnection | None = None
        # Kept beside the connection, which forgets it when it is lost.
        self._socket = -1
        self._waiter: asyncio.Future[PGresult] | None = None
        self._result: PGresult | None = None
        self._copy = b""

    async def query(self, name: bytes, parameters: Sequence[bytes]) -> PGresult:
        """Run a statement that the setup prepared, all in text. Raises Unobtainable or Rejected."""
        pgconn = await self._ready()
        waiter = self._begin()
        try:
            pgconn.send_query_prepared(name, parameters)
            self._flush(pgconn)
        except psycopg.Error as error:
            self._lose(error)
        return await self._end(waiter)

    async def query_again(self, name: bytes, parameters: Sequence[bytes]) -> PGresult:
        """The same, once more over a new connection when the first try fails other than by its time.

        A server that restarted, and a migration that changed a table, both want one.
        """
        try:
            return await self.query(name, parameters)
        except Late:
            raise
        except (Unobtainable, Rejected):
            self.close()
            return await self.query(name, parameters)

    async def copy(self, statement: bytes, data: bytes) -> None:
        """COPY `data`; it is committed on return.

        Raises Unobtainable, when nobody knows whether it is, or Rejected, when it is not.
        """
        pgconn = await self._ready()
        self._copy = data
        waiter = self._begin()
        try:
            pgconn.send_query(statement)
            self._flush(pgconn)
        except psycopg.Error as error:
            self._lose(error)
        await self._end(waiter)

    def close(self) -> None:
        """Give the connection up; the next statement connects again."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        loop.remove_writer(self._socket)
        connection.pgconn.finish()

    async def _ready(self) -> PGconn:
        if self._connection is not None:
            return self._connection.pgconn
        try:
            async with asyncio.timeout(self._timeout):
                connection = await self._connect()
        except (psycopg.Error, OSError) as error:
            raise Unobtainable(str(error)) from error
        connection.pgconn.nonblocking = 1
        self._connection, self._socket = connection, connection.pgconn.socket
        asyncio.get_running_loop().add_reader(self._socket, self._readable)
        return connection.pgconn

    async def _connect(self) -> psycopg.AsyncConnection:
        connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
        try:
            for statement in self._setup:
                await connection.execute(statement)
        except BaseException:
            await connection.close()
            raise
        return connection

    def _begin(self) -> asyncio.Future[PGresult]:
        self._result = None
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter

    async def _end(self, waiter: asyncio.Future[PGresult]) -> PGresult:
        timer = waiter.get_loop().call_later(self._timeout, self._lose, Late(Late.__doc__))
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
        if pgconn.flush():
            asyncio.get_running_loop().add_writer(self._socket, self._writable)

    def _writable(self) -> None:
        if self._connection is None:
            return
        pgconn = self._connection.pgconn
        try:
            if not pgconn.flush():
                asyncio.get_running_loop().remove_writer(self._socket)
        except psycopg.Error as error:
            self._lose(error)

    def _readable(self) -> None:
        if self._connection is None:
            return
        try:
            self._read(self._connection.pgconn)
        except psycopg.Error as error:
            self._lose(error)

    def _read(self, pgconn: PGconn) -> None:
        pgconn.consume_input()
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                self._finish(pgconn)
                return
            if result.status == ExecStatus.COPY_IN:
                pgconn.put_copy_data(self._copy)
                pgconn.put_copy_end()
                self._flush(pgconn)
                return
            self._result = result

    def _finish(self, pgconn: PGconn) -> None:
        if pgconn.status != ConnStatus.OK:
            self._lose(Unobtainable(pgconn.get_error_message()))
        elif self._waiter is not None and not self._waiter.done() and self._result is not None:
            self._waiter.set_result(self._result)

    def _lose(self, why: Exception) -> None:
        self.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(why if isinstance(why, Unobtainable) else Unobtainable(str(why)))


def _checked(result: PGresult) -> PGresult:
    if result.status in _GOOD:
        return result
    state = (result.error_field(DiagnosticField.SQLSTATE) or b"XX000").decode()
    message = result.get_error_message()
    if state.startswith(_OF_THE_SERVER):
        raise Unobtainable(message)
    raise Rejected(state, message)
