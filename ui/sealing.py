"""The shared cipher for stored secrets."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from django.conf import settings

from wire.cipher import Cipher


class Resealed(NamedTuple):
    """Numbers of secrets moved to the newest key, and of secrets that no configured key decrypts (left unchanged)."""

    moved: int
    unreadable: int


@cache
def cipher() -> Cipher:
    """Return the cached cipher with the keys of GATEWAY_ENCRYPTION_KEYS."""
    return Cipher(settings.ENCRYPTION_KEYS)
