"""Pages through PgBouncer, logs from a replica, and a failover, on real PostgreSQL servers."""

import configparser
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import httpx
import psycopg
import pytest

from gatewayadmin.config import checks
from sinks.sending import MOST_THREADS
from tests import cluster, curl
from tests.api.browser import signed_in
from tests.docs.pages import exported
from tests.eventually import eventually
from tests.running.debian import postgres, programs
from tests.running.pooler import pooler
from tests.running.standby import Standby, standby
from tests.running.starts import manage
from tests.running.test_refusals import KEYS, refusal
from tests.workspace import OWNER, PASSWORD, ROOT, Serve, free_port

pytestmark = pytest.mark.full

DIRECT, READ = "GATEWAY_DIRECT_DATABASE_URL", "DATABASE_READ_URL"
REPLICA_URL = "postgresql://gateway:secret@replica.internal:5432/gateway"
PAGE = ROOT / "docs" / "how-to" / "scale-out.md"
BEHIND = "Read from a database replica that is"
TABLES, EMPTY = "tables", "template1"  # Databases to copy.
OK, UNAVAILABLE = httpx.codes.OK, httpx.codes.SERVICE_UNAVAILABLE
NEEDS_DIRECT = (
    "DATABASE_URL leads to a connection pooler in transaction mode, which can serve pages only: "
    f"set {DIRECT} to a URL that leads to PostgreSQL itself."
)
LOGS = "/logs/?order=slowest"  # The default order, newest first, updates live and is read from the primary.
PAGES = ("/", "/logs/", "/logs/groups/", "/settings/admin-events/", "/gateways/", "/hosts/", "/servers/", "/admin/")
OTHER = f"""
from accounts.models import Role, User
role = Role.objects.get(name="Super admin")
User.objects.create_user("ops@example.com", password={PASSWORD!r}, display_name="Ops", role=role)
"""
# Read from a replica.
LOOKING_BACK = (
    *("/", "/logs/", "/logs/?q=tool%20is%20echo&chart=latency", "/logs/?order=slowest", "/logs/values/host/"),
    *("/logs/groups/", "/settings/admin-events/", "/gateways/quickstart/", "/gateways/quickstart/usage/"),
    *("/gateways/quickstart/logs/", "/hosts/", "/servers/", "/api/logs", "/api/logs/groups", "/api/admin-events"),
)
# State of ours that could remain in a PostgreSQL session behind the pooler.
LEFT = """
SELECT (SELECT count(*) FROM pg_prepared_statements),
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
    current_setting('lock_timeout'), current_setting('statement_timeout'),
    current_setting('default_transaction_read_only'), current_setting('enable_seqscan')
"""


def block(language: str, number: int = 0) -> str:
    """Return the page's code block with this language and index."""
    return str(re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)[number])


def documented(beginning: str, places: dict[str, str]) -> dict[str, str]:
    """Return the variables that `export {beginning}` on the page sets; `places` maps printed texts to replacements."""
    (script,) = re.findall(rf"```bash\n(export {beginning}.*?)```", PAGE.read_text(), re.DOTALL)
    for printed, place in places.items():
        assert printed in script
        script = script.replace(printed, place)
    return exported(script)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield a superuser's URL of a PostgreSQL server. The page's SQL has configured its role `app`."""
    with postgres(programs()) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE ROLE app LOGIN PASSWORD 'p@ss/word'")
            connection.execute(block("sql").replace("gateway", "app").encode())
            connection.execute(f"CREATE DATABASE {TABLES} OWNER app")
        made = manage(tmp_path_factory.mktemp("tables"), "migrate", DATABASE_URL=_as_app(url, TABLES), **KEYS)
        assert made.returncode == 0, made.stderr
        yield url


def _as_app(server: str, name: str) -> str:
    """Return the URL of the database `name` for its owner `app`, which has no other rights."""
    parts = urlsplit(server)
    return urlunsplit(parts._replace(netloc=parts.netloc.replace("gateway", "app", 1), path=f"/{name}"))


@contextmanager
def database(server: str, template: str = TABLES) -> Iterator[str]:
    """Yield the owner's URL of a new database, by default with migrated tables."""
    name = f"d{uuid4().hex[:8]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} OWNER app TEMPLATE {template}".encode())
        yield _as_app(server, name)
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())


@contextmanager
def serving(directory: Path, url: str, **settings: str) -> Iterator[Serve]:
    """Yield a `serve` on this database. If tables are missing, `serve` creates them."""
    data_dir = directory / "var"
    data_dir.mkdir(mode=0o700, exist_ok=True)
    served = Serve(data_dir, url, free_port(), {**cluster.keys(), **settings})
    try:
        yield served.start(workers=1)
    finally:
        served.stop()


def called(issued: dict[str, str]) -> int:
    """Return the status of a call with this token."""
    return curl.call_tool(issued["gateway_url"], issued["token"], "echo", text="hello").status


def number(served: Serve, metric: str) -> float:
    """Return the value of the sample `metric` in /metrics, ignoring the label `replica`; 0 if it is missing."""
    told = httpx.get(f"{served.url}/metrics", trust_env=False).text
    told = re.sub(r',?replica="[^"]*"', "", told).replace("{}", "")
    found = re.search(rf"^{re.escape(metric)} (\S+)$", told, re.MULTILINE)
    return float(found[1]) if found else 0.0


def ready(served: Serve) -> str:
    return httpx.get(f"{served.url}/readyz", trust_env=False).text


# --- A pooler ---------------------------------------------------------------------------------------------------------


def test_pages_rest_and_chores_work_through_a_pooler_and_calls_go_on_without_it(server: str, tmp_path: Path) -> None:
    assert re.findall(r"export (\w+)=", block("bash")) == ["DATABASE_URL", DIRECT]
    documented = configparser.ConfigParser()
    documented.read_string(block("ini"))
    assert documented["pgbouncer"].keys() == {"pool_mode", "default_pool_size"}
    mode = documented["pgbouncer"]["pool_mode"]
    with (
        database(server, EMPTY) as direct,
        ExitStack() as stack,
        # So few sessions that every kind of statement uses each of them.
        serving(tmp_path, stack.enter_context(pooler(direct, mode, size=3)), **{DIRECT: direct}) as served,
    ):
        pooled = served.database_url
        pages = "Pages use DATABASE_URL (through a pooler in transaction mode)"
        said = f"{pages}; calls and background chores use {DIRECT}."
        assert said in served.log()
        assert "Warning" not in served.log()
        assert ready(served).endswith("\npages: DATABASE_URL\n")
        issued = served.issue_token(host="Bot", gateway="quickstart")
        with signed_in(served, OWNER) as browser:
            for turn in range(2):
                everything_works(browser, issued, turn)
            assert "partitions_made" in served.manage("housekeeping")
            asked = block("bash", -1).split("manage.py")[1].split()
            assert said in manage(served.data_dir, *asked, DATABASE_URL=pooled, **served.settings).stderr
            nothing_is_left(pooled)
            assert "DuplicatePrepared" not in served.log()
            stack.close()
            assert browser.get("/hosts/").status_code >= httpx.codes.INTERNAL_SERVER_ERROR
        assert called(issued) == OK
        assert ready(served).startswith("ok\n")


def everything_works(browser: httpx.Client, issued: dict[str, str], turn: int) -> None:
    """Make calls, read pages and an export, and create rows through REST, also with repeated idempotency keys."""
    assert called(issued) == OK
    for page in PAGES:
        assert browser.get(page).status_code == OK, page
    assert '"export":{"complete":true' in browser.get("/logs/export/?format=jsonl").text
    once = {"Idempotency-Key": str(uuid4())}
    made = [browser.post("/api/hosts", json={"name": f"Bot {turn}"}, headers=once) for _ in range(2)]
    assert [one.status_code for one in made] == [httpx.codes.CREATED] * 2
    assert made[0].json()["id"] == made[1].json()["id"]
    words = {"host_id": made[0].json()["id"], "gateway_id": gateway(browser), "name": "of REST"}
    token = browser.post("/api/tokens", json=words)
    assert token.status_code == httpx.codes.CREATED, token.text
    assert called(issued | {"token": token.json()["token"]}) == OK
    body = {"email": f"p{turn}@example.com", "role_id": role(browser)}
    once = {"Idempotency-Key": str(uuid4())}  # Invited people are mailed afterwards.
    made = [browser.post("/api/users", json=body, headers=once) for _ in range(2)]
    assert [one.status_code for one in made] == [httpx.codes.CREATED] * 2, made[0].text


def gateway(browser: httpx.Client) -> str:
    return str(browser.get("/api/gateways").json()["results"][0]["id"])


def role(browser: httpx.Client) -> str:
    return str(next(one["id"] for one in browser.get("/api/roles").json()["results"] if one["name"] == "Member"))


def nothing_is_left(pooled: str) -> None:
    """Check that no session behind the pooler has a lock, a prepared statement or a setting of ours."""
    with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as connection:
        for _ in range(6):
            left = connection.execute(LEFT.encode()).fetchone()
            assert left == (0, 0, "0", "15s", "off", "on")


def test_urls_that_do_not_lead_where_they_should_are_refused_with_what_to_set(server: str, tmp_path: Path) -> None:
    with database(server) as direct, database(server) as elsewhere:
        with pooler(direct) as pooled:
            said = refusal(tmp_path, DATABASE_URL=pooled, **KEYS)
            assert said.endswith(NEEDS_DIRECT)
            assert "p%40ss" not in said
        with pooler(direct, more="server_round_robin = 1\nignore_startup_parameters = options") as pooled:
            assert refusal(tmp_path, "migrate", DATABASE_URL=pooled, **KEYS).endswith(NEEDS_DIRECT)
            assert refusal(tmp_path, DATABASE_URL=pooled, **{DIRECT: pooled}, **KEYS).endswith(
                f"{DIRECT} leads to a connection pooler in transaction mode; it must lead to PostgreSQL itself."
            )
        said = refusal(tmp_path, DATABASE_URL=direct, **{DIRECT: elsewhere}, **KEYS)
        assert said.endswith(f"{DIRECT} leads to another database than DATABASE_URL; both must lead to the same one.")
        assert "p%40ss" not in said
    for name in (DIRECT, READ):
        assert refusal(tmp_path, **{name: "postgresql://127.0.0.1/x"}).endswith(
            f"{name} is set, so DATABASE_URL must be set too."
        )


def test_the_check_of_the_page_warns_of_too_few_connections_and_of_a_replica_that_is_none(
    server: str, tmp_path: Path
) -> None:
    asked = block("bash", -1).split("manage.py")[1].split()
    with database(server) as url, psycopg.connect(server, autocommit=True) as operator:
        operator.execute("ALTER ROLE app CONNECTION LIMIT 14")
        try:
            said = manage(tmp_path, *asked, DATABASE_URL=url, GATEWAY_WORKERS="1", **{READ: url}, **KEYS).stderr
        finally:
            operator.execute("ALTER ROLE app CONNECTION LIMIT -1")
    takes = "1 worker and the chores open up to 16 connections to the database"
    assert re.search(rf"{takes}, \d+ to the replica\. Exports temporarily", said)
    warning = f"{takes}. Starts, commands and administrators temporarily need 5 more, but PostgreSQL allows 14."
    assert f"{warning} Raise max_connections or the limit of the role or database, or start fewer" in said
    assert f"{READ} does not lead to a replica" in said


def test_a_pooler_in_session_mode_alone_will_do(server: str, tmp_path: Path) -> None:
    more = "ignore_startup_parameters = options"
    with database(server) as direct, pooler(direct, "session", 40, more) as pooled, serving(tmp_path, pooled) as served:
        assert called(served.issue_token(host="Bot", gateway="quickstart")) == OK


def test_pages_have_connections_of_their_own_what_decides_goes_direct_and_no_replica_is_needed(
    server: str, tmp_path: Path
) -> None:
    away = f"postgresql://app@127.0.0.1:{free_port()}/away"
    with (
        database(server) as direct,
        serving(tmp_path, direct, **{DIRECT: server_of(direct, server), READ: away}) as served,
    ):
        assert f"Warning: The replica of {READ} cannot be reached" in served.log()
        eventually(lambda: ready(served).endswith("\nlogs: primary, it cannot be reached\n"))
        with psycopg.connect(server_of(direct, server), autocommit=True) as operator:
            for kind in ("TABLES", "SEQUENCES"):
                operator.execute(f"GRANT ALL ON ALL {kind} IN SCHEMA public TO app".encode())
        issued = served.issue_token(host="Bot", gateway="quickstart")
        with signed_in(served, OWNER) as browser:
            assert browser.get("/hosts/").status_code == OK
            assert browser.get("/logs/export/?format=csv").text.splitlines()[-1].startswith("# complete")
        assert called(issued) == OK
        sessions = "SELECT usename, application_name AS name FROM pg_stat_activity WHERE datname = current_database()"
        rows = served.rows(f"{sessions} AND pid <> pg_backend_pid()")

    by_role = {who: {row["name"] for row in rows if row["usename"] == who} for who in ("app", "gateway")}
    assert by_role["app"] == {""}
    assert {"gateway bus", "gateway state"} < by_role["gateway"]
    direct_ones = [row for row in rows if row["usename"] == "gateway"]
    assert checks.PROXY <= len(direct_ones) <= checks.PROXY + 2 + 4
    assert MOST_THREADS * 2 == checks.SINKS


def server_of(url: str, server: str) -> str:
    """Return the URL of the database in `url`, for the superuser in `server`."""
    return urlunsplit(urlsplit(server)._replace(path=urlsplit(url).path))


# --- A replica --------------------------------------------------------------------------------------------------------


@contextmanager
def beside(server: str, directory: Path, limit: int) -> Iterator[tuple[Serve, Standby]]:
    """Yield a `serve` that reads logs from a replica, unless the replica is more than `limit` seconds behind."""
    with database(server) as url, standby(programs(), url, server) as replica:
        words = documented("DATABASE_READ_URL", {REPLICA_URL: replica.url, "SECONDS=10": f"SECONDS={limit}"})
        assert words == {READ: replica.url, "GATEWAY_READ_LAG_SECONDS": str(limit)}
        with serving(directory, url, **words) as served:
            eventually(lambda: "logs: replica" in ready(served))
            yield served, replica


def read_by_replica(served: Serve) -> float:
    return number(served, 'gateway_replica_reads_total{by="replica"}')


def test_logs_are_read_from_a_replica_whatever_becomes_of_it_and_decisions_are_not(server: str, tmp_path: Path) -> None:
    with beside(server, tmp_path, 12) as (served, replica):
        issued = served.issue_token(host="Bot", gateway="quickstart")
        assert called(issued) == OK
        served.manage("shell", "--verbosity", "0", "-c", OTHER)
        with signed_in(served, OWNER) as browser:
            pages_are_read_from_the_replica(served, browser)
            decisions_are_not_read_from_a_replica_that_is_behind(served, replica, browser, issued)
            with signed_in(served, "ops@example.com") as other:
                people_read_what_they_have_written(served, replica, browser, other)
            replica.freeze()
            try:
                assert browser.get(LOGS).status_code == OK
                assert browser.get("/logs/groups/").status_code == OK
                eventually(lambda: "logs: primary" in ready(served))
            finally:
                replica.thaw()
            eventually(lambda: "logs: replica" in ready(served))
            a_replica_that_dies_costs_no_page(served, replica, browser)
            said = refusal(tmp_path, DATABASE_URL=_as_app(server, TABLES), **{READ: replica.url}, **KEYS)
            assert said.endswith(
                f"{READ} leads to another database than DATABASE_URL; it must lead to a replica of the same one."
            )
            replica.promote()
            eventually(lambda: "logs: primary, it is not a replica" in ready(served))
            assert browser.get(LOGS).status_code == OK


def pages_are_read_from_the_replica(served: Serve, browser: httpx.Client) -> None:
    assert "echo" in browser.get(LOGS).text
    assert read_by_replica(served) == 0  # After signing in, a person reads the primary.
    eventually(lambda: browser.get(LOGS).text and read_by_replica(served) > 0)
    assert "echo" in browser.get(LOGS).text
    for page in LOOKING_BACK:
        assert browser.get(page).status_code == OK, page
    assert "the replica could not be read" not in served.log()


def decisions_are_not_read_from_a_replica_that_is_behind(
    served: Serve, replica: Standby, browser: httpx.Client, issued: dict[str, str]
) -> None:
    replica.pause()
    assert called(issued) == OK
    eventually(lambda: BEHIND in browser.get(LOGS).text)
    eventually(lambda: "logs: primary, it is more than 12 s behind" in ready(served))
    assert BEHIND not in browser.get(LOGS).text
    eventually(lambda: number(served, "gateway_replica_unused") == 1)
    browser.post(f"/api/tokens/{issued['id']}/revoke")
    assert called(issued) == httpx.codes.UNAUTHORIZED
    assert replica.execute("SELECT count(*) FROM tokens_token WHERE revoked_at IS NOT NULL") == 0
    replica.resume()
    eventually(lambda: "logs: replica" in ready(served))


def people_read_what_they_have_written(served: Serve, replica: Standby, one: httpx.Client, other: httpx.Client) -> None:
    """People who have just written read the primary, while others read the replica."""
    before = read_by_replica(served)
    eventually(lambda: other.get("/settings/admin-events/").text and read_by_replica(served) > before)
    replica.pause()
    assert one.post("/api/hosts", json={"name": "Made just now"}).status_code == httpx.codes.CREATED
    assert "Made just now" not in other.get("/settings/admin-events/").text
    assert "Made just now" not in other.get("/api/admin-events").text
    assert "Made just now" not in other.get("/settings/admin-events/export/?format=csv").text
    # The export was recorded as an event of the other person, whose pages are now read from the primary too.
    assert "Made just now" in other.get("/settings/admin-events/").text
    assert "Made just now" in one.get("/settings/admin-events/").text
    one.cookies.delete("gateway_wrote")  # As in another browser of the person who made the change.
    assert "Made just now" in one.get("/settings/admin-events/").text
    assert "Made just now" in one.get("/api/admin-events").text
    replica.resume()


def a_replica_that_dies_costs_no_page(served: Serve, replica: Standby, browser: httpx.Client) -> None:
    """Kill the replica, then start it again. Pages work throughout, and read the replica again at the end."""
    replica.kill()
    for _ in range(3):
        for page in ("/", LOGS, "/logs/groups/"):
            answer = browser.get(page)
            assert answer.status_code == OK
            assert BEHIND not in answer.text
    eventually(lambda: "logs: primary, it cannot be reached" in ready(served))
    assert '"export":{"complete":true' in browser.get("/logs/export/?format=jsonl").text
    replica.start()
    eventually(lambda: "logs: replica" in ready(served))
    before = read_by_replica(served)
    eventually(lambda: browser.get(LOGS).text and read_by_replica(served) > before)


def test_calls_fail_closed_when_the_primary_is_lost_and_go_on_once_the_replica_is_promoted(
    server: str, tmp_path: Path
) -> None:
    binaries = programs()
    with standby(binaries, _as_app(server, TABLES), server) as primary:
        primary.promote()  # A server of this test only, with migrated tables.
        with (
            standby(binaries, primary.url, primary.operator) as replica,
            standby(binaries, primary.url, primary.operator) as left_behind,
        ):
            fails_over(tmp_path, primary, replica, left_behind)


def fails_over(directory: Path, primary: Standby, replica: Standby, left_behind: Standby) -> None:
    both, words = two_hosts(primary.url, replica.url), {READ: left_behind.url, "GATEWAY_READ_LAG_SECONDS": "600"}
    with serving(directory, both, **words) as served:
        issued = served.issue_token(host="Bot", gateway="quickstart")
        assert called(issued) == OK
        rows = "SELECT count(*) AS number FROM auditlog_call WHERE method = 'tools/call' AND outcome = 'ok'"
        (before,) = served.rows(rows)
        eventually(lambda: replica.execute(rows) == before["number"])
        eventually(lambda: "logs: replica" in ready(served))
        primary.kill()
        eventually(lambda: called(issued) == UNAVAILABLE)
        assert [called(issued) for _ in range(3)] == [UNAVAILABLE] * 3
        assert httpx.get(f"{served.url}/readyz").status_code == UNAVAILABLE
        replica.promote()
        eventually(lambda: called(issued) == OK, seconds=60)
        (after,) = served.rows(rows)
        assert after["number"] > before["number"]
        with signed_in(served, OWNER) as browser:
            assert browser.get(LOGS).status_code == OK
        # Without this check, a replica that follows no primary would look only a little behind.
        eventually(lambda: "logs: primary, it has not replayed from the current primary yet" in ready(served))


def two_hosts(first: str, second: str) -> str:
    """Return the page's database URL with both servers. libpq picks the server that accepts writes."""
    one, other = urlsplit(first), urlsplit(second)
    places = {"gateway:secret@db-a.internal:5432": one.netloc, "db-b.internal:5432": f"{other.hostname}:{other.port}"}
    return documented('DATABASE_URL="', places | {"/gateway?": f"{one.path}?"})["DATABASE_URL"]
