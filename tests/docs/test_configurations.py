"""Configurations in the documents, loaded by their programs: nginx, Prometheus, systemd, PostgreSQL."""

import configparser
import os
import re
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import psycopg
import pytest

from tests import workspace
from tests.docs.pages import ROOT, exported
from tests.docs.test_deploy import block
from tests.eventually import PATIENCE, eventually
from tests.running.conftest import folder
from tests.running.debian import as_account, programs
from tests.running.nginx import program_of, started
from tests.running.starts import environment
from tests.workspace import Serve, free_port, is_ready

pytestmark = pytest.mark.full

HOW_TO = ROOT / "docs" / "how-to"
DEPLOY = (HOW_TO / "deploy.md").read_text()
NAME = "gateway.example.com"
TOKEN_FILE = "/etc/prometheus/gateway-metrics-token"
SUBJECT = ("-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME},DNS:localhost")


class Site(NamedTuple):
    """A gateway behind nginx, both configured as in docs/how-to/deploy.md."""

    serve: Serve
    port: int
    certificate: Path
    metrics_token: str

    def client(self, address: str = "127.0.0.1") -> httpx.Client:
        """Return a client with this source address, for which the configured host name is the local nginx."""
        trust = ssl.create_default_context(cafile=str(self.certificate))
        transport = httpx.HTTPTransport(verify=trust, local_address=address)
        return httpx.Client(base_url=f"https://127.0.0.1:{self.port}", transport=transport, headers={"Host": NAME})


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    settings = exported(block(DEPLOY, "export GATEWAY_PUBLIC_URL"))
    assert settings["GATEWAY_PUBLIC_URL"] == f"https://{NAME}"
    with folder() as home:
        key, certificate, port = home / "gateway.key", home / "gateway.pem", free_port()
        made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *SUBJECT]
        subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
        token = "of-the-metrics-of-a-test"
        serve = workspace.new(home, "behind", GATEWAY_METRICS_TOKEN=token, **settings)
        server = block(DEPLOY, "server {", "nginx").replace("/etc/ssl/gateway", str(home / "gateway"))
        server = server.replace("listen 443", f"listen 127.0.0.1:{port}")
        server = server.replace("127.0.0.1:8000", f"127.0.0.1:{serve.port}")
        try:
            with nginx(home, server):
                yield Site(serve.start(workers=1), port, certificate, token)
        finally:
            serve.stop()


@contextmanager
def nginx(home: Path, server: str) -> Iterator[None]:
    """Run nginx with only this server block."""
    process = started(home, server)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)


def test_behind_the_nginx_of_the_page_the_gateway_knows_its_name_and_who_calls(site: Site) -> None:
    issued = site.serve.issue_token(host="Behind", gateway="quickstart")
    assert issued["gateway_url"] == f"https://{NAME}/mcp/quickstart"
    with site.client("127.0.0.5") as client:
        page = client.get("/accounts/login/", extensions={"sni_hostname": NAME})
        listed = client.post(
            "/mcp/quickstart",
            json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"},
            headers={"Authorization": f"Bearer {issued['token']}", "X-Forwarded-For": "203.0.113.9"},
            extensions={"sni_hostname": NAME},
        )
    assert page.status_code == listed.status_code == httpx.codes.OK
    assert "Strict-Transport-Security" in page.headers
    assert "Secure" in page.headers["Set-Cookie"]
    assert "echo" in listed.text
    (row,) = site.serve.rows("SELECT client_ip::text AS address FROM auditlog_call WHERE host_name = 'Behind'")
    assert row["address"].partition("/")[0] == "127.0.0.5"


@pytest.mark.parametrize(
    ("page", "beginning"),
    [
        ("monitor.md", "scrape_configs:\n  - job_name: gateway-admin\n    scheme:"),
        # An OpenTelemetry collector reads the part under `config` like Prometheus.
        ("monitor.md", "receivers:"),
    ],
)
def test_prometheus_scrapes_the_gateway_as_printed(page: str, beginning: str, site: Site) -> None:
    printed = block((HOW_TO / page).read_text(), beginning, "yaml")
    jobs = re.search(r"^ *scrape_configs:\n(?P<jobs>.*)", printed, re.MULTILINE | re.DOTALL)
    assert jobs
    with folder() as home:
        (home / "token").write_text(site.metrics_token)
        text = f"global: {{ scrape_interval: 1s }}\nscrape_configs:\n{jobs['jobs']}"
        text = text.replace(TOKEN_FILE, str(home / "token")).replace(f'"{NAME}"', f'"localhost:{site.port}"')
        assert str(home / "token") in text
        (home / "prometheus.yaml").write_text(text)
        port = free_port()
        command = [
            program_of("prometheus"),
            f"--config.file={home}/prometheus.yaml",
            f"--storage.tsdb.path={home}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with (home / "log").open("wb") as log:
            trusts = os.environ | {"SSL_CERT_FILE": str(site.certificate)}
            process = subprocess.Popen(command, env=trusts, cwd=home, stdout=log, stderr=log)
        try:
            eventually(lambda: answer(port, 'up{job="gateway-admin"}') == ["1"])
            assert answer(port, "gateway_unavailable_total")
        finally:
            process.terminate()
            process.wait(timeout=PATIENCE)


def answer(port: int, query: str) -> list[str]:
    """Return Prometheus's current values for this query."""
    try:
        asked = httpx.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": query}, trust_env=False)
        return [one["value"][1] for one in asked.json()["data"]["result"]] if asked.is_success else []
    except httpx.TransportError:
        return []


def test_systemd_takes_the_unit_and_the_gateway_starts_and_ends_by_it() -> None:
    with folder() as home:
        port = free_port()
        serve = workspace.new(home, "unit", PORT="1")
        variables = home / "gateway-admin.env"
        names = ("DATABASE_URL", "GATEWAY_DATA_DIR", *serve.settings)
        variables.write_text("".join(f"{name}={serve.environment()[name]}\n" for name in names))
        unit = home / "gateway-admin.service"
        text = (ROOT / "deploy/systemd/gateway-admin.service").read_text().replace("--port 8000", f"--port {port}")
        text = text.replace("/srv/gateway-admin/.venv/bin/python", sys.executable).replace(
            "/srv/gateway-admin", str(ROOT)
        )
        unit.write_text(text.replace("/etc/gateway-admin.env", str(variables)).replace("User=gateway", "User=root"))
        checked = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")

        judged = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", str(unit)]
        assert subprocess.run(judged, capture_output=True, check=False).returncode == 0, "exposed by over 2.0 of 10"

        read = configparser.ConfigParser(interpolation=None, strict=False)
        read.optionxform = str  # type: ignore[assignment]
        read.read(unit)
        service = read["Service"]
        given = dict(line.split("=", 1) for line in Path(service["EnvironmentFile"]).read_text().splitlines())
        with (home / "unit.log").open("wb") as log:
            command, place = shlex.split(service["ExecStart"]), service["WorkingDirectory"]
            process = subprocess.Popen(
                command, cwd=place, env=environment(home, **given), stdout=log, stderr=log, start_new_session=True
            )
        try:
            eventually(lambda: process.poll() is not None or is_ready(port), seconds=180)
            assert process.poll() is None, (home / "unit.log").read_text()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=int(service["TimeoutStopSec"])) == 0
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def test_a_checkout_is_installed_and_serves_by_the_commands_of_the_page() -> None:
    with folder() as home:
        port = free_port()
        serve = workspace.new(home, "installed")
        checkout = home / "checkout"
        files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        copied = ["cp", "--parents", "--target-directory", str(checkout), *files.decode().rstrip("\0").split("\0")]
        checkout.mkdir()
        subprocess.run(copied, cwd=ROOT, check=True)
        script = block(DEPLOY, "make install").replace("--port 8000", f"--port {port}")
        log_file = home / "set-up.log"
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                ["bash", "-ec", script],
                cwd=checkout,
                env=serve.environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            eventually(lambda: process.poll() is not None or is_ready(port), seconds=600)
            assert process.poll() is None, log_file.read_text()
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=90)


def test_postgresql_takes_the_settings_of_a_size() -> None:
    settings = block((HOW_TO / "scale-out.md").read_text(), "max_connections", "")
    names = re.findall(r"^(\w+) = ", settings, re.MULTILINE)
    assert len(names) == len(settings.splitlines())
    with folder() as home:
        data, account = home / "data", as_account()
        shutil.chown(home, account.get("user", os.geteuid()))
        made: list[Path | str] = [programs() / "initdb", "--no-sync", "-D", data, "-U", "postgres", "--auth=trust"]
        subprocess.run(made, check=True, cwd="/", stdout=subprocess.DEVNULL, **account)
        with (data / "postgresql.conf").open("a") as file:
            file.write(settings)
        options = f"-c listen_addresses='' -k {home}"
        control: list[Path | str] = [programs() / "pg_ctl", "-w", "-D", data, "-l", home / "log"]
        subprocess.run([*control, "-o", options, "start"], check=True, cwd="/", stdout=subprocess.DEVNULL, **account)
        try:
            with psycopg.connect(f"host={home} user=postgres dbname=postgres") as connection:
                shown = connection.execute("SELECT name, setting FROM pg_file_settings WHERE applied").fetchall()
                assert {*names} <= {name for name, _ in shown}
                assert connection.execute("SELECT count(*) FROM pg_file_settings WHERE error <> ''").fetchone() == (0,)
        finally:
            subprocess.run([*control, "-m", "fast", "stop"], check=True, cwd="/", stdout=subprocess.DEVNULL, **account)
