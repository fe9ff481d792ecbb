"""Clients and servers of both protocol eras, lost sessions, and the identities that calls carry."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest
from django.conf import settings
from django.urls import reverse

from accounts.models import User
from connections.models import Connection
from gateways.models import Gateway, IdentityScheme
from servers.discovery import probe
from servers.models import AuthType, Era, Server
from tests import make, upstreams
from tests.asgi_server import App, Upstream, running
from tests.conftest import Run
from tests.proxy.conftest import Agent, Proxy, Start, eventually, in_words, sessions_of_clients, sql
from tests.proxy.scripted import Request, Script, offering, tool
from tests.proxy.test_endpoint import modern


@dataclass
class Work:
    proxy: Proxy
    gateway: Gateway
    user: User
    agent: Agent
    run: Run

    def put(self, app: App, slug: str = "docs", **fields: Any) -> Upstream:
        upstream = self.run(app)
        make.assignment(self.gateway, make.server(slug=slug, url=upstream.url), **fields)
        return upstream

    def another_agent(self) -> Agent:
        user = make.user()
        return self.proxy.agent(make.connection(make.agent(by=user), self.gateway, user))


@pytest.fixture
def work(proxy: Proxy, run: Run) -> Work:
    user = make.user(email="ana@example.com")
    gateway = make.gateway(slug="work")
    return Work(proxy, gateway, user, proxy.agent(make.connection(make.agent(by=user), gateway, user)), run)


SHAPES: dict[str, App] = {
    "dual": upstreams.docs(),
    "json": upstreams.docs(json_response=True),
    "stateless": upstreams.docs(stateless=True),
    "session": upstreams.session_era(upstreams.docs()),
    "old-json": upstreams.session_era(upstreams.docs(json_response=True, stateless=True)),
    "modern": upstreams.modern_era(upstreams.docs()),
}


@pytest.mark.full
def test_every_client_reaches_every_server(work: Work) -> None:
    served = {slug: work.put(app, slug) for slug, app in SHAPES.items()}
    expected = sorted(f"{slug}__{name}" for slug in SHAPES for name in ("echo", "add", "search", "slow", "fail", "big"))

    def asked(method: str, params: dict[str, Any]) -> list[Any]:
        body, headers = modern(method, params)
        return [work.agent.ask(method, params).json()["result"], work.agent.post(body, **headers).json()["result"]]

    for listed in asked("tools/list", {}):
        assert sorted(each["name"] for each in listed["tools"]) == expected
    for slug in SHAPES:
        for result in asked("tools/call", {"name": f"{slug}__echo", "arguments": {"text": slug}}):
            assert result["content"] == [{"type": "text", "text": slug}]
        for result in asked("tools/call", {"name": f"{slug}__fail", "arguments": {}}):
            assert result["isError"] is True
    dual = [call.headers for call in served["dual"].asked("tools/call")]
    assert {(each["mcp-protocol-version"], "mcp-session-id" in each) for each in dual} == {
        ("2025-11-25", True),
        ("2026-07-28", False),
    }

    eventually(lambda: not Server.objects.filter(protocol_era=Era.UNKNOWN).exists())
    eras = dict(Server.objects.values_list("slug", "protocol_era"))
    of_one = {"session": Era.SESSION, "old-json": Era.SESSION, "modern": Era.MODERN}
    assert eras == dict.fromkeys(SHAPES, Era.BOTH) | of_one


@pytest.mark.full
def test_facts_about_a_used_server_are_refreshed(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.handshake.REFRESH_SECONDS", 0.1)
    monkeypatch.setattr("proxy.lists.FRESH_SECONDS", 0.0)
    monkeypatch.setattr("proxy.lists.RETRY_SECONDS", 0.0)
    docs = work.put(offering("it"))
    assert work.agent.tools() == ["docs__it"]
    Server.objects.update(protocol_era=Era.MODERN)

    def is_found_out() -> bool:
        work.agent.listed()
        return Server.objects.get().protocol_era == Era.SESSION

    eventually(is_found_out)
    assert len(docs.asked("server/discover")) >= 2


@pytest.mark.full
def test_two_workers_that_meet_a_server_at_once_probe_it_once(work: Work, start: Start) -> None:
    docs = work.put(offering("it"))
    other = replace(work.agent, url=start().url("work"))

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda agent: agent.call("docs__it").json(), [work.agent, other] * 4))

    assert all("result" in answer for answer in answers)
    work.another_agent().call("docs__it")
    server = Server.objects.get()
    assert (server.protocol_era, server.protocol_evidence.startswith("initialize: ")) == (Era.SESSION, True)
    assert [request.method for request in docs.seen].count("server/discover") == 1


@dataclass
class Overloaded(Script):
    """A server of both eras that returns a temporary error for the method `refused`."""

    sessions: bool = True
    refused: str = ""
    said: str = "text"

    async def serve(self, request: Request, verb: str) -> None:
        if request.message.get("method") != self.refused:
            self.modern = request.headers.get("mcp-protocol-version") == "2026-07-28"
            self.sessions = not self.modern
            await super().serve(request, verb)
        elif self.said == "text":
            await request.respond(503, b"come again", {"content-type": "text/plain"})
        else:
            await request.fail(-32000, "too many requests", status=429)


@pytest.mark.full
@pytest.mark.usefixtures("loopback_is_allowed")
def test_an_era_is_not_forgotten_because_a_server_was_overloaded_when_asked(work: Work) -> None:
    found = {}
    for slug, said, refused, before, after in (
        ("s1", "text", "initialize", Era.BOTH, Era.BOTH),
        ("s2", "json", "server/discover", Era.BOTH, Era.BOTH),
        ("s3", "json", "initialize", Era.SESSION, Era.BOTH),
        ("s4", "json", "initialize", Era.UNKNOWN, Era.MODERN),
        ("s5", "text", "server/discover", Era.UNKNOWN, Era.SESSION),
        ("s6", "text", "initialize", Era.UNKNOWN, Era.MODERN),
        ("s7", "json", "server/discover", Era.UNKNOWN, Era.SESSION),
    ):
        work.put(Overloaded([[tool("it")]], answer_nothing, refused=refused, said=said).app(), slug)
        Server.objects.filter(slug=slug).update(protocol_era=before)
        found[slug] = after
    eras = dict(Server.objects.values_list("slug", "protocol_era"))
    body, headers = modern("server/discover")
    work.agent.post(body, **headers)
    eventually(lambda: not Server.objects.filter(protocol_evidence="").exists())
    assert dict(Server.objects.values_list("slug", "protocol_era")) == found

    for slug, era in eras.items():
        Server.objects.filter(slug=slug).update(protocol_era=era)
        probe(Server.objects.get(slug=slug), by=work.user)
    assert dict(Server.objects.values_list("slug", "protocol_era")) == found


@pytest.mark.full
def test_a_lost_session_that_a_server_denies_in_its_own_way_is_opened_anew_for_the_next_call(work: Work) -> None:
    @dataclass
    class Careless(Script):
        status: int = 400

        def knows(self, session: str) -> bool:
            return True

        async def method(self, request: Request) -> None:
            if super().knows(request.headers.get("mcp-session-id", "")) or request.message["method"] == "initialize":
                await super().method(request)
            else:
                await request.fail(-32000, "Bad Request: No valid session ID provided", status=self.status)

    for status in (400, 404):
        script = Careless([[tool("it")]], answer_nothing, sessions=True, status=status)
        slug = f"s{status}"
        docs = work.put(script.app(), slug)
        assert work.agent.call(f"{slug}__it").json()["result"]
        script.opened[:] = ["an older one"]

        refused = work.agent.call(f"{slug}__it").json()["error"]

        assert (refused["code"], len(docs.asked("tools/call"))) == (-32000, 2)
        own = sessions_of_clients().filter(server_id=Server.objects.get(slug=slug).pk)
        eventually(lambda: not own.exists())  # noqa: B023
        assert work.agent.call(f"{slug}__it").json()["result"]
        assert script.opened == ["an older one", "session-1"]


async def answer_nothing(request: Request) -> None:
    await request.answer({"content": []})


@pytest.mark.full
def test_an_upstream_that_restarts_is_reached_again(work: Work) -> None:
    with running(upstreams.session_era(upstreams.docs())) as docs:
        make.assignment(work.gateway, make.server(slug="docs", url=docs.url))
        assert work.agent.call("docs__echo", {"text": "1"}).json()["result"]
    assert work.agent.call("docs__echo", {"text": "2"}).json()["error"]["data"]["reason"] == "unreachable"
    with running(upstreams.session_era(upstreams.docs()), port=docs.port):
        assert work.agent.call("docs__echo", {"text": "3"}).json()["result"]


@pytest.mark.full
def test_connections_never_share_an_upstream_session(work: Work) -> None:
    async def call(request: Request) -> None:
        await request.answer({"content": [{"type": "text", "text": request.headers["mcp-session-id"]}]})

    script = Script([[tool("it")]], call, sessions=True)
    work.put(script.app())
    agents = [work.agent, work.another_agent(), work.another_agent()]

    def session(agent: Agent) -> str:
        return str(agent.call("docs__it").json()["result"]["content"][0]["text"])

    with ThreadPoolExecutor(9) as pool:
        seen = list(pool.map(session, agents * 6))

    assert len(set(seen)) == 3
    assert seen == seen[:3] * 6
    assert len(script.opened) == 3


@pytest.mark.full
def test_sessions_outlast_the_gateway(work: Work) -> None:
    script = Script([[tool("it")]], sessions=True)
    work.put(script.app())
    work.agent.ask("resources/subscribe", {"uri": "x://y"})
    assert (script.opened, script.ended) == (["session-0"], [])

    work.proxy.stop()

    assert script.ended == []


# Identities


@dataclass
class Identities:
    """The gateway `work` with github (per user) and crm (shared), used by ana and ben."""

    proxy: Proxy
    gateway: Gateway
    github: Server
    crm: Server
    users: dict[str, User]
    agents: dict[str, Agent]

    def credential(self, name: str, tool: str) -> str:
        answer = self.agents[name].call(tool).json()
        if "error" in answer:
            return str(answer["error"]["data"]["reason"])
        return str(answer["result"]["content"][0]["text"])


@pytest.fixture
def identities(proxy: Proxy, run: Run) -> Identities:
    github = make.server(slug="github", url=run(upstreams.github()).url, auth_type=AuthType.BEARER)
    crm = make.server(slug="crm", url=run(upstreams.crm()).url, auth_type=AuthType.HEADER, header_name="X-Api-Key")
    gateway = make.gateway(slug="work")
    make.assignment(gateway, github, identity_scheme=IdentityScheme.PER_USER)
    shared = make.identity(crm, secret="the service account", label="service")
    make.assignment(gateway, crm, identity_scheme=IdentityScheme.SHARED, shared_identity=shared)
    users, agents = {}, {}
    for name in ("ana", "ben"):
        user = users[name] = make.user(email=f"{name}@example.com")
        own = make.identity(github, user, secret=f"of {name}", label=f"{name}'s")
        agents[name] = proxy.agent(make.connection(make.agent(by=user), gateway, user, [own]))
    return Identities(proxy, gateway, github, crm, users, agents)


@pytest.mark.full
def test_j5_each_call_carries_the_identity_of_its_own_user(identities: Identities) -> None:
    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(lambda name: (name, identities.credential(name, "github__whoami")), ["ana", "ben"] * 8))

    assert set(seen) == {("ana", "Bearer of ana"), ("ben", "Bearer of ben")}
    assert {identities.credential(name, "crm__which_key") for name in ("ana", "ben")} == {"the service account"}
    rows = {(row.user_email, row.server_name, row.identity_label) for row in identities.proxy.calls()}
    assert rows == {
        ("ana@example.com", "github", "ana's"),
        ("ben@example.com", "github", "ben's"),
        ("ana@example.com", "crm", "service"),
        ("ben@example.com", "crm", "service"),
    }


@pytest.mark.full
def test_an_identity_that_cannot_be_used_stops_the_call_with_its_reason(identities: Identities) -> None:
    changes = {
        "enabled = false": "identity_disabled",
        "disabled_by_id = owner_id": "identity_off",
        "enabled = true, disabled_by_id = NULL, revoked_at = now(), secret_ciphertext = NULL": "identity_missing",
    }
    for change, reason in changes.items():
        sql(f"UPDATE servers_identity SET {change} WHERE label = %s", "ana's")
        assert identities.credential("ana", "github__whoami") == reason
        assert (identities.proxy.last().outcome, identities.proxy.last().deny_reason) == ("denied", reason)
        assert identities.credential("ben", "github__whoami") == "Bearer of ben"
    sql("UPDATE servers_identity SET unconfirmed_since = now() WHERE label IN ('ben''s', 'service')")
    assert identities.credential("ben", "github__whoami") == "identity_unconfirmed"
    assert identities.credential("ben", "crm__which_key") == "identity_unconfirmed"
    sql("UPDATE servers_identity SET unconfirmed_since = NULL")
    assert identities.credential("ben", "crm__which_key") == "the service account"
    kept = identities.gateway.shared_identities.get()
    sql("DELETE FROM gateways_gateway_shared_identities")
    assert {identities.credential(name, "crm__which_key") for name in ("ana", "ben")} == {"identity_withdrawn"}
    assert identities.credential("ben", "github__whoami") == "Bearer of ben"
    identities.gateway.shared_identities.add(kept)
    sql("UPDATE servers_identity SET enabled = false WHERE label = 'service'")
    assert {identities.credential(name, "crm__which_key") for name in ("ana", "ben")} == {"identity_disabled"}
    assert identities.agents["ana"].tools() == []


@pytest.mark.full
def test_a_call_that_lacks_an_identity_says_where_to_bring_one(identities: Identities) -> None:
    own = Connection.objects.get(user=identities.users["ana"])
    row = f"carried-{own.pk}-{identities.gateway.assignments.get(alias='github').pk}"
    for change in ("unconfirmed_since = now()", "unconfirmed_since = NULL, enabled = false"):
        sql(f"UPDATE servers_identity SET {change} WHERE label IN ('ana''s', 'service')")

        error = identities.agents["ana"].call("github__whoami").json()["error"]
        shared = identities.agents["ana"].call("crm__which_key").json()["error"]

        assert error["data"]["url"].endswith(f"{reverse('connections:mine')}?connection={own.pk}#{row}")
        assert error["message"].endswith(error["data"]["url"])
        assert "url" not in shared["data"]  # Only a manager can fix a shared credential.


@pytest.mark.full
def test_a_replaced_secret_is_used_at_once_and_in_a_session_of_its_own(identities: Identities) -> None:
    assert identities.credential("ana", "github__whoami") == "Bearer of ana"
    own = identities.users["ana"].identities.get()

    own.replace("newer", by=identities.users["ana"])

    assert identities.credential("ana", "github__whoami") == "Bearer newer"
    assert identities.credential("ben", "github__whoami") == "Bearer of ben"


@pytest.mark.full
def test_identities_of_others_are_never_used_whatever_the_rows_say(identities: Identities) -> None:
    """Let ana's rows name ben's identity. The access statement does not use it."""
    ben = identities.users["ben"].identities.get()
    sql("ALTER TABLE connections_connectionidentity DISABLE TRIGGER USER")
    sql("ALTER TABLE gateways_assignment DISABLE TRIGGER USER")
    try:
        sql(
            "UPDATE connections_connectionidentity SET identity_id = %s WHERE connection_id IN"
            " (SELECT id FROM connections_connection WHERE user_id = %s)",
            ben.pk,
            identities.users["ana"].pk,
        )
        assert identities.credential("ana", "github__whoami") == "identity_missing"
        sql("UPDATE gateways_assignment SET shared_identity_id = %s WHERE alias = 'crm'", ben.pk)
        assert identities.credential("ana", "crm__which_key") == "identity_missing"
        sql("UPDATE gateways_assignment SET identity_scheme = 'nonsense', shared_identity_id = NULL")
        assert identities.credential("ana", "github__whoami") == "identity_missing"
    finally:
        sql("ALTER TABLE connections_connectionidentity ENABLE TRIGGER USER")
        sql("ALTER TABLE gateways_assignment ENABLE TRIGGER USER")


def test_an_unreadable_secret_and_a_header_that_frames_the_message_are_told_from_a_missing_secret(
    identities: Identities,
) -> None:
    sql("UPDATE servers_server SET health = 'unknown'")
    for name in ("Content-Length", "transfer-encoding", "Host", "X-Key: 1\r\nX-Evil"):
        sql("UPDATE servers_server SET header_name = %s WHERE slug = 'crm'", name)
        assert identities.credential("ana", "crm__which_key") == "identity_unreadable"

    sql("UPDATE servers_identity SET secret_ciphertext = 'garbage' WHERE label = %s", "ana's")
    error = identities.agents["ana"].call("github__whoami").json()["error"]
    assert error["message"] == in_words(
        'The credential stored for server "github" can no longer be read.', "/settings/identities"
    )
    assert settings.ENCRYPTION_KEYS[0].decode() not in str(error)
    # One person's unreadable credential says nothing about the server, which was not asked.
    assert identities.credential("ben", "github__whoami") == "Bearer of ben"
    eventually(lambda: Server.objects.get(slug="github").health == "ok")
    assert Server.objects.get(slug="crm").health == "unknown"


@pytest.mark.full
def test_a_server_that_needs_no_credential_gets_none(work: Work) -> None:
    docs = work.put(offering("it"), identity_scheme=IdentityScheme.PER_USER)

    assert work.agent.call("docs__it").json()["result"]
    assert all("authorization" not in request.headers for request in docs.seen)
