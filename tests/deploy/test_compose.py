"""compose.yaml, the files it uses and the Containerfile, checked without building the image."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from gatewayadmin.config import environment
from runner.document import read_file
from runner.process import CAPABILITIES
from tests.deploy.test_kubernetes import CONNECTIONS_OF_OTHERS, connections_of
from tests.docs.test_blocks import parsed
from tests.running.starts import manage
from tests.workspace import ROOT, Serve, free_port
from wire.versions import VERSION

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
CONTAINERFILE = (ROOT / "Containerfile").read_text()
OURS = {"gateway", "migrate", "housekeeping"}
# The fields of the Compose Specification used in this file; any other field is misspelt, or must be added here.
FIELDS = {
    "build", "cap_add", "cap_drop", "command", "depends_on", "deploy", "entrypoint", "env_file", "environment",
    "healthcheck", "image", "mem_limit", "networks", "ports", "profiles", "read_only", "restart", "secrets",
    "security_opt", "shm_size", "stop_grace_period", "tmpfs", "volumes",
}  # fmt: skip


def test_every_field_of_a_service_is_one_of_compose() -> None:
    assert {field for service in SERVICES.values() for field in service} == FIELDS
    assert {key for key in COMPOSE if not key.startswith("x-")} == {
        "name",
        "services",
        "networks",
        "volumes",
        "secrets",
    }


def test_everything_a_service_refers_to_is_there() -> None:
    for name, service in SERVICES.items():
        assert set(service.get("secrets", [])) <= COMPOSE["secrets"].keys(), name
        assert set(service["networks"]) <= COMPOSE["networks"].keys(), name
        assert service.get("depends_on", {}).keys() <= SERVICES.keys(), name
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (ROOT / source).is_file() if source.startswith("./") else source in COMPOSE["volumes"], name
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}
    assert used == COMPOSE["secrets"].keys()


def test_the_settings_exist_and_name_secrets_that_the_service_has() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            assert name not in OURS or variable in environment._seen, variable
            if variable.endswith("_FILE"):
                assert Path(value).parent == Path("/run/secrets")
                assert Path(value).name in service["secrets"], (name, variable)


def test_only_what_ends_again_has_the_password_of_the_owner() -> None:
    holders = {name for name in OURS if "owner_database_url" in SERVICES[name]["secrets"]}

    assert holders == {"migrate", "housekeeping"}
    assert {SERVICES[name]["restart"] for name in holders} == {"no"}
    waits_for = {name: how["condition"] for name, how in SERVICES["gateway"]["depends_on"].items()}
    assert waits_for == {"database": "service_healthy", "migrate": "service_completed_successfully"}


def test_the_gateway_is_confined() -> None:
    for name in OURS:
        service = SERVICES[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert set(service["tmpfs"]) == {"/tmp", "/data"}  # Not shared, because process ids repeat.


def test_the_runner_is_confined_and_its_programs_reach_the_gateway_alone() -> None:
    for name in ("runner", "runner-install"):
        service = SERVICES[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert set(service["cap_add"]) == CAPABILITIES.keys()
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not any("docker.sock" in volume for volume in service["volumes"])
        assert not service.get("secrets"), "programs could read them"
    assert SERVICES["runner"]["networks"] == ["programs"]
    assert (SERVICES["runner"]["tmpfs"], "mem_limit" in SERVICES["runner"]) == (["/tmp:size=256m"], True)
    assert COMPOSE["networks"]["programs"]["internal"] is True
    on_it = {name for name, service in SERVICES.items() if "programs" in service["networks"]}
    # `housekeeping` checks the health of programs, and listens on no port.
    assert on_it == {"gateway", "housekeeping", "runner"}
    assert SERVICES["housekeeping"]["command"] == ["housekeeping"]
    assert SERVICES["runner"]["env_file"][0] == SERVICES["gateway"]["env_file"][0]["path"]
    file = read_file(ROOT / "deploy" / "compose" / "runner.yaml", {})
    assert file.address == ("0.0.0.0", 8900)
    assert file.value("hosts") == ["runner:8900"]
    assert file.value("isolation") == "uid"


def test_nobody_but_nginx_is_reached_from_outside() -> None:
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"nginx"}
    assert SERVICES["nginx"]["networks"] == ["front"]
    assert SERVICES["database"]["networks"] == ["back"]
    assert COMPOSE["networks"]["back"]["internal"] is True
    subnet = COMPOSE["networks"]["front"]["ipam"]["config"][0]["subnet"]
    assert SERVICES["gateway"]["environment"]["GATEWAY_TRUSTED_PROXIES"] == subnet


def test_the_commands_take_what_they_are_given() -> None:
    commands = [" ".join(SERVICES[name]["command"]) for name in ("gateway", "housekeeping")]
    commands += SERVICES["migrate"]["command"][0].replace("gateway-admin ", "").split(" && ")

    assert [parsed(f"manage.py {command}") for command in commands] == ["serve", "housekeeping", "migrate", "grant"]
    assert "--no-migrate" in commands[0]


def test_the_database_has_the_connections_that_are_needed() -> None:
    options = dict(one.split("=") for one in SERVICES["database"]["command"] if "=" in one)
    workers = int(SERVICES["gateway"]["environment"]["GATEWAY_WORKERS"])
    replicas = SERVICES["gateway"]["deploy"]["replicas"]

    assert replicas == 2
    during_an_upgrade = 2 * replicas
    assert int(options["max_connections"]) > during_an_upgrade * connections_of(workers) + CONNECTIONS_OF_OTHERS
    assert options["max_locks_per_transaction"] == "256"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return make_secrets(tmp_path)


def make_secrets(folder: Path) -> Path:
    """Run a copy of the script in `folder`; return the folder with the secrets it creates."""
    script = shutil.copy(ROOT / "deploy" / "compose" / "make-secrets", folder)
    subprocess.run([script, "localhost"], check=True, capture_output=True)
    return folder / "secrets"


@pytest.mark.full
def test_the_secrets_are_made_once_and_taken_by_the_gateway(made: Path) -> None:
    files = {path.name: path.read_bytes() for path in made.iterdir()}
    assert {f"./deploy/compose/secrets/{name}" for name in files} == {
        one["file"] for one in COMPOSE["secrets"].values()
    }
    assert oct(made.stat().st_mode & 0o777) == "0o700"
    assert {oct(path.stat().st_mode & 0o777) for path in made.iterdir()} == {"0o644"}

    (made / "token_keys").unlink()
    subprocess.run([made.with_name("make-secrets")], check=True, capture_output=True)

    again = {path.name: path.read_bytes() for path in made.iterdir()}
    assert {name for name in files if files[name] != again[name]} == {"token_keys"}
    settings = SERVICES["gateway"]["environment"]
    given = {name: str(made / Path(value).name) for name, value in settings.items() if name.endswith("_FILE")}
    checked = manage(made.parent / "var", "check", **given)
    assert checked.returncode == 0, checked.stderr


def test_git_and_the_build_do_not_see_the_secrets() -> None:
    done = subprocess.run(["git", "check-ignore", "deploy/compose/secrets/token_keys"], cwd=ROOT, check=False)
    assert done.returncode == 0
    assert not {"!deploy", "!compose.yaml", "!var"} & set(let_in())


def let_in() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    return [line for line in lines if line.startswith("!")]


def test_the_build_sees_what_the_wheel_is_built_from() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    names = ("", "-build", "-image", "-scim", "-otel", "-saml", "-archive", "-runner")
    locks = {f"requirements{name}.lock" for name in names}
    expected = {*wheel["packages"], *wheel["force-include"], *locks, "LICENSE", "README.md", "pyproject.toml"}

    assert {line[1:] for line in let_in()} == expected
    assert all((ROOT / name).exists() for name in expected)
    assert locks <= {
        name for line in re.findall(r"^COPY (.*) \./$", CONTAINERFILE, re.MULTILINE) for name in line.split()
    }


def test_the_image_is_of_this_version_and_nobody_runs_it_as_root() -> None:
    assert f"\nARG VERSION={VERSION}\n" in CONTAINERFILE
    assert re.findall(r"^USER (.*)$", CONTAINERFILE, re.MULTILINE) == ["10001:10001"]
    assert CONTAINERFILE.count("--require-hashes") == 2
    assert parsed("manage.py " + " ".join(json.loads(re.search(r"^CMD (.*)$", CONTAINERFILE, re.MULTILINE)[1])))  # type: ignore[index]


def test_the_health_check_asks_the_gateway_whether_it_is_ready(live: Serve) -> None:
    found = re.search(r"^HEALTHCHECK .* CMD (\[.*?\])$", CONTAINERFILE, re.MULTILINE | re.DOTALL)
    assert found
    _, *options = json.loads(found[1].replace("\\\n", ""))

    def healthy(port: int) -> bool:
        done = subprocess.run([sys.executable, *options], env={"PORT": str(port)}, capture_output=True, check=False)
        return done.returncode == 0

    assert healthy(live.port)
    assert not healthy(free_port())
