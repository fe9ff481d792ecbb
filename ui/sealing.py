"""The cipher of stored secrets, which everything that stores one shares."""

from __future__ import annotations

from functools import cache

from django.conf import settings

from wire.cipher import Cipher


@cache
def cipher() -> Cipher:
    """One for this process, with the keys of GATEWAY_ENCRYPTION_KEYS."""
    return Cipher(settings.ENCRYPTION_KEYS)
