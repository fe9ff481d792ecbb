"""Make signed checkpoints of the log rows that arrived since the last checkpoint, in one process at a time.

A `late` checkpoint covers calls that were recorded more than NEAR after they began. A `near` checkpoint covers all
other calls. An `events` checkpoint covers admin events. A `dropped` checkpoint covers no rows; it names the partitions
that retention is about to drop. Each checkpoint contains the digest of the previous checkpoint, so a removed or
inserted checkpoint is noticed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, date, datetime
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.conf import settings
from django.db import connection, transaction
from django.db.models import ForeignKey, Model, UUIDField
from django.utils import timezone

from auditlog.models import Call, Checkpoint, CheckpointKey, Event, span_of_uid
from auditlog.partitions import Dropped, midnight
from auditlog.replica import LATE_EVERY, LATEST, NEAR, NTH_ID, last_id
from ui.sealing import cipher

# Merkle trees (RFC 9162, section 2.1), and the leaf of a log row.

# The columns in a leaf, by version. A column that is added later needs a new version; each checkpoint names the version
# with which it was made.
CALL_COLUMNS: dict[int, tuple[str, ...]] = {
    1: (
        *("id", "uid", "created_at", "correlation_id", "method", "feature_type", "feature_name", "outcome"),
        *("deny_reason", "http_status", "rpc_error_code", "host_id", "gateway_id", "connection_id", "user_id"),
        *("token_id", "server_id", "identity_id", "host_name", "gateway_name", "server_name", "user_email"),
        *("identity_label", "token_name", "token_prefix", "duration_ms", "authorise_ms", "upstream_ms"),
        *("request_bytes", "response_bytes", "client_ip", "user_agent", "client_name", "client_version"),
        *("protocol_version", "error_text", "request_payload", "response_payload", "payload_truncated"),
        "recorded_at",
    )
}
CALL_COLUMNS[2] = (*CALL_COLUMNS[1], "trace_id")
CALL_COLUMNS[3] = (*CALL_COLUMNS[2], "session_id")
CALL_COLUMNS[4] = (*CALL_COLUMNS[3], "labels", "rule_id")
CALL_COLUMNS[5] = (*CALL_COLUMNS[4], "hold_id")
NEWEST = max(CALL_COLUMNS)
# The columns of admin events, by version.
EVENT_COLUMNS: dict[int, tuple[str, ...]] = {
    1: (
        *("id", "uid", "created_at", "actor_id", "actor_email", "via", "ip", "action"),
        *("target_type", "target_id", "target_label", "changes", "correlation_id"),
    )
}
NEWEST_OF_EVENTS = max(EVENT_COLUMNS)
AS_TEXT = {"client_ip", "request_payload", "response_payload", "ip", "changes"}  # Read as text, cast by PostgreSQL.
UID, DIGEST = 16, 32
CANONICAL = orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z


class Leaf(NamedTuple):
    """A row's uid, and the SHA-256 of its canonical JSON."""

    uid: UUID
    digest: bytes

    @property
    def packed(self) -> bytes:
        return self.uid.bytes + self.digest


def columns_of(
    version: int, as_text: Collection[str] = AS_TEXT, columns: Mapping[int, tuple[str, ...]] = CALL_COLUMNS
) -> str:
    """Return the columns to SELECT for leaves in format `version`. Columns in `as_text` are cast to text."""
    return ", ".join(f"{name}::text AS {name}" if name in as_text else name for name in columns[version])


def leaf_of(row: Mapping[str, Any]) -> Leaf:
    """Return the leaf of a row read with `columns_of`. The JSON has sorted keys, and times in UTC with microseconds."""
    return Leaf(row["uid"], sha256(orjson.dumps(row, option=CANONICAL)).digest())


def unpacked(leaves: bytes) -> list[Leaf]:
    """Return the leaves in `leaves`, which is a concatenation of values of `Leaf.packed`."""
    size = UID + DIGEST
    parts = (leaves[at : at + size] for at in range(0, len(leaves), size))
    return [Leaf(UUID(bytes=part[:UID]), part[UID:]) for part in parts]


def root_of(leaves: Sequence[bytes]) -> bytes:
    """Return the Merkle tree hash of these entries: MTH of RFC 9162, section 2.1.1."""
    if not leaves:
        return sha256().digest()
    # Subtrees from left to right, each at least twice as large as the next; two subtrees of equal size are merged.
    stack: list[tuple[int, bytes]] = []
    for entry in leaves:
        size, node = 1, sha256(b"\x00" + entry).digest()
        while stack and stack[-1][0] == size:
            node = sha256(b"\x01" + stack.pop()[1] + node).digest()
            size *= 2
        stack.append((size, node))
    node = stack.pop()[1]
    while stack:
        node = sha256(b"\x01" + stack.pop()[1] + node).digest()
    return node


LOCK = 0x67776104
MOST_ROWS = 20_000  # Per checkpoint.
WRITERS_S = 1.0
TABLE = Call._meta.db_table


def texts(model: type[Model]) -> set[str]:
    """Return the columns to select as text.

    They are AS_TEXT and all columns with UUIDs. JSON writes UUIDs as text, and parsing them first would be slow.
    """
    return AS_TEXT | {
        str(field.column)
        for field in model._meta.concrete_fields
        if isinstance(field.target_field if isinstance(field, ForeignKey) else field, UUIDField)
    }


TEXTS = texts(Call)
_ROWS = f"""
SELECT {columns_of(NEWEST, TEXTS)} FROM {TABLE}
WHERE created_at >= %s AND created_at < %s AND id > %s AND id <= %s ORDER BY id
"""  # noqa: S608  (constants)
_EVENTS = f"""
SELECT {columns_of(NEWEST_OF_EVENTS, texts(Event), EVENT_COLUMNS)} FROM auditlog_event
WHERE id > %s AND id <= %s ORDER BY id LIMIT %s
"""  # noqa: S608  (constants)
END = datetime(9999, 1, 1, tzinfo=UTC)
# The position in each log and the retention limit, repeated in each checkpoint.
STATE = ("near_to", "near_at", "near_from", "late_to", "events_to", "kept_from")

type Body = dict[str, Any]


class _Leaves(NamedTuple):
    """The packed leaves of some rows, the times of the oldest and newest row, and the id of the last row."""

    packed: list[bytes]
    oldest: datetime | None
    newest: datetime | None
    last_id: int | None


def keep_up(most: int = 100) -> int:
    """Make up to `most` checkpoints that are due, and return the number of rows that they cover.

    Stops early if another process is making checkpoints, or if a transaction that writes to the log does not finish
    within WRITERS_S.
    """
    covered = 0
    for _ in range(most):
        made = _make_next()
        if made is None:
            break
        covered += made["rows"]
        if made["kind"] == "near" and made["rows"] < MOST_ROWS:
            break  # The next run covers newer rows.
    return covered


def drop_before(limit: date, note: Dropped = lambda name, span, rows: None) -> int:
    """Drop the partitions in which all calls are older than `limit`, call `note` for each, and return their number.

    The digests of the dropped rows are deleted too. The database role must own the table.
    """
    # Record the drop first, because `verify_log` reports a partition that is missing without a record.
    kept_from = _seal_drop(limit)
    dropped = Call.partitions.drop_before(limit, note)
    if kept_from:
        # The checkpoints themselves are kept, because each is needed to prove the next.
        Checkpoint.objects.filter(newest_at__lt=kept_from).exclude(leaves=None).update(leaves=None)
    return len(dropped)


@transaction.atomic
def _seal_drop(limit: date) -> datetime | None:
    """Record in a checkpoint which partitions will be dropped.

    Returns the time before which all calls are to be dropped, or None if there is no checkpoint yet.
    """
    expired = Call.partitions.expired(limit)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
    before = _newest()
    if before is None:
        return None
    kept_from = max([datetime.fromisoformat(before["kept_from"]), *(midnight(span.end) for _, span in expired)])
    if kept_from > datetime.fromisoformat(before["kept_from"]):
        body = _after(before, "dropped") | {"kept_from": kept_from, "partitions": [name for name, _ in expired]}
        _keep(body, _Leaves([], None, None, None))
    return kept_from


@transaction.atomic
def _make_next() -> Body | None:
    """Make one checkpoint and return its body, or None if none is due."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [LOCK])
        if not cursor.fetchone()[0]:
            return None
        before = _newest()
        if before is None:
            return _make_first(cursor)
        if made := _make_events(cursor, before):
            return made
        last = last_id(cursor, TABLE, wait=WRITERS_S)
        body = _late(before, last) or _near(cursor, before, last)
        if body is None:
            return None
        rows = _read(cursor, _ROWS, [body["from"], body["before"] or END, body["after_id"], body["upto_id"]])
        return _keep(body, rows)


def _newest() -> Body | None:
    """Return the body of the newest checkpoint plus its SHA-256 as `digest`, or None if there is no checkpoint."""
    texts = Checkpoint.objects.order_by("-number").values_list("body", flat=True)
    text = texts.first()
    if text is None:
        return None
    body: Body = orjson.loads(text)
    # Earlier releases made checkpoints without `events_to` and `kept_from`. If the newest checkpoint was made after a
    # downgrade, an older checkpoint may have these fields.
    if "events_to" not in body:
        known: Body = orjson.loads(texts.filter(body__contains='"events_to":').first() or b"{}")
        body |= {"events_to": known.get("events_to", 0), "kept_from": known.get("kept_from") or _oldest_partition()}
    return body | {"digest": sha256(text.encode()).hexdigest()}


def _oldest_partition() -> str:
    """Return the start of the oldest partition, as text; the current time if there is no partition."""
    starts = Call.partitions.starts()
    return (midnight(starts[0]) if starts else timezone.now()).isoformat()


def _make_first(cursor: Any) -> Body | None:
    """Make the first checkpoint, which covers no rows. Later checkpoints cover all existing calls and admin events."""
    last = last_id(cursor, TABLE, wait=WRITERS_S)
    if last is None:
        return None
    now = timezone.now()
    # Calls that began up to LATEST ago may still arrive, even if their partition does not exist yet.
    kept_from = min(_oldest_partition(), (now - LATEST).isoformat())
    after, at, since = (0, kept_from, kept_from) if Call.objects.exists() else (last, now, now - NEAR)
    covers = {"from": since, "before": None, "after_id": after, "upto_id": after}
    state = {"near_to": after, "near_at": at, "near_from": since, "late_to": after}
    state |= {"events_to": 0, "kept_from": kept_from}
    return _keep({"number": 1, "kind": "first", "previous": "", **covers, **state}, _Leaves([], None, None, None))


def _after(before: Body, kind: str) -> Body:
    """Return the body of the checkpoint after `before`. It covers no rows until the caller adds a range of rows."""
    covers = {"from": None, "before": None, "after_id": before["near_to"], "upto_id": before["near_to"]}
    state = {name: before[name] for name in STATE}
    return {"number": before["number"] + 1, "kind": kind, "previous": before["digest"], **covers, **state}


def _near(cursor: Any, before: Body, last: int | None) -> Body | None:
    since, after, now = datetime.fromisoformat(before["near_from"]), before["near_to"], timezone.now()
    if last is None or last <= after:
        return None
    cursor.execute(NTH_ID, [since, after, last, MOST_ROWS - 1])
    row = cursor.fetchone()
    upto = row[0] if row else last
    # If rows are left for the next checkpoint, `near_at` stays: these rows may have arrived just after that time.
    at = before["near_at"] if row else now
    covers = {"from": since, "after_id": after, "upto_id": upto}
    return _after(before, "near") | covers | {"near_to": upto, "near_at": at}


def _late(before: Body, last: int | None) -> Body | None:
    since, at = datetime.fromisoformat(before["near_from"]), datetime.fromisoformat(before["near_at"])
    if before["late_to"] < before["near_to"] == last:
        at = timezone.now()  # The last calls before a quiet time: no newer row would advance `near_at`.
    if since >= at - NEAR - LATE_EVERY:
        return None
    covers = {"from": since - LATEST, "before": since, "after_id": before["late_to"], "upto_id": before["near_to"]}
    return _after(before, "late") | covers | {"near_from": at - NEAR, "late_to": before["near_to"]}


def _make_events(cursor: Any, before: Body) -> Body | None:
    last = last_id(cursor, Event._meta.db_table, wait=WRITERS_S)
    if last is None or last <= before["events_to"]:
        return None
    rows = _read(cursor, _EVENTS, [before["events_to"], last, MOST_ROWS])
    if not rows.packed:  # All these ids belong to rolled-back events.
        return None
    upto = rows.last_id if rows.last_id and len(rows.packed) == MOST_ROWS else last
    covers = {"after_id": before["events_to"], "upto_id": upto, "events_to": upto, "columns": NEWEST_OF_EVENTS}
    return _keep(_after(before, "events") | covers, rows)


def _read(cursor: Any, statement: str, parameters: list[Any]) -> _Leaves:
    cursor.execute(statement, parameters)
    names = [column.name for column in cursor.description]
    packed, moments, last = [], [], None
    for values in cursor:
        row = dict(zip(names, values, strict=True))
        packed.append(bytes.fromhex(row["uid"].replace("-", "")) + leaf_of(row).digest)
        moments.append(row["created_at"])
        last = row["id"]
    return _Leaves(packed, min(moments, default=None), max(moments, default=None), last)


def _keep(body: Body, leaves: _Leaves) -> Body:
    packed = leaves.packed
    body = {"columns": NEWEST, "version": 1, "rows": len(packed), "root": root_of(packed).hex(), **body}
    # When calls up to this time are dropped, their digests may be deleted. Digests of admin events are never deleted.
    forget_at = span_of_uid(UUID(bytes=max(packed)[:UID]))[0] if packed and body["kind"] != "events" else None
    body |= {"sealed_at": timezone.now(), "oldest_at": leaves.oldest, "newest_at": forget_at or leaves.newest}
    key = signing_key()
    text = orjson.dumps(body, option=CANONICAL)
    Checkpoint.objects.create(
        number=body["number"],
        body=text.decode(),
        signature=key.sign(text),
        public_key=public_bytes(key),
        leaves=b"".join(packed),
        newest_at=forget_at,
    )
    return body


def signing_key() -> Ed25519PrivateKey:
    """Return GATEWAY_CHECKPOINT_KEY or, if it is not set, the key that is stored encrypted in the database.

    The stored key is generated when it is first needed.
    """
    if settings.CHECKPOINT_KEY:
        return Ed25519PrivateKey.from_private_bytes(settings.CHECKPOINT_KEY)
    kept = CheckpointKey.objects.first()
    if kept is None:
        made = Ed25519PrivateKey.generate().private_bytes_raw().hex()
        CheckpointKey.objects.bulk_create(
            [CheckpointKey(sealed=cipher().seal(made), key_id=cipher().key_id)], ignore_conflicts=True
        )
        kept = CheckpointKey.objects.get()
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(cipher().open(bytes(kept.sealed))))


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """Return the raw public key (32 bytes)."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
