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


def weakness(secret: str) -> str:
    """Why a secret cannot hold LEAST_SECRET bytes of chance, by its length and its characters; empty when it may."""
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
    """The signature of a body as it is on the wire, in base64."""
    signed = f"{named}.{moment}.".encode() + body
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
