"""Responses to clients: one JSON response, or an event stream with the response as its last event."""

import asyncio
import re
from typing import NamedTuple
from urllib.parse import quote

from proxy import metrics
from proxy.request import MCP_TOKEN_KINDS, McpRequest, Pair
from proxy.store.events import StreamEvents, StreamHistory
from wire import jsonrpc, sse, token_text, versions
from wire.background import spawn

CORS_METHODS = b"GET, POST, DELETE, OPTIONS"
CORS_REQUEST_HEADERS = (
    "Authorization, Content-Type, Accept, Mcp-Session-Id, MCP-Protocol-Version, Mcp-Method, Mcp-Name, Last-Event-ID, "
    "traceparent, tracestate, baggage"
)
CORS_EXPOSED_HEADERS = b"Mcp-Session-Id, MCP-Protocol-Version, WWW-Authenticate, X-Request-Id, Retry-After"

PIECE = 64 * 1024  # Bytes; larger bodies are sent in pieces of this size, and count against the memory budget.

CONTENT_TYPE_JSON = (b"content-type", b"application/json")
NO_STORE = (b"cache-control", b"no-store")
RETRY_AFTER = (b"retry-after", b"1")
CLOSE = (b"connection", b"close")
ALLOW = (b"allow", b"POST, DELETE")
STREAM_HEADERS = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
)

# The HTTP status for each JSON-RPC error code in MCP 2026-07-28; errors with other codes get 200.
MODERN_STATUS = {
    jsonrpc.PARSE_ERROR: 400,
    jsonrpc.INVALID_REQUEST: 400,
    jsonrpc.METHOD_NOT_FOUND: 404,
    jsonrpc.INVALID_PARAMS: 400,
    jsonrpc.HEADER_MISMATCH: 400,
    jsonrpc.MISSING_CAPABILITY: 400,
    jsonrpc.UNSUPPORTED_VERSION: 400,
}


_is_param_header = re.compile(r"mcp-param-[!#$%&'*+\-.^_`|~0-9a-z]{1,80}", re.IGNORECASE).fullmatch


class Response(NamedTuple):
    """A response to the client, and the outcome of the call for the log."""

    status: int
    body: bytes = b""
    outcome: str = "ok"
    deny_reason: str = ""
    code: int | None = None
    headers: tuple[Pair, ...] = ()


def error_response(request: McpRequest, code: int, text: str, data: jsonrpc.Object | None = None) -> Response:
    """Return a JSON-RPC error of the gateway, with the HTTP status of the client's era."""
    message = request.message
    body = jsonrpc.error(message.id if message else None, code, text, data)
    status = MODERN_STATUS.get(code, 200) if request.modern else 200
    return Response(status, body, "bad_request" if status != 200 else "rpc_error", code=code)


def bad_request(status: int, text: str, code: int = jsonrpc.INVALID_REQUEST) -> Response:
    """Return the refusal of a request that is not valid HTTP or JSON-RPC."""
    return Response(status, jsonrpc.error(None, code, text), "bad_request", code=code)


def challenge(public_url: str, slug: str, *, presented: bool, credential: str = "") -> Pair:
    """Return the WWW-Authenticate header (RFC 6750, RFC 9728 section 5.1).

    `credential` is the Authorization header; `presented` is True if it begins with Bearer.
    """
    metadata = f"{public_url}/.well-known/oauth-protected-resource/mcp/{quote(slug, safe='')}"
    # The advice depends only on the form of the header, so it reveals nothing about tokens.
    advice = _advice(credential) if presented else NO_SCHEME if credential.startswith(TOKEN_STARTS) else ""
    error = f', error="invalid_token", error_description="{advice}"' if advice else ""
    return b"www-authenticate", f'Bearer resource_metadata="{metadata}"{error}'.encode()


NO_SCHEME = "Write the word Bearer and a space before the token."
TOKEN_STARTS = tuple(f"{kind}_" for kind in token_text.PREFIXES)


def _advice(credential: str) -> str:
    """Return advice about a refused Authorization header.

    The text is plain ASCII without quotes, because it is sent as a header parameter (RFC 6750 section 3).
    """
    text = credential.partition(" ")[2].strip()
    if text.lower().startswith("bearer"):
        return "The header has the word Bearer twice. Write it once, then the token."
    if text[:1] in {'"', "'", "<"}:
        return "The token is in quotes or brackets. Remove them."
    if text.startswith("$"):
        return "This is the name of a variable, not its value. A shell does not expand it in single quotes."
    if text.startswith(token_text.PERSONAL):
        return "This is an API key for the REST API. Use an API access token: Settings, API Tokens."
    is_of_an_app = text.startswith(token_text.OAUTH_ACCESS)
    if not is_of_an_app and not token_text.well_formed(text, MCP_TOKEN_KINDS):
        return "This is not a complete token of this gateway. Copy it again, without spaces, or create another."
    what = "Sign in again in the app" if is_of_an_app else "Create a new one: Settings, API Tokens"
    return f"The gateway does not accept this token. It may be unknown, expired or revoked. {what}."


# Response bodies: for browsers that open the URL of a gateway, for wrong paths, and for wrong host names.
FOR_BROWSERS = (
    "This is the address of an MCP gateway. It is for apps and agents, not for browsers.\n\n"
    "Enter it in your MCP client. How to Connect shows how: {public_url}/connect/help/\n"
)
NO_GATEWAY_URL = jsonrpc.error(None, jsonrpc.INVALID_REQUEST, jsonrpc.NO_GATEWAY_URL)
WRONG_HOST = "Gateway Admin does not answer for that host name. Set GATEWAY_PUBLIC_URL.\n"
CONTENT_TYPE_TEXT = (b"content-type", b"text/plain; charset=utf-8")


def for_browser(public_url: str, *headers: Pair) -> "Response":
    """Return a 401 with a plain text for people who open the URL of a gateway in a browser."""
    body = FOR_BROWSERS.format(public_url=public_url).encode()
    return Response(401, body, "unauthorized", headers=(CONTENT_TYPE_TEXT, *headers))


def cors_headers(origin: str | None) -> tuple[Pair, ...]:
    """Return the CORS headers for an allowed origin; empty without an origin. Cookies are never allowed."""
    if origin is None:
        return ()
    return (
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", CORS_EXPOSED_HEADERS),
        (b"vary", b"Origin"),
    )


def preflight_headers(request: McpRequest) -> tuple[Pair, ...]:
    """Return the headers of the response to OPTIONS."""
    asked = (name.strip() for name in request.header(b"access-control-request-headers").split(","))
    names = ", ".join([CORS_REQUEST_HEADERS, *(name for name in asked if _is_param_header(name))])
    return (
        (b"access-control-allow-methods", CORS_METHODS),
        (b"access-control-allow-headers", names.encode()),
        (b"access-control-max-age", b"600"),
    )


async def send(request: McpRequest, response: Response) -> None:
    """Send one complete response."""
    headers = [
        (b"content-length", b"%d" % len(response.body)),
        NO_STORE,
        (b"x-request-id", request.uid.encode()),
        *response.headers,
    ]
    if response.body and CONTENT_TYPE_TEXT not in response.headers:
        headers.append(CONTENT_TYPE_JSON)
    if request.origin is not None:
        headers += cors_headers(request.origin)
    await request.send({"type": "http.response.start", "status": response.status, "headers": headers})
    body = response.body if len(response.body) <= PIECE else await _send_pieces(request, response.body)
    await request.send({"type": "http.response.body", "body": body})


async def _send_pieces(request: McpRequest, body: bytes) -> bytes:
    """Send a body in pieces. Send each piece only after the client has read the previous piece.

    Return an empty text, which the caller sends after the pieces.
    """
    for start in range(0, len(body), PIECE):
        piece = body[start : start + PIECE]
        await request.send({"type": "http.response.body", "body": piece, "more_body": True})
    return b""


def is_primed(version: str) -> bool:
    """Return whether clients of this version understand an initial event that has an id but no data."""
    return version == versions.NEWEST_SESSION


class Stream:
    """The client's event stream, opened when the first event or ping is sent on it.

    In a session, events have ids. If the client disconnects, `events` stores the recent events and all later events.
    """

    __slots__ = (
        "_ended",
        "_events",
        "_headers",
        "_history",
        "_lock",
        "_ping_seconds",
        "_ping_task",
        "_request",
        "_watcher",
        "opened",
    )

    def __init__(self, request: McpRequest, ping_seconds: float, events: StreamEvents) -> None:
        self._request = request
        self._ping_seconds = ping_seconds
        self._events = events
        self._history: StreamHistory | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._ended = False
        self._headers: tuple[Pair, ...] = ()
        self._lock = asyncio.Lock()
        self._ping_task: asyncio.Task[None] | None = None
        self.opened = False

    @property
    def is_over(self) -> bool:
        """True if the response was sent or is being sent. Nothing else may then be sent on the stream."""
        return self._ended

    @property
    def client_left(self) -> bool:
        """True if the client has disconnected from this stream; always False without a session."""
        return self._history is not None and self._history.away

    async def begin(self) -> None:
        """Open the stream now, because the answer may take long."""
        await self._write(b"", ping=True)

    async def notify(self, message: jsonrpc.Object) -> None:
        """Send a message before the response: a notification, or a request of a server."""
        await self._write(jsonrpc.dumps(message))

    async def finish(self, body: bytes, headers: tuple[Pair, ...] = ()) -> None:
        """Send the response as the last event; an empty `body` just ends the stream.

        `headers` are sent only if the stream is not open yet.
        """
        self.stop_pings()
        self._headers = headers
        if self._watcher is not None:
            self._watcher.cancel()
        await self._write(body, last=True)

    def close(self) -> None:
        """Drop all further messages of the call. The response is sent as JSON, so this stream is not needed."""
        self._ended = True

    def forget(self) -> None:
        """Drop the stored events of this stream, so that it cannot be resumed."""
        if self._history is not None:
            self._history.drop()

    def stop_pings(self) -> None:
        """Stop the pings, because the response is ready or the client has left."""
        if self._ping_task is not None:
            self._ping_task.cancel()

    async def _write(self, message: bytes, *, last: bool = False, ping: bool = False) -> None:
        writing = self._write_whole(message, last=last, ping=ping)
        if len(message) > PIECE:  # A cancelled call must not leave half of an event before the response.
            await asyncio.shield(spawn("large event of a call", writing, eager=True))
        else:
            await writing

    async def _write_whole(self, message: bytes, *, last: bool, ping: bool) -> None:
        async with self._lock:
            if self._ended:
                return
            self._ended = last
            if not self.opened:
                self.opened = True
                await self._open()
            data = sse.PING if ping else self._event(message, last)
            if self._history is not None and self._history.away:  # The client may resume on another connection.
                data = b""
            if last or data:
                if len(data) > PIECE:
                    data = await _send_pieces(self._request, data)
                await self._request.send({"type": "http.response.body", "body": data, "more_body": not last})

    def _event(self, message: bytes, last: bool) -> bytes:
        history = self._history
        if history is None:
            return sse.event(message) if message else b""
        return history.end(message) if last else history.add(message)

    async def _open(self) -> None:
        request = self._request
        metrics.open_counts["streams"] += 1
        own = (b"x-request-id", request.uid.encode())
        headers = [*STREAM_HEADERS, own, *cors_headers(request.origin), *self._headers]
        await request.send({"type": "http.response.start", "status": 200, "headers": headers})
        if request.modern or request.grant is None or request.grant.session is None:
            return
        session = request.grant.session
        request_id = request.message.id if request.message is not None else None
        self._history = history = self._events.begin_call(session.id, request_id)
        self._watcher = spawn("client of a call", self._watch(history))
        if is_primed(session.version):
            await request.send({"type": "http.response.body", "body": history.beginning(), "more_body": True})

    async def _watch(self, history: StreamHistory) -> None:
        await self._request.disconnected()
        history.leave()
        self.stop_pings()

    def start_pings(self) -> None:
        """Start pings, because the call has taken `ping_seconds`."""
        self._ping_task = spawn("pings of a call", self._ping())

    async def _ping(self) -> None:
        while True:  # Proxies close idle connections.
            await self._write(b"", ping=True)
            await asyncio.sleep(self._ping_seconds)
