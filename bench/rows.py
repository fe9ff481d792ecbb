"""Make what a call needs in the database of a running gateway, print its slug and token; or count its calls."""

import json
import os
import sys

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gatewayadmin.settings")
django.setup()

from accounts.models import User
from auditlog.models import Call
from connections.models import Connection
from gateways.models import Assignment, Gateway
from hosts.models import Host
from servers.models import Server
from tokens.models import Token


def make(upstream: str) -> str:
    """A server, a gateway before it and an agent with a token."""
    owner = User.objects.earliest("date_joined")
    server = Server.objects.add(name="Bench", slug="bench", url=upstream, max_concurrent=1000, by=owner)
    gateway = Gateway.objects.add(name="Bench", slug="bench", by=owner)
    Assignment.objects.assign(gateway=gateway, server=server, alias="bench", by=owner)
    host = Host.objects.add_agent(name="Bench", by=owner)
    connection = Connection.objects.open(host=host, gateway=gateway, user=owner, identities={}, by=owner)
    return json.dumps({"token": Token.objects.issue(connection, name="bench", by=owner).secret, "slug": gateway.slug})


def count() -> str:
    """How many calls the log holds."""
    return str(Call.objects.filter(gateway_name="Bench").count())


if __name__ == "__main__":
    print(count() if sys.argv[1] == "count" else make(sys.argv[1]))
