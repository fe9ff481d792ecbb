"""Fill a workspace to its maximum supported size, and count its calls: `python -m bench.full_size --keep FOLDER`.

The command fills the empty database at DATABASE_URL. Without DATABASE_URL, it creates a database on the embedded
PostgreSQL in FOLDER. The database gets ten million calls over ninety days, 5,000 hosts, 50,000 connections, 5,000
people, 200 gateways, events, and 100 servers. Each server has 50 tools with definitions.

SQL statements generate all rows. Each day of calls is one transaction. Then the roll-ups are computed in the same way
as by `manage.py serve`. If the command is interrupted, run it again: it continues with the days that have no calls.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bench.log_pages import SETTINGS, roll_up
from bench.many import Size, grow, key, series

WHOLE = Size(hosts=5_000, connections=50_000, tokens=200_000, gateways=200, servers=100, users=5_000)
TOOLS = 50  # Per server.
MORE_SERVERS = 4  # Per gateway, in addition to the first server.
ROWS = 10_000_000
DAYS = 90
EVENTS = 100_000
TEAMS = 50

# Most calls use a few thousand of the connections, the other calls any connection. Each connection calls a few tools.
CALLS = """
INSERT INTO auditlog_call (
    uid, created_at, correlation_id, method, feature_type, feature_name, outcome, deny_reason, http_status,
    host_id, gateway_id, connection_id, user_id, token_id, server_id, host_name, gateway_name, server_name, user_email,
    identity_label, token_name, token_prefix, duration_ms, authorise_ms, upstream_ms, request_bytes, response_bytes,
    client_ip, user_agent, client_name, client_version, protocol_version, error_text, trace_id,
    request_payload, response_payload, recorded_at
)
SELECT
    (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(md5(random()::text), 1, 3) || '8'
        || substr(md5(random()::text), 1, 15))::uuid,
    at, gen_random_uuid(), method, CASE method WHEN 'tools/call' THEN 'tool' ELSE '' END,
    CASE WHEN method <> 'tools/call' THEN '' WHEN n %% 40000 = 6 THEN 'rare__tool' ELSE alias || '__tool_' || tool END,
    outcome, CASE outcome WHEN 'denied' THEN 'host_disabled' ELSE '' END,
    CASE outcome WHEN 'denied' THEN 403 ELSE 200 END,
    {host}, {gateway}, {connection}, {user}, {token},
    CASE WHEN method = 'tools/call' THEN {server} END,
    'Host ' || host, 'Gateway ' || gateway, CASE WHEN method = 'tools/call' THEN 'Server ' || server ELSE '' END,
    'person' || who || '@example.com', '', 'token ' || link, 'gwa_' || substr(md5(link::text), 1, 8),
    took, 0.8, took * 0.9, 240, 1900,
    '203.0.113.24', 'python-httpx/0.28', 'bench', '1.0', '2025-11-25',
    CASE outcome WHEN 'tool_error' THEN 'no page ' || n ELSE '' END,
    CASE WHEN n %% 10 = 0 THEN md5(n::text) ELSE '' END,
    CASE WHEN n %% 20 = 0 AND method = 'tools/call' THEN
        jsonb_build_object('params', jsonb_build_object('name', 'x', 'arguments', jsonb_build_object('q', n))) END,
    CASE WHEN n %% 20 = 0 AND method = 'tools/call' THEN
        jsonb_build_object('result', jsonb_build_object('content', repeat('text ', 40))) END,
    at + took * interval '1 ms'
FROM (
    SELECT *, link %% {hosts} AS host, (link * 7 + link / {hosts}) %% {users} AS who,
        (gateway + 17 * pick) %% {servers} AS server,
        CASE pick WHEN 0 THEN 's' || gateway ELSE 'x' || (gateway + 17 * pick) %% {servers} END AS alias,
        (link * 31 + floor(4 * power(random(), 2))::int) %% {tools} AS tool, 20 + 3000 * power(random(), 12) AS took
    FROM (
        SELECT *, CASE WHEN link < 50 THEN 0 ELSE (link + link / {hosts}) %% {gateways} END AS gateway,
            (link + floor(2 * power(random(), 2))::int) %% 5 AS pick
        FROM (
            SELECT n, %(begin)s::timestamptz + (n::float / %(rows)s) * interval '1 day' AS at,
                CASE WHEN random() < 0.97 THEN floor(3000 * power(random(), 2))::int * 7919 %% {connections}
                    ELSE floor({connections} * random())::int END AS link,
                CASE WHEN n %% 10 < 7 THEN 'tools/call' WHEN n %% 10 < 9 THEN 'tools/list'
                    WHEN n %% 500 = 9 THEN 'ping' ELSE 'initialize' END AS method,
                CASE WHEN n %% 50 = 1 THEN 'tool_error' WHEN n %% 200 = 3 THEN 'denied' WHEN n %% 4000 = 5
                    THEN 'timeout' ELSE 'ok' END AS outcome
            FROM generate_series(0, %(rows)s - 1) AS n
        ) linked
    ) placed
) made WHERE at < now()
"""
DEFINITION = """(SELECT jsonb_build_object('name', {name}, 'title', 'Tool ' || n %% {tools},
    'description', 'Finds what is asked for. ' || repeat('It takes words and gives pages. ', 12),
    'inputSchema', jsonb_build_object('type', 'object', 'properties', jsonb_build_object(
        'q', jsonb_build_object('type', 'string', 'description', 'What to look for.'),
        'limit', jsonb_build_object('type', 'integer', 'minimum', 1)), 'required', jsonb_build_array('q')),
    'annotations', jsonb_build_object('readOnlyHint', n %% 3 = 0))::text)"""
ACTIONS = ("host.disabled", "host.enabled", "connection.revoked", "token.issued", "token.revoked", "user.invited")


def main() -> None:
    options = parsed()
    with workspace(options.keep):
        fill(options.rows, options.days)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.full_size", description=__doc__)
    parser.add_argument("--keep", type=Path, required=True, help="a folder for the data, which is kept")
    parser.add_argument("--rows", type=int, default=ROWS, help="calls (default: %(default)s)")
    parser.add_argument("--days", type=int, default=DAYS, help="days they are spread over (default: %(default)s)")
    return parser.parse_args()


@contextmanager
def workspace(home: Path) -> Iterator[None]:
    """Set up Django for the workspace in this folder; the embedded database runs until the block ends."""
    home.mkdir(mode=0o755, exist_ok=True)  # If root runs this, the embedded PostgreSQL runs as another user.
    data = home / "data"
    data.mkdir(mode=0o700, exist_ok=True)
    os.environ |= {"GATEWAY_DATA_DIR": str(data), "GATEWAY_QUICKSTART": "0", "DJANGO_SETTINGS_MODULE": SETTINGS}
    if "DATABASE_URL" in os.environ:
        from cryptography.fernet import Fernet  # noqa: PLC0415

        keys = ("GATEWAY_SECRET_KEY", "GATEWAY_TOKEN_KEYS", "GATEWAY_ENCRYPTION_KEYS")
        os.environ |= {name: Fernet.generate_key().decode() for name in keys if name not in os.environ}
    import django  # noqa: PLC0415 - the settings are read from the environment above
    from django.conf import settings  # noqa: PLC0415
    from django.db import connection  # noqa: PLC0415

    django.setup()
    from gatewayadmin.config import database  # noqa: PLC0415
    from gatewayadmin.embedded.cluster import cluster  # noqa: PLC0415

    database.ensure()
    try:
        yield
    finally:
        connection.close()
        if database.is_embedded():
            cluster(settings.DATA_DIR).leave()


def fill(rows: int, days: int) -> None:
    from django.core.management import call_command  # noqa: PLC0415

    from accounts.models import Role, User  # noqa: PLC0415

    call_command("migrate", verbosity=0)
    Role.objects.make_built_in()
    if not User.objects.filter(email="person0@example.com").exists():
        said("workspace", furnish)
    make_calls(rows, days)
    roll_up()
    said("vacuum", vacuum)


def said(what: str, work: Callable[[], None]) -> None:
    began = time.monotonic()
    work()
    print(f"{what}: {time.monotonic() - began:,.0f} s", flush=True)


def furnish() -> None:
    """Create all rows except calls."""
    from django.db import connection, transaction  # noqa: PLC0415

    with transaction.atomic():
        grow(None, WHOLE)
        with connection.cursor() as cursor:
            for statement, parameters in (*_offers(), *_people(), *_events()):
                cursor.execute(statement, parameters)


def _offers() -> Iterator[tuple[str, list[Any]]]:
    """Yield statements that add servers and tools to gateways, connect all people, and give connections credentials."""
    from connections.models import Connection  # noqa: PLC0415
    from gateways.models import Assignment, Feature, FeatureVersion  # noqa: PLC0415

    first, last = WHOLE.gateways, WHOLE.gateways * (1 + MORE_SERVERS)
    server = f"((n / {MORE_SERVERS} - {first // MORE_SERVERS}) + 17 * (n %% {MORE_SERVERS} + 1)) %% {WHOLE.servers}"
    yield series(
        Assignment,
        first,
        last,
        gateway_id=key("Gateway", f"n / {MORE_SERVERS} - {first // MORE_SERVERS}"),
        server_id=key("Server", server),
        alias=f"'x' || {server}",
        identity_scheme=f"CASE n %% {MORE_SERVERS} WHEN 0 THEN 'per_user' ELSE 'none' END",
    )
    name = f"'tool_' || n %% {TOOLS}"
    definition = DEFINITION.format(name=name, tools=TOOLS)
    of_first = WHOLE.gateways * 5  # The tools that `grow` creates.
    told = {
        "assignment_id": key("Assignment", f"(n - {of_first}) / {TOOLS}"),
        "name": f"'page_tool_' || n %% {TOOLS}",
        "exposed_name": (
            f"(SELECT alias FROM gateways_assignment WHERE id = {key('Assignment', f'(n - {of_first}) / {TOOLS}')})"
            f" || '__tool_' || n %% {TOOLS}"
        ),
        "title": f"'Tool ' || n %% {TOOLS}",
        "description": "'Finds what is asked for. ' || repeat('It takes words and gives pages. ', 12)",
        "annotations": "jsonb_build_object('readOnlyHint', n %% 3 = 0)",
        "approved": definition,
        "definition_hash": "md5(n::text) || md5(n::text)",
        "state": "CASE WHEN n %% 400 = 7 THEN 'held' WHEN n %% 900 = 8 THEN 'quarantined' ELSE 'approved' END",
        "offered": f"CASE WHEN n %% 400 = 7 THEN {definition} || ' ' END",
        "offered_hash": "CASE WHEN n %% 400 = 7 THEN md5('o' || n) || md5(n::text) ELSE '' END",
        "changed_at": "CASE WHEN n %% 400 = 7 THEN now() - n * interval '1 minute' END",
        "position": f"n %% {TOOLS}",
        "first_seen_at": "now() - interval '60 days'",
        "last_seen_at": "now()",
    }
    end = of_first + last * TOOLS
    yield series(Feature, of_first, end, **told)
    yield series(
        FeatureVersion,
        of_first,
        end,
        feature_id=key("Feature"),
        hash="md5(n::text) || md5(n::text)",
        definition=definition,
        first_seen_at="now() - interval '60 days'",
        approved_at="now() - interval '60 days'",
    )
    # Connect every person with the same app.
    made = series(
        Connection,
        WHOLE.connections,
        WHOLE.connections + WHOLE.users,
        host_id=key("Host", "1"),
        gateway_id=key("Gateway", "0"),
        user_id=key("User", f"n - {WHOLE.connections}"),
        connected_at="now() - n * interval '1 minute'",
    )
    yield f"{made[0]} ON CONFLICT DO NOTHING", made[1]
    yield (
        "INSERT INTO connections_connectionidentity (connection_id, assignment_id, identity_id) "
        "SELECT c.id, a.id, i.id FROM connections_connection c "
        "JOIN gateways_assignment a ON a.gateway_id = c.gateway_id AND a.identity_scheme = 'per_user' "
        "JOIN servers_identity i ON i.server_id = a.server_id AND i.owner_id = c.user_id WHERE c.revoked_at IS NULL",
        [],
    )


def _people() -> Iterator[tuple[str, list[Any]]]:
    """Yield statements that set people's roles and insert teams, API keys and saved views."""
    from accounts.models import ApiKey, Role, SavedView, Team  # noqa: PLC0415

    member = Role.objects.get(name="Member").pk
    yield "UPDATE accounts_user SET role_id = %s WHERE email LIKE %s", [member, "person%"]
    yield series(Team, 0, TEAMS, name="'Team ' || n")
    members = Team.users.through
    yield (
        f"INSERT INTO {members._meta.db_table} (user_id, team_id) SELECT {key('User')}, {key('Team', f'n %% {TEAMS}')} "
        f"FROM generate_series(0, {WHOLE.users} - 1) AS n",
        [],
    )
    yield series(
        ApiKey,
        0,
        500,
        user_id=key("User"),
        name="'key ' || n",
        prefix="'gwk_' || substr(md5(n::text), 1, 8)",
        digest="decode(md5('k' || n) || md5('l' || n), 'hex')",
        key_id="'k'",
        capabilities="'{}'",
        expires_at="now() + interval '30 days'",
    )
    yield series(
        SavedView, 0, 200, owner_id=key("User"), name="'View ' || n", query="'outcome=denied'", is_shared="n %% 25 = 0"
    )


def _events() -> Iterator[tuple[str, list[Any]]]:
    from auditlog.models import Event  # noqa: PLC0415

    actions = ", ".join(f"'{one}'" for one in ACTIONS)
    action = f"(ARRAY[{actions}])[1 + n %% {len(ACTIONS)}]"
    yield series(
        Event,
        WHOLE.connections,
        WHOLE.connections + EVENTS,
        uid=key("Event"),
        created_at=f"now() - (n - {WHOLE.connections}) * interval '{DAYS * 1440 / EVENTS:.3f} minutes'",
        actor_id=key("User", "n %% 20"),
        actor_email="'person' || n %% 20 || '@example.com'",
        via="'web'",
        action=action,
        target_type=f"split_part({action}, '.', 1)",
        target_id=f"({key('Host', f'n %% {WHOLE.hosts}')})::text",
        target_label="'Thing ' || n",
        correlation_id=key("Correlation"),
        changes="'{}'::jsonb",
    )


def make_calls(rows: int, days: int) -> None:
    """Create calls for each day that has no calls, oldest day first."""
    from django.db import connection  # noqa: PLC0415

    from auditlog.models import Call  # noqa: PLC0415

    size = vars(WHOLE) | {
        "tools": TOOLS,
        "host": key("Host", "host"),
        "gateway": key("Gateway", "gateway"),
        "connection": key("Connection", "link"),
        "user": key("User", "who"),
        "token": key("Token", "link"),
        "server": key("Server", "server"),
    }
    began, today = time.monotonic(), datetime.now(UTC).date()
    for day in (today - timedelta(days=back) for back in range(days - 1, -1, -1)):
        Call.partitions.make_for(day)
        begin = datetime.combine(day, datetime.min.time(), UTC)
        if Call.objects.filter(created_at__gte=begin, created_at__lt=begin + timedelta(days=1)).exists():
            continue
        with connection.cursor() as cursor:
            cursor.execute("SET synchronous_commit = off")
            cursor.execute(CALLS.format(**size), {"begin": begin, "rows": rows // days})
        print(f"calls of {day}: {time.monotonic() - began:,.0f} s", flush=True)
    Call.partitions.make_ahead()


def vacuum() -> None:
    from django.db import connection  # noqa: PLC0415

    with connection.cursor() as cursor:
        cursor.execute("VACUUM (ANALYZE)")


if __name__ == "__main__":
    main()
