"""Event streams (WHATWG HTML 9.2): a reader that is fed chunks, and a writer of one event."""

from dataclasses import dataclass

PING = b": ping\r\n\r\n"


class EventTooLarge(Exception):
    """An event grew past the limit."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `name` is `message` when the stream named none."""

    data: bytes
    name: str = "message"
    id: str = ""


def event(data: bytes) -> bytes:
    """One `message` event holding `data`; a line break, as in JSON laid out for reading, begins another data line."""
    if b"\n" in data or b"\r" in data:
        data = b"\r\ndata: ".join(data.splitlines())
    return b"event: message\r\ndata: " + data + b"\r\n\r\n"


class Reader:
    """Turns chunks of a stream into events; lines end in LF, CR or CRLF, wherever chunks break."""

    __slots__ = ("_after_cr", "_data", "_event_id", "_first", "_limit", "_name", "_open", "_size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: list[bytes] = []
        self._data: list[bytes] = []
        self._name = ""
        self._event_id = ""
        self._size = 0
        self._after_cr = False
        self._first = True

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completes; raises EventTooLarge."""
        self._size += len(chunk)
        events = []
        for line in self._lines(chunk):
            if line:
                self._field(line)
            elif (done := self._dispatch()) is not None:
                events.append(done)
        if self._size > self._limit:
            raise EventTooLarge
        return events

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
        text = b"".join((*self._open, chunk))
        if self._first:
            text = text.removeprefix(b"\xef\xbb\xbf")
            self._first = False
        *lines, rest = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._open = [rest]
        return lines

    def _field(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value.decode(errors="replace")
        elif field == b"id" and b"\0" not in value:
            self._event_id = value.decode(errors="replace")

    def _dispatch(self) -> Event | None:
        data, name = self._data, self._name
        self._data, self._name = [], ""
        self._size = sum(map(len, self._open))
        if not data:
            return None
        return Event(b"\n".join(data), name or "message", self._event_id)
