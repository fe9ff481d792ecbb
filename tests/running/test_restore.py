"""docs/how-to/back-up.md, run as printed: backup under load, loss, restore on another PostgreSQL, and continued use."""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import httpx
import psycopg
import pytest

from tests import cluster
from tests.docs.test_how_tos import block
from tests.eventually import eventually
from tests.proxy.conftest import Agent
from tests.running.debian import postgres, programs
from tests.running.load import Load
from tests.running.sealed import PERSON, govern, sealed_server
from tests.running.starts import manage, password_of, serving, signs_in
from tests.sinks.receiver import SECRET, Webhook, webhook
from tests.workspace import PASSWORD, ROOT, Serve, free_port

pytestmark = pytest.mark.full

PAGE = "back-up.md"
COUNTED = """
SELECT (SELECT sum(calls) FROM auditlog_rollup WHERE cube = 0 AND seconds = %s) AS rolled_up,
    (SELECT count(*) FROM auditlog_call WHERE id <= (SELECT counted_to FROM auditlog_rollupprogress)) AS logged
"""
ACKNOWLEDGED = "SELECT uid FROM auditlog_call WHERE id <= (SELECT calls_to FROM sinks_sink)"
REVOKE = "token = Token.objects.get(pk='{pk}'); token.revoke(by=token.connection.user)"

type Row = dict[str, Any]


@contextmanager
def database(name: str) -> Iterator[str]:
    """Yield the address of an empty database of the newest version, dropped at the end."""
    address = cluster.fresh_database(f"{name}_{os.getpid()}")
    yield address
    with psycopg.connect(os.environ[cluster.ADDRESS], autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name}_{os.getpid()} WITH (FORCE)".encode())


class Drill:
    """An operator's actions, and the server, sink and keys that the old and the new installation share."""

    def __init__(self, home: Path, stack: ExitStack) -> None:
        self.home = home
        self.hook: Webhook = stack.enter_context(webhook())
        self.upstream = stack.enter_context(sealed_server())
        self._keys = cluster.keys()
        self._stack = stack

    def installed(self, name: str, address: str) -> Serve:
        """Return an installation on this database with the original keys, not started."""
        data_dir = self.home / name
        data_dir.mkdir(mode=0o700)
        serve = Serve(data_dir, address, free_port(), self._keys)
        self._stack.callback(serve.stop)
        return serve

    def run(self, mark: str, serve: Serve, **variables: str) -> str:
        """Run the page's block `mark`, which must succeed, and return its output."""
        path = f"{programs()}:{os.environ['PATH']}"
        settings = {**serve.environment(), "OWNER_URL": serve.database_url, "PATH": path, **variables}
        script = block(PAGE, mark).replace(".venv/bin/python manage.py", f"{sys.executable} {ROOT}/manage.py")
        done = subprocess.run(
            ["bash", "-ec", script], cwd=self.home, env=settings, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def received(self, log: str) -> dict[str, list[Row]]:
        """Return the rows of this log that the sink has received, by id."""
        found = defaultdict(list)
        for row in list(self.hook.rows):
            if row["log"] == log:
                found[row["id"]].append(row)
        return found


@pytest.fixture
def drill(tmp_path: Path) -> Iterator[Drill]:
    with ExitStack() as stack:
        yield Drill(tmp_path, stack)


def logged(serve: Serve) -> set[str]:
    return {str(row["uid"]) for row in serve.rows("SELECT uid FROM auditlog_call")}


def at_gateway(serve: Serve, secret: str) -> Agent:
    return Agent(f"{serve.url}/mcp/sealed", secret)


def seal_and_send(drill: Drill, serve: Serve) -> None:
    """Run housekeeping until the sink has received all calls so far, and a new checkpoint."""
    wanted = logged(serve)
    [last] = serve.rows("SELECT coalesce(max(number), 0) AS number FROM auditlog_checkpoint")

    def has_all() -> bool:
        serve.manage("housekeeping")  # Now, because `serve` does it only every minute or so.
        numbers = [int(row["number"]) for rows in drill.received("checkpoint").values() for row in rows]
        return wanted <= drill.received("call").keys() and max(numbers, default=0) > last["number"]

    eventually(has_all)


class Before(NamedTuple):
    """State of the old installation: two tokens, the second revoked after the backup, and the answered calls."""

    secret: str
    revoked: str
    backed_up: set[UUID]
    """Calls that were answered before the backup began."""
    answered: set[UUID]


def test_a_backup_made_under_load_is_restored_elsewhere_and_goes_on_as_the_page_says(drill: Drill) -> None:
    """Back up PostgreSQL 15 with the backup programs of version 15, and restore on PostgreSQL 18."""
    with postgres(programs()) as address:
        before = back_up_under_load(drill, drill.installed("old", address).start())
    lines = drill.home / "received.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in drill.hook.rows))
    with database("after") as address:
        new = drill.installed("new", address)
        noted = restore(drill, new, before)
        new.start()
        goes_on(drill, new, before)
        # Checkpoints made between backup and loss; the restored gateway uses their numbers again.
        abandoned = {row["number"] for row in map(json.loads, lines.read_text().splitlines()) if is_after(row, noted)}
        assert abandoned
        [findings] = re.findall(r"(\d+) findings?", new.refusal("verify_log", "--received", str(lines)))
        assert int(findings) >= len(abandoned)
        drill.run("received", new, SEALED=noted)
        new.stop()


def is_after(row: Row, noted: str) -> bool:
    return row["log"] == "checkpoint" and str(json.loads(row["body"])["sealed_at"]) > noted


def back_up_under_load(drill: Drill, old: Serve) -> Before:
    """Dump the database during calls. Then make further calls, revoke a token, and seal and send the log."""
    sink = {"name": "Archive", "kind": "webhook", "address": drill.hook.url, "secret": SECRET}
    (_, secret), (revoked, again) = govern(old, drill.upstream, sink)
    with Load(f"{old.url}/mcp/sealed", secret, 3, 0.01) as load:
        load.wait_for(100)
        seal_and_send(drill, old)
        (drill.home / "checkpoint-key.pem").write_text(old.manage("verify_log", "--print-key"))
        backed_up = set(load.answered)
        drill.run("dump", old)
        load.wait_for(100)
        old.manage("shell", "-c", f"from tokens.models import Token; {REVOKE.format(pk=revoked)}")
        assert at_gateway(old, again).call("echo", {"text": "x"}).status_code == httpx.codes.UNAUTHORIZED
        load.wait_for(50)
        seal_and_send(drill, old)
    assert load.refused == 0
    old.stop()
    return Before(secret, again, backed_up, load.answered)


def restore(drill: Drill, new: Serve, before: Before) -> str:
    """Restore the backup as documented, and check its calls; return the time up to which the log is sealed."""
    said = drill.run("load", new)
    assert "MISSING" not in said
    correlated = {row["correlation_id"] for row in new.rows("SELECT correlation_id FROM auditlog_call")}
    assert before.backed_up <= correlated  # Every call that was answered before the backup began,
    assert before.answered - correlated  # but not all later calls.
    must_be_counted(new)
    return said.partition("Sealed up to ")[2].split()[0].removesuffix(".")


def goes_on(drill: Drill, new: Serve, before: Before) -> None:
    """Check people, tokens, credentials, sinks, roll-ups and checkpoints of a restored installation."""
    kept, acknowledged = logged(new), {str(row["uid"]) for row in new.rows(ACKNOWLEDGED)}
    came = len(drill.hook.rows)
    assert signs_in(new.url, PERSON, PASSWORD)
    for token in (before.secret, before.revoked):  # Tokens revoked since the backup work again, as the page says.
        answered = at_gateway(new, token).call("echo", {"text": "back"})
        assert answered.json()["result"]["content"][0]["text"] == "back", answered.text
    seal_and_send(drill, new)
    assert kept <= drill.received("call").keys()
    sent = {row["id"] for row in drill.hook.rows[came:] if row["log"] == "call"}
    assert not acknowledged & sent  # The backup knows that the sink had these rows.
    for rows in drill.received("call").values():  # Rows with the same id are equal: ids are not reused.
        assert all(row == rows[0] for row in rows)
    must_be_counted(new)
    new.manage("verify_log", "--public-key", str(drill.home / "checkpoint-key.pem"))


def must_be_counted(serve: Serve) -> None:
    """Check that the roll-ups of every period match the rows."""
    for seconds in (60, 3600, 86400):
        [counted] = serve.rows(COUNTED, seconds)
        assert counted["rolled_up"] == counted["logged"] > 0


def test_a_copy_of_the_data_directory_starts_elsewhere_with_its_tokens_and_its_log(home: Path, tmp_path: Path) -> None:
    """Back up an embedded database as documented: `tar` the data directory, and unpack it elsewhere."""
    with serving(home) as served:
        words = ("issue_token", "--user", "admin@localhost", "--host", "CI", "--gateway", "quickstart")
        token = str(json.loads(manage(home, *words).stdout)["token"])
        assert call(served.url, token).status_code == httpx.codes.OK
        assert served.stop() == 0
    other = home.with_name("other")
    for mark, place in (("backup", home), ("restore", other)):
        settings = {**os.environ, "GATEWAY_DATA_DIR": str(place)}
        subprocess.run(["bash", "-ec", block(PAGE, mark)], env=settings, cwd=tmp_path, check=True)

    with serving(other) as served:
        assert password_of(served.greeting()) is None  # Only a first start prints a password.
        assert call(served.url, token).status_code == httpx.codes.OK

        def is_sealed() -> bool:
            manage(other, "housekeeping")  # Now, because `serve` does it only every minute or so.
            return manage(other, "verify_log").returncode == 0

        eventually(is_sealed)
        assert served.stop() == 0


def call(url: str, token: str) -> httpx.Response:
    return Agent(f"{url}/mcp/quickstart", token).call("echo", {"text": "hello"})
