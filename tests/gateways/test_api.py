"""/api/gateways with their servers and tools."""

from typing import Any

import pytest
from django.conf import LazySettings

from accounts.models import Team, User
from auditlog.models import Event
from capabilities import Capability
from gateways.models import Assignment, Feature, Gateway
from servers.models import AuthType, Server
from tests import make, upstreams
from tests.conftest import Run
from tests.meanwhile import just_before
from tests.rest import Rest, errors, problem, results

pytestmark = pytest.mark.django_db

DOCS = "/gateways/work/servers/docs"


@pytest.fixture
def docs() -> Server:
    return make.server(slug="docs", name="Docs")


@pytest.fixture
def work(docs: Server) -> Gateway:
    return make.gateway(docs, slug="work", name="Work")


@pytest.fixture
def search(work: Gateway) -> Feature:
    return Feature.objects.create(assignment=work.assignments.get(), name="search", exposed_name="docs__search")


# --- Gateways -------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_gateway_is_told_with_its_counts(ana: User, work: Gateway, search: Feature) -> None:
    make.connection(make.agent(by=ana), work, ana)

    told = Rest.of(ana).get("/gateways/work").json()

    assert set(told) == {
        *("id", "name", "slug", "url", "description", "enabled", "reach", "teams", "calls_per_minute"),
        "hosts_allowed",
        "tools_given",
        *("new_definitions", "changed_definitions"),
        *("takes_requests", "request_days", "most_request_days", "approvers"),
        *("servers_count", "tools_count", "connections_count", "created_by", "created_at", "updated_at"),
    }
    assert (told["servers_count"], told["tools_count"], told["connections_count"]) == (1, 1, 1)
    assert told["url"] == "http://localhost:8000/mcp/work"


def test_a_gateway_is_made_and_changed_with_what_becomes_of_definitions(ana: User) -> None:
    rest, asked = Rest.of(ana), {"new_definitions": "wait", "changed_definitions": "warn"}

    made = rest.post("/gateways", {"name": "Work", "slug": "work", **asked}).json()
    changed = rest.patch("/gateways/work", {"changed_definitions": "accept"}).json()

    assert (made["new_definitions"], made["changed_definitions"]) == ("wait", "warn")
    assert (changed["new_definitions"], changed["changed_definitions"]) == ("wait", "accept")


@pytest.mark.full
def test_a_gateway_does_not_take_the_name_of_another(ana: User, work: Gateway) -> None:
    make.gateway(slug="play", name="Play")

    assert problem(Rest.of(ana).patch("/gateways/work", {"name": "PLAY"})) == (409, "already_exists")
    assert Rest.of(ana).patch("/gateways/work", {"name": "WORK"}).json()["name"] == "WORK", "it may change its own case"


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("act", ["add", "edit"])
def test_a_name_that_somebody_else_takes_meanwhile_is_a_conflict(act: str, ana: User, work: Gateway) -> None:
    rest = Rest.of(ana)

    with just_before(lambda: make.gateway(slug="of-others", name="PLAY")):
        body = {"name": "Play"}
        refused = rest.post("/gateways", body) if act == "add" else rest.patch("/gateways/work", body)

    assert problem(refused) == (409, "already_exists")
    assert set(Gateway.objects.values_list("name", flat=True)) == {"Work", "PLAY"}


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("act", ["add", "edit"])
def test_an_alias_that_somebody_else_takes_meanwhile_is_a_conflict(act: str, ana: User, work: Gateway) -> None:
    rest, wiki, other = Rest.of(ana), make.server(slug="wiki"), make.server(slug="other")

    with just_before(lambda: make.assignment(Gateway.objects.get(), other, alias="w")):
        body = {"alias": "w"}
        added = {"server_id": str(wiki.pk), **body}
        refused = rest.post("/gateways/work/servers", added) if act == "add" else rest.patch(DOCS, body)

    assert problem(refused) == (409, "already_exists")
    assert set(work.assignments.live().values_list("alias", "server__slug")) == {("docs", "docs"), ("w", "other")}


@pytest.mark.full
def test_a_gateway_out_of_reach_does_not_exist(ann: User, work: Gateway) -> None:
    team = Team.objects.create(name="Support")
    closed = make.gateway(slug="closed", reach="teams")
    closed.teams.add(team)

    assert [gateway["slug"] for gateway in results(Rest.of(ann).get("/gateways"))] == ["work"]
    for path in ("/gateways/closed", "/gateways/closed/servers", "/gateways/closed/tools"):
        assert problem(Rest.of(ann).get(path)) == (404, "not_found")
    ann.teams.add(team)
    assert Rest.of(ann).get("/gateways/closed").json()["teams"] == [{"id": str(team.pk), "name": "Support"}]


@pytest.mark.full
def test_a_gateway_is_made(ana: User) -> None:
    team = Team.objects.create(name="Support")
    rest = Rest.of(ana)

    made = rest.post("/gateways", {"name": "Help desk", "reach": "teams", "team_ids": [str(team.pk)]})

    assert (made.status_code, made.json()["slug"], made.json()["teams"][0]["name"]) == (201, "help-desk", "Support")
    assert problem(rest.post("/gateways", {"name": "HELP desk"})) == (409, "already_exists")
    assert problem(rest.post("/gateways", {"name": "Other", "slug": "help-desk"})) == (409, "already_exists")
    assert set(errors(rest.post("/gateways", {"name": "Other", "slug": "No Slug"}))) == {"slug"}
    assert set(errors(rest.post("/gateways", {"name": "Other", "reach": "teams"}))) == {"team_ids"}
    assert set(errors(rest.post("/gateways", {"name": "Other", "enabled": False}))) == {"enabled"}


@pytest.mark.full
def test_a_gateway_is_edited_but_for_its_slug(ana: User, work: Gateway) -> None:
    team = Team.objects.create(name="Support")
    rest = Rest.of(ana)

    changed = rest.patch("/gateways/work", {"description": "For all", "calls_per_minute": 600}).json()

    assert (changed["name"], changed["description"], changed["calls_per_minute"]) == ("Work", "For all", 600)
    assert rest.patch("/gateways/work", {"reach": "teams", "team_ids": [str(team.pk)]}).json()["reach"] == "teams"
    assert rest.patch("/gateways/work", {"reach": "everyone"}).json()["teams"] == []
    assert set(errors(rest.patch("/gateways/work", {"slug": "play"}))) == {"slug"}
    assert Event.objects.filter(action="gateway.updated", via="api").count() == 3


@pytest.mark.full
def test_a_gateway_is_switched_and_archived(ana: User, work: Gateway) -> None:
    link = make.connection(make.agent(by=ana), work, ana)
    rest = Rest.of(ana)

    assert problem(rest.post("/gateways/work/archive")) == (409, "still_enabled")
    assert rest.post("/gateways/work/disable").json()["enabled"] is False
    assert rest.post("/gateways/work/archive").status_code == 204

    link.refresh_from_db()
    assert link.revoke_reason == "archived"
    assert problem(rest.get("/gateways/work")) == (404, "not_found")


# --- Servers behind a gateway ---------------------------------------------------------------------------------------


def test_a_server_is_assigned_under_its_slug(ana: User, work: Gateway) -> None:
    wiki = make.server(slug="wiki", name="Wiki")

    made = Rest.of(ana).post("/gateways/work/servers", {"server_id": str(wiki.pk)})

    assert made.status_code == 201
    told = made.json()
    assert (told["alias"], told["identity_scheme"], told["tool_policy"]) == ("wiki", "none", "allow_all")
    assert told["server"] == {"id": str(wiki.pk), "name": "Wiki", "slug": "wiki"}


def test_an_alias_is_taken_once(ana: User, work: Gateway) -> None:
    body = {"server_id": str(make.server().pk), "alias": "docs"}

    assert problem(Rest.of(ana).post("/gateways/work/servers", body)) == (409, "already_exists")


@pytest.mark.full
def test_a_shared_identity_must_fit(ana: User, work: Gateway) -> None:
    crm = make.server(slug="crm", auth_type=AuthType.BEARER)
    other = make.identity(make.server(auth_type=AuthType.BEARER))
    fits = make.identity(crm, label="service account")
    fits.gateways.add(work)
    body: dict[str, Any] = {"server_id": str(crm.pk), "identity_scheme": "shared"}
    rest = Rest.of(ana)

    assert set(errors(rest.post("/gateways/work/servers", body))) == {"shared_identity_id"}
    body["shared_identity_id"] = str(other.pk)
    assert set(errors(rest.post("/gateways/work/servers", body))) == {"shared_identity_id"}
    body["shared_identity_id"] = str(fits.pk)
    assert rest.post("/gateways/work/servers", body).json()["shared_identity"]["name"] == "service account"


def test_an_assignment_is_edited_switched_and_removed(ana: User, work: Gateway, search: Feature) -> None:
    rest = Rest.of(ana)

    assert rest.patch("/gateways/work/servers/docs", {"tool_policy": "selected"}).json()["tool_policy"] == "selected"
    assert rest.patch("/gateways/work/servers/docs", {"alias": "manual"}).json()["alias"] == "manual"
    search.refresh_from_db()
    assert search.exposed_name == "manual__search"
    assert rest.post("/gateways/work/servers/manual/disable").json()["enabled"] is False
    assert rest.post("/gateways/work/servers/manual/enable").json()["enabled"] is True
    assert set(errors(rest.patch("/gateways/work/servers/manual", {"server_id": "x"}))) == {"server_id"}
    assert rest.delete("/gateways/work/servers/manual").status_code == 204
    assert results(rest.get("/gateways/work/servers")) == []


@pytest.mark.full
def test_a_server_without_alias_is_addressed_by_id(ana: User, work: Gateway) -> None:
    rest = Rest.of(ana)
    bare = rest.patch("/gateways/work/servers/docs", {"alias": ""}).json()

    assert bare["alias"] == ""
    assert rest.get(f"/gateways/work/servers/{bare['id']}").json()["id"] == bare["id"]


def test_an_assignment_of_another_gateway_is_not_found(ana: User, work: Gateway) -> None:
    foreign = make.gateway(make.server()).assignments.get()

    assert Rest.of(ana).get(f"/gateways/work/servers/{foreign.pk}").status_code == 404


# --- Tools ----------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_tools_are_listed_and_switched(ana: User, work: Gateway, search: Feature) -> None:
    rest = Rest.of(ana)

    (told,) = results(rest.get("/gateways/work/tools"))
    assert (told["exposed_name"], told["server"]["slug"], told["alias"]) == ("docs__search", "docs", "docs")
    off = rest.patch(f"/gateways/work/tools/{search.pk}", {"enabled": False})
    assert off.json()["enabled"] is False
    assert results(rest.get("/gateways/work/tools", enabled="true")) == []
    assert len(results(rest.get("/gateways/work/tools", q="SEARCH", server="docs"))) == 1
    assert set(errors(rest.patch(f"/gateways/work/tools/{search.pk}", {"name": "x"}))) == {"name"}
    assert Event.objects.get(action="feature.disabled").via == "api"


@pytest.mark.full
def test_refreshing_asks_every_server(ana: User, docs: Server, work: Gateway, run: Run, settings: LazySettings) -> None:
    from ipaddress import ip_network

    settings.PRIVATE_UPSTREAMS = [ip_network("127.0.0.0/8")]
    Server.objects.filter(pk=docs.pk).update(url=run(upstreams.docs()).url)
    gone = make.server(slug="gone", url="http://127.0.0.1:9/mcp")
    make.assignment(work, gone)

    answer = Rest.of(ana).post("/gateways/work/tools/refresh").json()

    by_alias = {one["alias"]: one for one in answer["servers"]}
    assert (by_alias["docs"]["ok"], by_alias["gone"]["ok"]) == (True, False)
    assert answer["tools_count"] == by_alias["docs"]["tools"] == Feature.objects.tools().count()
    assert by_alias["gone"]["detail"]


@pytest.mark.full
def test_reading_takes_no_capability_and_changing_does(ann: User, work: Gateway, search: Feature) -> None:
    rest = Rest.of(ann)

    assert rest.get("/gateways/work/tools").status_code == 200
    answers = [
        rest.post("/gateways", {"name": "x"}),
        rest.patch("/gateways/work", {"name": "x"}),
        rest.post("/gateways/work/servers", {}),
        rest.delete("/gateways/work/servers/docs"),
        rest.patch(f"/gateways/work/tools/{search.pk}", {"enabled": False}),
        rest.post("/gateways/work/tools/refresh"),
    ]

    assert {(problem(answer), answer.json()["capability"]) for answer in answers} == {
        ((403, "capability_required"), "gateways:manage")
    }
    assert Assignment.objects.live().count() == 1


def test_gateway_managers_see_all_gateways() -> None:
    closed = make.gateway(reach="teams")

    assert Rest.of(make.user(Capability.GATEWAYS_MANAGE)).get(f"/gateways/{closed.slug}").status_code == 200
