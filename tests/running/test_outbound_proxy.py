"""A gateway that goes out through a proxy, started as the page says: calls, tests, sinks and traces."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests import curl, upstreams, workspace
from tests.authority import certificate
from tests.collector import collecting
from tests.docs.test_how_tos import block
from tests.eventually import eventually
from tests.forward_proxy import SECRET, USER_AND_SECRET, forward_proxy, internet
from tests.running.conftest import folder
from tests.sinks.receiver import SECRET as SIGNING_SECRET
from tests.sinks.receiver import webhook
from tests.workspace import ROOT, Serve

PUBLIC, NAMED = "93.184.215.14", "mcp.github.com"


@contextmanager
def started(directory: Path, proxy: str, **settings: str) -> Iterator[Serve]:
    """A `serve`, by the commands of the page."""
    serve = workspace.new(directory, "outbound", SSL_CERT_FILE=str(directory / "end.pem"), **settings)
    script = block("go-out-through-a-proxy.md", "outbound proxy: start")
    assert "http://gateway:secret@proxy.example.com:3128" in script
    script = script.replace("http://gateway:secret@proxy.example.com:3128", proxy)
    script = script.replace("manage.py serve", f"manage.py serve --port {serve.port} --workers 1")
    script = script.replace(".venv/bin/python", f"exec {sys.executable}")
    with serve.log_file.open("ab") as log:
        serve.process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=ROOT,
            env=serve.environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    serve.settings |= {"GATEWAY_OUTBOUND_PROXY": proxy, "GATEWAY_PROXY_RESOLVES": "github.com"}  # For commands.
    try:
        serve.wait_until_ready()
        yield serve
    finally:
        serve.stop()


def agent_of(serve: Serve, name: str, url: str) -> tuple[str, str]:
    """The address of a gateway before a server at this URL, and a token for it."""
    code = f"import json; from tests.conformance.rows import make\nprint(json.dumps(make({name!r}, {url!r})))"
    made = json.loads(serve.manage("shell", "--no-imports", "-c", code))
    return f"{serve.url}/mcp/{made['slug']}", made["token"]


def test_everything_goes_out_through_the_proxy_as_printed() -> None:
    """Servers at a checked address and by a name the proxy resolves, a private one without it, a webhook, spans."""
    with ExitStack() as stack:
        directory = stack.enter_context(folder())
        end = certificate(directory / "end.pem", PUBLIC, NAMED)
        docs = stack.enter_context(upstreams.running(upstreams.docs()))
        hook, collector = stack.enter_context(webhook()), stack.enter_context(collecting())
        far, hooked, collected = (
            stack.enter_context(internet(port, end))
            for port in (docs.port, int(hook.url.split(":")[2].split("/")[0]), int(collector.url.rsplit(":", 1)[1]))
        )
        ways = {f"{PUBLIC}:6001": hooked, f"{PUBLIC}:4318": collected}
        proxy = stack.enter_context(forward_proxy(far, credentials=USER_AND_SECRET, ways=ways))
        serve = stack.enter_context(
            started(
                directory,
                f"http://{USER_AND_SECRET}@127.0.0.1:{proxy.port}",
                OTEL_EXPORTER_OTLP_ENDPOINT=f"https://{PUBLIC}:4318",
                OTEL_EXPORTER_OTLP_CERTIFICATE=str(directory / "end.pem"),
            )
        )
        urls = {"pinned": f"https://{PUBLIC}/mcp", "named": f"https://{NAMED}/mcp", "inside": docs.url}
        for name, url in urls.items():
            before = len(proxy.asked)
            gateway, token = agent_of(serve, name, url)
            answered = curl.call_tool(gateway, token, "add", a=1, b=2)
            assert answered.status == 200
            assert answered.text() == "3"
            assert (len(proxy.asked) > before) is (name != "inside")
        assert {f"{PUBLIC}:443", f"{NAMED}:443"} <= set(proxy.asked)

        made = f"name='Far', kind='webhook', address='https://{PUBLIC}:6001/log', secret={SIGNING_SECRET!r}"
        code = f"from sinks.models import Sink\nSink.objects.add({made}, from_beginning=True, by=None)"
        serve.manage("shell", "--no-imports", "-c", code)
        eventually(lambda: len(hook.of("call")) >= 3)
        eventually(lambda: len(collector.named("tools/call add")) >= 6)
        assert {f"{PUBLIC}:6001", f"{PUBLIC}:4318"} <= set(proxy.asked)

        assert not [target for target in proxy.asked if target.startswith(("10.", "127."))]
        assert SECRET not in serve.log()
