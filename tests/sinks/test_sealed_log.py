"""Two hundred attacks on a sealed log of four days: `verify_log` finds each attack, and names the unproved period.

Most attacks are tried twice: with only a public key stored elsewhere, and with only a sink's copy of the log. Some
attacks are found only with the key, and others only with the copy.
"""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.models import Field
from django.utils import timezone

from accounts.models import WorkspaceSettings
from auditlog.actions import Action
from auditlog.checkpoints import sealing, verifying
from auditlog.checkpoints.received import Received
from auditlog.checkpoints.verify_export import BEGINNING, LogPeriod
from auditlog.checkpoints.verifying import Report
from auditlog.models import Call, Checkpoint, Event
from auditlog.partitions import DAY, midnight
from sinks import sending
from sinks.models import Sink
from tests.calls import call, uid_at
from tests.sinks.conftest import MakeSink
from tests.sinks.receiver import Webhook
from tests.undone import undone

pytestmark = pytest.mark.django_db(transaction=True)

DAYS = (3, 2, 1, 0)  # Days ago.
ALL_TIME = LogPeriod(BEGINNING, sealing.END)
MINUTE = timedelta(minutes=1)


def day(ago: int) -> datetime:
    return midnight(timezone.now().date() - ago * DAY)


def named(ago: int) -> str:
    """Return the name of the partition of the day `ago` days ago."""
    return f"auditlog_call_{day(ago):%Y_%m_%d}"


@contextmanager
def clock(at: datetime) -> Iterator[None]:
    """Use `at` as the current time for the checkpoints that the block makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sealing, "timezone", SimpleNamespace(now=lambda: at))
        yield


@pytest.fixture
def log(to_hook: MakeSink, hook: Webhook) -> list[str]:
    """Create four days of calls and admin events, sealed three times a day; return the sink's copy of them."""
    Call.partitions.drop_before(day(DAYS[0] + 1).date())  # Drop rows of other tests.
    now = timezone.now()
    with clock(day(DAYS[0])):
        for ago in DAYS:
            Call.partitions.make_for(day(ago).date())
        sealing.keep_up()
    for ago in DAYS:
        for minute in (1, 2, 3):
            at = min(day(ago) + minute * MINUTE, now)
            for n in range(3):
                call(at, recorded_at=at, request_payload={"n": n}, client_ip="10.0.0.1", user_email="ana@example.com")
                event = Event.objects.record(Action.TEAM_CREATED, WorkspaceSettings(pk=1), by=None, changes={"n": n})
                by_hand("UPDATE auditlog_event SET created_at = %s WHERE id = %s", at, event.pk)
            with clock(at + MINUTE / 2):
                sealing.keep_up()
    sink = to_hook(from_beginning=True)
    sending.send_undelivered(sink.pk)
    Sink.objects.all().delete()
    with clock(now):
        sealing.keep_up()
    return [json.dumps(row) for row in sorted(hook.rows, key=lambda row: row.get("time") or row["created_at"])]


def by_hand(statement: str, *parameters: Any) -> int:
    """Change rows protected by triggers, as the owner of the database can; return the number of rows."""
    with connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = replica")
        cursor.execute(statement, parameters)
        cursor.execute("RESET session_replication_role")
        return int(cursor.rowcount)


def must(number: int) -> None:
    assert number, "the attack changed nothing"


def call_of(ago: int) -> Call:
    return Call.objects.filter(created_at__gte=day(ago), created_at__lt=day(ago) + DAY).order_by("id")[4]


def event_of(ago: int) -> Event:
    return Event.objects.filter(created_at__gte=day(ago), created_at__lt=day(ago) + DAY).order_by("id")[4]


def checkpoints_of(ago: int, kind: str = "near") -> list[Checkpoint]:
    bodies = {one: orjson.loads(one.body) for one in Checkpoint.objects.order_by("number")}
    return [
        one
        for one, body in bodies.items()
        if body["kind"] == kind and body["rows"] and f"{day(ago).date()}" in body["oldest_at"]
    ]


def change_call(ago: int, change: str) -> None:
    must(by_hand(f"UPDATE auditlog_call SET {change} WHERE uid = %s", call_of(ago).uid))


def change_event(ago: int, change: str) -> None:
    must(by_hand(f"UPDATE auditlog_event SET {change} WHERE uid = %s", event_of(ago).uid))


# Another value for a column of each type.
OTHER_VALUE = {
    "BigAutoField": "{} + 1000000",
    "BooleanField": "NOT {}",
    "CharField": "CASE {} WHEN '' THEN 'x' ELSE '' END",
    "DateTimeField": "{} + interval '1 microsecond'",
    "FloatField": "coalesce({}, 0) + 1",
    "GenericIPAddressField": "inet '192.0.2.9'",
    "IntegerField": "coalesce({}, 0) + 1",
    "JSONField": """'{{"other": 1}}'""",
    "PositiveIntegerField": "{} + 1",
    "PositiveSmallIntegerField": "{} + 1",
    "UUIDField": "gen_random_uuid()",
}


def edit(field: "Field[Any, Any]", change: Callable[[int, str], None]) -> Callable[[int], None]:
    value = OTHER_VALUE[field.get_internal_type()].format(field.column)
    return lambda ago: change(ago, f"{field.column} = {value}")


def copy_call(ago: int) -> None:
    one = call_of(ago)
    names = {str(field.column) for field in Call._meta.concrete_fields} - {"uid", "created_at"}
    columns = ", ".join(sorted(names))
    at = one.created_at + timedelta(microseconds=1)
    statement = f"INSERT INTO auditlog_call (uid, created_at, {columns}) SELECT %s, %s, {columns} FROM auditlog_call"
    must(by_hand(f"{statement} WHERE uid = %s", uid_at(at), at, one.uid))


def copy_event(ago: int) -> None:
    """Give an event another uid, as if it had been deleted and a copy inserted."""
    one, other = event_of(ago), uuid4()
    must(by_hand("UPDATE auditlog_event SET uid = %s WHERE id = %s", other, one.pk))


def resign(
    one: Checkpoint,
    change: dict[str, Any],
    key: Ed25519PrivateKey,
    leaves: bytes | None = None,
    without: tuple[str, ...] = (),
) -> None:
    body = {name: value for name, value in orjson.loads(one.body).items() if name not in without} | change
    text = orjson.dumps(body, option=sealing.CANONICAL)
    kept = bytes(one.leaves or b"") if leaves is None else leaves
    must(
        by_hand(
            "UPDATE auditlog_checkpoint SET body = %s, signature = %s, public_key = %s, leaves = %s WHERE number = %s",
            *(text.decode(), key.sign(text), sealing.public_bytes(key), kept, one.number),
        )
    )


def cut_leaves(one: Checkpoint) -> bytes:
    return bytes(one.leaves or b"")[: -(sealing.UID + sealing.DIGEST)]


def resign_without_last_row(ago: int, key: Ed25519PrivateKey) -> None:
    """Remove a row, then rewrite and sign its checkpoint and all later checkpoints."""
    first = checkpoints_of(ago)[1]
    leaves = cut_leaves(first)
    rows = [leaf.packed for leaf in sealing.unpacked(leaves)]
    gone = sealing.unpacked(bytes(first.leaves or b""))[-1]
    must(by_hand("DELETE FROM auditlog_call WHERE uid = %s", gone.uid))
    resign(first, {"rows": len(rows), "root": sealing.root_of(rows).hex()}, key, leaves)
    previous = Checkpoint.objects.get(pk=first.pk)
    for one in Checkpoint.objects.filter(number__gt=first.number).order_by("number"):
        resign(one, {"previous": sha256(previous.body.encode()).hexdigest()}, key)
        previous = Checkpoint.objects.get(pk=one.pk)


def cut_tail(ago: int) -> None:
    must(by_hand("DELETE FROM auditlog_checkpoint WHERE number >= %s", checkpoints_of(ago)[1].number))


def roll_back(ago: int) -> None:
    """Restore the log to its state at two minutes after midnight, `ago` days ago."""
    at = call_of(ago).created_at
    cut_tail(ago)
    for table in ("auditlog_call", "auditlog_event"):
        must(by_hand(f"DELETE FROM {table} WHERE created_at >= %s", at))


def cut_and_seal_anew(ago: int) -> None:
    """Remove a row and the latest checkpoints, and let the gateway seal the remaining rows."""
    at = call_of(ago)
    cut_tail(ago)
    must(by_hand("DELETE FROM auditlog_call WHERE uid = %s", at.uid))
    sealing.keep_up()


def begin_anew(tables: str) -> None:
    by_hand(f"TRUNCATE {tables}")
    sealing.keep_up()


def forget_leaves(ago: int, kind: str = "near") -> None:
    numbers = [one.number for one in checkpoints_of(ago, kind)]
    must(by_hand("UPDATE auditlog_checkpoint SET leaves = NULL WHERE number = ANY(%s)", numbers))


def drop(ago: int) -> None:
    by_hand(f"DROP TABLE {named(ago)}")


def drop_all() -> None:
    for ago in DAYS:
        drop(ago)


def drop_and_forget(ago: int) -> None:
    forget_leaves(ago)
    drop(ago)


def drop_as_if_by_retention(ago: int) -> None:
    """Drop a partition, and record it as dropped by retention, signed with another key."""
    drop_and_forget(ago)
    last = Checkpoint.objects.order_by("-number")[0]
    said = {
        "number": last.number + 1,
        "kind": "dropped",
        "kept_from": (day(ago) + DAY).isoformat(),
        "previous": sha256(last.body.encode()).hexdigest(),
        "rows": 0,
        "root": sealing.root_of([]).hex(),
    }
    made = Checkpoint.objects.create(
        number=last.number + 1, body=last.body, signature=b"", public_key=b"", leaves=b"", newest_at=None
    )
    made.leaves = b""
    resign(made, said, Ed25519PrivateKey.generate())


def swap(ago: int) -> None:
    one, other = checkpoints_of(ago)[:2]
    for to, of in ((one, other), (other, one)):
        must(
            by_hand(
                "UPDATE auditlog_checkpoint SET body = %s, signature = %s, leaves = %s WHERE number = %s",
                *(of.body, bytes(of.signature), bytes(of.leaves or b""), to.number),
            )
        )


def on_checkpoint(change: Callable[[Checkpoint], object]) -> Callable[[int], None]:
    return lambda ago: void(change(checkpoints_of(ago)[1]))


def void(_: object) -> None:
    """Do nothing."""


def right_key() -> Ed25519PrivateKey:
    return sealing.signing_key()


def delete(table: str) -> Callable[[int], None]:
    return lambda ago: must(
        by_hand(f"DELETE FROM {table} WHERE created_at >= %s AND created_at < %s", day(ago), day(ago) + DAY)
    )


CALLS: dict[str, Callable[[int], None]] = {
    "drop the partition": drop,
    "detach the partition": lambda ago: void(by_hand(f"ALTER TABLE auditlog_call DETACH PARTITION {named(ago)}")),
    "truncate the partition": lambda ago: void(by_hand(f"TRUNCATE {named(ago)}")),
    "delete the day": delete("auditlog_call"),
    "delete a call": lambda ago: must(by_hand("DELETE FROM auditlog_call WHERE uid = %s", call_of(ago).uid)),
    "change how it ended": lambda ago: change_call(ago, "outcome = 'denied'"),
    "change who made it": lambda ago: change_call(ago, "user_email = 'other@example.com'"),
    "change what it said": lambda ago: change_call(ago, "request_payload = NULL"),
    "change when it was": lambda ago: change_call(ago, "created_at = created_at + interval '1 microsecond'"),
    "change when it was recorded": lambda ago: change_call(ago, "recorded_at = recorded_at + interval '1 hour'"),
    "change its id": lambda ago: change_call(ago, "id = id + 1000000"),
    "exchange its uid": lambda ago: change_call(ago, f"uid = '{uid_at(call_of(ago).created_at)}'"),
    "add a call": copy_call,
    "drop the partition and the digests": drop_and_forget,
    "drop the partition as if by retention": drop_as_if_by_retention,
}
EVENTS: dict[str, Callable[[int], None]] = {
    "delete the events of a day": delete("auditlog_event"),
    "delete an event": lambda ago: must(by_hand("DELETE FROM auditlog_event WHERE uid = %s", event_of(ago).uid)),
    "change who did it": lambda ago: change_event(ago, "actor_email = 'other@example.com'"),
    "change what changed": lambda ago: change_event(ago, """changes = '{"n": 9}'"""),
    "change when it was done": lambda ago: change_event(ago, "created_at = created_at - interval '1 day'"),
    "exchange an event": copy_event,
}
CHECKPOINTS: dict[str, Callable[[int], None]] = {
    "delete a checkpoint": on_checkpoint(
        lambda one: must(by_hand("DELETE FROM auditlog_checkpoint WHERE number = %s", one.number))
    ),
    "delete the checkpoints of a day": lambda ago: must(
        by_hand(
            "DELETE FROM auditlog_checkpoint WHERE number BETWEEN %s AND %s",
            *(checkpoints_of(ago, "events")[0].number, checkpoints_of(ago)[-1].number),
        )
    ),
    "rewrite a checkpoint": on_checkpoint(
        lambda one: must(
            by_hand(
                "UPDATE auditlog_checkpoint SET body = replace(body, '\"rows\":3', '\"rows\":2') WHERE number = %s",
                one.number,
            )
        )
    ),
    "sign with another key": on_checkpoint(lambda one: resign(one, {}, Ed25519PrivateKey.generate())),
    "put a checkpoint on another one": on_checkpoint(lambda one: resign(one, {"previous": "00" * 32}, right_key())),
    "change a checkpoint with the right key": on_checkpoint(
        lambda one: resign(one, {"near_from": f"{day(9).isoformat()}"}, right_key())
    ),
    "swap two checkpoints": swap,
    "forget digests": forget_leaves,
    "cut digests": on_checkpoint(
        lambda one: must(
            by_hand("UPDATE auditlog_checkpoint SET leaves = %s WHERE number = %s", cut_leaves(one), one.number)
        )
    ),
    "forget the digests of events": lambda ago: must(
        by_hand(
            "UPDATE auditlog_checkpoint SET leaves = NULL WHERE number = %s", checkpoints_of(ago, "events")[1].number
        )
    ),
}
# Attacks that a public key stored elsewhere reveals by the signatures alone.
BY_KEY = {"sign with another key", "drop the partition as if by retention"}
# Attacks that only a copy stored elsewhere reveals: the end is missing, or the signatures are the gateway's own.
LAST: dict[str, Callable[[int], None]] = {
    "cut the checkpoints from here on": cut_tail,
    "roll everything back": roll_back,
    "cut, remove and have it sealed anew": cut_and_seal_anew,
    "sign all later ones anew with the right key": lambda ago: resign_without_last_row(ago, right_key()),
}
TABLES: dict[str, Callable[[int], None]] = {
    "empty the calls": lambda _: void(by_hand("TRUNCATE auditlog_call")),
    "empty the events": lambda _: void(by_hand("TRUNCATE auditlog_event")),
    "empty the checkpoints": lambda _: void(by_hand("TRUNCATE auditlog_checkpoint")),
    "empty all": lambda _: void(by_hand("TRUNCATE auditlog_call, auditlog_event, auditlog_checkpoint")),
    "drop all partitions": lambda _: drop_all(),
}
RESTART: dict[str, Callable[[int], None]] = {
    "empty the checkpoints and begin anew": lambda _: begin_anew("auditlog_checkpoint"),
    "empty all and begin anew": lambda _: begin_anew("auditlog_call, auditlog_event, auditlog_checkpoint"),
}
BY_DAY = CALLS | EVENTS | CHECKPOINTS | LAST
ATTACKS = [(name, act, ago) for name, act in BY_DAY.items() for ago in DAYS]
ATTACKS += [(name, act, 0) for name, act in (TABLES | RESTART).items()]
ATTACKS += [
    (f"edit {field.column} in {model._meta.db_table}", edit(field, change), 1)
    for model, change in ((Call, change_call), (Event, change_event))
    for field in model._meta.concrete_fields
]


def after(attack: Callable[[], None], keys: list[bytes] | None, lines: list[str] | None) -> Report:
    """Return the findings after an attack, which is rolled back."""
    with undone(), connection.cursor() as cursor:
        attack()
        received = Received.read(lines) if lines is not None else None
        return verifying.compare(cursor, keys, ALL_TIME, received)


@pytest.mark.full
def test_each_of_two_hundred_attacks_is_found_with_the_time_it_leaves_unproved(log: list[str]) -> None:
    trusted = [sealing.public_bytes(sealing.signing_key())]
    assert len(ATTACKS) > 200
    for keys in (trusted, None):
        for lines in (log, None):
            assert after(lambda: None, keys, lines).findings == []

    unfound = []
    for name, act, ago in ATTACKS:
        # The key alone is enough for most attacks, as are the rows at the sink.
        by_key = (trusted, log if name in LAST | RESTART else None)
        for keys, lines in (by_key, *([(None, log)] if name not in BY_KEY else [])):
            spans = after(lambda act=act, ago=ago: act(ago), keys, lines).unproved()  # type: ignore[misc]
            if not any(span.since < day(ago) + DAY and span.until >= day(ago) for span in spans):
                unfound.append((name, ago, keys is not None, lines is not None))
    assert unfound == []


def told(words: list[str]) -> str:
    """Run `verify_log`, which must find nothing; return its output."""
    out = io.StringIO()
    call_command("verify_log", *words, stdout=out)
    return out.getvalue()


@pytest.fixture
def kept(log: list[str], tmp_path: Path) -> tuple[str, Path]:
    """Store the public key and a sink's copy as files outside the gateway."""
    key, received = tmp_path / "key.pem", tmp_path / "received.jsonl"
    key.write_text(told(["--print-key"]))
    received.write_text("\n".join(log))
    return str(key), received


def test_log_is_proved_by_the_key_and_the_file_and_says_up_to_when(kept: tuple[str, Path], log: list[str]) -> None:
    said = told(["--public-key", kept[0], "--received", str(kept[1])])

    calls, events = Call.objects.count(), Event.objects.count()
    assert f"{calls} calls and {events} admin events match" in said
    newest = orjson.loads(Checkpoint.objects.order_by("-number")[0].body)["sealed_at"]
    assert f"Sealed up to {newest}" in said
    sealed = [json.loads(line["body"])["sealed_at"] for line in map(json.loads, log) if line["log"] == "checkpoint"]
    assert f"The received checkpoints are from {min(sealed)} to {max(sealed)}: " in said
    assert "Unproved" not in said


@pytest.mark.full
def test_drops_by_retention_are_sealed_and_other_drops_are_not(kept: tuple[str, Path]) -> None:
    words = ["--public-key", kept[0], "--received", str(kept[1])]
    assert sealing.drop_before(day(1).date()) >= 1
    assert f"{Call.objects.count()} calls and" in told(words)

    drop(1)
    with pytest.raises(CommandError):
        told(words)


@pytest.mark.full
def test_file_without_a_checkpoint_is_refused(kept: tuple[str, Path], log: list[str]) -> None:
    for rows in ([], [line for line in log if json.loads(line)["log"] == "call"]):
        kept[1].write_text("\n".join(rows))
        with pytest.raises(CommandError, match="has no checkpoint") as refusal:
            told(["--received", str(kept[1])])
        assert refusal.value.returncode == 2


@pytest.mark.full
def test_rows_that_the_file_lacks_or_that_are_other_than_here_are_named_and_a_part_of_it_proves_what_it_has(
    log: list[str],
) -> None:
    for of in ("call", "event"):
        cut = [line for line in log if json.loads(line)["log"] == of][-12:-3]
        findings = verifying.verify(received=Received.read([line for line in log if line not in cut])).findings
        assert {str(one.uid) for one in findings} == {json.loads(line)["id"] for line in cut}
        assert {one.what for one in findings} == {"missing"}

    one = call_of(1)
    forged = [line.replace("ana@example.com", "eve@example.com") if str(one.uid) in line else line for line in log]
    findings = verifying.verify(received=Received.read(forged)).findings
    assert [(found.what, found.uid) for found in findings] == [("changed", one.uid)]

    # The file has one day only, or is still being written.
    for part in (log[len(log) // 2 :], log[: len(log) // 2], log[10:-10]):
        assert [one.sentence for one in verifying.verify(received=Received.read(part)).findings] == []


@pytest.mark.full
def test_checkpoint_that_does_not_follow_on_the_one_before_is_found_with_the_right_key(log: list[str]) -> None:
    trusted = [sealing.public_bytes(right_key())]
    last = Checkpoint.objects.order_by("-number")[0]
    resign(last, {"previous": "00" * 32}, right_key())
    [finding] = verifying.verify(trusted).findings
    assert finding.sentence.startswith(f"Checkpoint {last.number} does not continue the one before it")

    resign(last, {"after_id": 1}, right_key())
    [finding] = verifying.verify(trusted).findings
    assert "does not start where the one before it ends" in finding.sentence


@pytest.mark.full
def test_checkpoints_that_were_cut_off_are_found_by_the_file_with_the_time_they_proved(log: list[str]) -> None:
    """Some of the deleted checkpoints are newer than the sink's copy, so the copy cannot reveal them."""
    newest = max(row["number"] for row in map(json.loads, log) if row.get("log") == "checkpoint")
    kept = [orjson.loads(one.body) for one in Checkpoint.objects.filter(number__lte=newest).order_by("number")]
    assert Checkpoint.objects.filter(number__gt=newest).exists()
    by_hand("DELETE FROM auditlog_checkpoint WHERE number > %s", kept[-3]["number"])

    report = verifying.verify(received=Received.read(log))

    said = {one.sentence: one.unproved for one in report.findings}
    since = datetime.fromisoformat(kept[-3]["sealed_at"])
    for body in kept[-2:]:
        sentence = f"Checkpoint {body['number']} was received by the sink, but is not in the database."
        assert said[sentence] == (since, datetime.fromisoformat(body["sealed_at"]))


@pytest.mark.full
def test_chain_of_an_earlier_release_is_proved_and_says_when_events_are_not(log: list[str]) -> None:
    """The earlier release sealed only calls, and did not seal partitions dropped by retention."""
    by_hand("DELETE FROM auditlog_checkpoint WHERE body LIKE %s", '%"kind":"events"%')
    previous = None
    for number, one in enumerate(Checkpoint.objects.order_by("number"), 1):
        before = sha256(previous.encode()).hexdigest() if previous else ""
        resign(
            one, {"number": number, "previous": before}, right_key(), without=("events_to", "kept_from", "oldest_at")
        )
        by_hand("UPDATE auditlog_checkpoint SET number = %s WHERE number = %s", number, one.number)
        previous = Checkpoint.objects.get(number=number).body
    out = told([])
    assert "0 admin events match" in out
    assert f"In no checkpoint: admin events from {day(DAYS[0]):%Y-%m-%d}" in out

    sealing.keep_up()
    assert f"{Event.objects.count()} admin events match" in told([])
    assert "Sealed late" in told([])
    change_event(2, "actor_email = 'other@example.com'")
    assert [one.what for one in verifying.verify().findings] == ["changed"]
