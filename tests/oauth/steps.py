"""What a person does in the authorize flow, without script."""

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
    """The address of a new flow's first page, below which all others are."""
    response = client.get("/connect/", {"host": str(host.pk), **query})
    assert response.status_code == 302, text(response)
    return "/connect/{}/".format(response["Location"].split("/")[2])


def minted(response: Any) -> str:
    """The token the show-once dialog shows."""
    found = re.search(r'id="token-value"[^>]* value="([^"]+)"', text(response))
    assert found, "no token on this page"
    return found[1]


def per_user(gateway: Gateway, name: str = "GitHub", **fields: Any) -> Server:
    """A server of `gateway` for which everybody brings an identity."""
    server = make.server(name=make.unique(name), **({"auth_type": AuthType.BEARER} | fields))
    make.assignment(gateway, server, identity_scheme=IdentityScheme.PER_USER)
    return server


def options(client: Client, host: Host, gateway: Gateway) -> str:
    """The address of the last page, the gateway chosen."""
    return f"{begin(client, host, gateway=gateway.slug)}token/"
