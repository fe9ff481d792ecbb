"""The Servers tab of a gateway: assigning, editing, switching and removing a server."""

from collections.abc import Callable
from typing import Any

import pytest

from accounts.models import User
from auditlog.models import Event
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
def test_a_server_that_is_down_is_named_above_the_list(work: Gateway, ana: User, sign_in: SignIn) -> None:
    make.assignment(work, make.server(name="Jira", health=Health.DOWN, health_error="did not answer within 5 s"))
    make.assignment(work, make.server(name="Off", health=Health.DOWN, health_error="?", enabled=False))

    page = text(sign_in(ana).get("/gateways/work/servers/"))

    assert "Jira is down</b><small>It did not answer within 5 s" in page
    assert "Its tools stay listed; calls to them fail until it answers." in page
    assert "Off is down" not in page
    assert "server disabled" in page


# --- Assigning ----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_server_is_assigned_under_its_slug(work: Gateway, docs: Server, ana: User, sign_in: SignIn) -> None:
    response = sign_in(ana).post("/gateways/work/assign/", {"server": "docs", "identity_scheme": "none"})

    assert response["Location"] == "/gateways/work/servers/"
    assignment = Assignment.objects.get()
    assert (assignment.alias, assignment.identity_scheme, assignment.tool_policy) == ("docs", "none", "allow_all")
    assert Event.objects.get(action="assignment.created").actor_id == ana.pk


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
    told = Event.objects.filter(action="assignment.created").earliest("pk").changes
    assert (told["tool_policy"], told["shared_identity"]) == ([None, "allow_all"], [None, identity.label])


BAD = (
    ({"server": "nowhere"}, "server", "Select a valid choice"),
    ({"server": "gone"}, "server", "Select a valid choice"),
    ({"alias": "double__score"}, "alias", "Use lower-case letters"),
    ({"alias": "x" * 17}, "alias", "at most 16 characters"),
    ({"alias": "taken"}, "alias", "Another server on Work has the alias “taken”."),
    ({"alias": "x", "bare": "on"}, "alias", "Leave this empty, or untick"),
    ({"bare": "on"}, "alias", "A gateway with several servers needs an alias for each"),
    ({"identity_scheme": "magic"}, "identity_scheme", "Select a valid choice"),
    ({"identity_scheme": "per_user"}, "identity_scheme", "Docs takes no credential"),
    ({"server": "github", "identity_scheme": "none"}, "identity_scheme", "GitHub needs a credential."),
    ({"server": "github", "identity_scheme": "shared"}, "shared_identity", "Choose the credential everyone uses."),
    ({"server": "github", "identity_scheme": "shared", "shared_identity": "crm"}, "shared_identity", "Select a valid"),
    ({"server": "github", "identity_scheme": "shared", "shared_identity": "own"}, "shared_identity", "Select a valid"),
)


@pytest.mark.full
def test_every_bad_input_is_explained_in_its_place(
    work: Gateway, docs: Server, github: Server, ana: User, sign_in: SignIn, subtests: pytest.Subtests
) -> None:
    make.assignment(work, make.server(), alias="taken")
    gone = make.server(slug="gone")
    Server.objects.filter(pk=gone.pk).update(archived_at=gone.created_at)
    make.identity(github).gateways.add(work)
    ids = {
        "crm": str(make.identity(make.server(slug="crm", auth_type=AuthType.BEARER)).pk),
        "own": str(make.identity(github, ana, label="ana's own").pk),
    }
    client = sign_in(ana)
    assert "ana&#x27;s own" not in text(client.get("/gateways/work/assign/?server=github"))

    for values, field, words in BAD:
        with subtests.test(str(values)):
            sent = {"server": "docs", "alias": "", "identity_scheme": "none"} | values
            sent = {name: ids.get(value, value) for name, value in sent.items()}
            response = client.post("/gateways/work/assign/", sent)
            assert response.status_code == 422
            assert Assignment.objects.count() == 1
            if field == "server":
                assert words in str(response.context["form"].errors)
            else:
                assert words in text(response).split(f'id="id_{field}_error"')[1].split("</span>", maxsplit=1)[0]


def assigned_by_another(gateway: Gateway, alias: str) -> Callable[[], object]:
    """Return an action in which another person assigns a server under this alias."""
    other = make.server(slug="other")
    return lambda: make.assignment(Gateway.objects.get(pk=gateway.pk), other, alias=alias)


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("act", "typed", "taken", "words"),
    [
        ("assign", "docs", "docs", "Another server on Work has taken this alias just now."),
        ("edit", "", "other", "needs an alias for each server, to keep tool names apart. Enter an alias."),
    ],
    ids=["taken", "needed"],
)
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


# --- Editing, switching, removing ---------------------------------------------------------------------------------


def test_another_alias_renames_the_tools(work: Gateway, docs: Server, ana: User, sign_in: SignIn) -> None:
    assignment = make.assignment(work, docs)
    Feature.objects.learn(assignment, [{"name": "echo"}])

    client, path = sign_in(ana), f"/assignments/{assignment.pk}/edit/"

    same = client.post(path, {"alias": "docs", "identity_scheme": "none"})
    response = client.post(path, {"server": "other", "alias": "papers", "identity_scheme": "none"})

    assert same["Location"] == response["Location"] == "/gateways/work/servers/"
    assert Assignment.objects.get().server == docs, "the server is not edited"
    assert assignment.features.get().exposed_name == "papers__echo"
    assert Event.objects.get(action="assignment.updated").changes == {"alias": ["docs", "papers"]}


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
