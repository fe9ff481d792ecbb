"""Signatures and secrets of webhooks (Standard Webhooks)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import string
from contextlib import suppress

LEAST_SECRET = 24  # Random bytes, as Standard Webhooks requires.
ALPHABETS = (
    string.digits,
    string.digits + "abcdef",
    string.digits + "ABCDEF",
    string.ascii_lowercase,
    string.ascii_letters,
    string.ascii_letters + string.digits,
    string.ascii_letters + string.digits + "+/=_-",
)
LEAST_DIFFERENT = 10  # Different characters of a random secret.
PREFIX = "whsec_"  # Prefix of base64 secrets (Standard Webhooks).


def signing_key(secret: str) -> bytes:
    """Return the key: the decoded bytes of a `whsec_` secret, or the characters of any other."""
    if secret.startswith(PREFIX):
        with suppress(ValueError):
            return base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    return secret.encode()


def weakness(secret: str) -> str:
    """Return why a secret cannot contain LEAST_SECRET random bytes; empty if it can."""
    key = signing_key(secret)
    if secret.startswith(PREFIX) and key != secret.encode():
        least, different, is_repeated = LEAST_SECRET, len(set(key)), False
        too_short = f"after “{PREFIX}” this one holds {len(key)}" if len(key) < least else ""
    else:
        size = next((len(one) for one in ALPHABETS if set(secret) <= set(one)), 95)
        least, different = math.ceil(8 * LEAST_SECRET / math.log2(size)), len(set(secret))
        is_repeated = secret in (secret + secret)[1:-1]
        too_short = f"of such characters as in this one it takes {least}" if len(secret) < least else ""
    is_regular = different < LEAST_DIFFERENT or is_repeated
    return "this one is too regular to be random" if is_regular and not too_short else too_short


def signature(key: bytes, named: str, moment: str, body: bytes) -> str:
    """Return the base64 signature of a body as it is sent."""
    signed = f"{named}.{moment}.".encode() + body
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
