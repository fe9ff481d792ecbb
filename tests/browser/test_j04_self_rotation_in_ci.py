"""Journey J4: a CI job rotates its own token. tests/api/test_ci_script.py tests the script of such a job."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests import curl
from tests.make import unique
from tests.workspace import OWNER, Serve

pytestmark = pytest.mark.full

MCP_401 = '{"jsonrpc":"2.0","error":{"code":-32001,"message":"Unauthorized"},"id":null}'


def rotate(live: Serve, pk: str, secret: str) -> curl.Answer:
    command = ["curl", "-sS", "-i", "-X", "POST", f"{live.url}/api/tokens/{pk}/rotate"]
    return curl.run([*command, "-H", f"Authorization: Bearer {secret}"])


def test_j4_self_rotation_in_ci(live: Serve, boss: httpx.Client) -> None:
    host = boss.post("/api/hosts", json={"name": unique("bot")}).json()
    gateway = boss.get("/api/gateways/quickstart").json()
    order = {"host_id": host["id"], "gateway_id": gateway["id"], "name": "ci-pipeline"}
    made = boss.post("/api/tokens", json=order).json()
    sibling = boss.post("/api/tokens", json={**order, "name": "other"}).json()
    path, url = f"/api/tokens/{made['id']}/rotate", gateway["url"]

    # Rotating needs no cookie, and changes only the secret.
    rotated = rotate(live, made["id"], made["token"]).json
    kept = ("id", "name", "scopes", "expires_at", "allowed_ips", "created_at")
    assert len(rotated) == 8
    assert [rotated[key] for key in kept] == [made[key] for key in kept]
    assert rotated["prefix"] == rotated["token"][:12] != made["prefix"]
    # The old secret fails at once, the new secret works.
    assert curl.list_tools(url, made["token"]).body == MCP_401
    assert curl.list_tools(url, rotated["token"]).status == 200
    # A token cannot rotate another token, even of the same connection.
    foreign = rotate(live, sibling["id"], rotated["token"])
    assert (foreign.status, foreign.json["code"]) == (403, "not_own_token")
    # Of two concurrent rotations, one succeeds.
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: rotate(live, made["id"], rotated["token"]), range(2)))
    assert sorted(answer.status for answer in both) == [200, 401]
    # In a browser, rotating needs the CSRF token.
    assert boss.post(path, headers={"X-CSRFToken": ""}).status_code == 403
    secret = boss.post(path).json()["token"]
    # A token of a disabled host cannot rotate itself.
    assert boss.post(f"/api/hosts/{host['id']}/disable").status_code == 200
    assert rotate(live, made["id"], secret).status == 403
    # Each rotation is an event that names its actor.
    asked = {"action": "token.rotated", "target_id": made["id"]}
    events = boss.get("/api/admin-events", params=asked).json()["results"]
    assert [event["actor_email"] for event in events] == [OWNER, *["token ci-pipeline (self)"] * 2]
