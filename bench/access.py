"""Measure the access report with 5,000 people and 300 gateways: `python -m bench.access --keep FOLDER`.

The database is a new one on the embedded PostgreSQL in that folder. It gets 5,000 people and 50 teams, and each person
is in four teams. Of the 300 gateways, 120 are open to everyone. Each of the other 180 is open to three teams. There
are 55 tools per gateway, 200 tool sets with 400 grants, 2,000 grants of a gateway to a person, and 50,000 connections.
The report then has more than 800,000 lines.

Pages are measured in the same way as by `bench.pages`. The columns `python` and `sql` are milliseconds of processor
time.
"""

import argparse
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bench.full_size import said, workspace
from bench.log_pages import signed_in
from bench.many import Size, grow, key, pk, series
from bench.pages import Asked, Pace, too_much

SIZE = Size(hosts=5_000, connections=50_000, tokens=200_000, gateways=300, servers=100, users=5_000)
TEAMS, TOOLS, SETS, GRANTS = 50, 50, 200, 2_000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.access", description=__doc__)
    parser.add_argument("--keep", type=Path, required=True, help="a folder for the data, which is kept")
    parser.add_argument("--times", type=int, default=9, help="requests per page (default: %(default)s)")
    parser.add_argument("--only", default="", help="only addresses that contain this text")
    parser.add_argument("--why", action="store_true", help="also print the slowest statement of slow pages")
    options = parser.parse_args()
    with workspace(options.keep):
        bad = measure(options)
    sys.exit(f"{len(bad)} are too slow or too large" if bad else 0)


def measure(options: argparse.Namespace) -> list[str]:
    """Print a line for each page. Return the paths that are too slow or too large by the limits of bench.pages."""
    from django.core.management import call_command  # noqa: PLC0415

    from access.report import AccessReport  # noqa: PLC0415
    from accounts.models import Role, Team  # noqa: PLC0415

    call_command("migrate", verbosity=0)
    Role.objects.make_built_in()
    if not Team.objects.exists():
        said("workspace", fill)
    print(f"{len(AccessReport()):,} lines")
    print(f"{'':4}{'p50':>7}{'p95':>8}{'slower':>8}{'python':>8}{'sql':>8}{'statements':>11}{'KB':>7}")
    client = signed_in()
    pages = [Asked("owner", client, path) for path in _pages() if options.only in path]
    return [page.path for page in too_much(pages, Pace(), options)]


def fill() -> None:
    from django.db import connection  # noqa: PLC0415

    grow(None, SIZE)
    with connection.cursor() as cursor:
        for statement, parameters in _rows():
            cursor.execute(statement, parameters)
        cursor.execute("VACUUM (ANALYZE)")


def _pages() -> list[str]:
    page, api, yesterday = "/access/report/", "/api/access", datetime.now(UTC).date() - timedelta(days=1)
    narrow = (
        f"person={pk('User', 7)}",
        f"gateway={pk('Gateway', 7)}",
        f"team={pk('Team', 7)}",
        f"server={pk('Server', 7)}",
        "q=person77",
        "agent=Host+77",
        "tool=tool_77",
        "tool=tool",
        "unused=90",
        f"unused=90&team={pk('Team', 7)}",
        f"person={pk('User', 7)}&sort=-used",
        f"on={yesterday}",
        f"on={yesterday}&person={pk('User', 7)}",
    )
    return [page, f"{page}?page=200", f"{page}?page=10000", *(f"{page}?{one}" for one in narrow), api]


def _rows() -> Iterator[tuple[str, list[Any]]]:
    """Yield the statements that insert teams, their gateways, tools, tool sets and grants."""
    from accounts.models import Role, Team  # noqa: PLC0415
    from gateways.models import Feature, Gateway, GatewayGrant, ToolGrant, ToolSet  # noqa: PLC0415

    member = Role.objects.get(name="Member").pk
    yield "UPDATE accounts_user SET role_id = %s WHERE email LIKE %s", [member, "person%"]
    yield series(Team, 0, TEAMS, name="'Team ' || n")
    members, open_to = Team.users.through._meta.db_table, Gateway.teams.through._meta.db_table
    team = key("Team", f"(n / {SIZE.users} * 13 + n) %% {TEAMS}")
    yield (
        f"INSERT INTO {members} (user_id, team_id) SELECT {key('User', f'n %% {SIZE.users}')}, {team} "
        f"FROM generate_series(0, {4 * SIZE.users} - 1) AS n",
        [],
    )
    yield f"UPDATE {Gateway._meta.db_table} SET reach = 'teams' WHERE right(slug, 1)::int %% 3 <> 0", []
    yield f"UPDATE {Gateway._meta.db_table} SET tools_given = 'granted' WHERE right(slug, 1)::int %% 2 = 0", []
    yield (
        f"INSERT INTO {open_to} (gateway_id, team_id) SELECT {key('Gateway', f'n %% {SIZE.gateways}')}, "
        f"{key('Team', f'(n / {SIZE.gateways} * 17 + n) %% {TEAMS}')} "
        f"FROM generate_series(0, 3 * {SIZE.gateways} - 1) AS n",
        [],
    )
    first = SIZE.gateways * 5  # Tools that `grow` creates.
    names = {"name": f"'more_tool_' || n %% {TOOLS}", "exposed_name": f"'s__more_tool_' || n %% {TOOLS}"}
    assignment = key("Assignment", f"(n - {first}) / {TOOLS}")
    yield series(Feature, first, first + SIZE.gateways * TOOLS, assignment_id=assignment, state="'approved'", **names)
    yield series(
        ToolSet,
        0,
        SETS,
        gateway_id=key("Gateway", f"n * 2 %% {SIZE.gateways}"),
        name="'Set ' || n",
        patterns="ARRAY['s__more_tool_' || n %% 5 || '*']",
        likes="ARRAY['s\\_\\_more\\_tool\\_' || n %% 5 || '%%']",
    )
    by = key("User", "0")
    yield series(
        ToolGrant,
        0,
        2 * SETS,
        gateway_id=key("Gateway", f"(n %% {SETS}) * 2 %% {SIZE.gateways}"),
        tool_set_id=key("ToolSet", f"n %% {SETS}"),
        everyone=f"n < {SETS} AND n %% 3 = 0",
        team_id=f"CASE WHEN n >= {SETS} OR n %% 3 <> 0 THEN {key('Team', f'(n + n / {SETS}) %% {TEAMS}')} END",
        given_by_id=by,
    )
    yield series(
        GatewayGrant,
        0,
        GRANTS,
        gateway_id=key("Gateway", f"n %% {SIZE.gateways}"),
        user_id=key("User", f"n %% {SIZE.users}"),
        given_by_id=by,
    )


if __name__ == "__main__":
    main()
