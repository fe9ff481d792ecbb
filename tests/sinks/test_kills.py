"""kill -9 of senders at any time, with several writers: no row is missing at the receiver."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import psycopg
import pytest
from django.db import connection
from django.utils import timezone

from auditlog.models import Call, Event
from gatewayadmin.config import database
from sinks import reading
from sinks.models import Sink
from tests.collector import collecting
from tests.eventually import eventually
from tests.sinks.conftest import KEYS, Bucket, MakeSink
from tests.sinks.receiver import Request, Webhook
from tests.sinks.test_sending import write
from tests.workspace import ROOT

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.full]

KILLS = 8
WRITERS = 3
WHOLE = {"SENDER_MOST_ROWS": str(reading.MOST_ROWS)}  # Deliver the remaining rows in one batch.


def sender(**more: str) -> subprocess.Popen[bytes]:
    """Start another sender, on the tests' PostgreSQL."""
    settings = connection.settings_dict
    own = {"SENDER_DATABASE": settings["NAME"], "DJANGO_SETTINGS_MODULE": "gatewayadmin.settings", **more}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    command = [sys.executable, "-m", "tests.sinks.sender_process"]
    return subprocess.Popen(command, cwd=ROOT, env=kept | own, stdout=subprocess.DEVNULL)


@contextmanager
def writing(chance: random.Random) -> Iterator[set[str]]:
    """Write in concurrent transactions, some of them rolled back; yield the growing set of committed row ids."""
    over, committed = threading.Event(), set[str]()

    def one(own: random.Random) -> None:
        with psycopg.connect(database.conninfo()) as writer:
            while not over.is_set():
                rows = [
                    write(writer, timezone.now() - timedelta(minutes=own.choice([0, 0, 0, 5])))
                    for _ in range(own.randint(1, 20))
                ]
                over.wait(own.choice([0, 0, 0.02, 0.3]))
                if own.random() < 0.1:
                    writer.rollback()
                else:
                    writer.commit()
                    committed.update(rows)

    threads = [threading.Thread(target=one, args=(random.Random(chance.random()),)) for _ in range(WRITERS)]
    for thread in threads:
        thread.start()
    try:
        yield committed
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_killed_senders_leave_out_no_row(
    to_hook: MakeSink, hook: Webhook, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kill senders at any time, even while they wait for an answer. Their rows may have arrived, or be lost."""
    chance = random.Random(request.node.name)
    Call.partitions.make_for(datetime.now(UTC).date())
    to_hook()
    running: list[subprocess.Popen[bytes]] = []
    taken_first = False

    def came(wanted: int) -> bool:
        return len(hook.requests) >= wanted

    def kill_first(taken: Request) -> None:
        """Kill the sender before it gets an answer. The receiver stores its rows only if `taken_first`."""
        if taken_first:
            hook.rows += taken.rows
            hook.acknowledged.update(row["id"] for row in taken.rows)
        running[-1].send_signal(signal.SIGKILL)
        running[-1].wait()

    with writing(chance) as committed:
        for number in range(KILLS):
            wanted = len(hook.requests) + chance.randint(2, 9)
            running.append(sender(SENDER_LOAN_S="0.5"))
            eventually(partial(came, wanted), 120)
            if (number + 1) % 3:
                taken_first = bool(number % 2)
                hook.script.append(kill_first)
                eventually(lambda: running[-1].poll() is not None)
            else:
                running[-1].send_signal(signal.SIGKILL)
                running[-1].wait()
    running.append(sender(**WHOLE))
    try:
        eventually(lambda: committed <= set(hook.acknowledged), 120)
    finally:
        running[-1].kill()
        running[-1].wait()

    assert set(map(str, Call.objects.values_list("uid", flat=True))) == committed
    calls = [row["id"] for row in hook.of("call")]
    assert set(calls) == committed
    assert {row["id"] for row in hook.of("event")} >= set(map(str, Event.objects.values_list("uid", flat=True)))
    twice = len(calls) - len(committed)
    assert twice < len(calls)
    with capsys.disabled():
        print(f"\n{KILLS} kills, {len(committed)} rows written, 0 missing, {twice} came twice")  # noqa: T201


def kill_senders(name: str, deliveries: Callable[[], int], arrived: Callable[[], list[str]]) -> str:
    """Kill several senders after a few deliveries each, check that a last one sends all other rows; return a summary.

    `deliveries` returns the number of deliveries, and `arrived` the ids of the rows received, including repeats.
    """
    chance = random.Random(name)
    with writing(chance) as committed:
        for _ in range(KILLS):
            wanted = deliveries() + chance.randint(1, 5)
            one = sender(SENDER_LOAN_S="0.5")
            eventually(lambda wanted=wanted: deliveries() >= wanted, 120)  # type: ignore[misc]
            over = time.monotonic() + chance.random() * 0.1
            while time.monotonic() < over:
                pass
            one.kill()
            one.wait()
    last = sender(**WHOLE, SENDER_LOAN_S="0.5")
    try:
        eventually(lambda: committed <= set(arrived()), 120)
    finally:
        last.kill()
        last.wait()
    came = arrived()
    assert set(came) == committed
    return f"{KILLS} kills, {len(committed)} rows written, 0 missing, {len(came) - len(committed)} came twice"


def test_killed_senders_leave_no_row_out_of_a_bucket(
    bucket: Bucket, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """Objects written but not recorded are written again, under the same or another name."""
    Call.partitions.make_for(datetime.now(UTC).date())
    Sink.objects.add(name="Bucket", kind="s3", address=bucket.url, secret=KEYS, sends_events=False, by=None)
    said = kill_senders(request.node.name, lambda: len(bucket.names()), lambda: [row["id"] for row in bucket.rows()])
    with capsys.disabled():
        print(f"\n{said}")  # noqa: T201


def test_killed_senders_leave_no_row_out_of_a_collector(
    loopback_is_allowed: None, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    Call.partitions.make_for(datetime.now(UTC).date())
    with collecting() as collector:
        Sink.objects.add(name="Collector", kind="otlp", address=collector.url, sends_events=False, by=None)
        said = kill_senders(
            request.node.name,
            lambda: len(collector.tried),
            lambda: [one.attributes["id"] for one in [*collector.logs] if one.event == "gateway_admin.call"],
        )
    with capsys.disabled():
        print(f"\n{said}")  # noqa: T201


def test_two_replicas_send_each_row_once(to_hook: MakeSink, hook: Webhook, request: pytest.FixtureRequest) -> None:
    chance = random.Random(request.node.name)
    Call.partitions.make_for(datetime.now(UTC).date())
    to_hook()
    both: list[Any] = [sender(), sender()]
    try:
        with writing(chance) as committed:
            eventually(lambda: len(hook.requests) > 12, 120)
        eventually(lambda: committed <= set(hook.acknowledged), 120)
    finally:
        for one in both:
            one.kill()
            one.wait()

    assert set(hook.acknowledged.values()) == {1}
