"""/api/connections."""

from functools import partial
from typing import Any

import pytest
from django.utils import timezone

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from connections.models import Connection, ConnectionAlreadyRevoked
from gateways.models import Gateway
from hosts.models import Host
from tests import make
from tests.rest import Rest, problem, results
from tokens.models import Token

pytestmark = pytest.mark.django_db


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

    assert (told["client_name"], told["kind"], told["status"]) == ("CI bot", "token", "active")
    assert (told["api_key_prefix"], told["tokens_active"], told["blocked_by"]) == (token.prefix, 1, None)
    assert told["host"] == {"id": str(link.host_id), "name": "CI bot"}
    assert told["gateway"]["url"].endswith("/mcp/work")
    link.gateway.disable(by=ana)
    assert Rest.of(ana).get(f"/connections/{link.pk}").json()["blocked_by"] == "gateway"


@pytest.mark.full
def test_others_rows_take_the_capability(ana: User, viv: User, ann: User, link: Connection, app: Connection) -> None:
    make.connection(link.host, make.gateway(slug="other"), ana)
    make.gateway(slug="closed", reach="teams")

    def found(person: User, path: str) -> set[str]:
        return {row["id"] for row in results(Rest.of(person).get(path))}

    assert found(ann, "/connections") == found(ann, "/gateways/work/connections") == {str(app.pk)}
    assert len(found(viv, "/connections")) == 3
    assert found(viv, "/gateways/work/connections") == {str(link.pk), str(app.pk)}
    assert problem(Rest.of(ann).get(f"/connections/{link.pk}")) == (404, "not_found")
    assert Rest.of(ann).get("/gateways/closed/connections").status_code == 404


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
    Token.objects.filter(connection=link).update(expires_at=timezone.now())
    make.token(link).token.revoke(by=ana)
    assert (found(status="expired"), found(status="active")) == ([str(link.pk)], [str(app.pk)])


def test_a_connection_is_switched_and_revoked_once_with_its_tokens(ana: User, link: Connection) -> None:
    rest, token = Rest.of(ana), make.token(link).token

    assert rest.post(f"/connections/{link.pk}/disable").json()["status"] == "disabled"
    assert rest.post(f"/connections/{link.pk}/enable").json()["enabled"] is True
    ended = rest.post(f"/connections/{link.pk}/revoke").json()

    token.refresh_from_db()
    assert (ended["status"], ended["tokens_active"], token.status) == ("revoked", 0, "revoked")
    assert ended["revoked_at"]
    for act in ("enable", "revoke"):
        assert problem(rest.post(f"/connections/{link.pk}/{act}")) == (409, "connection_revoked")
    for change in (link.enable, link.disable, partial(link.set_hold_wait, 5)):
        with pytest.raises(ConnectionAlreadyRevoked):
            change(by=ana)
    actions = Event.objects.filter(action__startswith="connection.", via="api").values_list("action", flat=True)
    assert sorted(actions) == ["connection.disabled", "connection.enabled", "connection.revoked"]


@pytest.mark.full
def test_everybody_ends_their_own(ann: User, app: Connection) -> None:
    assert Rest.of(ann).post(f"/connections/{app.pk}/revoke").json()["status"] == "revoked"


# --- Regenerate -----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_key_of_an_app_is_renewed_with_the_capability_and_shown_to_nobody(
    ana: User, ann: User, app: Connection
) -> None:
    """Of the connection's fields, only the key's prefix changes."""
    before = Rest.of(ana).get(f"/connections/{app.pk}").json()
    path = f"/connections/{app.pk}/regenerate"
    assert Rest.of(ann).post(path).json()["capability"] == "api-keys:revoke", "its owner lacks it"

    after = Rest.of(ana).post(path)

    assert after.status_code == 200
    assert {key for key in before if before[key] != after.json()[key]} == {"api_key_prefix"}
    assert Token.objects.get(connection=app).generation == 2
    assert Event.objects.filter(action="connection.key_regenerated").count() == 1
    app.gateway.disable(by=ana)
    assert problem(Rest.of(ana).post(path)) == (403, "disabled")


def test_the_only_active_token_of_an_agent_is_rotated(ana: User, link: Connection) -> None:
    token, path = make.token(link).token, f"/connections/{link.pk}/regenerate"

    answer = Rest.of(ana).post(path)

    assert list(answer.json()) == [
        *("token", "id", "name", "prefix", "expires_at", "allowed_ips", "scopes", "created_at"),
    ]
    assert answer.json()["id"] == str(token.pk)
    assert answer["Cache-Control"] == "no-store"
    make.token(link)
    assert problem(Rest.of(ana).post(path)) == (409, "choose_token")
    link.gateway.disable(by=ana)
    assert problem(Rest.of(ana).post(path)) == (403, "disabled")
    link.gateway.enable(by=ana)
    Token.objects.update(expires_at=timezone.now())
    assert problem(Rest.of(ana).post(path)) == (409, "no_active_token")
    link.revoke(by=ana)
    assert problem(Rest.of(ana).post(path)) == (409, "connection_revoked")


@pytest.mark.full
def test_the_token_of_anothers_agent_is_asked_for_and_its_secret_told_to_nobody(link: Connection) -> None:
    token = make.token(link).token
    path = f"/connections/{link.pk}/regenerate"
    reading = make.user(Capability.MCP_CONNECTIONS_READ, Capability.API_TOKENS_MANAGE)
    link.disable(by=None)

    refused = Rest.of(reading).post(path)
    answer = Rest.of(make.user(Capability.MCP_CONNECTIONS_REVOKE)).post(path)

    assert refused.json()["capability"] == "api-keys:revoke"
    assert answer.status_code == 200
    assert "token" not in answer.json()
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
