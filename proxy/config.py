"""Settings of the proxy, passed in by the application that mounts the proxy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from wire.forward_proxy import OutboundProxy
from wire.guard import NOWHERE, Network, OwnEndpoints
from wire.runner import Runner

# Returns the client's address, from the address of the peer and the values of X-Forwarded-For.
type ClientAddress = Callable[[str, Sequence[str]], str]


@dataclass(frozen=True, slots=True)
class Traces:
    """Settings for exporting traces by OTLP over HTTP.

    They include the endpoint, the share of calls that are traced, and whether callers may request traces.
    """

    endpoint: str
    headers: str = field(default="", repr=False)  # As in OTEL_EXPORTER_OTLP_HEADERS.
    ratio: float = 1.0
    trusts_callers: bool = False
    proxy: str = field(default="", repr=False)  # URL of the outbound proxy; empty for none.


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of the proxy in one process."""

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
    listener: str = ""  # The origin at which this process reaches itself.
    listener_secret: str = field(default="", repr=False)  # Opens the built-in servers at `listener`.
    body_limit: int = 4 << 20
    answer_limit: int = 10 << 20
    # Bytes of all large answers in this process. The answers for one person take at most an eighth, and the answers
    # being read from one server at most half. A single answer may exceed these limits.
    answers_limit: int = 128 << 20
    list_seconds: float = 10.0
    ping_seconds: float = 15.0
    unknown_token_seconds: float = 60.0
    limit_seconds: float = 60.0
    session_hours: float = 24.0  # A client's session expires after this time without use.
    queue_seconds: float = 10.0
    answer_seconds: float = 300.0  # For a client to answer a server's request.
    workers: int = 1  # Processes that share each server's concurrency limit.
    token_calls: int = 64  # Most concurrent calls of a token in this process.
    log_connections: int = 2  # Database connections over which the log is written.
    max_waiting: int = 2000  # Most requests waiting for each of these: access query, rate limits, log.
    traces: Traces | None = None  # None: calls are not traced, and OpenTelemetry is not imported.
