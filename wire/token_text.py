"""The text of bearer credentials: how it is made, told from noise, and turned into what is stored.

A text is `<prefix>_` + 38 random base62 characters + 6 base62 characters of CRC-32 over everything
before: 48 characters, about 226 bits. Needs no Django, so the proxy may use it.
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

# Two digits at a time: every call checks a checksum.
_PAIRS = [high + low for high in ALPHABET for low in ALPHABET]

PATTERN = re.compile(r"gw[adkorsp]_[0-9A-Za-z]{44}", re.ASCII)


def mint(prefix: str) -> str:
    """A new credential text of the kind `prefix` names."""
    if prefix not in PREFIXES:
        raise ValueError(f"No kind of credential is called {prefix!r}.")
    head = f"{prefix}_" + "".join(secrets.choice(ALPHABET) for _ in range(RANDOM))
    return head + checksum(head)


def checksum(head: str) -> str:
    """CRC-32 of `head` as six base62 characters, most significant first."""
    value, last = divmod(crc32(head.encode()), len(_PAIRS))
    first, middle = divmod(value, len(_PAIRS))
    return _PAIRS[first] + _PAIRS[middle] + _PAIRS[last]


def well_formed(text: str, prefixes: Iterable[str] = PREFIXES) -> bool:
    """Whether `text` has the form and checksum of a credential of one of the kinds `prefixes`.

    Tells noise and typing errors apart without asking the database.
    """
    return PATTERN.fullmatch(text) is not None and text[:3] in prefixes and checksum(text[:-CHECK]) == text[-CHECK:]


def prefix_of(secret: str) -> str:
    """The part of a credential that may be shown and stored: its first 12 characters."""
    return secret[:SHOWN]


def key_id(key: bytes) -> str:
    """A short public name of a signing key, stored beside what it signed."""
    return hashlib.sha256(b"gateway-admin key id:" + key).hexdigest()[:8]


def digest(secret: str, key: bytes) -> bytes:
    """HMAC-SHA-256 of a credential under `key`: what is stored and looked up."""
    keyed = _keyed(key).copy()
    keyed.update(secret.encode())
    return keyed.digest()


@lru_cache(16)
def _keyed(key: bytes) -> hmac.HMAC:
    """What the key alone makes of it: half of the work, and the same for every call."""
    return hmac.new(key, digestmod="sha256")


def candidates(secret: str, keys: Iterable[bytes]) -> list[bytes]:
    """The digests under which `secret` may be stored while keys are being rotated, newest first."""
    return [digest(secret, key) for key in keys]
