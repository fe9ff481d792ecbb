"""The commands of docs/how-to/deploy.md, back-up.md and upgrade.md, run in containers.

The tests run and upgrade a whole Compose installation behind its nginx. They also run an image with other extras, and
an image with an embedded database. Images of Debian's PostgreSQL and nginx (tests/deploy/standins) replace those of the
registry.
"""

import json
import re
import ssl
from pathlib import Path

import httpx
import pytest

from tests.deploy import saml_sign_in
from tests.deploy.calls import Calls
from tests.deploy.containers import Machine
from tests.docs.pages import ROOT
from tests.eventually import eventually
from tests.workspace import free_port
from wire.versions import VERSION

pytestmark = pytest.mark.image

DEPLOY = (ROOT / "docs" / "how-to" / "deploy.md").read_text()
BACK_UP = (ROOT / "docs" / "how-to" / "back-up.md").read_text()
UPGRADE = (ROOT / "docs" / "how-to" / "upgrade.md").read_text()
SLOWEST_S = 10  # Other images are built meanwhile, and nginx waits a second for each stopped replica.


def block(page: str, beginning: str) -> str:
    (found,) = (
        text for text in re.findall(r"```(?:bash|crontab)\n(.*?)```", page, re.DOTALL) if text.startswith(beginning)
    )
    return str(found)


class Site:
    """The installation as users reach it: through nginx, whose certificate they trust."""

    def __init__(self, host: Machine, port: int) -> None:
        self.url = f"https://localhost:{port}"
        self.certificate = host.folder / "deploy" / "compose" / "secrets" / "tls_certificate"

    def client(self) -> httpx.Client:
        trust = ssl.create_default_context(cafile=str(self.certificate))
        return httpx.Client(base_url=self.url, verify=trust, trust_env=False)

    def is_ready(self) -> bool:
        try:
            with self.client() as client:
                return client.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def admits(self, client: httpx.Client, email: str, password: str) -> bool:
        """Return True if this person can sign in and gets the first page."""
        page = client.get("/accounts/login/").text
        (token,) = {*re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', page)}
        form = {"login": email, "password": password, "csrfmiddlewaretoken": token}
        said = client.post("/accounts/login/", data=form, headers={"Referer": f"{self.url}/accounts/login/"})
        return said.status_code == 302 and client.get("/settings/workspace").status_code == 200


def test_compose_starts_serves_and_is_upgraded_as_printed(host: Machine) -> None:
    port = free_port()
    site = Site(host, port)
    kept = {"GATEWAY_PUBLIC_URL": site.url, "HTTPS_PORT": port, "EXTRAS": '"scim otel saml"'}
    (host.folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in kept.items()))
    script = block(DEPLOY, "deploy/compose/make-secrets gateway.example.com")
    script = script.replace("https://gateway.example.com", site.url).replace("gateway.example.com", "localhost")
    password = host.run(script.replace("HTTPS_PORT=443", f"HTTPS_PORT={port}")).split()[-1]

    eventually(lambda: host.healthy("gateway") == 2)
    assert eventually(site.is_ready), host.logs()
    with site.client() as somebody, site.client() as owner:
        assert not site.admits(somebody, "admin@localhost", "another password")
        assert site.admits(owner, "admin@localhost", password)
        assert saml_sign_in.signs_in(site.client, owner, "mia@example.com") == httpx.codes.OK
    must_be_confined(host)

    times, chore = re.split(r"  +", block(DEPLOY, "0 3 * * *  cd /srv/gateway-admin && docker"), maxsplit=1)
    assert times == "0 3 * * *"
    host.run(chore.replace("cd /srv/gateway-admin", f"cd {host.folder}"))
    host.run(block(BACK_UP, "umask 077\ndocker compose exec"))
    assert (host.folder / "gateway.dump").stat().st_mode & 0o077 == 0
    psql(host, "UPDATE accounts_user SET is_active = false")
    loaded = host.run(block(BACK_UP, "docker compose stop nginx gateway"))
    assert "newest, in use" in loaded
    host.run("docker compose up --detach")
    eventually(lambda: host.healthy("gateway") == 2)
    assert eventually(site.is_ready), host.logs()
    with site.client() as owner:
        assert site.admits(owner, "admin@localhost", password), "as before the dump"

    (more,) = re.findall(r"`(docker compose up --detach --scale gateway=3)`", DEPLOY)
    host.run(more)
    eventually(lambda: host.healthy("gateway") == 3)
    host.run("docker compose up --detach")
    eventually(lambda: len(host.containers("gateway")) == 2)

    first = [one["Id"] for one in host.containers("gateway")]
    release(host, "0.1.1")
    host.run(block(UPGRADE, "docker compose build"))
    eventually(lambda: host.healthy("gateway") == 2)
    second = host.containers("gateway")
    assert not {*first} & {one["Id"] for one in second}, "the new release"
    assert {one["Config"]["Labels"]["org.opencontainers.image.version"] for one in second} == {"0.1.1"}
    assert eventually(site.is_ready)

    upgrade_under_load(host, site)
    with site.client() as owner:
        assert site.admits(owner, "admin@localhost", password), "the data are those of before"
    host.run("docker compose down --volumes")


def must_be_confined(host: Machine) -> None:
    for one in host.containers("gateway"):
        status = host.podman("exec", one["Id"], "cat", "/proc/1/status")
        assert re.search(r"^Uid:\t10001\t", status, re.MULTILINE)
        assert "CapEff:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        assert "Read-only file system" in host.run(f"docker exec {one['Id']} touch /opt/x 2>&1 || true")
        assert "gateway_run" in host.podman("exec", one["Id"], "cat", "/run/secrets/run_database_url")


def upgrade_under_load(host: Machine, site: Site) -> None:
    """Upgrade while agents call: no call fails or is repeated, and none waits longer than SLOWEST_S."""
    release(host, "0.1.2")
    build, migrate, _ = block(UPGRADE, "docker compose build").splitlines()
    with calls_of(host, site) as calls:
        calls.wait_for(100)
        host.run(f"{build}\n{migrate}\n{block(UPGRADE, 'old=$(docker compose ps')}")
        left = host.containers("gateway")
        assert {one["Config"]["Labels"]["org.opencontainers.image.version"] for one in left} == {"0.1.2"}
        assert len(left) == 2
        calls.wait_for(100)
    assert calls.failed == [], said_by_nginx(host)
    assert calls.slowest < SLOWEST_S
    assert logged(host) == calls.answered, "each was made once"


def said_by_nginx(host: Machine) -> str:
    """Return nginx's errors, except failed connections to a replica, after which nginx tries another replica."""
    (nginx,) = host.containers("nginx")
    lines = host.run(f"docker logs {nginx['Id']} 2>&1").splitlines()
    return "\n".join(line for line in lines if "[error]" in line and "while connecting to upstream" not in line)


def calls_of(host: Machine, site: Site) -> Calls:
    """Return agents that call a Quickstart tool through nginx, with a token of their own."""
    issue = "issue_token --user admin@localhost --host Load --gateway quickstart"
    issued = json.loads(host.run(f"docker compose exec --no-TTY gateway gateway-admin {issue}"))
    return Calls(issued["gateway_url"], issued["token"], site.certificate)


def logged(host: Machine) -> int:
    """Return the number of tool calls that the log has from the agents of `calls_of`."""
    return int(psql(host, "SELECT count(*) FROM auditlog_call WHERE host_name = 'Load' AND method = 'tools/call'"))


def psql(host: Machine, statement: str) -> str:
    """Run a statement as the owner of the tables, and return its output."""
    options = f'--username gateway --dbname gateway --no-align --tuples-only --command "{statement}"'
    return host.run(f"docker compose exec --no-TTY database psql {options}")


def release(host: Machine, version: str) -> None:
    """Change the version label in the Containerfile, as a new release would."""
    file = host.folder / "Containerfile"
    text, count = re.subn(r'(image\.version)="[^"]*"', rf'\1="{version}"', file.read_text())
    assert count == 1
    file.write_text(text)


def test_an_image_has_the_extras_it_was_built_with(host: Machine) -> None:
    host.run(block(DEPLOY, f"docker build --file Containerfile --tag gateway-admin:{VERSION}"))
    confined = "--read-only --tmpfs /tmp --tmpfs /data --cap-drop ALL"
    plain = f"docker run --rm {confined} --entrypoint python3 gateway-admin:{VERSION}"
    assert "ModuleNotFoundError" in host.run(f"{plain} -c 'import pyarrow' 2>&1 || true")

    script = block(DEPLOY, "docker build --file Containerfile --build-arg EXTRAS")
    assert 'EXTRAS="scim otel archive"' in script
    host.run(script.replace("scim otel archive", "archive saml"))

    program = "import os, pyarrow.parquet, lxml, signxml; print(os.getuid())"
    assert "10001" in host.run(f'{plain} -c "{program}"').split()
    assert "ModuleNotFoundError" in host.run(f"{plain} -c 'import scim2_server' 2>&1 || true")


def test_an_image_with_its_database_keeps_it_in_its_volume(host: Machine, tmp_path: Path) -> None:
    port = free_port()
    build, start = block(DEPLOY, "docker build --file Containerfile --build-arg LOCK").splitlines()
    host.run(build)
    start = start.replace("127.0.0.1:8000:8000", f"127.0.0.1:{port}:8000").replace("docker run", "docker run --detach")
    assert "--read-only --tmpfs /tmp" in start

    def is_ready() -> bool:
        try:
            return httpx.get(f"http://localhost:{port}/readyz", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    for turn in ("first", "second"):
        name = host.run(start).strip()
        assert eventually(is_ready, seconds=120), host.logs()
        log = host.run(f"docker logs {name} 2>&1")
        assert ("Password" in log or "password" in log) is (turn == "first")
        host.run(f"docker stop --time 60 {name}\ndocker rm {name}")
