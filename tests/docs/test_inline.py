"""Each command in the text of a page exists and accepts its options, or is run by a test."""

import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from functools import cache

import pytest

from tests.docs.pages import PAGES, ROOT, prose
from tests.docs.test_blocks import parsed
from wire.versions import VERSION

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PROGRAMS = (
    *(
        r"\.venv/bin/\w+",
        "docker",
        "podman",
        "kubectl",
        "curl",
        "pip",
        "npm",
        "npx",
        "uvx",
        "uv",
        "psql",
        "openssl",
        "tar",
    ),
    *(
        "systemctl",
        "systemd-run",
        "ssh",
        "trivy",
        "make",
        "python",
        "git",
        r"manage\.py",
        "serve",
        "apt",
        "apt-get",
        r"deploy/\S+",
        r"\.ci/\S+",
    ),
)
COMMAND = re.compile(rf"(?:[A-Z_]+=\S+ )*(?:{'|'.join(PROGRAMS)}) .+")
# The module that runs each command, and a text of the command in that module.
RUN_BY = {
    "docker compose up --detach --scale gateway=3": ("deploy/test_containers.py", "docker compose up --detach --scale"),
    "docker compose build": ("deploy/test_containers.py", 'block(UPGRADE, "docker compose build")'),
    "docker compose up --detach": ("deploy/test_containers.py", 'host.run("docker compose up --detach")'),
    "docker compose exec gateway gateway-admin": ("deploy/test_containers.py", "docker compose exec --no-TTY gateway"),
    "docker compose run --rm housekeeping": ("deploy/test_containers.py", 'block(BACK_UP, "docker compose stop nginx'),
    "docker stop": ("deploy/test_containers.py", "old=$(docker compose ps"),  # The block's first line.
    "kubectl --namespace nginx-ingress get pods": ("deploy/test_kubectl.py", "kubectl --namespace nginx-ingress"),
    "kubectl --namespace gateway-admin rollout restart": (
        "deploy/test_kubectl.py",
        "kubectl --namespace gateway-admin rollout restart",
    ),
    "pip wheel --no-deps --wheel-dir dist .": ("running/test_package.py", "pip wheel --no-deps"),
    # The images are built in this format.
    "podman build --format docker": ("deploy/images.py", '"--format", "docker"'),
    # A bridge like the documented one; the matrix of clients and servers calls servers behind it.
    "uvx mcp-proxy --port 3002 -- command arguments": ("matrix/servers.py", "mcp-proxy"),
}
# Commands that no test runs, with the reason.
NOT_RUN = {
    "docker save gateway-admin": "the image takes minutes to build; tests in tests/deploy build it",
    "docker load": "the image takes minutes to build; tests in tests/deploy build it",
    ".ci/release name": "it writes into the checkout; tests in tests/deploy fail if it leaves a file out",
    "uvx pip-audit": "it asks PyPI for vulnerabilities, and its answer changes",
    **dict.fromkeys(("uvx pip-licenses", "uvx --from cyclonedx-bom"), "it installs the newest release of a tool"),
    "kubectl --namespace gateway-admin exec": "the cluster of the tests has no nodes, so no pod runs",
    "systemd-run": "systemd does not run where the tests do, as process 1",
    "ssh -L": "it needs a second machine",
    "trivy image": "it downloads a database of vulnerabilities, and its answer changes",
}


def commands() -> set[str]:
    """Return the inline code of all pages that starts with a program's name."""
    pages = [page for page in PAGES if page.name != "CHANGELOG.md" and "decisions" not in page.parts]
    codes = {" ".join(code.split()) for page in pages for code in re.findall(r"`([^`]+)`", prose(page))}
    return {code for code in codes if COMMAND.fullmatch(code)}


COMMANDS = commands()


def test_each_command_takes_what_it_is_given_or_is_run_by_a_test(subtests: pytest.Subtests) -> None:
    entries = (*RUN_BY, *NOT_RUN)
    for command in sorted(one for one in COMMANDS if not one.startswith(entries)):
        with subtests.test(command):
            judged = judge(command)
            assert judged
            judged(re.sub(r"^(?:[A-Z_]+=\S+ )+", "", command))

    assert [one for one in entries if not any(command.startswith(one) for command in COMMANDS)] == []
    assert [words for module, words in RUN_BY.values() if words not in (ROOT / "tests" / module).read_text()] == []


def judge(command: str) -> Callable[[str], object] | None:
    """Return the function that checks a command; None if there is no check for it."""
    command = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", command)
    for pattern, judged in JUDGES.items():
        if re.match(pattern, command):
            return judged
    return None


def of_manage(command: str) -> None:
    words = command.partition("manage.py")[2] if "manage.py" in command else command
    assert words.strip() in {"", "..."} or parsed(f"manage.py {words.strip()}")


def of_make(command: str) -> None:
    """Check that `make` has the target, and that the benchmark has the options in ARGS."""
    target, *variables = shlex.split(command)[1:]
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)
    for name, _, value in (variable.partition("=") for variable in variables):
        assert name in {"ARGS", "EXTRAS"}
        if name == "ARGS":
            takes("bench", shlex.split(value))


def of_a_module(command: str) -> None:
    module, *words = command.partition(" -m ")[2].split()
    takes(module, words)


def takes(module: str, words: list[str]) -> None:
    known = help_of(module)
    assert [word for word in words if word.startswith("--") and word not in known] == []


@cache
def help_of(module: str) -> set[str]:
    """Return the options in the help text of a program in this repository."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return set(re.findall(r"--[a-z-]+", done.stdout))


def of_pip(command: str) -> None:
    """Check that pip gets a lock file, a package of an extra, or this version of our package with a known extra."""
    what = shlex.split(command)[-1]
    if found := re.fullmatch(r"(gateway-admin|dist/gateway_admin-(.*)-py3-none-any\.whl)\[(\w+)\]", what):
        assert found[2] in {None, VERSION}
        assert found[3] in PROJECT["optional-dependencies"]
    elif what.endswith(".lock"):
        assert (ROOT / what).is_file()
    else:
        assert what in {one for extra in PROJECT["optional-dependencies"].values() for one in extra}


def of_git(command: str) -> None:
    """Run the command in a clone of a repository that has a release."""
    with tempfile.TemporaryDirectory() as folder:
        release = "git -c user.name=a -c user.email=a commit -q --allow-empty -m a && git tag v1.1.0"
        script = f"git init -q a && (cd a && {release}) && git clone -q a b && cd b && {command}"
        subprocess.run(["bash", "-ec", script], cwd=folder, check=True, capture_output=True)


def of_pytest(command: str) -> None:
    assert (ROOT / command.split()[1]).exists()


JUDGES: dict[str, Callable[[str], object]] = {
    r"(\.venv/bin/python |python )?manage\.py": of_manage,
    r"serve ": of_manage,
    r"make ": of_make,
    r"git ": of_git,
    r"(\.venv/bin/)?python -m ": of_a_module,
    r"(\.venv/bin/)?(uv )?pip install ": of_pip,
    r"\.venv/bin/pytest ": of_pytest,
}
