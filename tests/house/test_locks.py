"""The lock files: every package with its hashes, the same in both, and no word of where they came from."""

import re

from tests.workspace import ROOT

PINNED = re.compile(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", re.MULTILINE)


def test_every_package_is_pinned_with_hashes() -> None:
    for name in ("requirements.lock", "requirements-dev.lock", "tests/conformance/servers/requirements-v1.lock"):
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
