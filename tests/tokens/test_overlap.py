"""Replacing a token without an outage: the old secret stays valid for a while after the new secret is made."""

import asyncio
import time
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.core import mail
from django.db import connection
from django.utils import timezone

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from gatewayadmin.config import database
from proxy.access.decision import ServersNeeded
from proxy.store.usage import STATEMENTS, UsageTracker
from tests import make
from tests.conftest import SignIn
from tests.eventually import until
from tests.proxy.test_access import ask
from tests.rest import Rest
from tests.tokens.rows import text
from tokens import models
from tokens.models import Issued, Token

pytestmark = pytest.mark.django_db


@pytest.fixture
def boss() -> User:
    return make.user(*Capability, email="boss@example.com")


@pytest.fixture
def issued(ann: User, ana: User) -> Issued:
    return make.token(make.connection(make.agent(by=ana, name="CI bot"), make.gateway(), ann), name="ci")


def called(token: Token, *addresses: str) -> None:
    for address in addresses:
        make.call(connection_id=token.connection_id, token_id=token.pk, client_ip=address)


def used(token: Token, prefix: str) -> None:
    """Record a use of the token, as the proxy does shortly after a request with the secret of this prefix."""
    told: dict[str, Any] = {"ids": [token.pk], "at": [timezone.now()], "ip": ["10.0.0.1"], "prefix": [prefix]}
    with connection.cursor() as cursor:
        cursor.execute(STATEMENTS["tokens"], told | {"other": [None], "other_at": [None]})


def chosen(page: str) -> list[str]:
    """Return the overlap values offered on the page, with the selected value in capitals."""
    inputs = [part.partition(">")[0] for part in page.split('name="overlap_hours" ')[1:]]
    return [(one.upper() if "checked" in one else one).split('"')[1] for one in inputs]


def test_what_is_selected_depends_on_where_it_was_used(issued: Issued, ann: User, boss: User, sign_in: SignIn) -> None:
    token = issued.token
    for addresses, offered in (
        ((), ["24", "168", "1", "0"]),
        (("10.0.0.1", "10.0.0.1"), ["USED", "24", "168", "1", "0"]),
        (("10.0.0.2",), ["24", "168", "1", "0"]),
    ):
        called(token, *addresses)

        owners = text(sign_in(ann).get(f"/tokens/{token.pk}/regenerate/"))
        administrators = text(sign_in(boss).get(f"/tokens/{token.pk}/ask-for-new/"))

        assert chosen(owners) == chosen(administrators) == offered
        assert 'value="24" checked' in owners or "USED" in offered


@pytest.mark.full
def test_addresses_are_those_of_the_newest_calls_of_the_connection(
    issued: Issued, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "MOST_CALLS_READ", 3)
    called(issued.token, "10.0.0.1")
    called(make.token(issued.token.connection, name="other").token, "10.0.0.3")
    called(issued.token, "10.0.0.2", "10.0.0.2")

    assert issued.token.recent_addresses() == ["10.0.0.2"]


def test_an_old_secret_ends_with_the_first_use_of_the_new_one_if_that_was_chosen(issued: Issued, ann: User) -> None:
    new = issued.token.rotate(by=ann, overlap_hours=24)
    used(new.token, new.token.prefix)
    token = Token.objects.get()
    assert token.previous_works_until
    assert token.secrets_in_use == "new"

    newest = token.rotate(by=ann, overlap_hours=24, until_used=True)
    used(newest.token, new.token.prefix)
    assert Token.objects.get().previous_works_until
    used(newest.token, newest.token.prefix)

    token = Token.objects.get()
    assert token.previous_works_until is None
    assert token.secrets_in_use == "both"
    assert Event.objects.filter(action="token.rotated").latest("id").changes["until_used"] == [None, True]


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_the_first_use_of_a_new_secret_counts_even_if_the_row_was_locked(issued: Issued, ann: User) -> None:
    """Another worker may write the use of the old secret at the same moment."""
    new = issued.token.rotate(by=ann, overlap_hours=24, until_used=True)
    slug = new.token.connection.gateway.slug
    [grant] = ask([(new.secret, slug, ServersNeeded.NONE, "")])
    assert grant

    async def main() -> None:
        usage = UsageTracker(database.conninfo(), 60)
        usage.start()
        with psycopg.connect(database.conninfo()) as other:
            other.execute("SELECT FROM tokens_token FOR UPDATE")
            usage.token_used(grant, "10.0.0.1", time.time())
            # Connections are written after tokens.
            await until(
                lambda: other.execute("SELECT FROM connections_connection WHERE last_used_at IS NOT NULL").rowcount
            )
            assert other.execute("SELECT FROM tokens_token WHERE previous_ends_at > now()").rowcount
        with psycopg.connect(database.conninfo(), autocommit=True) as other:
            await until(lambda: other.execute("SELECT FROM tokens_token WHERE previous_ends_at <= now()").rowcount)
        await usage.stop()

    asyncio.run(main())
    assert Token.objects.get().previous_works_until is None


@pytest.mark.full
def test_the_old_secret_does_not_end_itself_before_the_new_one_is_collected(issued: Issued, boss: User) -> None:
    issued.token.ask_for_new(by=boss, overlap_hours=24, until_used=True)

    used(issued.token, issued.token.prefix)

    token = Token.objects.get()
    assert token.previous_works_until
    assert token.secrets_in_use != "both"


@pytest.mark.django_db(transaction=True)
def test_a_new_token_asked_for_with_an_overlap_leaves_the_old_one_until_it_is_collected_and_after(
    issued: Issued, ann: User, boss: User, sign_in: SignIn
) -> None:
    slug, path = issued.token.connection.gateway.slug, f"/tokens/{issued.token.pk}/ask-for-new/"
    question = [(issued.secret, slug, ServersNeeded.NONE, "")]

    Token.objects.update(expires_at=timezone.now() + timedelta(hours=1))
    sign_in(boss).post(path, {"overlap_hours": "24"})
    token = Token.objects.get()

    assert (token.status, token.previous_prefix) == ("waiting", issued.token.prefix)
    assert token.previous_works_until
    assert None not in ask(question)
    assert f"The old token works until {token.expires_at:%Y-%m-%d %H:%M} UTC." in mail.outbox[-1].body
    assert "The old one works until" in text(sign_in(ann).get("/"))

    new = token.collect(by=ann)
    assert None not in ask([*question, (new.secret, slug, ServersNeeded.NONE, "")])
    Token.objects.update(previous_ends_at=timezone.now() - timedelta(seconds=1))
    assert ask(question) == [None]


def test_asked_for_again_without_an_overlap_the_old_one_ends(issued: Issued, boss: User) -> None:
    issued.token.ask_for_new(by=boss, overlap_hours=24)
    Token.objects.get().ask_for_new(by=boss, overlap_hours=24)
    assert Token.objects.get().previous_works_until

    Token.objects.get().ask_for_new(by=boss)

    assert Token.objects.get().previous_works_until is None
    assert [event.action for event in Event.objects.filter(target_type="token").order_by("pk")][-2:] == [
        "token.asked_for_new",
        "token.previous_ended",
    ]


def test_rest_takes_the_same_choices(issued: Issued, ann: User, boss: User) -> None:
    path = f"/tokens/{issued.token.pk}"

    rotated = Rest.of(ann).post(f"{path}/rotate", {"overlap_hours": 24, "until_used": True})
    asked = Rest.of(boss).post(f"{path}/ask-for-new", {"overlap_hours": 168})

    assert (rotated.status_code, asked.status_code) == (200, 200)
    token = Token.objects.get()
    assert token.previous_prefix == rotated.json()["prefix"]
    assert not token.previous_until_used
    assert token.previous_works_until
    assert token.previous_works_until > timezone.now() + timedelta(days=6)


def test_the_dialog_names_the_addresses_of_each_secret(issued: Issued, ann: User, sign_in: SignIn) -> None:
    old = issued.token.prefix
    new = issued.token.rotate(by=ann, overlap_hours=24).token
    told: dict[str, Any] = {"connection_id": new.connection_id, "token_id": new.pk}
    make.call(token_prefix=old, client_ip="10.4.2.17", **told)
    make.call(token_prefix=new.prefix, client_ip="10.4.2.19", **told)
    used(new, old)

    page = text(sign_in(ann).get(f"/tokens/{new.pk}/edit/"))

    assert "Only the old one is in use." in page
    assert page.index(old) < page.index("10.4.2.17") < page.index("10.4.2.19")
