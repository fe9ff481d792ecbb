"""Compare the logs of calls and of admin events with their checkpoints, and report every difference.

The logs can also be compared with the copy that a sink received. The comparison only reads the database. It needs no
private key, only the public key.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.db import connection, transaction
from django.utils import timezone

from auditlog.checkpoints.received import Received, refused_rows
from auditlog.checkpoints.sealing import CALL_COLUMNS, END, EVENT_COLUMNS, TABLE, columns_of, leaf_of, root_of, unpacked
from auditlog.checkpoints.verify_export import BEGINNING, ENDS, NOUNS, ROUGHLY, UNSEALED, LogPeriod, is_late, merged
from auditlog.models import Call, Checkpoint, Event, span_of_uid
from auditlog.partitions import midnight
from auditlog.replica import LATEST, newest_id

CHUNK = 2000


class Finding(NamedTuple):
    """A difference that the comparison found.

    Because of the difference, the checkpoints do not prove that the logs of the period `unproved` are unchanged.
    If the difference is in a single row, `uid` is the id of this row.
    """

    what: str
    uid: UUID | None
    sentence: str
    unproved: LogPeriod


@dataclass
class Report:
    """Result of a comparison."""

    checkpoints: int = 0
    # Rows that match their checkpoints.
    calls: int = 0
    events: int = 0
    uncovered: int = 0  # Rows without a checkpoint, or without a digest to compare.
    dropped: int = 0  # Calls that retention removed, older than `kept_from`.
    kept_from: datetime = BEGINNING
    sealed_to: datetime | None = None
    findings: list[Finding] = field(default_factory=list)
    # The periods of rows without a checkpoint, each with its log.
    unsealed: list[tuple[str, LogPeriod]] = field(default_factory=list)
    # The periods in which rows waited long for a checkpoint.
    late: list[LogPeriod] = field(default_factory=list)

    def add(self, what: str, sentence: str, unproved: LogPeriod, uid: UUID | None = None) -> None:
        self.findings.append(Finding(what, uid, sentence, unproved))

    def unproved(self) -> list[LogPeriod]:
        """Return the periods that the findings leave unproved, sorted.

        Periods that overlap or are at most a minute (ROUGHLY) apart are merged.
        """
        return merged(one.unproved for one in self.findings)


@dataclass
class SignedCheckpoint:
    """A checkpoint with a valid signature."""

    body: dict[str, Any]
    after: datetime  # The time of the previous checkpoint.
    is_open: bool = False
    # Digests of the covered rows, read by `open`. A digest is removed when its row is found.
    leaves: dict[UUID, bytes] | None = None
    met: int = 0
    waited_since: datetime | None = None

    @property
    def number(self) -> int:
        return int(self.body["number"])

    @property
    def kind(self) -> str:
        return str(self.body["kind"])

    @property
    def sealed_at(self) -> datetime:
        return datetime.fromisoformat(self.body["sealed_at"])

    @property
    def span(self) -> LogPeriod:
        """Return the period in which the covered rows were made."""
        oldest = self.body.get("oldest_at")
        return LogPeriod(datetime.fromisoformat(oldest) if oldest else self.after, self.sealed_at)

    def covers(self, at: datetime) -> bool:
        """True if the checkpoint covers calls that arrived at the time `at`."""
        before = self.body["before"]
        since = datetime.fromisoformat(self.body["from"])
        return since <= at < (datetime.fromisoformat(before) if before else END)

    def open(self, report: Report) -> dict[UUID, bytes] | None:
        """Return the digests of the covered rows; None if the digests were deleted or differ from the signed ones."""
        if not self.is_open:
            self.is_open = True
            kept = Checkpoint.objects.values_list("leaves", flat=True).get(pk=self.number)
            self.leaves = None if kept is None else self._checked(bytes(kept), report)
            if kept is None and self._must_have_leaves(report.kept_from):
                said = f"Checkpoint {self.number} has no digests of its rows, although the rows still exist."
                report.add("checkpoint", said, self.span)
        return self.leaves

    def _must_have_leaves(self, kept_from: datetime) -> bool:
        """True if the checkpoint must still have its digests, because retention has not dropped all of its rows."""
        newest = self.body["newest_at"]
        return newest is not None and (self.kind == "events" or datetime.fromisoformat(newest) >= kept_from)

    def _checked(self, packed: bytes, report: Report) -> dict[UUID, bytes] | None:
        leaves = unpacked(packed)
        if len(leaves) != self.body["rows"] or root_of([leaf.packed for leaf in leaves]).hex() != self.body["root"]:
            said = f"Checkpoint {self.number} was rewritten: the digests of its rows differ."
            report.add("checkpoint", said, self.span)
            return None
        return dict(leaves)


class CheckpointIndex:
    """Finds the checkpoint of a row by the row's id; `newest` is the last id that the database assigned."""

    def __init__(self, sealed: Sequence[SignedCheckpoint], newest: int) -> None:
        self._sealed = sealed
        self._ends = [one.body["upto_id"] for one in sealed]
        self.newest = newest

    @property
    def last(self) -> int:
        """Return the last id that a checkpoint covers; 0 without checkpoints."""
        return int(self._ends[-1]) if self._ends else 0

    def find(self, number: int) -> SignedCheckpoint | None:
        """Return the checkpoint that covers the id `number`, or None if no checkpoint does."""
        place = bisect_left(self._ends, number)
        return (
            self._sealed[place] if place < len(self._sealed) and number > self._sealed[place].body["after_id"] else None
        )


class CallPlaces(CheckpointIndex):
    """Finds the checkpoint of a call by the call's id and date."""

    def __init__(self, sealed: Sequence[SignedCheckpoint], newest: int) -> None:
        super().__init__([one for one in sealed if one.kind in ("first", "near")], newest)
        self._late = CheckpointIndex([one for one in sealed if one.kind == "late"], newest)
        self._oldest = datetime.fromisoformat(sealed[-1].body["near_from"]) - LATEST if sealed else END

    def of(self, row: dict[str, Any]) -> SignedCheckpoint | bool:
        """Return the checkpoint that covers the row, or a bool if no checkpoint covers the row.

        True means that the row is accepted without a checkpoint. False means that the row was added by tampering.
        """
        number, at = row["id"], row["created_at"]
        near = self.find(number)
        if near is None:
            return self._may_stand_outside(number, at, row["recorded_at"])
        if near.covers(at):
            return near
        late = self._late.find(number)
        if late is not None:
            return late if late.covers(at) else False
        # The row's `late` checkpoint is not made yet, or is missing, which is reported separately.
        return bool(at >= self._oldest)

    def _may_stand_outside(self, number: int, at: datetime, recorded: datetime | None) -> bool:
        """Return whether a row with the id `number` may lack a checkpoint; always True if there are no checkpoints."""
        if not self._sealed:
            return True
        first, last = self._sealed[0].body, self._sealed[-1].body
        if number <= first["upto_id"]:  # Such a row must be older than the first checkpoint.
            return number > 0 and at <= datetime.fromisoformat(first["near_at"]) + ROUGHLY
        if number > last["upto_id"]:
            # The next checkpoint must cover the row: its id is assigned, and the row was not recorded before the last
            # checkpoint.
            sealed_to = datetime.fromisoformat(last["near_at"]) - ROUGHLY
            return number <= self.newest and at >= self._oldest and (recorded is None or recorded >= sealed_to)
        return True  # The row's checkpoint is missing, which is reported separately.


class EventPlaces(CheckpointIndex):
    """Finds the checkpoint of an admin event. Checkpoints cover all events, from the first event on."""

    def of(self, row: dict[str, Any]) -> SignedCheckpoint | bool:
        return self.find(row["id"]) or 0 < row["id"] <= self.newest


def verify(
    keys: Sequence[bytes] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    received: Received | None = None,
) -> Report:
    """Compare the calls of the period `since` to `until`, and all admin events, with the checkpoints, in one snapshot.

    `keys` are the trusted public keys (32 bytes each). Without `keys`, any key is trusted: then changed rows are not
    detected if their checkpoints were made and signed again with another key. `received` is a sink's copy of the logs.
    The rows of the copy must equal the rows in the database. The copy must have all rows that its checkpoints cover.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET LOCAL statement_timeout = 0")
        return compare(cursor, keys, LogPeriod(since or BEGINNING, until or END), received)


def compare(cursor: Any, keys: Sequence[bytes] | None, span: LogPeriod, received: Received | None) -> Report:
    """Compare the logs with the checkpoints as `verify` does, in the caller's transaction."""
    report = Report()
    sealed = _chain(report, keys)
    report.sealed_to = sealed[-1].sealed_at if sealed else None
    report.kept_from = _kept_from(sealed)
    if not report.checkpoints:
        said = "There is no checkpoint: the log was never sealed, or all checkpoints were deleted."
        report.add("checkpoint", said, LogPeriod(BEGINNING, timezone.now()))
    comparison = _Comparison(report, span, received)
    comparison.checkpoints(sealed)
    calls = [one for one in sealed if one.kind != "events"]
    events = [one for one in sealed if one.kind == "events"]
    comparison.rows("call", CallPlaces(calls, newest_id(cursor, TABLE)), calls, _calls(cursor, span))
    comparison.rows("event", EventPlaces(events, newest_id(cursor, Event._meta.db_table)), events, _events(cursor))
    comparison.leftovers()
    return report


def _chain(report: Report, keys: Sequence[bytes] | None) -> list[SignedCheckpoint]:
    """Return the checkpoints with a valid signature, in order, and report every fault in the chain of checkpoints."""
    sealed: list[SignedCheckpoint] = []
    broken: list[str] = []
    previous, expected, after = "", 1, BEGINNING
    for one in Checkpoint.objects.order_by("number").defer("leaves").iterator(chunk_size=100):
        report.checkpoints += 1
        body = _signed(one, keys)
        if said := _break(one, body, sealed, previous, expected, keys):
            broken.append(said)
        previous, expected = sha256(one.body.encode()).hexdigest(), one.number + 1
        if body is not None:
            sealed.append(SignedCheckpoint(body, after))
            _report_broken(report, broken, LogPeriod(after, sealed[-1].sealed_at))
            broken, after = [], sealed[-1].sealed_at
    _report_broken(report, broken, LogPeriod(after, timezone.now()))
    return sealed


def _break(
    one: Checkpoint,
    body: dict[str, Any] | None,
    sealed: Sequence[SignedCheckpoint],
    previous: str,
    expected: int,
    keys: Sequence[bytes] | None,
) -> str | None:
    """Return a sentence about the fault in this checkpoint or its link to the previous one; None without a fault."""
    name = f"Checkpoint {one.number}"
    if body is None:
        if keys is None or bytes(one.public_key) in keys:
            return f"{name} was rewritten: its signature is invalid."
        return f"{name} was rewritten, or signed with another key: if the key was replaced, give both public keys."
    if body["number"] != one.number or one.number != expected:
        return f"Checkpoint {expected} is missing: the next one is {one.number}."
    if body["previous"] != previous:
        return f"{name} does not continue the one before it, which was rewritten."
    if sealed and sealed[-1].number == one.number - 1:
        end = sealed[-1].body.get(ENDS.get(body["kind"], ""))
        if end is not None and body["after_id"] != end:
            return f"{name} does not start where the one before it ends."
    return None


def _report_broken(report: Report, sentences: Iterable[str], unproved: LogPeriod) -> None:
    for said in sentences:
        report.add("checkpoint", said, unproved)


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


def _kept_from(sealed: Sequence[SignedCheckpoint]) -> datetime:
    """Return the time from which on no call may be missing. Retention may have dropped older calls.

    The time is the latest `kept_from` in the checkpoints. If no checkpoint has a `kept_from`, the time is the start of
    the oldest partition.
    """
    # Checkpoints of earlier releases do not state this time.
    said = [datetime.fromisoformat(one.body["kept_from"]) for one in sealed if "kept_from" in one.body]
    starts = Call.partitions.starts()
    return max(said) if said else midnight(starts[0]) if starts else BEGINNING


class _Comparison:
    """Compares the logs of calls and events with checkpoints and with a sink's copy."""

    def __init__(self, report: Report, span: LogPeriod, received: Received | None) -> None:
        self._report, self._span = report, span
        self._received = received or Received()
        self._refused = refused_rows() if received else set()

    def checkpoints(self, sealed: Sequence[SignedCheckpoint]) -> None:
        """Compare the received checkpoints with those in the database."""
        received = self._received.checkpoints
        numbers = {number for number, _ in received}
        bodies = dict(Checkpoint.objects.filter(number__in=numbers).values_list("number", "body"))
        afters = {one.number: one.after for one in sealed}
        last = sealed[-1].sealed_at if sealed else BEGINNING
        for (number, body), at in sorted(received.items()):
            unproved = LogPeriod(min(afters.get(number, last), at), at)
            if number not in bodies:
                said = f"Checkpoint {number} was received by the sink, but is not in the database."
                self._report.add("checkpoint", said, unproved)
            elif bodies[number] != body:
                said = f"Checkpoint {number} was rewritten: the sink received another one."
                self._report.add("checkpoint", said, unproved)

    def rows(
        self,
        log: str,
        places: CallPlaces | EventPlaces,
        sealed: Sequence[SignedCheckpoint],
        rows: Iterable[dict[str, Any]],
    ) -> None:
        """Compare the rows of one log with its checkpoints and with the rows that the sink received."""
        first_required_ids = self._received.first_required_ids(log)
        # Periods of rows without a checkpoint. The key is True for rows after the last checkpoint, False for other
        # rows.
        outside: dict[bool, LogPeriod] = {}
        for row in rows:
            place = places.of(row)
            self._judge(log, place, row)
            self._compare_received(log, place, row, first_required_ids)
            if place is True:
                at, is_new = _recorded(row), places.last < row["id"]
                since, until = outside.get(is_new, (at, at))
                outside[is_new] = LogPeriod(min(since, at), max(until, at))
        self._report.unsealed += [(log, span) for span in outside.values()]
        if sealed and (waiting := outside.get(True)) and waiting.until - waiting.since > UNSEALED:
            said = f"{NOUNS[log]}s were not sealed: checkpoints were deleted, or none was made."
            self._report.add("checkpoint", said, waiting)
        for one in sealed:
            one.open(self._report)
            self._report_removed(log, one)
            if one.waited_since:
                self._report.late.append(LogPeriod(one.waited_since, one.sealed_at))
            one.leaves = None

    def leftovers(self) -> None:
        """Report rows that the sink received and that are not in the database."""
        named = {one.uid for one in self._report.findings}
        last = self._span.until if self._span.until == END else self._span.until - ROUGHLY
        for log, lines in self._received.rows.items():
            for uid, line in lines.items():
                is_dropped = log == "call" and line.at < self._report.kept_from
                if not is_dropped and uid not in named and self._span.since <= line.at and line.ended < last:
                    said = f"{_name(log, uid, line.at)} was received by the sink, but is not in the database."
                    self._report.add("removed", said, LogPeriod(line.at, line.at), uid)

    def _judge(self, log: str, place: SignedCheckpoint | bool, row: dict[str, Any]) -> None:
        uid, at, name = row["uid"], row["created_at"], _name(log, row["uid"], row["created_at"])
        if place is False:
            said = f"{name} was added: no checkpoint has it, although one should."
            self._report.add("added", said, LogPeriod(at, at), uid)
            return
        leaves = None if place is True else place.open(self._report)
        if leaves is None or place is True:
            self._report.uncovered += 1
            return
        digest = leaves.pop(uid, None)
        place.met += digest is not None
        columns = (CALL_COLUMNS if log == "call" else EVENT_COLUMNS)[place.body["columns"]]
        if digest is None:
            said = f"{name} was added: checkpoint {place.number}, which covers its id, does not have it."
            self._report.add("added", said, LogPeriod(at, at), uid)
        elif digest != leaf_of({column: row[column] for column in columns}).digest:
            said = f"{name} was changed since checkpoint {place.number}."
            self._report.add("changed", said, LogPeriod(min(at, place.span.since), max(at, place.span.since)), uid)
        elif log == "call":
            self._report.calls += 1
        else:
            self._report.events += 1
        recorded = _recorded(row)
        if is_late(place.kind, place.sealed_at, recorded):
            place.waited_since = min(recorded, place.waited_since or recorded)

    def _compare_received(
        self, log: str, place: SignedCheckpoint | bool, row: dict[str, Any], first_required_ids: dict[int, int]
    ) -> None:
        name, at, uid = _name(log, row["uid"], row["created_at"]), row["created_at"], row["uid"]
        is_same = self._received.is_same(log, row)
        if is_same is False:
            self._report.add("changed", f"{name} differs from the row received by the sink.", LogPeriod(at, at), uid)
        must_be_there = isinstance(place, SignedCheckpoint) and row["id"] > first_required_ids.get(
            place.number, row["id"]
        )
        if is_same is None and must_be_there and str(uid) not in self._refused and not self._received.may_come(row):
            said = f"{name} was not received by the sink, although its checkpoint was."
            self._report.add("missing", said, LogPeriod(at, at), uid)

    def _report_removed(self, log: str, one: SignedCheckpoint) -> None:
        missing: list[tuple[UUID, LogPeriod]] = []
        for uid in one.leaves or ():
            at = span_of_uid(uid)[0]
            if log == "event":
                missing.append((uid, one.span))
            elif at < self._report.kept_from:
                self._report.dropped += self._span.since <= at
            elif self._span.since <= at < self._span.until:
                missing.append((uid, LogPeriod(at, at)))
        if len(missing) > 1 and not one.met:
            said = f"All {len(missing)} {NOUNS[log].lower()}s of checkpoint {one.number} were removed."
            self._report.add("removed", said, LogPeriod(*_ends(span for _, span in missing)))
            return
        for uid, span in missing:
            digest = (one.leaves or {})[uid].hex()[:16]
            said = f"{_name(log, uid, span.since)} was removed; checkpoint {one.number} has its digest, {digest}…"
            self._report.add("removed", said, span, uid)


def _ends(spans: Iterable[LogPeriod]) -> tuple[datetime, datetime]:
    moments = list(spans)
    return min(span.since for span in moments), max(span.until for span in moments)


def _recorded(row: dict[str, Any]) -> datetime:
    at: datetime = row.get("recorded_at") or row["created_at"]
    return at


def _name(log: str, uid: UUID, at: datetime) -> str:
    return f"{NOUNS[log]} {uid} of {at:%Y-%m-%d %H:%M:%S} UTC"


def _moved(at: datetime, by: timedelta) -> datetime:
    return at if at in (BEGINNING, END) else at + by


def _calls(cursor: Any, span: LogPeriod) -> Iterator[dict[str, Any]]:
    """Yield the calls in primary-key order, fetched in chunks."""
    statement = f"""
        SELECT {columns_of(max(CALL_COLUMNS))} FROM {TABLE}
        WHERE (created_at, id) > (%s, %s) AND created_at < %s ORDER BY created_at, id LIMIT {CHUNK}
    """  # noqa: S608  (constants)
    at, last, until = _moved(span.since, -ROUGHLY), 0, _moved(span.until, ROUGHLY)
    while rows := _fetched(cursor, statement, [at, last, until]):
        yield from rows
        at, last = rows[-1]["created_at"], rows[-1]["id"]


def _events(cursor: Any) -> Iterator[dict[str, Any]]:
    """Yield the admin events in the order they were recorded, fetched in chunks."""
    statement = f"""
        SELECT {columns_of(max(EVENT_COLUMNS), columns=EVENT_COLUMNS)} FROM auditlog_event
        WHERE id > %s ORDER BY id LIMIT {CHUNK}
    """  # noqa: S608  (constants)
    last = -(1 << 63)
    while rows := _fetched(cursor, statement, [last]):
        yield from rows
        last = rows[-1]["id"]


def _fetched(cursor: Any, statement: str, parameters: list[Any]) -> list[dict[str, Any]]:
    cursor.execute(statement, parameters)
    names = [column.name for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
