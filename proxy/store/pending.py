"""What servers have asked of clients and nobody has answered yet, in rows that every worker reads and writes.

The worker that carries a call waits for the answers; a client may post them to any other. Requests and answers are
sealed in the rows; the bus tells ids only. Whatever was told while it was not connected is read when it is back.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, Protocol

from proxy.store.database import DatabaseUnavailable
from wire import jsonrpc
from wire.cipher import Cipher, Unreadable
from wire.jsonrpc import Object

TOPIC = "answer"
RETRY_SECONDS = 0.5  # After the database did not say whether there is an answer.

ADD = """
INSERT INTO proxy_pendingrequest (id, connection_id, session_id, call_id, method, asked, expires_at)
VALUES (%(id)s, %(connection)s, %(session)s, %(call)s, %(method)s, %(asked)s,
    statement_timestamp() + make_interval(secs => %(seconds)s))
"""
# The first answer counts; whoever is told finds it, since both are one transaction.
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
# What one worker leaves for another: nobody answers it.
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


class Statements(Protocol):
    """Runs one statement in a transaction of its own."""

    async def fetch(self, sql: str, params: Any = (), /) -> list[tuple[Any, ...]]: ...


class Told(Protocol):
    """Tells what any worker says under a topic; None when something may have been missed."""

    def on(self, topic: str, handler: Callable[[str | None], Coroutine[Any, Any, None] | None], /) -> None: ...


class Owner(NamedTuple):
    """Who may answer: a session of a connection, or whoever retries a suspended call of it."""

    connection_id: str
    session_id: str | None = None
    call_id: str | None = None


class Bell:
    """Wakes whoever waits in this worker for news of an id."""

    def __init__(self, told: Told) -> None:
        self._waiting: dict[str, asyncio.Event] = {}
        told.on(TOPIC, self._ring)

    def listen(self, uid: str) -> asyncio.Event:
        """An event that is set at news of `uid`, and whenever news may have been missed. End it with `forget`."""
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
    """The rows of requests that wait for their answers."""

    def __init__(self, state: Statements, bell: Bell, cipher: Cipher) -> None:
        self._state = state
        self._bell = bell
        self._cipher = cipher

    async def add(self, uid: str, owner: Owner, asked: Object, seconds: float) -> None:
        """Let `owner` answer for so many seconds. Raises DatabaseUnavailable."""
        self._bell.listen(uid)
        given = {
            "id": uid,
            "method": asked["method"],
            # Whoever sends it from another worker reads it here.
            "asked": self.seal(jsonrpc.dumps(asked)) if owner.call_id else None,
            "seconds": seconds,
            "connection": owner.connection_id,
            "session": owner.session_id,
            "call": owner.call_id,
        }
        await self._state.fetch(ADD, given)

    async def answer(self, uid: str, owner: Owner, answer: bytes) -> None:
        """Keep the answer, if `owner` was asked this and has not answered yet. Raises DatabaseUnavailable."""
        given = {"id": uid, "answer": self.seal(answer)}
        await self._state.fetch(
            ANSWER, given | {"connection": owner.connection_id, "session": owner.session_id, "call": owner.call_id}
        )

    async def wait(self, uid: str) -> Object:
        """The answer to a request that was added here, when it is there."""
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
        """What is asked in a suspended call and not answered yet, by id. Raises DatabaseUnavailable."""
        rows = await self._state.fetch(OPEN, (call_id,))
        return {uid: jsonrpc.loads(self.unseal(asked)) for uid, asked in rows}

    async def drop(self, uid: str) -> None:
        """Forget a request; a later answer to it is nobody's. Raises DatabaseUnavailable."""
        self._bell.forget(uid)
        await self._state.fetch(DROP, (uid,))

    async def leave(self, uid: str, owner: Owner, text: bytes) -> None:
        """Leave this text, sealed, for another worker. Raises DatabaseUnavailable."""
        given = {"id": uid, "asked": self.seal(text), "connection": owner.connection_id, "session": owner.session_id}
        await self._state.fetch(LEAVE, given)

    async def left(self, uid: str) -> bytes | None:
        """What a worker left; None when it is there no longer. Raises DatabaseUnavailable."""
        rows = await self._state.fetch(LEFT, (uid,))
        return self.unseal(rows[0][0]) if rows else None

    async def purge(self) -> None:
        """Delete what nobody may answer, retry or resume any more. Raises DatabaseUnavailable."""
        await self._state.fetch(PURGE)

    def seal(self, text: bytes) -> bytes:
        return self._cipher.seal(text.decode(errors="replace"))

    def unseal(self, sealed: Any) -> bytes:
        """What was sealed. Raises DatabaseUnavailable when its key is gone."""
        try:
            return self._cipher.open(bytes(sealed)).encode()
        except Unreadable as error:
            raise DatabaseUnavailable("sealed with a key that this worker does not know") from error
