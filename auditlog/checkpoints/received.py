"""What a sink stored of the logs: its checkpoints, and a digest of each row, to compare with the database."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID

from auditlog.actions import Action
from auditlog.committed import NEAR
from auditlog.event_views import COLUMNS as EVENT_COLUMNS
from auditlog.models import Event
from auditlog.search.fields import EXPORT_COLUMNS, PAYLOADS
from ui.rest import stamp

# By log, which column of the database each field of a line is.
FIELDS = {"call": EXPORT_COLUMNS | dict(zip(PAYLOADS, PAYLOADS, strict=True)), "event": EVENT_COLUMNS}
AT = {"call": "created_at", "event": "time"}
# By log, the kinds of checkpoints that cover its new rows, and how these say up to which id.
STATES = {"call": (("first", "near"), "near_to"), "event": (("events",), "events_to")}
NESTED = {*PAYLOADS, "changes"}
ADDRESSES = {"client_ip", "ip"}
LATE = timedelta(minutes=30)  # By then a sink has the calls that took longer than NEAR.


class Line(NamedTuple):
    """One row as the sink got it: when it was made and, for calls, ended, and the digest of these fields of it."""

    at: datetime
    ended: datetime
    fields: tuple[str, ...]
    digest: bytes


@dataclass
class Received:
    """Lines of a sink: when each checkpoint was made, with its number and body, and the rows not compared yet.

    `until` leaves out checkpoints that were made later.
    """

    until: datetime | None = None
    checkpoints: dict[tuple[int, str], datetime] = field(default_factory=dict)
    sends: dict[int, frozenset[str]] = field(default_factory=dict)
    rows: dict[str, dict[UUID, Line]] = field(default_factory=lambda: {log: {} for log in FIELDS})

    @classmethod
    def read(cls, lines: Iterable[str], until: datetime | None = None) -> Received:
        """Read JSON lines. Raises ValueError, KeyError, TypeError or AttributeError for lines that a sink never got."""
        received = cls(until)
        known: dict[tuple[str, ...], tuple[str, ...]] = {}
        for line in lines:
            if line.strip():
                received._take(json.loads(line), known)
        return received

    def first_required_ids(self, log: str) -> dict[int, int]:
        """Return, by number of checkpoint, the id after which the file must have every row of `log` that it covers.

        A file may begin, and go on after a gap, among the rows of a checkpoint: those are not asked for.
        """
        kinds, state = STATES[log]
        first_required_ids: dict[int, int] = {}
        began = last = -1
        for number, text in sorted(self.checkpoints):
            body = json.loads(text)
            if number > last + 1 or log not in self.sends[number]:
                began = -1
            elif began >= 0:
                first_required_ids[number] = began
            if began < 0 and log in self.sends[number] and body.get("kind") in kinds:
                began = int(body[state])
            last = number
        return first_required_ids

    def is_same(self, log: str, row: Mapping[str, Any]) -> bool | None:
        """Whether the row is as it was received, once; None when it was not."""
        line = self.rows[log].pop(row["uid"], None)
        return None if line is None else line.digest == _digest(_told(row, FIELDS[log], line.fields))

    def newest(self) -> datetime | None:
        """When the last checkpoint of the file was made."""
        return max(self.checkpoints.values(), default=None)

    def may_come(self, row: Mapping[str, Any]) -> bool:
        """Whether a sink gets this call after its checkpoint, because it took long, and that is not long ago."""
        ended = row.get("recorded_at")
        if ended is None or ended - row["created_at"] <= NEAR:
            return False
        newest = self.newest()
        return newest is None or ended > newest - LATE

    def _take(self, told: dict[str, Any], known: dict[tuple[str, ...], tuple[str, ...]]) -> None:
        log = told.get("log")
        if log == "checkpoint":
            number, body = int(told["number"]), str(told["body"])
            sealed_at = datetime.fromisoformat(json.loads(body)["sealed_at"])
            if self.until is None or sealed_at <= self.until:
                self.checkpoints[number, body] = sealed_at
                self.sends[number] = frozenset(told.get("sends", ("call",)))
        elif log in FIELDS:
            names = tuple(sorted(told.keys() & FIELDS[log].keys()))
            at = datetime.fromisoformat(told[AT[log]])
            ended = at + timedelta(milliseconds=told.get("duration_ms") or 0)
            line = Line(at, ended, known.setdefault(names, names), _digest({name: told[name] for name in names}))
            uid = UUID(told["id"])
            before = self.rows[log].setdefault(uid, line)
            if before.fields == line.fields and before.digest != line.digest:
                self.rows[log][uid] = line._replace(digest=b"")  # It came twice, as two: neither is the row here.


def refused() -> set[str]:
    """The uids of rows that some sink refused for good: an admin event names each."""
    rows = Event.objects.filter(action=Action.SINK_ROW_REFUSED).values_list("changes__row", flat=True)
    return {str(row) for row in rows}


def _told(row: Mapping[str, Any], columns: Mapping[str, str], names: Iterable[str]) -> dict[str, Any]:
    return {name: _plain(columns[name], row[columns[name]]) for name in names}


def _plain(column: str, value: Any) -> Any:
    """A value of the database as lines of sinks have it."""
    if isinstance(value, datetime):
        return stamp(value)
    if isinstance(value, UUID):
        return str(value)
    if value is not None and column in NESTED:
        return json.loads(value)
    if value is not None and column in ADDRESSES:
        return value.partition("/")[0]
    return value


def _digest(told: dict[str, Any]) -> bytes:
    return sha256(json.dumps(told, sort_keys=True).encode()).digest()
