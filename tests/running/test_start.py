"""The effects of the first start on a fresh clone, and of a second start."""

import json
import os
import re
import signal
import stat
from pathlib import Path

import psutil
import pytest
from django.conf import settings

from tests import cluster
from tests.cases import full
from tests.running.conftest import FOREIGN, FirstStart, postmaster
from tests.running.starts import manage, password_of, serving, signs_in, start
from wire.versions import with_commit

pytestmark = pytest.mark.xdist_group("starts")


@pytest.mark.full
def test_first_start_prints_where_to_sign_in_and_the_second_keeps_the_data(first: FirstStart, home: Path) -> None:
    printed = password_of(first.greeting)
    assert printed is not None
    assert f"Gateway Admin {with_commit(settings.COMMIT)} runs at {first.url}\n" in first.greeting
    assert first.signed_in
    assert first.logged == []  # No log line pushes the greeting away.
    assert first.code == 0
    assert first.postmaster is None
    assert stat.S_IMODE((home / "postgres").stat().st_mode) == 0o700

    with serving(home) as second:
        assert password_of(second.greeting()) is None
        assert f"Sign in as {printed[0]}." in second.greeting()
        assert signs_in(second.url, *printed)
        second.process.send_signal(signal.SIGINT)  # To the first process alone; a terminal's Ctrl-C reaches all.
        assert second.process.wait(timeout=90) == 0
        assert "SIGKILL" not in second.log()


@pytest.mark.full
def test_variables_for_another_postgresql_do_not_reach_the_embedded_one(first: FirstStart, home: Path) -> None:
    assert password_of(first.greeting) is not None
    assert first.signed_in
    assert first.code == 0
    assert first.postmaster is None
    assert manage(home, "keys", **FOREIGN).returncode == 0


@pytest.mark.full
def test_nothing_printed_is_an_access_log_with_a_query(home: Path) -> None:
    with serving(home, {"GATEWAY_LOG_REQUESTS": "1"}) as served:
        signs_in(served.url, "admin@localhost", "?secret=in-the-form")
        served.stop()

    assert '"path":"/accounts/login/"' in served.log()
    assert "in-the-form" not in served.log()
    assert "Traceback" not in served.log()


@pytest.fixture(params=["with tables", full("embedded")])
def database(request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings for an unused database: one with tables, which is faster, or the new embedded one."""
    if request.param == "embedded":
        return {}
    return {"DATABASE_URL": cluster.fresh_database(f"first_{os.getpid()}", cluster.tables()), **cluster.keys()}


@pytest.mark.full
def test_two_first_starts_at_once_make_one_owner(fresh: Path, database: dict[str, str]) -> None:
    settings = {"GATEWAY_QUICKSTART": "0"} | database
    one, other = start(fresh, settings), start(fresh, settings)
    try:
        one.wait()
        other.wait()
        printed = [password_of(started.greeting()) for started in (one, other)]
        assert sum(found is not None for found in printed) == 1
        email, password = next(filter(None, printed))
        assert signs_in(one.url, email, password)
        assert signs_in(other.url, email, password)

        assert one.stop() == 0
        assert other.is_ready()
        assert signs_in(other.url, email, password)
        words = ("issue_token", "--user", email, "--host", "CI bot", "--gateway", "quickstart")
        assert (
            manage(fresh, *words, **database).stderr.strip()
            == "CommandError: There is no gateway quickstart. There are: none."
        )

        assert other.stop() == 0
        assert postmaster(fresh) is None
    finally:
        for started in (one, other):
            if started.process.poll() is None:
                started.kill()


@pytest.mark.full
def test_issue_token_works_beside_the_server_and_disturbs_nothing(home: Path) -> None:
    arguments = ("issue_token", "--user", "admin@localhost", "--host", "CI bot", "--gateway", "quickstart")
    with serving(home) as served:
        before = postmaster(home)

        done = manage(home, *arguments, "--name", "nightly", "--expires-in-days", "7")

        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        line = json.loads(done.stdout)
        assert list(line) == ["token", "id", "name", "prefix", "gateway_url", "expires_at"]
        assert (len(line["token"]), line["name"]) == (48, "nightly")
        assert line["token"].startswith(line["prefix"])
        assert line["gateway_url"] == f"{served.url}/mcp/quickstart"
        assert served.is_ready()
        assert postmaster(home) == before
        assert manage(home, *arguments).returncode == 0


@pytest.mark.full
def test_a_command_without_a_server_leaves_no_database_running(home: Path) -> None:
    done = manage(home, "housekeeping")

    assert done.returncode == 0, done.stderr
    assert postmaster(home) is None


@pytest.mark.full
def test_a_data_directory_too_long_for_a_socket_works(home: Path) -> None:
    long = home.parent / ("long-" * 20) / "var"
    long.parent.mkdir()
    home.rename(long)

    done = manage(long, "keys")

    assert done.returncode == 0, done.stderr
    assert postmaster(long) is None


@pytest.mark.full
def test_the_first_password_leaves_the_environment_of_every_process(fresh: Path, database: dict[str, str]) -> None:
    """The system shows a process's initial environment for its lifetime, and workers inherit their parent's."""
    given = {"GATEWAY_ADMIN_EMAIL": "owner@example.com", "GATEWAY_ADMIN_PASSWORD": "a-password-to-forget"}

    with serving(fresh, given | database, workers=2) as started:
        serve = psutil.Process(started.process.pid)
        shown = {one.pid: Path(f"/proc/{one.pid}/environ").read_bytes() for one in [serve, *serve.children(True)]}
        assert all(b"GATEWAY_DATA_DIR" in environ for environ in shown.values())  # The environments are readable.
        embedded = postmaster(fresh)
        assert (embedded is None) == bool(database)
        if embedded is not None:
            shown[embedded] = Path(f"/proc/{embedded}/environ").read_bytes()  # Mostly the process title.
        signed_in = signs_in(started.url, "owner@example.com", "a-password-to-forget")

    assert signed_in
    assert len(shown) >= 3 + (not database)  # The server, two workers, the database.
    assert not [pid for pid, environ in shown.items() if b"a-password-to-forget" in environ]


@pytest.mark.full
def test_a_link_leads_to_where_the_running_server_is(home: Path) -> None:
    """Commands that do not know the server's port and address print links with those of the last start."""
    printed = manage(home, "rescue", "new@example.com", "--create").stdout
    again = manage(home, "password_link", "new@example.com").stdout

    link = re.compile(r"^(?:They choose a password at )?(http://localhost:\d+)/accounts/join/", re.MULTILINE)
    addresses = [found[1] for one in (printed, again) if (found := link.search(one))]
    assert len(addresses) == 2
    assert "new@example.com is an active Super admin now" in printed
    assert manage(home, "createsuperuser", "--noinput", "--email", "x@example.com").returncode == 1
