"""Read the logs for a sink in batches, and store the acknowledged position.

Calls are read in rounds of one or more batches. A round reads the calls after the sink's position, up to an id that is
fixed when the round begins. At that time, all calls up to this id can be read (auditlog.replica).

A call is written to the log when it ends, but its date is when it began. The usual rounds read only calls dated
`near_from` (a field of the sink) or later. Calls that took long may have an earlier date. Separate rounds read them.

Only the process that has the sink's lease (`claim`) can advance the position.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple
from uuid import NAMESPACE_OID, UUID, uuid4, uuid5

import orjson
import psycopg
from django.utils import timezone
from psycopg import sql
from psycopg.rows import dict_row

from auditlog.export import AsItIs
from auditlog.fields import EVENT_EXPORT_COLUMNS, EXPORT_COLUMNS, PAYLOADS
from auditlog.models import ENDINGS, Call, Event
from auditlog.replica import LATE_EVERY, LATEST, NEAR, last_id
from sinks.models import Sink
from sinks.receivers import ERROR, INFORMATIONAL, NOTICE, WARNING, LogLine
from ui import databases
from ui.rest import stamp

MOST_ROWS = 500  # Maximum number of rows per delivery.
MOST_BYTES = 4 << 20  # Maximum size of a delivery; a single row may be larger.
FETCHED_BYTES = 256 << 10  # Fetch size, so that no more than one delivery is in memory.
LOAN_S = 20.0  # Duration of the lease, above the delivery timeout. If a process is killed, its sinks wait this long.
WRITERS_S = 1.0  # Timeout for waiting for open transactions of writers.
SEVERITIES = dict.fromkeys(ENDINGS["ok"] + ENDINGS["cancelled"], INFORMATIONAL)
SEVERITIES |= dict.fromkeys(ENDINGS["error"], ERROR) | dict.fromkeys(ENDINGS["denied"], WARNING)

# The statements name the table (`c.id`, `e.id`): `id` alone could mean the output column `id`, which is the uid.
_CALLS = sql.SQL("""
SELECT c.id AS row_id, {columns} FROM auditlog_call c
WHERE (c.created_at, c.id) > (%(at)s, %(after)s) AND c.created_at >= %(since)s AND c.created_at < %(before)s
    AND c.id > %(low)s AND c.id <= %(high)s
ORDER BY c.created_at, c.id LIMIT %(most)s
""")
_EVENTS = sql.SQL("""
SELECT e.id AS row_id, {columns} FROM auditlog_event e WHERE e.id > %(low)s AND e.id <= %(high)s
ORDER BY e.id LIMIT %(most)s
""")
# Checkpoints follow the rows they cover, so that a file of lines can be verified.
_CHECKPOINTS = sql.SQL("""
SELECT * FROM (
    SELECT number, body, signature, public_key FROM auditlog_checkpoint
    WHERE number > %(low)s ORDER BY number LIMIT least(%(most)s, 50)
) next
WHERE (body::json ->> 'near_to')::bigint <= %(calls_to)s
    AND coalesce((body::json ->> 'events_to')::bigint, 0) <= %(events_to)s
ORDER BY number
""")
_ANY_ID = (1 << 63) - 1
_BEGINNING, _END = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)
# The fields of a sink's position. It is only updated if none of them has changed since the sink was read.
ROUND = ("round_to", "round_began_at", "round_at", "round_id")
POSITION = ("calls_to", "near_from", "late_calls_to", *ROUND, "events_to", "checkpoints_to")


class Batch(NamedTuple):
    """Lines to deliver, and the sink's new position. The position is stored after the lines are acknowledged."""

    lines: list[LogLine]
    then: dict[str, Any]


class SinkReader:
    """Reads the undelivered rows of one sink, under the sink's lease.

    `most` is the maximum number of rows in a batch. `last_ids` maps the name of a table to the highest id to read. If a
    table is missing in `last_ids`, the reader looks up its highest id that is safe to read, and adds the id.
    """

    def __init__(self, own: psycopg.Connection[Any], pk: UUID, claim: UUID) -> None:
        self._own = own
        self._pk = pk
        self._claim = claim
        self.most = MOST_ROWS
        self.last_ids: dict[str, int | None] = {}

    def next(self, sink: Sink) -> Batch | None:
        """Return the next batch, or None if there is nothing to send."""
        found = self._checkpoints(sink)  # Checkpoints first, because new calls may never stop.
        if sink.sends_events:
            found = found or self._events(sink)
        if sink.sends_calls:
            found = found or self._calls(sink)
        return found

    def move(self, sink: Sink, to: dict[str, Any], **noted: Any) -> bool:
        """Store the new position and return True; return False if the old position or the lease has changed."""
        sets = sql.SQL(", ").join(
            sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(f"to_{name}")) for name in (*to, *noted)
        )
        same = sql.SQL(" AND ").join(
            sql.SQL("{} IS NOT DISTINCT FROM {}").format(sql.Identifier(name), sql.Placeholder(f"was_{name}"))
            for name in POSITION
        )
        statement = sql.SQL("UPDATE sinks_sink SET {} WHERE id = %(pk)s AND claim = %(claim)s AND {}").format(
            sets, same
        )
        values = {f"to_{name}": value for name, value in {**to, **noted}.items()}
        values |= {f"was_{name}": getattr(sink, name) for name in POSITION}
        moved = self._own.execute(statement, values | {"pk": self._pk, "claim": self._claim}).rowcount == 1
        if moved:
            for name, value in {**to, **noted}.items():
                setattr(sink, name, value)
        return moved

    def take(self) -> bool:
        """Take or prolong the lease and return True, or return False if another process has the lease."""
        taken = self._own.execute(
            "UPDATE sinks_sink SET looked_at = clock_timestamp(), claim = %(claim)s,"
            " claimed_until = clock_timestamp() + make_interval(secs => %(seconds)s)"
            " WHERE id = %(pk)s AND (claim IS NULL OR claim = %(claim)s OR claimed_until <= clock_timestamp())",
            {"claim": self._claim, "seconds": LOAN_S, "pk": self._pk},
        )
        return taken.rowcount == 1

    def release(self) -> None:
        """End the lease."""
        self._own.execute(
            "UPDATE sinks_sink SET claim = NULL, claimed_until = NULL WHERE id = %s AND claim = %s",
            [self._pk, self._claim],
        )

    def _events(self, sink: Sink) -> Batch | None:
        high = self._last(Event)
        if high is None or high <= sink.events_to:
            return None
        asked = {"low": sink.events_to, "high": high, "most": self.most}
        lines, last = self._lines(_EVENTS, _columns(EVENT_EXPORT_COLUMNS), asked, _event_line)
        return Batch(lines, {"events_to": last["row_id"] if last else high})

    def _checkpoints(self, sink: Sink) -> Batch | None:
        """Return the next checkpoints, or None if there are none."""
        asked = {
            "low": sink.checkpoints_to,
            "most": self.most,
            "calls_to": sink.calls_to if sink.sends_calls else _ANY_ID,
            "events_to": sink.events_to if sink.sends_events else _ANY_ID,
        }
        sends = ["call"] * sink.sends_calls + ["event"] * sink.sends_events
        lines, _ = self._lines(_CHECKPOINTS, sql.Composed([]), asked, partial(_checkpoint_line, sends))
        # Checkpoints are created one at a time, so no checkpoint with a lower number is added later.
        return Batch(lines, {"checkpoints_to": lines[-1].row}) if lines else None

    def _calls(self, sink: Sink) -> Batch | None:
        if sink.round_to is None:
            if sink.near_from < sink.calls_at - NEAR - LATE_EVERY:
                return self._late(sink)
            began, high = timezone.now(), self._last(Call)
            if high is None or high <= sink.calls_to:
                return None
            position: dict[str, Any] = dict(zip(ROUND, (high, began, None, None), strict=True))
        else:
            position = {name: getattr(sink, name) for name in ROUND}
        asked = {
            "at": position["round_at"] or _BEGINNING,
            "after": position["round_id"] or 0,
            "since": sink.near_from,
            "before": _END,
            "low": sink.calls_to,
            "high": position["round_to"],
        }
        lines, at, row_id = self._call_lines(sink, asked)
        if row_id is not None:
            return Batch(lines, position | {"round_at": at, "round_id": row_id})
        done = {"calls_to": position["round_to"], "calls_at": position["round_began_at"]}
        return Batch(lines, done | dict.fromkeys(ROUND))

    def _late(self, sink: Sink) -> Batch:
        """Return the next batch of late calls, which are the calls that began before the sink's `near_from`.

        The batch may be empty. It then only changes the sink's position.
        """
        asked = {
            "at": sink.round_at or _BEGINNING,
            "after": sink.round_id or 0,
            "since": sink.near_from - LATEST,
            "before": sink.near_from,
            "low": sink.late_calls_to,
            "high": sink.calls_to,
        }
        lines, at, row_id = self._call_lines(sink, asked)
        if row_id is not None:
            return Batch(lines, {"round_at": at, "round_id": row_id})
        # This is the last batch. The usual rounds read only calls that started at `near_from` or later.
        done = {"late_calls_to": sink.calls_to, "near_from": sink.calls_at - NEAR}
        return Batch(lines, done | dict.fromkeys(ROUND))

    def _call_lines(self, sink: Sink, asked: dict[str, Any]) -> tuple[list[LogLine], datetime | None, int | None]:
        """Return the lines of the next batch of calls, and the date and row id of the last call.

        If this is the last batch of the round, the date and the row id are None.
        """
        columns = _columns(EXPORT_COLUMNS | (dict(zip(PAYLOADS, PAYLOADS, strict=True)) if sink.sends_payloads else {}))
        lines, last = self._lines(_CALLS, columns, asked | {"most": self.most}, _call_line)
        return lines, last["created_at"] if last else None, last["row_id"] if last else None

    def _lines(
        self,
        statement: sql.SQL,
        columns: sql.Composed,
        asked: dict[str, Any],
        line: Callable[[dict[str, Any]], LogLine],
    ) -> tuple[list[LogLine], dict[str, Any] | None]:
        """Return the lines of one batch, and the row of its last line.

        If it is certain that the statement finds no further rows, return None instead of the row.
        """
        lines: list[LogLine] = []
        size, last, number = 0, None, 4
        with self._own.transaction(), self._own.cursor("sink", row_factory=dict_row) as cursor:
            cursor.execute(statement.format(columns=columns), asked)
            while rows := cursor.fetchmany(number):
                for row in rows:
                    told = line(row)
                    size += len(told.text)
                    if lines and size > MOST_BYTES:
                        return lines, last
                    lines.append(told)
                    last = row
                number = max(FETCHED_BYTES * len(lines) // size, 1)
        return lines, last if len(lines) >= self.most else None

    def _last(self, model: type[Call] | type[Event]) -> int | None:
        table = model._meta.db_table
        if table not in self.last_ids:
            with self._own.cursor() as cursor:
                self.last_ids[table] = last_id(cursor, table, wait=WRITERS_S)
        return self.last_ids[table]


@contextmanager
def leased_reader(pk: UUID, claim: UUID | None = None) -> Iterator[SinkReader | None]:
    """Take the lease of a sink and yield a reader of the sink. Yield None if another process has the lease.

    The end of the block does not end the lease. The lease ends when it is released, or LOAN_S seconds after it was
    taken. To keep a lease that this process already has, pass its id as `claim`.
    """
    with databases.connect_direct() as own:
        own.adapters.register_loader("jsonb", AsItIs)
        own.execute("SET application_name = 'gateway sink'")
        own.execute("SET statement_timeout = 0")
        reader = SinkReader(own, pk, claim or uuid4())
        yield reader if reader.take() else None


def _columns(named: dict[str, str]) -> sql.Composed:
    parts = (sql.SQL("{} AS {}").format(sql.Identifier(column), sql.Identifier(name)) for name, column in named.items())
    return sql.SQL(", ").join(parts)


def _call_line(row: dict[str, Any]) -> LogLine:
    return _line("call", row, row["created_at"], SEVERITIES.get(row["outcome"], NOTICE))


def _event_line(row: dict[str, Any]) -> LogLine:
    return _line("event", row, row["time"], NOTICE)


def _checkpoint_line(sends: list[str], row: dict[str, Any]) -> LogLine:
    at = datetime.fromisoformat(orjson.loads(row["body"])["sealed_at"])
    told = {
        "row_id": row["number"],
        "id": str(uuid5(NAMESPACE_OID, row["body"])),
        "created_at": at,
        "number": row["number"],
        "body": row["body"],
        "signature": b64encode(row["signature"]).decode(),
        "public_key": b64encode(row["public_key"]).decode(),
        "sends": sends,
    }
    return _line("checkpoint", told, at, INFORMATIONAL)


def _line(log: str, row: dict[str, Any], at: datetime, severity: int) -> LogLine:
    told = {"log": log} | {name: value for name, value in row.items() if name != "row_id"}
    text = orjson.dumps(told, _plain, orjson.OPT_PASSTHROUGH_DATETIME)
    return LogLine(log, at, severity, text, str(row["id"]), row["row_id"])


def _plain(value: Any) -> Any:
    return stamp(value) if isinstance(value, datetime) else str(value)


def oldest(lines: Sequence[LogLine]) -> datetime | None:
    """Return the date of the oldest line, or None if there are no lines."""
    return min((line.at for line in lines), default=None)
