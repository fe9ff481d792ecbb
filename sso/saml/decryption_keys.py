"""Keys for encrypted assertions: the newest is in our metadata, the previous one still decrypts."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import ClassVar

from cryptography.hazmat.primitives.asymmetric import rsa
from django.db import models

from sso.saml import own_key
from sso.saml.terms import certificate_fingerprint
from ui.sealing import cipher
from wire.cipher import Undecryptable

KEPT = 2


class DecryptionKey(models.Model):
    """An encrypted private key of ours, and its certificate (base64 of DER)."""

    certificate = models.TextField()
    sealed = models.BinaryField()
    key_id = models.CharField(max_length=8)
    made_at = models.DateTimeField(auto_now_add=True)

    objects: ClassVar[models.Manager[DecryptionKey]] = models.Manager()

    class Meta:
        app_label = "sso"
        default_permissions = ()
        ordering = ("-pk",)

    def __str__(self) -> str:
        return self.fingerprint

    @property
    def fingerprint(self) -> str:
        return certificate_fingerprint(base64.b64decode(self.certificate))

    @classmethod
    def newest(cls) -> DecryptionKey | None:
        """Return the key that is in our metadata."""
        return cls.objects.first()

    @classmethod
    def add(cls, pem: str, certificate: str) -> None:
        """Add a key to our metadata; the previous one still decrypts, older ones are deleted."""
        cls.objects.create(certificate=certificate, sealed=cipher().seal(pem), key_id=cipher().key_id)
        cls.objects.exclude(pk__in=cls.objects.values_list("pk")[:KEPT]).delete()

    @classmethod
    def opening(cls) -> Sequence[rsa.RSAPrivateKey]:
        """Return the private keys, without those that no configured encryption key decrypts."""
        return [key for row in cls.objects.all() if (key := row.private_key()) is not None]

    def private_key(self) -> rsa.RSAPrivateKey | None:
        """Return the private key, or None if no configured encryption key decrypts it."""
        try:
            return own_key.load(cipher().open(bytes(self.sealed)))
        except (Undecryptable, ValueError, TypeError):
            return None
