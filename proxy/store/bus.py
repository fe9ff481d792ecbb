"""What one worker tells all others: ids only, over LISTEN and NOTIFY of PostgreSQL.

Nothing on the way of a call is told to anybody. What must not be lost stands in a row; the bus only says that there is
something to read. Whenever its connection was lost, every handler is called with None once it is back: read the rows.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Protocol

from psycopg.pq.abc import PGconn, PGresult

from proxy.store.database import DatabaseUnavailable, PgConnection, StatementRejected
from wire.background import Background

logger = logging.getLogger(__name__)

CHANNEL = "gateway"
# A connection that is cut without a word is found out by a statement that gets no answer.
BEAT_SECONDS = 5.0
BEAT_TIMEOUT = 2.0

LISTEN = f"LISTEN {CHANNEL}".encode()
NAME = b"SET application_name = 'gateway bus'"

# A handler gets the id that was told, or None after the connection was lost. What it awaits runs as a task of its own.
type Handler = Callable[[str | None], Coroutine[Any, Any, None] | None]


class Statements(Protocol):
    """Runs one statement in a short transaction of its own."""

    async def fetch(self, sql: str, params: Any = ..., /) -> list[tuple[Any, ...]]: ...


class Listener(PgConnection):
    """The connection that hears; `hear` gets the payload of each notification."""

    def __init__(self, conninfo: str, setup: Sequence[bytes], hear: Callable[[str], None]) -> None:
        super().__init__(conninfo, (LISTEN, *setup, NAME), timeout=BEAT_TIMEOUT)
        self._hear = hear

    def _read(self, pgconn: PGconn) -> None:
        super()._read(pgconn)
        while self.connected and (note := pgconn.notifies()) is not None:
            self._hear(note.extra.decode())


class Bus:
    """Hears what any worker tells, this one included.

    Topics: `cut` (somebody's access may have ended), `lists` (what the gateway of this id shows has changed),
    `unwritable` (a row of the log could not be written in time), and what the parts of the proxy tell each other. Its
    connection also runs what `setup` prepares, a statement at a time.
    """

    def __init__(self, conninfo: str, statements: Statements, setup: Sequence[bytes] = ()) -> None:
        self._listener = Listener(conninfo, setup, self._hear)
        self._one = asyncio.Lock()
        self._listener.on_lost = self._lost
        self._statements = statements
        self._handlers: dict[str, list[Handler]] = {}
        self._gone = asyncio.Event()
        self._first_attempt = asyncio.Event()
        self._background = Background(DatabaseUnavailable, StatementRejected)
        self.fault = "not connected yet"

    def on(self, topic: str, handler: Handler) -> None:
        """Call `handler` for everything told under this topic from now on."""
        self._handlers.setdefault(topic, []).append(handler)

    async def publish(self, topic: str, told: str) -> None:
        """Tell all workers, in a transaction of its own. Raises DatabaseUnavailable."""
        await self._statements.fetch("SELECT pg_notify(%s, %s)", [CHANNEL, f"{topic} {told}"])

    def publish_soon(self, topic: str, told: str = "") -> None:
        """The same without waiting; told to nobody when the database is not there."""
        self._background.spawn(f"bus, {topic}", self.publish(topic, told))

    async def query(self, name: bytes, parameters: Sequence[bytes]) -> PGresult:
        """Run a statement that the setup prepared. Raises DatabaseUnavailable or StatementRejected.

        It ends also when its caller is cancelled, since abandoning it would close the connection of all others.
        """
        return await asyncio.shield(self._background.spawn("bus, statement", self._query(name, parameters)))

    async def _query(self, name: bytes, parameters: Sequence[bytes]) -> PGresult:
        async with self._one:
            if not self._listener.connected:  # Whoever connects it tells the handlers.
                raise DatabaseUnavailable(self.fault)
            return await self._listener.query(name, parameters)

    def start(self) -> None:
        self._background.forever("bus", self._stay_connected, self._wait_for_beat, guards_access=True)

    async def first_attempt(self) -> None:
        """Return when the connection was made, or could not be; `fault` says which."""
        await self._first_attempt.wait()

    async def stop(self) -> None:
        """Hear nothing more."""
        await self._background.stop()
        self._listener.close()

    async def _wait_for_beat(self) -> None:
        """Wait until the connection is to be tried or made."""
        if self._listener.connected:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), BEAT_SECONDS)

    async def _stay_connected(self) -> None:
        """Try the connection; without one make it, and have everything read that may have been missed."""
        self._gone.clear()
        async with self._one:
            if self._listener.connected:
                with suppress(DatabaseUnavailable, StatementRejected):
                    await self._listener.run(b"SELECT 1")
        if self._listener.connected:
            return
        try:
            await self._listener.connect()
        except (DatabaseUnavailable, StatementRejected) as error:
            self.fault = str(error)
            raise
        finally:
            self._first_attempt.set()
        self.fault = ""
        for topic in self._handlers:
            self._tell(topic, None)

    def _lost(self) -> None:
        self.fault = "the connection was lost"
        self._gone.set()

    def _hear(self, payload: str) -> None:
        topic, _, told = payload.partition(" ")
        self._tell(topic, told)

    def _tell(self, topic: str, told: str | None) -> None:
        for handler in self._handlers.get(topic, ()):
            try:
                work = handler(told)
            except Exception:  # What one handler fails at is not the others' loss.
                logger.exception("a handler of the bus failed", extra={"topic": topic})
                continue
            if work is not None:
                self._background.spawn(f"bus, {topic}", work)
