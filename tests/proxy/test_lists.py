"""Lists show stored, approved definitions, so they are fast, work while a server is down, and hide later changes."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from auditlog.models import Event
from gateways.models import Assignment, Feature, Gateway, IdentityScheme, Listing, OnArrival, OnChange
from proxy.access import decision
from servers.models import AuthType, Server
from tests import make, upstreams
from tests.asgi_server import Upstream, running
from tests.conftest import Run
from tests.proxy.conftest import Agent, Proxy, Start, eventually, sql
from tests.proxy.scripted import Request, Script, tool

UNAVAILABLE = "gateway-admin/unavailable"
NUMBER = {"type": "object", "properties": {"n": {"type": "number"}}, "required": ["n"]}


@dataclass
class Offers(Script):
    """A server with tools, prompts, resources and templates, whose lists a test changes."""

    features: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    raw: bytes = b""

    async def method(self, request: Request) -> None:
        match request.message["method"]:
            case "tools/list" if self.raw:
                number = json.dumps(request.message["id"]).encode()
                await request.answer(b'{"jsonrpc":"2.0","id":%b,"result":{"tools":[%b]}}' % (number, self.raw))
            case "prompts/list" | "resources/list" | "resources/templates/list" as method if method in self.features:
                member = {"prompts/list": "prompts", "resources/list": "resources"}.get(method, "resourceTemplates")
                await request.answer({member: self.features[method]})
            case "tools/call":
                await request.answer({"content": [{"type": "text", "text": "done"}]})
            case _:
                await super().method(request)


@dataclass
class Work:
    """A gateway with one server, `docs`, and an agent."""

    proxy: Proxy
    gateway: Gateway
    agent: Agent
    script: Offers
    upstream: Upstream
    assignment: Assignment
    leave: ExitStack

    def says(self, *tools: dict[str, Any]) -> None:
        """Let the server list these tools from now on, and refresh the list."""
        before = Listing.objects.get(kind="tool").learnt_at
        self.script.pages = [list(tools)]
        sql("UPDATE gateways_listing SET asked_at = asked_at - interval '61 seconds'")
        self.agent.listed()
        eventually(lambda: Listing.objects.get(kind="tool").learnt_at != before)

    def shown(self) -> dict[str, Any]:
        return {each["name"]: each for each in self.agent.listed().json()["result"]["tools"]}

    def asked(self, method: str = "tools/list") -> int:
        return len(self.upstream.asked(method))


@pytest.fixture
def work(proxy: Proxy) -> Iterator[Work]:
    user = make.user(email="ana@example.com")
    gateway = make.gateway(slug="work")
    agent = proxy.agent(make.connection(make.agent(by=user), gateway, user))
    script = Offers([[tool("echo", description="Say it."), tool("add")]])
    with ExitStack() as leave:
        upstream = leave.enter_context(running(script.app()))
        assignment = make.assignment(gateway, make.server(slug="docs", url=upstream.url))
        yield Work(proxy, gateway, agent, script, upstream, assignment, leave)


@pytest.mark.full
def test_a_stored_list_takes_one_statement_and_no_word_with_the_server(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(work.shown()) == {"docs__echo", "docs__add"}
    asked = work.asked()
    statements: list[int] = []
    parameters = decision.parameters

    def counted(queries: Any) -> list[bytes]:
        statements.append(len(queries))
        return parameters(queries)

    monkeypatch.setattr("proxy.access.decision.parameters", counted)

    for _ in range(3):
        assert list(work.shown()) == ["docs__echo", "docs__add"]

    assert (statements, work.asked()) == ([1, 1, 1], asked)


@pytest.mark.full
def test_a_changed_definition_is_shown_as_it_was_approved_until_somebody_accepts_it(work: Work) -> None:
    work.shown()
    work.says(tool("echo", description="Send it elsewhere."), tool("add"))

    assert work.shown()["docs__echo"]["description"] == "Say it."
    assert "result" in work.agent.call("docs__echo").json()  # Only the description changed, so calls go on.
    echo = Feature.objects.get(name="echo")
    assert (echo.state, json.loads(echo.offered or "")["description"]) == ("held", "Send it elsewhere.")
    event = Event.objects.get(action="feature.changed")
    assert (event.target_label, event.changes["state"], event.actor_email) == (
        "docs__echo",
        ["approved", "held"],
        "system",
    )
    work.says(tool("echo", description="Send it elsewhere."), tool("add"))
    assert Event.objects.filter(action="feature.changed").count() == 1
    work.says(tool("echo", description="Say it."), tool("add"))
    echo.refresh_from_db()
    assert (echo.state, echo.offered) == ("approved", None)
    work.says(tool("echo", description="Send it elsewhere."), tool("add"))
    echo.refresh_from_db()

    echo.accept(by=make.user())

    assert work.shown()["docs__echo"]["description"] == "Send it elsewhere."
    assert (echo.state, echo.offered, echo.description) == ("approved", None, "Send it elsewhere.")
    assert [version.approved_by is None for version in echo.versions.all()] == [False, True]
    work.says(tool("echo", description="Send it elsewhere."), tool("add"))
    assert Feature.objects.get(name="echo").state == "approved"


@pytest.mark.full
def test_a_quarantined_tool_is_gone_and_its_calls_are_refused(work: Work) -> None:
    work.shown()
    echo = Feature.objects.get(name="echo")

    echo.quarantine(by=make.user())

    assert set(work.shown()) == {"docs__add"}
    error = work.agent.call("docs__echo").json()["error"]
    assert (error["code"], error["data"]["reason"]) == (-32003, "definition_quarantined")
    assert work.proxy.last().deny_reason == "definition_quarantined"
    work.says(tool("echo", description="Better."), tool("add"))
    assert set(work.shown()) == {"docs__add"}
    Feature.objects.get(name="echo").accept(by=make.user())
    assert work.shown()["docs__echo"]["description"] == "Better."


@pytest.mark.full
def test_a_call_of_a_held_tool_goes_on_while_the_changed_schema_takes_its_arguments(work: Work) -> None:
    work.shown()
    work.says(tool("echo", description="Say it.") | {"inputSchema": NUMBER}, tool("add"))

    assert "result" in work.agent.call("docs__echo", {"n": 1}).json()
    before = work.asked("tools/call")
    error = work.agent.call("docs__echo", {"text": "x"}).json()["error"]
    assert (error["code"], error["data"]["reason"]) == (-32003, "definition_held")
    assert work.asked("tools/call") == before

    Gateway.objects.update(changed_definitions=OnChange.WARN)
    assert "result" in work.agent.call("docs__echo", {"text": "x"}).json()
    assert work.shown()["docs__echo"]["inputSchema"] == {"type": "object"}


UNJUDGED: dict[str, object] = {
    "elsewhere": {"$ref": "http://127.0.0.1:1/schema"},
    "pattern": {"type": "object", "properties": {"n": {"pattern": "^(a+)+$"}}},
    "circle": {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
    "doubling": {
        "type": "object",
        "$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(30)} | {"d30": {}},
        "$ref": "#/$defs/d0",
    },
    "wrong": {"type": 7},
    "text": "no schema",
}


def test_a_schema_that_cannot_be_judged_takes_no_arguments(work: Work) -> None:
    work.script.pages = [[tool(name) for name in UNJUDGED]]
    work.shown()
    work.says(*[tool(name) | {"inputSchema": schema} for name, schema in UNJUDGED.items()])

    for name in UNJUDGED:
        error = work.agent.call(f"docs__{name}", {"n": "a" * 40 + "b"}).json()["error"]
        assert error["data"]["reason"] == "definition_held", name


@pytest.mark.full
def test_where_changes_are_accepted_they_are_shown_at_once_with_an_event(work: Work) -> None:
    Gateway.objects.update(changed_definitions=OnChange.ACCEPT)
    work.shown()

    work.says(tool("echo", description="New."), tool("add"))

    assert work.shown()["docs__echo"]["description"] == "New."
    assert Event.objects.get(action="feature.changed").changes["state"] == ["approved", "approved"]


@pytest.mark.full
@pytest.mark.parametrize("rule", [OnChange.HOLD, OnChange.WARN, OnChange.ACCEPT])
def test_hidden_characters_are_held_whatever_the_setting(work: Work, rule: str) -> None:
    Gateway.objects.update(changed_definitions=rule)
    hidden = {f"u{ord(each):04X}": each for each in ("\u202e", "\u200b", "\U000e0041", "\x1b", "\ufeff")}
    work.script.pages = [[tool(name, description="Say it.") for name in hidden]]
    assert set(work.shown()) == {f"docs__{name}" for name in hidden}

    work.says(
        *[tool(name, description=f"Say{each} it.") for name, each in hidden.items()],
        *[tool(f"new_{name}", title=f"x{each}") for name, each in hidden.items()],
        tool("emoji", title="For a 👩\u200d💻"),
    )

    shown = work.shown()
    assert shown.pop("docs__emoji")
    assert {name: each["description"] for name, each in shown.items()} == {
        f"docs__{name}": "Say it." for name in hidden
    }
    for name in hidden:
        changed, new = Feature.objects.get(name=name), Feature.objects.get(name=f"new_{name}")
        assert (changed.state, new.state) == ("held", "new")
        assert [each.split()[0] for each in changed.hidden_characters] == [name.replace("u", "U+")]
        assert work.agent.call(f"docs__new_{name}").json()["error"]["data"]["reason"] == "definition_held"


@pytest.mark.full
def test_a_new_definition_waits_where_the_gateway_says_so(work: Work) -> None:
    Gateway.objects.update(new_definitions=OnArrival.WAIT)

    assert work.shown() == {}
    assert work.agent.call("docs__echo").json()["error"]["data"]["reason"] == "definition_held"
    assert Event.objects.filter(action="feature.held").count() == 2
    Feature.objects.get(name="echo").accept(by=make.user())

    assert set(work.shown()) == {"docs__echo"}
    assert "result" in work.agent.call("docs__echo").json()


@pytest.mark.full
def test_a_server_that_is_down_keeps_its_features_listed_and_is_named(work: Work) -> None:
    work.shown()
    work.leave.close()
    sql("UPDATE gateways_listing SET asked_at = asked_at - interval '61 seconds'")

    assert set(work.shown()) == {"docs__echo", "docs__add"}
    eventually(Listing.objects.exclude(error="").exists)

    result = work.agent.listed().json()["result"]
    assert [each["name"] for each in result["tools"]] == ["docs__echo", "docs__add"]
    assert result["_meta"] == {
        UNAVAILABLE: [{"server": work.assignment.server.name, "alias": "docs", "reason": "unreachable"}]
    }


TRICKY = (
    rb'{"name": "it", "x": 1.10, "n": 123456789012345678901234567890, "s": "\ud800", "a": 1, "a": 2,'
    rb' "big": 1e400, "inputSchema": {"type":"object"}}'
)


def test_a_definition_reaches_the_client_as_its_server_wrote_it(work: Work) -> None:
    work.script.raw = TRICKY.replace(b', "big": 1e400', b"")

    for _ in range(2):
        body = work.agent.listed().content
        assert work.script.raw.replace(b'"it"', b'"docs__it"') in body

    Feature.objects.all().delete()
    Listing.objects.all().delete()
    work.script.raw = rb'{"name":"it","description":"a\u0000b","inputSchema":{"type":"object"}}'
    work.shown()
    Feature.objects.get(name="it").accept(by=make.user())
    assert rb"a\u0000b" in work.agent.listed().content


@pytest.mark.full
def test_each_person_is_shown_what_the_server_offers_to_them(proxy: Proxy, run: Run) -> None:
    class Personal(Offers):
        async def list(self, request: Request) -> None:
            own = request.headers["authorization"].removeprefix("Bearer ")
            await request.answer({"tools": [tool("whoami"), tool(own)]})

    gateway = make.gateway(slug="work")
    server = make.server(slug="hub", url=run(Personal().app()).url, auth_type=AuthType.BEARER)
    make.assignment(gateway, server, identity_scheme=IdentityScheme.PER_USER)
    agents = {}
    for name in ("ana", "ben"):
        user = make.user(email=f"{name}@example.com")
        own = make.identity(server, user, secret=name)
        agents[name] = proxy.agent(make.connection(make.agent(by=user, name=name), gateway, user, [own]))

    for _ in range(2):
        assert agents["ana"].tools() == ["hub__whoami", "hub__ana"]
        assert agents["ben"].tools() == ["hub__whoami", "hub__ben"]

    assert Feature.objects.filter(missing_since=None).count() == 3
    assert Listing.objects.filter(kind="tool").count() == 2


@pytest.mark.full
def test_prompts_resources_and_templates_are_listed_and_switched_as_tools_are(work: Work) -> None:
    work.script.features = {
        "prompts/list": [{"name": "sum up", "description": "A prompt."}],
        "resources/list": [{"uri": "docs://a", "name": "a"}, {"uri": "docs://b", "name": "b"}],
        "resources/templates/list": [{"uriTemplate": "docs://{page}", "name": "page"}],
    }

    def listed(method: str, member: str, key: str) -> list[str]:
        return [each[key] for each in work.agent.ask(method).json()["result"][member]]

    for _ in range(2):
        (prompt,) = listed("prompts/list", "prompts", "name")
        assert prompt.startswith("docs__sum_up_")
        assert listed("resources/list", "resources", "uri") == ["docs://a", "docs://b"]
        assert listed("resources/templates/list", "resourceTemplates", "uriTemplate") == ["docs://{page}"]
    assert work.asked("resources/list") == 1
    Feature.objects.get(kind="resource", name="docs://a").disable(by=None)
    assert listed("resources/list", "resources", "uri") == ["docs://b"]
    assert set(Feature.objects.values_list("kind", flat=True)) == {"prompt", "resource", "template"}
    Assignment.objects.update(tool_policy="block_all")
    assert listed("resources/list", "resources", "uri") == []


@pytest.mark.full
def test_with_two_servers_a_template_is_given_out_as_what_its_expansions_are_read_by(work: Work) -> None:
    work.script.features = {"resources/templates/list": [{"uriTemplate": "docs://{page}", "name": "page"}]}
    make.assignment(work.gateway, make.server(slug="other", url=work.upstream.url), alias="other")

    templates = work.agent.ask("resources/templates/list").json()["result"]["resourceTemplates"]
    (given,) = (each["uriTemplate"] for each in templates if "//docs/" in each["uriTemplate"])
    work.agent.ask("resources/read", {"uri": given.replace("{page}", "intro")})

    assert len(templates) == 2
    assert work.upstream.asked("resources/read")[0].body["params"]["uri"] == "docs://intro"


@pytest.mark.full
def test_a_server_whose_lists_differ_by_session_is_asked_for_each_and_pinned(work: Work) -> None:
    Server.objects.update(lists_live=True)
    assert set(work.shown()) == {"docs__echo", "docs__add"}

    work.script.pages = [[tool("echo", description="Elsewhere.")]]
    assert {name: each.get("description") for name, each in work.shown().items()} == {"docs__echo": "Say it."}
    assert not Feature.objects.exclude(missing_since=None).exists()
    work.script.pages = [[tool("add"), tool("more")]]
    assert set(work.shown()) == {"docs__add", "docs__more"}
    work.leave.close()
    result = work.agent.listed().json()["result"]
    assert {each["name"] for each in result["tools"]} == {"docs__add", "docs__echo", "docs__more"}
    assert result["_meta"][UNAVAILABLE][0]["reason"] == "unreachable"


@pytest.mark.full
def test_a_client_waits_a_moment_for_a_server_that_never_answered(start: Start, run: Run) -> None:
    user = make.user()
    gateway = make.gateway(slug="work")
    agent = start(list_seconds=600).agent(make.connection(make.agent(by=user), gateway, user))
    for slug, app in (("fine", Offers([[tool("echo")]]).app()), ("silent", upstreams.silent())):
        make.assignment(gateway, make.server(slug=slug, url=run(app).url, timeout_seconds=2))

    answer = agent.listed()

    assert [each["name"] for each in answer.json()["result"]["tools"]] == ["fine__echo"]
    assert [each["alias"] for each in answer.json()["result"]["_meta"][UNAVAILABLE]] == ["silent"]
    assert answer.elapsed.total_seconds() > 1


@pytest.mark.full
def test_more_changes_than_anybody_reads_are_told_in_one_event(work: Work) -> None:
    many = [tool(f"t{n}", description="a") for n in range(30)]
    Feature.objects.learn(work.assignment, many)

    Feature.objects.learn(work.assignment, [{**each, "description": "b"} for each in many])

    events = Event.objects.filter(action="feature.changed")
    assert events.filter(target_type="feature").count() == 20
    assert events.get(target_type="assignment").changes == {"more": [None, 10]}


@pytest.mark.full
def test_the_history_of_a_definition_is_bounded(work: Work) -> None:
    for n in range(30):
        Feature.objects.learn(work.assignment, [tool("it", description=str(n))])

    feature = Feature.objects.get(name="it")
    assert feature.versions.count() <= 22
    assert feature.versions.filter(hash=feature.definition_hash).exists()
