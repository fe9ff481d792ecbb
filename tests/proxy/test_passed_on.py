"""The gateway passes client names, extensions, tool names with dots and cache times between client and server."""

from typing import Any

import pytest

from gateways.models import Gateway
from servers.models import Era, Server
from tests import make
from tests.asgi_server import Upstream
from tests.conftest import Run
from tests.proxy.conftest import Agent, Proxy, eventually
from tests.proxy.scripted import Object, Request, Script, tool
from tests.proxy.test_endpoint import modern

UI = {"io.modelcontextprotocol/ui": {"mimeTypes": ["text/html;profile=mcp-app"]}}
EXTENSIONS = {"com.example/ours": {"depth": {"of": [1, 2]}}, **UI}
CLIENT = {"name": "desk", "version": "3.1", "title": "The desk"}
META = "io.modelcontextprotocol/"


async def answer(request: Request) -> None:
    await request.answer({"content": [], "_meta": {"com.example/x": [1]}, "resultType": "complete"})


class Both(Script):
    """A server of both eras, with sessions in the session era."""

    async def serve(self, request: Request, verb: str) -> None:
        self.modern = request.headers.get("mcp-protocol-version") == "2026-07-28"
        self.sessions = not self.modern
        await super().serve(request, verb)

    async def method(self, request: Request) -> None:
        if request.message["method"] == "server/discover" and not self.modern:
            await request.fail(-32601, "Method not found")
        else:
            await super().method(request)

    @property
    def capabilities(self) -> Object:
        return {"tools": {}, "extensions": EXTENSIONS}


@pytest.fixture
def gateway() -> Gateway:
    return make.gateway(slug="work")


@pytest.fixture
def agent(proxy: Proxy, gateway: Gateway) -> Agent:
    user = make.user()
    return proxy.agent(make.connection(make.agent(by=user), gateway, user))


def put(gateway: Gateway, run: Run, script: Script) -> Upstream:
    upstream = run(script.app())
    make.assignment(gateway, make.server(slug="docs", url=upstream.url))
    return upstream


def initialize(agent: Agent, version: str = "2025-11-25") -> tuple[Agent, Object]:
    params = {"protocolVersion": version, "capabilities": {"extensions": EXTENSIONS}, "clientInfo": CLIENT}
    answered = agent.ask("initialize", params)
    headers = {"Mcp-Session-Id": answered.headers["mcp-session-id"], "MCP-Protocol-Version": version}
    return Agent(agent.url, agent.secret, headers), dict(answered.json()["result"])


@pytest.mark.full
def test_extensions_and_the_clients_name_go_both_ways_in_each_era(agent: Agent, gateway: Gateway, run: Run) -> None:
    docs = put(gateway, run, Both([[tool("it", _meta={"ui": {"resourceUri": "ui://it"}})]], answer))

    in_session, said = initialize(agent)
    assert said["capabilities"]["extensions"] == EXTENSIONS
    body, headers = modern("server/discover", {})
    assert agent.post(body, **headers).json()["result"]["capabilities"]["extensions"] == EXTENSIONS

    (listed,) = in_session.listed().json()["result"]["tools"]
    assert listed["_meta"] == {"ui": {"resourceUri": "ui://it"}}
    assert in_session.call("docs__it").json()["result"]["_meta"] == {"com.example/x": [1]}
    opened = docs.asked("initialize")[-1].body["params"]
    assert opened["capabilities"] == {"extensions": EXTENSIONS}
    assert opened["clientInfo"] == {"name": "desk", "version": "3.1"}

    body, headers = modern("tools/call", {"name": "docs__it"})
    body["params"]["_meta"] |= {f"{META}clientInfo": CLIENT, f"{META}clientCapabilities": {"extensions": EXTENSIONS}}
    assert agent.post(body, **headers).json()["result"]["_meta"] == {"com.example/x": [1]}
    meta = docs.asked("tools/call")[-1].body["params"]["_meta"]
    assert (meta[f"{META}clientInfo"], meta[f"{META}clientCapabilities"]) == (CLIENT, {"extensions": EXTENSIONS})


@pytest.mark.full
def test_a_list_does_not_depend_on_what_the_client_that_asked_last_can_do(
    agent: Agent, gateway: Gateway, run: Run
) -> None:
    class Shy(Script):
        """A server that lists an interactive tool only in sessions of clients that declare elicitation."""

        async def initialize(self, request: Request) -> None:
            can = "elicitation" in request.message["params"]["capabilities"]
            self.pages = [[tool("it"), *([tool("ask")] if can else [])]]
            await super().initialize(request)

    put(gateway, run, Shy([[tool("it")]], answer, sessions=True))

    plain, _ = initialize(agent)

    assert plain.tools() == ["docs__it", "docs__ask"]


def test_dots_in_names_stay_where_the_version_knows_them(
    agent: Agent, gateway: Gateway, proxy: Proxy, run: Run
) -> None:
    docs = put(gateway, run, Script([[tool("a.b")]], answer))

    for client, name in ((initialize(agent, "2025-11-25")[0], "docs__a.b"), (agent, "docs__a_b_1d0c73")):
        assert client.tools() == [name]
        for called in ("docs__a.b", "docs__a_b_1d0c73"):
            assert "result" in client.call(called).json()
            assert proxy.last().feature_name == "docs__a_b_1d0c73"
    assert {call.body["params"]["name"] for call in docs.asked("tools/call")} == {"a.b"}


@pytest.mark.full
@pytest.mark.parametrize(("said", "kept"), [(5_000, 5_000), (3_600_000, 60_000), (None, 0)])
def test_a_list_may_be_kept_as_long_as_its_server_says_and_a_minute_at_most(
    agent: Agent, gateway: Gateway, run: Run, said: int | None, kept: int
) -> None:
    async def listed(request: Request) -> None:
        hints = {} if said is None else {"ttlMs": said, "cacheScope": "public"}
        await request.answer({"tools": [tool("it")], "resultType": "complete", **hints})

    put(gateway, run, Script(modern=True, methods={"tools/list": listed}))
    body, headers = modern("tools/list", {})

    def hints() -> tuple[Any, Any]:
        result = agent.post(body, **headers).json()["result"]
        return result["ttlMs"], result["cacheScope"]

    eventually(lambda: hints() == (kept, "private"))


def test_a_list_that_lacks_a_server_of_which_nothing_is_known_says_that_it_is_partial(
    agent: Agent, gateway: Gateway, run: Run
) -> None:
    put(gateway, run, Script([[tool("it")]], answer))
    make.assignment(gateway, make.server(slug="gone", url="http://127.0.0.1:1/mcp"))

    meta = agent.listed().json()["result"]["_meta"]

    assert meta["gateway-admin/partial"] is True
    assert [each["server"] for each in meta["gateway-admin/unavailable"]] == ["gone"]


@pytest.mark.full
def test_the_row_of_a_server_says_its_eras_and_how_they_were_found_out(
    agent: Agent, gateway: Gateway, run: Run
) -> None:
    put(gateway, run, Both([[tool("it")]], answer))

    agent.call("docs__it")

    server = Server.objects.get()
    assert server.protocol_era == Era.BOTH
    assert server.protocol_evidence == "server/discover: 2026-07-28; initialize: 2025-06-18"
    assert server.protocol_probed_at is not None


@pytest.mark.full
def test_a_server_that_declares_nonsense_keeps_no_client_from_the_others(
    agent: Agent, gateway: Gateway, run: Run
) -> None:
    class Deep(Script):
        async def initialize(self, request: Request) -> None:
            text = '{"protocolVersion":"2025-11-25","serverInfo":{"name":"x"},"capabilities":{"extensions":{"a/b":{"x":'
            result = text + "[" * 990 + "]" * 990 + "}}}}"
            body = f'{{"jsonrpc":"2.0","id":{request.message["id"]},"result":{result}}}'
            await request.answer(body.encode())

    put(gateway, run, Both([[tool("it")]], answer))
    make.assignment(gateway, make.server(slug="odd", url=run(Deep([[tool("it")]]).app()).url))

    in_session, said = initialize(agent)

    assert said["capabilities"]["extensions"] == EXTENSIONS
    assert "result" in in_session.call("docs__it").json()


@pytest.mark.full
def test_clients_that_declare_something_else_with_each_request_share_a_session(
    agent: Agent, gateway: Gateway, run: Run
) -> None:
    docs = put(gateway, run, Script([[tool("it")]], answer, sessions=True))

    for number in range(5):
        body, headers = modern("tools/call", {"name": "docs__it"})
        extensions = {"com.example/x": {"n": number}}
        body["params"]["_meta"] |= {f"{META}clientCapabilities": {"extensions": extensions, "elicitation": {}}}
        assert "result" in agent.post(body, **headers).json()

    calls = docs.asked("tools/call")
    assert len({call.headers["mcp-session-id"] for call in calls}) == 1


@pytest.mark.full
def test_no_server_gets_the_calls_of_one_that_has_left(agent: Agent, gateway: Gateway, run: Run) -> None:
    other = put(gateway, run, Script([[tool("gone__delete"), tool("own")]], answer))
    assert agent.tools() == ["docs__gone__delete", "docs__own"]

    refused = agent.call("gone__delete", {"secret": 1}).json()["error"]

    assert refused["code"] == -32602
    assert other.asked("tools/call") == []
    assert "result" in agent.call("own").json()
