"""Payloads in the log: only if the workspace enables them, and never with a secret."""

import json
import logging
from base64 import b64encode
from typing import Any

import pytest
from django.db import connection
from django.test import Client

from accounts.models import WorkspaceSettings
from auditlog.models import Call
from capabilities import Capability
from proxy.store import call_log
from proxy.store.call_log import INLINE_BYTES, credential_parts
from proxy.store.redaction import REDACTED, error_text
from servers.models import AuthType
from tests import make
from tests.conftest import Run
from tests.proxy.conftest import Agent, Proxy
from tests.proxy.scripted import Request, calling
from tokens.models import Token

PASSWORD = "Tr0ub4dor-und-drei"
IDENTITY = "upstream-8f3kQz71-credential"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N"
GITHUB = "ghp_16C7e42F292c6912E7710c838347Ae178B4a"
SECRETS = (PASSWORD, IDENTITY, JWT, GITHUB, b64encode(IDENTITY.encode()).decode())

ARGUMENTS: dict[str, Any] = {
    "city": "Lisbon",
    "password": PASSWORD,
    "nested": [{"x-api-key": PASSWORD, "note": f"sign in with Bearer {JWT}"}],
    "query": f"https://host.example/?token={PASSWORD}&page=2",
    "mine": GITHUB,
    "line": f"Authorization: Token {PASSWORD}",
}


async def echo(request: Request) -> None:
    """Answer with everything received: arguments, headers, and the credential in other encodings."""
    arguments = request.message["params"]["arguments"]
    told = json.dumps({"heard": arguments, "headers": request.headers})
    if arguments.get("fail") == "error":
        await request.fail(-32050, f"cannot use {request.headers['authorization']}", data={"seen": told})
        return
    text = f"{told} {b64encode(IDENTITY.encode()).decode()} is {IDENTITY}"
    failed = arguments.get("fail") == "tool"
    await request.answer({"content": [{"type": "text", "text": text}], "isError": failed})


@pytest.fixture
def agent(proxy: Proxy, run: Run) -> Agent:
    user = make.user(email="ana@example.com")
    server = make.server(slug="docs", url=run(calling(echo)).url, auth_type=AuthType.BEARER)
    gateway = make.gateway(slug="work")
    make.assignment(gateway, server, identity_scheme="per_user")
    mine = make.identity(server, user, secret=IDENTITY)
    return proxy.agent(make.connection(make.agent(by=user), gateway, user, [mine]))


def reader(*capabilities: Capability) -> Client:
    client = Client()
    client.force_login(make.user(Capability.LOGS_READ, *capabilities))
    return client


def text(response: Any) -> str:
    body = b"".join(response.streaming_content) if response.streaming else response.content
    return str(body.decode())


def database() -> str:
    """Return the content of all tables that a call may write to."""
    with connection.cursor() as cursor:
        rows = []
        for table in ("auditlog_call", "auditlog_event", "servers_server", "tokens_token", "connections_connection"):
            cursor.execute(f"SELECT t::text FROM {table} t")
            rows += [row for (row,) in cursor.fetchall()]
    return "\n".join(rows)


@pytest.mark.parametrize("recording", [True, False])
def test_a_secret_is_found_nowhere(recording: bool, agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    WorkspaceSettings.edit(by=None, record_payloads=recording)

    answers = [
        agent.call("docs__it", ARGUMENTS, X_Api_Key=PASSWORD, Cookie=f"session={PASSWORD}"),
        agent.call("docs__it", ARGUMENTS | {"fail": "tool"}),
        agent.call("docs__it", ARGUMENTS | {"fail": "error"}),
        agent.call("docs__none", ARGUMENTS),
        agent.post(json.dumps(ARGUMENTS).encode(), Content_Type="application/json"),
    ]

    assert IDENTITY in answers[0].text, "the test's server tells what it was sent"
    seer = reader(Capability.LOGS_PAYLOADS)
    calls = list(Call.objects.all())
    assert len(calls) == len(answers)
    assert [call.is_recorded for call in calls] == [recording] * len(calls)
    pages = [text(seer.get(f"/logs/{call.uid}/")) + text(seer.get(f"/api/logs/{call.uid}")) for call in calls]
    files = [text(seer.get(f"/logs/export/?format={kind}")) for kind in ("csv", "jsonl")]
    assert ("Lisbon" in pages[0]) == recording
    assert agent.secret is not None
    for secret in (*SECRETS, agent.secret):
        for where, haystack in {
            "database": database(),
            "log": caplog.text,
            "pages": "".join(pages),
            "list": text(seer.get("/logs/")),
            "files": "".join(files),
        }.items():
            assert secret not in haystack, (secret, where)


@pytest.mark.full
def test_an_error_text_is_recorded_without_secrets_even_without_payloads(agent: Agent) -> None:
    agent.call("docs__it", ARGUMENTS | {"fail": "tool"})
    agent.call("docs__it", ARGUMENTS | {"fail": "error"})
    agent.call("docs__none", ARGUMENTS)
    agent.call("docs__it", {"city": "Lisbon"})

    failed, refused, unknown, answered = Call.objects.order_by("pk")
    assert (failed.outcome, refused.outcome, answered.outcome) == ("tool_error", "rpc_error", "ok")
    assert answered.error_text == ""
    assert "docs__none" in unknown.error_text
    for call in (failed, refused):
        assert REDACTED in call.error_text
        assert not any(secret in call.error_text for secret in SECRETS)
    reading = reader()
    assert "Error text, secrets removed" in text(reading.get(f"/logs/{failed.uid}/"))
    assert reading.get(f"/api/logs/{refused.uid}").json()["error_text"] == refused.error_text
    assert [row.pk for row in reading.get("/logs/?q=message+contains+docs__none").context["page"].rows] == [unknown.pk]


def test_an_error_is_kept_up_to_300_characters_and_a_secret_at_the_cut_is_seen_whole() -> None:
    body = {"error": {"message": f"{'x' * 290} Bearer {PASSWORD}abcdefgh\n{'y' * 5000}"}}

    kept = error_text(json.dumps(body).encode(), [])

    assert len(kept) == 300
    assert PASSWORD[:4] not in kept
    assert kept.endswith("[cut]")
    assert error_text(b"not json", []) == error_text(b"[1]", []) == error_text(b"", []) == ""
    blocks = {"result": {"isError": True, "content": [{"text": "one"}, {"data": 1}, "x", {"text": "two"}]}}
    assert error_text(json.dumps(blocks).encode(), []) == "one\ntwo"
    assert error_text(rb'{"error": {"message": "lone \ud800"}}', []) == "lone ?"


@pytest.mark.parametrize(("length", "times"), [(6000, 1), (2200, 3)])
def test_a_repeated_long_secret_is_redacted_everywhere(length: int, times: int) -> None:
    secret = "".join(f"q{number:04}" for number in range(length // 5))
    body = json.dumps({"error": {"message": f"{secret} " * times}}).encode()

    assert "q0" not in error_text(body, [secret])


@pytest.mark.parametrize("sent", [f"Basic {b64encode(f'ana:{IDENTITY}'.encode()).decode()}", "Basic of-no-form", "x"])
def test_the_password_in_a_credential_is_known_too(sent: str) -> None:
    parts = credential_parts(sent)

    assert sent in parts
    assert (IDENTITY in parts) == sent.startswith("Basic YW5h")


@pytest.fixture
def redacting_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the test fail if a large payload is redacted in this process and not in the reader process."""

    def redact(message: bytes, *_: object) -> None:
        assert len(message) <= INLINE_BYTES

    monkeypatch.setattr(call_log, "redact_message", redact)
    monkeypatch.setattr(call_log, "error_text", redact)


UNREDACTED = "[not recorded: it could not be redacted]"


def large(**arguments: str) -> dict[str, Any]:
    return {"text": f"{'x ' * INLINE_BYTES} password: {PASSWORD}", **arguments}


@pytest.mark.full
@pytest.mark.usefixtures("redacting_here")
def test_a_large_payload_and_its_error_text_are_redacted_in_another_process(agent: Agent) -> None:
    WorkspaceSettings.edit(by=None, record_payloads=True)

    agent.call("docs__it", large(fail="tool"))

    call = Call.objects.get()
    assert call.is_recorded
    assert call.error_text
    assert PASSWORD not in database()


def test_a_call_keeps_its_row_and_its_answer_although_its_payload_cannot_be_redacted(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    WorkspaceSettings.edit(by=None, record_payloads=True)
    monkeypatch.setattr("wire.reader_process.sys.executable", "/bin/false")

    answer = agent.call("docs__it", large())

    call = Call.objects.get()
    assert "result" in answer.json()
    assert (call.outcome, call.request_payload, call.error_text) == ("ok", UNREDACTED, "")
    assert "the payloads of a call were not recorded" in caplog.text


@pytest.mark.full
def test_the_payload_of_a_refused_call_is_not_recorded(agent: Agent) -> None:
    WorkspaceSettings.edit(by=None, record_payloads=True)
    Token.objects.get().revoke(by=None)

    answer = agent.call("docs__it", {"city": "Lisbon"})

    call = Call.objects.get()
    assert (answer.status_code, call.outcome, call.is_recorded) == (401, "unauthorized", False)
    assert "Lisbon" not in database()


@pytest.mark.full
def test_a_call_by_its_servers_own_name_is_recorded_without_the_credential_too(agent: Agent) -> None:
    WorkspaceSettings.edit(by=None, record_payloads=True)
    agent.tools()

    assert IDENTITY in agent.call("it", {"city": "Lisbon"}).text

    assert (Call.objects.latest("id").outcome, Call.objects.latest("id").feature_name) == ("ok", "docs__it")
    assert "Lisbon" in database()
    assert IDENTITY not in database()


@pytest.mark.full
def test_a_payload_is_cut_where_the_workspace_says(agent: Agent) -> None:
    WorkspaceSettings.edit(by=None, record_payloads=True, payload_limit_bytes=256)

    answer = agent.call("docs__it", {"text": "x" * 5000})

    call = Call.objects.get()
    assert len(answer.content) > 5000
    assert call.payload_truncated
    assert len(json.dumps(call.request_payload)) <= 300
    assert call.request_bytes > 5000


@pytest.mark.full
def test_whatever_is_sent_can_be_recorded(agent: Agent, proxy: Proxy) -> None:
    WorkspaceSettings.edit(by=None, record_payloads=True)

    for odd in ("a\x00b", "\ud83d", 10**30, -(2**70), "\\u0000"):
        params = {"name": "docs__none", "arguments": {"odd": odd}}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
        assert agent.post(body.encode(), Content_Type="application/json").status_code == 200
        assert proxy.last().is_recorded, odd


@pytest.mark.full
def test_payloads_are_shown_to_their_capability_alone_and_are_in_no_file(agent: Agent) -> None:
    WorkspaceSettings.edit(by=None, record_payloads=True)
    agent.call("docs__it", {"city": "Lisbon"})
    call = Call.objects.get()
    seer, other = reader(Capability.LOGS_PAYLOADS), reader()

    shown, hidden = text(seer.get(f"/logs/{call.uid}/")), text(other.get(f"/logs/{call.uid}/"))

    assert "Lisbon" in shown
    assert "Lisbon" not in hidden
    assert "The payload was recorded. Only people with “View recorded payloads” can see it." in hidden
    assert seer.get(f"/api/logs/{call.uid}").json()["request_payload"]["params"]["arguments"] == {"city": "Lisbon"}
    assert other.get(f"/api/logs/{call.uid}").json()["request_payload"] is None
    for client in (seer, other):
        for path in ("/logs/export/?format=csv", "/logs/export/?format=jsonl", "/api/logs/export?format=jsonl"):
            assert "Lisbon" not in text(client.get(path))


@pytest.mark.full
def test_a_secret_in_the_place_of_a_name_that_no_server_has_is_not_in_the_log(agent: Agent, proxy: Proxy) -> None:
    for name in (GITHUB, "docs__no_such_tool"):
        agent.call(name)

    rows = proxy.calls()[-2:]
    assert [row.feature_name for row in rows] == ["[redacted]", "docs__no_such_tool"]
    assert {row.deny_reason for row in rows} == {"unknown_tool"}
