"""Journey J9: an allowlist of IPv4 and IPv6 addresses, through a trusted proxy and through untrusted proxies."""

import httpx
import pytest

from tests import curl
from tests.make import unique
from tests.workspace import TRUSTED_PROXY, Serve

pytestmark = pytest.mark.full

MCP_IP = '{"jsonrpc":"2.0","error":{"code":-32003,"message":"IP Not Allowed"},"id":null}'
LIST = '{"jsonrpc":"2.0","id":1,"method":"tools/list"}'


def forwarded(live: Serve, secret: str, seen: str, *, through: str) -> int:
    """Return the status of a call from the address `seen`, as forwarded by the peer `through`."""
    url = f"http://127.0.0.1:{live.port}/mcp/quickstart"
    command = ["curl", "-sS", "-i", "--interface", through, "-H", f"Authorization: Bearer {secret}"]
    command += ["-H", "Content-Type: application/json", "-H", f"X-Forwarded-For: {seen}", "-d", LIST, url]
    return curl.run(command).status


def test_j9_ip_allowlist(live: Serve, boss: httpx.Client) -> None:
    # Create a token with an allowlist.
    host = boss.post("/api/hosts", json={"name": unique("bot")}).json()
    gateway = boss.get("/api/gateways/quickstart").json()
    order = {"host_id": host["id"], "gateway_id": gateway["id"], "name": "narrow"}
    made = boss.post("/api/tokens", json={**order, "allowed_ips": ["198.51.100.7", "2001:db8::/32"]}).json()
    path, url, secret = f"/api/tokens/{made['id']}", gateway["url"], made["token"]
    # Calls from other addresses get 403.
    denied = curl.list_tools(url, secret)
    assert (denied.status, denied.body) == (403, MCP_IP)
    # A forwarded address counts only if a trusted proxy added it.
    assert forwarded(live, secret, "198.51.100.7", through=TRUSTED_PROXY) == 200
    assert forwarded(live, secret, "2001:db8::17", through=TRUSTED_PROXY) == 200
    assert forwarded(live, secret, "198.51.100.7, 203.0.113.9", through=TRUSTED_PROXY) == 403
    assert forwarded(live, secret, "198.51.100.7", through="127.0.0.1") == 403
    # An added range takes effect on the next call.
    boss.patch(path, json={"allowed_ips": [*made["allowed_ips"], "127.0.0.0/8"]})
    assert curl.list_tools(url, secret).status == 200
    # Invalid addresses are refused.
    refused = boss.patch(path, json={"allowed_ips": ["300.1.1.1"]})
    assert (refused.status_code, "300.1.1.1" in refused.json()["errors"]["allowed_ips"][0]) == (400, True)
    # Without an allowlist, every address is allowed.
    assert boss.patch(path, json={"allowed_ips": None}).json()["allowed_ips"] is None
    assert forwarded(live, secret, "203.0.113.9", through=TRUSTED_PROXY) == 200
    # The log has the address of each refused call.
    calls = boss.get("/api/logs", params={"token": made["id"], "deny_reason": "ip"}).json()["results"]
    assert [call["client_ip"] for call in calls] == ["127.0.0.1", "203.0.113.9", "127.0.0.1"]
