"""One PostgreSQL server for a whole test run, and the environment variables of the settings.

pyproject.toml names this pytest plugin, because it must run before pytest-django reads the settings. The first process
of a run starts the embedded server in a temporary folder. At the end, it stops the server and deletes the folder. xdist
workers use the same folder, and each creates its own database. `TEST_DATABASE_URL` selects another server. Its account
must be allowed to create and drop databases.
"""

import fcntl
import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit
from uuid import uuid4

import psycopg
import pytest
from cryptography.fernet import Fernet
from psycopg import sql

from gatewayadmin.config.keys import kept_in
from gatewayadmin.embedded.cluster import OWNER, Cluster, run, run_program
from gatewayadmin.embedded.cluster import cluster as cluster_of
from tests import reaper

HOME = reaper.MARK
ADDRESS = "TEST_RUN_DATABASE"

ROOT = Path(__file__).resolve().parent.parent
KEPT = Path(sys.prefix) / "tables"  # The migrated tables as SQL, for later runs.
CODE = {".py", ".sql", ".toml", ".json"}

# Arguments of gc.set_threshold: objects allocated before the youngest generation is collected, and the number of
# collections of a generation before the next older one is collected.
GARBAGE = (50_000, 20, 50)

_own: list[Cluster] = []
_watchers: list[subprocess.Popen[bytes]] = []
_early: list[subprocess.Popen[bytes]] = []


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, Any, Any]:
    gc.disable()
    if HOME not in os.environ:
        begin()
        if early_config.known_args_namespace.numprocesses:
            # A whole run needs the tables. The migrations run while the workers collect, not while they wait for them.
            _early.append(
                subprocess.Popen([sys.executable, "-c", "from tests import cluster; cluster.tables()"], cwd=ROOT)
            )
    return (yield)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Enable garbage collection after the imports. Repeated scans of loaded modules took a tenth of a run."""
    gc.freeze()
    gc.set_threshold(*GARBAGE)
    gc.enable()


def pytest_unconfigure() -> None:
    while _early:
        process = _early.pop()
        process.terminate()
        process.wait()
    for cluster in _own:
        cluster.leave()
        shutil.rmtree(os.environ[HOME], ignore_errors=True)
    _own.clear()
    while _watchers:
        _watchers.pop().communicate(timeout=20)


def begin() -> None:
    """Start a run: remove the developer's settings, start PostgreSQL, and set the environment variables of the run."""
    for name in [name for name in os.environ if name.startswith(("GATEWAY_", "DATABASE_", "PG"))]:
        del os.environ[name]
    keep_compiled()
    home = Path(tempfile.mkdtemp(prefix="gateway-admin-test-"))
    os.environ[HOME] = os.environ["GATEWAY_DATA_DIR"] = str(home)
    kept_in(home / "keys")
    watch(home)
    given = os.environ.get("TEST_DATABASE_URL")
    os.environ[ADDRESS] = given or start(home)
    if given:
        os.environ.update({"DATABASE_URL": given, **keys()})


@contextmanager
def run_of_ones_own() -> Iterator[None]:
    """Let a program other than pytest use the cluster of the current test run, or else one that ends with the block."""
    if HOME in os.environ:
        yield
        return
    begin()
    try:
        yield
    finally:
        pytest_unconfigure()


def keep_compiled() -> None:
    """Store compiled modules for the hundreds of processes of a run, even if the environment disables this."""
    if sys.dont_write_bytecode:
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(Path(sys.prefix) / "pycache")
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix


def watch(home: Path) -> None:
    """Start a process that cleans up if this run is killed, which closes the standard input of the process."""
    command = [sys.executable, "-m", reaper.__name__, str(home)]
    _watchers.append(subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, start_new_session=True))


def start(home: Path) -> str:
    """Start the embedded PostgreSQL in `home` and return its address."""
    cluster = cluster_of(home.resolve())  # The object that Django's connections use, too.
    cluster.ensure()
    _own.append(cluster)
    address = f"postgresql://{OWNER}@/postgres?host={quote(str(cluster.socket_folder), safe='')}"
    with psycopg.connect(address, autocommit=True) as connection:
        # A crash of the machine may lose these databases. Tests of durability start their own servers, with the
        # defaults.
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("ALTER SYSTEM SET full_page_writes = off")
        connection.execute("ALTER SYSTEM SET synchronous_commit = off")
        connection.execute("ALTER SYSTEM SET checkpoint_timeout = '1h'")
        connection.execute("SELECT pg_reload_conf()")
    return address


def keys() -> dict[str, str]:
    """Return newly generated keys as environment variables, as an operator would set them."""
    return {
        "GATEWAY_SECRET_KEY": uuid4().hex * 2,
        "GATEWAY_TOKEN_KEYS": uuid4().hex * 2,
        "GATEWAY_ENCRYPTION_KEYS": Fernet.generate_key().decode(),
    }


def fresh_database(name: str, template: str = "template1") -> str:
    """Create a copy of the database `template` (default: empty) in the run's PostgreSQL, and return the copy's URL."""
    address = os.environ[ADDRESS]
    with psycopg.connect(address, autocommit=True) as connection:
        names = {"name": sql.Identifier(name), "template": sql.Identifier(template)}
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {name} WITH (FORCE)").format(**names))
        connection.execute(sql.SQL("CREATE DATABASE {name} TEMPLATE {template}").format(**names))
    return urlunsplit(urlsplit(address)._replace(path=f"/{name}"))


def tables() -> str:
    """Return the name of a database with only the migrated tables, created once per run as a template."""
    name = Path(os.environ[HOME]).name.replace("-", "_")
    with once("tables") as missing:
        if missing:
            make_tables(fresh_database(name))
    return name


def make_tables(address: str) -> None:
    """Run the migrations in this empty database, or restore the tables that an earlier run kept for the same code."""
    of_ours = "TEST_DATABASE_URL" not in os.environ  # Our pg_dump may not suit another server's version.
    kept = KEPT / f"{state_of_the_code()}.sql"
    if of_ours and kept.exists():
        run_program("psql", "--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1", address, text=kept.read_text())
        return
    settings = {"DATABASE_URL": address, **keys()}
    command = [sys.executable, "manage.py", "migrate", "--verbosity", "0"]
    subprocess.run(command, cwd=ROOT, env=os.environ | settings, check=True)
    if of_ours:
        keep(address, kept)


def keep(address: str, kept: Path) -> None:
    """Dump the database to this file atomically, and delete the dumps of other code states."""
    dumped = run("pg_dump", address)
    assert dumped.returncode == 0, dumped.stdout
    kept.parent.mkdir(exist_ok=True)
    part = kept.with_suffix(f".{os.getpid()}")
    part.write_text(dumped.stdout)
    part.rename(kept)
    for path in kept.parent.glob("*.sql"):
        if path != kept:
            path.unlink(missing_ok=True)


def state_of_the_code(root: Path = ROOT, today: date | None = None) -> str:
    """Return a digest that changes with everything migrations depend on: our code, the packages and the day.

    The day matters because migrations create the partitions of the coming days.
    """
    digest = sha256(f"{today or datetime.now(UTC).date()} {sys.version}".encode())
    packages = sorted(path.parent for path in root.glob("*/__init__.py") if path.parent.name not in ("tests", "bench"))
    files = [path for package in packages for path in sorted(package.rglob("*")) if path.suffix in CODE]
    for path in [*files, *sorted(root.glob("*.lock"))]:
        text = path.read_bytes()
        digest.update(f"{path.relative_to(root)} {len(text)} ".encode() + text)
    return digest.hexdigest()


@contextmanager
def once(what: str) -> Iterator[bool]:
    """Yield True to the first process of the run. Others wait until its block ends, and then get False."""
    mark = Path(os.environ[HOME]) / f"{what}.made"
    with mark.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not mark.exists()
        mark.touch()
