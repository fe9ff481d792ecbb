"""OpenID Connect Discovery: the endpoints and keys of the identity provider, read through the address guard.

Results are cached for ten minutes, so that a sign-in reads them once. Failures are cached for half a minute, so that
strangers cannot trigger requests as often as they like.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from django.core.cache import cache

from accounts.rules import Grantor
from auditlog.actions import Action
from auditlog.models import Event
from servers.oauth_client.discovery import Http, NoAnswer
from sso.errors import BadProviderUrl, ProviderError
from sso.models import Provider
from sso.saml import trial
from wire.oauth_client import as_list, auth_method, is_https, printable

KEPT_S = 10 * 60
FAILURE_KEPT_S = 30
KEYS_ASKED_AGAIN_S = 60  # Minimum interval for re-reading keys, however many tokens have unknown keys.
DISCOVERY = "/.well-known/openid-configuration"


class ProviderDown(ProviderError):
    """The identity provider does not answer, or not validly; the message says what is wrong."""


class OpenIdMetadata(NamedTuple):
    """Metadata of an OpenID provider."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str
    auth_methods: tuple[str, ...]
    says_iss: bool
    end_session_endpoint: str = ""  # OpenID Connect RP-Initiated Logout 1.0; empty if not published.

    def auth_method(self, *, secret: bool) -> str:
        """Return the method by which our client authenticates at the token endpoint."""
        return auth_method(self.auth_methods, secret=secret)


class ProviderTestResult(NamedTuple):
    """The result of a test of the provider, with an explanation."""

    works: bool
    detail: str


def metadata(provider: Provider) -> OpenIdMetadata:
    """Return the provider's metadata, cached. Raises ProviderDown."""
    name = _name("metadata", provider.issuer)
    kept = cache.get(name)
    if kept is None:
        kept = _unless_failed(name, lambda: read_provider_metadata(provider))
        cache.set(name, tuple(kept), KEPT_S)
    return OpenIdMetadata(*kept)


def keys(provider: Provider, *, anew: bool = False) -> list[dict[str, Any]]:
    """Return the provider's signing keys; `anew` re-reads them for a token with an unknown key. Raises ProviderDown."""
    name = _name("keys", provider.issuer)
    kept = cache.get(name)
    if kept is None or (anew and cache.add(f"{name}:anew", "asked", KEYS_ASKED_AGAIN_S)):
        kept = _unless_failed(name, lambda: _keys(provider, metadata(provider).jwks_uri))
        cache.set(name, kept, KEPT_S)
    return list(kept)


def _unless_failed[Found](name: str, ask: Callable[[], Found]) -> Found:
    """Call `read_provider_metadata`, unless it failed within FAILURE_KEPT_S. Raises ProviderDown."""
    failure = cache.get(f"{name}:failed")
    if failure is not None:
        raise ProviderDown(failure)
    try:
        return ask()
    except ProviderDown as fault:
        cache.set(f"{name}:failed", str(fault), FAILURE_KEPT_S)
        raise


def forget_metadata(provider: Provider) -> None:
    """Clear the cached metadata and keys of the provider."""
    names = [_name(what, provider.issuer) for what in ("metadata", "keys")]
    cache.delete_many([*names, *(f"{name}:failed" for name in names)])


def test_provider(provider: Provider, *, by: Grantor | None) -> ProviderTestResult:
    """Test the provider, explain what is wrong or missing, and record the test."""
    try:
        detail = trial.metadata_summary(provider, by=by) if provider.speaks_saml else _found(provider)
        outcome = ProviderTestResult(works=True, detail=detail)
    except ProviderError as fault:
        outcome = ProviderTestResult(works=False, detail=str(fault))
    told = {"works": outcome.works} | ({} if outcome.works else {"detail": outcome.detail})
    Event.objects.record(Action.ORGANISATION_TESTED, provider, by=by, changes=told)
    return outcome


def _found(provider: Provider) -> str:
    """Read metadata and keys, and describe them. Raises ProviderError."""
    said = read_provider_metadata(provider)
    found = _keys(provider, said.jwks_uri)
    forget_metadata(provider)
    way = "" if provider.has_secret else " It has to take clients without a secret."
    tells = not provider.signs_out_there or said.end_session_endpoint
    out = "" if tells else " It publishes no place to sign out there (end_session_endpoint)."
    keys_found = "1 key" if len(found) == 1 else f"{len(found)} keys"
    return (
        f"{said.issuer} describes itself, asks people at {said.authorization_endpoint} and publishes "
        f"{keys_found}.{way}{out} Whether it knows the client shows when somebody signs in."
    )


def read_provider_metadata(provider: Provider) -> OpenIdMetadata:
    """Read the provider's metadata. Raises ProviderDown."""
    if not provider.issuer:
        raise ProviderDown("No issuer is named yet.")
    url = provider.issuer.rstrip("/") + DISCOVERY
    document = fetch_provider_json(provider, url)
    if document.get("issuer") != provider.issuer:
        said = printable(str(document.get("issuer")))[:200]
        raise ProviderDown(f"{url} describes another issuer than {provider.issuer}: {said}. Enter exactly that.")
    methods = document.get("code_challenge_methods_supported")
    if methods is not None and "S256" not in as_list(methods):
        raise ProviderDown(f"{provider.issuer} does not support PKCE with S256.")
    return OpenIdMetadata(
        issuer=provider.issuer,
        authorization_endpoint=_endpoint(provider, document, "authorization_endpoint"),
        token_endpoint=_endpoint(provider, document, "token_endpoint"),
        jwks_uri=_endpoint(provider, document, "jwks_uri"),
        userinfo_endpoint=_endpoint(provider, document, "userinfo_endpoint", needed=False),
        auth_methods=as_list(document.get("token_endpoint_auth_methods_supported")),
        says_iss=document.get("authorization_response_iss_parameter_supported") is True,
        end_session_endpoint=_usable(provider, document.get("end_session_endpoint")),
    )


def fetch_provider_json(provider: Provider, url: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the JSON object at a URL of the provider. Raises ProviderDown."""
    try:
        answered = Http(private=provider.private, entered=[provider.issuer]).get(url, headers)
    except NoAnswer as error:
        raise ProviderDown(f"{url} {error}.") from None
    if answered.status != 200:
        raise ProviderDown(f"{url} answered {answered.status}.")
    if answered.document is None:
        raise ProviderDown(f"{url} answered with something that is no JSON object.")
    return answered.document


def _keys(provider: Provider, url: str) -> list[dict[str, Any]]:
    found = fetch_provider_json(provider, url).get("keys")
    keys = [key for key in found if isinstance(key, dict)] if isinstance(found, list) else []
    if not keys:
        raise ProviderDown(f"{url} holds no keys.")
    return keys


def _endpoint(provider: Provider, document: Mapping[str, Any], name: str, *, needed: bool = True) -> str:
    value = document.get(name)
    if value is None and not needed:
        return ""
    usable = _usable(provider, value)
    if not usable:
        raise ProviderDown(f"{provider.issuer} names no usable {name}.")
    return usable


def _usable(provider: Provider, value: object) -> str:
    """Return `value` if it is a URL that browsers may be sent to, otherwise ""."""
    return value if isinstance(value, str) and is_https(value, like=provider.issuer) else ""


def _name(what: str, issuer: str) -> str:
    return f"organisation-{what}:{hashlib.sha256(issuer.encode()).hexdigest()[:32]}"


__all__ = [
    "BadProviderUrl",
    "OpenIdMetadata",
    "ProviderDown",
    "ProviderTestResult",
    "fetch_provider_json",
    "forget_metadata",
    "keys",
    "metadata",
    "test_provider",
]
