"""What seals and opens the secrets that are kept, of every room: those above and below the servers share it."""

from __future__ import annotations

from functools import cache

from django.conf import settings

from wire.cipher import Cipher


@cache
def cipher() -> Cipher:
    """Seals and opens what is kept sealed, under GATEWAY_ENCRYPTION_KEYS."""
    return Cipher(settings.ENCRYPTION_KEYS)
