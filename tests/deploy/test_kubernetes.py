"""The manifests of deploy/kubernetes, checked by kubernetes-validate and by tests of what it does not check."""

import re
from ipaddress import ip_address, ip_network
from typing import Any

import kubernetes_validate
import pytest
import yaml

from gatewayadmin.config import environment
from gatewayadmin.serving.health import PATHS
from gatewayadmin.serving.server import DRAIN_S
from tests.deploy.manifests import KUBERNETES, OVERLAYS, Manifest, Pod, built, pods
from tests.docs.test_blocks import parsed
from tests.workspace import ROOT
from wire.versions import VERSION

# The value in docs/how-to/deploy.md.
RELEASE = "1.37"
CONNECTIONS_OF_OTHERS = 5


@pytest.fixture(params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return built(KUBERNETES / "overlays" / request.param)


def ours(manifests: list[Manifest]) -> list[Pod]:
    return [pod for pod in pods(manifests) if "gateway-admin" in pod.of]


def one(manifests: list[Manifest], kind: str, name: str = "gateway-admin") -> Manifest:
    (found,) = (each for each in manifests if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def test_each_overlay_builds_valid_manifests(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        kubernetes_validate.validate(manifest, RELEASE, strict=True)
    assert f"--strict -k {RELEASE} " in (ROOT / "Makefile").read_text()


def test_a_misspelt_field_is_refused(manifests: list[Manifest]) -> None:
    deployment = one(manifests, "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container["readinessProb"] = container.pop("readinessProbe")

    with pytest.raises(kubernetes_validate.ValidationError, match="readinessProb"):
        kubernetes_validate.validate(deployment, RELEASE, strict=True)


def test_every_manifest_is_built_by_an_overlay() -> None:
    folders = [KUBERNETES / "base", *(KUBERNETES / "overlays" / name for name in OVERLAYS)]
    for folder in folders:
        listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
        files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
        assert files == {name for name in listed if name.endswith(".yaml")}
    assert {path.parent for path in KUBERNETES.rglob("*.yaml")} == set(folders)


def test_every_pod_is_restricted(manifests: list[Manifest]) -> None:
    """Pods meet the Pod Security Standard "restricted", and have a read-only root."""
    found = list(pods(manifests))
    assert len(ours(manifests)) == 3
    for pod in found:
        context = pod.spec["securityContext"]
        assert context["runAsNonRoot"], pod.of
        assert context["runAsUser"] == (10001 if "gateway-admin" in pod.of else 999)
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod.spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys()
        assert all({"emptyDir", "secret", "configMap"} & volume.keys() for volume in pod.spec["volumes"])
        for container in pod.containers:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]


def test_a_pod_writes_where_the_image_says_alone(manifests: list[Manifest]) -> None:
    for pod in ours(manifests):
        for container in pod.containers:
            written = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
            assert written == {"/tmp", "/data"}


def test_only_jobs_have_the_password_of_the_owner(manifests: list[Manifest]) -> None:
    holders = {pod.of: set(pod.secrets) for pod in ours(manifests)}

    assert holders == {
        "Deployment gateway-admin": {"gateway-admin-keys", "gateway-admin-run"},
        "Job gateway-admin-migrate": {"gateway-admin-keys", "gateway-admin-owner"},
        "CronJob gateway-admin-housekeeping": {"gateway-admin-keys", "gateway-admin-owner"},
    }


def test_the_settings_exist_and_name_files_that_are_mounted(manifests: list[Manifest]) -> None:
    settings = one(manifests, "ConfigMap")["data"]

    assert set(settings) <= environment._seen
    for pod in ours(manifests):
        assert all(
            container["envFrom"] == [{"configMapRef": {"name": "gateway-admin"}}] for container in pod.containers
        )
        for name, value in settings.items():
            if name.endswith(environment.FROM_FILE):
                assert value.rpartition("/")[0] in pod.secrets.values(), (pod.of, name)


def test_the_commands_take_what_they_are_given(manifests: list[Manifest]) -> None:
    commands = [" ".join(container["args"]) for pod in ours(manifests) for container in pod.containers]

    assert {parsed(f"manage.py {command}") for command in commands} == {"migrate", "grant", "housekeeping", "serve"}
    assert "serve --host 0.0.0.0 --no-migrate" in commands


def test_the_probes_ask_for_paths_there_are(manifests: list[Manifest]) -> None:
    (pod,) = (pod for pod in ours(manifests) if pod.of.startswith("Deployment"))
    probes = {name: value["httpGet"] for name, value in pod.containers[0].items() if name.endswith("Probe")}

    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startupProbe": "/livez",
        "livenessProbe": "/livez",
        "readinessProbe": "/readyz",
    }
    assert {probe["path"] for probe in probes.values()} <= set(PATHS)
    assert {probe["port"] for probe in probes.values()} == {pod.containers[0]["ports"][0]["name"]}


def test_a_pod_has_the_time_to_drain(manifests: list[Manifest]) -> None:
    drain = int(one(manifests, "ConfigMap")["data"]["GATEWAY_DRAIN_SECONDS"])
    pod = one(manifests, "Deployment")["spec"]["template"]["spec"]

    assert pod["terminationGracePeriodSeconds"] > drain + DRAIN_S + 10


def test_selectors_match_the_serving_pods_only(manifests: list[Manifest]) -> None:
    deployment = one(manifests, "Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]

    assert deployment["selector"]["matchLabels"] == labels
    assert one(manifests, "Service")["spec"]["selector"] == labels
    assert one(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    policy = one(manifests, "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}


def is_within(address: str, block: dict[str, Any]) -> bool:
    return ip_address(address) in ip_network(block["cidr"]) and not any(
        ip_address(address) in ip_network(one) for one in block.get("except", [])
    )


@pytest.mark.parametrize("place", ["169.254.169.254", "168.63.129.16", "100.100.100.200", "100.64.0.1"])
def test_no_pod_reaches_what_tells_machines_secrets(place: str, manifests: list[Manifest]) -> None:
    rules = [rule for one in manifests if one["kind"] == "NetworkPolicy" for rule in one["spec"].get("egress", [])]
    blocks = [peer["ipBlock"] for rule in rules for peer in rule.get("to", []) if "ipBlock" in peer]

    assert blocks
    assert not [block for block in blocks if is_within(place, block)]
    assert {port["port"] for rule in rules if "to" not in rule for port in rule["ports"]} == {53}  # DNS only.


def test_the_gateway_reaches_its_database_alone_by_postgresql(manifests: list[Manifest]) -> None:
    rules = {port["port"]: rule for rule in one(manifests, "NetworkPolicy")["spec"]["egress"] for port in rule["ports"]}

    [peer] = rules[5432]["to"]
    assert peer.get("podSelector") or peer["ipBlock"]["cidr"].endswith("/32")
    assert rules[6514] == rules[443]  # Syslog over TLS, to the same addresses as servers.


def test_the_database_of_the_trial_is_asked_by_the_gateway_alone() -> None:
    policy = one(built(KUBERNETES / "overlays" / "trial"), "NetworkPolicy", "postgresql")["spec"]

    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in policy
    [rule] = policy["ingress"]
    assert rule["from"] == [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "gateway-admin"}}}]


def test_nobody_is_trusted_as_a_proxy_until_an_overlay_names_them(manifests: list[Manifest]) -> None:
    base = yaml.safe_load((KUBERNETES / "base" / "settings.yaml").read_text())["data"]["GATEWAY_TRUSTED_PROXIES"]
    trusted = one(manifests, "ConfigMap")["data"]["GATEWAY_TRUSTED_PROXIES"]

    assert base == ""
    assert not trusted or not ip_network(trusted).is_global
    assert not trusted or not ip_network("10.0.0.0/8").overlaps(ip_network(trusted))


def test_the_images_are_of_this_version(manifests: list[Manifest]) -> None:
    images = {container["image"] for pod in ours(manifests) for container in pod.containers}

    assert {image.rpartition(":")[2] for image in images} == {VERSION}
    assert all(image.rpartition(":")[0].endswith("gateway-admin") for image in images)


def connections_of(workers: int) -> int:
    """Return the database connections of `serve` with `workers` workers, computed as in docs/how-to/deploy.md."""
    return workers * 12 + 4


def test_the_connections_of_all_replicas_are_told() -> None:
    manifests = built(KUBERNETES / "overlays" / "production")
    autoscaler = one(manifests, "HorizontalPodAutoscaler")["spec"]
    workers = int(one(manifests, "ConfigMap")["data"]["GATEWAY_WORKERS"])
    needed = (autoscaler["maxReplicas"] + 1) * connections_of(workers) + CONNECTIONS_OF_OTHERS

    assert "replicas" not in one(manifests, "Deployment")["spec"]
    assert f"need {needed} connections" in (KUBERNETES / "overlays/production/autoscaler.yaml").read_text()
    page = (ROOT / "docs" / "how-to" / "deploy.md").read_text()
    assert "workers x (6 + GATEWAY_RECORD_CONNECTIONS + GATEWAY_WEB_CONNECTIONS) + GATEWAY_WEB_CONNECTIONS\n" in page


def test_the_trial_has_a_postgresql_with_both_roles() -> None:
    manifests = built(KUBERNETES / "overlays" / "trial")
    container: dict[str, Any] = one(manifests, "StatefulSet", "postgresql")["spec"]["template"]["spec"]["containers"][0]
    options = dict(re.findall(r"(\w+)=(\d+)", " ".join(container["args"])))
    workers = int(one(manifests, "ConfigMap")["data"]["GATEWAY_WORKERS"])

    assert int(options["max_connections"]) > connections_of(workers) + CONNECTIONS_OF_OTHERS
    assert options["max_locks_per_transaction"] == "256"
    roles = one(manifests, "ConfigMap", "postgresql")["data"]["roles.sql"]
    assert statements(roles) == statements((ROOT / "deploy" / "compose" / "roles.sql").read_text())


def statements(script: str) -> list[str]:
    """Return the lines of this SQL without comments, and without the line that reads the password from a file."""
    return [line for line in script.splitlines() if not line.startswith(("--", "\\set"))]


def test_all_replicas_fit_into_the_connections_that_postgresql_grants_unless_told_otherwise() -> None:
    manifests = built(KUBERNETES / "overlays" / "production")
    pods_at_once = one(manifests, "HorizontalPodAutoscaler")["spec"]["maxReplicas"] + 1
    workers = int(one(manifests, "ConfigMap")["data"]["GATEWAY_WORKERS"])

    assert pods_at_once * connections_of(workers) + CONNECTIONS_OF_OTHERS <= 97  # 100 less the superusers' connections.


def test_a_pod_can_be_scraped_with_the_token_of_a_secret_and_runs_without_it() -> None:
    manifests = built(KUBERNETES / "overlays" / "production")
    container = one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    [metrics_token] = [each for each in container["env"] if each["name"] == "GATEWAY_METRICS_TOKEN"]

    assert metrics_token["valueFrom"]["secretKeyRef"] == {
        "name": "gateway-admin-metrics",
        "key": "token",
        "optional": True,
    }
    assert "Secret `gateway-admin-metrics`" in (ROOT / "docs" / "how-to" / "monitor.md").read_text()
