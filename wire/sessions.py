"""The client side of MCP with `initialize` (up to 2025-11-25): one session for each connection, kept and ended."""

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any, NamedTuple

from wire import jsonrpc, product, trace_context, versions
from wire.credential import fits_a_header
from wire.errors import BadAnswer, BadSessionId, UnknownVersion, UpstreamError
from wire.jsonrpc import Object
from wire.pool import HttpResponse, Transport
from wire.rpc_messages import (
    SESSION,
    OnNotification,
    RpcResponse,
    Target,
    WrongEra,
    ignore,
    next_request_id,
    read_response,
)

logger = logging.getLogger(__name__)

IDLE_SECONDS = 600
MOST_SESSIONS = 10_000
MOST_SERVER_REQUESTS = 8  # Requests a server may make during one of ours; each answer takes a connection.
LONGEST_ID = 1_024  # Characters, or bits, of the id of such a request.
CLOSE_SECONDS = 2
BACKGROUND_SECONDS = 10

type Key = tuple[str, str, str, str, str]


class Session(NamedTuple):
    """What `initialize` agreed on; `id` is empty with a server that keeps no state."""

    id: str
    version: str
    target: Target


class SessionLost(Exception):
    """The server has forgotten the session; the request was not processed."""


class SessionWire:
    """Keeps one session for each connection, server and credential; none is ever shared."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        # In order of last use, so that the idle ones stand first.
        self._sessions: dict[Key, tuple[Session, float]] = {}
        self._opening: dict[Key, asyncio.Event] = {}
        self._background_tasks: set[asyncio.Task[None]] = set()

    async def ask(self, target: Target, method: str, params: Object, on_notification: OnNotification) -> RpcResponse:
        """Send one request and return its answer; a session that was lost is opened anew, once.

        Raises an UpstreamError, or WrongEra when the server does not know this wire.
        """
        session = await self._session(target)
        try:
            return await self._ask(session, target, method, params, on_notification)
        except SessionLost:
            self._forget(session)
            session = await self._session(target)
        try:
            return await self._ask(session, target, method, params, on_notification)
        except SessionLost:
            raise BadAnswer(target.server_name, "the server forgets its sessions") from None

    async def _ask(
        self, session: Session, target: Target, method: str, params: Object, on_notification: OnNotification
    ) -> RpcResponse:
        request_id, server_requests = next_request_id(), 0

        async def on_message(message: Object) -> None:
            nonlocal server_requests
            if "id" in message:
                server_requests += 1
                if server_requests <= MOST_SERVER_REQUESTS and _is_valid_id(message["id"]):
                    self._start_background(self._answer(session, target, message))
            else:
                await on_notification(message)

        try:
            with await self._send("POST", session, target, _request(request_id, method, params)) as response:
                if await _is_lost(response, session):
                    raise SessionLost
                answer = await read_response(response, target, request_id, SESSION, on_message)
        except asyncio.CancelledError:
            self._start_background(self._cancel(session, target, request_id))
            raise
        if answer.error_code == jsonrpc.UNSUPPORTED_VERSION:
            self._forget(session)
            raise WrongEra
        return answer

    def version(self, target: Target) -> str:
        """The version agreed on in the session with this target; empty without one."""
        known = self._sessions.get(_key(target))
        return known[0].version if known else ""

    # Sessions

    async def _session(self, target: Target) -> Session:
        key = _key(target)
        while (opening := self._opening.get(key)) is not None:
            await opening.wait()
        if (known := self._sessions.pop(key, None)) is None:
            known = (await self._open(key, target), 0)
        self._sessions[key] = known[0], time.monotonic()
        return known[0]

    async def _open(self, key: Key, target: Target) -> Session:
        self._opening[key] = opened = asyncio.Event()
        try:
            session = await self._initialize(target)
            await self._post(session, target, {"jsonrpc": "2.0", "method": "notifications/initialized"})
            return session
        finally:
            del self._opening[key]
            opened.set()

    async def _initialize(self, target: Target) -> Session:
        request_id = next_request_id()
        params = {"protocolVersion": versions.NEWEST_SESSION, "capabilities": {}, "clientInfo": product.INFO}
        new = Session("", "", target)
        with await self._send("POST", new, target, _request(request_id, "initialize", params)) as response:
            answer = await read_response(response, target, request_id, SESSION, ignore)
            session_id = response.header("mcp-session-id")
        if answer.error_code == jsonrpc.UNSUPPORTED_VERSION:
            raise WrongEra
        if answer.error is not None:
            raise BadAnswer(target.server_name, "initialize was refused", error=answer.error)
        version = answer.document["result"].get("protocolVersion")
        if not isinstance(version, str) or not version.isascii() or not version.isprintable():
            named = version[:20] if isinstance(version, str) else "of no version"
            raise UnknownVersion(target.server_name, f"speaks MCP {named}")
        if session_id and not fits_a_header(session_id):
            raise BadSessionId(target.server_name)
        # The session outlives the request it was opened for, whose trace it must not pass on.
        return Session(session_id, version, target._replace(trace=trace_context.NONE))

    def _forget(self, session: Session) -> None:
        key = _key(session.target)
        if (known := self._sessions.get(key)) is not None and known[0] is session:
            del self._sessions[key]

    async def sweep(self) -> None:
        """End the sessions that nobody has used for a while."""
        oldest = time.monotonic() - IDLE_SECONDS
        surplus = len(self._sessions) - MOST_SESSIONS
        idle = [session for n, (session, used) in enumerate(self._sessions.values()) if n < surplus or used < oldest]
        for session in idle:
            self._forget(session)
            self._start_background(self._end(session))

    async def close(self) -> None:
        """End all sessions; servers get CLOSE_SECONDS for it."""
        for session, _ in self._sessions.values():
            self._start_background(self._end(session))
        self._sessions.clear()
        if self._background_tasks:
            _, late = await asyncio.wait(self._background_tasks, timeout=CLOSE_SECONDS)
            for task in late:
                task.cancel()

    # Messages beside the request

    async def _answer(self, session: Session, target: Target, message: Object) -> None:
        """Answer what the server asks: a ping; no other request can be served, and none was announced."""
        answer: Object = {"jsonrpc": "2.0", "id": message["id"]}
        if message.get("method") == "ping":
            answer["result"] = {}
        else:
            answer["error"] = {"code": jsonrpc.METHOD_NOT_FOUND, "message": "Not supported by this client"}
        await self._post(session, target, answer)

    async def _cancel(self, session: Session, target: Target, request_id: int) -> None:
        params = {"requestId": request_id, "reason": "The client left."}
        await self._post(session, target, {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})

    async def _end(self, session: Session) -> None:
        if session.id:
            with await self._send("DELETE", session, session.target) as response:
                await response.read()

    async def _post(self, session: Session, target: Target, message: Object) -> None:
        with await self._send("POST", session, target, jsonrpc.dumps(message)) as response:
            await response.read()

    async def _send(self, verb: str, session: Session, target: Target, body: bytes = b"") -> HttpResponse:
        headers = target.headers()
        if session.version:
            headers["MCP-Protocol-Version"] = session.version
        if session.id:
            headers["Mcp-Session-Id"] = session.id
        return await self._transport.send(verb, target.server_name, target.url, headers, body)

    def _start_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(_log_failure(work))
        self._background_tasks.add(task)
        task.add_done_callback(self._background_tasks.discard)


async def _log_failure(work: Coroutine[Any, Any, None]) -> None:
    try:
        async with asyncio.timeout(BACKGROUND_SECONDS):
            await work
    except (UpstreamError, TimeoutError) as error:
        logger.debug("a message beside a request failed", extra={"error": str(error)})


def _key(target: Target) -> Key:
    return target.connection_id, target.server_id, target.url, target.generation, _header(target)


def _header(target: Target) -> str:
    """The header the credential travels in: a session opened without it, or with another, is another session."""
    return target.credential[0] if target.credential else ""


def _request(request_id: int, method: str, params: Object) -> bytes:
    return jsonrpc.dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})


def _is_valid_id(request_id: object) -> bool:
    """Whether the id of a server's request is one; it goes back with the answer, so a huge one is not taken."""
    if isinstance(request_id, str):
        return len(request_id) <= LONGEST_ID
    return type(request_id) is int and request_id.bit_length() <= LONGEST_ID


async def _is_lost(response: HttpResponse, session: Session) -> bool:
    """404 is the rule; servers that answer 400 to a session they do not know say so in words."""
    if response.status == 404:
        return session.id != ""
    return response.status == 400 and b"session" in (await response.read()).lower()
