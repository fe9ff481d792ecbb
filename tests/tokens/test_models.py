"""API access tokens: shown once, limited, and bound to one connection."""

from datetime import timedelta

import pytest
from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

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


def test_a_token_lives_7_30_or_90_days(link: Connection) -> None:
    for days in (7, 30, 90):
        token = make.token(link, expires_in_days=days).token

        assert token.expires_at is not None
        assert abs(token.expires_at - timezone.now() - timedelta(days=days)) < timedelta(minutes=1)
    for wrong in (0, -7, 1, 8, 91, 365, None):
        with pytest.raises(BadLifetime, match="Must be 7, 30 or 90"):
            make.token(link, expires_in_days=wrong)


def test_an_allowlist_becomes_canonical_ranges(link: Connection) -> None:
    token = make.token(link, allowed_ips=[" 198.51.100.7", "2001:db8::/32", "10.1.2.3/8", "198.51.100.7/32", ""]).token

    assert token.allowed_ips == ["198.51.100.7/32", "2001:db8::/32", "10.0.0.0/8"]
    assert make.token(link, allowed_ips=["", "  "]).token.allowed_ips is None
    for entry in ("300.1.1.1", "10.0.0.0/33", "example.com", "1.2.3.4:80", "::/129"):
        with pytest.raises(BadAllowlistEntry) as refusal:
            make.token(link, allowed_ips=["10.0.0.1", entry])
        assert entry in str(refusal.value)
    with pytest.raises(BadAllowlistEntry, match="At most 50"):
        make.token(link, allowed_ips=[f"10.0.0.{n}" for n in range(51)])


def test_a_token_acts_only_as_the_person_who_makes_it_and_only_they_or_itself_rotate_it(link: Connection) -> None:
    with pytest.raises(NotYourToken):
        Token.objects.issue(link, name="sly", by=make.user())
    token, old = make.token(link, name="ci-pipeline")
    for by in (make.user(), None):
        with pytest.raises(NotYourToken):
            token.rotate(by=by)

    token.rotate(by=None, presented=old)

    assert Event.objects.get(action="token.rotated").actor_email == "token ci-pipeline (self)"
    with pytest.raises(Superseded):
        token.rotate(by=None, presented=old)


def test_two_live_tokens_of_a_connection_have_two_names_and_that_of_a_revoked_one_is_free(link: Connection) -> None:
    one, other = make.token(link, name="Kiosk").token, make.token(link, name="other").token

    for name in ("kiosk ", "\N{KELVIN SIGN}iosk"):
        with pytest.raises(TokenNameTaken):
            make.token(link, name=name)
        with pytest.raises(TokenNameTaken):
            other.edit(by=link.user, name=name)
    one.revoke(by=link.user)

    assert make.token(link, name="kiosk").token.status == "active"
    other.refresh_from_db()
    assert other.status == "active"


@pytest.mark.full
def test_a_connection_holds_twenty_active_tokens_at_most_and_none_once_it_is_revoked(link: Connection) -> None:
    for _ in range(20):
        make.token(link)
    with pytest.raises(TooMany):
        make.token(link)

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


def test_ended_tokens_are_neither_edited_nor_rotated(link: Connection) -> None:
    revoked, expired = make.token(link).token, make.token(link).token
    revoked.revoke(by=link.user)
    Token.objects.filter(pk=expired.pk).update(expires_at=timezone.now())

    for token, error in ((revoked, TokenAlreadyRevoked), (expired, Expired)):
        with pytest.raises(error):
            token.rotate(by=link.user)
        with pytest.raises(error):
            token.edit(by=link.user, name="other")
