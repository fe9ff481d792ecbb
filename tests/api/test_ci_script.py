"""A CI job rotates its own token on every run, with only curl and jq."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import curl
from tests.make import unique
from tests.workspace import Serve

# Copied from the documentation of another product, except for the host name.
SCRIPT = r"""#!/bin/bash
set -euo pipefail

# Rotate the token — the token authenticates itself
RESPONSE=$(curl --silent --fail \
  -X POST "GATEWAY/api/tokens/${MCTX_TOKEN_ID}/rotate" \
  -H "Authorization: Bearer ${MCTX_API_TOKEN}")

# Extract the new token value
NEW_TOKEN=$(echo "$RESPONSE" | jq -r '.token')

# Update the CI secret with the new value before proceeding
# (how to do this depends on your CI provider — see examples below)
echo "Rotation complete. Update MCTX_API_TOKEN with the new value."
echo "$NEW_TOKEN"
"""


def job(live: Serve, pk: str, secret: str) -> subprocess.CompletedProcess[str]:
    environment = {**live.environment(), "MCTX_TOKEN_ID": pk, "MCTX_API_TOKEN": secret}
    script = SCRIPT.replace("GATEWAY", live.url)
    return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.full
def test_the_script_renews_its_own_token_on_every_run(live: Serve) -> None:
    """The new secret works, and the old secret fails immediately."""
    issued = live.issue_token(host=unique("ci"), gateway="quickstart")
    pk, url, secret = issued["id"], issued["gateway_url"], issued["token"]

    for _ in range(3):
        done = job(live, pk, secret)
        assert done.returncode == 0, done.stderr
        old, secret = secret, done.stdout.splitlines()[-1]
        assert curl.list_tools(url, secret).status == 200
        assert curl.list_tools(url, old).status == 401

    assert secret not in live.log()


def test_a_dead_token_stops_the_pipeline(live: Serve) -> None:
    issued = live.issue_token(host=unique("ci"), gateway="quickstart")

    done = job(live, issued["id"], issued["token"][:-1] + "_")

    assert done.returncode == 22  # curl's exit status with --fail.
    assert done.stdout == ""


@pytest.mark.full
def test_two_workers_let_one_of_many_rotations_win(live: Serve) -> None:
    """Two worker processes serve the requests."""
    issued = live.issue_token(host=unique("ci"), gateway="quickstart")
    command = ["curl", "-sS", "-i", "-X", "POST", f"{live.url}/api/tokens/{issued['id']}/rotate"]
    command += ["-H", f"Authorization: Bearer {issued['token']}"]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: curl.run(command), range(8)))

    assert sorted(answer.status for answer in answers) == [200] + [401] * 7
    for answer in answers:
        assert "set-cookie" not in answer.headers
        assert answer.headers["x-request-id"]
    (winner,) = (answer for answer in answers if answer.status == 200)
    assert winner.headers["cache-control"] == "no-store"
    assert list(winner.json) == [
        *("token", "id", "name", "prefix", "expires_at", "allowed_ips", "scopes", "created_at"),
    ]


@pytest.mark.full
def test_the_event_of_a_rotation_is_found_by_its_request_id(live: Serve) -> None:
    issued = live.issue_token(host=unique("ci"), gateway="quickstart")
    command = ["curl", "-sS", "-i", "-X", "POST", f"{live.url}/api/tokens/{issued['id']}/rotate"]

    answer = curl.run([*command, "-H", f"Authorization: Bearer {issued['token']}"])

    (event,) = live.rows("SELECT * FROM auditlog_event WHERE correlation_id = %s", answer.headers["x-request-id"])
    assert (event["via"], event["actor_email"]) == ("bearer", f"token {issued['name']} (self)")
    assert str(event["ip"]) == "127.0.0.1"
    assert answer.json["token"] not in json.dumps(event, default=str)
