"""What webhooks are signed with, and how (Standard Webhooks)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import string
from contextlib import suppress

LEAST_SECRET = 24  # Bytes of chance, as Standard Webhooks asks for.
ALPHABETS = (
    string.digits,
    string.digits + "abcdef",
    string.digits + "ABCDEF",
    string.ascii_lowercase,
    string.ascii_letters,
    string.ascii_letters + string.digits,
    string.ascii_letters + string.digits + "+/=_-",
)
LEAST_DIFFERENT = 10  # Characters, of a secret made by chance.
PREFIX = "whsec_"  # What a secret in base64 begins with (Standard Webhooks).


def signing_key(secret: str) -> bytes:
    """The bytes that are signed with: those of a `whsec_` secret in base64, else the characters as they are."""
    if secret.startswith(PREFIX):
        with suppress(ValueError):
            return base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    return secret.encode()


def is_strong(secret: str) -> bool:
    """Whether a secret may hold LEAST_SECRET bytes of chance: by its length, and the characters it is made of."""
    bits = 8.0 * LEAST_SECRET
    key = signing_key(secret)
    if secret.startswith(PREFIX) and key != secret.encode():
        return len(key) >= LEAST_SECRET and len(set(key)) >= LEAST_DIFFERENT
    size = next((len(one) for one in ALPHABETS if set(secret) <= set(one)), 95)
    is_repeated = secret in (secret + secret)[1:-1]
    return len(secret) * math.log2(size) >= bits and len(set(secret)) >= LEAST_DIFFERENT and not is_repeated


def signature(key: bytes, named: str, moment: str, body: bytes) -> str:
    """The signature of a body as it is on the wire, in base64."""
    signed = f"{named}.{moment}.".encode() + body
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
