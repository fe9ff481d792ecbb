"""Steps of a person in the authorize flow, without scripts."""

import re
from typing import Any

from django.test import Client

from gateways.models import Gateway, IdentityScheme
from hosts.models import Host
from servers.models import AuthType, Server
from tests import make


def text(response: Any) -> str:
    return str(response.content.decode())


def begin(client: Client, host: Host, **query: str) -> str:
    """Start a flow, and return the URL of its first page. The URLs of the flow's other pages begin with it."""
    response = client.get("/connect/", {"host": str(host.pk), **query})
    assert response.status_code == 302, text(response)
    return "/connect/{}/".format(response["Location"].split("/")[2])


def minted(response: Any) -> str:
    """Return the token in the show-once dialog."""
    found = re.search(r'id="token-value"[^>]* value="([^"]+)"', text(response))
    assert found, "no token on this page"
    return found[1]


def per_user(gateway: Gateway, name: str = "GitHub", **fields: Any) -> Server:
    """Return a server of `gateway` with per-user identities."""
    server = make.server(name=make.unique(name), **({"auth_type": AuthType.BEARER} | fields))
    make.assignment(gateway, server, identity_scheme=IdentityScheme.PER_USER)
    return server


def options(client: Client, host: Host, gateway: Gateway) -> str:
    """Choose the gateway, and return the URL of the flow's last page."""
    return f"{begin(client, host, gateway=gateway.slug)}token/"
