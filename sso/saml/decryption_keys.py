"""The keys that assertions are encrypted for: the newest is in our metadata, the one before opens what still comes."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import ClassVar

from cryptography.hazmat.primitives.asymmetric import rsa
from django.db import models

from sso.saml import own_key
from sso.saml.terms import fingerprint
from ui.sealing import cipher
from wire.cipher import Unreadable

KEPT = 2


class DecryptionKey(models.Model):
    """A key of ours, sealed, and its certificate (base64 of DER)."""

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
        return fingerprint(base64.b64decode(self.certificate))

    @classmethod
    def newest(cls) -> DecryptionKey | None:
        """The one that is in our metadata."""
        return cls.objects.first()

    @classmethod
    def add(cls, pem: str, certificate: str) -> None:
        """Put this key into our metadata; the one before it goes on opening, and those before that are gone."""
        cls.objects.create(certificate=certificate, sealed=cipher().seal(pem), key_id=cipher().key_id)
        cls.objects.exclude(pk__in=cls.objects.values_list("pk")[:KEPT]).delete()

    @classmethod
    def opening(cls) -> Sequence[rsa.RSAPrivateKey]:
        """The keys there are; one that no configured encryption key opens is not."""
        return [key for row in cls.objects.all() if (key := row.private_key()) is not None]

    def private_key(self) -> rsa.RSAPrivateKey | None:
        """The key itself; None when no configured encryption key opens it."""
        try:
            return own_key.load(cipher().open(bytes(self.sealed)))
        except (Unreadable, ValueError, TypeError):
            return None
