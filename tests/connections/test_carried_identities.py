"""People can add, change and remove the identities of their own connections at any time."""

from collections.abc import Callable

import pytest
from django.db import connection as database
from django.test.utils import CaptureQueriesContext

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from connections.models import Connection, ConnectionAlreadyRevoked, ConnectionRefused
from gateways.models import Assignment, Gateway
from servers.models import Identity, Server
from tests import make
from tests.conftest import SignIn
from tests.connections.rows import HTMX, text
from tests.meanwhile import just_before
from tests.rest import Rest
from tests.undone import undone
from ui.pages import PAGE_SIZE

pytestmark = pytest.mark.django_db

PATH = "/settings/identities"
OPEN = HTMX | {"HX-Current-URL": f"http://testserver{PATH}"}


@pytest.fixture
def github() -> Server:
    return make.server(name="GitHub", auth_type="bearer")


@pytest.fixture
def work(github: Server) -> Gateway:
    gateway = make.gateway(name="Work")
    make.assignment(gateway, github, identity_scheme="per_user")
    return gateway


@pytest.fixture
def place(work: Gateway) -> Assignment:
    return work.assignments.get()


@pytest.fixture
def link(ann: User, ana: User, work: Gateway) -> Connection:
    """A member's connection that has no identity yet; its agent does not use enrolment."""
    return make.connection(make.agent(by=ana, name="CI bot"), work, ann)


def url(link: Connection, place: Assignment) -> str:
    return f"/connections/{link.pk}/identities/{place.pk}/"


def row(response: object, link: Connection, place: Assignment) -> str:
    return text(response).split(f'id="carried-{link.pk}-{place.pk}"')[1].split("</li>")[0]


def carried(link: Connection) -> Identity | None:
    return getattr(link.identities.first(), "identity", None)


def new(secret: str = "ghp_brought_later", **fields: str) -> dict[str, str]:
    return {"identity": "new", "label": "later", "secret": secret, "everywhere": "1"} | fields


def test_a_skipped_identity_is_brought_later_without_capability_enrolment_or_another_token(
    ann: User, link: Connection, place: Assignment, sign_in: SignIn
) -> None:
    client = sign_in(ann)
    before = row(client.get(PATH), link, place)

    asked = client.get(url(link, place), headers=OPEN)
    done = client.post(url(link, place), new(), follow=True)

    assert "missing" in before
    assert url(link, place) in before
    assert "Add a credential for GitHub" in text(asked)
    assert "Connected as later" in row(done, link, place)
    assert ">connected<" in row(done, link, place)
    assert "ghp_brought_later" not in text(done)
    assert not link.tokens.exists()
    told = Event.objects.get(action="connection.identity_changed")
    assert (told.target_id, told.changes) == (
        str(link.pk),
        {"owner": ann.email, "GitHub": [None, "later"]},
    )
    again = make.connection(link.host, link.gateway, ann, [make.identity(place.server, ann, label="other")])
    told = Event.objects.filter(action="connection.identity_changed").latest("pk")
    assert (again, told.changes) == (link, {"owner": ann.email, "GitHub": ["later", "other"]})


@pytest.mark.full
def test_one_that_is_brought_heals_every_own_connection_that_carried_the_old_or_lacks_one_unless_it_shall_not(
    ann: User, ben: User, link: Connection, work: Gateway, place: Assignment, sign_in: SignIn
) -> None:
    old, kept, ended = (make.identity(place.server, ann) for _ in range(3))
    carries_old, carries_kept, carried_ended, lacks = (
        make.connection(make.agent(by=ann), work, ann, one) for one in ([old], [kept], [ended], [])
    )
    app, bens = make.app_connection(ann, work), make.connection(link.host, work, ben)
    ended.revoke(by=ann)
    link.use_identity(place, old, by=ann)
    client = sign_in(ann)

    assert '">4</span> other connections too' in text(client.get(url(link, place), headers=OPEN))
    client.post(url(link, place), new(everywhere="", label="only here"))
    assert getattr(carried(link), "label", "") == "only here"
    assert carried(lacks) is None
    link.use_identity(place, old, by=ann)
    client.post(url(link, place), new())

    later = Identity.objects.get(label="later")
    assert [carried(one) for one in (link, carries_old, carried_ended, lacks, app)] == [later] * 5
    assert carried(carries_kept) == kept
    assert carried(bens) is None
    old.refresh_from_db()
    assert old.revoked_at is None


@pytest.mark.full
def test_another_of_ones_own_is_used_and_dropped_again(
    ann: User, link: Connection, place: Assignment, sign_in: SignIn
) -> None:
    first, second = (make.identity(place.server, ann, label=label) for label in ("first", "second"))
    link.use_identity(place, first, by=ann)
    client = sign_in(ann)

    for _ in range(2):
        client.post(url(link, place), {"identity": str(second.pk)})
    Rest.of(ann).put(url(link, place).rstrip("/"), {"identity_id": str(second.pk)})
    used = carried(link)
    asked = text(client.get(f"{url(link, place)}drop/", headers=OPEN))
    dropped = client.post(f"{url(link, place)}drop/", headers=OPEN)

    assert used == second
    assert "loses the tools of GitHub on its next request." in asked
    assert ">missing<" in row(dropped, link, place)
    assert carried(link) is None
    assert Identity.objects.usable().count() == 2
    labels = Event.objects.filter(action="connection.identity_changed").order_by("id").values_list("changes", flat=True)
    assert [change["GitHub"] for change in labels] == [[None, "first"], ["first", "second"], ["second", None]]


def test_anothers_connection_and_anothers_identity_are_not_there(
    ann: User, ben: User, ana: User, link: Connection, place: Assignment, sign_in: SignIn
) -> None:
    hers = make.identity(place.server, ben)

    for stranger in (ben, ana):
        assert sign_in(stranger).get(url(link, place)).status_code == 404
        assert sign_in(stranger).post(url(link, place), new()).status_code == 404
        assert sign_in(stranger).post(f"{url(link, place)}drop/").status_code == 404
    assert sign_in(ann).post(url(link, place), {"identity": str(hers.pk)}).status_code == 422
    with pytest.raises(ConnectionRefused):
        link.use_identity(place, hers, by=ann)
    assert Rest.of(ann).put(url(link, place).rstrip("/"), {"identity_id": str(hers.pk)}).status_code == 400
    assert carried(link) is None


@pytest.mark.full
def test_nothing_is_carried_that_no_call_could_use(
    ann: User, link: Connection, place: Assignment, subtests: pytest.Subtests
) -> None:
    own = make.identity(place.server, ann)

    for spoil in ("disable", "revoke", "remove"):
        with subtests.test(str(spoil)), undone():
            getattr(Assignment.objects.get() if spoil == "remove" else Identity.objects.get(), spoil)(by=ann)
            with pytest.raises(ConnectionRefused):
                link.use_identity(Assignment.objects.get(), Identity.objects.get(), by=ann)

    link.revoke(by=ann)
    with pytest.raises(ConnectionAlreadyRevoked):
        link.use_identity(place, own, by=ann)
    with pytest.raises(ConnectionAlreadyRevoked):
        link.drop_identity(place, by=ann)
    assert Connection.objects.carry(own, by=ann) == 0


def move(link: Connection, place: Assignment, by: User) -> None:
    Server.objects.get(pk=place.server_id).edit(url="https://elsewhere.example.net/mcp", by=by)


def revoke(link: Connection, place: Assignment, by: User) -> None:
    Connection.objects.get(pk=link.pk).revoke(by=by)


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("act", "field", "words"),
    [
        (move, "secret", "This server was moved to https://elsewhere.example.net just now. Reload the page."),
        (revoke, "identity", "This connection is already revoked."),
    ],
)
def test_a_concurrent_change_is_reported_while_bringing_an_identity_and_nothing_is_stored(
    act: Callable[[Connection, Assignment, User], None],
    field: str,
    words: str,
    ann: User,
    ana: User,
    link: Connection,
    place: Assignment,
    sign_in: SignIn,
) -> None:
    client = sign_in(ann)

    with just_before(lambda: act(link, place, ana)):
        refused = client.post(url(link, place), new(everywhere=""))

    assert refused.status_code == 422
    assert words in str(refused.context["form"].errors[field])
    assert words in text(refused)
    assert "ghp_brought_later" not in text(refused)
    assert not Identity.objects.exists()
    assert carried(link) is None


@pytest.mark.full
def test_each_row_says_its_one_state_and_by_whom(
    ann: User, ana: User, link: Connection, place: Assignment, sign_in: SignIn
) -> None:
    own = make.identity(place.server, ann, label="work account")
    link.use_identity(place, own, by=ann)
    client = sign_in(ann)

    def now() -> str:
        return row(client.get(PATH), link, place)

    assert "Connected as work account" in now()
    Identity.objects.update(last_error="HTTP 401")
    assert ">refused<" in now()
    assert "GitHub rejected this credential." in now()
    Identity.objects.update(last_error="")
    own.disable(by=ann)
    assert "disabled by you" in now()
    assert f'action="/identities/{own.pk}/enable/"' in now()
    own.enable(by=ann)
    own.disable(by=ana)
    assert "ana@example.com disabled this credential. Only an administrator can enable it again." in now()
    assert "/enable/" not in now()
    own.enable(by=ana)
    place.server.edit(url=f"{place.server.url}/v2", by=ana)
    assert "Confirm that your credential may be sent there." in now()
    assert f"/identities/{own.pk}/confirm/" in now()
    Identity.objects.get().confirm(by=ann)
    place.disable(by=ana)
    assert "An administrator disabled GitHub on Work. Your credential is kept." in now()
    place.enable(by=ana)
    Identity.objects.get().revoke(by=ann)
    assert "The credential was revoked" in now()
    assert ">missing<" in now()


@pytest.mark.full
def test_a_new_per_user_server_puts_connections_on_needs_attention_and_says_so_to_both(
    ann: User, ana: User, link: Connection, work: Gateway, place: Assignment, sign_in: SignIn
) -> None:
    link.use_identity(place, make.identity(place.server, ann), by=ann)
    make.token(link)
    tab = f"/gateways/{work.slug}/connections/"
    calm = text(sign_in(ana).get(tab)), text(sign_in(ann).get("/"))
    linear = make.server(name="Linear", auth_type="bearer")
    fields = {"server": linear.slug, "alias": "linear", "identity_scheme": "per_user"}

    manager = sign_in(make.user(Capability.GATEWAYS_MANAGE))  # Sees no connections, so only their number.
    assigned = text(manager.post(f"/gateways/{work.slug}/assign/", fields, follow=True))

    assert "needs attention" not in calm[0] + calm[1]
    assert "1 connection needs a credential for it" in assigned
    assert ann.email not in assigned
    for page in (tab, f"/hosts/{link.host_id}/connections/", "/settings/mcp-connections?type=all"):
        assert "needs attention" in text(sign_in(ana).get(page)), page
    told = text(sign_in(ann).get("/"))
    assert "CI bot on Work needs your credential for Linear" in told
    assert f"{PATH}?connection={link.pk}" in told
    assert Rest.of(ann).get(f"/connections/{link.pk}").json()["needs_identity"] is True
    Connection.objects.bring_identity(server=linear, label="mine", secret="s3cret", by=ann)
    assert "needs attention" not in text(sign_in(ana).get(tab)) + text(sign_in(ann).get("/"))
    assert Rest.of(ann).get(f"/connections/{link.pk}").json()["needs_identity"] is False


@pytest.mark.full
def test_rest_tells_changes_and_brings_what_a_connection_carries(
    ann: User, ana: User, link: Connection, place: Assignment
) -> None:
    path, rest = f"/connections/{link.pk}/identities", Rest.of(ann)
    own = make.identity(place.server, ann, label="mine")

    (missing,) = rest.get(path).json()["identities"]
    put = rest.put(f"{path}/{place.pk}", {"identity_id": str(own.pk)})
    (seen,) = Rest.of(ana).get(path).json()["identities"]
    refused = Rest.of(ana).put(f"{path}/{place.pk}", {"identity_id": str(own.pk)})
    dropped = rest.delete(f"{path}/{place.pk}")

    assert (missing["state"], missing["identity"], missing["server"]["name"]) == ("missing", None, "GitHub")
    assert (put.status_code, put.json()["identities"][0]["identity"]["label"]) == (200, "mine")
    assert (seen["state"], seen["assignment_id"]) == ("active", str(place.pk))
    assert refused.status_code in (403, 404)
    assert (dropped.status_code, carried(link)) == (204, None)

    body = {"server_id": str(place.server_id), "secret": "s3cret"}
    rest.post("/identities", body | {"label": "stored", "everywhere": False})
    assert carried(link) is None
    used = rest.post("/identities", body | {"label": "used"}).json()
    assert getattr(carried(link), "label", "") == "used"
    foreign = rest.post("/identities", body | {"label": "other", "instead_of": str(link.pk)})
    assert (foreign.status_code, list(foreign.json()["errors"])) == (400, ["instead_of"])
    rest.post("/identities", body | {"label": "next", "instead_of": used["id"]})
    assert getattr(carried(link), "label", "") == "next"


@pytest.mark.full
def test_the_page_of_identities_costs_the_same_for_many_servers_and_shows_the_connection_of_an_error_first(
    ann: User, link: Connection, work: Gateway, place: Assignment, sign_in: SignIn
) -> None:
    client = sign_in(ann)
    Connection.objects.bring_identity(server=place.server, label="mine", secret="s3cret", by=ann)
    with CaptureQueriesContext(database) as one:
        client.get(PATH)
    for _ in range(3):
        server = make.server(auth_type="bearer")
        make.assignment(work, server, identity_scheme="per_user")
        Connection.objects.bring_identity(server=server, label="mine", secret="s3cret", by=ann)
    with CaptureQueriesContext(database) as many:
        client.get(PATH)
    assert len(many) == len(one)

    for _ in range(PAGE_SIZE):
        make.connection(make.agent(by=ann), work, ann)
    assert f"carried-{link.pk}" not in text(client.get(PATH))
    assert f'id="carried-{link.pk}-{place.pk}"' in text(client.get(f"{PATH}?connection={link.pk}"))
    assert client.get(f"{PATH}?connection=nothing").status_code == 200
