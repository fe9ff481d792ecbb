"""Traces: spans of calls, encoded for OTLP and sent in batches."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.util.re import parse_env_headers
from requests.adapters import HTTPAdapter

from wire import otlp, trace_context, versions
from wire.errors import UpstreamError
from wire.mcp import METHODS
from wire.otlp import field, key_value
from wire.trace_context import Trace

if TYPE_CHECKING:
    from proxy.access.decision import AccessRow, AssignedServer
    from proxy.access.features import Named
    from proxy.config import Traces
    from proxy.request import McpRequest
    from proxy.response import Response
    from wire.mcp import RpcResponse

# Encode spans for OTLP: messages of opentelemetry.proto.trace.v1 (1.10), in the binary form of Protocol Buffers.
#
# Written by hand, since a span has few kinds of fields, and mostly the same attributes as the previous span.
# OpenTelemetry's SDK takes eight times the processor time, half of it in a thread that blocks calls.

INTERNAL, SERVER, CLIENT = 1, 2, 3  # Span.SpanKind.
ERROR = b"\x7a\x02\x18\x02"  # Span.status with Status.code = STATUS_CODE_ERROR.

type SpanAttributes = Mapping[str, str | int]


class Context(NamedTuple):
    """The trace id (16 bytes) and the span id (8 bytes) of a span."""

    trace_id: bytes
    span_id: bytes


def span(  # noqa: PLR0913  (a span has these fields)
    context: Context,
    parent: bytes,
    name: str,
    kind: int,
    began: int,
    ended: int,
    attributes: SpanAttributes,
    *,
    is_error: bool = False,
    links: Sequence[Context] = (),
) -> bytes:
    """Return a `Span`, encoded as a field of `ScopeSpans`.

    `began` and `ended` are nanoseconds since 1970. `parent` is a span id; it is empty if the span has no parent.
    """
    message = b"".join(
        (
            b"\x0a\x10%b\x12\x08%b" % context,
            b"\x22\x08" + parent if parent else b"",
            field(0x2A, name.encode(errors="replace")),
            b"\x30%c\x39%b\x41%b" % (kind, began.to_bytes(8, "little"), ended.to_bytes(8, "little")),
            *[_attribute(key, value) for key, value in attributes.items()],
            *[field(0x6A, b"\x0a\x10%b\x12\x08%b" % link) for link in links],
            ERROR if is_error else b"",
        )
    )
    return field(0x12, message)


@lru_cache(4096)
def _attribute(key: str, value: str | int) -> bytes:
    """Encode a field of `Span.attributes`."""
    return field(0x4A, key_value(key, value))


# Post spans to a collector from a separate thread, so that calls do not wait for the collector, and do not fail if the
# collector fails.
#
# Spans are encoded before they are queued: encoding a batch in the thread would block calls for a millisecond.

logger = logging.getLogger(__name__)

MOST_WAITING = 8192  # Spans; two thousand calls have about as many. Further spans are dropped and counted.
MOST_AT_ONCE = 512
EVERY_S = 2.0
SCOPE = "gateway_admin", versions.VERSION
LAST_S = 5.0  # Time limit for posting the last spans when the process ends.


class Sender:
    """Queues ended spans until they are posted; `counts` has the numbers of spans `sent`, `failed` and `dropped`."""

    def __init__(self, exporter: OTLPSpanExporter, resource: Resource) -> None:
        self._exporter = exporter
        self._client = exporter._client  # noqa: SLF001  (docs/decisions/0027)
        self._resource = {
            key: value if isinstance(value, int) else str(value) for key, value in resource.attributes.items()
        }
        self._waiting: deque[bytes] = deque()
        self._wake = threading.Event()
        self._ends = 0.0  # When to stop; 0 while running.
        self.counts: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def put(self, span: bytes) -> None:
        """Queue an encoded span, or drop it if too many are queued. Returns at once."""
        if len(self._waiting) >= MOST_WAITING:
            self.counts["dropped"] += 1
            return
        self._waiting.append(span)
        if len(self._waiting) == MOST_AT_ONCE:
            self._wake.set()

    def stop(self) -> None:
        """Post the queued spans for at most LAST_S seconds, and drop the rest."""
        self._ends = time.monotonic() + LAST_S
        self._wake.set()
        self._thread.join(LAST_S)
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # Ends running retries.
        self.counts["dropped"] += len(self._waiting)

    def _run(self) -> None:
        while True:
            self._wake.wait(EVERY_S)
            self._wake.clear()
            ends = self._ends
            while self._waiting and (not self._ends or time.monotonic() < self._ends):
                self._post([self._waiting.popleft() for _ in range(min(MOST_AT_ONCE, len(self._waiting)))])
            if ends:
                return

    def _post(self, spans: Sequence[bytes]) -> None:
        try:
            is_sent = self._client.export(otlp.request(self._resource, SCOPE, spans)).success
        except Exception:
            logger.exception("spans could not be posted")
            is_sent = False
        self.counts["sent" if is_sent else "failed"] += len(spans)


# The spans of a call (docs/decisions/0036-spans-by-hand.md). Only processes with tracing enabled import this module.
#
# Names and attributes are those of OpenTelemetry's semantic conventions for MCP; ours begin with `gateway_admin.`. No
# span has arguments, results, tokens, session ids, URIs of resources, or the caller's name or address.

type Attributes = dict[str, str | int]

SAMPLED = 1  # A flag of traceparent.
FINE = frozenset({"ok", "not_offered", "cancelled"})
NAMED_BY = {"tool": "gen_ai.tool.name", "prompt": "gen_ai.prompt.name"}
# Methods used in span names. Clients can send any method, but span names should be few.
KNOWN = {
    *METHODS,
    *("notifications/initialized", "notifications/cancelled", "notifications/progress", "response"),
    *("notifications/roots/list_changed", "GET", "DELETE"),
}
OTHER = "other"


class Tracer:
    """Starts spans for the sampled calls, and posts the spans. Must be created after the process has forked.

    The sampled calls are a random share of all calls. If callers are trusted and a call has a traceparent, the flag in
    the traceparent decides instead.
    """

    def __init__(self, config: Traces) -> None:
        self._ratio = config.ratio
        self._trusts_callers = config.trusts_callers
        exporter = OTLPSpanExporter(
            endpoint=f"{config.endpoint.removesuffix('/')}/v1/traces",
            headers=parse_env_headers(config.headers, liberal=True),
            session=_session(config.proxy) if config.proxy else None,
        )
        self._sender = Sender(exporter, _resource())
        self.counts = self._sender.counts
        self.put = self._sender.put

    def stop(self) -> None:
        """Post the queued spans for at most LAST_S seconds, and drop the rest."""
        self._sender.stop()

    def begin(self, request: McpRequest, grant: AccessRow, told: Trace, refusal: Response | None) -> CallSpan | None:
        """Return the span of a call on whose access was just decided; None if the call is not sampled.

        `told` is the trace context that the caller sent.
        """
        parent = told.get(trace_context.PARENT, "")
        # Anyone could have every call traced if the flag of untrusted callers counted.
        if self._trusts_callers and parent:
            is_sampled = bool(int(parent[53:55], 16) & SAMPLED)
        else:
            is_sampled = random.random() < self._ratio  # noqa: S311  no secret
        return CallSpan(self, request, grant, told, refusal) if is_sampled else None


class CallSpan:
    """The span of one call and its child spans. `trace` is the trace context for servers."""

    __slots__ = (
        *("_attributes", "_beside", "_context", "_is_over", "_outcome", "_parent", "_request"),
        *("_links", "_offset", "put", "trace"),
    )

    def __init__(
        self, tracer: Tracer, request: McpRequest, grant: AccessRow, told: Trace, refusal: Response | None
    ) -> None:
        self.put = tracer.put
        self._request = request
        self._outcome = "unavailable"
        self._is_over = False
        self._offset = request.arrived - request.began  # Time of day minus perf_counter.
        row, parent = request.row, told.get(trace_context.PARENT, "")
        caller = _context_of(parent) if parent else None
        self._parent = b"" if caller is None else caller.span_id
        self._context = Context(_random(16) if caller is None else caller.trace_id, _random(8))
        self._links = _links(request, parent) if parent else ()
        row.trace_id = self._context.trace_id.hex()
        self._attributes = _of_method(row.method, row.feature_type, row.feature_name) | {
            "network.transport": "tcp",
            "network.protocol.name": "http",
            "gateway_admin.call.id": row.uid,
            "gateway_admin.gateway.id": grant.gateway_id,
            "gateway_admin.gateway.name": grant.gateway_name,
            "gateway_admin.host.id": grant.host_id,
        }
        self._beside = {name: value for name, value in told.items() if name != trace_context.PARENT}
        self.trace = self.sent_with(self._context)
        why: Attributes = {} if refusal is None else {"gateway_admin.deny_reason": refusal.deny_reason}
        self._note("decide", self.at(request.asked_at), self.at(time.perf_counter()), why)

    def hop(self, assigned: AssignedServer, method: str, feature: Named | None = None, name: str = "") -> Hop:
        """Start the span of a request to this server; `name` is the server's own name of the feature."""
        parts = urlsplit(assigned.url)
        kind = "" if feature is None else feature.kind
        attributes = _of_method(method, kind, name) | {
            "gateway_admin.server.id": assigned.server_id,
            "gateway_admin.server.name": assigned.server_name,
            "server.address": parts.hostname or "",
            "server.port": parts.port or (443 if parts.scheme == "https" else 80),
        }
        title = f"{method} {name}" if kind in NAMED_BY else method
        return Hop(self, self.inner(), title, attributes)

    def inner(self) -> Context:
        """Return ids for a new child span."""
        return Context(self._context.trace_id, _random(8))

    def recorded(self, began: float, seconds: float, outcome: str) -> None:
        """Add a child span for the time in which the call's row was written to the log.

        The writing began `began` seconds after the request's arrival, and took `seconds` seconds. `outcome` is the
        outcome of the call.
        """
        self._outcome = outcome
        at = self.at(self._request.began + began)
        self._note("record", at, at + int(seconds * 1e9), {}, is_error=outcome == "unavailable")

    def end(self) -> None:
        """End the span and queue it for posting. Does nothing if the span has ended."""
        if self._is_over:
            return
        self._is_over = True
        row, outcome = self._request.row, self._outcome
        status = 503 if outcome == "unavailable" else row.http_status
        attributes = self._attributes | {"gateway_admin.outcome": outcome, "http.response.status_code": status}
        said = {
            "gateway_admin.server.id": row.server_id,
            "gateway_admin.server.name": row.server_name,
            "gateway_admin.deny_reason": row.deny_reason,
            "mcp.protocol.version": row.protocol_version[:20],
            "rpc.response.status_code": "" if row.rpc_error_code is None else str(row.rpc_error_code),
        }
        attributes |= {name: value for name, value in said.items() if value}
        name = _method(row.method)
        if row.server_id and row.feature_type in NAMED_BY:  # Names of known features only: clients can send any text.
            name = f"{name} {row.feature_name}"
        is_error = outcome not in FINE
        if is_error:
            code = said["rpc.response.status_code"] if outcome in ("rpc_error", "bad_request") else ""
            attributes["error.type"] = row.deny_reason or code or outcome
        began, ended = self.at(self._request.began), self.at(time.perf_counter())
        parent, links = self._parent, self._links
        self.put(span(self._context, parent, name, SERVER, began, ended, attributes, is_error=is_error, links=links))

    def note_hop(self, hop: Hop, *, is_error: bool) -> None:
        """End the span of a request to a server, and queue it for posting."""
        ended, parent = self.at(time.perf_counter()), self._context.span_id
        attributes = hop.attributes
        self.put(span(hop.context, parent, hop.name, CLIENT, hop.began, ended, attributes, is_error=is_error))

    def _note(self, name: str, began: int, ended: int, attributes: Attributes, *, is_error: bool = False) -> None:
        context, parent = self.inner(), self._context.span_id
        self.put(span(context, parent, name, INTERNAL, began, ended, attributes, is_error=is_error))

    def at(self, moment: float) -> int:
        """Convert a `perf_counter` time to nanoseconds since 1970."""
        return int((self._offset + moment) * 1e9)

    def sent_with(self, own: Context) -> Trace:
        """Return the trace context to send to a server, with the span `own` as parent."""
        return {trace_context.PARENT: f"00-{own.trace_id.hex()}-{own.span_id.hex()}-01", **self._beside}


class Hop:
    """The span of a request to a server; `trace` is the trace context sent with it."""

    __slots__ = ("_call", "attributes", "began", "context", "name", "trace")

    def __init__(self, call: CallSpan, context: Context, name: str, attributes: Attributes) -> None:
        self._call = call
        self.context = context
        self.name = name
        self.attributes = attributes
        self.began = call.at(time.perf_counter())
        self.trace = call.sent_with(context)

    def end(self, *, answer: RpcResponse | None = None, error: BaseException | None = None) -> None:
        """End the span with the server's answer or an error."""
        wrong = "" if error is None else _reason_of(error)
        if answer is not None and answer.error is not None:
            wrong = self.attributes["rpc.response.status_code"] = str(answer.error_code)
        elif answer is not None and answer.document["result"].get("isError") is True:
            wrong = "tool_error"
        if wrong:
            self.attributes["error.type"] = wrong
        self._call.note_hop(self, is_error=bool(wrong))


def _reason_of(error: BaseException) -> str:
    """Return the reason of an error, as the log records it."""
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    return error.reason if isinstance(error, UpstreamError) else type(error).__name__


def _session(proxy: str) -> requests.Session:
    """Return an HTTP session that posts through this outbound proxy, and ignores proxy settings of the environment."""
    session = requests.Session()
    session.trust_env = False
    session.proxies = {"https": proxy}
    session.mount("https://", _ThroughProxy())
    return session


class _ThroughProxy(HTTPAdapter):
    """Sends requests through the outbound proxy.

    Replaces the messages of ProxyErrors, because they may contain the proxy's password.
    """

    def send(self, *request: Any, **how: Any) -> requests.Response:
        try:
            return super().send(*request, **how)
        except requests.exceptions.ProxyError as error:
            status = re.search(r"Tunnel connection failed: (\d{3})", str(error))
            said = f"answered {status[1]}" if status else "cannot be reached, or is not a proxy"
            raise requests.exceptions.ConnectionError(f"the outbound proxy {said}") from None


def _resource() -> Resource:
    """Return the resource of the spans: the attributes from OTEL_ variables, and the product's version.

    If no variable sets the service name, it is `gateway-admin`.
    """
    told = Resource.create()
    own: dict[str, str] = {"service.version": versions.VERSION}
    if str(told.attributes.get("service.name", "unknown_service")).startswith("unknown_service"):
        own["service.name"] = "gateway-admin"
    return told.merge(Resource(own))


def _method(method: str) -> str:
    return method if method in KNOWN else OTHER


def _of_method(method: str, kind: str, name: str) -> Attributes:
    attributes: Attributes = {"mcp.method.name": _method(method)}
    if kind in NAMED_BY and name:
        attributes[NAMED_BY[kind]] = name[:300]
    if method == "tools/call":
        attributes["gen_ai.operation.name"] = "execute_tool"
    return attributes


def _context_of(parent: str) -> Context:
    """Return the span context of a traceparent."""
    return Context(bytes.fromhex(parent[3:35]), bytes.fromhex(parent[36:52]))


def _links(request: McpRequest, parent: str) -> tuple[Context, ...]:
    """Return a link to the span in the HTTP headers; () if they have no traceparent, or `parent` as traceparent."""
    over_http = trace_context.forwarded_headers(request.headers).get(trace_context.PARENT, parent)
    return () if over_http == parent else (_context_of(over_http),)


def _random(size: int) -> bytes:
    return random.getrandbits(8 * size).to_bytes(size)
