"""Signed exports: the downloaded verifier, with nothing installed, accepts them and finds each kind of tampering."""

import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.core.management import call_command
from django.test import Client
from django.utils import timezone

from auditlog.actions import Action
from auditlog.checkpoints import sealing
from auditlog.models import Call, Event
from capabilities import Capability
from tests import curl, make, workspace
from tests.auditlog.test_checkpoints import by_hand
from tests.calls import call
from tests.conftest import SignIn
from tests.eventually import eventually
from tests.running.starts import sign_in as sign_in_at

type Lines = list[dict[str, Any]]

DATABASE = pytest.mark.django_db(transaction=True)
SECRET = "s3cret-argument"
LATE_ID = "ffffffff-ffff-4fff-bfff-ffffffffffff"
DAYS = f"since={timezone.now() - timedelta(days=30):%Y-%m-%d}&until={timezone.now() + timedelta(days=1):%Y-%m-%d}"


class Downloaded:
    """The files an auditor downloaded into an empty folder: an export, the key and the verifier."""

    def __init__(self, folder: Path, get: Callable[[str], bytes]) -> None:
        self.folder = folder
        self.export = get(f"/logs/proof/export/?{DAYS}")
        (folder / "verify_export.py").write_bytes(get("/logs/proof/verify_export.py"))
        (folder / "key.pem").write_bytes(get("/logs/proof/checkpoint-key.pem"))

    def verify(self, export: bytes | None = None, *more: str, key: bool = True) -> tuple[int, str]:
        """Return the verifier's exit code and output for `export`; None means the downloaded export."""
        (self.folder / "export.jsonl").write_bytes(self.export if export is None else export)
        keys = ["--public-key", "key.pem"] if key else []
        command = [sys.executable, "-I", "verify_export.py", "export.jsonl", *keys, *more]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    @property
    def lines(self) -> Lines:
        return [json.loads(line) for line in self.export.splitlines()]


def download(client: Client, folder: Path) -> Downloaded:
    def get(path: str) -> bytes:
        answer = client.get(path)
        assert answer.status_code == 200, answer.content
        return answer.getvalue()

    return Downloaded(folder, get)


@pytest.fixture
def auditor(transactional_db: None, sign_in: SignIn) -> Client:
    """Create checkpoints of calls and events; return the browser of a person who may only read both logs."""
    person = make.user(Capability.LOGS_READ, Capability.AUDIT_READ)
    sealing.keep_up()
    for number in range(3):
        for _ in range(number + 2):
            call(client_ip="10.0.0.1", feature_name=f"tool{number}", upstream_ms=1e-7, error_text="Ünïcode \u2028 <b>")
        Event.objects.record(Action.HOST_CREATED, person, by=person, changes={"name": [None, f"h{number}"]})
        sealing.keep_up()
    Event.objects.create(uid=LATE_ID, action=Action.HOST_CREATED, correlation_id=LATE_ID)
    sealing.keep_up()
    return sign_in(person)


def packed(lines: Lines) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def nth(lines: Lines, log: str, number: int = 1) -> int:
    return [place for place, line in enumerate(lines) if line["log"] == log][number]


def changed_row(lines: Lines) -> None:
    line = lines[nth(lines, "call")]
    line["row"] = line["row"].replace("10.0.0.1", "10.0.0.2")


def removed_row(lines: Lines) -> None:
    del lines[nth(lines, "call")]


def removed_event(lines: Lines) -> None:
    """Remove an event. Its id, decoded as a UUIDv7 like a call's id, gives a time after the year 9999."""
    del lines[next(place for place, line in enumerate(lines) if LATE_ID in line.get("row", ""))]


def added_row(lines: Lines) -> None:
    place = nth(lines, "event")
    row = json.loads(lines[place]["row"]) | {"uid": "0193a3e2-0000-7000-8000-000000000000"}
    lines.insert(place, lines[place] | {"row": json.dumps(row)})


def moved_row(lines: Lines) -> None:
    lines.append(lines.pop(nth(lines, "call", 0)))
    lines[-1], lines[-2] = lines[-2], lines[-1]


def removed_checkpoint(lines: Lines) -> None:
    start, end = nth(lines, "checkpoint", 2), nth(lines, "checkpoint", 3)
    del lines[start:end]


def changed_checkpoint(lines: Lines) -> None:
    line = lines[nth(lines, "checkpoint", 2)]
    line["body"] = line["body"].replace('"rows":', '"rows": ')


def changed_digests(lines: Lines) -> None:
    """Change a row, and its digest in the checkpoint."""
    place = next(at for at, line in enumerate(lines) if line["log"] == "call")
    changed_row(lines[place - 1 :])
    at = place - 1
    leaf = base64.b64decode(lines[at]["leaves"])
    lines[at]["leaves"] = base64.b64encode(leaf[:-1] + bytes([leaf[-1] ^ 1])).decode()


def without_digests(lines: Lines) -> None:
    place = nth(lines, "call", 0)
    lines[place - 1]["leaves"] = None
    del lines[place]


def cut_at_the_end(lines: Lines) -> None:
    del lines[-1]


def cut_before_the_last_checkpoint(lines: Lines) -> None:
    """Remove the last checkpoint with its rows, but not the signature of the file."""
    del lines[nth(lines, "checkpoint", -1) : -1]


def changed_head(lines: Lines) -> None:
    lines[0]["until"] = "2030-01-01T00:00:00Z"


def more_lines(lines: Lines) -> None:
    lines.append(lines[nth(lines, "call")])


def hidden_finding(lines: Lines) -> None:
    """Replace the time of a row by terminal control sequences, which would erase the printed finding."""
    line = lines[nth(lines, "call")]
    line["row"] = json.dumps(json.loads(line["row"]) | {"created_at": "\x1b[1A\x1b[2K\x9b2K\r"})


def impossible_time(lines: Lines) -> None:
    """Set a time before the year 1 in a row whose digest cannot be checked, because its payload was left out."""
    line = lines[nth(lines, "call")]
    row = json.loads(line["row"]) | dict.fromkeys(("created_at", "recorded_at"), "0001-01-01T00:00:00+14:00")
    line.update(row=json.dumps(row), without=["request_payload"], matches=True)


def replaced_signature(lines: Lines) -> None:
    lines[-1]["signature"] = lines[1]["signature"]


TAMPERED = [
    (changed_row, "was changed since checkpoint"),
    (removed_row, "was removed; checkpoint"),
    (removed_event, f"{LATE_ID} was removed; checkpoint"),
    (added_row, "was added: checkpoint"),
    (moved_row, "was added:"),
    (removed_checkpoint, "is missing: the next one is"),
    (changed_checkpoint, "is not signed with the key, or was changed"),
    (changed_digests, "the digests of its rows were changed"),
    (without_digests, "has no digests of its rows"),
    (cut_at_the_end, "The file is cut"),
    (cut_before_the_last_checkpoint, "Checkpoints or rows were removed from the file"),
    (changed_head, "The file was changed after it was signed"),
    (more_lines, "were added to the file"),
    (hidden_finding, "of ?[1A?[2K?2K? was changed since checkpoint"),
    (impossible_time, "was changed: it cannot be read"),
    (replaced_signature, "The signature of the file is invalid"),
]


@pytest.mark.full
@DATABASE
def test_an_export_is_verified_and_each_kind_of_tampering_found(auditor: Client, tmp_path: Path) -> None:
    """All kinds of tampering use the same export, because creating an export takes longer than verifying it."""
    downloaded = download(auditor, tmp_path)

    code, output = downloaded.verify(None, "--rows", "rows.jsonl")
    assert (code, output.splitlines()[0]) == (0, "OK:"), output
    assert "9 calls and" in output
    rows = (tmp_path / "rows.jsonl").read_bytes().splitlines()  # Of bytes, because texts of rows have U+2028.
    assert len(rows) == len(downloaded.lines) - 2 - output_number(output)
    assert downloaded.verify(packed(downloaded.lines))[0] == 1  # The bytes count, not the JSON.

    for tamper, sentence in TAMPERED:
        lines = downloaded.lines
        tamper(lines)
        code, output = downloaded.verify(b"".join(orjson_line(line) for line in lines))
        assert (code, sentence in output, "NOT OK" in output) == (1, True, True), (tamper.__name__, output)
        assert output.replace("\n", "").isprintable(), tamper.__name__
    assert downloaded.verify(b"a,b\n1,2\n")[0] == 2
    assert downloaded.verify(b"")[0] == 2


def output_number(output: str) -> int:
    return int(output.split("match ")[1].split(maxsplit=1)[0])


def orjson_line(line: dict[str, Any]) -> bytes:
    return json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


@pytest.mark.full
@DATABASE
def test_a_file_signed_anew_is_accepted_only_without_the_key_of_the_gateway(auditor: Client, tmp_path: Path) -> None:
    downloaded, forger, lines = download(auditor, tmp_path), Ed25519PrivateKey.generate(), []
    previous = ""
    for line in downloaded.lines:
        if line["log"] == "checkpoint":
            line.update(signed(forger, json.loads(line["body"]) | {"previous": previous}))
            previous = sha256(line["body"].encode()).hexdigest()
        lines.append(line)
    last = [line for line in lines if line["log"] == "checkpoint"][-1]
    lines[0] |= {"public_key": last["public_key"], "newest": last}
    digest = sha256(b"".join(orjson_line(line) for line in lines[:-1])).hexdigest()
    lines[-1] |= signed(forger, json.loads(lines[-1]["body"]) | {"sha256": digest})
    forged = b"".join(orjson_line(line) for line in lines)

    assert downloaded.verify(forged, key=False)[0] == 0
    code, output = downloaded.verify(forged)
    assert code == 1
    assert "The signature of the file is invalid, or made with another key." in output


def signed(key: Ed25519PrivateKey, body: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(body, separators=(",", ":"))
    public = key.public_key().public_bytes_raw().hex()
    return {"body": text, "signature": key.sign(text.encode()).hex(), "public_key": public}


@pytest.mark.full
@DATABASE
def test_rows_changed_in_the_database_are_found_in_an_export_of_it(auditor: Client, tmp_path: Path) -> None:
    removed, changed, given = Call.objects.order_by("pk")[:3]
    by_hand("DELETE FROM auditlog_call WHERE id = %s", removed.pk)
    by_hand("UPDATE auditlog_call SET outcome = 'denied' WHERE id = %s", changed.pk)
    # Payloads are left out of the file, so whoever reads it cannot compute the digest of this row.
    by_hand("UPDATE auditlog_call SET outcome = 'denied', request_payload = '{}' WHERE id = %s", given.pk)
    by_hand(
        "UPDATE auditlog_event SET actor_email = 'eve@example.com' WHERE id = %s",
        Event.objects.filter(action=Action.HOST_CREATED).latest("pk").pk,
    )
    downloaded = download(auditor, tmp_path)

    code, output = downloaded.verify()
    assert code == 1
    assert f"Call {removed.uid} was removed" in output
    assert all(f"Call {row.uid} of" in output for row in (changed, given))
    assert output.count("was changed since checkpoint") == 3
    assert "The file was changed" not in output


@DATABASE
def test_payloads_are_left_out_and_dropped_rows_are_no_finding(auditor: Client, tmp_path: Path) -> None:
    call(request_payload={"argument": SECRET}, response_payload={"text": SECRET})
    sealing.keep_up()
    downloaded = download(auditor, tmp_path)
    assert SECRET.encode() not in downloaded.export
    code, output = downloaded.verify()
    assert (code, "1 calls have recorded payloads" in output) == (0, True), output

    sealing.drop_before((timezone.now() + timedelta(days=1)).date())
    code, output = download(auditor, tmp_path).verify()
    Call.partitions.make_ahead()  # Restore the partitions that other tests need.
    assert (code, "0 calls and" in output) == (0, True), output


@pytest.mark.full
@DATABASE
def test_rows_that_waited_long_for_their_checkpoint_are_named_as_verify_log_names_them(
    auditor: Client, tmp_path: Path
) -> None:
    assert "Sealed late" not in download(auditor, tmp_path).verify()[1]
    waited = Event.objects.create(action=Action.HOST_CREATED, correlation_id=LATE_ID)
    by_hand("UPDATE auditlog_event SET created_at = created_at - interval '16 minutes' WHERE id = %s", waited.pk)
    sealing.keep_up()

    code, output = download(auditor, tmp_path).verify()
    [said] = [line for line in output.splitlines() if "Sealed late" in line]
    here = io.StringIO()
    call_command("verify_log", stdout=here)
    assert (code, said in here.getvalue().splitlines()) == (0, True), output


@pytest.mark.full
@DATABASE
def test_each_person_gets_the_logs_they_may_read(auditor: Client, sign_in: SignIn, tmp_path: Path) -> None:
    for capability, logs in ((Capability.LOGS_READ, {"call"}), (Capability.AUDIT_READ, {"event"})):
        client = sign_in(make.user(capability))
        downloaded = download(client, tmp_path)
        assert {line["log"] for line in downloaded.lines} == logs | {"export", "checkpoint", "end"}
        assert downloaded.verify()[0] == 0
        assert client.get("/logs/proof/").status_code == 200
    stranger = sign_in(make.user(*set(Capability) - {Capability.LOGS_READ, Capability.AUDIT_READ}))
    for path in ("", "export/", "verify_export.py", "checkpoint-key.pem"):
        assert stranger.get(f"/logs/proof/{path}").status_code == 403


@DATABASE
def test_the_page_says_what_is_sealed_and_refuses_wrong_days(auditor: Client, sign_in: SignIn) -> None:
    page = auditor.get("/logs/proof/").content.decode()
    assert "Sealed since" in page
    assert "BEGIN PUBLIC KEY" in page
    for wrong in ("since=2026-02-30&until=x", "since=2026-02-20&until=9999-12-31"):
        assert auditor.get(f"/logs/proof/export/?{wrong}").status_code == 422
    early = auditor.get("/logs/proof/export/?since=2001-01-01&until=2001-01-02")
    assert (early.status_code, b"No checkpoint was made" in early.content) == (422, True)
    lines = auditor.get(f"/logs/proof/export/?{DAYS}&only=checkpoints").getvalue().splitlines()
    assert {json.loads(line)["log"] for line in lines} == {"export", "checkpoint", "end"}
    event = Event.objects.filter(action=Action.PROOF_EXPORTED).latest("pk")
    assert event.changes["logs"] == [None, []]


@pytest.mark.full
def test_an_export_of_a_running_workspace_is_verified(live: workspace.Serve, tmp_path: Path) -> None:
    # The first checkpoint covers no calls made before it.
    eventually(lambda: bool(live.rows("SELECT 1 FROM auditlog_checkpoint LIMIT 1")), seconds=120)
    issued = live.issue_token(host=make.unique("audited"), gateway="quickstart")
    assert curl.call_tool(issued["gateway_url"], issued["token"], "echo", text="x").status == 200
    [made] = live.rows("SELECT max(id) AS id FROM auditlog_call")

    def is_sealed() -> bool:
        reached = "SELECT max((body::json ->> 'near_to')::bigint) AS id FROM auditlog_checkpoint"
        return bool((live.rows(reached)[0]["id"] or 0) >= made["id"])

    eventually(is_sealed, seconds=120)
    with httpx.Client(base_url=live.url, timeout=60) as browser:
        assert sign_in_at(browser, workspace.OWNER, workspace.PASSWORD)
        downloaded = Downloaded(tmp_path, lambda path: browser.get(path).raise_for_status().content)

    code, output = downloaded.verify()
    assert (code, output.splitlines()[0]) == (0, "OK:"), output
    rows = [json.loads(line["row"]) for line in downloaded.lines if line["log"] == "call"]
    assert made["id"] in {row.get("id", made["id"]) for row in rows}
