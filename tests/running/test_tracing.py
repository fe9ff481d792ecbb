"""Traces of a running gateway. OpenTelemetry's variables turn them on; without these, no exporter is loaded."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import curl, workspace
from tests.collector import collecting
from tests.docs.test_how_tos import block
from tests.running.conftest import folder
from tests.running.processes import workers
from tests.running.starts import environment
from tests.running.test_refusals import refusal
from tests.workspace import ROOT, Serve

pytestmark = pytest.mark.full

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def with_protobuf(serve: Serve) -> list[bool]:
    """Return, for each worker, True if it has imported protobuf, which the exporter needs."""
    assert serve.process is not None
    served_by = workers(serve.process.pid)
    return [any("_upb" in each.path for each in worker.memory_maps()) for worker in served_by]


def test_calls_are_traced_as_the_page_says_and_the_last_spans_are_posted_when_it_stops(live: Serve) -> None:
    settings = {"OTEL_TRACES_SAMPLER": "always_off", "OTEL_SERVICE_NAME": "the-gateway"}
    with folder() as directory, collecting() as collector:
        settings["OTEL_EXPORTER_OTLP_HEADERS_FILE"] = str(directory / "headers")
        (directory / "headers").write_text("Authorization=Bearer%20secret-word\n")
        serve = workspace.new(directory, "traced", **settings)
        script = block("monitor.md", "traces: on").replace("http://localhost:4318", collector.url)
        script = script.replace("ARG=0.1", "ARG=1").replace("manage.py serve", f"manage.py serve --port {serve.port}")
        script = script.replace(".venv/bin/python", f"exec {sys.executable}")
        script = script.replace(".venv/bin/pip", f"{sys.executable} -m pip --disable-pip-version-check")
        with serve.log_file.open("ab") as log:
            serve.process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=ROOT,
                env=serve.environment() | {"PIP_NO_INDEX": "1"},  # The packages are installed already.
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            serve.wait_until_ready()
            issued = serve.issue_token(host="Traced", gateway="quickstart")
            assert curl.call_tool(issued["gateway_url"], issued["token"], "add", a=1, b=2).status == 200
            assert all(with_protobuf(serve))
            assert not any(with_protobuf(live))
        finally:
            serve.stop()
        assert "secret-word" not in serve.log()
        (row,) = serve.rows("SELECT trace_id, uid FROM auditlog_call WHERE method = 'tools/call'")

    hop, whole = sorted(collector.named("tools/call add"), key=lambda span: span.kind, reverse=True)
    assert hop.parent == whole.id
    assert (whole.trace, whole.attributes["gateway_admin.call.id"]) == (row["trace_id"], str(row["uid"]))
    assert whole.service == "the-gateway"
    assert {headers["authorization"] for headers in collector.headers} == {"Bearer secret-word"}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (ENDPOINT, "http://me:secret-word@localhost:4318", "must be without credentials"),
        ("OTEL_TRACES_SAMPLER_ARG", "nan", "must be a number from 0 to 1"),
    ],
)
def test_invalid_tracing_settings_are_refused_in_one_line(fresh: Path, name: str, value: str, words: str) -> None:
    line = refusal(fresh, "check", **{name: value})

    assert name in line
    assert words in line
    assert "secret-word" not in line


def test_traces_without_the_packages_are_refused_with_what_installs_them(fresh: Path) -> None:
    hidden = "import runpy, sys; sys.modules['opentelemetry'] = None; sys.argv = ['manage.py', 'check']; "
    done = subprocess.run(
        [sys.executable, "-c", f"{hidden} runpy.run_path('manage.py', run_name='__main__')"],
        cwd=ROOT,
        env=environment(fresh, **{ENDPOINT: "http://localhost:4318"}),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode != 0
    (line,) = done.stderr.strip().splitlines()
    assert line.endswith("but OpenTelemetry is not installed: pip install 'gateway-admin[otel]'.")
