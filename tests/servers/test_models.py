"""Servers and people's identities for them."""

from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from auditlog.models import Event
from servers.models import AnotherPlace, Era, Health, Identity, IdentityAlreadyRevoked, Server
from tests import make
from ui.sealing import cipher

pytestmark = pytest.mark.django_db


def test_an_identity_is_stored_encrypted_with_a_hint_only() -> None:
    identity = make.identity(make.server(auth_type="bearer"), make.user(), secret="ghp_0123456789abcdef9f3a")

    identity.refresh_from_db()
    assert cipher().open(bytes(identity.secret_ciphertext or b"")) == "ghp_0123456789abcdef9f3a"
    assert (identity.secret_hint, identity.key_id) == ("9f3a", cipher().key_id)
    assert "ghp_" not in str(Event.objects.get(action="identity.created").changes)


def test_a_short_secret_gives_no_hint() -> None:
    assert make.identity(make.server(auth_type="bearer"), make.user(), secret="hunter2").secret_hint == ""


def test_replacing_a_secret_begins_a_new_generation() -> None:
    ana = make.user()
    identity = make.identity(make.server(auth_type="bearer"), ana, secret="before-before-before")

    identity.replace("after-after-after-after", by=ana)

    identity.refresh_from_db()
    assert identity.generation == 2
    assert cipher().open(bytes(identity.secret_ciphertext or b"")) == "after-after-after-after"


def test_revoking_wipes_the_secret_for_good() -> None:
    ana = make.user()
    identity = make.identity(make.server(auth_type="bearer"), ana)

    identity.revoke(by=ana)

    identity.refresh_from_db()
    assert identity.secret_ciphertext is None
    assert identity.status == "revoked"
    with pytest.raises(IdentityAlreadyRevoked):
        identity.revoke(by=ana)
    with pytest.raises(IdentityAlreadyRevoked):
        identity.replace("again", by=ana)


def test_the_database_keeps_no_secret_of_a_revoked_identity() -> None:
    identity = make.identity(make.server(auth_type="bearer"), make.user())

    with pytest.raises(IntegrityError, match="revoked_identity_keeps_no_secret"), transaction.atomic():
        Identity.objects.filter(pk=identity.pk).update(revoked_at="2026-01-01T00:00Z")


def test_two_shared_identities_of_a_server_have_two_labels() -> None:
    """Identities without an owner are shared, and their labels are unique as if they had one owner."""
    crm = make.server(auth_type="header", header_name="X-Key")
    make.identity(crm, label="robot")

    with pytest.raises(IntegrityError), transaction.atomic():
        make.identity(crm, label="robot")


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"url": "ftp://x/"}, "server_url_is_http"),
        ({"url": "builtin:other"}, "server_url_is_http"),
        ({"timeout_seconds": 0}, "server_timeout"),
        ({"timeout_seconds": 121}, "server_timeout"),
        ({"auth_type": "header"}, "header_credential_names_its_header"),
    ],
)
def test_the_database_refuses_impossible_servers(fields: dict[str, Any], rule: str) -> None:
    with pytest.raises(IntegrityError, match=rule), transaction.atomic():
        make.server(**fields)


def test_names_of_live_servers_differ_also_in_case() -> None:
    make.server(name="GitHub")

    with pytest.raises(IntegrityError, match="live_server_name_is_unique"), transaction.atomic():
        make.server(name="github")


def test_another_url_forgets_what_was_known_of_the_old_one() -> None:
    ana = make.user()
    server = make.server(by=ana)
    server.note_health(Health.OK, era=Era.MODERN)

    server.edit(by=ana, url="https://elsewhere.example.com/mcp")

    server.refresh_from_db()
    assert (server.protocol_era, server.health) == ("", "unknown")
    assert Event.objects.get(action="server.updated").changes["url"][1] == "https://elsewhere.example.com/mcp"


OLD = "https://old.example/mcp"


@pytest.mark.full
@pytest.mark.parametrize("url", ["https://new.example/mcp", "http://old.example/mcp", "https://old.example:8443/mcp"])
def test_credentials_do_not_follow_a_server_to_another_place(url: str) -> None:
    ana = make.user()
    server = make.server(auth_type="bearer", url=OLD)
    own, shared = make.identity(server, ana), make.identity(server)
    shared.disable(by=None)  # A disabled identity counts, because it may be enabled again.

    with pytest.raises(
        AnotherPlace, match=r"^2 credentials were given for https://old\.example\. Revoke them first, or "
    ):
        server.edit(by=ana, url=url, name="Moved")
    own.revoke(by=ana)
    with pytest.raises(AnotherPlace, match=r"^1 credential was given for https://old\.example\. Revoke it first, or "):
        server.edit(by=ana, url=url)
    assert not Event.objects.filter(action="server.updated").exists()

    shared.revoke(by=ana)
    server.edit(by=ana, url=url)
    assert Server.objects.get().url == url


@pytest.mark.parametrize("url", ["https://OLD.example:443/v2/mcp", "https://old.example./mcp"])
def test_within_its_place_a_server_keeps_its_credentials(url: str) -> None:
    ana = make.user()
    server = make.server(auth_type="bearer", url=OLD)
    make.identity(server, ana)

    server.edit(by=ana, url=url)

    assert Server.objects.get().url == url


def test_a_credential_is_not_stored_for_a_server_that_moved_meanwhile() -> None:
    ana = make.user()
    seen = make.server(auth_type="bearer", url=OLD)
    Server.objects.get().edit(by=ana, url="https://new.example/mcp")

    with pytest.raises(AnotherPlace, match=r"moved to https://new\.example just now"):
        make.identity(seen, ana)
    assert not Identity.objects.exists()


def test_a_row_is_locked_while_it_is_switched() -> None:
    server = make.server()

    server.disable(by=None)

    assert Server.objects.get(pk=server.pk).enabled is False
    with connection.cursor() as cursor:
        cursor.execute("SELECT changes FROM auditlog_event WHERE action = 'server.disabled'")
        assert "enabled" in str(cursor.fetchone())
