"""The Servers tab of a gateway: assigning, editing, switching and removing a server."""

from collections.abc import Callable
from typing import Any

import pytest
from pytest_django import DjangoAssertNumQueries

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from gateways.models import Assignment, Feature, Gateway, IdentityScheme, ToolPolicy
from servers.models import AuthType, Health, Server
from tests import make
from tests.conftest import SignIn
from tests.meanwhile import just_before

pytestmark = pytest.mark.django_db

HTMX = {"HX-Request": "true"}


@pytest.fixture
def work() -> Gateway:
    return make.gateway(name="Work", slug="work")


@pytest.fixture
def docs() -> Server:
    return make.server(name="Docs", slug="docs")


@pytest.fixture
def github() -> Server:
    return make.server(name="GitHub", slug="github", auth_type=AuthType.BEARER)


def text(response: Any) -> str:
    return str(response.content.decode())


# --- The list -----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_tab_says_how_each_server_stands_behind_the_gateway(
    work: Gateway, docs: Server, github: Server, ana: User, sign_in: SignIn
) -> None:
    first = make.assignment(work, docs, alias="")
    identity = make.identity(github, label="service")
    second = make.assignment(work, github, identity_scheme=IdentityScheme.SHARED, shared_identity=identity)
    Feature.objects.learn(first, [{"name": name} for name in ("a", "b", "c")])
    first.features.get(name="b").disable(by=ana)
    Feature.objects.learn(second, [{"name": "x"}])
    second.edit(tool_policy=ToolPolicy.BLOCK_ALL, by=ana)

    page = text(sign_in(ana).get("/gateways/work/servers/"))

    rows = [page.split(f'id="assignment-{one.pk}"')[1].split("</tr>", maxsplit=1)[0] for one in (first, second)]
    assert [words in rows[0] for words in ("Docs", "No credential", "2/3", ">None<")] == [True] * 4
    assert [words in rows[1] for words in ("GitHub", "Shared identity", "service", "0/1", ">github<")] == [True] * 5


@pytest.mark.full
def test_an_empty_tab_says_what_to_do_next(work: Gateway, ana: User, sign_in: SignIn) -> None:
    assert "This gateway exposes nothing yet. Assign a server." in text(sign_in(ana).get("/gateways/work/servers/"))


@pytest.mark.full
def test_a_server_that_is_down_is_named_above_the_list(work: Gateway, ana: User, sign_in: SignIn) -> None:
    make.assignment(work, make.server(name="Jira", health=Health.DOWN, health_error="did not answer within 5 s"))
    make.assignment(work, make.server(name="Off", health=Health.DOWN, health_error="?", enabled=False))

    page = text(sign_in(ana).get("/gateways/work/servers/"))

    assert "Jira is down</b><small>It did not answer within 5 s" in page
    assert "Its tools stay listed; calls to them fail until it answers." in page
    assert "Off is down" not in page
    assert "server disabled" in page


@pytest.mark.full
def test_the_tab_costs_the_same_for_one_row_and_for_many(
    work: Gateway, ana: User, sign_in: SignIn, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for _ in range(12):
        Feature.objects.learn(make.assignment(work, make.server()), [{"name": "echo"}])
    client = sign_in(ana)

    with django_assert_num_queries(6):  # session, user, permissions, gateway, rows, rail
        client.get("/gateways/work/servers/")


# --- Assigning ----------------------------------------------------------------------------------------------------


def test_the_dialog_offers_the_three_schemes_in_their_own_words(
    work: Gateway, docs: Server, ana: User, sign_in: SignIn
) -> None:
    dialog = text(sign_in(ana).get("/gateways/work/assign/", headers=HTMX))

    for words in (
        "Per-user identity (bring your own identity)",
        "Shared identity (service account)",
        "No credential",
        "Saving fetches the server's tools and adds them to Work.",
    ):
        assert words in dialog


@pytest.mark.full
def test_a_server_is_assigned_under_its_slug(work: Gateway, docs: Server, ana: User, sign_in: SignIn) -> None:
    response = sign_in(ana).post("/gateways/work/assign/", {"server": "docs", "identity_scheme": "none"})

    assert response["Location"] == "/gateways/work/servers/"
    assignment = Assignment.objects.get()
    assert (assignment.alias, assignment.identity_scheme, assignment.tool_policy) == ("docs", "none", "allow_all")
    assert Event.objects.get(action="assignment.created").actor_id == ana.pk


def test_a_server_is_assigned_without_an_alias(work: Gateway, docs: Server, ana: User, sign_in: SignIn) -> None:
    values = {"server": "docs", "identity_scheme": "none", "alias": "", "bare": "on"}

    sign_in(ana).post("/gateways/work/assign/", values)

    assert Assignment.objects.get().alias == ""


@pytest.mark.full
def test_a_shared_scheme_takes_its_identity_and_others_drop_it(
    work: Gateway, github: Server, ana: User, sign_in: SignIn
) -> None:
    identity = make.identity(github)
    identity.gateways.add(work)
    shared = str(identity.pk)
    client = sign_in(ana)

    for alias, scheme in (("one", "shared"), ("two", "per_user")):
        values = {"server": "github", "alias": alias, "identity_scheme": scheme, "shared_identity": shared}
        client.post("/gateways/work/assign/", values)

    assert str(Assignment.objects.get(alias="one").shared_identity_id) == shared
    assert Assignment.objects.get(alias="two").shared_identity is None


@pytest.mark.full
@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ({"server": "nowhere"}, "server", "Select a valid choice"),
        ({"server": "gone"}, "server", "Select a valid choice"),
        ({"alias": "Not An Alias"}, "alias", "Use lower-case letters"),
        ({"alias": "double__score"}, "alias", "Use lower-case letters"),
        ({"alias": "x" * 17}, "alias", "16 characters at most"),
        ({"alias": "taken"}, "alias", "Another server on Work has the alias “taken”."),
        ({"alias": "x", "bare": "on"}, "alias", "Leave this empty, or untick"),
        ({"identity_scheme": ""}, "identity_scheme", "This field is required."),
        ({"identity_scheme": "magic"}, "identity_scheme", "Select a valid choice"),
        ({"identity_scheme": "per_user"}, "identity_scheme", "Docs takes no credential"),
        ({"identity_scheme": "shared"}, "identity_scheme", "Docs takes no credential"),
        ({"server": "github", "identity_scheme": "none"}, "identity_scheme", "GitHub needs a credential."),
        ({"server": "github", "identity_scheme": "shared"}, "shared_identity", "Choose the credential everyone uses."),
        (
            {"server": "github", "identity_scheme": "shared", "shared_identity": "crm"},
            "shared_identity",
            "Select a valid choice",
        ),
    ],
)
def test_every_bad_input_is_explained_in_its_place(
    values: dict[str, str],
    field: str,
    words: str,
    work: Gateway,
    docs: Server,
    github: Server,
    ana: User,
    sign_in: SignIn,
) -> None:
    make.assignment(work, make.server(), alias="taken")
    gone = make.server(slug="gone")
    Server.objects.filter(pk=gone.pk).update(archived_at=gone.created_at)
    make.identity(github).gateways.add(work)
    foreign = make.identity(make.server(slug="crm", auth_type=AuthType.BEARER))
    sent = {"server": "docs", "alias": "", "identity_scheme": "none"} | values
    sent = {name: str(foreign.pk) if value == "crm" else value for name, value in sent.items()}

    response = sign_in(ana).post("/gateways/work/assign/", sent)

    assert response.status_code == 422
    assert Assignment.objects.count() == 1
    page = text(response)
    if field == "server":
        assert "Select a valid choice" in str(response.context["form"].errors)
    else:
        assert words in page.split(f'id="id_{field}_error"')[1].split("</span>", maxsplit=1)[0]


@pytest.mark.full
def test_a_person_s_identity_is_never_offered_nor_taken_as_shared(
    work: Gateway, github: Server, ana: User, sign_in: SignIn
) -> None:
    own = make.identity(github, ana, label="ana's own")
    client = sign_in(ana)

    dialog = text(client.get("/gateways/work/assign/?server=github"))
    response = client.post(
        "/gateways/work/assign/", {"server": "github", "identity_scheme": "shared", "shared_identity": str(own.pk)}
    )

    assert "ana&#x27;s own" not in dialog
    assert response.status_code == 422


@pytest.mark.full
def test_a_second_server_needs_an_alias(work: Gateway, docs: Server, ana: User, sign_in: SignIn) -> None:
    make.assignment(work, make.server(name="Other"), alias="other")
    values = {"server": "docs", "identity_scheme": "none", "bare": "on"}

    response = sign_in(ana).post("/gateways/work/assign/", values)

    assert response.status_code == 422
    assert "A gateway with several servers needs an alias for each, to keep tool names apart. Enter an alias." in text(
        response
    )
    assert work.assignments.live().count() == 1


def assigned_by_another(gateway: Gateway, alias: str) -> Callable[[], object]:
    """Return an action in which another person assigns a server under this alias."""
    other = make.server(slug="other")
    return lambda: make.assignment(Gateway.objects.get(pk=gateway.pk), other, alias=alias)


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("typed", "taken", "words"),
    [
        ("docs", "docs", "Another server on Work has taken this alias just now."),
        ("", "other", "needs an alias for each, to keep tool names apart. Enter an alias."),
    ],
    ids=["taken", "needed"],
)
@pytest.mark.parametrize("act", ["assign", "edit"])
def test_a_concurrent_assignment_is_reported_at_the_alias_and_nothing_changes(
    act: str, typed: str, taken: str, words: str, work: Gateway, docs: Server, ana: User, sign_in: SignIn
) -> None:
    before = [make.assignment(work, docs, alias="was")] if act == "edit" else []
    path = f"/assignments/{before[0].pk}/edit/" if before else "/gateways/work/assign/"
    client = sign_in(ana)

    with just_before(assigned_by_another(work, taken)):
        bare = {} if typed else {"bare": "on"}
        refused = client.post(path, {"server": "docs", "alias": typed, "identity_scheme": "none", **bare})

    assert refused.status_code == 422
    assert words in text(refused).split('id="id_alias_error"')[1].split("</span>")[0]
    assert {one.alias for one in work.assignments.live()} == {taken, *(one.alias for one in before)}


@pytest.mark.full
def test_another_server_brings_its_own_identities_into_the_open_dialog(
    work: Gateway, docs: Server, github: Server, ana: User, sign_in: SignIn
) -> None:
    make.identity(github, label="service")

    headers = HTMX | {"HX-Target": "scheme"}
    part = text(sign_in(ana).get("/gateways/work/assign/?server=github", headers=headers))

    assert part.lstrip().startswith('<div class="stack" id="scheme">')
    assert "service" in part
    assert 'value="per_user" id="id_identity_scheme_0" required checked' in part or "checked" in part


@pytest.mark.full
def test_without_any_server_the_dialog_says_so(work: Gateway, ana: User, sign_in: SignIn) -> None:
    page = text(sign_in(ana).get("/gateways/work/assign/"))

    assert "There is no server to assign yet." in page
    assert sign_in(ana).post("/gateways/work/assign/", {}).status_code == 422


# --- Editing, switching, removing ---------------------------------------------------------------------------------


def test_another_alias_renames_the_tools(work: Gateway, docs: Server, ana: User, sign_in: SignIn) -> None:
    assignment = make.assignment(work, docs)
    Feature.objects.learn(assignment, [{"name": "echo"}])

    response = sign_in(ana).post(f"/assignments/{assignment.pk}/edit/", {"alias": "papers", "identity_scheme": "none"})

    assert response["Location"] == "/gateways/work/servers/"
    assert assignment.features.get().exposed_name == "papers__echo"
    assert Event.objects.get(action="assignment.updated").changes == {"alias": ["docs", "papers"]}


@pytest.mark.full
def test_an_assignment_may_keep_its_own_alias(work: Gateway, docs: Server, ana: User, sign_in: SignIn) -> None:
    assignment = make.assignment(work, docs)

    response = sign_in(ana).post(f"/assignments/{assignment.pk}/edit/", {"alias": "docs", "identity_scheme": "none"})

    assert response.status_code == 302


@pytest.mark.full
def test_the_server_of_an_assignment_is_not_changed_by_editing(
    work: Gateway, docs: Server, github: Server, ana: User, sign_in: SignIn
) -> None:
    assignment = make.assignment(work, docs)

    values = {"server": "github", "alias": "docs", "identity_scheme": "none"}
    sign_in(ana).post(f"/assignments/{assignment.pk}/edit/", values)

    assignment.refresh_from_db()
    assert assignment.server == docs


def test_disabling_says_what_stops_and_swaps_its_row(work: Gateway, docs: Server, ana: User, sign_in: SignIn) -> None:
    assignment = make.assignment(work, docs)
    Feature.objects.learn(assignment, [{"name": "echo"}, {"name": "add"}])
    client = sign_in(ana)

    dialog = text(client.get(f"/assignments/{assignment.pk}/disable/", headers=HTMX))
    row = text(client.post(f"/assignments/{assignment.pk}/disable/", headers=HTMX))

    assert "Disable Docs on Work? Its 2 tools stop on the next request. Nothing is deleted." in dialog
    assert row.lstrip().startswith(f'<tr id="assignment-{assignment.pk}" data-state="disabled" class="changed">')
    assert client.post(f"/assignments/{assignment.pk}/enable/")["Location"] == "/gateways/work/servers/"
    assignment.refresh_from_db()
    assert assignment.enabled


def test_removing_asks_first_and_frees_the_alias(work: Gateway, docs: Server, ana: User, sign_in: SignIn) -> None:
    assignment = make.assignment(work, docs)
    client = sign_in(ana)

    dialog = text(client.get(f"/assignments/{assignment.pk}/remove/", headers=HTMX))
    assert "Remove Docs from Work?" in dialog
    client.post(f"/assignments/{assignment.pk}/remove/")
    assert client.get(f"/assignments/{assignment.pk}/remove/").status_code == 404
    client.post("/gateways/work/assign/", {"server": "docs", "identity_scheme": "none"})

    assert [one.alias for one in work.assignments.live()] == ["docs"]


@pytest.mark.full
def test_links_to_servers_are_for_who_may_open_them(work: Gateway, docs: Server, sign_in: SignIn) -> None:
    make.assignment(work, docs)

    without = text(sign_in(make.user(Capability.GATEWAYS_MANAGE)).get("/gateways/work/servers/"))
    holder = text(
        sign_in(make.user(Capability.GATEWAYS_READ, Capability.SERVERS_TOGGLE)).get("/gateways/work/servers/")
    )

    assert "/servers/docs/" not in without
    assert 'href="/servers/docs/"' in holder
