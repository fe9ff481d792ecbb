"""POST /api/tokens/{id}/rotate, with the token's own secret and by a person."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from typing import Any

import pytest
from django.core.cache import cache
from django.db import connections
from django.test import Client
from django.utils import timezone

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from connections.models import Connection, HostAtGateway
from hosts.models import Host
from tests import make
from tests.rest import Rest, problem
from tokens.models import Issued, Token

pytestmark = pytest.mark.django_db

EIGHT = ["token", "id", "name", "prefix", "expires_at", "allowed_ips", "scopes", "created_at"]
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@pytest.fixture
def link(ana: User) -> Connection:
    return make.connection(make.agent(by=ana), make.gateway(make.server(), make.server()), ana)


@pytest.fixture
def ci(link: Connection) -> Issued:
    return make.token(link, name="ci-pipeline")


def rotate(secret: str, pk: Any) -> Any:
    return Rest.bearing(secret).post(f"/tokens/{pk}/rotate")


# --- By itself ------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_token_that_rotates_itself_gets_eight_keys_and_only_its_secret_changes(ana: User, ci: Issued) -> None:
    before = Rest.of(ana).get(f"/tokens/{ci.token.pk}").json()

    answer = rotate(ci.secret, ci.token.pk)

    told, after = answer.json(), Rest.of(ana).get(f"/tokens/{ci.token.pk}").json()
    assert (answer.status_code, list(told)) == (200, EIGHT)
    assert not answer.cookies
    assert answer["Cache-Control"] == "no-store"
    assert TIME.fullmatch(told["expires_at"])
    assert [set(scope) for scope in told["scopes"]] == [{"server_id", "server_name", "server_slug"}] * 2
    assert {key for key in before if before[key] != after[key]} == {"prefix", "rotated_at"}
    assert {key: told[key] for key in EIGHT if key in after} == {key: after[key] for key in EIGHT if key in after}
    assert told["prefix"] == told["token"][:12]
    assert problem(rotate(ci.secret, ci.token.pk)) == (401, "unauthorized")
    assert rotate(told["token"], ci.token.pk).status_code == 200
    event = Event.objects.filter(action="token.rotated").earliest("id")
    assert (event.actor_email, event.via, event.ip) == ("token ci-pipeline (self)", "bearer", "127.0.0.1")
    assert ci.secret not in str(event.changes)


@pytest.mark.full
def test_an_idempotency_key_is_the_tokens_whatever_its_secret(ci: Issued) -> None:
    """A job that stored the new secret and then failed can repeat the request without another rotation."""
    path, key = f"/tokens/{ci.token.pk}/rotate", {"Idempotency-Key": "job-7"}
    first = Rest.bearing(ci.secret).send("post", path, None, key)
    assert first.status_code == 200, first.content

    again = Rest.bearing(first.json()["token"]).send("post", path, None, key)

    assert (again.status_code, again.json()) == (200, first.json())
    assert Event.objects.filter(action="token.rotated").count() == 1


def test_a_token_rotates_only_itself(link: Connection, ci: Issued) -> None:
    sibling = make.token(link).token

    assert problem(rotate(ci.secret, sibling.pk)) == (403, "not_own_token")
    sibling.refresh_from_db()
    assert sibling.rotated_at is None


@pytest.mark.full
def test_a_token_opens_no_other_door(ci: Issued) -> None:
    """All REST endpoints except rotate answer 403 to a token."""
    rest = Rest.bearing(ci.secret)

    assert problem(rest.get("/tokens")) == (403, "token_not_accepted")
    assert problem(rest.get(f"/tokens/{ci.token.pk}")) == (403, "token_not_accepted")
    assert problem(rest.patch(f"/tokens/{ci.token.pk}", {"name": "x"})) == (403, "token_not_accepted")
    assert problem(rest.delete(f"/tokens/{ci.token.pk}")) == (403, "token_not_accepted")


def bad_secrets(ci: Issued) -> dict[str, str]:
    return {
        "typo": ci.secret[:-1] + ("a" if ci.secret[-1] != "a" else "b"),
        "unknown": make.token(ci.token.connection).token.prefix + "x" * 36,
        "short": "gwa_abc",
        "empty": "",
    }


@pytest.mark.full
def test_a_bad_secret_gets_401(ci: Issued) -> None:
    for name, secret in bad_secrets(ci).items():
        answer = rotate(secret, ci.token.pk)

        assert problem(answer) == (401, "unauthorized"), name
        assert answer["WWW-Authenticate"] == "Bearer"
    none = Rest.of().post(f"/tokens/{ci.token.pk}/rotate")
    assert (problem(none), none["WWW-Authenticate"]) == ((401, "not_authenticated"), "Bearer")


@pytest.mark.full
def test_ended_tokens_get_401(ana: User, ann: User, link: Connection, ci: Issued) -> None:
    revoked, expired, cut = make.token(link), make.token(link), make.token(link)
    theirs = make.token(make.connection(link.host, link.gateway, ann))
    revoked.token.revoke(by=ana)
    Token.objects.filter(pk=expired.token.pk).update(expires_at=timezone.now() - timedelta(seconds=1))
    make.user(Capability.PEOPLE_MANAGE)
    ann.deactivate(by=ana)
    answers = [rotate(one.secret, one.token.pk) for one in (revoked, expired, theirs)]
    link.revoke(by=ana)
    answers.append(rotate(cut.secret, cut.token.pk))

    assert {problem(answer) for answer in answers} == {(401, "unauthorized")}
    assert len({answer.content for answer in answers}) == 1


@pytest.mark.full
def test_break_glass_covers_rotation_by_itself_and_by_a_person(ana: User, link: Connection, ci: Issued) -> None:
    """A stolen token must not rotate itself while its host, gateway or connection is disabled."""

    def refused() -> None:
        assert problem(rotate(ci.secret, ci.token.pk)) == (403, "disabled")
        assert problem(Rest.of(ana).post(f"/tokens/{ci.token.pk}/rotate")) == (403, "disabled")

    for layer in (link.host, link.gateway, link):
        layer.disable(by=ana)
        refused()
        layer.enable(by=ana)
    Host.objects.filter(pk=link.host_id).update(needs_approval=True)
    refused()
    Host.objects.filter(pk=link.host_id).update(needs_approval=False)
    assert rotate(ci.secret, ci.token.pk).status_code == 200
    HostAtGateway.objects.at(link.gateway, link.host).block(by=ana)
    assert problem(Rest.of(ana).post(f"/tokens/{ci.token.pk}/rotate")) == (403, "disabled")


def test_the_allowlist_covers_rotation(link: Connection) -> None:
    outside, inside = make.token(link, allowed_ips=["198.51.100.7"]), make.token(link, allowed_ips=["127.0.0.0/8"])

    assert problem(rotate(outside.secret, outside.token.pk)) == (403, "ip_not_allowed")
    nowhere = Client(headers={"Authorization": f"Bearer {inside.secret}"}, REMOTE_ADDR="")
    assert problem(nowhere.generic("POST", f"/api/tokens/{inside.token.pk}/rotate")) == (403, "ip_not_allowed")
    assert rotate(inside.secret, inside.token.pk).status_code == 200


@pytest.mark.full
def test_a_token_rotates_60_times_an_hour_at_most(link: Connection) -> None:
    token, secret = make.token(link)
    cache.set(f"rotation:{token.pk}", [time.time()] * 59, 3600)
    secret = rotate(secret, token.pk).json()["token"]

    answer = rotate(secret, token.pk)

    assert problem(answer) == (429, "throttled")
    assert 0 < int(answer["Retry-After"]) <= 3600


# --- By a person ----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_an_owner_rotates_by_session(ann: User, link: Connection) -> None:
    mine = make.token(make.connection(link.host, link.gateway, ann))

    answer = Rest.of(ann).post(f"/tokens/{mine.token.pk}/rotate")

    assert (answer.status_code, list(answer.json())) == (200, EIGHT)
    assert problem(rotate(mine.secret, mine.token.pk)) == (401, "unauthorized")
    assert Event.objects.get(action="token.rotated").via == "api"


def test_a_session_needs_csrf_and_a_bearer_does_not(ana: User, ci: Issued) -> None:
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(ana)
    path = f"/api/tokens/{ci.token.pk}/rotate"

    assert problem(browser.post(path)) == (403, "csrf_failed")
    browser.cookies["gateway_csrf"] = "a" * 32
    assert browser.post(path, headers={"X-CSRFToken": "a" * 32}).status_code == 200


@pytest.mark.full
def test_if_both_are_present_the_bearer_decides(ana: User, link: Connection, ci: Issued) -> None:
    other = make.token(link).token
    both = Rest(Client(enforce_csrf_checks=True), {"Authorization": f"Bearer {ci.secret}"})
    both.client.force_login(ana)

    assert problem(both.post(f"/tokens/{other.pk}/rotate")) == (403, "not_own_token")
    assert both.post(f"/tokens/{ci.token.pk}/rotate").status_code == 200
    assert problem(both.post(f"/tokens/{ci.token.pk}/rotate")) == (401, "unauthorized")


@pytest.mark.full
def test_another_persons_token_is_rotated_by_nobody(link: Connection, ci: Issued) -> None:
    path = f"/tokens/{ci.token.pk}/rotate"

    assert Rest.of(make.user()).post(path).status_code == 404
    assert problem(Rest.of(make.user(*Capability)).post(path)) == (403, "not_yours")
    assert not Event.objects.filter(action="token.rotated").exists()
    assert rotate(ci.secret, ci.token.pk).status_code == 200


@pytest.mark.full
def test_an_api_key_rotates_its_owners_tokens_when_it_may_make_some(ana: User, link: Connection, ci: Issued) -> None:
    path = f"/tokens/{ci.token.pk}/rotate"
    ending = make.api_key(ana, Capability.MCP_CONNECTIONS_REVOKE).secret
    making = make.api_key(ana, Capability.API_TOKENS_MANAGE).secret

    assert Rest.bearing(ending).post(path).json()["capability"] == "api-tokens:manage"
    assert Rest.bearing(making).post(path).status_code == 200


# --- At once --------------------------------------------------------------------------------------------------------


def at_once(*calls: Any) -> list[Any]:
    """Call these functions concurrently, each with a separate database connection; return their results."""
    together = Barrier(len(calls))

    def run(call: Any) -> Any:
        together.wait(timeout=60)
        try:
            return call()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_one_of_two_concurrent_rotations_wins(ci: Issued) -> None:
    first, second = at_once(*[lambda: rotate(ci.secret, ci.token.pk)] * 2)

    assert sorted([first.status_code, second.status_code]) == [200, 401]
    winner = first if first.status_code == 200 else second
    assert rotate(winner.json()["token"], ci.token.pk).status_code == 200


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_rotating_while_the_connection_is_revoked_never_locks_up(ana: User) -> None:
    for _ in range(10):
        link = make.connection(make.agent(by=ana), make.gateway(), ana)
        token, secret = make.token(link)

        rotated, _ = at_once(
            lambda token=token, secret=secret: rotate(secret, token.pk), lambda link=link: link.revoke(by=None)
        )

        assert rotated.status_code in (200, 401)
        token.refresh_from_db()
        assert token.status == "revoked"
