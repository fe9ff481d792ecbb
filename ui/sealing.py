"""The shared cipher for stored secrets."""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from functools import cache
from typing import Any, NamedTuple

import orjson
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


def seal_value(value: Any) -> str:
    """Return a JSON value compressed and encrypted, about 1.8 times as long as compressed."""
    return cipher().seal(b64encode(zlib.compress(orjson.dumps(value))).decode()).decode()


def open_value(sealed: str) -> Any:
    """Return the value given to `seal_value`; ValueError if it was changed, or its key removed from the settings."""
    return orjson.loads(zlib.decompress(b64decode(cipher().open(sealed.encode()))))
