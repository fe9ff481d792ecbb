"""Journeys of requirements 7 that a program can walk, through both doors: /api and /mcp."""

import httpx
import pytest

from tests import curl
from tests.api.browser import signed_in
from tests.make import unique
from tests.workspace import OWNER, PASSWORD, Serve

MCP_401 = '{"jsonrpc":"2.0","error":{"code":-32001,"message":"Unauthorized"},"id":null}'
MCP_IP = '{"jsonrpc":"2.0","error":{"code":-32003,"message":"IP Not Allowed"},"id":null}'


@pytest.fixture
def order(owner: httpx.Client) -> dict[str, object]:
    """What a new token needs: a host of its own, and the Quickstart gateway."""
    host = owner.post("/api/hosts", json={"name": unique("bot")}).json()
    gateway = owner.get("/api/gateways/quickstart").json()
    return {"host_id": host["id"], "gateway_id": gateway["id"], "name": "ci-pipeline"}


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_j4_self_rotation_in_ci(live: Serve, owner: httpx.Client, order: dict[str, object]) -> None:
    made = owner.post("/api/tokens", json=order).json()
    sibling = owner.post("/api/tokens", json={**order, "name": "other"}).json()
    path, url = f"/api/tokens/{made['id']}/rotate", made["gateway"]["url"]

    # 1: no cookie, and all but the secret stays.
    rotated = httpx.post(live.url + path, headers=bearer(made["token"])).json()
    kept = ("id", "name", "scopes", "expires_at", "allowed_ips", "created_at")
    assert len(rotated) == 8
    assert [rotated[key] for key in kept] == [made[key] for key in kept]
    assert rotated["prefix"] == rotated["token"][:12] != made["prefix"]
    # 2
    assert curl.list_tools(url, made["token"]).body == MCP_401
    assert curl.list_tools(url, rotated["token"]).status == 200
    # 3
    foreign = httpx.post(f"{live.url}/api/tokens/{sibling['id']}/rotate", headers=bearer(rotated["token"]))
    assert (foreign.status_code, foreign.json()["code"]) == (403, "not_own_token")
    # 5
    assert owner.post(path, headers={"X-CSRFToken": ""}).status_code == 403
    secret = owner.post(path).json()["token"]
    # 6
    assert owner.post(f"/api/hosts/{order['host_id']}/disable").status_code == 200
    assert httpx.post(live.url + path, headers=bearer(secret)).status_code == 403
    # 7
    events = owner.get("/api/admin-events", params={"action": "token.rotated", "target_id": made["id"]}).json()[
        "results"
    ]
    assert [event["actor_email"] for event in events] == [OWNER, "token ci-pipeline (self)"]
    assert not any(one in live.log() for one in (made["token"], rotated["token"], secret, sibling["token"]))


def test_j9_ip_allowlist(owner: httpx.Client, order: dict[str, object]) -> None:
    # 1
    made = owner.post("/api/tokens", json={**order, "allowed_ips": ["198.51.100.7", "2001:db8::/32"]}).json()
    path, url, secret = f"/api/tokens/{made['id']}", made["gateway"]["url"], made["token"]
    # 2, and 3: what an untrusted peer says about itself changes nothing.
    denied = curl.list_tools(url, secret)
    assert (denied.status, denied.body) == (403, MCP_IP)
    told = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    assert curl.post(url, secret, told, "X-Forwarded-For: 198.51.100.7").status == 403
    # 4
    owner.patch(path, json={"allowed_ips": [*made["allowed_ips"], "127.0.0.0/8"]})
    assert curl.list_tools(url, secret).status == 200
    # 5
    refused = owner.patch(path, json={"allowed_ips": ["300.1.1.1"]})
    assert (refused.status_code, "300.1.1.1" in refused.json()["errors"]["allowed_ips"][0]) == (400, True)
    # 6
    assert owner.patch(path, json={"allowed_ips": None}).json()["allowed_ips"] is None
    assert curl.list_tools(url, secret).status == 200
    # 7
    calls = owner.get("/api/logs", params={"token": made["id"], "deny_reason": "ip"}).json()["results"]
    assert [call["client_ip"] for call in calls] == ["127.0.0.1"] * 2


def test_j12_access_follows_the_capability_and_not_the_role_name(live: Serve, owner: httpx.Client) -> None:
    # 6: "Administrator" stripped of everything gets nothing; given one capability, that one on the next request.
    role = owner.post("/api/roles", json={"name": unique("Administrator"), "capabilities": []}).json()
    email = f"{unique('viv')}@example.com"
    person = owner.post("/api/users", json={"email": email, "role_id": role["id"]}).json()
    live.manage("shell", "-c", _PASSWORD.format(email=email, password=PASSWORD))
    with signed_in(live, email) as viv:
        assert viv.get("/api/me").json()["capabilities"] == []
        assert viv.get("/api/hosts").json()["capability"] == "hosts:read"
        owner.patch(f"/api/roles/{role['id']}", json={"capabilities": ["hosts:read"]})
        assert viv.get("/api/hosts").status_code == 200
        assert viv.post("/api/hosts", json={"name": "x"}).json()["capability"] == "api-tokens:manage"
        attempts = owner.get("/api/admin-events", params={"action": "attempt.refused", "actor": person["id"]}).json()
        assert [event["changes"]["capability"] for event in attempts["results"]] == ["api-tokens:manage"]
        owner.post(f"/api/users/{person['id']}/deactivate")
        assert viv.get("/api/me").status_code == 401


_PASSWORD = """
from accounts.models import User
person = User.objects.get(email="{email}")
person.set_password("{password}")
person.save()
"""
