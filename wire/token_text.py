"""Format of bearer credentials: create, validate and digest them. Needs no Django.

A credential has three parts: `<prefix>_`, 38 random base62 characters (about 226 bits), and the CRC-32 of the first two
parts as 6 base62 characters.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from functools import lru_cache
from zlib import crc32

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SHOWN = 12
RANDOM = 38
CHECK = 6

ACCESS = "gwa"
KEY = "gwk"
OAUTH_ACCESS = "gwo"
OAUTH_REFRESH = "gwr"
SESSION = "gws"
PERSONAL = "gwp"
DIRECTORY = "gwd"
PREFIXES = frozenset({ACCESS, KEY, OAUTH_ACCESS, OAUTH_REFRESH, SESSION, PERSONAL, DIRECTORY})

# Two digits at a time, for speed: every call verifies a checksum.
_PAIRS = [high + low for high in ALPHABET for low in ALPHABET]

PATTERN = re.compile(r"gw[adkorsp]_[0-9A-Za-z]{44}", re.ASCII)


def mint(prefix: str) -> str:
    """Create a new credential of the kind `prefix`."""
    if prefix not in PREFIXES:
        raise ValueError(f"There is no kind of credential called {prefix!r}.")
    head = f"{prefix}_" + "".join(secrets.choice(ALPHABET) for _ in range(RANDOM))
    return head + checksum(head)


def checksum(head: str) -> str:
    """Return the CRC-32 of `head` as six base62 characters, most significant first."""
    value, last = divmod(crc32(head.encode()), len(_PAIRS))
    first, middle = divmod(value, len(_PAIRS))
    return _PAIRS[first] + _PAIRS[middle] + _PAIRS[last]


def well_formed(text: str, prefixes: Iterable[str] = PREFIXES) -> bool:
    """Return whether `text` has the form and checksum of a credential of one of these kinds.

    Rejects noise and typing errors without a database query.
    """
    return PATTERN.fullmatch(text) is not None and text[:3] in prefixes and checksum(text[:-CHECK]) == text[-CHECK:]


def prefix_of(secret: str) -> str:
    """Return the part of a credential that may be shown and stored: the first 12 characters."""
    return secret[:SHOWN]


def token_key_id(key: bytes) -> str:
    """Return the short public id of a token key; the id is stored with each digest."""
    return hashlib.sha256(b"gateway-admin key id:" + key).hexdigest()[:8]


def digest(secret: str, key: bytes) -> bytes:
    """Return the HMAC-SHA-256 of a credential: the digest that is stored and looked up."""
    keyed = _keyed(key).copy()
    keyed.update(secret.encode())
    return keyed.digest()


@lru_cache(16)
def _keyed(key: bytes) -> hmac.HMAC:
    """Return an HMAC initialised with the key. It is cached, because initialising takes half the time of a digest."""
    return hmac.new(key, digestmod="sha256")


def candidates(secret: str, keys: Iterable[bytes]) -> list[bytes]:
    """Return the digest of `secret` under each key, in the order of `keys`: the newest key first (for key rotation)."""
    return [digest(secret, key) for key in keys]
