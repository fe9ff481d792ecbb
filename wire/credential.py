"""The header a stored credential is sent in, and its validation. Needs no Django.

Used by the forms, by *Test connection* and by the proxy.
"""

import re
from urllib.parse import urlsplit

from wire import hosts

_token = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch  # RFC 9110 section 5.6.2
_visible = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?").fullmatch
# Headers the gateway sets itself; a credential in one of them would break every call.
_ours = re.compile(
    r"accept(-encoding)?|connection|content-.*|cookie|expect|forwarded|host|keep-alive|last-event-id|mcp-.*|proxy-.*"
    r"|te|trailer|transfer-encoding|upgrade|user-agent|x-forwarded-.*|x-gateway-.*",
    re.IGNORECASE,
).fullmatch


class Unsendable(ValueError):
    """No header can carry this credential; the message says why."""


def is_header_name(text: str) -> bool:
    """Return whether `text` is a valid header name."""
    return _token(text) is not None


def may_carry(header: str) -> bool:
    """Return whether this header may carry a credential: a valid name that the gateway does not set itself."""
    return is_header_name(header) and _ours(header) is None


def fits_a_header(text: str) -> bool:
    """Return whether `text` is a valid header value: one line of printable ASCII."""
    return _visible(text) is not None


def place_of(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port. A credential stored for one origin is never sent to another."""
    return hosts.origin_of(url)


def place_in_words(url: str) -> str:
    """Return the origin of `url` as text: `https://mcp.example.com`."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def header_of(auth_type: str, header_name: str, secret: str) -> tuple[str, str]:
    """Return the name and value of the header that carries `secret`. Raises Unsendable."""
    if not fits_a_header(secret):
        raise Unsendable("it holds characters no header can carry")
    if auth_type != "header":
        return "Authorization", f"Bearer {secret}"
    if not may_carry(header_name):
        raise Unsendable(f"{header_name!r} cannot carry a credential")
    return header_name, secret
