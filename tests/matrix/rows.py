"""In a running workspace, create a gateway without tool prefix for each server, with a token for each client.

The argument is `{"servers": {name: address}, "clients": [name]}` as JSON. Prints `{server: {"slug", "tokens"}}`.
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


def main(servers: dict[str, str], clients: list[str]) -> None:
    owner = User.objects.earliest("date_joined")
    hosts = {name: Host.objects.add_agent(name=name, by=owner) for name in clients}
    made = {}
    for number, (name, address) in enumerate(servers.items()):
        slug = f"server-{number}"
        server = Server.objects.add(name=name, slug=slug, url=address, by=owner)
        gateway = Gateway.objects.add(name=name, slug=slug, by=owner)
        Assignment.objects.assign(gateway=gateway, server=server, alias="", by=owner)
        tokens = {}
        for client, host in hosts.items():
            connection = Connection.objects.open(host=host, gateway=gateway, user=owner, identities={}, by=owner)
            tokens[client] = Token.objects.issue(connection, name=client, by=owner).secret
        made[name] = {"slug": slug, "tokens": tokens}
    sys.stdout.write(json.dumps(made))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
