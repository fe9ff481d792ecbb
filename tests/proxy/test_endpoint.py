"""The endpoint's exact HTTP statuses, bodies and headers, and its JSON-RPC errors."""

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
import pytest

from auditlog.models import Event
from connections.models import Connection
from hosts.models import Host
from proxy.access.decision import Access
from proxy.config import Config
from proxy.request import ClientLeft, HeaderReader, McpRequest
from tests import make, upstreams
from tests.asgi_server import Upstream
from tests.conftest import Run
from tests.proxy.conftest import Agent, Proxy, Start, eventually
from tokens.models import Token
from wire import token_text

UNAUTHORIZED = b'{"jsonrpc":"2.0","error":{"code":-32001,"message":"Unauthorized"},"id":null}'
FORBIDDEN = b'{"jsonrpc":"2.0","error":{"code":-32003,"message":"Forbidden"},"id":null}'
METADATA = "https://gateway.example.com/.well-known/oauth-protected-resource/mcp"
MODERN = "2026-07-28"
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}


@dataclass
class World:
    proxy: Proxy
    docs: Upstream
    connection: Connection
    agent: Agent


def world_of(proxy: Proxy, run: Run) -> World:
    docs = run(upstreams.docs(json_response=True, stateless=True))
    user = make.user(email="ana@example.com")
    gateway = make.gateway(
        make.introduced(make.server(slug="docs", url=docs.url)), slug="work", description="Look things up here."
    )
    connection = make.connection(make.agent(by=user, name="CI bot"), gateway, user)
    return World(proxy, docs, connection, proxy.agent(connection, name="ci-pipeline"))


@pytest.fixture
def world(proxy: Proxy, run: Run) -> World:
    return world_of(proxy, run)


def modern(method: str, params: dict[str, Any] | None = None, **changes: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a 2026-07-28 request and its headers."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientInfo": {"name": "probe", "version": "2"},
        "io.modelcontextprotocol/clientCapabilities": {},
    } | changes
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**(params or {}), "_meta": meta}}
    headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": method, "Accept": "application/json, text/event-stream"}
    if "name" in (params or {}):
        headers["Mcp-Name"] = (params or {})["name"]
    return body, headers


@pytest.mark.full
def test_a_bare_post_is_the_first_call(world: World) -> None:
    listed = world.agent.listed(Accept="*/*")

    assert listed.status_code == 200
    assert [tool["name"] for tool in listed.json()["result"]["tools"]][:3] == [
        "docs__echo",
        "docs__add",
        "docs__search",
    ]
    assert listed.headers["content-type"] == "application/json"
    assert listed.headers["cache-control"] == "no-store"
    assert "set-cookie" not in listed.headers
    assert "mcp-session-id" not in listed.headers

    called = world.agent.call("docs__echo", {"text": "hello"})

    result = called.json()["result"]
    assert (result["content"], result["isError"]) == ([{"type": "text", "text": "hello"}], False)
    row = world.proxy.last()
    assert row.uid == row.correlation_id == UUID(called.headers["x-request-id"])
    assert (row.method, row.feature_type, row.feature_name) == ("tools/call", "tool", "docs__echo")
    assert (row.outcome, row.deny_reason, row.http_status, row.rpc_error_code) == ("ok", "", 200, None)
    assert (row.host_name, row.gateway_name, row.server_name) == ("CI bot", "work", "docs")
    assert (row.user_email, row.token_name, row.token_prefix) == (
        "ana@example.com",
        "ci-pipeline",
        (world.agent.secret or "")[:12],
    )
    assert (row.client_ip, row.connection_id) == ("127.0.0.1", world.connection.pk)
    assert row.user_agent.startswith("python-httpx/")
    assert 0 < (row.authorise_ms or 0) < row.duration_ms
    assert 0 < (row.upstream_ms or 0) < row.duration_ms
    assert (row.request_bytes, row.response_bytes) == (len(called.request.content), len(called.content))


def test_a_credential_that_is_none_gets_401(world: World) -> None:
    good = world.agent.secret or ""
    wrong = {
        "absent": {},
        "basic": {"Authorization": "Basic YTpi"},
        "bare": {"Authorization": good},
        "unknown": {"Authorization": f"Bearer {token_text.mint(token_text.ACCESS)}"},
        "wrong checksum": {"Authorization": f"Bearer {good[:-1]}{'a' if good[-1] != 'a' else 'b'}"},
        "short": {"Authorization": f"Bearer {good[:-1]}"},
        "own key": {"Authorization": f"Bearer {token_text.mint(token_text.KEY)}"},
        "session id": {"Authorization": f"Bearer {token_text.mint(token_text.SESSION)}"},
        "personal": {"Authorization": f"Bearer {token_text.mint(token_text.PERSONAL)}"},
        "empty": {"Authorization": "Bearer"},
        "cookie": {"Cookie": f"token={good}"},
    }
    stranger = Agent(world.agent.url, None)
    for name, headers in wrong.items():
        for url in (world.agent.url, world.proxy.url("no-such-gateway")):
            answer = httpx.post(url, json=LIST, headers=headers, trust_env=False)
            assert (name, answer.status_code, answer.content) == (name, 401, UNAUTHORIZED)
            assert answer.headers["content-type"] == "application/json"
            presented = (
                ', error="invalid_token"' if headers.get("Authorization", "").startswith(("Bearer ", good)) else ""
            )
            slug = url.rpartition("/")[2]
            challenge, _, advice = answer.headers["www-authenticate"].partition(", error_description=")
            assert challenge == f'Bearer resource_metadata="{METADATA}/{slug}"{presented}'
            assert bool(advice) is bool(presented)
    in_query = httpx.post(f"{world.agent.url}?access_token={good}", json=LIST, trust_env=False)
    assert (in_query.status_code, in_query.content) == (401, UNAUTHORIZED)
    twice = httpx.post(world.agent.url, json=LIST, headers=[("Authorization", f"Bearer {good}")] * 2, trust_env=False)
    assert (twice.status_code, twice.content) == (401, UNAUTHORIZED)
    assert world.proxy.calls() == []
    assert stranger.listed().status_code == 401


@pytest.mark.full
def test_get_and_delete_need_the_token_too(world: World) -> None:
    served = {"GET": (405, "POST, DELETE"), "DELETE": (400, None)}  # DELETE must name a session.
    for verb, answer in served.items():
        without = httpx.request(verb, world.agent.url, trust_env=False)
        assert (without.status_code, without.content) == (401, UNAUTHORIZED)
        assert "www-authenticate" in without.headers
        given = {"Authorization": f"Bearer {world.agent.secret}", "Accept": "text/event-stream"}
        with_token = httpx.request(verb, world.agent.url, headers=given, trust_env=False)
        assert (with_token.status_code, with_token.headers.get("allow")) == answer

    assert [(row.method, row.outcome, row.http_status) for row in world.proxy.calls()] == [
        ("GET", "not_offered", 405),
        ("DELETE", "bad_request", 400),
    ]


@pytest.mark.full
def test_a_token_at_another_gateway_gets_its_exact_body(world: World) -> None:
    make.gateway(slug="other")
    for slug in ("other", "no-such-gateway"):
        answer = Agent(world.proxy.url(slug), world.agent.secret).listed()
        assert (answer.status_code, answer.content) == (403, FORBIDDEN)

    assert [row.deny_reason for row in world.proxy.calls()] == ["wrong_gateway"] * 2


def test_dead_credentials_are_denied_alike_and_logged_with_their_reason(world: World) -> None:
    world.connection.revoke(by=world.connection.user)

    answer = world.agent.listed()

    assert (answer.status_code, answer.content) == (401, UNAUTHORIZED)
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    row = world.proxy.last()
    assert (row.outcome, row.deny_reason, row.http_status, row.method) == ("unauthorized", "revoked", 401, "tools/list")
    assert row.host_name == "CI bot"


def test_faults_of_a_request_are_reported_after_authentication(world: World) -> None:
    def status(body: object = PING, **headers: str) -> tuple[int, int | None, object]:
        answer = world.agent.post(body, **headers)
        document = answer.json() if answer.content else {}
        return answer.status_code, document.get("error", {}).get("code"), document.get("id")

    assert status(b"{") == (415, -32600, None)
    assert status(b"{", Content_Type="application/json") == (400, -32700, None)
    assert status([PING]) == (400, -32600, None)
    assert status({"jsonrpc": "2.0", "id": None, "method": "ping"}) == (400, -32600, None)
    assert status(Content_Type="text/plain") == (415, -32600, None)
    assert status(json.dumps(PING).encode(), Content_Type="Application/JSON; charset=utf-8") == (200, None, 1)
    assert status(Accept="text/html") == (406, -32600, None)
    assert status(Accept="application/json;q=0") == (406, -32600, None)
    assert status(Accept="text/html, application/*;q=0.8") == (200, None, 1)
    assert status(Accept="application/json") == (200, None, 1)
    assert status({"jsonrpc": "2.0", "id": "a", "method": "tasks/list"}) == (200, -32601, "a")
    assert {row.outcome for row in world.proxy.calls()} == {"ok", "bad_request", "not_offered"}
    answer = world.agent.post(PING, Accept="text/event-stream")
    assert (answer.headers["content-type"], answer.headers["x-accel-buffering"]) == ("text/event-stream", "no")
    assert "no-transform" in answer.headers["cache-control"]
    assert answer.text == 'event: message\r\ndata: {"jsonrpc":"2.0","id":1,"result":{}}\r\n\r\n'


def test_notifications_and_responses_are_accepted_without_a_body(world: World) -> None:
    for message in (
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}},
        {"jsonrpc": "2.0", "id": 5, "result": {}},
    ):
        answer = world.agent.post(message)
        assert (answer.status_code, answer.content) == (202, b"")
    assert [row.method for row in world.proxy.calls()] == [
        "notifications/initialized",
        "notifications/cancelled",
        "response",
    ]


@pytest.mark.full
def test_initialize_agrees_on_a_version_of_its_era(world: World) -> None:
    newest = "2025-11-25"
    agreements: dict[object, str] = {version: version for version in ("2025-03-26", "2025-06-18", newest)}
    agreements |= dict.fromkeys(("2024-11-05", MODERN, "nonsense", None, 7), newest)
    for proposed, agreed in agreements.items():
        params = {"protocolVersion": proposed, "capabilities": {}, "clientInfo": {"name": "probe", "version": "1"}}

        result = world.agent.ask("initialize", params).json()["result"]

        assert (proposed, result["protocolVersion"]) == (proposed, agreed)
        assert result["capabilities"] == {"tools": {"listChanged": True}}
        assert result["serverInfo"]["title"] == "work"
        assert result["instructions"] == "Look things up here."
        row = world.proxy.last()
        assert (row.client_name, row.client_version, row.protocol_version) == ("probe", "1", agreed)
    assert world.docs.seen == []
    for version, status in (("2025-03-26", 200), ("2025-06-18", 200), (newest, 200), ("1999-01-01", 400)):
        assert world.agent.post(PING, MCP_Protocol_Version=version).status_code == status


def test_a_request_of_2026_07_28_is_checked_in_order(world: World) -> None:
    def answer(body: Any, headers: dict[str, str]) -> tuple[int, Any]:
        given = world.agent.post(body, **headers)
        error = given.json().get("error", {})
        return given.status_code, error.get("code")

    body, headers = modern("tools/list")
    assert answer(body, headers) == (200, None)
    for name in ("MCP-Protocol-Version", "Mcp-Method"):
        assert answer(body, {key: value for key, value in headers.items() if key != name}) == (400, -32020)
    assert answer(body, headers | {"Mcp-Method": "tools/call"}) == (400, -32020)
    assert answer(body, headers | {"MCP-Protocol-Version": "2025-11-25"}) == (400, -32020)
    doubled = httpx.post(
        world.agent.url,
        json=body,
        headers=[("Authorization", f"Bearer {world.agent.secret}"), *headers.items(), ("Mcp-Method", "tools/list")],
        trust_env=False,
    )
    assert (doubled.status_code, doubled.json()["error"]["code"]) == (400, -32020)

    meta = body["params"]["_meta"]
    for key in ("io.modelcontextprotocol/protocolVersion", "io.modelcontextprotocol/clientCapabilities"):
        without = body | {"params": {"_meta": {name: value for name, value in meta.items() if name != key}}}
        assert answer(without, headers) == (400, -32602)
    assert answer(body | {"params": {}}, headers) == (400, -32602)
    assert answer(*modern("tools/list", None, **{"io.modelcontextprotocol/protocolVersion": 1})) == (400, -32602)

    unknown, _ = modern("tools/list", None, **{"io.modelcontextprotocol/protocolVersion": "2027-01-01"})
    refused = world.agent.post(unknown, **headers | {"MCP-Protocol-Version": "2027-01-01"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, -32022)
    assert refused.json()["error"]["data"] == {
        "supported": ["2026-07-28", "2025-11-25", "2025-06-18", "2025-03-26"],
        "requested": "2027-01-01",
    }
    for method in ("ping", "tasks/list", "nonsense"):
        assert answer(*modern(method)) == (404, -32601)
    assert answer(*modern("tools/call", {"name": "docs__nothing", "arguments": []})) == (400, -32602)
    assert answer(*modern("tools/call", {"name": "nothing"})) == (400, -32602)
    call, named = modern("tools/call", {"name": "docs__echo", "arguments": {"text": "x"}})
    assert answer(call, named | {"Mcp-Name": "docs__add"}) == (400, -32020)
    assert answer(call, {key: value for key, value in named.items() if key != "Mcp-Name"}) == (400, -32020)
    assert answer(call, named | {"Mcp-Name": "=?base64?ZG9jc19fZWNobw==?="}) == (200, None)

    note = {"jsonrpc": "2.0", "method": "notifications/cancelled"}
    assert world.agent.post(note, **headers).status_code == 202
    assert world.agent.post(note, MCP_Protocol_Version="2027-01-01").status_code == 400
    assert world.agent.post({"jsonrpc": "2.0", "id": 1, "result": {}}, **headers).status_code == 400


def test_discover_names_both_eras_and_nothing_that_is_not_served(world: World) -> None:
    body, headers = modern("server/discover")

    answer = world.agent.post(body, **headers)

    result = answer.json()["result"]
    assert result["supportedVersions"] == ["2026-07-28", "2025-11-25", "2025-06-18", "2025-03-26"]
    assert result["capabilities"] == {"tools": {"listChanged": True}}
    assert (result["resultType"], result["ttlMs"], result["cacheScope"]) == ("complete", 0, "private")
    assert "mcp-session-id" not in answer.headers
    assert world.agent.ask("server/discover").json()["result"]["supportedVersions"][0] == MODERN
    body, headers = modern("tools/list")
    listed = world.agent.post(body, **headers).json()["result"]
    assert (listed["resultType"], listed["ttlMs"], listed["cacheScope"]) == ("complete", 0, "private")
    for verb in ("GET", "DELETE"):
        given = {"Authorization": f"Bearer {world.agent.secret}", "MCP-Protocol-Version": MODERN}
        assert httpx.request(verb, world.agent.url, headers=given, trust_env=False).status_code == 405
    row = world.proxy.calls()[0]
    assert (row.client_name, row.client_version, row.protocol_version) == ("probe", "2", MODERN)


@pytest.mark.full
def test_browsers_are_let_in_by_origin(start: Start, run: Run) -> None:
    world = world_of(start(allowed_origins=["http://localhost:6274"]), run)
    agent = world.agent
    evil = agent.listed(Origin="http://evil.example")
    assert (evil.status_code, evil.json()["error"]["data"]["reason"]) == (403, "origin")
    assert "access-control-allow-origin" not in evil.headers
    assert agent.listed(Origin="null").status_code == 403
    assert world.proxy.last().deny_reason == "origin"

    for origin in ("http://localhost:6274", "https://gateway.example.com"):
        allowed = agent.listed(Origin=origin)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, origin)
        assert "access-control-allow-credentials" not in allowed.headers
        refused = Agent(agent.url, None).listed(Origin=origin)
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, origin)
        assert "WWW-Authenticate" in refused.headers["access-control-expose-headers"]

    asked = {
        "Origin": "http://localhost:6274",
        "Access-Control-Request-Headers": "authorization, mcp-param-region, x-evil",
    }
    preflight = httpx.options(agent.url, headers=asked, trust_env=False)
    assert (preflight.status_code, preflight.content) == (204, b"")
    assert preflight.headers["access-control-allow-methods"] == "GET, POST, DELETE, OPTIONS"
    names = preflight.headers["access-control-allow-headers"].split(", ")
    assert {
        "Authorization",
        "Mcp-Session-Id",
        "MCP-Protocol-Version",
        "Mcp-Method",
        "Mcp-Name",
        "mcp-param-region",
    } <= set(names)
    assert "x-evil" not in names
    assert httpx.options(agent.url, headers={"Origin": "http://evil.example"}, trust_env=False).status_code == 403


def test_a_body_past_the_limit_is_413_and_a_call_of_its_token(start: Start, run: Run) -> None:
    world = world_of(start(body_limit=1000), run)
    large = {"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"x": "y" * 1000}}

    assert world.agent.post(large).status_code == 413
    assert world.agent.post(PING).status_code == 200
    assert Agent(world.agent.url, None).post(large).status_code == 401

    def drip() -> Any:
        yield json.dumps(large).encode()

    given = {"Authorization": f"Bearer {world.agent.secret}", "Content-Type": "application/json"}
    assert httpx.post(world.agent.url, content=drip(), headers=given, trust_env=False).status_code == 413
    assert [row.http_status for row in world.proxy.calls()] == [413, 200, 413]


async def test_a_request_that_never_arrives_whole_is_no_request() -> None:
    events = iter([{"type": "http.request", "body": b"{}", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(events)

    async def send(_: Any) -> None:
        raise AssertionError("nobody is there")

    scope = {"method": "POST", "path": "/mcp/work", "headers": []}
    config = Config("", [], [], "http://localhost:8000")
    request = McpRequest(HeaderReader(config, Access("", [])).read(scope), scope, receive, send)

    with pytest.raises(ClientLeft):
        await request.read(1000)


@pytest.mark.full
def test_the_client_address_comes_from_whom_the_application_trusts(start: Start, run: Run) -> None:
    world = world_of(start(client_address=lambda peer, hops: hops[-1] if hops else peer), run)
    narrow = world.proxy.agent(world.connection, allowed_ips=["203.0.113.0/24"])

    assert narrow.listed(X_Forwarded_For="203.0.113.9").status_code == 200
    refused = narrow.listed(X_Forwarded_For="198.51.100.1")

    assert (refused.status_code, refused.json()["error"]["message"]) == (403, "IP Not Allowed")
    assert [row.client_ip for row in world.proxy.calls()] == ["203.0.113.9", "198.51.100.1"]


@pytest.mark.full
def test_a_host_that_is_not_ours_is_refused_in_words(start: Start, run: Run) -> None:
    world = world_of(start(hosts=frozenset({"127.0.0.1", "gateway.example.com"})), run)

    assert world.agent.listed().status_code == 200
    assert world.agent.listed(Host="gateway.example.com:443").status_code == 200
    refused = world.agent.listed(Host="evil.example")
    assert (refused.status_code, refused.headers["content-type"]) == (400, "text/plain; charset=utf-8")
    assert refused.text == "Gateway Admin does not answer for that host name. Set GATEWAY_PUBLIC_URL.\n"


@pytest.mark.full
def test_unknown_tokens_become_one_event_for_each_address(start: Start, run: Run) -> None:
    world = world_of(start(unknown_token_seconds=0.0), run)
    for _ in range(3):
        Agent(world.agent.url, token_text.mint(token_text.ACCESS)).listed()

    eventually(Event.objects.filter(action="proxy.unknown_tokens_refused").exists)
    events = Event.objects.filter(action="proxy.unknown_tokens_refused")
    assert {event.ip for event in events} == {"127.0.0.1"}
    assert sum(event.changes["requests"][1] for event in events) <= 3


@pytest.mark.full
def test_strangers_are_counted_by_neighbourhood_and_told_in_few_events(start: Start, run: Run) -> None:
    proxy = start(client_address=lambda _, hops: hops[-1])
    world = world_of(proxy, run)
    alone = [f"2001:db8:0:{n:x}::1" for n in range(25)]
    for ip in [*alone, *[f"2001:db8:ffff:1::{n}" for n in range(3)], "192.0.2.7", "192.0.2.7"]:
        Agent(world.agent.url, token_text.mint(token_text.ACCESS)).listed(X_Forwarded_For=ip)
    proxy.stop()

    events = Event.objects.filter(action="proxy.unknown_tokens_refused")
    counted = {event.target_label: event.changes["requests"][1] for event in events}
    assert (counted["2001:db8:ffff:1::/64"], counted["192.0.2.7"]) == (3, 2)
    assert len(counted) == 21
    assert counted["many addresses"] == sum([1] * 25 + [3, 2]) - 5 - 18


@pytest.mark.full
def test_use_is_stored_of_token_connection_and_host_and_of_each_secret_by_itself(start: Start, run: Run) -> None:
    world = world_of(start(), run)
    before = Token.objects.get()
    new = before.rotate(by=world.connection.user, overlap_hours=24)
    old_prefix, new_prefix = before.previous_prefix, new.token.prefix
    assert old_prefix != new_prefix

    world.agent.listed()
    eventually(lambda: Token.objects.get().previous_last_used_at)
    eventually(lambda: Connection.objects.get().last_used_at and Host.objects.get().last_seen_at)
    assert Token.objects.get().last_used_ip == "127.0.0.1"
    assert Token.objects.get().secret_last_used_at is None
    earlier = Token.objects.get().previous_last_used_at

    world.proxy.holding(new).listed()
    eventually(lambda: Token.objects.get().secret_last_used_at)

    token = Token.objects.get()
    assert token.previous_last_used_at == earlier
    assert token.last_used_at == token.secret_last_used_at
    assert [call.token_prefix for call in world.proxy.calls()][-2:] == [old_prefix, new_prefix]
    assert {call.token_id for call in world.proxy.calls()} == {token.pk}


@pytest.mark.full
def test_two_secrets_used_in_the_same_second_are_both_remembered(start: Start, run: Run) -> None:
    world = world_of(start(), run)
    new = world.proxy.holding(Token.objects.get().rotate(by=world.connection.user, overlap_hours=1))
    for agent in (world.agent, new, world.agent):
        agent.listed()
    world.proxy.stop()

    token = Token.objects.get()
    assert token.previous_last_used_at
    assert token.secret_last_used_at
    assert token.last_used_at == max(token.previous_last_used_at, token.secret_last_used_at)
