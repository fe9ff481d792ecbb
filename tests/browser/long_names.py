"""Create rows in a workspace, all with names of the maximum length. `manage.py shell` runs this code there.

Each name repeats `TEXT` and ends with `KEY`. The test replaces both values.
"""

import json
import sys

from accounts.models import Role, Team, User
from capabilities import Capability
from connections.models import Connection
from gateways.models import Feature
from servers.models import AuthType, Health
from tests import make

TEXT = "m"
KEY = "k"


def longest(length: int, *, end: str = "") -> str:
    """Return a name of `length` characters that ends with KEY and `end`, so that each name is unique."""
    return (TEXT * length)[: length - len(KEY) - len(end)] + KEY + end


owner = User.objects.get(email="ana@example.com")
role = Role.objects.add(name=longest(80), capabilities=[Capability.HOSTS_READ], by=None)
person = User.objects.create_user(
    f"{'m' * 60}{KEY}@{'d' * 60}.{'e' * 60}.example.com", display_name=longest(80), role=role
)
team = Team.objects.add(name=longest(80), users=[person, owner], by=None)

server = make.server(
    by=owner,
    name=longest(80),
    slug=f"{'s' * 14}{KEY}"[-16:],
    url="https://" + "u" * 60 + ".example.com/" + "p" * 400 + KEY,
    auth_type=AuthType.BEARER,
)
server.note_health(Health.DOWN, "e" * 300)
plain = make.server(by=owner, name=longest(80, end="2"), slug=f"{'t' * 14}{KEY}"[-16:])
own = make.identity(server, owner, label=longest(80))
shared = make.identity(server, label=longest(80))
gateway = make.gateway(by=owner, name=longest(80), slug=f"{'g' * 38}{KEY}"[-40:], description=longest(1000))
assignment = make.assignment(gateway, server, identity_scheme="per_user")
other = make.assignment(gateway, plain)
tool = "t" * 128
Feature.objects.learn(
    assignment, [{"name": tool, "title": longest(200), "description": longest(500), "inputSchema": {"type": "object"}}]
)
address = f"docs://{longest(600)}"
Feature.objects.learn(assignment, [{"name": tool, "title": longest(200), "description": longest(900)}])
Feature.objects.learn(assignment, [{"name": longest(200), "title": longest(200)}], "prompt")
Feature.objects.learn(assignment, [{"uri": address, "name": longest(200)}], "resource")
Feature.objects.learn(assignment, [{"uriTemplate": address, "name": longest(200)}], "template")
Feature.objects.note_fault(assignment, "credential_refused", "resource", own)
hosts = [make.agent(by=owner, name=longest(120))]
hosts.append(make.app(longest(120, end="p")))
make.app(longest(120, end="w"), needs_approval=True)
for host in hosts:
    for user in (owner, person):
        made: Connection = make.connection(host, gateway, user, [own] if user == owner else [])
        if host.is_agent:
            make.token(made, name=longest(100))
make.app_connection(owner, gateway, host=make.app(longest(120, end="q")))
make.api_key(owner, Capability.HOSTS_READ, Capability.LOGS_READ, name=longest(100))
make.call(
    host_name=longest(120),
    host_id=hosts[0].pk,
    user_email=person.email,
    gateway_name=gateway.name,
    gateway_id=gateway.pk,
    server_name=server.name,
    server_id=server.pk,
    feature_name="f" * 128,
    outcome="denied",
    deny_reason="gateway_not_reachable",
)
sys.stdout.write(
    json.dumps(
        {
            "key": KEY,
            "gateway": gateway.slug,
            "server": server.slug,
            "agent": str(hosts[0].pk),
            "app": str(hosts[1].pk),
            "team": str(team.pk),
        }
    )
)
