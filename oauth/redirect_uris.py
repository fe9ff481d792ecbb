"""The rules for redirect URIs."""

from collections.abc import Iterable
from urllib.parse import SplitResult, urlsplit

from ui import addresses

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
APP_SCHEMES = frozenset({"cursor", "vscode", "vscode-insiders"})
MOST = 20
LONGEST = 2000


class BadRedirect(Exception):
    """The redirect URI is not allowed; the message says why."""


def check_redirect_uri(uri: str) -> None:
    """Raise BadRedirect, with the URI and the rule, unless `uri` may be registered."""
    parts = _split(uri)
    if parts.fragment or "#" in uri:
        raise BadRedirect(f"{uri}: a redirect address has no fragment.")
    if "@" in parts.netloc:
        raise BadRedirect(f"{uri}: a redirect address holds no user name.")
    if parts.scheme in APP_SCHEMES:
        return
    if not addresses.parts(uri).domain:  # Otherwise no page could show reliably where people are sent.
        raise BadRedirect(f"{uri}: a redirect address names a plain host.")
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK):
        return
    raise BadRedirect(f"{uri}: use https, http on the loopback address, or one of {', '.join(sorted(APP_SCHEMES))}.")


def _split(uri: str) -> SplitResult:
    if len(uri) > LONGEST or any(character.isspace() or not character.isprintable() for character in uri):
        raise BadRedirect("A redirect address is at most 2,000 characters long and has no blanks.")
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError:
        raise BadRedirect(f"{uri}: this is no address.") from None
    return parts


def origin(uri: str) -> str:
    """Return scheme and host of a redirect URI, and the port unless it is loopback, where it changes each time.

    For display only: redirect URIs are compared as strings (RFC 6749 section 3.1.2.3).
    """
    parts = urlsplit(uri)
    if parts.scheme in APP_SCHEMES:
        return f"{parts.scheme}://"
    if parts.hostname in LOOPBACK:
        return f"{parts.scheme}://{parts.hostname}"
    return f"{parts.scheme}://{parts.netloc.lower()}"


def origins(uris: Iterable[str]) -> list[str]:
    return sorted({origin(uri) for uri in uris})


def only_loopback(uris: Iterable[str]) -> bool:
    """True if all URIs are loopback, so that any program on the person's machine could receive the code."""
    return all(urlsplit(uri).hostname in LOOPBACK for uri in uris)
