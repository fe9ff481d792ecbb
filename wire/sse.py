"""Event streams (WHATWG HTML 9.2): a reader that is fed chunks, and a writer of one event."""

import time
from dataclasses import dataclass

PING = b": ping\r\n\r\n"


# What one stream may hold: so many events at once, so many a second from then on, and so many in all. An event has at
# most three lines beside its data (its name, its id, the blank one); a stream with more lines pays for them as events.
BURST = 5_000
PER_SECOND = 1_000
MOST_EVENTS = 100_000
LINES_PER_EVENT = 4
LONGEST_RETRY = 10  # Digits.


class EventTooLarge(Exception):
    """An event grew past the limit."""


class TooManyEvents(Exception):
    """More events arrived than a stream may hold, in all or in a second."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `name` is `message` when the stream named none."""

    data: bytes
    name: str = "message"
    id: str = ""


def event(data: bytes, event_id: bytes = b"") -> bytes:
    """One `message` event holding `data`; a line break, as in JSON laid out for reading, begins another data line."""
    if b"\n" in data or b"\r" in data:
        data = b"\r\ndata: ".join(data.splitlines())
    if event_id:
        return b"event: message\r\nid: %b\r\ndata: %b\r\n\r\n" % (event_id, data)
    return b"event: message\r\ndata: %b\r\n\r\n" % data


class Reader:
    """Turns chunks of a stream into events; lines end in LF, CR or CRLF, wherever chunks break.

    An event has `limit` bytes at most; how many of them a stream may hold is said above.
    """

    __slots__ = (
        "_after_cr",
        "_counted_at",
        "_data",
        "_event_id",
        "_first",
        "_left",
        "_limit",
        "_lines_left",
        "_name",
        "_open",
        "_size",
        "_total",
        "retry_ms",
    )

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: list[bytes] = []
        self._data: list[bytes] = []
        self._name = ""
        self._event_id = ""
        self._size = 0
        self._after_cr = False
        self._first = True
        self._left = float(BURST)
        self._lines_left = float(BURST * LINES_PER_EVENT)
        self._total = 0
        self._counted_at = time.monotonic()
        self.retry_ms: int | None = None  # What the stream says to wait before it is opened again.

    @property
    def event_id(self) -> str:
        """The id of the last event, one without data included; empty when none had one."""
        return self._event_id

    @property
    def size(self) -> int:
        """How many bytes of an event that is not complete are kept."""
        return self._size

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completes; raises EventTooLarge or TooManyEvents."""
        self._size += len(chunk)
        events: list[Event] = []
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
            # Joined at once: so many short lines weigh more apart than together.
            self._data.append(b"\n".join(data))
        self._count(len(events), others)
        if self._size > self._limit:
            raise EventTooLarge
        return events

    def _count(self, events: int, others: int) -> None:
        """Take from what is left of the budget, which fills again as time goes by. Raises TooManyEvents."""
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
        if self._after_cr and chunk:
            # The CR that ended the last chunk has ended its line already.
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        if b"\n" not in chunk and b"\r" not in chunk:
            # A long line arrives in many chunks: join them once, not at each.
            self._open.append(chunk)
            return []
        self._after_cr = chunk.endswith(b"\r")
        *lines, rest = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        if self._open:
            lines[0] = b"".join((*self._open, lines[0]))  # The one copy of a long line.
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
            self._event_id = value.decode(errors="replace")
        elif field == b"retry" and value.isdigit() and len(value) < LONGEST_RETRY:
            self.retry_ms = int(value)

    def _dispatch(self, last: list[bytes]) -> Event | None:
        data, name = self._data, self._name
        data += last
        self._data, self._name = [], ""
        self._size = sum(map(len, self._open))
        if not data:
            return None
        return Event(b"\n".join(data), name or "message", self._event_id)
