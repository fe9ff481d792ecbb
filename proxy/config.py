"""What the proxy is told by the application it is mounted in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from wire.guard import NOWHERE, Network, OwnEndpoints

type ClientAddress = Callable[[str, Sequence[str]], str]


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of one runtime.

    `client_address(peer, values of X-Forwarded-For)` says who really calls. `listener` is the origin
    at which this process reaches itself, and `listener_secret` opens the Quickstart server there. `workers` is how many
    processes share the bound of each server, `token_calls` how many calls a token may have under way in this one.
    `record_lanes` connections write the log; in front of each kind of statement `room` requests may wait.
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
    listener: str = ""
    listener_secret: str = field(default="", repr=False)
    body_limit: int = 1 << 20
    answer_limit: int = 10 << 20
    list_seconds: float = 10.0
    ping_seconds: float = 15.0
    stranger_seconds: float = 60.0
    limit_seconds: float = 60.0
    queue_seconds: float = 10.0
    workers: int = 1
    token_calls: int = 64
    record_lanes: int = 2
    room: int = 2000
