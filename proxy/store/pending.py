"""Unanswered requests of servers to clients, in rows shared by all workers.

The worker that runs a call waits for the answers; a client may post them to any worker. Requests and answers are sealed
in the rows; the bus carries ids only. After a lost bus connection the rows are read again.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, Protocol

from proxy.store.bus import Statements
from proxy.store.pg import DatabaseUnavailable
from wire import jsonrpc
from wire.cipher import Cipher, Undecryptable
from wire.jsonrpc import Object

TOPIC = "answer"
RETRY_SECONDS = 0.5  # After the database was unavailable.

ADD = """
INSERT INTO proxy_pendingrequest (id, connection_id, session_id, call_id, method, asked, expires_at)
VALUES (%(id)s, %(connection)s, %(session)s, %(call)s, %(method)s, %(asked)s,
    statement_timestamp() + make_interval(secs => %(seconds)s))
"""
# The first answer counts. Answer and notification are one transaction, so that the notified worker finds it.
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
# A text from one worker for another; it is not answered.
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
    """The client that may answer: a session of a connection, or the retry of one of its suspended calls."""

    connection_id: str
    session_id: str | None = None
    call_id: str | None = None


class Bell:
    """Wakes the tasks of this worker that wait for news of an id."""

    def __init__(self, told: Subscribable) -> None:
        self._waiting: dict[str, asyncio.Event] = {}
        told.on(TOPIC, self._ring)

    def listen(self, uid: str) -> asyncio.Event:
        """Return an event that is set at news of `uid`, and when news may have been missed. End with `forget`."""
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
            # A retry in another worker reads the request from the row.
            "asked": self.seal(jsonrpc.dumps(asked)) if owner.call_id else None,
            "seconds": seconds,
            "connection": owner.connection_id,
            "session": owner.session_id,
            "call": owner.call_id,
        }
        await self._state.fetch(ADD, given)

    async def answer(self, uid: str, owner: Owner, answer: bytes) -> None:
        """Store the answer, if `owner` was asked this and has not answered yet. Raises DatabaseUnavailable."""
        given = {"id": uid, "answer": self.seal(answer)}
        await self._state.fetch(
            ANSWER, given | {"connection": owner.connection_id, "session": owner.session_id, "call": owner.call_id}
        )

    async def wait(self, uid: str) -> Object:
        """Wait for the answer to a request that was added here."""
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
        """Store this text, sealed, for another worker. Raises DatabaseUnavailable."""
        given = {"id": uid, "asked": self.seal(text), "connection": owner.connection_id, "session": owner.session_id}
        await self._state.fetch(LEAVE, given)

    async def left(self, uid: str) -> bytes | None:
        """Return the text stored by `leave`, or None if it is gone. Raises DatabaseUnavailable."""
        rows = await self._state.fetch(LEFT, (uid,))
        return self.unseal(rows[0][0]) if rows else None

    async def purge(self) -> None:
        """Delete expired requests, suspended calls and events. Raises DatabaseUnavailable."""
        await self._state.fetch(PURGE)

    def seal(self, text: bytes) -> bytes:
        return self._cipher.seal(text.decode(errors="replace"))

    def unseal(self, sealed: Any) -> bytes:
        """Decrypt a sealed value. Raises DatabaseUnavailable if its key is gone."""
        try:
            return self._cipher.open(bytes(sealed)).encode()
        except Undecryptable as error:
            raise DatabaseUnavailable("sealed with a key that this worker does not know") from error
