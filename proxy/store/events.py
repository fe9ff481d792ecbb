"""Stores the events that clients may not have received on their streams, so that the streams can be resumed.

See MCP 2025-11-25, Streamable HTTP, Resumability and Redelivery. While a client reads, the last events are only in
memory. They are written to rows, encrypted, when the client disconnects or reconnects to another worker.
"""

import asyncio
import base64
import binascii
import logging
import random
import re
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, Protocol
from uuid import UUID, uuid4

from proxy.store.bus import Statements, Subscribable
from proxy.store.pg import DatabaseUnavailable
from wire import jsonrpc, sse
from wire.background import Background
from wire.cipher import Cipher, Undecryptable

logger = logging.getLogger(__name__)

STANDING, CALL = "s", "c"  # Kinds of streams, in event ids.
WAITING = "waiting"  # Bus topic: a message was stored for a session without a stream.

KEPT_SECONDS = 300.0  # How long a client may resume a stream that broke.
FINISHED_SECONDS = 60.0  # How long a client may resume a stream that ended, in case the client missed the end.
MOST_EVENTS = 256  # How many of the last events of one stream are kept.
MOST_BYTES = 1 << 20  # Total size of these events. The answer to a call is always kept, even if it is larger.
MOST_FINISHED = 1_000  # Ended streams whose events this worker keeps in memory.
MOST_FINISHED_BYTES = 32 << 20
MOST_ROWS = 1_000  # Stored events of one session.
MOST_ROW_BYTES = 32 << 20
MOST_WAITING = 1_000  # Sessions without a stream for which this worker keeps a StreamHistory.
LARGE = 64 << 10  # Bytes; from this size on, events are sealed in a thread.
RETRY_SECONDS = 0.5
ATTEMPTS = 5
LONGEST_REQUEST_ID = 64

# Reconnection delay, sent in a stream's first event. That event has an id but no data, so that the client can resume
# the stream even before it has received a message.
RETRY_MS = 1000

KEEP = """
WITH kept AS (
    INSERT INTO proxy_streamevent (session_id, stream_id, number, data, is_last, expires_at)
    SELECT %(session)s, %(stream)s, number, data, is_last,
        statement_timestamp() + make_interval(secs => %(seconds)s)
    FROM unnest(%(numbers)s::int[], %(data)s::bytea[], %(is_last)s::bool[]) AS e (number, data, is_last)
    ON CONFLICT (session_id, stream_id, number) DO NOTHING
), gone AS (
    DELETE FROM proxy_streamevent WHERE id IN (
        SELECT id FROM (
            SELECT id, row_number() OVER newest AS number, sum(octet_length(data)) OVER newest AS bytes
            FROM proxy_streamevent WHERE session_id = %(session)s WINDOW newest AS (ORDER BY id DESC)
        ) e WHERE number > %(most)s OR bytes > %(most_bytes)s
    )
)
SELECT pg_notify('gateway', %(topic)s || ' ' || %(stream)s)
"""
READ = """
SELECT number, data, is_last FROM proxy_streamevent
WHERE session_id = %(session)s AND stream_id = %(stream)s AND number > %(after)s
    AND expires_at > statement_timestamp()
ORDER BY number
"""
# A resumed stream no longer counts as ended.
TAKE = (
    "UPDATE proxy_streamevent SET is_last = false WHERE session_id = %(session)s AND stream_id = %(stream)s AND is_last"
)
# Messages for a session without a stream have the session's id as stream id, and are ordered by row id.
TAKE_WAITING = """
WITH taken AS (
    DELETE FROM proxy_streamevent WHERE session_id = %(session)s AND stream_id = %(session)s
    RETURNING id, data, expires_at
)
SELECT data FROM taken WHERE expires_at > statement_timestamp() ORDER BY id
"""


class EventId(NamedTuple):
    """A parsed event id: kind and id of the stream, number of the event, and, for a call's stream, the request id."""

    kind: str
    stream: str
    number: int
    request_id: jsonrpc.Id | None = None

    @classmethod
    def read(cls, text: str) -> "EventId | None":
        """Parse an event id. Return None if the text does not have the form of an event id."""
        if (found := _is_event_id(text)) is None:
            return None
        kind, stream, number, spelled = found.groups()
        return cls(kind, str(UUID(stream)), int(number), _request_id(spelled) if spelled else None)

    def text(self) -> bytes:
        """Return the event id as text for clients. A request id that is too long is left out."""
        spelled = jsonrpc.dumps(self.request_id) if self.request_id is not None else b""
        named = b"-" + base64.urlsafe_b64encode(spelled) if 0 < len(spelled) <= LONGEST_REQUEST_ID else b""
        return b"%b-%b-%d%b" % (self.kind.encode(), UUID(self.stream).hex.encode(), self.number, named)


_is_event_id = re.compile(r"([sc])-([0-9a-f]{32})-([0-9]{1,9})(?:-([A-Za-z0-9_=-]{1,100}))?").fullmatch


def _request_id(spelled: str) -> jsonrpc.Id | None:
    try:
        value = jsonrpc.loads(base64.urlsafe_b64decode(spelled))
    except (ValueError, binascii.Error, RecursionError):
        return None
    return value if type(value) is int or isinstance(value, str) else None


class Kept(NamedTuple):
    """A stored event. An event without data only marks the position of the stream."""

    number: int
    data: bytes
    is_last: bool


class StreamHistory:
    """The event ids of one stream, and the events that its client may not have received.

    `taken` is called when the client has resumed the stream elsewhere.
    """

    __slots__ = (
        "_events",
        "_name",
        "_pending",
        "_recent",
        "_writing",
        "away",
        "ended",
        "number",
        "session_id",
        "size",
        "stream",
        "taken",
    )

    def __init__(self, events: "StreamEvents", session_id: str, name: EventId) -> None:
        self._events = events
        self.session_id = session_id
        self.stream = name.stream
        self.number = name.number
        self._name = name
        self._recent: deque[Kept] = deque()
        self.size = 0
        self._pending: list[Kept] = []
        self._writing: asyncio.Task[None] | None = None
        self.away = False
        self.ended = False
        self.taken: Callable[[], object] = bool

    @property
    def key(self) -> tuple[str, str]:
        return self.session_id, self.stream

    def beginning(self) -> bytes:
        """Return an event without data, with the id from which the client can resume."""
        return b"id: %b\r\nretry: %d\r\ndata: \r\n\r\n" % (self.event_id(self.number), RETRY_MS)

    def event_id(self, number: int) -> bytes:
        return self._name._replace(number=number).text()

    def add(self, data: bytes) -> bytes:
        """Add an event, and return the encoded event."""
        self.number += 1
        self._note(Kept(self.number, data, is_last=False))
        return sse.event(data, self.event_id(self.number))

    def end(self, data: bytes = b"") -> bytes:
        """End the stream. Return the encoded last event, or b"" if there is no data or the stream has already ended."""
        if self.ended:
            return b""
        self.ended = True
        self.number += 1
        self._note(Kept(self.number, data, is_last=True))
        self._events.retire(self)
        return sse.event(data, self.event_id(self.number)) if data else b""

    def drop(self) -> None:
        """Drop the stream without storing an end. Do nothing if the stream has ended already."""
        if not self.ended:
            self.ended = True
            self._events.drop(self)

    def leave(self) -> None:
        """Write the recent events to rows now, because the client has disconnected.

        From now on, write each new event as it occurs.
        """
        if not self.away:
            self.away = True
            self._pending, self._recent = [*self._recent], deque()
            self.size = 0
        self.flush()

    def flush(self) -> None:
        """Write the pending events, if any, and notify the workers that wait for events."""
        if self._writing is None or self._writing.done():
            self._writing = self._events.run(self._write())

    def _note(self, event: Kept) -> None:
        if self.away:
            self._pending.append(event)
            size = sum(len(each.data) for each in self._pending)
            # Drop the oldest events if the database does not keep up. An end without data may exceed the size limit.
            while len(self._pending) > MOST_EVENTS or (event.data and size > MOST_BYTES and len(self._pending) > 1):
                size -= len(self._pending.pop(0).data)
            self.flush()
            return
        self._recent.append(event)
        self.size += len(event.data)
        while len(self._recent) > MOST_EVENTS or (self.size > MOST_BYTES and len(self._recent) > 1):
            self.size -= len(self._recent.popleft().data)

    async def _write(self) -> None:
        while True:
            pending, self._pending = self._pending, []
            await self._events.keep(self, pending)
            if not self._pending:
                return


class PublishingBus(Subscribable, Protocol):
    """Protocol for a bus that can also publish."""

    async def publish(self, topic: str, told: str, /) -> None: ...


class StreamEvents:
    """The resumable streams of this worker, and the stored events of all workers."""

    def __init__(self, state: Statements, bus: PublishingBus, cipher: Cipher) -> None:
        self._state = state
        self._bus = bus
        self._cipher = cipher
        # Keyed by session and stream, so that a client cannot reach the stream of another session.
        self._histories: dict[tuple[str, str], StreamHistory] = {}
        self._finished: OrderedDict[tuple[str, str], tuple[float, StreamHistory]] = OrderedDict()
        self._finished_bytes = 0
        self._news: dict[str, set[asyncio.Event]] = {}
        self._waiting: OrderedDict[str, StreamHistory] = OrderedDict()
        self._background = Background()
        bus.on("resume", self._wanted)
        bus.on("events", self._ring)

    async def stop(self) -> None:
        """Stop. Writes that have begun get one second to end."""
        await self._background.stop(patience=1)

    # The streams of this worker

    def begin(self, session_id: str, name: EventId) -> StreamHistory:
        """Create the history of a stream. The first new event gets the number after `name.number`."""
        history = self._histories[session_id, name.stream] = StreamHistory(self, session_id, name)
        return history

    def begin_call(self, session_id: str, request_id: jsonrpc.Id | None) -> StreamHistory:
        """Create the history of a new stream for the call with this id."""
        return self.begin(session_id, EventId(CALL, str(uuid4()), 0, request_id))

    def begin_standing(self, session_id: str) -> StreamHistory:
        """Create the history of a new standing stream."""
        return self.begin(session_id, EventId(STANDING, str(uuid4()), 0))

    def keep_waiting(self, session_id: str, data: bytes) -> None:
        """Store a message for a session that has no standing stream. The session's next stream gets the message."""
        history = self._waiting.pop(session_id, None)
        if history is None:
            first = random.randrange(1 << 30)  # noqa: S311 - only to differ from other workers
            history = StreamHistory(self, session_id, EventId(STANDING, session_id, first))
            history.away = True
        self._waiting[session_id] = history
        history.add(data)
        while len(self._waiting) > MOST_WAITING:
            self._waiting.popitem(last=False)

    async def take_waiting(self, session_id: str) -> list[bytes]:
        """Remove and return the messages stored by `keep_waiting`. Raises DatabaseUnavailable."""
        rows = await self._state.fetch(TAKE_WAITING, {"session": session_id})
        kept = self._open([(0, bytes(data), False) for (data,) in rows])
        return [each.data for each in kept if each.data]

    def drop(self, history: StreamHistory) -> None:
        """Forget this stream."""
        if self._histories.get(history.key) is history:
            del self._histories[history.key]

    def retire(self, history: StreamHistory) -> None:
        """Keep an ended stream for a while, because its client may not have received the end."""
        self.drop(history)
        now = time.monotonic()
        if not history.away:
            self._finished[history.key] = now, history
            self._finished_bytes += history.size
        while self._finished:
            at, oldest = next(iter(self._finished.values()))
            few = len(self._finished) <= MOST_FINISHED and self._finished_bytes <= MOST_FINISHED_BYTES
            if few and now - at < FINISHED_SECONDS:
                break
            self._forget_finished(oldest)

    def _forget_finished(self, history: StreamHistory) -> None:
        if self._finished.pop(history.key, None) is not None:
            self._finished_bytes -= history.size

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` in a background task."""
        return self._background.spawn("events of a stream", work)

    def _wanted(self, told: str | None) -> None:
        """Write the events of a stream to the database, because its client has reconnected to another worker.

        `told` contains the session id and the stream id. Do nothing if `told` is None, or if the stream is not a stream
        of this worker.
        """
        session_id, _, stream = (told or "").partition(" ")
        finished = self._finished.get((session_id, stream))
        history = self._histories.get((session_id, stream)) or (finished[1] if finished else None)
        if history is None:
            return
        self._forget_finished(history)
        history.leave()
        history.taken()  # Ends a standing stream. A call's stream continues, but its events only go to the database.

    # The stored events of all workers

    async def keep(self, history: StreamHistory, kept: list[Kept]) -> None:
        """Write these events and notify workers that wait for them. After ATTEMPTS failures, the events are lost."""
        sealed = self._seal(kept) if sum(len(each.data) for each in kept) < LARGE else None
        given = {
            "session": history.session_id,
            "stream": history.stream,
            "numbers": [each.number for each in kept],
            "data": sealed if sealed is not None else await asyncio.to_thread(self._seal, kept),
            "is_last": [each.is_last for each in kept],
            "topic": WAITING if history.stream == history.session_id else "events",
            "seconds": KEPT_SECONDS,
            "most": MOST_ROWS,
            "most_bytes": MOST_ROW_BYTES,
        }
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._state.fetch(KEEP, given)
            except DatabaseUnavailable as error:
                if attempt == ATTEMPTS:
                    logger.warning("events that a client missed are lost", extra={"error": str(error)})
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    def _seal(self, kept: list[Kept]) -> list[bytes]:
        return [self._cipher.seal(each.data.decode(errors="replace")) if each.data else b"" for each in kept]

    async def read(self, session_id: str, name: EventId) -> list[Kept]:
        """Return the stored events that follow the event `name` on its stream. Raises DatabaseUnavailable."""
        given = {"session": session_id, "stream": name.stream, "after": name.number}
        rows = [(number, bytes(data), is_last) for number, data, is_last in await self._state.fetch(READ, given)]
        if sum(len(data) for _, data, _ in rows) < jsonrpc.LARGE:
            return self._open(rows)
        return await asyncio.to_thread(self._open, rows)  # Decrypting many bytes would block the event loop.

    def _open(self, rows: list[tuple[int, bytes, bool]]) -> list[Kept]:
        kept = []
        for number, data, is_last in rows:
            try:
                kept.append(Kept(number, self._cipher.open(data).encode() if data else b"", is_last))
            except Undecryptable:  # The operator has removed the encryption key.
                kept.append(Kept(number, b"", is_last))
        return kept

    async def take(self, session_id: str, name: EventId) -> None:
        """Remove the end mark from the stored events of this stream, because its client has resumed the stream.

        Raises DatabaseUnavailable.
        """
        await self._state.fetch(TAKE, {"session": session_id, "stream": name.stream})

    async def want(self, session_id: str, name: EventId) -> None:
        """Ask the worker that has this stream to write the stream's events to the database.

        Call `listen` before, to be notified when the events are written. Raises DatabaseUnavailable.
        """
        await self._bus.publish("resume", f"{session_id} {name.stream}")

    def listen(self, stream: str) -> asyncio.Event:
        """Return an asyncio.Event that is set when events of this stream are written to the database.

        Call `forget` when nothing waits for the asyncio.Event any more.
        """
        event = asyncio.Event()
        self._news.setdefault(stream, set()).add(event)
        return event

    def forget(self, stream: str, event: asyncio.Event) -> None:
        waiting = self._news.get(stream, set())
        waiting.discard(event)
        if not waiting:
            self._news.pop(stream, None)

    def _ring(self, stream: str | None) -> None:
        for name in [*self._news] if stream is None else [stream]:
            for event in self._news.get(name, ()):
                event.set()
