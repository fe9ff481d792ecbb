"""How a stored credential travels to its server: in which header, as what text. Needs no Django.

The pages that take one, *Test connection* and the proxy ask the same functions.
"""

import re
from urllib.parse import urlsplit

from wire import hosts

_token = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch  # RFC 9110 section 5.6.2
_visible = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?").fullmatch
# What the gateway itself says to a server; a credential in its place would break every call.
_ours = re.compile(
    r"accept(-encoding)?|connection|content-.*|cookie|expect|forwarded|host|keep-alive|last-event-id|mcp-.*|proxy-.*"
    r"|te|trailer|transfer-encoding|upgrade|user-agent|x-forwarded-.*|x-gateway-.*",
    re.IGNORECASE,
).fullmatch


class Unsendable(ValueError):
    """No header can carry this credential; the message says why."""


def is_header_name(text: str) -> bool:
    """Whether this can be the name of a header."""
    return _token(text) is not None


def may_carry(header: str) -> bool:
    """Whether this header can hold a credential: it is one, and not one that the gateway fills in itself."""
    return is_header_name(header) and _ours(header) is None


def fits_a_header(text: str) -> bool:
    """Whether `text` is one line of plain characters, as a header holds it."""
    return _visible(text) is not None


def place_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: a credential stored for one place is never sent to another."""
    return hosts.origin_of(url)


def place_in_words(url: str) -> str:
    """The same as a person writes it: `https://mcp.example.com`."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def header_of(auth_type: str, header_name: str, secret: str) -> tuple[str, str]:
    """The name and the value of the header that carries `secret`. Raises Unsendable."""
    if not fits_a_header(secret):
        raise Unsendable("it holds characters no header can carry")
    if auth_type != "header":
        return "Authorization", f"Bearer {secret}"
    if not may_carry(header_name):
        raise Unsendable(f"{header_name!r} cannot carry a credential")
    return header_name, secret
