"""Configuration files over REST: a plan, applying it with an API key, and the commands with --url."""

import json
from base64 import b64encode
from io import StringIO
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from pytest_django import Settings

from accounts.models import Team, User
from auditlog.models import Event
from capabilities import Capability
from gateways.models import Feature, Gateway
from sinks.models import Sink
from tests import make, upstreams
from tests.conftest import Run
from tests.rest import Rest, errors, problem
from tests.workspace import OWNER, Serve, free_port

TEAM = "version: 1\nteams: [{name: Sales}]\n"
SECRET = b64encode(bytes(range(60, 96))).decode()
SINK = "version: 1\nsinks: [{name: SIEM, kind: webhook, address: 'https://93.184.216.34/in', secret: 'env:SIEM'}]\n"


def files(text: str, **more: Any) -> dict[str, Any]:
    return {"files": [{"name": "gateway.yaml", "content": text}], **more}


@pytest.mark.full
@pytest.mark.django_db
def test_a_plan_is_made_and_applied_by_its_digest_with_an_api_key() -> None:
    owner = make.user(*Capability)
    key = make.api_key(owner, Capability.PEOPLE_MANAGE, name="deploy")
    rest = Rest.bearing(key.secret)

    plan = rest.post("/config/plan", files(TEAM)).json()
    applied = rest.post("/config/apply", files(TEAM, digest=plan["digest"], commit="8b21fe0"))
    again = rest.post("/config/apply", files(TEAM, digest=plan["digest"]))

    assert plan["text"].startswith("gateway.yaml: 1 added.\n\n+ team Sales\n")
    assert applied.json()["summary"] == "1 added"
    assert problem(again) == (409, "another_plan")
    changes = Event.objects.get(action="team.created").changes
    assert changes["file"] == "gateway.yaml, commit 8b21fe0"
    assert changes["through"].startswith("API key deploy ")


@pytest.mark.django_db
def test_servers_that_a_file_puts_on_a_gateway_are_asked_for_their_tools(
    run: Run, settings: Settings, tmp_path: Path
) -> None:
    settings.PRIVATE_UPSTREAMS = [ip_network("127.0.0.0/8")]
    owner, out = make.user(*Capability), StringIO()
    make.server(slug="docs", url=run(upstreams.docs()).url)
    make.server(slug="dead", name="Dead", url=f"http://127.0.0.1:{free_port()}/mcp")
    servers = "[{server: dead}, {server: docs, tool_policy: selected, enabled_tools: [search]}]"
    rest, page, command = (
        f"version: 1\ngateways: [{{slug: {way}, name: {way}, servers: {servers}}}]\n"
        for way in ("rest", "page", "command")
    )
    browser, file = Rest.of(owner), tmp_path / "gateway.yaml"

    by_rest = browser.post("/config/apply", files(rest)).json()
    digest = browser.post("/config/plan", files(page)).json()["digest"]
    to_page = {"text": page, "digest": digest}
    by_page = browser.client.post("/settings/configuration/apply/", to_page, follow=True).content.decode()
    file.write_text(command)
    call_command("apply", str(file), "--user", owner.email, stdout=out)

    assert by_rest["unanswered"].startswith("Dead refused the connection: ")
    assert by_rest["unanswered"].endswith(". Its tools are not known yet.")
    assert f"Applied: 3 added. {by_rest['unanswered']}" in by_page
    assert out.getvalue() == f"{file}: 3 added.\n{by_rest['unanswered']}\n"
    callable_tools = Feature.objects.tools().callable().values_list("assignment__gateway__slug", "name")
    assert {*callable_tools} == {("rest", "search"), ("page", "search"), ("command", "search")}


@pytest.mark.django_db
def test_mistakes_are_reported_with_their_places() -> None:
    rest = Rest.of(make.user(*Capability))

    answer = rest.post("/config/plan", files("version: 1\nteams: [{}]\n"))

    assert errors(answer) == {"files": ["gateway.yaml:2:9: “name” is missing. Add “name: …”."]}
    twice = rest.post("/config/plan", {"files": files(TEAM)["files"] * 2})
    assert errors(twice) == {"files": ["Two files have the same name. Give each file its own name."]}


@pytest.mark.django_db
def test_lacking_permissions_are_listed_and_nothing_is_changed() -> None:
    rest = Rest.of(make.user(Capability.GATEWAYS_MANAGE, Capability.PEOPLE_READ))
    text = f"{TEAM}gateways: [{{slug: sales, name: Sales, enabled: false}}]\n"

    answer = rest.post("/config/apply", files(text))

    assert problem(answer) == (403, "capabilities_required")
    assert "- team Sales: “Manage people” (people:manage)" in answer.json()["detail"]
    assert "- gateway sales: “Disable and enable gateways” (gateways:toggle)" in answer.json()["detail"]
    assert not Team.objects.exists()
    assert not Gateway.objects.exists()


@pytest.mark.django_db
def test_an_api_key_changes_no_role() -> None:
    key = make.api_key(make.user(*Capability), *Capability)

    answer = Rest.bearing(key.secret).post("/config/apply", files("version: 1\nroles: [{name: Support}]\n"))

    assert problem(answer) == (403, "capabilities_required")
    assert "API keys cannot change it" in answer.json()["detail"]


@pytest.mark.django_db
def test_a_list_that_a_person_may_not_see_is_refused() -> None:
    rest = Rest.of(make.user(Capability.SERVERS_READ))

    assert errors(rest.post("/config/plan", files(TEAM))) == {
        "files": ["gateway.yaml:2:1: You may not see teams: “View people” (people:read) is required. Remove the list."]
    }
    lists = "version: 1\ngateways: []\nagents:\n  - name: CI bot\n    gateways: []\n"
    refused = Rest.of(make.user(Capability.GATEWAYS_READ)).post("/config/plan", files(lists))
    assert "gateway.yaml:3:1: You may not see agents" in errors(refused)["files"][0]
    assert "gateway.yaml:5:5: You may not see gateways" in errors(refused)["files"][0]
    auditor = Rest.of(
        make.user(Capability.SINKS_READ, Capability.LOGS_READ, Capability.AUDIT_READ, Capability.RULES_READ)
    )
    needed = (
        "“Send the logs elsewhere” (sinks:manage) is required, because a plan tells whether an address or secret is"
    )
    assert needed in errors(auditor.post("/config/plan", files(SINK)))["files"][0]


@pytest.mark.django_db
def test_the_server_reads_no_secret_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIEM", SECRET)
    rest = Rest.of(make.user(*Capability))

    refused = rest.post("/config/apply", files(SINK))
    applied = rest.post("/config/apply", files(SINK, secrets={"env:SIEM": SECRET}))

    assert "There is no secret for env:SIEM" in errors(refused)["files"][0]
    assert applied.json()["summary"] == "1 added"
    assert Sink.objects.get().secret() == SECRET
    assert SECRET not in applied.content.decode()


@pytest.mark.full
@pytest.mark.django_db
def test_a_secret_is_changed_only_if_it_differs() -> None:
    rest = Rest.of(make.user(*Capability))
    rest.post("/config/apply", files(SINK, secrets={"env:SIEM": SECRET}))
    other = SECRET[::-1]

    unknown, same, changed = (
        rest.post("/config/plan", files(SINK, secrets=secrets)).json()
        for secrets in ({}, {"env:SIEM": SECRET}, {"env:SIEM": other})
    )

    assert (unknown["changes"], same["changes"]) == ([], [])
    assert [one["name"] for one in changed["changes"][0]["fields_changed"]] == ["secret"]
    assert other not in json.dumps(changed)
    rest.post("/config/apply", files(SINK, secrets={"env:SIEM": other}))
    assert Sink.objects.get().secret() == other


@pytest.mark.full
@pytest.mark.django_db
def test_a_new_address_of_a_sink_needs_the_old_secret_again() -> None:
    rest, secrets = Rest.of(make.user(*Capability)), {"env:SIEM": "Authorization=Bearer abc"}
    sink = SINK.replace("webhook", "otlp")
    moved = sink.replace("93.184.216.34", "93.184.216.35")
    rest.post("/config/apply", files(sink, secrets=secrets))

    without = rest.post("/config/apply", files(moved.replace(", secret: 'env:SIEM'", "")))
    unknown = rest.post("/config/apply", files(moved))
    planned = rest.post("/config/plan", files(moved, secrets=secrets)).json()
    rest.post("/config/apply", files(moved, secrets=secrets, digest=planned["digest"]))

    for refused in (without, unknown):
        assert "Enter the secret again" in errors(refused)["files"][0]
    kept = Sink.objects.get()
    assert (kept.address, kept.secret()) == ("https://93.184.216.35/in", secrets["env:SIEM"])


@pytest.mark.django_db
def test_a_plain_secret_is_refused() -> None:
    answer = Rest.of(make.user(*Capability)).post("/config/plan", files(SINK.replace("env:SIEM", SECRET)))

    assert "Write a reference to it: env:NAME or file:path." in errors(answer)["files"][0]


@pytest.mark.full
def test_the_commands_work_against_a_url_with_a_key_in_a_file(live: Serve, tmp_path: Path) -> None:
    name = make.unique("team")
    (tmp_path / "key").write_text(live.manage("shell", "--verbosity", "0", "-c", KEY).strip())
    (tmp_path / "gateway.yaml").write_text(f"version: 1\nteams: [{{name: {name}}}]\n")
    far = (str(tmp_path / "gateway.yaml"), "--url", live.url, "--key-file", str(tmp_path / "key"))

    planned = json.loads(live.manage("plan", *far, "--json"))
    live.manage("apply", *far, "--plan", planned["digest"], "--commit", "8b21fe0")

    assert [one["object"] for one in planned["changes"]] == [f"team {name}"]
    assert "no changes" in live.manage("plan", *far, "--exit-code")
    assert f"name: {name}" in live.manage("export", *far[1:])
    (event,) = live.rows(f"SELECT * FROM auditlog_event WHERE target_label = '{name}'")
    assert (event["via"], event["changes"]["file"]) == ("api", "gateway.yaml, commit 8b21fe0")


KEY = f"""
from accounts.models import User
from capabilities import Capability
from tokens.api_keys import issue
owner = User.objects.get(email="{OWNER}")
print(issue(name="deploy", capabilities=[*Capability], days=7, by=owner).secret)
"""


@pytest.mark.django_db
def test_a_person_applies_after_confirming_the_password_only() -> None:
    rest = Rest.of(make.user(*Capability), confirmed=False)

    assert problem(rest.post("/config/apply", files(TEAM))) == (403, "password_required")
    assert User.objects.exists()
    assert not Team.objects.exists()
