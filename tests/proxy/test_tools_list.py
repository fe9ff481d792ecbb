"""tools/list over several servers: complete, in order, and explicit about missing servers."""

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import pytest
from django.utils import timezone

from gateways.models import Assignment, Feature, Gateway, IdentityScheme, ToolPolicy
from servers.models import AuthType, Health, Server
from tests import make, upstreams
from tests.asgi_server import App
from tests.conftest import Run
from tests.proxy.conftest import Agent, Proxy, eventually, in_words, sql
from tests.proxy.scripted import Script, offering, tool

UNAVAILABLE = "gateway-admin/unavailable"
LEGAL = re.compile(r"[A-Za-z0-9_-]{1,64}").fullmatch


@dataclass
class Work:
    """A gateway `work` to which servers are added, and an agent."""

    proxy: Proxy
    gateway: Gateway
    agent: Agent
    run: Run

    def put(self, slug: str, app: App, **fields: Any) -> Assignment:
        server = make.server(slug=slug, url=self.run(app).url)
        return make.assignment(self.gateway, server, **fields)


def listed_a_while_ago() -> None:
    """Make the stored lists older than a minute."""
    sql("UPDATE gateways_listing SET asked_at = asked_at - interval '61 seconds'")


@pytest.fixture
def work(proxy: Proxy, run: Run) -> Work:
    user = make.user(email="ana@example.com")
    gateway = make.gateway(slug="work")
    agent = proxy.agent(make.connection(make.agent(by=user), gateway, user))
    return Work(proxy, gateway, agent, run)


def test_a_list_is_the_union_of_all_pages_of_all_servers(work: Work) -> None:
    work.put("beta", upstreams.docs())
    work.put("alpha", Script([[tool("one"), tool("two")], [], [tool("three")]]).app())
    work.put("gamma", offering("z", "a", "m"))

    names = work.agent.tools()

    beta = [f"beta__{name}" for name in ("echo", "add", "search", "slow", "fail", "big")]
    assert names == ["alpha__one", "alpha__two", "alpha__three", *beta, "gamma__z", "gamma__a", "gamma__m"]
    assert work.agent.tools() == names
    forged = work.agent.ask("tools/list", {"cursor": "MQ=="}).json()["error"]
    assert (forged["code"], forged["message"]) == (-32602, "Invalid cursor")


LONG = "a_tool_whose_name_is_far_longer_than_any_model_provider_would_take"
NAMES = ["dots.and/slashes", "spaces and ümlauts", LONG, "plain-name_1", "x__y", "end_0123ab"]


@pytest.mark.full
def test_names_are_ones_that_model_providers_take_and_lead_back(work: Work) -> None:
    work.put("docs", offering(*NAMES))
    expected = [
        name if LEGAL(name) else cleaned[:57] + "_" + hashlib.sha256(name.encode()).hexdigest()[:6]
        for name in (f"docs__{each}" for each in NAMES)
        for cleaned in [re.sub(r"[^A-Za-z0-9_-]", "_", name)]
    ]

    def answers() -> list[str]:
        return [work.agent.call(name).json()["result"]["content"][0]["text"] for name in expected]

    # Before the first list there are no rows, so each name is looked up in a fresh list.
    assert answers() == NAMES
    assert work.agent.tools() == expected
    eventually(Feature.objects.filter(exposed_name=expected[0]).exists)
    assert answers() == NAMES
    assert [LEGAL(name) is not None for name in expected] == [True] * len(NAMES)


@pytest.mark.full
def test_without_an_alias_names_pass_unchanged(work: Work) -> None:
    work.put("first", offering("echo", "add", "named__echo", "named__add"), alias="")
    work.put("named", offering("echo", "find"))

    def called(name: str) -> Any:
        answer = work.agent.call(name).json()
        return answer["result"]["content"][0]["text"] if "result" in answer else answer["error"]["message"]

    # Rows are created after the answer; until then a fresh list finds the tool. A name with an alias belongs to its
    # server.
    assert [called(name) for name in ("add", "echo", "named__echo")] == ["add", "echo", "echo"]
    assert work.proxy.last().server_name == "named"
    assert called("nothing") == in_words("Unknown tool: nothing.")
    assert work.agent.tools() == ["echo", "add", "named__echo", "named__find"]
    eventually(lambda: Feature.objects.count() == 6)
    assert [called(name) for name in ("add", "echo")] == ["add", "echo"]
    assert called("nothing") == in_words("Unknown tool: nothing.")


@pytest.mark.full
def test_a_tool_that_was_listed_once_is_never_another_server_s(work: Work) -> None:
    """Two servers have a tool of the same name, and one removes it. List and call must then use the other server."""
    work.put("sly", offering("named__it", "it"), alias="")
    work.put("named", offering("it"))
    work.agent.tools()
    eventually(lambda: Feature.objects.count() == 3)
    Feature.objects.filter(assignment__server__slug="sly", name="named__it").update(missing_since=timezone.now())

    assert work.agent.tools() == ["it", "named__it"]
    work.agent.call("named__it")

    assert work.proxy.last().server_name == "named"


@pytest.mark.full
def test_j14_servers_in_trouble_are_left_out_and_named(work: Work) -> None:
    work.put("fine", offering("echo"))
    work.put("silent", upstreams.silent())
    work.put("garbage", upstreams.garbage())
    work.put("error", upstreams.garbage(b"{}", status=500, kind="application/json"))
    work.put("locked", upstreams.github())
    work.put("cut", upstreams.cut_off())
    work.put("moved", upstreams.redirecting("http://127.0.0.1:1/"))
    gone = make.server(slug="gone", url="http://127.0.0.1:1/mcp")
    private = make.server(slug="private", url="http://10.0.0.5/mcp")
    for server in (gone, private):
        make.assignment(work.gateway, server)
    Server.objects.filter(slug="silent").update(timeout_seconds=2)  # The first list waits that long for the server.

    listed = work.agent.listed()

    assert listed.status_code == 200
    result = listed.json()["result"]
    assert [each["name"] for each in result["tools"]] == ["fine__echo"]
    assert {each["server"]: each["reason"] for each in result["_meta"][UNAVAILABLE]} == {
        "silent": "timeout",
        "garbage": "bad_answer",
        "error": "bad_answer",
        "locked": "credential_refused",
        "cut": "unreachable",
        "moved": "bad_answer",
        "gone": "unreachable",
        "private": "address_blocked",
    }
    eventually(lambda: Server.objects.filter(health=Health.DOWN).count() == 7)
    health = {server.slug: (server.health, server.health_error) for server in Server.objects.all()}
    assert health["fine"] == (Health.OK, "")
    assert health["locked"] == (Health.OK, "")
    assert health["silent"] == (Health.DOWN, "did not answer within 2 s")


@pytest.mark.full
def test_when_no_server_answers_the_list_is_an_error_and_never_empty(work: Work) -> None:
    for slug in ("one", "two"):
        make.assignment(work.gateway, make.server(slug=slug, url="http://127.0.0.1:1/mcp"))

    answer = work.agent.listed()

    assert answer.status_code == 200
    error = answer.json()["error"]
    assert (error["code"], error["message"]) == (
        -32603,
        in_words('No server of this gateway answered ("one", "two").'),
    )
    assert work.proxy.last().outcome == "upstream_error"

    sql("UPDATE gateways_assignment SET removed_at = now() WHERE alias = 'two'")
    assert work.agent.listed().json()["error"]["message"] == in_words(
        'Server "one" did not answer: nothing accepts connections at its address.'
    )
    row = work.proxy.last()
    assert (row.server_name, row.outcome, row.rpc_error_code) == ("one", "upstream_error", -32603)


def test_everything_removed_by_policy_is_an_empty_list(work: Work) -> None:
    assert work.agent.listed().json()["result"] == {"tools": []}

    work.put("docs", offering("echo"), tool_policy=ToolPolicy.BLOCK_ALL)

    assert work.agent.listed().json()["result"] == {"tools": []}
    assert work.agent.call("docs__echo").json()["error"]["code"] == -32602


@pytest.mark.full
def test_policies_decide_lists_and_calls_alike(work: Work) -> None:
    assigned = work.put("docs", offering("echo", "add"))
    assert work.agent.tools() == ["docs__echo", "docs__add"]
    eventually(lambda: Feature.objects.count() == 2)

    def reasons() -> list[Any]:
        answers = [work.agent.call(name).json() for name in ("docs__echo", "docs__add", "docs__other")]
        return [answer.get("error", {}).get("data", {}).get("reason") for answer in answers]

    Feature.objects.filter(name="echo").update(enabled=False)
    assert (work.agent.tools(), reasons()) == (["docs__add"], ["tool_disabled", None, None])
    Assignment.objects.filter(pk=assigned.pk).update(tool_policy=ToolPolicy.SELECTED)
    assert (work.agent.tools(), reasons()[:2]) == (["docs__add"], ["tool_disabled", None])
    assert work.agent.call("docs__other").json()["error"]["message"] == in_words("Unknown tool: other.")
    Assignment.objects.filter(pk=assigned.pk).update(tool_policy=ToolPolicy.BLOCK_ALL)
    assert (work.agent.tools(), reasons()[:2]) == ([], ["tool_disabled", "tool_disabled"])
    sql("UPDATE gateways_assignment SET tool_policy = 'nonsense'")
    assert (work.agent.tools(), reasons()[:2]) == ([], ["tool_disabled", "tool_disabled"])


@pytest.mark.full
def test_a_narrowed_token_sees_and_reaches_its_servers_only(work: Work, proxy: Proxy) -> None:
    docs = work.put("docs", offering("echo"))
    work.put("crm", offering("find"))
    connection = work.gateway.connections.get()
    narrow = proxy.agent(connection, servers=[docs])

    assert narrow.tools() == ["docs__echo"]
    assert narrow.call("docs__echo").json()["result"]
    refused = narrow.call("crm__find")
    assert (refused.status_code, refused.content) == (
        403,
        b'{"jsonrpc":"2.0","error":{"code":-32003,"message":"Forbidden"},"id":null}',
    )
    row = proxy.last()
    assert (row.outcome, row.deny_reason, row.server_name) == ("denied", "out_of_scope", "crm")

    work.put("later", offering("x"))
    assert narrow.tools() == ["docs__echo"]
    assert work.agent.tools() == ["crm__find", "docs__echo", "later__x"]


@pytest.mark.full
def test_servers_without_a_usable_identity_are_named(work: Work, run: Run) -> None:
    work.put("docs", offering("echo"))
    github = make.server(slug="github", url=run(upstreams.github()).url, auth_type=AuthType.BEARER)
    make.assignment(work.gateway, github, identity_scheme=IdentityScheme.PER_USER)

    result = work.agent.listed().json()["result"]

    assert [each["name"] for each in result["tools"]] == ["docs__echo"]
    told = {"server": "github", "alias": "github", "reason": "identity_missing"}
    assert result["_meta"] == {UNAVAILABLE: [told]}


@pytest.mark.full
def test_removed_assignments_and_archived_servers_are_gone(work: Work) -> None:
    work.put("docs", offering("echo"))
    work.put("crm", offering("find"))
    sql("UPDATE gateways_assignment SET removed_at = now() WHERE alias = 'docs'")
    sql("UPDATE servers_server SET archived_at = now() WHERE slug = 'crm'")

    assert work.agent.tools() == []
    for name in ("docs__echo", "crm__find"):
        error = work.agent.call(name).json()["error"]
        assert error == {"code": -32602, "message": in_words(f"Unknown tool: {name}.")}


@pytest.mark.full
def test_tools_are_remembered_with_their_history(work: Work) -> None:
    script = Script(
        [[tool("echo", title="Echo", description="Say it."), tool("add"), tool("bad\0name"), tool("x" * 201)]]
    )
    work.put("docs", script.app())
    work.agent.listed()
    eventually(lambda: Feature.objects.count() == 2)
    echo = Feature.objects.get(name="echo")
    assert (echo.title, echo.description, echo.exposed_name) == ("Echo", "Say it.", "docs__echo")
    assert (echo.input_schema, echo.enabled, echo.changed_at) == ({"type": "object"}, True, None)

    script.pages = [[tool("echo", description="Send it elsewhere.")]]
    listed_a_while_ago()
    work.agent.listed()

    eventually(Feature.objects.filter(name="add", missing_since__isnull=False).exists)
    later = Feature.objects.get(name="echo")
    assert later.changed_at is not None
    assert later.first_seen_at == echo.first_seen_at
    assert (later.definition_hash, later.state) == (echo.definition_hash, "held")

    sql("UPDATE gateways_assignment SET tool_policy = 'selected'")
    script.pages = [[tool("echo", description="Send it elsewhere."), tool("add"), tool("new")]]
    listed_a_while_ago()
    work.agent.listed()
    eventually(Feature.objects.filter(name="add", missing_since=None).exists)
    assert Feature.objects.get(name="new").enabled is False
    assert Feature.objects.get(name="add").enabled is True


@pytest.mark.full
def test_unsupported_features_are_hidden_and_others_pass(work: Work) -> None:
    definition = tool(
        "echo",
        title="Echo",
        annotations={"readOnlyHint": True, "x": [1, {"y": None}]},
        outputSchema={"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}}},
        icons=[{"src": "data:,"}],
        _meta={"com.example/x": 1},
        future={"unknown": [1.5, "ü"]},
        execution={"taskSupport": "optional", "other": 1},
    )
    header = {"type": "string", "x-mcp-header": "Region"}
    mirrored = {"name": "mirrored", "inputSchema": {"type": "object", "properties": {"region": header}}}
    twice = {"a": header, "b": header}
    unsound = {"name": "unsound", "inputSchema": {"type": "object", "properties": twice}}
    broken: list[Any] = ["no object", {}, {"name": 7}, {"name": ""}]
    work.put("docs", Script([[definition, mirrored, unsound, *broken]], modern=True).app())

    shown = {each["name"]: each for each in work.agent.listed().json()["result"]["tools"]}

    assert shown["docs__echo"] == {**definition, "name": "docs__echo"}
    assert shown["docs__mirrored"]["inputSchema"] == {"type": "object", "properties": {"region": {"type": "string"}}}
    assert set(shown) == {"docs__echo", "docs__mirrored"}


def page(work: Work, cursor: object = None, method: str = "tools/list") -> tuple[list[str], str]:
    """Return the names on this page, and the cursor of the next."""
    result = work.agent.ask(method, {"cursor": cursor} if cursor else {}).json()["result"]
    return [each["name"] for each in result[method.partition("/")[0]]], result.get("nextCursor", "")


@pytest.mark.full
def test_a_long_list_comes_in_pages_that_stay_in_order_while_tools_are_added(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.lists.PAGE", 3)
    beta = work.put("beta", offering(*"abcd"))
    work.put("gamma", offering("e", "f"))
    names = [*(f"beta__{name}" for name in "abcd"), "gamma__e", "gamma__f"]

    first, cursor = page(work)
    assert (first, page(work, cursor)) == (names[:3], (names[3:], ""))
    # A new definition before the listed ones does not shift the next page.
    work.put("alpha", offering("0"))
    assert page(work)[0] == ["alpha__0", *names[:2]]
    assert page(work, cursor) == (names[3:], "")
    # The last definition of the page is gone: the next page starts at its position.
    first, cursor = page(work)
    Feature.objects.get(assignment=beta, name="b").disable(by=make.user())
    assert page(work, cursor)[0] == names[2:5]


@pytest.mark.full
def test_a_cursor_is_good_for_the_list_it_was_given_for(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.lists.PAGE", 1)
    work.put("beta", offering("a", "b"))
    _, cursor = page(work)

    for method, forged in (
        ("prompts/list", cursor),
        ("resources/list", cursor),
        ("tools/list", cursor[:-6] + "AAAA=="),
        ("tools/list", ""),
        ("tools/list", "ü"),
        ("tools/list", 7),
    ):
        error = work.agent.ask(method, {"cursor": forged}).json()["error"]
        assert (error["code"], error["message"]) == (-32602, "Invalid cursor")
    assert page(work, cursor) == (["beta__b"], "")
