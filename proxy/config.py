"""Settings of the proxy, passed in by the application that mounts the proxy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from wire.forward_proxy import OutboundProxy
from wire.guard import NOWHERE, Network, OwnEndpoints
from wire.runner import Runner

type ClientAddress = Callable[[str, Sequence[str]], str]


@dataclass(frozen=True, slots=True)
class Traces:
    """Trace export (OTLP over HTTP): the endpoint, the share of calls, and whether callers may request traces."""

    endpoint: str
    headers: str = field(default="", repr=False)  # As in OTEL_EXPORTER_OTLP_HEADERS.
    ratio: float = 1.0
    trusts_callers: bool = False
    proxy: str = field(default="", repr=False)  # URL of the outbound proxy; empty for none.


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of one runtime.

    `client_address(peer, values of X-Forwarded-For)` returns the client's address. `listener` is the origin at which
    this process reaches itself, and `listener_secret` opens the built-in servers there. `workers` is the number of
    processes that share each server's concurrency limit, `token_calls` the largest number of concurrent calls of a
    token in this process. A client has `answer_seconds` to answer a server's request. The client's session expires
    after `session_hours` without use.

    Large answers in this process take at most `answers_limit` bytes. The answers for one person take at most an eighth
    of this limit, and answers that are being read from one server at most half. A single answer may exceed the limits.

    The log is written over `log_connections` database connections. At most `max_waiting` requests may wait for the
    access query, at most as many for the rate limits, and at most as many for the log.
    """

    conninfo: str
    token_keys: Sequence[bytes]
    encryption_keys: Sequence[bytes]
    public_url: str
    client_address: ClientAddress = lambda peer, _: peer
    hosts: frozenset[str] = frozenset()
    allowed_origins: Sequence[str] = ()
    private_upstreams: tuple[Network, ...] = ()
    own_endpoints: OwnEndpoints = NOWHERE
    outbound_proxy: OutboundProxy | None = None
    runner: Runner | None = None
    listener: str = ""
    listener_secret: str = field(default="", repr=False)
    body_limit: int = 4 << 20
    answer_limit: int = 10 << 20
    answers_limit: int = 128 << 20
    list_seconds: float = 10.0
    ping_seconds: float = 15.0
    unknown_token_seconds: float = 60.0
    limit_seconds: float = 60.0
    session_hours: float = 24.0
    queue_seconds: float = 10.0
    answer_seconds: float = 300.0
    workers: int = 1
    token_calls: int = 64
    log_connections: int = 2
    max_waiting: int = 2000
    traces: Traces | None = None  # None: calls are not traced, and OpenTelemetry is not imported.
