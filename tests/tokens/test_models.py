"""API access tokens: shown once, limited, and bound to one connection."""

from datetime import timedelta

import pytest
from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from accounts.models import WorkspaceSettings
from auditlog.models import Event
from connections.models import Connection
from tests import make
from tokens.models import (
    BadAllowlistEntry,
    BadLifetime,
    Expired,
    NotYourToken,
    Superseded,
    Token,
    TokenAlreadyRevoked,
    TokenError,
    TokenNameTaken,
    TokenScope,
    TooMany,
)
from wire import token_text

pytestmark = pytest.mark.django_db


@pytest.fixture
def link() -> Connection:
    ana = make.user()
    return make.connection(make.agent(by=ana), make.gateway(make.server()), ana)


def test_only_prefix_and_digest_of_a_token_are_kept(link: Connection) -> None:
    token, secret = make.token(link)

    token.refresh_from_db()
    assert token_text.well_formed(secret, {token_text.ACCESS})
    assert token.prefix == secret[:12]
    assert bytes(token.digest or b"") == token_text.digest(secret, settings.TOKEN_KEYS[0])
    with connection.cursor() as cursor:
        cursor.execute("SELECT t::text FROM tokens_token t WHERE id = %s", [token.pk])
        assert secret[12:] not in cursor.fetchone()[0]


@pytest.mark.parametrize("days", [7, 30, 90])
def test_a_token_lives_7_30_or_90_days(link: Connection, days: int) -> None:
    token = make.token(link, expires_in_days=days).token

    assert token.expires_at is not None
    assert abs(token.expires_at - timezone.now() - timedelta(days=days)) < timedelta(minutes=1)


@pytest.mark.parametrize("days", [0, -7, 1, 8, 91, 365, None])
def test_other_lifetimes_are_refused(link: Connection, days: int | None) -> None:
    with pytest.raises(BadLifetime, match="Must be 7, 30 or 90"):
        make.token(link, expires_in_days=days)


@pytest.mark.full
def test_no_expiry_is_possible_only_where_the_workspace_allows_it(link: Connection) -> None:
    WorkspaceSettings.load()
    WorkspaceSettings.objects.update(allow_non_expiring_tokens=True)

    assert make.token(link, expires_in_days=None).token.expires_at is None


def test_an_allowlist_becomes_canonical_ranges(link: Connection) -> None:
    token = make.token(link, allowed_ips=[" 198.51.100.7", "2001:db8::/32", "10.1.2.3/8", "198.51.100.7/32", ""]).token

    assert token.allowed_ips == ["198.51.100.7/32", "2001:db8::/32", "10.0.0.0/8"]


def test_an_empty_allowlist_is_none(link: Connection) -> None:
    assert make.token(link, allowed_ips=["", "  "]).token.allowed_ips is None


@pytest.mark.parametrize("entry", ["300.1.1.1", "10.0.0.0/33", "example.com", "1.2.3.4:80", "::/129"])
def test_a_bad_address_is_named(link: Connection, entry: str) -> None:
    with pytest.raises(BadAllowlistEntry) as refusal:
        make.token(link, allowed_ips=["10.0.0.1", entry])
    assert entry in str(refusal.value)


def test_51_addresses_are_too_many(link: Connection) -> None:
    with pytest.raises(BadAllowlistEntry, match="At most 50"):
        make.token(link, allowed_ips=[f"10.0.0.{n}" for n in range(51)])


def test_a_token_acts_only_as_the_person_who_makes_it(link: Connection) -> None:
    with pytest.raises(NotYourToken):
        Token.objects.issue(link, name="sly", by=make.user())


def test_two_live_tokens_of_a_connection_have_two_names(link: Connection) -> None:
    make.token(link, name="CI")

    with pytest.raises(TokenNameTaken):
        make.token(link, name="ci ")


def test_the_name_of_a_revoked_token_is_free_again(link: Connection) -> None:
    make.token(link, name="ci").token.revoke(by=link.user)

    assert make.token(link, name="ci").token.status == "active"


@pytest.mark.full
def test_a_connection_holds_twenty_active_tokens_at_most(link: Connection) -> None:
    for _ in range(20):
        make.token(link)

    with pytest.raises(TooMany):
        make.token(link)


def test_a_revoked_connection_takes_no_token(link: Connection) -> None:
    link.revoke(by=link.user)

    with pytest.raises(TokenError, match="has been revoked"):
        make.token(link)


def test_a_narrowed_token_keeps_its_servers_for_good(link: Connection) -> None:
    """The database refuses to change the servers of a token, whichever code tries."""
    assigned = link.gateway.assignments.get()
    token = make.token(link, servers=[assigned]).token

    assert not token.scope_all
    assert [scope.assignment for scope in token.scopes.all()] == [assigned]
    with pytest.raises(IntegrityError, match="cannot be changed"), transaction.atomic():
        TokenScope.objects.filter(token=token).delete()


def test_revoking_one_token_leaves_its_sibling(link: Connection) -> None:
    one, other = make.token(link).token, make.token(link).token

    one.revoke(by=link.user)

    other.refresh_from_db()
    assert (one.status, other.status) == ("revoked", "active")


def test_rotating_changes_the_secret_and_nothing_else(link: Connection) -> None:
    token, old = make.token(link, expires_in_days=7, allowed_ips=["10.0.0.0/8"])
    kept = (token.pk, token.name, token.expires_at, token.allowed_ips, token.scope_all, token.created_at)

    rotated, new = token.rotate(by=link.user)

    rotated.refresh_from_db()
    assert new != old
    assert rotated.prefix == new[:12]
    assert (rotated.is_held_by(new), rotated.is_held_by(old)) == (True, False)
    assert kept == (
        rotated.pk,
        rotated.name,
        rotated.expires_at,
        rotated.allowed_ips,
        rotated.scope_all,
        rotated.created_at,
    )


def test_a_token_that_rotates_itself_is_its_own_actor(link: Connection) -> None:
    token, secret = make.token(link, name="ci-pipeline")

    token.rotate(by=None, presented=secret)

    assert Event.objects.get(action="token.rotated").actor_email == "token ci-pipeline (self)"


def test_a_secret_that_was_rotated_away_rotates_nothing(link: Connection) -> None:
    token, old = make.token(link)
    token.rotate(by=None, presented=old)

    with pytest.raises(Superseded):
        token.rotate(by=None, presented=old)


def test_rotating_moves_last_token_of_the_connection(link: Connection) -> None:
    make.token(link).token.rotate(by=link.user)

    link.refresh_from_db()
    assert link.last_token_at is not None


def test_ended_tokens_are_neither_edited_nor_rotated(link: Connection) -> None:
    revoked, expired = make.token(link).token, make.token(link).token
    revoked.revoke(by=link.user)
    Token.objects.filter(pk=expired.pk).update(expires_at=timezone.now())

    for token, error in ((revoked, TokenAlreadyRevoked), (expired, Expired)):
        with pytest.raises(error):
            token.rotate(by=link.user)
        with pytest.raises(error):
            token.edit(by=link.user, name="other")


@pytest.mark.full
def test_editing_sets_a_new_life_from_now_on(link: Connection) -> None:
    token = make.token(link, expires_in_days=90).token

    token.edit(by=link.user, name="nightly", expires_in_days=7, allowed_ips=["127.0.0.0/8"])

    token.refresh_from_db()
    assert (token.name, token.allowed_ips) == ("nightly", ["127.0.0.0/8"])
    assert token.expires_at
    assert (token.expires_at - timezone.now()).days == 6
    assert set(Event.objects.get(action="token.updated").changes) == {"name", "expires_at", "allowed_ips"}


@pytest.mark.full
def test_an_edit_that_changes_nothing_leaves_no_event(link: Connection) -> None:
    token = make.token(link, name="same").token

    token.edit(by=link.user, name="same", allowed_ips=None)

    assert not Event.objects.filter(action="token.updated").exists()


@pytest.mark.full
def test_a_token_cannot_take_the_name_of_its_sibling(link: Connection) -> None:
    make.token(link, name="one")

    with pytest.raises(TokenNameTaken):
        make.token(link, name="other").token.edit(by=link.user, name="ONE")
