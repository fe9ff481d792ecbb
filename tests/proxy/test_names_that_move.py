"""Calls to a server whose public host name later resolves to a private address (journey J14)."""

import socket
from typing import Any

import pytest

from accounts.models import User
from capabilities import Capability
from servers.models import Server
from tests import make
from tests.oauth.apps import browser
from tests.proxy.conftest import in_words, served

pytestmark = pytest.mark.full


def test_j14_a_name_that_leads_inside_later_is_stopped_when_it_is_called(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    leads_to, real = ["93.184.215.14"], socket.getaddrinfo

    def resolve(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        numeric = more.get("flags") == socket.AI_NUMERICHOST
        return real(leads_to[0] if host == "docs.example.com" and not numeric else host, port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    ana = make.user(*Capability, email="ana@example.com")
    leads_to[0] = "10.0.0.5"
    assert "leads to an address that is private" in added(ana, "inside").json()["errors"]["url"][0]
    leads_to[0] = "93.184.215.14"
    assert added(ana, "docs").status_code == 201

    leads_to[0] = "10.0.0.5"
    with served() as proxy:
        gateway = make.gateway(Server.objects.get(slug="docs"), slug="work")
        error = proxy.agent(make.connection(make.agent(by=ana), gateway, ana)).call("docs__it").json()["error"]

    assert error["message"] == in_words('Server "docs" has an address the gateway may not call.')
    assert error["data"]["reason"] == "address_blocked"


def added(person: User, slug: str) -> Any:
    client = browser(person)
    body = {"name": slug, "slug": slug, "url": "https://docs.example.com/mcp"}
    return client.post("/api/servers", body, content_type="application/json")
