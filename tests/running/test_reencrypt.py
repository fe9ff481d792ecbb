"""`manage.py reencrypt`: every stored secret moves to the newest key, while everything runs."""

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
    """Yield a function that sets the encryption keys, newest first, and drops the cipher, as a restart does."""

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


@pytest.mark.full
def test_every_secret_moves_and_the_old_key_may_go(keys: Keys) -> None:
    keys(OLD)
    first, second = an_identity(), an_identity()
    keys(NEW, OLD)
    third = an_identity()

    told = printed("reencrypt")

    assert "identities 2 resealed" in told
    assert f"{encryption_key_id(OLD)} 0 may be removed" in printed("keys")
    keys(NEW)
    assert [opened(one) for one in (first, second, third)] == [SECRET] * 3


def test_every_table_that_names_a_key_is_counted_by_keys() -> None:
    """If `keys` did not count a row, it could report the row's key as removable, and the row would be lost."""
    tables = {model._meta.db_table for model in apps.get_models() if "key_id" in {f.name for f in model._meta.fields}}

    with CaptureQueriesContext(database) as asked:
        key_uses()

    counted = {table for table in tables for query in asked if f'FROM "{table}"' in query["sql"]}
    assert counted == tables
    assert len(tables) >= 9


@pytest.mark.full
def test_the_key_of_a_client_at_an_issuer_is_needed_until_it_is_sealed_anew(keys: Keys) -> None:
    keys(OLD)
    registration = a_client("https://id.example.com")
    keys(NEW, OLD)

    assert f"{encryption_key_id(OLD)} 1 still needed" in printed("keys")
    printed("reencrypt")
    assert f"{encryption_key_id(OLD)} 0 may be removed" in printed("keys")
    keys(NEW)
    registration.refresh_from_db()
    assert registration.client.secret == SECRET


@pytest.mark.full
def test_a_second_run_finds_nothing_to_do(keys: Keys) -> None:
    keys(OLD)
    identity = an_identity()
    keys(NEW, OLD)
    printed("reencrypt")
    before = Identity.objects.filter(pk=identity.pk).values().get()

    assert "identities 0 resealed" in printed("reencrypt")
    assert Identity.objects.filter(pk=identity.pk).values().get() == before


def test_nothing_but_the_sealing_changes(keys: Keys) -> None:
    keys(OLD)
    identity = an_identity()
    kept = ("label", "secret_hint", "generation", "enabled", "updated_at", "last_used_at")
    before = Identity.objects.filter(pk=identity.pk).values(*kept).get()
    keys(NEW, OLD)

    printed("reencrypt")

    assert Identity.objects.filter(pk=identity.pk).values(*kept).get() == before


@pytest.mark.full
def test_secrets_no_key_decrypts_are_reported_and_stop_nothing_else(keys: Keys) -> None:
    keys(Fernet.generate_key())
    lost = an_identity()
    keys(OLD)
    found = an_identity()
    keys(NEW, OLD)

    out = StringIO()
    with pytest.raises(CommandError, match="MISSING"):
        call_command("reencrypt", stdout=out)

    assert "UNREADABLE" in out.getvalue()
    assert opened(found) == SECRET
    lost.refresh_from_db()
    assert lost.key_id not in (encryption_key_id(NEW), encryption_key_id(OLD))


def test_a_client_that_no_key_opens_stays_as_it_was_and_stops_nothing_else(keys: Keys) -> None:
    keys(Fernet.generate_key())
    lost = a_client("https://lost.example.com")
    keys(OLD)
    found = a_client("https://id.example.com")
    keys(NEW, OLD)

    out = StringIO()
    with pytest.raises(CommandError, match="MISSING"):
        call_command("reencrypt", stdout=out)

    told = " ".join(out.getvalue().split())
    assert "upstream clients 1 resealed upstream clients 1 UNREADABLE" in told
    before = bytes(lost.secret_ciphertext or b"")
    lost.refresh_from_db()
    found.refresh_from_db()
    assert bytes(lost.secret_ciphertext or b"") == before
    assert lost.key_id not in (encryption_key_id(NEW), encryption_key_id(OLD))
    assert (found.key_id, found.client.secret) == (encryption_key_id(NEW), SECRET)
    assert f"{lost.key_id} 1 MISSING" in printed("keys")


def test_a_session_that_no_key_opens_is_gone_and_the_others_go_on(keys: Keys) -> None:
    keys(Fernet.generate_key())
    a_session("lost")
    keys(OLD)
    a_session("found")
    keys(NEW, OLD)

    printed("reencrypt")

    keys(NEW)
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
def test_a_revoked_identity_stays_wiped(keys: Keys) -> None:
    keys(OLD)
    identity = an_identity()
    identity.revoke(by=identity.owner)
    keys(NEW, OLD)

    assert reseal_servers()["identities"] == (0, 0)
    identity.refresh_from_db()
    assert identity.secret_ciphertext is None


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
