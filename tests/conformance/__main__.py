"""Print tables of the conformance suite's results: the checks passed and failed, by scenario and fixture server."""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests import cluster
from tests.conformance import fixtures, suite
from tests.conformance.fixtures import FIXTURES, MODERN, SESSION_ERA
from tests.conformance.through_gateway import gateway_before


def main() -> None:
    options = parsed()
    fixtures.install()
    with contextlib.ExitStack() as stack:
        urls = {name: stack.enter_context(fixtures.running(name)) for name in options.fixture}
        if options.gateway:
            urls = stack.enter_context(through_gateway(urls))
        for revision in options.revision:
            where = "through the gateway" if options.gateway else "alone"
            columns = {name: suite.run(url, revision) for name, url in urls.items()}
            sys.stdout.write(f"\n{revision}, {where}\n{suite.table(columns)}\n")
            if options.why:
                sys.stdout.writelines(f"{name}  {line}\n" for name in columns for line in reasons(columns[name]))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--gateway", action="store_true", help="put the gateway between the suite and the servers")
    parser.add_argument("--fixture", nargs="+", choices=FIXTURES, default=list(FIXTURES))
    parser.add_argument("--revision", nargs="+", choices=(SESSION_ERA, MODERN), default=[SESSION_ERA, MODERN])
    parser.add_argument("--why", action="store_true", help="print below the table what each failed check said")
    return parser.parse_args()


@contextlib.contextmanager
def through_gateway(urls: dict[str, str]) -> Iterator[dict[str, str]]:
    """Yield URLs that reach these servers through a gateway, on a database that is dropped at the end."""
    cluster.begin()
    # For imports only: `workspace` gives each process it starts an environment of its own.
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gatewayadmin.settings")
    try:
        with tempfile.TemporaryDirectory(prefix="gateway-conformance-") as home:
            Path(home).chmod(0o755)
            with gateway_before(urls, Path(home)) as proxied:
                yield proxied
    finally:
        cluster.pytest_unconfigure()


def reasons(outcomes: suite.Outcomes) -> Iterator[str]:
    for scenario, found in outcomes.items():
        yield from (f"{scenario}  {failure[:300]}" for failure in found.failures)


if __name__ == "__main__":
    main()
