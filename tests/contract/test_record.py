"""The log: no answer without its row, no secret in it, and nobody changes it unnoticed."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest

from tests.contract.agents import eventually, text
from tests.contract.conftest import Run
from tests.contract.running import Workspace
from tests.contract.servers import Server
from tests.contract.world import Place, assign, new_gateway, new_host, new_server, new_token

pytestmark = pytest.mark.xdist_group("contract")

BLOCK = """
CREATE FUNCTION contract_refuses() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'the log is full'; END $$;
CREATE TRIGGER contract_refuses BEFORE INSERT ON auditlog_call FOR EACH ROW EXECUTE FUNCTION contract_refuses();
"""
UNBLOCK = "DROP FUNCTION contract_refuses CASCADE"


@contextmanager
def log_unwritable(workspace: Workspace) -> Iterator[None]:
    workspace.sql(BLOCK)
    try:
        yield
    finally:
        workspace.sql(UNBLOCK)


def test_call_that_cannot_be_recorded_is_not_answered_and_then_none_is_made(
    workspace: Workspace, place: Place, server: Server
) -> None:
    assert text(place.agent.call("echo", text="before")) == "before"
    try:
        with log_unwritable(workspace):
            answers = [place.agent.call("echo", text="unrecorded") for _ in range(6)]
    finally:
        eventually(lambda: place.agent.call("echo", text="after").status_code == 200)

    errors = [answer.json()["error"] for answer in answers]
    assert {(answer.status_code, error["code"]) for answer, error in zip(answers, errors, strict=True)} == {
        (503, -32603)
    }
    reasons = [error.get("data", {}).get("reason") for error in errors]
    unsure = [one for one in errors if "may have executed it" in one["message"]]
    executed = [one for one in server.calls() if one.body["params"]["arguments"]["text"] == "unrecorded"]
    # Each worker finds out with its first call, after its server was asked, and calls none from then on.
    assert len(executed) <= len(unsure) <= 2
    assert reasons.count("log_unavailable") >= 4
    for answer, why in zip(answers, reasons, strict=True):
        assert ("retry-after" in answer.headers) == (why == "log_unavailable")
    assert text(place.agent.call("echo", text="x")) == "x"


def test_every_call_has_its_row_before_its_answer(place: Place) -> None:
    for number in range(3):
        answer = place.agent.call("echo", text="x")
        rows = place.calls(correlation_id=answer.headers["x-request-id"])
        assert [(row["feature_name"], row["outcome"]) for row in rows] == [("echo", "ok")], number
    place.owner.post(f"/hosts/{place.host['id']}/disable")
    refused = place.agent.call("echo", text="x")
    (row,) = place.calls(correlation_id=refused.headers["x-request-id"])
    assert (row["outcome"], row["deny_reason"], row["http_status"]) == ("denied", "host_disabled", 403)


@pytest.fixture
def payloads_recorded(workspace: Workspace) -> Iterator[None]:
    workspace.owner.patch("/workspace", record_payloads=True)
    yield
    workspace.owner.patch("/workspace", record_payloads=False)


@pytest.mark.usefixtures("payloads_recorded")
def test_no_credential_is_in_the_record(workspace: Workspace, run: Run) -> None:
    owner, server = workspace.owner, run(Server())
    row, gateway = new_server(owner, server, auth_type="bearer"), new_gateway(workspace.owner)
    secret = f"upstream-{uuid4().hex}"
    identity = owner.post("/identities", server_id=row["id"], label="shared", secret=secret, shared=True)
    owner.put(f"/identities/{identity['id']}/gateways", gateway_ids=[gateway["id"]])
    assign(owner, gateway, row, identity_scheme="shared", shared_identity_id=identity["id"])
    token, agent = new_token(owner, new_host(owner), gateway)
    named, nested = f"named-{uuid4().hex}", f"nested-{uuid4().hex}"
    encoded = base64.b64encode(f"user:{agent.secret}".encode()).decode()
    _, other = new_token(owner, new_host(owner), gateway)
    secrets = [agent.secret, secret, named, nested, encoded, other.secret]

    assert text(agent.call("whoami")) == f"Bearer {secret}"  # The server repeats it.
    agent.call("echo", text=f"my token is {agent.secret}", password=named, deep=[{"api_key": {"value": nested}}])
    agent.call("echo", text=f"Authorization: Basic {encoded}")
    agent.call("echo", text=f"of somebody else: {other.secret}.")
    agent.call("no such tool", token=agent.secret)
    agent.ask("tools/call", {"name": "echo", "arguments": {"text": secret}})

    path = {"gateway": gateway["slug"], "page_size": 200}
    rows = [owner.get(f"/logs/{one['id']}") for one in owner.get("/logs", **path)["results"]]
    assert sum("request_payload" in one and one["request_payload"] is not None for one in rows) >= 5
    assert "my token is" in json.dumps(rows)
    pages = [owner.http.get("/logs/").text, owner.http.get("/settings/api-tokens").text]
    stored = str(workspace.sql("SELECT to_jsonb(c)::text FROM auditlog_call c WHERE token_id = %s", token["id"]))
    assert "my token is" in stored
    for name, told in (("rest", json.dumps(rows)), ("row", stored), ("page", pages[0]), ("tokens", pages[1])):
        assert not [(name, told[told.index(one) - 60 :][:90]) for one in secrets if one in told]


# Checkpoints: docs/decisions/0033-checkpoints-of-the-log.md says what they state.


def checkpoints(workspace: Workspace) -> list[tuple[int, str]]:
    return workspace.sql("SELECT number, body FROM auditlog_checkpoint ORDER BY number")


def seal(workspace: Workspace, number: int, body: dict[str, Any]) -> None:
    """Sign this body with the right key, and put it where the checkpoint of this number is."""
    written = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    signature = workspace.checkpoint_key.sign(written.encode())
    statement = "UPDATE auditlog_checkpoint SET body = %s, signature = %s WHERE number = %s RETURNING number"
    assert workspace.sql(statement, written, signature, number, triggers=False)


def test_checkpoint_that_does_not_follow_on_the_one_before_is_found(workspace: Workspace, place: Place) -> None:
    sealed = len(checkpoints(workspace))
    assert text(place.agent.call("echo", text="x")) == "x"
    assert workspace.manage("housekeeping").returncode == 0
    eventually(lambda: len(checkpoints(workspace)) > max(sealed, 1), 90)
    number, text_of_it = checkpoints(workspace)[-1]
    body = json.loads(text_of_it)
    assert body["previous"] == hashlib.sha256(checkpoints(workspace)[-2][1].encode()).hexdigest()

    try:
        seal(workspace, number, body | {"previous": hashlib.sha256(b"another").hexdigest()})
        told = workspace.manage("verify_log")
    finally:
        seal(workspace, number, body)

    assert told.returncode == 1
    assert str(number) in told.stdout + told.stderr
    untouched = workspace.manage("verify_log")  # Signed anew, and the same.
    assert untouched.returncode == 0, untouched.stdout + untouched.stderr
