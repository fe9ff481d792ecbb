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
    *("gateway", "connection_id", "user_email", "rotated_at", "revoked_at", "calls_per_minute"),
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


@pytest.mark.full
def test_creating_tells_the_secret_once(ana: User, bot: Host, work: Gateway, docs: Server) -> None:
    made = Rest.of(ana).post("/tokens", wanted(bot, work))

    told = made.json()
    assert made.status_code == 201
    assert made["Cache-Control"] == "no-store"
    assert set(told) == KEYS | {"token"}
    assert (len(told["token"]), told["token"][:12]) == (48, told["prefix"])
    assert told["gateway"] == {"id": str(work.pk), "name": "Work", "slug": "work", "url": work.url}
    assert told["scopes"] == [{"server_id": str(docs.pk), "server_name": "Docs", "server_slug": "docs"}]
    assert (told["status"], told["user_email"], told["allowed_ips"]) == ("active", ana.email, None)
    assert told["token"] not in Rest.of(ana).get(f"/tokens/{told['id']}").content.decode()


@pytest.mark.full
def test_creating_joins_the_live_connection(ana: User, link: Connection) -> None:
    made = Rest.of(ana).post("/tokens", wanted(link.host, link.gateway))

    assert made.json()["connection_id"] == str(link.pk)


@pytest.mark.full
def test_creating_takes_the_capability(ann: User, bot: Host, work: Gateway) -> None:
    refused = Rest.of(ann).post("/tokens", wanted(bot, work))

    assert (refused.status_code, refused.json()) == (
        403,
        {
            "detail": "Capability 'api-tokens:manage' or 'api-tokens:create' is required.",
            "code": "capability_required",
            "capability": "api-tokens:manage",
        },
    )


def test_nobody_makes_a_token_for_another(ana: User, ann: User, bot: Host, work: Gateway) -> None:
    """The request has no field for another user."""
    refused = Rest.of(ana).post("/tokens", wanted(bot, work, user=ann.email))

    assert errors(refused) == {"user": ["Cannot be set."]}


@pytest.mark.full
@pytest.mark.parametrize("days", [365, 0, -7, 8])
def test_only_three_lifetimes_are_possible(ana: User, bot: Host, work: Gateway, days: int) -> None:
    refused = Rest.of(ana).post("/tokens", wanted(bot, work, expires_in_days=days))

    assert errors(refused) == {"expires_in_days": ["Must be 7, 30 or 90."]}
    assert not Connection.objects.exists()


@pytest.mark.full
def test_no_expiry_needs_the_setting(ana: User, bot: Host, work: Gateway) -> None:
    body = wanted(bot, work, expires_in_days=None)

    assert set(errors(Rest.of(ana).post("/tokens", body))) == {"expires_in_days"}

    WorkspaceSettings.edit(by=ana, allow_non_expiring_tokens=True)
    assert Rest.of(ana).post("/tokens", body).json()["expires_at"] is None


@pytest.mark.full
def test_a_bad_address_is_named(ana: User, bot: Host, work: Gateway) -> None:
    refused = Rest.of(ana).post("/tokens", wanted(bot, work, allowed_ips=["198.51.100.7", "300.1.1.1"]))

    assert errors(refused) == {"allowed_ips": ["“300.1.1.1” is neither an IP address nor a CIDR range."]}


@pytest.mark.full
def test_addresses_are_told_as_ranges(ana: User, bot: Host, work: Gateway) -> None:
    made = Rest.of(ana).post("/tokens", wanted(bot, work, allowed_ips=["198.51.100.7", "2001:db8::/32"]))

    assert made.json()["allowed_ips"] == ["198.51.100.7/32", "2001:db8::/32"]


@pytest.mark.full
def test_a_token_can_be_narrowed_to_some_servers(ana: User, bot: Host, work: Gateway, docs: Server) -> None:
    make.assignment(work, make.server())

    made = Rest.of(ana).post("/tokens", wanted(bot, work, server_ids=[str(docs.pk)]))

    assert [scope["server_slug"] for scope in made.json()["scopes"]] == ["docs"]


def test_a_server_of_another_gateway_is_refused(ana: User, bot: Host, work: Gateway) -> None:
    elsewhere = make.server()

    refused = Rest.of(ana).post("/tokens", wanted(bot, work, server_ids=[str(elsewhere.pk)]))

    assert errors(refused) == {"server_ids": [f"Server {elsewhere.pk} is not on this gateway."]}


@pytest.mark.full
def test_an_app_takes_no_token_by_hand(ana: User, work: Gateway) -> None:
    app = Host.objects.create(kind="headed", name="Claude Desktop")

    assert set(errors(Rest.of(ana).post("/tokens", wanted(app, work)))) == {"host_id"}


def test_a_gateway_out_of_reach_does_not_exist(bot: Host) -> None:
    user = make.user(Capability.API_TOKENS_MANAGE)
    closed = make.gateway(reach="teams")

    assert set(errors(Rest.of(user).post("/tokens", wanted(bot, closed)))) == {"gateway_id"}


@pytest.mark.full
def test_nothing_opens_through_a_disabled_host(ana: User, bot: Host, work: Gateway) -> None:
    bot.disable(by=ana)

    assert problem(Rest.of(ana).post("/tokens", wanted(bot, work))) == (409, "refused")


@pytest.mark.full
def test_a_name_is_taken_once_per_connection(ana: User, link: Connection) -> None:
    make.token(link, name="ci-pipeline")

    assert problem(Rest.of(ana).post("/tokens", wanted(link.host, link.gateway))) == (409, "already_exists")


@pytest.mark.full
def test_identities_are_brought_along(ana: User, bot: Host, work: Gateway) -> None:
    github = make.server(auth_type=AuthType.BEARER)
    assignment = make.assignment(work, github, identity_scheme=IdentityScheme.PER_USER)
    mine = make.identity(github, ana)

    made = Rest.of(ana).post("/tokens", wanted(bot, work, identities={str(github.pk): str(mine.pk)}))

    connection = Connection.objects.get(pk=made.json()["connection_id"])
    assert [(bound.assignment, bound.identity) for bound in connection.identities.all()] == [(assignment, mine)]


@pytest.mark.full
def test_a_server_may_be_left_without_identity(ana: User, bot: Host, work: Gateway) -> None:
    make.assignment(work, make.server(auth_type=AuthType.BEARER), identity_scheme=IdentityScheme.PER_USER)

    assert Rest.of(ana).post("/tokens", wanted(bot, work)).status_code == 201


@pytest.mark.full
def test_anothers_identity_cannot_be_brought(ana: User, ann: User, bot: Host, work: Gateway) -> None:
    github = make.server(auth_type=AuthType.BEARER)
    make.assignment(work, github, identity_scheme=IdentityScheme.PER_USER)
    theirs = make.identity(github, ann)

    refused = Rest.of(ana).post("/tokens", wanted(bot, work, identities={str(github.pk): str(theirs.pk)}))

    assert errors(refused) == {"identities": [f"You have no usable credential {theirs.pk} for server {github.pk}."]}


def test_a_server_everybody_reaches_alike_takes_no_identity(ana: User, bot: Host, work: Gateway, docs: Server) -> None:
    mine = make.identity(make.server(auth_type=AuthType.BEARER), ana)

    refused = Rest.of(ana).post("/tokens", wanted(bot, work, identities={str(docs.pk): str(mine.pk)}))

    assert errors(refused) == {"identities": [f"Server {docs.pk} takes no credential of yours on this gateway."]}
    assert not Connection.objects.exists()


# --- Read -----------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_list_holds_ones_own_active_tokens(ana: User, ann: User, link: Connection) -> None:
    active, revoked = make.token(link).token, make.token(link).token
    revoked.revoke(by=ana)
    make.token(make.connection(link.host, link.gateway, ann))

    mine = Rest.of(ana).get("/tokens")

    assert [token["id"] for token in results(mine)] == [str(active.pk)]
    assert set(results(mine)[0]) == KEYS
    assert mine.json() == {"count": 1, "next": None, "previous": None, "results": results(mine)}


@pytest.mark.full
def test_everybodys_tokens_take_the_capability(ana: User, ann: User, link: Connection) -> None:
    make.token(link)
    make.token(make.connection(link.host, link.gateway, ann))

    assert len(results(Rest.of(ana).get("/tokens", scope="all"))) == 2
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


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"state": "active"}, "state"),
        ({"status": "asleep"}, "status"),
        ({"host": "CI bot"}, "host"),
        ({"page_size": "many"}, "page_size"),
        ({"ordering": "digest"}, "ordering"),
        ({"expires_before": "soon"}, "expires_before"),
    ],
)
def test_unknown_parameters_and_values_are_refused(ann: User, query: dict[str, str], field: str) -> None:
    assert set(errors(Rest.of(ann).get("/tokens", **query))) == {field}


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


def test_times_are_told_in_utc_with_milliseconds(ana: User, link: Connection) -> None:
    token = make.token(link).token
    Token.objects.filter(pk=token.pk).update(expires_at="2036-06-18T14:00:00+02:00")

    assert results(Rest.of(ana).get("/tokens"))[0]["expires_at"] == "2036-06-18T12:00:00.000Z"


@pytest.mark.full
def test_anothers_token_does_not_exist(ana: User, ann: User, link: Connection) -> None:
    token = make.token(link).token

    assert problem(Rest.of(ann).get(f"/tokens/{token.pk}")) == (404, "not_found")
    assert problem(Rest.of(ann).patch(f"/tokens/{token.pk}", {"name": "x"})) == (404, "not_found")
    assert problem(Rest.of(ann).delete(f"/tokens/{token.pk}")) == (404, "not_found")


@pytest.mark.full
def test_the_key_of_an_app_is_no_token(ana: User, link: Connection) -> None:
    key = Token.objects.provide_key(link, by=ana)

    assert results(Rest.of(ana).get("/tokens", scope="all", status="all")) == []
    assert problem(Rest.of(ana).get(f"/tokens/{key.pk}")) == (404, "not_found")
    assert problem(Rest.of(ana).post(f"/tokens/{key.pk}/rotate")) == (404, "not_found")


# --- Edit and end ---------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_limit_is_set_and_taken_off(ana: User, bot: Host, work: Gateway) -> None:
    rest = Rest.of(ana)
    made = rest.post("/tokens", wanted(bot, work, calls_per_minute=600)).json()
    path = f"/tokens/{made['id']}"

    assert made["calls_per_minute"] == 600
    assert rest.patch(path, {"calls_per_minute": None}).json()["calls_per_minute"] is None
    assert Event.objects.get(action="token.updated").changes == {"calls_per_minute": [600, None]}
    for wrong in (0, -1, 1_000_001, "many"):
        assert set(errors(rest.patch(path, {"calls_per_minute": wrong}))) == {"calls_per_minute"}


@pytest.mark.full
def test_an_owner_tightens_a_limit_and_does_not_loosen_it(ana: User, ann: User, link: Connection) -> None:
    """Owners may lower their tokens' limits; raising a limit requires the capability to manage tokens."""
    token = make.token(make.connection(link.host, link.gateway, ann), calls_per_minute=600).token
    own, path = Rest.of(ann), f"/tokens/{token.pk}"

    for looser in (601, None):
        refused = own.patch(path, {"name": "renamed", "calls_per_minute": looser})
        assert problem(refused) == (403, "capability_required")
        assert refused.json()["capability"] == "api-tokens:manage"
    assert Token.objects.get(pk=token.pk).name == token.name
    assert own.patch(path, {"calls_per_minute": 600}).status_code == 200
    assert own.patch(path, {"calls_per_minute": 60}).json()["calls_per_minute"] == 60
    assert Rest.of(ana).patch(path, {"calls_per_minute": None}).json()["calls_per_minute"] is None


@pytest.mark.full
def test_three_things_may_change(ann: User, link: Connection) -> None:
    """The token's owner needs no capability to change name, expiry and IP allowlist."""
    token = make.token(make.connection(link.host, link.gateway, ann), expires_in_days=90).token

    changed = Rest.of(ann).patch(
        f"/tokens/{token.pk}", {"name": "nightly", "expires_in_days": 30, "allowed_ips": ["127.0.0.0/8"]}
    )

    token.refresh_from_db()
    assert (changed.status_code, changed.json()["name"], changed.json()["allowed_ips"]) == (
        200,
        "nightly",
        ["127.0.0.0/8"],
    )
    assert token.expires_at
    assert (token.expires_at - timezone.now()).days == 29
    event = Event.objects.get(action="token.updated")
    assert (event.via, event.actor_email, event.ip) == ("api", ann.email, "127.0.0.1")


@pytest.mark.full
@pytest.mark.parametrize("key", ["scopes", "server_ids", "id", "digest", "connection_id", "revoked_at", "scope_all"])
def test_nothing_else_may_change(ana: User, link: Connection, key: str) -> None:
    token = make.token(link).token

    assert errors(Rest.of(ana).patch(f"/tokens/{token.pk}", {"name": "x", key: None})) == {key: ["Cannot be set."]}
    token.refresh_from_db()
    assert token.name != "x"


@pytest.mark.full
@pytest.mark.parametrize("body", [[], "name", 5, None, {"name": ""}, {"name": "a\u0000b"}, {"allowed_ips": "10.0.0.1"}])
def test_an_edit_without_changes_is_refused(ana: User, link: Connection, body: Any) -> None:
    token = make.token(link).token

    refused = Rest.of(ana).client.patch(f"/api/tokens/{token.pk}", body, content_type="application/json")

    assert refused.status_code == 400


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
@pytest.mark.parametrize("way", ["revoke", "delete"])
def test_revoking_works_once(ann: User, link: Connection, way: str) -> None:
    token = make.token(make.connection(link.host, link.gateway, ann)).token
    rest = Rest.of(ann)

    def end() -> Any:
        return rest.delete(f"/tokens/{token.pk}") if way == "delete" else rest.post(f"/tokens/{token.pk}/revoke")

    assert (end().status_code, problem(end())) == (204, (409, "token_revoked"))
    assert Event.objects.get(action="token.revoked").via == "api"


@pytest.mark.full
def test_people_who_may_end_connections_may_end_tokens(link: Connection) -> None:
    token = make.token(link).token
    rest = Rest.of(make.user(Capability.MCP_CONNECTIONS_REVOKE))

    assert problem(rest.get(f"/tokens/{token.pk}")) == (403, "capability_required")
    assert rest.post(f"/tokens/{token.pk}/revoke").status_code == 204
