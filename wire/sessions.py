"""The wire of `initialize` sessions (2025-03-26 to 2025-11-25): agree once, then call within the session."""

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any, NamedTuple

from wire import jsonrpc, product, trace_context, versions
from wire.errors import BadAnswer, UpstreamError
from wire.jsonrpc import Object
from wire.pool import HttpResponse, Transport
from wire.rpc_messages import (
    SESSION,
    OnNotification,
    RpcResponse,
    Target,
    WrongEra,
    answer_of,
    next_request_id,
)

logger = logging.getLogger(__name__)

IDLE_SECONDS = 600
MOST_SESSIONS = 10_000
MOST_QUESTIONS = 8  # Requests a server may make during one of ours; each answer takes a connection.
LONGEST_ID = 1_024  # Characters, or bits, of the id of such a request.
FAREWELL_SECONDS = 2
ERRAND_SECONDS = 10

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
        self._errands: set[asyncio.Task[None]] = set()

    async def ask(self, target: Target, method: str, params: Object, hear: OnNotification) -> RpcResponse:
        """One request, and its answer; a session that was lost is opened anew, once.

        Raises a Fault, or WrongEra when the server does not know this wire.
        """
        session = await self._session(target)
        try:
            return await self._ask(session, target, method, params, hear)
        except SessionLost:
            self._forget(session)
            session = await self._session(target)
        try:
            return await self._ask(session, target, method, params, hear)
        except SessionLost:
            raise BadAnswer(target.server_name, "the server forgets its sessions") from None

    async def _ask(
        self, session: Session, target: Target, method: str, params: Object, hear: OnNotification
    ) -> RpcResponse:
        minted, questions = next_request_id(), 0

        async def hear_or_answer(message: Object) -> None:
            nonlocal questions
            if "id" in message:
                questions += 1
                if questions <= MOST_QUESTIONS and _can_be_said_again(message["id"]):
                    self._run(self._answer(session, target, message))
            else:
                await hear(message)

        try:
            with await self._send("POST", session, target, _request(minted, method, params)) as reply:
                if await _is_lost(reply, session):
                    raise SessionLost
                answer = await answer_of(reply, target, minted, SESSION, hear_or_answer)
        except asyncio.CancelledError:
            self._run(self._cancel(session, target, minted))
            raise
        if answer.error_code == jsonrpc.UNSUPPORTED_VERSION:
            self._forget(session)
            raise WrongEra
        return answer

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
        minted = next_request_id()
        params = {"protocolVersion": versions.NEWEST_SESSION, "capabilities": {}, "clientInfo": product.INFO}
        fresh = Session("", "", target)
        with await self._send("POST", fresh, target, _request(minted, "initialize", params)) as reply:
            answer = await answer_of(reply, target, minted, SESSION, _ignore)
            session_id = reply.header("mcp-session-id")
        if answer.error_code == jsonrpc.UNSUPPORTED_VERSION:
            raise WrongEra
        version = answer.document.get("result", {}).get("protocolVersion")
        if not isinstance(version, str) or not version.isascii() or not version.isprintable():
            raise BadAnswer(target.server_name, "initialize was refused")
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
            self._run(self._end(session))

    async def close(self) -> None:
        """Say farewell to every server, briefly."""
        for session, _ in self._sessions.values():
            self._run(self._end(session))
        self._sessions.clear()
        if self._errands:
            _, late = await asyncio.wait(self._errands, timeout=FAREWELL_SECONDS)
            for errand in late:
                errand.cancel()

    # Messages beside the request

    async def _answer(self, session: Session, target: Target, message: Object) -> None:
        """Answer what the server asks: a ping; no other request can be served, and none was announced."""
        reply: Object = {"jsonrpc": "2.0", "id": message["id"]}
        if message.get("method") == "ping":
            reply["result"] = {}
        else:
            reply["error"] = {"code": jsonrpc.METHOD_NOT_FOUND, "message": "Not supported by this client"}
        await self._post(session, target, reply)

    async def _cancel(self, session: Session, target: Target, minted: int) -> None:
        params = {"requestId": minted, "reason": "The client left."}
        await self._post(session, target, {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})

    async def _end(self, session: Session) -> None:
        if session.id:
            with await self._send("DELETE", session, session.target) as reply:
                await reply.read()

    async def _post(self, session: Session, target: Target, message: Object) -> None:
        with await self._send("POST", session, target, jsonrpc.dumps(message)) as reply:
            await reply.read()

    async def _send(self, verb: str, session: Session, target: Target, body: bytes = b"") -> HttpResponse:
        own = target.headers()
        if session.version:
            own["MCP-Protocol-Version"] = session.version
        if session.id:
            own["Mcp-Session-Id"] = session.id
        return await self._transport.send(verb, target.server_name, target.url, own, body)

    def _run(self, errand: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(_quietly(errand))
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)


async def _quietly(errand: Coroutine[Any, Any, None]) -> None:
    try:
        async with asyncio.timeout(ERRAND_SECONDS):
            await errand
    except (UpstreamError, TimeoutError) as error:
        logger.debug("errand to a server failed", extra={"error": str(error)})


def _key(target: Target) -> Key:
    return target.connection_id, target.server_id, target.url, target.generation, _header(target)


def _header(target: Target) -> str:
    """The header the credential travels in: a session opened without it, or with another, is another session."""
    return target.credential[0] if target.credential else ""


def _request(minted: int, method: str, params: Object) -> bytes:
    return jsonrpc.dumps({"jsonrpc": "2.0", "id": minted, "method": method, "params": params})


def _can_be_said_again(request_id: object) -> bool:
    """Whether an id of a server's request is one; it goes back with the answer, and a huge one would double there."""
    if isinstance(request_id, str):
        return len(request_id) <= LONGEST_ID
    return type(request_id) is int and request_id.bit_length() <= LONGEST_ID


async def _is_lost(reply: HttpResponse, session: Session) -> bool:
    """404 is the rule; servers that answer 400 to a session they do not know say so in words."""
    if reply.status == 404:
        return session.id != ""
    return reply.status == 400 and b"session" in (await reply.read()).lower()


async def _ignore(_: Object) -> None:
    """Nothing that precedes the answer matters."""
