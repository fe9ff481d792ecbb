"""Client sessions and their sessions at servers: the same on every worker and after every restart."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import psycopg
import pytest
from cryptography.fernet import Fernet
from pytest_django import Settings

from auditlog.models import Call
from connections.models import Connection
from gateways.models import IdentityScheme
from proxy.access.decision import SETUP, AccessQuery, ServersNeeded, TokenDigests, Wanted, parameters
from proxy.models import ServerInfo, Session
from proxy.store import usage
from proxy.store.sessions import session_digest
from servers.models import AuthType
from servers.resealing import reseal_servers
from tests import make
from tests.conformance.counter import Counter
from tests.conftest import Run
from tests.proxy.conftest import Agent, Start, config, eventually, eventually_unused, in_words, sessions_of_clients, sql
from tests.proxy.scripted import Request, Script, tool
from tokens.models import Token
from ui.sealing import cipher
from wire import token_text

SESSION_ERA = ("2025-03-26", "2025-06-18", "2025-11-25")


@dataclass
class Client:
    """A session-era client: its `initialize` params, and its session."""

    agent: Agent
    session: str = ""
    capabilities: dict[str, Any] = field(default_factory=dict)

    def initialize(self, version: str = "2025-06-18") -> httpx.Response:
        info = {"name": "probe", "version": "7"}
        params = {"protocolVersion": version, "capabilities": self.capabilities, "clientInfo": info}
        answer = self.agent.ask("initialize", params)
        self.session = answer.headers["mcp-session-id"]
        return answer

    @property
    def headers(self) -> dict[str, str]:
        return {"Mcp-Session-Id": self.session} if self.session else {}

    def count(self, agent: Agent | None = None) -> tuple[int, str]:
        """Call the tool that counts a session's calls. Return the count and the id of the session at the server."""
        answer = (agent or self.agent).call("docs__count", **self.headers)
        assert "result" in answer.json(), answer.text
        counted = answer.json()["result"]["structuredContent"]
        return counted["count"], counted["session"]

    def delete(self) -> httpx.Response:
        own = {"Authorization": f"Bearer {self.agent.secret}", **self.headers}
        with httpx.Client(trust_env=False) as client:
            return client.delete(self.agent.url, headers=own)


@dataclass
class Work:
    """A gateway with a counting server."""

    counter: Counter
    connection: Connection
    start: Start

    def client(self, capabilities: dict[str, Any] | None = None) -> Client:
        return Client(self.start().agent(self.connection), capabilities=capabilities or {})


@pytest.fixture
def work(start: Start, run: Run) -> Iterator[Work]:
    counter = Counter(SESSION_ERA)
    user = make.user()
    gateway = make.gateway(make.introduced(make.server(slug="docs", url=run(counter).url)))
    with ExitStack():
        yield Work(counter, make.connection(make.agent(by=user), gateway, user), start)


@pytest.mark.full
def test_two_workers_keep_one_session_of_one_client_and_a_restart_loses_nothing(work: Work) -> None:
    first = work.start()
    client = Client(first.agent(work.connection))
    slug = work.connection.gateway.slug
    elsewhere = Agent(work.start().url(slug), client.agent.secret)
    client.initialize()

    counted = [client.count(agent) for _ in range(6) for agent in (client.agent, elsewhere)]
    first.stop()
    counted.append(client.count(Agent(work.start().url(slug), client.agent.secret)))

    assert [count for count, _ in counted] == [*range(1, 14)]
    assert len({session for _, session in counted}) == 1
    assert len(work.counter.events("initialize")) == 1
    assert work.counter.events("delete") == []


@pytest.mark.full
def test_each_session_of_a_token_is_one_at_the_server_and_requests_without_share_one(work: Work) -> None:
    one = work.client()
    two = Client(one.agent)
    without, with_another_token = Client(one.agent), Client(work.start().agent(work.connection))
    one.initialize()
    two.initialize()

    counted = [client.count() for client in (one, two, without, one, two, with_another_token)]

    assert [count for count, _ in counted] == [1, 1, 1, 2, 2, 2]
    assert len({session for _, session in counted}) == 3
    assert one.session != two.session


@pytest.mark.full
def test_a_server_that_forgot_its_sessions_is_given_a_new_one_by_clients_without_their_own(work: Work) -> None:
    client = work.client()
    client.count()
    work.counter.forget_sessions()

    with ThreadPoolExecutor(6) as pool:
        counted = list(pool.map(lambda _: client.count(), range(6)))

    assert sorted(count for count, _ in counted) == [*range(1, 7)]
    assert len(work.counter.events("initialize")) == 2


@pytest.mark.full
def test_a_client_whose_session_a_server_forgot_learns_it_and_opens_another(work: Work) -> None:
    client = work.client()
    client.initialize()
    assert [client.count()[0] for _ in range(2)] == [1, 2]
    work.counter.forget_sessions()

    lost = client.agent.call("docs__count", **client.headers)

    assert (lost.status_code, lost.json()["error"]["message"]) == (404, in_words("Session not found."))
    row = Call.objects.order_by("id").last()
    assert row is not None
    assert (row.outcome, row.deny_reason, row.http_status) == ("upstream_error", "session_lost", 404)
    assert client.agent.ask("ping", **client.headers).status_code == 404
    assert Call.objects.order_by("-id")[0].deny_reason == "session_lost"
    client.initialize()
    assert [client.count()[0] for _ in range(2)] == [1, 2]
    assert len(work.counter.events("call")) == 4


def test_one_of_two_workers_that_open_a_session_at_once_wins_and_the_other_ends_its_own(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = work.client()
    elsewhere = Agent(work.start().url(work.connection.gateway.slug), client.agent.secret)
    client.initialize()
    client.count()  # No list is requested after this.
    slow = SlowInitialize(work.counter)
    monkeypatch.setattr(Counter, "_initialize", slow.initialize)
    sql("DELETE FROM proxy_upstreamsession")

    with ThreadPoolExecutor(2) as pool:
        counted = list(pool.map(client.count, (client.agent, elsewhere)))

    assert sorted(count for count, _ in counted) == [1, 2]
    assert len({session for _, session in counted}) == 1
    assert len(slow.opened) == 2
    (deleted,) = work.counter.wait_for("delete")
    assert str(deleted.session) not in {session for _, session in counted}
    assert sessions_of_clients().count() == 1


class SlowInitialize:
    """Handler that delays its answers to `initialize` until two such requests have arrived."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        self.opened: list[object] = []
        self._real = Counter._initialize

    async def initialize(self, message: Any, params: Any, send: Any) -> None:
        self.opened.append(params)
        for _ in range(6000):
            if len(self.opened) >= 2:
                break
            await asyncio.sleep(0.01)
        await self._real(self.counter, message, params, send)


@pytest.mark.full
def test_a_session_that_is_not_there_is_404_whatever_the_reason(work: Work) -> None:
    user = make.user()
    client, foreign = (
        work.client(),
        Client(work.start().agent(make.connection(make.agent(by=user), work.connection.gateway, user))),
    )
    foreign.initialize()
    ended = Client(client.agent)
    ended.initialize()
    assert ended.delete().status_code == 200
    unknown = token_text.mint(token_text.SESSION)

    answers = [
        client.agent.ask("tools/list", **{"Mcp-Session-Id": session})
        for session in (foreign.session, ended.session, unknown, "x", "")
    ]

    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.content for answer in answers}) == 1
    assert answers[0].json()["error"] == {"code": -32001, "message": in_words("Session not found.")}
    assert answers[0].json()["id"] is None
    row = Call.objects.order_by("id").last()
    assert row is not None
    assert (row.outcome, row.http_status, row.method) == ("bad_request", 404, "tools/list")
    assert foreign.count()[0] == 1


@pytest.mark.full
def test_delete_names_a_session_and_ends_those_at_the_servers(work: Work) -> None:
    client = work.client()
    assert client.delete().status_code == 400
    client.initialize()
    _, upstream = client.count()

    assert client.delete().status_code == 200

    assert [event.session for event in work.counter.wait_for("delete")] == [upstream]
    assert client.delete().status_code == 404
    assert not sessions_of_clients().exists()
    assert client.initialize().status_code == 200


@pytest.mark.full
def test_an_id_cannot_be_guessed_and_is_not_stored(work: Work) -> None:
    client = work.client()
    client.initialize()

    assert token_text.well_formed(client.session, {token_text.SESSION})
    (row,) = Session.objects.values()
    assert client.session.encode() not in str(row).encode()
    client.count()
    (upstream,) = sessions_of_clients()
    assert str(work.counter.events("initialize")[0].session) not in bytes(upstream.sealed_id).decode()


@pytest.mark.full
def test_the_version_of_the_session_counts_when_none_is_named(work: Work) -> None:
    client = work.client()
    client.initialize("2025-06-18")

    client.count()

    row = Call.objects.order_by("id").last()
    assert row is not None
    assert (row.protocol_version, row.client_name, row.client_version) == ("2025-06-18", "probe", "7")


@pytest.mark.full
def test_a_request_of_2026_07_28_ignores_the_header(start: Start, run: Run) -> None:
    user = make.user()
    gateway = make.gateway(make.server(slug="docs", url=run(Counter(SESSION_ERA)).url))
    agent = start().agent(make.connection(make.agent(by=user), gateway, user))
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    routing = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/list", "Mcp-Session-Id": "gws_nobody"}

    assert agent.ask("tools/list", {"_meta": meta}, **routing).status_code == 200


@pytest.mark.full
def test_servers_are_told_what_can_be_passed_on_of_a_clients_capabilities(work: Work) -> None:
    told = {
        "sampling": {"tools": {}},
        "elicitation": {"url": {}, "odd": {}},
        "roots": {"listChanged": True},
        "tasks": {},
        "experimental": {"number": 10**400},
    }
    client = work.client(told)
    plain = Client(client.agent)
    client.initialize()
    plain.initialize()

    client.count()
    plain.count()

    first, second = (event.detail["capabilities"] for event in work.counter.events("initialize"))
    assert first == {"elicitation": {"url": {}}, "roots": {}, "sampling": {"tools": {}}}
    assert second == {}


@pytest.mark.full
def test_a_connection_keeps_the_hundred_sessions_in_use(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.store.sessions.MOST_SESSIONS", 3)
    clients = [Client(work.client().agent)]
    elsewhere = work.client().agent.url
    clients += [Client(clients[0].agent) for _ in range(3)]
    for client in clients[:3]:
        client.initialize()
    ended = clients[1].count()[1]
    # These calls, at two workers, are in one minute, for which a session's use is written only once.
    clients[0].count()
    clients[2].count()
    kept = clients[0].count(Agent(elsewhere, clients[0].agent.secret))[1]

    clients[3].initialize()

    assert [event.session for event in work.counter.wait_for("delete")] == [ended]
    assert [client.agent.ask("ping", **client.headers).status_code for client in clients] == [200, 404, 200, 200]
    assert clients[0].count()[1] == kept


def test_sessions_nobody_uses_end(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.store.sessions.SWEEP_SECONDS", 0.1)
    client = work.client()
    client.initialize()
    _, upstream = client.count()

    eventually_unused("proxy_session", "25 hours", lambda: work.counter.events("delete"))

    assert [event.session for event in work.counter.events("delete")] == [upstream]
    eventually(lambda: client.agent.ask("ping", **client.headers).status_code == 404)


@pytest.mark.full
def test_a_session_at_a_server_that_nobody_uses_for_an_hour_ends(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.store.sessions.SWEEP_SECONDS", 0.1)
    client, with_own = work.client(), work.client()
    _, upstream = client.count()
    with_own.initialize()
    own = with_own.count()[1]

    sql("UPDATE proxy_upstreamsession SET last_used_at = last_used_at - interval '59 minutes'")
    assert client.count() == (2, upstream)

    eventually_unused("proxy_upstreamsession", "61 minutes", lambda: work.counter.events("delete"))
    assert [event.session for event in work.counter.events("delete")] == [upstream]
    assert client.count()[0] == 1
    assert with_own.count() == (2, own)  # Not ended: the client's own session still exists.


@pytest.mark.full
def test_a_session_that_is_used_is_noted_beside_the_calls(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "SESSION_SECONDS", 0.0)  # Write the use at every call.
    client = work.client()
    client.initialize()
    client.count()
    sql("UPDATE proxy_session SET last_used_at = last_used_at - interval '1 hour'")
    sql("UPDATE proxy_upstreamsession SET last_used_at = last_used_at - interval '30 minutes'")
    before = [Session.objects.get().last_used_at, sessions_of_clients().get().last_used_at]

    client.count()

    eventually(lambda: Session.objects.get().last_used_at > before[0])
    eventually(lambda: sessions_of_clients().get().last_used_at > before[1])


@dataclass
class Told(Script):
    """A server that describes itself with `said` in its answer to `initialize`."""

    said: dict[str, Any] = field(default_factory=dict)

    async def initialize(self, request: Request) -> None:
        result = {"protocolVersion": self.version, "serverInfo": {"name": "told"}, "capabilities": {}, **self.said}
        await request.answer(result)

    async def method(self, request: Request) -> None:
        if request.message["method"] == "server/discover":
            await request.answer({"supportedVersions": ["2026-07-28"], "capabilities": {}, **self.said})
        else:
            await super().method(request)


@pytest.mark.full
def test_the_gateway_says_what_its_servers_said_of_themselves(start: Start, run: Run) -> None:
    one = Told([[tool("a")]], said={"instructions": "Ask one.", "capabilities": {"tools": {}, "odd": {}}})
    two = Told([[tool("b")]], modern=True, said={"instructions": "Ask two."})
    user, gateway = make.user(), make.gateway(description="Look things up here.")
    for script, name in ((one, "One"), (two, "Two")):
        server = make.server(name=name, slug=name.lower(), url=run(script.app()).url)
        make.assignment(gateway, server, alias=name.lower())
    agent = start().agent(make.connection(make.agent(by=user), gateway, user))
    expected = "Look things up here.\n\n## One\n\nAsk one.\n\n## Two\n\nAsk two."

    def said() -> Any:
        return agent.ask("initialize", {"protocolVersion": "2025-06-18"}).json()["result"]

    assert said()["instructions"] == expected
    assert said()["capabilities"] == {"tools": {"listChanged": True}}
    assert agent.ask("server/discover").json()["result"]["instructions"] == expected
    sql("UPDATE servers_server SET enabled = false WHERE name = 'One'")
    assert said()["instructions"] == "Look things up here.\n\n## Two\n\nAsk two."


@pytest.mark.full
def test_a_servers_messages_to_one_user_do_not_reach_another(start: Start, run: Run) -> None:
    script = Told([[tool("a")]], said={"instructions": "You are known here.", "capabilities": {"tools": {}}})
    server = make.server(name="One", slug="docs", url=run(script.app()).url, auth_type=AuthType.BEARER)
    gateway = make.gateway()
    make.assignment(gateway, server, alias="docs", identity_scheme=IdentityScheme.PER_USER)
    proxy, agents = start(), []
    for _ in range(2):
        user = make.user()
        identity = make.identity(server, owner=user)
        connection = make.connection(make.agent(by=user), gateway, user, [identity])
        agents.append(proxy.agent(connection))

    said = [
        lambda agent=agent: agent.ask("server/discover").json()["result"].get("instructions", "") for agent in agents
    ]
    assert "You are known here." in said[0]()
    eventually(ServerInfo.objects.exists)
    assert said[1]() == ""


@pytest.mark.full
def test_sessions_are_found_by_their_indexes_alone(work: Work) -> None:
    """Add many sessions: the access statement reads no more pages than before."""
    client = work.client()
    client.initialize()
    client.count()
    sql(
        "INSERT INTO proxy_session (id, digest, connection_id, version, capabilities, declared, client_name,"
        " client_version, log_level, created_at, last_used_at) SELECT gen_random_uuid(), sha256(n::text::bytea), %s,"
        " '2025-06-18', '{}', '', '', '', '', now(), now() FROM generate_series(1, 2000) n",
        work.connection.pk,
    )
    sql(
        "INSERT INTO proxy_upstreamsession (id, owner_id, connection_id, server_id, key, sealed_id, version, opened_at,"
        " last_used_at) SELECT gen_random_uuid(), s.id, s.connection_id, u.server_id, u.key, u.sealed_id, u.version,"
        " now(), now() FROM proxy_session s, proxy_upstreamsession u WHERE s.id <> u.owner_id"
    )
    sql("ANALYZE proxy_session, proxy_upstreamsession")  # Otherwise the chosen index depends on autovacuum.
    keys = config().token_keys
    digests = TokenDigests((*token_text.candidates(str(client.agent.secret), keys),), (None,) * len(keys))
    asked = AccessQuery(
        digests,
        work.connection.gateway.slug,
        Wanted(ServersNeeded.OF_FEATURE, "tool", "docs__count"),
        session_digest(client.session),
    )
    given = ", ".join(f"'{parameter.decode()}'" for parameter in parameters([asked]))
    with psycopg.connect(config().conninfo, autocommit=True) as own:
        for statement in SETUP:
            own.execute(statement)
        row = own.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE decide ({given})".encode()).fetchone()
    assert row is not None
    (plan,) = row

    read = [node for node in nodes(plan[0]["Plan"]) if "session" in node.get("Relation Name", "")]
    found = {node["Relation Name"]: (node["Node Type"], node["Actual Rows"]) for node in read}
    assert found == {"proxy_session": ("Index Scan", 1), "proxy_upstreamsession": ("Index Scan", 1)}
    assert all("Filter" not in node or node["Rows Removed by Filter"] == 0 for node in read), read


def nodes(plan: Any) -> Iterator[Any]:
    """Yield this node of a plan, and all below it."""
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


@pytest.fixture
def keys(settings: Settings) -> Iterator[Settings]:
    """Settings in which a test may change encryption keys; the cached cipher is dropped before and after the test."""
    cipher.cache_clear()
    yield settings
    cipher.cache_clear()


@pytest.mark.full
def test_a_session_outlasts_the_key_its_id_was_sealed_with_and_is_opened_anew_if_it_is_lost(
    work: Work, keys: Settings
) -> None:
    older, newer = keys.ENCRYPTION_KEYS[0], Fernet.generate_key()
    client = work.client()
    client.initialize()
    client.count()

    keys.ENCRYPTION_KEYS = [newer, older]
    cipher.cache_clear()
    reseal_servers()

    def with_key(key: bytes) -> Agent:
        return Agent(work.start(encryption_keys=[key]).url(work.connection.gateway.slug), client.agent.secret)

    assert client.count(with_key(newer))[0] == 2
    without = with_key(Fernet.generate_key())
    assert [client.count(without)[0], client.count(without)[0]] == [1, 2]


@pytest.mark.full
def test_a_server_that_keeps_no_state_is_introduced_once(start: Start, run: Run) -> None:
    script = Told([[tool("it")]])
    upstream = run(script.app())
    user = make.user()
    gateway = make.gateway(make.server(slug="docs", url=upstream.url))
    first = start().agent(make.connection(make.agent(by=user), gateway, user))
    second = Agent(start().url(gateway.slug), first.secret)

    for agent in (first, second, first):
        assert agent.listed().status_code == 200

    assert len(upstream.asked("initialize")) == 2  # One to detect the protocol version, one to list.


@pytest.mark.full
def test_an_ended_access_is_refused_before_its_session_is_looked_at(work: Work) -> None:
    client = work.client()
    client.initialize()

    Token.objects.get().revoke(by=None)

    assert client.agent.ask("ping", **client.headers).status_code == 401
    assert client.delete().status_code == 401
    assert Session.objects.count() == 1
