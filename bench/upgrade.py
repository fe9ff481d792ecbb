"""Measure an upgrade of a gateway in use: `python -m bench.upgrade --rows 10000000`.

The release before this one (the newest tag, or `--since`) gets a log of thirty days and serves from two processes,
while agents call a tool all the time. Then this checkout migrates the tables, and new processes replace the old
processes one by one. As soon as a new process is ready, one old process is asked to end. Finally, processes of the old
release replace the new processes in the same way.

Without `--since`, the command may find no usable tag: there is no tag at all, or the newest tag already has all
migrations of this checkout. Then this checkout is the old release, and a copy of it with one more migration is the new
release.

For each step the command prints the duration, the number of calls that ended during the step, and the longest of these
calls. Fails if a call failed, if the log has more or fewer calls than were answered, or if a call took longer than
`--longest` seconds. bench/balanced.py is the load balancer.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, date, datetime, timedelta
from operator import itemgetter
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit
from uuid import uuid4

import psycopg
from cryptography.fernet import Fernet

from bench.balanced import LOOK_S, Balanced
from bench.log_pages import FILL, STEP
from bench.processes import ROOT, free_port, wait_for
from gatewayadmin.embedded.cluster import OWNER, cluster
from wire.versions import VERSION

MIGRATIONS = "*/migrations/0*.py"
# Changes that a release may contain: a column and an index of the log.
NEXT_MIGRATION = """
from django.db import migrations, models

from auditlog.indexes import DeclareIndex


class Migration(migrations.Migration):
    dependencies = [("auditlog", "{newest}")]
    operations = [
        migrations.AddField("call", "made_up", models.CharField(db_default="", default="", max_length=20)),
        DeclareIndex("call", models.Index(fields=["user_agent", "created_at"], name="call_made_up")),
    ]
"""
DAYS = 30
SHOWN = 12
DRAIN_S = 4  # Seconds for which a process still serves after it was asked to end, so that the balancer notices.


def main() -> None:
    options = parsed()
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-upgrade-")))
        home.chmod(0o755)  # If root runs this, the embedded PostgreSQL runs as another user.
        old, new = releases(options.since, home)
        admin = options.database_url or stack.enter_context(embedded(options.keep or home / "database"))
        again = bool(options.database_url or options.keep)
        upgrade = Upgrade(old, new, home, prepared(old, home, admin, options.rows, again=again))
        told = stack.enter_context(upgrade).run(options.seconds)
    told |= {"rows": options.rows}
    print(json.dumps(told) if options.json else "\n".join(upgrade.lines(told)))
    sys.exit(bool(told["failed"] or told["unrecorded"] or told["repeated"] or told["longest"] > options.longest))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.upgrade", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000, help="calls in the log (default: %(default)s)")
    parser.add_argument("--since", metavar="COMMIT", help="the release before (default: the newest tag)")
    parser.add_argument("--seconds", type=float, default=5, help="of calls before and after (default: %(default)s)")
    parser.add_argument("--longest", type=float, default=1, help="seconds a call may take (default: %(default)s)")
    parser.add_argument("--database-url", help="a PostgreSQL in which to create databases, instead of the embedded one")
    parser.add_argument("--keep", type=Path, help="a folder for the filled database, which the next run reuses")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser.parse_args()


def newest_release() -> str:
    """Return the newest tag of a release, such as v1.0.0; empty if there is none."""
    return next(iter(_git("tag", "--list", "v*", "--sort=-version:refname").decode().split()), "")


def migrations_of(release: str) -> set[str]:
    """Return the paths of the migrations of `release`. Raises CalledProcessError if this clone lacks the release."""
    return {
        name for name in _git("ls-tree", "-r", "--name-only", release).decode().split() if Path(name).match(MIGRATIONS)
    }


def _git(*words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=True).stdout


def releases(since: str | None, home: Path) -> tuple[Path, Path]:
    """Return the folders of the old and the new release."""
    newest = newest_release()
    if since is None and (not newest or migrations_of(newest) >= set(_files(MIGRATIONS))):
        return ROOT, next_release(home / "next")
    return previous(since or newest, home / "previous"), ROOT


def _files(*patterns: str) -> list[str]:
    listed = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns).decode()
    return [name for name in listed.split("\0") if (ROOT / name).is_file()]


def next_release(folder: Path) -> Path:
    """Copy this checkout to `folder` with a higher version and one more migration, and return `folder`."""
    folder.mkdir()
    for name in _files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    migrations, versions = folder / "auditlog" / "migrations", folder / "wire" / "versions.py"
    newest = max(path.stem for path in migrations.glob("0*.py"))
    (migrations / f"{int(newest[:4]) + 1:04}_made_up.py").write_text(NEXT_MIGRATION.format(newest=newest))
    text = versions.read_text()
    assert f'VERSION = "{VERSION}"' in text
    versions.write_text(text.replace(f'VERSION = "{VERSION}"', f'VERSION = "{VERSION}.1"'))
    return folder


def previous(commit: str, folder: Path) -> Path:
    """Extract the files of this commit into `folder`, and return `folder`.

    Exits if this clone does not have the commit.
    """
    folder.mkdir()
    archived = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=False)
    if archived.returncode:
        sys.exit(
            f"The release before this one, commit {commit}, is not in this clone. A shallow clone has only the newest "
            "commits: git fetch --unshallow brings the others."
        )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archived.stdout, check=True)
    return folder


@contextmanager
def embedded(home: Path) -> Iterator[str]:
    """Yield the address of an embedded PostgreSQL that runs with the settings of `manage.py serve`."""
    home.mkdir(mode=0o755, exist_ok=True)
    server = cluster(home.resolve())
    server.ensure()
    try:
        yield f"postgresql://{OWNER}@/postgres?host={quote(str(server.socket_folder), safe='')}"
    finally:
        server.leave()


def prepared(code: Path, home: Path, admin: str, rows: int, *, again: bool) -> dict[str, str]:
    """Create a database of the release in `code` with `rows` calls in the log; return the environment of its gateway.

    If `again` is true, the next run needs the filled database, too. This run then uses a copy of the filled database,
    and both databases need disk space.
    """
    keys = {"GATEWAY_SECRET_KEY": uuid4().hex * 2, "GATEWAY_TOKEN_KEYS": uuid4().hex * 2}
    keys["GATEWAY_ENCRYPTION_KEYS"] = Fernet.generate_key().decode()
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("GATEWAY_", "DJANGO_"))}
    own = {"GATEWAY_DRAIN_SECONDS": str(DRAIN_S), "GATEWAY_ADMIN_EMAIL": "admin@localhost", "PYTHONUNBUFFERED": "1"}
    environment = inherited | keys | own | {"GATEWAY_DATA_DIR": str(home / "commands")}
    (home / "commands").mkdir(mode=0o700)
    filled, used = f"filled_{rows}", "upgraded"
    with psycopg.connect(admin, autocommit=True) as connection:
        known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [filled]).fetchone()
        if known is None:
            draft = f"{filled}_draft"
            connection.execute(f"DROP DATABASE IF EXISTS {draft}")
            connection.execute(f"CREATE DATABASE {draft}")
            manage(code, environment | {"DATABASE_URL": at(admin, draft)}, "migrate", "--verbosity", "0")
            fill(at(admin, draft), rows)
            connection.execute(f"ALTER DATABASE {draft} RENAME TO {filled}")
        connection.execute(f"DROP DATABASE IF EXISTS {used} WITH (FORCE)")
        make = f"CREATE DATABASE {used} TEMPLATE {filled} STRATEGY FILE_COPY"
        connection.execute(make if again else f"ALTER DATABASE {filled} RENAME TO {used}")
        connection.execute("CHECKPOINT")  # Otherwise calls wait until the inserted rows are on disk.
    return environment | {"DATABASE_URL": at(admin, used)}


def at(address: str, database: str) -> str:
    return urlsplit(address)._replace(path=f"/{database}").geturl()


def manage(code: Path, environment: dict[str, str], *words: str) -> str:
    """Run a manage.py command of the release in `code` and return the output; exit if the command fails."""
    done = subprocess.run(
        [sys.executable, "manage.py", *words], cwd=code, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{code}: manage.py {' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout


type Part = tuple[str, float]
"""A line that a command printed, and the seconds since the one before."""


def timed(code: Path, environment: dict[str, str], *words: str) -> list[Part]:
    """Run a manage.py command; return each printed line with its duration in seconds. Exit if the command fails."""
    began, parts = time.monotonic(), list[Part]()
    command = [sys.executable, "-u", "manage.py", *words]
    with subprocess.Popen(command, cwd=code, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            parts.append((line.strip(), time.monotonic() - began))
            began = time.monotonic()
    if process.returncode:
        sys.exit(f"manage.py {' '.join(words)}: {'\n'.join(line for line, _ in parts)}")
    return parts


def at_share(ordered: list[float], share: float) -> float:
    """Return the quantile `share` (0 to 1) of the sorted values; 0.0 if there are none."""
    return ordered[round(share * (len(ordered) - 1))] if ordered else 0.0


def fill(address: str, rows: int) -> None:
    """Insert `rows` calls of the last thirty days into the log, two batches at a time."""
    began, today = time.monotonic(), datetime.now(UTC).date()
    with psycopg.connect(address, autocommit=True) as connection:
        for day in (today - timedelta(days=days) for days in range(DAYS + 1)):
            make_partition(connection, day)

    def step(first: int) -> None:
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute("SET synchronous_commit = off")
            connection.execute(FILL.encode(), {"rows": rows, "first": first, "last": min(first + STEP - 1, rows)})

    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(step, range(1, rows + 1, STEP)):
            pass
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE auditlog_call")
    print(f"filled with {rows:,} calls in {time.monotonic() - began:,.0f} s", file=sys.stderr)


def make_partition(connection: psycopg.Connection, day: date) -> None:
    name = f"auditlog_call_{day:%Y_%m_%d}"
    if connection.execute("SELECT to_regclass(%s)", [name]).fetchone() == (None,):
        connection.execute("SELECT auditlog_make_partition(%s, %s)", [day, day + timedelta(days=1)])


class Upgrade:
    """The gateway processes of both releases on one database, and the measurements of each step."""

    def __init__(self, old: Path, new: Path, home: Path, environment: dict[str, str]) -> None:
        self._old, self._new, self._home, self._environment = old, new, home, environment
        self._serves: dict[int, subprocess.Popen[bytes]] = {}
        self._steps: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        for process in self._serves.values():
            process.terminate()
        for process in self._serves.values():
            process.wait(timeout=60)

    def run(self, seconds: float) -> dict[str, Any]:
        """Upgrade to the new release, then go back to the old release. Return the measurements of all steps."""
        old = [self._start(self._old), self._start(self._old)]
        words = ("issue_token", "--user", "admin@localhost", "--host", "Load", "--gateway", "quickstart")
        issued = json.loads(manage(self._old, self._environment, *words))
        load = Balanced(issued["token"], "quickstart", ports=old, ready=[*old])
        with load:
            with self._step(load, "the release before serves"):
                time.sleep(seconds)
            with self._step(load, "the new one refuses the old tables"):
                refusal = self._refused()
            self._migrate(load)
            for name, code in (("the new release serves", self._new), ("the release before serves again", self._old)):
                for port in [*load.ports]:
                    with self._step(load, "a process is replaced"):
                        self._replace(load, port, code)
                with self._step(load, name):
                    time.sleep(seconds)
        return self._seen(load, issued["id"]) | {"refusal": refusal}

    def _migrate(self, load: Balanced) -> None:
        with self._step(load, "tables are migrated") as parts:
            parts.extend(timed(self._new, self._environment, "migrate", "--verbosity", "2", "--no-log-indexes"))
        with self._step(load, "the log is indexed") as parts:
            parts.extend(timed(self._new, self._environment, "migrate"))

    def _replace(self, load: Balanced, port: int, code: Path) -> None:
        """Replace a process as an orchestrator does: start a new process, and when it is ready, end the old process."""
        load.ports.append(self._start(code))
        until = time.monotonic() + 30
        while load.ports[-1] not in load.ready:
            assert time.monotonic() < until, "the balancer does not find it ready"
            time.sleep(LOOK_S)
        process = self._serves.pop(port)
        process.terminate()
        if process.wait(timeout=60):
            sys.exit(f"a process ended with {process.returncode}: {self._log(port).read_text()[-2000:]}")
        load.ports.remove(port)

    def _start(self, code: Path) -> int:
        """Run `serve --no-migrate` of the release in `code`, and return its port once it is ready."""
        port = free_port()
        (self._home / str(port)).mkdir(mode=0o700)
        with self._log(port).open("wb") as log:
            process = self._serves[port] = subprocess.Popen(
                [sys.executable, "manage.py", "serve", "--no-migrate", "--workers", "1", "--port", str(port)],
                cwd=code,
                env=self._environment | {"GATEWAY_DATA_DIR": str(self._home / str(port))},
                stdout=log,
                stderr=log,
            )
        try:
            wait_for(f"http://127.0.0.1:{port}/readyz", process)
        except TimeoutError:
            sys.exit(f"a process of {code} did not start: {self._log(port).read_text()[-2000:]}")
        return port

    def _log(self, port: int) -> Path:
        return self._home / f"{port}.log"

    def _refused(self) -> str:
        """Return the last line that the new release prints when it refuses to serve the old tables.

        The new release is started with `serve --no-migrate`. Exit if it serves the old tables after all.
        """
        words = ("serve", "--no-migrate", "--port", str(free_port()))
        done = subprocess.run(
            [sys.executable, "manage.py", *words],
            cwd=self._new,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if not done.returncode:
            sys.exit("the new release serves the tables of the release before")
        return done.stderr.strip().splitlines()[-1]

    @contextmanager
    def _step(self, load: Balanced, name: str) -> Iterator[list[Part]]:
        """Measure the block as one step. If no call ends during the block, the step waits up to 60 seconds for one.

        The block may append parts of the step, with their durations, to the yielded list. The parts are reported too.
        """
        began, parts, failed = time.monotonic(), list[Part](), len(load.failed)
        yield parts
        until = time.monotonic() + 60
        while not load.since(began) and time.monotonic() < until:
            time.sleep(LOOK_S)
        taken, calls = time.monotonic() - began, load.since(began)
        known = {"step": name, "seconds": taken, "calls": len(calls), "failed": len(load.failed) - failed}
        shares = {"median": at_share(calls, 0.5), "p99": at_share(calls, 0.99), "longest": at_share(calls, 1)}
        self._steps.append(known | shares | {"parts": parts})
        print(line_of(self._steps[-1]), file=sys.stderr, flush=True)

    def _seen(self, load: Balanced, token: str) -> dict[str, Any]:
        with psycopg.connect(self._environment["DATABASE_URL"]) as connection:
            query = "SELECT count(*) FROM auditlog_call WHERE token_id = %s AND created_at > now() - interval '1 day'"
            (recorded,) = connection.execute(query, [token]).fetchone() or (0,)
            (lacking,) = connection.execute("SELECT count(*) FROM pg_index WHERE NOT indisvalid").fetchone() or (0,)
        answered = len(load.taken) - len(load.failed)
        return {
            "steps": self._steps,
            "answered": answered,
            "longest": max((seconds for _, seconds in load.taken), default=0.0),
            "failed": load.failed,
            "sent_again": load.sent_again,
            "unrecorded": max(answered - recorded, 0),
            "repeated": max(recorded - answered, 0),
            "indexes_not_ready": lacking,
        }

    @staticmethod
    def lines(told: dict[str, Any]) -> Iterator[str]:
        """Yield the measurements as readable lines."""
        yield f"{told['rows']:,} calls in the log"
        yield from map(line_of, told["steps"])
        yield "The longest steps of migrating and indexing:"
        parts = sorted((part for step in told["steps"] for part in step["parts"]), key=itemgetter(1), reverse=True)
        yield from (f"{seconds:9.1f} s  {line}" for line, seconds in parts[:SHOWN])
        yield f"{told['answered']:,} calls answered, the longest in {told['longest'] * 1000:,.0f} ms"
        yield f"{len(told['failed'])} failed, {told['sent_again']} were sent again over another connection"
        yield f"{told['unrecorded']} not in the log, {told['repeated']} in it twice"
        yield f"The new release on the old tables: {told['refusal']}"
        yield from told["failed"][:5]


def line_of(step: dict[str, Any]) -> str:
    median, p99, longest = (f"{step[name] * 1000:,.0f}" for name in ("median", "p99", "longest"))
    calls = f"{step['calls']:8,} calls, {step['failed']} failed: median {median} ms, p99 {p99} ms, longest {longest} ms"
    return f"{step['step']:38}{step['seconds']:9.1f} s{calls}"


if __name__ == "__main__":
    main()
