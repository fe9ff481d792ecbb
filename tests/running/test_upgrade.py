"""Upgrading a gateway in use fails no call, and interrupted steps are resumed later."""

import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from tests import cluster, workspace
from tests.docs.test_how_tos import words
from tests.eventually import PATIENCE, eventually
from tests.running.starts import environment
from tests.workspace import Serve

pytestmark = pytest.mark.full

DECLARE = "CREATE INDEX call_by_trial ON ONLY auditlog_call (user_agent, created_at)"
INVALID = "SELECT 1 FROM pg_index WHERE NOT indisvalid AND indexrelid <> 'call_by_trial'::regclass"
LOCKED = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = x'67776107'::int AND granted"


def test_no_call_fails_while_a_gateway_in_use_is_upgraded(tmp_path: Path) -> None:
    """Two processes serve, the tables are migrated, and the processes change to the next release and back again."""
    command = [sys.executable, "-m", "bench.upgrade", "--json", "--rows", "3000", "--seconds", "1"]
    done = subprocess.run(
        [*command, "--longest", str(PATIENCE), "--database-url", os.environ[cluster.ADDRESS]],
        cwd=workspace.ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    told = json.loads(done.stdout)
    assert told["failed"] == []
    assert (told["unrecorded"], told["repeated"], told["indexes_not_ready"]) == (0, 0, 0)
    assert all(step["calls"] for step in told["steps"])
    assert told["refusal"].startswith("CommandError: The database lacks ")
    assert told["refusal"].endswith(": run manage.py migrate first.")


def test_an_index_whose_maker_is_killed_is_made_by_the_gateway_that_starts_next(live_alone: Serve) -> None:
    """PostgreSQL may continue an index build after its client has gone. A migration must not drop that index."""
    served = live_alone
    with closing(psycopg.connect(served.database_url)) as reader:
        served.rows(DECLARE)
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT 1")  # Takes a snapshot; CREATE INDEX CONCURRENTLY waits until it is released.
        maker = migrating(served)
        eventually(lambda: served.rows(INVALID))
        maker.send_signal(signal.SIGKILL)
        maker.communicate()

        meanwhile = migrating(served)
        _, said = meanwhile.communicate()
        assert meanwhile.returncode == 0
        assert "partitions of the log still lack an index" in said
        assert served.rows(INVALID)
        reader.rollback()
    eventually(lambda: not served.rows(LOCKED))

    served.start(workers=1)

    eventually(lambda: "a partition of the log was indexed" in served.log())
    eventually(lambda: not served.rows("SELECT 1 FROM pg_index WHERE NOT indisvalid"))
    printed, said = migrating(served).communicate()
    assert (printed.splitlines()[-1].strip(), said) == ("No migrations to apply.", "")


def migrating(served: Serve) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "manage.py", *words("upgrade.md", "migrate")],
        cwd=workspace.ROOT,
        env=served.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
