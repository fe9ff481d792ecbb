"""A gateway behind an outbound proxy, started as documented: calls, tests, sinks and traces."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests import curl, upstreams, workspace
from tests.authority import certificate
from tests.collector import collecting
from tests.docs.test_how_tos import block
from tests.eventually import eventually
from tests.forward_proxy import SECRET, USER_AND_SECRET, ForwardProxy, forward_proxy, internet
from tests.running.conftest import folder
from tests.running.squid import squid
from tests.sinks.receiver import SECRET as SIGNING_SECRET
from tests.sinks.receiver import webhook
from tests.workspace import ROOT, Serve

pytestmark = pytest.mark.full

PUBLIC, NAMED = "93.184.215.14", "mcp.github.com"


@contextmanager
def started(directory: Path, proxy: str, **settings: str) -> Iterator[Serve]:
    """Yield a `serve` started by the commands in docs/how-to/deploy.md."""
    serve = workspace.new(directory, "outbound", SSL_CERT_FILE=str(directory / "end.pem"), **settings)
    script = block("deploy.md", "outbound proxy: start")
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
    serve.settings |= {"GATEWAY_OUTBOUND_PROXY": proxy, "GATEWAY_PROXY_RESOLVES": "github.com"}  # For later commands.
    try:
        serve.wait_until_ready()
        yield serve
    finally:
        serve.stop()


def agent_of(serve: Serve, name: str, url: str) -> tuple[str, str]:
    """Create a gateway with a server at this URL; return the gateway's address, and a token for the gateway."""
    code = f"import json; from tests.conformance.rows import make\nprint(json.dumps(make({name!r}, {url!r})))"
    made = json.loads(serve.manage("shell", "--no-imports", "-c", code))
    return f"{serve.url}/mcp/{made['slug']}", made["token"]


def asked_for_calls(proxy: ForwardProxy) -> list[str]:
    """Return the proxy's requests, except those to the collector, which come at any time."""
    return [target for target in proxy.asked if target != f"{PUBLIC}:4318"]


def test_everything_goes_out_through_the_proxy_as_printed() -> None:
    """A server at a public address, and one at a name that the proxy resolves, are called through the proxy.

    A webhook and spans are sent through it too. A server at a private address is called without the proxy.
    """
    with ExitStack() as stack:
        directory = stack.enter_context(folder())
        end = certificate(directory / "end.pem", PUBLIC, NAMED)
        docs = stack.enter_context(upstreams.running(upstreams.under_any_name(upstreams.docs())))
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
            before = len(asked_for_calls(proxy))
            gateway, token = agent_of(serve, name, url)
            answered = curl.call_tool(gateway, token, "add", a=1, b=2)
            assert answered.status == 200
            assert answered.text == "3"
            assert (len(asked_for_calls(proxy)) > before) is (name != "inside")
        assert {f"{PUBLIC}:443", f"{NAMED}:443"} <= set(proxy.asked)

        made = f"name='Far', kind='webhook', address='https://{PUBLIC}:6001/log', secret={SIGNING_SECRET!r}"
        code = f"from sinks.models import Sink\nSink.objects.add({made}, from_beginning=True, by=None)"
        serve.manage("shell", "--no-imports", "-c", code)
        eventually(lambda: len(hook.of("call")) >= 3)
        eventually(lambda: len(collector.named("tools/call add")) >= 6)
        assert {f"{PUBLIC}:6001", f"{PUBLIC}:4318"} <= set(proxy.asked)

        assert not [target for target in proxy.asked if target.startswith(("10.", "127."))]
        assert SECRET not in serve.log()


def test_squid_lets_through_what_its_rules_allow_and_the_rest_is_told_in_words() -> None:
    """Use the HTTP clients of calls and of OAuth discovery, behind a squid with a user and rules."""
    with ExitStack() as stack:
        directory = stack.enter_context(folder())
        end = certificate(directory / "end.pem", PUBLIC, NAMED, "banned.example.com")
        docs = stack.enter_context(upstreams.running(upstreams.under_any_name(upstreams.docs())))
        beyond = stack.enter_context(forward_proxy(stack.enter_context(internet(docs.port, end))))
        user, _, secret = USER_AND_SECRET.partition(":")
        between = stack.enter_context(squid(beyond.port, user, secret))
        serve = stack.enter_context(started(directory, f"http://{USER_AND_SECRET}@127.0.0.1:{between.port}"))
        for name, url in {"pinned": f"https://{PUBLIC}/mcp", "named": f"https://{NAMED}/mcp"}.items():
            gateway, token = agent_of(serve, name, url)
            answered = curl.call_tool(gateway, token, "add", a=1, b=2)
            assert answered.text == "3", between.log()
        assert {f"{PUBLIC}:443", f"{NAMED}:443"} == set(beyond.asked)

        serve.settings["GATEWAY_PROXY_RESOLVES"] = "example.com"
        serve.commands.stop()
        code = (
            "from servers.oauth_client.discovery import Http\nfrom wire.outbound import NoAnswer\n"
            "try:\n Http(private=False, entered=[{0!r}]).get({0!r})\nexcept NoAnswer as error:\n print(error)"
        )
        for url, words in {
            "https://banned.example.com/": "refuses to connect to banned.example.com (403)",
            f"https://{PUBLIC}:8443/": f"refuses to connect to {PUBLIC} (403)",
        }.items():
            assert words in serve.manage("shell", "--no-imports", "-c", code.format(url))
        serve.settings["GATEWAY_OUTBOUND_PROXY"] = f"http://{user}:wrong-of-secrecy@127.0.0.1:{between.port}"
        serve.commands.stop()
        said = serve.manage("shell", "--no-imports", "-c", code.format(f"https://{PUBLIC}/"))
        assert "requires a valid user and password (407)" in said
        assert "secrecy" not in said + serve.log()
