"""While old partitions are dropped, no call is delayed and every answered call stays in the log."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest

from tests.running.load import Load
from tests.workspace import Serve

pytestmark = pytest.mark.full

WAITED = 9  # Seconds. Only a call that waits for the reader's lock takes this long, however busy the machine.
OLD = ("auditlog_call_2020_01", "auditlog_call_2020_02")


def add_old_partitions(live: Serve) -> None:
    for month, name in enumerate(OLD, 1):
        live.rows(f"CREATE TABLE {name} (LIKE auditlog_call INCLUDING DEFAULTS INCLUDING CONSTRAINTS)")
        live.rows(
            f"ALTER TABLE auditlog_call ATTACH PARTITION {name}"
            f" FOR VALUES FROM ('2020-0{month}-01 00:00+00') TO ('2020-0{month + 1}-01 00:00+00')"
        )


def old_ones(live: Serve) -> list[str]:
    query = "SELECT relname FROM pg_class WHERE relname = ANY(%s) ORDER BY 1"
    return [row["relname"] for row in live.rows(query, list(OLD))]


def is_detaching(live: Serve) -> bool:
    query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND query LIKE %s"
    return bool(live.rows(query, "ALTER TABLE%DETACH%"))


def test_dropping_old_partitions_loses_no_answered_call_and_delays_none(live: Serve) -> None:
    issued = live.issue_token(host="Retention", gateway="quickstart")
    add_old_partitions(live)
    with (
        closing(psycopg.connect(live.database_url)) as reader,
        ThreadPoolExecutor(1) as beside,
        Load(issued["gateway_url"], issued["token"], 2, pause=0.02) as load,
    ):
        reader.execute("SELECT count(*) FROM auditlog_call")  # The transaction stays open, as in a long export.
        chores = beside.submit(live.manage, "housekeeping")
        while not (is_detaching(live) or chores.done()):
            load.wait_for(1)
        load.wait_for(10)
        assert old_ones(live)[-1:] == [OLD[-1]]

        reader.rollback()
        chores.result()
        while old_ones(live):  # `housekeeping` gave up, or the server was already doing it.
            live.manage("housekeeping")
        load.wait_for(10)

    logged = {row["correlation_id"] for row in live.rows("SELECT correlation_id FROM auditlog_call")}
    assert load.answered <= logged
    assert load.refused == 0
    assert load.slowest < WAITED
