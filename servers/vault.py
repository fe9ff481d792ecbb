"""The cipher of this installation, made from its settings."""

from functools import cache

from django.conf import settings

from wire.cipher import Cipher


@cache
def cipher() -> Cipher:
    """Seals and opens stored credentials under GATEWAY_ENCRYPTION_KEYS."""
    return Cipher(settings.ENCRYPTION_KEYS)
