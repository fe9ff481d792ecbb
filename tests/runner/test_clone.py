"""The runner that `serve` starts in a clone."""

import json
from pathlib import Path

import pytest
from django.conf import settings

from gatewayadmin.serving import runner_process
from gatewayadmin.serving.runner_process import RunnerProcess
from tests.runner.running import SECRET
from wire.runner import Runner


def test_the_runner_of_a_clone_gets_no_keys_of_the_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys must stay secret from programs, which can read the runner's environment with `isolation: none`."""
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

    assert RunnerProcess(Runner("http://127.0.0.1:8900", SECRET)).process.wait(60) == 0
    found = json.loads(seen.read_text())
    assert {name for name in found if name.startswith(("GATEWAY_", "DATABASE_", "OTEL_EXPORTER_OTLP_HEADERS"))} == {
        "GATEWAY_RUNNER_SECRET",
        "GATEWAY_TOKEN_OF_A",
    }
    assert (found["GATEWAY_RUNNER_SECRET"], found["OTHER"]) == (SECRET, "value")


def test_a_runner_that_ended_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file, starts = tmp_path / "runner.yaml", tmp_path / "starts"
    file.write_text("servers: []")
    monkeypatch.setattr(settings, "RUNNER_FILE", file)
    monkeypatch.setattr(runner_process, "STARTER", f"open({str(starts)!r}, 'a').write('started ')")
    runner = RunnerProcess(Runner("http://127.0.0.1:8900", SECRET))
    runner.process.wait(60)
    runner.keep_running()  # Too early.
    assert starts.read_text() == "started "

    monkeypatch.setattr(runner_process, "RESTART_S", 0)
    runner = RunnerProcess(Runner("http://127.0.0.1:8900", SECRET))
    runner.process.wait(60)
    file.unlink()
    runner.keep_running()  # The file is being replaced.
    file.write_text("listen: 127.0.0.1:8901\nservers: []")
    runner.keep_running()  # The workers would still use the old address.
    file.write_text("servers: []")
    runner.keep_running()
    runner.process.wait(60)
    assert starts.read_text() == "started started started "
    assert [line.message for line in caplog.records] == [
        "The runner has ended, and cannot be started again.",
        "The runner has ended, and runner.yaml has another address now. Restart the gateway.",
        "The runner has ended. Starting it again.",
    ]
