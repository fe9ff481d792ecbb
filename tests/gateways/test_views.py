"""Gateways: the list, the page of one gateway, its reach and its switch."""

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
def test_a_page_opens_to_who_is_reached_and_to_who_governs_gateways(sign_in: SignIn) -> None:
    team = Team.objects.create(name="Platform")
    gateway = make.gateway(make.server(), reach=Reach.TEAMS, teams=[team])
    member, stranger = make.user(), make.user(*(set(Capability) - set(GOVERNS)))
    member.teams.add(team)
    people = {stranger: 404, member: 200} | {make.user(capability): 200 for capability in GOVERNS}

    for tab in ("", "connections/", "servers/", "tools/"):
        path = f"/gateways/{gateway.slug}/{tab}"
        assert Client().get(path).status_code == 302
        assert {person: sign_in(person).get(path).status_code for person in people} == people, tab
    assert sign_in(member).get(f"/gateways/find/{gateway.pk}/")["Location"] == f"/gateways/{gateway.slug}/"
    assert sign_in(stranger).get(f"/gateways/find/{gateway.pk}/").status_code == 404


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
    bot = make.agent(by=max)
    for user in (max, make.user()):
        make.connection(bot, gateway, user)
    assert 'class="number">1 of yours<' in row_of(text(client.get("/gateways/")), gateway)


# --- The list -----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_full_list_takes_few_statements_and_stays_light(
    ana: User, sign_in: SignIn, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    team = Team.objects.create(name="Platform")
    for number in range(50):
        make.gateway(name=f"Team gateway {number}", slug=f"team-gateway-{number}", reach=Reach.TEAMS, teams=[team])
    client = sign_in(ana)

    with django_assert_num_queries(7):  # session, user, permissions, count, rows, teams, rail
        page = client.get("/gateways/")
    assert wire_size(page) <= 30 * 1024


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
def test_a_name_that_somebody_else_takes_meanwhile_is_said_and_nothing_is_stored(ana: User, sign_in: SignIn) -> None:
    make.gateway(slug="work", name="Work")
    client = sign_in(ana)

    for path in ("/gateways/add/", "/gateways/work/rename/"):
        with just_before(lambda: make.gateway(slug="of-others", name="PLAY")):
            refused = client.post(path, filled(name="Play", description="For us"))

        assert refused.status_code == 422
        assert "taken" in str(refused.context["form"].errors["name"])
        assert ">For us<" in text(refused).replace("\n", "")
        assert set(Gateway.objects.values_list("name", flat=True)) == {"Work", "PLAY"}
        Gateway.objects.filter(name="PLAY").delete()


def test_a_gateway_is_added_and_its_servers_come_next(ana: User, sign_in: SignIn) -> None:
    response = sign_in(ana).post("/gateways/add/", filled(description="For us"))

    gateway = Gateway.objects.get()
    assert response["Location"] == "/gateways/engineering/servers/"
    assert (gateway.slug, gateway.description, gateway.created_by) == ("engineering", "For us", ana)
    assert Event.objects.get(action="gateway.created").actor_id == ana.pk


BAD = (
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
)


@pytest.mark.full
def test_every_bad_input_is_explained_in_its_place(ana: User, sign_in: SignIn, subtests: pytest.Subtests) -> None:
    make.gateway(name="Taken", slug="taken")
    Team.objects.create(name="Platform")
    client = sign_in(ana)

    for values, field, words in BAD:
        with subtests.test(words):
            response = client.post("/gateways/add/", filled(**values))
            assert response.status_code == 422
            assert words in text(response).split(f'id="id_{field}_error"')[1].split("</span>")[0]
            assert Gateway.objects.count() == 1


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


# --- The switch ---------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_dialog_counts_the_connections_that_stop(ana: User, sign_in: SignIn) -> None:
    gateway, bot = make.gateway(), make.agent(by=ana)
    make.connection(bot, gateway, ana).revoke(by=ana)
    path = f"/gateways/{gateway.slug}/disable/"

    for words in (
        "Disable this gateway? It has no connections. Nothing is deleted.",
        "Disable this gateway? Its 1 connection stops on its next request. Nothing is deleted.",
        "Disable this gateway? All 2 connections stop on their next request. Nothing is deleted.",
    ):
        assert words in text(sign_in(ana).get(path, headers=HTMX))
        make.connection(bot, gateway, make.user())
    not_told = text(sign_in(make.user(Capability.GATEWAYS_TOGGLE)).get(path))
    assert "All its connections stop on their next request." in not_told, "without a number that one may not see"
    assert Gateway.objects.get().enabled


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
