"""Chores run in their own process, so that they take no time from calls."""

from pathlib import Path

import psycopg
import pytest

from gatewayadmin.embedded.cluster import DATABASE, OWNER, socket_folder
from tests.eventually import eventually
from tests.running import load
from tests.running.processes import chores, workers
from tests.running.starts import serving

pytestmark = pytest.mark.xdist_group("kill")


@pytest.mark.full
def test_one_process_does_the_chores_and_when_it_is_killed_another_goes_on_with_them(home: Path) -> None:
    with serving(home, workers=2) as served:
        pid = served.process.pid
        eventually(lambda: len(chores(pid)) == 1)
        serving_calls, (first,) = workers(pid), chores(pid)
        with load.on(served) as agents:
            agents.wait_for(20)
            first.kill()
            agents.wait_for(20)
        eventually(lambda: chores(pid) not in ([], [first]))
        eventually(lambda: counted_all(home), 120)

        assert workers(pid) == serving_calls
        assert agents.refused == 0
        assert served.stop() == 0


def counted_all(home: Path) -> bool:
    """Return True if the newest call is in the roll-ups."""
    address = f"host={socket_folder(home / 'postgres')} dbname={DATABASE} user={OWNER}"
    with psycopg.connect(address) as connection:
        return (
            connection.execute(
                "SELECT 1 FROM auditlog_rollupprogress WHERE counted_to >= (SELECT max(id) FROM auditlog_call)"
            ).fetchone()
            is not None
        )
