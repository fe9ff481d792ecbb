"""Shared fixtures: the people of the journeys, their browsers, and upstream servers."""

import gzip
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import cache
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
import time_machine
from django.conf import settings
from django.db import connections
from django.db.backends.postgresql.creation import DatabaseCreation
from django.test import Client, TransactionTestCase
from httpx._config import DEFAULT_TIMEOUT_CONFIG
from httpx._transports import default as httpx_transports
from pytest_django import Settings

from accounts import password_links
from accounts.models import Role, User
from auditlog import over_time
from capabilities import Capability
from capabilities.catalogue import MEMBER
from tests import cluster, emptying, make, secrecy, upstreams, workspace
from tests.eventually import PATIENCE
from tests.upstreams import App, Upstream
from tests.workspace import TRUSTED_PROXY

pytest_plugins = ["tests.browser.fixtures", "tests.browser.cast", "tests.clients.fixtures", "tests.clients.apps"]


HERE = Path(__file__).resolve().parent
# These take minutes, so a process that began them late would still run when the others have ended.
LONGEST = ("browser/test_pages.py", "house/test_nonsense.py", "house/test_counts.py")
# Some tests in these folders take many seconds, tests in other folders a second at most.
LONG = ("api", "apps", "browser", "clients", "conformance", "contract", "deploy", "docs", "house", "matrix", "running")


class AtOnce:
    """An executor that does its work at once, in the caller's thread."""

    def submit(self, work: Callable[..., object], *arguments: object) -> None:
        work(*arguments)


# No time limits: a busy machine says nothing about the code; benchmarks measure time.
hypothesis.settings.register_profile("suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("suite")
# For `make test`: few examples, always the same ones.
few = {"max_examples": 10, "derandomize": True}
hypothesis.settings.register_profile("few", hypothesis.settings.get_profile("suite"), **few)

settings.PASSWORD_HASHERS = ["tests.passwords.QuickArgon2", "oauth.client_metadata.ClientSecretHasher"]
settings.RUNNER = None  # Not the runner of the developer's clone.
settings.MAIL_SERVER = "mail.example.com:587"  # Django's test runner puts mails in an outbox instead.
# Removed because it scans all static files for each `Client`. Tests of running workspaces cover this middleware.
settings.MIDDLEWARE = [one for one in settings.MIDDLEWARE if one != "servestatic.middleware.ServeStaticMiddleware"]
# Otherwise each httpx client reads all certificates, which takes longer than the test's request.
httpx_transports.create_ssl_context = cache(httpx.create_ssl_context)  # type: ignore[attr-defined]
# Without `timeout`, httpx waits for five seconds, which is too short on a busy machine.
DEFAULT_TIMEOUT_CONFIG.connect = DEFAULT_TIMEOUT_CONFIG.read = PATIENCE
DEFAULT_TIMEOUT_CONFIG.write = DEFAULT_TIMEOUT_CONFIG.pool = PATIENCE
password_links._mailers = AtOnce()  # type: ignore[assignment]  # A thread would not see rows of the test's transaction.
over_time.LOG_MS = over_time.ROLLUPS_MS = 10_000  # Otherwise pages say "about" on a busy machine.
TransactionTestCase._fixture_teardown = emptying.empty  # type: ignore[attr-defined]
DatabaseCreation._destroy_test_db = emptying.drop  # type: ignore[attr-defined]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None]:
    """Run the modules of LONGEST first, then the folders of LONG, each by descending number of tests."""
    yield
    if hasattr(config, "workerinput"):
        counts = Counter(item.path for item in items)

        def order(item: pytest.Item) -> tuple[bool, bool, int, Path]:
            path = item.path.relative_to(HERE)
            return str(path) not in LONGEST, path.parts[0] not in LONG, -counts[item.path], path

        items.sort(key=order)


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count this worker's deselected tests, for the process that prints the summary."""
    output: dict[str, int] = getattr(items[0].config, "workeroutput", {})
    output["deselected"] = output.get("deselected", 0) + len(items)


def pytest_testnodedown(node: Any) -> None:
    """Report the number of deselected tests in the summary; all workers deselect the same tests."""
    left_out = getattr(node, "workeroutput", {}).get("deselected", 0)
    node.config.pluginmanager.getplugin("terminalreporter").stats["deselected"] = [node] * left_out


type SignIn = Callable[[User], Client]
type Run = Callable[[App], Upstream]


def wire_size(page: Any) -> int:
    """Return the compressed size of a page in bytes."""
    return len(gzip.compress(page.content))


def person(name: str, role: str, *capabilities: Capability, is_staff: bool = False) -> User:
    """Return a user whose role has this name and exactly these capabilities."""
    held, made = Role.objects.get_or_create(name=role)
    if made:
        make.grant(held, capabilities)
    return User.objects.create_user(f"{name}@example.com", display_name=name.title(), role=held, is_staff=is_staff)


@pytest.fixture(scope="session")
def migrated() -> str:
    """The name of a database with only the migrated tables, created once per run as a template."""
    return cluster.tables()


@pytest.fixture(scope="session")
def django_db_modify_db_settings(django_db_modify_db_settings_parallel_suffix: None, migrated: str) -> None:
    """Create the test database as a copy of the migrated one."""
    connection = connections["default"]
    connection.settings_dict["TEST"]["TEMPLATE"] = migrated
    # Earlier tests that need no database may have read `/metrics`, which creates the pool, of the usual database.
    connection.close_pool()  # type: ignore[attr-defined]


@pytest.fixture
def ana(db: None) -> User:
    """A manager of gateways, with every capability except managing people."""
    return person("ana", "Operator", *(set(Capability) - {Capability.PEOPLE_MANAGE}))


@pytest.fixture
def viv(db: None) -> User:
    """A person who may view everything and change nothing."""
    seeing = (
        Capability.MCP_CONNECTIONS_READ,
        Capability.HOSTS_READ,
        Capability.LOGS_READ,
    )
    return person("viv", "Viewer", *seeing)


@pytest.fixture(name="max")
def max_(db: None) -> User:
    """A member, the usual role."""
    return person("max", MEMBER.name, *MEMBER.capabilities)


@pytest.fixture
def ann(db: None) -> User:
    """A member who enrols with a multi-user agent."""
    return person("ann", MEMBER.name, *MEMBER.capabilities)


@pytest.fixture
def ben(db: None) -> User:
    """A second member who enrols with a multi-user agent."""
    return person("ben", MEMBER.name, *MEMBER.capabilities)


@pytest.fixture
def sam(db: None) -> User:
    """A staff member, who may open the Django admin; the role decides what is visible there."""
    seeing = (
        Capability.HOSTS_READ,
        Capability.MCP_CONNECTIONS_READ,
        Capability.LOGS_READ,
    )
    return person("sam", "Support", *seeing, is_staff=True)


@pytest.fixture(autouse=True)
def export_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free all export slots before each test; unread responses of earlier tests would still occupy slots."""
    monkeypatch.setattr("ui.export._running", {})


@pytest.fixture
def loopback_is_allowed(settings: Settings) -> None:
    """Allow servers at loopback addresses, as if the operator had listed them as a private network."""
    settings.PRIVATE_UPSTREAMS = [ip_network("127.0.0.0/8")]


@pytest.fixture
def sign_in() -> SignIn:
    """Return a function that signs a user in, in a browser without script."""

    def browser(user: User) -> Client:
        client = Client()
        client.force_login(user)
        return client

    return browser


@pytest.fixture
def within_one_minute(db: None) -> Iterator[None]:
    """Freeze the clock, because attempts are counted per minute, and the next minute could begin during a test."""
    with time_machine.travel(datetime.now(UTC), tick=False):
        yield


@pytest.fixture
def run() -> Iterator[Run]:
    """Serve an upstream app until the test ends: `run(upstreams.docs())`."""
    with ExitStack() as stack:
        yield lambda app: stack.enter_context(upstreams.running(app))


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[workspace.Serve]:
    """A running workspace with two workers, shared by the tests of this process: create your own rows.

    At the end, fails if a secret is stored or shown in plain text. `make test` does not search the pages, because
    there are too many.
    """
    folder = tmp_path_factory.mktemp("live")
    tiles = shutil.copy(workspace.ROOT / "servers" / "well_known.json", folder / "tiles.json")
    more = {"GATEWAY_TRUSTED_PROXIES": TRUSTED_PROXY, "GATEWAY_WELL_KNOWN_SERVERS": str(tiles)}
    served = workspace.new(folder, "live", **more)
    with secrecy.keeping_secrets(served, on_pages="not full" not in pytestconfig.option.markexpr):
        yield served


@pytest.fixture
def live_alone(tmp_path: Path) -> Iterator[workspace.Serve]:
    """A workspace of this test only, not started yet."""
    served = workspace.new(tmp_path, "alone")
    try:
        yield served
    finally:
        served.stop()
