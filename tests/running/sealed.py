"""A gateway with two tokens, in front of a server that requires a credential, which the gateway stores encrypted."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from tests import upstreams
from tests.asgi_server import Upstream
from tests.workspace import PASSWORD, Serve

CREDENTIAL = "ghp_0123456789abcdef9f3a"
PERSON = "ben@example.com"
MAKE = """
import json
from accounts.models import Role, User
from capabilities.catalogue import MEMBER
from connections.models import Connection
from gateways.models import Assignment, Gateway
from hosts.models import Host
from servers.models import Identity, Server
from sinks.models import Sink
from tokens.models import Token

by = User.objects.earliest("date_joined")
ben = User.objects.create_user("{person}", "{password}", role=Role.objects.get(name=MEMBER.name))
server = Server.objects.add(name="Sealed", slug="sealed", url="{url}", auth_type="bearer", by=by)
gateway = Gateway.objects.add(name="Sealed", slug="sealed", by=by)
identity = Identity.objects.bring(server=server, owner=None, label="ours", secret="{credential}", by=by)
identity.gateways.add(gateway)
Assignment.objects.assign(
    gateway=gateway, server=server, alias="", identity_scheme="shared", shared_identity=identity, by=by
)
host = Host.objects.add_agent(name="Nightly", by=by)
connection = Connection.objects.open(host=host, gateway=gateway, user=by, identities={{}}, by=by)
for sink in {sinks}:
    Sink.objects.add(by=None, from_beginning=True, **sink)
issued = [Token.objects.issue(connection, name=name, by=by) for name in ("first", "second")]
print(json.dumps([[str(one.token.pk), one.secret] for one in issued]))
"""


@contextmanager
def sealed_server() -> Iterator[Upstream]:
    """Yield a server whose tool `echo` requires CREDENTIAL."""
    with upstreams.running(
        upstreams.guarded(upstreams.docs(), "authorization", f"Bearer {CREDENTIAL[:-1]}")
    ) as upstream:
        yield upstream


def govern(serve: Serve, upstream: Upstream, *sinks: dict[str, str]) -> list[tuple[str, str]]:
    """Create PERSON, the gateway `sealed` and these sinks in the workspace; return the ids and texts of two tokens."""
    code = MAKE.format(
        person=PERSON, password=PASSWORD, url=upstream.url, credential=CREDENTIAL, sinks=json.dumps(list(sinks))
    )
    made = json.loads(serve.manage("shell", "--no-imports", "-c", code).splitlines()[-1])
    return [(pk, secret) for pk, secret in made]
