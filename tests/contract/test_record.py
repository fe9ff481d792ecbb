"""The log: every answer has a row, no row has a secret, and every change is detected."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.cases import first
from tests.contract.agents import Agent, Object, eventually, text
from tests.contract.conftest import Run
from tests.contract.running import Workspace
from tests.contract.servers import Server
from tests.contract.web import Browser
from tests.contract.world import Place, assign, new_gateway, new_host, new_server, new_token

pytestmark = pytest.mark.full

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
        # Both workers must have noticed that the log is writable again.
        eventually(lambda: all(place.agent.call("echo", text="after").status_code == 200 for _ in range(12)))

    errors = [answer.json()["error"] for answer in answers]
    assert {(answer.status_code, error["code"]) for answer, error in zip(answers, errors, strict=True)} == {
        (503, -32603)
    }
    reasons = [error.get("data", {}).get("reason") for error in errors]
    unsure = [one for one in errors if "may have executed it" in one["message"]]
    executed = [one for one in server.calls() if one.body["params"]["arguments"]["text"] == "unrecorded"]
    # Each worker notices the unwritable log only after its first call has reached the server; then it sends no more
    # calls.
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


def with_credential(owner: Browser, server: Server, secret: str) -> tuple[Object, Object, Agent]:
    """Return three objects: a gateway whose server gets this credential, a token for it, and the token's agent."""
    row, gateway = new_server(owner, server, auth_type="bearer"), new_gateway(owner)
    identity = owner.post("/identities", server_id=row["id"], label="shared", secret=secret, shared=True)
    owner.put(f"/identities/{identity['id']}/gateways", gateway_ids=[gateway["id"]])
    assign(owner, gateway, row, identity_scheme="shared", shared_identity_id=identity["id"])
    return gateway, *new_token(owner, new_host(owner), gateway)


@pytest.mark.usefixtures("payloads_recorded")
def test_no_credential_is_in_the_record(workspace: Workspace, run: Run) -> None:
    owner, server, secret = workspace.owner, run(Server()), f"upstream-{uuid4().hex}"
    gateway, token, agent = with_credential(owner, server, secret)
    named, nested = f"named-{uuid4().hex}", f"nested-{uuid4().hex}"
    encoded = base64.b64encode(f"user:{agent.secret}".encode()).decode()
    _, other = new_token(owner, new_host(owner), gateway)
    secrets = [agent.secret, secret, named, nested, encoded, other.secret]

    assert text(agent.call("whoami")) == f"Bearer {secret}"  # The result contains the credential.
    agent.call("echo", text=f"my token is {agent.secret}", password=named, deep=[{"api_key": {"value": nested}}])
    agent.call("echo", text=f"Authorization: Basic {encoded}")
    agent.call("echo", text=f"of somebody else: {other.secret}.")
    agent.call("no such tool", token=agent.secret)
    agent.call(f"no such tool of {agent.secret}")
    agent.call(f"no such tool of {secret}")
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


def test_error_of_a_call_is_recorded_without_the_credential(workspace: Workspace, run: Run) -> None:
    """Errors are logged even if payloads are not recorded."""
    owner, server, secret = workspace.owner, run(Server()), f"upstream-{uuid4().hex}"
    gateway, token, agent = with_credential(owner, server, secret)

    assert secret in agent.call("fail").text

    (row,) = owner.get("/logs", gateway=gateway["slug"], q="outcome is tool_error")["results"]
    told = json.dumps(owner.get(f"/logs/{row['id']}"))
    stored = str(workspace.sql("SELECT to_jsonb(c)::text FROM auditlog_call c WHERE token_id = %s", token["id"]))
    for recorded in (told, stored):
        assert "the backend refused" in recorded
        assert secret not in recorded


# Checkpoints as described in docs/decisions/0033-checkpoints-of-the-log.md.


@dataclass
class Checkpoint:
    """A stored checkpoint."""

    number: int
    body: str
    signature: bytes
    public_key: bytes

    @classmethod
    def all(cls, workspace: Workspace) -> "list[Checkpoint]":
        columns = "number, body, signature, public_key"
        return [cls(*row) for row in workspace.sql(f"SELECT {columns} FROM auditlog_checkpoint ORDER BY number")]

    def signed(self, key: Ed25519PrivateKey) -> "Checkpoint":
        """Return the checkpoint signed with this key."""
        public_key = key.public_key().public_bytes_raw()
        return replace(self, signature=key.sign(self.body.encode()), public_key=public_key)

    def put(self, workspace: Workspace) -> None:
        statement = (
            "UPDATE auditlog_checkpoint SET body = %s, signature = %s, public_key = %s"
            " WHERE number = %s RETURNING number"
        )
        values = (self.body, self.signature, self.public_key, self.number)
        assert workspace.sql(statement, *values, triggers=False)


@pytest.fixture
def kept_key(workspace: Workspace, tmp_path: Path) -> Path:
    """The workspace's public key, saved outside its database."""
    path = tmp_path / "checkpoints.pem"
    public_key = workspace.checkpoint_key.public_key()
    path.write_bytes(public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


def findings(workspace: Workspace, kept_key: Path) -> str:
    """Return the findings of `verify_log`; empty if the log matches its checkpoints."""
    told = workspace.manage("verify_log", "--public-key", str(kept_key))
    is_as_sealed = told.stdout.startswith("OK: ")
    assert told.returncode == (0 if is_as_sealed else 1), told.stdout + told.stderr
    return "" if is_as_sealed else told.stdout


def another_before_it(workspace: Workspace, checkpoint: Checkpoint) -> Checkpoint:
    body = json.loads(checkpoint.body) | {"previous": hashlib.sha256(b"another").hexdigest()}
    written = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return replace(checkpoint, body=written).signed(workspace.checkpoint_key)


def another_key(workspace: Workspace, checkpoint: Checkpoint) -> Checkpoint:
    return checkpoint.signed(Ed25519PrivateKey.generate())


def signature_of_another(workspace: Workspace, checkpoint: Checkpoint) -> Checkpoint:
    return replace(checkpoint, signature=workspace.checkpoint_key.sign(b"another"))


@pytest.mark.parametrize("forge", first(1, [signature_of_another, another_key, another_before_it]))
def test_forged_checkpoint_is_found(
    workspace: Workspace, place: Place, kept_key: Path, forge: Callable[[Workspace, Checkpoint], Checkpoint]
) -> None:
    while len(Checkpoint.all(workspace)) < 3:
        assert text(place.agent.call("echo", text="x")) == "x"
        assert workspace.manage("housekeeping").returncode == 0
    first, forged, *_ = Checkpoint.all(workspace)  # Not the newest: the running gateway extends it.
    assert json.loads(forged.body)["previous"] == hashlib.sha256(first.body.encode()).hexdigest()

    try:
        forge(workspace, forged).put(workspace)
        told = findings(workspace, kept_key)
    finally:
        forged.put(workspace)

    assert f"Checkpoint {forged.number} " in told
    assert findings(workspace, kept_key) == ""


def test_row_that_was_changed_removed_or_added_is_found(workspace: Workspace, place: Place, kept_key: Path) -> None:
    assert workspace.manage("housekeeping").returncode == 0
    eventually(lambda: Checkpoint.all(workspace))  # The first checkpoint covers no calls made before it.
    ids = [place.agent.call("echo", text="x").headers["x-request-id"] for _ in range(2)]
    changed, removed = (place.calls(correlation_id=one)[0]["id"] for one in ids)
    added = f"{removed[:24]}{uuid4().hex[:12]}"
    assert workspace.manage("housekeeping").returncode == 0
    eventually(lambda: all(is_sealed(workspace, one) for one in (changed, removed)), 90)

    try:
        must_change(workspace, changed, "outcome = 'tool_error'")
        must_change(workspace, removed, f"uid = '{added}'")
        told = findings(workspace, kept_key)
    finally:
        must_change(workspace, added, f"uid = '{removed}'")
        must_change(workspace, changed, "outcome = 'ok'")

    lines = {uid: [line for line in told.splitlines() if uid in line] for uid in (changed, removed, added)}
    assert [len(lines[uid]) for uid in (changed, removed, added)] == [1, 1, 1], told
    assert "was changed" in lines[changed][0]
    assert "was removed" in lines[removed][0]
    assert "was added" in lines[added][0]
    assert findings(workspace, kept_key) == ""


def is_sealed(workspace: Workspace, uid: str) -> bool:
    """Return True if a checkpoint contains the row (docs/decisions/0033-checkpoints-of-the-log.md)."""
    statement = "SELECT count(*) > 0 FROM auditlog_checkpoint WHERE position(decode(%s, 'hex') IN leaves) > 0"
    return bool(workspace.sql(statement, uid.replace("-", ""))[0][0])


def must_change(workspace: Workspace, uid: str, what: str) -> None:
    statement = f"UPDATE auditlog_call SET {what} WHERE uid = %s RETURNING uid"
    assert workspace.sql(statement, uid, triggers=False)
