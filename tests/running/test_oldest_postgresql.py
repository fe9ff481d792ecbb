"""The oldest supported PostgreSQL, Debian's 15, runs every statement of the product."""

import ast
import asyncio
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psycopg
import pytest

from gatewayadmin.config import database
from proxy.access import decision
from proxy.access.decision import Access
from proxy.store import rate_limits
from proxy.store.rate_limits import Limits
from proxy.store.usage import STATEMENTS, UsageTracker
from tests import cluster, workspace
from tests.running.debian import postgres, programs

pytestmark = pytest.mark.xdist_group("oldest PostgreSQL")

LIMIT, CALLS = 60, 400

# Modules that run SQL of their own, with the tests that run all of that SQL. Every test runs the migrations.
PROOFS = {
    "access/lines.py": "tests/access/test_reviews.py",
    "access/permitted.py": "tests/access/test_report.py tests/access/test_past_days.py",
    "accounts/models/attempts.py": "tests/oauth/test_limits.py",
    "accounts/rules.py": "tests/house/test_locks.py",
    "auditlog/charts.py": "tests/auditlog/test_search.py tests/auditlog/test_views.py",
    "auditlog/names.py": "tests/auditlog/test_search.py",
    "auditlog/search.py": "tests/auditlog/test_search.py",
    "auditlog/partitions.py": "tests/auditlog/test_models.py",
    "proxy/store/call_log.py": "tests/proxy/test_recording.py",
    "gatewayadmin/config/database.py": "tests/gatewayadmin/test_slow_statements.py tests/running/test_scale_out.py",
    "gatewayadmin/serving/housekeeping.py": "tests/oauth/test_purge.py",
    "proxy/access/decision.py": "tests/proxy/test_access.py",
    "proxy/store/rate_limits.py": "tests/proxy/test_rate_limits.py",
    "auditlog/export.py": "tests/auditlog/test_export.py",
    "gatewayadmin/config/schema_versions.py": "tests/gatewayadmin/test_schema_versions.py",
    "gatewayadmin/grants.py": "tests/running/test_roles_and_migrations.py",
    "gatewayadmin/management/commands/migrate.py": "tests/running/test_roles_and_migrations.py",
    "proxy/store/usage.py": "tests/proxy/test_endpoint.py",
    "proxy/store/pg.py": "tests/proxy/test_sessions.py",
    "gateways/models/feature.py": "tests/proxy/test_lists.py",
    "servers/oauth_client/registration.py": "tests/proxy/test_sign_in.py",
    "ui/operations.py": "tests/api/test_idempotency.py",
    "auditlog/why.py": "tests/auditlog/test_why.py",
    "gateways/catalogue.py": "tests/gateways/test_catalogue.py",
    "gateways/usage.py": "tests/gateways/test_usage.py",
    "auditlog/groups.py": "tests/auditlog/test_groups.py tests/ui/test_lists.py",
    "auditlog/rollups/keeping.py": "tests/auditlog/test_rollups.py",
    "auditlog/rollups/reading.py": "tests/auditlog/test_rollups.py",
    "auditlog/replica.py": "tests/running/test_scale_out.py tests/auditlog/test_rollups.py",
    "gatewayadmin/config/checks.py": "tests/running/test_scale_out.py",
    "gatewayadmin/embedded/moving.py": "tests/running/test_move_database.py",
    "auditlog/facets.py": "tests/auditlog/test_search.py",
    "auditlog/indexes.py": "tests/auditlog/test_indexes.py",
    "auditlog/checkpoints/sealing.py": "tests/auditlog/test_checkpoints.py",
    "auditlog/checkpoints/signed_export.py": "tests/auditlog/test_signed_export.py",
    "auditlog/checkpoints/verifying.py": "tests/auditlog/test_checkpoints.py",
    "sinks/archive.py": "tests/sinks/test_archive.py",
    "sinks/reading.py": "tests/sinks/test_sending.py",
    "ui/databases.py": "tests/gatewayadmin/test_stored_metrics.py",
    "auditlog/over_time.py": "tests/auditlog/test_over_time.py",
    "hosts/least_privilege.py": "tests/hosts/test_least_privilege.py",
    "gatewayadmin/incident/activity.py": "tests/gatewayadmin/test_incident.py",
    "gateways/models/tool_sets.py": "tests/connections/test_tool_sets.py",
    "connections/tool_sets.py": "tests/connections/test_tool_sets.py",
    "connections/given_tools.py": "tests/connections/test_tool_sets.py",
    "configuration/apply.py": "tests/configuration/test_apply.py",
    "gatewayadmin/admin_server/caller.py": "tests/gatewayadmin/test_admin_server.py",
    "gatewayadmin/overview.py": "tests/gatewayadmin/test_attention.py",
}
# These tests start Debian's PostgreSQL themselves, so `make test-all` runs them on the oldest version anyway.
ON_THE_OLDEST = {
    "tests/running/test_move_database.py",
    "tests/running/test_scale_out.py",
}
# Tests of a running workspace, which this module would run on the workspace of `served`.
LEFT_OUT = [
    "tests/proxy/test_rate_limits.py::test_two_worker_processes_let_through_what_the_limit_says",
    "tests/auditlog/test_signed_export.py::test_an_export_of_a_running_workspace_is_verified",
]
RUNS_SQL = {"execute", "raw", "RawSQL", "PgConnection"}
RUN_FOR_OTHERS = {  # Their `execute` is the one of Django's commands.
    "gatewayadmin/management/base.py",
    "gatewayadmin/management/configuration.py",
}


@pytest.fixture(scope="module")
def oldest() -> Iterator[str]:
    with postgres(programs()) as url:
        with psycopg.connect(url) as connection:
            assert connection.info.server_version // 10000 == database.OLDEST // 10000
        yield url


def proofs() -> list[str]:
    return sorted({proof for listed in PROOFS.values() for proof in listed.split()})


def modules_with_sql() -> set[str]:
    """Return the product's modules that run SQL, without migrations and code for other databases."""
    found = set()
    project = tomllib.loads((workspace.ROOT / "pyproject.toml").read_text())
    for package in project["tool"]["importlinter"]["root_packages"]:
        for path in (workspace.ROOT / package).rglob("*.py"):
            name = str(path.relative_to(workspace.ROOT))
            if "/migrations/" not in name and name not in RUN_FOR_OTHERS and _runs_sql(path):
                found.add(name)
    return found


def _runs_sql(path: Path) -> bool:
    text = path.read_text()
    if not any(name in text for name in RUNS_SQL):
        return False
    calls = (node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    return any(
        (call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "")) in RUNS_SQL for call in calls
    )


def test_every_module_that_runs_sql_is_proven_on_the_oldest() -> None:
    assert modules_with_sql() == set(PROOFS)
    assert [proof for proof in proofs() if not (workspace.ROOT / proof).is_file()] == []
    assert {proof for proof in proofs() if "programs()" in (workspace.ROOT / proof).read_text()} == ON_THE_OLDEST


@pytest.mark.full
def test_every_statement_runs_on_the_oldest(oldest: str) -> None:
    own = {"TEST_DATABASE_URL": oldest}
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GATEWAY_", "PYTEST_", "DATABASE_", "TEST_")) and name != cluster.HOME
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--hypothesis-profile=few",
        *(proof for proof in proofs() if proof not in ON_THE_OLDEST),
    ]
    deselected = [word for name in LEFT_OUT for word in ("--deselect", name)]

    done = subprocess.run(
        [*command, *deselected], cwd=workspace.ROOT, env=environment | own, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout[-10_000:]


@pytest.fixture(scope="module")
def served(oldest: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[workspace.Serve]:
    """A workspace with two workers on the oldest PostgreSQL."""
    data_dir = tmp_path_factory.mktemp("oldest") / "data"
    data_dir.mkdir(mode=0o700)
    serve = workspace.Serve(data_dir, oldest, workspace.free_port(), cluster.keys())
    try:
        yield serve.start(workers=2)
    finally:
        serve.stop()


@pytest.mark.full
def test_the_lanes_of_the_proxy_prepare_all_their_statements_on_the_oldest(served: workspace.Serve) -> None:
    async def scene() -> dict[str, str]:
        parts = (
            Access(served.database_url, [b"k"]),
            Limits(served.database_url, 60),
            UsageTracker(served.database_url, 60),
        )
        for part in parts:
            part.start()
        for part in parts:
            await part.first_attempt()
        faults = {type(part).__name__: part.fault for part in parts}
        for part in parts:
            await part.stop()
        return faults

    assert asyncio.run(scene()) == {"Access": "", "Limits": "", "UsageTracker": ""}
    assert decision.SETUP[-1].startswith(b"EXECUTE")
    assert rate_limits.SETUP[-1].startswith(b"PREPARE")
    assert STATEMENTS


@pytest.mark.full
def test_a_limit_of_so_many_a_minute_lets_exactly_so_many_through_on_the_oldest(served: workspace.Serve) -> None:
    issued = served.issue_token(host="limited", gateway="quickstart")
    served.rows("UPDATE tokens_token SET calls_per_minute = %s WHERE id = %s", LIMIT, issued["id"])

    def several(_: int) -> list[int]:
        with httpx.Client(headers={"Authorization": f"Bearer {issued['token']}"}, timeout=30) as client:
            body = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
            return [client.post(issued["gateway_url"], json=body).status_code for _ in range(CALLS // 8)]

    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        answers = [status for each in pool.map(several, range(8)) for status in each]

    assert time.monotonic() - began < 60, "Another minute has begun; this machine is too slow to say anything."
    assert (answers.count(200), answers.count(429)) == (LIMIT, CALLS - LIMIT)
