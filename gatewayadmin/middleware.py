"""ASGI middleware, which handles every request, and Django middleware."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from importlib import import_module
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import cast
from urllib.parse import parse_qsl
from uuid import uuid4

from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.core.handlers.asgi import ASGIRequest
from django.db import Error as DatabaseError
from django.http import HttpRequest, HttpResponse, parse_cookie
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from accounts.models import User
from auditlog.actions import Action
from auditlog.models import Event, EventContext, Via, use_context
from gatewayadmin.config.environment import Network
from gatewayadmin.serving.log_format import request_id
from proxy.response import WRONG_HOST
from scim.models import ProvisioningKey
from tokens import api_keys, authentication
from ui import databases
from wire import token_text
from wire.background import Background
from wire.fair_queue import FairQueue, QueueFull
from wire.hosts import address_group, of_header

logger = logging.getLogger(__name__)

# The client's address behind trusted proxies

type Address = IPv4Address | IPv6Address


def client_address(peer: str, forwarded: Sequence[str], trusted: Sequence[Network]) -> str:
    """Return the right-most hop that is not a trusted proxy. IPv4-mapped addresses are returned as IPv4.

    `peer` is the address of the connection. `forwarded` are the values of all X-Forwarded-For headers in order. They
    are used only if the peer is a trusted proxy.
    """
    address = _parsed_address(peer)
    if address is None:
        return peer
    if not forwarded:
        return str(address)
    hops = [hop for value in forwarded for hop in value.split(",")]
    # Read from the right: everything left of the first untrusted hop may be forged.
    while hops and any(address in network for network in trusted):
        hop = _parsed_address(hops.pop())
        if hop is None:
            break
        address = hop
    return str(address)


# Headers that proxies add about the client, besides X-Forwarded-*.
_FORWARDING = frozenset(
    {
        "cf-connecting-ip",
        "cf-ray",
        "client-ip",
        "fastly-client-ip",
        "forwarded",
        "true-client-ip",
        "via",
        "x-azure-clientip",
        "x-client-ip",
        "x-cluster-client-ip",
        "x-envoy-external-address",
        "x-original-forwarded-for",
        "x-original-host",
        "x-real-ip",
    }
)


def is_local(peer: str, headers: Iterable[str], trusted: Sequence[Network]) -> bool:
    """Return whether the request is from a program on this machine, over loopback and without a proxy.

    `peer` is the address of the connection, `headers` the lower-case header names.
    """
    address = _parsed_address(peer)
    # A proxy on this machine is `trusted`, or sends forwarding headers.
    if address is None or not address.is_loopback or any(address in network for network in trusted):
        return False
    return not any(name in _FORWARDING or name.startswith("x-forwarded") for name in headers)


def _parsed_address(hop: str) -> Address | None:
    try:
        # Without the zone of a link-local IPv6 address, which PostgreSQL does not store.
        address = ip_address(_without_port(hop.strip()).partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _without_port(hop: str) -> str:
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


# Request id, client address, Host check, body limit and request log

LARGEST_BODY = 3 * 1024 * 1024
LARGEST_ANONYMOUS_BODY = 64 * 1024
# Other limits by path; the first matching prefix counts. Unauthenticated OAuth requests are small. SAML responses may
# have 256 KiB, for example with hundreds of groups, and are longer in a form.
OTHER_ANONYMOUS_BODIES = (
    ("/oauth/register", 16 * 1024),
    ("/oauth/", 8 * 1024),
    ("/accounts/organisation/saml/acs/", 320 * 1024),
)

type IsKnown = Callable[[Headers, str], Awaitable[bool]]


async def _everybody(_headers: Headers, _sender: str) -> bool:
    return True


def largest_anonymous_body(path: str) -> int:
    """Return the largest body, in bytes, that a request to `path` may have without a session or token."""
    return next((most for start, most in OTHER_ANONYMOUS_BODIES if path.startswith(start)), LARGEST_ANONYMOUS_BODY)


class OuterMiddleware:
    """Wraps the whole application, and limits request bodies before Django reads them completely.

    Sets `request_id`, `client` (the actual client), `peer` (the connection's address, perhaps a proxy's) and `scheme`
    (of the public URL) in the scope.

    Answers the request itself in these cases:
    - 400: the Host is not ours, except at `unchecked` paths.
    - 413: the body is above LARGEST_BODY.
    - 413: the body is above `largest_anonymous_body`, and the request has no session or token.
    - 401: the body is above `largest_anonymous_body`, and `is_known` rejects the session or token. If the request has
      no Content-Length, the answer is 413 instead.
    - 429: `is_known` raises SenderBusy.
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
        body = _LimitedBody(receive, partial(self._may_send_more, headers, scope["client"][0]), largest)
        announced = _announced(headers)
        if announced > largest and not self._names_somebody(headers):
            app = body.refuse
        elif announced > LARGEST_BODY:
            body.largest, app = LARGEST_BODY, body.refuse
        elif announced > largest and not await body.may_grow():
            app = body.refuse if body.is_busy else _unknown_sender
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

    async def _may_send_more(self, headers: Headers, address: str) -> bool:
        return self._names_somebody(headers) and await self.is_known(headers, address_group(address) or "")


class _LimitedBody:
    """Limits the request body. Above the limit, `receive` reports a disconnect, so that the body is discarded.

    The limit is `largest`, or LARGEST_BODY if `may_send_more` returns True.
    """

    def __init__(self, receive: Receive, may_send_more: Callable[[], Awaitable[bool]], largest: int) -> None:
        self._receive = receive
        self._may_send_more: Callable[[], Awaitable[bool]] | None = may_send_more
        self._size = 0
        self.largest = largest
        self.is_busy = False

    @property
    def is_too_large(self) -> bool:
        return self._size > self.largest

    async def may_grow(self) -> bool:
        """Return whether the body may exceed the anonymous limit.

        If too many checks of credentials wait, the credential is not checked, and `is_busy` is set.
        """
        if self._may_send_more is not None:
            ask, self._may_send_more = self._may_send_more, None
            try:
                if await ask():
                    self.largest = LARGEST_BODY
            except SenderBusy:
                self.is_busy = True
        return self.largest == LARGEST_BODY

    async def refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI application that answers 413, or 429 if `is_busy`."""
        if self.is_busy:
            answer = busy(scope, RETRY_S)
        else:
            answer = _refusal(scope, 413, "too_large", f"The request is larger than {self.largest // 1024} KiB.")
        answer.headers["Connection"] = "close"
        await answer(scope, receive, send)

    async def receive(self) -> Message:
        message = await self._receive()
        self._size += len(message.get("body", b""))
        if self.is_too_large:
            await self.may_grow()
        return {"type": "http.disconnect"} if self.is_too_large else message


async def _unknown_sender(scope: Scope, receive: Receive, send: Send) -> None:
    text = "The token or session is unknown, expired or revoked. Requests of this size need a valid token or session."
    answer = _to_directory(scope, 401, text) or JSONResponse({"detail": text, "code": "unauthorized"}, 401)
    answer.headers.update({"WWW-Authenticate": "Bearer", "Connection": "close"})
    await answer(scope, receive, send)


def busy(scope: Scope, seconds: int) -> Response:
    """Return a 429 response for a sender with too many running requests."""
    text = "Too many of your requests are running. Try again in a few seconds."
    answer = _refusal(scope, 429, "throttled", text)
    answer.headers.update({"Retry-After": str(seconds), "Cache-Control": "no-store"})
    return answer


def _refusal(scope: Scope, status: int, code: str, text: str) -> Response:
    """Return the error: as SCIM for SCIM requests, as REST for REST requests, as plain text for other requests."""
    if answer := _to_directory(scope, status, text):
        return answer
    if scope["path"].startswith("/api/"):
        return JSONResponse({"detail": text, "code": code}, status)
    return PlainTextResponse(f"{text}\n", status)


def _to_directory(scope: Scope, status: int, text: str) -> Response | None:
    """Return the error in the format of RFC 7644 section 3.12 for SCIM requests; None for other requests."""
    if not scope["path"].startswith("/scim/"):
        return None
    error = {"schemas": ["urn:ietf:params:scim:api:messages:2.0:Error"], "status": str(status), "detail": text.strip()}
    return JSONResponse(error, status, media_type="application/scim+json")


class _RequestLog:
    """Sets the id of one request, notes the status, and logs the request in one line without the query string."""

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
            # An MCP call already has an id: the id of its row in the log.
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


# Large requests wait in this queue until their credentials are looked up; then their bodies are read. A thread for each
# request would be expensive: it takes a database connection, and memory that the process keeps. Senders take turns, and
# each sender may have only a limited number of requests in the queue.
LOOKUPS_AT_ONCE = 2
LOOKUP = "look-up"
_lookups = FairQueue(LOOKUPS_AT_ONCE)
_background = Background(DatabaseError)  # Only logged at debug level: the waiting request gets the error.


async def is_known(headers: Headers, sender: str) -> bool:
    """Return whether these headers have a valid API key or token, or a session of a signed-in person.

    A session counts as valid until it is deleted or its row expires. Time limits (accounts.sessions) are not checked,
    nor whether the person's password or session epoch changed after the sign-in.

    Raises SenderBusy if too many look-ups of this sender, or of all senders together, are waiting, or if this look-up
    has waited for LONGEST_WAIT_S.
    """
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":  # A bearer token takes precedence over a session.
        secret = secret.strip()
        return token_text.well_formed(secret) and await _look_up(sender, secret, "")
    session = parse_cookie("; ".join(headers.getlist("cookie"))).get(settings.SESSION_COOKIE_NAME, "")
    return session != "" and await _look_up(sender, "", session)


async def _look_up(sender: str, secret: str, session: str) -> bool:
    def start() -> asyncio.Task[bool]:
        return _background.spawn(LOOKUP, asyncio.to_thread(_is_known, secret, session))

    try:
        return await _lookups.run(LONGEST_WAIT_S, sender, LOOKUP, start)
    except QueueFull:
        raise SenderBusy from None


def _is_known(secret: str, session: str) -> bool:
    try:
        if secret:
            found = (
                api_keys.find_api_key(secret)
                or authentication.find_token(secret)
                or ProvisioningKey.objects.find(secret)
            )
            return found is not None
        return SESSION_KEY in import_module(settings.SESSION_ENGINE).SessionStore(session)
    finally:
        databases.give_back()  # Return the connection: the thread is reused.


# Fair shares of the pages' database connections: a request waits only for other requests of the same sender. A
# sender is a person, or a session or bearer token whose person is not known yet. Calls at /mcp have separate limits.

MOST_WAITING = 32
LONGEST_WAIT_S = 10.0
RETRY_S = 5
MOST_REMEMBERED = 10_000  # Sessions and tokens with known people; the least recently used are dropped.
PERSON = "person"  # Scope key of the person, set by note_person.


class SenderBusy(Exception):
    """Too many requests are waiting, or this request has waited for too long."""


class FairShares:
    """Lets at most `most` requests of each sender into `app` at a time. A request counts until its answer begins.

    Up to MOST_WAITING further requests of the sender wait. Requests beyond these get 429 immediately. A waiting request
    gets 429 after LONGEST_WAIT_S. Paths below `free` are not limited. Each sender may have only one heavy request in
    `app` at a time. A request is heavy if its path matches `heavy`, or if it asks for a file (`?format=`).
    """

    def __init__(self, app: ASGIApp, *, most: int, session_cookie: str, free: str, heavy: re.Pattern[str]) -> None:
        self._app = app
        self._most = most
        self._heavy = heavy
        self._session_cookie = session_cookie
        self._free = free
        self._shares: dict[str, _Share] = {}
        self._people: dict[str, str] = {}  # The person of each session or token.

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(self._free):
            await self._app(scope, receive, send)
            return
        credentials = list(self._credentials(Headers(scope=scope)))
        # Sorted, to prevent deadlocks.
        senders = sorted({self._people.get(credential, credential) for credential in credentials})
        is_heavy = bool(senders) and self._is_heavy(scope)
        async with AsyncExitStack() as places:
            try:
                for sender in senders:
                    if is_heavy:
                        await places.enter_async_context(self._place(f"{sender} heavy", 1))
                    await places.enter_async_context(self._place(sender, self._most))
            except SenderBusy:
                await busy(scope, RETRY_S)(scope, receive, send)
                return

            async def begin(message: Message) -> None:
                # The work is done; a slow reader must not delay other requests of the sender.
                await places.aclose()
                if message["type"] == "http.response.start":
                    self._remember(credentials, scope.get(PERSON))
                await send(message)

            await self._app(scope, receive, begin)

    def _is_heavy(self, scope: Scope) -> bool:
        if self._heavy.fullmatch(scope["path"]):
            return True
        query, most = scope.get("query_string", b""), settings.DATA_UPLOAD_MAX_NUMBER_FIELDS
        try:
            fields = parse_qsl(query, keep_blank_values=True, max_num_fields=most)
        except ValueError:  # The page refuses so many fields too.
            return True
        return any(name == b"format" for name, _ in fields)

    def _remember(self, credentials: list[str], person: object) -> None:
        """Remember for later requests that these credentials belong to `person`. Do nothing if `person` is None."""
        if person is None:
            return
        for credential in credentials:
            self._people.pop(credential, None)
            self._people[credential] = f"person {person}"
        while len(self._people) > MOST_REMEMBERED:
            del self._people[next(iter(self._people))]

    def _credentials(self, headers: Headers) -> Iterator[str]:
        """Yield a key for the session and a key for the token of a request. Each key contains a digest."""
        # A request with both counts for both. Otherwise a made-up session or token would give it an extra share.
        if session := parse_cookie("; ".join(headers.getlist("cookie"))).get(self._session_cookie):
            yield f"session {_digest(session)}"
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            yield f"token {_digest(token.strip())}"

    @asynccontextmanager
    async def _place(self, sender: str, most: int) -> AsyncIterator[None]:
        """Hold one of the `most` slots of this sender. Raises SenderBusy."""
        share = self._shares.setdefault(sender, _Share(most))
        if share.requests >= most + MOST_WAITING:
            raise SenderBusy
        share.requests += 1
        try:
            try:
                async with asyncio.timeout(LONGEST_WAIT_S):
                    await share.places.acquire()
            except TimeoutError:
                raise SenderBusy from None
            try:
                yield
            finally:
                share.places.release()
        finally:
            share.requests -= 1
            if not share.requests:
                del self._shares[sender]


def _digest(credential: str) -> str:
    """Return a digest to remember instead of the credential itself."""
    return hashlib.blake2b(credential.encode(errors="surrogateescape"), digest_size=16).hexdigest()


class _Share:
    """Running and waiting requests of one sender, and the semaphore that limits the running requests."""

    def __init__(self, most: int) -> None:
        self.places = asyncio.Semaphore(most)
        self.requests = 0


# Django middleware: the context of admin events, and admin events for refused attempts

SAFE = {"GET", "HEAD", "OPTIONS"}


def note_origin(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Add interface, client address and request id to the admin events of the request."""

    def middleware(request: HttpRequest) -> HttpResponse:
        scope = getattr(request, "scope", {})
        origin = EventContext(
            _door(request.path), request.META.get("REMOTE_ADDR") or None, scope.get("request_id") or uuid4()
        )
        with use_context(origin):
            return get_response(request)

    return middleware


def _door(path: str) -> Via:
    if path.startswith("/api/"):
        return Via.API
    if path.startswith("/scim/"):
        return Via.SCIM
    if path.startswith("/oauth/"):
        return Via.OAUTH
    return Via.DJANGO_ADMIN if path.startswith("/admin/") else Via.WEB


def note_person(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Report the person of the request to `FairShares`. The authentication middleware must come before this one."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        if isinstance(request, ASGIRequest) and isinstance(request.user, User):
            cast(dict[str, object], request.scope)[PERSON] = request.user.pk
        return response

    return middleware


def note_refusals(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Record attempts to change something without the required capability. `note_origin` must come before this one."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        missing = getattr(response, "missing", None)
        if missing is not None and request.method not in SAFE and isinstance(request.user, User):
            changes = {"capability": missing.slug, "method": request.method, "path": request.path[:200]}
            Event.objects.record(Action.ATTEMPT_REFUSED, request.user, by=request.user, changes=changes)
        return response

    return middleware
