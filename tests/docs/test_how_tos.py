"""The commands in the marked blocks of how-to pages, run as printed."""

import json
import os
import re
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests import curl
from tests.clients.fixtures import FOLDER, MODULES, Npm, wait_for
from tests.docs.pages import ROOT
from tests.proxy.conftest import eventually
from tests.sso.conftest import provider_of
from tests.sso.saml_provider import saml_provider_of
from tests.workspace import OWNER, Serve, free_port

HOW_TO = ROOT / "docs" / "how-to"
MEMORY = "@modelcontextprotocol/server-memory"
ADD = """
from accounts.models import User
from gateways.models import Assignment, Gateway
from servers.models import Server
owner = User.objects.get(email="{owner}")
server = Server.objects.add(by=owner, slug="memory", name="Memory", url="{url}")
gateway = Gateway.objects.add(by=owner, slug="bridged", name="Bridged")
Assignment.objects.assign(gateway=gateway, server=server, by=owner, alias="memory", identity_scheme="none")
"""
ENFORCED = """
from sso.models import Provider
there = {"name": "Example", "issuer": "https://id.example.com", "client_id": "gateway", "domains": ["example.net"]}
Provider.objects.update_or_create(pk=1, defaults={"mode": "enforced"} | there)
"""


def block(page: str, mark: str) -> str:
    (found,) = re.findall(rf"<!-- {mark} -->\n```bash\n(.*?)```", (HOW_TO / page).read_text(), re.DOTALL)
    return str(found)


@pytest.mark.full
def test_the_bridge_makes_a_stdio_server_callable_through_a_gateway(live: Serve, npm: Npm) -> None:
    port = free_port()
    once = block("add-a-server.md", "bridge: once").split()
    pinned = json.loads((FOLDER / "package.json").read_text())["dependencies"]
    assert once == ["npm", "install", "--prefix", "mcp-bridge", *named(pinned, "supergateway", MEMORY)]
    command = block("add-a-server.md", "bridge: start").replace("3002", str(port))
    (npm.home / "mcp-bridge").mkdir()
    (npm.home / "mcp-bridge" / "node_modules").symlink_to(MODULES)
    with (npm.home / "bridge.log").open("w") as log:
        shell = ["bash", "-c", f"exec {command}"]
        bridge = subprocess.Popen(
            shell, env=npm.environment, cwd=npm.home, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(bridge, port)
        live.manage("shell", "--verbosity", "0", "-c", ADD.format(owner=OWNER, url=f"http://127.0.0.1:{port}/mcp"))
        issued = live.issue_token(host="Bridge bot", gateway="bridged")
        url, token = issued["gateway_url"], issued["token"]
        # The first list lacks the server while its program is starting.
        eventually(lambda: "memory__read_graph" in curl.list_tools(url, token).body, seconds=60)
        eventually(lambda: "entities" in curl.call_tool(url, token, "memory__read_graph").body, seconds=60)
    finally:
        os.killpg(bridge.pid, signal.SIGKILL)
        bridge.wait()


def named(pinned: dict[str, str], *packages: str) -> list[str]:
    return [f"{package}@{pinned[package]}" for package in packages]


def test_people_are_invited_by_the_command_as_printed_and_helped_in(live: Serve) -> None:
    lines = live.manage(*words("people-and-roles.md", "run")).splitlines()

    assert [line.split()[0] for line in lines] == ["ann@example.com", "ben@example.com"]
    for line in lines:
        assert line.split()[1].startswith(f"{live.url}/accounts/join/")
    (event, _) = live.rows("SELECT * FROM auditlog_event WHERE action = 'user.invited' ORDER BY id DESC LIMIT 2")
    assert (event["via"], event["changes"]["role"]) == ("system", [None, "Member"])

    assert OWNER in live.manage(*words("people-and-roles.md", "rescue"))
    assert f"{live.url}/accounts/" in live.manage(*words("people-and-roles.md", "link"))


def words(page: str, mark: str) -> list[str]:
    """Return the arguments of a printed manage.py command, without the prefix that starts manage.py."""
    start, _, command = block(page, mark).partition("manage.py ")
    assert start == ".venv/bin/python "
    return command.split()


def test_the_doctor_runs_as_printed(live: Serve) -> None:
    command = [word.replace("https://gateway.example.com", live.url) for word in words("connect-a-client.md", "doctor")]

    assert "--url" in command
    assert "FAIL" not in live.manage(*command).upper()


MAKE_KEY = """
from accounts.models import User
from capabilities import Capability
from tokens.api_keys import issue
print(issue(name="{name}", capabilities=[{capabilities}], days=7, by=User.objects.get(email="{owner}")).secret)
"""


MAKE_AUDITOR = """
from accounts.models import Role, User
from tokens.api_keys import issue
role = Role.objects.get(name="Auditor")
auditor = User.objects.create_user("auditor@example.com", None, role=role)
chosen = [one for one in role.granted if one.label in {labels}]
print(issue(name="audit", capabilities=chosen, days=7, by=auditor).secret)
"""
REVOKE = """
from accounts.models import User
from tokens.models import Token
Token.objects.get(pk="{token}").revoke(by=User.objects.get(email="{owner}"))
"""


def api_key(live: Serve, name: str, capabilities: str) -> str:
    code = MAKE_KEY.format(owner=OWNER, name=name, capabilities=capabilities)
    return live.manage("shell", "--verbosity", "0", "-c", code).strip()


@pytest.mark.full
def test_an_export_is_taken_as_printed(live: Serve, tmp_path: Path) -> None:
    issued = live.issue_token(host="Export bot", gateway="quickstart")
    assert curl.call_tool(issued["gateway_url"], issued["token"], "echo", text="hello").status == 200
    key = api_key(live, "export", "Capability.LOGS_READ")

    printed = shell(block("read-the-log.md", "export"), tmp_path, GATEWAY=live.url, API_KEY=key)

    assert printed == "true"
    rows = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert "Export bot" in [row["host_name"] for row in rows]
    assert all("export" not in row for row in rows)


@pytest.mark.full
def test_an_auditor_is_answered_as_printed(live: Serve, tmp_path: Path) -> None:
    page = (HOW_TO / "answer-an-auditor.md").read_text()
    script = "\n".join(re.findall(r"<!-- audit -->\n```bash\n(.*?)```", page, re.DOTALL))
    issued = live.issue_token(host="Audited bot", gateway="quickstart")
    live.issue_token(host="Idle bot", gateway="quickstart")
    assert curl.call_tool(issued["gateway_url"], issued["token"], "echo", text="hello").status == 200
    live.rows("UPDATE hosts_host SET created_at = now() - interval '91 days' WHERE name = 'Idle bot' RETURNING id")
    live.rows(
        "UPDATE tokens_token SET created_at = now() - interval '91 days' WHERE id = %s RETURNING id", issued["id"]
    )
    ended = live.issue_token(host="Ended bot", gateway="quickstart")
    assert curl.call_tool(ended["gateway_url"], ended["token"], "echo", text="hello").status == 200
    live.manage("shell", "--verbosity", "0", "-c", REVOKE.format(token=ended["id"], owner=OWNER))
    assert curl.call_tool(ended["gateway_url"], ended["token"], "echo", text="hello").status == 401
    # The key has only the permissions that the page asks for.
    labels = re.findall(r"\*(View [^*]+)\*", " ".join(page.partition("Start `bash`")[0].split()))
    assert len(labels) == 8
    key = live.manage("shell", "--verbosity", "0", "-c", MAKE_AUDITOR.format(labels=labels)).strip()
    for printed, here in (
        ("2026-06-01T12:00:00Z", (datetime.now(UTC) - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")),
        ("gwa_...", ended["prefix"]),
        ("https://gateway.example.com", live.url),
        ("gwp_...", key),
        ("create_issue", "echo"),
        ("q=ann@example.com", "q=Audited"),
    ):
        assert printed in script
        script = script.replace(printed, here)

    said = shell(script, tmp_path).splitlines()

    assert any(re.fullmatch(rf"{OWNER}: \d+ calls, \d+ refused", line) for line in said)
    assert "1" in said  # The ended token's answered call, without the refused one.
    assert "Idle bot: last seen never" in said
    assert any(re.fullmatch(r"[1-9]\d* idle", line) for line in said)
    assert any(re.fullmatch(r"[1-9]\d* old", line) for line in said)
    assert (tmp_path / "credentials.csv").exists()
    assert not any(line.startswith("Audited bot: last seen") for line in said)
    assert any(line.startswith(f"{issued['name']} of {OWNER}: since 20") for line in said)
    assert any(line.endswith(f"{OWNER} created the agent “Audited bot”.") for line in said)
    assert f'"{OWNER}","active","Super admin",' in (tmp_path / "people.csv").read_text()
    assert '"quickstart","everyone",' in (tmp_path / "gateways.csv").read_text()
    assert f'"{OWNER}","Audited bot","quickstart","active",' in (tmp_path / "connections.csv").read_text()
    calls, changes = ((tmp_path / name).read_text() for name in ("calls.jsonl", "changes.jsonl"))
    assert '"host_name":"Audited bot"' in calls.replace(": ", ":")
    assert set(changes.splitlines()) <= set((tmp_path / "events.jsonl").read_text().splitlines())


def test_a_job_rotates_its_own_token_as_printed(live: Serve, tmp_path: Path) -> None:
    issued = live.issue_token(host="Rotating bot", gateway="quickstart")
    command = block("agents-and-tokens.md", "rotate").replace("https://gateway.example.com", live.url)

    rotated = json.loads(shell(command, tmp_path, ID=issued["id"], TOKEN=issued["token"]))

    for secret in (issued["token"], rotated["token"]):  # Both work during the overlap.
        assert curl.list_tools(issued["gateway_url"], secret).status == 200


def shell(script: str, folder: Path, **variables: str) -> str:
    """Run the script, which must succeed; return its output."""
    environment = {**os.environ, **variables}
    done = subprocess.run(
        ["bash", "-ec", script], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_backup_is_restored_elsewhere_with_all_it_holds_and_its_modes(tmp_path: Path) -> None:
    data, other = tmp_path / "var", tmp_path / "other"
    (data / "keys").mkdir(parents=True)
    (data / "keys" / "secret_key").write_text("s3cret")
    (data / "keys").chmod(0o700)
    (data / "keys" / "secret_key").chmod(0o600)

    for mark, place in (("backup", data), ("restore", other)):
        environment = {**os.environ, "GATEWAY_DATA_DIR": str(place)}
        subprocess.run(["bash", "-ec", block("back-up.md", mark)], env=environment, cwd=tmp_path, check=True)

    assert (other / "keys" / "secret_key").read_text() == "s3cret"
    modes = [path.stat().st_mode & 0o777 for path in (other, other / "keys", other / "keys" / "secret_key")]
    assert modes == [0o700, 0o700, 0o600]
    assert (tmp_path / "gateway-backup.tar.gz").stat().st_mode & 0o777 == 0o600


def test_metadata_of_saml_are_fetched_as_printed(live: Serve, npm: Npm, tmp_path: Path) -> None:
    page, own = "single-sign-on.md", f"{live.url}/accounts/organisation/saml"
    # Creates the settings row, if there is none.
    subprocess.run(["curl", "-s", f"{own}/metadata/"], capture_output=True, check=True)
    live.rows("UPDATE sso_provider SET protocol = 'saml' RETURNING id")
    with saml_provider_of(npm, f"{own}/acs/", f"{own}/metadata/") as organisation:
        known = os.environ | {"GATEWAY": live.url, "METADATA": organisation.entity_id}
        said = [
            subprocess.run(
                ["bash", "-ec", block(page, mark)], env=known, cwd=tmp_path, capture_output=True, text=True, check=True
            ).stdout.strip()
            for mark in ("our metadata", "their metadata")
        ]
    assert said[1] == f'entityID="{organisation.entity_id}"'
    assert f'entityID="{own}/metadata/"' in (tmp_path / "gateway-admin.xml").read_text()
    live.rows("UPDATE sso_provider SET protocol = 'oidc' RETURNING id")


def test_an_identity_provider_is_asked_and_its_enforcement_ended_by_the_commands_as_printed(
    live: Serve, npm: Npm
) -> None:
    page = "single-sign-on.md"
    with provider_of(npm, f"{live.url}/accounts/organisation/back/") as organisation:
        shell = ["bash", "-c", block(page, "discovery")]
        asked = subprocess.run(shell, env=os.environ | {"ISSUER": organisation.origin}, capture_output=True, check=True)
        assert json.loads(asked.stdout)["issuer"] == organisation.origin
    live.manage("shell", "--verbosity", "0", "-c", ENFORCED)

    said = live.manage(*words(page, "end"))

    assert "passwords are accepted" in said
    (provider,) = live.rows("UPDATE sso_provider SET mode = 'off' RETURNING (SELECT mode FROM sso_provider) AS before")
    assert provider["before"] == "offered"
