"""Encryption of stored credentials with keys that can be rotated. Needs no Django."""

import hashlib
from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet


class Undecryptable(ValueError):
    """No configured encryption key decrypts this credential."""


class Cipher:
    """Encrypts and decrypts credentials. The first key is the newest and encrypts; every key decrypts."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys:
            raise ValueError("At least one encryption key is needed.")
        self._fernet = MultiFernet([Fernet(key) for key in keys])
        self.key_id = encryption_key_id(keys[0])

    def seal(self, secret: str) -> bytes:
        """Encrypt `secret` with the newest key."""
        return self._fernet.encrypt(secret.encode())

    def open(self, ciphertext: bytes) -> str:
        """Decrypt `ciphertext`. Raises Undecryptable when no key fits."""
        try:
            return self._fernet.decrypt(ciphertext).decode()
        except InvalidToken:
            raise Undecryptable from None

    def reseal(self, ciphertext: bytes) -> bytes:
        """Re-encrypt `ciphertext` with the newest key. Raises Undecryptable when no key fits."""
        try:
            return self._fernet.rotate(ciphertext)
        except InvalidToken:
            raise Undecryptable from None


def encryption_key_id(key: bytes) -> str:
    """Return the short public id of an encryption key; the id is stored with each ciphertext."""
    return hashlib.sha256(b"gateway-admin encryption key id:" + key).hexdigest()[:8]
