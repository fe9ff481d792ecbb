"""A process that is killed while it applies a file leaves all of the file's changes or none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from configuration.apply import APPLY_LOCK
from configuration.document import write
from tests import make
from tests.eventually import eventually
from tests.workspace import OWNER, ROOT, Serve

pytestmark = pytest.mark.full

KILLS = int(os.environ.get("CONFIGURATION_KILLS", "4"))
MANY = 60
LOCKED = f"SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = {APPLY_LOCK} AND granted"
FOUND = "SELECT count(*) AS number FROM {} WHERE name LIKE %s"
EVENTS = "SELECT count(*) AS number FROM auditlog_event WHERE action = 'team.created' AND target_label LIKE %s"

REMOVE = (
    "DELETE FROM gateways_gateway_teams USING accounts_team t WHERE t.id = team_id AND t.name LIKE %s",
    "DELETE FROM gateways_gateway WHERE name LIKE %s",
    "DELETE FROM accounts_team WHERE name LIKE %s",
)


def file_with(word: str, folder: Path) -> Path:
    """Return a file with many teams and gateways whose names begin with `word`."""
    teams = [{"name": f"{word} {number}"} for number in range(MANY)]
    gateways = [
        {"slug": f"{word}-{number}", "name": f"{word} {number}", "reach": "teams", "teams": [f"{word} {number}"]}
        for number in range(MANY)
    ]
    path = folder / f"{word}.yaml"
    path.write_text(write({"version": 1, "teams": teams, "gateways": gateways}))
    return path


def counts(live: Serve, word: str) -> set[int]:
    queries = [FOUND.format("accounts_team"), FOUND.format("gateways_gateway"), EVENTS]
    return {live.rows(query, f"{word}%")[0]["number"] for query in queries}


def apply_and_kill(live: Serve, path: Path, looks: int) -> None:
    """Start `apply`; once it holds its lock or has ended, run `looks` queries to let time pass, then kill it."""
    command = [sys.executable, "manage.py", "apply", str(path), "--user", OWNER]
    with subprocess.Popen(
        command, cwd=ROOT, env=live.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as run:
        eventually(lambda: live.rows(LOCKED) or run.poll() is not None)
        for _ in range(looks):
            live.rows(LOCKED)
        run.kill()
    eventually(lambda: not live.rows(LOCKED))


def test_a_killed_apply_leaves_all_or_nothing(live: Serve, tmp_path: Path) -> None:
    for number in range(KILLS):
        word = make.unique("killed")
        path = file_with(word, tmp_path)

        apply_and_kill(live, path, looks=number * 97 % 400)

        (count,) = counts(live, word)
        assert count in (0, MANY)
        live.manage("apply", str(path), "--user", OWNER)
        assert counts(live, word) == {MANY}
        for statement in REMOVE:  # Each plan reads everything there is.
            live.rows(statement, f"{word}%")
