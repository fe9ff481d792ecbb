"""A running gateway in front of fixture servers, at addresses that need no token."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests import workspace
from tests.conformance.header_proxy import HeaderProxy
from tests.running.nginx import Nginx
from tests.workspace import ROOT, Serve, free_port


@contextlib.contextmanager
def gateway_before(
    servers: dict[str, str], directory: Path, *, workers: int = 2, replicas: int = 1
) -> Iterator[dict[str, str]]:
    """Put each server (address by name) behind its own gateway and a HeaderProxy; yield the proxies' URLs by name.

    Needs the PostgreSQL of tests.cluster. Nginx distributes the requests to several replicas in turn.
    """
    proxies = {name: HeaderProxy() for name in servers}
    origins = ",".join(proxy.origin for proxy in proxies.values())
    serve = workspace.new(directory, "conformance", GATEWAY_ALLOWED_ORIGINS=origins)
    with contextlib.ExitStack() as stack:
        stack.callback(serve.stop)
        serve.start(workers=workers)
        port = serve.port
        if replicas > 1:
            port = free_port()
            ports = [serve.port, *(another(stack, serve, directory / f"{number}") for number in range(1, replicas))]
            stack.callback(Nginx(port, ports).close)
        command = [sys.executable, "-m", "tests.conformance.rows", json.dumps(servers)]
        done = subprocess.run(command, cwd=ROOT, env=serve.environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        made = json.loads(done.stdout)
        yield {
            name: f"{stack.enter_context(proxy.serving(port, made[name]['token']))}/mcp/{made[name]['slug']}"
            for name, proxy in proxies.items()
        }


def another(stack: contextlib.ExitStack, serve: Serve, directory: Path) -> int:
    """Run one more `serve` on the same database until the stack closes, and return its port."""
    directory.mkdir(mode=0o700)
    more = Serve(directory, serve.database_url, free_port(), serve.settings)
    stack.callback(more.stop)
    return more.start().port
