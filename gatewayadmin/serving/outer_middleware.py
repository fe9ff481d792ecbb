"""The outermost ASGI layer: request id, client address, Host check, body limit and request log."""

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gatewayadmin.config.environment import Network
from gatewayadmin.serving.client_address import client_address
from gatewayadmin.serving.log_format import request_id
from proxy.response import WRONG_HOST
from wire.hosts import of_header

logger = logging.getLogger(__name__)

LARGEST_BODY = 3 * 1024 * 1024
LARGEST_ANONYMOUS_BODY = 64 * 1024
# Smaller limits for unauthenticated OAuth requests, which are small; the first matching prefix counts.
SMALLER_ANONYMOUS_BODIES = (("/oauth/register", 16 * 1024), ("/oauth/", 8 * 1024))

type IsKnown = Callable[[Headers], Awaitable[bool]]


async def _everybody(_: Headers) -> bool:
    return True


def largest_anonymous_body(path: str) -> int:
    """Return the body limit at `path` in bytes for requests without session and token."""
    return next((most for start, most in SMALLER_ANONYMOUS_BODIES if path.startswith(start)), LARGEST_ANONYMOUS_BODY)


class OuterMiddleware:
    """Wraps the whole application.

    Sets `scope["request_id"]` (sent as X-Request-Id, unless the answer has one), `scope["client"]` to the actual
    client, `scope["scheme"]` to the public one, and `scope["peer"]` to the address of the connection, perhaps a proxy.
    A Host that is not ours gets 400, except at `unchecked` paths. A body above LARGEST_BODY gets 413, because Django
    would write it to disk first. So does one without session or token above LARGEST_ANONYMOUS_BODY (at some paths
    SMALLER_ANONYMOUS_BODIES). For larger bodies, `is_known` checks the credential before the body is read, and unknown
    ones get 401; Django would check only after reading all of it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Iterable[str],
        scheme: str,
        trusted: Sequence[Network],
        unchecked: Iterable[str],
        session_cookie: str = "",
        is_known: IsKnown = _everybody,
    ) -> None:
        self.app = app
        self.hosts = frozenset(hosts)
        self.scheme = scheme
        self.trusted = tuple(trusted)
        self.unchecked = frozenset(unchecked)
        self.session_cookie = f"{session_cookie}="
        self.is_known = is_known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_log = _RequestLog(scope, send)
        headers = Headers(scope=scope)
        peer = scope["client"][0] if scope.get("client") else ""
        scope["peer"] = peer
        scope["client"] = (client_address(peer, headers.getlist("x-forwarded-for"), self.trusted), 0)
        scope["scheme"] = self.scheme
        app = self.app if self._serves(scope["path"], headers.getlist("host")) else _wrong_host
        largest = largest_anonymous_body(scope["path"])
        body = _LimitedBody(receive, partial(self._may_send_more, headers), largest)
        announced = _announced(headers)
        if announced > LARGEST_BODY or (announced > largest and not self._names_somebody(headers)):
            app = body.refuse
        elif announced > largest and not await body.may_grow():
            app = _unknown_sender
        try:
            with suppress(ClientDisconnect):
                await app(scope, body.receive, request_log.send)
            if body.is_too_large and not request_log.has_begun:
                await body.refuse(scope, receive, request_log.send)
        finally:
            request_log.write()

    def _serves(self, path: str, hosts: Sequence[str]) -> bool:
        return path in self.unchecked or (len(hosts) == 1 and of_header(hosts[0]) in self.hosts)

    def _names_somebody(self, headers: Headers) -> bool:
        return "authorization" in headers or any(self.session_cookie in each for each in headers.getlist("cookie"))

    async def _may_send_more(self, headers: Headers) -> bool:
        return self._names_somebody(headers) and await self.is_known(headers)


class _LimitedBody:
    """Limits the request body. After `largest` bytes it reports a disconnect, so that readers drop their data.

    `may_send_more` is called once, for a body above the anonymous limit.
    """

    def __init__(self, receive: Receive, may_send_more: Callable[[], Awaitable[bool]], largest: int) -> None:
        self._receive = receive
        self._may_send_more: Callable[[], Awaitable[bool]] | None = may_send_more
        self._size = 0
        self.largest = largest

    @property
    def is_too_large(self) -> bool:
        return self._size > self.largest

    async def may_grow(self) -> bool:
        """Return whether the body may exceed the anonymous limit."""
        if self._may_send_more is not None:
            ask, self._may_send_more = self._may_send_more, None
            if await ask():
                self.largest = LARGEST_BODY
        return self.largest == LARGEST_BODY

    async def refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI application that answers 413."""
        text = f"The request is larger than {self.largest // 1024} KiB.\n"
        answer = _to_directory(scope, 413, text) or PlainTextResponse(text, 413)
        answer.headers["Connection"] = "close"
        await answer(scope, receive, send)

    async def receive(self) -> Message:
        message = await self._receive()
        self._size += len(message.get("body", b""))
        if self.is_too_large:
            await self.may_grow()
        return {"type": "http.disconnect"} if self.is_too_large else message


async def _unknown_sender(scope: Scope, receive: Receive, send: Send) -> None:
    text = "Unknown, expired or revoked: the token or session this comes with. Nobody else may send that much."
    answer = _to_directory(scope, 401, text) or JSONResponse({"detail": text, "code": "unauthorized"}, 401)
    answer.headers.update({"WWW-Authenticate": "Bearer", "Connection": "close"})
    await answer(scope, receive, send)


def busy(scope: Scope, seconds: int) -> Response:
    """Return a 429 response for a sender with too many running requests."""
    text = "Too many of your requests are running. Try again in a few seconds."
    answer = _to_directory(scope, 429, text)
    if answer is None and scope["path"].startswith("/api/"):
        answer = JSONResponse({"detail": text, "code": "throttled"}, 429)
    answer = answer or PlainTextResponse(f"{text}\n", 429)
    answer.headers.update({"Retry-After": str(seconds), "Cache-Control": "no-store"})
    return answer


def _to_directory(scope: Scope, status: int, text: str) -> Response | None:
    """Return the error as of RFC 7644 section 3.12 for SCIM requests; None for others."""
    if not scope["path"].startswith("/scim/"):
        return None
    error = {"schemas": ["urn:ietf:params:scim:api:messages:2.0:Error"], "status": str(status), "detail": text.strip()}
    return JSONResponse(error, status, media_type="application/scim+json")


class _RequestLog:
    """The id and the status of one request, and one log line at its end, without the query."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._started = time.perf_counter()
        self._status = 0
        self._id = uuid4()
        scope["request_id"] = self._id
        request_id.set(str(self._id))

    @property
    def has_begun(self) -> bool:
        """True once the response has started."""
        return self._status != 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            # A call already has an id, that of its row in the log.
            request_id.set(MutableHeaders(scope=message).setdefault("x-request-id", str(self._id)))
        await self._send(message)

    def write(self) -> None:
        """Log the request, if GATEWAY_LOG_REQUESTS is set."""
        if not logger.isEnabledFor(logging.INFO):
            return
        logger.info(
            "request",
            extra={
                "method": self._scope["method"],
                "path": self._scope["path"],
                "status": self._status,  # 0: the client disconnected before the answer.
                "ms": round((time.perf_counter() - self._started) * 1000, 1),
                "client": self._scope["client"][0],
            },
        )


async def _wrong_host(scope: Scope, receive: Receive, send: Send) -> None:
    answer = _to_directory(scope, 400, WRONG_HOST) or PlainTextResponse(WRONG_HOST, 400)
    await answer(scope, receive, send)


def _announced(headers: Headers) -> int:
    length = headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdecimal() else 0
