"""/api/tokens: list, create, edit and revoke."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from accounts.models import User, WorkspaceSettings
from auditlog.models import Event
from capabilities import Capability
from connections.models import Connection
from gateways.models import Gateway, IdentityScheme
from hosts.models import Host
from servers.models import AuthType, Server
from tests import make
from tests.rest import Rest, errors, problem, results
from tokens.models import Token

pytestmark = pytest.mark.django_db

KEYS = {
    *("id", "name", "prefix", "expires_at", "allowed_ips", "scopes", "created_at", "status", "last_used_at", "host"),
    *("gateway", "connection_id", "user_email", "rotated_at", "revoked_at", "revoked_by", "calls_per_minute"),
    *("secret_last_used_at", "previous_secret", "asked_at", "blocked_by", "blocked_reason"),
}


@pytest.fixture
def docs() -> Server:
    return make.server(slug="docs", name="Docs")


@pytest.fixture
def work(docs: Server) -> Gateway:
    return make.gateway(docs, slug="work", name="Work")


@pytest.fixture
def bot(ana: User) -> Host:
    return make.agent(by=ana, name="CI bot")


@pytest.fixture
def link(ana: User, bot: Host, work: Gateway) -> Connection:
    return make.connection(bot, work, ana)


def wanted(bot: Host, work: Gateway, **changes: Any) -> dict[str, Any]:
    return {"host_id": str(bot.pk), "gateway_id": str(work.pk), "name": "ci-pipeline", **changes}


# --- Create ---------------------------------------------------------------------------------------------------------


def test_creating_tells_the_secret_once(ana: User, bot: Host, work: Gateway, docs: Server) -> None:
    addresses = ["198.51.100.7", "2001:db8::/32"]
    made = Rest.of(ana).post("/tokens", wanted(bot, work, allowed_ips=addresses))

    told = made.json()
    assert made.status_code == 201
    assert made["Cache-Control"] == "no-store"
    assert set(told) == KEYS | {"token"}
    assert (len(told["token"]), told["token"][:12]) == (48, told["prefix"])
    assert told["gateway"] == {"id": str(work.pk), "name": "Work", "slug": "work", "url": work.url}
    assert told["scopes"] == [{"server_id": str(docs.pk), "server_name": "Docs", "server_slug": "docs"}]
    assert (told["status"], told["user_email"]) == ("active", ana.email)
    assert told["allowed_ips"] == ["198.51.100.7/32", "2001:db8::/32"]
    assert told["token"] not in Rest.of(ana).get(f"/tokens/{told['id']}").content.decode()
    again = Rest.of(ana).post("/tokens", wanted(bot, work))
    assert problem(again) == (409, "already_exists")  # A connection has each name once.
    assert (
        Rest.of(ana).post("/tokens", wanted(bot, work, name="kiosk")).json()["connection_id"] == told["connection_id"]
    )
    again = Rest.of(ana).post("/tokens", wanted(bot, work, name="\N{KELVIN SIGN}iosk"))
    assert problem(again) == (409, "already_exists")


def test_a_wrong_request_makes_no_token(
    ana: User, ann: User, bot: Host, work: Gateway, subtests: pytest.Subtests
) -> None:
    elsewhere, app = make.server(), Host.objects.create(kind="headed", name="Claude Desktop")
    wrong: list[tuple[str, Any, str]] = [
        ("user", ann.email, "Cannot be set."),
        ("server_ids", [str(elsewhere.pk)], f"Server {elsewhere.pk} is not on this gateway."),
        (
            "allowed_ips",
            ["198.51.100.7", "300.1.1.1"],
            "\u201c300.1.1.1\u201d is neither an IP address nor a CIDR range.",
        ),
        *(("expires_in_days", days, "Must be 7, 30 or 90 days.") for days in (365, 0, -7, 8)),
        ("host_id", str(app.pk), ""),
        ("expires_in_days", None, ""),
    ]
    for field, value, words in wrong:
        with subtests.test(f"{field}={value}"):
            refused = errors(Rest.of(ana).post("/tokens", wanted(bot, work, **{field: value})))

            assert set(refused) == {field}
            assert words in refused[field][0]
    assert not Connection.objects.exists()

    WorkspaceSettings.edit(by=ana, allow_non_expiring_tokens=True)
    assert Rest.of(ana).post("/tokens", wanted(bot, work, expires_in_days=None)).json()["expires_at"] is None


@pytest.mark.full
def test_a_token_can_be_narrowed_to_some_servers(ana: User, bot: Host, work: Gateway, docs: Server) -> None:
    make.assignment(work, make.server())

    made = Rest.of(ana).post("/tokens", wanted(bot, work, server_ids=[str(docs.pk)]))

    assert [scope["server_slug"] for scope in made.json()["scopes"]] == ["docs"]


def test_a_gateway_out_of_reach_does_not_exist_and_a_disabled_host_opens_nothing(bot: Host, work: Gateway) -> None:
    rest = Rest.of(make.user(Capability.API_TOKENS_MANAGE))

    assert set(errors(rest.post("/tokens", wanted(bot, make.gateway(reach="teams"))))) == {"gateway_id"}
    bot.disable(by=make.user())
    assert problem(rest.post("/tokens", wanted(bot, work))) == (409, "refused")


@pytest.mark.full
def test_only_ones_own_identities_are_brought_along(
    ana: User, ann: User, bot: Host, work: Gateway, docs: Server
) -> None:
    github = make.server(auth_type=AuthType.BEARER)
    assignment = make.assignment(work, github, identity_scheme=IdentityScheme.PER_USER)
    mine, theirs = make.identity(github, ana), make.identity(github, ann)

    def made(server: Server, identity: Any) -> Any:
        return Rest.of(ana).post("/tokens", wanted(bot, work, identities={str(server.pk): str(identity.pk)}))

    assert errors(made(github, theirs)) == {
        "identities": [f"You have no usable credential {theirs.pk} for server {github.pk}."]
    }
    assert errors(made(docs, mine)) == {
        "identities": [f"Server {docs.pk} does not use your own credential on this gateway."]
    }
    assert not Connection.objects.exists()
    connection = Connection.objects.get(pk=made(github, mine).json()["connection_id"])
    assert [(bound.assignment, bound.identity) for bound in connection.identities.all()] == [(assignment, mine)]


# --- Read -----------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_list_holds_ones_own_active_tokens_and_everybodys_take_the_capability(
    ana: User, ann: User, link: Connection
) -> None:
    active, revoked = make.token(link).token, make.token(link).token
    revoked.revoke(by=ana)
    make.token(make.connection(link.host, link.gateway, ann))
    key = Token.objects.provide_key(make.connection(link.host, make.gateway(), ana), by=ana)

    mine = Rest.of(ana).get("/tokens")

    assert [token["id"] for token in results(mine)] == [str(active.pk)]
    assert set(results(mine)[0]) == KEYS
    assert mine.json() == {"count": 1, "next": None, "previous": None, "results": results(mine)}
    everybodys = results(Rest.of(ana).get("/tokens", scope="all", status="all"))
    assert len(everybodys) == 3
    assert str(key.pk) not in {token["id"] for token in everybodys}, "the key of an app is no token"
    assert problem(Rest.of(ana).get(f"/tokens/{key.pk}")) == (404, "not_found")
    assert problem(Rest.of(ana).post(f"/tokens/{key.pk}/rotate")) == (404, "not_found")
    assert problem(Rest.of(ann).get("/tokens", scope="all")) == (403, "capability_required")


@pytest.mark.full
def test_a_list_is_narrowed(ana: User, ann: User, link: Connection) -> None:
    ours = make.token(link, name="nightly", expires_in_days=7).token
    theirs = make.token(make.connection(link.host, link.gateway, ann), name="other").token
    expired, revoked = make.token(link).token, make.token(link).token
    revoked.revoke(by=ana)
    Token.objects.filter(pk=expired.pk).update(expires_at=timezone.now())
    rest = Rest.of(ana)

    def found(**query: Any) -> set[str]:
        return {token["id"] for token in results(rest.get("/tokens", scope="all", **query))}

    assert found(q="NIGHT") == {str(ours.pk)}
    assert found(user=ann.email) == {str(theirs.pk)}
    assert found(user=ana.pk) == {str(ours.pk)}
    assert found(host=link.host_id) == found(gateway="work") == found(gateway=link.gateway_id)
    assert set(errors(rest.get("/tokens", gateway="elsewhere"))) == {"gateway"}
    assert found(status="expired") == {str(expired.pk)}
    assert found(status="revoked") == {str(revoked.pk)}
    assert len(found(status="all")) == 4
    soon = timezone.now() + timedelta(days=8)
    assert found(expires_before=soon.isoformat()) == {str(ours.pk)}


def test_unknown_parameters_and_values_are_refused(ann: User) -> None:
    for query in (
        {"state": "active"},
        {"status": "asleep"},
        {"host": "CI bot"},
        {"page_size": "many"},
        {"ordering": "digest"},
        {"expires_before": "soon"},
    ):
        assert set(errors(Rest.of(ann).get("/tokens", **query))) == set(query)


@pytest.mark.full
def test_pages_link_to_each_other_by_the_public_url(ana: User, link: Connection) -> None:
    names = [make.token(link, name=f"token {number}").token.name for number in range(3)]

    first = Rest.of(ana).get("/tokens", page_size=2, ordering="name")

    assert [token["name"] for token in results(first)] == names[:2]
    assert first.json()["next"] == "http://localhost:8000/api/tokens?page_size=2&ordering=name&page=2"
    assert first.json()["previous"] is None
    last = Rest.of(ana).get("/tokens", page_size=2, ordering="name", page=2)
    assert ([token["name"] for token in results(last)], last.json()["next"]) == (names[2:], None)
    assert problem(Rest.of(ana).get("/tokens", page=9)) == (404, "not_found")


@pytest.mark.full
def test_anothers_token_does_not_exist(ana: User, ann: User, link: Connection) -> None:
    token = make.token(link).token

    assert problem(Rest.of(ann).get(f"/tokens/{token.pk}")) == (404, "not_found")
    assert problem(Rest.of(ann).patch(f"/tokens/{token.pk}", {"name": "x"})) == (404, "not_found")
    assert problem(Rest.of(ann).delete(f"/tokens/{token.pk}")) == (404, "not_found")


# --- Edit and end ---------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_an_owner_tightens_a_limit_and_a_manager_takes_it_off(ana: User, ann: User, bot: Host, work: Gateway) -> None:
    """Owners may lower their tokens' limits; raising a limit requires the capability to manage tokens."""
    rest, own = Rest.of(ana), Rest.of(ann)
    token = make.token(make.connection(bot, work, ann), calls_per_minute=600).token
    path = f"/tokens/{token.pk}"

    for looser in (601, None):
        refused = own.patch(path, {"name": "renamed", "calls_per_minute": looser})
        assert (problem(refused), refused.json()["capability"]) == ((403, "capability_required"), "api-tokens:manage")
    assert Token.objects.get(pk=token.pk).name == token.name
    assert own.patch(path, {"calls_per_minute": 60}).json()["calls_per_minute"] == 60
    assert rest.patch(path, {"calls_per_minute": None}).json()["calls_per_minute"] is None
    changes = Event.objects.filter(action="token.updated").latest("id").changes
    assert changes == {"calls_per_minute": [60, None], "owner": ann.email}
    for wrong in (0, -1, 1_000_001, "many"):
        assert set(errors(rest.patch(path, {"calls_per_minute": wrong}))) == {"calls_per_minute"}
    assert rest.post("/tokens", wanted(bot, work, calls_per_minute=600)).json()["calls_per_minute"] == 600


def test_an_owner_without_capabilities_changes_name_expiry_and_allowlist(ann: User, link: Connection) -> None:
    token = make.token(make.connection(link.host, link.gateway, ann), expires_in_days=90).token
    changes = {"name": "nightly", "expires_in_days": 30, "allowed_ips": ["127.0.0.0/8"]}

    changed = Rest.of(ann).patch(f"/tokens/{token.pk}", changes)

    token.refresh_from_db()
    assert changed.status_code == 200
    assert (changed.json()["name"], changed.json()["allowed_ips"]) == ("nightly", ["127.0.0.0/8"])
    assert token.expires_at
    assert (token.expires_at - timezone.now()).days == 29
    event = Event.objects.get(action="token.updated")
    assert (event.via, event.actor_email, event.ip) == ("api", ann.email, "127.0.0.1")


@pytest.mark.full
def test_nothing_else_may_change_and_an_edit_without_changes_is_refused(ana: User, link: Connection) -> None:
    token, rest = make.token(link).token, Rest.of(ana)
    path = f"/tokens/{token.pk}"

    for key in ("scopes", "server_ids", "id", "digest", "connection_id", "revoked_at", "scope_all"):
        assert errors(rest.patch(path, {"name": "x", key: None})) == {key: ["Cannot be set."]}
    bodies: list[Any] = [[], "name", 5, None, {"name": ""}, {"name": "a\u0000b"}, {"allowed_ips": "10.0.0.1"}]
    for body in bodies:
        assert rest.client.patch(f"/api{path}", body, content_type="application/json").status_code == 400, body
    token.refresh_from_db()
    assert token.name != "x"


@pytest.mark.full
def test_ended_tokens_say_so(ana: User, link: Connection) -> None:
    revoked, expired = make.token(link).token, make.token(link).token
    revoked.revoke(by=ana)
    Token.objects.filter(pk=expired.pk).update(expires_at=timezone.now())
    rest = Rest.of(ana)

    for token, code in ((revoked, "token_revoked"), (expired, "token_expired")):
        assert problem(rest.patch(f"/tokens/{token.pk}", {"name": "x"})) == (409, code)
        assert problem(rest.post(f"/tokens/{token.pk}/rotate")) == (409, code)


@pytest.mark.full
def test_revoking_works_once(ann: User, link: Connection) -> None:
    rest, mine = Rest.of(ann), make.connection(link.host, link.gateway, ann)
    for way in ("revoke", "delete"):
        path = f"/tokens/{make.token(mine).token.pk}"
        first, again = (rest.delete(path) if way == "delete" else rest.post(f"{path}/revoke") for _ in range(2))

        assert (first.status_code, problem(again)) == (204, (409, "token_revoked")), way
    assert {event.via for event in Event.objects.filter(action="token.revoked")} == {"api"}
