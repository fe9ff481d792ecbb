"""Build an overlay's manifests as kustomize does, with the features that our files use."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.workspace import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ["production", "trial"]
KNOWN = {"apiVersion", "kind", "namespace", "labels", "resources", "images", "patches"}

type Manifest = dict[str, Any]


class Pod(NamedTuple):
    """The template of a pod, and the manifest that contains the template."""

    of: str
    spec: dict[str, Any]

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def secrets(self) -> dict[str, str]:
        """Return the mount path of each secret, by name."""
        names = {one["name"]: one["secret"]["secretName"] for one in self.spec["volumes"] if "secret" in one}
        mounts = [mount for container in self.containers for mount in container["volumeMounts"]]
        return {names[mount["name"]]: mount["mountPath"] for mount in mounts if mount["name"] in names}


def built(folder: Path) -> list[Manifest]:
    """Return every manifest of a folder with a kustomization, with patches and images applied."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert kustomization.keys() <= KNOWN, "tests.deploy.manifests has to learn what is new here"
    manifests: list[Manifest] = []
    for name in kustomization["resources"]:
        place = folder / name
        manifests += built(place.resolve()) if place.is_dir() else list(yaml.safe_load_all(place.read_text()))
    for patch in kustomization.get("patches", []):
        chosen = [one for one in manifests if is_target(one, patch["target"])]
        assert len(chosen) == 1, patch["target"]
        for operation in yaml.safe_load(patch["patch"]):
            change(chosen[0], **operation)
    for image in kustomization.get("images", []):
        for container in (container for pod in pods(manifests) for container in pod.containers):
            if container["image"].partition(":")[0] == image["name"]:
                container["image"] = f"{image.get('newName', image['name'])}:{image['newTag']}"
    return copy.deepcopy(manifests)


def is_target(manifest: Manifest, target: dict[str, str]) -> bool:
    return (manifest["kind"], manifest["metadata"]["name"]) == (target["kind"], target["name"])


def change(manifest: Manifest, op: str, path: str, value: Any = None) -> None:
    """Apply one JSON Patch operation (RFC 6902); a replaced or removed value must exist."""
    *parents, last = path.strip("/").split("/")
    for parent in parents:
        within: Any = manifest
        manifest = within[int(parent) if isinstance(within, list) else parent]
    assert last in manifest, path
    if op == "remove":
        del manifest[last]
    else:
        assert op == "replace"
        manifest[last] = value


def pods(manifests: list[Manifest]) -> Iterator[Pod]:
    for manifest in manifests:
        spec = manifest.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield Pod(f"{manifest['kind']} {manifest['metadata']['name']}", spec["template"]["spec"])
