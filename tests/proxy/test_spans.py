"""Traced calls: their spans at a collector, their parents, and their ids in the log."""

import time
from collections.abc import Iterator

import pytest
from prometheus_client import REGISTRY

from auditlog.models import Call
from proxy import metrics
from proxy.app import Traces
from tests import make
from tests.asgi_server import Upstream
from tests.collector import Collector, Posted, collecting
from tests.conftest import Run
from tests.eventually import PATIENCE
from tests.proxy.conftest import Agent, Proxy, Start, eventually, sql
from tests.proxy.scripted import Request, Script, calling, failing, offering, tool
from tests.proxy.test_trace import PARENT, TRACE

SERVER, CLIENT = 2, 3
CALLERS_TRACE, CALLERS_SPAN = PARENT[3:35], PARENT[36:52]
UNSAMPLED = PARENT[:-1] + "0"
OTHER = "00-" + "ab" * 16 + "-00f067aa0ba902b7-01"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setattr("proxy.tracing.EVERY_S", 0.02)
    with collecting() as each:
        yield each


def agent_of(proxy: Proxy, upstream: Upstream, slug: str = "docs") -> Agent:
    user = make.user()
    gateway = make.gateway(make.server(slug=slug, url=upstream.url))
    return proxy.agent(make.connection(make.agent(by=user), gateway, user))


def spans_of(collector: Collector, name: str) -> list[Posted]:
    """Wait for the span called `name`, which ends last in its trace, and return the spans of that trace."""
    whole = eventually(lambda: collector.named(name))[-1]
    return [span for span in collector.spans if span.trace == whole.trace]


@pytest.mark.full
def test_a_call_is_a_span_with_those_of_its_decision_its_hop_and_its_row(
    start: Start, run: Run, collector: Collector
) -> None:
    upstream = run(offering("it"))
    proxy = start(traces=Traces(collector.url, "Authorization=Bearer%20of-the-collector"))
    agent = agent_of(proxy, upstream)
    assert agent.tools() == ["docs__it"]

    assert agent.call("docs__it", {"text": "an argument"}).status_code == 200

    spans = {span.name: span for span in spans_of(collector, "tools/call docs__it")}
    assert set(spans) == {"tools/call docs__it", "decide", "tools/call it", "record"}
    whole, hop = spans["tools/call docs__it"], spans["tools/call it"]
    assert (whole.kind, whole.parent, whole.is_error, whole.service) == (SERVER, "", False, "gateway-admin")
    assert {spans[name].parent for name in ("decide", "tools/call it", "record")} == {whole.id}
    assert whole.began <= spans["decide"].began <= spans["decide"].ended <= hop.began
    assert hop.ended <= spans["record"].began
    assert spans["record"].ended <= whole.ended
    row = proxy.last()
    gateway, server = row.gateway_id, row.server_id
    assert row.trace_id == whole.trace
    assert whole.attributes == {
        "mcp.method.name": "tools/call",
        "gen_ai.tool.name": "docs__it",
        "gen_ai.operation.name": "execute_tool",
        "network.transport": "tcp",
        "network.protocol.name": "http",
        "http.response.status_code": 200,
        "gateway_admin.call.id": str(row.uid),
        "gateway_admin.gateway.id": str(gateway),
        "gateway_admin.gateway.name": row.gateway_name,
        "gateway_admin.host.id": str(row.host_id),
        "gateway_admin.server.id": str(server),
        "gateway_admin.server.name": row.server_name,
        "gateway_admin.outcome": "ok",
    }
    assert hop.kind == CLIENT
    assert hop.attributes == {
        "mcp.method.name": "tools/call",
        "gen_ai.tool.name": "it",
        "gen_ai.operation.name": "execute_tool",
        "gateway_admin.server.id": str(server),
        "gateway_admin.server.name": row.server_name,
        "server.address": "127.0.0.1",
        "server.port": upstream.port,
    }
    sent = upstream.asked("tools/call")[-1].headers["traceparent"]
    assert sent == f"00-{whole.trace}-{hop.id}-01"
    assert {headers["authorization"] for headers in collector.headers} == {"Bearer of-the-collector"}
    told = b"".join(collector.bodies)
    for secret in ("an argument", str(agent.secret), row.user_email, row.host_name, row.token_prefix):
        assert secret.encode() not in told


@pytest.mark.parametrize("modern", [False, True])
def test_the_trace_of_the_caller_goes_on_through_the_hop(
    start: Start, run: Run, collector: Collector, modern: bool
) -> None:
    upstream = run(Script(pages=[[tool("it")]], modern=modern).app())
    proxy = start(traces=Traces(collector.url))
    agent = agent_of(proxy, upstream)

    assert agent.call("docs__it", **TRACE).status_code == 200
    spans = {span.name: span for span in spans_of(collector, "tools/call docs__it")}

    whole, hop = spans["tools/call docs__it"], spans["tools/call it"]
    assert (whole.trace, whole.parent, whole.links) == (CALLERS_TRACE, CALLERS_SPAN, [])
    assert proxy.last().trace_id == CALLERS_TRACE
    seen = upstream.asked("tools/call")[-1]
    parent = f"00-{CALLERS_TRACE}-{hop.id}-01"
    assert {name: seen.headers[name.lower()] for name in TRACE} == {**TRACE, "Traceparent": parent}
    assert seen.body["params"].get("_meta", {}).get("traceparent") == (parent if modern else None)


def test_the_trace_in_a_message_goes_before_that_of_its_request(start: Start, run: Run, collector: Collector) -> None:
    upstream = run(offering("it"))
    proxy = start(traces=Traces(collector.url))
    agent = agent_of(proxy, upstream)
    meta = {"traceparent": OTHER, "tracestate": "b=2", "baggage": 7, "mine": 1}

    params = {"name": "docs__it", "arguments": {}, "_meta": meta}
    assert agent.ask("tools/call", params, **TRACE).status_code == 200
    spans = {span.name: span for span in spans_of(collector, "tools/call docs__it")}

    whole, hop = spans["tools/call docs__it"], spans["tools/call it"]
    assert (whole.trace, whole.links) == (OTHER[3:35], [CALLERS_TRACE])
    assert proxy.last().trace_id == OTHER[3:35]
    seen = upstream.asked("tools/call")[-1]
    parent = f"00-{OTHER[3:35]}-{hop.id}-01"
    assert seen.body["params"]["_meta"] == {"mine": 1, "traceparent": parent, "tracestate": "b=2"}
    assert (seen.headers["traceparent"], seen.headers["tracestate"]) == (parent, "b=2")
    assert "baggage" not in seen.headers


@pytest.mark.full
def test_no_caller_can_have_its_calls_sampled(start: Start, run: Run, collector: Collector) -> None:
    """The gateway's sampler ignores the caller's sampled flag, which OpenTelemetry's default sampler obeys."""
    upstream = run(offering("it"))
    never, always = start(traces=Traces(collector.url, ratio=0.0)), start(traces=Traces(collector.url))
    agent = agent_of(never, upstream)
    elsewhere = Agent(always.url(agent.url.rsplit("/", 1)[1]), agent.secret)

    assert agent.call("docs__it", **TRACE).status_code == 200
    assert elsewhere.call("docs__it", Traceparent=UNSAMPLED).status_code == 200

    (whole,) = eventually(lambda: collector.named("tools/call docs__it"))
    assert whole.attributes["gateway_admin.call.id"] == str(always.last().uid)
    # Calls that are not sampled are not traced, but their rows have the trace id.
    first, second = upstream.asked("tools/call")
    assert first.headers["traceparent"] == PARENT
    assert second.headers["traceparent"].endswith("-01")
    assert [row.trace_id for row in always.calls()] == [CALLERS_TRACE, CALLERS_TRACE]


@pytest.mark.full
def test_callers_that_are_trusted_say_what_is_sampled(start: Start, run: Run, collector: Collector) -> None:
    upstream = run(offering("it"))
    proxy = start(traces=Traces(collector.url, ratio=0.0, trusts_callers=True))
    agent = agent_of(proxy, upstream)

    for parent in (UNSAMPLED, PARENT):
        assert agent.call("docs__it", Traceparent=parent).status_code == 200
    assert agent.call("docs__it").status_code == 200

    (whole,) = eventually(lambda: collector.named("tools/call docs__it"))
    assert whole.attributes["gateway_admin.call.id"] == str(proxy.calls()[1].uid)
    assert [row.trace_id for row in proxy.calls()] == [CALLERS_TRACE, CALLERS_TRACE, ""]


@pytest.mark.full
def test_a_call_that_is_not_traced_keeps_the_trace_of_its_caller(proxy: Proxy, run: Run) -> None:
    agent = agent_of(proxy, run(offering("it")))

    for headers in (TRACE, {}, {"Traceparent": "nonsense"}):
        assert agent.call("docs__it", **headers).status_code == 200
    params = {"name": "docs__it", "arguments": {}, "_meta": {"traceparent": OTHER}}
    assert agent.ask("tools/call", params).status_code == 200

    assert [row.trace_id for row in proxy.calls()] == [CALLERS_TRACE, "", "", OTHER[3:35]]


@pytest.mark.full
def test_spans_say_why_a_call_failed(start: Start, run: Run, collector: Collector) -> None:
    async def call(request: Request) -> None:
        await request.answer({"content": [], "isError": True})

    proxy = start(traces=Traces(collector.url))
    agent = agent_of(proxy, run(calling(call)))
    assert agent.call("docs__it").status_code == 200
    refusing = agent_of(proxy, run(calling(failing(-32055))), "refusing")
    assert refusing.call("refusing__it").status_code == 200
    assert agent.call("nowhere__" + "x" * 50).status_code == 200
    agent.ask("made/up")
    sql("UPDATE hosts_host SET enabled = false")
    assert agent.call("docs__it").status_code == 403

    eventually(lambda: len([span for span in collector.spans if span.kind == SERVER]) == 5)
    ended = [
        (span.name, span.attributes.get("error.type"), span.is_error)
        for span in sorted(collector.spans, key=lambda span: span.began)
        if span.kind in (SERVER, CLIENT)
    ]
    assert ended == [
        ("tools/call docs__it", "tool_error", True),
        ("tools/call it", "tool_error", True),
        ("tools/call refusing__it", "-32055", True),
        ("tools/call it", "-32055", True),
        ("tools/call", "unknown_tool", True),  # Unknown tool names are left out: span names must be few.
        ("other", None, False),
        ("tools/call", "host_disabled", True),
    ]
    (decided,) = [span for span in collector.named("decide") if span.attributes]
    assert decided.attributes == {"gateway_admin.deny_reason": "host_disabled"}


@pytest.mark.full
def test_nobody_without_a_token_makes_spans(start: Start, run: Run, collector: Collector) -> None:
    proxy = start(traces=Traces(collector.url))
    agent = agent_of(proxy, run(offering("it")))

    assert Agent(agent.url, None).call("docs__it").status_code == 401
    assert Agent(agent.url, "gwa_" + "x" * 44).call("docs__it", **TRACE).status_code == 401
    assert agent.call("docs__it").status_code == 200

    eventually(lambda: collector.named("tools/call docs__it"))
    assert len([span for span in collector.spans if span.kind == SERVER]) == 1


@pytest.mark.full
def test_a_collector_that_is_down_costs_no_call_and_is_counted(
    start: Start, run: Run, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector.status = 400  # Not retried.
    proxy = start(traces=Traces(collector.url))
    agent = agent_of(proxy, run(offering("it")))

    assert agent.call("docs__it").status_code == 200

    def failed() -> float:
        metrics.flush()
        return REGISTRY.get_sample_value("gateway_spans_total", {"result": "failed"}) or 0

    before = failed()
    assert agent.call("docs__it").status_code == 200
    eventually(lambda: failed() > before)
    assert len(proxy.calls()) == 2


@pytest.mark.full
def test_a_queue_that_is_full_drops_spans_and_counts_them(
    start: Start, run: Run, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.tracing.MOST_WAITING", 2)
    monkeypatch.setattr("proxy.tracing.EVERY_S", 3600.0)

    def dropped() -> float:
        metrics.flush()
        return REGISTRY.get_sample_value("gateway_spans_total", {"result": "dropped"}) or 0

    before = dropped()
    proxy = start(traces=Traces(collector.url))
    agent = agent_of(proxy, run(offering("it")))
    assert agent.call("docs__it").status_code == 200
    eventually(lambda: dropped() == before + 2)
    assert collector.spans == []

    proxy.stop()  # Posts the waiting spans.
    assert len(collector.spans) == 2


@pytest.mark.full
def test_a_collector_that_hangs_holds_up_no_stop(
    start: Start, run: Run, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.tracing.LAST_S", 0.2)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "600")
    collector.status = 503  # Retried repeatedly.
    proxy = start(traces=Traces(collector.url))
    agent = agent_of(proxy, run(offering("it")))
    assert agent.call("docs__it").status_code == 200

    began = time.monotonic()
    proxy.stop()

    assert time.monotonic() - began < PATIENCE
    assert Call.objects.count() == 1
