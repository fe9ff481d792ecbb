"""The effects of the first start on a fresh clone, and of a second start."""

import json
import re
import signal
import stat
from pathlib import Path

import psutil
import pytest
from django.conf import settings

from tests.eventually import PROCESS_PATIENCE, eventually
from tests.running.conftest import FOREIGN, FirstStart, postmaster
from tests.running.starts import Started, manage, password_of, serving, signs_in, start
from wire.versions import with_commit

pytestmark = pytest.mark.full


def test_first_start_prints_where_to_sign_in_and_the_second_keeps_the_data(first: FirstStart, home: Path) -> None:
    """The first start ignores variables that name another PostgreSQL."""
    printed = password_of(first.greeting)
    assert printed is not None
    assert f"Gateway Admin {with_commit(settings.COMMIT)} runs at {first.url}\n" in first.greeting
    assert first.signed_in
    assert first.logged == []  # No log line pushes the greeting away.
    assert first.code == 0
    assert first.postmaster is None
    assert stat.S_IMODE((home / "postgres").stat().st_mode) == 0o700

    secret = "a-password-to-forget"
    given = {"GATEWAY_ADMIN_EMAIL": printed[0], "GATEWAY_ADMIN_PASSWORD": secret, "GATEWAY_LOG_REQUESTS": "1"}
    with serving(home, given, workers=2) as second:
        assert password_of(second.greeting()) is None
        assert f"Sign in as {printed[0]}." in second.greeting()
        assert signs_in(second.url, *printed)
        assert not signs_in(second.url, printed[0], "?secret=in-the-form")
        no_environment_shows(secret, second)
        issue_a_token_beside(second)
        second.process.send_signal(signal.SIGINT)  # To the first process alone; a terminal's Ctrl-C reaches all.
        assert second.process.wait(timeout=PROCESS_PATIENCE) == 0
    assert '"path":"/accounts/login/"' in second.log()
    for text in (secret, "in-the-form", "SIGKILL", "Traceback"):
        assert text not in second.log()


def no_environment_shows(secret: str, started: Started) -> None:
    """No environment in /proc contains the secret. Linux shows the environment with which a process was started."""
    serve, embedded = psutil.Process(started.process.pid), postmaster(started.home)
    shown = {one.pid: Path(f"/proc/{one.pid}/environ").read_bytes() for one in [serve, *serve.children(True)]}
    assert all(b"GATEWAY_DATA_DIR" in environ for environ in shown.values())  # The environments are readable.
    assert embedded is not None
    shown[embedded] = Path(f"/proc/{embedded}/environ").read_bytes()  # Mostly the process title.
    assert len(shown) >= 4  # The server, two workers, the database.
    assert not [pid for pid, environ in shown.items() if secret.encode() in environ]


def issue_a_token_beside(served: Started) -> None:
    """Issue a token by command, without disturbing the running server."""
    arguments = ("issue_token", "--user", "admin@localhost", "--host", "CI bot", "--gateway", "quickstart")
    before = postmaster(served.home)

    done = manage(served.home, *arguments, "--name", "nightly", "--expires-in-days", "7")

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    line = json.loads(done.stdout)
    assert list(line) == ["token", "id", "name", "prefix", "gateway_url", "expires_at"]
    assert (len(line["token"]), line["name"]) == (48, "nightly")
    assert line["token"].startswith(line["prefix"])
    assert line["gateway_url"] == f"{served.url}/mcp/quickstart"
    assert served.is_ready()
    assert postmaster(served.home) == before


def test_two_first_starts_at_once_make_one_owner(fresh: Path) -> None:
    settings = {"GATEWAY_QUICKSTART": "0"}
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
        assert manage(fresh, *words).stderr.strip() == "CommandError: There is no gateway quickstart. There are: none."

        assert other.stop() == 0
        assert postmaster(fresh) is None
    finally:
        for started in (one, other):
            if started.process.poll() is None:
                started.kill()


def test_a_start_ended_before_it_serves_leaves_no_database_running(fresh: Path) -> None:
    started = start(fresh)
    eventually(lambda: postmaster(fresh), PROCESS_PATIENCE)
    try:
        assert started.stop() == 128 + signal.SIGTERM, started.log()
        assert postmaster(fresh) is None
        assert "Traceback" not in started.log()
    finally:
        if started.process.poll() is None:
            started.kill()


def test_commands_without_a_server_use_its_database_and_address_and_leave_no_database_running(home: Path) -> None:
    """The data directory's path is too long for a socket, and variables for another PostgreSQL are set."""
    long = home.parent / ("long-" * 20) / "var"
    long.parent.mkdir()
    home.rename(long)

    printed = manage(long, "rescue", "new@example.com", "--create", **FOREIGN).stdout
    again = manage(long, "password_link", "new@example.com").stdout

    # Commands that do not know the server's port and address print links with those of the last start.
    link = re.compile(r"^(?:They choose a password at )?(http://localhost:\d+)/accounts/join/", re.MULTILINE)
    addresses = [found[1] for one in (printed, again) if (found := link.search(one))]
    assert len(addresses) == 2
    assert "new@example.com is an active Super admin now" in printed
    assert manage(long, "createsuperuser", "--noinput", "--email", "x@example.com").returncode == 1
    assert postmaster(long) is None
