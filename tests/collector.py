"""An OpenTelemetry collector on a loopback port, which decodes spans and log records posted over OTLP."""

import gzip
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.asgi_server import App, Receive, Scope, Send, answer, headers_of, live, read, running


@dataclass(frozen=True, slots=True)
class Posted:
    """A posted span. Ids are in hexadecimal digits; `parent` is empty if the span has none."""

    name: str
    trace: str
    id: str
    parent: str
    kind: int
    began: int
    ended: int
    is_error: bool
    attributes: dict[str, Any]
    links: list[str]
    service: str


@dataclass(frozen=True, slots=True)
class Logged:
    """A posted log record. The id of its trace is in hexadecimal digits."""

    event: str
    at: int
    observed: int
    severity: tuple[int, str]
    body: str
    trace: str
    attributes: dict[str, Any]
    resource: dict[str, Any]
    scope: str


type Answer = tuple[int, bytes, list[tuple[bytes, bytes]]]


@dataclass
class Collector:
    """An OTLP collector. It answers posted spans with the HTTP status `status`.

    The log records of every post are appended to `tried`. The functions in `script` answer the first posts of log
    records, each function one post. Records of later posts are stored in `logs`, except those that `rejects` rejects.
    """

    spans: list[Posted] = field(default_factory=list)
    logs: list[Logged] = field(default_factory=list)
    tried: list[list[Logged]] = field(default_factory=list)
    script: list[Callable[[list[Logged]], Answer]] = field(default_factory=list)
    rejects: Callable[[Logged], bool] = lambda record: False
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    status: int = 200
    url: str = ""

    def app(self) -> App:
        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await live(receive, send)
                return
            body = await read(receive)
            if scope["path"] == "/v1/logs":
                status, said, more = self._take_logs(scope, body)
                await answer(send, status, said, headers=[(b"content-type", b"application/x-protobuf"), *more])
                return
            assert scope["path"] == "/v1/traces"
            if self.status == 200:
                self.headers.append(headers_of(scope))
                self.bodies.append(body)
                self.spans += _spans(body)
            await answer(send, self.status, b"", headers=[(b"content-type", b"application/x-protobuf")])

        return serve

    def _take_logs(self, scope: Scope, body: bytes) -> Answer:
        self.headers.append(headers_of(scope))
        records = _records(gzip.decompress(body))
        self.tried.append(records)
        if self.script:
            return self.script.pop(0)(records)
        kept = [record for record in records if not self.rejects(record)]
        self.logs += kept
        said = ExportLogsServiceResponse()
        if number := len(records) - len(kept):
            said.partial_success.rejected_log_records = number
            said.partial_success.error_message = "of secrecy"
        return 200, said.SerializeToString(), []

    def named(self, name: str) -> list[Posted]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Posted:
        (span,) = self.named(name)
        return span


@contextmanager
def collecting() -> Iterator[Collector]:
    """Yield a running collector until the block ends."""
    collector = Collector()
    with running(collector.app()) as upstream:
        collector.url = f"http://127.0.0.1:{upstream.port}"
        yield collector


def _spans(body: bytes) -> list[Posted]:
    posted = ExportTraceServiceRequest()
    posted.ParseFromString(body)
    return [
        Posted(
            span.name,
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            span.kind,
            span.start_time_unix_nano,
            span.end_time_unix_nano,
            span.status.code == span.status.STATUS_CODE_ERROR,
            _values(span.attributes),
            [link.trace_id.hex() for link in span.links],
            _values(resource.resource.attributes)["service.name"],
        )
        for resource in posted.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _records(body: bytes) -> list[Logged]:
    posted = ExportLogsServiceRequest()
    posted.ParseFromString(body)
    return [
        Logged(
            record.event_name,
            record.time_unix_nano,
            record.observed_time_unix_nano,
            (record.severity_number, record.severity_text),
            record.body.string_value,
            record.trace_id.hex(),
            _values(record.attributes),
            _values(resource.resource.attributes),
            scope.scope.name,
        )
        for resource in posted.resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]


def _values(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
