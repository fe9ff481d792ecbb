"""One database role owns the tables, another serves calls. A migration holds up calls only for a moment."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import psycopg
import pytest
from django.core.management import CommandError, call_command

from gatewayadmin.config import database
from gatewayadmin.management.commands import migrate
from tests import cluster, workspace
from tests.eventually import PROCESS_PATIENCE
from tests.running.load import Load
from tests.running.starts import environment, manage, signs_in
from tests.workspace import OWNER, PASSWORD, Serve

LOGS = ("auditlog_call", "auditlog_event")
CHANGES_OF_LOGS = (
    "UPDATE {table} SET created_at = now()",
    "DELETE FROM {table}",
    "TRUNCATE {table}",
    "DROP TABLE {table} CASCADE",
    "DROP TRIGGER {table}_is_insert_only ON {table}",
    "ALTER TABLE {table} DISABLE TRIGGER ALL",
    "ALTER TABLE {table} ADD COLUMN more int",
    "CREATE TRIGGER more BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION auditlog_refuse_change()",
    "CREATE RULE more AS ON INSERT TO {table} DO INSTEAD NOTHING",
)
CHANGES_BESIDE_LOGS = (
    "ALTER TABLE auditlog_call DETACH PARTITION {part}",
    "DROP TABLE {part}",
    "DELETE FROM {part}",
    "TRUNCATE {part}",
    "CREATE TABLE more ()",
    "CREATE OR REPLACE FUNCTION auditlog_refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'",
    "SELECT auditlog_make_partition('2001-01-01', '2001-01-02')",
    "DELETE FROM django_migrations",
    "DELETE FROM auditlog_checkpointkey",
    "TRUNCATE auditlog_checkpointkey",
    "DELETE FROM auditlog_checkpoint",
    "UPDATE auditlog_checkpoint SET leaves = NULL",
    "TRUNCATE auditlog_checkpoint",
    'INSERT INTO sinks_archivedpartition (name, begin, "end", rows, digest, archived_at, last_error)'
    " VALUES ('auditlog_call_2026_01_01', '2026-01-01', '2026-01-02', 0, '', now(), '')",
)
WAITED = 9  # Seconds. Only a call that waits for a lock takes this long, however busy the machine.


class Roles(NamedTuple):
    """Two URLs of a database: `owner` for its owner, and `runner` for the role `name`, which serves."""

    home: Path
    owner: str
    runner: str
    name: str
    keys: dict[str, str]
    by_owner: Serve

    def manage(self, *words: str) -> str:
        """Run a command, which must succeed, as the database's owner; return its output."""
        return self.by_owner.manage(*words)

    def refusal_of(self, *words: str, as_runner: bool = False) -> str:
        """Return the error of a command, which must fail."""
        done = manage(self.home, *words, DATABASE_URL=self.runner if as_runner else self.owner, **self.keys)
        assert done.returncode != 0
        return done.stderr


# Statements that make the role `name` the owner of all relations and routines with an owner of their own.
OWNED = """
SELECT format('ALTER TABLE %s OWNER TO {name}', oid::regclass) FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm')
UNION ALL
SELECT format('ALTER ROUTINE %s OWNER TO {name}', oid::regprocedure) FROM pg_proc
WHERE pronamespace = 'public'::regnamespace
"""


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roles]:
    """A database owned by a role without superuser rights, and a role that may only log in."""
    owner, runner, base = (f"{name}_{os.getpid()}" for name in ("owner", "runner", "roles"))
    with ExitStack() as stack:
        address = cluster.fresh_database(base, cluster.tables())
        with psycopg.connect(address, autocommit=True) as admin:
            for name in (owner, runner):
                admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'".encode())
            admin.execute(f"ALTER DATABASE {admin.info.dbname} OWNER TO {owner}".encode())
            for (change,) in admin.execute(OWNED.format(name=owner).encode()).fetchall():
                admin.execute(change.encode())
        stack.callback(drop_role, address, owner, runner)
        home = tmp_path_factory.mktemp(base)
        keys = cluster.keys()
        by_owner = Serve(home, as_role(address, owner), 0, keys)  # Never started, only used for its commands.
        stack.callback(by_owner.stop)
        yield Roles(home, by_owner.database_url, as_role(address, runner), runner, keys, by_owner)


def as_role(address: str, name: str) -> str:
    parts = urlsplit(address)
    place = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{name}:secret@{place}").geturl()


def drop_role(address: str, *names: str) -> None:
    with psycopg.connect(address, autocommit=True) as admin:
        for name in names:
            admin.execute(f"DROP OWNED BY {name} CASCADE".encode())
            admin.execute(f"ALTER DATABASE {admin.info.dbname} OWNER TO CURRENT_USER".encode())
            admin.execute(f"DROP ROLE {name}".encode())


@pytest.fixture(scope="module")
def served(roles: Roles) -> Iterator[Serve]:
    """The product, serving as a role that owns nothing, on tables created by the owner."""
    roles.manage("grant", roles.name)
    data_dir = roles.home / "serving"
    data_dir.mkdir(mode=0o700)
    served = Serve(data_dir, roles.runner, workspace.free_port(), roles.keys)
    try:
        yield served.start("--no-migrate", workers=1)
    finally:
        served.stop()


def start_refused(roles: Roles) -> str:
    return roles.refusal_of("serve", "--port", str(workspace.free_port()), "--no-migrate")


@pytest.mark.full
def test_the_product_works_as_a_role_that_owns_nothing(roles: Roles, served: Serve) -> None:
    assert signs_in(served.url, OWNER, PASSWORD)
    issued = served.issue_token(host="Bot", gateway="quickstart")
    with Load(issued["gateway_url"], issued["token"], 2) as load:
        load.wait_for(10)
    assert load.refused == 0
    with psycopg.connect(roles.owner) as owner:
        logged = {row[0] for row in owner.execute("SELECT correlation_id FROM auditlog_call").fetchall()}
        assert load.answered <= logged
        owner.execute("DROP TABLE auditlog_call_" + f"{datetime.now(UTC) + timedelta(days=9):%Y_%m_%d}")

    assert "partitions_made 1," in chores(served.manage)  # By the owner, although another role requested it.
    with psycopg.connect(roles.owner) as owner:
        strange = owner.execute(
            "SELECT count(*) FROM pg_class WHERE relname LIKE 'auditlog_call%' AND relowner <> current_user::regrole"
        )
        assert strange.fetchone() == (0,)


def test_the_role_that_serves_can_only_read_and_add_to_the_logs(
    roles: Roles, served: Serve, subtests: pytest.Subtests
) -> None:
    part = f"auditlog_call_{datetime.now(UTC):%Y_%m_%d}"
    changes = [change.format(table=table) for table in LOGS for change in CHANGES_OF_LOGS]
    changes += [change.format(part=part) for change in CHANGES_BESIDE_LOGS]
    for change in changes:
        refused = pytest.raises(psycopg.errors.InsufficientPrivilege)
        with subtests.test(change), psycopg.connect(roles.runner) as runner, refused:
            runner.execute(change.encode())


@pytest.mark.full
def test_old_partitions_leave_by_the_owner_only(roles: Roles, served: Serve) -> None:
    with psycopg.connect(roles.owner) as owner:
        owner.execute("SELECT auditlog_make_partition('2001-01-01', '2001-02-01')")

    assert "partitions_dropped 0," in chores(served.manage)
    assert "partitions_dropped 1," in chores(roles.manage)


@pytest.mark.full
def test_indexes_of_the_log_are_made_by_the_owner_only(roles: Roles, served: Serve) -> None:
    with psycopg.connect(roles.owner) as owner:
        owner.execute("CREATE INDEX call_by_trial ON ONLY auditlog_call (user_agent)")

    by_runner = chores(served.manage)

    assert "log_indexes_made 0," in by_runner
    assert "log_indexes_to_make 0" not in by_runner
    assert "log_indexes_to_make 0" in chores(roles.manage)
    with psycopg.connect(roles.owner) as owner:
        owner.execute("DROP INDEX call_by_trial")


def test_the_sql_printed_by_grant_is_what_it_runs(roles: Roles, served: Serve) -> None:
    rights = (
        "SELECT relname, privilege_type FROM pg_class, aclexplode(relacl)"
        " WHERE grantee::regrole::text = %s AND relnamespace = 'public'::regnamespace ORDER BY 1, 2"
    )
    printed = roles.manage("grant", roles.name, "--print")
    with psycopg.connect(roles.owner) as owner:
        before = owner.execute(rights, [roles.name]).fetchall()
        owner.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {roles.name}".encode())
        owner.execute(f"GRANT UPDATE ON auditlog_event TO {roles.name}".encode())
        owner.execute(printed.encode())
        after = owner.execute(rights, [roles.name]).fetchall()
    assert after == before
    assert [right for table, right in after if table in LOGS] == ["INSERT", "SELECT"] * 2


def test_grant_refuses_a_role_that_it_could_not_limit(roles: Roles, served: Serve) -> None:
    owner = urlsplit(roles.owner).username or ""
    assert "no grant can limit" in roles.by_owner.refusal("grant", owner)
    assert "There is no role nobody_here" in roles.by_owner.refusal("grant", "nobody_here")


@pytest.mark.full
def test_a_new_table_is_served_after_migrate_without_another_grant(roles: Roles, served: Serve) -> None:
    with psycopg.connect(roles.owner) as owner:
        owner.execute("CREATE TABLE made_later (id int)")
    roles.manage("migrate", "--verbosity", "0")

    with psycopg.connect(roles.runner) as runner:
        runner.execute("DELETE FROM made_later")
    with psycopg.connect(roles.owner) as owner:
        owner.execute("DROP TABLE made_later")


@pytest.mark.full
def test_after_a_rollback_the_newer_version_s_tables_keep_their_rights(roles: Roles, served: Serve) -> None:
    with psycopg.connect(roles.owner) as owner:
        owner.execute("CREATE TABLE made_by_newer (id int); CREATE TABLE serving_may_not (id int)")
        owner.execute(f"GRANT INSERT ON made_by_newer TO {roles.name}".encode())
        (own,) = owner.execute("SELECT made_by FROM accounts_schemaversion").fetchone() or ("",)
        owner.execute("UPDATE accounts_schemaversion SET made_by = '9.0.0'")
    try:
        roles.manage("migrate", "--verbosity", "0")
        assert "version 9.0.0 granted" in roles.manage("grant", roles.name)
        assert "run `grant` of that version" in roles.refusal_of("grant", "postgres")
        assert "run `grant` of that version" in roles.refusal_of("grant", roles.name, "--print")
        with psycopg.connect(roles.owner) as owner:
            rights = owner.execute(
                "SELECT relname, privilege_type FROM pg_class, aclexplode(relacl) WHERE grantee::regrole::text = %s"
                " AND relname IN ('made_by_newer', 'serving_may_not')",
                [roles.name],
            ).fetchall()
        assert rights == [("made_by_newer", "INSERT")]
    finally:
        with psycopg.connect(roles.owner) as owner:
            owner.execute("UPDATE accounts_schemaversion SET made_by = %s", [own])
            owner.execute("DROP TABLE made_by_newer, serving_may_not")


@pytest.mark.full
def test_serve_without_migrating_names_what_is_missing(roles: Roles, served: Serve) -> None:
    last = "app = 'auditlog' AND name = (SELECT max(name) FROM django_migrations WHERE app = 'auditlog')"
    forget = f"DELETE FROM django_migrations WHERE {last} RETURNING app, name"
    with psycopg.connect(roles.owner, autocommit=True) as owner:
        row = owner.execute(forget).fetchone()
        assert row is not None
        try:
            said = start_refused(roles)
            as_runner = roles.refusal_of("migrate", as_runner=True)
        finally:
            owner.execute("INSERT INTO django_migrations (app, name, applied) VALUES (%s, %s, now())", row)
    assert f"The database lacks auditlog.{row[1]}: run manage.py migrate first." in said
    assert "Migrate as the role that owns the tables" in as_runner


@pytest.mark.full
def test_a_migration_waits_a_moment_for_a_table_and_then_lets_the_calls_go_on(roles: Roles, served: Serve) -> None:
    """While a reader locks the log, a migration lets calls pass and retries. It finishes after the reader has left."""
    issued = served.issue_token(host="Waiter", gateway="quickstart")
    with (
        psycopg.connect(roles.owner) as reader,
        Load(issued["gateway_url"], issued["token"], 2, pause=0.05) as load,
    ):
        reader.execute("SELECT count(*) FROM auditlog_call")
        back = migrating(roles, "auditlog", "0001")
        assert back.stderr is not None
        said = [back.stderr.readline() for _ in range(2)]  # The migration gave up twice.
        load.wait_for(10)
        reader.rollback()
        assert back.wait(timeout=PROCESS_PATIENCE) == 0, back.stderr.read()
        back.stderr.close()
        roles.manage("migrate")
        load.wait_for(10)
    roles.manage("grant", roles.name)
    assert "needs a table that is in use; trying again" in said[0]
    assert "needs a table that is in use; trying again in 3 s (1 of 20)." in said[0]
    assert "(2 of 20)" in said[1]
    assert load.slowest < WAITED


@pytest.mark.full
def test_a_migration_gives_up_with_words(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(migrate, "TRIES", 2)
    monkeypatch.setattr(migrate, "PAUSE_S", 0)
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", "50ms")
    with psycopg.connect(database.conninfo()) as busy:
        busy.execute("LOCK TABLE django_migrations")
        with pytest.raises(CommandError, match="Earlier migrations stay applied; this one and later ones have not run"):
            call_command("migrate", "auditlog", "0001", verbosity=0)
    assert "(1 of 2)" in capsys.readouterr().err
    assert not database.missing()


def migrating(roles: Roles, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "manage.py", "migrate", "--verbosity", "0", *words],
        cwd=workspace.ROOT,
        env=environment(roles.home, DATABASE_URL=roles.owner, **roles.keys),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def chores(manage: Callable[..., str]) -> str:
    """Wait until no other process does the housekeeping, run it, and return the output."""
    while "doing the chores already" in (done := manage("housekeeping")):
        pass
    return done
