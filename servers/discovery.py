"""Find out what an upstream server speaks and offers: *Test connection* and *Refresh tools*.

`discover` does not touch the database, so several servers can be asked at once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol, Self

from django.utils import timezone

from accounts.models import User
from servers.models import Era, Health, Identity, Server, cipher
from servers.upstream_guard import upstream_guard
from servers.wire import MAX_TOLD, Failed, Object, Reply, Wire
from wire import builtin, product, versions
from wire.cipher import Unreadable
from wire.credential import Unsendable, fits_a_header, header_of
from wire.tool_names import is_shallow, is_tool_name, runs_only_as_task

__all__ = ["AccessRefused", "Discovered", "Failed", "discover", "identity_for", "probe"]

PATIENCE_S = 10
MAX_PAGES = 100
MAX_TOOLS = 5_000

METHOD_NOT_FOUND = -32601
UNSUPPORTED_VERSION = -32022


@dataclass(frozen=True, slots=True)
class Discovered:
    """What a server turned out to speak and to offer; `tools` are its definitions as it sent them."""

    era: Era
    version: str
    tools: list[Object]
    took_ms: int

    def __str__(self) -> str:
        count = len(self.tools)
        return f"Answered in {self.took_ms:,} ms with {count:,} tool{'s' * (count != 1)}. It speaks MCP {self.version}."


class AccessRefused(Failed):
    """The server is there, and does not let us in."""


class _Locked(Exception):
    """It answered 401 or 403."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def identity_for(server: Server, user: User) -> Identity | None:
    """The credential `user` may test `server` with: their own, else a shared one; none where none is needed."""
    if not server.needs_credential:
        return None
    usable = Identity.objects.filter(server=server).usable()
    return usable.own(user).first() or usable.shared().first()


def probe(server: Server, *, by: User) -> Discovered:
    """Contact `server` now and remember how it went. Raises Failed."""
    identity = identity_for(server, by)
    try:
        found = discover(server, identity)
    except Failed as failure:
        note(server, identity, failure)
        raise
    note(server, identity, found)
    return found


def note(server: Server, identity: Identity | None, outcome: Discovered | Failed) -> None:
    """Remember on the rows how a contact went."""
    match outcome:
        case Discovered():
            server.note_health(Health.OK, era=outcome.era)
        case AccessRefused():  # Who asks for a credential is up.
            server.note_health(Health.OK)
        case Failed():
            server.note_health(Health.DOWN, str(outcome))
    if identity:
        error = str(outcome)[:300] if isinstance(outcome, AccessRefused) else ""
        Identity.objects.filter(pk=identity.pk).update(last_used_at=timezone.now(), last_error=error)


def discover(server: Server, identity: Identity | None) -> Discovered:
    """Ask `server` for all its tools, in whichever era it speaks. Raises Failed."""
    begun = time.monotonic()
    try:
        with _wire(server, identity) as wire:
            dialogue = Modern.begin(wire) or Session.begin(wire)
            try:
                tools = _all_tools(dialogue)
            finally:
                dialogue.end()
    except _Locked as locked:
        why = "it refused the credential" if identity else "it wants a credential"
        raise AccessRefused(f"answered {locked.status}: {why}") from None
    return Discovered(dialogue.era, dialogue.version, tools, round((time.monotonic() - begun) * 1000))


def _wire(server: Server, identity: Identity | None) -> Wire:
    seconds = min(server.timeout_seconds, PATIENCE_S)
    if server.is_built_in:
        here = builtin.listener()
        if here is None:
            raise Failed("is part of the running gateway, which this command is not")
        return Wire(here.url, {builtin.SECRET_HEADER: here.secret}, guard=here.guard, seconds=seconds)
    guard = upstream_guard()
    if guard.own.has(server.url):
        raise AccessRefused("was not asked: its URL is an address of this gateway itself")
    return Wire(server.url, _credential(server, identity), guard=guard, seconds=seconds)


def _credential(server: Server, identity: Identity | None) -> dict[str, str]:
    """The header that carries `identity`."""
    if identity is None or identity.secret_ciphertext is None or not server.needs_credential:
        return {}
    try:
        secret = cipher().open(bytes(identity.secret_ciphertext))
    except Unreadable:
        raise AccessRefused(f"was not asked: no encryption key opens the identity “{identity.label}”") from None
    try:
        return dict([header_of(server.auth_type, server.header_name, secret)])
    except Unsendable as reason:
        raise AccessRefused(f"was not asked: the identity “{identity.label}” cannot be sent, {reason}") from None


class Dialogue(Protocol):
    """An upstream that has been greeted in its era."""

    era: Era
    version: str

    def ask(self, method: str, params: Object) -> Reply: ...

    def end(self) -> None: ...


class Modern:
    """2026-07-28: every request stands for itself."""

    era = Era.MODERN
    version = versions.MODERN

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    @classmethod
    def begin(cls, wire: Wire) -> Self | None:
        """Probe; None when the server knows sessions only. No contact at all is no verdict: it raises Failed."""
        dialogue = cls(wire)
        reply = dialogue.ask("server/discover", {})
        _refuse_if_locked(reply)
        supported = (reply.result or {}).get("supportedVersions")
        if isinstance(supported, list) and versions.MODERN in supported:
            return dialogue
        supported = _supported(reply)
        if supported and not set(supported) & set(versions.SUPPORTED):
            raise Failed(f"speaks only MCP {', '.join(supported)[:MAX_TOLD]}, which this gateway does not know")
        return None

    def ask(self, method: str, params: Object) -> Reply:
        meta = {
            versions.MODERN_KEY: versions.MODERN,
            versions.CAPABILITIES_KEY: {},
            versions.CLIENT_INFO_KEY: product.INFO,
        }
        return self._wire.ask(
            method, {**params, "_meta": meta}, {"MCP-Protocol-Version": versions.MODERN, "Mcp-Method": method}
        )

    def end(self) -> None:
        """Nothing to end."""


class Session:
    """`initialize` first, then a session if the server opened one."""

    era = Era.SESSION

    def __init__(self, wire: Wire, version: str, session: str) -> None:
        self._wire = wire
        self.version = version
        self._session = session
        self._headers = {"MCP-Protocol-Version": version} | ({"Mcp-Session-Id": session} if session else {})

    @classmethod
    def begin(cls, wire: Wire) -> Self:
        params = {"protocolVersion": versions.NEWEST_SESSION, "capabilities": {}, "clientInfo": product.INFO}
        reply = wire.ask("initialize", params, {})
        _refuse_if_locked(reply)
        if reply.result is None:
            raise Failed(_no_result(reply))
        version = reply.result.get("protocolVersion")
        if version not in versions.SESSION_VERSIONS:
            told = version[:20] if isinstance(version, str) and version else "of no version"
            raise Failed(f"speaks MCP {told}, which this gateway does not know")
        if reply.session and not fits_a_header(reply.session):
            raise Failed("opened a session whose id no header can carry")
        dialogue = cls(wire, version, reply.session)
        wire.tell("notifications/initialized", dialogue._headers)
        return dialogue

    def ask(self, method: str, params: Object) -> Reply:
        return self._wire.ask(method, params, self._headers)

    def end(self) -> None:
        if self._session:
            self._wire.end(self._headers)


def _all_tools(dialogue: Dialogue) -> list[Object]:
    """Every page of tools/list; a server without tools has none."""
    tools: list[Object] = []
    cursor: object = None
    for _ in range(MAX_PAGES):
        reply = dialogue.ask("tools/list", {"cursor": cursor} if cursor else {})
        _refuse_if_locked(reply)
        if reply.error.get("code") == METHOD_NOT_FOUND:
            return tools
        if reply.result is None:
            raise Failed(_no_result(reply))
        page = reply.result.get("tools")
        tools += [tool for tool in page if _is_usable(tool)] if isinstance(page, list) else []
        if len(tools) > MAX_TOOLS:
            raise Failed(f"lists more than {MAX_TOOLS:,} tools")
        before, cursor = cursor, reply.result.get("nextCursor")
        if not isinstance(cursor, str) or cursor in ("", before):
            break
    return tools


def _is_usable(tool: object) -> bool:
    """Whether a definition can be kept, and the tool be called by its name."""
    if not isinstance(tool, dict) or not is_tool_name(tool.get("name")) or not is_shallow(tool):
        return False
    return not runs_only_as_task(tool)


def _supported(reply: Reply) -> list[str]:
    data = reply.error.get("data")
    if reply.error.get("code") != UNSUPPORTED_VERSION or not isinstance(data, dict):
        return []
    supported = data.get("supported")
    return [version for version in supported if isinstance(version, str)] if isinstance(supported, list) else []


def _refuse_if_locked(reply: Reply) -> None:
    if reply.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise _Locked(reply.status)


def _no_result(reply: Reply) -> str:
    if reply.error:
        told, code = reply.error.get("message"), reply.error.get("code")
        text = told[:MAX_TOLD] if isinstance(told, str) else ""
        return f"answered with an error: {text} ({code if isinstance(code, int) else 'without a code'})"
    match reply.status:
        case HTTPStatus.NOT_FOUND:
            return "answered 404: there is no MCP endpoint at this URL"
        case HTTPStatus.METHOD_NOT_ALLOWED:
            return "answered 405: it may speak the older HTTP+SSE transport, which is not supported"
        case status if status >= HTTPStatus.BAD_REQUEST:
            return f"answered {status}"
    return "answered, but not in MCP"
