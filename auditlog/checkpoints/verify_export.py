#!/usr/bin/env python3
"""Verify a signed export of the log offline: python3 -I verify_export.py export.jsonl --public-key checkpoint-key.pem

The script needs Python 3.11 or newer. It needs no network, no installation and no other code of the gateway.
The script checks that

- each checkpoint is signed with the key, and none is missing between the first and the last,
- no row was changed, added or removed after its checkpoint was made (except rows that retention removed, and rows of a
  log that was not exported),
- the file was not changed or cut short after it was downloaded.

With `--review FILE`, the script also checks that an export of an access review (JSON lines, with all lines of the
review) matches the event in the log that records the end of the review.

Do not take the public key from the person who gave you the file. If possible, use a copy of the key that was stored
before the exported rows were logged.
Exit codes: 0 if everything matches, 1 with findings, 2 if a file cannot be read or is not a signed export.
docs/how-to/answer-an-auditor.md explains what a match proves.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache
from hashlib import sha256, sha512
from typing import IO, Any, NamedTuple
from uuid import UUID

VERSION = 1
# For each kind of checkpoint, its `after_id` must equal this field of the previous checkpoint.
ENDS = {"near": "near_to", "late": "late_to", "events": "events_to"}
NOUNS = {"call": "Call", "event": "Admin event"}
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
ROUGHLY = timedelta(minutes=1)  # The time in a uid and the date of its row may differ by milliseconds.
UNSEALED = timedelta(minutes=15)  # Rows that wait longer are reported. A running gateway covers rows within a minute.

# Ed25519 (RFC 8032, section 5.1.7), for verification only: nothing here is secret, so nothing needs constant time.

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
ROOT = pow(2, (P - 1) // 4, P)  # A square root of -1.
Point = tuple[int, int, int, int]
IDENTITY: Point = (0, 1, 1, 0)


def added(a: Point, b: Point) -> Point:
    """Return the sum of two points in extended coordinates."""
    r, s = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    t, u = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = s - r, u - t, u + t, s + r
    return (e * f % P, g * h % P, f * g % P, e * h % P)


@lru_cache(8)
def table(encoded: bytes) -> list[list[Point]] | None:
    """Return a table of multiples of the encoded point A, or None if the encoding is invalid.

    The table has 64 rows. Row n has the multiples 0 to 15 of the point 16^n * A.
    """
    point, rows = decoded(encoded), []
    for _ in range(64 if point else 0):
        row = [IDENTITY]
        for _ in range(15):
            row.append(added(row[-1], point or IDENTITY))
        rows.append(row)
        point = added(row[-1], row[1])
    return rows or None


def times(factor: int, rows: list[list[Point]]) -> Point:
    """Multiply a point by `factor`. `rows` is the table of this point, as returned by `table`."""
    total = IDENTITY
    for row in rows:
        if factor & 15:
            total = added(total, row[factor & 15])
        factor >>= 4
    return total


def decoded(data: bytes) -> Point | None:
    """Return the point encoded in 32 bytes; None if the encoding is invalid."""
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & ((1 << 255) - 1)
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT % P
    if (x * x - square) % P or (x == 0 and sign):
        return None
    x = P - x if x & 1 != sign else x
    return (x, y, 1, x * y % P)


BASE = (4 * pow(5, -1, P) % P).to_bytes(32, "little")


def is_signed(message: bytes, signature: bytes, key: bytes) -> bool:
    """Return whether `signature` is the signature of `message` with this public key."""
    if len(signature) != 64 or len(key) != 32:
        return False
    base, point, nonce = table(BASE), table(key), decoded(signature[:32])
    scalar = int.from_bytes(signature[32:], "little")
    if base is None or point is None or nonce is None or scalar >= ORDER:
        return False
    challenge = int.from_bytes(sha512(signature[:32] + key + message).digest(), "little") % ORDER
    left, right = times(scalar, base), added(nonce, times(challenge, point))
    return (left[0] * right[2] - right[0] * left[2]) % P == 0 and (left[1] * right[2] - right[1] * left[2]) % P == 0


# Merkle trees (RFC 9162, section 2.1.1).


def root_of(leaves: list[bytes]) -> bytes:
    """Return the root of the Merkle tree of these leaves."""
    if not leaves:
        return sha256().digest()
    level = [sha256(b"\x00" + leaf).digest() for leaf in leaves]
    while len(level) > 1:
        pairs = [sha256(b"\x01" + level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)]
        level = pairs + level[len(pairs) * 2 :]
    return level[0]


# Periods of time. `verify_log` uses them too.


class LogPeriod(NamedTuple):
    """A period of time."""

    since: datetime
    until: datetime

    @property
    def in_words(self) -> str:
        since = "the beginning" if self.since == BEGINNING else in_words(self.since)
        return f"{since} to {in_words(self.until)}"


def merged(spans: Iterable[LogPeriod]) -> list[LogPeriod]:
    """Return the periods sorted; periods that overlap or are at most a minute (ROUGHLY) apart are merged."""
    joined: list[LogPeriod] = []
    for span in sorted(spans):
        if joined and span.since - ROUGHLY <= joined[-1].until:
            joined[-1] = LogPeriod(joined[-1].since, max(joined[-1].until, span.until))
        else:
            joined.append(span)
    return joined


def is_late(kind: str, sealed_at: datetime, recorded: datetime) -> bool:
    """Return True if a row waited too long for its checkpoint: longer than UNSEALED.

    Rows of a `late` checkpoint may wait that long even while the gateway runs, so the result for them is always False.
    """
    return kind != "late" and sealed_at - recorded > UNSEALED


def late_lines(spans: Iterable[LogPeriod]) -> list[str]:
    """Return a sentence for each period in which rows waited long for a checkpoint."""
    said = "Sealed late: rows of the period from {}. Changes to these rows before their checkpoint cannot be found."
    return [said.format(span.in_words) for span in merged(spans)]


def in_words(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


# Access reviews.


def review_checksum(lines: list[dict[str, Any]], fields: list[str]) -> str:
    """Return the SHA-256 of the joined digests of all lines, in the order of the lines' ids.

    The digest of a line is the SHA-256 of the line's `fields` as JSON.
    """
    leaves = []
    for line in sorted(lines, key=lambda line: str(line["id"])):
        told = {name: line[name] for name in fields}
        text = json.dumps(told, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        leaves.append(sha256(text.encode()).digest())
    return sha256(b"".join(leaves)).hexdigest()


# The file.


class NotAnExport(Exception):
    """The file is not a signed export."""


class CheckpointLine:
    """A checkpoint. `open` has the digests, by uid, of the checkpoint's rows that were not read from the file yet."""

    def __init__(self, line: dict[str, Any]) -> None:
        self.text = str(line["body"])
        self.body: dict[str, Any] = json.loads(self.text)
        self.number = int(self.body["number"])
        self.name = f"Checkpoint {self.number}"
        self.key, self.signature = bytes.fromhex(line["public_key"]), bytes.fromhex(line["signature"])
        packed = None if line.get("leaves") is None else base64.b64decode(line["leaves"])
        self.packed = None if packed is None else [packed[at : at + 48] for at in range(0, len(packed), 48)]
        self.open = {UUID(bytes=leaf[:16]): leaf[16:] for leaf in self.packed or ()}
        self.log = "event" if self.body["kind"] == "events" else "call"
        self.waited_since: datetime | None = None

    def is_signed(self, keys: list[bytes] | None) -> bool:
        trusted = keys is None or self.key in keys
        return trusted and is_signed(self.text.encode(), self.signature, self.key)

    @cached_property
    def sealed_at(self) -> datetime:
        return moment(self.body["sealed_at"]).astimezone(UTC)

    def note_wait(self, row: dict[str, Any]) -> None:
        """Update `waited_since` if this row waited too long for the checkpoint (see `is_late`).

        `waited_since` is the time at which the oldest row that waited too long was recorded.
        """
        recorded = moment(row.get("recorded_at") or row["created_at"]).astimezone(UTC)
        if recorded >= BEGINNING and is_late(self.body["kind"], self.sealed_at, recorded):
            self.waited_since = min(recorded, self.waited_since or recorded)


class Verification:
    """Reads the file once, from the first line to the last, and collects the findings."""

    def __init__(self, keys: list[bytes] | None, rows: IO[str] | None = None) -> None:
        self.keys, self.rows_file = keys, rows
        self.findings: list[str] = []
        self.matched = {"call": 0, "event": 0}
        self.checkpoints = self.rows = self.present = self.dropped = 0
        self.head: dict[str, Any] = {}
        self.kept_from = BEGINNING
        self.late: list[LogPeriod] = []  # The periods in which rows waited long for a checkpoint.
        self.now: CheckpointLine | None = None
        self.first: CheckpointLine | None = None
        self.used_keys: set[bytes] = set()
        self.signed = 0  # The checkpoints that are signed with the key.
        self.closed_reviews: list[dict[str, Any]] = []
        self.reviewed = ""

    def read(self, lines: Any) -> None:
        """Verify the lines (bytes). Raises NotAnExport."""
        digest, ended = sha256(), False
        for number, line in enumerate(lines):
            if ended:
                self.found(f"Line {number + 1} and the lines after it were added to the file.")
                return
            told = self.parsed(line, number)
            if told.get("log") == "end":
                self.close_checkpoint()
                self.end(told, digest.hexdigest())
                ended = True
            else:
                digest.update(line)
                self.take(told, number)
        if not self.head:
            raise NotAnExport("The file is empty.")
        if not ended:
            self.close_checkpoint()
            self.found("The file is cut: the last line, with the signature of the file, is missing.")

    def parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            told = json.loads(line)
        except ValueError:
            told = None
        if isinstance(told, dict):
            return told
        if not number:
            raise NotAnExport("The first line is not a JSON object.")
        self.found(f"Line {number + 1} cannot be read.")
        return {}

    def take(self, told: dict[str, Any], number: int) -> None:
        try:
            if not number:
                self.begin(told)
            elif told.get("log") == "checkpoint":
                self.close_checkpoint()
                self.checkpoint(CheckpointLine(told))
            elif told.get("log") in NOUNS:
                self.row(told)
            elif told:
                self.found(f"Line {number + 1} does not belong to an export.")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            if not number:
                fault = f"A field is missing, or a value is wrong: {error}."
                raise NotAnExport(f"The file does not begin with the first line of a signed export. {fault}") from None
            self.found(f"Line {number + 1} was changed: it cannot be read.")

    def begin(self, told: dict[str, Any]) -> None:
        if told.get("log") != "export" or told.get("version") != VERSION:
            raise NotAnExport(f"The file does not begin with the first line of a signed export of version {VERSION}.")
        self.head, newest = told, CheckpointLine(told["newest"])
        if newest.is_signed(self.keys):
            self.kept_from = moment(newest.body["kept_from"])
        else:
            self.found("The newest checkpoint, in the first line, is not signed with the key.")

    def checkpoint(self, one: CheckpointLine) -> None:
        self.checkpoints += 1
        if one.is_signed(self.keys):
            self.signed += 1
            self.used_keys.add(one.key)
        else:
            self.found(f"{one.name} is not signed with the key, or was changed.")
        before, self.now = self.now, one
        self.first = self.first or one
        self.follow(before, one)
        if one.packed is None:
            if one.body["rows"] and one.log in self.head["logs"] and not self.is_dropped(one):
                self.found(f"{one.name} has no digests of its rows, although the rows still exist.")
        elif len(one.packed) != one.body["rows"] or root_of(one.packed).hex() != one.body["root"]:
            self.found(f"{one.name}: the digests of its rows were changed.")

    def follow(self, before: CheckpointLine | None, one: CheckpointLine) -> None:
        expected = before.number + 1 if before else int(self.head["first"])
        if one.number != expected:
            self.found(f"Checkpoint {expected} is missing: the next one is {one.number}.")
        elif before and one.body["previous"] != sha256(before.text.encode()).hexdigest():
            self.found(f"{one.name} does not continue the one before it, which was changed.")
        elif before:
            end = before.body.get(ENDS.get(one.body["kind"], ""))
            if end is not None and one.body["after_id"] != end:
                self.found(f"{one.name} does not start where the one before it ends.")

    def is_dropped(self, one: CheckpointLine) -> bool:
        """Return whether the checkpoint has no rows, or only calls that retention has removed (see `kept_from`)."""
        newest = one.body["newest_at"]
        return newest is None or (one.log == "call" and moment(newest) < self.kept_from)

    def row(self, told: dict[str, Any]) -> None:
        self.rows += 1
        text, now = str(told["row"]), self.now
        row = json.loads(text)
        uid = UUID(row["uid"])
        name = f"{NOUNS[told['log']]} {uid} of {row['created_at'][:19]}"
        if self.rows_file:
            self.rows_file.write(text + "\n")
        if now is None or told["log"] != now.log:
            self.found(f"{name} was added: it belongs to no checkpoint.")
            return
        digest = now.open.pop(uid, None)
        if digest is None:
            self.found(f"{name} was added: checkpoint {now.number} does not have it.")
        elif told.get("without") and told.get("matches") is True:
            self.present += 1
            now.note_wait(row)
        elif sha256(text.encode()).digest() != digest:
            self.found(f"{name} was changed since checkpoint {now.number}.")
        else:
            self.matched[now.log] += 1
            now.note_wait(row)
            if row.get("action") == "review.closed":
                self.closed_reviews.append(row)

    def close_checkpoint(self) -> None:
        """Report the rows of the checkpoint that are missing from the file."""
        if (now := self.now) is None:
            return
        # In milliseconds since 1970, as at the beginning of a call's id. A changed id may be after the last datetime.
        kept_from = (self.kept_from - BEGINNING) / timedelta(milliseconds=1)
        for uid, digest in now.open.items():
            if now.log == "call" and uid.int >> 80 < kept_from:
                self.dropped += 1
            elif now.log in self.head["logs"]:
                name = f"{NOUNS[now.log]} {uid}"
                self.found(f"{name} was removed; {now.name.lower()} has its digest, {digest.hex()[:16]}...")
        now.open = {}
        if now.waited_since:
            self.late.append(LogPeriod(now.waited_since, now.sealed_at))

    def end(self, told: dict[str, Any], digest: str) -> None:
        try:
            text, signature = str(told["body"]), bytes.fromhex(told["signature"])
            key, body = bytes.fromhex(self.head["public_key"]), json.loads(text)
            is_good = (self.keys is None or key in self.keys) and is_signed(text.encode(), signature, key)
            counts, own = (body["kind"], body["checkpoints"], body["rows"]), body["sha256"]
        except (KeyError, TypeError, ValueError):
            self.found("The last line was changed: it cannot be read.")
            return
        self.used_keys.add(key)
        if not is_good:
            self.found("The signature of the file is invalid, or made with another key.")
        if own != digest:
            self.found("The file was changed after it was signed.")
        if counts != ("export", self.checkpoints, self.rows):
            self.found("Checkpoints or rows were removed from the file, or added to it.")

    def review(self, lines: Any) -> None:
        """Compare an export of an access review with the verified events about the closing of reviews.

        Adds a finding if the export is incomplete. Adds a finding if none of these events has the export's checksum.
        Raises ValueError if a line is not JSON.
        """
        told = [json.loads(line) for line in lines if line.strip()]
        last = told.pop() if told else {}
        end = last.get("export") if isinstance(last, dict) else None
        if not (isinstance(end, dict) and end.get("complete")):
            self.found("The review file is cut: its last line does not say that the file is complete.")
            return
        for event in self.closed_reviews:
            changes = event["changes"]
            changes = json.loads(changes) if isinstance(changes, str) else changes
            try:
                is_same = review_checksum(told, changes["checksum_fields"][1]) == changes["checksum"][1]
            except (KeyError, TypeError):
                is_same = False
            if is_same:
                name, at = event["target_label"], event["created_at"][:19]
                self.reviewed = f"{len(told)} lines and their answers match the review {name}, closed {at}Z."
                return
        if not self.matched["event"]:
            self.found(
                "The export has no admin events, so the review cannot be compared with the event that closed it."
            )
            return
        self.found(
            "The review was changed, some of its lines are missing, or the verified rows lack the event that closed it."
        )

    def found(self, sentence: str) -> None:
        self.findings.append(sentence)

    def summary(self) -> list[str]:
        calls, events = self.matched["call"], self.matched["event"]
        checkpoints = f"{self.checkpoints} signed checkpoints"
        if self.signed < self.checkpoints:
            checkpoints = f"{self.checkpoints} checkpoints, of which {self.signed} are signed with the key"
        said = [f"{calls} calls and {events} admin events match {checkpoints}."]
        if self.first and self.now:
            span = f"{self.first.body['sealed_at'][:19]}Z to {self.now.body['sealed_at'][:19]}Z"
            said.append(f"Checkpoints {self.first.number} to {self.now.number}, signed {span}.")
        if self.present:
            said.append(
                f"{self.present} calls have recorded payloads, which exports leave out. Checkpoints prove that these "
                "calls were logged. The signature of the file proves the values in their rows."
            )
        if self.dropped:
            said.append(f"{self.dropped} calls were removed by retention.")
        said += late_lines(self.late)
        if self.reviewed:
            said.append(self.reviewed)
        if self.keys is None and self.used_keys:
            names = ", ".join(sorted(fingerprint(key) for key in self.used_keys))
            said.append(
                f"The key was taken from the file itself: {names}. Compare it with your own copy: --public-key FILE."
            )
        return said


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))  # noqa: FURB162  (the file must run alone)


def fingerprint(key: bytes) -> str:
    """Return the first half of the SHA-256 of a public key, as the page *Prove the log* shows it."""
    digits = sha256(key).hexdigest()[:32]
    return " ".join(digits[at : at + 4] for at in range(0, len(digits), 4))


def public_key(path: str) -> bytes:
    """Return the Ed25519 public key in a PEM file, as 32 bytes. Raises ValueError if the file has no such key."""
    with open(path, encoding="ascii") as file:  # noqa: PTH123  (one file that runs anywhere)
        lines = [line for line in file.read().splitlines() if line and not line.startswith("-----")]
    data = base64.b64decode("".join(lines))
    if len(data) != 44 or not data.startswith(bytes.fromhex("302a300506032b6570032100")):
        raise ValueError("no Ed25519 public key in PEM")
    return data[12:]


def main() -> int:
    parser = argparse.ArgumentParser(description="Verify a signed export of the log, offline.")
    parser.add_argument("export", help="the downloaded file")
    parser.add_argument(
        "--public-key",
        dest="keys",
        action="append",
        help="a PEM file; only signatures made with the given keys are trusted (may be repeated)",
    )
    parser.add_argument("--rows", help="write the rows to this file, as JSON lines")
    parser.add_argument("--review", help="an exported access review (JSON lines), to compare with the log")
    asked = parser.parse_args()
    try:
        keys = [public_key(path) for path in asked.keys] if asked.keys else None
        rows = open(asked.rows, "w", encoding="utf-8") if asked.rows else None  # noqa: PTH123, SIM115
        verification = Verification(keys, rows)
        with open(asked.export, "rb") as lines:  # noqa: PTH123
            verification.read(lines)
        if asked.review:
            with open(asked.review, "rb") as lines:  # noqa: PTH123
                verification.review(lines)
    except (OSError, ValueError, NotAnExport) as error:
        print(f"Cannot verify: {error}", file=sys.stderr)  # noqa: T201
        return 2
    said = [*verification.findings, "NOT OK:" if verification.findings else "OK:", *verification.summary()]
    for line in said:  # Values of the file could contain terminal commands that hide a finding.
        print("".join(sign if sign.isprintable() else "?" for sign in line))  # noqa: T201
    return 1 if verification.findings else 0


if __name__ == "__main__":
    sys.exit(main())
