"""Canonical hosts and origins, as browsers read them. Use these functions for every comparison."""

import re
from contextlib import suppress
from ipaddress import ip_address
from urllib.parse import unquote, urlsplit

import idna

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_PORTS = {"http": 80, "https": 443}
_authority = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]/@%\\\s]+)(?::[0-9]{1,5})?", re.IGNORECASE).fullmatch


def canonical_host(host: str) -> str:
    """Return the canonical spelling of a host without port.

    That is lower case and ASCII, without percent-encoding and final dot, IPv6 in brackets. Invalid names are only
    lower-cased.
    """
    name = unquote(host).strip("[]").lower()
    try:
        address = ip_address(name)
    except ValueError:
        pass
    else:
        return f"[{address}]" if address.version == 6 else str(address)
    if not name.isascii():
        with suppress(idna.IDNAError):
            name = idna.encode(name, uts46=True).decode()
    return name.removesuffix(".")


def origin_of(url: str) -> tuple[str, str, int]:
    """Return scheme, canonical host and port of a URL. Raises ValueError."""
    parts = urlsplit(url.strip().replace("\\", "/"))  # Browsers read backslashes in http URLs as slashes.
    return parts.scheme, canonical_host(parts.hostname or ""), parts.port or _PORTS.get(parts.scheme, 443)


def of_header(value: str) -> str:
    """Return the canonical host of a Host header; empty if the header is invalid."""
    match = _authority(value)
    return canonical_host(match[1]) if match else ""
