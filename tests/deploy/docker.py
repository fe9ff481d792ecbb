"""Run the `docker` commands of the docs with Debian's programs: buildah for builds, podman, and Compose.

Images are built without a registry, so builds get the local Debian image and this machine's certificates.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.deploy.images import Images


def main(words: list[str]) -> int:
    """Run the `docker` command with these arguments."""
    images = Images(Path(os.environ["CONTAINERS_HOME"]))
    match words:
        case ["build", *more]:
            sys.stdout.write(images.build(*more, cwd=Path.cwd()) + "\n")
            return 0
        case ["compose", "build"]:
            return _build_services(images)
        case ["compose", *more]:
            return subprocess.run([os.environ["COMPOSE"], *more], check=False).returncode
    return subprocess.run(["podman", *images.options, *words], check=False).returncode


def _build_services(images: Images) -> int:
    """Build the images that the Compose file names. Compose itself could not build them without a daemon."""
    said = subprocess.run([os.environ["COMPOSE"], "config", "--format", "json"], check=True, capture_output=True)
    services = json.loads(said.stdout)["services"]
    for service in services.values():  # Sorted by name, so a service of another one comes after it.
        if build := service.get("build"):
            bases = {
                name: f"localhost/{services[source.removeprefix('service:')]['image']}"
                for name, source in build.get("additional_contexts", {}).items()
            }
            arguments = {name: bases.get(value, value) for name, value in build["args"].items()}
            told = [word for each in arguments.items() for word in ("--build-arg", "=".join(each))]
            assert build.keys() <= {"context", "dockerfile", "args", "additional_contexts"}, build
            images.build(
                *told, "--file", build["dockerfile"], "--tag", service["image"], ".", cwd=Path(build["context"])
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
