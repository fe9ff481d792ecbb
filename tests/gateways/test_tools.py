"""Features of servers behind a gateway: storing them, the Tools tab, policies and switches."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from accounts.models import User
from auditlog.models import Event
from gateways.feature_refresh import refresh
from gateways.models import Assignment, Feature, Gateway, IdentityScheme, ToolPolicy
from servers.models import AuthType, Health
from tests import make, upstreams
from tests.conftest import Run, SignIn, wire_size
from tests.workspace import free_port
from wire.definitions import fingerprint

DEAD = "Dead refused the connection: nothing listens at the port; check the port, and that the server runs."
pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("loopback_is_allowed")]

HTMX = {"HX-Request": "true"}


@pytest.fixture
def work() -> Gateway:
    return make.gateway(name="Work", slug="work")


@pytest.fixture
def docs(work: Gateway) -> Assignment:
    return make.assignment(work, make.server(name="Docs", slug="docs"))


def text(response: Any) -> str:
    return str(response.content.decode())


# --- Learning -----------------------------------------------------------------------------------------------------


def test_a_tool_is_learnt_with_all_its_server_says(docs: Assignment) -> None:
    definition = {
        "name": "search",
        "title": "Search",
        "description": "Find pages.",
        "inputSchema": {"type": "object", "properties": {"q": {"type": "string"}}},
        "annotations": {"readOnlyHint": True},
    }

    Feature.objects.learn(docs, [definition])

    tool = docs.features.get()
    assert (tool.exposed_name, tool.title, tool.description) == ("docs__search", "Search", "Find pages.")
    assert tool.input_schema == definition["inputSchema"]
    assert tool.annotations == {"readOnlyHint": True}
    assert tool.definition_hash == fingerprint(definition)
    assert tool.enabled
    assert tool.changed_at is None


def test_learning_again_changes_nothing_but_when_it_was_last_seen(docs: Assignment) -> None:
    Feature.objects.learn(docs, [{"name": "search"}])
    Feature.objects.update(last_seen_at=timezone.now() - timedelta(minutes=2))
    before = docs.features.get()

    Feature.objects.learn(docs, [{"name": "search"}])

    after = docs.features.get()
    assert after.pk == before.pk
    assert after.last_seen_at > before.last_seen_at
    assert (after.first_seen_at, after.changed_at) == (before.first_seen_at, None)


def test_a_changed_definition_is_marked_and_keeps_its_switch(docs: Assignment, ana: User) -> None:
    Feature.objects.learn(docs, [{"name": "search", "description": "Find."}])
    docs.features.get().disable(by=ana)

    Feature.objects.learn(docs, [{"name": "search", "description": "Find, and delete."}])

    tool = docs.features.get()
    assert tool.changed_at == tool.last_seen_at
    assert (tool.state, tool.description) == ("held", "Find.")
    assert not tool.enabled


def test_a_missing_tool_is_marked_until_it_returns(docs: Assignment) -> None:
    Feature.objects.learn(docs, [{"name": "search"}, {"name": "add"}])

    Feature.objects.learn(docs, [{"name": "add"}])
    since = docs.features.get(name="search").missing_since
    Feature.objects.learn(docs, [{"name": "add"}])
    assert docs.features.get(name="search").missing_since == since is not None

    Feature.objects.learn(docs, [{"name": "add"}, {"name": "search"}])
    assert docs.features.get(name="search").missing_since is None


@pytest.mark.parametrize(("policy", "enabled"), [("allow_all", True), ("selected", False), ("block_all", True)])
def test_a_new_tool_starts_off_where_tools_are_selected(
    policy: str, enabled: bool, docs: Assignment, ana: User
) -> None:
    docs.edit(tool_policy=policy, by=ana)

    Feature.objects.learn(docs, [{"name": "search"}])

    assert docs.features.get().enabled == enabled


HINDRANCES: dict[str, Callable[[Feature, User], object]] = {
    "the tool is off": lambda tool, ana: tool.disable(by=ana),
    "its server no longer offers it": lambda tool, _: Feature.objects.learn(tool.assignment, []),
    "the policy blocks all": lambda tool, ana: tool.assignment.edit(tool_policy=ToolPolicy.BLOCK_ALL, by=ana),
    "the assignment is off": lambda tool, ana: tool.assignment.disable(by=ana),
    "the server is off": lambda tool, ana: tool.assignment.server.disable(by=ana),
    "the server was removed": lambda tool, ana: tool.assignment.remove(by=ana),
}


@pytest.mark.parametrize("hindrance", HINDRANCES)
def test_a_tool_can_be_called_while_nothing_forbids_it(hindrance: str, docs: Assignment, ana: User) -> None:
    Feature.objects.learn(docs, [{"name": "echo"}])
    tool = Feature.objects.callable().get()

    HINDRANCES[hindrance](tool, ana)

    assert not Feature.objects.callable().exists()


@pytest.mark.full
def test_the_numbers_of_a_gateway_agree_wherever_they_stand(docs: Assignment, ana: User, sign_in: SignIn) -> None:
    Feature.objects.learn(docs, [{"name": name} for name in ("echo", "add", "gone")])
    Feature.objects.learn(docs, [{"name": name} for name in ("echo", "add")])
    Feature.objects.get(name="add").disable(by=ana)
    agent = make.agent(by=ana)
    make.connection(agent, docs.gateway, ana).revoke(by=ana)
    make.connection(agent, docs.gateway, ana)
    client = sign_in(ana)

    tools, connections, servers, overview = (
        text(client.get(f"/gateways/work/{tab}")) for tab in ("tools/", "connections/", "servers/", "")
    )

    assert 'id="tool-count">2<' in tools
    assert 'Tools <span data-count="gateway.features.tool" class="count">2</span></a>' in tools
    assert 'class="muted">and 1 missing</small>' in tools
    assert 'class="count">1 of 2</span>' in tools
    assert ">1/2</a>" in servers
    assert "2 known" in overview
    assert 'id="connection-count">2<' in connections
    assert 'class="count">2</span></h2>' in connections
    assert "1 live" in overview


@pytest.mark.parametrize("name", [None, 7, "", "x" * 201, "nul\0", "lone\ud800"])
def test_a_tool_without_a_usable_name_is_left_out(name: object, docs: Assignment) -> None:
    Feature.objects.learn(docs, [{"name": name}, {"title": "no name"}, {"name": "fine"}])

    assert [tool.name for tool in docs.features.all()] == ["fine"]


def test_whatever_a_definition_holds_can_be_stored(docs: Assignment) -> None:
    wild = {
        "name": "x" * 150,
        "title": ["not text"],
        "description": "nul\0 and lone \ud800",
        "inputSchema": "not an object",
        "annotations": {"title": "From the annotations", "deep": ["\0"]},
    }

    Feature.objects.learn(docs, [wild])

    tool = docs.features.get()
    assert (tool.title, tool.input_schema) == ("From the annotations", {})
    assert tool.description == "nul\ufffd and lone \ufffd"
    assert len(tool.exposed_name) == 64


# --- Refresh tools ------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_refresh_asks_all_enabled_servers_and_keeps_what_does_not_answer(run: Run, work: Gateway, ana: User) -> None:
    crm = make.server(
        url=run(upstreams.crm()).url, auth_type=AuthType.HEADER, header_name="X-Api-Key", slug="crm", name="CRM"
    )
    shared = make.identity(crm, secret="crm-key")
    make.assignment(work, crm, identity_scheme=IdentityScheme.SHARED, shared_identity=shared)
    dead = make.assignment(work, make.server(name="Dead", url=f"http://127.0.0.1:{free_port()}/mcp"))
    Feature.objects.learn(dead, [{"name": "kept"}])
    off = run(upstreams.docs())
    make.assignment(work, make.server(url=off.url, enabled=False))

    refreshed = refresh(work, by=ana)

    assert {tool.exposed_name for tool in Feature.objects.offered()} == {
        "crm__which_key",
        "crm__find_customer",
        f"{dead.alias}__kept",
    }
    failures = [one.failure for one in refreshed if one.failure]
    assert failures == [f"{DEAD} Its last known tools are listed."]
    dead.server.refresh_from_db()
    assert dead.server.health == Health.DOWN
    assert off.seen == []


def test_a_refresh_never_borrows_another_person_s_identity(run: Run, work: Gateway, ana: User, ben: User) -> None:
    upstream = run(upstreams.github())
    server = make.server(url=upstream.url, auth_type=AuthType.BEARER, name="GitHub")
    make.assignment(work, server, identity_scheme=IdentityScheme.PER_USER)
    make.identity(server, ben, secret="ben-secret")

    (refreshed,) = refresh(work, by=ana)

    assert refreshed.failure.startswith("GitHub answered 401: it wants a credential.")
    assert not any("authorization" in seen.headers for seen in upstream.seen)


@pytest.mark.full
def test_a_disabled_shared_identity_is_not_used(run: Run, work: Gateway, ana: User) -> None:
    upstream = run(upstreams.github())
    server = make.server(url=upstream.url, auth_type=AuthType.BEARER)
    shared = make.identity(server)
    make.assignment(work, server, identity_scheme=IdentityScheme.SHARED, shared_identity=shared)
    shared.disable(by=ana)

    refresh(work, by=ana)

    assert not any("authorization" in seen.headers for seen in upstream.seen)


@pytest.mark.full
def test_the_button_shows_the_new_list_and_what_failed(run: Run, work: Gateway, ana: User, sign_in: SignIn) -> None:
    make.assignment(work, make.server(url=run(upstreams.docs()).url, slug="docs", name="Docs"))
    make.assignment(work, make.server(url=f"http://127.0.0.1:{free_port()}/mcp", name="Dead"))
    client = sign_in(ana)

    fragment = client.post("/gateways/work/tools/refresh/", headers=HTMX)
    page = client.post("/gateways/work/tools/refresh/", follow=True)

    assert "docs__echo" in text(fragment)
    assert DEAD in text(fragment)
    assert 'id="tool-count" hx-swap-oob="true">6<' in text(fragment)
    assert f"6 tools known. {DEAD}" in text(page)


# --- The tab ------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_tab_groups_tools_by_server_with_what_they_claim_to_do(
    docs: Assignment, work: Gateway, ana: User, sign_in: SignIn
) -> None:
    definitions = [
        {"name": "read", "annotations": {"readOnlyHint": True}},
        {"name": "wipe", "annotations": {"destructiveHint": True}},
        {"name": "write", "annotations": {"readOnlyHint": False}},
        {"name": "odd", "annotations": {"readOnlyHint": "yes"}},
    ]
    Feature.objects.learn(docs, definitions)
    docs.features.get(name="wipe").disable(by=ana)

    page = text(sign_in(ana).get("/gateways/work/tools/"))

    assert "3 of 4" in page
    for name, effect in (("read", "Read only"), ("wipe", "Destructive"), ("write", "Writes")):
        row = page.split(f'id="tool-{docs.features.get(name=name).pk}"')[1].split("</tr>", maxsplit=1)[0]
        assert f"docs__{name}" in row
        assert effect in row


@pytest.mark.full
def test_changed_missing_and_new_tools_are_marked(docs: Assignment, ana: User, sign_in: SignIn) -> None:
    Assignment.objects.update(created_at="2026-01-01T00:00Z")
    Feature.objects.learn(docs, [{"name": "one"}, {"name": "two"}, {"name": "three"}])
    Feature.objects.learn(docs, [{"name": "one", "description": "Other than before"}, {"name": "three"}])

    page = text(sign_in(ana).get("/gateways/work/tools/"))

    assert ">missing<" in page
    assert ">New<" in page
    assert "held <time" in page


@pytest.mark.full
def test_a_tab_without_tools_says_what_to_do(work: Gateway, ana: User, sign_in: SignIn) -> None:
    client = sign_in(ana)

    assert "This gateway exposes nothing yet" in text(client.get("/gateways/work/tools/"))

    make.assignment(work, make.server())
    assert "No tools known. Refresh tools." in text(client.get("/gateways/work/tools/"))


@pytest.mark.full
@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("?q=ech", {"docs__echo"}),
        ("?q=sums", {"docs__add"}),
        ("?enabled=off", {"docs__add"}),
        ("?enabled=on", {"docs__echo", "wiki__find"}),
        ("?server={docs}", {"docs__echo", "docs__add"}),
        ("?server=nonsense", {"docs__echo", "docs__add", "wiki__find"}),
        ("?q=nothing", set()),
    ],
)
def test_the_tab_is_narrowed_by_the_query_string(
    query: str, names: set[str], docs: Assignment, work: Gateway, ana: User, sign_in: SignIn
) -> None:
    Feature.objects.learn(docs, [{"name": "echo"}, {"name": "add", "description": "Sums up."}])
    docs.features.get(name="add").disable(by=ana)
    Feature.objects.learn(make.assignment(work, make.server(slug="wiki")), [{"name": "find"}])

    response = sign_in(ana).get(f"/gateways/work/tools/{query.format(docs=docs.pk)}")

    assert {row.feature.exposed_name for group in response.context["groups"] for row in group.rows} == names


@pytest.mark.full
def test_the_tab_costs_the_same_for_one_row_and_for_many(
    work: Gateway, ana: User, sign_in: SignIn, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for _ in range(4):
        Feature.objects.learn(make.assignment(work, make.server()), [{"name": f"tool_{n}"} for n in range(5)])
    client = sign_in(ana)

    # session, user, permissions, gateway, assignments, count, rows, number of each kind, state of the last refresh
    with django_assert_num_queries(10):
        client.get("/gateways/work/tools/")


@pytest.mark.full
def test_a_full_tab_stays_light(docs: Assignment, ana: User, sign_in: SignIn) -> None:
    definitions = [
        {"name": f"a_tool_with_a_long_name_{n}", "description": "Does what it says. " * 20} for n in range(100)
    ]
    Feature.objects.learn(docs, definitions)

    assert wire_size(sign_in(ana).get("/gateways/work/tools/")) <= 30 * 1024


# --- Policy and switches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ToolPolicy.values)
def test_a_policy_is_chosen_per_server(policy: str, docs: Assignment, ana: User, sign_in: SignIn) -> None:
    Feature.objects.learn(docs, [{"name": "echo"}])

    fragment = text(sign_in(ana).post(f"/assignments/{docs.pk}/policy/", {"policy": policy}, headers=HTMX))

    docs.refresh_from_db()
    assert docs.tool_policy == policy
    assert f'value="{policy}" aria-pressed="true"' in fragment
    assert ("blocked by the policy" in fragment) == (policy == "block_all")


def test_an_unknown_policy_is_refused(docs: Assignment, ana: User, sign_in: SignIn) -> None:
    assert sign_in(ana).post(f"/assignments/{docs.pk}/policy/", {"policy": "magic"}).status_code == 400
    docs.refresh_from_db()
    assert docs.tool_policy == "allow_all"


@pytest.mark.full
def test_switching_a_tool_off_asks_first(docs: Assignment, ana: User, sign_in: SignIn) -> None:
    Feature.objects.learn(docs, [{"name": "echo"}])
    tool = docs.features.get()

    asked = text(sign_in(ana).get(f"/tools/{tool.pk}/disable/", headers=HTMX))

    assert "Disable this tool? docs__echo disappears from Work on the next request. Nothing is deleted." in asked
    assert f'hx-target="#tool-{tool.pk}"' in asked
    tool.refresh_from_db()
    assert tool.enabled


@pytest.mark.full
def test_a_tool_is_switched_and_recorded(docs: Assignment, ana: User, sign_in: SignIn) -> None:
    Feature.objects.learn(docs, [{"name": "echo"}])
    tool = docs.features.get()
    client = sign_in(ana)

    row = text(client.post(f"/tools/{tool.pk}/disable/", headers=HTMX))
    tool.refresh_from_db()
    assert not tool.enabled
    assert row.lstrip().startswith(f'<tr id="tool-{tool.pk}" data-state="disabled" class="changed">')

    assert client.post(f"/tools/{tool.pk}/enable/")["Location"] == "/gateways/work/tools/"
    assert [event.action for event in Event.objects.filter(target_type="feature").order_by("id")] == [
        "feature.disabled",
        "feature.enabled",
    ]


def test_nothing_is_switched_by_looking(docs: Assignment, ana: User, sign_in: SignIn) -> None:
    Feature.objects.learn(docs, [{"name": "echo"}])

    assert sign_in(ana).get(f"/tools/{docs.features.get().pk}/enable/").status_code == 405
