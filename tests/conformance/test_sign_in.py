"""The suite's authorization scenarios test how the gateway signs people in at the issuers of servers."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import secrecy
from tests.clients.fixtures import MODULES, Npm
from tests.clients.person import FORM_TOKEN, Person
from tests.conformance.suite import read
from tests.workspace import ROOT, Serve

pytestmark = pytest.mark.full

PASSING = (
    "2025-03-26-oauth-metadata-backcompat",
    "authorization-server-migration",
    "iss-normalized",
    "iss-not-advertised",
    "iss-supported",
    "iss-supported-missing",
    "iss-unexpected",
    "iss-wrong-issuer",
    "metadata-default",
    "metadata-issuer-mismatch",
    "metadata-var1",
    "metadata-var2",
    "metadata-var3",
    "offline-access-not-supported",
    "offline-access-scope",
    "pre-registration",
    "resource-mismatch",
    "scope-from-scopes-supported",
    "scope-from-www-authenticate",
    "scope-omitted-when-undefined",
    "scope-retry-limit",
    "scope-step-up",
    "token-endpoint-auth-basic",
    "token-endpoint-auth-none",
    "token-endpoint-auth-post",
)
NOT_APPLICABLE = {
    "2025-03-26-oauth-endpoint-fallback": "An issuer without any metadata cannot be told from a server that wants a"
    " key; the gateway says that it needs one.",
    "basic-cimd": "The suite wants its own address as client id; the gateway is known by the address of its own"
    " document, and only where that is https.",
    "client-credentials-basic": "An extension: signing in without a person, which the gateway does not do.",
    "client-credentials-jwt": "An extension: signing in without a person, which the gateway does not do.",
    "dpop": "An extension: tokens bound to a key, which the gateway does not ask for.",
    "dpop-nonce": "An extension: tokens bound to a key, which the gateway does not ask for.",
    "enterprise-managed-authorization": "An extension: tokens exchanged for those of a company's sign-on.",
    "wif-jwt-bearer": "An extension: signing in without a person, which the gateway does not do.",
}

SLOTS = """
import json
from accounts.models import User
from tests import make

owner = User.objects.get(email="ana@example.com")

def slot(name):
    gateway = make.gateway(slug=f"auth-{{name}}"[:40], name=f"Auth {{name}}")
    connection = make.connection(make.agent(by=owner, name=f"Auth {{name}}"), gateway, owner)
    return {{"slug": gateway.slug, "connection": str(connection.pk), "token": make.token(connection).secret}}

print(json.dumps({{f"auth/{{name}}": slot(name) for name in {names}}}))
"""


@pytest.fixture(scope="module")
def settings(live: Serve, owner: Person, npm: Npm) -> dict[str, str]:
    """The client's settings: the gateway, and a signed-in person's session."""
    told = live.manage("shell", "--verbosity", "0", "-c", SLOTS.format(names=PASSING))
    slots = json.loads(told.splitlines()[-1])
    for slot in slots.values():
        secrecy.note(slot["token"])
    form = FORM_TOKEN.search(owner.http.get("/settings/profile").text)
    assert form
    who = {"cookies": dict(owner.http.cookies), "csrf": form[1]}
    told_of = {"GATEWAY_URL": live.url, "SLOTS": json.dumps(slots), "WHO": json.dumps(who), "PYTHONPATH": str(ROOT)}
    return npm.environment | told_of


def test_every_scenario_of_the_suite_is_run_or_has_a_reason(npm: Npm) -> None:
    listed = re.findall(r"^ *- auth/(\S+)", npm.run("conformance", "list"), re.MULTILINE)

    assert sorted(listed) == sorted([*PASSING, *NOT_APPLICABLE])


@pytest.mark.parametrize("scenario", PASSING)
def test_the_scenario_passes_through_the_pages_of_the_gateway(
    scenario: str, settings: dict[str, str], tmp_path: Path
) -> None:
    client = f"{sys.executable} -m tests.conformance.sign_in"
    suite = [str(MODULES / ".bin" / "conformance"), "client", "--scenario", f"auth/{scenario}", "--timeout", "120000"]
    done = subprocess.run(
        [*suite, "--command", client, "--output-dir", str(tmp_path)],
        env=settings,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )

    (folder,) = (tmp_path / "auth").iterdir()
    assert read(folder).holds, f"{read(folder)}\n{done.stderr}"
    assert done.returncode == 0, done.stderr
