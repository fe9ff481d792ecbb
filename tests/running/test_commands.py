"""Commands: their output, and their changes to the database."""

import json
import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import StringIO
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.core.management import CommandError, call_command, get_commands, load_command_class
from django.db import DatabaseError
from django.test import Client

from accounts.models import WorkspaceSettings
from auditlog.models import Call
from gatewayadmin.config import checks, database, environment
from gatewayadmin.management.commands import serve
from gatewayadmin.serving import housekeeping
from gatewayadmin.serving.start import Welcome
from hosts.models import Host
from oauth.models import AuthorizeRequest, Ending
from proxy.models import RateCounter
from servers.models import Health, Server
from tests import cluster, make, upstreams
from tests.conftest import Run
from tests.running.starts import manage
from tests.workspace import free_port
from tokens.models import Token
from wire import token_text


def printed(*words: str) -> str:
    out = StringIO()
    call_command(*words, stdout=out)
    return out.getvalue()


def issue(user: str, gateway: str, *more: str) -> dict[str, str]:
    line: dict[str, str] = json.loads(
        printed("issue_token", "--user", user, "--host", "CI bot", "--gateway", gateway, *more)
    )
    return line


@pytest.mark.full
def test_no_command_looks_for_garbage_among_what_it_has_loaded(tmp_path: Path) -> None:
    code = "import gc; print(gc.isenabled(), gc.get_freeze_count() > 10 * len(gc.get_objects()))"
    database = {"DATABASE_URL": os.environ[cluster.ADDRESS], **cluster.keys()}

    done = manage(tmp_path, "shell", "--no-imports", "--command", code, **database)

    assert done.stdout == "True True\n", done.stderr


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_issue_token_makes_host_and_connection_once() -> None:
    user, gateway = make.user(), make.gateway()

    lines = [issue(user.email, gateway.slug, "--expires-in-days", "7"), issue(user.email, gateway.slug)]

    one, other = Token.objects.order_by("created_at")
    assert one.connection == other.connection
    assert (one.connection.host.name, one.connection.user, one.connection.gateway) == ("CI bot", user, gateway)
    assert Host.objects.count() == 1
    for line, token in zip(lines, (one, other), strict=True):
        assert list(line) == ["token", "id", "name", "prefix", "gateway_url", "expires_at"]
        assert bytes(token.digest or b"") in token_text.candidates(line["token"], settings.TOKEN_KEYS)
        assert (line["id"], line["name"], line["prefix"]) == (str(token.pk), token.name, line["token"][:12])
    lived = datetime.fromisoformat(lines[0]["expires_at"]) - one.created_at
    assert timedelta(days=6, hours=23) < lived < timedelta(days=7, hours=1)


@pytest.mark.django_db(transaction=True)
def test_issue_token_prints_the_address_the_server_recorded() -> None:
    user, gateway = make.user(), make.gateway()
    WorkspaceSettings.load()
    WorkspaceSettings.objects.update(public_base_url="https://gateway.example.com")

    line = issue(user.email, gateway.slug)

    assert line["gateway_url"] == f"https://gateway.example.com/mcp/{gateway.slug}"


@pytest.mark.django_db(transaction=True)
def test_issue_token_says_what_is_wrong() -> None:
    user, gateway = make.user(), make.gateway()
    gone = make.user(is_active=False)
    shut = make.gateway(enabled=False)

    def refusal(*words: str) -> str:
        with pytest.raises(CommandError) as caught:
            issue(*words)
        return str(caught.value)

    assert refusal("nobody@example.com", gateway.slug) == "There is no active user nobody@example.com."
    assert refusal(gone.email, gateway.slug) == f"There is no active user {gone.email}."
    nowhere = f"There is no gateway nowhere. There are: {', '.join(sorted((gateway.slug, shut.slug)))}."
    assert refusal(user.email, "nowhere") == nowhere
    with pytest.raises(CommandError, match=re.escape(nowhere)):
        call_command("doctor", "--gateway", "nowhere")
    expiry = refusal(user.email, gateway.slug, "--expires-in-days", "91")
    assert "--expires-in-days" in expiry
    assert "7, 30, 90" in expiry
    assert refusal(user.email, shut.slug) == "An administrator has disabled this gateway."
    assert not Host.objects.exists()


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_housekeeping_sweeps_what_has_expired_and_keeps_the_rest() -> None:
    now = datetime.now(UTC)
    user = make.user()
    host = make.agent(by=user)
    for age in (timedelta(minutes=1), timedelta(days=1)):
        flow = {"kind": Ending.TOKEN, "host": host, "user": user, "browser_digest": b"d" * 32}
        AuthorizeRequest.objects.create(expires_at=now - age, **flow)
        AuthorizeRequest.objects.create(expires_at=now + age, **flow)
        RateCounter.objects.create(subject_type=f"{age.days}", window=now - age, most=1)

    line = printed("housekeeping")

    assert "authorize_requests 2" in line
    assert "rate_counters 1" in line
    assert AuthorizeRequest.objects.count() == 2
    assert [counter.window for counter in RateCounter.objects.all()] == [now - timedelta(minutes=1)]


@pytest.mark.django_db(transaction=True)
def test_a_chore_that_fails_is_told_and_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(now: datetime) -> int:
        raise DatabaseError("out of order")

    monkeypatch.setitem(housekeeping.CHORES, next(iter(housekeeping.CHORES)), fail)
    RateCounter.objects.create(subject_type="old", window=datetime.now(UTC) - timedelta(days=1), most=1)

    with pytest.raises(CommandError, match="1 of the chores failed"):
        printed("housekeeping")

    assert not RateCounter.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_housekeeping_keeps_partitions_ten_days_ahead() -> None:
    housekeeping.do_chores()

    today = datetime.now(UTC).date()
    wanted = {f"auditlog_call_{today + timedelta(days=days):%Y_%m_%d}" for days in range(11)}
    assert wanted <= set(Call.partitions.names())


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_keys_tells_which_may_be_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    user, gateway = make.user(), make.gateway()
    old, new, unused = b"o" * 32, b"n" * 32, b"u" * 32
    monkeypatch.setattr(settings, "TOKEN_KEYS", [old])
    issue(user.email, gateway.slug)
    monkeypatch.setattr(settings, "TOKEN_KEYS", [new, old, unused])

    lines = printed("keys").splitlines()

    assert lines[1].split() == [token_text.token_key_id(new), "0", "newest,", "in", "use"]
    assert lines[2].split() == [token_text.token_key_id(old), "1", "still", "needed"]
    assert lines[3].split() == [token_text.token_key_id(unused), "0", "may", "be", "removed"]

    monkeypatch.setattr(settings, "TOKEN_KEYS", [new])
    assert f"{token_text.token_key_id(old)}       1  MISSING" in printed("keys")
    with pytest.raises(CommandError) as refused:
        started(monkeypatch)
    assert "\n" not in str(refused.value)
    assert f"GATEWAY_TOKEN_KEYS lacks keys that stored data needs: {token_text.token_key_id(old)} (1 stored)" in str(
        refused.value
    )
    monkeypatch.setattr(settings, "LOST_KEYS", [token_text.token_key_id(old)])
    assert started(monkeypatch)[1] == ""
    monkeypatch.setattr(settings, "LOST_KEYS", [])
    monkeypatch.setattr(settings, "TOKEN_KEYS", [new, old])
    assert started(monkeypatch)[1] == ""


@pytest.mark.django_db(transaction=True)
def test_a_start_with_another_secret_key_says_that_everybody_signs_in_again(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    client.force_login(make.user())
    assert started(monkeypatch)[1] == ""

    monkeypatch.setattr(settings, "SECRET_KEY", "another" * 10)
    assert "GATEWAY_SECRET_KEY has changed: everybody must sign in again" in started(monkeypatch)[1]

    client.force_login(make.user())
    assert started(monkeypatch)[1] == "", "somebody has signed in since"


class FarAway(psycopg.Connection[Any]):
    """A database connection that waits 20 ms longer for each result, as if the database were far away."""

    def wait(self, *args: Any, **options: Any) -> Any:
        time.sleep(0.02)
        return super().wait(*args, **options)


@pytest.mark.django_db(transaction=True)
def test_a_database_far_away_is_warned_of() -> None:
    found = checks.DatabaseReport()
    with FarAway.connect(database.conninfo()) as connection:
        checks.look_at_distance(found, connection)

    assert "A round trip to the database takes " in found.warnings[0]
    assert "best less than 1 ms away" in found.warnings[0]


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_a_start_tells_where_it_listens_when_that_is_not_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "listens" not in started(monkeypatch)[0]
    monkeypatch.setenv("GATEWAY_PUBLIC_URL", "https://gateway.example.com")
    assert "It listens on 127.0.0.1 port 8000." in started(monkeypatch, "--port", "8000")[0]


def started(monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[str, str]:
    """Return the messages and warnings of `serve` before it serves."""

    class Greets:
        def __init__(self, *_: object, say_hello: Callable[[], None], **__: object) -> None:
            self.run = say_hello

    monkeypatch.setattr(serve, "GunicornServer", Greets)
    monkeypatch.setattr(serve, "reserve", lambda *_: None)
    monkeypatch.setattr(serve, "metrics_folder", lambda _: "")
    monkeypatch.setattr(environment, "set_for_children", lambda *_: None)
    monkeypatch.setattr(serve, "prepare", lambda **_: Welcome("ana@example.com", None))
    out, err = StringIO(), StringIO()
    call_command("serve", *words, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_housekeeping_asks_the_servers_nobody_has_heard_of(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "PRIVATE_UPSTREAMS", [ip_network("127.0.0.0/8")])
    up = make.server(url=run(upstreams.docs()).url)
    down = make.server(url=f"http://127.0.0.1:{free_port()}/mcp")
    off = make.server(url=down.url, enabled=False)
    heard = make.server(url=down.url, health=Health.OK, health_checked_at=datetime.now(UTC))

    assert "servers_asked 2" in printed("housekeeping")

    health = {server.pk: server.health for server in Server.objects.all()}
    assert health == {up.pk: Health.OK, down.pk: Health.DOWN, off.pk: Health.UNKNOWN, heard.pk: Health.OK}


def test_no_command_judges_the_code_again() -> None:
    """No command runs Django's system checks, which would double most commands' time; `make check` runs them."""
    names = [name for name, app in get_commands().items() if app == "gatewayadmin"]
    commands = {name: load_command_class("gatewayadmin", name) for name in names}
    parsers = {name: command.create_parser("manage.py", name) for name, command in commands.items()}

    assert len(names) > 10
    assert [n for n in names if commands[n].requires_system_checks and not parsers[n].get_default("skip_checks")] == []
