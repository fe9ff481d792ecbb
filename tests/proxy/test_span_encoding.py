"""Spans encoded by the gateway's own code can be decoded with OpenTelemetry's published message classes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from proxy import tracing
from proxy.tracing import CLIENT, INTERNAL, SERVER, Context
from wire import otlp

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=400) | st.sampled_from(
    ["", "a" * 127, "a" * 128, "ü" * 16_384]
)
VALUES = st.dictionaries(TEXTS, TEXTS | st.integers(0, 2**63 - 1), max_size=6)
CONTEXTS = st.builds(Context, st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8))


def read(message: bytes) -> ExportTraceServiceRequest:
    found = ExportTraceServiceRequest()
    found.ParseFromString(message)
    return found


def values(pairs: object) -> dict[str, str | int]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in pairs}  # type: ignore[attr-defined]


@pytest.mark.full
@given(CONTEXTS, st.booleans(), TEXTS, VALUES, VALUES, st.booleans(), st.lists(CONTEXTS, max_size=2))
def test_a_span_is_read_as_it_was_noted(
    context: Context,
    has_parent: bool,
    name: str,
    attributes: dict[str, str | int],
    resource: dict[str, str | int],
    is_error: bool,
    links: list[Context],
) -> None:
    parent = b"parent.." if has_parent else b""
    times = 1_795_000_000_000_000_001, 1_795_000_000_000_000_300
    span = tracing.span(context, parent, name, SERVER, *times, attributes, is_error=is_error, links=links)

    found = read(otlp.request(resource, ("gateway_admin", "1.2"), [span, span]))

    (of_resource,) = found.resource_spans
    (scoped,) = of_resource.scope_spans
    assert values(of_resource.resource.attributes) == resource
    assert (scoped.scope.name, scoped.scope.version) == ("gateway_admin", "1.2")
    one, same = scoped.spans
    assert one == same
    assert Context(one.trace_id, one.span_id) == context
    assert (one.parent_span_id, one.name, one.kind) == (parent, name, Span.SPAN_KIND_SERVER)
    assert (one.start_time_unix_nano, one.end_time_unix_nano) == times
    assert values(one.attributes) == attributes
    assert [Context(link.trace_id, link.span_id) for link in one.links] == links
    assert (one.status.code == Status.STATUS_CODE_ERROR) == is_error


def test_the_kinds_are_those_of_the_standard() -> None:
    kinds = [Span.SpanKind.Value(f"SPAN_KIND_{name}") for name in ("INTERNAL", "SERVER", "CLIENT")]
    assert kinds == [INTERNAL, SERVER, CLIENT]


def test_half_a_character_keeps_no_span_back() -> None:
    span = tracing.span(Context(b"t" * 16, b"s" * 8), b"", "a\udfffb", SERVER, 1, 2, {"tool": "\ud800"})

    (one,) = read(otlp.request({}, ("", ""), [span])).resource_spans[0].scope_spans[0].spans

    assert (one.name, values(one.attributes)) == ("a?b", {"tool": "?"})
