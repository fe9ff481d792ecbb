"""Images without a registry: buildah builds them on a Debian made by mmdebstrap."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.workspace import ROOT

BASE = "localhost/debian-python:test"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
BUILD_OPTIONS = ("--isolation", "chroot", "--network", "host", "--format", "docker", "--layers")
PYTHON = "python3,python3-venv,tini,ca-certificates"
SERVERS = "postgresql,nginx-light,gettext-base"
# Images that compose.yaml gets from a registry, replaced by Debian's packages and the scripts in `standins`.
STANDINS: dict[str, tuple[str, list[str], dict[str, str]]] = {
    "postgres": ("docker.io/library/postgres:18", ["postgres"], {"PGDATA": "/var/lib/postgresql/18/docker"}),
    "nginx": ("docker.io/library/nginx:1.30", ["nginx", "-g", "daemon off;"], {}),
}


class Images:
    """Image storage, with buildah to build images in it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.options = ["--root", str(home / "storage"), "--runroot", str(home / "run")]

    def run(self, *arguments: str, cwd: Path = ROOT) -> str:
        """Run buildah, which must succeed; return its output."""
        command = ["buildah", *self.options, *arguments]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout.strip()

    def build(self, *arguments: str, cwd: Path = ROOT) -> str:
        """Build with the options of `docker build`, on the local Debian image, with this machine's certificates."""
        trust = ["--volume", f"{os.environ.get('SSL_CERT_FILE') or CERTIFICATES}:{CERTIFICATES}:ro"]
        return self.run("bud", *BUILD_OPTIONS, *trust, "--build-arg", f"PYTHON={BASE}", *arguments, cwd=cwd)

    def debian(self, packages: str) -> str:
        """Create a Debian container with these packages, and return its id."""
        system = self.home / "debian.tar"
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}", "trixie", str(system)]
        subprocess.run(command, check=True)
        container = self.run("from", "scratch")
        self.run("add", container, str(system), "/")
        system.unlink()
        return container

    def add_standins(self) -> None:
        """Add stand-ins for the images that compose.yaml takes from a registry."""
        container = self.debian(SERVERS)
        folder = Path(__file__).parent / "standins"
        for name, (tag, command, variables) in STANDINS.items():
            self.run("copy", "--chmod", "755", container, str(folder / name), f"/usr/local/bin/start-{name}")
            told = [word for each in variables.items() for word in ("--env", "=".join(each))]
            entry = ["--entrypoint", json.dumps([f"start-{name}"])]
            self.run("config", *told, *entry, "--cmd", json.dumps(command), container)
            self.run("commit", "--format", "docker", container, tag)
        self.run("rm", container)

    def config(self, tag: str) -> dict[str, Any]:
        """Return the image's configuration."""
        said: dict[str, Any] = json.loads(self.run("inspect", "--type", "image", tag))["Docker"]["config"]
        return said


@contextmanager
def storage() -> Iterator[Images]:
    """Yield an image storage with only the local Debian image; the storage is deleted afterwards."""
    missing = [name for name in ("buildah", "mmdebstrap", "bwrap") if shutil.which(name) is None]
    assert not missing, "These tests need Debian's packages buildah, mmdebstrap and bubblewrap."
    assert os.geteuid() == 0, "These tests need root: buildah without containers, and mmdebstrap, do."
    with tempfile.TemporaryDirectory(prefix="gateway-image-", ignore_cleanup_errors=True) as folder:
        images = Images(Path(folder))
        container = images.debian(PYTHON)
        images.run("commit", container, BASE)
        images.run("rm", container)
        try:
            yield images
        finally:
            images.run("rm", "--all")
