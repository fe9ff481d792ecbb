"""Validation of an app's metadata, from a registration or a client metadata document."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

from django.contrib.auth.hashers import PBKDF2PasswordHasher

from gateways.models import Gateway
from ui import addresses
from wire import hosts

# The rules for redirect URIs.

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
APP_SCHEMES = frozenset({"cursor", "vscode", "vscode-insiders"})
MOST = 20
LONGEST = 2000


class BadRedirect(Exception):
    """The redirect URI is not allowed; the message says why."""


def check_redirect_uri(uri: str) -> None:
    """Raise BadRedirect if `uri` must not be registered; the message says why."""
    parts = _split(uri)
    if parts.fragment or "#" in uri:
        raise BadRedirect(f"{uri}: a redirect URI must not have a fragment.")
    if "@" in parts.netloc:
        raise BadRedirect(f"{uri}: a redirect URI must not have a user name.")
    if parts.scheme in APP_SCHEMES:
        return
    if not addresses.parts(uri).domain:  # Pages have to show reliably to which host people are redirected.
        raise BadRedirect(f"{uri}: a redirect URI must have a valid host.")
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK):
        return
    schemes = ", ".join(sorted(APP_SCHEMES))
    raise BadRedirect(f"{uri}: use https, or http on a loopback address, or one of the schemes {schemes}.")


def _split(uri: str) -> SplitResult:
    if len(uri) > LONGEST or any(character.isspace() or not character.isprintable() for character in uri):
        raise BadRedirect("A redirect URI must have at most 2,000 printable characters, and no spaces.")
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError:
        raise BadRedirect(f"{uri}: this is not a URI.") from None
    return parts


def origin(uri: str) -> str:
    """Return scheme, host and port of a redirect URI, for display.

    The port of a loopback URI is left out. For a scheme of APP_SCHEMES, only the scheme is returned. Do not compare
    redirect URIs by their origins, because they must be compared as whole strings (RFC 6749 section 3.1.2.3).
    """
    parts = urlsplit(uri)
    if parts.scheme in APP_SCHEMES:
        return f"{parts.scheme}://"
    if parts.hostname in LOOPBACK:
        return f"{parts.scheme}://{parts.hostname}"  # The port changes each time.
    return f"{parts.scheme}://{parts.netloc.lower()}"


def origins(uris: Iterable[str]) -> list[str]:
    return sorted({origin(uri) for uri in uris})


def only_loopback(uris: Iterable[str]) -> bool:
    """True if all URIs are loopback: then any program on the person's machine could receive the code."""
    return all(urlsplit(uri).hostname in LOOPBACK for uri in uris)


# Hashing of client secrets.


class ClientSecretHasher(PBKDF2PasswordHasher):
    """PBKDF2 with one round. This is enough, because nobody can guess a client secret of 128 random characters."""

    algorithm = "client_secret"
    # With a slow hash at each token request, anybody who knows a client_id could exhaust our CPUs.
    iterations = 1


# Resource indicators (RFC 8707): find the gateway a client requests.


class UnknownResource(Exception):
    """The request may name only one resource: the address of a gateway of this installation."""


def same_resource(first: str, second: str) -> bool:
    """Return whether the URLs name the same resource; False if `first` has a user name or control characters."""
    try:
        if "@" in urlsplit(first).netloc or not first.isprintable():
            return False
        # The host's spelling and one final slash do not matter.
        return hosts.origin_of(first) == hosts.origin_of(second) and _path(first) == _path(second)
    except ValueError:
        return False


def _path(uri: str) -> tuple[str, str, str]:
    parts = urlsplit(uri.replace("\\", "/"))
    return parts.path.removesuffix("/"), parts.query, parts.fragment


def gateway_of(resources: Sequence[str]) -> Gateway | None:
    """Return the gateway whose address is the only item of `resources`; None if `resources` is empty.

    `resources` are the resource indicators of a request (RFC 8707). Raises UnknownResource if there are several, or if
    no gateway has the address.
    """
    if not resources:
        return None
    slug = resources[0].rstrip("/").rpartition("/")[2]
    gateway = Gateway.objects.live().filter(slug=slug).first()
    if len(resources) != 1 or gateway is None or not same_resource(resources[0], gateway.url):
        raise UnknownResource(UnknownResource.__doc__)
    return gateway


AUTH_METHODS = ("none", "client_secret_post", "client_secret_basic")


class BadClientMetadata(Exception):
    """The app's metadata are not acceptable; the message says why."""

    def __init__(self, sentence: str, code: str = "invalid_client_metadata") -> None:
        super().__init__(sentence)
        self.code = code


def parse_client_metadata(body: bytes, *, biggest: int) -> dict[str, Any]:
    """Parse the JSON object in `body`. Raises BadClientMetadata."""
    if len(body) > biggest:
        raise BadClientMetadata("The registration is too large.")
    try:
        metadata = json.loads(body)
    except (ValueError, RecursionError):
        raise BadClientMetadata("The registration must be JSON.") from None
    if not isinstance(metadata, dict):
        raise BadClientMetadata("The registration must be a JSON object.")
    return metadata


def validated_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Validate the metadata, and return the part that Django OAuth Toolkit uses.

    The grant type authorization_code is required; other grant types are dropped. Raises BadClientMetadata.
    """
    uris = metadata.get("redirect_uris")
    if not isinstance(uris, list) or not 0 < len(uris) <= MOST or not all(isinstance(u, str) for u in uris):
        raise BadClientMetadata(f"Give 1 to {MOST} redirect_uris.", "invalid_redirect_uri")
    try:
        for uri in uris:
            check_redirect_uri(uri)
    except BadRedirect as bad:
        raise BadClientMetadata(str(bad), "invalid_redirect_uri") from None
    grants = metadata.get("grant_types", ["authorization_code"])
    if not isinstance(grants, list) or "authorization_code" not in grants:
        raise BadClientMetadata("The grant type authorization_code is required.")
    method = metadata.get("token_endpoint_auth_method", "client_secret_basic")
    if method not in AUTH_METHODS:
        raise BadClientMetadata(f"token_endpoint_auth_method must be one of {', '.join(AUTH_METHODS)}.")
    return {
        "redirect_uris": uris,
        "client_name": words(metadata, "client_name", 120),
        "grant_types": ["authorization_code"],
        "token_endpoint_auth_method": method,
    }


def words(metadata: Mapping[str, Any], key: str, most: int) -> str:
    """Return the text of the field `key` in an app's metadata; empty if the field is not a text.

    Line breaks and unprintable characters are replaced by spaces, and the text is cut after `most` characters.
    """
    value = metadata.get(key)
    if not isinstance(value, str):
        return ""
    return re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in value)).strip()[:most]


def details(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields stored with a registration in addition to the app's name."""
    return {
        "client_uri": words(metadata, "client_uri", 500),
        "software_id": words(metadata, "software_id", 120),
        "software_version": words(metadata, "software_version", 60),
    }
