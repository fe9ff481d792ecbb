"""The commands and CI workflows of docs/how-to/configuration-as-code.md are run on this machine."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from accounts.models import Team, User
from capabilities import Capability
from configuration import document
from configuration.apply import apply
from configuration.plan import plan
from tests import make
from tests.configuration.test_rest import KEY
from tests.docs.pages import ROOT
from tests.workspace import OWNER, Serve

PAGE = ROOT / "docs" / "how-to" / "configuration-as-code.md"


def printed(mark: str) -> str:
    (found,) = re.findall(rf"<!-- {mark} -->\n```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return str(found)


def run(live: Serve, folder: Path, command: str, **variables: str) -> str:
    """Run a printed command in `folder`, and return what it prints."""
    for program in (".venv/bin/python manage.py", "gateway-admin"):
        command = command.replace(f"{program} ", f"{sys.executable} {ROOT / 'manage.py'} ")
    environment = live.environment() | variables
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.full
def test_a_workspace_is_exported_planned_and_applied_as_printed(live: Serve, tmp_path: Path) -> None:
    run(live, tmp_path, printed("export"))
    file, name = tmp_path / "gateway.yaml", make.unique("team")
    unchanged = file.read_text()
    file.write_text(f"version: 1\nteams: [{{name: {name}}}]\n")

    planned = run(live, tmp_path, printed("plan"))
    (digest,) = re.findall("^Digest: (.*)$", planned, re.MULTILINE)
    command = printed("apply").replace("DIGEST", digest).replace("owner@example.com", OWNER)
    applied = run(live, tmp_path, command)

    assert unchanged.startswith("version: 1\nworkspace:\n")
    assert f"+ team {name}\n" in planned
    assert applied == "gateway.yaml: 1 added.\n"
    (event,) = live.rows("SELECT * FROM auditlog_event WHERE action = 'team.created' AND target_label = %s", name)
    assert (event["actor_email"], event["changes"]["file"]) == (OWNER, "gateway.yaml, commit 8b21fe0")


@pytest.mark.full
def test_drift_has_an_exit_code_and_a_mistake_another(live: Serve, tmp_path: Path) -> None:
    drift, wrong = tmp_path / "drift.yaml", tmp_path / "wrong.yaml"
    drift.write_text(f"version: 1\nteams: [{{name: {make.unique('team')}}}]\n")
    wrong.write_text("version: 1\nteams: [{}]\n")

    codes = [live.commands.run("plan", str(path), "--exit-code") for path in (drift, wrong)]

    assert [one["code"] for one in codes] == [2, 1]
    assert "wrong.yaml:2:9: “name” is missing." in codes[1]["told"]


def workflows() -> list[Any]:
    """Return the printed workflows of GitHub Actions and GitLab."""
    found = re.findall(r"^```yaml\n((?:name: )?gateway.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [yaml.safe_load(text) for text in found]


def commands() -> list[list[str]]:
    """Return the commands of each printed workflow."""
    github, gitlab = workflows()
    steps = github["jobs"]["gateway"]["steps"]
    return [[step["run"] for step in steps if "run" in step], gitlab["gateway"]["script"]]


@pytest.mark.full
@pytest.mark.parametrize("number", [0, 1])
def test_the_printed_workflows_plan_and_apply(number: int, live: Serve, tmp_path: Path) -> None:
    name = make.unique("team")
    (tmp_path / "gateway.yaml").write_text(f"version: 1\nteams: [{{name: {name}}}]\n")
    key = live.manage("shell", "--verbosity", "0", "-c", KEY.replace("deploy", make.unique("key"))).strip()
    of_ci = {"GATEWAY_API_KEY": key, "GITHUB_SHA": "8b21fe0", "CI_COMMIT_BRANCH": "main", "CI_COMMIT_SHA": "8b21fe0"}

    plan, apply = (
        run(live, tmp_path, command.replace("https://gateway.example.com", live.url), **of_ci)
        for command in commands()[number]
    )

    assert f"+ team {name}\n" in plan
    assert apply == "gateway.yaml: 1 added.\n"
    (event,) = live.rows("SELECT * FROM auditlog_event WHERE target_label = %s", name)
    assert (event["via"], event["changes"]["file"]) == ("api", "gateway.yaml, commit 8b21fe0")


def test_a_key_is_sent_over_https_only(live: Serve, tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("version: 1\n")

    assert "does not begin with https://" in live.refusal("plan", str(file), "--url", "http://gateway.example.com")


@pytest.mark.django_db
def test_the_printed_files_are_right() -> None:
    owner = make.user(*Capability)
    Team.objects.create(name="Platform").users.add(owner)
    first, moved = re.findall(
        r"^```yaml\n(# yaml-language.*?|teams:.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )

    (short,) = re.findall(r"<!-- short -->\n```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for host in (
        "http://127.0.0.1:8900",
        "https://mcp.example.com",
    ):  # No runner is set up here, and names are looked up.
        short = short.replace(host, "https://93.184.216.34")

    assert len(plan(document.read({"gateway.yaml": short}), owner).changes) == 5
    assert plan(document.read({"gateway.yaml": first}), owner).changes == []
    apply(document.read({"gateway.yaml": f"version: 1\n{moved}"}), by=owner)
    assert Team.objects.get().name == "Platform engineering"
    assert User.objects.get(teams__name="Platform engineering") == owner
