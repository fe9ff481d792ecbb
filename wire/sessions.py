"""MCP client for versions with sessions (up to 2025-11-25). Targets with the same `_key` share one session."""

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from wire import jsonrpc, trace_context, versions
from wire.background import Background, spawn
from wire.cipher import Cipher
from wire.errors import (
    AddressBlocked,
    BadAnswer,
    BadSessionId,
    EraLeft,
    Loop,
    SessionEnded,
    UnknownVersion,
    Unreachable,
    UpstreamError,
)
from wire.http import HttpResponse, Transport
from wire.jsonrpc import Object
from wire.mcp import (
    SESSION,
    Answer,
    OnNotification,
    OnRequest,
    RpcResponse,
    ServerDescription,
    SessionHandle,
    StreamBroke,
    StreamPlace,
    Target,
    extensions_in,
    ignore,
    is_answer,
    next_request_id,
    read_messages,
    read_response,
    refuse_server_request,
    versions_in,
)
from wire.oauth_client import fits_a_header

logger = logging.getLogger(__name__)

MOST_SERVER_REQUESTS = 8  # Concurrent requests from a server during one of ours; each answer needs a connection.
LONGEST_ID = 1_024  # Limit for the id of a server's request: characters of a string, or bits of an integer.
LONGEST_VERSION = 40
CLOSE_SECONDS = 2
BACKGROUND_SECONDS = 10
RESUME_SECONDS = 1.0  # Pause before a broken stream is resumed, unless the server sets a pause.
MOST_TIMES = 1_000  # How often a stream is resumed; usually the time limits end the call earlier.
FRUITLESS_TIMES = 3  # How often in a row a stream is resumed without a new event.

# Client capabilities that are passed to servers, and the members of each capability. Extensions are passed unchanged.
BRIDGED = {"elicitation": ("form", "url"), "roots": (), "sampling": ("context", "tools")}

type Key = tuple[str, ...]
type OnSession = Callable[[SessionHandle], Awaitable[None]]


def declared(capabilities: object, *, with_extensions: bool = True) -> str:
    """Return a client's MCP capabilities that are in BRIDGED, as a text such as `roots,sampling,sampling.tools`.

    If `with_extensions`, a digest of the client's extensions is appended.
    """
    if not isinstance(capabilities, dict):
        return ""
    names: list[str] = []  # In a fixed order.
    for name, members in BRIDGED.items():
        if isinstance(told := capabilities.get(name), dict):
            names += [name, *(f"{name}.{member}" for member in members if isinstance(told.get(member), dict))]
    if with_extensions and (extensions := extensions_in(capabilities)):
        text = json.dumps(extensions, sort_keys=True)
        names.append(f"extensions.{hashlib.sha256(text.encode()).hexdigest()[:16]}")
    return ",".join(names)


def capabilities_of(text: str) -> Object:
    """Return the MCP capabilities in `text`, a result of `declared`. Extensions are left out."""
    capabilities: Object = {}
    for name in filter(None, text.split(",")):
        group, _, member = name.partition(".")
        if group not in BRIDGED:
            continue
        of_group = capabilities.setdefault(group, {})
        if member:
            of_group[member] = {}
    return capabilities


def open_session(row: Any, cipher: Cipher) -> SessionHandle:
    """Return the session stored in `row` (uid, sealed id, version, log level). Raises Undecryptable."""
    uid, sealed_id, version, log_level = row
    sealed = sealed_id.encode() if isinstance(sealed_id, str) else bytes(sealed_id)
    return SessionHandle(cipher.open(sealed) if sealed else "", version, uid, log_level)


class SessionLost(Exception):
    """The server seems to have lost the session: it refused a GET because of it, or a POST got 404 without JSON-RPC."""


class SessionStore(Protocol):
    """Storage of sessions between requests."""

    async def find(self, target: Target) -> SessionHandle | None:
        """Return the session for this target; None if there is none."""

    async def keep(self, target: Target, session: SessionHandle) -> SessionHandle:
        """Store a new session and return it. If another worker stored a session first, return that session instead."""

    async def note_level(self, target: Target, session: SessionHandle) -> None:
        """Store the log level that was set in this session."""

    async def forget(self, target: Target, session: SessionHandle) -> None:
        """Delete this session from the store, unless the store already has a newer session for `target`.

        If the client has its own session with the gateway, the deletion also ends the client's session.
        """

    def take_all(self) -> list[tuple[Target, SessionHandle]]:
        """Remove and return the sessions that end with this process."""


class SessionsInMemory:
    """Keeps sessions in memory, for the lifetime of one client."""

    def __init__(self) -> None:
        self._sessions: dict[Key, tuple[Target, SessionHandle]] = {}

    async def find(self, target: Target) -> SessionHandle | None:
        kept = self._sessions.get(_key(target))
        return kept[1] if kept else None

    async def keep(self, target: Target, session: SessionHandle) -> SessionHandle:
        return self._sessions.setdefault(_key(target), (target, session))[1]

    async def note_level(self, target: Target, session: SessionHandle) -> None:
        if _key(target) in self._sessions:
            self._sessions[_key(target)] = (target, session)

    async def forget(self, target: Target, session: SessionHandle) -> None:
        if (kept := self._sessions.get(_key(target))) is not None and kept[1] == session:
            del self._sessions[_key(target)]

    def take_all(self) -> list[tuple[Target, SessionHandle]]:
        sessions, self._sessions = self._sessions, {}
        return [*sessions.values()]


class SessionWire:
    """Sends requests in sessions from `store`. For each new session, calls `introduced`."""

    def __init__(
        self, transport: Transport, store: SessionStore, introduced: Callable[[Target, ServerDescription], None]
    ) -> None:
        self._transport = transport
        self._store = store
        self._introduced = introduced
        self._opening: dict[Key, asyncio.Future[SessionHandle | None]] = {}
        self._doubted: set[Key] = set()  # Sessions being checked by a ping.
        self._background = Background(UpstreamError, TimeoutError)

    async def ask(
        self,
        target: Target,
        method: str,
        params: Object,
        on_notification: OnNotification,
        on_request: OnRequest | None = None,
        on_session: OnSession | None = None,
    ) -> RpcResponse:
        """Send one request and return its answer. `on_session` is awaited before the request is sent.

        If the server lost the session, the request is sent again in a new session. But if the client has its own
        session with the gateway, SessionEnded is raised. Raises EraLeft if gateway and server share no version of MCP.
        Raises another UpstreamError for any other failure.
        """
        session = target.session or await self._session(target)
        if on_session is not None:
            await on_session(session)
        try:
            return await self._ask(session, target, method, params, on_notification, on_request)
        except SessionLost:
            if not await self._is_lost(session, target):  # Not sent again: the call may have been executed.
                detail = "HTTP 404, and a ping does not show that its session is lost"
                raise BadAnswer(target.server_name, detail, status=404) from None
            # By MCP 2025-11-25 (Session Management), a 404 means that the request was not processed.
            await self._store.forget(target, session)
            if target.has_own_session:
                raise SessionEnded(target.server_name) from None
            session = await self._session(target)
        if on_session is not None:
            await on_session(session)
        try:
            return await self._ask(session, target, method, params, on_notification, on_request)
        except SessionLost:
            raise BadAnswer(target.server_name, "the server lost two sessions in a row") from None

    async def _ask(
        self,
        session: SessionHandle,
        target: Target,
        method: str,
        params: Object,
        on_notification: OnNotification,
        on_request: OnRequest | None,
    ) -> RpcResponse:
        if target.log_level and session.log_level != target.log_level:
            await self._set_level(session, target)
        request_id = next_request_id()
        incoming = IncomingMessages(self, session, target, on_notification, on_request)
        try:
            try:
                with await self._send("POST", session, target, _request(request_id, method, params)) as response:
                    if response.status == 404 and session.id and not await _holds_answer(response, request_id):
                        raise SessionLost
                    answer = await read_response(response, target, request_id, SESSION, incoming.take)
            except StreamBroke as broke:
                answer = await self._go_on(session, target, request_id, broke, incoming.take)
        except asyncio.CancelledError:
            self.start_background(self._cancel(session, target, request_id))
            raise
        except BadAnswer as error:
            self._doubt(session, target, error.status)
            raise
        finally:
            incoming.end()
        self._doubt(session, target, answer.status)
        return answer

    def _doubt(self, session: SessionHandle, target: Target, status: int) -> None:
        """After a 400 or 404, ping in the background to check if the session is lost. The status alone is no proof."""
        if status in (400, 404) and session.id and (key := _key(target)) not in self._doubted:
            self._doubted.add(key)
            self.start_background(self._check(session, target, key))

    async def _is_lost(self, session: SessionHandle, target: Target) -> bool:
        """Return whether the answer to a ping shows that the server has lost this session."""
        try:
            with await self._send("POST", session, target, _request(next_request_id(), "ping", {})) as response:
                return response.status in (400, 404) and not await _knows_no_ping(response)
        except UpstreamError:
            return False

    async def _check(self, session: SessionHandle, target: Target, key: Key) -> None:
        try:
            if await self._is_lost(session, target):
                await self._store.forget(target, session)
        finally:
            self._doubted.discard(key)

    async def _go_on(
        self, session: SessionHandle, target: Target, request_id: int, broke: StreamBroke, on_message: OnNotification
    ) -> RpcResponse:
        """Resume a broken stream from its last event and return the answer. The request is not sent again.

        There are at most MOST_TIMES tries. They end early if the server refuses, or if FRUITLESS_TIMES tries in a row
        bring no new event. Raises the last StreamBroke if no try succeeds.
        """
        # A server may end streams on purpose, to be resumed (MCP 2025-11-25, Streamable HTTP).
        fruitless = 0
        for _ in range(MOST_TIMES):
            await asyncio.sleep(broke.place.pause(RESUME_SECONDS))
            try:
                with await self._send("GET", session, target, last_event_id=broke.place.last_event_id) as response:
                    if response.status == 200 and response.media_type == "text/event-stream":
                        return await read_response(response, target, request_id, SESSION, on_message)
                    break
            except StreamBroke as again:
                fruitless = fruitless + 1 if again.place.last_event_id == broke.place.last_event_id else 0
                broke = again
            except (Unreachable, AddressBlocked, Loop):
                fruitless += 1
            if fruitless >= FRUITLESS_TIMES:
                break
        raise broke

    async def _set_level(self, session: SessionHandle, target: Target) -> None:
        """Set the log level of the session at the server, and store the level. An error answer is ignored."""
        told = session._replace(log_level=target.log_level)
        params = {"level": target.log_level}
        await self._ask(told, target, "logging/setLevel", params, ignore, None)
        await self._store.note_level(target, told)

    # Sessions

    async def _session(self, target: Target) -> SessionHandle:
        """Return the session of this target. Concurrent requests of this process open one session only."""
        key = _key(target)
        while (opening := self._opening.get(key)) is not None:
            if (opened := await asyncio.shield(opening)) is not None:
                return opened
        self._opening[key] = opening = asyncio.get_running_loop().create_future()
        session = None
        try:
            session = await self._store.find(target) or await self._open(target)
            return session
        finally:
            del self._opening[key]
            opening.set_result(session)

    async def _open(self, target: Target) -> SessionHandle:
        session, info = await self._initialize(target)
        self._introduced(target, info)
        try:
            await self._post(session, target, {"jsonrpc": "2.0", "method": "notifications/initialized"})
            kept = await self._store.keep(target, session)
        except BaseException:
            self.start_background(self._end(target, session))
            raise
        if kept.id != session.id:  # Another worker has stored a session first.
            self.start_background(self._end(target, session))
        return kept

    async def introduce(self, target: Target) -> ServerDescription:
        """Return the ServerDescription from `initialize`, and end the session at once.

        Raises an UpstreamError.
        """
        session, info = await self._initialize(target)
        self.start_background(self._end(target, session))
        return info

    async def _initialize(
        self, target: Target, proposed: str = versions.NEWEST_SESSION
    ) -> tuple[SessionHandle, ServerDescription]:
        """Open a session, proposing the version `proposed`. The server's answer decides the version.

        Raises EraLeft if there is no version in common. Raises another UpstreamError for any other failure.
        """
        request_id = next_request_id()
        params = {
            "protocolVersion": proposed,
            "capabilities": dict(target.capabilities),
            "clientInfo": target.client_info,
        }
        with await self._send(
            "POST", SessionHandle("", ""), target, _request(request_id, "initialize", params)
        ) as response:
            answer = await read_response(response, target, request_id, SESSION, ignore)
            session_id = response.header("mcp-session-id")
        if answer.error_code == jsonrpc.UNSUPPORTED_VERSION:
            mutual = sorted(set(versions_in(answer.error)) & {*versions.CALLED} - {versions.MODERN, proposed})
            if not mutual or proposed != versions.NEWEST_SESSION:
                raise EraLeft(target.server_name, "initialize: no version in common", error=answer.error)
            # Propose once more: the newest listed session version that the gateway speaks.
            return await self._initialize(target, mutual[-1])
        if answer.error is not None:
            detail = f"initialize: HTTP {answer.status}, JSON-RPC {answer.error_code}"
            raise BadAnswer(target.server_name, detail, status=answer.status, error=answer.error)
        result = answer.whole["result"]
        version = result.get("protocolVersion")
        if not isinstance(version, str) or not (
            version.isascii() and version.isprintable() and len(version) <= LONGEST_VERSION
        ):
            named = version[:20] if isinstance(version, str) else "of no version"
            raise UnknownVersion(target.server_name, f"speaks MCP {named}")
        if session_id and not fits_a_header(session_id):
            raise BadSessionId(target.server_name)
        return SessionHandle(session_id, version), ServerDescription.of(result, version)

    async def close(self) -> None:
        """End, within CLOSE_SECONDS, the sessions that must not outlive this process."""
        for target, session in self._store.take_all():
            self.start_background(self._end(target, session))
        await self._background.stop(CLOSE_SECONDS)

    # Other messages in a session

    async def _cancel(self, session: SessionHandle, target: Target, request_id: int) -> None:
        params = {"requestId": request_id, "reason": "The client left."}
        await self._post(session, target, {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})

    async def _end(self, target: Target, session: SessionHandle) -> None:
        if session.id:
            # The trace of the request that opened the session does not apply: the session outlived the request.
            with await self._send("DELETE", session, target._replace(trace=trace_context.NONE)) as response:
                await response.read()

    async def end_quietly(self, target: Target) -> None:
        """End the session of `target` at the server, within BACKGROUND_SECONDS. Failures are only logged."""
        assert target.session is not None, "only where a session is known"
        await _log_failure(_in_time(self._end(target, target.session)))

    async def listen(
        self,
        target: Target,
        on_notification: OnNotification,
        on_request: OnRequest | None,
        begun: Callable[[], object] = bool,
        place: StreamPlace | None = None,
        asked: Callable[[], object] = bool,
    ) -> bool:
        """Read the standing stream of the target's session until the stream ends.

        Calls `asked` when the request has been sent, and `begun` when the stream is open. Resumes from `place`, and
        updates `place`. Returns True when the stream ends, and False if the server offers no stream. If the server
        refuses to resume, resets `place` and returns True. Raises an UpstreamError, or SessionLost.
        """
        place = place if place is not None else StreamPlace()
        session = target.session
        assert session is not None, "only where a session is known"
        incoming = IncomingMessages(self, session, target, on_notification, on_request)
        try:
            sending = self._send("GET", session, target, last_event_id=place.last_event_id, written=asked)
            with await sending as response:
                if session.id and await _denies_session(response):
                    raise SessionLost
                if response.status != 200 or response.media_type != "text/event-stream":
                    was_known, place.last_event_id = place.last_event_id, ""
                    return bool(was_known)
                begun()
                await read_messages(response, target, incoming.take, place)
                return True
        finally:
            incoming.end()

    async def post(self, target: Target, message: Object) -> None:
        """Send a message that has no answer, in the session of `target`. Raises an UpstreamError."""
        assert target.session is not None, "only where a session is known"
        await self._post(target.session, target, message)

    async def _post(self, session: SessionHandle, target: Target, message: Object) -> None:
        with await self._send("POST", session, target, jsonrpc.dumps(message)) as response:
            await response.read()

    async def _send(
        self,
        verb: str,
        session: SessionHandle,
        target: Target,
        body: bytes = b"",
        *,
        last_event_id: str = "",
        written: Callable[[], object] = bool,
    ) -> HttpResponse:
        headers = target.headers()
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        if session.version:
            headers["MCP-Protocol-Version"] = session.version
        if session.id:
            headers["Mcp-Session-Id"] = session.id
        return await self._transport.send(
            verb,
            target.server_name,
            target.url,
            headers,
            body,
            private=target.private,
            written=written,
            person=target.person_id,
            user=target.user,
        )

    def start_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` in a background task, within BACKGROUND_SECONDS. Failures are only logged."""
        self._background.spawn("message to a server", _in_time(work))


class IncomingMessages:
    """Handles the messages that a server sends during one of our requests, other than the response.

    `on_request` answers each request of the server, except pings, in a separate task. `notifications/cancelled` cancels
    the task of the request that it names. `on_notification` gets all other notifications.
    """

    def __init__(
        self,
        wire: SessionWire,
        session: SessionHandle,
        target: Target,
        on_notification: OnNotification,
        on_request: OnRequest | None,
    ) -> None:
        self._wire = wire
        self._session = session
        self._target = target
        self._on_notification = on_notification
        self._on_request = on_request
        self._answering = 0
        self._tasks: dict[asyncio.Task[None], str | int] = {}  # The ids of the server's requests.
        self._cancelled: set[asyncio.Task[None]] = set()  # By the server, which expects no answer.

    async def take(self, message: Object) -> None:
        """Handle a request or a notification of the server."""
        if "id" in message:
            self._answer(message)
        elif message["method"] == "notifications/cancelled":
            self._cancel(message.get("params"))
        else:
            await self._on_notification(message)

    def _answer(self, message: Object) -> None:
        """Answer a request of the server.

        A ping succeeds. `on_request` answers any other request. Without `on_request`, or while too many requests run,
        the gateway answers with an error. A request with an invalid id gets no answer.
        """
        if not _is_valid_id(message["id"]):
            return
        task: asyncio.Task[None] | None = None

        async def answer(outcome: Object) -> None:
            if task in self._cancelled:
                return
            own = self._target._replace(session=self._session)
            await self._wire.post(own, {"jsonrpc": "2.0", "id": message["id"], **outcome})

        taken = self._on_request is not None and message["method"] != "ping"
        if self._on_request is not None and taken and len(self._tasks) < MOST_SERVER_REQUESTS:
            # Eager: a task that is cancelled before its first step could not send an answer.
            task = spawn("request of a server", _log_failure(self._on_request(message, answer)), eager=True)
            self._tasks[task] = message["id"]
            task.add_done_callback(self._ended)
        elif self._answering < MOST_SERVER_REQUESTS:  # No answer while too many pings and refusals run.
            self._answering += 1
            self._wire.start_background(self._refuse(message, answer))

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task in self._cancelled:
            # It counts a while longer, so that a server cannot send and cancel requests without limit.
            asyncio.get_running_loop().call_later(BACKGROUND_SECONDS, self._forget, task)
        else:
            self._forget(task)

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        self._cancelled.discard(task)

    def _cancel(self, params: object) -> None:
        """Cancel the task for the request with the id `requestId`; ignore an unknown id."""
        cancelled = params.get("requestId") if isinstance(params, dict) else None
        for task, request_id in self._tasks.items():
            if type(cancelled) is type(request_id) and cancelled == request_id:
                self._cancelled.add(task)
                task.cancel()

    async def _refuse(self, message: Object, answer: Answer) -> None:
        try:
            await refuse_server_request(message, answer)
        finally:
            self._answering -= 1

    def end(self) -> None:
        """Cancel the tasks that still answer the server's requests, because our request is over."""
        for task in self._tasks:
            task.cancel()


async def _in_time(work: Coroutine[Any, Any, None]) -> None:
    async with asyncio.timeout(BACKGROUND_SECONDS):
        await work


async def _log_failure(work: Awaitable[None]) -> None:
    try:
        await work
    except (UpstreamError, TimeoutError) as error:
        logger.debug("a message during a request failed", extra={"error": str(error)})


def _key(target: Target) -> Key:
    # The name of the credential's header is in the key, so that a session opened without the credential, or with it in
    # another header, is not used.
    header = target.credential[0] if target.credential else ""
    owner = target.owner_id or target.connection_id
    return owner, target.server_id, target.url, target.generation, header, target.session_key


def _request(request_id: int, method: str, params: Object) -> bytes:
    return jsonrpc.dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})


def _is_valid_id(request_id: object) -> bool:
    """Return whether the id of a server's request is valid. Huge ids are refused, since the answer repeats the id."""
    if isinstance(request_id, str):
        return len(request_id) <= LONGEST_ID
    return type(request_id) is int and request_id.bit_length() <= LONGEST_ID


async def _denies_session(response: HttpResponse) -> bool:
    """Return whether a server refused our GET because the server does not know the session.

    Most servers answer 404 in this case. Some SDKs answer 400, with the word `session` in the body.
    """
    return response.status == 404 or (response.status == 400 and b"session" in (await response.read()).lower())


async def _knows_no_ping(response: HttpResponse) -> bool:
    """Return whether the server refused the ping only because it does not support pings."""
    try:
        document = jsonrpc.loads(await response.read())
    except ValueError:
        return False
    error = document.get("error") if isinstance(document, dict) else None
    return isinstance(error, dict) and error.get("code") == jsonrpc.METHOD_NOT_FOUND


async def _holds_answer(response: HttpResponse, request_id: int) -> bool:
    """Return whether this 404 may contain the answer: JSON-RPC with the request's id, or an event stream."""
    if response.media_type == "text/event-stream":
        return True
    try:
        document = jsonrpc.loads(await response.read())
    except ValueError:
        return False
    return isinstance(document, dict) and is_answer(document, request_id)
