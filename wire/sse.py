"""Server-sent events (WHATWG HTML 9.2): an incremental reader, and a writer of one event."""

import time
from dataclasses import dataclass

PING = b": ping\r\n\r\n"


# Limits of one stream: a burst of events, then a rate per second, and a total. An event usually has at most three lines
# besides its data (name, id, blank line), so LINES_PER_EVENT times as many such lines as events are allowed.
BURST = 5_000
PER_SECOND = 1_000
MOST_EVENTS = 100_000
LINES_PER_EVENT = 4
LONGEST_RETRY = 10  # A `retry` field with this many digits or more is ignored.


class EventTooLarge(Exception):
    """An event is larger than the limit."""


class TooManyEvents(Exception):
    """A stream exceeded its limit of events, in total or per second."""


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event. `name` is `message` by default."""

    data: bytes
    name: str = "message"
    id: str = ""


def event(data: bytes, event_id: bytes = b"") -> bytes:
    """Encode a `message` event. Data with line breaks, such as indented JSON, become several data lines."""
    if b"\n" in data or b"\r" in data:
        data = b"\r\ndata: ".join(data.splitlines())
    if event_id:
        return b"event: message\r\nid: %b\r\ndata: %b\r\n\r\n" % (event_id, data)
    return b"event: message\r\ndata: %b\r\n\r\n" % data


class EventParser:
    """Parses a stream into events of at most `limit` bytes. Constants of this module limit the number of events."""

    __slots__ = (
        "_after_cr",
        "_counted_at",
        "_data",
        "_first",
        "_id",
        "_left",
        "_limit",
        "_lines_left",
        "_name",
        "_open",
        "_size",
        "_total",
        "event_id",
        "retry_ms",
    )

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: list[bytes] = []
        self._data: list[bytes] = []
        self._name = ""
        self._id = ""
        self._size = 0
        self._after_cr = False
        self._first = True
        self._left = float(BURST)
        self._lines_left = float(BURST * LINES_PER_EVENT)
        self._total = 0
        self._counted_at = time.monotonic()
        self.retry_ms: int | None = None  # Delay before reconnecting, set by the stream.
        # The id of the last complete event with an id, even if this event had no data; empty if no event had an id.
        # Without "complete", a stream that breaks in the middle of an event would be resumed after this event.
        self.event_id = ""

    @property
    def size(self) -> int:
        """The size of the incomplete event, in bytes."""
        return self._size

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Return the events that `chunk` completes. Raises EventTooLarge or TooManyEvents."""
        self._size += len(chunk)
        events: list[ServerSentEvent] = []
        data: list[bytes] = []
        others = 0
        for line in self._lines(chunk):
            if line[:5] == b"data:":
                data.append(line[6:] if line[5:6] == b" " else line[5:])
                continue
            others += 1
            if line:
                self._field(line, data)
            else:
                if (done := self._dispatch(data)) is not None:
                    events.append(done)
                data.clear()
            if others > self._lines_left:
                break
        if data:
            # Join now: many short lines take more memory as separate objects.
            self._data.append(b"\n".join(data))
        self._count(len(events), others)
        if self._size > self._limit:
            raise EventTooLarge
        return events

    def _count(self, events: int, others: int) -> None:
        """Count new events, and new lines that are not data lines (`others`).

        Raises TooManyEvents if there are too many events or `others` per second, or too many events in total.
        """
        now = time.monotonic()
        refill = PER_SECOND * (now - self._counted_at)
        self._counted_at = now
        self._left = min(self._left + refill, BURST) - events
        self._lines_left = min(self._lines_left + refill * LINES_PER_EVENT, BURST * LINES_PER_EVENT) - others
        self._total += events
        if self._left < 0 or self._lines_left < 0:
            raise TooManyEvents(f"more than {PER_SECOND:,} events a second")
        if self._total > MOST_EVENTS:
            raise TooManyEvents(f"more than {MOST_EVENTS:,} events")

    def _lines(self, chunk: bytes) -> list[bytes]:
        # Lines end in LF, CR or CRLF, and chunks may break anywhere.
        if self._after_cr and chunk:
            # The CR at the end of the last chunk has already ended the line, so this LF belongs to it.
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        if b"\n" not in chunk and b"\r" not in chunk:
            # A long line arrives in many chunks: join the chunks once at the end, not for each chunk.
            self._open.append(chunk)
            return []
        self._after_cr = chunk.endswith(b"\r")
        *lines, rest = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        if self._open:
            lines[0] = b"".join((*self._open, lines[0]))  # A long line is copied only here.
        if self._first:
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
            self._first = False
        self._open = [rest]
        return lines

    def _field(self, line: bytes, data: list[bytes]) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            self._name = value.decode(errors="replace")
        elif field == b"id" and b"\0" not in value:
            self._id = value.decode(errors="replace")
        elif field == b"retry" and value.isdigit() and len(value) < LONGEST_RETRY:
            self.retry_ms = int(value)

    def _dispatch(self, last: list[bytes]) -> ServerSentEvent | None:
        data, name = self._data, self._name
        data += last
        self._data, self._name, self.event_id = [], "", self._id
        self._size = sum(map(len, self._open))
        if not data:
            return None
        return ServerSentEvent(b"\n".join(data), name or "message", self.event_id)
