"""Makes checkpoints: every minute or so one of all processes states which rows the log got since, and signs that.

A checkpoint covers the rows with an id after the one before, up to one up to which the log is complete
(auditlog.committed). Rows that were older than NEAR when they came have checkpoints of their own, as roll-ups and sinks
find them too. Each names the digest of the one before, so that none can be taken out or put in.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from hashlib import sha256
from typing import Any
from uuid import UUID

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.conf import settings
from django.db import connection, transaction
from django.db.models import ForeignKey, UUIDField
from django.utils import timezone

from auditlog.checkpoints.tree import AS_TEXT, CANONICAL, NEWEST, UID, columns_of, leaf_of, root_of
from auditlog.committed import LATE_EVERY, LATEST, NEAR, NTH_ID, last_id, newest_id
from auditlog.models import Call, Checkpoint, CheckpointKey, span_of_uid
from ui.sealing import cipher

LOCK = 0x67776104
MOST_ROWS = 20_000  # Of one checkpoint.
WRITERS_S = 1.0
TABLE = Call._meta.db_table

# A UUID has one text, in JSON too: to make an object of each takes a sixth of the time.
TEXTS = AS_TEXT | {
    str(field.column)
    for field in Call._meta.concrete_fields
    if isinstance(field.target_field if isinstance(field, ForeignKey) else field, UUIDField)
}
_ROWS = f"""
SELECT {columns_of(NEWEST, TEXTS)} FROM {TABLE}
WHERE created_at >= %s AND created_at < %s AND id > %s AND id <= %s ORDER BY id
"""  # noqa: S608  (constants)
END = datetime(9999, 1, 1, tzinfo=UTC)

type Body = dict[str, Any]


def keep_up(most: int = 100) -> int:
    """Make the checkpoints that are due, so many at most; how many rows they cover.

    Nothing while another process is at it, or somebody writes for too long.
    """
    covered = 0
    for _ in range(most):
        rows = _make_next()
        if rows is None:
            break
        covered += rows
    return covered


@transaction.atomic
def _make_next() -> int | None:
    """Make one checkpoint: how many rows it covers; None when none is due."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [LOCK])
        if not cursor.fetchone()[0]:
            return None
        newest = Checkpoint.objects.order_by("-number").first()
        if newest is None:
            _keep(_first(cursor), [])
            return 0
        before: Body = orjson.loads(newest.body)
        body = _late(before) or _near(cursor, before)
        if body is None:
            return None
        leaves = _leaves(cursor, body)
    body["previous"] = sha256(newest.body.encode()).hexdigest()
    return _keep(body, leaves)


def _first(cursor: Any) -> Body:
    """The beginning: what was there before is not covered."""
    now, last = timezone.now(), newest_id(cursor, TABLE)
    covers = {"from": now - NEAR, "before": None, "after_id": last, "upto_id": last}
    state = {"near_to": last, "near_at": now, "near_from": now - NEAR, "late_to": last}
    return {"number": 1, "kind": "first", "previous": "", **covers, **state}


def _near(cursor: Any, before: Body) -> Body | None:
    since, after = datetime.fromisoformat(before["near_from"]), before["near_to"]
    now, last = timezone.now(), last_id(cursor, TABLE, wait=WRITERS_S)
    if last is None or last <= after:
        return None
    cursor.execute(NTH_ID, [since, after, last, MOST_ROWS - 1])
    row = cursor.fetchone()
    upto = row[0] if row else last
    # When there are more, nothing is known of when the next one came but that it was after the one before.
    at = datetime.fromisoformat(before["near_at"]) if row else now
    covers = {"from": since, "before": None, "after_id": after, "upto_id": upto}
    state = {"near_to": upto, "near_at": at, "near_from": since, "late_to": before["late_to"]}
    return {"number": before["number"] + 1, "kind": "near", **covers, **state}


def _late(before: Body) -> Body | None:
    since, at = datetime.fromisoformat(before["near_from"]), datetime.fromisoformat(before["near_at"])
    if since >= at - NEAR - LATE_EVERY:
        return None
    covers = {"from": since - LATEST, "before": since, "after_id": before["late_to"], "upto_id": before["near_to"]}
    state = {"near_to": before["near_to"], "near_at": at, "near_from": at - NEAR, "late_to": before["near_to"]}
    return {"number": before["number"] + 1, "kind": "late", **covers, **state}


def _leaves(cursor: Any, body: Body) -> list[bytes]:
    """The leaves of the rows that this covers, packed."""
    cursor.execute(_ROWS, [body["from"], body["before"] or END, body["after_id"], body["upto_id"]])
    names = [column.name for column in cursor.description]
    rows = (dict(zip(names, row, strict=True)) for row in cursor)
    return [bytes.fromhex(row["uid"].replace("-", "")) + leaf_of(row).digest for row in rows]


def _keep(body: Body, leaves: list[bytes]) -> int:
    body |= {"version": 1, "columns": NEWEST, "rows": len(leaves), "root": root_of(leaves).hex()}
    newest = span_of_uid(UUID(bytes=max(leaves)[:UID]))[0] if leaves else None  # A uid begins with its time.
    body |= {"sealed_at": timezone.now(), "newest_at": newest}
    key = signing_key()
    text = orjson.dumps(body, option=CANONICAL)
    Checkpoint.objects.create(
        number=body["number"],
        body=text.decode(),
        signature=key.sign(text),
        public_key=public_bytes(key),
        leaves=b"".join(leaves),
        newest_at=newest,
    )
    return len(leaves)


def signing_key() -> Ed25519PrivateKey:
    """The key of GATEWAY_CHECKPOINT_KEY; else one that is made once and kept sealed in the database."""
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
    """Its public key: 32 bytes."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def forget_before(limit: date) -> int:
    """Forget the digests of rows whose partitions are dropped when calls before `limit` are; of how many checkpoints.

    The checkpoints themselves stay: each is needed to prove the next.
    """
    begin = Call.partitions.kept_from(limit)
    return Checkpoint.objects.filter(newest_at__lt=begin).exclude(leaves=None).update(leaves=None)
