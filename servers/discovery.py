"""Functions for *Test connection* and *Refresh tools*.

They list a server's tools, store the server's health, and describe failures in words.

`discover_features` does not touch the database, so several servers can be asked concurrently.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.utils import timezone

from accounts.models import Attempt, User
from accounts.queues import released_while_waiting
from proxy.models import ServerInfo as StoredInfo
from servers.models import Era, Health, Identity, Server
from servers.oauth_client.registration import keep_fresh
from servers.upstream_guard import upstream_guard
from ui.sealing import cipher
from wire import client, errors
from wire.cipher import Undecryptable
from wire.client import MOST_BYTES, Spoken
from wire.definitions import Definition
from wire.errors import failure_text
from wire.guard import Guard, UrlRefused
from wire.guard import listener as local_listener
from wire.http import Transport
from wire.jsonrpc import storable
from wire.mcp import MODERN, TOOL, ServerDescription, Target
from wire.oauth_client import Unsendable, header_of

__all__ = [
    "Discovered",
    "DiscoveryFailed",
    "DiscoveryRefused",
    "NoEndpoint",
    "NotAsked",
    "contact",
    "discover_features",
    "identity_for",
    "probe",
    "record_contact",
    "refusal_of",
]

DISCOVERY_SECONDS = 10
TRIAL_SECONDS = 5  # Time limit of a test, short because a person waits for the page.
MOST_TRIALS = 20  # New credentials tested per server and minute.
MAX_SENTENCE = 300


class DiscoveryFailed(Exception):
    """The server gave no usable answer. The message continues a sentence that begins with "The server".

    The message may quote the server, but is safe to store and show.
    """

    # True if the server works, and asks for a credential or refused the one it got.
    wants_credential = False

    def __init__(self, sentence: str, reason: str = "unreachable") -> None:
        super().__init__(storable(sentence)[:MAX_SENTENCE])
        self.reason = reason  # The error code for the log.


class DiscoveryRefused(DiscoveryFailed):
    """The server refused access."""

    wants_credential = True


class NotAsked(DiscoveryRefused):
    """Nothing was sent: the URL is an address of this gateway, or the credential cannot be decrypted or sent."""

    wants_credential = False


class NoEndpoint(DiscoveryFailed):
    """A web server answers, but there is no MCP endpoint at this URL (404 or 405)."""


@dataclass(frozen=True, slots=True)
class Discovered:
    """The result of a successful contact with a server.

    `spoken` contains the eras of MCP that the server speaks. `features` contains the usable definitions of its features
    by kind, as the server sent them.
    """

    spoken: Spoken
    features: dict[str, list[Definition]]
    took_ms: int

    @property
    def era(self) -> Era:
        return Era(self.spoken.eras)

    @property
    def info(self) -> ServerDescription:
        """The server's description of itself, in the newest era that the server speaks."""
        return self.spoken.infos[-1]

    @property
    def version(self) -> str:
        """The newest version of MCP that the server speaks."""
        return self.info.version

    @property
    def versions(self) -> str:
        """The newest version that the server speaks in each era of MCP, as text."""
        return " and ".join(info.version for info in reversed(self.spoken.infos))

    @property
    def tools(self) -> list[dict[str, Any]]:
        return [definition.value for definition in self.features[TOOL]]

    def __str__(self) -> str:
        count = len(self.tools)
        return (
            f"Answered in {self.took_ms:,} ms with {count:,} tool{'s' * (count != 1)}. It speaks MCP {self.versions}."
        )


def identity_for(server: Server, user: User) -> Identity | None:
    """Return the credential for a test of `server`: the user's own if it is usable, otherwise a shared one.

    Return None if the server needs no credential, or if no usable one exists.
    """
    if not server.needs_credential:
        return None
    usable = Identity.objects.filter(server=server).usable()
    usable = usable.not_refused_first()
    return usable.own(user).first() or usable.shared().first()


def refusal_of(server: Server, secret: str) -> str:
    """Test a secret that is not stored yet. If the server refuses the secret, return the reason as text.

    The text continues a sentence that begins with the server's name. Return "" if the server accepts the secret, or if
    the test fails for another reason. Return "" without a test if the server is disabled, or if it already had
    MOST_TRIALS tests this minute.
    """
    # The limit keeps people from guessing credentials through the gateway.
    if not server.enabled or Attempt.objects.note(f"trial {server.pk}") > MOST_TRIALS:
        return ""
    identity = Identity(server=server, label="new", kind=server.auth_type)
    identity.seal(secret)
    try:
        discover_features(server, identity, seconds=TRIAL_SECONDS)
    except DiscoveryFailed as failure:
        return str(failure) if failure.reason == errors.AccessRefused.reason else ""
    return ""


def probe(server: Server, *, by: User) -> Discovered:
    """Contact `server` now and record the outcome. Raises DiscoveryFailed."""
    return contact(server, identity_for(server, by))


def contact(server: Server, identity: Identity | None, seconds: float = DISCOVERY_SECONDS) -> Discovered:
    """Contact `server`, and record the outcome on the server. Raises DiscoveryFailed.

    If an `identity` is given, use the identity for the contact, and record the outcome on the identity, too.
    """
    if identity is not None:
        keep_fresh(identity)
    try:
        discovered = discover_features(server, identity, seconds=seconds)
    except DiscoveryFailed as failure:
        record_contact(server, identity, failure)
        raise
    record_contact(server, identity, discovered)
    return discovered


def record_contact(server: Server, identity: Identity | None, outcome: Discovered | DiscoveryFailed) -> None:
    match outcome:
        case Discovered():
            era = Era(outcome.spoken.eras_beside(server.protocol_era))
            server.note_health(Health.OK, era=era, evidence=outcome.spoken.evidence)
            server.take_name(outcome.info.name)
            for info in outcome.spoken.infos:
                _note_info(server, identity, info)
        case NotAsked():
            server.note_health(Health.UNKNOWN, str(outcome))
        case DiscoveryRefused():  # A server that asks for a credential is working.
            server.note_health(Health.OK)
        case DiscoveryFailed():
            server.note_health(Health.DOWN, str(outcome))
    if identity:
        error = str(outcome)[:300] if isinstance(outcome, DiscoveryRefused) else ""
        Identity.objects.filter(pk=identity.pk).update(last_error=error)


def _note_info(server: Server, identity: Identity | None, info: ServerDescription) -> None:
    """Store the ServerDescription that the server returned for this identity. Clients get this description."""
    said = {
        "version": info.version,
        "modern_capabilities" if info.era == MODERN else "capabilities": info.capabilities,
        "instructions": storable(info.instructions),
        "changed_at": timezone.now(),
    }
    StoredInfo.objects.update_or_create(
        server_id=server.pk, told_to=identity.pk if identity else server.pk, defaults=said
    )


def discover_features(
    server: Server,
    identity: Identity | None,
    kinds: Sequence[str] = (TOOL,),
    *,
    seconds: float = DISCOVERY_SECONDS,
) -> Discovered:
    """Ask `server` for all features of these kinds, in the newest era that it speaks.

    Raises DiscoveryFailed if the features of the first kind cannot be listed. Other kinds that cannot be listed are
    missing from the result.
    """
    started = time.monotonic()
    try:
        found = _ask(server, identity, kinds, seconds)
    except errors.AccessRefused as error:
        reason = "it refused the credential" if identity else "it wants a credential"
        raise DiscoveryRefused(f"answered {error.status}: {reason}", error.reason) from None
    except errors.UpstreamError as error:
        elsewhere = type(error) is errors.BadAnswer and error.status in (404, 405) and not error.error
        raise (NoEndpoint if elsewhere else DiscoveryFailed)(failure_text(error, server.url), error.reason) from None
    return Discovered(found.spoken, found.features, round((time.monotonic() - started) * 1000))


def _ask(server: Server, identity: Identity | None, kinds: Sequence[str], seconds: float) -> client.Discovery:
    if server.is_built_in:
        listener = local_listener()
        if listener is None:
            raise NotAsked("is part of the running gateway, so this command cannot call it")
        transport = Transport(Guard(), limit=MOST_BYTES, listener=listener.origin, secret=listener.secret)
        return _asked(_target(server, None), transport, kinds, seconds)
    own_guard = upstream_guard() if server.private is not False else upstream_guard().outside()
    if own_guard.own.has(server.url):
        raise NotAsked("was not asked: its URL is this gateway's own", "loop")
    try:
        own_guard.check_url(server.url)
    except UrlRefused as refusal:
        raise DiscoveryFailed(f"cannot be called: {refusal}", "address_blocked") from None
    return _asked(_target(server, identity), Transport(own_guard, limit=MOST_BYTES), kinds, seconds)


def _asked(target: Target, transport: Transport, kinds: Sequence[str], seconds: float) -> client.Discovery:
    with released_while_waiting():
        return client.discover_blocking(target, transport, seconds=seconds, kinds=kinds)


def _target(server: Server, identity: Identity | None) -> Target:
    """Return the Target of a request to `server`. Its era is empty, because the eras are determined again."""
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
        private=server.private is not False,
    )


def _credential(server: Server, identity: Identity | None) -> tuple[str, str] | None:
    """Return name and value of the header for the credential of `identity`; None if no credential is to be sent."""
    if identity is None or identity.secret_ciphertext is None or not server.needs_credential:
        return None
    try:
        secret = cipher().open(bytes(identity.secret_ciphertext))
    except Undecryptable:
        reason = f"was not asked: no encryption key decrypts the credential “{identity.label}”"
        raise NotAsked(reason, "identity_unreadable") from None
    try:
        return header_of(server.auth_type, server.header_name, secret)
    except Unsendable as error:
        reason = f"was not asked: the credential “{identity.label}” cannot be sent, {error}"
        raise NotAsked(reason, "identity_unreadable") from None
