"""Read the checkpoints and rows that a sink received, to compare them with the database."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID

from auditlog.actions import Action
from auditlog.fields import EVENT_EXPORT_COLUMNS, EXPORT_COLUMNS, PAYLOADS
from auditlog.models import Event
from auditlog.replica import NEAR
from ui.rest import stamp

# For each log, the database column of each field of a line.
FIELDS = {"call": EXPORT_COLUMNS | dict(zip(PAYLOADS, PAYLOADS, strict=True)), "event": EVENT_EXPORT_COLUMNS}
AT = {"call": "created_at", "event": "time"}
# For each log, a pair: the kinds of checkpoints that advance the position in the log, and the field of a checkpoint
# that contains this position. A position is the id of a row.
STATES = {"call": (("first", "near"), "near_to"), "event": (("events",), "events_to")}
NESTED = {*PAYLOADS, "changes"}
ADDRESSES = {"client_ip", "ip"}
LATE = timedelta(minutes=30)  # After this time, a sink has received even the calls that took longer than NEAR.


class ReceivedRow(NamedTuple):
    """One row as a sink received it: time, end time (of a call), names of the fields, and digest of the fields."""

    at: datetime
    ended: datetime
    fields: tuple[str, ...]
    digest: bytes


@dataclass
class Received:
    """The lines that a sink received."""

    until: datetime | None = None  # Checkpoints made later are left out.
    # The time of each checkpoint, by number and body.
    checkpoints: dict[tuple[int, str], datetime] = field(default_factory=dict)
    # The logs whose rows the sink gets, by checkpoint number.
    sends: dict[int, frozenset[str]] = field(default_factory=dict)
    # The rows that were not compared yet, by log and uid.
    rows: dict[str, dict[UUID, ReceivedRow]] = field(default_factory=lambda: {log: {} for log in FIELDS})

    @classmethod
    def read(cls, lines: Iterable[str], until: datetime | None = None) -> Received:
        """Read JSON lines. Raises ValueError, KeyError, TypeError or AttributeError for lines in another format."""
        received = cls(until)
        known: dict[tuple[str, ...], tuple[str, ...]] = {}
        for line in lines:
            if line.strip():
                received._take(json.loads(line), known)
        return received

    def first_required_ids(self, log: str) -> dict[int, int]:
        """Return, by checkpoint number, the id of a row of `log` after which no row of the checkpoint may be missing.

        The file must contain all rows of the checkpoint that have a higher id. Rows of the checkpoint with this id or a
        lower id may be missing. If the result has no id for a checkpoint, any row of the checkpoint may be missing.
        """
        # A checkpoint is left out if the file may start, or resume after a gap, in the middle of the checkpoint's rows.
        kinds, state = STATES[log]
        first_required_ids: dict[int, int] = {}
        began = last = -1
        for number, text in sorted(self.checkpoints):
            body = json.loads(text)
            if number > last + 1 or log not in self.sends[number]:
                began = -1
            elif began >= 0:
                first_required_ids[number] = began
            # The first checkpoint of a log that had calls is at 0: the sink may be newer than these calls.
            if began < 0 and log in self.sends[number] and body.get("kind") in kinds and (position := int(body[state])):
                began = position
            last = number
        return first_required_ids

    def is_same(self, log: str, row: Mapping[str, Any]) -> bool | None:
        """Return whether the received copy of `row` equals `row`, or None if the sink did not receive the row.

        The received copy is then removed from `self.rows`.
        """
        line = self.rows[log].pop(row["uid"], None)
        return None if line is None else line.digest == _digest(_told(row, FIELDS[log], line.fields))

    def newest(self) -> datetime | None:
        """Return the time of the file's last checkpoint, or None if the file has no checkpoint."""
        return max(self.checkpoints.values(), default=None)

    def may_come(self, row: Mapping[str, Any]) -> bool:
        """Return True if the sink may still receive this row, because the row is a long call that ended recently.

        A call is long if it took more than NEAR. It ended recently if it ended less than LATE before the file's last
        checkpoint, or later. In a file without a checkpoint, every call counts as recent.
        """
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
            line = ReceivedRow(at, ended, known.setdefault(names, names), _digest({name: told[name] for name in names}))
            uid = UUID(told["id"])
            before = self.rows[log].setdefault(uid, line)
            if before.fields == line.fields and before.digest != line.digest:
                self.rows[log][uid] = line._replace(digest=b"")  # Neither of two different copies may match.


def refused_rows() -> set[str]:
    """Return, from the admin events, the uids of rows that a sink refused permanently."""
    rows = Event.objects.filter(action=Action.SINK_ROW_REFUSED).values_list("changes__row", flat=True)
    return {str(row) for row in rows}


def _told(row: Mapping[str, Any], columns: Mapping[str, str], names: Iterable[str]) -> dict[str, Any]:
    return {name: _plain(columns[name], row[columns[name]]) for name in names}


def _plain(column: str, value: Any) -> Any:
    """Return a database value in the form that it has in the lines sent to sinks."""
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
