"""Checkpoints of the log: each removed, changed or added row is reported."""

import io
import random
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pytest
import time_machine
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import LazySettings
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection
from django.utils import timezone

from auditlog.checkpoints import sealing, verifying
from auditlog.checkpoints.verify_export import BEGINNING, LogPeriod
from auditlog.checkpoints.verifying import Finding, verify
from auditlog.models import Call, Checkpoint
from auditlog.partitions import midnight
from auditlog.replica import NEAR
from tests.calls import call, uid_at
from tests.undone import undone

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
    """Add, change or remove one row by SQL with triggers disabled, as the owner of the database could."""
    with connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = replica")
        try:
            cursor.execute(statement, parameters)
            assert cursor.rowcount == 1
        finally:
            cursor.execute("RESET session_replication_role")


def after(statement: str, *parameters: Any) -> list[Finding]:
    """Return the findings after a change by hand, which is rolled back."""
    with undone(), connection.cursor() as cursor:
        by_hand(statement, *parameters)
        report = verifying.compare(cursor, None, LogPeriod(BEGINNING, sealing.END), None)
    return report.findings


def found() -> list[tuple[str, Any]]:
    return [(finding.what, finding.uid) for finding in verify().findings]


def test_untouched_log_is_as_it_was_sealed(sealed: list[Call]) -> None:
    report = verify()

    assert (report.findings, report.calls, report.uncovered, report.dropped) == ([], len(sealed), 0, 0)
    call()
    assert verify().uncovered == 1


def test_calls_before_the_first_checkpoint_are_sealed_too() -> None:
    first = [call(timezone.now() - age) for age in (5 * DAY, 5 * HOUR, HOUR / 60)]
    sealing.keep_up()
    sealing.keep_up()

    report = verify()
    assert (report.findings, report.calls, report.uncovered) == ([], len(first), 0)
    by_hand("DELETE FROM auditlog_call WHERE uid = %s", first[0].uid)
    assert found() == [("removed", first[0].uid)]


def test_removed_changed_and_exchanged_rows_are_named(sealed: list[Call], subtests: pytest.Subtests) -> None:
    uid, other = sealed[4].uid, uid_at(timezone.now())
    changes = {
        "duration_ms = duration_ms + 1e-9": {("changed", uid)},
        "created_at = created_at + interval '1 microsecond'": {("changed", uid)},
        "request_payload = NULL": {("changed", uid)},
        f"uid = '{other}'": {("added", other), ("removed", uid)},
    }
    for change, findings in changes.items():
        with subtests.test(change):
            named = after(f"UPDATE auditlog_call SET {change} WHERE uid = %s", uid)
            assert {(finding.what, finding.uid) for finding in named} == findings

    by_hand("DELETE FROM auditlog_call WHERE uid = %s", uid)
    now = timezone.now()
    assert found() == [("removed", uid)]
    assert str(uid) in verify().findings[0].sentence
    assert verify(since=now + HOUR).findings == []
    assert len(verify(since=now - HOUR, until=now + HOUR).findings) == 1


@pytest.mark.full
def test_added_row_is_named_whatever_its_id_and_time(sealed: list[Call], subtests: pytest.Subtests) -> None:
    """The added row has the id of a sealed row, or an id that the log never assigned."""
    columns = ", ".join(
        sorted({str(field.column) for field in Call._meta.concrete_fields} - {"id", "uid", "created_at"})
    )
    sealed_id = sealed[3].pk
    ages = {timedelta(): (sealed_id, -5, 0, 1 << 60), HOUR: (1 << 60,), 9 * DAY: (sealed_id, 1 << 60)}
    for age, number in [(age, number) for age, numbers in ages.items() for number in numbers]:
        at = timezone.now() - age
        forged = uid_at(at)
        Call.partitions.make_for(at.date())
        with subtests.test(f"{number}, {age}"):
            named = after(
                f"INSERT INTO auditlog_call (id, uid, created_at, {columns}) OVERRIDING SYSTEM VALUE"
                f" SELECT {number}, %s, %s, {columns} FROM auditlog_call WHERE uid = %s",
                *(forged, at, sealed[3].uid),
            )
            assert [(finding.what, finding.uid) for finding in named] == [("added", forged)]


def test_row_with_a_new_id_that_says_it_is_old_is_named(sealed: list[Call]) -> None:
    before = timezone.now() - 3 * HOUR
    forged = call(before, recorded_at=before)

    assert found() == [("added", forged.uid)]
    late = call(timezone.now() - HOUR, recorded_at=timezone.now())  # A long call, recorded just now.
    assert late.uid not in [uid for _, uid in found()]


def test_rewritten_or_missing_checkpoint_is_named(sealed: list[Call], subtests: pytest.Subtests) -> None:
    one = Checkpoint.objects.get(number=4)
    rewritten = one.body.replace('"rows":', '"rows":1')
    leaves = bytes(one.leaves or b"")
    with pytest.raises(IntegrityError, match="insert-only"):
        Checkpoint.objects.filter(number=4).update(body=rewritten)
    harms: list[tuple[str, str, tuple[Any, ...]]] = [
        ("Checkpoint 4 was rewritten", "UPDATE auditlog_checkpoint SET body = %s WHERE number = 4", (rewritten,)),
        ("Checkpoint 4 is missing", "DELETE FROM auditlog_checkpoint WHERE number = 4", ()),
        ("has no digests of its rows", "UPDATE auditlog_checkpoint SET leaves = NULL WHERE number = 4", ()),
        (
            "the digests of its rows differ",
            "UPDATE auditlog_checkpoint SET leaves = %s WHERE number = 4",
            (leaves[:20] + bytes([leaves[20] ^ 1]) + leaves[21:],),
        ),
    ]
    for words, statement, parameters in harms:
        with subtests.test(words):
            assert words in " ".join(finding.sentence for finding in after(statement, *parameters))


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


def kinds_made() -> list[str]:
    return [orjson.loads(one.body)["kind"] for one in Checkpoint.objects.order_by("number")]


def begin_sealing(at: datetime) -> None:
    """Make the first checkpoint, as if it had been made at this time."""
    sealing.keep_up()
    body = orjson.loads(Checkpoint.objects.get().body) | {"near_from": at - NEAR, "near_at": at}
    text = orjson.dumps(body, option=sealing.CANONICAL)
    signed = sealing.signing_key().sign(text)
    by_hand("UPDATE auditlog_checkpoint SET body = %s, signature = %s", text.decode(), signed)


def test_a_call_that_took_long_is_sealed_though_no_call_follows() -> None:
    begin_sealing(timezone.now())
    late = call(timezone.now() - 30 * HOUR, recorded_at=timezone.now())
    sealing.keep_up()
    with time_machine.travel(timezone.now() + NEAR):
        for _ in range(3):
            sealing.keep_up()

    assert kinds_made() == ["first", "near", "late"]
    assert verify().calls == 1
    by_hand("DELETE FROM auditlog_call WHERE uid = %s", late.uid)
    assert found() == [("removed", late.uid)]


def test_calls_that_took_long_are_sealed_too() -> None:
    begin_sealing(timezone.now() - 3 * HOUR)
    late, soon = call(timezone.now() - 30 * HOUR, recorded_at=timezone.now()), call()
    sealing.keep_up()
    sealing.keep_up()

    assert kinds_made() == ["first", "near", "late"]
    assert verify().calls == 2
    by_hand("DELETE FROM auditlog_call WHERE uid = %s", late.uid)
    assert found() == [("removed", late.uid)]
    assert soon.uid != late.uid


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
    """A new column needs a new list of columns, because the existing checkpoints use the existing lists."""
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
    assert verifying.verify([public]).findings == []
