"""The MCP client: sends requests to servers within their limits of calls and time.

MCP versions form two eras: the versions with sessions, and the stateless 2026-07-28. Each request is sent in an era
that its server speaks.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, Self
from weakref import WeakValueDictionary

from wire import jsonrpc, mcp, sse, versions
from wire.definitions import CATALOGUES, Definition, ListMethod, read_items, usable
from wire.errors import (
    BadAnswer,
    Busy,
    EraLeft,
    NotRecordable,
    OldTransport,
    TimedOut,
    TooLarge,
    TooManyFeatures,
    UpstreamError,
)
from wire.fair_queue import FairQueue, QueueFull, TimeLimit
from wire.http import HttpResponse, Transport, more_than
from wire.jsonrpc import Object
from wire.mcp import (
    BOTH,
    MODERN,
    SESSION,
    TOOL,
    Answer,
    OnNotification,
    OnRequest,
    RpcResponse,
    ServerDescription,
    SessionHandle,
    StreamPlace,
    Target,
    era_for,
    ignore,
)
from wire.sessions import OnSession, SessionsInMemory, SessionStore, SessionWire

INITIALIZE_SECONDS = 5  # Time limit for `initialize` when a probe finds a server of MCP 2026-07-28.
RETRY_SECONDS = 2  # Retry-After for callers of a busy server.

# Limits for reading one server's list of one kind of features.
MOST_PAGES = 100
MOST_BYTES = 10 << 20
MOST_FEATURES = 5_000

# Statuses with which an HTTP+SSE server answers a POST to its stream URL, and limits for checking that stream.
OLD_STATUSES = frozenset({400, 404, 405, 406, 415, 501})
OLD_SECONDS = 3
LARGEST_FIRST_EVENT = 64 << 10

# Statuses that do not depend on the era: they concern access, size, time or load.
NEUTRAL_STATUSES = frozenset({401, 403, 408, 413, 429})
PASSING_STATUSES = frozenset({408, 425, 429, 502, 503, 504})

type Contradicted = Callable[[Target], None]
type Introduced = Callable[[Target, ServerDescription], None]


class Listed(NamedTuple):
    """A server's list of features of one kind, and how long the list may be cached (MCP 2026-07-28, Caching)."""

    definitions: list[Definition]
    ttl_ms: int = 0


class Spoken(NamedTuple):
    """The eras a server speaks, its ServerDescription in each, and the results of the probes as text (`evidence`)."""

    eras: str
    evidence: str
    infos: Sequence[ServerDescription]
    # False if the probe of the other era failed in a way that proves nothing, such as a timeout: the server may speak
    # that era too.
    is_certain: bool = True

    def eras_beside(self, known: str) -> str:
        """Return the eras to store. `known` contains the eras stored until now; it is empty if none are stored.

        Usually, these are the eras just found (`eras`). But if the probe was not certain and other eras are stored,
        return BOTH, because the server may still speak the stored eras.
        """
        return self.eras if self.is_certain or known in ("", self.eras) else BOTH


class Beside(Protocol):
    """Receives messages that a server sends during a request, but on another stream of the session."""

    async def begin(
        self, session: SessionHandle, on_notification: OnNotification, on_request: OnRequest | None
    ) -> None:
        """Call the callbacks with the messages that arrive outside the request's own stream, until `end` is called.

        Called before the request is sent, and only if the request belongs to a session.
        """

    def end(self) -> None:
        """Handle the end of a request. Called for every request that got a slot, even if `begin` was not called."""


class QueueSlot:
    """A call's concurrency slot and time limit.

    Enter the `with` block of a QueueSlot while the server waits for client input. In this block, the slot is free for
    other calls, and the idle limit is paused.
    """

    __slots__ = ("_away", "_connection", "_limit", "_over", "_person", "_queue")

    def __init__(
        self, queue: FairQueue, person: str, connection: str, limit: TimeLimit, *, is_over: bool = False
    ) -> None:
        self._queue = queue
        self._person = person
        self._connection = connection
        self._limit = limit
        self._away = 0
        self._over = is_over

    def end(self) -> None:
        """Release the slot at the end of the call."""
        self._over = True
        if not self._away:
            self._queue.leave(self._person, self._connection)

    def __enter__(self) -> None:
        self._limit.hold()
        self._away += 1
        if self._away == 1 and not self._over:
            self._queue.leave(self._person, self._connection)

    def __exit__(self, *_: object) -> None:
        self._limit.go_on()
        self._away -= 1
        if not self._away and not self._over:
            self._queue.come_back(self._person, self._connection)


class McpClient:
    """Calls servers, each request in the era of its target. A request that may have been executed is not sent again.

    `introduced` is called when a session is opened. `contradicted` is called if an answer shows that the server may no
    longer speak the target's era. While `may_begin()` is false, `ask` raises NotRecordable.
    """

    def __init__(
        self,
        transport: Transport,
        may_begin: Callable[[], bool] = lambda: True,
        *,
        store: SessionStore | None = None,  # None: in memory, until the client is closed.
        introduced: Introduced = lambda *_: None,
        contradicted: Contradicted = lambda _: None,
        workers: int = 1,  # Processes that share the concurrency limit of a server. Each gets at least one slot.
        queue_seconds: float = 10,  # Longest wait for a slot.
    ) -> None:
        self._transport = transport
        self._may_begin = may_begin
        self._sessions = SessionWire(transport, store or SessionsInMemory(), introduced)
        self._contradicted = contradicted
        self._workers = workers
        self._queue_seconds = queue_seconds
        self._queues: WeakValueDictionary[str, FairQueue] = WeakValueDictionary()  # By server; running calls keep them.

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._sessions.close()

    async def ask(  # noqa: PLR0913 - the parts of one request
        self,
        target: Target,
        method: str,
        params: Object,
        on_notification: OnNotification,
        *,
        person: str = "",  # For fair sharing of the server.
        schema: object = None,  # The input schema of the called tool.
        seconds: float | None = None,  # Limit for the whole call with its wait, besides the server's own limits.
        # Called in tasks that end with the call. If None, pings are answered and other requests are refused.
        on_request: OnRequest | None = None,
        beside: Beside | None = None,  # Told before the request is sent in a session, and when it has ended.
    ) -> RpcResponse:
        """Send one request and return the server's answer. Raises an UpstreamError, or NotRecordable.

        `on_notification` is called with each notification before the answer. While the server waits for an answer from
        `on_request`, another call may use the slot of this call.
        """
        queue = self._queue(target)
        person, connection = person or target.connection_id, target.connection_id
        ends = None if seconds is None else time.monotonic() + seconds
        if not queue.enter_now(person, connection):
            await self._wait_for_turn(queue, target, person, seconds)
        limit = self._time_limit(target, ends)
        place: QueueSlot | None = None
        is_over = False

        async def ask_somebody(message: Object, answer: Answer) -> None:
            nonlocal place
            assert on_request is not None
            place = place or QueueSlot(queue, person, connection, limit, is_over=is_over)
            with place:
                await on_request(message, answer)

        async def on_event(message: Object) -> None:
            limit.touch()
            await on_notification(message)

        try:
            with limit:
                if not self._may_begin():
                    raise NotRecordable
                asked = None if on_request is None else ask_somebody
                began = None if beside is None else lambda session: beside.begin(session, on_event, asked)
                return await self._ask_in_its_era(target, method, params, on_event, asked, schema, began)
        except TimeoutError:
            in_all = limit.exceeded == "total"
            raise TimedOut(target.server_name, limit.total if in_all else limit.seconds, in_all=in_all) from None
        finally:
            is_over = True
            if beside is not None:
                beside.end()
            if place is None:
                queue.leave(person, connection)
            else:
                place.end()

    async def _wait_for_turn(self, queue: FairQueue, target: Target, person: str, seconds: float | None) -> None:
        wait = min(self._queue_seconds, seconds or self._queue_seconds)
        try:
            with TimeLimit(wait):
                await queue.enter(person, target.connection_id)
        except TimeoutError:
            detail = f"{queue.waiting} calls wait, {queue.bound} may run in this worker"
            raise Busy(target.server_name, detail, seconds=RETRY_SECONDS) from None
        except QueueFull:
            raise Busy(target.server_name, "too many calls wait", seconds=RETRY_SECONDS) from None

    async def list_features(self, target: Target, kind: str, *, seconds: float) -> Listed:
        """Return the usable features of this kind; none if the server does not know the list method of this kind.

        Pages after the first MOST_PAGES are not read. Raises an UpstreamError, for example after `seconds`.
        """
        ends = time.monotonic() + seconds
        catalogue = CATALOGUES[kind]
        found: list[Definition] = []
        size = 0
        params: Object = {}
        ttls: list[int] = []
        for _ in range(MOST_PAGES):
            left = max(ends - time.monotonic(), 0.001)
            answer = await self.ask(target, catalogue.method, params, ignore, seconds=left)
            if answer.error_code == jsonrpc.METHOD_NOT_FOUND:
                break
            page = _page(answer, target, catalogue)
            ttl = page.get("ttlMs")
            ttls.append(ttl if type(ttl) is int and ttl > 0 else 0)
            annotated = mcp.ANNOTATION.encode() in answer.text
            found += usable(
                kind, read_items(answer.text, catalogue.member, page[catalogue.member]), annotated=annotated
            )
            size += len(answer.text)
            if size > MOST_BYTES:
                raise TooLarge(target.server_name, more_than(MOST_BYTES))
            if len(found) > MOST_FEATURES:
                raise TooManyFeatures(target.server_name, f"more than {MOST_FEATURES:,} {catalogue.member}")
            cursor = page.get("nextCursor")
            if not isinstance(cursor, str) or not cursor or cursor == params.get("cursor"):
                break
            params = {"cursor": cursor}
        # The annotations were checked page by page.
        return Listed(usable(kind, found, annotated=False), min(ttls, default=0))

    async def listen(
        self,
        target: Target,
        on_notification: OnNotification,
        on_request: OnRequest | None = None,
        begun: Callable[[], object] = bool,
        place: StreamPlace | None = None,
        asked: Callable[[], object] = bool,
    ) -> bool:
        """Read the standing stream of the target's session until it ends; see `SessionWire.listen`."""
        return await self._sessions.listen(target, on_notification, on_request, begun, place, asked)

    async def subscribe(self, target: Target, wishes: Object, on_notification: OnNotification) -> bool:
        """Run `subscriptions/listen` (MCP 2026-07-28) until the stream ends; return False if the server refuses it.

        The first notification is the acknowledgement. Raises an UpstreamError.
        """
        try:
            params: Object = {"notifications": wishes}
            answer = await mcp.send_request(self._transport, target, "subscriptions/listen", params, on_notification)
        except BadAnswer as error:
            if 400 <= error.status < 500:
                return False
            raise
        return answer.error is None

    def at_servers(self) -> dict[str, int]:
        """Return two numbers of calls: `under_way` at servers, and `waiting` for a slot."""
        queues = [*self._queues.values()]
        return {"under_way": sum(each.under_way for each in queues), "waiting": sum(each.waiting for each in queues)}

    async def probe(self, target: Target) -> Spoken:
        """Find out which eras a server speaks; no session stays open.

        Raises an UpstreamError when the server speaks neither era, or the eras cannot be determined.
        """
        try:
            with TimeLimit(target.timeout_s):
                return await self._probe(target)
        except TimeoutError:
            raise TimedOut(target.server_name, target.timeout_s) from None

    async def _probe(self, target: Target) -> Spoken:
        modern = await mcp.discover_server(self._transport, target)
        if isinstance(modern, ServerDescription):
            said = f"server/discover: {versions.MODERN}"
            try:
                async with asyncio.timeout(INITIALIZE_SECONDS):
                    session = await self._sessions.introduce(target)
            except (UpstreamError, TimeoutError) as error:
                reason = error.detail if isinstance(error, UpstreamError) else "no answer"
                evidence = f"{said}; initialize: {reason.removeprefix('initialize: ')}"
                return Spoken(MODERN, evidence, (modern,), _is_lasting(error))
            return Spoken(BOTH, f"{said}; initialize: {session.version}", (session, modern))
        try:
            session = await self._sessions.introduce(target)
        except BadAnswer as error:
            await self._check_transport(target, error)
            raise
        evidence = f"initialize: {session.version}; server/discover: {modern.detail}"
        return Spoken(SESSION, evidence, (session,), _is_lasting(modern))

    async def post(self, target: Target, message: Object) -> None:
        """Send a message that gets no answer, in `target.session`, which must be set. Raises an UpstreamError."""
        await self._sessions.post(target, message)

    async def end(self, target: Target) -> None:
        """End the session of `target` at the server. Failures are only logged."""
        await self._sessions.end_quietly(target)

    def end_in_background(self, target: Target) -> None:
        """Run end() in a background task."""
        self._sessions.start_background(self._sessions.end_quietly(target))

    async def _ask_in_its_era(
        self,
        target: Target,
        method: str,
        params: Object,
        on_notification: OnNotification,
        on_request: OnRequest | None,
        schema: object,
        on_session: OnSession | None,
    ) -> RpcResponse:
        try:
            if target.era == MODERN:
                answer = await mcp.send_request(self._transport, target, method, params, on_notification, schema=schema)
            else:
                answer = await self._sessions.ask(target, method, params, on_notification, on_request, on_session)
        except BadAnswer as error:
            if isinstance(error, EraLeft) or _contradicts(error.status, None, target.era):
                self._contradicted(target)
            await self._check_transport(target, error)
            raise
        if _contradicts(answer.status, answer.error_code, target.era):
            self._contradicted(target)
        return answer

    async def _check_transport(self, target: Target, error: BadAnswer) -> None:
        """Raise OldTransport if the server speaks only HTTP+SSE."""
        if error.status in OLD_STATUSES and error.error is None and await self._speaks_http_sse(target):
            raise OldTransport(target.server_name, f"HTTP {error.status}: HTTP+SSE only") from None

    async def _speaks_http_sse(self, target: Target) -> bool:
        """Return whether a GET opens the event stream of MCP 2024-11-05 (its first event is `endpoint`)."""
        headers = {**target.headers(), "Accept": "text/event-stream"}
        try:
            with (
                TimeLimit(OLD_SECONDS),
                await self._transport.send(
                    "GET", target.server_name, target.url, headers, private=target.private, user=target.user
                ) as response,
            ):
                return response.media_type == "text/event-stream" and await _names_an_endpoint(response)
        except (UpstreamError, TimeoutError, sse.EventTooLarge, sse.TooManyEvents):
            return False

    def _queue(self, target: Target) -> FairQueue:
        """Return the queue of this server. Each server has a queue, so that a slow server does not block the others."""
        bound = max(1, target.max_concurrent // self._workers)
        queue = self._queues.get(target.server_id)
        if queue is None:
            queue = self._queues[target.server_id] = FairQueue(bound)
        queue.bound = bound
        return queue

    def _time_limit(self, target: Target, ends: float | None) -> TimeLimit:
        if ends is None:
            return TimeLimit(target.timeout_s, target.total_s)
        left = max(ends - time.monotonic(), 0.001)
        return TimeLimit(min(target.timeout_s, left), min(target.total_s, left))


def _contradicts(status: int, code: int | None, era: str) -> bool:
    """Return whether this status and error code suggest that the server does not speak `era`.

    `code` is None if the answer is not a JSON-RPC error.
    """
    if code == jsonrpc.UNSUPPORTED_VERSION:
        return True
    if not 400 <= status < 500 or status in NEUTRAL_STATUSES:
        return False
    return era == SESSION or code not in mcp.OWN_CODES


def _is_lasting(error: Exception) -> bool:
    """Return whether this error proves that the server does not speak the versions of MCP that were probed.

    Other errors, such as a timeout, prove nothing.
    """
    return isinstance(error, BadAnswer) and error.status not in PASSING_STATUSES


async def _names_an_endpoint(response: HttpResponse) -> bool:
    reader = sse.EventParser(LARGEST_FIRST_EVENT)
    async for chunk in response.chunks():
        if events := reader.feed(chunk):
            return events[0].name == "endpoint"
    return False


def _page(answer: RpcResponse, target: Target, catalogue: ListMethod) -> Object:
    """Return the result of a list request. Raises BadAnswer when the result has no list."""
    page: Object = answer.whole.get("result", {})
    if not isinstance(page.get(catalogue.member), list):
        message = (answer.error or {}).get("message")
        words = message[:200] if isinstance(message, str) else ""
        detail = f"{catalogue.method}: error {answer.error_code} {words}"
        raise BadAnswer(target.server_name, detail, error=answer.error)
    return page


# The MCP client for synchronous code: pages, the REST API, commands and chores.


class Discovery(NamedTuple):
    """The eras of MCP that a server speaks, and its features by kind. Kinds that could not be listed are missing."""

    spoken: Spoken
    features: dict[str, list[Definition]]


def discover_blocking(
    target: Target, transport: Transport, *, seconds: float, kinds: Sequence[str] = (TOOL,)
) -> Discovery:
    """Find out which eras a server speaks and which features it lists, within `seconds`. Closes `transport`.

    Call this only in a thread without a running event loop. Raises an UpstreamError if the server speaks neither era,
    if its eras cannot be determined, or if the features of the first kind cannot be listed.
    """
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(_discover(target, transport, seconds, kinds))


async def _discover(target: Target, transport: Transport, seconds: float, kinds: Sequence[str]) -> Discovery:
    async with transport, McpClient(transport) as client:
        ends = asyncio.get_running_loop().time() + seconds
        spoken = await client.probe(target._replace(timeout_s=min(target.timeout_s, seconds)))
        target = target._replace(era=era_for(spoken.eras, MODERN))
        features = {}
        for kind in kinds:
            left = max(ends - asyncio.get_running_loop().time(), 0.001)
            try:
                features[kind] = (await client.list_features(target, kind, seconds=left)).definitions
            except UpstreamError:
                if kind == kinds[0]:
                    raise
                # The first kind could be listed, so failing to list another kind is not an error.
        return Discovery(spoken, features)
