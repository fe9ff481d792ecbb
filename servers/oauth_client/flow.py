"""Sign-in at the issuer of a server: the authorization request and the callback."""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F, QuerySet
from django.http import HttpResponse
from django.utils import timezone

from accounts.models import User
from auditlog.actions import Action
from auditlog.models import Event
from capabilities import Capability, CapabilityRequired
from connections.models import Connection, ConnectionFault
from gateways.models import Assignment, Gateway
from servers.models import AuthType, Identity, ResourceSent, Server, ServerError, SignInNeeded
from servers.oauth_client.discovery import AuthorizationServerMetadata, Http, Needs, needs_of, send_soon
from servers.oauth_client.models import (
    MANY_UNFINISHED,
    ClientRegistration,
    Grant,
    NoSignIn,
    SignIn,
    must_take_sign_ins,
    unfinished_sign_ins,
)
from servers.oauth_client.registration import NotRegistered, registration_for
from ui.pages import AppRequest, lead_on, own_path
from ui.sealing import cipher
from wire.cipher import Undecryptable
from wire.jsonrpc import storable
from wire.oauth_client import (
    CLIENT_GONE,
    SECONDS,
    WITHOUT_RESOURCE,
    Mismatch,
    RegisteredClient,
    TokenRefused,
    Tokens,
    TokenUnavailable,
    account_name,
    authorize_url,
    check_iss,
    claims_of,
    issuer_host,
    pkce,
    printable,
    read_tokens,
    revocations,
    token_request,
    union,
)
from wire.outbound import NoAnswer

logger = logging.getLogger(__name__)

LASTING = "offline_access"  # The scope for a refresh token; some issuers advertise it but refuse requests for it.
LIFETIME = timedelta(minutes=10)
MOST_OPEN = 20  # Unfinished sign-ins per person; older ones are deleted.
UNNAMED = (
    "The answer contains the name of its issuer. This gateway cannot check the name, because nobody has entered the "
    "expected issuer of {server}. An administrator can enter it in the settings of the server."
)
BROWSER = "sign_in_browser"
ANY_BROWSER = b""  # For a sign-in started with an API key: the person may continue in any browser.


class SignInRefused(Exception):
    """The sign-in cannot begin, or has failed; the message says why and what to do."""


class LastingRefused(Exception):
    """The issuer refused the requested scopes; `offline_access`, which is optional, was one of them."""


def sign_in_browser_digest(request: AppRequest) -> bytes:
    """Return the digest that ties a sign-in to this browser; ANY_BROWSER for a request with an API key."""
    if getattr(request, "auth", None) is not None:
        # A check would protect nothing: with an API key, one can store any credential for the key's owner.
        return ANY_BROWSER
    if BROWSER not in request.session:
        request.session[BROWSER] = secrets.token_urlsafe(32)
    # This does not depend on an encryption key, so it survives key rotation.
    return hashlib.sha256(request.session[BROWSER].encode()).digest()


def begin_server_sign_in(request: AppRequest, server: Server, **chosen: Any) -> HttpResponse:
    """Start a sign-in, and return a page that forwards the browser to the issuer.

    `chosen` are the keyword arguments of `authorization`. Raises SignInRefused or CapabilityRequired.
    """
    sign_in, url = authorization(request, server, **chosen)
    return _leads_on(request, sign_in, url)


def authorization(
    request: AppRequest,
    server: Server,
    *,
    connection: Connection | None = None,
    identity: Identity | None = None,
    shared: bool = False,
    label: str = "",
    return_to: str = "/",
    refused_scope: str = "",
) -> tuple[SignIn, str]:
    """Start a sign-in, and return it with the authorization URL at the issuer of `server`.

    When the person comes back, the tokens are stored in `identity`. If `identity` is None, they are stored in a new
    identity. The new identity is shared if `shared` is True; otherwise it belongs to the person. A personal identity
    is then also used on `connection`. If `refused_scope` is given, this scope is not requested.

    Raises SignInRefused or CapabilityRequired.
    """
    try:
        _must_be_open_to(request.user, server, identity, shared=shared)
    except ServerError as refusal:
        raise SignInRefused(str(refusal)) from None
    if connection is not None and connection.user_id != request.user.pk:
        raise CapabilityRequired(Capability.IDENTITIES_MANAGE)
    needs = needs_of(server)
    if needs.metadata is None:
        raise SignInRefused(needs.problem or f"{server} names no issuer to sign in at.")
    if not server.authorization_endpoint:  # Skip if an administrator entered the issuer.
        _must_be_known(request, server, needs.issuer)
    scope = " ".join(each for each in _scope(server, needs, identity).split() if each != refused_scope)
    try:
        registration = registration_for(server, needs.metadata, scope, by=request.user)
        client = registration.client
    except NotRegistered as refusal:
        raise SignInRefused(str(refusal)) from None
    except Undecryptable:
        raise SignInRefused("No encryption key decrypts the client's secret. Enter the client again.") from None
    _end_others(server, needs.issuer, by=request.user)
    state, (verifier, challenge) = secrets.token_urlsafe(32), pkce()
    sign_in = SignIn.objects.create(
        state_digest=hashlib.sha256(state.encode()).digest(),
        browser_digest=sign_in_browser_digest(request),
        user=request.user,
        server=server,
        identity=identity,
        shared=shared,
        label=label,
        connection_id=connection.pk if connection else None,
        return_to=own_path(return_to),
        registration=registration,
        verifier_ciphertext=cipher().seal(verifier),
        url=server.url,
        resource=_resource(server, needs),
        scope=scope,
        endpoints=_endpoints(needs.metadata)
        | {"settings": server.sign_in_settings}
        | ({"refused_scope": refused_scope} if refused_scope else {}),
        expires_at=timezone.now() + LIFETIME,
    )
    _end_oldest(request.user)
    Server.objects.filter(pk=server.pk).update(sign_ins_begun=F("sign_ins_begun") + 1)
    parameters = {
        "response_type": "code",
        "client_id": client.client_id,
        "redirect_uri": registration.redirect_uri,
        "state": state,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
        "scope": sign_in.scope,
        "resource": sign_in.resource,
        "prompt": "consent" if LASTING in sign_in.scope.split() else "",
    }
    return sign_in, authorize_url(needs.metadata.authorization_endpoint, parameters)


def _must_be_open_to(user: User, server: Server, identity: Identity | None, *, shared: bool) -> None:
    """Raise an error unless `user` may sign in at the issuer of `server`, for `identity` or a new identity.

    Raises CapabilityRequired, or a ServerError if the server or the identity cannot take a sign-in.
    """
    if shared or (identity is not None and identity.is_shared):
        if not user.has_perm(Capability.SERVERS_MANAGE):
            raise CapabilityRequired(Capability.SERVERS_MANAGE)
    elif identity is not None and identity.owner_id != user.pk:
        raise CapabilityRequired(Capability.IDENTITIES_MANAGE)
    must_take_sign_ins(server, identity, user)
    if identity is None and not shared and not open_to(user).filter(pk=server.pk).exists():
        raise NoSignIn(f"No gateway that you may use asks for your own credential at {server}.")


def _end_oldest(user: User) -> None:
    """Delete a person's oldest sign-ins, so that at most MOST_OPEN are left."""
    newest = SignIn.objects.filter(user=user).order_by("-created_at", "-pk").values("pk")[:MOST_OPEN]
    SignIn.objects.filter(user=user).exclude(pk__in=list(newest.values_list("pk", flat=True))).delete()


def open_to(user: User) -> QuerySet[Server]:
    """Return the servers where `user` may sign in.

    Each is an OAuth server with per-user identities on at least one gateway that `user` may use.
    """
    asking = Assignment.objects.per_user().filter(gateway__in=Gateway.objects.reachable_by(user).values("pk"))
    return Server.objects.live().filter(auth_type=AuthType.OAUTH, pk__in=asking.values("server"))


def _must_be_known(request: AppRequest, server: Server, issuer: str) -> None:
    """Raise SignInRefused if people signed in for this server before, but never at `issuer`.

    People who manage servers may sign in at a new issuer.
    """
    # A malicious server could name another server's issuer, to get tokens of that issuer.
    known = set(server.identities.exclude(issuer="").values_list("issuer", flat=True))
    if known and issuer not in known and not request.user.has_perm(Capability.SERVERS_MANAGE):
        raise SignInRefused(
            f"{server} now names another issuer, {issuer}, where nobody has signed in for this server yet. "
            "Ask an administrator to sign in at the new issuer first."
        )


def _end_others(server: Server, issuer: str, *, by: User) -> None:
    """Invalidate identities of this server that came from other issuers, so that their tokens are not sent any more."""
    with transaction.atomic():
        others = server.identities.live().exclude(issuer__in=("", issuer)).filter(sign_in_needed_since=None)
        before = ", ".join(sorted(set(others.values_list("issuer", flat=True))))
        if ended := others.need_sign_in(SignInNeeded.MOVED):
            changes = {"issuer": [before, issuer], "sign_ins_ended": [0, ended]}
            Event.objects.record(Action.SERVER_ISSUER_CHANGED, server, by=by, changes=changes)


def _resource(server: Server, needs: Needs) -> str:
    """Return the `resource` parameter (RFC 8707), or "" to send none."""
    match server.resource_sent:
        case ResourceSent.FIXED:
            return server.fixed_resource
        case ResourceSent.OMIT:
            return ""
    return "" if issuer_host(needs.issuer) in WITHOUT_RESOURCE else needs.resource.name or server.url


def _scope(server: Server, needs: Needs, identity: Identity | None) -> str:
    """Return the scopes to request.

    Raises SignInRefused if `identity` needs scopes that are not in the administrator's `fixed_scopes`.
    """
    grant = Grant.objects.filter(identity=identity).first() if identity else None
    if server.fixed_scopes:
        lacks = {*grant.wanted_scope.split()} - {*server.fixed_scopes.split()} if grant else set()
        if identity and identity.sign_in_reason == SignInNeeded.SCOPE and lacks:
            raise SignInRefused(
                f"{server} needs scopes that an administrator does not allow here: "
                f"{' '.join(sorted(lacks))}. Signing in again would not help."
            )
        return server.fixed_scopes
    # If `identity` lacked scopes for a call, add these and the scopes it was granted.
    before = (grant.scope, grant.wanted_scope) if grant and grant.wanted_scope else ()
    return union(" ".join(needs.scopes), *before)


def _endpoints(metadata: AuthorizationServerMetadata) -> dict[str, str | bool]:
    return {
        "token_endpoint": metadata.token_endpoint,
        "revocation_endpoint": metadata.revocation_endpoint,
        "userinfo_endpoint": metadata.userinfo_endpoint,
        "says_iss": metadata.says_iss,
        "iss": metadata.name,
        "private": metadata.private,
    }


def _leads_on(request: AppRequest, sign_in: SignIn, url: str) -> HttpResponse:
    """Return a page that forwards the browser to `url`.

    A redirect would not work here, because our Content Security Policy blocks it after a form was sent.
    """
    # After several unfinished sign-ins, the page explains the likely cause, and waits for a click.
    waits = unfinished_sign_ins(sign_in.server) >= MANY_UNFINISHED
    context = {"server": sign_in.server, "registration": sign_in.registration, "url": url, "waits": waits}
    return lead_on(request, "servers/sign_in_leads_on.html", context, url, at_once=not waits)


def take_sign_in(request: AppRequest) -> SignIn:
    """Return the sign-in to which this callback belongs, and delete it, so that it works only once.

    Raises SignInRefused if this person has no such sign-in in this browser, if the sign-in has expired, or if the
    callback came to the redirect URI of another issuer. A sign-in that was started with an API key works in any
    browser of the person.
    """
    digest = hashlib.sha256(request.GET.get("state", "").encode()).digest()
    with transaction.atomic():
        mine = SignIn.objects.select_for_update(of=("self",)).filter(
            state_digest=digest, user=request.user, browser_digest__in=(sign_in_browser_digest(request), ANY_BROWSER)
        )
        sign_in = mine.select_related("server", "identity", "registration", "user").first()
        if sign_in is None:
            raise SignInRefused(
                "This sign-in was not started here, was used before, or was ended by newer sign-ins. Start again."
            )
        SignIn.objects.filter(pk=sign_in.pk).delete()
        Server.objects.filter(pk=sign_in.server_id).update(sign_ins_begun=0)
    if sign_in.expires_at <= timezone.now():
        raise SignInRefused("This sign-in took too long. Start it again.")
    if sign_in.registration.redirect_uri != settings.PUBLIC_URL + request.path:
        raise SignInRefused("The answer arrived at the redirect address of another issuer.")
    return sign_in


def finish_server_sign_in(request: AppRequest, sign_in: SignIn) -> Identity:
    """Complete the sign-in and return its identity. Raises SignInRefused, or LastingRefused (see `begin_again`)."""
    given, issuer = request.GET, str(sign_in.endpoints.get("iss") or sign_in.registration.issuer)
    try:
        # Check the issuer first: not even an error message of another issuer may be displayed.
        check_iss(given.get("iss"), issuer, advertised=bool(sign_in.endpoints.get("says_iss")))
    except Mismatch as mismatch:
        unnamed = sign_in.server.authorization_endpoint and not sign_in.server.expected_issuer
        raise SignInRefused(UNNAMED.format(server=sign_in.server) if unnamed else str(mismatch)) from None
    if "code" not in given or "error" in given:
        _must_not_be_of_lasting_access(sign_in, given.get("error", ""))
        raise SignInRefused(_in_words(sign_in, given.get("error", ""), given.get("error_description", "")))
    # Check before the code is used, so that tokens are requested only if they may be stored.
    _must_still_be_open(request, sign_in)
    tokens = _exchange(sign_in, given["code"])
    try:
        identity = _keep(request, sign_in, tokens)
    except Exception:
        _give_back(sign_in, tokens)
        raise
    _bind(sign_in, identity)
    return identity


def _must_not_be_of_lasting_access(sign_in: SignIn, error: str) -> None:
    """Raise LastingRefused if the issuer refused the scopes, and `offline_access` was one of the scopes.

    A retry without `offline_access` may then help.
    """
    if error == "invalid_scope" and LASTING in sign_in.scope.split():
        raise LastingRefused


def begin_again(request: AppRequest, sign_in: SignIn) -> HttpResponse:
    """Start the sign-in again without `offline_access`, and return a page that forwards to the issuer.

    Raises SignInRefused or CapabilityRequired.
    """
    told = {"server": str(sign_in.server), "issuer": sign_in.registration.issuer, "scope": LASTING}
    logger.info("an issuer refused a scope; retrying without it", extra=told)
    chosen: Any = sign_in.connection_id
    return begin_server_sign_in(
        request,
        sign_in.server,
        connection=Connection.objects.live().own(sign_in.user).filter(pk=chosen).first(),
        identity=sign_in.identity,
        shared=sign_in.shared,
        label=sign_in.label,
        return_to=sign_in.return_to,
        refused_scope=LASTING,  # Without this scope, the same refusal cannot happen again.
    )


def _keep(request: AppRequest, sign_in: SignIn, tokens: Tokens) -> Identity:
    """Store the tokens and return their identity. Raises SignInRefused or CapabilityRequired if they are not stored."""
    claims = _claims(sign_in, tokens)
    subject = claims.get("sub")
    try:
        with transaction.atomic():
            _must_still_be_open(request, sign_in)
            return Grant.objects.store(
                sign_in,
                tokens,
                account=account_name(claims),
                subject=storable(subject) if isinstance(subject, str) else "",
            )
    except ServerError as refusal:
        raise SignInRefused(str(refusal)) from None


def _must_still_be_open(request: AppRequest, sign_in: SignIn) -> None:
    """Re-check everything that may have changed since the sign-in began. Raises SignInRefused or CapabilityRequired."""
    try:
        with transaction.atomic():
            user = sign_in.lock()
            if user.signed_out_since(request.user):
                raise NoSignIn("You were signed out of this gateway during this sign-in. Start again.")
            sign_in.must_be_as_set()
            _must_be_open_to(user, sign_in.server, sign_in.identity, shared=sign_in.shared)
    except ServerError as refusal:
        raise SignInRefused(str(refusal)) from None


def _give_back(sign_in: SignIn, tokens: Tokens) -> None:
    """Revoke, in the background, new tokens that will not be stored."""
    grant = Grant.objects.filter(identity=sign_in.identity_id).first() if sign_in.identity_id else None
    with suppress(Undecryptable):
        held = cipher().open(bytes(grant.refresh_ciphertext)) if grant and grant.refresh_ciphertext else ""
        # The new tokens may have the refresh token of the stored ones. Then revoking would end the stored tokens too.
        if held and tokens.refresh in ("", held):
            return
        endpoint = str(sign_in.endpoints.get("revocation_endpoint", ""))
        client, told = sign_in.registration.client, {"refresh": tokens.refresh, "access": tokens.access}
        entered = sign_in.server.entered
        if requests := revocations(endpoint, client, **told, private=sign_in.private, entered=entered):
            send_soon(requests)


def _in_words(sign_in: SignIn, error: str, description: str) -> str:
    if error == "access_denied":
        return f"You did not sign in at {sign_in.server}."
    said = printable(description or error)[:200]
    return f"The issuer of {sign_in.server} answered with an error{f': {said}' if said else ''}."


def _exchange(sign_in: SignIn, code: str) -> Tokens:
    registration: ClientRegistration = sign_in.registration
    try:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": registration.redirect_uri,
            "code_verifier": cipher().open(bytes(sign_in.verifier_ciphertext)),
            "resource": sign_in.resource,
        }
        try:
            return _tokens(sign_in, registration.client, form)
        except TokenRefused as refusal:
            if refusal.error != "invalid_client" or not registration.other_auth_method:
                raise
        tokens = _tokens(sign_in, registration.client._replace(auth_method=registration.other_auth_method), form)
        registration.use_other_auth_method()
        return tokens
    except TokenRefused as refusal:
        _must_not_be_of_lasting_access(sign_in, refusal.error)
        if refusal.error in CLIENT_GONE and registration.server_id is None:
            registration.end()  # The next sign-in registers a new client.
        raise SignInRefused(_in_words(sign_in, refusal.error, str(refusal))) from None
    except (TokenUnavailable, NoAnswer) as fault:
        raise SignInRefused(f"The issuer of {sign_in.server} issued no token: {fault}. Start again.") from None
    except Undecryptable:
        raise SignInRefused("The encryption key was changed during this sign-in. Start again.") from None


def _tokens(sign_in: SignIn, client: RegisteredClient, form: Mapping[str, str]) -> Tokens:
    """Request tokens for this client. Raises TokenRefused, TokenUnavailable or NoAnswer."""
    request = token_request(sign_in.endpoints["token_endpoint"], client, form)
    answer = _http(sign_in).post(request.url, request.headers, request.body)
    return read_tokens(answer.status, answer.body)


def _http(sign_in: SignIn, seconds: float = SECONDS) -> Http:
    return Http(seconds, private=sign_in.private, entered=sign_in.server.entered)


def _claims(sign_in: SignIn, tokens: Tokens) -> dict[str, object]:
    """Return the claims of the person who signed in, from the ID token or the userinfo endpoint."""
    claims = claims_of(tokens.id_token)
    endpoint = sign_in.endpoints.get("userinfo_endpoint")
    if account_name({key: value for key, value in claims.items() if key != "sub"}) or not endpoint:
        return claims
    if "openid" not in (tokens.scope or sign_in.scope).split():
        return claims
    try:
        answer = _http(sign_in, 5).post(endpoint, {"Authorization": f"Bearer {tokens.access}"}, b"")
    except NoAnswer:
        return claims
    return {**(answer.document or {}), **claims} if answer.status == 200 else claims


def _bind(sign_in: SignIn, identity: Identity) -> None:
    """Use a personal identity on the connection for which the sign-in was started.

    Also use the identity on its owner's connections that have no live identity for the server.
    """
    if identity.is_shared:
        return
    with suppress(ConnectionFault):  # The connection or the identity may have been revoked meanwhile.
        _carry(sign_in, identity)


def _carry(sign_in: SignIn, identity: Identity) -> None:
    chosen: Any = sign_in.connection_id
    if connection := Connection.objects.live().own(sign_in.user).filter(pk=chosen).first():
        places = Assignment.objects.per_user().filter(server=sign_in.server, gateway=connection.gateway_id)
        for assignment in places.select_related("server"):
            connection.use_identity(assignment, identity, by=sign_in.user)
    Connection.objects.carry(identity, by=sign_in.user)
