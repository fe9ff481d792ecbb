"""A page's database statements have a time limit, with a clear error."""

from collections.abc import Iterator
from contextlib import ExitStack, suppress

import psycopg
import pytest
from django.db import connection, connections
from django.test import Client
from psycopg_pool import ConnectionPool, PoolTimeout

from capabilities import Capability
from gatewayadmin.config import database
from tests import make


@pytest.mark.full
def test_a_statement_that_takes_too_long_is_told_in_words(transactional_db: None) -> None:
    client = Client(raise_request_exception=False)
    client.force_login(make.user(Capability.LOGS_READ))
    for path, words in {"/api/logs": '"code": "too_slow"', "/logs/": "This took too long"}.items():
        with psycopg.connect(database.conninfo()) as busy:
            busy.execute("LOCK TABLE auditlog_call IN ACCESS EXCLUSIVE MODE")
            with connection.cursor() as cursor:
                cursor.execute("SET statement_timeout = '100ms'")
            try:
                answer = client.get(path)
            finally:
                connection.close_pool()  # type: ignore[attr-defined]  # One of its sessions has the limit now.

        assert answer.status_code == 503
        assert words in answer.content.decode()


def test_pages_are_limited_and_chores_take_the_time_they_need(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    options, before = connections.settings["default"]["OPTIONS"], database.conninfo()
    monkeypatch.setitem(options, "options", options["options"])

    database.limit_statements()
    database.limit_statements()

    assert options["options"].count("statement_timeout=15s") == 1
    assert database.conninfo() == before
    with psycopg.connect(before, options=options["options"]) as page:
        assert page.execute("SHOW statement_timeout").fetchone() == ("15s",)

    def limit() -> str:
        with connection.cursor() as cursor:
            cursor.execute("SHOW statement_timeout")
            return str(cursor.fetchone()[0])

    usual = limit()
    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = '15s'")
    with database.without_time_limit():
        assert limit() == "0"
    assert limit() == usual


def test_an_exhausted_pool_is_told_in_words_and_when_to_come_again(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(raise_request_exception=False)
    client.force_login(make.user(Capability.LOGS_READ))
    connection.close()
    pool = connections["default"].pool  # type: ignore[attr-defined]
    monkeypatch.setattr(pool, "timeout", 0.1)
    with ExitStack() as held:
        with suppress(PoolTimeout):  # Threads of earlier tests may hold some of the connections.
            while True:
                held.enter_context(pool.connection(timeout=1))
        answers = {path: client.get(path) for path in ("/api/logs", "/logs/")}

    assert {(answer.status_code, answer["Retry-After"]) for answer in answers.values()} == {(503, "2")}
    assert '"code": "busy"' in answers["/api/logs"].content.decode()
    assert "The gateway is busy" in answers["/logs/"].content.decode()
    assert client.get("/logs/").status_code == 200


@pytest.fixture
def sleepers(db: None) -> Iterator[None]:
    """After the test, end its running statements, because their transactions would block concurrent index creation."""
    yield
    with psycopg.connect(database.conninfo(), autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE query = 'SELECT pg_sleep(600)' AND datname = current_database()"
        )


def test_a_page_waits_for_a_database_that_hangs_no_longer_than_it_may(
    sleepers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database.PageConnection, "longest_wait", 0.1)
    with database.PageConnection.connect(database.conninfo()) as page:
        with pytest.raises(psycopg.OperationalError):
            page.execute("SELECT pg_sleep(600)")
        assert page.closed


def test_a_connection_taken_from_the_pool_answers_at_once(sleepers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "CHECK_S", 0.1)
    with database.PageConnection.connect(database.conninfo()) as page:
        database.PageConnection.check(page)
        assert page.longest_wait == database.SILENCE_S

        monkeypatch.setattr(ConnectionPool, "check_connection", lambda one: one.execute("SELECT pg_sleep(600)"))
        with pytest.raises(psycopg.OperationalError):
            database.PageConnection.check(page)
