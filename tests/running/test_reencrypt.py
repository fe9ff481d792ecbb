"""`manage.py reencrypt` encrypts every stored secret with the newest key while everything runs."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from uuid import uuid4

import pytest
from cryptography.fernet import Fernet
from django.apps import apps
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connection as database
from django.test.utils import CaptureQueriesContext

from auditlog.actions import Action
from auditlog.models import Event
from gatewayadmin.config.key_uses import key_uses
from proxy.models import UpstreamSession
from servers.models import Identity
from servers.oauth_client.models import ClientRegistration
from servers.resealing import reseal_servers
from tests import make
from tests.meanwhile import just_before
from ui.sealing import cipher
from wire.cipher import encryption_key_id

pytestmark = pytest.mark.django_db(transaction=True)

OLD, NEW = Fernet.generate_key(), Fernet.generate_key()
SECRET = "ghp_0123456789abcdef9f3a"

type Keys = Callable[..., None]


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[Keys]:
    """Yield a function that sets the encryption keys, newest first, and clears the cached cipher, like a restart."""

    def restart(*newest_first: bytes) -> None:
        monkeypatch.setattr(settings, "ENCRYPTION_KEYS", list(newest_first))
        cipher.cache_clear()

    yield restart
    cipher.cache_clear()


def printed(*words: str) -> str:
    out = StringIO()
    call_command(*words, stdout=out)
    return " ".join(out.getvalue().split())


def an_identity() -> Identity:
    return make.identity(make.server(auth_type="bearer"), make.user(), secret=SECRET)


def a_client(issuer: str) -> ClientRegistration:
    registration = ClientRegistration(issuer=issuer, kind="manual", client_id="gateway")
    registration.seal(SECRET)
    registration.save()
    return registration


def a_session(key: str) -> UpstreamSession:
    ids = {name: uuid4() for name in ("owner_id", "connection_id", "server_id")}
    return UpstreamSession.objects.create(key=key, sealed_id=cipher().seal("session-1"), **ids)


def opened(identity: Identity) -> str:
    identity.refresh_from_db()
    return cipher().open(bytes(identity.secret_ciphertext or b""))


def test_every_secret_moves_once_nothing_else_changes_and_the_old_key_may_go(keys: Keys) -> None:
    keys(OLD)
    first, second, revoked = an_identity(), an_identity(), an_identity()
    revoked.revoke(by=revoked.owner)
    registration = a_client("https://id.example.com")
    kept = ("label", "secret_hint", "generation", "enabled", "updated_at", "last_used_at")
    before = Identity.objects.filter(pk=first.pk).values(*kept).get()
    keys(NEW, OLD)
    third = an_identity()
    assert f"{encryption_key_id(OLD)} 3 still needed" in printed("keys")

    assert "identities 2 resealed upstream clients 1 resealed" in printed("reencrypt")

    assert f"{encryption_key_id(OLD)} 0 may be removed" in printed("keys")
    event = Event.objects.get(action=Action.SECRETS_REENCRYPTED)
    changes = {"secrets": 3, "unreadable": 0, "key": encryption_key_id(NEW)}
    assert (event.actor_email, event.changes) == ("system", changes)
    assert Identity.objects.filter(pk=first.pk).values(*kept).get() == before
    resealed = Identity.objects.filter(pk=first.pk).values().get()
    assert "identities 0 resealed" in printed("reencrypt")
    assert Identity.objects.filter(pk=first.pk).values().get() == resealed
    keys(NEW)
    assert [opened(one) for one in (first, second, third)] == [SECRET] * 3
    registration.refresh_from_db()
    assert registration.client.secret == SECRET
    revoked.refresh_from_db()
    assert revoked.secret_ciphertext is None


def test_every_table_that_names_a_key_is_counted_by_keys() -> None:
    """If `manage.py keys` did not count a row, an operator might remove the row's key, and lose its secret."""
    tables = {model._meta.db_table for model in apps.get_models() if "key_id" in {f.name for f in model._meta.fields}}

    with CaptureQueriesContext(database) as asked:
        key_uses()

    counted = {table for table in tables for query in asked if f'FROM "{table}"' in query["sql"]}
    assert counted == tables
    assert len(tables) >= 9


def test_what_no_key_opens_stays_as_it_was_and_stops_nothing_else(keys: Keys) -> None:
    keys(Fernet.generate_key())
    lost, lost_identity = a_client("https://lost.example.com"), an_identity()
    a_session("lost")
    keys(OLD)
    found, identity = a_client("https://id.example.com"), an_identity()
    a_session("found")
    keys(NEW, OLD)

    out = StringIO()
    with pytest.raises(CommandError, match="MISSING"):
        call_command("reencrypt", stdout=out)

    told = " ".join(out.getvalue().split())
    assert "identities 1 resealed identities 1 UNREADABLE" in told
    assert "upstream clients 1 resealed upstream clients 1 UNREADABLE" in told
    before = bytes(lost.secret_ciphertext or b"")
    for one in (lost, lost_identity, found):
        one.refresh_from_db()
    assert bytes(lost.secret_ciphertext or b"") == before
    assert {lost.key_id, lost_identity.key_id}.isdisjoint({encryption_key_id(NEW), encryption_key_id(OLD)})
    assert (found.key_id, found.client.secret) == (encryption_key_id(NEW), SECRET)
    assert f"{lost.key_id} 2 MISSING" in printed("keys")
    keys(NEW)
    assert opened(identity) == SECRET
    # A session that no key opens is deleted.
    assert [(row.key, cipher().open(bytes(row.sealed_id))) for row in UpstreamSession.objects.all()] == [
        ("found", "session-1")
    ]


def test_a_client_that_is_removed_meanwhile_stops_nothing_else(keys: Keys) -> None:
    keys(OLD)
    removed, other = a_client("https://id.example.com"), a_client("https://other.example.com")
    keys(NEW, OLD)

    with just_before(lambda: ClientRegistration.objects.select_for_update().filter(pk=removed.pk).delete()):
        told = printed("reencrypt")

    assert "upstream clients 1 resealed" in told
    other.refresh_from_db()
    assert other.key_id == encryption_key_id(NEW)


@pytest.mark.parametrize("secret", ["entered-meanwhile", ""], ids=["another", "none"])
def test_a_client_that_is_entered_anew_meanwhile_keeps_what_was_entered(secret: str, keys: Keys) -> None:
    keys(OLD)
    client = a_client("https://id.example.com")
    keys(NEW, OLD)

    def enter_anew() -> None:
        again = ClientRegistration.objects.select_for_update().get(pk=client.pk)
        again.seal(secret)
        again.save()

    with just_before(enter_anew):
        printed("reencrypt")

    client.refresh_from_db()
    assert client.client.secret == secret


@pytest.mark.full
def test_replacing_meanwhile_loses_nothing(keys: Keys) -> None:
    """Replace secrets while `reencrypt` runs: whichever writes first, the new secret is stored."""
    keys(OLD)
    identities = [an_identity() for _ in range(20)]
    keys(NEW, OLD)

    def replace(identity: Identity) -> None:
        try:
            assert identity.owner
            identity.replace("replaced-meanwhile-secret", by=identity.owner)
        finally:
            database.close()

    with ThreadPoolExecutor(2) as others:
        done = others.map(replace, identities)
        reseal_servers()
        list(done)

    keys(NEW)
    assert {opened(one) for one in identities} == {"replaced-meanwhile-secret"}
