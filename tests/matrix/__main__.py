"""Write docs/reference/compatibility.md: the features of each client with each server, through the gateway and
directly.
"""

import argparse
import contextlib
import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests import cluster, workspace
from tests.matrix import servers, table
from tests.matrix.clients import CLIENTS, Found
from tests.matrix.servers import SERVERS
from tests.workspace import ROOT

TOGETHER = 4


def main() -> None:
    options = parsed()
    servers.install()
    with tempfile.TemporaryDirectory(prefix="gateway-matrix-") as home:
        Path(home).chmod(0o755)
        alone, through = run(options.client, options.server, Path(home))
    if (options.client, options.server) == (list(CLIENTS), list(SERVERS)):
        table.PAGE.write_text(table.page(through, alone, dt.datetime.now(dt.UTC).date()))
    sys.stdout.write(table.results(through, alone))
    sys.exit(1 if table.broken(through, alone) else 0)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument(
        "--client", nargs="+", choices=CLIENTS, default=list(CLIENTS), help="prints only, writes nothing"
    )
    parser.add_argument(
        "--server", nargs="+", choices=SERVERS, default=list(SERVERS), help="prints only, writes nothing"
    )
    return parser.parse_args()


def run(clients: list[str], names: list[str], home: Path) -> tuple[dict[str, Found], dict[str, Found]]:
    """Return the results by client, without the gateway and through it. Call `servers.install()` first."""
    with contextlib.ExitStack() as stack:
        urls = {}
        for number, name in enumerate(names):
            folder = home / f"files{number}"
            folder.mkdir()
            urls[name] = stack.enter_context(servers.running(name, folder))
        made = stack.enter_context(gateway_before(urls, clients, home))
        direct = {name: {"url": urls[name], "token": "", "asks": SERVERS[name].asks} for name in names}
        with ThreadPoolExecutor(TOGETHER) as pool:
            alone = {client: pool.submit(CLIENTS[client].run, direct) for client in clients}
            through = {client: pool.submit(CLIENTS[client].run, made[client]) for client in clients}
            return tuple({name: one.result() for name, one in found.items()} for found in (alone, through))  # type: ignore[return-value]


@contextlib.contextmanager
def gateway_before(
    urls: dict[str, str], clients: list[str], home: Path
) -> Iterator[dict[str, dict[str, dict[str, object]]]]:
    """Yield each client's targets: the servers behind gateways, whose database is dropped at the end."""
    with cluster.run_of_ones_own():
        yield from _gateway_before(urls, clients, home)


def _gateway_before(
    urls: dict[str, str], clients: list[str], home: Path
) -> Iterator[dict[str, dict[str, dict[str, object]]]]:
    # For imports only: `workspace` gives each process it starts an environment of its own.
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gatewayadmin.settings")
    serve = workspace.new(home, "matrix")
    try:
        serve.start(workers=2)
        asked = json.dumps({"servers": urls, "clients": clients})
        command = [sys.executable, "-m", "tests.matrix.rows", asked]
        done = subprocess.run(command, cwd=ROOT, env=serve.environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        made = json.loads(done.stdout)
        yield {
            client: {
                name: {
                    "url": f"{serve.url}/mcp/{made[name]['slug']}",
                    "token": made[name]["tokens"][client],
                    "asks": SERVERS[name].asks,
                }
                for name in urls
            }
            for client in clients
        }
    finally:
        serve.stop()
        if keep := os.environ.get("MATRIX_LOG"):
            Path(keep).write_text(serve.log())


if __name__ == "__main__":
    main()
