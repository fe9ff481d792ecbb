"""A token rolled with an overlap: both secrets work until it is over, each with its own last use."""

from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.db import connection
from django.utils import timezone

from accounts.models import User
from auditlog.models import Event
from connections.models import Connection
from gatewayadmin.config.key_uses import key_uses
from proxy.access.decision import ServersNeeded, decide
from tests import make
from tests.conftest import SignIn
from tests.proxy.conftest import sql
from tests.proxy.test_access import ask
from tests.rest import Rest, errors, problem
from tests.tokens.rows import ON_LIST, a_connection, row, secret_in, text
from tests.tokens.test_rotation import EIGHT
from tokens.models import BadTokenOverlap, Issued, NoPreviousToken, Token
from wire import token_text

pytestmark = pytest.mark.django_db

WORKS, UNKNOWN = "works", "unknown"


@pytest.fixture
def link(ana: User) -> Connection:
    return a_connection(ana, name="CI bot")


@pytest.fixture
def first(link: Connection) -> Issued:
    return make.token(link, name="ci")


def roll(issued: Issued, hours: int = 24) -> Issued:
    token = Token.objects.get(pk=issued.token.pk)
    return token.rotate(by=token.connection.user, overlap_hours=hours)


def says(*secrets: str, keys: list[bytes] | None = None) -> list[str]:
    """What the statement that decides every request says to each of these secrets."""
    slug = Token.objects.first().connection.gateway.slug  # type: ignore[union-attr]
    told = ask([(one, slug, ServersNeeded.NONE, "") for one in secrets], keys)
    return [_said(grant) for grant in told]


def _said(grant: Any) -> str:
    denied = grant and decide(grant, "127.0.0.1")
    return UNKNOWN if grant is None else denied.reason if denied else WORKS


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("hours", [1, 24, 168])
def test_both_secrets_work_until_the_overlap_is_over(hours: int, first: Issued) -> None:
    second = roll(first, hours)
    token = Token.objects.get()
    assert token.previous_works_until
    assert abs(token.previous_works_until - timezone.now() - timedelta(hours=hours)) < timedelta(minutes=1)
    assert says(first.secret, second.secret) == [WORKS, WORKS]

    sql("UPDATE tokens_token SET previous_ends_at = now()")

    assert says(first.secret, second.secret) == [UNKNOWN, WORKS]
    assert Token.objects.get().previous_works_until is None


@pytest.mark.django_db(transaction=True)
def test_without_an_overlap_the_old_secret_is_dead_at_once(first: Issued) -> None:
    second = roll(first, 0)

    assert says(first.secret, second.secret) == [UNKNOWN, WORKS]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("hours", "expected"), [(1, [UNKNOWN, WORKS, WORKS]), (0, [UNKNOWN, UNKNOWN, WORKS])])
def test_rolled_again_during_an_overlap_the_oldest_secret_dies(hours: int, expected: list[str], first: Issued) -> None:
    second = roll(first)
    third = roll(second, hours)

    assert says(first.secret, second.secret, third.secret) == expected


@pytest.mark.django_db(transaction=True)
def test_whatever_ends_or_stops_a_token_ends_or_stops_both_secrets(ana: User, link: Connection, first: Issued) -> None:
    second = roll(first)
    both = (first.secret, second.secret)
    link.disable(by=ana)
    assert says(*both) == ["connection_disabled"] * 2
    link.enable(by=ana)
    sql("UPDATE tokens_token SET expires_at = now()")
    assert says(*both) == ["expired"] * 2
    sql("UPDATE tokens_token SET expires_at = NULL")
    sql("""UPDATE tokens_token SET allowed_ips = '["10.0.0.0/8"]'""")
    assert says(*both) == ["ip"] * 2

    Token.objects.get().revoke(by=ana)

    assert says(*both) == ["revoked"] * 2


@pytest.mark.django_db(transaction=True)
def test_a_replaced_secret_is_found_under_every_key_and_its_key_is_still_needed(
    first: Issued, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = settings.TOKEN_KEYS[0], b"another key of 32 characters...."
    monkeypatch.setattr(settings, "TOKEN_KEYS", [new, old])
    second = roll(first)

    assert says(first.secret, second.secret, keys=[new, old]) == [WORKS, WORKS]
    assert says(first.secret, second.secret, keys=[new]) == [UNKNOWN, WORKS]
    assert {key: key_uses()[0].uses[token_text.token_key_id(key)] for key in (new, old)} == {new: 1, old: 1}
    sql("UPDATE tokens_token SET previous_ends_at = now()")
    assert key_uses()[0].uses[token_text.token_key_id(old)] == 0


def test_the_lookup_of_a_replaced_secret_is_an_index_read(first: Issued) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute("EXPLAIN SELECT id FROM tokens_token WHERE previous_digest = %s", [b"x" * 32])
        plan = "\n".join(line for (line,) in cursor.fetchall())

    assert "Index" in plan
    assert "previous_digest =" in plan


@pytest.mark.parametrize("hours", [-1, 2, 25, 10**9])
def test_other_overlaps_are_refused_and_nothing_changes(hours: int, ana: User, first: Issued) -> None:
    answer = Rest.of(ana).post(f"/tokens/{first.token.pk}/rotate", {"overlap_hours": hours})

    assert errors(answer) == {"overlap_hours": ["Must be 0, 1, 24 or 168 hours."]}
    with pytest.raises(BadTokenOverlap):
        roll(first, hours)
    assert Token.objects.get().generation == 1


def test_a_token_rolls_itself_with_an_overlap_and_the_old_secret_rolls_nothing(first: Issued) -> None:
    path = f"/tokens/{first.token.pk}/rotate"

    answer = Rest.bearing(first.secret).post(path, {"overlap_hours": 1})

    assert (answer.status_code, list(answer.json())) == (200, EIGHT)
    assert problem(Rest.bearing(first.secret).post(path)) == (401, "unauthorized")
    assert Rest.bearing(answer.json()["token"]).post(path).status_code == 200
    event = Event.objects.filter(action="token.rotated").order_by("pk")[0]
    assert event.changes["overlap_hours"] == [None, 1]


def test_the_api_tells_of_both_and_ends_the_old_one_early(ana: User, first: Issued) -> None:
    second = roll(first)
    rest, path = Rest.of(ana), f"/tokens/{first.token.pk}"

    told = rest.get(path).json()
    ended = rest.post(f"{path}/end-previous")

    assert told["prefix"] == second.secret[:12]
    assert (told["previous_secret"]["prefix"], told["previous_secret"]["last_used_at"]) == (first.secret[:12], None)
    assert (ended.status_code, ended.json()["previous_secret"]) == (200, None)
    assert problem(rest.post(f"{path}/end-previous")) == (409, "no_previous_secret")
    event = Event.objects.get(action="token.previous_ended")
    assert event.changes["prefix"] == [first.secret[:12], None]
    with pytest.raises(NoPreviousToken):
        Token.objects.get().end_previous(by=ana)


@pytest.mark.full
def test_it_is_found_by_either_prefix_and_by_no_letters_that_begin_all(
    ana: User, first: Issued, sign_in: SignIn
) -> None:
    token, old, client = first.token, first.secret[:12], sign_in(ana)
    new = token.rotate(by=ana, overlap_hours=1).secret[:12]
    lists = ("/find/?q={}", "/settings/api-tokens?q={}", "/settings/mcp-connections?type=agent&q={}")

    def found(words: str) -> list[bool]:
        return [new in text(client.get(path.format(words))) for path in lists]

    assert found(old) == found(new) == found("gwa") == [True] * 3
    assert found("gw") == found("gwa_none") == [False] * 3


@pytest.mark.full
def test_the_page_asks_how_long_and_tells_until_when(ana: User, first: Issued, sign_in: SignIn) -> None:
    browser, path = sign_in(ana), f"/tokens/{first.token.pk}/regenerate/"

    asked = text(browser.get(path, headers=ON_LIST))
    wrong = browser.post(path, {"generation": 1, "overlap_hours": "5"}, headers=ON_LIST)
    answer = browser.post(path, {"generation": 1, "overlap_hours": "24"}, headers=ON_LIST)

    assert all(words in asked for words in ("Not at all", "1 hour", "24 hours", "7 days"))
    assert 'value="0" checked' in asked
    assert (wrong.status_code, secret_in(wrong)) == (422, None)
    assert secret_in(answer)
    assert f"<code>{first.secret[:12]}</code> works until" in text(answer)
    assert "old until" in row(answer, first.token)
    assert "old until" in row(browser.get("/settings/api-tokens"), first.token)
    edit = text(browser.get(f"/tokens/{first.token.pk}/edit/"))
    assert first.secret[:12] in edit
    assert "End old token" in edit

    browser.post(f"/tokens/{first.token.pk}/end-previous/")

    assert Token.objects.get().previous_works_until is None


def test_a_token_is_found_by_the_prefix_of_its_old_secret_while_that_works(ana: User, first: Issued) -> None:
    roll(first)
    old = first.secret[:12]

    assert Token.objects.matching(old).count() == 1
    sql("UPDATE tokens_token SET previous_ends_at = now()")
    assert Token.objects.matching(old).count() == 0
