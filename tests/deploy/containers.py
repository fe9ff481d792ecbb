"""A machine that runs containers. Its `docker` command (docker.py) uses podman, and Compose from Debian trixie."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.deploy.images import Images
from tests.eventually import eventually
from tests.workspace import ROOT

HELPERS = ("/usr/libexec/podman", "/usr/lib/podman")
# A container cannot exceed the limits of the machine, which are often lower than podman's defaults.
CONFIGURATION = """
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[network]
network_backend = "netavark"
network_config_dir = "{home}/networks"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
helper_binaries_dir = ["/usr/libexec/podman", "/usr/lib/podman"]
"""
PULSE_S = 1.0


class Machine:
    """A machine that runs scripts in a copy of the checkout, `folder`."""

    def __init__(self, images: Images, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self._podman = ["podman", *images.options]
        self._ends = threading.Event()
        self._pulse = threading.Thread(target=self._ask_how_they_are, daemon=True)

    def run(self, script: str, **variables: str) -> str:
        """Run a script as a person would type it, and return its output. Fails if the script fails."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}\n{self.logs()}"
        return done.stdout

    def containers(self, service: str) -> list[dict[str, Any]]:
        """Return the running containers of a service of compose.yaml, oldest first, as podman shows them."""
        names = self.podman("ps", "--quiet", "--filter", f"label=com.docker.compose.service={service}").split()
        found: list[dict[str, Any]] = json.loads(self.podman("inspect", *names)) if names else []
        return sorted(found, key=lambda one: str(one["Created"]))

    def healthy(self, service: str) -> int:
        """Return the number of healthy containers of a service."""
        return sum(one["State"].get("Health", {}).get("Status") == "healthy" for one in self.containers(service))

    def podman(self, *words: str) -> str:
        """Run podman, which must succeed; return its output."""
        done = subprocess.run(
            [*self._podman, *words], env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def logs(self) -> str:
        """Return the last log lines of all containers."""
        names = self.podman("ps", "--all", "--format", "{{.Names}}").split()
        return "\n".join(f"{name}: {self._last_lines(name)}" for name in names)

    def _last_lines(self, name: str) -> str:
        command = [*self._podman, "logs", "--tail", "8", name]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def start(self) -> None:
        self._pulse.start()

    def stop(self) -> None:
        self._ends.set()
        self._pulse.join(60)
        for words in (("rm", "--all", "--force"), ("network", "prune", "--force"), ("volume", "prune", "--force")):
            self.podman(*words)

    def _ask_how_they_are(self) -> None:
        """Run each container's health check repeatedly, as systemd timers do on other machines."""
        while not self._ends.wait(PULSE_S):
            done = subprocess.run(
                [*self._podman, "ps", "--quiet"], env=self.environment, capture_output=True, check=False
            )
            for name in done.stdout.decode().split():
                command = [*self._podman, "healthcheck", "run", name]
                subprocess.run(command, env=self.environment, capture_output=True, check=False)


@contextmanager
def machine(images: Images) -> Iterator[Machine]:
    """A machine with a copy of this checkout, on which nothing runs yet."""
    # netavark runs iptables without depending on its package.
    missing = [name for name in ("podman", "runc", "iptables") if shutil.which(name, path=PATH) is None]
    missing += [name for name in ("netavark", "aardvark-dns") if not any(Path(at, name).exists() for at in HELPERS)]
    assert not missing, "These tests need Debian's packages podman, runc, iptables, netavark and aardvark-dns."
    home, folder = images.home, images.home / "checkout"
    _copy_checkout(folder)
    (home / "networks").mkdir(exist_ok=True)
    (home / "containers.conf").write_text(CONFIGURATION.format(home=home))
    program = home / "bin" / "docker"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m tests.deploy.docker "$@"\n')
    program.chmod(0o755)
    socket = home / "podman.sock"
    environment = os.environ | {
        "PATH": f"{program.parent}:{PATH}",
        "CONTAINERS_CONF": str(home / "containers.conf"),
        "CONTAINERS_HOME": str(home),
        "COMPOSE": str(trixie(home, "docker-compose", "usr/libexec/docker/cli-plugins/docker-compose")),
        "DOCKER_HOST": f"unix://{socket}",
    }
    with (home / "podman.log").open("wb") as log:
        command = ["podman", *images.options, "system", "service", "--time=0", f"unix://{socket}"]
        service = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    eventually(lambda: socket.exists() or service.poll() is not None)
    assert service.poll() is None, (home / "podman.log").read_text()
    running = Machine(images, folder, environment)
    running.start()
    try:
        yield running
    finally:
        running.stop()
        service.terminate()
        service.wait(timeout=60)


PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def trixie(home: Path, package: str, program: str) -> Path:
    """Return a program from a Debian trixie package, unpacked but not installed, because older releases lack it."""
    folder = home / package
    command = ["mmdebstrap", "--quiet", "--variant=extract", f"--include={package}", "trixie", str(folder)]
    subprocess.run(command, check=True)
    return folder / program


def _copy_checkout(folder: Path) -> None:
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
