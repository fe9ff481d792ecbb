"""An export reads the log in batches over its own database connection, and says at its end if it is incomplete."""

import re
import threading
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import psycopg
import pytest
from asgiref.sync import async_to_sync
from django.db import connection, connections
from django.test import AsyncClient

from accounts.models import User
from auditlog import export
from auditlog.export import LogExport
from auditlog.fields import EXPORT_COLUMNS
from auditlog.models import Call, Event
from auditlog.search import Search
from capabilities import Capability
from gatewayadmin.config import database
from tests import make
from tests.calls import call
from tests.conftest import SignIn
from tests.eventually import PATIENCE, eventually
from tests.exported import rows_of
from tests.rest import Rest
from ui import databases
from ui.export import MAX_EXPORTS, Export, IncompleteExport, TooManyExports, stream_export

NOON = datetime(2031, 11, 20, 12, tzinfo=UTC)
READER = (
    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'gateway export' AND datname = current_database()"
)


ANYBODY = User(email="anybody@example.com")


def all_calls(*, since: datetime | None = None, until: datetime | None = None, by: User = ANYBODY) -> LogExport:
    return LogExport(Search([], since, until), "jsonl", EXPORT_COLUMNS, by=by)


def readers() -> int:
    with connection.cursor() as cursor:
        cursor.execute(READER)
        return int(cursor.fetchone()[0])


@pytest.fixture
def days(transactional_db: None) -> list[str]:
    """The uids of two simultaneous calls on each of twenty days, newest first."""
    moments = [NOON - timedelta(days=number) for number in range(20) for _ in range(2)]
    made = [call(at, feature_name=f"tool{number}") for number, at in enumerate(moments)]
    made.sort(key=lambda one: (one.created_at, one.pk), reverse=True)
    return [str(one.uid) for one in made]


@pytest.mark.full
def test_rows_of_all_partitions_come_once_and_in_order(days: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "CHUNK", 3)
    pieces = list(all_calls())

    assert [row["id"] for row in rows_of("".join(pieces))] == days
    assert max(piece.count("\n") for piece in pieces) == 3


@pytest.mark.full
def test_a_span_of_time_is_cut_where_it_says(days: list[str]) -> None:
    for since, length in product([0, 7, 8, 19, 30], [1, 8, 40]):
        start = NOON - timedelta(days=since, hours=1)
        told = rows_of("".join(all_calls(since=start, until=start + timedelta(days=length))))

        found = [row["id"] for row in told]
        assert found == days[max(since - length + 1, 0) * 2 : (since + 1) * 2], (since, length)


@pytest.mark.full
def test_a_number_of_any_size_is_told_as_it_was_recorded(transactional_db: None) -> None:
    call(NOON, request_payload={"a": 10**30})

    for kind in ("jsonl", "csv"):
        columns = EXPORT_COLUMNS | {"request_payload": "request_payload"}
        exported = "".join(LogExport(Search([]), kind, columns, by=ANYBODY))

        assert str(10**30) in exported
        assert "complete" in exported.splitlines()[-1]


@pytest.mark.full
def test_no_statement_of_an_export_reads_more_than_some_partitions(days: list[str]) -> None:
    read = [set(re.findall(r" on (auditlog_call_\d+_\d+_\d+) ", part.explain())) for part in Search([]).by_time()]

    assert 0 < max(map(len, read)) <= 8 < len(Call.partitions.names())


@pytest.mark.full
def test_an_export_that_nobody_reads_holds_no_connection(
    days: list[str], sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "CHUNK", 3)
    client = sign_in(make.user(Capability.LOGS_READ))

    answer = client.get("/logs/export/?format=csv&range=all")
    assert connection.connection is None  # Already returned to the pages' pool.
    pieces = iter(answer)
    for _ in range(3):
        assert next(pieces)
        assert connection.connection is None
        eventually(lambda: readers() == 0)
        connection.close()  # Opened by `readers()`.


@pytest.mark.full
def test_an_answer_is_sent_after_its_connection_was_given_back(transactional_db: None, sign_in: SignIn) -> None:
    user = make.user(Capability.LOGS_READ)

    assert sign_in(user).get("/logs/").status_code == 200
    assert connection.connection is None
    assert Rest.of(user).get("/logs").status_code == 200
    assert connection.connection is None


def test_time_limit_of_pages_does_not_cut_an_export(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    options = connections.settings["default"]["OPTIONS"]
    monkeypatch.setitem(options, "options", options["options"] + " -c statement_timeout=2s")

    def limit(session: psycopg.Connection[Any]) -> str:
        return str((session.execute("SHOW statement_timeout").fetchone() or [""])[0])

    with databases.connect_direct() as ordinary, all_calls().reader() as reader:
        assert (limit(ordinary), limit(reader)) == ("2s", "0")


@pytest.mark.full
def test_an_export_ends_at_once_wherever_it_is(days: list[str]) -> None:
    whole = all_calls()

    def read() -> None:
        try:
            next(whole, None)
        finally:
            connections.close_all()

    with psycopg.connect(database.conninfo()) as busy:
        busy.execute("LOCK TABLE auditlog_call IN ACCESS EXCLUSIVE MODE")
        reading = threading.Thread(target=read)
        reading.start()
        eventually(waits)
        whole.close()
        reading.join(timeout=PATIENCE)
        assert not reading.is_alive()
    eventually(lambda: readers() == 0)


def drain(whole: Export, pieces: list[str]) -> None:
    for piece in whole:
        pieces.append(piece)  # noqa: PERF402  (what came before an error counts)


def waits() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(READER + " AND wait_event_type = 'Lock'")
        return bool(cursor.fetchone()[0])


@pytest.mark.full
def test_an_export_that_lost_the_database_says_so_and_breaks_off(
    days: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "CHUNK", 3)
    whole = LogExport(Search([]), "csv", EXPORT_COLUMNS, by=ANYBODY)
    pieces = [next(whole), next(whole)]
    with monkeypatch.context() as broken:
        broken.setitem(connections.settings["default"]["OPTIONS"], "options", "-c no_such_setting=1")
        with pytest.raises(IncompleteExport):
            drain(whole, pieces)

    assert pieces[-1].startswith("# incomplete: ")
    whole.close()
    eventually(lambda: readers() == 0)


@pytest.mark.full
def test_an_export_that_gets_no_session_takes_no_place(days: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setitem(connections.settings["default"]["OPTIONS"], "options", "-c no_such_setting=1")
        for _ in range(MAX_EXPORTS + 1):
            with pytest.raises(psycopg.OperationalError):
                all_calls()

    assert len(rows_of("".join(all_calls()))) == len(days)


def test_an_asynchronous_answer_is_the_same_file(days: list[str]) -> None:
    client = AsyncClient()
    client.force_login(make.user(Capability.LOGS_READ, Capability.AUDIT_READ))

    async def asked() -> str:
        since = (NOON - timedelta(days=30)).isoformat()
        answer = await client.get("/logs/export/", {"format": "jsonl", "from": since})
        assert (answer.status_code, answer["Cache-Control"]) == (200, "no-store")
        return "".join([piece.decode() async for piece in answer.streaming_content])  # type: ignore[attr-defined]

    assert [row["id"] for row in rows_of(async_to_sync(asked)())] == days
    eventually(lambda: readers() == 0)


@pytest.mark.full
def test_disconnecting_from_an_asynchronous_response_ends_its_export(
    days: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "CHUNK", 3)
    whole = all_calls()

    async def left() -> str:
        pieces = stream_export(whole)
        first = await anext(pieces)
        await pieces.aclose()  # type: ignore[attr-defined]  # A generator, which is what the server closes.
        return first

    assert async_to_sync(left)().count("\n") == 3
    eventually(lambda: readers() == 0)
    assert next(whole, None) is None


@pytest.mark.full
def test_so_many_exports_of_a_person_run_at_once_and_the_next_is_told_when_to_come(
    days: list[str], sign_in: SignIn
) -> None:
    user = make.user(Capability.LOGS_READ, Capability.AUDIT_READ)
    client, rest = sign_in(user), Rest.of(user)
    running = [all_calls(by=user) for _ in range(MAX_EXPORTS)]
    with pytest.raises(TooManyExports):
        all_calls(by=user)
    for path in ("/logs/export/?format=csv", "/settings/admin-events/export/?format=csv"):
        answer = client.get(path)
        assert (answer.status_code, answer["Retry-After"]) == (503, "30")
        assert b"of your exports are running." in answer.content
    answer = rest.get("/logs/export")
    assert (answer.status_code, answer.json()["code"]) == (503, "too_many_exports")
    assert not Event.objects.filter(action__endswith=".exported").exists()
    assert len(rows_of("".join(all_calls()))) == len(days)  # Another person's export still works.

    running.pop().close()
    assert len(rows_of("".join(all_calls(by=user)))) == len(days)
    while running:
        running.pop().close()
