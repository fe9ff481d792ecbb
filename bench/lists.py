"""Measure every list with few rows and with very many: `python -m bench.lists`.

A database on the embedded PostgreSQL first has 50 hosts, 50 connections and 200 tokens, then 5,000 hosts, 50,000
connections and 200,000 tokens. Each list is requested several times in this process, by a user who may see everything.
The shortest duration counts. For each list, the growth of this duration is printed.
"""

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.log_pages import SETTINGS, place, signed_in
from bench.many import FEW, MANY, grow, pk

if TYPE_CHECKING:
    from django.test import Client

ALLOWED = 5


class Asked(NamedTuple):
    """The duration of the fastest answer, and the number of SQL statements for one answer."""

    milliseconds: float
    statements: int


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.lists", description=__doc__)
    parser.add_argument("--times", type=int, default=7, help="the quickest counts (default: %(default)s)")
    options = parser.parse_args()
    with place(None) as home:
        os.environ |= {"GATEWAY_DATA_DIR": str(home), "GATEWAY_QUICKSTART": "0", "DJANGO_SETTINGS_MODULE": SETTINGS}
        os.environ.pop("DATABASE_URL", None)
        import django  # noqa: PLC0415 - the settings are read from the environment above

        django.setup()
        sys.exit(1 if measure(options.times) else 0)


def measure(times: int) -> list[str]:
    """Print a line for each list; return the lists that became too slow or changed their number of statements."""
    from django.conf import settings  # noqa: PLC0415
    from django.core.management import call_command  # noqa: PLC0415
    from django.db import connection  # noqa: PLC0415

    from accounts.models import Role  # noqa: PLC0415
    from gatewayadmin.config import database  # noqa: PLC0415
    from gatewayadmin.embedded.cluster import cluster  # noqa: PLC0415

    database.ensure()
    try:
        call_command("migrate", verbosity=0)
        Role.objects.make_built_in()
        grow(None, FEW)
        few = asked(signed_in(), times)
        grow(FEW, MANY)
        many = asked(signed_in(), times)
        print(f"{'':58}{'few':>9}{'many':>10}{'times':>8}{'statements':>12}")
        return [path for path in few if told(path, few[path], many[path])]
    finally:
        connection.close()
        cluster(settings.DATA_DIR).leave()


def told(path: str, few: Asked, many: Asked) -> bool:
    """Print a line for a list; return True if its duration grew too much or its number of statements changed."""
    grown = many.milliseconds / few.milliseconds
    bad = grown > ALLOWED or many.statements != few.statements
    print(
        f"{path:58}{few.milliseconds:6,.0f} ms{many.milliseconds:7,.0f} ms{grown:8.1f}"
        f"{few.statements:6} {many.statements:5}{'  <--' if bad else ''}",
        flush=True,
    )
    return bad


def lists() -> list[str]:
    """Return the paths of all pages and API endpoints that list rows."""
    from gatewayadmin.rest.urls import router  # noqa: PLC0415

    host, gateway, server = pk("Host", 0), "gateway-0", "server-0"
    api = [f"/api/{prefix}" for prefix, _, _ in router.registry]
    return [
        "/",
        "/hosts/",
        "/hosts/?q=host",
        "/hosts/?status=enabled",
        "/hosts/?page=2",
        f"/hosts/{host}/",
        f"/hosts/{host}/connections/",
        f"/hosts/{host}/enrolled/",
        "/gateways/",
        f"/gateways/{gateway}/",
        f"/gateways/{gateway}/connections/",
        f"/gateways/{gateway}/connections/?status=expired",
        f"/gateways/{gateway}/servers/",
        f"/gateways/{gateway}/tools/",
        f"/gateways/{gateway}/tokens/",
        "/servers/",
        "/tools/",
        "/tools/?sort=-gateways",
        "/tools/?now=1",
        "/tools/?sort=-last&now=1",
        "/tools/changed/",
        f"/gateways/{gateway}/usage/",
        f"/playground/?gateway={gateway}",
        f"/servers/{server}/",
        f"/servers/{server}/gateways/",
        f"/servers/{server}/identities/",
        "/people/",
        "/people/roles/",
        "/people/teams/",
        "/settings/mcp-connections",
        "/settings/mcp-connections?status=revoked",
        "/settings/api-tokens",
        "/settings/api-tokens?owner=all",
        "/settings/api-tokens/numbers?owner=all",
        "/settings/api-tokens/create",
        "/settings/api-keys",
        "/settings/identities",
        "/settings/admin-events/",
        "/logs/",
        "/admin/hosts/host/",
        "/admin/connections/connection/",
        "/admin/tokens/token/",
        "/admin/accounts/user/",
        *(one for one in api if not one.endswith(("tokens", "identities", "api-keys"))),
        *(f"{one}?scope=all" for one in api if one.endswith(("tokens", "identities", "api-keys"))),
        "/api/tools",
        "/api/hosts?q=host",
        "/api/tokens?scope=all&status=active",
        "/api/connections?status=active",
        f"/api/gateways/{gateway}/connections",
        f"/api/gateways/{gateway}/servers",
        f"/api/gateways/{gateway}/tools",
    ]


def asked(client: "Client", times: int) -> dict[str, Asked]:
    return {path: ask(client, path, times) for path in lists()}


def ask(client: "Client", path: str, times: int) -> Asked:
    from time import perf_counter  # noqa: PLC0415

    from django.db import connection  # noqa: PLC0415

    taken, statements = list[float](), 0

    def count(execute: Any, *arguments: Any) -> Any:
        nonlocal statements
        statements += 1
        return execute(*arguments)

    for _ in range(times + 1):
        statements = 0
        began = perf_counter()
        with connection.execute_wrapper(count):
            answer = client.get(path)
            answer.getvalue()
        taken.append((perf_counter() - began) * 1000)
        if answer.status_code != 200:
            sys.exit(f"{path}: {answer.status_code}")
    return Asked(min(taken[1:] or taken), statements)  # The first request warms up.


if __name__ == "__main__":
    main()
