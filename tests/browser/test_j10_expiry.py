"""Journey J10: a token gets one of the offered lifetimes, can be extended, and is refused after its expiry."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from tests import curl
from tests.api.browser import confirm
from tests.make import unique
from tests.workspace import Serve

pytestmark = pytest.mark.full

MCP_401 = '{"jsonrpc":"2.0","error":{"code":-32001,"message":"Unauthorized"},"id":null}'
LIFETIMES = re.compile(r'name="expires_in_days" value="(\w*)"')


def test_j10_expiry(live: Serve, boss: httpx.Client) -> None:
    host = boss.post("/api/hosts", json={"name": unique("mortal")}).json()["id"]
    gateway = boss.get("/api/gateways/quickstart").json()
    order = {"host_id": host, "gateway_id": gateway["id"]}
    url = gateway["url"]
    # Only the offered lifetimes are accepted.
    begun = boss.get("/connect/", params={"host": host, "gateway": "quickstart"})
    form = boss.get(begun.url.path)
    assert LIFETIMES.findall(form.text) == ["7", "30", "90"]
    for days in (365, None, 0, 8):
        refused = boss.post("/api/tokens", json={**order, "name": "x", "expires_in_days": days})
        assert (refused.status_code, list(refused.json()["errors"])) == (400, ["expires_in_days"])
    # A rotation does not change the expiry date.
    made = boss.post("/api/tokens", json={**order, "name": "mortal", "expires_in_days": 7}).json()
    path = f"/api/tokens/{made['id']}"
    rotated = boss.post(f"{path}/rotate").json()
    assert rotated["expires_at"] == made["expires_at"]
    # The dashboard lists tokens that expire soon.
    assert "mortal" in soon(boss)
    # The expiry date can be extended.
    extended = boss.patch(path, json={"expires_in_days": 30}).json()["expires_at"]
    assert abs(datetime.fromisoformat(extended) - datetime.now(UTC) - timedelta(days=30)) < timedelta(minutes=1)
    assert "mortal" not in soon(boss)
    # An expired token gets 401.
    live.rows("UPDATE tokens_token SET expires_at = now() + interval '30 seconds' WHERE id = %s", made["id"])
    assert curl.list_tools(url, rotated["token"]).status == 200
    live.rows("UPDATE tokens_token SET expires_at = now() - interval '1 second' WHERE id = %s", made["id"])
    expired = curl.list_tools(url, rotated["token"])
    assert (expired.status, expired.body) == (401, MCP_401)
    # An expired token can be neither extended nor rotated.
    for answer in (boss.patch(path, json={"expires_in_days": 90}), boss.post(f"{path}/rotate")):
        assert (answer.status_code, answer.json()["code"]) == (409, "token_expired")
    # Tokens without expiry need the workspace's permission.
    with no_expiry_allowed(boss):
        endless = boss.post("/api/tokens", json={**order, "name": "endless", "expires_in_days": None})
        assert (endless.status_code, endless.json()["expires_at"]) == (201, None)
    row = boss.get("/settings/api-tokens", params={"q": "endless"}).text
    assert "No expiry" in row
    assert curl.list_tools(url, endless.json()["token"]).status == 200


def soon(boss: httpx.Client) -> str:
    """Return the dashboard's list of tokens that expire within two weeks."""
    return boss.get("/").text.partition("Tokens expiring in 14 days")[2].partition("</section>")[0]


@contextmanager
def no_expiry_allowed(boss: httpx.Client) -> Iterator[None]:
    confirm(boss)
    for allowed in (True, False):
        changed = boss.patch("/api/workspace", json={"allow_non_expiring_tokens": allowed})
        assert changed.json()["allow_non_expiring_tokens"] is allowed
        if allowed:
            yield
