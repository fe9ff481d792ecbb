"""The caller's trace context is forwarded to the server; no other header is forwarded."""

import json
import socket

import httpx
import pytest

from tests import make
from tests.conftest import Run
from tests.eventually import PATIENCE
from tests.proxy.conftest import Proxy, Start, eventually_unused
from tests.proxy.scripted import Script, offering

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE = {"Traceparent": PARENT, "Tracestate": "a=1,b=2", "Baggage": "team=ops"}


@pytest.mark.full
def test_the_trace_goes_to_the_server_and_nothing_else(proxy: Proxy, run: Run) -> None:
    upstream = run(offering("it"))
    docs = make.server(slug="docs", url=upstream.url)
    user = make.user()
    agent = proxy.agent(make.connection(make.agent(by=user), make.gateway(docs), user))

    assert agent.call("docs__it", **TRACE).status_code == 200
    assert agent.call("docs__it", X_Secret="mine", Cookie="a=b").status_code == 200

    with_trace, without = (seen.headers for seen in upstream.asked("tools/call"))
    assert {name: with_trace.get(name.lower()) for name in TRACE} == TRACE
    assert set(with_trace) - set(without) == {name.lower() for name in TRACE}
    assert not {"x-secret", "cookie", "authorization"} & set(without)
    assert "httpx" not in without.get("user-agent", "")


@pytest.mark.full
def test_an_invalid_trace_context_is_dropped_and_harms_no_call(proxy: Proxy, run: Run) -> None:
    upstream = run(offering("it"))
    user = make.user()
    gateway = make.gateway(make.server(slug="docs", url=upstream.url))
    agent = proxy.agent(make.connection(make.agent(by=user), gateway, user))
    zeros = "00-" + "0" * 32 + "-00f067aa0ba902b7-01"
    wrong = ["", "x", PARENT.upper(), PARENT + "-more", zeros]

    for parent in wrong:
        assert agent.call("docs__it", Traceparent=parent, Tracestate="a=1", Baggage="a=b").status_code == 200
    long = {"Traceparent": PARENT, "Tracestate": "a=" + "1" * 512, "Baggage": "b=" + "2" * 8192}
    assert agent.call("docs__it", **long).status_code == 200

    seen = [set(TRACE) & {name.title() for name in one.headers} for one in upstream.asked("tools/call")]
    assert seen == [set()] * len(wrong) + [{"Traceparent"}]


def test_a_browser_may_send_its_trace(proxy: Proxy) -> None:
    asked = {"Origin": "https://gateway.example.com", "Access-Control-Request-Headers": "traceparent"}

    allowed = httpx.options(proxy.url("any"), headers=asked, trust_env=False).headers["access-control-allow-headers"]

    assert {name.lower() for name in TRACE} <= set(allowed.split(", "))


@pytest.mark.full
@pytest.mark.parametrize("modern", [False, True])
def test_the_trace_of_a_call_does_not_go_on_with_the_next_one_on_its_connection(
    proxy: Proxy, run: Run, modern: bool
) -> None:
    """Send three requests in one write, only the first with a trace. The next two must not get the first's trace."""
    upstream = run(Script(pages=[[{"name": "it", "inputSchema": {"type": "object"}}]], modern=modern).app())
    user = make.user()
    gateway = make.gateway(make.server(slug="docs", url=upstream.url))
    agent = proxy.agent(make.connection(make.agent(by=user), gateway, user))
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "docs__it"}})
    path = "/" + agent.url.split("/", 3)[3]
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{proxy.upstream.port}\r\nAuthorization: Bearer {agent.secret}\r\n"
    head += f"Content-Type: application/json\r\nAccept: application/json\r\nContent-Length: {len(body)}\r\n"
    traced = "".join(f"{name}: {value}\r\n" for name, value in TRACE.items())

    with socket.create_connection(("127.0.0.1", proxy.upstream.port), timeout=PATIENCE) as sock:
        last = f"{head}Connection: close\r\n\r\n{body}"
        sock.sendall(f"{head}{traced}\r\n{body}{head}\r\n{body}{last}".encode())
        answers = b"".join(iter(lambda: sock.recv(65_536), b""))

    assert answers.count(b"HTTP/1.1 200 OK") == 3
    seen = [{name for name in TRACE if name.lower() in one.headers} for one in upstream.asked("tools/call")]
    assert seen == [set(TRACE), set(), set()]


@pytest.mark.full
def test_a_session_does_not_remember_the_trace_it_was_opened_in(
    start: Start, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.store.sessions.SWEEP_SECONDS", 0.1)
    script = Script(pages=[[{"name": "it", "inputSchema": {"type": "object"}}]], sessions=True)
    upstream = run(script.app())
    user = make.user()
    gateway = make.gateway(make.server(slug="docs", url=upstream.url))
    agent = start().agent(make.connection(make.agent(by=user), gateway, user))
    other = {**TRACE, "Traceparent": PARENT.replace("4bf9", "5cf9")}

    for headers in (TRACE, {}, other):
        assert agent.call("docs__it", **headers).status_code == 200
    eventually_unused("proxy_upstreamsession", "2 hours", lambda: script.ended)

    seen = [one.headers.get("traceparent") for one in upstream.asked("tools/call")]
    assert seen == [PARENT, None, other["Traceparent"]]
    farewell = next(one for one in upstream.seen if one.verb == "DELETE")
    assert not set(farewell.headers) & {name.lower() for name in TRACE}
