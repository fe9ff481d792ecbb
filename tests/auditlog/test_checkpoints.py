"""Checkpoints of the log: each removed, changed or added row is reported."""

import io
import random
from base64 import b64encode
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import LazySettings
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection
from django.utils import timezone

from auditlog.checkpoints import sealing, verifying
from auditlog.checkpoints.verifying import verify
from auditlog.models import Call, Checkpoint
from auditlog.partitions import midnight
from auditlog.replica import NEAR
from tests.calls import call, uid_at

pytestmark = pytest.mark.django_db(transaction=True)

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def sealed() -> list[Call]:
    """Some calls, covered by some checkpoints."""
    sealing.keep_up()
    made = []
    for n in range(5):
        made += [call(request_payload={"b": n, "a": [1.5, None]}, client_ip="10.0.0.1") for _ in range(n + 1)]
        sealing.keep_up()
    return made


def by_hand(statement: str, *parameters: Any) -> None:
    """Run SQL as the owner of the database, for whom triggers can be off."""
    with connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = replica")
        try:
            cursor.execute(statement, parameters)
            assert cursor.rowcount == 1
        finally:
            cursor.execute("RESET session_replication_role")


def found() -> list[tuple[str, Any]]:
    return [(finding.what, finding.uid) for finding in verify().findings]


def test_untouched_log_is_as_it_was_sealed(sealed: list[Call]) -> None:
    report = verify()

    assert (report.findings, report.calls, report.uncovered, report.dropped) == ([], len(sealed), 0, 0)
    call()
    assert verify().uncovered == 1


def test_removed_row_is_named(sealed: list[Call]) -> None:
    by_hand("DELETE FROM auditlog_call WHERE uid = %s", sealed[4].uid)

    assert found() == [("removed", sealed[4].uid)]
    assert str(sealed[4].uid) in verify().findings[0].sentence


@pytest.mark.parametrize(
    "change",
    [
        "outcome = 'denied'",
        "duration_ms = duration_ms + 1e-9",
        "recorded_at = recorded_at + interval '1 microsecond'",
        "created_at = created_at + interval '1 microsecond'",
        "request_payload = NULL",
        "user_email = 'other@example.com'",
    ],
)
def test_changed_row_is_named(change: str, sealed: list[Call]) -> None:
    by_hand(f"UPDATE auditlog_call SET {change} WHERE uid = %s", sealed[7].uid)

    assert found() == [("changed", sealed[7].uid)]


@pytest.mark.full
@pytest.mark.parametrize("age", [timedelta(), 9 * DAY], ids=["now", "old"])
def test_row_added_among_sealed_ones_is_named(age: timedelta, sealed: list[Call]) -> None:
    at = timezone.now() - age
    Call.partitions.make_for(at.date())
    known = {str(field.column) for field in Call._meta.concrete_fields}
    others = ", ".join(sorted(known - {"uid", "created_at"}))
    statement = (
        f"INSERT INTO auditlog_call (uid, created_at, {others}) "
        f"SELECT %s, %s, {others} FROM auditlog_call WHERE uid = %s"
    )
    forged = uid_at(at)
    by_hand(statement, forged, at, sealed[3].uid)

    assert found() == [("added", forged)]


@pytest.mark.parametrize(
    ("number", "age"),
    [(-5, timedelta()), (0, timedelta()), (1 << 60, timedelta()), (1 << 60, HOUR), (1 << 60, 9 * DAY)],
)
def test_row_added_outside_every_range_is_named(number: int, age: timedelta, sealed: list[Call]) -> None:
    """The added row has an id that the log never assigned, so no checkpoint covers the row."""
    at = timezone.now() - age
    Call.partitions.make_for(at.date())
    known = {str(field.column) for field in Call._meta.concrete_fields}
    others = ", ".join(sorted(known - {"id", "uid", "created_at"}))
    forged = uid_at(at)
    by_hand(
        f"INSERT INTO auditlog_call (id, uid, created_at, {others}) OVERRIDING SYSTEM VALUE"
        f" SELECT %s, %s, %s, {others} FROM auditlog_call WHERE uid = %s",
        *(number, forged, at, sealed[3].uid),
    )

    assert found() == [("added", forged)]


def test_row_with_a_new_id_that_says_it_is_old_is_named(sealed: list[Call]) -> None:
    before = timezone.now() - 3 * HOUR
    forged = call(before, recorded_at=before)

    assert found() == [("added", forged.uid)]
    late = call(timezone.now() - HOUR, recorded_at=timezone.now())  # A long call, recorded just now.
    assert late.uid not in [uid for _, uid in found()]


def test_log_without_any_checkpoint_is_not_proved(key_file: Path) -> None:
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE auditlog_checkpoint")

    with pytest.raises(CommandError, match="1 finding"):
        call_command("verify_log", "--public-key", str(key_file), stdout=io.StringIO())
    assert [finding.what for finding in verify().findings] == ["checkpoint"]


def test_uid_that_was_exchanged_is_named_twice(sealed: list[Call]) -> None:
    other = uid_at(timezone.now())
    by_hand("UPDATE auditlog_call SET uid = %s WHERE uid = %s", other, sealed[2].uid)

    assert set(found()) == {("added", other), ("removed", sealed[2].uid)}


def test_rewritten_checkpoint_is_refused(sealed: list[Call]) -> None:
    one = Checkpoint.objects.get(number=4)
    rewritten = one.body.replace('"rows":', '"rows":1')
    with pytest.raises(IntegrityError, match="insert-only"):
        Checkpoint.objects.filter(number=4).update(body=rewritten)
    by_hand("UPDATE auditlog_checkpoint SET body = %s WHERE number = 4", rewritten)

    assert "Checkpoint 4 was rewritten" in " ".join(finding.sentence for finding in verify().findings)


def test_checkpoint_signed_by_another_key_is_refused(sealed: list[Call]) -> None:
    """An attacker with the database can create a key and sign the changed rows again."""
    trusted = [sealing.public_bytes(sealing.signing_key())]
    assert verify(trusted).findings == []
    other = Ed25519PrivateKey.generate()
    last = Checkpoint.objects.order_by("-number")[0]
    by_hand("DELETE FROM auditlog_call WHERE uid = %s", sealed[-1].uid)
    kept = bytes(last.leaves or b"")[: -(sealing.UID + sealing.DIGEST)]
    body = orjson.loads(last.body)
    leaves = [leaf.packed for leaf in sealing.unpacked(kept)]
    body |= {"rows": len(leaves), "root": sealing.root_of(leaves).hex()}
    text = orjson.dumps(body, option=sealing.CANONICAL)
    by_hand(
        "UPDATE auditlog_checkpoint SET body = %s, signature = %s, public_key = %s, leaves = %s WHERE number = %s",
        *(text.decode(), other.sign(text), sealing.public_bytes(other), kept, last.number),
    )

    assert verify().findings == []  # The database alone does not reveal the attack.
    assert [finding.what for finding in verify(trusted).findings] == ["checkpoint"]


@pytest.mark.full
def test_checkpoint_that_was_taken_out_or_moved_is_told(sealed: list[Call]) -> None:
    by_hand("DELETE FROM auditlog_checkpoint WHERE number = %s", 3)

    assert verify().findings[0].sentence.startswith("Checkpoint 3 is missing")


@pytest.mark.full
def test_digests_that_were_rewritten_are_refused(sealed: list[Call]) -> None:
    one = Checkpoint.objects.get(number=5)
    leaves = bytes(one.leaves or b"")
    Checkpoint.objects.filter(pk=5).update(leaves=leaves[:20] + bytes([leaves[20] ^ 1]) + leaves[21:])

    assert "the digests of its rows differ" in verify().findings[0].sentence


def test_digests_that_were_taken_away_from_rows_that_are_kept_are_told(sealed: list[Call]) -> None:
    Checkpoint.objects.filter(pk=5).update(leaves=None)

    assert "has no digests of its rows" in verify().findings[0].sentence


def test_calls_that_took_long_are_sealed_too() -> None:
    sealing.keep_up()
    first = Checkpoint.objects.get()
    body = orjson.loads(first.body)
    before = timezone.now() - 3 * HOUR  # Simulate three hours passing.
    body |= {"near_from": before - NEAR, "near_at": before}
    text = orjson.dumps(body, option=sealing.CANONICAL)
    signed = sealing.signing_key().sign(text)
    by_hand("UPDATE auditlog_checkpoint SET body = %s, signature = %s", text.decode(), signed)
    late, soon = call(timezone.now() - 30 * HOUR, recorded_at=timezone.now()), call()
    sealing.keep_up()
    sealing.keep_up()

    kinds = [orjson.loads(one.body)["kind"] for one in Checkpoint.objects.order_by("number")]
    assert kinds == ["first", "near", "late"]
    assert verify().calls == 2
    by_hand("DELETE FROM auditlog_call WHERE uid = %s", late.uid)
    assert found() == [("removed", late.uid)]
    assert soon.uid != late.uid


def test_span_is_compared_alone(sealed: list[Call]) -> None:
    by_hand("DELETE FROM auditlog_call WHERE uid = %s", sealed[0].uid)
    now = timezone.now()

    assert verify(since=now + HOUR).findings == []
    assert len(verify(since=now - HOUR, until=now + HOUR).findings) == 1


@pytest.mark.full
def test_rows_whose_partition_was_dropped_are_counted_and_no_finding(sealed: list[Call]) -> None:
    sealing.drop_before((timezone.now() - DAY).date())  # Drop rows of other tests.
    assert verify().calls == len(sealed)
    tomorrow = (timezone.now() + DAY).date()
    assert sealing.drop_before(tomorrow) > 0
    body = orjson.loads(Checkpoint.objects.order_by("-number")[0].body)
    assert body["kind"] == "dropped"
    assert f"auditlog_call_{timezone.now():%Y_%m_%d}" in body["partitions"]
    report = verify()
    assert (report.findings, report.calls, report.kept_from) == ([], 0, midnight(tomorrow))
    assert not Checkpoint.objects.exclude(newest_at=None).exclude(leaves=None).exists()
    assert sealing.drop_before(tomorrow) == 0
    assert Checkpoint.objects.filter(number__gt=body["number"]).count() == 0
    Call.partitions.make_ahead()  # Restore the partitions that other tests need.


def test_row_whose_uid_tells_no_time_is_sealed_as_well() -> None:
    sealing.keep_up()
    odd = call()
    by_hand("UPDATE auditlog_call SET uid = %s WHERE uid = %s", UUID(int=2**128 - 1), odd.uid)

    assert sealing.keep_up() == 1
    assert (verify().findings, verify().calls) == ([], 1)
    by_hand("DELETE FROM auditlog_call WHERE uid = %s", UUID(int=2**128 - 1))
    assert found() == [("removed", UUID(int=2**128 - 1))]


def test_many_rows_make_several_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "MOST_ROWS", 3)
    sealing.keep_up()
    for _ in range(8):
        call()

    assert sealing.keep_up() == 8
    assert Checkpoint.objects.count() == 4
    assert verify().calls == 8


def test_tree_is_that_of_the_standard() -> None:
    """Compare the tree with the definition in RFC 9162 section 2.1.1."""

    def mth(entries: list[bytes]) -> bytes:
        if not entries:
            return sha256().digest()
        if len(entries) == 1:
            return sha256(b"\x00" + entries[0]).digest()
        k = 1 << (len(entries) - 1).bit_length() - 1
        return sha256(b"\x01" + mth(entries[:k]) + mth(entries[k:])).digest()

    chance = random.Random(1)
    for size in (*range(20), 33, 100):
        entries = [chance.randbytes(40) for _ in range(size)]
        assert sealing.root_of(entries) == mth(entries)


def test_leaf_tells_every_column_of_a_row() -> None:
    """A new column needs a new version of the column list; existing versions never change."""
    assert set(sealing.CALL_COLUMNS[sealing.NEWEST]) == {field.column for field in Call._meta.concrete_fields}


@pytest.mark.full
def test_checkpoint_that_tells_of_fewer_columns_still_proves_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints made before the log stored traces cover fewer columns."""
    with monkeypatch.context() as before:
        newest, first = (sealing.columns_of(version, sealing.TEXTS) for version in (sealing.NEWEST, 1))
        before.setattr(sealing, "_ROWS", sealing._ROWS.replace(newest, first))
        before.setattr(sealing, "NEWEST", 1)
        sealing.keep_up()
        call(trace_id="ab" * 16)
        sealing.keep_up()
    later = call(trace_id="cd" * 16)
    sealing.keep_up()
    assert [orjson.loads(each.body)["columns"] for each in Checkpoint.objects.all()] == [1, 1, 5]
    assert verify().findings == []

    by_hand("UPDATE auditlog_call SET trace_id = %s WHERE uid = %s", "ef" * 16, later.uid)

    assert found() == [("changed", later.uid)]


@pytest.fixture
def key_file(tmp_path: Path, sealed: list[Call]) -> Path:
    out = io.StringIO()
    call_command("verify_log", "--print-key", stdout=out)
    path = tmp_path / "key.pem"
    path.write_text(out.getvalue())
    return path


@pytest.mark.full
def test_command_names_what_it_finds(key_file: Path, sealed: list[Call]) -> None:
    out = io.StringIO()
    call_command("verify_log", "--public-key", str(key_file), stdout=out)
    assert f"{len(sealed)} calls and 0 admin events match" in out.getvalue()

    by_hand("DELETE FROM auditlog_call WHERE uid = %s", sealed[1].uid)
    with pytest.raises(CommandError, match="1 finding"):
        call_command("verify_log", "--public-key", str(key_file), stdout=out)
    assert f"Call {sealed[1].uid}" in out.getvalue()


def test_key_of_the_environment_signs(settings: LazySettings) -> None:
    settings.CHECKPOINT_KEY = bytes(range(32))
    sealing.keep_up()

    public = Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key().public_bytes_raw()
    assert bytes(Checkpoint.objects.get().public_key) == public
    assert b64encode(public)
    assert verifying.verify([public]).findings == []
