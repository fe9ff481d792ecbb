"""Sign-in at the organisation with OpenID Connect (Core 3.1, with PKCE): the request and the callback."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from servers.oauth_client.discovery import Http, NoAnswer
from sso.discovery import OpenIdMetadata, ProviderDown, fetch_provider_json, keys, metadata
from sso.models import Claims, Provider
from sso.saml.refusals import AGAIN, THERE
from sso.signed_tokens import TokenInvalid, UnknownKey, id_token
from ui.pages import lead_on
from wire.cipher import Undecryptable
from wire.oauth_client import (
    Mismatch,
    RegisteredClient,
    TokenRefused,
    Tokens,
    TokenUnavailable,
    authorize_url,
    check_iss,
    pkce,
    printable,
    read_tokens,
    token_request,
)

# Normalise claims of an identity provider, for OpenID Connect and SAML alike.

LONGEST_EMAIL = 254  # Longer ones are rejected: truncated, they might be somebody else's address.


def email_of(value: object) -> str:
    """Return an ASCII e-mail address or "". Lower-casing other letters could produce another person's address."""
    email = value.strip() if isinstance(value, str) else ""
    return email if len(email) <= LONGEST_EMAIL and email.isascii() and email.isprintable() else ""


def groups_of(values: Iterable[object]) -> frozenset[str]:
    """Return the printable group names. Without a hidden character a name might be that of another group."""
    return frozenset(group for group in values if isinstance(group, str) and group.isprintable())


def is_true(value: object) -> bool | None:
    """Return a boolean, also from "true" or "false" as some providers send it; None for anything else."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower())
    return value if isinstance(value, bool) else None


def line_of(value: object) -> str:
    """Return printable text on one line."""
    return printable(value).strip() if isinstance(value, str) else ""


# Google's names for scopes in token responses.
SCOPES_CALLED = {
    "https://www.googleapis.com/auth/userinfo.email": "email",
    "https://www.googleapis.com/auth/userinfo.profile": "profile",
}
MAY_PASS = ("server_error", "temporarily_unavailable")  # RFC 6749 section 4.1.2.1: a retry may help.
SESSION_KEY = "organisation_sign_ins"
MOST_OPEN = 5  # Unfinished sign-ins per browser; the oldest are dropped.
LIVES_S = 10 * 60
LOGIN, LINK, CONFIRM = "login", "link", "confirm"

ANEW = {"prompt": "login", "max_age": "0"}  # Requires a credential, even if a session is open at the provider.


class SignInFailed(Exception):
    """The sign-in failed. The message is for events and the log; `advice`, if any, is shown to the person."""

    def __init__(self, words: str, advice: str = "") -> None:
        super().__init__(words)
        self.advice = advice


class PendingSignIn(NamedTuple):
    """A sign-in started in this browser: its purpose, the page to return to, and the values that tie the answer to it.

    `is_unasked` if the person started at the provider. Then nothing proves that the answer belongs to this browser.
    """

    act: str
    onward: str
    nonce: str
    verifier: str
    issuer: str
    at: float
    is_unasked: bool = False


def callback_url() -> str:
    """Return the redirect URI, which has to be registered at the provider."""
    return f"{settings.PUBLIC_URL}{reverse('sso:callback')}"


def signed_out_url() -> str:
    """Return the post-logout redirect URI, which has to be registered at the provider."""
    return f"{settings.PUBLIC_URL}{reverse('account_login')}"


def sign_out_there(request: HttpRequest, provider: Provider) -> HttpResponse | None:
    """Return a page that forwards to the provider's logout (OpenID Connect RP-Initiated Logout 1.0), or None.

    None if the provider publishes no such endpoint. Sends the client id instead of an ID token, which would have to be
    stored for the whole session and would appear in a URL; so the provider asks the person. Raises ProviderDown.
    """
    place = "" if provider.speaks_saml else metadata(provider).end_session_endpoint
    if not place:
        return None
    parameters = {"client_id": provider.client_id, "post_logout_redirect_uri": signed_out_url()}
    return leads_on(request, provider, authorize_url(place, parameters), "sso/leads_out.html")


def begin_oidc(request: HttpRequest, provider: Provider, *, act: str, onward: str) -> HttpResponse:
    """Start a sign-in and return a page that forwards to the provider. Raises ProviderDown."""
    said = metadata(provider)
    state, nonce, (verifier, challenge) = secrets.token_urlsafe(32), secrets.token_urlsafe(32), pkce()
    store_pending_sign_in(request, state, PendingSignIn(act, onward, nonce, verifier, provider.known_as, time.time()))
    parameters = {
        "response_type": "code",
        "client_id": provider.client_id,
        "redirect_uri": callback_url(),
        "scope": provider.scopes,
        "state": state,
        "nonce": nonce,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    } | (ANEW if act == CONFIRM else {})
    return leads_on(request, provider, authorize_url(said.authorization_endpoint, parameters))


def leads_on(request: HttpRequest, provider: Provider, url: str, template: str = "sso/leads_on.html") -> HttpResponse:
    """Return a page that forwards to this URL of the provider."""
    return lead_on(request, template, {"provider": provider, "url": url}, url)


def _open(request: HttpRequest) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = request.session.get(SESSION_KEY, {})
    return found


def store_pending_sign_in(request: HttpRequest, state: str, begun: PendingSignIn) -> None:
    """Store a started sign-in in the session."""
    others = sorted(_open(request).items(), key=lambda item: item[1][-1])[1 - MOST_OPEN :]
    request.session[SESSION_KEY] = dict(others) | {state: [*begun]}


def taken(request: HttpRequest, state: str) -> PendingSignIn | None:
    """Remove and return the sign-in started in this browser with this state, or None."""
    still_open = _open(request)
    found = still_open.pop(state, None)
    if found is None:
        return None
    request.session[SESSION_KEY] = still_open
    return PendingSignIn(*found)


def take_pending_sign_in(request: HttpRequest) -> PendingSignIn:
    """Remove and return the sign-in of this callback. Raises SignInFailed."""
    begun = taken(request, request.GET.get("state", ""))
    if begun is None:
        raise SignInFailed("It was not begun in this browser, or was used before.", AGAIN.text)
    if time.time() - begun.at > LIVES_S:
        raise SignInFailed("It took longer than ten minutes.", AGAIN.text)
    return begun


def finish_oidc(request: HttpRequest, provider: Provider, begun: PendingSignIn) -> Claims:
    """Return the claims of the person who signed in at the provider. Raises SignInFailed or ProviderDown."""
    given = request.GET
    if begun.issuer != provider.known_as:
        raise SignInFailed("The provider was changed meanwhile.")
    said = metadata(provider)
    try:
        check_iss(given.get("iss"), provider.issuer, advertised=said.says_iss)
    except Mismatch as mismatch:
        raise SignInFailed(str(mismatch)) from None
    if "error" in given or not given.get("code"):
        error = given.get("error", "no code")
        advice = "" if error in MAY_PASS else THERE.text
        raise SignInFailed(f"The provider said: {printable(error)[:80]}.", advice)
    tokens = _exchange(provider, said, given["code"], begun.verifier)
    if tokens.scope and provider.rows.exists():
        _must_be_granted(provider.scopes, tokens.scope)
    claims = _claims(provider, tokens, begun.nonce)
    if said.userinfo_endpoint and not ("email" in claims and _value(claims, provider.groups_claim) is not None):
        beside = _userinfo(provider, said.userinfo_endpoint, tokens.access, claims["sub"])
        if "email" in claims:
            beside.pop("email_verified", None)  # It refers to the userinfo's address, not to the ID token's.
        elif "email" in beside:
            claims.pop("email_verified", None)
        claims = beside | claims
    return extract_claims(claims, provider)


def _must_be_granted(asked: str, granted: str) -> None:
    """Raise SignInFailed if requested scopes were not granted.

    People could remove a scope from the authorization URL to leave out the groups that come with it.
    """
    given = {SCOPES_CALLED.get(scope, scope) for scope in granted.split()}
    missing = set(asked.split()) - given - {"offline_access"}  # It gives no claims, and is often not reported.
    if missing:
        raise SignInFailed(f"The provider did not grant the scopes that are asked for: {' '.join(sorted(missing))}.")


def _exchange(provider: Provider, said: OpenIdMetadata, code: str, verifier: str) -> Tokens:
    try:
        secret = provider.secret
    except Undecryptable:
        raise SignInFailed("No configured encryption key opens the client's secret.") from None
    client = RegisteredClient(provider.client_id, secret, said.auth_method(secret=bool(secret)))
    parameters = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": callback_url(),
        "code_verifier": verifier,
    }
    asked = token_request(said.token_endpoint, client, parameters)
    try:
        http = Http(private=provider.private, entered=[provider.issuer])
        answered = http.post(asked.url, asked.headers, asked.body)
        return read_tokens(answered.status, answered.body)
    except TokenRefused as refusal:
        raise SignInFailed(f"The provider does not accept the client or its code: {refusal}") from None
    except (TokenUnavailable, NoAnswer) as error:
        raise ProviderDown(f"{asked.url} {error}.") from None


def _claims(provider: Provider, tokens: Tokens, nonce: str) -> dict[str, Any]:
    expected = {"issuer": provider.issuer, "client_id": provider.client_id, "nonce": nonce}
    try:
        try:
            return id_token(tokens.id_token, keys(provider), **expected)
        except UnknownKey:
            return id_token(tokens.id_token, keys(provider, anew=True), **expected)
    except TokenInvalid as fault:
        raise SignInFailed(f"The ID token is not accepted. {fault}") from None


def _userinfo(provider: Provider, url: str, access: str, subject: str) -> dict[str, Any]:
    """Return the userinfo claims, which must be of the same subject (OpenID Connect Core 5.3.2)."""
    found = fetch_provider_json(provider, url, {"Authorization": f"Bearer {access}"})
    if found.get("sub") != subject:
        raise SignInFailed("The provider spoke of another person (userinfo).")
    return found


def extract_claims(claims: Mapping[str, Any], provider: Provider) -> Claims:
    """Extract the claims in use; the others are not stored."""

    return Claims(
        issuer=provider.known_as,
        subject=claims["sub"],  # Unchanged: subjects that differ only in spaces are different people.
        email=email_of(claims.get("email")),
        email_verified=is_true(claims.get("email_verified")),
        name=line_of(claims.get("name")),
        groups=_groups(claims, provider.groups_claim),
        says_groups=_value(claims, provider.groups_claim) is not None,
        session=line_of(claims.get("sid"))[:255],
        authenticated_at=signed_in if isinstance(signed_in := claims.get("auth_time"), int | float) else None,
    )


def _groups(claims: Mapping[str, Any], name: str) -> frozenset[str] | None:
    value = _value(claims, name)
    if value is None:
        elsewhere = claims.get("_claim_names")  # Microsoft Entra, for people in more than 200 groups.
        return None if isinstance(elsewhere, dict) and name in elsewhere else frozenset()
    return groups_of(value if isinstance(value, list) else [value])


def _value(claims: Mapping[str, Any], name: str) -> Any:
    """Return the claim with this name, or at this path, such as `realm_access.roles`."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
