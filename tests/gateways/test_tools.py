"""Features of servers behind a gateway: storing them, the Tools tab, policies and switches."""

from collections.abc import Callable
from typing import Any

import pytest
from pytest_django import DjangoAssertNumQueries

from accounts.models import User
from auditlog.models import Event
from auditlog.sentences import sentence
from gateways.feature_refresh import refresh
from gateways.models import Assignment, Feature, Gateway, IdentityScheme, ToolPolicy
from servers.models import AuthType, Health
from tests import make, upstreams
from tests.conftest import Run, SignIn, wire_size
from tests.undone import undone
from tests.workspace import free_port

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


def test_a_new_tool_starts_off_where_tools_are_selected(docs: Assignment, ana: User) -> None:
    for number, (policy, enabled) in enumerate((("selected", False), ("block_all", True), ("allow_all", True))):
        docs.edit(tool_policy=policy, by=ana)
        Feature.objects.learn(docs, [{"name": f"search_{number}"}])
        assert docs.features.get(name=f"search_{number}").enabled == enabled, policy


HINDRANCES: dict[str, Callable[[Feature, User], object]] = {
    "the tool is off": lambda tool, ana: tool.disable(by=ana),
    "its server no longer offers it": lambda tool, _: Feature.objects.learn(tool.assignment, []),
    "the policy blocks all": lambda tool, ana: tool.assignment.edit(tool_policy=ToolPolicy.BLOCK_ALL, by=ana),
    "the assignment is off": lambda tool, ana: tool.assignment.disable(by=ana),
    "the server is off": lambda tool, ana: tool.assignment.server.disable(by=ana),
    "the server was removed": lambda tool, ana: tool.assignment.remove(by=ana),
}


def test_a_tool_can_be_called_while_nothing_forbids_it(docs: Assignment, ana: User, subtests: pytest.Subtests) -> None:
    Feature.objects.learn(docs, [{"name": "echo"}])
    for name, hinder in HINDRANCES.items():
        with subtests.test(name), undone():
            hinder(Feature.objects.callable().get(), ana)
            assert not Feature.objects.callable().exists()


def test_whatever_a_definition_holds_can_be_stored_but_a_tool_needs_a_usable_name(docs: Assignment) -> None:
    wild = {
        "name": "x" * 150,
        "title": ["not text"],
        "description": "nul\0 and lone \ud800",
        "inputSchema": "not an object",
        "annotations": {"title": "From the annotations", "deep": ["\0"]},
    }
    nameless = [{"name": name} for name in (None, 7, "", "x" * 201, "nul\0", "lone\ud800")]

    Feature.objects.learn(docs, [wild, *nameless, {"title": "no name"}])

    tool = docs.features.get()
    assert (tool.title, tool.input_schema) == ("From the annotations", {})
    assert tool.description == "nul\ufffd and lone \ufffd"
    assert len(tool.exposed_name) == 64


# --- Refresh tools ------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_refresh_asks_all_enabled_servers_and_keeps_what_does_not_answer(
    run: Run, work: Gateway, ana: User, sign_in: SignIn
) -> None:
    crm = make.server(
        url=run(upstreams.crm()).url, auth_type=AuthType.HEADER, header_name="X-Api-Key", slug="crm", name="CRM"
    )
    shared = make.identity(crm, secret="crm-key")
    make.assignment(work, crm, identity_scheme=IdentityScheme.SHARED, shared_identity=shared)
    dead = make.assignment(work, make.server(name="Dead", url=f"http://127.0.0.1:{free_port()}/mcp"))
    Feature.objects.learn(dead, [{"name": "kept"}])
    off = run(upstreams.docs())
    make.assignment(work, make.server(url=off.url, enabled=False))
    client = sign_in(ana)

    fragment = client.post("/gateways/work/tools/refresh/", headers=HTMX)
    page = client.post("/gateways/work/tools/refresh/", follow=True)

    assert {tool.exposed_name for tool in Feature.objects.offered()} == {
        "crm__which_key",
        "crm__find_customer",
        f"{dead.alias}__kept",
    }
    assert DEAD in text(fragment)
    assert 'id="tool-count" hx-swap-oob="true">3<' in text(fragment)
    assert f"3 tools known. {DEAD}" in text(page)
    dead.server.refresh_from_db()
    assert dead.server.health == Health.DOWN
    assert off.seen == []


def test_a_refresh_never_uses_a_disabled_identity_or_another_persons(
    run: Run, work: Gateway, ana: User, ben: User
) -> None:
    upstream = run(upstreams.github())
    server = make.server(url=upstream.url, auth_type=AuthType.BEARER, name="GitHub")
    shared = make.identity(server, label="service")
    make.assignment(work, server, identity_scheme=IdentityScheme.PER_USER)
    make.assignment(
        work, server, identity_scheme=IdentityScheme.SHARED, shared_identity=shared, alias="by-service-account"[:16]
    )
    make.identity(server, ben, secret="ben-secret")
    shared.disable(by=ana)

    refreshed = refresh(work, by=ana)

    assert any(one.failure.startswith("GitHub answered 401: it wants a credential.") for one in refreshed)
    assert not any("authorization" in seen.headers for seen in upstream.seen)


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
def test_the_tab_is_narrowed_by_the_query_string(docs: Assignment, work: Gateway, ana: User, sign_in: SignIn) -> None:
    Feature.objects.learn(docs, [{"name": "echo"}, {"name": "add", "description": "Sums up."}])
    docs.features.get(name="add").disable(by=ana)
    Feature.objects.learn(make.assignment(work, make.server(slug="wiki")), [{"name": "find"}])
    client = sign_in(ana)

    for query, names in (
        ("?q=ech", {"docs__echo"}),
        ("?q=sums", {"docs__add"}),
        ("?enabled=off", {"docs__add"}),
        ("?enabled=on", {"docs__echo", "wiki__find"}),
        (f"?server={docs.pk}", {"docs__echo", "docs__add"}),
        ("?server=nonsense", {"docs__echo", "docs__add", "wiki__find"}),
        ("?q=nothing", set()),
    ):
        groups = client.get(f"/gateways/work/tools/{query}").context["groups"]
        assert {row.feature.exposed_name for group in groups for row in group.rows} == names, query


@pytest.mark.full
def test_a_full_tab_takes_few_statements_and_stays_light(
    work: Gateway, ana: User, sign_in: SignIn, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    for _ in range(4):
        tools = [{"name": f"a_tool_with_a_long_name_{n}", "description": "Does what it says. " * 20} for n in range(25)]
        Feature.objects.learn(make.assignment(work, make.server()), tools)
    client = sign_in(ana)

    with django_assert_max_num_queries(12):
        page = client.get("/gateways/work/tools/")
    assert wire_size(page) <= 30 * 1024


# --- Policy and switches ------------------------------------------------------------------------------------------


def test_a_policy_is_chosen_per_server(docs: Assignment, ana: User, sign_in: SignIn) -> None:
    Feature.objects.learn(docs, [{"name": "echo"}])
    client, path = sign_in(ana), f"/assignments/{docs.pk}/policy/"

    for policy in ("block_all", "selected", "allow_all"):
        fragment = text(client.post(path, {"policy": policy}, headers=HTMX))
        docs.refresh_from_db()
        assert docs.tool_policy == policy
        assert f'value="{policy}" aria-pressed="true"' in fragment
        assert ("blocked by the policy" in fragment) == (policy == "block_all")
    assert client.post(path, {"policy": "magic"}).status_code == 400
    docs.refresh_from_db()
    assert docs.tool_policy == "allow_all"


@pytest.mark.full
def test_a_tool_is_switched_and_recorded(docs: Assignment, ana: User, sign_in: SignIn) -> None:
    Feature.objects.learn(docs, [{"name": "echo"}])
    tool = docs.features.get()
    client = sign_in(ana)
    asked = text(client.get(f"/tools/{tool.pk}/disable/", headers=HTMX))
    assert "Disable this tool? docs__echo disappears from Work on the next request. Nothing is deleted." in asked
    assert f'hx-target="#tool-{tool.pk}"' in asked
    assert client.get(f"/tools/{tool.pk}/enable/").status_code == 405, "nothing is switched by looking"

    row = text(client.post(f"/tools/{tool.pk}/disable/", headers=HTMX))
    tool.refresh_from_db()
    assert not tool.enabled
    assert row.lstrip().startswith(f'<tr id="tool-{tool.pk}" data-state="disabled" class="changed">')
    assert f'id="callable-{docs.pk}" hx-swap-oob="true">0 of 1</span>' in row

    assert client.post(f"/tools/{tool.pk}/enable/")["Location"] == "/gateways/work/tools/"
    assert [sentence(event) for event in Event.objects.filter(target_type="feature").order_by("id")] == [
        f"{ana.email} disabled “docs__echo” on “Work”.",
        f"{ana.email} enabled “docs__echo” on “Work”.",
    ]
