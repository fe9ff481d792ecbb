"""docs/reference/rest-api.md, run as printed against two workers, with a key limited to what the page needs."""

import re
import subprocess

import pytest

from tests import curl, upstreams
from tests.conftest import Run
from tests.docs.pages import ROOT
from tests.workspace import OWNER, Serve

pytestmark = pytest.mark.full

PAGE = (ROOT / "docs/reference/rest-api.md").read_text()
BLOCK = re.compile(r"<!-- script -->\n```bash\n(.*?)```", re.DOTALL)
CAPABILITIES = re.compile(r"\*([A-Z][\w\s&]+?)\*")
MCP_401 = '{"jsonrpc":"2.0","error":{"code":-32001,"message":"Unauthorized"},"id":null}'

MAKE_KEY = """
from accounts.models import User
from capabilities import Capability
from tokens.api_keys import issue
chosen = [one for one in Capability if one.label in {labels!r}]
print(issue(name="script", capabilities=chosen, days=90, by=User.objects.get(email={owner!r})).secret)
"""


def test_the_script_works_as_printed(live_alone: Serve, run: Run) -> None:
    live = live_alone.start()
    labels = {" ".join(label.split()) for label in CAPABILITIES.findall(PAGE)}
    key = live.manage("shell", "--verbosity", "0", "-c", MAKE_KEY.format(labels=labels, owner=OWNER)).strip()
    upstream = run(upstreams.docs())
    script = "\n".join(BLOCK.findall(PAGE)).replace("https://gateway.example.com", live.url)
    script = script.replace("gwp_...", key).replace("https://mcp.example.com/mcp", upstream.url)

    done = subprocess.run(["bash", "-c", script], env=live.environment(), capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "behind it: handbook" in done.stdout
    assert "handbook__echo" in done.stdout.splitlines()
    assert "invited: writer@example.com as Member" in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("disabled: ")] == [
        *("disabled: Writing bot", "disabled: Writers", "disabled: Handbook"),
    ]
    archived = "SELECT count(*) FROM {} WHERE archived_at IS NOT NULL"
    for table in ("hosts_host", "gateways_gateway", "servers_server"):
        assert live.rows(archived.format(table))[0]["count"] == 1, table
    assert not live.rows("SELECT 1 FROM accounts_user WHERE email = 'writer@example.com' AND is_active")
    refused = curl.list_tools(f"{live.url}/mcp/writers", key)
    assert (refused.status, refused.body) == (401, MCP_401)
    others = curl.run(["curl", "-sS", "-i", f"{live.url}/api/logs", "-H", f"Authorization: Bearer {key}"])
    assert (others.status, others.json["capability"]) == (403, "logs:read")
    (event,) = live.rows("SELECT * FROM auditlog_event WHERE action = 'host.created' AND target_label = 'Writing bot'")
    assert (event["actor_email"], event["changes"]["through"]) == (OWNER, f"API key script ({key[:12]})")
    assert key not in live.log()
