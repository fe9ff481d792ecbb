"""The caller's trace context goes on to the server; nothing else of its headers does."""

import httpx
import pytest

from tests import make
from tests.conftest import Run
from tests.proxy.conftest import Proxy
from tests.proxy.scripted import Script, offering

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE = {"Traceparent": PARENT, "Tracestate": "a=1,b=2", "Baggage": "team=ops"}


@pytest.mark.parametrize("modern", [False, True])
def test_the_trace_goes_to_the_server_and_nothing_else(proxy: Proxy, run: Run, modern: bool) -> None:
    upstream = run(Script(pages=[[{"name": "it", "inputSchema": {"type": "object"}}]], modern=modern).app())
    docs = make.server(slug="docs", url=upstream.url)
    user = make.user()
    agent = proxy.agent(make.connection(make.agent(by=user), make.gateway(docs), user))

    assert agent.listed(**TRACE).status_code == 200
    assert agent.listed(X_Secret="mine", Cookie="a=b").status_code == 200

    with_trace, without = (seen.headers for seen in upstream.asked("tools/list"))
    assert {name: with_trace.get(name.lower()) for name in TRACE} == TRACE
    assert set(with_trace) - set(without) == {name.lower() for name in TRACE}
    assert not {"x-secret", "cookie", "authorization"} & set(without)
    assert "httpx" not in without.get("user-agent", "")


def test_what_is_no_trace_stays_here_and_spoils_no_call(proxy: Proxy, run: Run) -> None:
    upstream = run(offering("it"))
    user = make.user()
    gateway = make.gateway(make.server(slug="docs", url=upstream.url))
    agent = proxy.agent(make.connection(make.agent(by=user), gateway, user))
    zeros = "00-" + "0" * 32 + "-00f067aa0ba902b7-01"
    wrong = ["", "x", PARENT.upper(), PARENT + "-more", zeros]

    for parent in wrong:
        assert agent.listed(Traceparent=parent, Tracestate="a=1", Baggage="a=b").status_code == 200
    long = {"Traceparent": PARENT, "Tracestate": "a=" + "1" * 512, "Baggage": "b=" + "2" * 8192}
    assert agent.listed(**long).status_code == 200

    seen = [set(TRACE) & {name.title() for name in one.headers} for one in upstream.asked("tools/list")]
    assert seen == [set()] * len(wrong) + [{"Traceparent"}]


def test_a_browser_may_send_its_trace(proxy: Proxy) -> None:
    asked = {"Origin": "https://gateway.example.com", "Access-Control-Request-Headers": "traceparent"}

    allowed = httpx.options(proxy.url("any"), headers=asked, trust_env=False).headers["access-control-allow-headers"]

    assert {name.lower() for name in TRACE} <= set(allowed.split(", "))
