"""Servers and people's identities for them."""

from collections.abc import Callable

import pytest
from django.db import IntegrityError, transaction

from auditlog.models import Event
from servers.models import AnotherPlace, Identity, Server
from tests import make

pytestmark = pytest.mark.django_db


def test_the_database_refuses_impossible_servers_and_identities(subtests: pytest.Subtests) -> None:
    make.server(name="GitHub")
    robot = make.identity(make.server(auth_type="header", header_name="X-Key"), label="robot")
    impossible: dict[str, Callable[[], object]] = {
        "server_url_is_http": lambda: make.server(url="builtin:other"),
        "server_timeout": lambda: make.server(timeout_seconds=121),
        "header_credential_names_its_header": lambda: make.server(auth_type="header"),
        "live_server_name_is_unique": lambda: make.server(name="github"),
        "revoked_identity_keeps_no_secret": lambda: Identity.objects.update(revoked_at="2026-01-01T00:00Z"),
        "label": lambda: make.identity(robot.server, label="robot"),
    }
    for rule, act in impossible.items():
        with subtests.test(rule), pytest.raises(IntegrityError, match=rule), transaction.atomic():
            act()


OLD = "https://old.example/mcp"
ELSEWHERE = ("https://new.example/mcp", "http://old.example/mcp", "https://old.example:8443/mcp")


@pytest.mark.full
def test_credentials_do_not_follow_a_server_to_another_place() -> None:
    ana = make.user()
    server = make.server(auth_type="bearer", url=OLD)
    own, shared = make.identity(server, ana), make.identity(server)
    shared.disable(by=None)  # A disabled identity counts, because it may be enabled again.

    for url in ELSEWHERE:
        with pytest.raises(AnotherPlace, match=r"^2 credentials were given for https://old\.example\. Revoke them "):
            server.edit(by=ana, url=url, name="Moved")
    own.revoke(by=ana)
    with pytest.raises(AnotherPlace, match=r"^1 credential was given for https://old\.example\. Revoke it first, or "):
        server.edit(by=ana, url=ELSEWHERE[0])
    assert not Event.objects.filter(action="server.updated").exists()
    for url in ("https://OLD.example:443/v2/mcp", "https://old.example./mcp"):
        server.edit(by=ana, url=url)
        assert Server.objects.get().url == url

    shared.revoke(by=ana)
    server.edit(by=ana, url=ELSEWHERE[0])
    assert Server.objects.get().url == ELSEWHERE[0]
