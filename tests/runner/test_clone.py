"""The runner that `serve` starts in a clone."""

import json
from pathlib import Path

import pytest
from django.conf import settings

from gatewayadmin.serving import runner_process
from tests.runner.running import SECRET
from wire.runner import Runner


def test_the_runner_of_a_clone_gets_no_keys_of_the_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `isolation: none`, its programs can read its environment."""
    file, seen = tmp_path / "runner.yaml", tmp_path / "seen"
    file.write_text("servers: [{name: a, command: [a], environment: {B: env:GATEWAY_TOKEN_OF_A}}]")
    ours = [
        *("GATEWAY_SECRET_KEY", "GATEWAY_RUNNER_SECRET_FILE", "DATABASE_URL", "DATABASE_URL_FILE"),
        *("DATABASE_READ_URL", "OTEL_EXPORTER_OTLP_HEADERS"),
    ]
    for name in (*ours, "GATEWAY_RUNNER_URL", "GATEWAY_RUNNER_SECRET", "GATEWAY_TOKEN_OF_A", "OTHER"):
        monkeypatch.setenv(name, "value")
    monkeypatch.setattr(settings, "RUNNER_FILE", file)
    writes = f"import json, os, pathlib; pathlib.Path({str(seen)!r}).write_text(json.dumps(dict(os.environ)))"
    monkeypatch.setattr(runner_process, "STARTER", writes)

    assert runner_process.start(Runner("http://127.0.0.1:8900", SECRET)).wait(60) == 0
    found = json.loads(seen.read_text())
    assert {name for name in found if name.startswith(("GATEWAY_", "DATABASE_", "OTEL_EXPORTER_OTLP_HEADERS"))} == {
        "GATEWAY_RUNNER_SECRET",
        "GATEWAY_TOKEN_OF_A",
    }
    assert (found["GATEWAY_RUNNER_SECRET"], found["OTHER"]) == (SECRET, "value")
