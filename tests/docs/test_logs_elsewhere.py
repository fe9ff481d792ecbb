"""The commands of docs/how-to/send-the-logs.md and those that verify the log, run as printed."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests import curl
from tests.docs.pages import ROOT
from tests.docs.test_deploy import with_this_python
from tests.docs.test_how_tos import shell
from tests.workspace import OWNER, Serve

pytestmark = pytest.mark.full

PAGE = (ROOT / "docs" / "how-to" / "send-the-logs.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
AUDITOR = (ROOT / "docs" / "how-to" / "answer-an-auditor.md").read_text()
# Addresses that need no name resolution.
PLACES = {
    "https://logs.example.com": "https://93.184.215.14",
    "https://s3.eu-central-1.amazonaws.com": "https://93.184.215.15",
    "https://collector.example.com": "https://93.184.215.16",
}
MAKE_KEY = """
from accounts.models import User
from capabilities import Capability
from tokens.api_keys import issue
owner = User.objects.get(email="{owner}")
print(issue(name="Sinks", capabilities=[*Capability], days=7, by=owner).secret)
"""

CHECKPOINTS = """
import json
from auditlog.models import Checkpoint
for one in Checkpoint.objects.all():
    print(json.dumps({"log": "checkpoint", "number": one.number, "body": one.body, "sends": []}))
"""


def test_a_sink_of_each_kind_is_made_as_printed(live: Serve, tmp_path: Path) -> None:
    key = live.manage("shell", "--verbosity", "0", "-c", MAKE_KEY.format(owner=OWNER)).strip()
    secrets = {"ACCESS_KEY": "an-id:a-secret", "TOKEN": "of-a-collector", "USER_AND_PASSWORD": "gateway:secret"}
    made = [script for script in BLOCKS if script.startswith("curl")]
    try:
        for script in made:
            placed = script
            for printed, place in PLACES.items():
                placed = placed.replace(printed, place)
            assert "example.com" not in placed
            shell(placed, tmp_path, GATEWAY=live.url, API_KEY=key, **secrets)

        code = "from sinks.models import Sink\nprint(*sorted(f'{one.kind}:{one.name}' for one in Sink.objects.all()))"
        told = live.manage("shell", "--no-imports", "-c", code).split()
        said = [one for one in told if not one.startswith("stdout:")]
        assert said == ["otlp:Collector", "s3:Bucket", "webhook:Archive"]
        assert len(made) == len(said)
    finally:
        live.manage("shell", "--no-imports", "-c", "from sinks.models import Sink\nSink.objects.all().delete()")


def test_the_log_is_verified_as_printed(live: Serve, tmp_path: Path) -> None:
    printed_scripts = re.findall(r"```bash\n([^\n]*verify_log.*?)```", AUDITOR, re.DOTALL)
    keep, verify, compare, archived = map(with_this_python, printed_scripts)
    today = datetime.now(UTC).date()
    printed = {"2026-11-01": today - timedelta(days=1), "2026-12-01": today + timedelta(days=1)}
    for day, other in printed.items():
        assert day in verify
        verify = verify.replace(day, other.isoformat())
    key = str(tmp_path / "checkpoint-key.pem")
    issued = live.issue_token(host="Verified bot", gateway="quickstart")
    assert curl.call_tool(issued["gateway_url"], issued["token"], "echo", text="hello").status == 200
    live.manage("housekeeping")

    received = tmp_path / "received.jsonl"
    received.write_text(live.manage("shell", "--no-imports", "--verbosity", "0", "-c", CHECKPOINTS))
    compare = compare.replace("received.jsonl", str(received))

    scripts = (keep, verify, compare, archived)
    environment = live.environment() | {"GATEWAY_ARCHIVE": str(tmp_path / "archive")}
    said = [shell(script.replace("checkpoint-key.pem", key), ROOT, **environment) for script in scripts]

    assert Path(key).read_text().startswith("-----BEGIN PUBLIC KEY-----")
    assert said[0] == ""
    for printed_lines in said[1:]:
        assert re.match(r"OK: .*\n\d+ checkpoints, \d+ calls and \d+ admin events match", printed_lines)
