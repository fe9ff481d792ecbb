"""Register this installation as an OAuth client of an issuer.

Either an administrator enters the client, or the installation uses its metadata document or dynamic registration.
"""

from __future__ import annotations

import hashlib
import time
from datetime import UTC, datetime
from typing import Any

import orjson
from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.db.models import Q
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from auditlog.actions import Action
from auditlog.models import Event
from proxy.refresh import NotRenewed, Renewal, Statement, renewal
from servers.models import Identity, Server
from servers.oauth_client.discovery import AuthorizationServerMetadata, Http, for_request, send_soon
from servers.oauth_client.models import ClientRegistration, Grant, RegistrationMethod, live_registrations
from ui import databases
from ui.sealing import cipher
from wire.oauth_client import (
    AUTH_METHODS,
    DEFAULT_AUTH_METHOD,
    TokenRequest,
    auth_method,
    other_auth_method,
    place_in_words,
    place_of,
    union,
)
from wire.outbound import NoAnswer

CLIENT_NAME = "Gateway Admin"


class NotRegistered(Exception):
    """This gateway cannot become a client of the issuer by itself; the message says what to do."""


def redirect_uri(issuer: str, token_endpoint: str = "", revocation_endpoint: str = "") -> str:
    """Return the redirect URI that only this issuer has (mix-up defence, RFC 9700 section 4.4.2.2)."""
    # After a change of entered endpoints, the issuer refuses the new URI until it is registered. So codes of clients
    # without a secret are never sent to a wrong token endpoint.
    name = f"{issuer}\n{token_endpoint}\n{revocation_endpoint}" if token_endpoint else issuer
    key = hashlib.sha256(name.encode()).hexdigest()[:32]
    return settings.PUBLIC_URL + reverse("servers:issuer_callback", args=[key])


def common_redirect_uri() -> str:
    """Return the redirect URI that several issuers share.

    Two kinds of issuers share this URI: issuers that read our metadata document and name themselves in answers
    (RFC 9207), and issuers at which an administrator registered a client with an earlier release of this gateway.
    """
    return settings.PUBLIC_URL + reverse("servers:oauth_callback")


def document_url() -> str:
    """Return the URL of our client metadata document. Issuers that read such documents use the URL as our client id."""
    return settings.PUBLIC_URL + reverse("servers:client_document")


def client_document() -> dict[str, Any]:
    """Return the client metadata document of this gateway."""
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


def registration_for(
    server: Server, metadata: AuthorizationServerMetadata, scope: str, *, by: User
) -> ClientRegistration:
    """Return the registration for a sign-in with this scope, creating it if necessary. Raises NotRegistered."""
    _must_ask_at_home(server, metadata)
    live = ClientRegistration.objects.filter(ended_at=None)
    own = live.filter(server=server).first()
    if own is not None and own.redirect_uri in _addresses(own):
        if own.issuer != metadata.issuer:
            raise NotRegistered(
                f"{server} names {metadata.issuer} as its issuer now, but its client was entered for {own.issuer}; "
                "an administrator has to enter the client again."
            )
        if (own.token_endpoint, own.revocation_endpoint) != server.endpoints[1:]:
            raise NotRegistered(
                f"The endpoints of {own.issuer} changed after the client of {server} was entered; "
                "an administrator has to enter the client again."
            )
        return own
    # Shared registrations are for the endpoints in the issuer's metadata; their secrets must not be sent to endpoints
    # that an administrator entered.
    usable = live.none() if server.authorization_endpoint else live.filter(_usable(metadata), server=None)
    shared = usable.filter(issuer=metadata.issuer).first()
    # Some issuers limit a client to the scopes named when it registered, so register again for further scopes. Existing
    # grants are refreshed with the client to which they were granted.
    if shared is not None and (not shared.scope or set(scope.split()) <= set(shared.scope.split())):
        return shared
    if shared is not None:
        scope = union(shared.scope, scope)
    registration = _made(metadata, scope, redirect_uri(metadata.issuer, *server.endpoints[1:]))
    try:
        return _switch(server, registration, by=by)
    except IntegrityError:  # Another request has just registered a client.
        return _switch(server, registration, by=by)


def _addresses(client: ClientRegistration) -> tuple[str, ...]:
    """Return the redirect URIs with which `client` is still usable.

    The first is the URI that a new client would get. The others are URIs that clients got in earlier releases.
    """
    own = redirect_uri(client.issuer, client.token_endpoint, client.revocation_endpoint)
    return own, redirect_uri(client.issuer), common_redirect_uri()


def _usable(metadata: AuthorizationServerMetadata) -> Q:
    """Return the condition that registrations must meet to be usable for a new sign-in."""
    fresh = Q(secret_expires_at=None) | Q(secret_expires_at__gt=timezone.now())
    usable = Q(redirect_uri=redirect_uri(metadata.issuer))
    # Only if the issuer names itself in its answers (RFC 9207), because other issuers have this redirect URI too.
    if "document" in metadata.registrations:
        usable |= Q(kind=RegistrationMethod.DOCUMENT, redirect_uri=common_redirect_uri())
    return fresh & usable


def _switch(server: Server, registration: ClientRegistration, *, by: User) -> ClientRegistration:
    """Save the shared `registration` for new sign-ins at its issuer, and end the issuer's former shared registration.

    Return `registration`.
    """
    before = ClientRegistration.objects.filter(issuer=registration.issuer, server=None, ended_at=None)
    with transaction.atomic():
        before.update(ended_at=timezone.now())
        registration.save(force_insert=True)
        Event.objects.record(Action.SERVER_CLIENT_CHANGED, server, by=by, changes=_told(registration))
    return registration


def _must_ask_at_home(server: Server, metadata: AuthorizationServerMetadata) -> None:
    """Raise NotRegistered if some of an issuer's origins, but not all, belong to another known issuer.

    The origins of an issuer are those of its identifier and its endpoints. See RFC 9700, section 4.4.
    """
    # Without this check, codes or tokens of one issuer could be sent to the other issuer.
    home, asks = place_of(metadata.issuer), place_of(metadata.authorization_endpoint)
    endpoints = (metadata.authorization_endpoint, metadata.token_endpoint, metadata.revocation_endpoint)
    places = {home, *(place_of(each) for each in endpoints if each)}
    if places == {home}:
        return
    # Metadata are read from the issuer's origin, so this origin belongs to the issuer. Endpoints that an administrator
    # entered do not prove to whom an origin belongs.
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
                f"The sign-in page of {metadata.issuer} is at {place_in_words(metadata.authorization_endpoint)}, "
                f"which belongs to another issuer, {other}. The gateway does not send people there."
            )
        raise NotRegistered(
            f"Some endpoints of {metadata.issuer}, but not all, are at {place_in_words(other)}, where another issuer, "
            f"{other}, asks people to sign in. So the gateway starts no sign-in at {metadata.issuer}."
        )


def _told(registration: ClientRegistration) -> dict[str, Any]:
    return {
        "client": [None, registration.client_id],
        "issuer": [None, registration.issuer],
        "kind": [None, registration.kind],
    }


def _made(metadata: AuthorizationServerMetadata, scope: str, address: str) -> ClientRegistration:
    ways = metadata.registrations
    row = ClientRegistration(issuer=metadata.issuer, redirect_uri=address)
    if "document" in ways:
        row.kind, row.client_id, row.auth_method = RegistrationMethod.DOCUMENT, document_url(), "none"
        row.redirect_uri = common_redirect_uri()
        return row
    if "dynamic" in ways:
        return _register(row, metadata, scope)
    raise NotRegistered(
        f"{metadata.issuer} does not support automatic registration. An administrator has to register this gateway "
        f"there, with the redirect address {row.redirect_uri}, and to enter the client here."
    )


def _register(row: ClientRegistration, metadata: AuthorizationServerMetadata, scope: str) -> ClientRegistration:
    methods = metadata.auth_methods
    wanted = "none" if "none" in methods else auth_method(methods, secret=True)
    described = _described(wanted, row.redirect_uri)
    status, document = _post(metadata, described | ({"scope": scope} if scope else {}))
    if scope and status == 400:  # Some issuers accept no scope at registration, or not all of these.
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
        raise NotRegistered(
            f"{metadata.issuer} registered this gateway with an authentication method that the gateway cannot use "
            f"({str(method)[:40]})."
        )
    row.kind, row.client_id, row.auth_method = RegistrationMethod.DYNAMIC, client_id[:1000], method
    row.other_auth_method = other_auth_method(method, methods)
    row.seal(secret if isinstance(secret, str) else "")
    if isinstance(expires, int) and expires > 0:
        row.secret_expires_at = datetime.fromtimestamp(min(expires, 32_503_680_000), UTC)
    return row


def _post(metadata: AuthorizationServerMetadata, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    try:
        http = Http(private=metadata.private, entered=metadata.entered)
        answer = http.post(metadata.registration_endpoint, {"Content-Type": "application/json"}, orjson.dumps(body))
    except NoAnswer as error:
        raise NotRegistered(f"{metadata.registration_endpoint} {error}.") from None
    return answer.status, answer.document or {}


def enter(
    server: Server, metadata: AuthorizationServerMetadata, client_id: str, secret: str, *, by: User
) -> ClientRegistration:
    """Store the OAuth client that an administrator entered for `server`.

    The registrations that the server has used until now are ended, including shared registrations (see `reset`).
    """
    with transaction.atomic():
        server.lock()
        reset(server, by=None)
        row = ClientRegistration(
            issuer=metadata.issuer,
            server=server,
            kind=RegistrationMethod.MANUAL,
            token_endpoint=server.token_endpoint,
            revocation_endpoint=server.revocation_endpoint,
            redirect_uri=redirect_uri(metadata.issuer, *server.endpoints[1:]),
            client_id=client_id,
            auth_method=auth_method(metadata.auth_methods, secret=bool(secret)),
        )
        row.other_auth_method = other_auth_method(row.auth_method, metadata.auth_methods)
        row.seal(secret)
        row.save(force_insert=True)
        # If only the secret is new, existing grants are refreshed with the new secret.
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
    """End the live registrations of this server, and the live shared registrations that the server uses.

    Return the number of ended registrations. The next sign-in then creates a new registration. If `issuer` is given,
    also end all other shared registrations at this issuer.
    """
    with transaction.atomic():
        ended = live_registrations(server, issuer).update(ended_at=timezone.now())
        Server.objects.filter(pk=server.pk).update(sign_ins_begun=0)
        if ended and by is not None:
            Event.objects.record(Action.SERVER_CLIENT_CHANGED, server, by=by, changes={"ended": [0, ended]})
    return int(ended)


# Refresh an identity's tokens for pages, the REST API and chores: runs `proxy.refresh.renewal` synchronously.


def keep_fresh(identity: Identity) -> None:
    """Refresh the identity if its token has expired.

    A failed refresh is ignored. If the caller then sends the expired token, the server's answer shows the problem.
    """
    if identity.expires_at is None or identity.expires_at > timezone.now():
        return
    try:
        refresh_identity(identity)
    except NotRenewed:
        return


def refresh_identity(identity: Identity) -> None:
    """Refresh the identity now. Raises NotRenewed.

    The caller must not be in a transaction: other processes must see that this process has leased the identity.
    """
    if identity.secret_ciphertext is None:
        raise NotRenewed("identity_sign_in")
    try:
        _drive(renewal(str(identity.pk), bytes(identity.secret_ciphertext).decode(), cipher()))
    except NotRenewed as error:
        if error.revocations:
            send_soon(error.revocations)
        raise
    identity.refresh_from_db()


def _drive(steps: Renewal) -> str:
    answer: Any = None
    try:
        while True:
            step = steps.send(answer)
            answer = None
            if isinstance(step, Statement):
                answer = _run(step)
            elif isinstance(step, TokenRequest):
                answer = _post_form(step)
            else:
                databases.give_back()
                time.sleep(step)
    except StopIteration as end:
        return str(end.value)


def _run(statement: Statement) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement.sql, statement.parameters)
        return cursor.fetchall() if cursor.description else []


def _post_form(request: TokenRequest) -> tuple[int, bytes] | None:
    try:
        answer = for_request(request).post(request.url, request.headers, request.body)
    except NoAnswer:
        return None
    return answer.status, answer.body
