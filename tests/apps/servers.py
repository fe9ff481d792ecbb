"""Run a gateway with two published MCP Apps servers. The gateway accepts calls from the pages of `Hosts`."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests import workspace
from tests.apps.hosts import FOLDER, MODULES, Hosts
from tests.clients.fixtures import Npm, install, listening
from tests.workspace import Serve, free_port

SERVERS = {"basic": "mcp-server-basic-react", "map": "mcp-map-server"}
ROWS = """
from accounts.models import User
from gateways.models import Assignment, Gateway
from servers.models import Server
owner = User.objects.earliest("date_joined")
gateway = Gateway.objects.add(name="Apps", slug="apps", by=owner)
for alias, url in {servers}.items():
    server = Server.objects.add(name=alias.title(), slug=alias, url=url, by=owner)
    Assignment.objects.assign(gateway=gateway, server=server, alias=alias, by=owner)
"""


@contextmanager
def running_gateway(folder: Path, hosts: Hosts) -> Iterator[Serve]:
    """Run a workspace until the block ends. Its gateway “Apps” has both servers in SERVERS."""
    install(FOLDER)
    with ExitStack() as stack:
        urls = {}
        for alias, program in SERVERS.items():
            port = free_port()
            command = [str(MODULES / ".bin" / program)]
            stack.enter_context(listening(Npm(folder), command, port, PORT=str(port)))
            urls[alias] = f"http://127.0.0.1:{port}/mcp"
        serve = workspace.new(folder, "apps", GATEWAY_ALLOWED_ORIGINS=hosts.origin)
        stack.callback(serve.stop)
        serve.start()
        serve.manage("shell", "--verbosity", "0", "-c", ROWS.replace("{servers}", json.dumps(urls)))
        yield serve
