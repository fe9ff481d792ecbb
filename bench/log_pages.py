"""Measure the Logs page with a large log: `python -m bench.log_pages`.

A database on the embedded PostgreSQL gets two million calls over thirty days. Then a signed-in user requests each page
several times, in this process. For each page the command prints the median and the 95th percentile of the answer time,
and the median of the database time, first without roll-ups of the log, then with them.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import md5
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from django.test import Client

FILL = """
INSERT INTO auditlog_call (
    uid, created_at, correlation_id, method, feature_type, feature_name, outcome, deny_reason, http_status,
    host_id, gateway_id, connection_id, user_id, server_id, host_name, gateway_name, server_name, user_email,
    identity_label, token_name, token_prefix, duration_ms, authorise_ms, upstream_ms, request_bytes, response_bytes,
    client_ip, user_agent, client_name, client_version, protocol_version
)
SELECT
    (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '70008000' || lpad(to_hex(n), 12, '0'))::uuid,
    at, gen_random_uuid(), method, CASE method WHEN 'tools/call' THEN 'tool' ELSE '' END,
    CASE WHEN method <> 'tools/call' THEN '' WHEN n %% 40000 = 6 THEN 'rare__tool' ELSE 'tool__' || tool END,
    outcome, CASE outcome WHEN 'denied' THEN 'host_disabled' ELSE '' END,
    CASE outcome WHEN 'denied' THEN 403 ELSE 200 END,
    md5('host' || host)::uuid, md5('gateway' || host %% 6)::uuid, md5('connection' || host || who)::uuid,
    md5('user' || who)::uuid, md5('server' || tool %% 9)::uuid, 'Host ' || host, 'Gateway ' || host %% 6,
    'Server ' || tool %% 9, 'person' || who || '@example.com', '', 'ci', 'gwa_Ab3dE5gH',
    20 + 3000 * power(random(), 12), 0.8, 15, 240, 1900,
    '203.0.113.24', 'python-httpx/0.28', 'bench', '1.0', '2025-11-25'
FROM (
    SELECT n, now() - interval '30 days' * (1 - n::float / %(rows)s) AS at,
        floor(40 * power(random(), 2))::int AS host, floor(200 * random())::int AS who,
        floor(60 * random())::int AS tool,
        CASE WHEN n %% 10 < 7 THEN 'tools/call' WHEN n %% 10 < 9 THEN 'tools/list' WHEN n %% 500 = 9 THEN 'ping'
            ELSE 'initialize' END AS method,
        CASE WHEN n %% 50 = 1 THEN 'tool_error' WHEN n %% 200 = 3 THEN 'denied' WHEN n %% 4000 = 5 THEN 'timeout'
            ELSE 'ok' END AS outcome
    FROM generate_series(%(first)s::int, %(last)s::int) AS n
) made
"""
STEP = 250_000


def main() -> None:
    options = parsed()
    with place(options.keep) as home:
        os.environ |= {"GATEWAY_DATA_DIR": str(home), "GATEWAY_QUICKSTART": "0", "DJANGO_SETTINGS_MODULE": SETTINGS}
        os.environ.pop("DATABASE_URL", None)
        import django  # noqa: PLC0415 - the settings are read from the environment above

        django.setup()
        measure(options.rows, options.times)


SETTINGS = "gatewayadmin.settings"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.log_pages", description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--times", type=int, default=7, help="the median counts (default: %(default)s)")
    parser.add_argument("--keep", type=Path, help="a folder for the database, which the next run reuses")
    return parser.parse_args()


@contextmanager
def place(keep: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder:
        Path(folder).chmod(0o755)  # If root runs this, the embedded PostgreSQL runs as another user.
        home = keep or Path(folder) / "data"
        home.mkdir(mode=0o700, exist_ok=True)
        yield home


def measure(rows: int, times: int) -> None:
    from django.conf import settings  # noqa: PLC0415
    from django.core.management import call_command  # noqa: PLC0415
    from django.db import connection  # noqa: PLC0415

    from auditlog.models import Call  # noqa: PLC0415
    from gatewayadmin.config import database  # noqa: PLC0415
    from gatewayadmin.embedded.cluster import cluster  # noqa: PLC0415

    database.ensure()
    try:
        call_command("migrate", verbosity=0)
        fill(rows)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_size_pretty(sum(pg_total_relation_size(inhrelid))) FROM pg_inherits")
            print(f"{Call.objects.count():,} calls, {cursor.fetchone()[0]} with their indexes\n")
        measure_pages("without roll-ups", times)
        roll_up()
        measure_pages("with roll-ups", times)
    finally:
        connection.close()
        cluster(settings.DATA_DIR).leave()


def measure_pages(head: str, times: int) -> None:
    print(f"\n{head:42}{'whole answer':>14}{'p95':>12}{'database':>12}{'size':>10}")
    for name, path in pages():
        print_one(name, *timed(signed_in(), path, 1 if "export" in path else times))


def roll_up() -> None:
    """Compute the roll-ups of the whole log, in the same steps as `manage.py serve`."""
    from django.db import connection  # noqa: PLC0415

    from auditlog.models import Rollup  # noqa: PLC0415
    from auditlog.rollups import keeping  # noqa: PLC0415

    began, counted = time.monotonic(), 0
    while (rows := keeping.keep_up(10)) or keeping.days_left():
        counted += rows
        print(f"{counted:,} calls counted, {keeping.days_left()} days left", flush=True)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE auditlog_rollup")
        cursor.execute("SELECT pg_size_pretty(pg_total_relation_size('auditlog_rollup'))")
        size = cursor.fetchone()[0]
    print(
        f"{counted:,} calls counted in {time.monotonic() - began:,.0f} s: {Rollup.objects.count():,} roll-ups, {size}"
    )


def fill(rows: int) -> None:
    from datetime import UTC, datetime, timedelta  # noqa: PLC0415

    from django.db import connection  # noqa: PLC0415

    from auditlog.models import Call  # noqa: PLC0415

    if Call.objects.exists():
        return
    for days in range(31):
        Call.partitions.make_for((datetime.now(UTC) - timedelta(days=days)).date())
    Call.partitions.make_ahead()
    began = time.monotonic()
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = off")
        for first in range(1, rows + 1, STEP):
            cursor.execute(FILL, {"rows": rows, "first": first, "last": min(first + STEP - 1, rows)})
        cursor.execute("VACUUM ANALYZE auditlog_call")
    print(f"filled in {time.monotonic() - began:,.0f} s")


def pages() -> Iterator[tuple[str, str]]:
    """Yield the name and the path of each measured page."""

    def pk(kind: str, number: int) -> str:
        return str(UUID(md5(f"{kind}{number}".encode(), usedforsecurity=False).hexdigest()))

    everything = "/logs/?range=30d"
    yield "newest page, last 24 hours", "/logs/"
    yield "newest page, last 30 days", everything
    yield "newest page, all time", "/logs/?range=all"
    facets = {
        "method, frequent": "&method=tools/call",
        "method, rare": "&method=ping",
        "method nobody used": "&method=completion/complete",
        "outcome, ok": "&outcome=ok",
        "outcome, rare": "&outcome=timeout",
        "outcomes, three": "&outcome=denied&outcome=unauthorized&outcome=rate_limited",
        "host, busy": f"&host={pk('host', 0)}",
        "host, quiet": f"&host={pk('host', 39)}",
        "gateway": f"&gateway={pk('gateway', 1)}",
        "server": f"&server={pk('server', 1)}",
        "user": f"&user={pk('user', 7)}",
        "tool": "&tool=tool__7",
        "tool, rare": "&tool=rare__tool",
        "tool nobody has": "&tool=none",
        "correlation id": f"&correlation={pk('none', 1)}",
    }
    for name, query in facets.items():
        yield f"30 days, {name}", everything + query
    yield "30 days, host and outcome", f"{everything}&host={pk('host', 3)}&outcome=denied"
    yield "30 days, user and tool", f"{everything}&user={pk('user', 7)}&tool=tool__7"
    yield "30 days, two that exclude each other", f"{everything}&method=tools/list&tool=tool__7"
    yield "search: error", f"{everything}&q=error"
    yield "search: duration > 500", f"{everything}&q=duration+>+500"
    yield "search: duration > 99999 (finds none)", f"{everything}&q=duration+>+99999"
    yield "search: tool is tool__7", f"{everything}&q=tool+is+tool__7"
    yield "search: tool contains rare", f"{everything}&q=tool+contains+rare"
    yield "values of the host filter", "/logs/values/host/?range=30d"
    yield "values of the tool filter", "/logs/values/tool/?range=30d"
    yield "dashboard", "/"
    yield "dashboard, 30 days", "/?range=30d"
    yield "by host, 24 hours", "/logs/groups/?by=host"
    for by in ("host", "user", "tool", "reason"):
        yield f"by {by}, 30 days", f"/logs/groups/?range=30d&by={by}"
    yield "by tool, 30 days, one person", f"/logs/groups/?range=30d&by=tool&user={pk('user', 7)}"
    yield "by person, 30 days, one gateway", f"/logs/groups/?range=30d&by=user&gateway={pk('gateway', 1)}"
    yield "by person, 24 hours, one gateway", f"/logs/groups/?by=user&gateway={pk('gateway', 1)}"
    yield "by host, duration > 500", "/logs/groups/?range=30d&by=host&q=duration+>+500"
    yield "export of 100,000 rows, CSV", "/logs/export/?range=30d&format=csv"
    yield "export of 100,000 rows, JSON lines", "/logs/export/?range=30d&format=jsonl"


def signed_in() -> "Client":
    from django.test import Client  # noqa: PLC0415

    from accounts.models import User  # noqa: PLC0415

    person, _ = User.objects.rescue("bench@example.com", create=True)
    person.set_staff(True, by=None)
    client = Client(headers={"Host": "localhost:8000"})
    client.force_login(person)
    return client


def timed(client: "Client", path: str, times: int) -> tuple[float, float, float, int]:
    """Return three times in ms, and the size of the answer in bytes.

    The times are the median and the 95th percentile of the request, and the median of its database time.
    """
    from django.db import connection  # noqa: PLC0415

    wholes, asked, size = [], [], 0
    for _ in range(times + 1):
        spent: list[float] = []

        def watch(execute: Callable[..., Any], *arguments: Any, spent: list[float] = spent) -> Any:
            began = time.perf_counter()
            try:
                return execute(*arguments)
            finally:
                spent.append(time.perf_counter() - began)

        began = time.perf_counter()
        with connection.execute_wrapper(watch):
            answer = client.get(path)
            size = len(answer.getvalue())
        wholes.append((time.perf_counter() - began) * 1000)
        asked.append(sum(spent) * 1000)
        if answer.status_code != 200:
            sys.exit(f"{path}: {answer.status_code}")
    # The first request warms up.
    taken = sorted(wholes[1:])
    return median(taken), taken[round(0.95 * (len(taken) - 1))], median(asked[1:]), size


def print_one(name: str, whole: float, most: float, asked: float, size: int) -> None:
    print(f"{name:42}{whole:11,.0f} ms{most:9,.0f} ms{asked:9,.0f} ms{size / 1000:7,.0f} KB", flush=True)


if __name__ == "__main__":
    main()
