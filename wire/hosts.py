"""Hosts and origins as browsers read them, however they are spelled: everything that compares them asks here."""

import re
from contextlib import suppress
from ipaddress import ip_address
from urllib.parse import unquote, urlsplit

import idna

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_PORTS = {"http": 80, "https": 443}
_authority = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]/@%\\\s]+)(?::[0-9]{1,5})?", re.IGNORECASE).fullmatch


def canonical(host: str) -> str:
    """Return a host, without port, in the one spelling that is compared.

    That is lower case and ASCII, without percent-encoding and final dot, IPv6 in brackets. What is no valid name is
    only put in lower case.
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
    """Return scheme, host and port of a URL, each in the spelling that is compared. Raises ValueError."""
    parts = urlsplit(url.strip().replace("\\", "/"))  # As browsers do in what begins with http.
    return parts.scheme, canonical(parts.hostname or ""), parts.port or _PORTS.get(parts.scheme, 443)


def of_header(value: str) -> str:
    """Return the host that a Host header names, in the spelling that is compared; empty where it names none."""
    match = _authority(value)
    return canonical(match[1]) if match else ""
