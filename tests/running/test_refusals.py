"""Every failed start prints one line that says what to change."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from cryptography.fernet import Fernet

from tests import cluster
from tests.cases import first
from tests.running.starts import manage
from tests.workspace import ROOT, free_port
from wire.versions import VERSION

SECRET = "zYx9-wVu8-tSr7-qPo6-nMl5-kJi4-hGf3"
KEYS = {
    "GATEWAY_SECRET_KEY": SECRET,
    "GATEWAY_TOKEN_KEYS": SECRET,
    "GATEWAY_ENCRYPTION_KEYS": Fernet.generate_key().decode(),
}
NOWHERE = "postgresql://gateway:secret-word@127.0.0.1:1/gateway"


def refusal(home: Path, *arguments: str, **settings: str) -> str:
    """Return the one line with which `serve` ends."""
    done = manage(home, *(arguments or ("serve", "--port", str(free_port()))), **settings)
    assert done.returncode != 0
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.full
def test_port_in_use(fresh: Path, taken: int) -> None:
    line = refusal(fresh, "serve", "--port", str(taken))

    assert f"Cannot listen on 127.0.0.1 port {taken}: Address already in use. " in line
    assert line.endswith("choose another port: PORT=8010 make run, or serve --port 8010.")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-S", "manage.py"), "make setup"),
        (
            ("-c", "import runpy, sys; sys.version_info = (3, 11); runpy.run_path('manage.py', run_name='__main__')"),
            "3.12",
        ),
    ],
    ids=["no packages", "old Python"],
)
def test_a_python_that_is_not_ours_is_told_which_one_is(options: tuple[str, ...], words: str) -> None:
    done = subprocess.run([sys.executable, *options], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert words in done.stderr
    assert ".venv/bin/python manage.py" in done.stderr


@pytest.mark.full
def test_missing_keys_are_all_named(fresh: Path) -> None:
    line = refusal(fresh, DATABASE_URL=NOWHERE, GATEWAY_SECRET_KEY=SECRET)

    assert line.endswith("these must be set too: GATEWAY_TOKEN_KEYS, GATEWAY_ENCRYPTION_KEYS.")


@pytest.mark.full
def test_unreachable_database(fresh: Path) -> None:
    line = refusal(fresh, DATABASE_URL=NOWHERE, **KEYS)

    assert "The database cannot be reached" in line
    assert "Connection refused" in line
    assert "secret-word" not in line


@pytest.mark.full
def test_command_before_the_first_start(fresh: Path) -> None:
    assert refusal(fresh, "keys") == (
        f"CommandError: There is no database in {fresh}: set GATEWAY_DATA_DIR to where it is, or start"
        " `manage.py serve` once to create it."
    )
    assert not (fresh / "postgres").exists()


VERSIONS = {
    "before 1.0.0": (
        "DROP TABLE accounts_schemaversion",
        "made by a version before 1.0.0 and cannot be upgraded: export",
    ),
    "too new": (
        "UPDATE accounts_schemaversion SET made_by = '99.2.0', oldest = '99.1.0'",
        f"need version 99.1.0 or newer, but this is {VERSION}: use version 99.2.0",
    ),
    "too old": (
        "UPDATE accounts_schemaversion SET made_by = '0.9.0', oldest = '0.9.0'",
        "made by version 0.9.0. Version",
    ),
}


@pytest.mark.full
@pytest.mark.parametrize("change", first(1, VERSIONS))
def test_tables_of_a_version_that_does_not_fit(fresh: Path, change: str) -> None:
    statement, words = VERSIONS[change]
    address = cluster.fresh_database(f"version_{os.getpid()}", cluster.tables())
    with psycopg.connect(address) as connection:
        connection.execute(statement.encode())

    port = str(free_port())
    for command in (("migrate",), ("serve", "--port", port), ("serve", "--no-migrate", "--port", port), ("keys",)):
        assert words in refusal(fresh, *command, DATABASE_URL=address, **KEYS), command


@pytest.mark.full
def test_a_database_in_another_encoding_than_utf8(fresh: Path) -> None:
    name = f"ascii_{os.getpid()}"
    address = os.environ[cluster.ADDRESS]
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} ENCODING SQL_ASCII LOCALE 'C' TEMPLATE template0".encode())
    settings = {"DATABASE_URL": urlunsplit(urlsplit(address)._replace(path=f"/{name}")), **KEYS}

    for command in (("migrate",), ("serve", "--port", str(free_port()))):
        said = refusal(fresh, *command, **settings)
        assert said.endswith("The database has the encoding SQL_ASCII: create one with ENCODING 'UTF8'."), command


@pytest.mark.full
def test_data_directory_that_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")

    assert f"GATEWAY_DATA_DIR: cannot write to {path}" in refusal(path)


@pytest.mark.full
def test_root_reads_which_folders_other_accounts_can_pass_from_now_on(fresh: Path) -> None:
    """PostgreSQL cannot run as root, so another account must reach its data."""
    fresh.parent.chmod(0o700)

    told = manage(fresh, "migrate").stderr

    as_root = os.geteuid() == 0
    assert ("other accounts can now pass through folders" in told) is (f'["{fresh.parent}"]' in told) is as_root
    assert (stat.S_IMODE(fresh.parent.stat().st_mode) == 0o701) is as_root


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "value", "words"),
    first(
        1,
        [
            ("PORT", "0", "PORT must be a whole number from 1 to 65535, not '0'."),
            ("GATEWAY_QUICKSTART", "perhaps", "GATEWAY_QUICKSTART must be 1 or 0, not 'perhaps'."),
            ("GATEWAY_PUBLIC_URL", "https://example.com/gateway", "GATEWAY_PUBLIC_URL must be a URL"),
            ("GATEWAY_PRIVATE_UPSTREAMS", "10.0.0.5/8", "GATEWAY_PRIVATE_UPSTREAMS must be a network"),
            ("GATEWAY_ALLOWED_ORIGINS", "localhost:6274", "GATEWAY_ALLOWED_ORIGINS must be an origin"),
            (
                "GATEWAY_OUTBOUND_PROXY",
                "socks5://p.example",
                "GATEWAY_OUTBOUND_PROXY must be a URL such as http://user",
            ),
            ("GATEWAY_OUTBOUND_PROXY", "http://a%3Ab:c@p", "GATEWAY_OUTBOUND_PROXY has a user or a password that"),
            ("GATEWAY_NO_PROXY", "*", "GATEWAY_NO_PROXY must be names such as example.com and networks"),
            ("GATEWAY_EMAIL_URL", "smtp://me:pass/word@mail.example", "GATEWAY_EMAIL_URL must be a URL such as smtp"),
            ("GATEWAY_ADMIN_EMAIL", "admin", "GATEWAY_ADMIN_EMAIL must be an e-mail address, not 'admin'."),
            ("GATEWAY_ADMIN_PASSWORD", "admin", "GATEWAY_ADMIN_PASSWORD needs at least 12 characters."),
            ("GATEWAY_SECRET_KEY", "short", "GATEWAY_SECRET_KEY has a weak key"),
            ("GATEWAY_ENCRYPTION_KEYS", SECRET, "GATEWAY_ENCRYPTION_KEYS must hold Fernet keys"),
            ("GATEWAY_PUBLIC_ULR", "https://x.example", "GATEWAY_PUBLIC_ULR is not a variable of Gateway Admin; "),
        ],
    ),
)
def test_wrong_variable(fresh: Path, name: str, value: str, words: str) -> None:
    assert words in refusal(fresh, "serve", **{name: value})  # Without --port, which would win over PORT.


@pytest.mark.full
def test_the_memory_for_large_answers_has_room_for_one(fresh: Path) -> None:
    said = refusal(fresh, "serve", GATEWAY_ANSWER_MIB="64", GATEWAY_ANSWERS_MIB="32")

    assert "GATEWAY_ANSWERS_MIB must be a whole number from 64 to 65536, not '32'." in said


@pytest.mark.full
@pytest.mark.parametrize(
    "value",
    first(1, ["mysql://localhost/gateway", "postgresql://h/d?nonsense=1"]),
)
def test_wrong_database_url(fresh: Path, value: str) -> None:
    assert "DATABASE_URL" in refusal(fresh, DATABASE_URL=value, **KEYS)


@pytest.mark.full
def test_variables_of_others_are_left_alone(fresh: Path) -> None:
    # Kubernetes sets these for every container beside a service called "gateway".
    done = manage(fresh, "check", GATEWAY_SERVICE_HOST="10.0.0.1", GATEWAY_PORT_80_TCP="tcp://10.0.0.1:80")

    assert done.returncode == 0, done.stderr
