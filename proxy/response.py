"""What goes back to the client: headers, one JSON answer, or an event stream that ends in it."""

import asyncio
import re
from typing import NamedTuple
from urllib.parse import quote

from proxy import metrics
from proxy.request import McpRequest
from proxy.request_headers import Pair
from wire import jsonrpc, sse

METHODS = b"GET, POST, DELETE, OPTIONS"
REQUEST_HEADERS = (
    "Authorization, Content-Type, Accept, Mcp-Session-Id, MCP-Protocol-Version, Mcp-Method, Mcp-Name, Last-Event-ID, "
    "traceparent, tracestate, baggage"
)
EXPOSED = b"Mcp-Session-Id, MCP-Protocol-Version, WWW-Authenticate, X-Request-Id, Retry-After"

JSON = (b"content-type", b"application/json")
NO_STORE = (b"cache-control", b"no-store")
RETRY = (b"retry-after", b"1")
ALLOW_POST = (b"allow", b"POST")
STREAM = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
)

_mirrored = re.compile(r"mcp-param-[!#$%&'*+\-.^_`|~0-9a-z]{1,80}", re.IGNORECASE).fullmatch


class Response(NamedTuple):
    """An answer as it leaves, and how the log will call it."""

    status: int
    body: bytes = b""
    outcome: str = "ok"
    deny_reason: str = ""
    code: int | None = None
    headers: tuple[Pair, ...] = ()


def challenge(public_url: str, slug: str, *, presented: bool) -> Pair:
    """WWW-Authenticate (RFC 6750, RFC 9728 section 5.1)."""
    metadata = f"{public_url}/.well-known/oauth-protected-resource/mcp/{quote(slug, safe='')}"
    error = ', error="invalid_token"' if presented else ""
    return b"www-authenticate", f'Bearer resource_metadata="{metadata}"{error}'.encode()


def cross_origin(origin: str | None) -> tuple[Pair, ...]:
    """What a browser wants to see on an answer to another origin's page; no credentials are ever allowed."""
    if origin is None:
        return ()
    return (
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", EXPOSED),
        (b"vary", b"Origin"),
    )


def preflight(request: McpRequest) -> tuple[Pair, ...]:
    """The headers of the answer to OPTIONS."""
    asked = (name.strip() for name in request.header(b"access-control-request-headers").split(","))
    names = ", ".join([REQUEST_HEADERS, *(name for name in asked if _mirrored(name))])
    return (
        (b"access-control-allow-methods", METHODS),
        (b"access-control-allow-headers", names.encode()),
        (b"access-control-max-age", b"600"),
    )


async def send(request: McpRequest, response: Response) -> None:
    """Send one complete answer."""
    headers = [
        (b"content-length", b"%d" % len(response.body)),
        NO_STORE,
        (b"x-request-id", request.uid.encode()),
        *response.headers,
    ]
    if response.body:
        headers.append(JSON)
    if request.origin is not None:
        headers += cross_origin(request.origin)
    await request.send({"type": "http.response.start", "status": response.status, "headers": headers})
    await request.send({"type": "http.response.body", "body": response.body})


class Stream:
    """The client's event stream, opened by the first thing that precedes the answer.

    A stream that stays silent gets a comment now and then, or proxies on the way would cut it.
    """

    __slots__ = ("_ended", "_every", "_lock", "_pinging", "_request", "opened")

    def __init__(self, request: McpRequest, every: float) -> None:
        self._request = request
        self._every = every
        self._ended = False
        self._lock = asyncio.Lock()
        self._pinging: asyncio.Task[None] | None = None
        self.opened = False

    def keep_alive(self) -> asyncio.TimerHandle:
        """Start to ping after a while of silence; cancel the handle when the answer is there."""
        return asyncio.get_running_loop().call_later(self._every, self._begin_pinging)

    async def note(self, message: jsonrpc.Object) -> None:
        """Pass a notification on."""
        await self._write(sse.event(jsonrpc.dumps(message)))

    async def end(self, body: bytes) -> None:
        """Send the answer as the last event."""
        self.hush()
        await self._write(sse.event(body), last=True)

    def hush(self) -> None:
        """Ping no more: the answer is there, or nobody listens."""
        if self._pinging is not None:
            self._pinging.cancel()

    async def _write(self, data: bytes, *, last: bool = False) -> None:
        async with self._lock:
            if self._ended:
                return
            self._ended = last
            if not self.opened:
                self.opened = True
                await self._open()
            await self._request.send({"type": "http.response.body", "body": data, "more_body": not last})

    async def _open(self) -> None:
        request = self._request
        metrics.open_now["streams"] += 1
        headers = [*STREAM, (b"x-request-id", request.uid.encode()), *cross_origin(request.origin)]
        await request.send({"type": "http.response.start", "status": 200, "headers": headers})

    def _begin_pinging(self) -> None:
        self._pinging = asyncio.create_task(self._ping())

    async def _ping(self) -> None:
        while True:
            await self._write(sse.PING)
            await asyncio.sleep(self._every)
