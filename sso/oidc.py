"""Sign-in at the organisation with OpenID Connect (Core 3.1, with PKCE).

Requests to the provider go through the address guard. Metadata, keys and failures are cached, so that strangers cannot
trigger requests as often as they like.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from django.conf import settings
from django.core.cache import cache
from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from servers.oauth_client.discovery import Http
from sso.errors import ASK_THERE, CHANGED, ProviderDown, ResponseRefused, SignInFailed
from sso.flow import (
    CONFIRM,
    PendingSignIn,
    email_of,
    groups_of,
    is_true,
    leads_on,
    line_of,
    start_sign_in,
    take_pending_sign_in,
)
from sso.models import Claims, Provider
from sso.signed_tokens import TokenInvalid, UnknownKey, id_token
from wire.cipher import Undecryptable
from wire.oauth_client import (
    Mismatch,
    RegisteredClient,
    TokenRefused,
    TokenUnavailable,
    as_list,
    auth_method,
    authorize_url,
    check_iss,
    is_https,
    pkce,
    printable,
    read_tokens,
    token_request,
)
from wire.outbound import NoAnswer

KEPT_S = 10 * 60
FAILURE_KEPT_S = 30
KEYS_ASKED_AGAIN_S = 60  # Least time between two reads of the keys, even if many tokens have unknown keys.
DISCOVERY = "/.well-known/openid-configuration"
# Google's names for scopes in token responses.
SCOPES_CALLED = {
    "https://www.googleapis.com/auth/userinfo.email": "email",
    "https://www.googleapis.com/auth/userinfo.profile": "profile",
}
MAY_PASS = ("server_error", "temporarily_unavailable")  # RFC 6749 section 4.1.2.1: a retry may help.
ANEW = {"prompt": "login", "max_age": "0"}  # Requires a credential, even if a session is open at the provider.


# --- Discovery --------------------------------------------------------------------------------------------------------


class OpenIdMetadata(NamedTuple):
    """Metadata of an OpenID provider."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    userinfo_endpoint: str
    end_session_endpoint: str  # OpenID Connect RP-Initiated Logout 1.0; empty if not published.
    jwks_uri: str  # Empty if not usable: a sign-in can then be started, but not completed.
    auth_methods: tuple[str, ...]
    says_iss: bool


type SigningKeys = list[dict[str, Any]]


def provider_metadata(provider: Provider) -> OpenIdMetadata:
    """Return the provider's metadata, cached. Raises ProviderDown."""

    def read() -> tuple[Any, ...]:  # Cached as a tuple: another release may have moved the class.
        return tuple(read_provider_metadata(provider))

    return OpenIdMetadata(*_cached(_cache_name(provider), read))


def provider_keys(provider: Provider, *, anew: bool = False) -> SigningKeys:
    """Return the provider's keys, cached. Raises ProviderDown.

    Set `anew` if a token is signed with an unknown key. The keys are then read again, at most once a minute.
    """

    def read() -> SigningKeys:
        # The metadata are read again too, because they may have a new URL for the keys.
        said = read_provider_metadata(provider) if anew else provider_metadata(provider)
        return read_provider_keys(provider, said)

    return _cached(f"{_cache_name(provider)}:keys", read, anew=anew)


def _cached[Found](name: str, read: Callable[[], Found], *, anew: bool = False) -> Found:
    """Return the result of `read`. Raises ProviderDown if `read` raised this error.

    Both the result and the error are cached. If `anew` is True, `read` is called even if a result is cached, but at
    most once a minute.
    """
    kept: Found | None = cache.get(name)
    if kept is not None and not (anew and cache.add(f"{name}:anew", "asked", KEYS_ASKED_AGAIN_S)):
        return kept
    if (failure := cache.get(f"{name}:failed")) is not None:
        raise ProviderDown(failure)
    try:
        found = read()
    except ProviderDown as fault:
        cache.set(f"{name}:failed", str(fault), FAILURE_KEPT_S)
        raise
    cache.set(name, found, KEPT_S)
    return found


def forget_metadata(provider: Provider) -> None:
    """Clear the cached metadata and keys of the provider."""
    name = _cache_name(provider)
    cache.delete_many([name, f"{name}:failed", f"{name}:keys", f"{name}:keys:failed"])


def _cache_name(provider: Provider) -> str:
    """Return the cache key for the provider's metadata.

    The key contains the field names, because during an upgrade a release with other fields uses the same cache.
    """
    named = "\n".join((provider.issuer, *OpenIdMetadata._fields))
    return f"organisation-provider:{hashlib.sha256(named.encode()).hexdigest()[:32]}"


def read_provider_metadata(provider: Provider) -> OpenIdMetadata:
    """Read the provider's metadata. Raises ProviderDown."""
    if not provider.issuer:
        raise ProviderDown("Enter the issuer first.")
    url = provider.issuer.rstrip("/") + DISCOVERY
    document = fetch_provider_json(provider, url)
    if document.get("issuer") != provider.issuer:
        said = printable(str(document.get("issuer")))[:200]
        raise ProviderDown(f"{url} names another issuer: {said}. Enter the issuer exactly in this form.")
    methods = document.get("code_challenge_methods_supported")
    if methods is not None and "S256" not in as_list(methods):
        raise ProviderDown(f"{provider.issuer} does not support PKCE with S256, which sign-in here needs.")

    def usable(name: str, *, needed: bool = True) -> str:
        """Return the URL in the metadata field `name`, or "" if unusable. If `needed`, raise ProviderDown instead."""
        value = document.get(name)
        if isinstance(value, str) and is_https(value, like=provider.issuer):
            return value
        if needed:
            raise ProviderDown(f"The metadata of {provider.issuer} have no usable {name}: it must be an https URL.")
        return ""

    return OpenIdMetadata(
        issuer=provider.issuer,
        authorization_endpoint=usable("authorization_endpoint"),
        token_endpoint=usable("token_endpoint"),
        userinfo_endpoint=usable("userinfo_endpoint", needed=document.get("userinfo_endpoint") is not None),
        end_session_endpoint=usable("end_session_endpoint", needed=False),
        jwks_uri=usable("jwks_uri", needed=False),
        auth_methods=as_list(document.get("token_endpoint_auth_methods_supported")),
        says_iss=document.get("authorization_response_iss_parameter_supported") is True,
    )


def read_provider_keys(provider: Provider, said: OpenIdMetadata) -> SigningKeys:
    """Read the keys that the provider signs with. Raises ProviderDown."""
    if not said.jwks_uri:
        raise ProviderDown(f"The metadata of {provider.issuer} have no usable jwks_uri: it must be an https URL.")
    found = fetch_provider_json(provider, said.jwks_uri).get("keys")
    keys = [key for key in found if isinstance(key, dict)] if isinstance(found, list) else []
    if not keys:
        raise ProviderDown(f"{said.jwks_uri} has no keys.")
    return keys


def fetch_provider_json(provider: Provider, url: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the JSON object at a URL of the provider. Raises ProviderDown."""
    try:
        answered = Http(private=provider.private, entered=[provider.issuer]).get(url, headers)
    except NoAnswer as error:
        raise ProviderDown(f"{url} {error}.") from None
    if answered.status != 200:
        raise ProviderDown(f"{url} answered {answered.status}.")
    if answered.document is None:
        raise ProviderDown(f"{url} did not answer with a JSON object.")
    return answered.document


def verified(provider: Provider, verify: Callable[..., dict[str, Any]], token: str, **expected: str) -> dict[str, Any]:
    """Return the claims of a token. If its key is unknown, re-read the provider's keys and try once more.

    Raises TokenInvalid or ProviderDown.
    """
    expected |= {"issuer": provider.issuer, "client_id": provider.client_id}
    try:
        return verify(token, provider_keys(provider), **expected)
    except UnknownKey:
        return verify(token, provider_keys(provider, anew=True), **expected)


# --- Signing in and out -----------------------------------------------------------------------------------------------


def callback_url() -> str:
    """Return the redirect URI, which has to be registered at the provider."""
    return f"{settings.PUBLIC_URL}{reverse('sso:callback')}"


def signed_out_url() -> str:
    """Return the post-logout redirect URI, which has to be registered at the provider."""
    return f"{settings.PUBLIC_URL}{reverse('account_login')}"


def sign_out_there(request: HttpRequest, provider: Provider) -> HttpResponse | None:
    """Return a page that forwards to the provider's logout (OpenID Connect RP-Initiated Logout 1.0).

    Return None if the provider has no logout endpoint. Raises ProviderDown.
    """
    place = "" if provider.speaks_saml else provider_metadata(provider).end_session_endpoint
    if not place:
        return None
    # An ID token would have to be stored for the whole session, and would appear in a URL. Without it, the provider
    # asks the person for confirmation.
    parameters = {"client_id": provider.client_id, "post_logout_redirect_uri": signed_out_url()}
    return leads_on(request, provider, authorize_url(place, parameters), "sso/leads_out.html")


def begin_oidc(request: HttpRequest, provider: Provider, *, act: str, onward: str) -> HttpResponse:
    """Start a sign-in and return a page that forwards to the provider. Raises ProviderDown."""
    said = provider_metadata(provider)
    state, nonce, (verifier, challenge) = secrets.token_urlsafe(32), secrets.token_urlsafe(32), pkce()
    start_sign_in(request, provider, state, act=act, onward=onward, nonce=nonce, verifier=verifier)
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


def finish_oidc(request: HttpRequest, provider: Provider) -> tuple[PendingSignIn, Claims]:
    """Return the started sign-in, and the claims of the person who signed in. Raises SignInFailed or ProviderDown."""
    given = request.GET
    begun = take_pending_sign_in(request, given.get("state", ""))
    if begun.issuer != provider.known_as:
        raise ResponseRefused("provider_changed", CHANGED)
    said = provider_metadata(provider)
    try:
        check_iss(given.get("iss"), provider.issuer, advertised=said.says_iss)
    except Mismatch as mismatch:
        raise SignInFailed(str(mismatch)) from None
    if "error" in given or not given.get("code"):
        error = given.get("error", "no code")
        raise SignInFailed(
            f"The provider refused the sign-in: {printable(error)[:80]}.", None if error in MAY_PASS else ASK_THERE
        )
    token, access = _exchange(provider, said, given["code"], begun.verifier)
    try:
        claims = verified(provider, id_token, token, nonce=begun.nonce)
    except TokenInvalid as fault:
        raise SignInFailed(f"The ID token is not accepted. {fault}") from None
    if said.userinfo_endpoint and not ("email" in claims and _value(claims, provider.groups_claim) is not None):
        claims = _with_userinfo(claims, provider, said.userinfo_endpoint, access)
    return begun, extract_claims(claims, provider)


def _exchange(provider: Provider, said: OpenIdMetadata, code: str, verifier: str) -> tuple[str, str]:
    """Return the ID token and the access token for this code. Raises SignInFailed or ProviderDown."""
    try:
        secret = provider.secret
    except Undecryptable:
        raise SignInFailed("The client secret cannot be decrypted. Enter it again.") from None
    client = RegisteredClient(provider.client_id, secret, auth_method(said.auth_methods, secret=bool(secret)))
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
        tokens = read_tokens(answered.status, answered.body)
    except TokenRefused as refusal:
        raise SignInFailed(f"The provider refused the client or its code: {refusal}") from None
    except (TokenUnavailable, NoAnswer) as error:
        raise ProviderDown(f"{asked.url} {error}.") from None
    if tokens.scope and provider.rows.exists():
        _must_be_granted(provider.scopes, tokens.scope)
    return tokens.id_token, tokens.access


def _must_be_granted(asked: str, granted: str) -> None:
    """Raise SignInFailed if requested scopes were not granted."""
    # People could remove a scope from the authorization URL, and so withhold the groups that depend on this scope.
    given = {SCOPES_CALLED.get(scope, scope) for scope in granted.split()}
    missing = set(asked.split()) - given - {"offline_access"}  # This scope gives no claims, and is often not reported.
    if missing:
        raise SignInFailed(f"The provider did not grant these scopes: {' '.join(sorted(missing))}.")


def _with_userinfo(claims: dict[str, Any], provider: Provider, url: str, access: str) -> dict[str, Any]:
    """Return `claims` and the further claims of the userinfo endpoint.

    Raises SignInFailed if the endpoint returns another subject (Core 5.3.2), and ProviderDown if it fails.
    """
    found = fetch_provider_json(provider, url, {"Authorization": f"Bearer {access}"})
    if found.get("sub") != claims["sub"]:
        raise SignInFailed("The provider's userinfo is about another person.")
    source = claims if "email" in claims else found  # Take `email_verified` from the source of the address.
    return found | claims | {"email_verified": source.get("email_verified")}


def extract_claims(claims: Mapping[str, Any], provider: Provider) -> Claims:
    """Return the claims that are used. All other claims are dropped."""
    name = provider.groups_claim
    groups, elsewhere = _value(claims, name), claims.get("_claim_names")
    # For people in more than 200 groups, Microsoft Entra sends a reference instead of the groups.
    are_too_many = groups is None and isinstance(elsewhere, dict) and name in elsewhere
    signed_in = claims.get("auth_time")
    return Claims(
        issuer=provider.known_as,
        subject=claims["sub"],  # Not stripped: subjects that differ only in spaces are different people.
        email=email_of(claims.get("email")),
        email_verified=is_true(claims.get("email_verified")),
        name=line_of(claims.get("name")),
        groups=None if are_too_many else groups_of(groups if isinstance(groups, list) else [groups]),
        says_groups=groups is not None,
        session=line_of(claims.get("sid"))[:255],
        authenticated_at=signed_in if isinstance(signed_in, int | float) else None,
    )


def _value(claims: Mapping[str, Any], name: str) -> Any:
    """Return the claim with this name, or at this path, such as `realm_access.roles`; None if there is none."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
