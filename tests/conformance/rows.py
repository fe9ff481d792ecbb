"""Create each server of the suite, its gateway and a token in the database of a running installation.

The argument is `{name: address}` of the servers as JSON. Prints `{name: {"slug": ..., "token": ...}}` of the gateways.
"""

import json
import os
import sys

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gatewayadmin.settings")
django.setup()

from accounts.models import User  # noqa: E402 - models want Django set up
from connections.models import Connection  # noqa: E402
from gateways.models import Assignment, Gateway  # noqa: E402
from hosts.models import Host  # noqa: E402
from servers.models import Server  # noqa: E402
from tokens.models import Token  # noqa: E402


def make(name: str, address: str) -> dict[str, str]:
    owner = User.objects.earliest("date_joined")
    server = Server.objects.add(name=name, slug=name, url=address, by=owner)
    gateway = Gateway.objects.add(name=name, slug=name, by=owner)
    Assignment.objects.assign(gateway=gateway, server=server, alias="", by=owner)
    host = Host.objects.add_agent(name=name, by=owner)
    connection = Connection.objects.open(host=host, gateway=gateway, user=owner, identities={}, by=owner)
    return {"slug": gateway.slug, "token": Token.objects.issue(connection, name=name, by=owner).secret}


if __name__ == "__main__":
    made = {name: make(name, address) for name, address in json.loads(sys.argv[1]).items()}
    sys.stdout.write(json.dumps(made))
