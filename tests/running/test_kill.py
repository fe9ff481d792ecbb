"""kill -9 at any time: every answered call is in the log, and everything recovers."""

import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.eventually import eventually
from tests.running import load
from tests.running.conftest import postmaster
from tests.running.processes import runs, workers
from tests.running.starts import serving

pytestmark = pytest.mark.xdist_group("kill")  # Each of these tests keeps both cores busy.


def kill_postgres(home: Path) -> int:
    """Kill the embedded server, and return its process id."""
    pid = postmaster(home)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


@pytest.mark.full
def test_killed_worker_and_killed_postgres_lose_no_answered_call_and_are_replaced(home: Path) -> None:
    with serving(home, workers=2) as served:
        with load.on(served) as agents:
            agents.wait_for(50)
            victim = workers(served.process.pid)[0]
            victim.kill()
            agents.wait_for(100)
            pid = kill_postgres(home)
            agents.wait_for(100)
        eventually(lambda: len([worker for worker in workers(served.process.pid) if worker != victim]) == 2)
        assert postmaster(home) not in {None, pid}
        assert served.is_ready()
        assert agents.answered <= load.recorded(home)
        assert served.stop() == 0


@pytest.mark.full
def test_killed_process_group_loses_no_answered_call_and_the_next_start_goes_on(home: Path) -> None:
    with serving(home, workers=2) as served, load.on(served) as agents:
        agents.wait_for(100)
        served.kill()
    with serving(home, workers=2, port=served.port) as again, load.on(again) as more:
        more.wait_for(100)
        kill_postgres(home)
        again.kill()
    with serving(home) as last:
        assert agents.answered | more.answered <= load.recorded(home)
        assert last.stop() == 0
    assert postmaster(home) is None


@pytest.mark.full
def test_workers_end_when_the_process_that_started_them_is_killed(home: Path) -> None:
    with serving(home, workers=2) as served:
        orphans = psutil.Process(served.process.pid).children()
        served.process.kill()
        served.process.wait()
        eventually(lambda: not any(runs(orphan) for orphan in orphans))
