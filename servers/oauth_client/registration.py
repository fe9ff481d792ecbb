"""How this gateway becomes a client of an issuer: entered by a person, by its document, or by registering itself."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

import orjson
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from auditlog.actions import Action
from auditlog.models import Event
from servers.models import Server
from servers.oauth_client.discovery import Metadata
from servers.oauth_client.http import Http, Unreachable
from servers.oauth_client.models import ClientRegistration, Grant, Kind, live_registrations
from wire.credential import place_in_words, place_of
from wire.oauth_client import AUTH_METHODS, DEFAULT_AUTH_METHOD, auth_method, other_auth_method, union

__all__ = ["NotRegistered", "client_document", "common_redirect_uri", "enter", "redirect_uri", "registered", "reset"]

CLIENT_NAME = "Gateway Admin"


class NotRegistered(Exception):
    """This gateway is no client of the issuer and cannot become one by itself; the message says what to do."""


def redirect_uri(issuer: str, token_endpoint: str = "", revocation_endpoint: str = "") -> str:
    """The address to which this issuer, and no other, sends browsers back (RFC 9700 section 4.4.2.2).

    An answer says by it who was asked: what another issuer made a browser bring arrives at the wrong one. It depends on
    endpoints that were entered, too: the issuer, where the address is registered, sends nobody to that of others, so
    that whoever enters another endpoint gets no code of a client that has no secret.
    """
    name = f"{issuer}\n{token_endpoint}\n{revocation_endpoint}" if token_endpoint else issuer
    key = hashlib.sha256(name.encode()).hexdigest()[:32]
    return settings.PUBLIC_URL + reverse("servers:issuer_callback", args=[key])


def common_redirect_uri() -> str:
    """The address that several issuers know: those that read our document, all of which have to name themselves in
    their answers (RFC 9207), and those where an administrator registered it before each had its own."""
    return settings.PUBLIC_URL + reverse("servers:oauth_callback")


def document_url() -> str:
    """The address of our client metadata document, which is our client id where issuers read it."""
    return settings.PUBLIC_URL + reverse("servers:client_document")


def client_document() -> dict[str, Any]:
    """What issuers are told of this gateway in its document."""
    return {"client_id": document_url(), **_described("none", common_redirect_uri())}


def _described(method: str, redirect_uri: str) -> dict[str, Any]:
    return {
        "client_name": CLIENT_NAME,
        "client_uri": settings.PUBLIC_URL,
        "redirect_uris": [redirect_uri],
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "token_endpoint_auth_method": method,
        "application_type": "web",
    }


def registered(server: Server, metadata: Metadata, scope: str, *, by: User) -> ClientRegistration:
    """The registration to sign in with at this issuer for this scope, made now if there is none. Raises NotRegistered.

    Some let a client ask for nothing that it did not name when it registered. When more is wanted it registers anew;
    what was granted before is renewed with the client it was granted to.
    """
    _must_ask_at_home(server, metadata)
    live = ClientRegistration.objects.filter(ended_at=None)
    own = live.filter(server=server).first()
    if own is not None and own.redirect_uri in _addresses(own):
        if own.issuer != metadata.issuer:
            raise NotRegistered(
                f"{server} names {metadata.issuer} as its issuer now. The client was entered for {own.issuer}; "
                "an administrator has to enter it again."
            )
        if (own.token_endpoint, own.revocation_endpoint) != server.endpoints[1:]:
            raise NotRegistered(
                f"The client of {server} was entered for other endpoints of {own.issuer} than it has now; "
                "an administrator has to enter it again."
            )
        return own
    # What registered itself did so with what an issuer says of itself, and its secret is for those endpoints.
    usable = live.none() if server.authorization_endpoint else live.filter(_usable(metadata), server=None)
    shared = usable.filter(issuer=metadata.issuer).first()
    if shared is not None and (not shared.scope or set(scope.split()) <= set(shared.scope.split())):
        return shared
    if shared is not None:
        scope = union(shared.scope, scope)
    registration = _made(metadata, scope, redirect_uri(metadata.issuer, *server.endpoints[1:]))
    try:
        return _switch(server, registration, by=by)
    except IntegrityError:  # Somebody else registered it at the same moment.
        return _switch(server, registration, by=by)


def _addresses(client: ClientRegistration) -> tuple[str, ...]:
    """Those of this installation that a client may have been registered with at its issuer: its own; or, when it was
    entered earlier, that of the issuer whatever its endpoints, or that of all issuers."""
    own = redirect_uri(client.issuer, client.token_endpoint, client.revocation_endpoint)
    return own, redirect_uri(client.issuer), common_redirect_uri()


def _usable(metadata: Metadata) -> Q:
    """Registrations for a new sign-in: of those that share an address only the document's, and where that is safe."""
    fresh = Q(secret_expires_at=None) | Q(secret_expires_at__gt=timezone.now())
    usable = Q(redirect_uri=redirect_uri(metadata.issuer))
    if "document" in metadata.registrations:
        usable |= Q(kind=Kind.DOCUMENT, redirect_uri=common_redirect_uri())
    return fresh & usable


def _switch(server: Server, registration: ClientRegistration, *, by: User) -> ClientRegistration:
    """Use this registration at its issuer from now on, and the one of before for no further sign-in."""
    before = ClientRegistration.objects.filter(issuer=registration.issuer, server=None, ended_at=None)
    with transaction.atomic():
        before.update(ended_at=timezone.now())
        registration.save(force_insert=True)
        Event.objects.record(Action.SERVER_CLIENT_CHANGED, server, by=by, changes=_told(registration))
    return registration


def _must_ask_at_home(server: Server, metadata: Metadata) -> None:
    """Raise NotRegistered for an issuer of which one endpoint is at another issuer's, and one is not (RFC 9700 section
    4.4): what people get at the one would be sent to the other."""
    home, asks = place_of(metadata.issuer), place_of(metadata.authorization_endpoint)
    endpoints = (metadata.authorization_endpoint, metadata.token_endpoint, metadata.revocation_endpoint)
    places = {home, *(place_of(each) for each in endpoints if each)}
    if places == {home}:
        return
    # What an issuer says of itself was read at its home, which has agreed to it; nobody there has to what is entered.
    claimed = places if server.authorization_endpoint else places - {home}
    same = Q(
        issuer=metadata.issuer, token_endpoint=server.token_endpoint, revocation_endpoint=server.revocation_endpoint
    )
    known = ClientRegistration.objects.filter(ended_at=None).exclude(same)
    for other, *further in known.values_list("issuer", "token_endpoint", "revocation_endpoint").distinct():
        if place_of(other) not in claimed or places <= {place_of(each) for each in (other, *further) if each}:
            continue
        if place_of(other) == asks != home:
            raise NotRegistered(
                f"{metadata.issuer} leads people to {place_in_words(metadata.authorization_endpoint)} to sign in, "
                f"which is where another issuer, {other}, asks them. Nobody is sent there for {metadata.issuer}."
            )
        raise NotRegistered(
            f"Some endpoints of {metadata.issuer} are at {place_in_words(other)}, where another issuer, {other}, asks "
            "people to sign in, and some are elsewhere. Nobody is sent there."
        )


def _told(registration: ClientRegistration) -> dict[str, Any]:
    return {
        "client": [None, registration.client_id],
        "issuer": [None, registration.issuer],
        "kind": [None, registration.kind],
    }


def _made(metadata: Metadata, scope: str, address: str) -> ClientRegistration:
    ways = metadata.registrations
    row = ClientRegistration(issuer=metadata.issuer, redirect_uri=address)
    if "document" in ways:
        row.kind, row.client_id, row.auth_method = Kind.DOCUMENT, document_url(), "none"
        row.redirect_uri = common_redirect_uri()
        return row
    if "dynamic" in ways:
        return _register(row, metadata, scope)
    raise NotRegistered(
        f"{metadata.issuer} takes no clients that register themselves. An administrator has to register this gateway "
        f"there, with the redirect address {row.redirect_uri}, and to enter the client here."
    )


def _register(row: ClientRegistration, metadata: Metadata, scope: str) -> ClientRegistration:
    methods = metadata.auth_methods
    wanted = "none" if "none" in methods else auth_method(methods, secret=True)
    described = _described(wanted, row.redirect_uri)
    status, document = _post(metadata, described | ({"scope": scope} if scope else {}))
    if scope and status == 400:  # Some take no scope here, or not all of these.
        status, document = _post(metadata, described)
        scope = ""
    client_id = document.get("client_id")
    if status not in (200, 201) or not isinstance(client_id, str) or not client_id.isprintable():
        said = str(document.get("error_description") or document.get("error") or "no reason")[:200]
        raise NotRegistered(
            f"{metadata.issuer} refused to register this gateway ({status}: {said}). An administrator can register "
            f"it there, with the redirect address {row.redirect_uri}, and enter the client here."
        )
    row.scope = scope
    secret, expires = document.get("client_secret"), document.get("client_secret_expires_at")
    method = document.get("token_endpoint_auth_method") or (DEFAULT_AUTH_METHOD if secret else wanted)
    if method not in AUTH_METHODS or (method != "none" and not secret):
        raise NotRegistered(f"{metadata.issuer} registered this gateway in a way it cannot use ({str(method)[:40]}).")
    row.kind, row.client_id, row.auth_method = Kind.DYNAMIC, client_id[:1000], method
    row.other_auth_method = other_auth_method(method, methods)
    row.seal(secret if isinstance(secret, str) else "")
    if isinstance(expires, int) and expires > 0:
        row.secret_expires_at = datetime.fromtimestamp(min(expires, 32_503_680_000), UTC)
    return row


def _post(metadata: Metadata, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    try:
        http = Http(private=metadata.private, entered=metadata.entered)
        answer = http.post(metadata.registration_endpoint, {"Content-Type": "application/json"}, orjson.dumps(body))
    except Unreachable as error:
        raise NotRegistered(f"{metadata.registration_endpoint} {error}.") from None
    return answer.status, answer.document or {}


def enter(server: Server, metadata: Metadata, client_id: str, secret: str, *, by: User) -> ClientRegistration:
    """Use this client, which an administrator registered, for this server from now on, as long as it has the endpoints
    that `server` was read with."""
    with transaction.atomic():
        server.lock()
        reset(server, by=None)
        row = ClientRegistration(
            issuer=metadata.issuer,
            server=server,
            kind=Kind.MANUAL,
            token_endpoint=server.token_endpoint,
            revocation_endpoint=server.revocation_endpoint,
            redirect_uri=redirect_uri(metadata.issuer, *server.endpoints[1:]),
            client_id=client_id,
            auth_method=auth_method(metadata.auth_methods, secret=bool(secret)),
        )
        row.other_auth_method = other_auth_method(row.auth_method, metadata.auth_methods)
        row.seal(secret)
        row.save(force_insert=True)
        # The same client with another secret: what was granted to it is renewed with that.
        same = ClientRegistration.objects.filter(
            server=server,
            issuer=row.issuer,
            token_endpoint=row.token_endpoint,
            revocation_endpoint=row.revocation_endpoint,
            client_id=client_id,
        )
        Grant.objects.filter(registration__in=same.exclude(pk=row.pk)).update(registration=row)
        Event.objects.record(Action.SERVER_CLIENT_CHANGED, server, by=by, changes=_told(row))
    return row


def reset(server: Server, *, by: User | None, issuer: str = "") -> int:
    """Forget how this gateway is known for this server; the next sign-in makes it known anew. How many that ended.

    The `issuer` of the server is where nobody has come back from yet. What was granted before is renewed with the
    client it was granted to.
    """
    with transaction.atomic():
        ended = live_registrations(server, issuer).update(ended_at=timezone.now())
        Server.objects.filter(pk=server.pk).update(sign_ins_begun=0)
        if ended and by is not None:
            Event.objects.record(Action.SERVER_CLIENT_CHANGED, server, by=by, changes={"ended": [0, ended]})
    return int(ended)
