"""The runner's address and secret come from the environment, or from files if `serve` starts the runner itself."""

from pathlib import Path

import pytest

from gatewayadmin.config import environment, runner
from wire.runner import Runner

SECRET = "0123456789abcdef" * 2


def test_url_and_secret_are_both_set_or_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runner.of_environment() is None
    monkeypatch.setenv("GATEWAY_RUNNER_URL", "http://runner:8900/")
    with pytest.raises(environment.Refused, match="belong together"):
        runner.of_environment()
    monkeypatch.setenv("GATEWAY_RUNNER_SECRET", "short")
    with pytest.raises(environment.Refused, match="at least 32 printable ASCII characters"):
        runner.of_environment()
    monkeypatch.setenv("GATEWAY_RUNNER_SECRET", SECRET)
    assert runner.of_environment() == Runner("http://runner:8900", SECRET)


def test_the_runner_of_a_clone_is_at_the_address_in_its_file_with_a_secret_made_once(tmp_path: Path) -> None:
    file = tmp_path / "runner.yaml"
    for text, url in (
        ("version: 1\n", "http://127.0.0.1:8900"),
        ("version: 1\nlisten: 127.0.0.1:9000 # its own\n", "http://127.0.0.1:9000"),
        ('listen: "0.0.0.0:9001"\n', "http://127.0.0.1:9001"),
        ("listen: '[::1]:9002'\n", "http://[::1]:9002"),
        ("listen: what\n", "http://127.0.0.1:8900"),
    ):
        file.write_text(text)

        first, again = (runner.of_clone(file, tmp_path / "keys") for _ in range(2))

        assert first == again
        assert first.url == url
        assert len(first.secret) >= 32
    assert oct((tmp_path / "keys" / "runner_secret").stat().st_mode & 0o777) == "0o600"
