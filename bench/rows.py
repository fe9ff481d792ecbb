"""Create rows for benchmarks in a gateway's database, or count its calls: `rows.py VERB '{...}'` prints JSON.

Run it with the Python of the gateway's own checkout, because it uses the models of that checkout.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gatewayadmin.settings")
django.setup()

from django.conf import settings
from django.test import Client

from accounts.models import Team, User
from auditlog.models import Call
from connections.models import Connection
from gateways.models import Assignment, Gateway, IdentityScheme
from hosts.models import Host
from servers.models import AuthType, Server
from tokens.models import Token


def make(servers: dict[str, str], tokens: int = 1) -> dict[str, Any]:
    """Create a server and a gateway for each name.

    Also create `tokens` agents. Each agent gets one token for every gateway.
    """
    owner = User.objects.earliest("date_joined")
    hosts = [Host.objects.add_agent(name=f"Bench {number}", by=owner) for number in range(tokens)]
    made = {}
    for name, url in servers.items():
        server = Server.objects.add(name=name, slug=name, url=url, max_concurrent=1000, by=owner)
        gateway = Gateway.objects.add(name=name, slug=name, by=owner)
        Assignment.objects.assign(gateway=gateway, server=server, alias=name, by=owner)
        secrets = []
        for host in hosts:
            connection = Connection.objects.open(host=host, gateway=gateway, user=owner, identities={}, by=owner)
            secrets.append(Token.objects.issue(connection, name="bench", by=owner).secret)
        made[name] = {"slug": gateway.slug, "tokens": secrets}
    return made


def together(name: str, servers: dict[str, str], tokens: int) -> dict[str, Any]:
    """Create one gateway with all these servers. For each of `tokens` tokens, also create a person and an agent."""
    owner = User.objects.earliest("date_joined")
    gateway = Gateway.objects.add(name=name, slug=name, by=owner)
    for alias, url in servers.items():
        server = Server.objects.add(name=alias, slug=alias, url=url, max_concurrent=1000, timeout_seconds=120, by=owner)
        Assignment.objects.assign(gateway=gateway, server=server, alias=alias, by=owner)
    secrets = []
    for number in range(tokens):
        email = f"bench-{number}@example.com"
        user = User.objects.create_user(email, display_name=f"Bench {number}", role=owner.role)
        host = Host.objects.add_agent(name=f"Bench {number}", by=user)
        connection = Connection.objects.open(host=host, gateway=gateway, user=user, identities={}, by=user)
        secrets.append(Token.objects.issue(connection, name="bench", by=user).secret)
    return {"slug": gateway.slug, "tokens": secrets}


def two_people(slow: str) -> list[str]:
    """Add a server with OAuth at the URL `slow`. Return the session keys of two people with all capabilities."""
    owner = User.objects.earliest("date_joined")
    server = Server.objects.add(name="Slow", slug="slow", url=slow, auth_type=AuthType.OAUTH, by=owner)
    gateway = Gateway.objects.add(name="Slow", slug="slow", by=owner)
    scheme = IdentityScheme.PER_USER
    Assignment.objects.assign(gateway=gateway, server=server, alias="slow", identity_scheme=scheme, by=owner)
    other = User.objects.create_user("other@example.com", display_name="Other", role=owner.role)
    keys = []
    for person in (owner, other):
        client = Client()
        client.force_login(person)
        keys.append(client.cookies[settings.SESSION_COOKIE_NAME].value)
    return keys


def count(gateways: list[str]) -> int:
    """Return the number of logged calls of these gateways."""
    return Call.objects.filter(gateway_name__in=gateways).count()


def rule(rules: int) -> int:
    """Create this many rules. Each call of `echo` is compared with the conditions of all rules, and matches no rule."""
    from rules.models import Rule  # noqa: PLC0415 - older checkouts have no rules

    for number in range(rules):
        when = f"args.text == 'rule {number}' && tool.destructive && !('Operations' in person.teams)"
        Rule.objects.add(name=f"Rule {number}", effect="refuse", when=when, mode="on", by=None)
    return rules


def give(sets: int, gateways: list[str]) -> int:
    """Let people use only granted tools on these gateways, and create this many tool sets on each gateway.

    Sets 0, 10, 20 and so on match every tool. Each of the other sets has its own patterns.

    Each set is given to one of 20 teams, in turn. Team 0 gets sets 0, 20, 40 and so on, which match every tool. Team 1
    gets sets 1, 21, 41 and so on. The owner is in these two teams, and so has a tenth of the sets.
    """
    from gateways.models import ToolGrant, ToolSet  # noqa: PLC0415 - older checkouts have no sets

    owner = User.objects.earliest("date_joined")
    teams = [
        Team.objects.add(name=f"Team {number}", users=[owner] if number < 2 else [], by=owner) for number in range(20)
    ]
    for gateway in Gateway.objects.filter(name__in=gateways):
        for number in range(sets):
            patterns = ["*"] if number % 10 == 0 else [f"*tool_{number}_*", f"*__{number}*"]
            tool_set = ToolSet.objects.add(gateway=gateway, name=f"Set {number}", patterns=patterns, by=owner)
            ToolGrant.objects.give(tool_set, team=teams[number % 20], by=owner)
    Gateway.objects.filter(name__in=gateways).update(tools_given="granted")
    return sets


def store(sessions: int) -> int:
    """Store this many client sessions, a hundred per connection. Each client session has one session at a server."""
    from django.db import connection  # noqa: PLC0415

    from bench.many import Size, grow, key, series  # noqa: PLC0415 - older checkouts have another version
    from proxy.models import Session, UpstreamSession  # noqa: PLC0415

    connections = sessions // 100
    grow(None, Size(hosts=connections // 10, connections=connections, tokens=connections))
    of = key("Connection", f"n %% {connections}")
    digest = "sha256(n::text::bytea)"
    opened = series(
        Session,
        0,
        sessions,
        connection_id=of,
        digest=digest,
        version="'2025-11-25'",
        declared="''",
        subscriptions="'[]'",
    )
    at_servers = series(
        UpstreamSession,
        0,
        sessions,
        owner_id=key("Session"),
        connection_id=of,
        server_id=key("Server", "n %% 20"),
        key=f"({key('Server', 'n %% 20')}) || ' 0 0 0 ' || md5('https://s' || n %% 20 || '.example.com/mcp') || ' '",
        sealed_id="sha256(n::text::bytea)",
        version="'2025-11-25'",
        log_level="''",
    )
    with connection.cursor() as cursor:
        for statement, parameters in (opened, at_servers):
            cursor.execute(statement, parameters)
        cursor.execute("VACUUM ANALYZE proxy_session")
        cursor.execute("VACUUM ANALYZE proxy_upstreamsession")
    return Session.objects.count()


VERBS: dict[str, Callable[..., Any]] = {
    "make": make,
    "together": together,
    "two_people": two_people,
    "count": count,
    "store": store,
    "rule": rule,
    "give": give,
}

if __name__ == "__main__":
    sys.stdout.write(json.dumps(VERBS[sys.argv[1]](**json.loads(sys.argv[2]))))
