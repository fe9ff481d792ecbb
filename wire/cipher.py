"""Encryption of stored credentials with keys that can be rotated. Needs no Django."""

import hashlib
from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet


class Unreadable(ValueError):
    """No configured encryption key opens this credential."""


class Cipher:
    """Seals and opens credentials; the first key seals, every key opens."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys:
            raise ValueError("At least one encryption key is needed.")
        self._fernet = MultiFernet([Fernet(key) for key in keys])
        self.key_id = key_id(keys[0])

    def seal(self, secret: str) -> bytes:
        """The ciphertext of `secret` under the newest key."""
        return self._fernet.encrypt(secret.encode())

    def open(self, ciphertext: bytes) -> str:
        """The secret behind `ciphertext`; raises Unreadable when no key fits."""
        try:
            return self._fernet.decrypt(ciphertext).decode()
        except InvalidToken:
            raise Unreadable from None

    def reseal(self, ciphertext: bytes) -> bytes:
        """The same secret under the newest key; raises Unreadable when no key fits."""
        try:
            return self._fernet.rotate(ciphertext)
        except InvalidToken:
            raise Unreadable from None


def key_id(key: bytes) -> str:
    """A short public name of an encryption key, stored beside what it sealed."""
    return hashlib.sha256(b"gateway-admin encryption key id:" + key).hexdigest()[:8]
