"""The commands about Kubernetes in docs/, run by kubectl on a cluster without nodes.

The tests check the resulting objects and the order of changes, as recorded by kubernetes_api.py.
"""

import base64
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.containers import trixie
from tests.deploy.kubernetes_api import Kubernetes, kubernetes
from tests.deploy.manifests import KUBERNETES, OVERLAYS, Manifest, Pod, built, pods
from tests.deploy.test_compose import make_secrets
from tests.deploy.test_containers import UPGRADE, block
from tests.docs.pages import ROOT
from wire.versions import VERSION

pytestmark = pytest.mark.full

PAGE = (ROOT / "docs" / "how-to" / "kubernetes.md").read_text()
MANIFESTS = (ROOT / "docs" / "reference" / "kubernetes.md").read_text()
ROTATE = (ROOT / "docs" / "how-to" / "back-up.md").read_text()
OWNER, RUNNER = "postgresql://gateway:s@192.0.2.10/gateway", "postgresql://gateway_run:s@192.0.2.10/gateway"


@pytest.fixture(scope="module")
def kubectl() -> Iterator[str]:
    """Return the folder of a kubectl with the options used in the documents (1.31 or newer)."""
    own = shutil.which("kubectl")
    knows = (
        own
        and "--all-pods" in subprocess.run([own, "logs", "--help"], capture_output=True, text=True, check=False).stdout
    )
    if own and knows:
        yield str(Path(own).parent)
        return
    assert shutil.which("mmdebstrap"), "These tests need kubectl 1.31 or newer, or Debian's package mmdebstrap."
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield str(trixie(Path(folder), "kubectl", "usr/bin/kubectl").parent)


@pytest.fixture
def cluster() -> Iterator[Kubernetes]:
    with kubernetes() as running:
        yield running


class Reader:
    """A person at a shell, in a folder with the manifests and the two files with database URLs."""

    def __init__(self, folder: Path, kubectl: str, cluster: Kubernetes) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "deploy", folder / "deploy", ignore=shutil.ignore_patterns("secrets"))
        (folder / "owner_database_url").write_text(f"{OWNER}\n")
        (folder / "run_database_url").write_text(f"{RUNNER}\n")
        one = {"name": "test", "cluster": {"server": cluster.url}}
        context = {"name": "test", "context": {"cluster": "test", "user": "test"}}
        known = {"clusters": [one], "contexts": [context], "users": [{"name": "test", "user": {}}]}
        config = folder / "config"
        config.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "test", **known}))
        self._environment = os.environ | {
            "PATH": f"{kubectl}:{os.environ['PATH']}",
            "KUBECONFIG": str(config),
            "HOME": str(folder),
        }

    def run(self, script: str, *, fails: bool = False) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert bool(done.returncode) is fails, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def reader(tmp_path: Path, kubectl: str, cluster: Kubernetes) -> Reader:
    return Reader(tmp_path, kubectl, cluster)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_builds_what_the_tests_of_the_manifests_judge(overlay: str, reader: Reader) -> None:
    said = list(yaml.safe_load_all(reader.run(f"kubectl kustomize deploy/kubernetes/overlays/{overlay}")))
    namespace = yaml.safe_load((KUBERNETES / "overlays" / overlay / "kustomization.yaml").read_text())["namespace"]

    assert {one["metadata"].pop("namespace") for one in said} == {namespace}
    assert _by_name(said) == _by_name(built(KUBERNETES / "overlays" / overlay))


def _by_name(manifests: list[Manifest]) -> dict[tuple[str, str], Manifest]:
    for one in manifests:
        one["metadata"].get("labels", {}).pop("app.kubernetes.io/part-of", None)
        if not one["metadata"].get("labels", True):
            del one["metadata"]["labels"]
    return {(one["kind"], one["metadata"]["name"]): one for one in manifests}


def has_what_its_pods_read(cluster: Kubernetes, namespace: str) -> list[Pod]:
    """Check that the secrets mounted by pods exist, with every file that a setting names; return the pods."""
    manifests = cluster.all(namespace)
    maps = {one["metadata"]["name"]: one["data"] for one in manifests if one["kind"] == "ConfigMap"}
    found = list(pods(manifests))
    for pod in found:
        for secret, place in pod.secrets.items():
            held = cluster.secret(namespace, secret)
            named = [value for name, value in maps["gateway-admin"].items() if name.endswith("_FILE")]
            files = {value.rpartition("/")[2] for value in named if value.startswith(f"{place}/")}
            assert files <= held.keys(), (pod.of, secret)
            assert all(value.strip() for value in held.values()), secret
    return found


def test_production_is_installed_and_upgraded_as_printed(cluster: Kubernetes, reader: Reader) -> None:
    said = reader.run(block(PAGE, "kubectl create namespace gateway-admin\n"))

    assert "Sign in as admin@localhost." in said
    assert len(has_what_its_pods_read(cluster, "gateway-admin")) == 3
    assert cluster.secret("gateway-admin", "gateway-admin-owner") == {"url": f"{OWNER}\n"}
    assert cluster.secret("gateway-admin", "gateway-admin-run") == {"url": f"{RUNNER}\n"}
    keys = cluster.secret("gateway-admin", "gateway-admin-keys")
    assert {name: len(value) for name, value in keys.items()} == {
        "secret_key": 64, "token_keys": 64, "encryption_keys": 44,
    }  # fmt: skip
    assert cluster.said.index(("complete", "Job", "gateway-admin-migrate")) == len(cluster.said) - 1, (
        "it was waited for"
    )
    assert [kind for verb, kind, _ in cluster.said if verb == "create"][:4] == [
        "Namespace",
        "Secret",
        "Secret",
        "Secret",
    ]

    place = reader.folder / "deploy/kubernetes/overlays/production/kustomization.yaml"
    place.write_text(place.read_text().replace(f"newTag: {VERSION}", "newTag: 99.1.0"))
    before = len(cluster.said)
    said = reader.run(block(UPGRADE, "kubectl --namespace gateway-admin delete job"))

    assert "Applying" in said
    assert "successfully rolled out" in said
    verbs = [one for one in cluster.said[before:] if one[1] in {"Job", "Deployment"}]
    assert verbs == [
        ("delete", "Job", "gateway-admin-migrate"),
        ("patch", "Deployment", "gateway-admin"),
        ("create", "Job", "gateway-admin-migrate"),
        ("complete", "Job", "gateway-admin-migrate"),
        ("roll out", "Deployment", "gateway-admin"),
    ]
    images = {one["image"] for pod in pods(cluster.all("gateway-admin")) for one in pod.containers}
    assert images == {"images.example.com/gateway-admin:99.1.0"}

    (restart,) = re.findall(r"`(kubectl --namespace gateway-admin rollout restart deployment/gateway-admin)`", ROTATE)
    (look,) = re.findall(r"`(kubectl --namespace nginx-ingress get pods --output wide)`", PAGE)
    assert "restarted" in reader.run(restart)
    assert "No resources found in nginx-ingress namespace" in reader.run(look)


def test_an_overlay_is_changed_as_printed(cluster: Kubernetes, reader: Reader) -> None:
    reader.run(block(PAGE, "kubectl create namespace gateway-admin\n"))
    for name in ("email_url", "direct_url"):
        (reader.folder / name).write_text(f"smtp+tls://it's:a%20secret@{name}.example.com:587\n")
    place = reader.folder / "deploy/kubernetes/overlays/production/kustomization.yaml"
    patches = re.findall(r"```yaml\n(.*?)```", MANIFESTS, re.DOTALL)
    place.write_text(place.read_text() + "".join(patches))

    reader.run(block(MANIFESTS, "kubectl --namespace gateway-admin patch secret"))
    reader.run("kubectl apply --kustomize deploy/kubernetes/overlays/production")

    found = has_what_its_pods_read(cluster, "gateway-admin")
    assert len([pod for pod in found if "/run/secrets/keys" in pod.secrets.values()]) == 3
    keys = cluster.secret("gateway-admin", "gateway-admin-keys")
    assert keys["email_url"] == "smtp+tls://it's:a%20secret@email_url.example.com:587\n"
    assert len(base64.b64decode(keys["checkpoint_key"])) == 32
    assert keys.keys() >= {"secret_key", "token_keys", "encryption_keys"}
    run = cluster.secret("gateway-admin", "gateway-admin-run")
    assert run.keys() == {"url", "direct_url"}
    manifests = {(one["kind"], one["metadata"]["name"]): one for one in cluster.all("gateway-admin")}
    settings = manifests["ConfigMap", "gateway-admin"]["data"]
    assert settings["GATEWAY_EMAIL_URL_FILE"] == "/run/secrets/keys/email_url"
    assert settings["GATEWAY_CHECKPOINT_KEY_FILE"] == "/run/secrets/keys/checkpoint_key"
    [container] = manifests["Deployment", "gateway-admin"]["spec"]["template"]["spec"]["containers"]
    assert {one["name"]: one.get("value") for one in container["env"]} == {
        "GATEWAY_METRICS_TOKEN": None,
        "GATEWAY_DIRECT_DATABASE_URL_FILE": "/run/secrets/database/direct_url",
    }
    policy = manifests["NetworkPolicy", "gateway-admin"]["spec"]
    [rule] = [one for one in policy["egress"] if {"port": 5432, "protocol": "TCP"} in one["ports"]]
    assert [one["ipBlock"]["cidr"] for one in rule["to"]] == ["10.1.0.0/24", "10.1.1.0/24"]
    assert policy["egress"][-1]["to"][0]["podSelector"] == {"matchLabels": {"app": "wiki"}}
    [namespaces] = policy["ingress"][0]["from"][0]["namespaceSelector"]["matchExpressions"]
    assert namespaces["values"] == ["nginx-ingress", "monitoring", "datadog"]

    before = len(cluster.said)
    reader.run(block(MANIFESTS, "kubectl --namespace gateway-admin create job"))

    assert [one for one in cluster.said[before:] if one[1] == "Job"] == [
        ("create", "Job", "by-hand"),
        ("complete", "Job", "by-hand"),
        ("delete", "Job", "by-hand"),
    ]


def test_a_migration_that_has_not_ended_is_waited_for(cluster: Kubernetes, reader: Reader) -> None:
    cluster.migrates = False
    reader.run(
        "kubectl create namespace gateway-admin\nkubectl apply --kustomize deploy/kubernetes/overlays/production"
    )

    said = reader.run(
        "kubectl --namespace gateway-admin rollout status --timeout=1s deployment/gateway-admin", fails=True
    )

    assert "timed out waiting" in said
    assert ("roll out", "Deployment", "gateway-admin") not in cluster.said


def test_the_trial_is_installed_as_printed(cluster: Kubernetes, reader: Reader) -> None:
    make_secrets(reader.folder / "deploy" / "compose")
    script = block(PAGE, "deploy/compose/make-secrets\n")
    *rest, forward = script.strip().splitlines()
    assert forward == "kubectl port-forward service/gateway-admin 8000:80"

    reader.run("\n".join(rest))

    namespace = "gateway-admin-trial"
    assert len(has_what_its_pods_read(cluster, namespace)) == 4
    passwords = cluster.secret(namespace, "postgresql")
    for name, secret, user in (("owner", "owner", "gateway"), ("run", "run", "gateway_run")):
        url = cluster.secret(namespace, f"gateway-admin-{secret}")["url"]
        assert url == f"postgresql://{user}:{passwords[f'{name}_password'].strip()}@postgresql:5432/gateway"
    assert cluster.secret(namespace, "gateway-admin-keys").keys() == {"secret_key", "token_keys", "encryption_keys"}
    # kubectl finds the pod by its service; forwarding itself would need a node.
    assert "nothing runs here" in reader.run(forward.replace("8000:80", ":80"), fails=True)
    assert set(cluster.forwarded) == {"gateway-admin-0"}


def test_an_object_of_a_misspelt_field_is_refused(reader: Reader) -> None:
    place: Any = reader.folder / "deploy/kubernetes/base/deployment.yaml"
    place.write_text(place.read_text().replace("readinessProbe:", "readinessProb:"))

    said = reader.run(
        "kubectl create namespace gateway-admin\nkubectl apply --kustomize deploy/kubernetes/overlays/production",
        fails=True,
    )

    assert "readinessProb" in said
