"""OpenTelemetry collectors as sinks: rows as log records, decoded with OpenTelemetry's own messages."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from auditlog.models import Event
from capabilities import Capability
from gatewayadmin.config import outbound
from sinks import otlp, sending
from sinks.models import BadSinkAddress, BadSinkSecret, Sink
from sinks.receivers import LogLine
from sinks.sending import send_test_line
from tests import make
from tests.calls import call
from tests.collector import Answer, Collector, Logged, collecting
from tests.house.doors import browser as browser_of
from tests.house.doors import session_of
from tests.rest import Rest
from wire.otlp import any_value

pytestmark = pytest.mark.django_db(transaction=True)

HEADERS = "Authorization=Bearer%20word-of-secrecy, x-scope = logs"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def collector(loopback_is_allowed: None) -> Iterator[Collector]:
    with collecting() as running:
        yield running


def to(collector: Collector, **fields: Any) -> Sink:
    told: dict[str, Any] = {"name": "Collector", "kind": "otlp", "address": collector.url, "sends_events": False}
    return Sink.objects.add(**(told | {"by": None} | fields))


def answering(status: int, **headers: str) -> Any:
    def answer(records: list[Logged]) -> Answer:
        return status, b"", [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]

    return answer


@pytest.mark.full
def test_rows_are_log_records_with_our_names_and_the_trace_in_its_place(collector: Collector, settings: Any) -> None:
    settings.OTEL_RESOURCE = {"service.name": "ours", "a": "b"}
    sink = to(collector, sends_events=True, secret=HEADERS)
    made = call(feature_name="echo", trace_id=TRACE, rpc_error_code=-32602, outcome="rpc_error", duration_ms=1.5)
    without = call(outcome="denied")

    assert sending.send_undelivered(sink.pk) == 3

    first, second = (
        next(one for one in collector.logs if one.attributes["id"] == str(row.uid)) for row in (made, without)
    )
    assert (first.event, first.trace, first.severity) == ("gateway_admin.call", TRACE, (17, "error"))
    assert (second.trace, second.severity) == ("", (13, "warning"))
    told = first.attributes
    assert "trace_id" not in told
    assert (told["log"], told["feature_name"], told["rpc_error_code"], told["duration_ms"]) == (
        "call",
        "echo",
        -32602,
        1.5,
    )
    assert first.at == first.observed == int(made.created_at.timestamp() * 1e6 + 0.5) * 1000
    assert told["created_at"].startswith(f"{made.created_at:%Y-%m-%dT%H:%M:%S}")
    assert first.body == f"{made.method} echo rpc_error"
    assert first.scope == "gateway_admin"
    assert first.resource == {"service.name": "ours", "a": "b"}
    [event] = [one for one in collector.logs if one.event == "gateway_admin.event"]
    assert (event.severity, event.body) == ((10, "notice"), "sink.created Collector")
    assert json.loads(event.attributes["changes"])["kind"] == [None, "otlp"]
    headers = collector.headers[-1]
    assert (headers["authorization"], headers["x-scope"]) == ("Bearer word-of-secrecy", "logs")
    assert (headers["content-type"], headers["content-encoding"]) == ("application/x-protobuf", "gzip")


def test_the_resource_is_that_of_opentelemetrys_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(name, raising=False)
    assert outbound.resource()["service.name"] == "gateway-admin"

    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=a%2Cb, none,=x,service.name=own")
    told = outbound.resource()
    assert (told["deployment.environment.name"], told["service.name"]) == ("a,b", "own")
    assert {"none", ""}.isdisjoint(told)

    monkeypatch.setenv("OTEL_SERVICE_NAME", "other")
    assert outbound.resource()["service.name"] == "other"


@pytest.mark.full
def test_a_record_that_is_rejected_is_found_left_out_and_named(collector: Collector) -> None:
    """A collector reports how many records it rejected, but not which, so the sink searches for the record."""
    sink = to(collector, secret=HEADERS)
    made = [call() for _ in range(9)]
    bad = str(made[4].uid)
    collector.rejects = lambda record: record.attributes["id"] == bad

    sending.send_undelivered(sink.pk)

    kept = {one.attributes["id"] for one in collector.logs if one.event == "gateway_admin.call"}
    assert kept == {str(one.uid) for one in made} - {bad}
    row = Sink.objects.get(pk=sink.pk)
    assert (row.refused, row.status) == (1, "current")
    [event] = Event.objects.filter(action="sink.row_refused")
    assert event.changes == {"log": "call", "row": bad, "answer": "It rejected 1 of 1 log records."}
    assert "secrecy" not in f"{row.last_error} {event.changes}"


def test_a_collector_that_rejects_everything_is_failing_and_nothing_is_left_out(collector: Collector) -> None:
    sink = to(collector)
    made = [str(call().uid) for _ in range(3)]
    collector.rejects = lambda record: True
    assert sending.send_undelivered(sink.pk) == 0
    row = Sink.objects.get(pk=sink.pk)
    assert (row.status, row.refused) == ("failing", 0)
    assert "rejected 1 of 1 log records" in row.last_error

    collector.rejects = lambda record: False
    Sink.objects.update(retry_at=None)
    assert sending.send_undelivered(sink.pk) == 3
    assert [one.attributes["id"] for one in collector.logs if one.event == "gateway_admin.call"] == made


@pytest.mark.full
def test_a_collector_that_is_busy_is_asked_again_when_it_says(collector: Collector) -> None:
    sink = to(collector)
    for status, seconds in ((429, "40"), (503, "40"), (502, ""), (408, "")):
        call()
        collector.script = [answering(status, **({"Retry_After": seconds} if seconds else {}))]
        began = datetime.now(UTC)

        assert sending.send_undelivered(sink.pk) == 0

        row = Sink.objects.get(pk=sink.pk)
        assert (row.last_error, row.refused) == (f"It answered {status}.", 0)
        assert row.retry_at is not None
        assert row.retry_at - began > timedelta(seconds=39 if seconds else 0)
        Sink.objects.update(retry_at=None)
        assert sending.send_undelivered(sink.pk) == 1

    for _ in range(8):
        call()
    collector.script = [answering(413), answering(413)]
    collector.tried.clear()
    assert sending.send_undelivered(sink.pk) == 8
    assert [len(records) for records in collector.tried][:3] == [8, 4, 2], "a delivery too large is sent in halves"


def test_the_number_of_rejected_records_is_read_from_an_acknowledgement() -> None:
    protobuf, text = "application/x-protobuf", "application/json"
    answers = {
        (protobuf, b""): 0,
        (protobuf, b"\x0a\x00"): 0,
        (protobuf, b"\x0a\x04\x08\x07\x12\x00"): 7,
        (protobuf, b"\x0a\x03\x08\xac\x02"): 300,
        (protobuf, b"\x0a\xff\xff"): 0,
        (text, b"{}"): 0,
        (text, b'{"partialSuccess":{"rejectedLogRecords":"7","errorMessage":"x"}}'): 7,
        (text, b'{"partialSuccess":null}'): 0,
        (text, b"[1]"): 0,
        (text, b'{"partialSuccess":{"rejectedLogRecords":{}}}'): 0,
        ("text/html", b"<html>"): 0,
    }
    assert {answer: otlp.rejected(*answer) for answer in answers} == answers


@given(st.binary(max_size=60))
def test_no_answer_stops_a_sink(body: bytes) -> None:
    assert otlp.rejected("application/x-protobuf", body) >= 0
    assert otlp.rejected("application/json", body) >= 0


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.full
@given(st.dictionaries(TEXTS, JSON, max_size=5))
def test_a_line_is_read_as_it_was_written(told: dict[str, Any]) -> None:
    text = json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()
    found = dict(otlp.fields_of(text))

    assert found.keys() == told.keys()
    for name, value in told.items():
        assert (json.loads(str(found[name])) if isinstance(value, dict | list) else found[name]) == value
    posted = ExportLogsServiceRequest()
    posted.ParseFromString(otlp.of_lines([LogLine("call", datetime.now(UTC), 6, text)], {}))
    [record] = posted.resource_logs[0].scope_logs[0].log_records
    assert {pair.key for pair in record.attributes} == {
        name for name, value in told.items() if value is not None and (name != "trace_id" or value)
    }


@pytest.mark.full
def test_nested_values_and_numbers_stay_as_recorded_however_large_or_deep() -> None:
    number, deep = "9" * 40, "[" * 50_000 + "]" * 50_000
    nested = f'{{"n": {number}, "d": {deep}, "s": "\\"}}]"}}'
    found = dict(otlp.fields_of(f'{{"id":"x","request_payload":{nested},"last":2}}'.encode()))

    assert found == {"id": "x", "request_payload": nested, "last": 2}
    for whole in (-1, 2**63 - 1, -(2**63), 2**63, 10**30):
        value = AnyValue()
        value.ParseFromString(any_value(whole))
        fits = -(2**63) <= whole < 2**63
        assert (value.int_value if fits else value.string_value) == (whole if fits else str(whole))


def test_logs_are_posted_at_the_usual_path_unless_the_address_has_one() -> None:
    urls = {
        "https://c.example.com:4318": "https://c.example.com:4318/v1/logs",
        "https://c.example.com/": "https://c.example.com/v1/logs",
        "https://c.example.com/otlp/v1/logs?x=1": "https://c.example.com/otlp/v1/logs?x=1",
    }
    assert {address: otlp.url_of(address) for address in urls} == urls


def test_headers_that_cannot_be_sent_are_refused_without_a_word_of_them(collector: Collector) -> None:
    headers = ("of-secrecy", "a b=of-secrecy", "X=a%0d%0aB: of-secrecy", "Host=of-secrecy", "Content-Type=of-secrecy")
    for secret in headers:
        with pytest.raises(BadSinkSecret, match="Write headers like") as caught:
            to(collector, secret=secret)
        assert "of-secrecy" not in str(caught.value)


def test_a_collector_is_where_servers_may_be() -> None:
    for address in ("http://93.184.216.34:4318", "https://127.0.0.1", "grpc://c.example.com", ""):
        with pytest.raises(BadSinkAddress):
            Sink.objects.add(name="Out", kind="otlp", address=address, by=None)


def test_headers_are_not_shown_to_another_place_than_they_were_entered_for(collector: Collector) -> None:
    """A new address requires entering the secret again, so that people who edit sinks cannot learn the stored one."""
    sink = to(collector, secret=HEADERS)
    with pytest.raises(BadSinkSecret, match="Enter the secret again"):
        sink.edit(address="http://127.0.0.1:9/v1/logs", by=None)
    sink.refresh_from_db()
    sink.edit(address=f"{collector.url}/v1/logs", by=None)
    sink.edit(address="http://127.0.0.1:9/", secret="X=1", by=None)

    assert Sink.objects.get().secret() == "X=1"


@pytest.mark.full
def test_pages_and_rest_set_a_collector_up(collector: Collector) -> None:
    boss = make.user(*Capability)
    browser = browser_of(session_of(boss))
    page = browser.get("/settings/sinks/add/?kind=otlp").content.decode()
    assert "/v1/logs" in page
    assert "Headers" in page
    form = {"name": "By page", "address": collector.url, "secret": HEADERS, "sends_calls": "on"}
    assert browser.post("/settings/sinks/add/?kind=otlp", form).status_code == 302
    sink = Sink.objects.get()
    assert "was acknowledged" in browser.post(f"/settings/sinks/{sink.pk}/test/").content.decode()
    made = Rest.of(boss).send("post", "/sinks", {"name": "By REST", "kind": "otlp", "address": collector.url})
    assert made.status_code == 201
    assert made.json()["has_secret"] is False
    for text in (
        browser.get(f"/settings/sinks/{sink.pk}/").content.decode(),
        browser.get("/settings/sinks/").content.decode(),
    ):
        assert "secrecy" not in text
    assert [one.event for one in collector.logs] == ["gateway_admin.test"]
    collector.script = [answering(404)]
    assert send_test_line(sink, by=None).detail == "Not delivered: it answered 404."
