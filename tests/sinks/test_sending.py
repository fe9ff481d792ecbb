"""A sink gets every committed row at least once, whatever receiver and writers do."""

import json
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import psycopg
import pytest
from django.db import connection
from django.utils import timezone

from auditlog.checkpoints import sealing
from auditlog.checkpoints.received import Received
from auditlog.checkpoints.verifying import verify
from auditlog.models import Call, Checkpoint, Event
from auditlog.replica import NEAR
from gatewayadmin.config import database
from sinks import reading, receivers, sending
from sinks.models import Sink
from tests.calls import call, uid_at
from tests.eventually import eventually
from tests.sinks.conftest import MakeSink
from tests.sinks.receiver import Answer, Request, Webhook, unreadable

pytestmark = pytest.mark.django_db(transaction=True)

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
INSERT = """
INSERT INTO auditlog_call (uid, created_at, correlation_id, method, feature_type, feature_name, outcome, deny_reason,
    http_status, host_name, gateway_name, server_name, user_email, identity_label, token_name, token_prefix,
    duration_ms, request_bytes, response_bytes, user_agent, client_name, client_version, protocol_version)
VALUES (%(uid)s, %(at)s, %(uid)s, 'tools/call', '', '', 'ok', '', 200, '', '', '', '', '', '', '', 1, 0, 0, '', '',
    '', '')
"""


def write(writer: psycopg.Connection[Any], at: datetime | None = None) -> str:
    at = at or timezone.now()
    uid = uid_at(at)
    writer.execute(INSERT, {"uid": uid, "at": at})
    return str(uid)


def now(sink: Sink) -> Sink:
    return Sink.objects.get(pk=sink.pk)


@pytest.mark.full
def test_rows_come_signed_and_with_payloads_to_sinks_that_ask_for_them(to_hook: MakeSink, hook: Webhook) -> None:
    old = call(timezone.now() - 9 * DAY)
    sink = to_hook()
    whole = to_hook(name="Whole", from_beginning=True, sends_payloads=True, sends_events=False)
    made = call(feature_name="echo", request_payload={"a": 10**30})

    assert sending.send_undelivered(sink.pk) >= 1

    [row] = hook.of("call")
    assert row["id"] == str(made.uid)
    assert row["feature_name"] == "echo"
    assert "request_payload" not in row
    assert {event["action"] for event in hook.of("event")} == {"sink.created"}
    assert now(sink).status == "current"
    assert sending.send_undelivered(sink.pk) == 0
    hook.rows.clear()
    assert sending.send_undelivered(whole.pk) >= 2
    payloads = {row["id"]: row["request_payload"] for row in hook.rows}
    assert (payloads[str(old.uid)], payloads[str(made.uid)]) == (None, {"a": 10**30})
    assert all(request.is_signed() for request in hook.requests)


def test_unexpected_errors_are_reported_and_retried_later(to_hook: MakeSink, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = to_hook(sends_events=False)
    call()

    def broken(self: receivers.Webhook, body: bytes) -> dict[str, str]:
        raise RuntimeError

    monkeypatch.setattr(receivers.Webhook, "_headers", broken)
    assert sending.send_undelivered(sink.pk) == 0

    assert (now(sink).status, now(sink).failures) == ("failing", 1)
    assert now(sink).retry_at is not None


@pytest.mark.full
def test_row_that_commits_after_later_ones_is_sent(
    to_hook: MakeSink, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "WRITERS_S", 0)
    Call.partitions.make_for(datetime.now(UTC).date())
    sink = to_hook(sends_events=False)
    with psycopg.connect(database.conninfo()) as slow, psycopg.connect(database.conninfo()) as quick:
        first = write(slow)
        second = write(quick)
        quick.commit()

        assert sending.send_undelivered(sink.pk) == 0  # A row with a lower id may still be committed.
        slow.commit()

    assert sending.send_undelivered(sink.pk) == 2
    assert set(hook.acknowledged) == {first, second}


@pytest.mark.full
def test_calls_that_took_long_are_sent_with_the_next_stretch(to_hook: MakeSink, hook: Webhook) -> None:
    sink = to_hook(sends_events=False)
    late = call(timezone.now() - NEAR - 5 * HOUR)
    call()
    sending.send_undelivered(sink.pk)
    assert str(late.uid) not in hook.acknowledged

    Sink.objects.update(near_from=timezone.now() - NEAR - HOUR)  # Simulate time passing.
    call()
    sending.send_undelivered(sink.pk)

    assert hook.acknowledged == {str(uid): 1 for uid in Call.objects.values_list("uid", flat=True)}


@pytest.mark.full
def test_paused_for_long_goes_on_where_it_was(to_hook: MakeSink, hook: Webhook) -> None:
    """The sink was disabled for six days. Every second call is dated 40 hours earlier than the call stored before."""
    sink = to_hook(sends_events=False)
    then = timezone.now() - 6 * DAY
    Sink.objects.update(calls_at=then, near_from=then - NEAR)
    sink.disable(by=None)
    for hours in range(0, 140, 7):
        call(then + hours * HOUR)
        call(then + hours * HOUR - 40 * HOUR)
    assert sending.due() == []

    now(sink).enable(by=None)
    while sending.send_undelivered(sink.pk):
        pass

    assert hook.acknowledged == {str(uid): 1 for uid in Call.objects.values_list("uid", flat=True)}


@pytest.mark.full
def test_batches_are_cut_by_number_and_by_size(
    to_hook: MakeSink, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_ROWS", 3)
    monkeypatch.setattr(reading, "MOST_BYTES", 2500)
    sink = to_hook(sends_events=False)
    at = timezone.now()
    made = {str(call(at).uid) for _ in range(11)}

    assert sending.send_undelivered(sink.pk) == 11
    assert set(hook.acknowledged) == made
    assert max(len(request.rows) for request in hook.requests) <= 3


def test_checkpoints_come_with_the_calls(to_hook: MakeSink, hook: Webhook) -> None:
    sink = to_hook(sends_events=False)
    sealing.keep_up()
    call()
    sealing.keep_up()

    sending.send_undelivered(sink.pk)

    kept = {one.number: one.body for one in Checkpoint.objects.all()}
    assert {line["number"]: line["body"] for line in hook.of("checkpoint")} == kept
    assert {orjson.loads(body)["kind"] for body in kept.values()} == {"first", "events", "near"}
    came = [orjson.dumps(row).decode() for row in hook.rows]
    assert verify(received=Received.read([*came, *came])).findings == []
    assert sending.send_undelivered(sink.pk) == 0


def test_a_checkpoint_that_came_twice_as_another_one_is_told_whichever_came_last(db: None) -> None:
    """An attacker with the signing key can rewrite checkpoints that a sink already has, and send them again."""
    sealing.keep_up()
    one = Checkpoint.objects.get(number=1)
    other = one.body.replace('"rows":0', '"rows":1')
    lines = [json.dumps({"log": "checkpoint", "number": one.number, "body": body}) for body in (one.body, other)]

    for received in (lines, lines[::-1]):
        told = [finding.sentence for finding in verify(received=Received.read(received)).findings]
        assert told == [f"Checkpoint {one.number} was rewritten: the sink received another one."]


def says(status: int, **headers: str) -> Answer:
    return lambda request: request.say(status, **headers)


def garbage(request: Request) -> None:
    request.send(b"\x00\xff not HTTP at all\r\n\r\n")


def nothing(request: Request) -> None:
    request.handler.connection.shutdown(socket.SHUT_RDWR)


REFUSALS: list[tuple[Answer, str]] = [
    (says(500), "It answered 500."),
    (unreadable(503), "It answered 503."),
    (says(503, Retry_After="Mon, 01 Jan 99999999999 00:00:00 GMT"), "It answered 503."),
    (says(307, Location="http://127.0.0.1:9/"), "redirects are not followed"),
    (garbage, "does not answer in HTTP"),
    (nothing, "does not answer in HTTP"),
]


@pytest.mark.full
def test_refused_rows_are_kept_and_sent_again(to_hook: MakeSink, hook: Webhook, subtests: pytest.Subtests) -> None:
    for number, (answer, words) in enumerate(REFUSALS):
        sink = to_hook(name=f"Sink {number}", sends_events=False)
        made = call()
        hook.requests.clear()
        hook.script = [answer, answer, unreadable(200)]
        with subtests.test(f"{number}: {words}"):
            assert sending.send_undelivered(sink.pk) == 0
            refused = now(sink)
            assert words in refused.last_error
            assert refused.status == "failing"
            assert refused.retry_at is not None
            assert refused.waiting_since == made.created_at
            assert sink.pk not in sending.due()
            assert sending.send_undelivered(sink.pk) == 0
            assert now(sink).failures == 2

            assert sending.send_undelivered(sink.pk) == 1, "an acknowledgement counts whatever its body is"
            assert now(sink).status == "current"
            assert sending.send_undelivered(sink.pk) == 0
            assert [request.body for request in hook.requests] == [hook.requests[0].body] * 3
            assert [row["id"] for row in hook.requests[2].rows] == [str(made.uid)]
        Sink.objects.all().delete()


@pytest.mark.full
def test_retry_after_is_waited_for_unless_somebody_sends_now(to_hook: MakeSink, hook: Webhook) -> None:
    sink = to_hook(sends_events=False)
    made = call()
    for refuses in (says, unreadable):
        hook.script = [refuses(429, Retry_After="1200")]
        sending.send_undelivered(sink.pk)
        retry_at = now(sink).retry_at
        assert retry_at is not None
        assert timedelta(minutes=19) < retry_at - timezone.now() <= timedelta(minutes=20)
    assert sink.pk not in sending.due()

    assert now(sink).send_now(by=None)

    assert sink.pk in sending.due()
    assert sending.send_undelivered(sink.pk) == 1
    assert list(hook.acknowledged) == [str(made.uid)]
    assert not now(sink).send_now(by=None), "nothing waited any more"
    assert Event.objects.filter(action="sink.sent_now").count() == 1


@pytest.mark.full
def test_too_large_batches_are_split_in_halves(to_hook: MakeSink, hook: Webhook) -> None:
    sink = to_hook(sends_events=False)
    for _ in range(8):
        call()
    hook.script = [says(413), unreadable(413)]

    assert sending.send_undelivered(sink.pk) == 8
    assert [len(request.rows) for request in hook.requests] == [8, 4, 2, 2, 2, 2]


def refuse_marked(rows: list[dict[str, Any]]) -> int | None:
    return 422 if any(row.get("feature_name", "").startswith("bad") for row in rows) else None


@pytest.mark.full
def test_row_that_is_refused_for_good_keeps_no_other_waiting(to_hook: MakeSink, hook: Webhook) -> None:
    sink = to_hook(sends_events=False)
    names = ["a", "bad", "b", "c", "bad too", "d", "e"]
    made = {name: str(call(feature_name=name).uid) for name in names}
    hook.refuses = refuse_marked

    assert sending.send_undelivered(sink.pk) == 5

    assert set(hook.acknowledged) == {uid for name, uid in made.items() if "bad" not in name}
    told = Event.objects.filter(action="sink.row_refused").order_by("pk")
    assert [event.changes["row"] for event in told] == [made["bad"], made["bad too"]]
    assert told[0].changes["answer"] == "It answered 422."
    state = now(sink)
    assert (state.refused, state.status, state.delivered) == (2, "current", 5)
    assert made["bad too"] in state.last_error


def refusing(status: int) -> Callable[[list[dict[str, Any]]], int]:
    return lambda rows: status


@pytest.mark.full
def test_receiver_that_refuses_everything_loses_no_row(to_hook: MakeSink, hook: Webhook) -> None:
    """If the receiver refuses even a test line, no row is at fault. 401 and 429 never mean that a row is at fault."""
    sink = to_hook(sends_events=False)
    made = {str(call().uid) for _ in range(5)}
    for status in (400, 404, 413, 401, 403, 408, 429):
        hook.refuses = refusing(status)
        before = len(hook.requests)
        assert sending.send_undelivered(sink.pk) == 0
        assert (now(sink).status, now(sink).refused) == ("failing", 0), status
        assert (len(hook.requests) - before == 1) == (status in (401, 403, 408, 429)), status

    hook.refuses = lambda rows: None
    assert sending.send_undelivered(sink.pk) == 5
    assert set(hook.acknowledged) == made


@pytest.mark.full
def test_a_sink_that_refuses_very_many_rows_fails(
    to_hook: MakeSink, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "MOST_REFUSED", 2)
    sink = to_hook()
    hook.refuses = lambda rows: 400 if rows[0]["log"] != "test" else None
    for _ in range(4):
        call()

    sending.send_undelivered(sink.pk)

    assert (now(sink).refused, now(sink).status) == (2, "failing")


def test_event_that_a_row_was_refused_makes_no_further_one(to_hook: MakeSink, hook: Webhook) -> None:
    sink = to_hook(sends_calls=False)
    hook.refuses = lambda rows: 400 if rows[0]["log"] == "event" else None

    sending.send_undelivered(sink.pk)

    assert Event.objects.filter(action="sink.row_refused").count() == 1  # About the event of creating the sink.
    assert now(sink).refused == 2


@pytest.mark.full
def test_waiting_for_a_receiver_holds_no_connection(to_hook: MakeSink, hook: Webhook) -> None:
    held: list[int] = []

    def look(request: Request) -> None:
        """Note how many connections of the sink are open. A closed one disappears from PostgreSQL after a moment."""
        with psycopg.connect(database.conninfo(), autocommit=True) as other:
            for _ in range(100):
                found = other.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'gateway sink'")
                held[:] = found.fetchone() or ()
                if held == [0]:
                    break
                time.sleep(0.05)
        request.say(204)

    sink = to_hook(sends_events=False)
    call()
    hook.script = [look]

    assert sending.send_undelivered(sink.pk) == 1
    assert held == [0]


@pytest.mark.full
def test_a_leased_sink_is_nobody_elses_until_the_lease_ends(to_hook: MakeSink, hook: Webhook) -> None:
    """The previous process was killed while waiting for the receiver, and still holds the lease."""
    sink = to_hook(sends_events=False)
    call()
    with reading.leased_reader(sink.pk) as reader:
        assert reader is not None
        assert sending.send_undelivered(sink.pk) == 0
    Sink.objects.update(looked_at=None)
    assert sending.due() == []
    assert sending.send_undelivered(sink.pk) == 0

    Sink.objects.update(claimed_until=timezone.now())
    assert sending.due() == [sink.pk]
    assert sending.send_undelivered(sink.pk) == 1


@pytest.mark.full
def test_few_sinks_are_served_at_once(to_hook: MakeSink, hook: Webhook, eventually_sent: Any) -> None:
    over = threading.Event()

    def wait(request: Request) -> None:
        over.wait(5)
        request.say(204)

    hook.script = [wait] * 8
    for n in range(8):
        to_hook(name=f"Sink {n}")
    sending.start_due()
    sending.start_due()

    try:
        assert len(sending._threads) == 4
    finally:
        over.set()


@pytest.mark.full
def test_slow_receiver_is_not_waited_for_longer_than_a_delivery_may_take(
    to_hook: MakeSink, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receivers, "SECONDS", 0.3)
    sink = to_hook(sends_events=False)
    call()
    over = threading.Event()

    def drip(request: Request) -> None:
        """Send one byte at a time, forever."""
        request.handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not over.wait(0.05):
            request.handler.wfile.write(b"X")
            request.handler.wfile.flush()

    hook.script = [drip]
    assert sending.send_undelivered(sink.pk) == 0
    over.set()
    assert "did not answer in time" in now(sink).last_error


@pytest.mark.full
def test_a_late_process_does_not_move_the_sink_back(to_hook: MakeSink, hook: Webhook) -> None:
    """The late process's lease has expired, so it can no longer change the sink's position."""
    sink = to_hook(sends_events=False)
    call()
    with reading.leased_reader(sink.pk) as reader:
        assert reader is not None
        stale = now(sink)
        batch = reader.next(stale)
        assert batch is not None
        reader.release()
    sending.send_undelivered(sink.pk)
    moved = now(sink).calls_to
    with reading.leased_reader(sink.pk) as reader:
        assert reader is not None
        assert not reader.move(stale, batch.then)
    assert now(sink).calls_to == moved


def test_dropped_rows_are_told_by_number_and_the_sink_goes_on(to_hook: MakeSink, hook: Webhook) -> None:
    sink = to_hook(sends_events=False)
    then = timezone.now() - 9 * DAY
    Sink.objects.update(calls_at=then, near_from=then - NEAR)
    sink.disable(by=None)
    for days in (8, 7, 2):
        call(timezone.now() - days * DAY)
    limit = (timezone.now() - 5 * DAY).date()

    assert sending.drop_before(limit) == 2
    Call.partitions.drop_before(limit)
    now(sink).enable(by=None)
    sending.send_undelivered(sink.pk)

    told = Event.objects.get(action="sink.rows_dropped")
    assert told.changes["calls"] == 2
    assert told.target_id == str(sink.pk)
    assert len(hook.acknowledged) == 1
    assert now(sink).dropped_before is not None
    assert sending.drop_before(limit) == 0
    assert Event.objects.filter(action="sink.rows_dropped").count() == 1


def test_partitions_that_somebody_else_dropped_are_told_of(to_hook: MakeSink, hook: Webhook) -> None:
    sink = to_hook(sends_events=False)
    then = timezone.now() - 9 * DAY
    Sink.objects.update(calls_at=then, near_from=then - NEAR)
    call(timezone.now() - 8 * DAY)
    call()
    Call.partitions.drop_before((timezone.now() - 5 * DAY).date())

    sending.send_undelivered(sink.pk)

    assert Event.objects.get(action="sink.rows_dropped").changes["calls"] == "unknown"
    assert len(hook.acknowledged) == 1


def test_a_sink_that_begins_with_the_oldest_call_has_lost_none(to_hook: MakeSink, hook: Webhook) -> None:
    day = (timezone.now() - 8 * DAY).replace(hour=0, minute=1)
    call(day)
    Call.partitions.drop_before(day.date())
    sink = to_hook(from_beginning=True, sends_events=False)

    sending.send_undelivered(sink.pk)

    assert not Event.objects.filter(action="sink.rows_dropped").exists()
    assert len(hook.acknowledged) == 1


def test_sinks_that_hang_or_are_down_keep_no_other_waiting(
    to_hook: MakeSink, hook: Webhook, eventually_sent: Callable[[Sink], None]
) -> None:
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        stuck = to_hook(name="Deaf", address=f"http://127.0.0.1:{deaf.getsockname()[1]}/", sends_events=False)
        down = to_hook(name="Down", address="http://127.0.0.1:9/", sends_events=False)
        sink = to_hook(sends_events=False)
        call()
        sending.start_due()
        eventually_sent(sink)
        assert now(stuck).last_delivered_at is None
        eventually(lambda: now(down).last_error)
    over.set()
    assert now(down).last_error == "It cannot be reached: it refused the connection: nothing listens there."


@pytest.fixture
def eventually_sent() -> Any:
    yield lambda sink: eventually(lambda: now(sink).last_delivered_at)
    for thread in list(sending._threads.values()):
        thread.join()
    connection.close()
    time.sleep(0)
