"""The move from the embedded PostgreSQL 18 to an operator's own server copies all rows or none."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import httpx
import psycopg
import pytest

from gatewayadmin.embedded.cluster import DATABASE, OWNER, Cluster
from tests import cluster
from tests.docs.pages import ROOT
from tests.eventually import PROCESS_PATIENCE, eventually
from tests.running.conftest import FirstStart
from tests.running.debian import postgres, programs
from tests.running.starts import environment, manage, password_of, serving, signs_in
from tests.running.test_refusals import KEYS

pytestmark = pytest.mark.full

PAGE = (ROOT / "docs" / "how-to" / "deploy.md").read_text()
PRINTED = "postgresql://gateway:secret@db.internal:5432/gateway"
NOW = datetime.now(UTC).date()
MONDAY = NOW - timedelta(days=42 + NOW.weekday())  # Within retention; calls of that age have weekly partitions.
COLUMNS = """
SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute
WHERE attrelid = 'auditlog_call'::regclass AND attnum > 0 AND attname NOT IN ('id', 'created_at')
"""


def keys_of(home: Path) -> dict[str, str]:
    return {f"{name}_FILE": str(home / "keys" / name.removeprefix("GATEWAY_").lower()) for name in KEYS}


@contextmanager
def embedded(home: Path) -> Iterator[psycopg.Connection]:
    """Yield the database in the data directory, while its server runs."""
    server = Cluster(home)
    server.ensure()
    try:
        address = {"host": str(server.socket_folder), "port": 5432, "dbname": DATABASE, "user": OWNER}
        with psycopg.connect(**address, autocommit=True) as connection:  # type: ignore[arg-type]
            yield connection
    finally:
        server.leave()


def contents(connection: psycopg.Connection) -> dict[str, list[str]]:
    """Return every row of every table as text, without the table of migrations, whose times differ."""
    tables = connection.execute(
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition"
        " AND relnamespace = 'public'::regnamespace AND relname <> 'django_migrations'"
    ).fetchall()
    connection.execute("SET timezone = 'UTC'")
    return {
        table: [row for (row,) in connection.execute(f'SELECT t::text FROM "{table}" t ORDER BY 1'.encode()).fetchall()]
        for (table,) in tables
    }


@pytest.fixture
def database_url() -> Iterator[str]:
    with postgres(programs()) as url:
        yield url


def call(url: str, token: str) -> httpx.Response:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "add", "arguments": {"a": 2, "b": 3}}}
    return httpx.post(f"{url}/mcp/quickstart", json=body, headers={"Authorization": f"Bearer {token}"}, trust_env=False)


def start_with_history(home: Path) -> str:
    """Create a token and a logged call; copy the call's row to the partition of an earlier week; return the token."""
    with serving(home) as served:
        issued = manage(home, "issue_token", "--user", "admin@localhost", "--host", "CI", "--gateway", "quickstart")
        assert issued.returncode == 0, issued.stderr
        token = str(json.loads(issued.stdout)["token"])
        assert call(served.url, token).status_code == httpx.codes.OK
        assert served.stop() == 0
    with embedded(home) as connection:
        connection.execute("SELECT auditlog_make_partition(%s, %s)", [MONDAY, MONDAY + timedelta(days=7)])
        (names,) = connection.execute(COLUMNS).fetchone()  # type: ignore[misc]
        older = f"SELECT '{MONDAY}', {names} FROM auditlog_call LIMIT 1"
        connection.execute(f"INSERT INTO auditlog_call (created_at, {names}) {older}".encode())
    return token


def test_all_rows_or_none_are_moved_as_printed_and_the_new_database_serves(
    first: FirstStart, home: Path, database_url: str
) -> None:
    token = start_with_history(home)
    settings = {"DATABASE_URL": database_url, **keys_of(home)}
    assert manage(home, "migrate", **settings).returncode == 0
    a_gateway_that_starts_meanwhile_stops_the_move(home, settings)
    a_row_that_the_new_database_refuses_stops_the_move(home, settings)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE moved")
    database_url = urlunsplit(urlsplit(database_url)._replace(path="/moved"))
    with embedded(home) as connection:
        before = contents(connection)
    assert len(before["auditlog_call"]) == 2
    script = next(text for text in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) if "move_database" in text)
    script = script.replace(PRINTED, database_url).replace(".venv/bin/python", sys.executable)

    done = subprocess.run(
        ["bash", "-ec", script], cwd=ROOT, env=environment(home), capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "auditlog_call 2\n" in done.stdout
    rows = sum(len(found) for found in before.values())
    last = f"Moved {rows} rows. Each table has as many rows as before. {home} is left as it was."
    assert done.stdout.splitlines()[-1] == last
    with psycopg.connect(database_url, autocommit=True) as connection:
        assert contents(connection) == before
        partitions = connection.execute(f"SELECT count(*) FROM auditlog_call_{MONDAY:%G_w%V}".encode()).fetchone()
        assert partitions == (1,)
        with pytest.raises(psycopg.errors.RestrictViolation):  # The moved logs are insert-only too.
            connection.execute("DELETE FROM auditlog_call")
    with embedded(home) as connection:
        assert contents(connection) == before

    settings |= {"DATABASE_URL": database_url}
    printed = password_of(first.greeting)
    assert printed is not None
    with serving(home, settings) as served:
        assert signs_in(served.url, *printed)
        answer = call(served.url, token)
        assert answer.json()["result"]["content"][0]["text"] == "5"
        assert served.stop() == 0
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM auditlog_call").fetchone() == (3,)
    again = manage(home, "move_database", **settings)
    assert again.returncode == 1
    assert "The database is not empty, " in again.stderr


def a_row_that_the_new_database_refuses_stops_the_move(home: Path, settings: dict[str, str]) -> None:
    with psycopg.connect(settings["DATABASE_URL"], autocommit=True) as connection:
        made = contents(connection)
        # One of the last tables to be moved accepts no rows.
        connection.execute("ALTER TABLE tokens_token ADD CONSTRAINT never CHECK (false)")
        connection.execute("ALTER TABLE servers_server ADD CONSTRAINT never CHECK (false)")

        refused = manage(home, "move_database", **settings)

        assert refused.returncode == 1
        (line,) = refused.stderr.splitlines()
        said = 'new row for relation "servers_server" violates check constraint "never"'
        assert line == f"CommandError: Nothing was moved: {said}."
        assert contents(connection) == made


def a_gateway_that_starts_meanwhile_stops_the_move(home: Path, settings: dict[str, str]) -> None:
    command, url = [sys.executable, "manage.py", "move_database"], settings["DATABASE_URL"]
    with psycopg.connect(url) as holder, psycopg.connect(url, autocommit=True) as looking:
        made = contents(looking)
        holder.execute("LOCK TABLE tokens_token")
        moving = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(home, **settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        eventually(lambda: looking.execute(waiting.encode()).fetchone() == (1,), 60)
        with embedded(home):
            holder.rollback()
            _, said = moving.communicate(timeout=PROCESS_PATIENCE)
        assert moving.returncode == 1
        assert said.startswith(f"CommandError: A gateway is running on {home}")
        assert contents(looking) == made


@pytest.fixture
def target() -> str:
    return cluster.fresh_database(f"move_{os.getpid()}")


def refusal(home: Path, target: str, **more: str) -> str:
    done = manage(home, "move_database", "--check", **{"DATABASE_URL": target, **keys_of(home), **more})
    assert done.returncode == 1, done.stdout
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line.removeprefix("CommandError: ")


def test_a_dry_run_says_if_it_can_be_moved_and_changes_nothing(home: Path, target: str) -> None:
    done = manage(home, "move_database", "--check", DATABASE_URL=target, **keys_of(home))
    assert (done.returncode, done.stdout) == (0, "The database can be moved.\n"), done.stderr
    with psycopg.connect(target) as connection:
        assert connection.execute("SELECT count(*) FROM pg_class WHERE relname = 'accounts_user'").fetchone() == (0,)

    with embedded(home):
        assert refusal(home, target) == (f"A gateway is running on {home}: stop it first.")
    other = {"GATEWAY_TOKEN_KEYS": KEYS["GATEWAY_TOKEN_KEYS"], "GATEWAY_TOKEN_KEYS_FILE": ""}
    place = home / "keys" / "token_keys"
    assert refusal(home, target, **other) == (
        f"GATEWAY_TOKEN_KEYS differs from the key of the installation: set GATEWAY_TOKEN_KEYS_FILE to {place} instead."
    )
    with psycopg.connect(target, autocommit=True) as connection:
        connection.execute("CREATE TABLE of_others (id int)")
    assert refusal(home, target).startswith("The database has tables that are not the gateway's, such as of_others")


def test_there_has_to_be_a_database_to_move_and_one_to_move_to(fresh: Path, target: str) -> None:
    assert refusal(fresh, target, **{f"{name}_FILE": "" for name in KEYS}, **KEYS) == (
        f"There is no embedded database in {fresh}: set GATEWAY_DATA_DIR to where it is."
    )
    nowhere = manage(fresh, "move_database")
    assert nowhere.stderr.startswith("CommandError: Set DATABASE_URL to the database to move to")
