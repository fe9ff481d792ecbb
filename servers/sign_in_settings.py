"""Validate the sign-in settings of a server; without Django."""

from __future__ import annotations

from wire.oauth_client import is_https, scopes_of


class BadSetting(ValueError):
    """A setting is invalid; the message says why."""


def issuer(text: str, *, url: str) -> str:
    """Validate an issuer, which must match its metadata byte for byte. Raises BadSetting."""
    if text and not is_https(text, like=url):
        raise BadSetting("An issuer is an address that begins with https://, exactly as its metadata name it.")
    return text


def resource(text: str) -> str:
    """Validate a `resource`: an http or https URI without a fragment (RFC 8707 section 2). Raises BadSetting."""
    if text and (not is_https(text, like="http://") or "#" in text):
        raise BadSetting("Give an address that begins with https:// or http://, without # and what follows it.")
    return text


def scopes(text: str) -> str:
    """Normalise scopes: each once, separated by spaces (RFC 6749 section 3.3). Raises BadSetting."""
    found = scopes_of(text)
    if unusable := [each for each in text.split() if each not in found]:
        raise BadSetting(f"“{unusable[0][:80]}” is no scope. Write scopes with spaces between them.")
    return " ".join(found)


def endpoint(text: str, *, url: str) -> str:
    """Validate an issuer's endpoint: a URI without a fragment (RFC 6749 sections 3.1, 3.2). Raises BadSetting."""
    if text and (not is_https(text, like=url) or "#" in text):
        raise BadSetting("An endpoint is an address that begins with https://, without # and what follows it.")
    return text
