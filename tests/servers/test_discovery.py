"""*Test connection*, with real servers of both MCP eras (with and without sessions), and with broken servers."""

import json
from ipaddress import ip_network
from typing import Any

import pytest
from pytest_django import Settings

from accounts.models import User
from gatewayadmin.serving import quickstart
from servers.discovery import (
    DiscoveryFailed,
    DiscoveryRefused,
    NotAsked,
    contact,
    discover_features,
    identity_for,
    probe,
)
from servers.models import BUILT_IN_URL, AuthType, Era, Health, Identity, Server
from tests import make, upstreams
from tests.asgi_server import Receive, Scope, Send, answer, live, read
from tests.conftest import Run
from tests.workspace import free_port
from wire import guard
from wire.versions import VERSION

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("loopback_is_allowed")]

DOCS_TOOLS = {"echo", "add", "search", "slow", "fail", "big"}


def at(url: str, **fields: Any) -> Server:
    return make.server(url=url, **fields)


def names(tools: list[dict[str, Any]]) -> set[str]:
    return {tool["name"] for tool in tools}


def test_a_server_of_both_eras_is_asked_in_the_newer_one(run: Run) -> None:
    for json_response in (True, False):
        upstream = run(upstreams.docs(json_response=json_response))
        found = discover_features(at(upstream.url), None)
        assert (found.era, names(found.tools)) == (Era.BOTH, DOCS_TOOLS)
        assert [each.headers["mcp-protocol-version"] for each in upstream.asked("tools/list")] == ["2026-07-28"]

    newer_only = discover_features(at(run(upstreams.modern_era(upstreams.docs())).url), None)

    assert (newer_only.era, names(newer_only.tools)) == (Era.MODERN, DOCS_TOOLS)


def test_a_server_of_the_session_era_is_asked_within_a_session_that_is_ended(run: Run) -> None:
    for json_response in (True, False):
        upstream = run(upstreams.session_era(upstreams.docs(json_response=json_response)))

        found = discover_features(at(upstream.url), None)

        assert (found.era, found.version) == (Era.SESSION, "2025-11-25")
        assert names(found.tools) == DOCS_TOOLS
        (listed,) = upstream.asked("tools/list")
        assert listed.headers["mcp-session-id"]
        assert listed.headers["mcp-protocol-version"] == "2025-11-25"
        assert upstream.seen[-1].verb == "DELETE"
        for greeted in upstream.asked("initialize"):  # Once to detect the protocol version, and once to list.
            assert greeted.body["params"]["clientInfo"] == {"name": "gateway-admin", "version": VERSION}


@pytest.mark.full
def test_a_bearer_credential_is_sent_and_no_other_header_of_ours(run: Run) -> None:
    upstream = run(upstreams.github())
    server = at(upstream.url, auth_type=AuthType.BEARER)

    found = discover_features(server, make.identity(server, secret="gh-secret"))

    assert names(found.tools) == {"whoami", "create_issue"}
    assert {seen.headers["authorization"] for seen in upstream.seen} == {"Bearer gh-secret"}


def test_a_header_credential_is_sent_under_its_own_name(run: Run) -> None:
    upstream = run(upstreams.crm())
    server = at(upstream.url, auth_type=AuthType.HEADER, header_name="X-Api-Key")

    discover_features(server, make.identity(server, secret="crm-key"))

    assert {seen.headers["x-api-key"] for seen in upstream.seen} == {"crm-key"}


def test_a_server_that_wants_or_refuses_a_credential_says_so_and_counts_as_up(run: Run, ana: User) -> None:
    server = at(run(upstreams.github()).url, auth_type=AuthType.BEARER)
    denied = upstreams.garbage(b'{"error":"unauthorized"}', status=401, kind="application/json")
    refusing = at(run(denied).url, auth_type=AuthType.BEARER)
    identity = make.identity(refusing, ana)

    with pytest.raises(DiscoveryRefused, match="answered 401: it wants a credential"):
        probe(server, by=ana)
    with pytest.raises(DiscoveryRefused, match="answered 401: it refused the credential"):
        probe(refusing, by=ana)

    server.refresh_from_db()
    identity.refresh_from_db()
    assert server.health == Health.OK
    assert identity.last_error == "answered 401: it refused the credential"
    assert identity.last_used_at is None  # Only calls count as use.


def test_the_tester_s_own_identity_comes_before_a_shared_one_and_no_other_person_s_is_used(
    ana: User, ben: User
) -> None:
    server = make.server(auth_type=AuthType.BEARER)
    make.identity(server, ben)
    assert identity_for(server, ana) is None

    shared = make.identity(server)
    assert identity_for(server, ana) == shared

    own = make.identity(server, ana)
    assert identity_for(server, ana) == own

    own.disable(by=ana)
    assert identity_for(server, ana) == shared


def test_a_contact_is_remembered_on_the_row(run: Run, ana: User) -> None:
    server = at(run(upstreams.docs()).url)

    found = probe(server, by=ana)

    server.refresh_from_db()
    assert (server.health, server.health_error, server.protocol_era) == (Health.OK, "", Era.BOTH)
    assert server.health_checked_at
    assert str(found).endswith("with 6 tools. It speaks MCP 2026-07-28 and 2025-11-25.")


@pytest.mark.full
def test_a_server_that_does_not_answer_is_down_with_its_reason(run: Run, ana: User) -> None:
    server = at(run(upstreams.silent()).url, timeout_seconds=1)

    with pytest.raises(DiscoveryFailed, match="did not answer within 1 s"):
        probe(server, by=ana)

    server.refresh_from_db()
    assert (server.health, server.health_error) == (Health.DOWN, "did not answer within 1 s")


def test_every_misbehaviour_has_a_plain_sentence(run: Run, subtests: pytest.Subtests) -> None:
    port = run(upstreams.docs()).port
    said = {
        at(run(app).url, timeout_seconds=5).url: why
        for app, why in (
            (upstreams.garbage(), "answered, but not in MCP"),
            (upstreams.garbage(status=404), "answered 404: there is no MCP endpoint at this URL"),
            (upstreams.garbage(status=405), "answered 405: it may speak the older HTTP"),
            (upstreams.garbage(status=502), "answered 502"),
            (upstreams.garbage(b"[" * 100_000, kind="application/json"), "answered, but not in MCP"),
            (upstreams.garbage(b"x" * (11 << 20)), "answered with more than 10 MiB"),
            (upstreams.redirecting("https://elsewhere.example.com/"), "redirects to https://elsewhere.example.com/"),
            (upstreams.cut_off(), "closed the connection without an answer"),
            (paged(0, error=-32000), r"answered with an error: paper jam \(-32000\)"),
        )
    } | {
        f"http://127.0.0.1:{free_port()}/mcp": "refused the connection",
        f"https://127.0.0.1:{port}/mcp": "does not speak TLS at this port; inside your network, its URL may have to",
        "https://no-such-name.invalid/mcp": "has a host name that does not resolve; check the spelling",
        f"https://{'a' * 70}.example.com/mcp": "has a host name that does not resolve; check the spelling",
    }
    for url, why in said.items():
        with subtests.test(why), pytest.raises(DiscoveryFailed, match=why):
            discover_features(Server(url=url, timeout_seconds=5), None)


def test_a_redirect_is_not_followed(run: Run) -> None:
    elsewhere = run(upstreams.docs())

    with pytest.raises(DiscoveryFailed, match="redirects are not followed"):
        discover_features(at(run(upstreams.redirecting(elsewhere.url)).url), None)

    assert elsewhere.seen == []


def test_an_address_outside_the_allowed_ranges_is_never_contacted(run: Run, settings: Settings) -> None:
    upstream = run(upstreams.docs())
    settings.PRIVATE_UPSTREAMS = [ip_network("10.0.0.0/8")]

    with pytest.raises(DiscoveryFailed, match="GATEWAY_PRIVATE_UPSTREAMS"):
        discover_features(at(f"http://localhost:{upstream.port}/mcp"), None)
    with pytest.raises(DiscoveryFailed, match="has a private address; GATEWAY_PRIVATE_UPSTREAMS does not allow it"):
        discover_features(at("https://localhost/mcp"), None)  # Refused when it connects.

    assert upstream.seen == []


def test_the_quickstart_server_is_asked_at_the_listener_of_this_process(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = quickstart.app("the secret of this start")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (live(receive, send) if scope["type"] == "lifespan" else own(scope, receive, send))

    server = at(BUILT_IN_URL)
    monkeypatch.setattr(guard, "_listener", None)
    with pytest.raises(NotAsked, match="is part of the running gateway, so this command cannot call it"):
        discover_features(server, None)
    guard.listen_at(f"http://127.0.0.1:{run(app).port}", "the secret of this start")

    found = discover_features(server, None)

    assert (found.era, names(found.tools)) == (Era.BOTH, {"echo", "add", "current_time", "slow", "fail"})


def test_a_list_in_pages_is_followed_to_its_end_and_ends_if_it_repeats_itself(run: Run) -> None:
    found = discover_features(at(run(paged(7)).url), None)
    stuck = discover_features(at(run(paged(2, stuck=True)).url), None)
    without = discover_features(at(run(paged(0, error=-32601)).url), None)

    assert names(found.tools) == {f"tool_{number}" for number in range(7)}
    assert names(stuck.tools) == {"tool_0", "tool_1"}
    assert without.tools == []


def test_an_identity_no_key_opens_is_named(ana: User) -> None:
    server = make.server(auth_type=AuthType.BEARER)
    identity = make.identity(server, ana, label="my key")
    Identity.objects.filter(pk=identity.pk).update(secret_ciphertext=b"sealed under a lost key")
    identity.refresh_from_db()
    server.note_health(Health.OK)

    with pytest.raises(NotAsked, match="no encryption key decrypts the credential “my key”") as refused:
        contact(server, identity)

    for row in (server, identity):
        row.refresh_from_db()
    assert not refused.value.wants_credential
    assert (server.health, identity.last_used_at) == (Health.UNKNOWN, None)
    for error in (server.health_error, identity.last_error):
        assert "no encryption key decrypts" in error


def paged(count: int, *, stuck: bool = False, error: int = 0) -> upstreams.App:
    """Return a server of the protocol version 2026-07-28 that lists one tool per page."""

    def tool(number: int) -> dict[str, Any]:
        return {"name": f"tool_{number}", "inputSchema": {"type": "object"}}

    def reply(message: dict[str, Any]) -> dict[str, Any]:
        if message["method"] == "server/discover":
            return {"result": {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}}
        if error:
            return {"error": {"code": error, "message": "paper jam"}}
        page = int(message["params"].get("cursor", 0))
        last = page + 1 >= count
        following = {} if last and not stuck else {"nextCursor": str(min(page + 1, count - 1))}
        return {"result": {"tools": [tool(page)], **following}}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send)
            return
        message = json.loads(await read(receive))
        body = {"jsonrpc": "2.0", "id": message["id"], **reply(message)}
        await answer(send, 200, json.dumps(body).encode())

    return app
