"""kill -9 at any time: every answered call is in the log, and everything recovers."""

import os
import signal
from pathlib import Path

import psutil
import psycopg
import pytest

from gatewayadmin.embedded.cluster import DATABASE, OWNER, socket_folder
from tests.eventually import eventually
from tests.running import load
from tests.running.conftest import postmaster
from tests.running.processes import chores, runs, workers
from tests.running.starts import serving

# This test keeps both cores busy.
pytestmark = pytest.mark.full


def kill_postgres(home: Path) -> int:
    """Kill the embedded server, and return its process id."""
    pid = postmaster(home)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


def test_whatever_is_killed_no_answered_call_is_lost_and_all_goes_on(home: Path) -> None:
    with serving(home, workers=2) as served:
        pid = served.process.pid
        with load.on(served) as agents:
            agents.wait_for(50)
            another_process_takes_the_place_of_a_killed_one_for_chores(pid)
            assert agents.refused == 0
            victim = workers(pid)[0]
            victim.kill()
            agents.wait_for(100)
            postgres = kill_postgres(home)
            agents.wait_for(100)
        eventually(lambda: len([worker for worker in workers(pid) if worker != victim]) == 2)
        assert postmaster(home) not in {None, postgres}
        assert served.is_ready()
        eventually(lambda: is_rolled_up(home))
        orphans = psutil.Process(pid).children()
        served.process.kill()
        served.process.wait()
        eventually(lambda: not any(runs(orphan) for orphan in orphans))
    with serving(home, workers=2, port=served.port) as again, load.on(again) as more:
        more.wait_for(100)
        again.kill()
    with serving(home, workers=2) as third, load.on(third) as most:
        most.wait_for(50)
        kill_postgres(home)
        third.kill()
    with serving(home) as last:
        assert agents.answered | more.answered | most.answered <= load.recorded(home)
        assert last.stop() == 0
    assert postmaster(home) is None


def another_process_takes_the_place_of_a_killed_one_for_chores(pid: int) -> None:
    """Kill the chores process of the `serve` with this process id."""
    eventually(lambda: len(chores(pid)) == 1)
    serving_calls, (first,) = workers(pid), chores(pid)
    first.kill()
    first.wait()
    eventually(lambda: chores(pid) not in ([], [first]))
    assert workers(pid) == serving_calls


def is_rolled_up(home: Path) -> bool:
    """Return True if the newest call is in the roll-ups."""
    newest = "SELECT 1 FROM auditlog_rollupprogress WHERE counted_to >= (SELECT max(id) FROM auditlog_call)"
    address = f"host={socket_folder(home / 'postgres')} dbname={DATABASE} user={OWNER}"
    with psycopg.connect(address) as connection:
        return connection.execute(newest.encode()).fetchone() is not None
