"""/api/connections."""

from typing import Any

import pytest
from django.utils import timezone

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from connections.models import Connection
from gateways.models import Gateway
from hosts.models import Host
from tests import make
from tests.rest import Rest, problem, results
from tokens.models import Token

pytestmark = pytest.mark.django_db

KEYS = {
    *(
        "id",
        "client_name",
        "kind",
        "status",
        "enabled",
        "blocked_by",
        "user_email",
        "host",
        "gateway",
        "blocked_reason",
        "hold_wait",
    ),
    *(
        "api_key_prefix",
        "connected_at",
        "last_token_at",
        "last_used_at",
        "revoked_at",
        "tokens_active",
        "needs_identity",
    ),
}


@pytest.fixture
def work(db: None) -> Gateway:
    return make.gateway(slug="work", name="Work")


@pytest.fixture
def link(ana: User, work: Gateway) -> Connection:
    return make.connection(make.agent(by=ana, name="CI bot"), work, ana)


@pytest.fixture
def app(ann: User, work: Gateway) -> Connection:
    host = Host.objects.create(kind="headed", name="Claude Desktop")
    connection = make.connection(host, work, ann)
    Token.objects.provide_key(connection, by=ann)
    return connection


@pytest.mark.full
def test_a_connection_is_told_as_its_row(ana: User, link: Connection) -> None:
    token = make.token(link).token

    told = Rest.of(ana).get(f"/connections/{link.pk}").json()

    assert set(told) == KEYS
    assert (told["client_name"], told["kind"], told["status"]) == ("CI bot", "token", "active")
    assert (told["api_key_prefix"], told["tokens_active"], told["blocked_by"]) == (token.prefix, 1, None)
    assert told["host"] == {"id": str(link.host_id), "name": "CI bot"}
    assert told["gateway"]["url"].endswith("/mcp/work")


@pytest.mark.full
def test_a_row_says_what_blocks_it(ana: User, link: Connection) -> None:
    link.gateway.disable(by=ana)

    assert Rest.of(ana).get(f"/connections/{link.pk}").json()["blocked_by"] == "gateway"


@pytest.mark.full
def test_others_rows_take_the_capability(ana: User, viv: User, ann: User, link: Connection, app: Connection) -> None:
    assert [row["id"] for row in results(Rest.of(ann).get("/connections"))] == [str(app.pk)]
    assert len(results(Rest.of(viv).get("/connections"))) == 2
    assert problem(Rest.of(ann).get(f"/connections/{link.pk}")) == (404, "not_found")


@pytest.mark.full
def test_a_list_is_narrowed(ana: User, ann: User, link: Connection, app: Connection) -> None:
    elsewhere = make.connection(link.host, make.gateway(slug="other"), ana)
    elsewhere.revoke(by=ana)
    make.token(link)
    rest = Rest.of(ana)

    def found(**query: Any) -> list[str]:
        return [row["id"] for row in results(rest.get("/connections", **query))]

    assert found()[-1] == str(elsewhere.pk)  # The ended connection is last.
    assert found(kind="headed") == found(user=ann.email) == found(q="claude") == [str(app.pk)]
    assert found(status="revoked") == found(gateway="other") == [str(elsewhere.pk)]
    assert set(found(status="active")) == {str(link.pk), str(app.pk)}
    assert found(host=link.host_id, gateway=link.gateway_id) == [str(link.pk)]
    assert found(host="ci BOT", gateway="WORK") == [str(link.pk)]


@pytest.mark.full
def test_one_token_expired_and_another_revoked_are_no_active_one(ana: User, link: Connection) -> None:
    expired, revoked = make.token(link).token, make.token(link).token
    Token.objects.filter(pk=expired.pk).update(expires_at=timezone.now())
    revoked.revoke(by=ana)

    (row,) = results(Rest.of(ana).get("/connections", status="expired"))
    assert (row["status"], results(Rest.of(ana).get("/connections", status="active"))) == ("expired", [])


@pytest.mark.full
def test_the_rows_of_one_gateway(ana: User, ann: User, link: Connection, app: Connection) -> None:
    make.connection(link.host, make.gateway(slug="other"), ana)
    closed = make.gateway(slug="closed", reach="teams")

    assert {row["id"] for row in results(Rest.of(ana).get("/gateways/work/connections"))} == {
        str(link.pk),
        str(app.pk),
    }
    assert [row["id"] for row in results(Rest.of(ann).get("/gateways/work/connections"))] == [str(app.pk)]
    assert Rest.of(ann).get(f"/gateways/{closed.slug}/connections").status_code == 404


def test_nobody_makes_a_connection_by_hand(ana: User) -> None:
    assert problem(Rest.of(ana).post("/connections", {})) == (405, "method_not_allowed")


def test_the_switch(ana: User, link: Connection) -> None:
    rest = Rest.of(ana)

    assert rest.post(f"/connections/{link.pk}/disable").json()["status"] == "disabled"
    assert rest.post(f"/connections/{link.pk}/enable").json()["enabled"] is True
    link.revoke(by=ana)
    assert problem(rest.post(f"/connections/{link.pk}/enable")) == (409, "connection_revoked")
    assert Event.objects.filter(action__startswith="connection.", via="api").count() == 2


@pytest.mark.full
def test_the_toggle_capability_alone_is_enough(link: Connection) -> None:
    rest = Rest.of(make.user(Capability.CONNECTIONS_TOGGLE))

    assert rest.post(f"/connections/{link.pk}/disable").status_code == 200


@pytest.mark.full
def test_revoking_works_once_and_its_tokens_end(ana: User, link: Connection) -> None:
    token = make.token(link).token
    rest = Rest.of(ana)

    ended = rest.post(f"/connections/{link.pk}/revoke").json()

    token.refresh_from_db()
    assert (ended["status"], ended["tokens_active"], token.status) == ("revoked", 0, "revoked")
    assert ended["revoked_at"]
    assert problem(rest.post(f"/connections/{link.pk}/revoke")) == (409, "connection_revoked")


@pytest.mark.full
def test_everybody_ends_their_own(ann: User, app: Connection) -> None:
    assert Rest.of(ann).post(f"/connections/{app.pk}/revoke").json()["status"] == "revoked"


@pytest.mark.full
def test_a_viewer_changes_nothing(viv: User, link: Connection) -> None:
    make.token(link)
    rest = Rest.of(viv)

    answers = [rest.post(f"/connections/{link.pk}/{act}") for act in ("disable", "enable", "revoke", "regenerate")]

    assert {problem(answer) for answer in answers} == {(403, "capability_required")}
    link.refresh_from_db()
    assert (link.enabled, link.is_live) == (True, True)


# --- Regenerate -----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_key_of_an_app_is_renewed_and_shown_to_nobody(ana: User, app: Connection) -> None:
    """The prefix changes; status and connected date do not."""
    before = Rest.of(ana).get(f"/connections/{app.pk}").json()

    after = Rest.of(ana).post(f"/connections/{app.pk}/regenerate")

    assert after.status_code == 200
    assert {key for key in KEYS if before[key] != after.json()[key]} == {"api_key_prefix"}
    assert Token.objects.get(connection=app).generation == 2
    assert Event.objects.filter(action="connection.key_regenerated").count() == 1


@pytest.mark.full
def test_an_owner_without_the_capability_keeps_the_key(ann: User, app: Connection) -> None:
    assert Rest.of(ann).post(f"/connections/{app.pk}/regenerate").json()["capability"] == "api-keys:revoke"


def test_the_only_token_of_an_agent_is_rotated(ana: User, link: Connection) -> None:
    token = make.token(link).token

    answer = Rest.of(ana).post(f"/connections/{link.pk}/regenerate")

    assert list(answer.json()) == [
        *("token", "id", "name", "prefix", "expires_at", "allowed_ips", "scopes", "created_at"),
    ]
    assert answer.json()["id"] == str(token.pk)
    assert answer["Cache-Control"] == "no-store"


@pytest.mark.full
def test_several_tokens_need_a_choice(ana: User, link: Connection) -> None:
    make.token(link)
    make.token(link)

    assert problem(Rest.of(ana).post(f"/connections/{link.pk}/regenerate")) == (409, "choose_token")


@pytest.mark.full
def test_without_an_active_token_there_is_nothing_to_regenerate(ana: User, link: Connection) -> None:
    expired = make.token(link).token
    Token.objects.filter(pk=expired.pk).update(expires_at=timezone.now())

    assert problem(Rest.of(ana).post(f"/connections/{link.pk}/regenerate")) == (409, "no_active_token")
    link.revoke(by=ana)
    assert problem(Rest.of(ana).post(f"/connections/{link.pk}/regenerate")) == (409, "connection_revoked")


@pytest.mark.full
def test_the_token_of_anothers_agent_is_asked_for_and_its_secret_told_to_nobody(link: Connection) -> None:
    token = make.token(link).token
    path = f"/connections/{link.pk}/regenerate"
    reading = make.user(Capability.MCP_CONNECTIONS_READ, Capability.API_TOKENS_MANAGE)
    link.disable(by=None)

    refused = Rest.of(reading).post(path)
    answer = Rest.of(make.user(Capability.MCP_CONNECTIONS_REVOKE)).post(path)

    assert refused.json()["capability"] == "api-keys:revoke"
    assert (answer.status_code, set(answer.json())) == (200, set(KEYS))
    assert answer.json()["tokens_active"] == 0
    token.refresh_from_db()
    assert token.status == "waiting"


@pytest.mark.full
def test_an_api_key_that_may_make_no_token_gets_the_secret_of_none(ana: User, link: Connection) -> None:
    make.token(link)
    path = f"/connections/{link.pk}/regenerate"
    ending = make.api_key(ana, Capability.MCP_CONNECTIONS_REVOKE).secret
    making = make.api_key(ana, Capability.MCP_CONNECTIONS_REVOKE, Capability.API_TOKENS_MANAGE).secret

    assert Rest.bearing(ending).post(path).json()["capability"] == "api-tokens:manage"
    assert "token" in Rest.bearing(making).post(path).json()


@pytest.mark.full
def test_nothing_is_regenerated_behind_the_break_glass(ana: User, link: Connection, app: Connection) -> None:
    make.token(link)
    link.gateway.disable(by=ana)

    for connection in (link, app):
        assert problem(Rest.of(ana).post(f"/connections/{connection.pk}/regenerate")) == (403, "disabled")
