"""Short messages between workers, mostly ids, by LISTEN and NOTIFY of PostgreSQL.

Messages are lost while the bus is not connected to the database. So data that must not be lost is stored in the
database. Each time the bus has connected, it calls every handler with None. The handler then has to read from the
database what it may have missed.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from psycopg.pq.abc import PGconn, PGresult

from proxy.store.pg import DatabaseUnavailable, PgConnection, StatementRejected
from wire import jsonrpc
from wire.background import Background
from wire.cipher import Cipher, Undecryptable
from wire.jsonrpc import Object

logger = logging.getLogger(__name__)

CHANNEL = "gateway"
# Seconds between checks of the connection by a statement: a connection may break without any event on the socket.
BEAT_SECONDS = 5.0
BEAT_TIMEOUT = 2.0

LISTEN = f"LISTEN {CHANNEL}".encode()
NAME = b"SET application_name = 'gateway bus'"

# A handler gets the published text, or None after a connect. An async handler runs as a task of its own.
type Handler = Callable[[str | None], Coroutine[Any, Any, None] | None]


class Statements(Protocol):
    """Protocol for running one statement in a separate short transaction."""

    async def fetch(self, sql: str, params: Any = ..., /) -> list[tuple[Any, ...]]: ...


class ListeningConnection(PgConnection):
    """The database connection that listens for notifications. `hear` is called with the payload of each."""

    def __init__(self, conninfo: str, setup: Sequence[bytes], hear: Callable[[str], None]) -> None:
        super().__init__(conninfo, (LISTEN, *setup, NAME), timeout=BEAT_TIMEOUT)
        self._hear = hear

    def _read(self, pgconn: PGconn) -> None:
        super()._read(pgconn)
        while self.connected and (note := pgconn.notifies()) is not None:
            self._hear(note.extra.decode())


class Bus:
    """Receives the messages of all workers, this one included.

    The bus connection also runs the statements that `setup` prepares, one at a time.
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
        # Topics: `cut` (someone's access may have ended), `lists` (the lists of the gateway with this id have
        # changed), `unwritable` (a row of the log could not be written in time), and internal topics of the proxy.
        self._handlers.setdefault(topic, []).append(handler)

    async def publish(self, topic: str, told: str) -> None:
        """Send a message to all workers, in a separate transaction. Raises DatabaseUnavailable."""
        await self._statements.fetch("SELECT pg_notify(%s, %s)", [CHANNEL, f"{topic} {told}"])

    def publish_soon(self, topic: str, told: str = "") -> None:
        """Publish in the background; the message is lost if the database is unavailable."""
        self._background.spawn(f"bus, {topic}", self.publish(topic, told))

    async def query(self, name: bytes, parameters: Sequence[bytes]) -> PGresult:
        """Run a statement that the setup prepared. Raises DatabaseUnavailable or StatementRejected."""
        # Completed even if the caller is cancelled: abandoning the statement would close the shared connection.
        return await asyncio.shield(self._background.spawn("bus, statement", self._query(name, parameters)))

    async def _query(self, name: bytes, parameters: Sequence[bytes]) -> PGresult:
        async with self._one:
            if not self._listener.connected:  # Only `_stay_connected` connects, because it calls the handlers.
                raise DatabaseUnavailable(self.fault)
            return await self._listener.query(name, parameters)

    def start(self) -> None:
        self._background.forever("bus", self._stay_connected, self._wait_for_beat, guards_access=True)

    async def first_attempt(self) -> None:
        """Return after the first connection attempt. If it failed, `fault` is the error; otherwise `fault` is empty."""
        await self._first_attempt.wait()

    async def stop(self) -> None:
        """Stop, and close the database connection."""
        await self._background.stop()
        self._listener.close()

    async def _wait_for_beat(self) -> None:
        """Wait until the database connection is lost, or is due for a check."""
        if self._listener.connected:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), BEAT_SECONDS)

    async def _stay_connected(self) -> None:
        """Check the database connection. If it was lost, reconnect, and call every handler with None."""
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
                logger.exception("a bus handler failed", extra={"topic": topic})
                continue
            if work is not None:
                self._background.spawn(f"bus, {topic}", work)


# Unanswered requests of servers to clients, in rows shared by all workers.
#
# The worker that runs a call waits for the answers; a client may post answers to any worker. Requests and answers are
# encrypted in the rows; the bus carries ids only. After a lost bus connection the rows are read again.

TOPIC = "answer"
RETRY_SECONDS = 0.5  # Pause after the database was unavailable.

ADD = """
INSERT INTO proxy_pendingrequest (id, connection_id, session_id, call_id, method, asked, expires_at)
VALUES (%(id)s, %(connection)s, %(session)s, %(call)s, %(method)s, %(asked)s,
    statement_timestamp() + make_interval(secs => %(seconds)s))
"""
# The first answer counts. One transaction stores the answer and notifies, so that the notified worker finds it.
ANSWER = """
WITH answered AS (
    UPDATE proxy_pendingrequest SET answer = %(answer)s
    WHERE id = %(id)s AND connection_id = %(connection)s AND session_id IS NOT DISTINCT FROM %(session)s
        AND call_id IS NOT DISTINCT FROM %(call)s AND answer IS NULL AND expires_at > statement_timestamp()
    RETURNING id
)
SELECT pg_notify('gateway', 'answer ' || id) FROM answered
"""
READ = "SELECT answer FROM proxy_pendingrequest WHERE id = %s AND answer IS NOT NULL"
OPEN = """
SELECT id::text, asked FROM proxy_pendingrequest
WHERE call_id = %s AND answer IS NULL AND expires_at > statement_timestamp() ORDER BY expires_at
"""
DROP = "DELETE FROM proxy_pendingrequest WHERE id = %s"
# A text from one worker for another worker. It is not a request and gets no answer.
LEAVE = """
INSERT INTO proxy_pendingrequest (id, connection_id, session_id, method, asked, expires_at)
VALUES (%(id)s, %(connection)s, %(session)s, '', %(asked)s, statement_timestamp() + interval '30 seconds')
"""
LEFT = "SELECT asked FROM proxy_pendingrequest WHERE id = %s AND method = ''"
PURGE = """
WITH calls AS (DELETE FROM proxy_suspendedcall WHERE expires_at < statement_timestamp()),
    events AS (DELETE FROM proxy_streamevent WHERE expires_at < statement_timestamp())
DELETE FROM proxy_pendingrequest WHERE expires_at < statement_timestamp()
"""


class Subscribable(Protocol):
    """Protocol for subscribing to a topic; handlers get None when messages may have been missed."""

    def on(self, topic: str, handler: Callable[[str | None], Coroutine[Any, Any, None] | None], /) -> None: ...


class Owner(NamedTuple):
    """The client that may answer a request.

    `session_id` is the client's session, or None if the client has none. `call_id` is the suspended call whose retry
    brings the answer, or None if the client posts the answer separately.
    """

    connection_id: str
    session_id: str | None = None
    call_id: str | None = None


class Bell:
    """Wakes the tasks of this worker that wait for news of a pending request or a suspended call.

    News is, for example, that the request was answered or that the call has ended.
    """

    def __init__(self, told: Subscribable) -> None:
        self._waiting: dict[str, asyncio.Event] = {}
        told.on(TOPIC, self._ring)

    def listen(self, uid: str) -> asyncio.Event:
        """Return an event that is set when there may be news of the request or call with the id `uid`.

        The event is set when news arrives, and when the bus has reconnected and may have missed news. Call `forget`
        when nothing waits for the event any more.
        """
        return self._waiting.setdefault(uid, asyncio.Event())

    def forget(self, uid: str) -> None:
        self._waiting.pop(uid, None)

    def _ring(self, uid: str | None) -> None:
        if uid is None:
            for event in self._waiting.values():
                event.set()
        elif (waited_for := self._waiting.get(uid)) is not None:
            waited_for.set()


class PendingRequests:
    """Servers' requests to clients, stored in the database while they wait for answers."""

    def __init__(self, state: Statements, bell: Bell, cipher: Cipher) -> None:
        self._state = state
        self._bell = bell
        self._cipher = cipher

    async def add(self, uid: str, owner: Owner, asked: Object, seconds: float) -> None:
        """Store the request, which `owner` can answer within `seconds`. Raises DatabaseUnavailable."""
        self._bell.listen(uid)
        given = {
            "id": uid,
            "method": asked["method"],
            # A retry in another worker reads the request from the row.
            "asked": self.seal(jsonrpc.dumps(asked)) if owner.call_id else None,
            "seconds": seconds,
            "connection": owner.connection_id,
            "session": owner.session_id,
            "call": owner.call_id,
        }
        await self._state.fetch(ADD, given)

    async def answer(self, uid: str, owner: Owner, answer: bytes) -> None:
        """Store the answer if the request `uid` is for `owner` and unanswered; otherwise ignore the answer.

        Raises DatabaseUnavailable.
        """
        given = {"id": uid, "answer": self.seal(answer)}
        await self._state.fetch(
            ANSWER, given | {"connection": owner.connection_id, "session": owner.session_id, "call": owner.call_id}
        )

    async def wait(self, uid: str) -> Object:
        """Wait for the answer to a request that this worker has added, and return the answer.

        Raises DatabaseUnavailable if the answer is encrypted with a key that this worker does not have.
        """
        event = self._bell.listen(uid)
        while True:
            await event.wait()
            event.clear()
            try:
                rows = await self._state.fetch(READ, (uid,))
            except DatabaseUnavailable:
                await asyncio.sleep(RETRY_SECONDS)
                event.set()
                continue
            if rows:
                answer: Object = jsonrpc.loads(self.unseal(rows[0][0]))
                return answer

    async def open(self, call_id: str) -> dict[str, Object]:
        """Return the unanswered requests of a suspended call, by id. Raises DatabaseUnavailable."""
        rows = await self._state.fetch(OPEN, (call_id,))
        return {uid: jsonrpc.loads(self.unseal(asked)) for uid, asked in rows}

    async def drop(self, uid: str) -> None:
        """Delete a request; later answers to it are ignored. Raises DatabaseUnavailable."""
        self._bell.forget(uid)
        await self._state.fetch(DROP, (uid,))

    async def leave(self, uid: str, owner: Owner, text: bytes) -> None:
        """Store a text for other workers, which can get it with `left` and the same `uid`.

        The text is encrypted, and expires after 30 seconds. Raises DatabaseUnavailable.
        """
        given = {"id": uid, "asked": self.seal(text), "connection": owner.connection_id, "session": owner.session_id}
        await self._state.fetch(LEAVE, given)

    async def left(self, uid: str) -> bytes | None:
        """Return the text stored by `leave`, or None if the text was deleted. Raises DatabaseUnavailable."""
        rows = await self._state.fetch(LEFT, (uid,))
        return self.unseal(rows[0][0]) if rows else None

    async def purge(self) -> None:
        """Delete expired requests, suspended calls and events. Raises DatabaseUnavailable."""
        await self._state.fetch(PURGE)

    def seal(self, text: bytes) -> bytes:
        return self._cipher.seal(text.decode(errors="replace"))

    def unseal(self, sealed: Any) -> bytes:
        """Decrypt a sealed value. Raises DatabaseUnavailable if this worker does not have the key."""
        try:
            return self._cipher.open(bytes(sealed)).encode()
        except Undecryptable as error:
            raise DatabaseUnavailable("encrypted with a key that this worker does not have") from error
