"""Messages between workers by LISTEN and NOTIFY of PostgreSQL: ids only.

An ordinary call publishes nothing. What must not be lost is in a row; the bus only announces that there is something to
read. After a lost connection is restored, every handler is called with None and has to read its rows.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Protocol

from psycopg.pq.abc import PGconn, PGresult

from proxy.store.pg import DatabaseUnavailable, PgConnection, StatementRejected
from wire.background import Background

logger = logging.getLogger(__name__)

CHANNEL = "gateway"
# A connection that was cut silently is detected by a statement that gets no answer.
BEAT_SECONDS = 5.0
BEAT_TIMEOUT = 2.0

LISTEN = f"LISTEN {CHANNEL}".encode()
NAME = b"SET application_name = 'gateway bus'"

# A handler gets the published id, or None after a lost connection. An async handler runs as a task of its own.
type Handler = Callable[[str | None], Coroutine[Any, Any, None] | None]


class Statements(Protocol):
    """Protocol for running one statement in a short transaction of its own."""

    async def fetch(self, sql: str, params: Any = ..., /) -> list[tuple[Any, ...]]: ...


class ListeningConnection(PgConnection):
    """The listening connection; `hear` gets the payload of each notification."""

    def __init__(self, conninfo: str, setup: Sequence[bytes], hear: Callable[[str], None]) -> None:
        super().__init__(conninfo, (LISTEN, *setup, NAME), timeout=BEAT_TIMEOUT)
        self._hear = hear

    def _read(self, pgconn: PGconn) -> None:
        super()._read(pgconn)
        while self.connected and (note := pgconn.notifies()) is not None:
            self._hear(note.extra.decode())


class Bus:
    """Receives the messages of all workers, this one included.

    Topics: `cut` (someone's access may have ended), `lists` (the lists of the gateway with this id have changed),
    `unwritable` (a row of the log could not be written in time), and internal ones of the proxy. Its connection also
    runs the statements that `setup` prepares, one at a time.
    """

    def __init__(self, conninfo: str, statements: Statements, setup: Sequence[bytes] = ()) -> None:
        self._listener = ListeningConnection(conninfo, setup, self._hear)
        self._one = asyncio.Lock()
        self._listener.on_lost = self._lost
        self._statements = statements
        self._handlers: dict[str, list[Handler]] = {}
        self._gone = asyncio.Event()
        self._first_attempt = asyncio.Event()
        self._background = Background(DatabaseUnavailable, StatementRejected)
        self.fault = "not connected yet"

    def on(self, topic: str, handler: Handler) -> None:
        """Call `handler` for every message of this topic."""
        self._handlers.setdefault(topic, []).append(handler)

    async def publish(self, topic: str, told: str) -> None:
        """Send a message to all workers, in a transaction of its own. Raises DatabaseUnavailable."""
        await self._statements.fetch("SELECT pg_notify(%s, %s)", [CHANNEL, f"{topic} {told}"])

    def publish_soon(self, topic: str, told: str = "") -> None:
        """Publish in the background; the message is lost if the database is unavailable."""
        self._background.spawn(f"bus, {topic}", self.publish(topic, told))

    async def query(self, name: bytes, parameters: Sequence[bytes]) -> PGresult:
        """Run a statement that the setup prepared. Raises DatabaseUnavailable or StatementRejected.

        It is completed even if the caller is cancelled, since abandoning it would close the shared connection.
        """
        return await asyncio.shield(self._background.spawn("bus, statement", self._query(name, parameters)))

    async def _query(self, name: bytes, parameters: Sequence[bytes]) -> PGresult:
        async with self._one:
            if not self._listener.connected:  # Only `_stay_connected` connects, because it calls the handlers.
                raise DatabaseUnavailable(self.fault)
            return await self._listener.query(name, parameters)

    def start(self) -> None:
        self._background.forever("bus", self._stay_connected, self._wait_for_beat, guards_access=True)

    async def first_attempt(self) -> None:
        """Return after the first connection attempt; `fault` is its error, if it failed."""
        await self._first_attempt.wait()

    async def stop(self) -> None:
        """Stop, and close the connection."""
        await self._background.stop()
        self._listener.close()

    async def _wait_for_beat(self) -> None:
        """Wait until the connection is due for a check, or lost."""
        if self._listener.connected:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), BEAT_SECONDS)

    async def _stay_connected(self) -> None:
        """Check the connection; if it is lost, reconnect and have the handlers read what they may have missed."""
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
            except Exception:  # A failing handler must not affect the others.
                logger.exception("a handler of the bus failed", extra={"topic": topic})
                continue
            if work is not None:
                self._background.spawn(f"bus, {topic}", work)
