"""Key files in the data directory: each fault gives an error of one line, and nothing is written."""

import os
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from gatewayadmin.config import keys
from gatewayadmin.config.environment import Refused

FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_text(""), "is empty"),
    "readable by others": (lambda path: path.chmod(0o644), "chmod 600"),
    "truncated": (lambda path: path.write_text(path.read_text()[:20]), "weak key|must hold Fernet keys"),
    "removed": (Path.unlink, "is missing"),
    "of another user": (lambda path: os.chown(path, 12345, -1), "chown"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder with an installation's key files."""
    for name in keys.NAMES:
        monkeypatch.delenv(name, raising=False)
    keys.kept_in(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.mark.parametrize(("name", "fault"), [*product(keys.NAMES[:1], FAULTS), *product(keys.NAMES[1:], ["truncated"])])
def test_a_key_file_that_is_not_as_it_was_made_is_refused(folder: Path, name: str, fault: str) -> None:
    if fault == "of another user" and os.geteuid() != 0:
        pytest.skip("only root gives files away")
    spoil, words = FAULTS[fault]
    path = folder / keys.file_of(name)
    spoil(path)
    before = {each.name: each.read_bytes() for each in folder.iterdir()}

    with pytest.raises(Refused, match=words) as refused:
        keys.kept_in(folder, begun=True)

    assert str(path) in str(refused.value) or name in str(refused.value)
    assert "\n" not in str(refused.value)
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == before


def test_generated_keys_are_for_the_owner_only_and_used_again(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        "secret_key": 0o600,
        "token_keys": 0o600,
        "encryption_keys": 0o600,
    }
    assert keys.kept_in(folder) == keys.kept_in(folder, begun=True)
