"""Our SAML keys: one signs requests, others decrypt assertions.

Our metadata contain the certificates of the signing key and of the newest decryption key.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import ClassVar, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID
from django.db import models

from ui.sealing import cipher
from wire.cipher import Undecryptable

BITS = 3072
LIVES = timedelta(days=3650)
KEPT_KEYS = 2  # The certificate of the newest key is in our metadata; the previous key still decrypts.
ALGORITHM = "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256"


def make_key() -> tuple[str, str]:
    """Create a private key (PEM) and its certificate (base64 of DER)."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=BITS)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Gateway Admin")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + LIVES)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return pem, base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()


def load_key(pem: str) -> rsa.RSAPrivateKey:
    """Load a key created by `make_key`. Raises ValueError or TypeError if it is invalid."""
    key = load_pem_private_key(pem.encode(), None, unsafe_skip_rsa_key_validation=True)  # Our own key is valid.
    if not isinstance(key, rsa.RSAPrivateKey):
        raise TypeError("The key is not an RSA key.")
    return key


def sign_request(pem: str, what: str) -> str:
    """Return the signature (base64) of the text `what`, made with ALGORITHM."""
    key = load_key(pem)
    return base64.b64encode(key.sign(what.encode(), padding.PKCS1v15(), hashes.SHA256())).decode()


class Certificate(NamedTuple):
    """A signing certificate of the provider."""

    fingerprint: str
    subject: str
    until: datetime


def certificate_fingerprint(der: bytes) -> str:
    """Return the SHA-256 fingerprint in the format of browsers and openssl."""
    return hashlib.sha256(der).digest().hex(":").upper()


def certificate_properties(certificate: x509.Certificate, der: bytes) -> Certificate:
    """Return the displayed properties of a certificate."""
    return Certificate(
        certificate_fingerprint(der), certificate.subject.rfc4514_string(), certificate.not_valid_after_utc
    )


class DecryptionKey(models.Model):
    """A key pair for encrypted assertions: our private key, stored encrypted, and its certificate (base64 of DER)."""

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
        """Return the key whose certificate is in our metadata; None if there is none."""
        return cls.objects.first()

    @classmethod
    def add(cls, pem: str, certificate: str) -> None:
        """Add a key, and publish its certificate in our metadata. Keep the previous key, and delete older keys."""
        cls.objects.create(certificate=certificate, sealed=cipher().seal(pem), key_id=cipher().key_id)
        cls.objects.exclude(pk__in=cls.objects.values_list("pk")[:KEPT_KEYS]).delete()

    @classmethod
    def opening(cls) -> Sequence[rsa.RSAPrivateKey]:
        """Return the private keys that decrypt assertions, without those that ENCRYPTION_KEYS cannot decrypt."""
        return [key for row in cls.objects.all() if (key := row.private_key()) is not None]

    def private_key(self) -> rsa.RSAPrivateKey | None:
        """Return the private key, or None if no configured encryption key decrypts it."""
        try:
            return load_key(cipher().open(bytes(self.sealed)))
        except (Undecryptable, ValueError, TypeError):
            return None
