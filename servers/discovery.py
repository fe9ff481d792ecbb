"""*Test connection* and *Refresh tools*: lists a server's tools, stores its health, and explains failures.

`discover` does not touch the database, so several servers can be asked at once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from django.utils import timezone

from accounts.models import User
from proxy.models import ServerInfo as StoredInfo
from servers.models import Era, Health, Identity, Server, cipher
from servers.oauth_client.refreshing import keep_fresh
from servers.upstream_guard import upstream_guard
from wire import blocking, builtin, errors
from wire.cipher import Unreadable
from wire.client import MOST_BYTES
from wire.credential import Unsendable, header_of
from wire.definitions import TOOL, Definition
from wire.guard import Guard, UrlRefused
from wire.jsonrpc import storable
from wire.pool import CONNECT_SECONDS, Transport
from wire.rpc_messages import ServerInfo, Target

__all__ = ["AccessRefused", "Discovered", "Failed", "discover", "identity_for", "note", "probe"]

DISCOVERY_SECONDS = 10
MAX_QUOTED = 200  # How much of a server's own text goes into a sentence of ours.
MAX_SENTENCE = 300


class Failed(Exception):
    """The server gave no usable answer; the message goes on after "The server".

    It may quote the server, and yet can be stored and shown. `reason` is why, in the words of the log.
    """

    def __init__(self, sentence: str, reason: str = "unreachable") -> None:
        super().__init__(storable(sentence)[:MAX_SENTENCE])
        self.reason = reason


class AccessRefused(Failed):
    """The server responds, but refuses access."""


@dataclass(frozen=True, slots=True)
class Discovered:
    """What a server turned out to speak and to offer: by kind its usable definitions, as it sent them."""

    era: Era
    info: ServerInfo
    features: dict[str, list[Definition]]
    took_ms: int

    @property
    def version(self) -> str:
        return self.info.version

    @property
    def tools(self) -> list[dict[str, Any]]:
        """Its tools as it defines them."""
        return [definition.value for definition in self.features[TOOL]]

    def __str__(self) -> str:
        count = len(self.tools)
        return f"Answered in {self.took_ms:,} ms with {count:,} tool{'s' * (count != 1)}. It speaks MCP {self.version}."


def identity_for(server: Server, user: User) -> Identity | None:
    """The credential `user` may test `server` with: their own, else a shared one; none where none is needed."""
    if not server.needs_credential:
        return None
    usable = Identity.objects.filter(server=server).usable()
    return usable.own(user).first() or usable.shared().first()


def probe(server: Server, *, by: User) -> Discovered:
    """Contact `server` now and remember how it went. Raises Failed."""
    identity = identity_for(server, by)
    if identity is not None:
        keep_fresh(identity)
    try:
        discovered = discover(server, identity)
    except Failed as failure:
        note(server, identity, failure)
        raise
    note(server, identity, discovered)
    return discovered


def note(server: Server, identity: Identity | None, outcome: Discovered | Failed) -> None:
    """Remember on the rows how a contact went."""
    match outcome:
        case Discovered():
            server.note_health(Health.OK, era=outcome.era)
            _note_info(server, identity, outcome.info)
        case AccessRefused():  # Who asks for a credential is up.
            server.note_health(Health.OK)
        case Failed():
            server.note_health(Health.DOWN, str(outcome))
    if identity:
        error = str(outcome)[:300] if isinstance(outcome, AccessRefused) else ""
        Identity.objects.filter(pk=identity.pk).update(last_used_at=timezone.now(), last_error=error)


def _note_info(server: Server, identity: Identity | None, info: ServerInfo) -> None:
    """Keep what the server said of itself to this identity: clients are told it."""
    said = {
        "version": info.version,
        "capabilities": info.capabilities,
        "instructions": storable(info.instructions),
        "changed_at": timezone.now(),
    }
    StoredInfo.objects.update_or_create(
        server_id=server.pk, told_to=identity.pk if identity else server.pk, defaults=said
    )


def discover(server: Server, identity: Identity | None, kinds: Sequence[str] = (TOOL,)) -> Discovered:
    """Ask `server` for all it offers of these kinds, in whichever era it speaks. Raises Failed."""
    started = time.monotonic()
    try:
        found = _ask(server, identity, kinds)
    except errors.AccessRefused as error:
        reason = "it refused the credential" if identity else "it wants a credential"
        raise AccessRefused(f"answered {error.status}: {reason}", error.reason) from None
    except errors.UpstreamError as error:
        raise Failed(_in_words(error, server), error.reason) from None
    return Discovered(Era(found.era), found.info, found.features, round((time.monotonic() - started) * 1000))


def _ask(server: Server, identity: Identity | None, kinds: Sequence[str]) -> blocking.Discovery:
    if server.is_built_in:
        listener = builtin.listener()
        if listener is None:
            raise Failed("is part of the running gateway, which this command is not")
        transport = Transport(Guard(), limit=MOST_BYTES, listener=listener.origin, secret=listener.secret)
        return blocking.discover(_target(server, None), transport, seconds=DISCOVERY_SECONDS, kinds=kinds)
    guard = upstream_guard()
    if guard.own.has(server.url):
        raise AccessRefused("was not asked: its URL is an address of this gateway itself", "loop")
    try:
        guard.check_url(server.url)
    except UrlRefused as refusal:
        raise Failed(f"cannot be called: {refusal}", "address_blocked") from None
    return blocking.discover(
        _target(server, identity), Transport(guard, limit=MOST_BYTES), seconds=DISCOVERY_SECONDS, kinds=kinds
    )


def _target(server: Server, identity: Identity | None) -> Target:
    """The target and credential of the request; the server's era is detected again."""
    return Target(
        server_id=str(server.pk),
        server_name=server.name,
        url=server.url,
        era="",
        timeout_s=server.timeout_seconds,
        max_concurrent=server.max_concurrent,
        connection_id="",
        credential=_credential(server, identity),
        generation="",
        total_s=server.total_seconds,
    )


def _credential(server: Server, identity: Identity | None) -> tuple[str, str] | None:
    """The header that carries `identity`, and its value."""
    if identity is None or identity.secret_ciphertext is None or not server.needs_credential:
        return None
    try:
        secret = cipher().open(bytes(identity.secret_ciphertext))
    except Unreadable:
        raise AccessRefused(f"was not asked: no encryption key opens the identity “{identity.label}”") from None
    try:
        return header_of(server.auth_type, server.header_name, secret)
    except Unsendable as reason:
        raise AccessRefused(f"was not asked: the identity “{identity.label}” cannot be sent, {reason}") from None


# What went wrong, as it goes on after "The server"; a kind that is not here is told as the kind it belongs to.
SENTENCES: dict[type[errors.UpstreamError], str] = {
    errors.UpstreamError: "gave no answer: {0}",
    errors.TimedOut: "did not answer within {0.seconds:.3g} s",
    errors.Unreachable: "closed the connection without an answer",
    errors.BadUrl: "has a URL that cannot be called",
    errors.NameNotFound: "has a name for which there is no address; check the spelling",
    errors.NotConnected: "refused the connection",
    errors.ConnectTimedOut: f"did not answer within {CONNECT_SECONDS:g} s",
    errors.TlsFailed: "has a TLS certificate that this gateway does not trust",
    errors.AddressBlocked: "has a private address; GATEWAY_PRIVATE_UPSTREAMS does not allow it",
    errors.Loop: "has an address that leads back to this gateway itself",
    errors.TooLarge: "answered with {0.detail}",
    errors.TooManyFeatures: "lists {0.detail}",
    errors.Flooded: "sent {0.detail} instead of an answer",
    errors.BadAnswer: "answered, but not in MCP",
    errors.Redirected: f"redirects to {{0.location:.{MAX_QUOTED}}}; redirects are not followed",
    errors.UnknownVersion: "{0.detail}, which this gateway does not know",
    errors.OldTransport: (
        "speaks only the old HTTP+SSE transport of MCP 2024-11-05, which this gateway does not call; "
        "ask its maker for the address of its Streamable HTTP endpoint, often /mcp instead of /sse"
    ),
    errors.BadSessionId: "opened a session whose id no header can carry",
}


def _in_words(error: errors.UpstreamError, server: Server) -> str:
    if isinstance(error, errors.AddressBlocked) and server.url.startswith("http://"):
        return "is called without TLS; that is for addresses in GATEWAY_PRIVATE_UPSTREAMS only"
    if type(error) is errors.BadAnswer and (error.error or error.status != HTTPStatus.OK):
        return _refusal(error)
    kind = next(kind for kind in type(error).__mro__ if kind in SENTENCES)
    return SENTENCES[kind].format(error)


def _refusal(error: errors.BadAnswer) -> str:
    """The message for an error, or for a status alone."""
    if error.error:
        message, code = error.error.get("message"), error.error.get("code")
        quoted = message[:MAX_QUOTED] if isinstance(message, str) else ""
        return f"answered with an error: {quoted} ({code if isinstance(code, int) else 'without a code'})"
    match error.status:
        case HTTPStatus.NOT_FOUND:
            return "answered 404: there is no MCP endpoint at this URL"
        case HTTPStatus.METHOD_NOT_ALLOWED:
            return "answered 405: it may speak the older HTTP+SSE transport, which is not supported"
    return f"answered {error.status}"
