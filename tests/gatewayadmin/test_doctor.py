"""The OAuth doctor behind a reverse proxy with one fault at a time."""

import html
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from accounts.models import User
from gatewayadmin.doctor import CheckStep, OAuthCheck
from gateways.models import Gateway
from tests import asgi_server, workspace
from tests.clients.person import Person
from tests.gatewayadmin import front
from tests.gatewayadmin.front import Exchange, Front
from tests.workspace import Serve

pytestmark = pytest.mark.full

SECRET = re.compile(r"gw[ork]_\w{8}")
FAILED = 'data-state="down"'
STEPS = 8


@dataclass(frozen=True, slots=True)
class Clinic:
    """An installation behind a proxy, with its signed-in owner."""

    served: Serve
    front: Front
    owner: Person

    def report(self) -> str:
        """Run the doctor on its page, opened at the gateway's own port; return the page with the result."""
        page = self.owner.http.get("/settings/oauth-doctor/")
        return html.unescape(self.owner.submit(page, gateway="quickstart").text)

    def command(self, *arguments: str) -> tuple[int, str]:
        """Return exit code and output of `manage.py doctor`."""
        done = subprocess.run(
            [sys.executable, "manage.py", "doctor", *arguments],
            cwd=workspace.ROOT,
            env=self.served.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    proxy = Front()
    with asgi_server.running(proxy.app) as listening:
        public = f"http://localhost:{listening.port}"
        served = workspace.new(tmp_path_factory.mktemp("clinic"), "clinic", GATEWAY_PUBLIC_URL=public)
        try:
            proxy.target = served.start(workers=1).url
            owner = Person.signed_in(served.url)
            yield Clinic(served, proxy, owner)
            owner.http.close()
        finally:
            served.stop()


@pytest.fixture
def clinic(proxied: Clinic) -> Iterator[Clinic]:
    yield proxied
    proxied.front.before = proxied.front.after = front.none


def at(path: str, mischief: Callable[[Exchange], object]) -> Callable[[Exchange], None]:
    """Return the fault `mischief`, limited to requests whose path starts with `path`."""

    def picky(exchange: Exchange) -> None:
        if exchange.path.startswith(path):
            mischief(exchange)

    return picky


def replaced(old: bytes, new: bytes) -> Callable[[Exchange], None]:
    def rewrite(exchange: Exchange) -> None:
        exchange.body = exchange.body.replace(old, new)

    return rewrite


BEFORE = {
    "host rewritten": (
        lambda e: e.headers.update(host="backend.internal"),
        "Refusal without a token",
        "another Host",
        "proxy_set_header Host",
    ),
    "path prefix": (
        at("/mcp/", lambda e: e.answer(404, "no such application")),
        "Refusal without a token",
        "404: /mcp/quickstart does not arrive",
        "paths unchanged",
    ),
    "sent to https": (
        lambda e: e.answer(301, location="https://gateway.example.com" + e.path),
        "Refusal without a token",
        "a redirect to https",
        "GATEWAY_PUBLIC_URL=https://gateway.example.com",
    ),
    "sign-in of its own": (
        lambda e: e.answer(401, www_authenticate='Basic realm="intranet"'),
        "Refusal without a token",
        'WWW-Authenticate names no resource_metadata: Basic realm="intranet"',
        "Exempt /mcp/",
    ),
    "nothing behind": (
        lambda e: e.answer(502, "<h1>Bad gateway</h1>"),
        "Refusal without a token",
        "502: the proxy in front could not reach",
        "error log",
    ),
    "well-known kept": (
        at("/.well-known/", lambda e: e.answer(404)),
        "Protected resource metadata",
        "404: /.well-known/oauth-protected-resource/mcp/quickstart",
        "Certificate tools",
    ),
    "a page instead of a document": (
        at("/.well-known/oauth-auth", lambda e: e.answer(200, "<html>", content_type="text/html")),
        "Authorization server metadata",
        "200 with text/html where JSON was expected",
        "Let it forward this URL",
    ),
    "registration forbidden": (
        at("/oauth/register", lambda e: e.answer(403, "blocked by policy")),
        "Registration",
        "403 instead of 201",
        "exempt /mcp/, /oauth/",
    ),
    "Authorization taken": (
        lambda e: e.headers.pop("authorization", None),
        "Call: tools/list",
        "the Authorization header does not reach",
        "CGIPassAuth",
    ),
}
AFTER = {
    "challenge taken": (
        lambda e: e.answered.pop("www-authenticate", None),
        "Refusal without a token",
        "401 without the header WWW-Authenticate",
        "proxy_hide_header",
    ),
    "http in the resource": (
        at(
            "/.well-known/oauth-protected",
            replaced(b'"resource": "http://localhost', b'"resource": "https://localhost'),
        ),
        "Protected resource metadata",
        "The field resource leads to https://localhost",
        "rewrites this answer",
    ),
    "no PKCE": (
        at("/.well-known/oauth-auth", replaced(b'"S256"', b"")),
        "Authorization server metadata",
        "code_challenge_methods_supported lacks S256",
        "changes or filters",
    ),
    "sent inside": (
        at("/oauth/authorize", lambda e: e.answered.update(location="http://inside.example/accounts/login/")),
        "Authorize page (PKCE)",
        "The header Location leads to http://inside.example/accounts/login/",
        "proxy_redirect",
    ),
    "nonsense in the challenge": (
        lambda e: e.answered.update({"www-authenticate": 'Bearer resource_metadata="http://[:x"'}),
        "Refusal without a token",
        "The header WWW-Authenticate leads to http://[:x",
        "GATEWAY_PUBLIC_URL",
    ),
    "no tools in the list": (
        at("/mcp/", lambda e: e.status == 200 and replaced(b'"tools"', b'"tolls"')(e)),
        "Call: tools/list",
        "No list.",
        "Find this call on the Logs page",
    ),
}


def test_names_the_step_and_the_reason(clinic: Clinic, subtests: pytest.Subtests) -> None:
    faults = [("before", name, fault) for name, fault in BEFORE.items()]
    faults += [("after", name, fault) for name, fault in AFTER.items()]
    for when, name, (mischief, step, reason, advice) in faults:
        with subtests.test(name):
            clinic.front.before = clinic.front.after = front.none
            setattr(clinic.front, when, mischief)

            report = clinic.report()

            [failed] = [card for card in report.split('<li class="card">')[1:] if FAILED in card]
            assert re.search(rf"<h2>\d\. {re.escape(step)}</h2>", failed), failed
            assert reason in failed
            assert advice in failed
            assert not SECRET.search(report)
            assert nothing_left(clinic)


def nothing_left(clinic: Clinic) -> bool:
    """Return True if no registration of the doctor and no live connection remains."""
    applications = clinic.served.rows("SELECT 1 FROM oauth2_provider_application")
    return not applications and not clinic.served.rows("SELECT 1 FROM connections_connection WHERE revoked_at IS NULL")


def test_a_clear_way_passes_and_leaves_nothing(clinic: Clinic) -> None:
    page = clinic.owner.http.get("/settings/oauth-doctor/").text
    assert f"You opened <code>localhost:{clinic.served.port}</code>" in page, "not at the proxy"

    report = clinic.report()

    assert "An app can connect, sign in and call." in report
    assert report.count('data-state="ok"') == STEPS
    assert not SECRET.search(report)
    assert nothing_left(clinic)


def test_the_command_passes(clinic: Clinic) -> None:
    code, said = clinic.command("--gateway", "quickstart")

    assert code == 0, said
    assert "A client can connect, sign in and call." in said
    assert not SECRET.search(said)
    assert nothing_left(clinic)


def test_names_an_address_that_is_not_the_public_one(clinic: Clinic) -> None:
    """Run against an address other than the public URL, as `manage.py doctor --url` does."""
    failed = first_failure(f"http://127.0.0.1:{clinic.served.port}")

    assert failed.title == "Refusal without a token"
    assert failed.reason.startswith("The header WWW-Authenticate leads to http://localhost")
    assert f"set GATEWAY_PUBLIC_URL=http://127.0.0.1:{clinic.served.port}" in failed.advice


def test_names_a_path_prefix(clinic: Clinic) -> None:
    def without_prefix(exchange: Exchange) -> None:
        exchange.path = exchange.path.removeprefix("/tools")

    clinic.front.before = without_prefix

    failed = first_failure(f"{clinic.served.settings['GATEWAY_PUBLIC_URL']}/tools")

    assert failed.title == "Refusal without a token"
    assert "A path prefix is not possible" in failed.advice


def test_names_an_address_where_nothing_answers() -> None:
    for url in (f"http://127.0.0.1:{workspace.free_port()}", "gateway.example.com", "http://[nowhere", "http://x:y"):
        failed = first_failure(url)

        assert failed.reason.startswith("No answer: "), url
        assert "lead to this installation" in failed.advice


def first_failure(url: str) -> CheckStep:
    """Run the check at `url`, where the first step must fail before it needs the database. Return this step."""
    steps = OAuthCheck(url, Gateway(slug="quickstart"), User()).run()
    assert [step.state for step in steps] == ["failed"] + ["not reached"] * (STEPS - 1)
    return steps[0]


def test_a_person_who_may_connect_nothing_is_told_so(clinic: Clinic) -> None:
    clinic.served.rows("UPDATE gateways_gateway SET enabled = false WHERE slug = 'quickstart'")
    try:
        report = clinic.report()
    finally:
        clinic.served.rows("UPDATE gateways_gateway SET enabled = true WHERE slug = 'quickstart'")

    [failed] = [card for card in report.split('<li class="card">')[1:] if FAILED in card]
    assert "Consent, simulated" in failed
    assert "An administrator has disabled this gateway." in failed
    assert nothing_left(clinic)
