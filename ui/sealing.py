"""The cipher of stored secrets, which everything that stores one shares."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from django.conf import settings

from wire.cipher import Cipher


class Resealed(NamedTuple):
    """How many secrets were moved to the newest key, and how many no configured key opens: these stay as they are, and
    cannot be used."""

    moved: int
    unreadable: int


@cache
def cipher() -> Cipher:
    """One for this process, with the keys of GATEWAY_ENCRYPTION_KEYS."""
    return Cipher(settings.ENCRYPTION_KEYS)
