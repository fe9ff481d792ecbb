"""/api/gateways with their servers and tools."""

from collections.abc import Callable
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


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_a_name_or_an_alias_that_somebody_else_takes_meanwhile_is_a_conflict(ana: User, work: Gateway) -> None:
    rest, wiki, other = Rest.of(ana), make.server(slug="wiki"), make.server(slug="other")
    added = {"server_id": str(wiki.pk), "alias": "w"}
    of_gateways: tuple[Callable[[], Any], ...] = (
        lambda: rest.post("/gateways", {"name": "Play"}),
        lambda: rest.patch("/gateways/work", {"name": "Play"}),
    )
    for send in of_gateways:
        with just_before(lambda: make.gateway(slug="of-others", name="PLAY")):
            refused = send()
        assert problem(refused) == (409, "already_exists")
        assert set(Gateway.objects.values_list("name", flat=True)) == {"Work", "PLAY"}
        Gateway.objects.filter(name="PLAY").delete()
    of_servers: tuple[Callable[[], Any], ...] = (
        lambda: rest.post("/gateways/work/servers", added),
        lambda: rest.patch(DOCS, {"alias": "w"}),
    )
    for send in of_servers:
        with just_before(lambda: make.assignment(Gateway.objects.get(), other, alias="w")):
            refused = send()
        assert problem(refused) == (409, "already_exists")
        assert set(work.assignments.live().values_list("alias", "server__slug")) == {("docs", "docs"), ("w", "other")}
        Assignment.objects.filter(alias="w").delete()


@pytest.mark.full
def test_a_gateway_out_of_reach_does_not_exist(ann: User, work: Gateway) -> None:
    team = Team.objects.create(name="Support")
    closed = make.gateway(slug="closed", reach="teams")
    closed.teams.add(team)

    assert [gateway["slug"] for gateway in results(Rest.of(ann).get("/gateways"))] == ["work"]
    for path in ("/gateways/closed", "/gateways/closed/servers", "/gateways/closed/tools"):
        assert problem(Rest.of(ann).get(path)) == (404, "not_found")
    assert Rest.of(make.user(Capability.GATEWAYS_MANAGE)).get("/gateways/closed").status_code == 200
    ann.teams.add(team)
    assert Rest.of(ann).get("/gateways/closed").json()["teams"] == [{"id": str(team.pk), "name": "Support"}]


@pytest.mark.full
def test_a_gateway_is_made(ana: User) -> None:
    team = Team.objects.create(name="Support")
    rest = Rest.of(ana)
    asked = {"name": "Help desk", "reach": "teams", "team_ids": [str(team.pk)], "new_definitions": "wait"}
    chosen = {"hosts_allowed": "listed", "tools_given": "granted", "takes_requests": True, "approvers": [ana.email]}
    limits = {"calls_per_minute": 60, "request_days": 3}

    made = rest.post("/gateways", asked | chosen | limits)

    told = Event.objects.get(action="gateway.created").changes
    assert {name: told[name] for name in chosen | limits} == {n: [None, v] for n, v in (chosen | limits).items()}
    assert not {"enabled", "description", "most_request_days"} & told.keys()  # These are as usual.
    assert (made.status_code, made.json()["slug"], made.json()["teams"][0]["name"]) == (201, "help-desk", "Support")
    assert (made.json()["new_definitions"], made.json()["changed_definitions"]) == ("wait", "hold")
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
    make.gateway(slug="play", name="Play")
    assert problem(rest.patch("/gateways/work", {"name": "PLAY"})) == (409, "already_exists")
    assert rest.patch("/gateways/work", {"name": "WORK"}).json()["name"] == "WORK", "it may change its own case"
    changed = rest.patch("/gateways/work", {"changed_definitions": "warn"}).json()
    assert (changed["new_definitions"], changed["changed_definitions"]) == ("approve", "warn")


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


def test_a_server_is_assigned_under_its_slug_edited_switched_and_removed(
    ana: User, work: Gateway, search: Feature
) -> None:
    rest, wiki = Rest.of(ana), make.server(slug="wiki", name="Wiki")
    foreign = make.gateway(make.server()).assignments.get()
    docs = rest.patch(DOCS, {"alias": ""}).json()
    assert rest.get(f"/gateways/work/servers/{docs['id']}").json()["alias"] == "", "addressed by its id"
    assert rest.get(f"/gateways/work/servers/{foreign.pk}").status_code == 404
    rest.patch(f"/gateways/work/servers/{docs['id']}", {"alias": "docs"})

    made = rest.post("/gateways/work/servers", {"server_id": str(wiki.pk)})

    assert made.status_code == 201
    told = made.json()
    assert (told["alias"], told["identity_scheme"], told["tool_policy"]) == ("wiki", "none", "allow_all")
    assert told["server"] == {"id": str(wiki.pk), "name": "Wiki", "slug": "wiki"}
    taken = {"server_id": str(make.server().pk), "alias": "docs"}
    assert problem(rest.post("/gateways/work/servers", taken)) == (409, "already_exists")
    assert rest.patch(DOCS, {"tool_policy": "selected"}).json()["tool_policy"] == "selected"
    assert rest.patch(DOCS, {"alias": "manual"}).json()["alias"] == "manual"
    search.refresh_from_db()
    assert search.exposed_name == "manual__search"
    assert rest.post("/gateways/work/servers/manual/disable").json()["enabled"] is False
    assert rest.post("/gateways/work/servers/manual/enable").json()["enabled"] is True
    assert set(errors(rest.patch("/gateways/work/servers/manual", {"server_id": "x"}))) == {"server_id"}
    for alias in ("manual", "wiki"):
        assert rest.delete(f"/gateways/work/servers/{alias}").status_code == 204
    assert results(rest.get("/gateways/work/servers")) == []


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
