"""The pages about deploying name existing files, services, secrets and arguments."""

import re
import shlex
from collections import defaultdict

import pytest

from tests.deploy.manifests import KUBERNETES, built, pods
from tests.deploy.test_compose import COMPOSE, CONTAINERFILE, SERVICES
from tests.deploy.test_kubernetes import one
from tests.docs.pages import ROOT
from tests.docs.test_blocks import BLOCKS
from wire.versions import VERSION

DEPLOYMENT = ("docs/how-to/deploy.md", "docs/how-to/kubernetes.md", "docs/reference/kubernetes.md")
SCRIPTS = [block.text.replace("\\\n", " ") for block in BLOCKS if block.page in DEPLOYMENT]
LINES = [line for text in SCRIPTS for line in text.splitlines()]
PROSE = "\n".join((ROOT / page).read_text() for page in DEPLOYMENT)


def test_the_files_exist() -> None:
    paths = set(
        re.findall(
            r"(?<![\w/.])(?:deploy|overlays)/[\w/.-]+|compose\.yaml|Containerfile|requirements[\w-]*\.lock", PROSE
        )
    )
    places = [ROOT, KUBERNETES]
    made = {
        "deploy/compose/secrets",
        "deploy/compose/secrets/runner.env",
        *(one["file"].removeprefix("./") for one in COMPOSE["secrets"].values()),
    }

    assert len(paths) > 8
    assert {path for path in paths - made if not any((place / path).exists() for place in places)} == set()
    manifests = set(re.findall(r"^\| `([\w-]+\.yaml)` \|", PROSE, re.MULTILINE))
    files = {path.name for path in KUBERNETES.rglob("*.yaml")}
    plain = {"kustomization.yaml", "postgresql.yaml", "service.yaml", "service-account.yaml", "settings.yaml"}
    assert manifests == files - plain


def test_docker_is_given_what_it_takes() -> None:
    lines = [line for line in LINES if "docker " in line]
    arguments = {name for line in lines for name in re.findall(r"--build-arg (\w+)=", line)} | {"PYTHON"}

    assert len(lines) == 7
    assert arguments <= set(re.findall(r"^ARG (\w+)", CONTAINERFILE, re.MULTILINE))
    assert "--build-arg PYTHON=" in PROSE
    services = set(re.findall(r"docker compose run --rm (\w+)|--scale (\w+)=|compose exec (\w+)", PROSE))
    assert {name for found in services for name in found if name} <= SERVICES.keys()
    variables = set(re.findall(r"(?<!--build-arg )\b([A-Z_]+)=\S+ (?!--tag)", " ".join(lines)))
    text = (ROOT / "compose.yaml").read_text()
    assert variables == {"GATEWAY_PUBLIC_URL", "HTTPS_PORT"}
    assert all("${" + name + ":-" in text for name in variables | {"GATEWAY_ADMIN_EMAIL"})


def test_the_version_is_this_one() -> None:
    assert set(re.findall(r"\b\d+\.\d+\.\d+\b", re.sub(r"\d+(\.\d+){3}", "", PROSE))) == {VERSION}


@pytest.mark.parametrize("overlay", ["production", "trial"])
def test_the_secrets_are_those_the_manifests_name(overlay: str) -> None:
    (script,) = (text for text in SCRIPTS if "create secret" in text and f"overlays/{overlay}" in text)
    made = defaultdict[str, set[str]](set)
    for line in script.splitlines():
        if "create secret generic" in line:
            words = shlex.split(line.partition("create secret generic ")[2])
            made[words[0]] |= {re.split(r"=", word)[1] for word in words[1:]}

    manifests = built(KUBERNETES / "overlays" / overlay)
    settings = one(manifests, "ConfigMap")["data"]
    paths = [value.split("/")[-2:] for name, value in settings.items() if name.endswith("_FILE")]
    needed = defaultdict[str, set[str]](set)
    for pod in pods(manifests):
        for secret, place in pod.secrets.items():
            needed[secret] |= {file for folder, file in paths if place.endswith(f"/{folder}")}
    if overlay == "trial":
        needed["postgresql"] = {"owner_password", "run_password"}

    assert made == needed
    assert {one["metadata"].get("namespace", "") for one in manifests} == {""}  # The kustomization sets the namespace.
    assert (
        f"namespace: {re.findall(r'create namespace (.*)', script)[0]}\n"
        in (KUBERNETES / "overlays" / overlay / "kustomization.yaml").read_text()
    )


def test_the_upgrade_names_services_jobs_and_containers_there_are() -> None:
    text = "\n".join(block.text for block in BLOCKS if block.page == "docs/how-to/upgrade.md")
    manifests = built(KUBERNETES / "overlays" / "production")
    (job,) = set(re.findall(r"job[ /]([\w-]+)", text))
    (container,) = re.findall(r"--container (\w+)", text)

    migrate = one(manifests, "Job", "gateway-admin-migrate")
    assert job == migrate["metadata"]["name"]
    assert container in [each["name"] for each in migrate["spec"]["template"]["spec"]["initContainers"]]
    assert re.findall(r"deployment/([\w-]+)", text) == [one(manifests, "Deployment")["metadata"]["name"]]
    assert one(manifests, "Deployment")["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    named = {name for found in re.findall(r"--no-deps (\w+)|gateway=\d (\w+)", text) for name in found if name}
    assert named == {"migrate", "gateway"}
    assert named <= SERVICES.keys()
