"""Signed exports: checkpoints with the rows they cover, as JSON lines that `verify_export.py` verifies offline.

The first line has the newest checkpoint, with the time before which retention dropped rows. The last line signs the
file. Each row is written as the text from which the row's digest was computed. If a row has payloads, its line omits
the payloads, and says whether the complete row matched the digest.
"""

from __future__ import annotations

from base64 import b64encode
from bisect import bisect_left
from collections.abc import Collection, Generator, Iterator, Mapping
from datetime import datetime, timedelta
from hashlib import sha256
from itertools import islice
from typing import Any
from uuid import UUID

import orjson
import psycopg
from django.db import DatabaseError, connection
from django.utils import timezone

from auditlog.checkpoints import sealing
from auditlog.checkpoints.sealing import CALL_COLUMNS, CANONICAL, EVENT_COLUMNS, columns_of, leaf_of, unpacked
from auditlog.checkpoints.verify_export import NOUNS, VERSION
from auditlog.fields import UNLISTED
from auditlog.models import LAST_MOMENT, Call, Checkpoint, Event, span_of_uid
from ui import databases
from ui.export import Export, IncompleteExport, reading

CHUNK = 1_000  # Rows in memory at once.
ROUGHLY = timedelta(minutes=1)  # The time in a uid and the date of its row may differ by milliseconds.
_LEFT_OUT = ("id", *UNLISTED)
_CALLS = """
SELECT {columns} FROM auditlog_call
WHERE created_at >= %s AND created_at <= %s AND id > %s AND id <= %s ORDER BY id LIMIT %s
"""
_EVENTS = "SELECT {columns} FROM auditlog_event WHERE id > %s AND id <= %s ORDER BY id LIMIT %s"


class NothingSealed(Exception):
    """No checkpoint was made in this period. Choose another period. New rows get a checkpoint within a minute."""


class SignedExport(Export):
    """The checkpoints made in the period `since` to `until`, and the rows of `logs` ("call", "event") that they cover.

    Raises NothingSealed or TooManyExports.
    """

    def __init__(self, since: datetime, until: datetime, logs: Collection[str], *, by: Any) -> None:
        self._period, self._logs = (since, until), [log for log in ("call", "event") if log in logs]
        super().__init__("jsonl", [], by=by)

    def begin(self) -> None:
        since, until = self._period
        self._first_number, self._last_number = number_at(since), number_at(until) - 1
        newest = Checkpoint.objects.defer("leaves").last()
        if newest is None or self._first_number > self._last_number:
            raise NothingSealed(NothingSealed.__doc__)
        self._newest, self._key = newest, sealing.signing_key()

    def pieces(self) -> Generator[str]:
        digest, rows = sha256(), 0
        try:
            for some in self._some_lines():
                rows += sum(line["log"] in NOUNS for line in some)
                text = b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in some)
                digest.update(text)
                yield text.decode()
        except (psycopg.Error, DatabaseError) as error:
            yield '{"log": "incomplete"}\n'
            raise IncompleteExport(IncompleteExport.__doc__) from error
        body = {"kind": "export", "checkpoints": self._last_number - self._first_number + 1, "rows": rows}
        told = orjson.dumps(body | {"sha256": digest.hexdigest(), "signed_at": timezone.now()}, option=CANONICAL)
        last = {"log": "end", "body": told.decode(), "signature": self._key.sign(told).hex()}
        yield orjson.dumps(last, option=orjson.OPT_APPEND_NEWLINE).decode()

    def _some_lines(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the lines in batches. No database connection is held between two batches."""
        since, until = self._period
        head = {"log": "export", "version": VERSION, "logs": self._logs, "from": since, "to": until}
        head |= {"first": self._first_number, "public_key": sealing.public_bytes(self._key).hex()}
        yield [head | {"newest": _line(self._newest)}]
        lines = self._lines()
        while True:
            with reading, databases.apart():
                some = [] if self._is_closed else list(islice(lines, CHUNK))
            if not some:
                return
            yield some

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Yield a line for each checkpoint, followed by a line for each row that this checkpoint covers.

        No database cursor is open between two lines.
        """
        for number in range(self._first_number, self._last_number + 1):
            one = Checkpoint.objects.filter(pk=number).first()
            if one is None:
                continue  # The verifier reports the missing checkpoint.
            body = orjson.loads(one.body)
            log = "event" if body["kind"] == "events" else "call"
            packed = bytes(one.leaves) if one.leaves is not None and log in self._logs else None
            yield _line(one) | {"leaves": None if packed is None else b64encode(packed).decode()}
            yield from _rows(log, body, packed) if packed else ()


def _rows(log: str, body: dict[str, Any], packed: bytes) -> Iterator[dict[str, Any]]:
    """Yield a line of the export for each row that the checkpoint covers."""
    model, known = (Call, CALL_COLUMNS) if log == "call" else (Event, EVENT_COLUMNS)
    columns = columns_of(body["columns"], sealing.texts(model), known)
    covered = {leaf.uid: leaf.digest for leaf in unpacked(packed)}
    spans = [span_of_uid(uid) for uid in covered] if log == "call" else []
    dates = [min(spans)[0] - ROUGHLY, min(max(spans)[1], LAST_MOMENT) + ROUGHLY] if spans else []
    statement, after = (_CALLS if log == "call" else _EVENTS).format(columns=columns), body["after_id"]
    while after is not None:
        with connection.cursor() as cursor:
            cursor.execute(statement, [*dates, after, body["upto_id"], CHUNK])
            names = [column.name for column in cursor.description]
            rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        after = rows[-1]["id"] if len(rows) == CHUNK else None
        yield from (_row(log, row, covered) for row in rows if _is_of(row, body, covered))


def _is_of(row: dict[str, Any], body: dict[str, Any], covered: Collection[UUID]) -> bool:
    """Return True if the checkpoint covers the row, or if the row was added to the checkpoint's range afterwards."""
    if UUID(row["uid"]) in covered or body["kind"] == "events":
        return True
    # Checkpoints of the kinds `near` and `late` can cover the same ids, so an added call must also be dated in the
    # checkpoint's period, as in `verify_log`.
    before = body["before"]
    is_after = row["created_at"] >= datetime.fromisoformat(body["from"])
    return is_after and (before is None or row["created_at"] < datetime.fromisoformat(before))


def _row(log: str, row: dict[str, Any], digests: Mapping[UUID, bytes]) -> dict[str, Any]:
    """Return the line for a row.

    The export omits payloads. So a row with payloads is compared with its digest before the payloads are omitted.
    """
    without = [name for name in ("request_payload", "response_payload") if row.get(name) is not None]
    if not without:
        return {"log": log, "row": orjson.dumps(row, option=CANONICAL).decode()}
    matches = digests.get(UUID(row["uid"])) == leaf_of(row).digest
    shown = {name: value for name, value in row.items() if name not in _LEFT_OUT}
    return {"log": log, "row": orjson.dumps(shown, option=CANONICAL).decode(), "without": without, "matches": matches}


def _line(one: Checkpoint) -> dict[str, Any]:
    told = {"log": "checkpoint", "number": one.number, "body": one.body}
    return told | {"signature": bytes(one.signature).hex(), "public_key": bytes(one.public_key).hex()}


def number_at(moment: datetime) -> int:
    """Return the number of the first checkpoint made at or after this time.

    If all checkpoints are older, return the number that the next checkpoint will get.
    """
    first, last = Checkpoint.objects.first(), Checkpoint.objects.last()
    numbers = range(first.number, last.number + 1) if first and last else range(1, 1)
    return numbers.start + bisect_left(numbers, moment, key=_made_at)


def _made_at(number: int) -> datetime:
    """Return the time of the checkpoint with this number or, if it is missing, of the next checkpoint that exists."""
    body = Checkpoint.objects.filter(pk__gte=number).order_by("pk").values_list("body", flat=True)[0]
    return datetime.fromisoformat(orjson.loads(body)["sealed_at"])
