"""Compares the log with its checkpoints, and names every row that was removed, changed or added later.

It needs a database to read and the public key, and nothing that runs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.db import connection, transaction

from auditlog.checkpoints.sealing import END, TABLE
from auditlog.checkpoints.tree import COLUMNS, columns_of, leaf_of, root_of, unpacked
from auditlog.committed import LATEST, newest_id
from auditlog.models import Call, Checkpoint, span_of_uid
from auditlog.partitions import midnight

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
CHUNK = 2000
ROUGHLY = timedelta(minutes=1)  # The time in a uid and the date of its row are not the same to the millisecond.


class Finding(NamedTuple):
    """Something that is not as it was sealed; `uid` names the row, if it is one."""

    what: str
    uid: UUID | None
    sentence: str


@dataclass
class Report:
    """What a comparison found; `rows` were as they were sealed, `uncovered` are in no checkpoint yet or were before
    the first, `dropped` went with their partitions."""

    checkpoints: int = 0
    rows: int = 0
    uncovered: int = 0
    dropped: int = 0
    findings: list[Finding] = field(default_factory=list)

    def add(self, what: str, sentence: str, uid: UUID | None = None) -> None:
        self.findings.append(Finding(what, uid, sentence))


@dataclass
class Sealed:
    """A checkpoint whose signature is right, and the digests of its rows that were not met yet, once it is opened."""

    body: dict[str, Any]
    is_open: bool = False
    leaves: dict[UUID, bytes] | None = None

    @property
    def number(self) -> int:
        return int(self.body["number"])

    def covers(self, at: datetime) -> bool:
        """Whether it is for rows dated like this."""
        before = self.body["before"]
        since = datetime.fromisoformat(self.body["from"])
        return since <= at < (datetime.fromisoformat(before) if before else END)

    def open(self, report: Report) -> dict[UUID, bytes] | None:
        """The digests of its rows, if they are those that were signed; None when they went with their rows."""
        if not self.is_open:
            self.is_open = True
            kept = Checkpoint.objects.values_list("leaves", flat=True).get(pk=self.number)
            self.leaves = None if kept is None else self._checked(bytes(kept), report)
        return self.leaves

    def must_have_its_leaves(self, kept_from: datetime, report: Report) -> None:
        """Digests go with the last of their rows: what was sealed of rows that are kept must have them."""
        newest = self.body["newest_at"]
        is_kept = newest is not None and datetime.fromisoformat(newest) >= kept_from
        if is_kept and Checkpoint.objects.filter(pk=self.number, leaves=None).exists():
            report.add("checkpoint", f"Checkpoint {self.number} lost the digests of its rows, which are kept.")

    def _checked(self, packed: bytes, report: Report) -> dict[UUID, bytes] | None:
        leaves = unpacked(packed)
        if len(leaves) != self.body["rows"] or root_of([leaf.packed for leaf in leaves]).hex() != self.body["root"]:
            report.add("checkpoint", f"Checkpoint {self.number} was rewritten: the digests of its rows are others.")
            return None
        return dict(leaves)


class Places:
    """Which checkpoint has the row of an id and a date; `newest` is the newest id that the log ever gave."""

    def __init__(self, sealed: Sequence[Sealed], newest: int) -> None:
        self._near = [one for one in sealed if one.body["kind"] != "late"]
        self._late = [one for one in sealed if one.body["kind"] == "late"]
        self._ends = {id(some): [one.body["upto_id"] for one in some] for some in (self._near, self._late)}
        self._oldest = datetime.fromisoformat(sealed[-1].body["near_from"]) - LATEST if sealed else END
        self._newest = newest

    def of(self, number: int, at: datetime, recorded: datetime | None) -> Sealed | bool:
        """The checkpoint; else whether the row may be in none: it was before the first, one may still come for it, or
        was lost."""
        near = self._find(self._near, number)
        if near is None:
            return self._may_stand_outside(number, at, recorded)
        if near.covers(at):
            return near
        late = self._find(self._late, number)
        if late is not None:
            return late if late.covers(at) else False
        return at >= self._oldest

    def _may_stand_outside(self, number: int, at: datetime, recorded: datetime | None) -> bool:
        """Whether a row with an id in no range may be there.

        Ids up to that of the first checkpoint are older than it. Those after the last are newer, and the next
        checkpoint takes them: were they recorded before the last, or given by nobody, it never saw them.
        """
        if not self._near:
            return True
        first, last = self._near[0].body, self._near[-1].body
        if number <= first["upto_id"]:
            return number > 0 and at <= datetime.fromisoformat(first["near_at"]) + ROUGHLY
        if number > last["upto_id"]:
            sealed_to = datetime.fromisoformat(last["near_at"]) - ROUGHLY
            return number <= self._newest and at >= self._oldest and (recorded is None or recorded >= sealed_to)
        return True  # That a checkpoint is missing is a finding of its own.

    def _find(self, some: list[Sealed], number: int) -> Sealed | None:
        """The one whose ids these are; None for those before the first, after the last and in a gap."""
        place = bisect_left(self._ends[id(some)], number)
        return some[place] if place < len(some) and number > some[place].body["after_id"] else None


@transaction.atomic
def verify(
    keys: Sequence[bytes] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    received: Iterable[tuple[int, str]] = (),
) -> Report:
    """Compare the calls dated from `since` to before `until` with the checkpoints, in one snapshot.

    `keys` are the public keys that are trusted, 32 bytes each; without them those that the checkpoints name, which
    proves nothing against who can sign anew. `received` are numbers and bodies of checkpoints as a sink got them: those
    here must be the same, whoever signed them, every time that one of the number came.
    """
    with connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET LOCAL statement_timeout = 0")
        report, elsewhere = Report(), sorted(set(received))
        sealed = _chain(report, keys)
        if not report.checkpoints and (keys is not None or elsewhere):
            report.add("checkpoint", "There is no checkpoint: the log is not sealed, or they were all taken away.")
        _compare_received(report, elsewhere)
        _compare(cursor, report, sealed, since or BEGINNING, until or END)
    return report


def _chain(report: Report, keys: Sequence[bytes] | None) -> list[Sealed]:
    """The checkpoints that are as they were signed, in order; what is wrong with the others is reported."""
    sealed, previous, expected = [], "", 1
    for one in Checkpoint.objects.order_by("number").defer("leaves").iterator(chunk_size=100):
        report.checkpoints += 1
        name, body = f"Checkpoint {one.number}", _signed(one, keys)
        if body is None:
            report.add("checkpoint", f"{name} was rewritten: its signature is not right, or of another key.")
        elif body["number"] != one.number or one.number != expected:
            report.add("checkpoint", f"Checkpoint {expected} is missing: the next one there is is {one.number}.")
        elif body["previous"] != previous:
            report.add("checkpoint", f"{name} does not follow on the one before it, which was rewritten.")
        previous, expected = sha256(one.body.encode()).hexdigest(), one.number + 1
        if body is not None:
            sealed.append(Sealed(body))
    return sealed


def _compare_received(report: Report, received: Sequence[tuple[int, str]]) -> None:
    numbers = {number for number, _ in received}
    bodies = dict(Checkpoint.objects.filter(number__in=numbers).values_list("number", "body"))
    for number, body in received:
        if number not in bodies:
            report.add("checkpoint", f"Checkpoint {number} was received elsewhere, and is not here.")
        elif bodies[number] != body:
            report.add("checkpoint", f"Checkpoint {number} was rewritten: another one was received elsewhere.")


def _signed(one: Checkpoint, keys: Sequence[bytes] | None) -> dict[str, Any] | None:
    key = bytes(one.public_key)
    if keys is not None and key not in keys:
        return None
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(bytes(one.signature), one.body.encode())
        body: dict[str, Any] = orjson.loads(one.body)
    except (InvalidSignature, ValueError):
        return None
    return body


def _compare(cursor: Any, report: Report, sealed: list[Sealed], since: datetime, until: datetime) -> None:
    places = Places(sealed, newest_id(cursor, TABLE))
    starts = Call.partitions.starts()
    kept_from = midnight(starts[0]) if starts else END
    for row in _rows(cursor, _moved(since, -ROUGHLY), _moved(until, ROUGHLY)):
        _judge(report, places.of(row["id"], row["created_at"], row["recorded_at"]), row)
    for one in sealed:
        one.must_have_its_leaves(kept_from, report)
        for uid, digest in (one.open(report) or {}).items():
            at = span_of_uid(uid)[0]
            if at < kept_from:
                report.dropped += since <= at
            elif since <= at < until:
                said = f"was removed; checkpoint {one.number} has its digest, {digest.hex()[:16]}…"
                report.add("removed", f"{_name(uid, at)} {said}", uid)
        one.leaves = None


def _judge(report: Report, place: Sealed | bool, row: dict[str, Any]) -> None:
    uid, name = row["uid"], _name(row["uid"], row["created_at"])
    if place is False:
        report.add("added", f"{name} was added: no checkpoint has it, though one would have to.", uid)
        return
    leaves = None if place is True else place.open(report)
    if leaves is None or place is True:
        report.uncovered += 1
        return
    digest = leaves.pop(uid, None)
    if digest is None:
        report.add("added", f"{name} was added: checkpoint {place.number}, which covers its id, has it not.", uid)
    elif digest != leaf_of({column: row[column] for column in COLUMNS[place.body["columns"]]}).digest:
        report.add("changed", f"{name} was changed since checkpoint {place.number}.", uid)
    else:
        report.rows += 1


def _name(uid: UUID, at: datetime) -> str:
    return f"Call {uid} of {at:%Y-%m-%d %H:%M:%S} UTC"


def _moved(at: datetime, by: timedelta) -> datetime:
    return at if at in (BEGINNING, END) else at + by


def _rows(cursor: Any, since: datetime, until: datetime) -> Iterator[dict[str, Any]]:
    """The rows of the log in the order of its primary key, some at a time."""
    at, last = since, 0
    statement = f"""
        SELECT {columns_of(max(COLUMNS))} FROM {TABLE}
        WHERE (created_at, id) > (%s, %s) AND created_at < %s ORDER BY created_at, id LIMIT {CHUNK}
    """  # noqa: S608  (constants)
    while True:
        cursor.execute(statement, [at, last, until])
        names = [column.name for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        yield from rows
        if len(rows) < CHUNK:
            return
        at, last = rows[-1]["created_at"], rows[-1]["id"]
