"""Gateways: the list, the page of one gateway, its reach and its switch."""

import re
from typing import Any

import pytest
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from accounts.models import Team, User
from auditlog.models import Event
from capabilities import Capability
from capabilities.catalogue import including
from gateways.models import Feature, Gateway, Reach
from tests import make
from tests.conftest import SignIn, wire_size
from tests.meanwhile import just_before

pytestmark = pytest.mark.django_db

HTMX = {"HX-Request": "true"}
GOVERNS = sorted(including([Capability.GATEWAYS_READ]))


def text(response: Any) -> str:
    return str(response.content.decode())


def filled(**values: Any) -> dict[str, Any]:
    """Return a valid form of a gateway."""
    return {"name": "Engineering", "reach": "everyone"} | values


def row_of(page: str, gateway: Gateway) -> str:
    return page.split(f'id="gateway-{gateway.slug}"')[1].split("</tr>", maxsplit=1)[0]


# --- Who may do what ----------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize(
    ("method", "path", "capability"),
    [
        ("get", "/gateways/add/", Capability.GATEWAYS_MANAGE),
        ("post", "/gateways/add/", Capability.GATEWAYS_MANAGE),
        ("get", "/gateways/slug/", Capability.GATEWAYS_MANAGE),
        ("get", "/gateways/{slug}/rename/", Capability.GATEWAYS_MANAGE),
        ("post", "/gateways/{slug}/rename/", Capability.GATEWAYS_MANAGE),
        ("get", "/gateways/{slug}/reach/", Capability.GATEWAYS_MANAGE),
        ("post", "/gateways/{slug}/reach/", Capability.GATEWAYS_MANAGE),
        ("get", "/gateways/{slug}/limit/", Capability.GATEWAYS_MANAGE),
        ("post", "/gateways/{slug}/limit/", Capability.GATEWAYS_MANAGE),
        ("get", "/gateways/{slug}/assign/", Capability.GATEWAYS_MANAGE),
        ("post", "/gateways/{slug}/assign/", Capability.GATEWAYS_MANAGE),
        ("post", "/gateways/{slug}/tools/refresh/", Capability.GATEWAYS_MANAGE),
        ("get", "/assignments/{assignment}/edit/", Capability.GATEWAYS_MANAGE),
        ("post", "/assignments/{assignment}/edit/", Capability.GATEWAYS_MANAGE),
        ("get", "/assignments/{assignment}/remove/", Capability.GATEWAYS_MANAGE),
        ("post", "/assignments/{assignment}/remove/", Capability.GATEWAYS_MANAGE),
        ("post", "/assignments/{assignment}/policy/", Capability.GATEWAYS_MANAGE),
        ("post", "/tools/{tool}/disable/", Capability.GATEWAYS_MANAGE),
        ("post", "/tools/{tool}/enable/", Capability.GATEWAYS_MANAGE),
        ("get", "/gateways/{slug}/disable/", Capability.GATEWAYS_TOGGLE),
        ("post", "/gateways/{slug}/disable/", Capability.GATEWAYS_TOGGLE),
        ("post", "/gateways/{slug}/enable/", Capability.GATEWAYS_TOGGLE),
        ("get", "/assignments/{assignment}/disable/", Capability.GATEWAYS_TOGGLE),
        ("post", "/assignments/{assignment}/disable/", Capability.GATEWAYS_TOGGLE),
        ("post", "/assignments/{assignment}/enable/", Capability.GATEWAYS_TOGGLE),
    ],
)
def test_each_act_needs_its_capability_alone(method: str, path: str, capability: Capability, sign_in: SignIn) -> None:
    gateway = make.gateway()
    assignment = make.assignment(gateway, make.server(enabled=False))
    Feature.objects.learn(assignment, [{"name": "echo"}])
    path = path.format(slug=gateway.slug, assignment=assignment.pk, tool=Feature.objects.get().pk)

    assert getattr(Client(), method)(path).status_code == 302
    assert getattr(sign_in(make.user(*(set(Capability) - {capability}))), method)(path).status_code == 403
    holder = getattr(sign_in(make.user(capability)), method)(path, {"policy": "allow_all"})
    assert holder.status_code in (200, 302, 422)


@pytest.mark.full
@pytest.mark.parametrize("path", ["", "connections/", "servers/", "tools/"])
def test_a_page_opens_to_who_is_reached_and_to_who_governs_gateways(path: str, sign_in: SignIn) -> None:
    team = Team.objects.create(name="Platform")
    gateway = make.gateway(make.server(), reach=Reach.TEAMS, teams=[team])
    member, stranger = make.user(), make.user(*(set(Capability) - set(GOVERNS)))
    member.teams.add(team)

    assert Client().get(f"/gateways/{gateway.slug}/{path}").status_code == 302
    assert sign_in(stranger).get(f"/gateways/{gateway.slug}/{path}").status_code == 404
    assert sign_in(member).get(f"/gateways/{gateway.slug}/{path}").status_code == 200
    for capability in GOVERNS:
        assert sign_in(make.user(capability)).get(f"/gateways/{gateway.slug}/{path}").status_code == 200


@pytest.mark.full
def test_the_list_holds_only_what_is_within_reach(ana: User, max: User, sign_in: SignIn) -> None:
    team = Team.objects.create(name="Platform")
    make.gateway(name="Open")
    make.gateway(name="Closed", reach=Reach.TEAMS, teams=[team])

    assert {g.name for g in sign_in(max).get("/gateways/").context["page"]} == {"Open"}
    assert {g.name for g in sign_in(ana).get("/gateways/").context["page"]} == {"Open", "Closed"}


@pytest.mark.full
def test_members_see_pages_without_controls(max: User, sign_in: SignIn) -> None:
    gateway = make.gateway(make.server())
    Feature.objects.learn(gateway.assignments.get(), [{"name": "echo"}])
    client = sign_in(max)

    paths = ("/gateways/", *(f"/gateways/{gateway.slug}/{tab}" for tab in ("", "servers/", "tools/")))
    pages = "".join(text(client.get(path)) for path in paths)

    for words in (
        "Add a gateway",
        "Assign a server",
        'role="switch"',
        "Rename",
        "/tools/refresh/",
        "/policy/",
        "/servers/s",
    ):
        assert words not in pages
    assert "echo" in pages
    assert "How to Connect" in pages


# --- The list -----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_list_counts_servers_tools_and_live_connections(ana: User, sign_in: SignIn) -> None:
    gateway = make.gateway(make.server(), make.server(), name="Engineering")
    gateway.assignments.last().remove(by=ana)  # type: ignore[union-attr]
    Feature.objects.learn(gateway.assignments.live().get(), [{"name": "echo"}, {"name": "add"}, {"name": "gone"}])
    Feature.objects.learn(gateway.assignments.live().get(), [{"name": "echo"}, {"name": "add"}])
    bot = make.agent(by=ana)
    make.connection(bot, gateway, ana)
    make.connection(bot, gateway, make.user())
    make.connection(bot, gateway, make.user()).revoke(by=ana)

    page = text(sign_in(ana).get("/gateways/"))

    row = row_of(page, gateway)
    assert [cell.split("<")[0] for cell in row.split('class="number">')[1:]] == ["1", "2", "2"]
    address = row.split(f'id="url-{gateway.slug}">')[1].split("</code>")[0]
    assert re.sub("<[^>]*>", "", address) == gateway.url, "whole, to copy it"
    assert address.endswith(f">/mcp/{gateway.slug}</span>"), "its end, which tells it from others, in a part of its own"
    assert f'data-copy="#url-{gateway.slug}"' in row
    assert "Everyone" in row


@pytest.mark.full
def test_connections_are_counted_as_far_as_one_may_see_them(max: User, ana: User, sign_in: SignIn) -> None:
    gateway = make.gateway()
    bot = make.agent(by=ana)
    for user in (ana, max, make.user()):
        make.connection(bot, gateway, user)

    row = row_of(text(sign_in(max).get("/gateways/")), gateway)

    assert 'class="number">1 of yours<' in row


@pytest.mark.full
def test_an_empty_list_says_what_to_do_next(ana: User, max: User, sign_in: SignIn) -> None:
    assert "No gateways yet. Add a gateway" in text(sign_in(ana).get("/gateways/"))
    assert "No gateway is open to you yet." in text(sign_in(max).get("/gateways/"))


@pytest.mark.full
def test_a_list_costs_the_same_for_one_row_and_for_many(
    ana: User, sign_in: SignIn, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    team = Team.objects.create(name="Platform")
    for _ in range(12):
        make.gateway(make.server(), reach=Reach.TEAMS, teams=[team])
    client = sign_in(ana)

    with django_assert_num_queries(7):  # session, user, permissions, count, rows, teams, rail
        client.get("/gateways/")


@pytest.mark.full
def test_a_full_list_stays_light(ana: User, sign_in: SignIn) -> None:
    for number in range(50):
        make.gateway(name=f"Team gateway {number}", slug=f"team-gateway-{number}")

    assert wire_size(sign_in(ana).get("/gateways/")) <= 30 * 1024


@pytest.mark.full
def test_names_and_descriptions_are_escaped(ana: User, sign_in: SignIn) -> None:
    hostile = "<script>alert(1)</script>"
    gateway = make.gateway(make.server(name=hostile), name=hostile, description=hostile)
    tool = {"name": "x", "title": hostile, "description": hostile, "annotations": {"title": hostile}}
    Feature.objects.learn(gateway.assignments.get(), [tool])
    client = sign_in(ana)

    for path in ("/gateways/", *(f"/gateways/{gateway.slug}/{tab}" for tab in ("", "servers/", "tools/"))):
        page = text(client.get(path))
        assert hostile not in page
        assert "&lt;script&gt;" in page


# --- Adding and editing -------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("path", ["/gateways/add/", "/gateways/work/rename/"])
def test_a_name_that_somebody_else_takes_meanwhile_is_said_and_nothing_is_stored(
    path: str, ana: User, sign_in: SignIn
) -> None:
    make.gateway(slug="work", name="Work")
    client = sign_in(ana)

    with just_before(lambda: make.gateway(slug="of-others", name="PLAY")):
        refused = client.post(path, filled(name="Play", description="For us"))

    assert refused.status_code == 422
    assert "taken" in str(refused.context["form"].errors["name"])
    assert ">For us<" in text(refused).replace("\n", "")
    assert set(Gateway.objects.values_list("name", flat=True)) == {"Work", "PLAY"}


def test_a_gateway_is_added_and_its_servers_come_next(ana: User, sign_in: SignIn) -> None:
    response = sign_in(ana).post("/gateways/add/", filled(description="For us"))

    gateway = Gateway.objects.get()
    assert response["Location"] == "/gateways/engineering/servers/"
    assert (gateway.slug, gateway.description, gateway.created_by) == ("engineering", "For us", ana)
    assert Event.objects.get(action="gateway.created").actor_id == ana.pk


@pytest.mark.full
@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ({"name": ""}, "name", "This field is required."),
        ({"name": "x" * 81}, "name", "at most 80 characters"),
        ({"name": "TAKEN"}, "name", "A gateway with this name already exists."),
        ({"name": "日本"}, "slug", "No slug can be made from this name."),
        ({"slug": "taken"}, "slug", "This slug was used before."),
        ({"slug": "add"}, "slug", "is reserved for this site"),
        ({"slug": "Über"}, "slug", "Use lower-case letters"),
        ({"slug": "x" * 41}, "slug", "at most 40 characters"),
        ({"description": "x" * 1001}, "description", "at most 1000 characters"),
        ({"reach": "nobody"}, "reach", "Select a valid choice"),
        ({"reach": "teams"}, "teams", "Choose at least one team."),
        ({"reach": "teams", "teams": "nonsense"}, "teams", "not a valid value"),
    ],
)
def test_every_bad_input_is_explained_in_its_place(
    values: dict[str, str], field: str, words: str, ana: User, sign_in: SignIn
) -> None:
    make.gateway(name="Taken", slug="taken")
    Team.objects.create(name="Platform")

    response = sign_in(ana).post("/gateways/add/", filled(**values))

    assert response.status_code == 422
    assert words in text(response).split(f'id="id_{field}_error"')[1].split("</span>")[0]
    assert Gateway.objects.count() == 1


@pytest.mark.full
def test_the_url_is_shown_while_the_name_is_typed(ana: User, sign_in: SignIn) -> None:
    make.gateway(slug="support")
    client = sign_in(ana)

    assert "/mcp/support-2<" in text(client.get("/gateways/slug/?name=Support", headers=HTMX))
    assert "/mcp/mine<" in text(client.get("/gateways/slug/?name=Support&slug=mine", headers=HTMX))
    assert "Last part of the Gateway URL" in text(client.get("/gateways/slug/?name="))


@pytest.mark.full
def test_a_gateway_is_renamed_and_keeps_its_url(ana: User, sign_in: SignIn) -> None:
    gateway = make.gateway(name="Old", slug="old")
    make.gateway(name="Other")
    client = sign_in(ana)

    taken = client.post("/gateways/old/rename/", {"name": "other"})
    client.post("/gateways/old/rename/", {"name": "New", "description": "Better", "slug": "new"})

    assert "A gateway with this name already exists." in text(taken)
    gateway.refresh_from_db()
    assert (gateway.name, gateway.slug, gateway.description) == ("New", "old", "Better")


@pytest.mark.full
def test_reach_is_changed_to_teams_and_back(ana: User, max: User, sign_in: SignIn) -> None:
    gateway, team = make.gateway(), Team.objects.create(name="Platform")
    client = sign_in(ana)

    client.post(f"/gateways/{gateway.slug}/reach/", {"reach": "teams", "teams": str(team.pk)})
    assert not gateway.is_reachable_by(max)
    assert Event.objects.get(action="gateway.updated").changes == {
        "reach": ["everyone", "teams"],
        "teams": [[], ["Platform"]],
    }

    client.post(f"/gateways/{gateway.slug}/reach/", {"reach": "everyone", "teams": str(team.pk)})
    assert gateway.is_reachable_by(max)
    assert not gateway.teams.exists()


@pytest.mark.full
def test_a_limit_is_set_shown_and_taken_off(ana: User, sign_in: SignIn) -> None:
    gateway = make.gateway()
    client = sign_in(ana)
    page = f"/gateways/{gateway.slug}/"
    assert "<b>not limited</b>" in text(client.get(page))

    client.post(f"{page}limit/", {"calls_per_minute": "600"})
    assert '"gateway.limit">600</b> calls a minute' in text(client.get(page))
    assert Event.objects.get(action="gateway.updated").changes == {"calls_per_minute": [None, 600]}
    assert "greater than or equal to 1" in text(client.post(f"{page}limit/", {"calls_per_minute": "0"}))

    client.post(f"{page}limit/", {"calls_per_minute": ""})
    assert "<b>not limited</b>" in text(client.get(page))


def test_without_a_team_everyone_is_the_only_reach(ana: User, sign_in: SignIn) -> None:
    response = sign_in(ana).post("/gateways/add/", filled(reach="teams"))

    assert response.status_code == 422
    assert not Gateway.objects.exists()


# --- The switch ---------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "Disable this gateway? It has no connections. Nothing is deleted."),
        (1, "Disable this gateway? Its 1 connection stops on its next request. Nothing is deleted."),
        (3, "Disable this gateway? All 3 connections stop on their next request. Nothing is deleted."),
    ],
)
def test_the_dialog_counts_the_connections_that_stop(count: int, words: str, ana: User, sign_in: SignIn) -> None:
    gateway, bot = make.gateway(), make.agent(by=ana)
    for _ in range(count):
        make.connection(bot, gateway, make.user())
    make.connection(bot, gateway, ana).revoke(by=ana)

    dialog = text(sign_in(ana).get(f"/gateways/{gateway.slug}/disable/", headers=HTMX))

    assert words in dialog
    gateway.refresh_from_db()
    assert gateway.enabled


@pytest.mark.full
def test_people_who_may_not_see_connections_get_no_number(ana: User, sign_in: SignIn) -> None:
    gateway = make.gateway()
    make.connection(make.agent(by=ana), gateway, ana)

    dialog = text(sign_in(make.user(Capability.GATEWAYS_TOGGLE)).get(f"/gateways/{gateway.slug}/disable/"))

    assert "All its connections stop on their next request." in dialog


@pytest.mark.full
def test_a_switch_answers_with_the_row_or_the_head_it_stands_in(ana: User, sign_in: SignIn) -> None:
    gateway = make.gateway(slug="work")
    client = sign_in(ana)

    row = text(client.post("/gateways/work/disable/", headers=HTMX | {"HX-Target": "gateway-work"}))
    gateway.refresh_from_db()
    assert not gateway.enabled
    head = text(client.post("/gateways/work/enable/", headers=HTMX | {"HX-Target": "gateway-head"}))

    assert row.lstrip().startswith('<tr id="gateway-work" data-state="disabled" class="changed">')
    assert head.lstrip().startswith('<header class="page-header" id="gateway-head">')
    assert client.post("/gateways/work/disable/")["Location"] == "/gateways/work/"


@pytest.mark.full
def test_an_id_of_the_log_leads_to_the_page_of_a_gateway_within_reach(ana: User, max: User, sign_in: SignIn) -> None:
    gateway = make.gateway(slug="work", reach=Reach.TEAMS)

    assert sign_in(ana).get(f"/gateways/find/{gateway.pk}/")["Location"] == "/gateways/work/"
    assert sign_in(max).get(f"/gateways/find/{gateway.pk}/").status_code == 404
