"""/api/servers and /api/identities."""

from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

import pytest
from django.conf import LazySettings
from django.db import connection

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from servers.models import AuthType, Identity, Server
from tests import make, upstreams
from tests.conftest import Run
from tests.meanwhile import just_before
from tests.rest import Rest, errors, problem, results

pytestmark = pytest.mark.django_db

PUBLIC = "https://93.184.216.34/mcp"
SECRET = "ghp_" + "s3cret" * 6


@pytest.fixture
def github() -> Server:
    return make.server(slug="github", name="GitHub", auth_type=AuthType.BEARER)


# --- Servers --------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_server_is_registered(ana: User) -> None:
    rest = Rest.of(ana)

    made = rest.post("/servers", {"name": "Issue tracker", "url": PUBLIC, "auth_type": "bearer"})

    assert made.status_code == 201
    told = made.json()
    assert (told["slug"], told["url"], told["auth_type"], told["health"]) == (
        "issue-tracker",
        PUBLIC,
        "bearer",
        "unknown",
    )
    assert (told["timeout_seconds"], told["max_concurrent"], told["gateways_count"]) == (30, 64, 0)
    assert problem(rest.post("/servers", {"name": "ISSUE tracker", "url": PUBLIC})) == (409, "already_exists")
    assert Event.objects.get(action="server.created").via == "api"


@pytest.mark.full
def test_a_server_that_cannot_be_is_refused_at_its_field(ana: User) -> None:
    for body, field in (
        ({"url": "http://169.254.169.254/"}, "url"),
        ({"url": "builtin:quickstart"}, "url"),
        ({"url": PUBLIC, "auth_type": "header"}, "header_name"),
        ({"url": PUBLIC, "slug": "Not A Slug"}, "slug"),
        ({"url": PUBLIC, "health": "ok"}, "health"),
        ({}, "url"),
    ):
        assert set(errors(Rest.of(ana).post("/servers", {"name": "Tracker", **body}))) == {field}


@pytest.mark.full
def test_a_server_is_edited(ana: User, github: Server) -> None:
    rest = Rest.of(ana)
    make.server(slug="quickstart", url="builtin:quickstart")
    gone = make.server(slug="old", name="Old")
    Server.objects.filter(pk=gone.pk).update(archived_at=gone.created_at, enabled=False)
    make.server(slug="docs", name="Docs").disable(by=ana)

    changed = rest.patch("/servers/github", {"timeout_seconds": 60, "max_concurrent": 8}).json()

    assert (changed["name"], changed["timeout_seconds"], changed["max_concurrent"]) == ("GitHub", 60, 8)
    assert set(Event.objects.get(action="server.updated").changes) == {"timeout_seconds", "max_concurrent"}
    assert set(errors(rest.patch("/servers/github", {"slug": "gitlab"}))) == {"slug"}
    assert set(errors(rest.patch("/servers/github", {"url": "http://127.0.0.1/"}))) == {"url"}
    assert set(errors(rest.patch("/servers/quickstart", {"url": PUBLIC}))) == {"url"}
    assert problem(rest.patch("/servers/github", {"name": " DOCS "})) == (409, "already_exists")
    assert rest.patch("/servers/github", {"name": "github"}).json()["name"] == "github", "it may change its own case"
    assert rest.patch("/servers/github", {"name": "Old"}).json()["name"] == "Old"


@pytest.mark.django_db(transaction=True)
def test_a_change_leaves_what_others_change_meanwhile(ana: User, github: Server) -> None:
    with just_before(lambda: Server.objects.get().edit(key_help="Ask Ben", by=ana)):
        changed = Rest.of(ana).patch("/servers/github", {"timeout_seconds": 60}).json()
    assert (changed["timeout_seconds"], changed["key_help"]) == (60, "Ask Ben")


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_a_name_that_somebody_else_takes_meanwhile_is_a_conflict(ana: User, github: Server) -> None:
    rest = Rest.of(ana)
    acts: tuple[Callable[[], Any], ...] = (
        lambda: rest.post("/servers", {"name": "Docs", "url": PUBLIC}),
        lambda: rest.patch("/servers/github", {"name": "Docs"}),
    )
    for act in acts:
        with just_before(lambda: make.server(slug="docs-of-others", name="DOCS")):
            refused = act()
        assert problem(refused) == (409, "already_exists")
        assert set(Server.objects.values_list("name", flat=True)) == {"GitHub", "DOCS"}
        Server.objects.filter(name="DOCS").delete()


def test_credentials_do_not_follow_an_edited_url(ana: User, github: Server) -> None:
    identity, before = make.identity(github, ana), github.url
    rest = Rest.of(ana)

    told = errors(rest.patch("/servers/github", {"url": PUBLIC}))

    assert set(told) == {"url"}
    assert told["url"][0].startswith("1 credential was given for https://")
    assert Server.objects.get().url == before
    identity.revoke(by=ana)
    assert rest.patch("/servers/github", {"url": PUBLIC}).json()["url"] == PUBLIC


@pytest.mark.full
def test_a_server_is_switched_and_archived(ana: User, github: Server) -> None:
    gateway = make.gateway(make.server())
    make.assignment(gateway, github, identity_scheme="per_user")
    rest = Rest.of(ana)

    assert problem(rest.post("/servers/github/archive")) == (409, "still_enabled")
    assert rest.post("/servers/github/disable").json()["enabled"] is False
    assert rest.post("/servers/github/archive").status_code == 204
    assert rest.get("/servers/github").status_code == 404
    assert gateway.assignments.live().count() == 1


@pytest.mark.full
def test_a_list_is_narrowed(ana: User, github: Server) -> None:
    make.server(slug="docs").disable(by=ana)
    rest = Rest.of(ana)

    def found(**query: str) -> list[str]:
        return [server["slug"] for server in results(rest.get("/servers", **query))]

    assert found() == ["docs", "github"]
    assert found(q="GIT") == found(auth_type="bearer") == found(enabled="true") == ["github"]
    assert set(errors(rest.get("/servers", health="fine"))) == {"health"}


@pytest.mark.full
def test_a_connection_is_tested(ana: User, run: Run, settings: LazySettings) -> None:
    settings.PRIVATE_UPSTREAMS = [ip_network("127.0.0.0/8")]
    make.server(slug="docs", url=run(upstreams.docs()).url)
    make.server(slug="gone", url="http://127.0.0.1:9/mcp")
    rest = Rest.of(ana)

    good, bad = rest.post("/servers/docs/test").json(), rest.post("/servers/gone/test").json()

    assert good["ok"]
    assert good["tools"]
    assert (bad["ok"], bad["tools"]) == (False, [])
    assert rest.get("/servers/gone").json()["health"] == "down"


# --- Identities -----------------------------------------------------------------------------------------------------


def test_a_secret_goes_in_and_never_comes_out(ann: User, github: Server) -> None:
    rest = Rest.of(ann)

    made = rest.post("/identities", {"server_id": str(github.pk), "label": "work", "secret": SECRET})

    assert made.status_code == 201
    told = made.json()
    assert (told["secret_hint"], told["owner_email"], told["shared"], told["status"]) == (
        SECRET[-4:],
        ann.email,
        False,
        "active",
    )
    answers = [made, rest.get("/identities"), rest.get(f"/identities/{told['id']}")]
    assert not any(SECRET in answer.content.decode() for answer in answers)
    assert SECRET not in str(list(Event.objects.values()))
    with connection.cursor() as cursor:
        cursor.execute("SELECT secret_ciphertext FROM servers_identity")
        assert SECRET.encode() not in bytes(cursor.fetchone()[0])


@pytest.mark.full
def test_a_credential_that_cannot_be_is_refused_at_its_field(ann: User, ben: User, github: Server) -> None:
    body = {"server_id": str(github.pk), "label": "work", "secret": SECRET}
    for wrong in (
        {"secret": "two\nlines"},
        {"server_id": str(make.server().pk)},  # It takes no credential.
        {"owner": ben.email},
    ):
        assert set(errors(Rest.of(ann).post("/identities", body | wrong))) == set(wrong)


@pytest.mark.full
def test_a_label_is_taken_once_and_changed(ann: User, github: Server) -> None:
    body = {"server_id": str(github.pk), "label": "work", "secret": SECRET}
    rest = Rest.of(ann)
    rest.post("/identities", body)
    other = make.identity(github, ann)

    assert problem(rest.post("/identities", body)) == (409, "already_exists")
    assert problem(rest.patch(f"/identities/{other.pk}", {"label": "work"})) == (409, "already_exists")
    for same in ({"label": "home"}, {"label": " home "}, {}):
        assert rest.patch(f"/identities/{other.pk}", same).json()["label"] == "home"
    changes = Event.objects.get(action="identity.updated").changes
    assert changes == {"label": [other.label, "home"], "owner": ann.email}


@pytest.mark.full
def test_shared_identities_take_the_capability(ann: User, github: Server) -> None:
    body = {"server_id": str(github.pk), "label": "service", "secret": SECRET, "shared": True}
    managing = Rest.of(make.user(Capability.SERVERS_MANAGE))

    assert Rest.of(ann).post("/identities", body).json()["capability"] == "servers:manage"
    made = managing.post("/identities", body).json()
    assert (made["shared"], made["owner_email"]) == (True, None)
    assert [row["id"] for row in results(managing.get("/identities", scope="shared"))] == [made["id"]]
    assert results(managing.get("/identities")) == []


@pytest.mark.full
def test_replacing_a_secret_is_the_owners(ana: User, ann: User, github: Server) -> None:
    theirs, shared = make.identity(github, ann), make.identity(github)
    governing = Rest.of(make.user(Capability.IDENTITIES_MANAGE))
    path = f"/identities/{theirs.pk}/secret"

    assert Rest.of(ann).put(path, {"secret": SECRET}).json()["secret_hint"] == SECRET[-4:]
    assert problem(Rest.of(ana).put(path, {"secret": SECRET})) == (403, "not_yours")
    assert problem(governing.put(path, {"secret": SECRET})) == (403, "capability_required")
    assert Rest.of(ana).put(f"/identities/{shared.pk}/secret", {"secret": SECRET}).status_code == 200
    assert Identity.objects.get(pk=theirs.pk).generation == 2


def test_others_identities_are_switched_and_ended_by_capability(ann: User, ben: User, github: Server) -> None:
    theirs = make.identity(github, ann)
    governing = Rest.of(make.user(Capability.IDENTITIES_MANAGE))
    path = f"/identities/{theirs.pk}"

    assert problem(Rest.of(ben).post(f"{path}/disable")) == (404, "not_found")
    assert governing.post(f"{path}/disable").json()["status"] == "disabled"
    assert governing.post(f"{path}/enable").json()["enabled"] is True
    assert governing.post(f"{path}/revoke").json()["status"] == "revoked"
    assert problem(governing.post(f"{path}/revoke")) == (409, "identity_revoked")
    assert problem(governing.post(f"{path}/enable")) == (409, "identity_revoked")
    assert [row["id"] for row in results(governing.get("/identities", scope="all", user=ann.email))] == [str(theirs.pk)]
    assert problem(Rest.of(ann).get("/identities", scope="all")) == (403, "capability_required")
